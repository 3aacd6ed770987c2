// A mini-batch out of the data set: rows order[first + r], or first + r where there is no order; `state` holds first.
// X and Y are the element types of samples and targets; one launch gathers samples, targets and weights.
#include "common.cl"
#ifndef X
#define X real
#define Y int
#endif

// On a GPU a work-item copies one element. With ROWS, for CPUs, it copies that many rows: a small batch stays on one core.
#define ROW_ARGS int x_columns, int rows, int y_columns, global const X *x, global const Y *y, global const real *weight, \
  global const int *order, global const int *state, global X *x_batch, global Y *y_batch, global real *weight_batch

static inline void gather_part(ROW_ARGS, int r, int first, int last, int y_last) {
  const int from = order ? order[state[0] + r] : state[0] + r;
  global const X *x_row = x + (size_t)from * x_columns;
  global X *x_out = x_batch + (size_t)r * x_columns;
  for (int c = first; c < last; c++) x_out[c] = x_row[c];
  if (y) for (int c = first; c < y_last; c++) y_batch[(size_t)r * y_columns + c] = y[(size_t)from * y_columns + c];
  if (weight && first == 0) weight_batch[r] = weight[from];
}

kernel void gather(ROW_ARGS, int rows_each) {
#define PART(r, first, last, y_last) gather_part(x_columns, rows, y_columns, x, y, weight, order, state, x_batch, y_batch, \
  weight_batch, r, first, last, y_last)
#ifdef ROWS
  const int start = get_global_id(0) * rows_each;
  for (int r = start; r < min(rows, start + rows_each); r++) PART(r, 0, x_columns, y_columns);
#else
  const int c = get_global_id(0), r = get_global_id(1);
  PART(r, c, min(c + 1, x_columns), min(c + 1, y_columns));
#endif
}
