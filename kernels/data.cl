// A mini-batch out of the data set: rows order[first + r], or first + r where there is no order; `state` holds first.
// X and Y are the element types of samples and targets; one launch gathers samples, targets and weights.
#include "common.cl"
#ifndef X
#define X real
#define Y int
#endif

#ifndef CHUNK
#define CHUNK 1   // neighbouring elements that one work-item copies: many on a CPU, one on a GPU, where neighbours coalesce
#endif

kernel void gather(int x_columns, int rows, int y_columns, global const X *x, global const Y *y, global const real *weight,
                   global const int *order, global const int *state, global X *x_batch, global Y *y_batch, global real *weight_batch) {
  const int first = get_global_id(0) * CHUNK, r = get_global_id(1);
  const int from = order ? order[state[0] + r] : state[0] + r;
  global const X *x_row = x + (size_t)from * x_columns;
  global X *x_out = x_batch + (size_t)r * x_columns;
  if (first + CHUNK <= x_columns)
    for (int c = 0; c < CHUNK; c++) x_out[first + c] = x_row[first + c];
  else
    for (int c = first; c < x_columns; c++) x_out[c] = x_row[c];
  if (y) for (int c = first; c < min(first + CHUNK, y_columns); c++) y_batch[(size_t)r * y_columns + c] = y[(size_t)from * y_columns + c];
  if (weight && first == 0) weight_batch[r] = weight[from];
}
