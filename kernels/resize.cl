// Arrays (planes, D, H, W) made larger, y (planes, out D, out H, out W): upsampled by whole factors, or padded. Missing axes
// have size 1. On CPUs (VW) a work-item does a few rows, elsewhere each does one element. FORWARD compiles the forward
// kernel, otherwise the gradient's, which gathers one sum for each element of x and writes it once (sink.cl).
//
// upsample_*  y[o] = x[o / F], F_D, F_H and STEP (along the last axis) compiled in; or, LINEAR, interpolated between x at
//             (o + 1/2) / F - 1/2, rounded down and up, within the input: centres of elements are at halves.
// pad_*       y[o] = x[o - before], and outside of x a value (CONSTANT), the nearest element (REPLICATE), or the one on the
//             other side of the edge element (REFLECT).
#ifndef STEP
#define STEP 1
#endif
#include "sink.cl"
#ifdef VW
#include "combs.cl"
#endif

// s: D H W, out D H W, padding before D H W; rows in all, and for each work-item
#define UNPACK                                                                                                        \
  const int D = s.s0, H = s.s1, W = s.s2, OD = s.s3, OH = s.s4, OW = s.s5, PD = s.s6, PH = s.s7, PW = s.s8;           \
  const int rows = s.s9, each = s.sa;

#ifdef F_D
// ---- upsampling ---------------------------------------------------------------------------------------------------------
#ifdef LINEAR
#define OFF(r, f) (2 * (r) + 1 - (f))      // where output r of an element's f is from its centre, in 1 / (2 f)
#else
#define OFF(r, f) 0
#endif
#define SHARE(off, f) ((real)(off) / (2 * (f)))

// the elements that output o of an axis is made of, and how much of the second one there is in it: none, and it is not read
static inline int2 between(int o, int f, int n, real *share) {
  const int i = o / f, off = OFF(o - i * f, f);
  *share = SHARE(off < 0 ? 2 * f + off : off, f);
  return off < 0 ? (int2)(max(i - 1, 0), i) : (int2)(i, min(i + 1, n - 1));
}

// how much of element i there is in output o
static inline real weight(int i, int o, int f, int n) {
  real share;
  const int2 made_of = between(o, f, n, &share);
  return (made_of.x == i ? 1 - share : 0) + (made_of.y == i ? share : 0);
}
#ifdef LINEAR                              // the outputs that may hold element i
#define EACH_OUT(o, i, f, out) for (int o = max(0, ((i) - 1) * (f)); o < min(out, ((i) + 2) * (f)); o++)
#else
#define EACH_OUT(o, i, f, out) for (int o = (i) * (f); o < ((i) + 1) * (f); o++)
#endif

#ifdef FORWARD
#ifdef VW
// x[at ...] of a row of W elements, repeated beyond its ends
static inline T around(global const real *row, int at, int W) {
  if (at >= 0 && at + VW <= W) return VLOAD(0, row + at);
  real t[VW] __attribute__((aligned(64)));
  UNROLL for (int l = 0; l < VW; l++) t[l] = row[clamp(at + l, 0, W - 1)];
  return VLOAD(0, t);
}

// the same of the row between rows
static inline T mixed(int16 s, global const real *x, int2 d, int2 h, real share_d, real share_h, int at) {
  UNPACK
  T v = around(x + (d.x * H + h.x) * W, at, W);
  if (share_h != 0) v = v * (1 - share_h) + around(x + (d.x * H + h.y) * W, at, W) * share_h;
  if (share_d != 0) {
    T u = around(x + (d.y * H + h.x) * W, at, W);
    if (share_h != 0) u = u * (1 - share_h) + around(x + (d.y * H + h.y) * W, at, W) * share_h;
    v = v * (1 - share_d) + u * share_d;
  }
  return v;
}
#endif

