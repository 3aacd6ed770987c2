// Reductions of an array seen as (outer, n, inner) over n. One work-item sums a chunk of n for one (outer, inner), or on GPUs where
// inner is 1 a group of WIDTH does: neighbours read neighbours. Long reductions take more launches, chunks first.
#include "group.cl"
#include "largest.cl"

#if defined(MAX)
#define OF_NONE -INFINITY
#define JOIN(s, x) ((x) > (s) || (x) != (x) ? (x) : (s))      // NaN wins
#elif defined(MIN)
#define OF_NONE INFINITY
#define JOIN(s, x) ((x) < (s) || (x) != (x) ? (x) : (s))
#elif defined(PROD)
#define OF_NONE 1
#define JOIN(s, x) ((s) * (x))
#else
#define OF_NONE 0
#define JOIN(s, x) ((s) + (x))
#endif

// y[o, p, i] = scale * join of x[o, k, i] for k in chunk p
kernel void reduce(int outer, int n, int inner, int chunk, int chunks, global const real *x, global real *y, real scale) {
  const int at = get_global_id(0) / WIDTH;
  if (WIDTH == 1 && at >= outer * chunks * inner) return;
  const int i = at % inner, p = at / inner % chunks, o = at / inner / chunks;
  const int first = p * chunk, own = OWNED(min(n, first + chunk) - first);
  global const real *row = x + ((size_t)o * n + first) * inner + i;
  real s = WIDTH > 1 ? OF_NONE : 0;
  for (int span = 0; span < own; span += SPAN) {
    real part = row[(size_t)OWN(span) * inner];
    for (int k = span + 1; k < min(own, span + SPAN); k++) { const real v = row[(size_t)OWN(k) * inner]; part = JOIN(part, v); }
    s = span == 0 ? part : JOIN(s, part);
  }
#if WIDTH > 1
  SHARED
  shared[ME] = s;
  barrier(CLK_LOCAL_MEM_FENCE);
  for (int h = WIDTH / 2; h; h /= 2) {
    if (ME < h) { const real a = shared[ME], b = shared[ME + h]; shared[ME] = JOIN(a, b); }
    barrier(CLK_LOCAL_MEM_FENCE);
  }
  if (ME) return;
  s = shared[0];
#endif
  y[at] = s * scale;
}

// y[o, i] = the first k at which x[o, k, i] is largest; NaN counts as largest, as in NumPy
kernel void argmax(int outer, int n, int inner, global const real *x, global int *y) {
#if WIDTH > 1  // inner is 1
  SHARED
  PLACES
  const int o = get_group_id(0), best = FIRST_LARGEST(n, x + (size_t)o * n);
  if (ME == 0) y[o] = best;
#else
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
#endif
}
