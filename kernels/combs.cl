// Combs: VW elements that are STEP apart, beside the STEP - 1 combs between them. Windows that move on by STEP read their
// inputs so, and whatever makes STEP elements of one writes its results so. For STEP 1 and 2 these are vectors, evened out.
#include "vectors.cl"
#if VW == 2
#define LANES (INTS)(0, 1)
#elif VW == 4
#define LANES (INTS)(0, 1, 2, 3)
#elif VW == 8
#define LANES (INTS)(0, 1, 2, 3, 4, 5, 6, 7)
#else
#define LANES (INTS)(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
#endif
#if STEP <= 8
#define EACH_COMB _Pragma("unroll") for (int r = 0; r < STEP; r++)
#else
#define EACH_COMB for (int r = 0; r < STEP; r++)
#endif

#define INT_float int
#define INT_double long
#define INT CAT(INT_, REAL)
#define INTS CAT(INT, VW)                  // what conditions on T are made of
#define TO_INTS CAT(convert_, INTS)
#define TO_T CAT(convert_, CAT(REAL, VW))

// p[at + STEP * lane], and where that is not in [first, end) something else, which is there
static inline T comb_gather(global const real *p, int at, int first, int end) {
  real t[VW] __attribute__((aligned(64)));
  UNROLL for (int l = 0; l < VW; l++) t[l] = p[clamp(at + STEP * l, first, end - 1)];
  return VLOAD(0, t);
}

// the same, where everything from p[at] on, up to 2 VW elements, may be read, and one before; fast where `at` is a constant
static inline T comb_load(global const real *p, int at, int first, int end) {
#if STEP == 1
  return VLOAD(0, p + at);
#elif STEP == 2
  const T t0 = VLOAD(0, p + (at & ~1)), t1 = VLOAD(1, p + (at & ~1));
  return at & 1 ? (T)(t0.odd, t1.odd) : (T)(t0.even, t1.even);
#else
  return comb_gather(p, at, first, end);
#endif
}

// y = STEP * VW elements one after the other, made of the combs x
static inline void combs_join(const T *x, T *y) {
#if STEP == 1
  y[0] = x[0];
#elif STEP == 2
  y[0].even = x[0].lo;
  y[0].odd = x[1].lo;
  y[1].even = x[0].hi;
  y[1].odd = x[1].hi;
#else
  real t[STEP * VW] __attribute__((aligned(64)));
  EACH_COMB {
    real one[VW] __attribute__((aligned(64)));
    VSTORE(x[r], 0, one);
    UNROLL for (int l = 0; l < VW; l++) t[r + STEP * l] = one[l];
  }
  EACH_COMB y[r] = VLOAD(r, t);
#endif
}
