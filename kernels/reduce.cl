// Reductions of an array seen as (outer, n, inner) over n. One work-item sums a chunk of n for one (outer, inner):
// neighbours read neighbours where inner > 1; long reductions take two launches, chunks first.
#include "common.cl"

#if defined(MAX)
#define START(x) (x)
#define JOIN(s, x) ((x) > (s) || (x) != (x) ? (x) : (s))      // NaN wins
#elif defined(MIN)
#define START(x) (x)
#define JOIN(s, x) ((x) < (s) || (x) != (x) ? (x) : (s))
#else
#define START(x) (x)
#define JOIN(s, x) ((s) + (x))
#endif

// y[o, p, i] = scale * join of x[o, k, i] for k in chunk p
kernel void reduce(int outer, int n, int inner, int chunk, int chunks, global const real *x, global real *y, real scale) {
  const int at = get_global_id(0);
  if (at >= outer * chunks * inner) return;
  const int i = at % inner, p = at / inner % chunks, o = at / inner / chunks;
  const int first = p * chunk, last = min(n, first + chunk);
  global const real *row = x + (size_t)o * n * inner + i;
  real s = START(row[(size_t)first * inner]);
  for (int k = first + 1; k < last; k++) { const real v = row[(size_t)k * inner]; s = JOIN(s, v); }
  y[at] = s * scale;
}

// y[o, i] = the first k at which x[o, k, i] is largest; NaN counts as largest, as in NumPy
kernel void argmax(int outer, int n, int inner, global const real *x, global int *y) {
  const int at = get_global_id(0);
  if (at >= outer * inner) return;
  const int i = at % inner, o = at / inner;
  global const real *row = x + (size_t)o * n * inner + i;
  int best = 0;
  real top = row[0];
  for (int k = 1; k < n; k++) {
    const real v = row[(size_t)k * inner];
    if (v > top || (v != v && top == top)) { top = v; best = k; }
  }
  y[at] = best;
}
