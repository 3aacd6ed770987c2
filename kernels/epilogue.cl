// What follows a GEMM whose engine cannot fuse it (CLBlast): bias and activation in place, and column sums.
#include "activation.cl"

#ifdef ACT
// y = f(y + bias), y (rows, n); the value before f goes to saved where KEEP
kernel void bias_activate(int n, int rows, global const real *bias, global real *y, global real *saved) {
  const int c = get_global_id(0), r = get_global_id(1);
  if (c >= n) return;
  const size_t i = (size_t)r * n + c;
  const real x = bias ? y[i] + bias[c] : y[i];
#ifdef KEEP
  saved[i] = x;
#endif
  y[i] = ACTIVATE(x);
}
#endif

// out (n) = alpha * column sums of x (rows, n) + beta * out
kernel void column_sums(int n, int rows, global const real *x, global real *out, global const real2 *scale, global const int *at, int column) {
  const int c = get_global_id(0);
  if (c >= n) return;
  const real2 pair = SCALE(scale, at, column);
  real sum = 0;
  for (int r = 0; r < rows; r++) sum += x[(size_t)r * n + c];
  out[c] = pair.y == 0 ? pair.x * sum : pair.x * sum + pair.y * out[c];
}
