// Convolution over up to three spatial axes, arrays (N, channels, D, H, W), without im2col in memory.
//
// conv_rows      y (N, G K, *out) = epilogue(x (N, G C, *in) * w), for CPUs. A work-item owns a block of output rows of one
//                image, for all output channels. It copies what it needs of x to local memory once, padded, rows one behind
//                the other, so that the input of tap (i, j) for ALL of the block's positions, seen as one long row, is one
//                long row too, shifted by a constant: vectors run over positions, and cross from row to row. Between rows
//                lie positions of no output, computed and dropped. Strides make the copy a plane for each phase, so they
//                cost nothing in the loops; zeros between inputs (UP, for gradients of strided convolutions and for
//                transposed ones) are put there by the copy as well. Per tap: KR weights times PV vectors, in registers.
// conv_columns   the same with vectors over output channels, for narrow images and strides: MR positions of a row times NV
//                vectors of weights. Results are turned while they leave. With UP, outputs of one phase share their taps, and
//                the zeros between inputs are never touched.
// conv_scatter   the same with stride 1, seen from the inputs: a tap of KR output channels times all inputs, summed up over
//                input channels in registers, is added to those outputs where the tap puts it. It multiplies no padding, so
//                it suits gradients by input of large windows over small images.
// conv_pack      the weights in the order in which these three read them; turned over for gradients by input.
// conv_weights   the gradient by weights, for CPUs: vectors run over output channels (dy is turned while it is copied), the
//                MR rows of the register tile are (channel, tap) pairs. Parts of the batch go to parts of `partial`.
// conv_lanes     the same where a group has few output channels (depthwise): vectors run over positions.
// conv_sum       adds the parts up, into the sinks of w and b.
// conv_local     all three for GPUs, as a product of matrices whose operands are gathered while a group copies them to local
//                memory (implicit GEMM).
#include "conv_epilogue.cl"
// A sum of products is taken in runs of up to LONGEST of them, of whole channels where those have fewer (long sums: common.cl).
#define LONGEST 1024
#define EACH_RUN(c, channels, most) int c = 0; c < (channels); c += max(1, most)   // for (EACH_RUN(c, channels, most))
#define IN_RUN(c, channels, most) min((channels) - (c), max(1, most))

#ifdef VW
// ---- what CPU kernels copy ----------------------------------------------------------------------------------------------
// d[c] = row[(first + c * step) / up] for c in [0, n), 0 where that is no element of the row. d is written up to VW - 1
// values further: what lies behind is written later. Of step and up one is 1.
APART void copy_columns(local real *d, global const real *row, int n, int first, int step, int up, int width) {
  if (step == 1 && up == 1) {
    const int left = clamp(-first, 0, n), right = clamp(width - first, left, n);
    for (int c = 0; c < left; c++) d[c] = 0;
    for (int c = left; c < right; c += VW) VSTORE(VLOAD(0, row + first + c), 0, d + c);
    for (int c = right; c < n; c++) d[c] = 0;
  } else if (up == 1)
    for (int c = 0; c < n; c++) { const int i = first + c * step; d[c] = i >= 0 && i < width ? row[i] : 0; }
  else {
    for (int c = 0; c < n; c++) d[c] = 0;
    for (int i = max(0, (first + up - 1) / up), c = i * up - first; i < width && c < n; i++, c += up) d[c] = row[i];
  }
}

#endif

#ifdef ROWS
// ---- forward, and gradients by input ------------------------------------------------------------------------------------
#define NR (PV * VW)

// o (KR, OUT) at position 0 ... = or += the sum over channels and taps of KR weights times NR positions
APART void conv_tile(local const real *slab, local const int *tap, int taps, int channels, int stride, global const real *w,
                     local real *o, int more) {
  T acc[KR][PV];
  UNROLL for (int r = 0; r < KR; r++) UNROLL for (int v = 0; v < PV; v++) acc[r][v] = (T)(0);
  for (int c = 0; c < channels; c++, slab += stride)
    for (int t = 0; t < taps; t++, w += KR) {
      local const real *x = slab + tap[t];
      T b[PV];
      UNROLL for (int v = 0; v < PV; v++) b[v] = VLOAD(v, x);
      UNROLL for (int r = 0; r < KR; r++) {
        const T a = (T)(w[r]);
        UNROLL for (int v = 0; v < PV; v++) acc[r][v] += a * b[v];
      }
    }
  if (more) UNROLL for (int r = 0; r < KR; r++) UNROLL for (int v = 0; v < PV; v++) acc[r][v] += VLOAD(v, o + r * OUT);
  UNROLL for (int r = 0; r < KR; r++) UNROLL for (int v = 0; v < PV; v++) VSTORE(acc[r][v], v, o + r * OUT);
}

