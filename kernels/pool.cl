// Pooling over up to three spatial axes: x (planes, D, H, W) -> y (planes, out D, out H, out W), a plane for each channel of
// each sample. Missing axes have size 1.
//
// pool_*      windows K_D x K_H x K_W, S_D, S_H and STEP apart (all compiled in). On CPUs a work-item does a few rows, in
//             vectors of VW (combs.cl); elsewhere each does one element.
// adaptive_*  windows [floor(o in / out), ceil((o + 1) in / out)) of sizes that differ: one bin of x for each y.
//
// FORWARD compiles the forward kernels, otherwise the gradients'.
// MAX keeps the largest, the first of equals, NaN above all, and with KEEP where it is: its number in the window, or
// (adaptive) in the plane. Else the mean; with INCLUDE_PAD padding counts as zeros, as far as there is padding.
// Gradients are gathered, one sum for each element of x, and written once (sink.cl). FROM_Y: `saved` are the outputs y, which
// are fewer than the inputs, and the same numbers where a gradient goes.
#ifdef FROM_Y
#undef TIMES_DERIVATIVE
#define BELOW(i) 0
#define DIFFERENTIATED(g, before) ((g) * DERIVATIVE(before))
#else
#define BELOW(i) (i)
#define DIFFERENTIATED(g, before) (g)
#endif
#ifndef INDEX
#define INDEX int
#endif
#ifndef STEP
#define STEP 1
#endif
#include "sink.cl"
#ifdef VW
#include "combs.cl"
#define INDICES CAT(INDEX, VW)
typedef INDICES __attribute__((aligned(sizeof(INDEX)))) INDICES_ANYWHERE;   // PoCL's vstore writes bytes one by one
#endif

#define BETTER(v, best) (!((v) <= (best)) && (best) == (best))

#ifdef K_D
// ---- windows of one size ------------------------------------------------------------------------------------------------
// s: D H W, out D H W, padding before D H W and after; rows in all, and for each work-item
#define UNPACK                                                                                                        \
  const int D = s.s0, H = s.s1, W = s.s2, OD = s.s3, OH = s.s4, OW = s.s5, PD = s.s6, PH = s.s7, PW = s.s8;           \
  const int rows = s.sc, each = s.sd;
#define TAP(d, h, w) (((d) * K_H + (h)) * K_W + (w))
#if K_W <= 8
#define ALONG_WINDOW _Pragma("unroll")
#else
#define ALONG_WINDOW
#endif

// Sums of large windows go in spans (long sums: common.cl)
#if K_D * K_H * K_W > SPAN
#define END_SPAN(type, sum, part) { ADD_TO(type, sum, part) part = (type)(0); }
#define SUM_OF(sum, part) WHOLE(sum)
#define END_SPANS EACH_COMB { T one = all[r], one_lost = lost[r]; END_SPAN(T, one, sum[r]) all[r] = one; lost[r] = one_lost; }
#define PLUS ADD_TO
#else
#define END_SPAN(type, sum, part) ;
#define SUM_OF(sum, part) (part)
#define END_SPANS ;
#define PLUS(type, sum, x) sum += x;
#endif

// by how many elements an axis of a window that starts at t divides. t is of type I, an integer or lanes; so is all else (min
// of lanes and a number is wrong in Oclgrind 21.10, from the second lane on)
#ifdef INCLUDE_PAD
#define EXTENT(I, t, size, n, after) min((I)((n) + (after)) - (t), (I)(size))
#else
#define EXTENT(I, t, size, n, after) (min((t) + (I)(size), (I)(n)) - max(t, (I)(0)))
#endif

