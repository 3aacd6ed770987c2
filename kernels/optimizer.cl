// One launch updates a whole flat store of parameters: w, its gradient g, and what the rule keeps (s0, s1, s2).
// A rule is one expression, in vectors T. Stores hold whole vectors, and the elements that decay (weights; biases come
// after them) are whole vectors too: n and decays count vectors. A work-group of WIDTH work-items passes over a
// stretch of EACH * WIDTH of them, a CPU thread (WIDTH 1) over one stretch alone.
// The table's row for this step holds (-lr, beta) for decaying and for other parameters, as sinks use them, then
// (lr, a), (b, c) and (d, 1 - ema); the rule says what a to d are.
// A build has the one kernel that its defines ask for: parts of a fused step (clnn/runtime/fusion.py) share no name.
#include "common.cl"

#ifndef EACH
#define EACH 1         // vectors that a work-item computes
#endif
#ifndef WIDTH
#define WIDTH 128      // work-items in a group
#endif
#define STRETCH (EACH * WIDTH)
#ifndef STATES
#define STATES 0       // buffers that the rule keeps
#endif
#ifndef FACTOR
#define FACTOR 1       // of the learning rate, for these parameters
#endif

#define SIGN(x) WHERE((x) > 0, 1, WHERE((x) < 0, -1, (x)))          // NaN stays NaN
#define NOT_BELOW_0(x) WHERE((x) < 0, 0, (x))

// Stochastic gradient descent
#define sgd            w -= lr * g
// Sutskever et al. 2013, in PyTorch's form: a = momentum
#define momentum       s0 = a * s0 + g, w -= lr * s0
#define nesterov       s0 = a * s0 + g, w -= lr * (g + a * s0)
// g is the velocity already: the weight gradient's GEMM added a v to it
#define shared_momentum w -= lr * g
// Kingma and Ba 2015, algorithm 1: a = beta1, b = beta2, lr and c = epsilon corrected on the host for the step's number
#define MOMENTS        s0 = a * s0 + (1 - a) * g, s1 = b * s1 + (1 - b) * g * g
#define adam           MOMENTS, w -= lr * s0 / (sqrt(s1) + c)
// Reddi et al. 2018: the largest second moment so far
#define amsgrad        MOMENTS, s2 = WHERE(s2 >= s1, s2, s1), w -= lr * s0 / (sqrt(s2) + c)
// Dozat 2016: d weighs the first moment against the gradient
#define nadam          MOMENTS, w -= lr * (g + d * s0) / (sqrt(s1) + c)
// Tieleman and Hinton 2012; Graves 2013 for the centred form and momentum: a = alpha, b = momentum, c = epsilon
#define rmsprop        s0 = a * s0 + (1 - a) * g * g, w -= lr * g / (sqrt(s0) + c)
#define rmsprop_momentum s0 = a * s0 + (1 - a) * g * g, s1 = b * s1 + g / (sqrt(s0) + c), w -= lr * s1
#define CENTRED        s0 = a * s0 + (1 - a) * g * g, s1 = a * s1 + (1 - a) * g, g /= sqrt(NOT_BELOW_0(s0 - s1 * s1)) + c
#define rmsprop_centered CENTRED, w -= lr * g
#define rmsprop_centered_momentum CENTRED, s2 = b * s2 + g, w -= lr * s2
// Duchi et al. 2011: c = epsilon
#define adagrad        s0 += g * g, w -= lr * g / (sqrt(s0) + c)
// Zeiler 2012: a = rho, c = epsilon
#define adadelta       s0 = a * s0 + (1 - a) * g * g, g *= sqrt((s1 + c) / (s0 + c)), s1 = a * s1 + (1 - a) * g * g, w -= lr * g
// Chen et al. 2023: a = beta1, b = beta2
#define lion           w -= lr * SIGN(a * s0 + (1 - a) * g), s0 = b * s0 + (1 - b) * g
// You et al. 2020: Adam's step and decay together, before lr and the trust ratio; d and c hold Adam's corrections
#define LAMB_STEP      (d * s0 / (sqrt(s1) + c) + shrink * w)