// rb x cb: rows and columns of a block; parts: in how many the output channels are split; chunk: channels copied at once
kernel GROUP_SIZE void conv_rows(int16 p, int16 q, int N, global const real *x, global const real *w, global const real *factor, global const real *bias, global real *y,
                                 global real *saved, global const real2 *scale, global const int *at) {
  UNPACK
  const int rb = q.s9, cb = q.sa, parts = q.sb, chunk = q.sc, column = q.sd;
  const int blocks_h = (OH + rb - 1) / rb, blocks_w = (OW + cb - 1) / cb, blocks_k = (K + KR - 1) / KR;
  local real slab[SLAB] __attribute__((aligned(64)));
  local real o[KR * OUT] __attribute__((aligned(64)));
  local int tap[MOST_TAPS];
  int item = get_global_id(0);
  const int part = item % parts; item /= parts;
  const int w0 = item % blocks_w * cb; item /= blocks_w;
  const int h0 = item % blocks_h * rb; item /= blocks_h;
  const int d0 = item % OD; item /= OD;
  const int g = item % G, n = item / G;
  if (n >= N) return;
  const int rows = min(rb, OH - h0), columns = min(cb, OW - w0);
  const int phases_h = min(SH, (KH - 1) * DH + 1), phases_w = min(SW, (KW - 1) * DW + 1);
  const int high = rows + (KH - 1) * DH / SH, pitch = columns + (KW - 1) * DW / SW;
  const int plane = high * pitch, stride = KD * phases_h * phases_w * plane;
  const int positions = (rows - 1) * pitch + columns;
  const real2 pair = PAIR;
  for (int kd = 0, t = 0; kd < KD; kd++) for (int i = 0; i < KH; i++) for (int j = 0; j < KW; j++, t++)
    tap[t] = ((kd * phases_h + i * DH % SH) * phases_w + j * DW % SW) * plane + i * DH / SH * pitch + j * DW / SW;
  for (int kb = blocks_k * part / parts; kb < blocks_k * (part + 1) / parts; kb++) {
    const int k0 = kb * KR;
    for (int c0 = 0; c0 < C; c0 += chunk) {
      const int channels = min(chunk, C - c0);
      if (C > chunk || kb == blocks_k * part / parts) {
        local real *d = slab;
        for (int c = c0; c < c0 + channels; c++)
          for (int kd = 0; kd < KD; kd++) {
            const int at_d = d0 * SD + kd * DD - PD, there = at_d >= 0 && at_d < DEPTH && at_d % UD == 0;
            global const real *from = x + (((size_t)n * G + g) * C + c) * ID * IH * IW + (there ? at_d / UD * IH * IW : 0);
            for (int ph = 0; ph < phases_h; ph++) for (int pw = 0; pw < phases_w; pw++)
              for (int r = 0; r < high; r++, d += pitch) {
                const int at_h = (h0 + r) * SH + ph - PH;
                if (there && at_h >= 0 && at_h < HEIGHT && at_h % UH == 0)
                  copy_columns(d, from + at_h / UH * IW, pitch, w0 * SW + pw - PW, SW, UW, IW);
                else for (int z = 0; z < pitch; z++) d[z] = 0;
              }
          }
      }
      global const real *packed = w + (((size_t)g * blocks_k + kb) * C + c0) * TAPS * KR;
      for (int at = 0; at < positions; at += NR)
        for (EACH_RUN(c1, channels, LONGEST / TAPS)) for (int t = 0; t < TAPS; t += LONGEST)
          conv_tile(slab + at + c1 * stride, tap + t, min(TAPS - t, LONGEST), IN_RUN(c1, channels, LONGEST / TAPS), stride,
                    packed + ((size_t)c1 * TAPS + t) * KR, o + at, c0 + c1 + t > 0);
    }
    for (int r = 0; r < min(KR, K - k0); r++) {
      const size_t to = ((((size_t)n * G + g) * K + k0 + r) * OD + d0) * OH * OW + h0 * OW + w0;
      const real by = FACTOR_OF(g * K + k0 + r), b = BIAS_OF(g * K + k0 + r);
      for (int h = 0; h < rows; h++)
        for (int c = 0; c < columns; c += VW) {
          const size_t i = to + h * OW + c;
          store_n(epilogue(VLOAD(0, o + r * OUT + h * pitch + c), by, b, saved + i, saved + i, y + i, columns - c, pair), y + i, columns - c);
        }
    }
  }
}
#endif

#ifdef COLUMNS
// ---- the same, vectors over output channels -----------------------------------------------------------------------------
#define NR (NV * VW)
INLINE int down(int a, int b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }  // a / b, rounded down

// o: MR positions, `apart` values from one to the next, of NR channels = or += the sum over input channels and taps
APART void conv_tile(local const real *slab, local const int *tap, local const int *which, int taps, int all, int channels,
                     int stride, global const real *w, local real *o, int apart, int more) {
  T acc[MR][NV];
  UNROLL for (int r = 0; r < MR; r++) UNROLL for (int v = 0; v < NV; v++) acc[r][v] = (T)(0);
  for (int c = 0; c < channels; c++, slab += stride, w += all * NR)
    for (int t = 0; t < taps; t++) {
      local const real *x = slab + tap[t];
      global const real *b = w + which[t];
      T bv[NV];
      UNROLL for (int v = 0; v < NV; v++) bv[v] = VLOAD(v, b);
      UNROLL for (int r = 0; r < MR; r++) {
        const T a = (T)(x[r * STEP]);
        UNROLL for (int v = 0; v < NV; v++) acc[r][v] += a * bv[v];
      }
    }
  if (more) UNROLL for (int r = 0; r < MR; r++) UNROLL for (int v = 0; v < NV; v++) acc[r][v] += VLOAD(v, o + r * apart);
  UNROLL for (int r = 0; r < MR; r++) UNROLL for (int v = 0; v < NV; v++) VSTORE(acc[r][v], v, o + r * apart);
}

