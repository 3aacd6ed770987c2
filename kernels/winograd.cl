// Convolution by 3 x 3 kernels with stride 1 in fewer multiplications: F(M x M, 3 x 3), M 2 or 4, for CPUs.
//
// Of an output of M x M and the A x A inputs that it sees, A = M + 2, y = AT ((G w GT) . (BT x B)) A, where . multiplies
// element by element (Winograd 1980; Lavin and Gray 2016, whose matrices winograd_matrices.cl has). Summed over input channels that is
// A * A products of matrices, of A * A instead of 9 M * M multiplications a channel: 2.25 times fewer, and 4 times.
//
// winograd_weights    u = G w GT, in the order in which the next kernel reads it
// winograd            a work-item owns TILES tiles of one group, which may be in several images: it transposes their inputs, so
//                     that vectors run over channels, transforms them, multiplies, and transforms back into epilogue and y.
// winograd_gradients  the gradient by weights, as the adjoint: dw = GT (sum over tiles of (A dy AT) . (BT x B)) G. A
//                     work-item owns a part of the blocks of tiles, and a part of `partial` for what is inside GT ( ) G.
// winograd_sum        adds the parts up, transforms, and writes into the sinks of w and b.
#include "conv_epilogue.cl"
#include "winograd_matrices.cl"
#define NR (NV * VW)

#ifdef PACK
// u[g][strip][A * A][c][r] of weights g K + strip NR + r; FLIP: c and k change places, and taps are flipped
kernel void winograd_weights(int G, int C, int K, global const real *w, global real *u) {
  const int strips = (K + NR - 1) / NR, item = get_global_id(0), c = item % C, strip = item / C % strips, g = item / C / strips;
  if (g >= G) return;
  u += (size_t)(item / C) * A * A * C * NR + c * NR;
  for (int r = 0; r < NR; r += VW) {
    real taps[9][VW] __attribute__((aligned(64)));
    for (int l = 0; l < VW; l++) {
      const int k = strip * NR + r + l;
#ifdef FLIP
      global const real *from = w + (((size_t)g * C + c) * K + k) * 9;
      for (int t = 0; t < 9; t++) taps[8 - t][l] = k < K ? from[t] : 0;
#else
      global const real *from = w + (((size_t)g * K + k) * C + c) * 9;
      for (int t = 0; t < 9; t++) taps[t][l] = k < K ? from[t] : 0;
#endif
    }
    T t[9], between[3][A], o[A];
    UNROLL for (int i = 0; i < 9; i++) t[i] = VLOAD(0, taps[i]);
    UNROLL for (int j = 0; j < 3; j++) {
      const T column[3] = {t[j], t[3 + j], t[6 + j]};
      GW(between[j], column)
    }
    UNROLL for (int i = 0; i < A; i++) {
      const T row[3] = {between[0][i], between[1][i], between[2][i]};
      GW(o, row)
      UNROLL for (int j = 0; j < A; j++) VSTORE(o[j], 0, u + (size_t)(i * A + j) * C * NR + r);
    }
  }
}
#endif

