// What moves from step to step lives in small counters on the device; these kernels advance them, where none reads them.
#include "group.cl"

kernel void advance(global int *a, global int *b, global int *c, global int *d, int4 by) {
  if (a) a[0] += by.s0;
  if (b) b[0] += by.s1;
  if (c) c[0] += by.s2;
  if (d) d[0] += by.s3;
}

// n numbers of 32 bits become 0, `each` a work-item
kernel void zero(int n, int each, global int *out) {
  const int first = get_global_id(0) * each, end = min(n, first + each);
  for (int i = first; i < end; i++) out[i] = 0;
}

// The loss of an output is known in a step of fit on `batch` samples: state = (first row, step, first row of the backward pass). The mean
// of `rows` losses, the number of hits and the number of targets that count go to results[step]. kept, or null: what losses.cl's
// count_kept found.
#define PART_ARGS int batch, int rows, global const real *losses, global const int *hits, global const real *kept, global real *results
#define THE_PART batch, rows, losses, hits, kept, results
#define STEP_ARGS PART_ARGS, global int *state, global int *a, global int *b, int2 by
#define THE_STEP THE_PART, state, a, b, by

// Of every `by`th row from `from` on: the sum of losses, and how many are hits.
static inline real losses_from(int from, int by, int rows, global const real *losses) {
  TOTAL(real, sum);
  for (int first = from; first < rows; first += SPAN * by) {
    real part = 0;
    for (int r = first; r < min(rows, first + SPAN * by); r += by) part += losses[r];
    ADD_TO(real, sum, part)
  }
  return WHOLE(sum);
}

static inline int hits_from(int from, int by, int rows, global const int *hits) {
  int count = 0;
  if (hits) for (int r = from; r < rows; r += by) count += hits[r];
  return count;
}

static inline void put_part(real sum, real count, PART_ARGS, global const int *state) {
  global real *to = results + 3 * state[1];
  to[0] = sum / (kept ? kept[0] : rows);
  to[1] = count;
  to[2] = kept ? kept[1] : hits ? rows : batch;
}

// The forward pass of a step is over with its last output, and the counters move on.
static inline void put_step(real sum, real count, STEP_ARGS) {
  put_part(sum, count, THE_PART, state);
  state[2] = state[0];
  state[0] += batch;
  state[1] += 1;
  if (a) a[0] += by.s0;
  if (b) b[0] += by.s1;
}

// By one work-item, for the few rows of one group
static inline void record_step(STEP_ARGS) {
  put_step(losses_from(0, 1, rows, losses), hits_from(0, 1, rows, hits), THE_STEP);
}

// By one group of WIDTH, on a CPU of one, for any number of rows
#define OF_GROUP const int from = get_local_id(0), of = get_local_size(0);                  \
  const real sum = OVER_GROUP(losses_from(from, of, rows, losses)), count = OVER_GROUP((real)hits_from(from, of, rows, hits));

kernel void end_part(PART_ARGS, global const int *state) {
  SHARED
  OF_GROUP
  if (from == 0) put_part(sum, count, THE_PART, state);
}

kernel void end_step(STEP_ARGS) {
  SHARED
  OF_GROUP
  if (from == 0) put_step(sum, count, THE_STEP);
}