// rb: rows of a block, a multiple of UH; parts: in how many the strips of output channels are split; chunk: channels copied at once
kernel GROUP_SIZE void conv_columns(int16 p, int16 q, int N, global const real *x, global const real *w, global const real *factor,
                                    global const real *bias, global real *y, global real *saved, global const real2 *scale, global const int *at) {
  UNPACK
  const int rb = q.s9, parts = q.sb, chunk = q.sc, column = q.sd;
  const int blocks_h = (OH + rb - 1) / rb, strips = (K + NR - 1) / NR;
  local real slab[SLAB] __attribute__((aligned(64)));
  local real o[NR * OUT] __attribute__((aligned(64)));
  local real turned[NR * OUT + VW] __attribute__((aligned(64)));
  local int tap[MOST_TAPS], which[MOST_TAPS], at_row[MOST_TAPS];
  int item = get_global_id(0);
  const int part = item % parts; item /= parts;
  const int h0 = item % blocks_h * rb; item /= blocks_h;
  const int d0 = item % OD; item /= OD;
  const int g = item % G, n = item / G;
  if (n >= N) return;
  const int rows = min(rb, OH - h0);
  // what is copied of each plane: from row `top` and column `left` on, `high` x `pitch`
  const int top = h0 / UH * SH + down(-PH, UH), left = down(-PW, UW);
  const int high = ((rows - 1) / UH) * SH + down(UH - 1 + (KH - 1) * DH - PH, UH) - down(-PH, UH) + 1;
  const int pitch = ((OW - 1) / UW) * SW + down(UW - 1 + (KW - 1) * DW - PW, UW) - left + 1;
  const int plane = high * pitch, stride = KD * plane;
  const real2 pair = PAIR;
  for (int strip = strips * part / parts; strip < strips * (part + 1) / parts; strip++) {
    const int channels_out = min(NR, K - strip * NR), positions = rows * OW;
    for (int c0 = 0; c0 < C; c0 += chunk) {
      const int channels = min(chunk, C - c0);
      if (C > chunk || strip == strips * part / parts) {
        local real *d = slab;
        for (int c = c0; c < c0 + channels; c++)
          for (int kd = 0; kd < KD; kd++) {
            const int at_d = d0 * SD + kd * DD - PD, there = at_d >= 0 && at_d < DEPTH && at_d % UD == 0;
            global const real *from = x + (((size_t)n * G + g) * C + c) * ID * IH * IW + (there ? at_d / UD * IH * IW : 0);
            for (int r = 0; r < high; r++, d += pitch) {
              const int at_h = top + r;
              if (there && at_h >= 0 && at_h < IH) copy_columns(d, from + at_h * IW, pitch, left, 1, 1, IW);
              else for (int z = 0; z < pitch; z++) d[z] = 0;
            }
          }
      }
      global const real *packed = w + (((size_t)g * strips + strip) * C + c0) * TAPS * NR;
      for (int a = 0; a < min(UH, rows); a++) for (int b = 0; b < min(UW, OW); b++) {  // phases of outputs: each has its taps
        int taps = 0;
        for (int kd = 0; kd < KD; kd++) for (int i = 0; i < KH; i++) for (int j = 0; j < KW; j++) {
          const int row = a + i * DH - PH, col = b + j * DW - PW;
          if ((row - down(row, UH) * UH) || (col - down(col, UW) * UW)) continue;
          tap[taps] = (kd * high + down(row, UH) - down(-PH, UH)) * pitch + down(col, UW) - left;
          at_row[taps] = down(row, UH);
          which[taps++] = ((kd * KH + i) * KW + j) * NR;
        }
        const int wide = (OW - b + UW - 1) / UW;
        for (int h = a, r = 0; h < rows; h += UH, r++) for (int c = 0, t0 = 0, t1 = taps; c < wide; c += MR) {
          if (KD == 1 && c == 0) {  // rows of taps that lie in the padding are left out
            const int row = (h0 / UH + r) * SH;
            while (t0 < t1 && row + at_row[t0] < 0) t0++;
            while (t1 > t0 && row + at_row[t1 - 1] >= IH) t1--;
          }
          const int first = min(c, max(0, wide - MR));  // the last tile lies within the row, if that is wide enough
          local real *to = o + (h * OW + b + first * UW) * NR;
          if (c0 > 0 && first < c)  // some of its outputs have their sums already: they go aside
            for (int z = first; z < c; z++) for (int v = 0; v < NV; v++) VSTORE(VLOAD(v, to + (z - first) * UW * NR), (z - first) * NV + v, turned);
          for (EACH_RUN(c1, channels, LONGEST / TAPS)) for (int t = t0; t == t0 || t < t1; t += LONGEST)  // once without taps, too
            conv_tile(slab + c1 * stride + r * SH * pitch + first * SW, tap + t, which + t, min(t1 - t, LONGEST), TAPS,
                      IN_RUN(c1, channels, LONGEST / TAPS), stride, packed + (size_t)c1 * TAPS * NR, to, UW * NR, c0 + c1 + t - t0 > 0);
          if (c0 > 0 && first < c)
            for (int z = first; z < c; z++) for (int v = 0; v < NV; v++) VSTORE(VLOAD((z - first) * NV + v, turned), v, to + (z - first) * UW * NR);
        }
      }
    }
    // o (positions, NR) becomes turned (NR, positions), 4 x 4 at a time
    const int across = (positions + 3) / 4 * 4;
    for (int i = 0; i < positions; i += 4) for (int k = 0; k < channels_out; k += 4) {
      const CAT(REAL, 4) t0 = vload4(0, o + (i + 0) * NR + k), t1 = vload4(0, o + (i + 1) * NR + k);
      const CAT(REAL, 4) t2 = vload4(0, o + (i + 2) * NR + k), t3 = vload4(0, o + (i + 3) * NR + k);
      local real *to = turned + k * across + i;
      vstore4((CAT(REAL, 4))(t0.s0, t1.s0, t2.s0, t3.s0), 0, to);
      vstore4((CAT(REAL, 4))(t0.s1, t1.s1, t2.s1, t3.s1), 0, to + across);
      vstore4((CAT(REAL, 4))(t0.s2, t1.s2, t2.s2, t3.s2), 0, to + 2 * across);
      vstore4((CAT(REAL, 4))(t0.s3, t1.s3, t2.s3, t3.s3), 0, to + 3 * across);
    }
    for (int k = 0; k < channels_out; k++) {
      const int kk = g * K + strip * NR + k;
      const size_t to = (((size_t)n * G * K + kk) * OD + d0) * OH * OW + h0 * OW;
      const real by = FACTOR_OF(kk), shift = BIAS_OF(kk);
      for (int c = 0; c < positions; c += VW) {
        const size_t i = to + c;
        store_n(epilogue(VLOAD(0, turned + k * across + c), by, shift, saved + i, saved + i, y + i, positions - c, pair), y + i, positions - c);
      }
    }
  }
}
#endif

