// Metrics by row, and their means by step. A row is a work-item's, or for `accuracy` on GPUs that of a group of WIDTH where it is long.
#include "group.cl"
#include "largest.cl"

#ifdef LABELS
#define TARGETS global const int *target
#else
#define TARGETS global const real *target
#endif

#ifdef LABELS
#define LABEL_OF(r) target[r]
#else
#define LABEL_OF(r) LARGEST(n, target + (size_t)(r) * n)
#endif

// 1 where the largest output is the label's; one output alone says yes above the threshold
kernel void accuracy(int rows, int n, global const real *y, TARGETS, global real *out, real threshold) {
  SHARED
  PLACES
  const int r = get_global_id(0) / WIDTH;
#if WIDTH == 1
  if (r >= rows) return;
  if (n == 1) { out[r] = y[r] == y[r] && (y[r] > threshold) == (target[r] > (real)0.5); return; }
#endif
  const int best = LARGEST(n, y + (size_t)r * n), label = LABEL_OF(r);
  if (ME == 0) out[r] = best >= 0 && best == label;
}

// 1 where the label is among the k largest outputs
#if WIDTH == 1
kernel void top_k(int rows, int n, int k, global const real *y, TARGETS, global real *out) {
  const int r = get_global_id(0);
  if (r >= rows) return;
  const int label = LABEL_OF(r);
  global const real *row = y + (size_t)r * n;
  if (label < 0 || label >= n || largest(n, row) < 0) { out[r] = 0; return; }
  int above = 0;
  for (int c = 0; c < n; c++) above += row[c] > row[label] || (row[c] == row[label] && c < label);
  out[r] = above < k;
}
#endif

// out[step, column] = mean of values (n); state = (first row, step)
kernel void record_mean(int n, int columns, int column, global const real *values, global const int *state, global real *out) {
  TOTAL(real, sum);
  for (EACH_SPAN(first, n)) {
    real part = 0;
    for (IN_SPAN(i, first, n)) part += values[i];
    ADD_TO(real, sum, part)
  }
  out[state[1] * columns + column] = WHOLE(sum) / n;
}
