// Convolution and its gradients for GPUs, as a product of matrices (implicit GEMM).
//
// A (M, depth) times B (depth, columns) in tiles of TILE x TILE by groups of SIDE x SIDE work-items, EACH x EACH a work-item. SIDE
// is 16, or as small a power of 2 as the device needs it.
//   forward   A = weights (K, C TAPS), B = inputs (C TAPS, N positions), gathered
//   WEIGHTS   A = dy (K, N positions), B = inputs (N positions, C TAPS and a column of ones), gathered; `depth` a part
#include "conv.cl"
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