kernel void upsample_forward(int16 s, global const real *restrict x, global real *restrict y) {
  UNPACK
  real share_d, share_h;
#ifdef VW
  for (int row = get_global_id(0) * each, last = min(rows, row + each); row < last; row++) {
    const int2 d = between(row / OH % OD, F_D, D, &share_d), h = between(row % OH, F_H, H, &share_h);
    const int plane = row / OH / OD;
    global const real *from = x + (size_t)plane * D * H * W;
    for (int j = 0; j < W; j += VW) {
      global real *to = y + (size_t)row * OW + j * STEP;
      const T here = mixed(s, from, d, h, share_d, share_h, j);
      T combs[STEP], joined[STEP];
#if defined(LINEAR) && STEP > 1
      const T left = mixed(s, from, d, h, share_d, share_h, j - 1), right = mixed(s, from, d, h, share_d, share_h, j + 1);
      EACH_COMB {
        const real share = SHARE(abs(OFF(r, STEP)), STEP);
        combs[r] = OFF(r, STEP) == 0 ? here : here * (1 - share) + (OFF(r, STEP) < 0 ? left : right) * share;
      }
#else
      EACH_COMB combs[r] = here;
#endif
      combs_join(combs, joined);
      const int n = STEP * min(VW, W - j);
      EACH_COMB if (VW * r < n) store_n(joined[r], to + VW * r, n - VW * r);
    }
  }
#else
  const int i = get_global_id(0), row = i / OW;
  if (row >= rows) return;
  real share_w, sum = 0;
  const int2 d = between(row / OH % OD, F_D, D, &share_d), h = between(row % OH, F_H, H, &share_h);
  const int2 w = between(i % OW, STEP, W, &share_w);
  x += (size_t)(row / OH / OD) * D * H * W;
  for (int c = 0; c < 8; c++) {
    if ((c & 4 && share_d == 0) || (c & 2 && share_h == 0) || (c & 1 && share_w == 0)) continue;
    sum += (c & 4 ? share_d : 1 - share_d) * (c & 2 ? share_h : 1 - share_h) * (c & 1 ? share_w : 1 - share_w) *
           x[((c & 4 ? d.y : d.x) * H + (c & 2 ? h.y : h.x)) * W + (c & 1 ? w.y : w.x)];
  }
  y[i] = sum;
#endif
}

#else
#if 27 * F_D * F_H * STEP > SPAN           // an element is in many outputs: spans end, at the latest with a line (long sums: common.cl)
#define END_SPAN(type, sum, part) { ADD_TO(type, sum, part) part = (type)(0); }
#define SUM_OF(sum, part) WHOLE(sum)
#else
#define END_SPAN(type, sum, part) ;
#define SUM_OF(sum, part) (part)
#endif
kernel void upsample_backward(int16 s, global const real *restrict dy, SINK_ARGS) {
  UNPACK
  const real2 pair = PAIR;
#ifdef VW
  for (int row = get_global_id(0) * each, last = min(rows, row + each); row < last; row++) {
    const int plane = row / H / D, d = row / H % D, h = row % H;
    for (int j = 0; j < W; j += VW) {
      TOTAL(T, sum);
      T lines = (T)(0);
      EACH_OUT(od, d, F_D, OD) EACH_OUT(oh, h, F_H, OH) {
        const real part = weight(d, od, F_D, D) * weight(h, oh, F_H, H);
        if (part == 0) continue;
        global const real *from = dy + ((size_t)(plane * OD + od) * OH + oh) * OW + j * STEP;
        T line = (T)(0);
        EACH_COMB {
          const int off = OFF(r, STEP);
          const real share = SHARE(abs(off), STEP);
          const T g = comb_load(from, r, -j * STEP, OW - j * STEP);
          line += g * (1 - share);
          if (off == 0) continue;
          // a part of the neighbour's output, and, where the element has no neighbour on the other side, of its own
          const int next = off < 0 ? 1 : -1;
          const INTS i = j + LANES;
          const INTS there = i + next >= 0 && i + next < W, edge = off < 0 ? i == 0 : i == W - 1;
          const T beside = j + next >= 0 && j + next + VW <= W ? comb_load(from + next * STEP, r, -OW, OW)
                                                               : comb_gather(from, r + next * STEP, -j * STEP, OW - j * STEP);
          line += (WHERE(there, beside, 0) + WHERE(edge, g, 0)) * share;
        }
        lines += line * part;
        END_SPAN(T, sum, lines)
      }
      write_lanes(SUM_OF(sum, lines), saved + (size_t)row * W + j, dx + (size_t)row * W + j, W - j, pair);
    }
  }
#else
  const int i = get_global_id(0), row = i / W, d = row / H % D, h = row % H, w = i % W;
  if (row >= rows) return;
  TOTAL(real, sum);
  dy += (size_t)(row / H / D) * OD * OH * OW;
  real part = 0;
  EACH_OUT(od, d, F_D, OD) EACH_OUT(oh, h, F_H, OH) {
    EACH_OUT(o, w, STEP, OW) {
      const real share = weight(d, od, F_D, D) * weight(h, oh, F_H, H) * weight(w, o, STEP, W);
      if (share != 0) part += share * dy[(od * OH + oh) * OW + o];
      if (o % SPAN == 0) END_SPAN(real, sum, part)
    }
    END_SPAN(real, sum, part)
  }
  WRITE_ONE(SUM_OF(sum, part), saved + i, dx + i, pair);
#endif
}
#endif
#endif

