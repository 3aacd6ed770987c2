// What convolution kernels share: how sizes are handed over, and what becomes of a sum before it is stored.
//
// Epilogue of a sum at channel k, each part there only if its define is: SCALED, TIMES_DERIVATIVE as in sink.cl, FACTOR times
// factor[k], BIAS + bias[k], KEEP (ACT's derivative goes to SAVED), ACT f(...) unless TIMES_DERIVATIVE.
#ifdef VW
#define GROUP_SIZE __attribute__((reqd_work_group_size(1, 1, 1)))
#endif
#include "sink.cl"

// p: G C K, in D H W, out D H W, size D H W, stride D H W, and a number of its own for each kernel
// q: padding before D H W, dilation D H W, up D H W, and seven numbers more
#define UNPACK                                                                                                            \
  const int G = p.s0, C = p.s1, K = p.s2, ID = p.s3, IH = p.s4, IW = p.s5, OD = p.s6, OH = p.s7, OW = p.s8;              \
  const int KD = p.s9, KH = p.sa, KW = p.sb, SD = p.sc, SH = p.sd, SW = p.se;                                             \
  const int PD = q.s0, PH = q.s1, PW = q.s2, DD = q.s3, DH = q.s4, DW = q.s5, UD = q.s6, UH = q.s7, UW = q.s8;           \
  const int TAPS = KD * KH * KW, DEPTH = (ID - 1) * UD + 1, HEIGHT = (IH - 1) * UH + 1;

#ifdef FACTOR
#define FACTOR_OF(k) factor[k]
#else
#define FACTOR_OF(k) 1
#endif
#ifdef BIAS
#define BIAS_OF(k) bias[k]
#else
#define BIAS_OF(k) 0
#endif
INLINE T epilogue(T x, real a, real b, global const real *saved, global real *kept, global const real *y, int n, real2 pair) {
  x = sunk(x, saved, y, n, pair);
#ifdef FACTOR
  x *= a;
#endif
#ifdef BIAS
  x += b;
#endif
#ifdef KEEP
  store_n(DERIVATIVE(x), kept, n);
#endif
#ifndef TIMES_DERIVATIVE
  x = ACTIVATE(x);
#endif
  return x;
}
