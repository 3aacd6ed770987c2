// Convolution for CPUs with stride 1, from inputs to outputs: for gradients by input of large windows over small images.
//
// A tap of KR output channels times all inputs, summed up over input channels in registers, is added to those outputs where
// the tap puts it. It multiplies no padding.
#include "conv.cl"
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