// The windows that hold element i of an axis: from FIRST to LAST
#define FIRST(i, pad, size, stride) ((i) + (pad) < (size) ? 0 : ((i) + (pad) - (size)) / (stride) + 1)
#define LAST(i, pad, stride, out) min((out) - 1, ((i) + (pad)) / (stride))
#define EACH_ROW_ABOVE                                                                                        \
  for (int od = FIRST(d, PD, K_D, S_D); od <= LAST(d, PD, S_D, OD); od++)                                     \
    for (int oh = FIRST(h, PH, K_H, S_H); oh <= LAST(h, PH, S_H, OH); oh++)
#define TAP_ABOVE TAP(d + PD - od * S_D, h + PH - oh * S_H, 0)
#define COUNT_ABOVE (EXTENT(int, od * S_D - PD, K_D, D, s.s9) * EXTENT(int, oh * S_H - PH, K_H, H, s.sa))

// Row after row of a work-item's: `row` of all, and plane, d, h
#define EACH_ROW(depth, height)                                                                                       \
  for (int row = get_global_id(0) * each, last = min(rows, row + each), h = row % (height),                           \
           d = row / (height) % (depth), plane = row / (height) / (depth); row < last;                                \
       row++, h++, d += h == (height), h = h == (height) ? 0 : h, plane += d == (depth), d = d == (depth) ? 0 : d)

#ifdef FORWARD
#ifndef VW
// y[i] of the window that starts at d0, h0, w0 of a plane
static inline void forward_one(int16 s, global const real *plane, int d0, int h0, int w0, size_t i, global real *y,
                               global INDEX *index) {
  UNPACK
  const int d1 = max(0, -d0), h1 = max(0, -h0), w1 = max(0, -w0);
  const int d2 = min(K_D, D - d0), h2 = min(K_H, H - h0), w2 = min(K_W, W - w0);
  int tap = TAP(d1, h1, w1);
  real best = -INFINITY, part = 0;
  TOTAL(real, sum);
  for (int d = d1; d < d2; d++) for (int h = h1; h < h2; h++) {
    for (int w = w1; w < w2; w++) {
      const real v = plane[((d0 + d) * H + h0 + h) * W + w0 + w];
      if (BETTER(v, best)) { best = v; tap = TAP(d, h, w); }
      part += v;
      if (w % SPAN == SPAN - 1) END_SPAN(real, sum, part)
    }
    END_SPAN(real, sum, part)
  }
#ifdef MAX
  y[i] = best;
#ifdef KEEP
  index[i] = tap;
#endif
#else
  y[i] = SUM_OF(sum, part) / (real)(EXTENT(int, d0, K_D, D, s.s9) * EXTENT(int, h0, K_H, H, s.sa) * EXTENT(int, w0, K_W, W, s.sb));
#endif
}

#else