#if defined(FORWARD) || defined(GRADIENTS)
// what a work-item does for each of its runs: tiles [t, t + run) of its block, which are in one row of image n from tile tw on
#define EACH_RUN                                                                                                          \
  for (int t = 0, run; t < count; t += run) {                                                                             \
    const int tw = (first + t) % TW, th = (first + t) / TW % TH, n = (first + t) / TW / TH;                               \
    run = min(count - t, TW - tw);

// d (rows, columns, VW) = rows from `top` and columns from `left` on of n channels of height x width; 0 outside
APART void turn(local real *d, global const real *x, int n, int height, int width, int top, int left, int rows, int columns) {
  const int begin = clamp(-left, 0, columns), end = clamp(width - left, begin, columns);
  for (int r = 0; r < rows; r++, d += columns * VW) {
    const int there = top + r >= 0 && top + r < height, from = there ? begin : columns;
    for (int c = 0; c < from; c++) VSTORE((T)(0), c, d);
    if (!there) continue;
    copy_transposed(d + begin * VW, VW, x + (top + r) * width + left + begin, (size_t)height * width, n, end - begin);
    for (int c = end; c < columns; c++) VSTORE((T)(0), c, d);
  }
}

// v[A * A], `apart` values from one to the next = BT x B of the A x A inputs at x, rows `pitch` apart, vectors of channels
APART void transform(local const real *x, int pitch, local real *v, int apart) {
  T between[A][A], d[A], o[A];
  UNROLL for (int j = 0; j < A; j++) {
    UNROLL for (int i = 0; i < A; i++) d[i] = VLOAD(j, x + i * pitch);
    BT(o, d)
    UNROLL for (int i = 0; i < A; i++) between[i][j] = o[i];
  }
  UNROLL for (int i = 0; i < A; i++) {
    BT(o, between[i])
    UNROLL for (int j = 0; j < A; j++) VSTORE(o[j], 0, v + (i * A + j) * apart);
  }
}

// v[A * A] (run tiles, `pitch` channels) of the inputs from row `top` and column `left` on
INLINE void put_inputs(local real *v, int pitch, int apart, local real *slab, global const real *x, int channels, int height, int width, int top, int left, int run) {
  const int columns = M * run + 2;
  for (int c = 0; c < channels; c += VW, x += (size_t)VW * height * width) {
    turn(slab, x, min(VW, channels - c), height, width, top, left, A, columns);
    for (int z = 0; z < run; z++) transform(slab + z * M * VW, columns * VW, v + z * pitch + c, apart);
  }
}
#endif

#ifdef FORWARD
// m[M * M] = AT m A of m[A * A], in place
APART void transform_back(local real *m, int apart) {
  T between[M][A], d[A], o[M];
  UNROLL for (int j = 0; j < A; j++) {
    UNROLL for (int i = 0; i < A; i++) d[i] = VLOAD(0, m + (i * A + j) * apart);
    AT(o, d)
    UNROLL for (int i = 0; i < M; i++) between[i][j] = o[i];
  }
  UNROLL for (int i = 0; i < M; i++) {
    AT(o, between[i])
    UNROLL for (int j = 0; j < M; j++) VSTORE(o[j], 0, m + (i * M + j) * apart);
  }
}

// m (MR tiles, NR) = v (MR tiles, C), rows `pitch` apart, times u (C, NR)
APART void multiply(local const real *v, int pitch, global const real *u, int C, local real *m) {
  T acc[MR][NV];
  UNROLL for (int r = 0; r < MR; r++) UNROLL for (int c = 0; c < NV; c++) acc[r][c] = (T)(0);
  for (int k = 0; k < C; k++, u += NR) {
    T b[NV];
    UNROLL for (int c = 0; c < NV; c++) b[c] = VLOAD(c, u);
    UNROLL for (int r = 0; r < MR; r++) {
      const T a = (T)(v[r * pitch + k]);
      UNROLL for (int c = 0; c < NV; c++) acc[r][c] += a * b[c];
    }
  }
  UNROLL for (int r = 0; r < MR; r++) UNROLL for (int c = 0; c < NV; c++) VSTORE(acc[r][c], c, m + r * NR);
}

// parts: in how many the strips of output channels are split
kernel GROUP_SIZE void winograd(int16 p, int16 q, int N, global const real *x, global const real *u, global const real *factor,
                                global const real *bias, global real *y, global real *saved, global const real2 *scale, global const int *at) {
  UNPACK
  const int parts = q.sb, column = q.sd, TW = (OW + M - 1) / M, TH = (OH + M - 1) / M, all = N * TH * TW;
  const int strips = (K + NR - 1) / NR, blocks = (all + TILES - 1) / TILES, CP = (C + VW - 1) / VW * VW, apart = TILES * CP + VW;
  local real v[V_SIZE] __attribute__((aligned(64)));
  local real m[A * A * (TILES * NR + VW)] __attribute__((aligned(64)));
  local real slab[SLAB] __attribute__((aligned(64)));  // inputs, transposed; later outputs, transposed back
  int item = get_global_id(0);
  const int part = item % parts; item /= parts;
  const int g = item / blocks, first = item % blocks * TILES, count = min(TILES, all - first);
  if (g >= G) return;
  const real2 pair = PAIR;
  EACH_RUN
    put_inputs(v + t * CP, CP, apart, slab, x + ((size_t)n * G + g) * C * IH * IW, C, IH, IW, th * M - PH, tw * M - PW, run);
  }
  for (int strip = strips * part / parts; strip < strips * (part + 1) / parts; strip++) {
    const int channels = min(NR, K - strip * NR);
    for (int xi = 0; xi < A * A; xi++)
      for (int t = 0; t < count; t += MR)
        multiply(v + xi * apart + t * CP, CP, u + (((size_t)g * strips + strip) * A * A + xi) * C * NR, C, m + xi * (TILES * NR + VW) + t * NR);
    for (int t = 0; t < count; t++) for (int c = 0; c < NR; c += VW) transform_back(m + t * NR + c, TILES * NR + VW);
    EACH_RUN
      const int wide = (M * run + 3) / 4 * 4, rows = min(M, OH - th * M), columns = min(M * run, OW - tw * M);
      for (int i = 0; i < rows; i++) for (int j = 0; j < wide; j += 4) for (int k = 0; k < channels; k += 4) {
        local const real *from = m + i * M * (TILES * NR + VW) + (t + j / M) * NR + k;
#define OUTPUT(z) vload4(0, from + (z) % M * (TILES * NR + VW) + (z) / M * NR)
        const CAT(REAL, 4) t0 = OUTPUT(0), t1 = OUTPUT(1), t2 = OUTPUT(2), t3 = OUTPUT(3);
        TRANSPOSE_4(t0, t1, t2, t3, slab + (k * M + i) * wide + j, M * wide)
      }
      const int whole = columns == OW && wide == OW, lines = whole ? 1 : rows, length = whole ? rows * OW : columns;
      for (int k = 0; k < channels; k++) {
        const int kk = g * K + strip * NR + k;
        const real by = FACTOR_OF(kk), shift = BIAS_OF(kk);
        for (int i = 0; i < lines; i++) {
          const size_t to = (((size_t)n * G * K + kk) * OH + th * M + i) * OW + tw * M;
          local const real *from = slab + (k * M + i) * wide;
          for (int c = 0; c < length; c += VW)
            store_n(epilogue(VLOAD(0, from + c), by, shift, saved + to + c, saved + to + c, y + to + c, length - c, pair), y + to + c, length - c);
        }
      }
    }
  }
}
#endif

