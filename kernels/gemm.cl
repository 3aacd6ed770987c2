// C (M, N) = epilogue(op(A) (M, K) . op(B) (K, N)), row-major, any M, N, K, leading dimensions and offsets.
//
//            N                  One work-item owns MR x NR of C (NR = NV * VW), held in NV * MR vector registers.
//        +-----+  B             gemm_direct reads A and B where they lie: a row of NR values of B times a column of MR
//      K |  #  |                values of A per k. gemm_block copies MC x KC of A and KC x NC of B to local memory first
//        +-----+                (on a CPU that is the thread's own cache-resident scratch): operands in strips without
//    K   +-----+                power-of-two strides, no edges in the inner loop, and a transposed B costs one pass.
//  +---+ |     |                On a CPU a work-group is one work-item. On a GPU gemm_direct runs in groups of GROUP.
// M|###| |  #  | C
//  +---+ +-----+
//
// Epilogue, in this order, each part there only if its define is:
//   SCALED  alpha * s + beta * C, the pair from a scale table (common.cl); C is not read where beta is 0
//   TIMES   the product is multiplied by ACT's derivative at SAVED (M, N) before beta * C is added
//   BIAS    + bias (N)
//   KEEP    the value so far goes to SAVED: what activations whose derivative needs x come back to
//   ACT     f(...), unless TIMES
//   SUMS    beside it: D (N) = alpha * column sums of op(B) + beta * D, with a pair of its own (NN and TN only)
#ifndef MR
#define MR 4   // rows of C a work-item holds
#endif
#ifndef NV
#define NV 2   // vectors of C a row
#endif
#ifndef VW
#define VW 4   // lanes a vector: the device's width
#endif
#ifndef ACT
#define ACT linear
#endif
#include "activation.cl"

#define VLOAD CAT(vload, VW)
#define VSTORE CAT(vstore, VW)
#define NR (NV * VW)
#define UNROLL _Pragma("unroll")

#ifdef FROM_SET
#define FROM_ARGS , global const int *order, global const int *state
#else
#define FROM_ARGS
#endif
// s: M N K, leading dimensions of A B C, offsets of A B C (elements), tiles along the axis that runs first, the columns of
// the pairs for C and for D, tiles a work-item, tiles along the other axis, and whether j runs first
#define ARGS int16 s, global const real *restrict A, global const real *restrict B, global real *C, global const real *bias, \
  global real *saved, global real *D, global const real2 *scale, global const int *at FROM_ARGS
#define UNPACK                                                                                                        \
  const int M = s.s0, N = s.s1, K = s.s2, lda = s.s3, ldb = s.s4, ldc = s.s5;                                         \
  A += s.s6; B += s.s7; C += s.s8;

// ---- vectors that hang over the right edge -----------------------------------------------------------------------------
// Inputs are read whole: every block of memory has SLACK bytes behind it (clnn/runtime/memory.py), and lanes past the edge
// are dropped. C and D, which others may be writing, are read and written up to the edge, in halves of halves.
#define PARTS(n, half)                                                                                  \
  static inline CAT(REAL, n) CAT(load, n)(global const real *p, int count) {                            \
    if (count & half) return (CAT(REAL, n))(CAT(vload, half)(0, p), CAT(load, half)(p + half, count & (half - 1))); \
    return (CAT(REAL, n))(CAT(load, half)(p, count), (CAT(REAL, half))(0));                             \
  }                                                                                                     \
  static inline void CAT(store, n)(CAT(REAL, n) x, global real *p, int count) {                         \
    if (count & half) { CAT(vstore, half)(x.lo, 0, p); CAT(store, half)(x.hi, p + half, count & (half - 1)); } \
    else CAT(store, half)(x.lo, p, count);                                                              \
  }
static inline real2 load2(global const real *p, int count) { return (real2)(count > 0 ? p[0] : 0, 0); }
static inline void store2(real2 x, global real *p, int count) { if (count > 0) p[0] = x.s0; }
PARTS(4, 2)
#if VW > 4
PARTS(8, 4)
#endif
#if VW > 8
PARTS(16, 8)
#endif
static inline T load_n(global const real *p, int n) { return n >= VW ? VLOAD(0, p) : CAT(load, VW)(p, n); }
static inline void store_n(T x, global real *p, int n) { if (n >= VW) VSTORE(x, 0, p); else CAT(store, VW)(x, p, n); }

// What becomes of the sum x of one vector of C at row, col. `later`: C already holds the products of earlier k.
static inline T epilogue(T x, int later, int last, global const real *c, global const real *bias, global real *saved, int N,
                         int row, int col, int n, real2 pair) {
#ifdef SCALED
  x *= pair.x;
#endif
#ifdef TIMES
  const T before = VLOAD(0, saved + (size_t)row * N + col);
  x *= DERIVATIVE(before);
#endif
  if (later) x += load_n(c, n);
#ifdef SCALED
  else if (pair.y != 0) x += pair.y * load_n(c, n);
#endif
  if (!last) return x;
#ifdef BIAS
  x += VLOAD(0, bias + col);
#endif
#ifdef KEEP
  store_n(x, saved + (size_t)row * N + col, n);
#endif
#ifndef TIMES
  x = ACTIVATE(x);
#endif
  return x;
}

