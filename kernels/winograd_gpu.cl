// Winograd's F(2 x 2, 3 x 3) on GPUs (winograd.cl says what that is): what goes before and after its A * A products of matrices,
// which gemm.cl takes, all in one launch. A work-item has a tile of a channel, and neighbours have neighbouring tiles.
//
// Tiles of 2 x 2 outputs are counted through all images; a launch does `count` of them from number `first` on. Of each of the A * A
// products the host multiplies, xi its number:
//   outputs             m[xi][g] (K, tiles) = u[xi][g] (C, K), transposed, times v[xi][g] (C, tiles)
//   gradient by weights e[xi][g] (K, C) = d[xi][g] (K, tiles) times v[xi][g] (C, tiles), transposed
//
// winograd_weights    u = G w GT
// winograd_inputs     v = BT x B
// winograd_outputs    y = epilogue(AT m A)
// winograd_from_dy    d = A dy AT
// winograd_to_dw      dw = GT e G into its sink
#define M 2
#include "conv_epilogue.cl"
#include "winograd_matrices.cl"

// A work-item's tile, number `tile` of the launch, is in row th and column tw of the tiles of image n
#define TILE                                                                                                              \
  UNPACK                                                                                                                  \
  const int first = p.sf, count = q.s9, tile = get_global_id(0), channel = get_global_id(1);                              \
  const int TW = (OW + M - 1) / M, TH = (OH + M - 1) / M;                                                                 \
  const int tw = (first + tile) % TW, th = (first + tile) / TW % TH, n = (first + tile) / TW / TH;                        \
  if (tile >= count) return;

#ifdef WEIGHTS
// FLIP: c and k change places, and taps are flipped
kernel void winograd_weights(int G, int C, int K, global const real *w, global real *u) {
  const int k = get_global_id(0), c = get_global_id(1) % C, g = get_global_id(1) / C;
  if (k >= K) return;
#ifdef FLIP
  w += (((size_t)g * C + c) * K + k) * 9;
#define TAP(i, j) w[8 - (i) * 3 - (j)]
#else
  w += (((size_t)g * K + k) * C + c) * 9;
#define TAP(i, j) w[(i) * 3 + (j)]
#endif
  T between[3][A], o[A];
  UNROLL for (int j = 0; j < 3; j++) {
    const T column[3] = {TAP(0, j), TAP(1, j), TAP(2, j)};
    GW(between[j], column)
  }
  UNROLL for (int i = 0; i < A; i++) {
    const T row[3] = {between[0][i], between[1][i], between[2][i]};
    GW(o, row)
    UNROLL for (int j = 0; j < A; j++) u[(((size_t)(i * A + j) * G + g) * C + c) * K + k] = o[j];
  }
}
#endif

#ifdef INPUTS
kernel void winograd_inputs(int16 p, int16 q, global const real *x, global real *v) {
  TILE
  const int top = th * M - PH, left = tw * M - PW;
  x += ((size_t)n * G * C + channel) * IH * IW;
  T between[A][A], d[A], o[A];
  UNROLL for (int j = 0; j < A; j++) {
    UNROLL for (int i = 0; i < A; i++) {  // outside x[0] is read and dropped, which costs less than a branch
      const int inside = (uint)(top + i) < (uint)IH & (uint)(left + j) < (uint)IW;
      const T value = x[inside ? (top + i) * IW + left + j : 0];
      d[i] = inside ? value : 0;
    }
    BT(o, d)
    UNROLL for (int i = 0; i < A; i++) between[i][j] = o[i];
  }
  UNROLL for (int i = 0; i < A; i++) {
    BT(o, between[i])
    UNROLL for (int j = 0; j < A; j++) v[((size_t)(i * A + j) * G * C + channel) * count + tile] = o[j];
  }
}
#endif

#ifdef OUTPUTS
kernel void winograd_outputs(int16 p, int16 q, global const real *m, global const real *factor, global const real *bias, global real *y,
                             global real *saved, global const real2 *scale, global const int *at) {
  TILE
  const int column = q.sd;
  const real by = FACTOR_OF(channel), shift = BIAS_OF(channel);
  T between[M][A], d[A], o[M];
  UNROLL for (int j = 0; j < A; j++) {
    UNROLL for (int i = 0; i < A; i++) d[i] = m[((size_t)(i * A + j) * G * K + channel) * count + tile];
    AT(o, d)
    UNROLL for (int i = 0; i < M; i++) between[i][j] = o[i];
  }
  UNROLL for (int i = 0; i < M; i++) {
    AT(o, between[i])
    UNROLL for (int j = 0; j < M; j++) {
      const size_t to = (((size_t)n * G * K + channel) * OH + th * M + i) * OW + tw * M + j;
      if (th * M + i < OH && tw * M + j < OW) y[to] = epilogue(o[j], by, shift, saved + to, saved + to, y + to, 1, PAIR);
    }
  }
}
#endif

#ifdef FROM_DY
kernel void winograd_from_dy(int16 p, int16 q, global const real *dy, global real *d) {
  TILE
  dy += ((size_t)n * G * K + channel) * OH * OW;
  T between[A][M], e[M], o[A];
  UNROLL for (int j = 0; j < M; j++) {
    UNROLL for (int i = 0; i < M; i++) {
      const int row = th * M + i, column = tw * M + j, inside = row < OH & column < OW;
      const T value = dy[inside ? row * OW + column : 0];
      e[i] = inside ? value : 0;
    }
    AY(o, e)
    UNROLL for (int i = 0; i < A; i++) between[i][j] = o[i];
  }
  UNROLL for (int i = 0; i < A; i++) {
    AY(o, between[i])
    UNROLL for (int j = 0; j < A; j++) d[((size_t)(i * A + j) * G * K + channel) * count + tile] = o[j];
  }
}
#endif

#ifdef TO_DW
kernel void winograd_to_dw(int G, int C, int K, int column, global const real *e, global real *dw, global const real2 *scale, global const int *at) {
  const int c = get_global_id(0), channel = get_global_id(1);  // g K + k
  if (c >= C) return;
  const real2 pair = SCALE(scale, at, column);
  T between[3][A], m[A], o[3];
  UNROLL for (int j = 0; j < A; j++) {
    UNROLL for (int i = 0; i < A; i++) m[i] = e[((size_t)(i * A + j) * G * K + channel) * C + c];
    GT(o, m)
    UNROLL for (int i = 0; i < 3; i++) between[i][j] = o[i];
  }
  dw += ((size_t)channel * C + c) * 9;
  UNROLL for (int i = 0; i < 3; i++) {
    GT(o, between[i])
    UNROLL for (int j = 0; j < 3; j++) dw[i * 3 + j] = AXPBY(pair, o[j], dw[i * 3 + j]);
  }
}
#endif
