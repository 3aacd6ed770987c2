// What follows a GEMM whose engine cannot fuse it (CLBlast): bias and activation in place, and column sums.
#include "activation.cl"

#ifdef ACT
// y = f(y + bias), y (rows, n); the derivative of f goes to saved where KEEP
kernel void bias_activate(int n, int rows, global const real *bias, global real *y, global real *saved) {
  const int c = get_global_id(0), r = get_global_id(1);
  if (c >= n) return;
  const size_t i = (size_t)r * n + c;
  const real x = bias ? y[i] + bias[c] : y[i];
#ifdef KEEP
  saved[i] = DERIVATIVE(x);
#endif
  y[i] = ACTIVATE(x);
}
#endif

// out (parts, n) = alpha * column sums of x (rows, n), of `each` rows a part, + beta * out
kernel void column_sums(int n, int rows, int each, global const real *x, global real *out, global const real2 *scale, global const int *at, int column) {
  const int c = get_global_id(0), begin = get_global_id(1) * each, here = min(each, rows - begin);
  if (c >= n) return;
  const real2 pair = SCALE(scale, at, column);
  x += (size_t)begin * n;
  out += (size_t)get_global_id(1) * n;
  TOTAL(real, all);
  for (EACH_SPAN(first, here)) {
    real part = 0;
    for (IN_SPAN(r, first, here)) part += x[(size_t)r * n + c];
    ADD_TO(real, all, part)
  }
  out[c] = AXPBY(pair, WHOLE(all), out[c]);
}