#if defined(CONSTANT) || defined(REFLECT) || defined(REPLICATE)
// ---- padding ------------------------------------------------------------------------------------------------------------
#if defined(CONSTANT)                      // which element output o is, -1 for none; and the outputs that are element i
#define SOURCE(o, pad, n) ((o) < (pad) || (o) - (pad) >= (n) ? -1 : (o) - (pad))
#define EACH_COPY(o, i, pad, n, out) for (int o = (i) + (pad); o == (i) + (pad); o++)
#define LONELY(i, pad, n, out) 1           // whether there is one only
#elif defined(REFLECT)
#define SOURCE(o, pad, n) ((n) - 1 - (int)abs((n) - 1 - (int)abs((o) - (pad))))
#define COPY(k, i, pad, n) \
  ((k) == 0 ? (i) + (pad) : (k) == 1 ? ((i) == 0 ? -1 : (pad) - (i)) : (i) == (n) - 1 ? -1 : (pad) + 2 * ((n) - 1) - (i))
#define EACH_COPY(o, i, pad, n, out) \
  for (int k_##o = 0, o = 0; k_##o < 3; k_##o++) if ((o = COPY(k_##o, i, pad, n)) >= 0 && o < (out))
#define LONELY(i, pad, n, out) ((i) > (pad) && (pad) + 2 * ((n) - 1) - (i) >= (out))
#else
#define SOURCE(o, pad, n) clamp((o) - (pad), 0, (n) - 1)
#define EACH_COPY(o, i, pad, n, out) \
  for (int o = (i) == 0 ? 0 : (i) + (pad), end_##o = (i) == (n) - 1 ? (out) : (i) + (pad) + 1; o < end_##o; o++)
#define LONELY(i, pad, n, out) ((i) > 0 && (i) < (n) - 1)
#endif

#ifdef FORWARD
kernel void pad_forward(int16 s, global const real *restrict x, global real *restrict y, real value) {
  UNPACK
#ifdef VW
  for (int row = get_global_id(0) * each, last = min(rows, row + each); row < last; row++) {
    const int plane = row / OH / OD, d = SOURCE(row / OH % OD, PD, D), h = SOURCE(row % OH, PH, H);
    global const real *from = x + ((size_t)(plane * D + max(d, 0)) * H + max(h, 0)) * W;
    global real *to = y + (size_t)row * OW;
    if (d < 0 || h < 0) { for (int o = 0; o < OW; o += VW) store_n((T)(value), to + o, OW - o); continue; }
    for (int i = 0; i < W; i += VW) store_n(VLOAD(0, from + i), to + PW + i, W - i);
    for (int o = PW > 0 ? 0 : W; o < OW; o = o + 1 == PW ? PW + W : o + 1) {
      const int i = SOURCE(o, PW, W);
      to[o] = i < 0 ? value : from[i];
    }
  }
#else
  const int i = get_global_id(0), row = i / OW;
  if (row >= rows) return;
  const int d = SOURCE(row / OH % OD, PD, D), h = SOURCE(row % OH, PH, H), w = SOURCE(i % OW, PW, W);
  y[i] = d < 0 || h < 0 || w < 0 ? value : x[((size_t)(row / OH / OD * D + d) * H + h) * W + w];
#endif
}

#else
kernel void pad_backward(int16 s, global const real *restrict dy, SINK_ARGS) {
  UNPACK
  const real2 pair = PAIR;
#ifdef VW
  for (int row = get_global_id(0) * each, last = min(rows, row + each); row < last; row++) {
    const int plane = row / H / D, d = row / H % D, h = row % H;
#else
  const int i = get_global_id(0), row = i / W, d = row / H % D, h = row % H, plane = row / H / D;
  if (row >= rows) return;
  {
#endif
    const size_t to = (size_t)row * W;
#ifdef VW
    for (int w = 0; w < W;) {
      int n = 0;
      while (n < VW && w + n < W && LONELY(w + n, PW, W, OW)) n++;
      if (n > 0) {
        TOTAL(T, sum);
        EACH_COPY(od, d, PD, D, OD) EACH_COPY(oh, h, PH, H, OH)
          ADD_TO(T, sum, VLOAD(0, dy + ((size_t)(plane * OD + od) * OH + oh) * OW + PW + w))
        write_lanes(WHOLE(sum), saved + to + w, dx + to + w, n, pair);
        w += n;
        continue;
      }
#else
    const int w = i % W;
    {
#endif
      TOTAL(real, sum);                               // the edge's element may be in many outputs (long sums: common.cl)
      EACH_COPY(od, d, PD, D, OD) EACH_COPY(oh, h, PH, H, OH) {
        real part = 0;
        EACH_COPY(o, w, PW, W, OW) {
          part += dy[((size_t)(plane * OD + od) * OH + oh) * OW + o];
          if (o % SPAN == 0) { ADD_TO(real, sum, part) part = 0; }
        }
        ADD_TO(real, sum, part)
      }
      WRITE_ONE(WHOLE(sum), saved + to + w, dx + to + w, pair);
#ifdef VW
      w++;
#endif
    }
  }
}
#endif
#endif