// What there is besides, as arguments and as code.
#if STATES > 0
#define STATE_0 , global T *restrict state0
#else
#define STATE_0
#endif
#if STATES > 1
#define STATE_1 , global T *restrict state1
#else
#define STATE_1
#endif
#if STATES > 2
#define STATE_2 , global T *restrict state2
#else
#define STATE_2
#endif
#ifdef PENALTY                             // weight decay in the gradient, and L1
#define PENALTY_ARGS , real decay, real l1
#define ADD_PENALTY(w, g) g += decay * w + l1 * SIGN(w)
#else
#define PENALTY_ARGS
#define ADD_PENALTY(w, g)
#endif
#ifdef CLIP_VALUE                          // NaN and infinities stay: a loss that diverges has to be seen
#define CLIP_VALUE_ARGS , real most
#define CLIPPED(g) WHERE(fabs(g) > most && fabs(g) < INFINITY, copysign((T)(most), g), g)
#else
#define CLIP_VALUE_ARGS
#define CLIPPED(g) (g)
#endif
#ifdef CLIP_NORM
#define CLIP_NORM_ARGS , global const real *clip
#define CLIP_FACTOR * clip[0]
#else
#define CLIP_NORM_ARGS
#define CLIP_FACTOR
#endif
#ifdef EMA
#define EMA_ARGS , global T *restrict average
#define AVERAGE(i, w) { const T e = average[i]; average[i] = e + SCALE(table, at, 4).y * (w - e); }
#else
#define EMA_ARGS
#define AVERAGE(i, w)
#endif
#define GRADIENT_ARGS PENALTY_ARGS CLIP_VALUE_ARGS CLIP_NORM_ARGS

#define RATES                                                                                        \
  const real2 x = SCALE(table, at, 2), y = SCALE(table, at, 3);                                      \
  const real lr = FACTOR * x.x, a = x.y, b = y.x, c = y.y, d = SCALE(table, at, 4).x;
#define STRETCH_OF(group, n) int i = (group) * STRETCH + (int)get_local_id(0); i < min((n), ((group) + 1) * STRETCH); i += WIDTH

#ifdef RULE
kernel void update(int n, int decays, global T *restrict gradient, global T *restrict weight, global const real2 *table,
                   global const int *at STATE_0 STATE_1 STATE_2 GRADIENT_ARGS EMA_ARGS) {
  RATES
#ifdef DECOUPLED
  const real shrink = 1 + FACTOR * (SCALE(table, at, 0).y - 1);      // 1 - lr decay
#endif
  const int group = get_group_id(0);
  for (STRETCH_OF(group, n)) {
    T w = weight[i], g = gradient[i];
    g = CLIPPED(g) CLIP_FACTOR;
    if (i < decays) {
      ADD_PENALTY(w, g);
#if defined(PENALTY) && defined(SHARED_BUFFER)
      gradient[i] = g;                                               // the velocity takes the decay in
#endif
#ifdef DECOUPLED
      w *= shrink;
#endif
    }
#if STATES > 0
    T s0 = state0[i];
#endif
#if STATES > 1
    T s1 = state1[i];
#endif
#if STATES > 2
    T s2 = state2[i];
#endif
    RULE;
    weight[i] = w;
#if STATES > 0
    state0[i] = s0;
#endif
#if STATES > 1
    state1[i] = s1;
#endif
#if STATES > 2
    state2[i] = s2;
#endif
    AVERAGE(i, w);
  }
}
#endif

// -- sums over whole stores: each group leaves the sum of its stretch, then one group adds those up, always in one order
#define SUMMED real2
#include "group.cl"

// Sums of g^2, for clipping by norm. The second of each pair is the sum of (g / 2^80)^2: it counts where the first overflows.
#define SMALL 8.271806125530277e-25
#define LARGE 1.2089258196146292e24
#ifdef SQUARES
kernel void squares(int n, int first, global const T *gradient, global real2 *partial CLIP_VALUE_ARGS) {
  SHARED
  const int group = get_group_id(0);
  T s = 0, t = 0;
  for (STRETCH_OF(group, n)) {
    const T raw = gradient[i], g = CLIPPED(raw), h = g * (real)SMALL;
    s += g * g;
    t += h * h;
  }
  const real2 sum = OVER_GROUP((real2)(sum_of_lanes(s), sum_of_lanes(t)));
  if (get_local_id(0) == 0) partial[first + group] = sum;
}
#endif

