// Normalisation: by channel over the batch (batch), by sample over rows or groups of channels (layer, group, instance,
// RMS), and by neighbouring channels (local response).
//
// By channel, x is (batch, columns), columns = channels x space. An item passes over `rows` samples of a block of columns:
//
//        |<------------ columns ------------>|     a block is within one channel where space >= COLUMNS, else it is some
//   b    +---------+---------+---------+-----+     whole channels; it has one part of the result for each of its channels.
//   a  / | item 0  | item 1  | item 2  |  3  |     Sums gather by column in the cache (on a GPU, where a block is one
//   t rows         |         |         |     |     vector, in registers), and then by channel. `join_...` adds the
//   c  \ +---------+---------+---------+-----+     parts of a channel up, (part, channel), part = chunk x blocks a channel.
//   h    | item 4  | item 5  | ...     |     |
//        +---------+---------+---------+-----+
//
// Variances: of each column around its first value in the chunk (which is one of the values, so that no more than rows x eps
// can be lost), then those of columns and of parts by their distances from the common mean (Chan et al. 1979).
//
// By sample, a group of WIDTH items (on a CPU one) has a row of n = channels a group x space values, and takes the mean first
// and then the squares of distances from it.
//
// A build has the one kernel that its defines ask for: parts of a fused step (clnn/runtime/fusion.py) share no name.
//   KEEP    the activation's derivative goes to `saved`: of activations whose derivative needs x
//   TIMES_DERIVATIVE, SCALED: how a gradient is written (sink.cl)
#ifndef VW
#define VW 4          // lanes of a vector
#endif
#ifndef COLUMNS
#define COLUMNS VW    // of a block, whole vectors
#endif
#ifndef WIDTH
#define WIDTH 1       // work-items in a group
#endif
#include "group.cl"
#include "sink.cl"

// Squares are of distances in units of 2^20, so that those of values near 1e19 do not overflow; epsilon hides what gets lost
// of distances below 1e-12.
#define IN_UNITS 9.5367431640625e-07
#define OF_UNITS 1.099511627776e12         // what the square of a unit is

// 1 / sqrt(variance + epsilon) of a variance in units; NaN, and not 0, where that is none that a real can hold
static inline real one_over_deviation(real in_units, real epsilon) {
  const real unit = IN_UNITS;
  return in_units < INFINITY ? unit / sqrt((in_units < 0 ? 0 : in_units) + epsilon * unit * unit) : NAN;
}

#define VECTORS (COLUMNS / VW)
#define GROUP_OF(width) __attribute__((reqd_work_group_size(width, 1, 1)))

static inline T first_n(T x, int n) {                 // 0 in the other lanes
  if (n >= VW) return x;
  real t[VW];
  VSTORE(x, 0, t);
  for (int l = n; l < VW; l++) t[l] = 0;
  return VLOAD(0, t);
}
static inline real sum_of(const real *p, int n) {
  real sum = 0;
  if (n < VW) { for (int i = 0; i < n; i++) sum += p[i]; return sum; }
  T t = (T)(0);
  for (int i = 0; i < n; i += VW) t += first_n(VLOAD(0, p + i), n - i);
  return sum_of_lanes(t);
}

// y = f(x), up to n lanes
static inline void activate(T x, global real *y, global real *saved, int n) {
#ifdef KEEP
  store_n(DERIVATIVE(x), saved, n);
#endif
  store_n(ACTIVATE(x), y, n);
}

// ---- by channel ----------------------------------------------------------------------------------------------------------
// s: batch, channels, space, rows of a chunk, blocks in a row of blocks, items
typedef struct { int channel, count, first, width, part, row, end; } Place;
static inline Place place_of(int item, int8 s) {
  const int channels = s.s1, space = s.s2, rows = s.s3, blocks = s.s4, block = item % blocks, chunk = item / blocks;
  Place p;
  if (space >= COLUMNS) {
    const int each = (space + COLUMNS - 1) / COLUMNS, start = block % each * COLUMNS;
    p.channel = block / each;
    p.count = 1;
    p.width = min(COLUMNS, space - start);
    p.first = p.channel * space + start;
    p.part = chunk * each + block % each;
  } else {
    const int each = COLUMNS / space;
    p.channel = block * each;
    p.count = min(each, channels - p.channel);
    p.width = p.count * space;
    p.first = p.channel * space;
    p.part = chunk;
  }
  p.row = chunk * rows;
  p.end = min(s.s0, p.row + rows);
  return p;
}
// The values of a block's channels, by column; 0 without values
static inline void spread(real *t, global const real *values, Place p) {
  const int run = p.width / p.count;
  for (int c = 0; c < p.count; c++) {
    const real v = values ? values[p.channel + c] : 0;
    for (int i = 0; i < run; i++) t[c * run + i] = v;
  }
}
#define PLACE                                                                   \
  if ((int)get_global_id(0) >= s.s5) return;                                    \
  const Place p = place_of(get_global_id(0), s);                                \
  const int stride = s.s1 * s.s2, vectors = (p.width + VW - 1) / VW;            \
  const size_t start = (size_t)p.row * stride + p.first;

