// Pooling over up to three spatial axes: x (planes, D, H, W) -> y (planes, out D, out H, out W), a plane for each channel of
// each sample. Missing axes have size 1.
//
// pool_*      windows K, STEP (both compiled in) apart. Along the last axis windows that lie wholly within the input come in
//             vectors on CPUs (VW), where a work-item does a few rows; the others, and on GPUs each element, one by one.
// adaptive_*  windows [floor(o in / out), ceil((o + 1) in / out)) of sizes that differ: one bin of x for each y.
//
// MAX keeps the largest, the first of equals, NaN above all, and with KEEP where it lies: its number in the window, or
// (adaptive) in the plane. Else the mean; with INCLUDE_PAD padding counts as zeros, as far as there is padding.
// Gradients are gathered, one sum for each element of x, and written once:
//   SCALED  alpha * sum + beta * dx, the pair from a scale table (common.cl); dx is not read where beta is 0
//   TIMES   the sum is multiplied by ACT's derivative at `saved` before beta * dx is added
#ifndef ACT
#define ACT linear
#endif
#ifndef INDEX
#define INDEX int
#endif
#include "activation.cl"
#ifndef STEP
#define STEP 1
#endif
#ifdef VW
#include "combs.cl"
#endif

#define INT_float int                      // the integers that conditions on T are made of
#define INT_double long
#ifdef VW
#define INTS CAT(CAT(INT_, REAL), VW)
#define SCALAR(t) (t).s0
#else
#define INTS CAT(INT_, REAL)
#define SCALAR(t) (t)
#endif
#define BETTER(v, best) (!((v) <= (best)) && (best) == (best))

#ifdef SCALED
#define PAIR SCALE(scale, at, column)
#else
#define PAIR (real2)(1, 0)
#endif
#define SINK_ARGS global const real *saved, global real *dx, global const real2 *scale, global const int *at, int column

// one element of dx
static inline void write_one(real sum, global const real *saved, global real *dx, real2 pair) {
#ifdef TIMES
  const T before = (T)(*saved);
  sum *= SCALAR(DERIVATIVE(before));
#endif
#ifdef SCALED
  sum *= pair.x;
  if (pair.y != 0) sum += pair.y * *dx;
#endif
  *dx = sum;
}

#ifdef K_D
// ---- windows of one size ------------------------------------------------------------------------------------------------
// s: D H W, out D H W, padding before D H W and after; the windows (backward: the groups of STEP inputs) along the last
// axis, from lo to hi, that need no look at edges; rows in all, and for each work-item
#define UNPACK                                                                                                        \
  const int D = s.s0, H = s.s1, W = s.s2, OD = s.s3, OH = s.s4, OW = s.s5, PD = s.s6, PH = s.s7, PW = s.s8;           \
  const int lo = s.sc, hi = s.sd, rows = s.se, each = s.sf;
#if K_W <= 16
#define ALONG_WINDOW _Pragma("unroll")
#else
#define ALONG_WINDOW
#endif

// by how many elements an axis of a window that starts at t divides
static inline int extent(int t, int size, int n, int after) {
#ifdef INCLUDE_PAD
  return min(size, n + after - t);
#else
  return min(t + size, n) - max(t, 0);
#endif
}

// y of the window that starts at d0, h0, w0 of the plane x
static inline real forward_one(int16 s, global const real *x, int d0, int h0, int w0, int *tap) {
  UNPACK
  const int d1 = max(0, -d0), h1 = max(0, -h0), w1 = max(0, -w0);
  const int d2 = min(K_D, D - d0), h2 = min(K_H, H - h0), w2 = min(K_W, W - w0);
  real y = 0;
#ifdef MAX
  *tap = (d1 * K_H + h1) * K_W + w1;
  y = x[((d0 + d1) * H + h0 + h1) * W + w0 + w1];
#endif
  for (int d = d1; d < d2; d++) for (int h = h1; h < h2; h++) for (int w = w1; w < w2; w++) {
    const real v = x[((d0 + d) * H + h0 + h) * W + w0 + w];
#ifdef MAX
    if (BETTER(v, y)) { y = v; *tap = (d * K_H + h) * K_W + w; }
#else
    y += v;
#endif
  }
#ifndef MAX
  y /= (real)(extent(d0, K_D, D, s.s9) * extent(h0, K_H, H, s.sa) * extent(w0, K_W, W, s.sb));
#endif
  return y;
}