// y[i] and n - 1 after it, of windows side by side, the first of which starts at d0, h0, w0 of the plane x + from.
// `inside`: none of them sticks out. Else taps that are outside are read from rows beside, or (before the first row of all)
// from somewhere near, and do not count.
INLINE void forward_lanes(int16 s, global const real *x, size_t from, int d0, int h0, int w0, int n, int inside,
                          size_t i, global real *y, global INDEX *index) {
  UNPACK
  const int d1 = inside ? 0 : max(0, -d0), d2 = inside ? K_D : min(K_D, D - d0);
  const int h1 = inside ? 0 : max(0, -h0), h2 = inside ? K_H : min(K_H, H - h0);
  const int w1 = -w0 - STEP * (VW - 1), w2 = W - w0;     // the taps that any lane has
  const INTS start = w0 + STEP * LANES;
#ifdef MAX
  T best = (T)(-INFINITY);
  INTS taps = inside ? (INTS)(0) : TAP(d1, h1, max(-start, (INTS)(0)));
#else
  T part = (T)(0);
  TOTAL(T, sum);
#endif
  for (int d = d1; d < d2; d++) for (int h = h1; h < h2; h++) {
    ALONG_WINDOW for (int w = 0; w < K_W; w++) {
      if (!inside && (w < w1 || w >= w2)) continue;
      const long first = (long)from + ((d0 + d) * H + h0 + h) * W + w0;
      T v = !inside && first + w < 1 ? comb_gather(x + first, w, -w0, W - w0) : comb_load(x + first, w, -w0, W - w0);
#ifdef MAX
      INTS better = BETTER(v, best);
      if (!inside) better &= start + w >= 0 && start + w < W;
      best = WHERE(better, v, best);
      taps = select(taps, (INTS)(TAP(d, h, w)), better);
#else
      if (!inside) { const INTS there = start + w >= 0 && start + w < W; v = WHERE(there, v, 0); }
      part += v;
      if (w % SPAN == SPAN - 1) END_SPAN(T, sum, part)
#endif
    }
#ifndef MAX
    END_SPAN(T, sum, part)
#endif
  }
#ifdef MAX
  store_n(best, y + i, n);
#ifdef KEEP
  const INDICES kept = CAT(CAT(convert_, INDEX), VW)(taps);
  if (n >= VW) *(global INDICES_ANYWHERE *)(index + i) = kept;
  else {
    INDEX t[VW] __attribute__((aligned(64)));
    *(INDICES *)t = kept;
    PARTS(n, index + i, t)
  }
#endif
#else
  const int count = EXTENT(int, d0, K_D, D, s.s9) * EXTENT(int, h0, K_H, H, s.sa);
  const T all = SUM_OF(sum, part);
  store_n(inside ? all / (T)(count * K_W) : all / TO_T(count * EXTENT(INTS, start, K_W, W, s.sb)), y + i, n);
#endif
}

#endif

kernel void pool_forward(int16 s, global const real *restrict x, global real *restrict y, global INDEX *restrict index) {
  UNPACK
#ifdef VW
  EACH_ROW(OD, OH) {
    const int d0 = d * S_D - PD, h0 = h * S_H - PH;
    const size_t from = (size_t)plane * D * H * W, to = (size_t)row * OW;
    const int whole = d0 >= 0 && d0 + K_D <= D && h0 >= 0 && h0 + K_H <= H;
    for (int next = 0; next < OW; next += VW) {
      const int o = max(0, min(next, OW - VW)), n = min(VW, OW - o), w0 = o * STEP - PW;   // the last ones overlap
      if (whole && w0 >= 0 && w0 + (n - 1) * STEP + K_W <= W) forward_lanes(s, x, from, d0, h0, w0, n, 1, to + o, y, index);
      else forward_lanes(s, x, from, d0, h0, w0, n, 0, to + o, y, index);
    }
  }
#else
  const int i = get_global_id(0), row = i / OW;
  if (row < rows)
    forward_one(s, x + (size_t)(row / OH / OD) * D * H * W, row / OH % OD * S_D - PD, row % OH * S_H - PH, i % OW * STEP - PW,
                i, y, index);
#endif
}

#else

// the gradient by element w of row d, h of a plane
#ifndef VW
static inline real backward_one(int16 s, global const real *dy, global const INDEX *index, global const real *y, int d, int h,
                                int w) {
  UNPACK
  TOTAL(real, sum);
  EACH_ROW_ABOVE for (int o = FIRST(w, PW, K_W, STEP); o <= LAST(w, PW, STEP, OW); o++) {
    const int i = (od * OH + oh) * OW + o;
#ifdef MAX
    PLUS(real, sum, index[i] == TAP_ABOVE + w + PW - o * STEP ? DIFFERENTIATED(dy[i], y[i]) : 0)
#else
    PLUS(real, sum, dy[i] / (real)(COUNT_ABOVE * EXTENT(int, o * STEP - PW, K_W, W, s.sb)))
#endif
  }
  return SUM_OF(sum, sum);
}
#else

// p[first] and those after it; anything in place of what is before p
INLINE T lanes_from(global const real *p, long first, int inside) {
  if (inside || first >= 0) return VLOAD(0, p + first);
  real t[VW];
  UNROLL for (int l = 0; l < VW; l++) t[l] = p[max(first + l, 0L)];
  return VLOAD(0, t);
}