#ifdef GRADIENTS
// d[A * A] = A y AT of the M x M gradients at y, as `transform`; adds their sum to `sum`, and what rounding takes of it to `lost`
APART void transform_gradients(local const real *y, int pitch, local real *d, int apart, local real *sum, local real *lost) {
  T between[A][M], e[M], o[A], part = (T)(0), total = VLOAD(0, sum), total_lost = VLOAD(0, lost);
  UNROLL for (int j = 0; j < M; j++) {
    UNROLL for (int i = 0; i < M; i++) { e[i] = VLOAD(j, y + i * pitch); part += e[i]; }
    AY(o, e)
    UNROLL for (int i = 0; i < A; i++) between[i][j] = o[i];
  }
  ADD_TO(T, total, part)
  VSTORE(total, 0, sum);
  VSTORE(total_lost, 0, lost);
  UNROLL for (int i = 0; i < A; i++) {
    AY(o, between[i])
    UNROLL for (int j = 0; j < A; j++) VSTORE(o[j], 0, d + (i * A + j) * apart);
  }
}

// to (MR, NR), rows KP apart, = or += v (count, MR), rows CP apart, transposed, times d (count, NR), rows KP apart
APART void accumulate(local const real *v, int CP, local const real *d, int KP, int count, global real *to, int more) {
  T acc[MR][NV];
  UNROLL for (int r = 0; r < MR; r++) UNROLL for (int c = 0; c < NV; c++) acc[r][c] = (T)(0);
  for (int t = 0; t < count; t++, v += CP, d += KP) {
    T b[NV];
    UNROLL for (int c = 0; c < NV; c++) b[c] = VLOAD(c, d);
    UNROLL for (int r = 0; r < MR; r++) {
      const T a = (T)(v[r]);
      UNROLL for (int c = 0; c < NV; c++) acc[r][c] += a * b[c];
    }
  }
  if (more) UNROLL for (int r = 0; r < MR; r++) UNROLL for (int c = 0; c < NV; c++) acc[r][c] += VLOAD(c, to + r * KP);
  UNROLL for (int r = 0; r < MR; r++) UNROLL for (int c = 0; c < NV; c++) VSTORE(acc[r][c], c, to + r * KP);
}

