// Random numbers from counters: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
// A generator is (position, seed low, seed high) on the device; draw `stream` of a step gives element block i the counter
// (i, stream, position, 0) and the seed as key. The same bits come out on every device.
#include "common.cl"
#pragma OPENCL FP_CONTRACT OFF   // a fused multiply-add on some devices only would give other uniform numbers there

static inline uint4 philox(uint4 c, uint2 key) {
  for (int round = 0; round < 10; round++) {
    const uint2 hi = (uint2)(mul_hi(0xD2511F53u, c.x), mul_hi(0xCD9E8D57u, c.z));
    const uint2 lo = (uint2)(0xD2511F53u * c.x, 0xCD9E8D57u * c.z);
    c = (uint4)(hi.y ^ c.y ^ key.x, lo.y, hi.x ^ c.w ^ key.y, lo.x);
    key += (uint2)(0x9E3779B9u, 0xBB67AE85u);
  }
  return c;
}

static inline uint4 bits(int i, int stream, global const int *generator) {
  return philox((uint4)((uint)i, (uint)stream, (uint)generator[0], 0u), (uint2)((uint)generator[1], (uint)generator[2]));
}

// [0, 1) with 24 bits: exact in float, so that every device gives the same number
static inline real unit(uint b) { return (real)(b >> 8) * (real)5.9604644775390625e-8; }

kernel void random_bits(int n, int stream, global const int *generator, global uint *y) {
  const int i = get_global_id(0);
  const uint4 b = bits(i, stream, generator);
  const uint v[4] = {b.x, b.y, b.z, b.w};
  for (int l = 0; l < 4; l++) if (4 * i + l < n) y[4 * i + l] = v[l];
}

kernel void uniform(int n, int stream, global const int *generator, global real *y, real low, real high) {
  const int i = get_global_id(0);
  const uint4 b = bits(i, stream, generator);
  const uint v[4] = {b.x, b.y, b.z, b.w};
  for (int l = 0; l < 4; l++) if (4 * i + l < n) {
    const real u = low + (high - low) * unit(v[l]);
    y[4 * i + l] = u < high ? u : nextafter(high, low);   // where rounding came up to high
  }
}

// Box and Muller 1958: two normals from two uniforms, the first in (0, 1]
kernel void normal(int n, int stream, global const int *generator, global real *y, real mean, real deviation) {
  const int i = get_global_id(0);
  const uint4 b = bits(i, stream, generator);
  const real v[4] = {1 - unit(b.x), unit(b.y), 1 - unit(b.z), unit(b.w)};
  for (int l = 0; l < 4; l++) {
    const real radius = sqrt(-2 * log(v[l & 2])), turn = v[(l & 2) + 1];
    if (4 * i + l < n) y[4 * i + l] = mean + deviation * radius * (l & 1 ? sinpi(2 * turn) : cospi(2 * turn));
  }
}

// y = x / keep with probability keep, else 0; mask says which
kernel void dropout_forward(int n, int stream, global const int *generator, global const real *x, global real *y,
                            global uchar *mask, real keep) {
  const int i = get_global_id(0);
  const uint4 b = bits(i, stream, generator);
  const uint v[4] = {b.x, b.y, b.z, b.w};
  for (int l = 0; l < 4; l++)
    if (4 * i + l < n) {
      const uchar kept = (float)(v[l] >> 8) * 5.9604644775390625e-8f < (float)keep;
      mask[4 * i + l] = kept;
      y[4 * i + l] = kept ? x[4 * i + l] / keep : 0;
    }
}

kernel void dropout_backward(int n, global const uchar *mask, global const real *dy, global real *dx, real keep) {
  const int i = get_global_id(0);
  if (i < n) dx[i] = mask[i] ? dy[i] / keep : 0;
}