#ifdef SCATTER
// ---- the same, from inputs to outputs -----------------------------------------------------------------------------------
#define NR (PV * VW)

// o (KR, plane) += the sum over channels of KR weights times NR inputs
APART void conv_tile(local const real *x, int channels, int stride, global const real *w, local real *o, int plane) {
  T acc[KR][PV];
  UNROLL for (int r = 0; r < KR; r++) UNROLL for (int v = 0; v < PV; v++) acc[r][v] = (T)(0);
  for (int c = 0; c < channels; c++, x += stride, w += KR) {
    T b[PV];
    UNROLL for (int v = 0; v < PV; v++) b[v] = VLOAD(v, x);
    UNROLL for (int r = 0; r < KR; r++) {
      const T a = (T)(w[r]);
      UNROLL for (int v = 0; v < PV; v++) acc[r][v] += a * b[v];
    }
  }
  UNROLL for (int r = 0; r < KR; r++) UNROLL for (int v = 0; v < PV; v++) VSTORE(VLOAD(v, o + r * plane) + acc[r][v], v, o + r * plane);
}

// each: blocks of KR output channels that are kept at once; parts: in how many all of them are split; chunk as above.
// Planes of outputs are kept with all that taps reach, so that rows are as far apart as those of x, which has zeros between.
kernel GROUP_SIZE void conv_scatter(int16 p, int16 q, int N, global const real *x, global const real *w, global const real *factor,
                                    global const real *bias, global real *y, global real *saved, global const real2 *scale, global const int *at) {
  UNPACK
  const int each = q.s9, parts = q.sb, chunk = q.sc, column = q.sd, blocks = (K + KR - 1) / KR;
  local real slab[SLAB] __attribute__((aligned(64)));
  local real o[OUT] __attribute__((aligned(64)));
  int item = get_global_id(0);
  const int part = item % parts; item /= parts;
  const int d0 = item % OD; item /= OD;
  const int g = item % G, n = item / G;
  if (n >= N) return;
  const int pitch = IW + (KW - 1) * DW, positions = (IH - 1) * pitch + IW, stride = (positions + NR - 1) / NR * NR;
  const int plane = (KH - 1) * DH * pitch + (KW - 1) * DW + stride;
  const int b_first = blocks * part / parts, b_last = blocks * (part + 1) / parts;
  const real2 pair = PAIR;
  for (int b0 = b_first; b0 < b_last; b0 += each) {
    const int b1 = min(b0 + each, b_last);
    for (int z = 0; z < (b1 - b0) * KR * plane; z += VW) VSTORE((T)(0), 0, o + z);
    for (int c0 = 0; c0 < C; c0 += chunk) {
      const int channels = min(chunk, C - c0);
      if (C > chunk || b0 == b_first)
        for (int c = 0; c < channels; c++) {
          local real *d = slab + c * stride;
          global const real *from = x + ((((size_t)n * G + g) * C + c0 + c) * ID + d0) * IH * IW;
          for (int h = 0; h < IH; h++) copy_columns(d + h * pitch, from + h * IW, h < IH - 1 ? pitch : IW, 0, 1, 1, IW);
          for (int z = positions; z < stride; z++) d[z] = 0;
        }
      for (int b = b0; b < b1; b++) {
        global const real *packed = w + (((size_t)g * blocks + b) * TAPS * C + c0) * KR;
        for (int i = 0; i < KH; i++) for (int j = 0; j < KW; j++, packed += (size_t)C * KR) {
          local real *to = o + (b - b0) * KR * plane + (KH - 1 - i) * DH * pitch + (KW - 1 - j) * DW;
          for (int z = 0; z < positions; z += NR) for (EACH_RUN(c1, channels, LONGEST))
            conv_tile(slab + z + c1 * stride, IN_RUN(c1, channels, LONGEST), stride, packed + c1 * KR, to + z, plane);
        }
      }
    }
    for (int k = b0 * KR; k < min(K, b1 * KR); k++) {
      const size_t to = ((((size_t)n * G + g) * K + k) * OD + d0) * OH * OW;
      const real by = FACTOR_OF(g * K + k), b = BIAS_OF(g * K + k);
      local const real *sums = o + (k - b0 * KR) * plane + ((KH - 1) * DH - PH) * pitch + (KW - 1) * DW - PW;
      for (int h = 0; h < OH; h++)
        for (int c = 0; c < OW; c += VW) {
          const size_t i = to + h * OW + c;
          store_n(epilogue(VLOAD(0, sums + h * pitch + c), by, b, saved + i, saved + i, y + i, OW - c, pair), y + i, OW - c);
        }
    }
  }
}
#endif

