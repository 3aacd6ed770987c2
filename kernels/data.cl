// A mini-batch out of the data set, for what does not read it there: y[r] = x[order[first + r]] (ROW_OF in common.cl).
// E is the elements' type. On a GPU a work-item copies one element; with ROWS, for CPUs, `each` rows.
#include "common.cl"
#ifndef E
#define E real
#endif

kernel void gather(int columns, int rows, global const E *x, global const int *order, global const int *state, global E *y, int each) {
#ifdef ROWS
  const int start = get_global_id(0) * each;
  for (int r = start; r < min(rows, start + each); r++) {
    global const E *from = x + (size_t)ROW_OF(r, order, state, 0) * columns;
    for (int c = 0; c < columns; c++) y[(size_t)r * columns + c] = from[c];
  }
#else
  const int c = get_global_id(0), r = get_global_id(1);
  if (c < columns) y[(size_t)r * columns + c] = x[(size_t)ROW_OF(r, order, state, 0) * columns + c];
#endif
}