#ifdef VW
// the same for n windows side by side, none of which sticks out along the last axis; x at the first one's first element
static inline T forward_lanes(int H, int W, global const real *x, int d1, int d2, int h1, int h2, int n, INTS *tap) {
  T y = (T)(0);
#ifdef MAX
  y = comb_load(x + (d1 * H + h1) * W, 0, n);
  *tap = (INTS)((d1 * K_H + h1) * K_W);
#endif
  for (int d = d1; d < d2; d++) for (int h = h1; h < h2; h++) ALONG_WINDOW for (int w = 0; w < K_W; w++) {
    const T v = comb_load(x + (d * H + h) * W, w, n);
#ifdef MAX
    const INTS better = BETTER(v, y);
    y = WHERE(better, v, y);
    *tap = select(*tap, (INTS)((d * K_H + h) * K_W + w), better);
#else
    y += v;
#endif
  }
  return y;
}
#endif

kernel void pool_forward(int16 s, global const real *restrict x, global real *restrict y, global INDEX *restrict index) {
  UNPACK
  int tap = 0;
#ifdef VW
  const int first = get_global_id(0) * each, last = min(rows, first + each);
  for (int row = first; row < last; row++) {
#else
  const int i = get_global_id(0), row = i / OW, o = i % OW;
  if (row >= rows) return;
  {
#endif
    const int d0 = row / OH % OD * S_D - PD, h0 = row % OH * S_H - PH;
    global const real *plane = x + (size_t)(row / OH / OD) * D * H * W;
#ifdef VW
    const size_t to = (size_t)row * OW;
    const int d1 = max(0, -d0), h1 = max(0, -h0), d2 = min(K_D, D - d0), h2 = min(K_H, H - h0);
#ifndef MAX
    const real count = extent(d0, K_D, D, s.s9) * extent(h0, K_H, H, s.sa) * K_W;
#endif
    for (int o = lo; o < hi; o += VW) {
      const int n = hi - o;
      global const real *p = plane + (d0 * H + h0) * W + o * STEP - PW;
      INTS taps = (INTS)(0);
      T v = d1 == 0 && h1 == 0 && d2 == K_D && h2 == K_H ? forward_lanes(H, W, p, 0, K_D, 0, K_H, n, &taps)
                                                         : forward_lanes(H, W, p, d1, d2, h1, h2, n, &taps);
#ifndef MAX
      v /= (T)(count);
#endif
      store_n(v, y + to + o, n);
#ifdef KEEP
      const CAT(INDEX, VW) kept = CAT(CAT(convert_, INDEX), VW)(taps);
      if (n >= VW) VSTORE(kept, 0, index + to + o);
      else {
        INDEX t[VW] __attribute__((aligned(64)));
        VSTORE(kept, 0, t);
        PARTS(n, index + to + o, t)
      }
#endif
    }
    for (int o = lo > 0 ? 0 : hi; o < OW; o = o + 1 == lo ? max(lo, hi) : o + 1)
#endif
    {
      y[(size_t)row * OW + o] = forward_one(s, plane, d0, h0, o * STEP - PW, &tap);
#ifdef KEEP
      index[(size_t)row * OW + o] = tap;
#endif
    }
  }
}

// The windows that hold element i of an axis: from FIRST to LAST
#define FIRST(i, pad, size, stride) ((i) + (pad) < (size) ? 0 : ((i) + (pad) - (size)) / (stride) + 1)
#define LAST(i, pad, stride, out) min((out) - 1, ((i) + (pad)) / (stride))
#define EACH_ROW_ABOVE                                                                                        \
  for (int od = FIRST(d, PD, K_D, S_D); od <= LAST(d, PD, S_D, OD); od++)                                     \
    for (int oh = FIRST(h, PH, K_H, S_H); oh <= LAST(h, PH, S_H, OH); oh++)
#define TAP_ABOVE (((d + PD - od * S_D) * K_H + h + PH - oh * S_H) * K_W)   // of the row's first element
#define COUNT_ABOVE (extent(od * S_D - PD, K_D, D, s.s9) * extent(oh * S_H - PH, K_H, H, s.sa))

static inline real backward_one(int16 s, global const real *dy, global const INDEX *index, int d, int h, int w) {
  UNPACK
  real sum = 0;
  EACH_ROW_ABOVE for (int o = FIRST(w, PW, K_W, STEP); o <= LAST(w, PW, STEP, OW); o++) {
    const int i = (od * OH + oh) * OW + o;
#ifdef MAX
    sum += index[i] == TAP_ABOVE + w + PW - o * STEP ? dy[i] : 0;
#else
    sum += dy[i] / (real)(COUNT_ABOVE * extent(o * STEP - PW, K_W, W, s.sb));
#endif
  }
  return sum;
}

kernel void pool_backward(int16 s, global const real *restrict dy, global const INDEX *restrict index, SINK_ARGS) {
  UNPACK
  const real2 pair = PAIR;
#ifdef VW
  const int first = get_global_id(0) * each, last = min(rows, first + each);
  for (int row = first; row < last; row++) {
#else
  const int i = get_global_id(0), row = i / W, w = i % W;
  if (row >= rows) return;
  {
#endif
    const int d = row / H % D, h = row % H;
    const size_t from = (size_t)(row / H / D) * OD * OH * OW, to = (size_t)row * W;
#ifdef VW
    const int left = lo < hi ? lo * STEP - PW : W, right = lo < hi ? hi * STEP - PW : W;
    for (int j = lo; j < hi; j += VW) {      // inputs j STEP - PW + r of tap w are in window j - w / STEP, r = w % STEP
      const int n = hi - j;
      T sum[STEP];
      for (int r = 0; r < STEP; r++) sum[r] = (T)(0);
      EACH_ROW_ABOVE {
        const size_t o = from + (od * OH + oh) * OW + j;
#ifdef MAX
        const int tap = TAP_ABOVE;
#else
        const T share = (T)(1 / (real)(COUNT_ABOVE * K_W));
#endif
        ALONG_WINDOW for (int w = 0; w < K_W; w++) {
          const T g = VLOAD(0, dy + o - w / STEP);
#ifdef MAX
          const INTS there = CAT(convert_, INTS)(VLOAD(0, index + o - w / STEP)) == (INTS)(tap + w);
          sum[w % STEP] += WHERE(there, g, 0);
#else
          sum[w % STEP] += g * share;
#endif
        }
      }
      const size_t at_x = to + j * STEP - PW;
#ifdef TIMES
      for (int r = 0; r < STEP; r++) { const T before = comb_load(saved + at_x, r, n); sum[r] *= DERIVATIVE(before); }
#endif
#ifdef SCALED
      for (int r = 0; r < STEP; r++) sum[r] *= pair.x;
      if (pair.y != 0) for (int r = 0; r < STEP; r++) sum[r] += pair.y * comb_load(dx + at_x, r, n);
#endif
      combs_store(sum, dx + at_x, n);
    }
    for (int w = left > 0 ? 0 : right; w < W; w = w + 1 == left ? right : w + 1)
#endif
      write_one(backward_one(s, dy + from, index + from, d, h, w), saved + to + w, dx + to + w, pair);
  }
}
#endif

#ifdef ADAPTIVE
// ---- bins ---------------------------------------------------------------------------------------------------------------
// s: D H W, out D H W, what to do in all, and for each work-item: elements of y (forward), rows of x (backward)
#define UNPACK_BINS const int D = s.s0, H = s.s1, W = s.s2, OD = s.s3, OH = s.s4, OW = s.s5, all = s.s6, each = s.s7;
#define START(o, n, out) (int)((long)(o) * (n) / (out))
#define END(o, n, out) (int)((((long)(o) + 1) * (n) + (out) - 1) / (out))
#define WIDTH(o, n, out) (END(o, n, out) - START(o, n, out))
// element i lies in the bins from LOW to HIGH: element and bin change parts
#define LOW(i, n, out) START(i, out, n)
#define HIGH(i, n, out) (END(i, out, n) - 1)
#define FARTHEST 2147483647
#ifdef VW
#if VW == 2
#define LANES (INTS)(0, 1)
#elif VW == 4
#define LANES (INTS)(0, 1, 2, 3)
#else
#define LANES (INTS)(0, 1, 2, 3, 4, 5, 6, 7)
#endif
#endif

static inline real bin_forward(int H, int W, global const real *x, int d1, int d2, int h1, int h2, int w1, int w2, int *where) {
  real y = 0;
#ifdef MAX
  *where = (d1 * H + h1) * W + w1;
  y = x[*where];
#endif
#ifdef VW                                  // lanes first, and then lane by lane: the first of equals has the lowest number
  T ys = (T)(0);
#ifdef MAX
  INTS wheres = (INTS)(FARTHEST);
  ys = (T)(-INFINITY);
#endif
#endif
  for (int d = d1; d < d2; d++) for (int h = h1; h < h2; h++) {
    int i = (d * H + h) * W + w1;
    const int end = i + w2 - w1;
#ifdef VW
    for (; i + VW <= end; i += VW) {
      const T v = VLOAD(0, x + i);
#ifdef MAX
      const INTS better = BETTER(v, ys);
      ys = WHERE(better, v, ys);
      wheres = select(wheres, (INTS)(i) + LANES, better);
#else
      ys += v;
#endif
    }
#endif
    for (; i < end; i++) {
#ifdef MAX
      if (BETTER(x[i], y)) { y = x[i]; *where = i; }
#else
      y += x[i];
#endif
    }
  }
#ifdef VW
  real lane[VW];
  VSTORE(ys, 0, lane);
#ifdef MAX
  CAT(INT_, REAL) there[VW];
  VSTORE(wheres, 0, there);
  for (int l = 0; l < VW; l++)
    if (BETTER(lane[l], y) || ((lane[l] == y || (lane[l] != lane[l] && y != y)) && there[l] < *where)) {
      y = lane[l];
      *where = (int)there[l];
    }
#else
  for (int l = 0; l < VW; l++) y += lane[l];
#endif
#endif
#ifndef MAX
  y /= (real)((d2 - d1) * (h2 - h1) * (w2 - w1));
#endif
  return y;
}

kernel void adaptive_forward(int8 s, global const real *restrict x, global real *restrict y, global int *restrict index) {
  UNPACK_BINS
  for (int i = get_global_id(0) * each, last = min(all, i + each); i < last; i++) {
    const int o = i % OW, oh = i / OW % OH, od = i / OW / OH % OD;
    int where = 0;
    y[i] = bin_forward(H, W, x + (size_t)(i / OW / OH / OD) * D * H * W, START(od, D, OD), END(od, D, OD), START(oh, H, OH),
                       END(oh, H, OH), START(o, W, OW), END(o, W, OW), &where);
#ifdef KEEP
    index[i] = where;
#endif
  }
}

// dx[i] for elements in the same bins, [w1, w2) of row (d, h); VW of them at a time on CPUs
static inline void bin_backward(int8 s, global const real *dy, global const int *index, int d, int h, int w1, int w2,
                                global const real *saved, global real *dx, real2 pair) {
  UNPACK_BINS
  const int o1 = LOW(w1, W, OW), o2 = HIGH(w1, W, OW);
#define EACH_BIN                                                                                                      \
  for (int od = LOW(d, D, OD); od <= HIGH(d, D, OD); od++) for (int oh = LOW(h, H, OH); oh <= HIGH(h, H, OH); oh++)   \
    for (int o = o1; o <= o2; o++)
#ifndef MAX
  real sum = 0;
  EACH_BIN sum += dy[(od * OH + oh) * OW + o] / (real)(WIDTH(od, D, OD) * WIDTH(oh, H, OH) * WIDTH(o, W, OW));
#endif
  int w = w1;
#ifdef VW
  for (; w + VW <= w2; w += VW) {
#ifdef MAX
    const INTS here = (INTS)((d * H + h) * W + w) + LANES;
    T v = (T)(0);
    EACH_BIN {
      const int i = (od * OH + oh) * OW + o;
      const INTS there = here == (INTS)(index[i]);
      v += WHERE(there, dy[i], 0);
    }
#else
    T v = (T)(sum);
#endif
#ifdef TIMES
    const T before = VLOAD(0, saved + w);
    v *= DERIVATIVE(before);
#endif
#ifdef SCALED
    v *= pair.x;
    if (pair.y != 0) v += pair.y * VLOAD(0, dx + w);
#endif
    VSTORE(v, 0, dx + w);
  }
#endif
  for (; w < w2; w++) {
#ifdef MAX
    real sum = 0;
    EACH_BIN {
      const int i = (od * OH + oh) * OW + o;
      sum += index[i] == (d * H + h) * W + w ? dy[i] : 0;
    }
#endif
    write_one(sum, saved + w, dx + w, pair);
  }
}

kernel void adaptive_backward(int8 s, global const real *restrict dy, global const int *restrict index, SINK_ARGS) {
  UNPACK_BINS
  const real2 pair = PAIR;
#ifdef VW
  for (int row = get_global_id(0) * each, last = min(all, row + each); row < last; row++) {
    const size_t from = (size_t)(row / H / D) * OD * OH * OW, to = (size_t)row * W;
    for (int w = 0, next; w < W; w = next) {
      const int high = HIGH(w, W, OW);
      next = END(LOW(w, W, OW), W, OW);    // where the first bin ends or another begins
      if (high + 1 < OW) next = min(next, START(high + 1, W, OW));
      bin_backward(s, dy + from, index + from, row / H % D, row % H, w, next, saved + to, dx + to, pair);
    }
  }
#else
  const int i = get_global_id(0), row = i / W, w = i % W;
  if (row >= all) return;
  const size_t from = (size_t)(row / H / D) * OD * OH * OW, to = (size_t)row * W;
  bin_backward(s, dy + from, index + from, row / H % D, row % H, w, w + 1, saved + to, dx + to, pair);
#endif
}
#endif
