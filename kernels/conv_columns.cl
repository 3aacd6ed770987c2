// Convolution for CPUs with vectors over output channels, for narrow images and strides.
//
// As conv_rows, but MR positions of a row times NV vectors of weights. Results are transposed while they leave. With UP,
// outputs of one phase share their taps, and the zeros between inputs are never touched.
#include "conv.cl"
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
  local real transposed[NR * OUT + VW] __attribute__((aligned(64)));
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
          if (KD == 1 && c == 0) {  // rows of taps in the padding are left out
            const int row = (h0 / UH + r) * SH;
            while (t0 < t1 && row + at_row[t0] < 0) t0++;
            while (t1 > t0 && row + at_row[t1 - 1] >= IH) t1--;
          }
          const int first = min(c, max(0, wide - MR));  // the last tile is within the row, if that is wide enough
          local real *to = o + (h * OW + b + first * UW) * NR;
          if (c0 > 0 && first < c)  // some of its outputs have their sums already: they go aside
            for (int z = first; z < c; z++) for (int v = 0; v < NV; v++) VSTORE(VLOAD(v, to + (z - first) * UW * NR), (z - first) * NV + v, transposed);
          for (EACH_RUN(c1, channels, LONGEST / TAPS)) for (int t = t0; t == t0 || t < t1; t += LONGEST)  // once without taps, too
            conv_tile(slab + c1 * stride + r * SH * pitch + first * SW, tap + t, which + t, min(t1 - t, LONGEST), TAPS,
                      IN_RUN(c1, channels, LONGEST / TAPS), stride, packed + (size_t)c1 * TAPS * NR, to, UW * NR, c0 + c1 + t - t0 > 0);
          if (c0 > 0 && first < c)
            for (int z = first; z < c; z++) for (int v = 0; v < NV; v++) VSTORE(VLOAD((z - first) * NV + v, transposed), v, to + (z - first) * UW * NR);
        }
      }
    }
    // o (positions, NR) becomes transposed (NR, positions), 4 x 4 at a time
    const int across = (positions + 3) / 4 * 4;
    for (int i = 0; i < positions; i += 4) for (int k = 0; k < channels_out; k += 4) {
      const CAT(REAL, 4) t0 = vload4(0, o + (i + 0) * NR + k), t1 = vload4(0, o + (i + 1) * NR + k);
      const CAT(REAL, 4) t2 = vload4(0, o + (i + 2) * NR + k), t3 = vload4(0, o + (i + 3) * NR + k);
      TRANSPOSE_4(t0, t1, t2, t3, transposed + k * across + i, across)
    }
    for (int k = 0; k < channels_out; k++) {
      const int kk = g * K + strip * NR + k;
      const size_t to = (((size_t)n * G * K + kk) * OD + d0) * OH * OW + h0 * OW;
      const real by = FACTOR_OF(kk), shift = BIAS_OF(kk);
      for (int c = 0; c < positions; c += VW) {
        const size_t i = to + c;
        store_n(epilogue(VLOAD(0, transposed + k * across + c), by, shift, saved + i, saved + i, y + i, positions - c, pair), y + i, positions - c);
      }
    }
  }
}
