// Losses by row: the loss of each sample, whether its largest output is its label's, and the gradient of the mean over
// samples, in one launch. A row is a work-item's, or on GPUs that of a group of WIDTH where it is long (but for `cosine`, and where
// the step is recorded). Each elementwise loss is one line: its value l(y, t) and dl/dy.
#include "group.cl"
#include "activation.cl"
#include "largest.cl"

#define LOSS_LINE(name, l, d)                                            \
  static inline real name##_l(real y, real t, real p) { return l; }      \
  static inline real name##_d(real y, real t, real p) { return d; }
#define CLIP(x) ((x) < (real)1.0e-7 ? (real)1.0e-7 : (x))
LOSS_LINE(quadratic,                0.5 * (y - t) * (y - t),                                       y - t)
LOSS_LINE(mse,                      (y - t) * (y - t),                                             2 * (y - t))
LOSS_LINE(mae,                      fabs(y - t),                                                   y > t ? 1 : y < t ? -1 : y - t)
LOSS_LINE(poisson,                  exp(y) - t * y,                                                exp(y) - t)
LOSS_LINE(huber,                    fabs(y - t) <= p ? 0.5 * (y - t) * (y - t) : p * (fabs(y - t) - 0.5 * p), y - t > p ? p : y - t < -p ? -p : y - t)
LOSS_LINE(binary_cross_entropy,     relu_f(y) - y * t + log1p(exp(-fabs(y))),                      sigmoid_f(y) - t)
LOSS_LINE(sigmoid_cross_entropy,    -t * log(CLIP(y)) - (1 - t) * log(CLIP(1 - y)),                y - t)   // d by the sigmoid's input
LOSS_LINE(weighted_binary_cross_entropy, (1 - t) * softplus_f(y) + p * t * softplus_f(-y),         (1 - t) * sigmoid_f(y) - p * t * sigmoid_f(-y))
LOSS_LINE(weighted_sigmoid_cross_entropy, -p * t * log(CLIP(y)) - (1 - t) * log(CLIP(1 - y)),      (1 - t) * y - p * t * (1 - y))
LOSS_LINE(log_likelihood,           t == 0 && y == y ? 0 : -t * y,                                 -t)   // log 0 that is nobody's target costs nothing
#define SIDE(t) ((t) > 0 ? (real)1 : (real)-1)   // of the decision: targets are 1 and -1, or 1 and 0
LOSS_LINE(hinge,                    relu_f(1 - SIDE(t) * y),                                       SIDE(t) * y < 1 ? -SIDE(t) : SIDE(t) * y >= 1 ? 0 : y)
LOSS_LINE(squared_hinge,            relu_f(1 - SIDE(t) * y) * relu_f(1 - SIDE(t) * y),             -2 * SIDE(t) * relu_f(1 - SIDE(t) * y))

// What comes before the loss: sizes, outputs y (rows, n), targets as class numbers (rows) or values (rows, n), weights of
// samples or null. With YES a single output says class 1 above that number, and class 0 below. After it: losses (rows), hits (rows) or
// null, dy (rows, n) or null, the factor of the mean over outputs, and the loss's parameter p (huber's delta, or label smoothing).
#ifdef LABELS
#define TARGETS global const int *target
#define LABEL target[row]
#ifdef YES
#define TARGET(c) ((real)label)
#define IN_RANGE (label == 0 || label == 1)
#define HIT ((y[at] > (real)YES) == label && y[at] == y[at])
#else
#define TARGET(c) (label == (c) ? (real)1 : (real)0)
#define IN_RANGE (label >= 0 && label < n)
#endif
// A label that is no class makes the loss and the gradient NaN: where labels come from the device, nobody else looks at them.
#define WEIGHT (!IN_RANGE ? (real)NAN : weight ? weight[row / EACH] : (real)1)
#else
#define TARGETS global const real *target
#define TARGET(c) target[(size_t)row * n + (c)]
#define LABEL (hits ? LARGEST(n, target + (size_t)row * n) : 0)
#define WEIGHT (weight ? weight[row / EACH] : (real)1)
#endif
#ifndef HIT
#define HIT (best >= 0 && best == label)
#endif
#ifdef TIMES_DERIVATIVE                  // y = f(z): the gradient is taken on to z at once
#define FOLD(d, i) ((d) * DERIVATIVE(saved[i]))
#else
#define FOLD(d, i) (d)
#endif
// POSITIONS: each sample has `positions` targets, a row each, and `each` of them have one weight
#ifdef POSITIONS
#define POSITION_ARGS , int positions, int each
#define POSITION , positions, each
#define EACH each
#else
#define POSITION_ARGS
#define POSITION
#define EACH 1
#endif
// PER_OUTPUT: p is an array, whose `outputs` elements belong to the last axis
#ifdef PER_OUTPUT
#define PARAMETER_ARGS , global const real *parameters, int outputs
#define PARAMETER , parameters, outputs
#define P_OF(c) parameters[(c) % outputs]
#else
#define PARAMETER_ARGS
#define PARAMETER
#define P_OF(c) p
#endif
// IGNORE: the class number of targets that do not count, whatever their outputs are. kept = (what the mean divides by, how many count)
#ifdef IGNORE
#define KEPT_ARGS , global const real *kept
#define KEPT , kept
#define SKIP if (label == IGNORE) {                                \
  if (ME == 0) losses[r] = 0;                                      \
  if (hits && ME == 0) hits[r] = 0;                                \
  if (dy) for (int i = 0; i < OWNED(n); i++) dy[at + OWN(i)] = 0;  \
  return; }
