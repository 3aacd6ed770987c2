// Combs: VW elements that lie STEP apart, beside the STEP - 1 combs between them. Windows that move on by STEP read their
// inputs so, and whatever makes STEP elements of one writes its results so. For STEP 1 and 2 these are vectors, evened out.
#include "vectors.cl"
#if VW == 2
#define VW_2 4
#elif VW == 4
#define VW_2 8
#else
#define VW_2 16   // of VW 8, the most that two make a vector of
#endif

// p[at + STEP * lane] for the first n lanes; up to VW_2 elements are read, whatever n is (or, from STEP 3 on, only those)
static inline T comb_load(global const real *p, int at, int n) {
#if STEP == 1
  return VLOAD(0, p + at);
#elif STEP == 2
  return at & 1 ? CAT(vload, VW_2)(0, p + at - 1).odd : CAT(vload, VW_2)(0, p + at).even;
#else
  real t[VW] __attribute__((aligned(64)));
  UNROLL for (int l = 0; l < VW; l++) t[l] = p[at + STEP * min(l, n - 1)];
  return VLOAD(0, t);
#endif
}

// p[r + STEP * lane] = x[r] for the first n lanes and all r
static inline void combs_store(const T *x, global real *p, int n) {
#if STEP == 1
  store_n(x[0], p, n);
#elif STEP == 2
  CAT(REAL, VW_2) both;
  both.even = x[0];
  both.odd = x[1];
  if (n >= VW) { CAT(vstore, VW_2)(both, 0, p); return; }
  real t[VW_2] __attribute__((aligned(64)));
  CAT(vstore, VW_2)(both, 0, t);
  int l = 0;
#if VW_2 == 16
  PART(2 * n, 8, p, t)
#endif
#if VW_2 >= 8
  PART(2 * n, 4, p, t)
#endif
  PART(2 * n, 2, p, t)
#else
  real t[VW] __attribute__((aligned(64)));
  for (int r = 0; r < STEP; r++) {
    VSTORE(x[r], 0, t);
    for (int l = 0; l < min(n, VW); l++) p[r + STEP * l] = t[l];
  }
#endif
}
