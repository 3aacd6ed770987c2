// How a gradient is written, for every kernel: dx = alpha * sum + beta * dx. The pair (alpha, beta) is from a scale table
// (common.cl) if SCALED, else (1, 0); dx is not read where beta is 0. TIMES_DERIVATIVE: the sum is first multiplied by the
// derivative at `saved` of the activation ACT. With VW up to VW elements at a time, else one.
#ifndef ACT
#define ACT linear
#endif
#include "activation.cl"
#ifdef VW
#include "vectors.cl"
#else
#define UNROLL _Pragma("unroll")
#define VLOAD(i, p) (p)[i]
#define load_n(p, n) (p)[0]
#define store_n(x, p, n) (p)[0] = (x)
#endif

#define SINK_ARGS global const real *saved, global real *dx, global const real2 *scale, global const int *at, int column
#ifndef PAIR
#ifdef SCALED
#define PAIR SCALE(scale, at, column)
#else
#define PAIR (real2)(1, 0)
#endif
#endif
// What n elements of dx become
INLINE T sunk(T sum, global const real *saved, global const real *dx, int n, real2 pair) {
#ifdef TIMES_DERIVATIVE
  const T before = VLOAD(0, saved);
  sum *= DERIVATIVE(before);
#endif
  return AXPBY(pair, sum, load_n(dx, n));
}
INLINE void write_lanes(T sum, global const real *saved, global real *dx, int n, real2 pair) {
  store_n(sunk(sum, saved, dx, n, pair), dx, n);
}
#define WRITE_ONE(sum, saved, dx, pair) write_lanes((T)(sum), saved, dx, 1, pair)
