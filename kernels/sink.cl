// How gradients by inputs that are sums, one for each element, are written, once: dx = sum, or, each part only if its define is
//   SCALED  alpha * sum + beta * dx, the pair from a scale table (common.cl); dx is not read where beta is 0
//   TIMES   the sum is multiplied by ACT's derivative at `saved` before beta * dx is added
#ifndef ACT
#define ACT linear
#endif
#include "activation.cl"
#ifdef SCALED
#define PAIR SCALE(scale, at, column)
#else
#define PAIR (real2)(1, 0)
#endif
#define SINK_ARGS global const real *saved, global real *dx, global const real2 *scale, global const int *at, int column

#ifdef VW
#include "vectors.cl"
// n elements of dx, up to VW
static inline void write_lanes(T sum, global const real *saved, global real *dx, int n, real2 pair) {
#ifdef TIMES
  const T before = VLOAD(0, saved);
  sum *= DERIVATIVE(before);
#endif
#ifdef SCALED
  sum *= pair.x;
  if (pair.y != 0) sum += pair.y * load_n(dx, n);
#endif
  store_n(sum, dx, n);
}
#define WRITE_ONE(sum, saved, dx, pair) write_lanes((T)(sum), saved, dx, 1, pair)
#else
static inline void write_one(real sum, global const real *saved, global real *dx, real2 pair) {
#ifdef TIMES
  sum *= DERIVATIVE(*saved);
#endif
#ifdef SCALED
  sum *= pair.x;
  if (pair.y != 0) sum += pair.y * *dx;
#endif
  *dx = sum;
}
#define WRITE_ONE write_one
#endif