#ifdef SCALING
// factor = min(1, most / (norm + 1e-6)), as PyTorch's clip_grad_norm_; NaN where the norm is
kernel void clip_factor(int n, global const real2 *partial, global real *factor, real most) {
  SHARED
  TOTAL(real2, all);
  for (int i = get_local_id(0); i < n; i += WIDTH) ADD_TO(real2, all, partial[i])
  const real2 whole = WHOLE(all), s = OVER_GROUP(whole);
  if (get_local_id(0)) return;
  const real norm = isinf(s.x) ? sqrt(s.y) * (real)LARGE : sqrt(s.x), f = most / (norm + 0.000001);
  factor[0] = f > 1 ? 1 : f;
}
#endif

// -- LAMB, in three launches: moments and the squares of weights and steps by chunk, a ratio for each parameter, the step
// chunks: (first vector, last, parameter, whether it decays), none longer than a stretch; parameters: (first chunk, last,
// whether it has a ratio other than 1)
#define CHUNK_OF(chunk) int i = (chunk).x + (int)get_local_id(0); i < (chunk).y; i += WIDTH
#ifdef LAMB_MOMENTS
kernel void lamb_moments(global const int4 *chunks, global const T *gradient, global const T *weight,
                         global const real2 *table, global const int *at STATE_0 STATE_1 GRADIENT_ARGS, real lambda,
                         global real2 *partial) {
  SHARED
  RATES
  const int4 chunk = chunks[get_group_id(0)];
  const real shrink = chunk.w ? lambda : 0;
  T of_weights = 0, of_steps = 0;
  for (CHUNK_OF(chunk)) {
    const T w = weight[i];
    T g = gradient[i], s0 = state0[i], s1 = state1[i];
    g = CLIPPED(g) CLIP_FACTOR;
    if (chunk.w) { ADD_PENALTY(w, g); }
    MOMENTS;
    state0[i] = s0;
    state1[i] = s1;
    const T step = LAMB_STEP;
    of_weights += w * w;
    of_steps += step * step;
  }
  const real2 sum = OVER_GROUP((real2)(sum_of_lanes(of_weights), sum_of_lanes(of_steps)));
  if (get_local_id(0) == 0) partial[get_group_id(0)] = sum;
}
#endif

#ifdef LAMB_RATIOS
// |w| / |step| of each parameter; 1 where one of them is 0
kernel void lamb_ratios(global const int4 *parameters, global const real2 *partial, global real *ratio) {
  SHARED
  const int4 p = parameters[get_group_id(0)];
  TOTAL(real2, all);
  for (int i = p.x + (int)get_local_id(0); i < p.y; i += WIDTH) ADD_TO(real2, all, partial[i])
  const real2 whole = WHOLE(all), s = OVER_GROUP(whole);
  if (get_local_id(0) == 0) ratio[get_group_id(0)] = !p.z || s.x == 0 || s.y == 0 ? 1 : sqrt(s.x) / sqrt(s.y);
}
#endif

#ifdef LAMB
// w -= lr ratio step
kernel void lamb(global const int4 *chunks, global const real *ratio, global T *restrict weight, global const real2 *table,
                 global const int *at STATE_0 STATE_1, real lambda EMA_ARGS) {
  RATES
  const int4 chunk = chunks[get_group_id(0)];
  const real shrink = chunk.w ? lambda : 0, rate = lr * ratio[chunk.z];
  for (CHUNK_OF(chunk)) {
    const T s0 = state0[i], s1 = state1[i];
    T w = weight[i];
    w -= rate * LAMB_STEP;
    weight[i] = w;
    AVERAGE(i, w);
  }
}
#endif

