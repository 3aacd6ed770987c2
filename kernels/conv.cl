// What the kernels of convolutions share, and two that work for them: conv_pack before and conv_sum after.
//
// Convolution over up to three spatial axes, arrays (N, channels, D, H, W), without im2col in memory. On CPUs conv_rows,
// conv_columns or conv_scatter compute outputs and gradients by input, conv_weights or conv_lanes gradients by weights, each in
// a file of its own; on GPUs conv_local does it all.
//
// conv_pack   the weights in the order in which conv_rows, conv_columns and conv_scatter read them; flipped for gradients by input.
// conv_sum    adds up the parts of a gradient by weights, into the sinks of w and b.
#include "conv_epilogue.cl"
// A sum of products is taken in runs of up to LONGEST of them, of whole channels where those have fewer (long sums: common.cl).
#define LONGEST 1024
#define EACH_RUN(c, channels, most) int c = 0; c < (channels); c += max(1, most)   // for (EACH_RUN(c, channels, most))
#define IN_RUN(c, channels, most) min((channels) - (c), max(1, most))

#ifdef VW
// ---- what CPU kernels copy ----------------------------------------------------------------------------------------------
// d[c] = row[(first + c * step) / up] for c in [0, n), 0 where that is no element of the row. d is written up to VW - 1
// values further: what comes after is written later. Of step and up one is 1.
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

// What the kernels of gradients by weights do with an item: which images, which channels c, and where its part of `partial` is.
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

#ifdef PACK
// d[g][block][c][tap][r] = w[g K + block KR + r][c][tap], zeros for r past K; FLIP: c and k change places, and taps are flipped;
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

#ifdef SUM
// dw and db from the parts, each alpha * sum + beta * itself; `for_w`, `for_b`: the columns of their pairs, -1 without a gradient.
// On CPUs a work-item does BLOCK entries of all K: parts are read along k, gradients written along entries.
#define BLOCK 16
#define SUM_ARGUMENTS int G, int K, int entries, int KP, int parts, int for_w, int for_b, global const real *partial,      \
  global real *dw, global real *db, global const real2 *scale_w, global const int *at_w, global const real2 *scale_b,      \
  global const int *at_b
#define SUM_ITEM                                                                                                          \
  const int blocks = (entries + BLOCK) / BLOCK, item = get_global_id(0), g = item / blocks, e0 = item % blocks * BLOCK;   \
  if (g >= G) return;
// The sum of entry e and channel k goes into its sink; entry number `entries` is the bias.
#define SUM_TO_SINK(e, k, sum)                                                                                            \
  if ((e) == entries ? for_b >= 0 : for_w >= 0) {                                                                         \
    global real *to = (e) == entries ? db + g * K + k : dw + ((size_t)g * K + k) * entries + e;                           \
    const real2 pair = (e) == entries ? SCALE(scale_b, at_b, for_b) : SCALE(scale_w, at_w, for_w);                        \
    *to = AXPBY(pair, sum, *to);                                                                                          \
  }

#ifdef LANES
// of conv_lanes: partial is [part][g][k][entry], then [part][g][k]
kernel void conv_sum(SUM_ARGUMENTS) {
  SUM_ITEM
  const size_t all = (size_t)parts * G * K * entries;
  for (int k = 0; k < K; k++) for (int e = e0; e < min(entries + 1, e0 + BLOCK); e++) {
    TOTAL(real, sum);
    for (int part = 0; part < parts; part++) {
      const size_t one = ((size_t)part * G + g) * K + k;
      ADD_TO(real, sum, e == entries ? partial[all + one] : partial[one * entries + e])
    }
    const real whole = WHOLE(sum);
    SUM_TO_SINK(e, k, whole)
  }
}
#elif defined(VW)
// of conv_weights: partial is [part][g][entry][KP], KP a multiple of VW
kernel void conv_sum(SUM_ARGUMENTS) {
  SUM_ITEM
  partial += (size_t)g * (entries + 1) * KP;
  for (int k0 = 0; k0 < K; k0 += 16) {
    real sums[BLOCK][16];
    for (int e = e0; e < min(entries + 1, e0 + BLOCK); e++)
      for (int k = 0; k < 16; k += VW) if (k0 + k < K) {
        TOTAL(T, sum);
        for (int part = 0; part < parts; part++) ADD_TO(T, sum, VLOAD(0, partial + ((size_t)part * G * (entries + 1) + e) * KP + k0 + k))
        VSTORE(WHOLE(sum), 0, sums[e - e0] + k);
      }
    if (for_w >= 0 && e0 + BLOCK <= entries) {  // a whole block: it is transposed, and leaves in vectors
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
    for (int k = k0; k < min(K, k0 + 16); k++) for (int e = e0; e < min(entries + 1, e0 + BLOCK); e++)
      SUM_TO_SINK(e, k, sums[e - e0][k - k0])
  }
}
#else
// of conv_local, likewise, on GPUs: a work-item has one k of one entry, and neighbours read neighbours
kernel void conv_sum(SUM_ARGUMENTS) {
  const int item = get_global_id(0), k = item % K, e = item / K % (entries + 1), g = item / K / (entries + 1);
  if (g >= G) return;
  TOTAL(real, sum);
  for (int part = 0; part < parts; part++) ADD_TO(real, sum, partial[(((size_t)part * G + g) * (entries + 1) + e) * KP + k])
  const real whole = WHOLE(sum);
  SUM_TO_SINK(e, k, whole)
}
#endif
#endif