#ifdef PACK
// d[g][block][c][tap][r] = w[g K + block KR + r][c][tap], zeros for r behind K; FLIP: c and k change places, and taps turn over;
// TAPS_FIRST: d[g][block][tap][c][r]
kernel void conv_pack(int G, int C, int K, int taps, global const real *w, global real *d) {
  const int blocks = (K + KR - 1) / KR, item = get_global_id(0), c = item % C, block = item / C % blocks, g = item / C / blocks;
  if (g >= G) return;
#ifdef TAPS_FIRST
  const int apart = C * KR;
  d += ((size_t)item / C * C * taps + c) * KR;
#else
  const int apart = KR;
  d += (size_t)item * taps * KR;
#endif
#ifdef FLIP
#define NEXT taps            // from k to k + 1
#define FROM_TAP(t) (taps - 1 - (t))
  global const real *from = w + (((size_t)g * C + c) * K + block * KR) * taps;
#else
#define NEXT ((size_t)C * taps)
#define FROM_TAP(t) (t)
  global const real *from = w + (((size_t)g * K + block * KR) * C + c) * taps;
#endif
  const int n = min(KR, K - block * KR);
  if (n == KR) for (int t = 0; t < taps; t++) UNROLL for (int r = 0; r < KR; r++) d[(size_t)t * apart + r] = from[r * NEXT + FROM_TAP(t)];
  else for (int t = 0; t < taps; t++) for (int r = 0; r < KR; r++) d[(size_t)t * apart + r] = r < n ? from[r * NEXT + FROM_TAP(t)] : 0;
}
#endif

#if defined(WEIGHTS) && defined(VW)
// ---- gradients by weights -----------------------------------------------------------------------------------------------
// What both kernels do with an item: which images, which channels c, and where its part of `partial` is.
#define ITEM                                                                                                              \
  const int rb = q.s9, cb = q.sa, parts = q.sb, chunk = q.sc, splits = q.sd;                                              \
  int item = get_global_id(0);                                                                                            \
  const int split = item % splits; item /= splits;                                                                        \
  const int g = item % G, part = item / G;                                                                                \
  if (part >= parts) return;                                                                                              \
  const int n0 = (long)N * part / parts, n1 = (long)N * (part + 1) / parts;                                               \
  const int c_first = (long)C * split / splits, c_last = (long)C * (split + 1) / splits;
#define EACH_BLOCK                                                                                                        \
  for (int n = n0; n < n1; n++) for (int d0 = 0; d0 < OD; d0++)                                                           \
    for (int h0 = 0; h0 < OH; h0 += rb) for (int w0 = 0; w0 < OW; w0 += cb)

