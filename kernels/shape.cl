// Moving elements: slices, transpositions and broadcasting are one strided copy; its adjoint is a strided scatter.
// ELEMENT is the element's type (a build option), so that labels move too.
#include "common.cl"
#include "strided.cl"
#ifndef ELEMENT
#define ELEMENT float
#endif

// y[i] = x[offset + strides . index(i)], y of `shape`
kernel void strided_copy(int n, int8 shape, int8 strides, int offset, global const ELEMENT *x, global ELEMENT *y) {
  const int i = get_global_id(0);
  if (i < n) y[i] = x[offset + strided(i, shape, strides)];
}

// x[offset + strides . index(i)] = y[i]; no two i may meet, so no stride is 0 along an axis longer than 1
kernel void strided_scatter(int n, int8 shape, int8 strides, int offset, global const ELEMENT *y, global ELEMENT *x) {
  const int i = get_global_id(0);
  if (i < n) x[offset + strided(i, shape, strides)] = y[i];
}

// y[r] = x[index[r]]: rows of `columns` elements
kernel void take_rows(int columns, int rows, global const ELEMENT *x, global const int *index, global ELEMENT *y) {
  const int c = get_global_id(0), r = get_global_id(1);
  if (c < columns) y[(size_t)r * columns + c] = x[(size_t)index[r] * columns + c];
}
