// Reductions of an array seen as (outer, n, inner) over n. One work-item sums a chunk of n for one (outer, inner):
// neighbours read neighbours where inner > 1; long reductions take more launches, chunks first.
#include "common.cl"

#if defined(MAX)
#define JOIN(s, x) ((x) > (s) || (x) != (x) ? (x) : (s))      // NaN wins
#elif defined(MIN)
#define JOIN(s, x) ((x) < (s) || (x) != (x) ? (x) : (s))
#elif defined(PROD)
#define JOIN(s, x) ((s) * (x))
#else
#define JOIN(s, x) ((s) + (x))
#endif

// y[o, p, i] = scale * join of x[o, k, i] for k in chunk p
kernel void reduce(int outer, int n, int inner, int chunk, int chunks, global const real *x, global real *y, real scale) {
  const int at = get_global_id(0);
  if (at >= outer * chunks * inner) return;
  const int i = at % inner, p = at / inner % chunks, o = at / inner / chunks;
  const int first = p * chunk, last = min(n, first + chunk);
  global const real *row = x + (size_t)o * n * inner + i;
  real s = 0;
  for (int span = first; span < last; span += SPAN) {
    real part = row[(size_t)span * inner];
    for (int k = span + 1; k < min(last, span + SPAN); k++) { const real v = row[(size_t)k * inner]; part = JOIN(part, v); }
    s = span == first ? part : JOIN(s, part);
  }
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