#ifdef LANES
// Positions along vectors, as in conv_rows; dy is copied with zeros between its rows. partial: [part][g][k][c][tap], then [part][g][k]
INLINE real lanes(T x) {
  real t[VW], s = 0;
  VSTORE(x, 0, t);
  UNROLL for (int l = 0; l < VW; l++) s += t[l];
  return s;
}
kernel GROUP_SIZE void conv_lanes(int16 p, int16 q, int N, global const real *x, global const real *dy, global real *partial) {
  UNPACK
  ITEM
  local real slab[SLAB] __attribute__((aligned(64)));
  local real grad[OUT] __attribute__((aligned(64)));
  local int tap[MOST_TAPS];
  const int phases_h = min(SH, (KH - 1) * DH + 1), phases_w = min(SW, (KW - 1) * DW + 1);
  global real *sums = partial + (size_t)parts * G * K * C * TAPS + ((size_t)part * G + g) * K;
  partial += ((size_t)part * G + g) * K * C * TAPS;
  for (int k = 0; k < K; k++) {
    for (int e = c_first * TAPS; e < c_last * TAPS; e++) partial[k * C * TAPS + e] = 0;
    if (split == 0) sums[k] = 0;
  }
  EACH_BLOCK {
    const int rows = min(rb, OH - h0), columns = min(cb, OW - w0);
    const int high = rows + (KH - 1) * DH / SH, pitch = columns + (KW - 1) * DW / SW, plane = high * pitch;
    const int positions = (rows - 1) * pitch + columns, vectors = (positions + VW - 1) / VW;
    for (int kd = 0, t = 0; kd < KD; kd++) for (int i = 0; i < KH; i++) for (int j = 0; j < KW; j++, t++)
      tap[t] = ((kd * phases_h + i * DH % SH) * phases_w + j * DW % SW) * plane + i * DH / SH * pitch + j * DW / SW;
    for (int c = c_first; c < c_last; c++) {
      local real *d = slab;
      for (int kd = 0; kd < KD; kd++) {
        const int at_d = d0 * SD + kd * DD - PD, there = at_d >= 0 && at_d < ID;
        global const real *from = x + (((size_t)n * G + g) * C + c) * ID * IH * IW + (there ? at_d * IH * IW : 0);
        for (int ph = 0; ph < phases_h; ph++) for (int pw = 0; pw < phases_w; pw++)
          for (int r = 0; r < high; r++, d += pitch) {
            const int at_h = (h0 + r) * SH + ph - PH;
            if (there && at_h >= 0 && at_h < IH) copy_columns(d, from + at_h * IW, pitch, w0 * SW + pw - PW, SW, 1, IW);
            else for (int z = 0; z < pitch; z++) d[z] = 0;
          }
      }
      for (int z = 0; z < VW; z++) d[z] = 0;  // 0 times what lies behind has to be 0
      for (int k = 0; k < K; k++) {
        for (int r = 0; r < rows; r++) {
          copy_columns(grad + r * pitch, dy + ((((size_t)n * G + g) * K + k) * OD + d0) * OH * OW + (h0 + r) * OW + w0, pitch, 0, 1, 1, columns);
        }
        for (int z = positions; z < vectors * VW; z++) grad[z] = 0;
        for (int t0 = 0; t0 < TAPS; t0 += MR) {
          T acc[MR], total = (T)(0);
          UNROLL for (int r = 0; r < MR; r++) acc[r] = (T)(0);
          for (int v = 0; v < vectors; v++) {
            const T a = VLOAD(v, grad);
            total += a;
            UNROLL for (int r = 0; r < MR; r++) acc[r] += a * VLOAD(v, slab + tap[min(t0 + r, TAPS - 1)]);
          }
          global real *to = partial + ((size_t)k * C + c) * TAPS + t0;
          UNROLL for (int r = 0; r < MR; r++) if (t0 + r < TAPS) to[r] += lanes(acc[r]);
          if (c == 0 && t0 == 0) sums[k] += lanes(total);
        }
      }
    }
  }
}
#else
// partial: [part][g][e][KP], e = (channel, tap) or, behind them, the sum of dy; KP: K up to whole strips of NR. RUN taps of a
// row, KW of them or one, share a pointer, DX inputs from one to the next: there are fewer pointers than accumulators.
#define NR (NV * VW)
#define RUNS (MR / RUN)
kernel GROUP_SIZE void conv_weights(int16 p, int16 q, int N, global const real *x, global const real *dy, global real *partial) {
  UNPACK
  ITEM
  local real slab[SLAB] __attribute__((aligned(64)));
  local real turned[OUT] __attribute__((aligned(64)));
  local int offset[MOST_TAPS];
  const int strips = (K + NR - 1) / NR, KP = strips * NR, entries = C * TAPS;
  partial += ((size_t)part * G + g) * (entries + 1) * KP;
  for (int e = c_first * TAPS; e < c_last * TAPS; e++) for (int k = 0; k < KP; k += VW) VSTORE((T)(0), 0, partial + (size_t)e * KP + k);
  if (split == 0) for (int k = 0; k < KP; k += VW) VSTORE((T)(0), 0, partial + (size_t)entries * KP + k);
  EACH_BLOCK {
    const int rows = min(rb, OH - h0), columns = min(cb, OW - w0), positions = rows * columns;
    const int high = (rows - 1) * SH + (KH - 1) * DH + 1, pitch = (columns - 1) * SW + (KW - 1) * DW + 1;
    for (int strip = 0; strip < strips; strip++)
      for (int r = 0; r < (columns == OW ? 1 : rows); r++) {
        const int run = columns == OW ? positions : columns;
        copy_turned(turned + (strip * positions + r * columns) * NR, NR,
                    dy + ((((size_t)n * G + g) * K + strip * NR) * OD + d0) * OH * OW + (h0 + r) * OW + w0, (size_t)OD * OH * OW,
                    min(NR, K - strip * NR), run);
      }
    if (split == 0)
      for (int k = 0; k < KP; k += VW) {
        T sums[4] = {(T)(0), (T)(0), (T)(0), (T)(0)};  // four, or each addition would wait for the one before
        local const real *b = turned + k / NR * positions * NR + k % NR;
        int i = 0;
        for (; i < positions - 3; i += 4, b += 4 * NR) UNROLL for (int z = 0; z < 4; z++) sums[z] += VLOAD(0, b + z * NR);
        for (; i < positions; i++, b += NR) sums[0] += VLOAD(0, b);
        global real *to = partial + (size_t)entries * KP + k;
        VSTORE(VLOAD(0, to) + ((sums[0] + sums[1]) + (sums[2] + sums[3])), 0, to);
      }
    for (int kd = 0, t = 0; kd < KD; kd++) for (int i = 0; i < KH; i++) for (int j = 0; j < KW; j++, t++)
      offset[t] = (kd * high + i * DH) * pitch + j * DW;
    for (int c0 = c_first; c0 < c_last; c0 += chunk) {
      const int channels = min(chunk, c_last - c0), mine = channels * (TAPS / RUN);
      local real *d = slab;
      for (int c = c0; c < c0 + channels; c++)
        for (int kd = 0; kd < KD; kd++) {
          const int at_d = d0 * SD + kd * DD - PD, there = at_d >= 0 && at_d < ID;
          global const real *from = x + (((size_t)n * G + g) * C + c) * ID * IH * IW + (there ? at_d * IH * IW : 0);
          for (int r = 0; r < high; r++, d += pitch) {
            const int at_h = h0 * SH + r - PH;
            if (there && at_h >= 0 && at_h < IH) copy_columns(d, from + at_h * IW, pitch, w0 * SW - PW, 1, 1, IW);
            else for (int z = 0; z < pitch; z++) d[z] = 0;
          }
        }
      for (int e0 = 0; e0 < mine; e0 += RUNS) {
        local const real *a[RUNS];
        UNROLL for (int r = 0; r < RUNS; r++) {
          const int e = min(e0 + r, mine - 1) * RUN;
          a[r] = slab + e / TAPS * KD * high * pitch + offset[e % TAPS];
        }
        for (int strip = 0; strip < strips; strip++) {
          local const real *b = turned + strip * positions * NR;
          T acc[MR][NV];
          UNROLL for (int r = 0; r < MR; r++) UNROLL for (int v = 0; v < NV; v++) acc[r][v] = (T)(0);
          for (int h = 0; h < rows; h++)
            for (int i = h * SH * pitch, last = i + columns * SW; i < last; i += SW, b += NR) {
              T bv[NV];
              UNROLL for (int v = 0; v < NV; v++) bv[v] = VLOAD(v, b);
              UNROLL for (int r = 0; r < MR; r++) {
                const T s = (T)(a[r / RUN][i + r % RUN * DX]);
                UNROLL for (int v = 0; v < NV; v++) acc[r][v] += s * bv[v];
              }
            }
          global real *to = partial + ((size_t)c0 * TAPS + e0 * RUN) * KP + strip * NR;
          UNROLL for (int r = 0; r < MR; r++) if (e0 + r / RUN < mine)
            UNROLL for (int v = 0; v < NV; v++) VSTORE(VLOAD(v, to + (size_t)r * KP) + acc[r][v], v, to + (size_t)r * KP);
        }
      }
    }
  }
}
#endif
#endif