// dx of n groups of STEP inputs, the first of which are those of window j that no later window holds; row d, h of a plane.
// Tap w of a window is comb w % STEP of the group w / STEP further on.
INLINE void backward_lanes(int16 s, global const real *dy, global const INDEX *index, size_t from, int d, int h, int j,
                           int n, int inside, global const real *saved, global real *dx, real2 pair) {
  UNPACK
  T sum[STEP], all[STEP], lost[STEP];
  EACH_COMB sum[r] = all[r] = lost[r] = (T)(0);
  EACH_ROW_ABOVE {
    const int tap = TAP_ABOVE, row = (od * OH + oh) * OW;
#ifndef MAX
    const int count = COUNT_ABOVE;
#endif
    ALONG_WINDOW for (int w = 0; w < K_W; w++) {
      const int o = j - w / STEP;
      const long first = (long)from + row + o;
      if (!inside && (o >= OW || o + VW <= 0)) continue;
      T g = lanes_from(dy, first, inside);
#ifdef FROM_Y
      const T before = lanes_from(saved, first, inside);
      g = DIFFERENTIATED(g, before);
#endif
#ifdef MAX
      INTS there = TO_INTS(VLOAD(0, index + max(first, 0L)));
      if (!inside && first < 0) {          // before the first row of all
        INDEX k[VW];
        UNROLL for (int l = 0; l < VW; l++) k[l] = index[max(first + l, 0L)];
        there = TO_INTS(VLOAD(0, k));
      }
      there = there == (INTS)(tap + w);
      if (!inside) there &= o + LANES >= 0 && o + LANES < OW;
      sum[w % STEP] += WHERE(there, g, 0);
#else
      if (inside) sum[w % STEP] += g * (1 / (real)(count * K_W));
      else {
        const INTS there = o + LANES >= 0 && o + LANES < OW, start = (o + LANES) * STEP - PW;
        g /= TO_T(count * EXTENT(INTS, start, K_W, W, s.sb));
        sum[w % STEP] += WHERE(there, g, 0);
      }
#endif
      if (w % (SPAN * STEP) == SPAN * STEP - 1) END_SPANS
    }
    END_SPANS
  }
#if K_D * K_H * K_W > SPAN
  EACH_COMB { const T one = all[r], one_lost = lost[r]; sum[r] = WHOLE(one); }
#endif
  const int x0 = j * STEP - PW;
  T joined[STEP];
  combs_join(sum, joined);
  if (inside) EACH_COMB {
    const int i = VW * r;
    if (i < STEP * n) write_lanes(joined[r], saved + BELOW(x0 + i), dx + x0 + i, STEP * n - i, pair);
  } else {
    real t[(STEP + 1) * VW] __attribute__((aligned(64)));
    EACH_COMB VSTORE(joined[r], r, t);
    for (int i = max(0, -x0), end = min(STEP * VW, W - x0); i < end; i += VW)
      write_lanes(VLOAD(0, t + i), saved + BELOW(x0 + i), dx + x0 + i, end - i, pair);
  }
}
#endif

kernel void pool_backward(int16 s, global const real *restrict dy, global const INDEX *restrict index, SINK_ARGS) {
  UNPACK
  const real2 pair = PAIR;
#ifdef VW
  const int groups = (W + PW + STEP - 1) / STEP, before = (K_W - 1) / STEP;
  EACH_ROW(D, H) {
    const size_t from = (size_t)plane * OD * OH * OW, to = (size_t)row * W;
    for (int j = 0; j < groups; j += VW) {
      const int n = min(VW, groups - j);
      int inside = j >= before && j + n <= OW && j * STEP >= PW && (j + n) * STEP - PW <= W;
#ifndef MAX
      inside = inside && (j - before) * STEP >= PW && (j + n - 1) * STEP - PW + K_W <= W;
#endif
      if (inside) backward_lanes(s, dy, index, from, d, h, j, n, 1, saved + BELOW(to), dx + to, pair);
      else backward_lanes(s, dy, index, from, d, h, j, n, 0, saved + BELOW(to), dx + to, pair);
    }
  }
#else
  const int i = get_global_id(0), row = i / W;
  if (row >= rows) return;
  const size_t from = (size_t)(row / H / D) * OD * OH * OW;
  WRITE_ONE(backward_one(s, dy + from, index + from, saved + from, row / H % D, row % H, i % W), saved + BELOW(i), dx + i, pair);
#endif
}
#endif
#endif