#if defined(MOMENTS) || defined(SUMS)
// MOMENTS: parts[part, channel] = (mean, sum of squared distances from it, in units) of x.
// SUMS: (sum of dy, sum of dy (x - mean)), with the channel's mean, or with BY_ROW dy (x - mean) / deviation of the sample.
kernel GROUP_OF(WIDTH) void channel_sums(int8 s, global const real *x, global const real *dy, global const real *mean, global real2 *parts) {
  PLACE
  T k[VECTORS], a[VECTORS], b[VECTORS];
  x += start;
#ifdef MOMENTS
  for (int v = 0; v < vectors; v++) k[v] = VLOAD(v, x);
#else
  dy += start;
#ifndef BY_ROW
  spread((real *)k, mean, p);
#endif
#endif
  for (int v = 0; v < vectors; v++) a[v] = b[v] = (T)(0);
#ifdef BY_ROW
  global const real2 *stats = (global const real2 *)mean;
#define DISTANCE(i) ((VLOAD(v, x + (size_t)(i) * stride) - of[i].x) * of[i].y)
#else
#define DISTANCE(i) (VLOAD(v, x + (size_t)(i) * stride) - k[v])
#endif
#ifdef MOMENTS
#define ADD(i) { const T d = DISTANCE(i) * (real)IN_UNITS; first += d; second += d * d; }
#define NEXT x += step
#else
#define ADD(i) { const T g = VLOAD(v, dy + (size_t)(i) * stride); first += g; second += g * DISTANCE(i); }
#define NEXT x += step, dy += step
#endif
  for (int r = p.row; r < p.end;) {                   // four samples at a time: the sums are fetched and stored once for them
    const int four = r + 4 <= p.end;
#ifdef BY_ROW
    real2 of[4];
    for (int i = 0; i < 4; i++) of[i] = stats[min(r + i, p.end - 1)];
#endif
    for (int v = 0; v < vectors; v++) {
      T first = (T)(0), second = (T)(0);
      ADD(0)
      if (four) { ADD(1) ADD(2) ADD(3) }
      a[v] += first;
      b[v] += second;
    }
    const size_t step = (size_t)(four ? 4 : 1) * stride;
    r += four ? 4 : 1;
    NEXT;
  }
  const int run = p.width / p.count;
  parts += (size_t)p.part * s.s1 + p.channel;
#ifdef MOMENTS
  const real n = p.end - p.row, one = 1 / n;
#endif
  for (int c = 0; c < p.count; c++) {
    const real *ac = (const real *)a + c * run, *bc = (const real *)b + c * run;
#ifdef MOMENTS
    const real *kc = (const real *)k + c * run;       // values that distances were taken from
    real sum = 0, squares = 0;
    if (run < VW) {
      for (int i = 0; i < run; i++) sum += (kc[i] - kc[0]) * (real)IN_UNITS + ac[i] * one;
    } else {
      T t = (T)(0);
      for (int i = 0; i < run; i += VW) t += first_n((VLOAD(0, kc + i) - kc[0]) * (real)IN_UNITS + VLOAD(0, ac + i) * one, run - i);
      sum = sum_of_lanes(t);
    }
    const real middle = sum / run;
    if (run < VW) {
      for (int i = 0; i < run; i++) {
        const real d = (kc[i] - kc[0]) * (real)IN_UNITS + ac[i] * one - middle;
        squares += bc[i] - ac[i] * ac[i] * one + n * d * d;
      }
    } else {
      T t = (T)(0);
      for (int i = 0; i < run; i += VW) {
        const T ai = VLOAD(0, ac + i), d = (VLOAD(0, kc + i) - kc[0]) * (real)IN_UNITS + ai * one - middle;
        t += first_n(VLOAD(0, bc + i) - ai * ai * one + n * d * d, run - i);
      }
      squares = sum_of_lanes(t);
    }
    parts[c] = (real2)(kc[0] + middle / (real)IN_UNITS, squares);
#else
    parts[c] = (real2)(sum_of(ac, run), sum_of(bc, run));
#endif
  }
}
#endif