#ifdef SUMS
// D[c] for the columns [j, end) of B
static inline void column_sums(int N, int K, int j, int end, global const real *B, int ldb, global real *D, real2 pair) {
  for (int c = j; c < end; c += VW) {
    T x = (T)(0);
    for (int k = 0; k < K; k++) x += VLOAD(0, B + (size_t)k * ldb + c);
    x *= pair.x;
    if (pair.y != 0) x += pair.y * load_n(D + c, N - c);
    store_n(x, D + c, N - c);
  }
}
#endif

#ifdef SCALED
#define PAIR SCALE(scale, at, s.sa)
#else
#define PAIR (real2)(1, 0)
#endif

// FROM_SET: A is the whole data set, and row r of a mini-batch is its row order[first + r]
#ifdef FROM_SET
#if TA
#define FROM(r) ROW_OF(r, order, state, 2)
#else
#define FROM(r) ROW_OF(r, order, state, 0)
#endif
#define FROM_USED , order, state
#else
#define FROM(r) (r)
#define FROM_USED
#endif

// ---- direct ----------------------------------------------------------------------------------------------------------
#if TA
#define A_ROWS
#define A_ROW_OF_K global const real *a = A + (size_t)FROM(k) * lda + i;
#define A_AT(r, k) a[full_rows ? (r) : min((r), rows - 1)]
#else
#define A_ROWS                                                                     \
  global const real *a[MR];                                                        \
  UNROLL for (int r = 0; r < MR; r++) a[r] = A + (size_t)FROM(i + (full_rows ? r : min(r, rows - 1))) * lda;
#define A_ROW_OF_K
#define A_AT(r, k) a[r][k]
#endif
#define ACCUMULATE_ROWS                                                            \
  A_ROW_OF_K                                                                       \
  UNROLL for (int r = 0; r < MR; r++) {                                            \
    const T x = (T)(A_AT(r, k));                                                   \
    UNROLL for (int v = 0; v < NV; v++) acc[r][v] += x * bv[v];                    \
  }

#ifndef MC
static inline void tile(const int full_rows, const int full_cols, int M, int N, int K, global const real *restrict A, int lda,
                        global const real *restrict B, int ldb, global real *C, int ldc, global const real *bias,
                        global real *saved, real2 pair, int i, int j FROM_ARGS) {
  const int rows = full_rows ? MR : min(MR, M - i);
  A_ROWS
  T acc[MR][NV], bv[NV];
  UNROLL for (int r = 0; r < MR; r++) UNROLL for (int v = 0; v < NV; v++) acc[r][v] = (T)(0);
#if !TB
  global const real *b = B + j;
  for (int k = 0; k < K; k++, b += ldb) {
    UNROLL for (int v = 0; v < NV; v++) bv[v] = VLOAD(v, b);
    ACCUMULATE_ROWS
  }
#else
  for (int k = 0; k < K; k++) {
    UNROLL for (int v = 0; v < NV; v++) {
      real t[VW];
      UNROLL for (int l = 0; l < VW; l++) t[l] = B[(size_t)min(j + v * VW + l, N - 1) * ldb + k];
      bv[v] = VLOAD(0, t);
    }
    ACCUMULATE_ROWS
  }
#endif
  UNROLL for (int r = 0; r < MR; r++) if (full_rows || r < rows) UNROLL for (int v = 0; v < NV; v++) {
    const int col = j + v * VW, n = full_cols ? VW : N - col;
    const size_t e = (size_t)(i + r) * ldc + col;
    if (n > 0) store_n(epilogue(acc[r][v], 0, 1, C + e, bias, saved, N, i + r, col, n, pair), C + e, n);
  }
}

#ifdef GROUP
#define GROUP_SIZE
#else
#define GROUP_SIZE __attribute__((reqd_work_group_size(1, 1, 1)))
#endif
// Work-item g computes the tiles g * chunk and following; along the shorter axis first, so that neighbours share operands.
kernel GROUP_SIZE void gemm_direct(ARGS) {
  UNPACK
  const int across = s.s9, chunk = s.sc, tiles = s.sd * across;        // across: tiles along the axis that runs first
  const real2 pair = PAIR;
  for (int t = get_global_id(0) * chunk; t < min(tiles, ((int)get_global_id(0) + 1) * chunk); t++) {
    const int i = (s.se ? t / across : t % across) * MR, j = (s.se ? t % across : t / across) * NR;
#define TILE(full_rows, full_cols) tile(full_rows, full_cols, M, N, K, A, lda, B, ldb, C, ldc, bias, saved, pair, i, j FROM_USED)
    if (i + MR <= M) { if (j + NR <= N) TILE(1, 1); else TILE(1, 0); }
    else { if (j + NR <= N) TILE(0, 1); else TILE(0, 0); }
#ifdef SUMS
    if (i == 0) column_sums(N, K, j, min(N, j + NR), B, ldb, D, SCALE(scale, at, s.sb));
#endif
  }
}