#else
#define KEPT_ARGS
#define KEPT
#define SKIP
#endif
// What the gradient is divided by; with SUM it is that of the sum over rows.
#ifdef SUM
#define DIVISOR 1
#elif defined(IGNORE)
#define DIVISOR kept[0]
#else
#define DIVISOR rows
#endif
#define ARGS int rows, int n, global const real *y, TARGETS, global const real *weight, global const real *saved, \
  global real *losses, global int *hits, global real *dy, real factor, real p KEPT_ARGS POSITION_ARGS PARAMETER_ARGS
#define ROW_ARGS int r, int row, ARGS SHARED_ARG PLACES_ARG
#define ROW r, row, rows, n, y, target, weight, saved, losses, hits, dy, factor, p KEPT POSITION PARAMETER SHARED_USED PLACES_USED

// RECORD: all rows are in one work-group, whose first work-item then ends the forward pass as state.cl's end_step does.
#ifdef RECORD
#include "state.cl"
#define RECORD_ARGS , global real *results, global int *state, global int *a, global int *b, int2 by
#ifdef IGNORE
#define COUNTED kept
#else
#define COUNTED 0
#endif
#define RECORD_STEP AFTER_ALL record_step(rows, rows, losses, hits, COUNTED, results, state, a, b, by);
#else
#define RECORD_ARGS
#define RECORD_STEP
#endif
#ifdef RECORD
#define AFTER_ALL barrier(CLK_GLOBAL_MEM_FENCE); if (get_global_id(0) == 0)
#endif

// SERIAL, for few rows on a CPU: one work-item takes all rows
#ifdef SERIAL
#undef AFTER_ALL
#define AFTER_ALL
#define EACH_ROW for (int r = 0; r < rows; r++)
#else
#define EACH_ROW const int r = get_global_id(0) / WIDTH; if (WIDTH > 1 || r < rows)
#endif

// FROM_SET: targets and weights are those of the whole data set, of which this batch has the rows order[first + r]
#ifdef FROM_SET
#define FROM_ARGS , global const int *order, global const int *set_state
#ifdef POSITIONS
#define FROM(r) (ROW_OF((r) / positions, order, set_state, 0) * positions + (r) % positions)
#else
#define FROM(r) ROW_OF(r, order, set_state, 0)
#endif
#else
#define FROM_ARGS
#define FROM(r) (r)
#endif

#ifdef IGNORE
// How many of the rows' targets count, as kept[1], and in kept[0] at least 1. One group of WIDTH.
kernel void count_kept(int rows, global const int *target, global real *kept POSITION_ARGS FROM_ARGS) {
  SHARED
  int mine = 0;
  for (int r = get_local_id(0); r < rows; r += get_local_size(0)) mine += target[FROM(r)] != IGNORE;
  const real all = OVER_GROUP((real)mine);
  if (get_local_id(0) == 0) { kept[0] = all > 1 ? all : 1; kept[1] = all; }
}
#endif

#ifdef LOSS
INLINE void elementwise_row(ROW_ARGS) {
  const size_t at = (size_t)r * n;
  const int label = LABEL, own = OWNED(n);
  SKIP
  const real w = WEIGHT, scale = w * factor / DIVISOR;
  TOTAL(real, sum);
  for (EACH_SPAN(first, own)) {
    real part = 0;
    for (IN_SPAN(i, first, own)) {
      const int c = OWN(i);
      const real v = y[at + c], t = TARGET(c);
      part += CAT(LOSS, _l)(v, t, P_OF(c));
      if (dy) dy[at + c] = FOLD(scale * CAT(LOSS, _d)(v, t, P_OF(c)), at + c);
    }
    ADD_TO(real, sum, part)
  }
  const real whole = OVER_GROUP(WHOLE(sum));
  if (ME == 0) losses[r] = w * factor * whole;
  if (hits) { const int best = LARGEST(n, y + at); if (ME == 0) hits[r] = HIT; }
}

kernel void elementwise_loss(ARGS RECORD_ARGS FROM_ARGS) {
  SHARED
  PLACES
  EACH_ROW { const int row = FROM(r); elementwise_row(ROW); }
  RECORD_STEP
}
#endif

// VECTORS, for CPUs: a loop of exponentials alone, of which compilers make vectors, as they do not of sums. The largest logit's
// is 1 to the bit: of a loss near 0, the logarithm of the sum, nothing else is large.
#ifdef VECTORS
#define EXPONENTIAL(v) ((v) == 0 ? 1 : exp_of_negative(v))
#define EXPONENTIALS_FIRST for (int c = 0; c < n; c++) { const real v = y[at + c] - top; dy[at + c] = EXPONENTIAL(v); }
#define EXP_OF(v, i) (dy ? dy[i] : EXPONENTIAL(v))
#else
#define EXPONENTIALS_FIRST {}
#define EXP_OF(v, i) exp(v)
#endif

