// Random numbers from counters: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
// A generator is (position, seed low, seed high) on the device; a draw (stream, ahead) gives numbers 4 i to 4 i + 3 the counter
// (i, stream, position + ahead, 0) and the seed as key. The same bits come out on every device.
// A work-item makes EACH numbers. On CPUs 32: eight counters side by side in vectors, since scalar rounds cost twenty times as
// much. Elsewhere 4, of one counter, read and written at once: neighbours do so side by side.
#include "common.cl"
#pragma OPENCL FP_CONTRACT OFF   // a fused multiply-add on some devices only would give other uniform numbers there
#if EACH == 4
#define LANES 4
#define HALF CAT(REAL, 2)
typedef uint words;
#define OFFSETS 0u
#define STORE(x, to) (*(to) = (x))
#define READ(type, x) (*(global const type *)(x))   // arrays begin where vectors may
#define WRITE(type, v, y) (*(global type *)(y) = (v))
#define mul_high mul_hi
#else
// No vector here is larger than 32 bytes: pip's PoCL 3.0 knows no Zen 4, compiles kernels for an older processor than it did its
// library of built-ins, and the two hand vectors of 64 bytes to each other in different registers.
#define LANES_float 8
#define LANES_double 4
#define LANES CAT(LANES_, REAL)
#define HALF_float float4
#define HALF_double double2
#define HALF CAT(HALF_, REAL)
typedef uint8 words;
#define OFFSETS (words)(0, 1, 2, 3, 4, 5, 6, 7)
#define STORE(x, to) vstore8((x), 0, (to))
#define READ(type, x) VLOAD(0, (x))
#define WRITE(type, v, y) VSTORE((v), 0, (y))

// the high words of eight products, made in pairs: of the low and of the high halves of four long words, whichever way these lie
static inline words mul_high(words x, uint by) {
  const ulong4 pairs = as_ulong4(x), low = (pairs & 0xFFFFFFFFul) * (ulong)by, high = (pairs >> 32ul) * (ulong)by;
  return as_uint8((low >> 32ul) | (high & 0xFFFFFFFF00000000ul));
}
#endif
#define COUNTERS (EACH / 4)
#define RN CAT(REAL, LANES)
#define TO_REAL(x) CAT(convert_, RN)(x)
#define VLOAD CAT(vload, LANES)
#define VSTORE CAT(vstore, LANES)
#define mask_float(x) (x)        // the lanes of a comparison of floats as select wants them for REAL
#define mask_double(x) convert_long4(x)

// ten rounds on COUNTERS counters (x, y, z, w), all with one key
static inline void philox(words *x, words *y, words *z, words *w, uint low, uint high) {
  for (int round = 0; round < 10; round++) {
    const words a = mul_high(*x, 0xD2511F53u), b = mul_high(*z, 0xCD9E8D57u);
    const words next_x = b ^ *y ^ (words)(low), next_z = a ^ *w ^ (words)(high);
    *y = *z * (words)(0xCD9E8D57u);
    *w = *x * (words)(0xD2511F53u);
    *x = next_x;
    *z = next_z;
    low += 0x9E3779B9u;
    high += 0xBB67AE85u;
  }
}

// v[0] to v[EACH - 1]: the numbers from EACH i on
static inline void bits(int i, int2 draw, global const int *generator, uint *v) {
  words x = (words)(COUNTERS * (uint)i) + OFFSETS, y = (words)((uint)draw.x), z = (words)((uint)generator[0] + (uint)draw.y),
    w = (words)(0u);
  philox(&x, &y, &z, &w, (uint)generator[1], (uint)generator[2]);
  uint t[4][COUNTERS];
  STORE(x, t[0]); STORE(y, t[1]); STORE(z, t[2]); STORE(w, t[3]);
  for (int l = 0; l < COUNTERS; l++) for (int k = 0; k < 4; k++) v[4 * l + k] = t[k][l];
}

// [0, 1) with 24 bits: exact in float, so that every device gives the same number
static inline RN unit(const uint *v, int part) { return TO_REAL(VLOAD(part, v) >> 8u) * (RN)(5.9604644775390625e-8); }

static inline void put(RN x, global real *y, int n) {  // the first n of LANES
  if (n >= LANES) { WRITE(RN, x, y); return; }
  real t[LANES];
  VSTORE(x, 0, t);
  for (int l = 0; l < n; l++) y[l] = t[l];
}
#define PARTS const int first = EACH * (int)get_global_id(0); uint v[EACH]; bits(get_global_id(0), draw, generator, v); \
  for (int part = 0, at = first; part < EACH / LANES && at < n; part++, at += LANES)

kernel void random_bits(int n, int2 draw, global const int *generator, global uint *y) {
  const int first = EACH * (int)get_global_id(0);
  uint v[EACH];
  bits(get_global_id(0), draw, generator, v);
  for (int l = 0; l < EACH && first + l < n; l++) y[first + l] = v[l];
}

kernel void uniform(int n, int2 draw, global const int *generator, global real *y, real low, real high) {
  PARTS {
    const RN u = (RN)(low) + (RN)(high - low) * unit(v, part);
    put(select((RN)(nextafter(high, low)), u, u < (RN)(high)), y + at, n - at);   // where rounding came up to high
  }
}

// Box and Muller 1958: two normals from two uniforms, the first in (0, 1]
kernel void normal(int n, int2 draw, global const int *generator, global real *y, real mean, real deviation) {
  PARTS {
    RN u = unit(v, part);
    const HALF radius = sqrt(-2 * log(1 - u.even)), turn = 2 * u.odd;
    u.even = (HALF)(mean) + deviation * radius * cospi(turn);
    u.odd = (HALF)(mean) + deviation * radius * sinpi(turn);
    put(u, y + at, n - at);
  }
}

// y = x / keep with probability keep, else 0; mask says which
kernel void dropout_forward(int n, int2 draw, global const int *generator, global const real *x, global real *y,
                            global uchar *mask, real keep) {
  PARTS {
    const CAT(int, LANES) kept =
        CAT(convert_float, LANES)(VLOAD(part, v) >> 8u) * 5.9604644775390625e-8f < (CAT(float, LANES))((float)keep);
    const RN scaled = READ(RN, x + at) / (RN)(keep);
    const CAT(uchar, LANES) one = CAT(convert_uchar, LANES)(kept & 1);
    put(select((RN)(0), scaled, CAT(mask_, REAL)(kept)), y + at, n - at);
    if (n - at >= LANES) WRITE(CAT(uchar, LANES), one, mask + at);
    else {
      uchar t[LANES];
      VSTORE(one, 0, t);
      for (int l = 0; l < n - at; l++) mask[at + l] = t[l];
    }
  }
}

kernel void dropout_backward(int n, global const uchar *mask, global const real *dy, global real *dx, real keep) {
  const int i = get_global_id(0);
  if (i < n) dx[i] = mask[i] ? dy[i] / keep : 0;
}
