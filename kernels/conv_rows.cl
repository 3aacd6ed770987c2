// Convolution for CPUs, y (N, G K, *out) = epilogue(x (N, G C, *in) * w), with vectors over positions.
//
// A work-item owns a block of output rows of one image, for all output channels. It copies what it needs of x to local memory
// once, padded, rows one after the other, so that the input of tap (i, j) for ALL of the block's positions, seen as one long
// row, is one long row too, shifted by a constant: vectors run over positions, and cross from row to row. Between rows lie
// positions of no output, computed and dropped. Strides make the copy a plane for each phase, so they cost nothing in the
// loops; zeros between inputs (UP, for gradients of strided convolutions and for transposed ones) are put there by the copy
// as well. Per tap: KR weights times PV vectors, in registers.
#include "conv.cl"
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