// y are logits: loss = log(sum exp(y)) - sum t y, with t smoothed to (1 - p) t + p / n; dy = softmax(y) - t
INLINE void softmax_row(ROW_ARGS) {
  const size_t at = (size_t)r * n;
  const int label = LABEL, own = OWNED(n);
  SKIP
  const real w = WEIGHT;
#if WIDTH > 1
  const int best = FIRST_LARGEST(n, y + at);
  const real top = shared[0];
#else
  real top = y[at];
  int best = 0;
  for (int c = 1; c < n; c++) if (y[at + c] > top) { top = y[at + c]; best = c; }
#endif
  if (dy) EXPONENTIALS_FIRST
  TOTAL(real, all_e);
  TOTAL(real, all_tv);
  TOTAL(real, all_t);
  for (EACH_SPAN(first, own)) {
    real es = 0, tvs = 0, ts = 0;
    for (IN_SPAN(i, first, own)) {
      const int c = OWN(i);
      const real v = y[at + c] - top, t = (1 - p) * TARGET(c) + p / n, e = EXP_OF(v, at + c);
      es += e;
      tvs += t == 0 ? 0 : t * v;          // a logit of -inf that is nobody's target costs nothing
      ts += t;
      if (dy) dy[at + c] = e;
    }
    ADD_TO(real, all_e, es)
    ADD_TO(real, all_tv, tvs)
    ADD_TO(real, all_t, ts)
  }
  const real sum = OVER_GROUP(WHOLE(all_e)), dot = OVER_GROUP(WHOLE(all_tv)), total = OVER_GROUP(WHOLE(all_t));
#ifdef ENTROPY                           // sum t log(t / softmax(y)), term by term: the two sums would cancel
  TOTAL(real, apart);
  for (EACH_SPAN(first, own)) {
    real part = 0;
    for (IN_SPAN(i, first, own)) {
      const int c = OWN(i);
      const real t = TARGET(c);
      part += t == 0 ? 0 : t * (log(t) - (y[at + c] - top) + log(sum));
    }
    ADD_TO(real, apart, part)
  }
  const real loss = OVER_GROUP(WHOLE(apart));
#else
  const real loss = total * log(sum) - dot;
#endif
  if (ME == 0) losses[r] = w * loss;
  if (hits && ME == 0) hits[r] = best == label && sum == sum;   // with a NaN among the outputs nothing is right
  if (dy)
    for (int i = 0; i < own; i++) {
      const int c = OWN(i);
      const real t = (1 - p) * TARGET(c) + p / n;
      dy[at + c] = FOLD(w * factor / DIVISOR * (total * dy[at + c] / sum - t), at + c);
    }
}

kernel void softmax_cross_entropy(ARGS RECORD_ARGS FROM_ARGS) {
  SHARED
  PLACES
  EACH_ROW { const int row = FROM(r); softmax_row(ROW); }
  RECORD_STEP
}

#ifdef COSINE
// 1 - y.t / (|y| |t|); both are divided by their largest element first, so that no square overflows. A vector of zeros has the cosine 0.
INLINE void cosine_row(ROW_ARGS) {
  const size_t at = (size_t)r * n;
  const int label = 0;
  const real w = WEIGHT;
  real a = 0, b = 0;
  for (int c = 0; c < n; c++) { a = fabs(y[at + c]) > a ? fabs(y[at + c]) : a; b = fabs(TARGET(c)) > b ? fabs(TARGET(c)) : b; }
  a = a > 0 ? a : 1;
  b = b > 0 ? b : 1;
  TOTAL(real, all_uu);
  TOTAL(real, all_vv);
  TOTAL(real, all_uv);
  for (EACH_SPAN(first, n)) {
    real uus = 0, vvs = 0, uvs = 0;
    for (IN_SPAN(c, first, n)) {
      const real u = y[at + c] / a, v = TARGET(c) / b;
      uus += u * u;
      vvs += v * v;
      uvs += u * v;
    }
    ADD_TO(real, all_uu, uus)
    ADD_TO(real, all_vv, vvs)
    ADD_TO(real, all_uv, uvs)
  }
  const real uu = WHOLE(all_uu), vv = WHOLE(all_vv), long_u = uu == 0 ? 1 : sqrt(uu), long_v = vv == 0 ? 1 : sqrt(vv);
  const real cosine = WHOLE(all_uv) / long_u / long_v;
  losses[r] = w * (1 - cosine);
  if (dy)
    for (int c = 0; c < n; c++) {
      const real d = uu == 0 ? 0 : (cosine * (y[at + c] / a) / long_u - TARGET(c) / b / long_v) / long_u / a;
      dy[at + c] = FOLD(w * factor / DIVISOR * d, at + c);
    }
}

kernel void cosine(ARGS RECORD_ARGS FROM_ARGS) {
  SHARED
  PLACES
  EACH_ROW { const int row = FROM(r); cosine_row(ROW); }
  RECORD_STEP
}
#endif