// partial (parts, G, A * A, CR, KP), then (parts, G, KP) for the bias; CR and KP are C and K, rounded up to MR and NR
kernel GROUP_SIZE void winograd_gradients(int16 p, int16 q, int N, global const real *x, global const real *dy, global real *partial) {
  UNPACK
  const int parts = q.sb, TW = (OW + M - 1) / M, TH = (OH + M - 1) / M, all = N * TH * TW, blocks = (all + TILES - 1) / TILES;
  const int CP = (C + VW - 1) / VW * VW, KP = (K + NR - 1) / NR * NR, CR = (C + MR - 1) / MR * MR;
  const int v_apart = TILES * CP + VW, d_apart = TILES * KP + VW;
  local real v[V_SIZE] __attribute__((aligned(64)));
  local real d[D_SIZE] __attribute__((aligned(64)));
  local real slab[SLAB] __attribute__((aligned(64)));
  local real sums[K_SIZE] __attribute__((aligned(64))), lost[K_SIZE] __attribute__((aligned(64)));
  const int part = get_global_id(0) % parts, g = get_global_id(0) / parts, begin = (long)blocks * part / parts, end = (long)blocks * (part + 1) / parts;
  if (g >= G) return;
  for (int k = 0; k < KP; k += VW) { VSTORE((T)(0), 0, sums + k); VSTORE((T)(0), 0, lost + k); }
  for (int xi = 0; xi < A * A && K % NR; xi++)  // what is past K is multiplied, too
    for (int t = 0; t < TILES; t++) for (int k = K / VW * VW; k < KP; k += VW) VSTORE((T)(0), 0, d + xi * d_apart + t * KP + k);
  for (int block = begin; block < end; block++) {
    const int first = block * TILES, count = min(TILES, all - first);
    EACH_RUN
      put_inputs(v + t * CP, CP, v_apart, slab, x + ((size_t)n * G + g) * C * IH * IW, C, IH, IW, th * M - PH, tw * M - PW, run);
      for (int k = 0; k < K; k += VW) {
        turn(slab, dy + (((size_t)n * G + g) * K + k) * OH * OW, min(VW, K - k), OH, OW, th * M, tw * M, M, M * run);
        for (int z = 0; z < run; z++) transform_gradients(slab + z * M * VW, M * run * VW, d + (t + z) * KP + k, d_apart, sums + k, lost + k);
      }
    }
    for (int xi = 0; xi < A * A; xi++) {
      global real *to = partial + (((size_t)part * G + g) * A * A + xi) * CR * KP;
      for (int k = 0; k < KP; k += NR) for (int c = 0; c < C; c += MR)
        accumulate(v + xi * v_apart + c, CP, d + xi * d_apart + k, KP, count, to + (size_t)c * KP + k, block > begin);
    }
  }
  global real *to = partial + (size_t)parts * G * A * A * CR * KP + ((size_t)part * G + g) * KP;
  for (int k = 0; k < KP; k += VW) { const T all = VLOAD(0, sums + k), all_lost = VLOAD(0, lost + k); VSTORE(WHOLE(all), 0, to + k); }
}
#endif

#ifdef SUM
// dw and db from the parts, each alpha * sum + beta * itself, as conv_sum does. A work-item has one input channel, the last the bias.
kernel void winograd_sum(int G, int C, int K, int parts, int for_w, int for_b, global const real *partial, global real *dw, global real *db,
                         global const real2 *scale_w, global const int *at_w, global const real2 *scale_b, global const int *at_b) {
  const int c = get_global_id(0) % (C + 1), g = get_global_id(0) / (C + 1), KP = (K + NR - 1) / NR * NR, CR = (C + MR - 1) / MR * MR;
  if (g >= G || (c < C ? for_w : for_b) < 0) return;
  const size_t apart = (size_t)G * A * A * CR * KP;  // from one part to the next
  for (int k0 = 0; k0 < K; k0 += VW) {
    real out[9][VW] __attribute__((aligned(64)));
    if (c == C) {
      TOTAL(T, sum);
      for (int part = 0; part < parts; part++) ADD_TO(T, sum, VLOAD(0, partial + parts * apart + ((size_t)part * G + g) * KP + k0))
      VSTORE(WHOLE(sum), 0, out[0]);
      const real2 pair = SCALE(scale_b, at_b, for_b);
      for (int l = 0; l < min(VW, K - k0); l++) {
        global real *to = db + g * K + k0 + l;
        *to = AXPBY(pair, out[0][l], *to);
      }
      continue;
    }
    T between[3][A], m[A], o[3];
    for (int j = 0; j < A; j++) {
      UNROLL for (int i = 0; i < A; i++) {
        global const real *from = partial + (((size_t)g * A * A + i * A + j) * CR + c) * KP + k0;
        TOTAL(T, sum);
        for (int part = 0; part < parts; part++) ADD_TO(T, sum, VLOAD(0, from + part * apart))
        m[i] = WHOLE(sum);
      }
      GT(o, m)
      UNROLL for (int i = 0; i < 3; i++) between[i][j] = o[i];
    }
    UNROLL for (int i = 0; i < 3; i++) {
      GT(o, between[i])
      UNROLL for (int j = 0; j < 3; j++) VSTORE(o[j], 0, out[i * 3 + j]);
    }
    const real2 pair = SCALE(scale_w, at_w, for_w);
    for (int l = 0; l < min(VW, K - k0); l++) {
      global real *to = dw + (((size_t)g * K + k0 + l) * C + c) * 9;
      for (int t = 0; t < 9; t++) to[t] = AXPBY(pair, out[t][l], to[t]);
    }
  }
}
#endif
