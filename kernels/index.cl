// Elements by their numbers: taken, sorted, and sums of what goes to one place, always in one order, so that the same bits come
// out each time (atomics would add as they happen to come).
#include "sink.cl"

// ---- sorting: blocks of BLOCK by insertion, then runs of `width` are merged to twice that, a launch each. Equals keep their order.
#ifdef KEY                                 // the type that is sorted
#define SMALLER(a, b) ((a) < (b) || ((b) != (b) && (a) == (a)))                // NaN is the largest
#ifdef DESCENDING
#define BEFORE(a, b) SMALLER(b, a)
#else
#define BEFORE(a, b) SMALLER(a, b)
#endif
#ifdef BLOCK
// x (rows, n) -> keys sorted within blocks, and where in its row each was. INDEX: the x are numbers of one of `limit` rows, which
// may be negative, from the end, unless FROM_START; those of none become INT_MAX and are noted as `missing` (common.cl).
kernel void sort_blocks(int rows, int n, int limit, global const KEY *x, global int *missing, global KEY *keys, global int *at) {
  const int blocks = (n + BLOCK - 1) / BLOCK, row = get_global_id(0) / blocks, first = get_global_id(0) % blocks * BLOCK;
  if (row >= rows) return;
  x += (size_t)row * n; keys += (size_t)row * n; at += (size_t)row * n;
  for (int i = first; i < min(n, first + BLOCK); i++) {
    KEY key = x[i];
#ifdef INDEX
#ifndef FROM_START
    key = key < 0 ? key + limit : key;
#endif
    if (key < 0 || key >= limit) { NOTE_MISSING(i, limit) key = INT_MAX; }
#endif
    int to = i;
    for (; to > first && BEFORE(key, keys[to - 1]); to--) { keys[to] = keys[to - 1]; at[to] = at[to - 1]; }
    keys[to] = key;
    at[to] = i;
  }
}
#else
// A work-item moves one element: as many places on as there are elements of the other run before it.
kernel void merge_runs(int rows, int n, int width, global const KEY *keys, global const int *at, global KEY *to_keys, global int *to_at) {
  const int row = get_global_id(0) / n, i = get_global_id(0) % n;
  if (row >= rows) return;
  keys += (size_t)row * n; at += (size_t)row * n; to_keys += (size_t)row * n; to_at += (size_t)row * n;
  const int run = i / width, base = run / 2 * 2 * width, second = run % 2, other = min(n, second ? base : base + width);
  const KEY mine = keys[i];
  int low = other, high = min(n, other + width);
  while (low < high) {
    const int middle = (low + high) / 2;
    const KEY that = keys[middle];
    if (BEFORE(that, mine) || (second && !BEFORE(mine, that))) low = middle + 1; else high = middle;
  }
  const int to = base + (i - run * width) + (low - other);
  to_keys[to] = mine;
  to_at[to] = at[i];
}
#endif
#endif

#ifdef TAKE_BACKWARD
static inline int first_of(global const int *keys, int m, int r) {
  int low = 0, high = m;
  while (low < high) { const int middle = (low + high) / 2; if (keys[middle] < r) low = middle + 1; else high = middle; }
  return low;
}
// dx[o, r, i] = the sum of dy[o, j, i] over those j whose number is r: from first to last in the sorted order. A launch adds those
// from `begin` to `end` of that order, where a driver ends long loops: all but the first add to what is there.
static inline T sum_of_equals(int first, int last, int i, int inner, global const int *at, global const real *dy) {
  TOTAL(T, sum);
  for (int from = first; from < last; from += SPAN) {
    T part = 0;
    for (int j = from; j < min(last, from + SPAN); j++) part += VLOAD(0, dy + (size_t)at[j] * inner + i);
    ADD_TO(T, sum, part)
  }
  return WHOLE(sum);
}
kernel void take_backward(int outer, int n, int inner, int m, int begin, int end, int each, global const int *keys,
                          global const int *order, global const real *dy, SINK_ARGS) {
  real2 pair = PAIR;
  if (begin) pair.y = 1;
#ifdef VW
  for (int row = get_global_id(0) * each, until = min(outer * n, row + each); row < until; row++) {
    const int first = max(begin, first_of(keys, m, row % n)), last = min(end, first_of(keys, m, row % n + 1));
    for (int i = 0; i < inner; i += VW) {
      const size_t to = (size_t)row * inner + i;
      write_lanes(sum_of_equals(first, last, i, inner, order, dy + (size_t)(row / n) * m * inner), saved + to, dx + to, inner - i, pair);
    }
  }
#else
  const int row = get_global_id(0) / inner, i = get_global_id(0) % inner;
  if (row >= outer * n) return;
  const size_t to = (size_t)row * inner + i;
  const int first = max(begin, first_of(keys, m, row % n)), last = min(end, first_of(keys, m, row % n + 1));
  write_lanes(sum_of_equals(first, last, i, inner, order, dy + (size_t)(row / n) * m * inner), saved + to, dx + to, 1, pair);
#endif
}
#endif