#ifdef SUM
// dw and db from the parts, each alpha * sum + beta * itself; `for_w`, `for_b`: the columns of their pairs, -1 without a gradient.
// A work-item does BLOCK entries of all K: parts are read along k, gradients written along entries.
#define BLOCK 16
kernel void conv_sum(int G, int K, int entries, int KP, int parts, int for_w, int for_b, global const real *partial,
                     global real *dw, global real *db, global const real2 *scale_w, global const int *at_w,
                     global const real2 *scale_b, global const int *at_b) {
  const int blocks = (entries + BLOCK) / BLOCK, item = get_global_id(0), g = item / blocks, e0 = item % blocks * BLOCK;
  if (g >= G) return;
#ifdef LANES
  const size_t all = (size_t)parts * G * K * entries;
  for (int k = 0; k < K; k++) for (int e = e0; e < min(entries + 1, e0 + BLOCK); e++) {
    const int last = e == entries;
    TOTAL(real, sum);
    for (int part = 0; part < parts; part++) {
      const size_t one = ((size_t)part * G + g) * K + k;
      ADD_TO(real, sum, last ? partial[all + one] : partial[one * entries + e])
    }
    const real sums[1] = {WHOLE(sum)};
#define SUMS(e, k) sums[0]
#else
  partial += (size_t)g * (entries + 1) * KP;
  for (int k0 = 0; k0 < K; k0 += 16) {
  real sums[BLOCK][16];
  for (int e = e0; e < min(entries + 1, e0 + BLOCK); e++)
#ifdef VW              // KP is a multiple of it
    for (int k = 0; k < 16; k += VW) if (k0 + k < K) {
      TOTAL(T, sum);
      for (int part = 0; part < parts; part++) ADD_TO(T, sum, VLOAD(0, partial + ((size_t)part * G * (entries + 1) + e) * KP + k0 + k))
      VSTORE(WHOLE(sum), 0, sums[e - e0] + k);
    }
#else
    for (int k = 0; k < min(16, K - k0); k++) {
      TOTAL(real, sum);
      for (int part = 0; part < parts; part++) ADD_TO(real, sum, partial[((size_t)part * G * (entries + 1) + e) * KP + k0 + k])
      sums[e - e0][k] = WHOLE(sum);
    }
#endif
#ifdef VW
  if (for_w >= 0 && e0 + BLOCK <= entries) {  // a whole block: it is turned, and leaves in vectors
    const real2 pair = SCALE(scale_w, at_w, for_w);
    for (int k = k0; k < min(K, k0 + 16); k++) {
      real row[BLOCK] __attribute__((aligned(64)));
      UNROLL for (int e = 0; e < BLOCK; e++) row[e] = sums[e][k - k0];
      global real *to = dw + ((size_t)g * K + k) * entries + e0;
      UNROLL for (int e = 0; e < BLOCK; e += VW) {
        T sum = pair.x * VLOAD(0, row + e);
        if (pair.y != 0) sum += pair.y * VLOAD(0, to + e);
        VSTORE(sum, 0, to + e);
      }
    }
    continue;
  }
#endif
#define SUMS(e, k) sums[(e) - e0][(k) - k0]
  for (int k = k0; k < min(K, k0 + 16); k++) for (int e = e0; e < min(entries + 1, e0 + BLOCK); e++) {
    const int last = e == entries;
#endif
    if (last ? for_b < 0 : for_w < 0) continue;
    global real *to = last ? db + g * K + k : dw + ((size_t)g * K + k) * entries + e;
    const real2 pair = last ? SCALE(scale_b, at_b, for_b) : SCALE(scale_w, at_w, for_w);
    *to = pair.y == 0 ? pair.x * SUMS(e, k) : pair.x * SUMS(e, k) + pair.y * *to;
  }
#ifndef LANES
  }
#endif
}
#endif

#ifdef LOCAL
// ---- GPUs ---------------------------------------------------------------------------------------------------------------
// A (M, depth) times B (depth, columns) in tiles of TILE x TILE by groups of SIDE x SIDE work-items, EACH x EACH a work-item. SIDE
// is 16, or as small a power of 2 as the device needs it.
//   forward   A = weights (K, C TAPS), B = inputs (C TAPS, N positions), gathered
//   WEIGHTS   A = dy (K, N positions), B = inputs (N positions, C TAPS and a column of ones), gathered; `depth` a part
#define EACH 4
#define TILE (SIDE * EACH)
#define KC 16
#define FETCH (TILE * KC / (SIDE * SIDE))

// The input that tap e = (c, kd, kh, kw) of output `at` = (n, d, h, w) sees, 0 outside
INLINE real gather(int16 p, int16 q, global const real *x, int g, int at, int e) {
  UNPACK
  const int w = at % OW, h = at / OW % OH, d = at / OW / OH % OD, n = at / OW / OH / OD;
  const int c = e / TAPS, t = e % TAPS, col = w * SW + t % KW * DW - PW, row = h * SH + t / KW % KH * DH - PH, deep = d * SD + t / KW / KH * DD - PD;
  if (col < 0 || row < 0 || deep < 0 || col % UW || row % UH || deep % UD || col / UW >= IW || row / UH >= IH || deep / UD >= ID) return 0;
  return x[((((size_t)n * G + g) * C + c) * ID + deep / UD) * IH * IW + row / UH * IW + col / UW];
}

kernel __attribute__((reqd_work_group_size(SIDE * SIDE, 1, 1)))
void conv_local(int16 p, int16 q, int N, global const real *x, global const real *w, global const real *factor, global const real *bias, global real *y,
                global real *saved, global const real2 *scale, global const int *at) {
  UNPACK
  const int column = q.sd, depth = q.se, P = OD * OH * OW, me = get_local_id(0), tx = me % SIDE, ty = me / SIDE;
#ifdef WEIGHTS
  const int columns = C * TAPS + 1, all = N * P;
#else
  const int columns = N * P, all = C * TAPS;
#endif
  const int across = (columns + TILE - 1) / TILE, high = (K + TILE - 1) / TILE;
  int item = get_group_id(0);
  const int j0 = item % across * TILE; item /= across;
  const int i0 = item % high * TILE; item /= high;
  const int g = item % G, part = item / G, begin = part * depth, end = min(all, begin + depth);
  local real a[KC][TILE + 1], b[KC][TILE + 1];
  real acc[EACH][EACH], total[EACH][EACH];                // of up to LONGEST products, and of those before (long sums: common.cl)
  UNROLL for (int r = 0; r < EACH; r++) UNROLL for (int v = 0; v < EACH; v++) acc[r][v] = total[r][v] = 0;
  for (int k0 = begin; k0 < end; k0 += KC) {
    if ((k0 - begin) % LONGEST == 0)
      UNROLL for (int r = 0; r < EACH; r++) UNROLL for (int v = 0; v < EACH; v++) { total[r][v] += acc[r][v]; acc[r][v] = 0; }
    UNROLL for (int f = 0; f < FETCH; f++) {
      const int z = f * SIDE * SIDE + me;
      {
        const int i = i0 + z / KC, e = k0 + z % KC;
        real value = 0;
        if (i < K && e < end) {
#ifdef WEIGHTS
          value = w[(((size_t)(e / P) * G + g) * K + i) * P + e % P];
#elif defined(FLIP)
          value = w[(((size_t)g * C + e / TAPS) * K + i) * TAPS + TAPS - 1 - e % TAPS];
#else
          value = w[((size_t)g * K + i) * C * TAPS + e];
#endif
        }
        a[z % KC][z / KC] = value;
      }
#ifdef WEIGHTS
      const int j = j0 + z / KC, e = k0 + z % KC;
      b[z % KC][z / KC] = e >= end || j >= columns ? 0 : j == columns - 1 ? 1 : gather(p, q, x, g, e, j);
#else
      const int j = j0 + z % TILE, e = k0 + z / TILE;
      b[z / TILE][z % TILE] = e >= end || j >= columns ? 0 : gather(p, q, x, g, j, e);
#endif
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    UNROLL for (int k = 0; k < KC; k++) {
      real bv[EACH];
      UNROLL for (int v = 0; v < EACH; v++) bv[v] = b[k][v * SIDE + tx];
      UNROLL for (int r = 0; r < EACH; r++) UNROLL for (int v = 0; v < EACH; v++) acc[r][v] += a[k][r * SIDE + ty] * bv[v];
    }
    barrier(CLK_LOCAL_MEM_FENCE);
  }
  UNROLL for (int r = 0; r < EACH; r++) UNROLL for (int v = 0; v < EACH; v++) {
    const int i = i0 + r * SIDE + ty, j = j0 + v * SIDE + tx;
    const real sum = total[r][v] + acc[r][v];
    if (i < K && j < columns) {
#ifdef WEIGHTS
      y[(((size_t)part * G + g) * columns + j) * K + i] = sum;
#else
      const size_t to = (((size_t)(j / P) * G + g) * K + i) * P + j % P;
      const real by = FACTOR_OF(g * K + i), shift = BIAS_OF(g * K + i);
      y[to] = epilogue(sum, by, shift, saved + to, saved + to, y + to, 1, PAIR);
#endif
    }
  }
}
#endif