#ifdef JOIN_MOMENTS
// From the parts of all chunks: stats = mean, 1 / deviation, and gamma / deviation, each (channels,), and with momentum
// the running mean and variance (with n - 1). A group has `each` channels.
kernel GROUP_OF(WIDTH) void join_moments(int8 s, int parts, int each, global const real2 *part, global const real *gamma, global real *stats,
                                         global real *running_mean, global real *running_variance, real momentum, real epsilon) {
  SHARED
  const int channels = s.s1, per = s.s2 >= COLUMNS ? (s.s2 + COLUMNS - 1) / COLUMNS : 1;
  const int first = get_group_id(0) * each;
#define OF_PART(p) ((real)(min(s.s3, s.s0 - (p) / per * s.s3) * (per == 1 ? s.s2 : min(COLUMNS, s.s2 - (p) % per * COLUMNS))))
  for (int c = first; c < min(channels, first + each); c++) {
    const real n = (real)s.s0 * s.s2, near = part[c].x;
    TOTAL(real, sum);
    for (int p = get_local_id(0); p < parts; p += WIDTH) ADD_TO(real, sum, OF_PART(p) * (part[(size_t)p * channels + c].x - near))
    const real beyond = OVER_GROUP(WHOLE(sum)) / n;
    TOTAL(real, all);
    for (int p = get_local_id(0); p < parts; p += WIDTH) {
      const real2 of = part[(size_t)p * channels + c];
      const real d = (of.x - near - beyond) * (real)IN_UNITS;
      ADD_TO(real, all, of.y + OF_PART(p) * d * d)
    }
    const real squares = OVER_GROUP(WHOLE(all));
    if (get_local_id(0) == 0) {
      const real mean = near + beyond, in_units = squares / n, variance = (in_units < 0 ? 0 : in_units) * (real)OF_UNITS;
      const real scale = one_over_deviation(in_units, epsilon);
      stats[c] = mean;
      stats[channels + c] = scale;
      stats[2 * channels + c] = gamma ? gamma[c] * scale : scale;
      if (running_mean) {
        running_mean[c] = momentum * running_mean[c] + (1 - momentum) * mean;
        running_variance[c] = momentum * running_variance[c] + (1 - momentum) * (variance * (n / (n - 1)));
      }
    }
  }
}
#endif

#ifdef JOIN_SUMS
// Sums over parts: those of dy are beta's gradient, those of dy (x - mean), divided by the deviation if there are stats, gamma's;
// to their sinks, where there are. With dx: p and q of dx = a (dy + (x - mean) / deviation p + q), each (channels,). n: values of
// a channel
kernel GROUP_OF(WIDTH) void join_sums(int channels, int parts, int each, int n, global const real2 *part, global const real *stats, global real *dx,
                                      global real *dgamma, global const real2 *gamma_scale, global const int *gamma_at, int gamma_column,
                                      global real *dbeta, global const real2 *beta_scale, global const int *beta_at, int beta_column) {
  SHARED
  const int first = get_group_id(0) * each;
  for (int c = first; c < min(channels, first + each); c++) {
    TOTAL(real2, both);
    for (int p = get_local_id(0); p < parts; p += WIDTH) ADD_TO(real2, both, part[(size_t)p * channels + c])
    const real2 whole = WHOLE(both);
    const real sum = OVER_GROUP(whole.x);
    real product = OVER_GROUP(whole.y);
    if (get_local_id(0) == 0) {
      const real scale = stats ? stats[channels + c] : 1;
      product *= scale;
      if (dx) {
        dx[c] = -product / n;
        dx[channels + c] = -sum / n;
      }
      if (dgamma) dgamma[c] = AXPBY(SCALE(gamma_scale, gamma_at, gamma_column), product, dgamma[c]);
      if (dbeta) dbeta[c] = AXPBY(SCALE(beta_scale, beta_at, beta_column), sum, dbeta[c]);
    }
  }
}
#endif