#ifdef ADAPTIVE
// ---- bins ---------------------------------------------------------------------------------------------------------------
// s: D H W, out D H W, what to do in all, and for each work-item: elements of y (forward), rows of x (backward)
// bins, for each axis: where each one starts and ends, and of each element of x the first and the last bin that it is in
#define UNPACK_BINS                                                                                                   \
  const int D = s.s0, H = s.s1, W = s.s2, OD = s.s3, OH = s.s4, OW = s.s5, all = s.s6, each = s.s7;                   \
  global const int *start_d = bins, *end_d = start_d + OD, *low_d = end_d + OD, *high_d = low_d + D;                  \
  global const int *start_h = high_d + D, *end_h = start_h + OH, *low_h = end_h + OH, *high_h = low_h + H;            \
  global const int *start_w = high_h + H, *end_w = start_w + OW, *low_w = end_w + OW, *high_w = low_w + W;

#ifdef FORWARD
#define FARTHEST 2147483647

static inline real bin_forward(int H, int W, global const real *x, int d1, int d2, int h1, int h2, int w1, int w2, int *where) {
#ifdef MAX
  *where = (d1 * H + h1) * W + w1;
  real y = x[*where];
#else
  TOTAL(real, sum);
#endif
#ifdef VW
#ifdef MAX
  INTS wheres = (INTS)(FARTHEST);
  T ys = (T)(-INFINITY);
#else
  TOTAL(T, sums);
#endif
#endif
  for (int d = d1; d < d2; d++) for (int h = h1; h < h2; h++) {
    int i = (d * H + h) * W + w1;
    const int end = i + w2 - w1;
#ifdef MAX
#ifdef VW
    for (; i + VW <= end; i += VW) {
      const T v = VLOAD(0, x + i);
      const INTS better = BETTER(v, ys);
      ys = WHERE(better, v, ys);
      wheres = select(wheres, (INTS)(i) + LANES, better);
    }
#endif
    for (; i < end; i++) if (BETTER(x[i], y)) { y = x[i]; *where = i; }
#else
#ifdef VW
    while (i + VW <= end) {
      T part = (T)(0);
      for (const int stop = min(end, i + SPAN * VW); i + VW <= stop; i += VW) part += VLOAD(0, x + i);
      ADD_TO(T, sums, part)
    }
#endif
    while (i < end) {
      real part = 0;
      for (const int stop = min(end, i + SPAN); i < stop; i++) part += x[i];
      ADD_TO(real, sum, part)
    }
#endif
  }
#ifdef VW
  if (w2 - w1 >= VW) {                     // lane by lane: the first of equals has the lowest number
    real lane[VW];
#ifdef MAX
    VSTORE(ys, 0, lane);
    INT there[VW];
    CAT(vstore, VW)(wheres, 0, there);
    for (int l = 0; l < VW; l++)
      if (BETTER(lane[l], y) || ((lane[l] == y || (lane[l] != lane[l] && y != y)) && there[l] < *where)) {
        y = lane[l];
        *where = (int)there[l];
      }
#else
    VSTORE(WHOLE(sums), 0, lane);
    for (int l = 0; l < VW; l++) ADD_TO(real, sum, lane[l])
#endif
  }
#endif
#ifdef MAX
  return y;
#else
  return WHOLE(sum) / (real)((d2 - d1) * (h2 - h1) * (w2 - w1));
#endif
}