#ifdef GATHER
// y[o, j, i] = x[o, index[o, j, i], i]; NOWHERE for a number that x does not have, which is noted as `missing`
kernel void gather(int outer, int n, int inner, int m, global const ELEMENT *x, global const int *index, global int *missing,
                   global ELEMENT *y) {
  const int to = get_global_id(0);
  if (to >= outer * m * inner) return;
  const int o = to / inner / m, at = index[to] < 0 ? index[to] + n : index[to];
  const int there = at >= 0 && at < n;
  if (!there) NOTE_MISSING(to, n)
  y[to] = there ? x[((size_t)o * n + at) * inner + to % inner] : (ELEMENT)NOWHERE;
}
#endif
#ifdef GATHER_BACKWARD
// dx[o, r, i] = the sum of dy[o, j, i] over those j, from `begin` to `end` as above, whose index[o, j, i] is r
kernel void gather_backward(int outer, int n, int inner, int m, int begin, int end, global const int *index, global const real *dy,
                            SINK_ARGS) {
  const int to = get_global_id(0);
  if (to >= outer * n * inner) return;
  const int o = to / inner / n, r = to / inner % n;
  const size_t from = ((size_t)o * m + begin) * inner + to % inner;
  real2 pair = PAIR;
  if (begin) pair.y = 1;
  TOTAL(real, sum);
  for (EACH_SPAN(first, end - begin)) {
    real part = 0;
    for (IN_SPAN(j, first, end - begin)) {
      const int at = index[from + (size_t)j * inner];
      part += at == r || at == r - n ? dy[from + (size_t)j * inner] : 0;
    }
    ADD_TO(real, sum, part)
  }
  write_lanes(WHOLE(sum), saved + to, dx + to, 1, pair);
}
#endif

#ifdef CUMULATE
// y[o, k, i] = the sum of x[o, j, i] over j <= k, or with `reverse` j >= k: from the place `begin` of this order up to `until`
kernel void cumulate(int outer, int n, int inner, int reverse, int begin, int until, global const real *x, global real *y) {
  const int line = get_global_id(0);
  if (line >= outer * inner) return;
  const size_t from = (size_t)(line / inner) * n * inner + line % inner;
  TOTAL(real, sum);
  if (begin > 0) sum = y[from + (size_t)(reverse ? n - begin : begin - 1) * inner];
  for (int first = begin; first < until; first += SPAN) {
    real part = 0;
    for (IN_SPAN(j, first, until)) {
      const size_t k = from + (size_t)(reverse ? n - 1 - j : j) * inner;
      part += x[k];
      y[k] = WHOLE(sum) + part;
    }
    ADD_TO(real, sum, part)
  }
}
#endif

#ifdef PRODUCT_BACKWARD
// dx[o, k, i] = dy[o, i] times the product of x[o, j, i] over j other than k, without a division, which zeros forbid. A part of it
// is a number below 1 times 2^power: it neither overflows nor becomes 0 before the others have come.
kernel void product_backward(int outer, int n, int inner, global const real *x, global const real *dy, global real *dx,
                             global int *powers) {
  const int line = get_global_id(0);
  if (line >= outer * inner) return;
  const size_t from = (size_t)(line / inner) * n * inner + line % inner;
  int power, more;
  real part = frexp(dy[line], &power);
  for (int j = 0; j < n; j++) {
    const size_t k = from + (size_t)j * inner;
    dx[k] = part;
    powers[k] = power;
    part = frexp(part * x[k], &more);
    power += more;
  }
  part = 1;
  power = 0;
  for (int j = n - 1; j >= 0; j--) {
    const size_t k = from + (size_t)j * inner;
    dx[k] = ldexp(dx[k] * part, powers[k] + power);
    part = frexp(part * x[k], &more);
    power += more;
  }
}
#endif

#ifdef COUNT
// y[i] = start + i step
kernel void arange(int n, ELEMENT start, ELEMENT step, global ELEMENT *y) {
  const int i = get_global_id(0);
  if (i < n) y[i] = start + i * step;
}
#endif

#ifdef EXTEND
// Rows of k and v, `time` for each of s.s0, are written after the first past[0] of `steps` rows of K and V. What has no room is not:
// whoever reads them finds past[0] too large.
kernel void extend_rows(int8 s, global const int *past, global const real *k, global const real *v, global real *K, global real *V) {
  const int time = s.s1, steps = s.s2, wide = s.s3, wide_v = s.s4, c = get_global_id(0), row = get_global_id(1);
  const int at = past[0] + row % time;
  if (at < 0 || at >= steps) return;
  const size_t to = (size_t)(row / time) * steps + at;
  if (c < wide) K[to * wide + c] = k[(size_t)row * wide + c];
  else if (c < wide + wide_v) V[to * wide_v + c - wide] = v[(size_t)row * wide_v + c - wide];
}
#endif