#ifdef FORWARD
// y = f(x a + b), or with CENTRED, where a is the statistics, f((x - mean) gamma / deviation + b), by channel; b may be missing
kernel GROUP_OF(WIDTH) void channel_forward(int8 s, global const real *x, global const real *a, global const real *b, global real *y,
                                            global real *saved) {
  PLACE
  T ka[VECTORS], kb[VECTORS];
#ifdef CENTRED
  T km[VECTORS];
  spread((real *)km, a, p);
  a += 2 * s.s1;
#define CENTRE(v) - km[v]
#else
#define CENTRE(v)
#endif
  spread((real *)ka, a, p);
  spread((real *)kb, b, p);
  x += start; y += start;
#ifdef KEEP
  saved += start;
#else
  saved = 0;
#endif
  for (int r = p.row; r < p.end; r++, x += stride, y += stride) {
    for (int v = 0; v < vectors; v++)
      activate((VLOAD(v, x) CENTRE(v)) * ka[v] + kb[v], y + v * VW, saved + v * VW, p.width - v * VW);
#ifdef KEEP
    saved += stride;
#endif
  }
}
#endif

#ifdef BACKWARD
// dx = a dy, or with CENTRED, where a is the statistics, a (dy + (x - mean) / deviation p + q), by channel; `by` = (p, q)
kernel GROUP_OF(WIDTH) void channel_backward(int8 s, global const real *x, global const real *dy, global const real *a, global const real *by,
                                             SINK_ARGS) {
  PLACE
  const real2 pair = PAIR;
  T ka[VECTORS];
  dy += start; dx += start;
#ifdef CENTRED
  T km[VECTORS], ks[VECTORS], kp[VECTORS], kq[VECTORS];
  spread((real *)km, a, p);
  spread((real *)ks, a + s.s1, p);
  a += 2 * s.s1;
  spread((real *)kp, by, p);
  spread((real *)kq, by + s.s1, p);
  x += start;
#endif
  spread((real *)ka, a, p);
#ifdef TIMES_DERIVATIVE
  saved += start;
#endif
  for (int r = p.row; r < p.end; r++, dy += stride, dx += stride) {
    for (int v = 0; v < vectors; v++) {
      T d = VLOAD(v, dy);
#ifdef CENTRED
      d += (VLOAD(v, x) - km[v]) * ks[v] * kp[v] + kq[v];
#endif
      d *= ka[v];
      write_lanes(d, saved + v * VW, dx + v * VW, p.width - v * VW, pair);
    }
#ifdef CENTRED
    x += stride;
#endif
#ifdef TIMES_DERIVATIVE
    saved += stride;
#endif
  }
}
#endif

#ifdef FOLD
// a = gamma / sqrt(variance + epsilon), b = beta - mean a: the layer at inference is x a + b
kernel void fold(int channels, global const real *gamma, global const real *beta, global const real *mean, global const real *variance,
                 global real *a, global real *b, real epsilon) {
  const int c = get_global_id(0);
  if (c >= channels) return;
  const real scale = variance[c] < INFINITY ? 1 / sqrt(variance[c] + epsilon) : NAN, of = gamma ? gamma[c] * scale : scale;
  a[c] = of;
  b[c] = (beta ? beta[c] : 0) - mean[c] * of;
}
#endif

// ---- by sample -----------------------------------------------------------------------------------------------------------
// Row r is group r % groups of a sample, n values: `per` runs of the length `run` with a gamma and beta each (layer and RMS:
// run 1, one group). s: rows, n, rows an item, groups, per, run
#define MY_VECTORS int i = (int)get_local_id(0) * VW; i < n; i += WIDTH * VW
#define MOST_AT_ONCE (SPAN * WIDTH * VW)              // a span of a work-item's vectors (long sums: common.cl)
#define EACH_PART int start = 0; start < n; start += MOST_AT_ONCE
#define MY_VECTORS_OF_PART int i = start + (int)get_local_id(0) * VW; i < min(n, start + MOST_AT_ONCE); i += WIDTH * VW
#define ROWS int r = (int)get_group_id(0) * s.s2; r < min(s.s0, ((int)get_group_id(0) + 1) * s.s2); r++

// The values for positions i, i + 1, ... of a row whose first run has values[0]
static inline T of_runs(global const real *values, int i, int run) {
#ifdef LAST
  return VLOAD(0, values + i);
#else
  int at = i / run, left = (at + 1) * run - i;
  if (left >= VW) return (T)(values[at]);
  real t[VW];
  for (int l = 0; l < VW; l++) {
    t[l] = values[at];                                // what comes after the last is for lanes that are dropped
    if (--left == 0) { at++; left = run; }
  }
  return VLOAD(0, t);
#endif
}

