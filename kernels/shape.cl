// Moving elements: slices, transpositions and broadcasting are one strided copy; its adjoint is a strided scatter.
// ELEMENT is the element's type (a build option), so that labels move too.
#include "common.cl"
#include "strided.cl"
#ifdef ACT
#include "activation.cl"
#endif
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

// The same where neighbours stay neighbours (most slices, splits and joins): `outer` runs, one every `pitch` elements of x and
// one after the other in y. A work-item does `each` elements of as many runs: one on GPUs, more on CPUs.
#define RUNS int outer, int run, int pitch, int offset, int2 each
#define EACH_ELEMENT                                                                                                  \
  for (int o = get_global_id(1) * each.y, last = min(outer, o + each.y); o < last; o++)                               \
    for (int i = get_global_id(0) * each.x, end = min(run, i + each.x); i < end; i++)
#define IN_X ((size_t)o * pitch + offset + i)
#define IN_Y ((size_t)o * run + i)
kernel void runs_copy(RUNS, global const ELEMENT *restrict x, global ELEMENT *restrict y) { EACH_ELEMENT y[IN_Y] = x[IN_X]; }
kernel void runs_scatter(RUNS, global const ELEMENT *restrict y, global ELEMENT *restrict x) { EACH_ELEMENT x[IN_X] = y[IN_Y]; }

// The gradient of a slice: dx at the elements that were taken; TIMES_DERIVATIVE: times ACT's derivative at `saved`;
// ACCUMULATE: added.
#ifdef ACT
static inline void give(real g, global const real *saved, global real *dx) {
#ifdef TIMES_DERIVATIVE
  g *= DERIVATIVE(*saved);
#endif
#ifdef ACCUMULATE
  g += *dx;
#endif
  *dx = g;
}
kernel void strided_backward(int n, int8 shape, int8 strides, int offset, global const real *dy, global const real *saved,
                             global real *dx) {
  const int i = get_global_id(0);
  if (i >= n) return;
  const int to = offset + strided(i, shape, strides);
  give(dy[i], saved + to, dx + to);
}
kernel void runs_backward(RUNS, global const real *restrict dy, global const real *restrict saved, global real *restrict dx) {
  EACH_ELEMENT give(dy[IN_Y], saved + IN_X, dx + IN_X);
}
#endif

#ifdef NOWHERE
// y[o, r] = x[o, index[r]]: rows of `columns` elements of the `n` rows of x, counted from the end where negative; others are
// NOWHERE, and noted as `missing` (common.cl). There are `rows` in all, m for each o. A work-item does `each` columns of as many
// rows, as in RUNS.
kernel void take_rows(int columns, int rows, int m, int n, int2 each, global const ELEMENT *x, global const int *index,
                      global int *missing, global ELEMENT *y) {
  for (int r = get_global_id(1) * each.y, last = min(rows, r + each.y); r < last; r++) {
    const int number = index[r % m];
#ifdef FROM_START                          // negative ones are NOWHERE too
    const int from = number;
#else
    const int from = number < 0 ? number + n : number;
#endif
    const int there = from >= 0 && from < n;
    if (!there) NOTE_MISSING(r % m, n)
    global const ELEMENT *row = x + ((size_t)(r / m) * n + (there ? from : 0)) * columns;
    for (int c = get_global_id(0) * each.x, end = min(columns, c + each.x); c < end; c++)
      y[(size_t)r * columns + c] = there ? row[c] : (ELEMENT)NOWHERE;
  }
}
#endif
