// Softmax and log-softmax over the last axis: one work-item a row, the row's largest value subtracted first.
#include "common.cl"

kernel void softmax_forward(int rows, int n, global const real *x, global real *y) {
  const int r = get_global_id(0);
  if (r >= rows) return;
  x += (size_t)r * n;
  y += (size_t)r * n;
  real top = x[0];
  for (int c = 1; c < n; c++) top = x[c] > top ? x[c] : top;
  TOTAL(real, sum);
  for (EACH_SPAN(first, n)) {
    real part = 0;
    for (IN_SPAN(c, first, n)) { const real e = exp(x[c] - top); y[c] = e; part += e; }
    ADD_TO(real, sum, part)
  }
#ifdef LOG
  const real shift = log(WHOLE(sum));
  for (int c = 0; c < n; c++) y[c] = (x[c] - top) - shift;    // top + shift would round shift away where logits are large
#else
  const real whole = WHOLE(sum);
  for (int c = 0; c < n; c++) y[c] /= whole;
#endif
}

// softmax: dx = y * (dy - sum(dy * y)); log-softmax: dx = dy - exp(y) * sum(dy)
kernel void softmax_backward(int rows, int n, global const real *y, global const real *dy, global real *dx) {
  const int r = get_global_id(0);
  if (r >= rows) return;
  y += (size_t)r * n;
  dy += (size_t)r * n;
  dx += (size_t)r * n;
  TOTAL(real, sum);
  for (EACH_SPAN(first, n)) {
    real part = 0;
#ifdef LOG
    for (IN_SPAN(c, first, n)) part += dy[c];
#else
    for (IN_SPAN(c, first, n)) part += dy[c] * y[c];
#endif
    ADD_TO(real, sum, part)
  }
  const real whole = WHOLE(sum);
#ifdef LOG
  for (int c = 0; c < n; c++) dx[c] = dy[c] - exp(y[c]) * whole;
#else
  for (int c = 0; c < n; c++) dx[c] = y[c] * (dy[c] - whole);
#endif
}
