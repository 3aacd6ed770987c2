// Vectors of VW lanes over rows of any length. Inputs are read whole: every block of memory has SLACK bytes after it
// (clnn/runtime/memory.py), and lanes past the edge are dropped. Results, which others may be writing beside, are read and
// written up to the edge, in parts of 8, 4, 2 and 1.
#include "common.cl"
#define VLOAD CAT(vload, VW)
#if VW > 4
// PoCL's vstore8 and vstore16 write 16 bytes at a time, and a load of the whole vector soon after waits for all of them.
typedef T __attribute__((aligned(sizeof(real)))) UNALIGNED;
#define PUT(space)                                                                                         \
  static inline __attribute__((always_inline, overloadable)) void put(T x, size_t i, space real *p) { \
    *(space UNALIGNED *)(p + i * VW) = x;                                                                  \
  }
PUT(global)
PUT(private)
#ifndef STACK
PUT(local)
#endif
#define VSTORE put
#else
#define VSTORE CAT(vstore, VW)
#endif
#define UNROLL _Pragma("unroll")

#define PART(n, width, to, from) \
  if ((n) & width) { CAT(vstore, width)(CAT(vload, width)(0, (from) + l), 0, (to) + l); l += width; }
#if VW > 8
#define PART_8(n, to, from) PART(n, 8, to, from)
#else
#define PART_8(n, to, from)
#endif
#if VW > 4
#define PART_4(n, to, from) PART(n, 4, to, from)
#else
#define PART_4(n, to, from)
#endif
#define PARTS(n, to, from) { int l = 0; PART_8(n, to, from) PART_4(n, to, from) PART(n, 2, to, from) if ((n) & 1) (to)[l] = (from)[l]; }
INLINE T load_n(global const real *p, int n) {
#ifndef STACK  // on PoCL a partial vector is read whole too: assembling it lane by lane is slow, and the lanes past n are dropped
  if (n < VW) {
    real t[VW] __attribute__((aligned(64)));
    VSTORE((T)(0), 0, t);
    PARTS(n, t, p)
    return VLOAD(0, t);
  }
#endif
  return VLOAD(0, p);
}
INLINE void store_n(T x, global real *p, int n) {
  if (n >= VW) { VSTORE(x, 0, p); return; }
  real t[VW] __attribute__((aligned(64)));
  VSTORE(x, 0, t);
  PARTS(n, p, t)
}

APART void copy_row(local real *d, global const real *p, int n, int total) {  // n values, then zeros
  int x = 0;
  for (; x + VW <= n; x += VW) VSTORE(VLOAD(0, p + x), 0, d + x);
  for (; x < n; x++) d[x] = p[x];
  for (; x < total; x++) d[x] = 0;
}

// Row r of `to`, which are `apart` elements apart, is element r of each of the vectors t0 to t3: the compiler makes shuffles of it
#define TRANSPOSE_4(t0, t1, t2, t3, to, apart) {                                             \
  vstore4((CAT(REAL, 4))((t0).s0, (t1).s0, (t2).s0, (t3).s0), 0, to);                         \
  vstore4((CAT(REAL, 4))((t0).s1, (t1).s1, (t2).s1, (t3).s1), 0, (to) + (apart));             \
  vstore4((CAT(REAL, 4))((t0).s2, (t1).s2, (t2).s2, (t3).s2), 0, (to) + 2 * (apart));         \
  vstore4((CAT(REAL, 4))((t0).s3, (t1).s3, (t2).s3, (t3).s3), 0, (to) + 3 * (apart)); }

// d (depth, width) = n rows of B transposed, then zeros; 4 x 4 at a time
APART void copy_transposed(local real *d, int width, global const real *b, size_t ldb, int n, int depth) {
  for (int c0 = 0; c0 < width; c0 += 4) {
    if (c0 + 4 <= n && depth >= 4)
      for (int z = 0; z < depth; z += 4) {
        const int k = min(z, depth - 4);  // the last are within the row
        const CAT(REAL, 4) t0 = vload4(0, b + (c0 + 0) * ldb + k), t1 = vload4(0, b + (c0 + 1) * ldb + k);
        const CAT(REAL, 4) t2 = vload4(0, b + (c0 + 2) * ldb + k), t3 = vload4(0, b + (c0 + 3) * ldb + k);
        TRANSPOSE_4(t0, t1, t2, t3, d + k * width + c0, width)
      }
    else if (c0 >= n)
      for (int k = 0; k < depth; k++) vstore4((CAT(REAL, 4))(0), 0, d + k * width + c0);
    else
      for (int k = 0; k < depth; k++) for (int c = c0; c < min(c0 + 4, width); c++) d[k * width + c] = c < n ? b[c * ldb + k] : 0;
  }
}
