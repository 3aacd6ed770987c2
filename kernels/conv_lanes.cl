// The gradient of a convolution by weights where a group has few output channels (depthwise), for CPUs.
//
// Vectors run over positions, as in conv_rows; dy is copied with zeros between its rows. partial: [part][g][k][c][tap], then [part][g][k]
#include "conv.cl"
#include "group.cl"
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
      for (int z = 0; z < VW; z++) d[z] = 0;  // 0 times what comes after has to be 0
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
          UNROLL for (int r = 0; r < MR; r++) if (t0 + r < TAPS) to[r] += sum_of_lanes(acc[r]);
          if (c == 0 && t0 == 0) sums[k] += sum_of_lanes(total);
        }
      }
    }
  }
}