#ifdef ROW_FORWARD
// y = f((x - mean) / sqrt(variance + epsilon) * gamma + beta); stats[row] = (mean, 1 / deviation); with RMS the mean is 0
kernel GROUP_OF(WIDTH) void row_forward(int8 s, global const real *x, global const real *gamma, global const real *beta, global real2 *stats,
                                        global real *y, global real *saved, real epsilon) {
  SHARED
  const int n = s.s1;
  for (ROWS) {
    global const real *row = x + (size_t)r * n;
    real mean = 0;
    TOTAL(T, squares);
#ifdef RMS
    for (EACH_PART) {
      T part = (T)(0);
      for (MY_VECTORS_OF_PART) { const T d = VLOAD(0, row + i) * (real)IN_UNITS; part += first_n(d * d, n - i); }
      ADD_TO(T, squares, part)
    }
    const real in_units = OVER_GROUP(sum_of_lanes(WHOLE(squares))) / n;
#else
    const real near = row[0];                         // sums of distances from any value are more accurate
    TOTAL(T, sum);
    for (EACH_PART) {
      T part = (T)(0);
      for (MY_VECTORS_OF_PART) part += first_n(VLOAD(0, row + i) - near, n - i);
      ADD_TO(T, sum, part)
    }
    mean = near + OVER_GROUP(sum_of_lanes(WHOLE(sum))) / n;
    TOTAL(T, rest);
    for (EACH_PART) {
      T part = (T)(0), of_squares = (T)(0);
      for (MY_VECTORS_OF_PART) { const T d = first_n(VLOAD(0, row + i) - mean, n - i) * (real)IN_UNITS; part += d; of_squares += d * d; }
      ADD_TO(T, rest, part)
      ADD_TO(T, squares, of_squares)
    }
    const real off = OVER_GROUP(sum_of_lanes(WHOLE(rest))) / n;  // what rounding has left of the mean
    const real in_units = OVER_GROUP(sum_of_lanes(WHOLE(squares))) / n - off * off;
#endif
    const real scale = one_over_deviation(in_units, epsilon);
    const int o = r % s.s3 * s.s4;
    for (MY_VECTORS) {
      T d = (VLOAD(0, row + i) - mean) * scale;
      if (gamma) d *= of_runs(gamma + o, i, s.s5);
      if (beta) d += of_runs(beta + o, i, s.s5);
      const size_t to = (size_t)r * n + i;
      activate(d, y + to, saved + to, n - i);
    }
    if (get_local_id(0) == 0) stats[r] = (real2)(mean, scale);
  }
}
#endif

#ifdef RUN_SUMS
// sums[sample, channel] = (sum of dy, sum of dy (x - mean) / deviation) over each run; s: runs, run, runs an item, -, per
kernel GROUP_OF(WIDTH) void run_sums(int8 s, global const real *x, global const real *dy, global const real2 *stats, global real2 *sums) {
  SHARED
  const int n = s.s1;
  for (ROWS) {
    const size_t row = (size_t)r * n;
    const real2 of = stats[r / s.s4];
    TOTAL(T, gs);
    TOTAL(T, products);
    for (EACH_PART) {
      T a = (T)(0), b = (T)(0);
      for (MY_VECTORS_OF_PART) {
        const T g = first_n(VLOAD(0, dy + row + i), n - i);
        a += g;
        b += first_n(g * ((VLOAD(0, x + row + i) - of.x) * of.y), n - i);
      }
      ADD_TO(T, gs, a)
      ADD_TO(T, products, b)
    }
    const real sum = OVER_GROUP(sum_of_lanes(WHOLE(gs))), product = OVER_GROUP(sum_of_lanes(WHOLE(products)));
    if (get_local_id(0) == 0) sums[r] = (real2)(sum, product);
  }
}
#endif

