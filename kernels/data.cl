// A mini-batch out of the data set: rows order[first + r], or first + r where there is no order; `state` holds first.
// X and Y are the element types of samples and targets; one launch gathers samples, targets and weights.
#include "common.cl"
#ifndef X
#define X real
#define Y int
#endif

kernel void gather(int x_columns, int rows, int y_columns, global const X *x, global const Y *y, global const real *weight,
                   global const int *order, global const int *state, global X *x_batch, global Y *y_batch, global real *weight_batch) {
  const int c = get_global_id(0), r = get_global_id(1);
  if (r >= rows) return;
  const int from = order ? order[state[0] + r] : state[0] + r;
  if (c < x_columns) x_batch[(size_t)r * x_columns + c] = x[(size_t)from * x_columns + c];
  if (y && c < y_columns) y_batch[(size_t)r * y_columns + c] = y[(size_t)from * y_columns + c];
  if (weight && c == 0) weight_batch[r] = weight[from];
}
