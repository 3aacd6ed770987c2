// Softmax and log-softmax over the last axis, the row's largest value subtracted first: a row is a work-item's, or on GPUs that of
// a group of WIDTH.
#include "group.cl"
#if WIDTH > 1
#define LARGEST_OF_GROUP(x) largest_of_group(x, shared)
INLINE real largest_of_group(real mine, local real *shared) {
  shared[ME] = mine;
  barrier(CLK_LOCAL_MEM_FENCE);
  for (int h = WIDTH / 2; h; h /= 2) {
    if (ME < h && shared[ME + h] > shared[ME]) shared[ME] = shared[ME + h];
    barrier(CLK_LOCAL_MEM_FENCE);
  }
  return shared[0];
}
#else
#define LARGEST_OF_GROUP(x) (x)
#endif

kernel void softmax_forward(int rows, int n, global const real *x, global real *y) {
  SHARED
  const int r = get_global_id(0) / WIDTH, own = OWNED(n);
  if (WIDTH == 1 && r >= rows) return;
  x += (size_t)r * n;
  y += (size_t)r * n;
  real top = x[min(ME, n - 1)];
  for (int i = 1; i < own; i++) top = x[OWN(i)] > top ? x[OWN(i)] : top;
  top = LARGEST_OF_GROUP(top);
  TOTAL(real, all);
  for (EACH_SPAN(first, own)) {
    real part = 0;
    for (IN_SPAN(i, first, own)) { const real e = exp(x[OWN(i)] - top); y[OWN(i)] = e; part += e; }
    ADD_TO(real, all, part)
  }
  const real sum = OVER_GROUP(WHOLE(all));
#ifdef LOG
  const real shift = log(sum);
  for (int i = 0; i < own; i++) y[OWN(i)] = (x[OWN(i)] - top) - shift;    // top + shift would round shift away where logits are large
#else
  for (int i = 0; i < own; i++) y[OWN(i)] /= sum;
#endif
}

// softmax: dx = y * (dy - sum(dy * y)); log-softmax: dx = dy - exp(y) * sum(dy)
kernel void softmax_backward(int rows, int n, global const real *y, global const real *dy, global real *dx) {
  SHARED
  const int r = get_global_id(0) / WIDTH, own = OWNED(n);
  if (WIDTH == 1 && r >= rows) return;
  y += (size_t)r * n;
  dy += (size_t)r * n;
  dx += (size_t)r * n;
  TOTAL(real, all);
  for (EACH_SPAN(first, own)) {
    real part = 0;
#ifdef LOG
    for (IN_SPAN(i, first, own)) part += dy[OWN(i)];
#else
    for (IN_SPAN(i, first, own)) part += dy[OWN(i)] * y[OWN(i)];
#endif
    ADD_TO(real, all, part)
  }
  const real sum = OVER_GROUP(WHOLE(all));
#ifdef LOG
  for (int i = 0; i < own; i++) dx[OWN(i)] = dy[OWN(i)] - exp(y[OWN(i)]) * sum;
#else
  for (int i = 0; i < own; i++) dx[OWN(i)] = y[OWN(i)] * (dy[OWN(i)] - sum);
#endif
}