#else
// ---- block: MC x NC of C by one work-item, in steps of KC along K -----------------------------------------------------
#undef A_AT
#if TA
#define AP_AT(r, k) ap[(k) * MC + (r)]
#define AP_SIZE (KC * MC)
#else
#define AP_STRIDE (KC + 16)
#define AP_AT(r, k) ap[(r) * AP_STRIDE + (k)]
#define AP_SIZE (MC * AP_STRIDE)
#endif
static inline void copy_row(local real *d, global const real *p, int n, int total) {  // n values, then zeros
  int x = 0;
  for (; x + VW <= n; x += VW) VSTORE(VLOAD(0, p + x), 0, d + x);
  for (; x < n; x++) d[x] = p[x];
  for (; x < total; x++) d[x] = 0;
}

kernel __attribute__((reqd_work_group_size(1, 1, 1))) void gemm_block(ARGS) {
  UNPACK
  local real ap[AP_SIZE] __attribute__((aligned(64)));
  local real bp[KC * NC] __attribute__((aligned(64)));
  const int t = get_global_id(0), across = s.s9;                       // chunks are of one tile here
  const int i0 = (s.se ? t / across : t % across) * MC, j0 = (s.se ? t % across : t / across) * NC;
  const int mc = min(MC, M - i0), nc = min(NC, N - j0);
  const int mp = (mc + MR - 1) / MR * MR, np = (nc + NR - 1) / NR;
  const real2 pair = PAIR;
  for (int k0 = 0; k0 < K; k0 += KC) {
    const int kc = min(KC, K - k0);
#if TA
    for (int k = 0; k < kc; k++) copy_row(ap + k * MC, A + (size_t)FROM(k0 + k) * lda + i0, mc, mp);
#else
    for (int r = 0; r < mp; r++) copy_row(ap + r * AP_STRIDE, A + (size_t)FROM(i0 + min(r, mc - 1)) * lda + k0, kc, kc);
#endif
    for (int p = 0; p < np; p++) {                        // bp: strips of NR columns, k-major inside
      const int n = min(NR, nc - p * NR);
      local real *d = bp + p * NR * KC;
#if TB
      global const real *b = B + (size_t)(j0 + p * NR) * ldb + k0;
      for (int c0 = 0; c0 < NR; c0 += 4) {                // 4 columns at a time; the compiler makes shuffles of it
        int k = 0;
        if (c0 + 4 <= n)
          for (; k + 4 <= kc; k += 4) {
            const CAT(REAL, 4) t0 = vload4(0, b + (size_t)(c0 + 0) * ldb + k), t1 = vload4(0, b + (size_t)(c0 + 1) * ldb + k);
            const CAT(REAL, 4) t2 = vload4(0, b + (size_t)(c0 + 2) * ldb + k), t3 = vload4(0, b + (size_t)(c0 + 3) * ldb + k);
            local real *o = d + k * NR + c0;
            vstore4((CAT(REAL, 4))(t0.s0, t1.s0, t2.s0, t3.s0), 0, o);
            vstore4((CAT(REAL, 4))(t0.s1, t1.s1, t2.s1, t3.s1), 0, o + NR);
            vstore4((CAT(REAL, 4))(t0.s2, t1.s2, t2.s2, t3.s2), 0, o + 2 * NR);
            vstore4((CAT(REAL, 4))(t0.s3, t1.s3, t2.s3, t3.s3), 0, o + 3 * NR);
          }
        for (; k < kc; k++)
          for (int c = c0; c < min(c0 + 4, NR); c++) d[k * NR + c] = c < n ? b[(size_t)c * ldb + k] : 0;
      }
#else
      for (int k = 0; k < kc; k++) copy_row(d + k * NR, B + (size_t)(k0 + k) * ldb + j0 + p * NR, n, NR);
#endif
    }
    for (int p = 0; p < np; p++)
      for (int i = 0; i < mc; i += MR) {
        local const real *b = bp + p * NR * KC;
        T acc[MR][NV], bv[NV];
        UNROLL for (int r = 0; r < MR; r++) UNROLL for (int v = 0; v < NV; v++) acc[r][v] = (T)(0);
        for (int k = 0; k < kc; k++, b += NR) {
          UNROLL for (int v = 0; v < NV; v++) bv[v] = VLOAD(v, b);
          UNROLL for (int r = 0; r < MR; r++) {
            const T x = (T)(AP_AT(i + r, k));
            UNROLL for (int v = 0; v < NV; v++) acc[r][v] += x * bv[v];
          }
        }
        const int rows = min(MR, mc - i);
        UNROLL for (int r = 0; r < MR; r++) if (r < rows) UNROLL for (int v = 0; v < NV; v++) {
          const int row = i0 + i + r, col = j0 + p * NR + v * VW, n = N - col;
          const size_t e = (size_t)row * ldc + col;
          if (n > 0) store_n(epilogue(acc[r][v], k0 > 0, k0 + kc == K, C + e, bias, saved, N, row, col, n, pair), C + e, n);
        }
      }
  }
#ifdef SUMS
  if (i0 == 0) column_sums(N, K, j0, j0 + nc, B, ldb, D, SCALE(scale, at, s.sb));
#endif
}
#endif