kernel void adaptive_forward(int8 s, global const int *bins, global const real *restrict x, global real *restrict y, global int *restrict index) {
  UNPACK_BINS
  for (int i = get_global_id(0) * each, last = min(all, i + each); i < last; i++) {
    const int o = i % OW, oh = i / OW % OH, od = i / OW / OH % OD, plane = i / OW / OH / OD;
    int where = 0;
    y[i] = bin_forward(H, W, x + (size_t)plane * D * H * W, start_d[od], end_d[od], start_h[oh], end_h[oh], start_w[o],
                       end_w[o], &where);
#ifdef KEEP
    index[i] = where;
#endif
  }
}

#else

// dx of the elements from w1 up to w2 of row d, h, which all are in the bins from o1 to o2; in vectors on CPUs
static inline void bin_backward(int8 s, global const int *bins, global const real *dy, global const int *index, int d, int h,
                                int w1, int w2, int o1, int o2, global const real *y, global const real *saved,
                                global real *dx, real2 pair) {
  UNPACK_BINS
#define EACH_BIN                                                                                                      \
  for (int od = low_d[d]; od <= high_d[d]; od++) for (int oh = low_h[h]; oh <= high_h[h]; oh++)                       \
    for (int o = o1, i = (od * OH + oh) * OW + o1; o <= o2; o++, i++)
#ifndef MAX
  TOTAL(real, sum);                        // there may be many bins: more than elements
  EACH_BIN ADD_TO(real, sum, dy[i] / (real)((end_d[od] - start_d[od]) * (end_h[oh] - start_h[oh]) * (end_w[o] - start_w[o])))
#endif
  int w = w1;
#ifdef VW
  for (; w < w2; w += VW) {
#ifdef MAX
    const INTS here = (INTS)((d * H + h) * W + w) + LANES;
    TOTAL(T, sum);
    EACH_BIN {
      const INTS there = here == (INTS)(index[i]);
      ADD_TO(T, sum, WHERE(there, DIFFERENTIATED(dy[i], y[i]), 0))
    }
#endif
    write_lanes((T)(WHOLE(sum)), saved + BELOW(w), dx + w, w2 - w, pair);
  }
#else
  for (; w < w2; w++) {
#ifdef MAX
    TOTAL(real, sum);
    EACH_BIN ADD_TO(real, sum, index[i] == (d * H + h) * W + w ? DIFFERENTIATED(dy[i], y[i]) : 0)
#endif
    WRITE_ONE(WHOLE(sum), saved + BELOW(w), dx + w, pair);
  }
#endif
}

kernel void adaptive_backward(int8 s, global const int *bins, global const real *restrict dy, global const int *restrict index,
                              SINK_ARGS) {
  UNPACK_BINS
  const real2 pair = PAIR;
#ifdef VW
  for (int row = get_global_id(0) * each, last = min(all, row + each); row < last; row++) {
    const int plane = row / H / D, d = row / H % D, h = row % H;
    const size_t from = (size_t)plane * OD * OH * OW, to = (size_t)row * W;
    for (int w = 0, next; w < W; w = next) {
      const int low = low_w[w], high = high_w[w];
      next = high + 1 < OW ? min(end_w[low], start_w[high + 1]) : end_w[low];   // where one bin ends or another begins
      bin_backward(s, bins, dy + from, index + from, d, h, w, next, low, high, saved + from, saved + BELOW(to),
                   dx + to, pair);
    }
  }
#else
  const int i = get_global_id(0), row = i / W, w = i % W;
  if (row >= all) return;
  const size_t from = (size_t)(row / H / D) * OD * OH * OW, to = (size_t)row * W;
  bin_backward(s, bins, dy + from, index + from, row / H % D, row % H, w, w + 1, low_w[w], high_w[w], saved + from,
               saved + BELOW(to), dx + to, pair);
#endif
}
#endif
#endif
