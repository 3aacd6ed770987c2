// What moves from step to step lives in small counters on the device; these kernels advance them, where none reads them.
#include "common.cl"

kernel void advance(global int *a, global int *b, global int *c, global int *d, int4 by) {
  if (a) a[0] += by.s0;
  if (b) b[0] += by.s1;
  if (c) c[0] += by.s2;
  if (d) d[0] += by.s3;
}

// The loss of an output is known in a step of fit on `batch` samples: state = (first row, step, first row of the backward pass). The mean
// of `rows` losses, the number of hits and the number of targets that count go to results[step]. kept, or null: what losses.cl's
// count_kept found. One work-item, so that the order of summation never changes.
static inline void record_part(int batch, int rows, global const real *losses, global const int *hits, global const real *kept,
                               global real *results, global const int *state) {
  TOTAL(real, sum);
  int count = 0;
  for (EACH_SPAN(first, rows)) {
    real part = 0;
    for (IN_SPAN(r, first, rows)) part += losses[r];
    ADD_TO(real, sum, part)
  }
  if (hits) for (int r = 0; r < rows; r++) count += hits[r];
  const int step = state[1];
  results[3 * step] = WHOLE(sum) / (kept ? kept[0] : rows);
  results[3 * step + 1] = count;
  results[3 * step + 2] = kept ? kept[1] : hits ? rows : batch;
}

// The forward pass of a step is over with its last output, and the counters move on.
static inline void record_step(int batch, int rows, global const real *losses, global const int *hits, global const real *kept,
                               global real *results, global int *state, global int *a, global int *b, int2 by) {
  record_part(batch, rows, losses, hits, kept, results, state);
  state[2] = state[0];
  state[0] += batch;
  state[1] += 1;
  if (a) a[0] += by.s0;
  if (b) b[0] += by.s1;
}

kernel void end_part(int batch, int rows, global const real *losses, global const int *hits, global const real *kept,
                     global real *results, global const int *state) {
  record_part(batch, rows, losses, hits, kept, results, state);
}

kernel void end_step(int batch, int rows, global const real *losses, global const int *hits, global const real *kept,
                     global real *results, global int *state, global int *a, global int *b, int2 by) {
  record_step(batch, rows, losses, hits, kept, results, state, a, b, by);
}
