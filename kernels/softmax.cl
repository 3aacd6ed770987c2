// Softmax and log-softmax over the last axis: one work-item a row, the row's largest value subtracted first.
#include "common.cl"

kernel void softmax_forward(int rows, int n, global const real *x, global real *y) {
  const int r = get_global_id(0);
  if (r >= rows) return;
  x += (size_t)r * n;
  y += (size_t)r * n;
  real top = x[0], sum = 0;
  for (int c = 1; c < n; c++) top = x[c] > top ? x[c] : top;
  for (int c = 0; c < n; c++) { const real e = exp(x[c] - top); y[c] = e; sum += e; }
#ifdef LOG
  const real shift = top + log(sum);
  for (int c = 0; c < n; c++) y[c] = x[c] - shift;
#else
  for (int c = 0; c < n; c++) y[c] /= sum;
#endif
}

// softmax: dx = y * (dy - sum(dy * y)); log-softmax: dx = dy - exp(y) * sum(dy)
kernel void softmax_backward(int rows, int n, global const real *y, global const real *dy, global real *dx) {
  const int r = get_global_id(0);
  if (r >= rows) return;
  y += (size_t)r * n;
  dy += (size_t)r * n;
  dx += (size_t)r * n;
  real sum = 0;
#ifdef LOG
  for (int c = 0; c < n; c++) sum += dy[c];
  for (int c = 0; c < n; c++) dx[c] = dy[c] - exp(y[c]) * sum;
#else
  for (int c = 0; c < n; c++) sum += dy[c] * y[c];
  for (int c = 0; c < n; c++) dx[c] = y[c] * (dy[c] - sum);
#endif
}