#ifdef ROW_BACKWARD
// With g = dy gamma and h = (x - mean) / deviation: dx = (g - mean(g) - h mean(g h)) / deviation; RMS: without mean(g).
// The means come from run_sums, or with LAST from a pass over the row.
kernel GROUP_OF(WIDTH) void row_backward(int8 s, global const real *x, global const real *dy, global const real *gamma, global const real2 *stats,
                                         global const real2 *sums, SINK_ARGS) {
  SHARED
  const real2 pair = PAIR;
  const int n = s.s1;
  for (ROWS) {
    const size_t row = (size_t)r * n;
    const real2 of = stats[r];
    const int o = r % s.s3 * s.s4;
#ifdef LAST
    TOTAL(T, gs);
    TOTAL(T, products);
    for (EACH_PART) {
      T a = (T)(0), b = (T)(0);
      for (MY_VECTORS_OF_PART) {
        T g = VLOAD(0, dy + row + i);
        if (gamma) g *= VLOAD(0, gamma + i);
        g = first_n(g, n - i);
        a += g;
        b += first_n(g * ((VLOAD(0, x + row + i) - of.x) * of.y), n - i);
      }
      ADD_TO(T, gs, a)
      ADD_TO(T, products, b)
    }
    real sum = sum_of_lanes(WHOLE(gs)), product = sum_of_lanes(WHOLE(products));
#else
    TOTAL(real2, both);
    for (int k = get_local_id(0); k < s.s4; k += WIDTH) ADD_TO(real2, both, sums[(size_t)r * s.s4 + k] * (gamma ? gamma[o + k] : 1))
    const real2 whole = WHOLE(both);
    real sum = whole.x, product = whole.y;
#endif
#ifdef RMS
    sum = 0;
#else
    sum = OVER_GROUP(sum) / n;
#endif
    product = OVER_GROUP(product) / n;
    for (MY_VECTORS) {
      T g = VLOAD(0, dy + row + i);
      if (gamma) g *= of_runs(gamma + o, i, s.s5);
      const T h = (VLOAD(0, x + row + i) - of.x) * of.y;
      write_lanes((g - sum - h * product) * of.y, saved + row + i, dx + row + i, n - i, pair);
    }
  }
}
#endif

// ---- by neighbouring channels --------------------------------------------------------------------------------------------
// s: batch, channels, space, size, vectors in a run of `space`. One item a vector of space in a sample, over all channels.
// Not pow: PoCL 3.1's lets what is in one lane of a double8 change others.
#define POWER(d, e) exp((e) * log(d))
#define OVER_CHANNELS                                                                                      \
  const int item = get_global_id(0), channels = s.s1, space = s.s2;                                        \
  if (item >= s.s0 * s.s4) return;                                                                         \
  const int i = item % s.s4 * VW, n = min(VW, space - i);                                                  \
  const size_t start = (size_t)(item / s.s4) * channels * space + i;

#ifdef RESPONSE_FORWARD
// d = k + alpha / size * the sum of x^2 over channels c - size / 2 to c + (size - 1) / 2; y = f(x d^-beta)
kernel void response_forward(int8 s, global const real *x, global real *d, global real *y, global real *saved, real alpha, real beta, real k) {
  OVER_CHANNELS
  for (int c = 0; c < channels; c++) {
    T sum = (T)(0);
    for (int j = max(0, c - s.s3 / 2); j <= min(channels - 1, c + (s.s3 - 1) / 2); j++) {
      const T v = VLOAD(0, x + start + (size_t)j * space);
      sum += v * v;
    }
    const size_t to = start + (size_t)c * space;
    const T of = k + alpha / s.s3 * sum;
    store_n(of, d + to, n);
    activate(VLOAD(0, x + to) * POWER(of, -beta), y + to, saved + to, n);
  }
}
#endif

#ifdef RESPONSE_TERMS
// t = dy x d^(-beta - 1)
kernel void response_terms(int8 s, global const real *x, global const real *dy, global const real *d, global real *t, real beta) {
  OVER_CHANNELS
  for (int c = 0; c < channels; c++) {
    const size_t to = start + (size_t)c * space;
    store_n(VLOAD(0, dy + to) * VLOAD(0, x + to) * POWER(VLOAD(0, d + to), -beta - 1), t + to, n);
  }
}
#endif

#ifdef RESPONSE_BACKWARD
// dx = dy d^-beta - 2 alpha beta / size * x * the sum of t over the channels whose window has this one
kernel void response_backward(int8 s, global const real *x, global const real *dy, global const real *d, global const real *t, real alpha,
                              real beta, SINK_ARGS) {
  OVER_CHANNELS
  const real2 pair = PAIR;
  for (int c = 0; c < channels; c++) {
    T sum = (T)(0);
    for (int j = max(0, c - (s.s3 - 1) / 2); j <= min(channels - 1, c + s.s3 / 2); j++) sum += VLOAD(0, t + start + (size_t)j * space);
    const size_t to = start + (size_t)c * space;
    const T g = VLOAD(0, dy + to) * POWER(VLOAD(0, d + to), -beta);
    write_lanes(g - 2 * alpha * beta / s.s3 * sum * VLOAD(0, x + to), saved + to, dx + to, n, pair);
  }
}
#endif