// -- max-norm: a column of w (rows, columns), the weights into one unit, is at most `most` long
#ifdef MAX_NORM
#ifdef EMA                                 // average = ema average + (1 - ema) w saw w before: it gets the difference
#define SCALED(w, i) { const real before = (w)[i]; (w)[i] = before * f; \
                       average[i] += SCALE(table, at, 4).y * ((w)[i] - before); }
#define MOVING_ARGS , global const real2 *table, global const int *at, global real *restrict average
#else
#define SCALED(w, i) (w)[i] *= f;
#define MOVING_ARGS
#endif

// The sum over each DOWNth row of the squares in a column
static inline real squares_of(int rows, int columns, int column, int first, int step, global const real *w, real unit) {
  TOTAL(real, sum);
  for (int r = first; r < rows; r += step) {
    const real x = w[(size_t)r * columns + column] * unit;
    ADD_TO(real, sum, x * x)
  }
  return WHOLE(sum);
}

// What a column is multiplied by. NaN stays, and a column whose squares overflow is measured in larger units.
static inline real shrinkage(int rows, int columns, int column, global const real *w, real squares, real most) {
  const real norm = isinf(squares) ? sqrt(squares_of(rows, columns, column, 0, 1, w, (real)SMALL)) * (real)LARGE
                                   : sqrt(squares);
  return norm > most ? most / norm : 1;
}

#if WIDTH > 1
// A group has ACROSS columns, so that neighbours read neighbours, and each column has WIDTH / ACROSS work-items.
#define DOWN (WIDTH / ACROSS)
kernel void max_norm(int rows, int columns, int share, global real *restrict w, real most MOVING_ARGS) {
  local real sums[WIDTH];
  const int id = get_local_id(0), across = id % ACROSS, down = id / ACROSS;
  const int column = get_group_id(0) * ACROSS + across;
  sums[id] = column < columns ? squares_of(rows, columns, column, down, DOWN, w, 1) : 0;
  barrier(CLK_LOCAL_MEM_FENCE);
  real sum = 0;
  for (int k = 0; k < DOWN; k++) sum += sums[k * ACROSS + across];
  const real f = column < columns ? shrinkage(rows, columns, column, w, sum, most) : 1;
  barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);               // the column has been read
  if (f == 1) return;
  for (int r = down; r < rows; r += DOWN) SCALED(w, (size_t)r * columns + column)
}
#else
// A CPU thread has `share` columns, and passes over ACROSS of them at a time, row by row.
kernel void max_norm(int rows, int columns, int share, global real *restrict w, real most MOVING_ARGS) {
  const int begin = get_group_id(0) * share, end = min(columns, begin + share);
  for (int first = begin; first < end; first += ACROSS) {
    const int width = min(ACROSS, end - first);
    real factor[ACROSS], factor_lost[ACROSS], part[ACROSS];
    for (int k = 0; k < ACROSS; k++) factor[k] = factor_lost[k] = 0;
    for (EACH_SPAN(from, rows)) {
      for (int k = 0; k < width; k++) part[k] = 0;
      for (IN_SPAN(r, from, rows)) {
        global const real *row = w + (size_t)r * columns + first;
        for (int k = 0; k < width; k++) part[k] += row[k] * row[k];
      }
      for (int k = 0; k < width; k++) {
        TOTAL(real, all);
        all = factor[k]; all_lost = factor_lost[k];
        ADD_TO(real, all, part[k])
        factor[k] = all; factor_lost[k] = all_lost;
      }
    }
    for (int k = 0; k < width; k++) {
      const real all = factor[k], all_lost = factor_lost[k];
      factor[k] = WHOLE(all);
    }
    int changes = 0;
    for (int k = 0; k < width; k++) {
      factor[k] = shrinkage(rows, columns, first + k, w, factor[k], most);
      changes |= factor[k] != 1;
    }
    if (!changes) continue;
    for (int r = 0; r < rows; r++)
      for (int k = 0; k < width; k++) {
        const real f = factor[k];
        SCALED(w, (size_t)r * columns + first + k)
      }
  }
}
#endif
#endif
