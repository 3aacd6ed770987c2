// The gradient of a convolution by weights, for CPUs: vectors run over output channels (dy is transposed while it is copied).
//
// The MR rows of the register tile are (channel, tap) pairs. Parts of the batch go to parts of `partial`, which conv_sum adds.
#include "conv.cl"
// partial: [part][g][e][KP], e = (channel, tap) or, after them, the sum of dy; KP: K up to whole strips of NR. RUN taps of a
// row, KW of them or one, share a pointer, DX inputs from one to the next: there are fewer pointers than accumulators.
#define NR (NV * VW)
#define RUNS (MR / RUN)
kernel GROUP_SIZE void conv_weights(int16 p, int16 q, int N, global const real *x, global const real *dy, global real *partial) {
  UNPACK
  ITEM
  local real slab[SLAB] __attribute__((aligned(64)));
  local real transposed[OUT] __attribute__((aligned(64)));
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
        copy_transposed(transposed + (strip * positions + r * columns) * NR, NR,
                    dy + ((((size_t)n * G + g) * K + strip * NR) * OD + d0) * OH * OW + (h0 + r) * OW + w0, (size_t)OD * OH * OW,
                    min(NR, K - strip * NR), run);
      }
    if (split == 0)
      for (int k = 0; k < KP; k += VW) {
        T sums[4] = {(T)(0), (T)(0), (T)(0), (T)(0)};  // four, or each addition would wait for the one before
        local const real *b = transposed + k / NR * positions * NR + k % NR;
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
          local const real *b = transposed + strip * positions * NR;
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
