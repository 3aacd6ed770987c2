// Recurrent layers: one launch goes through all steps of time, one back. A group owns rows of the batch, which never need each
// other, and takes them from step to step. Where a driver ends long loops, launches take the steps in pieces, from s.se up to s.sf:
// each goes on from what the one before it left in the states, or backward in dh and dc.
//
// What the inputs add to each gate, z (batch, steps, G, units), was computed before as one product of matrices; here the states
// add h U, U (units, G units), and the gates act. LSTM: gates i, f, c, o; GRU: z, r, h; else one. On CPUs a group is one
// work-item, with tiles of MR rows and NV vectors in registers; elsewhere it is WIDTH work-items, each with columns of its own.
//
// A GRU that resets h before the product (BEFORE) has two products a step, so that U is in two parts: `packed2` is that of z and r,
// `packed` that of h, which is multiplied by `reset`, r h.
//
// States (batch, depth, units) hold what enters each step; depth is `steps` if the gradient needs them all, which then lie in the
// order of time, as the rows of z do: the gradient by U is the product of both. `ha` is h as the product reads it: h, or h * drop.
// Where the gradient is wanted, z, `ends` (an LSTM's c after each step) and `rec` (a GRU's h U) keep what it reads: of an activation
// whose derivative is written with its input, that (ACT_X, RACT_X), else its value. What a layer goes without is a flag of the
// sizes, not a define: few programs are compiled, and a pointer to what is not there may be any.
#ifndef ACT
#define ACT tanh
#endif
#ifndef RACT
#define RACT sigmoid
#endif
#ifndef MR
#define MR 2
#endif
#ifndef NV
#define NV 4
#endif
#ifndef WIDTH
#define WIDTH 1
#endif
#include "sink.cl"
#ifdef LSTM
#define G 4
#elif defined(GRU)
#define G 3
#else
#define G 1
#endif
#ifdef VW
#define LANES VW
#else
#define LANES 1
#endif
#if defined(BEFORE) && !defined(PG)
#define PG 1             // gates of the packed matrix
#elif !defined(PG)
#define PG G
#endif
#define NB (NV / PG)     // vectors of units that a strip of the forward product has
#define DEEP 512         // products added in a row, and how much of h is in local memory at a time (long sums: common.cl)

#define GROUP_SIZE __attribute__((reqd_work_group_size(WIDTH, 1, 1)))
#ifndef MASK
#define MASK real        // the type of the mask's elements
#endif

#ifdef PACK
// U in the order in which the products read it, in strips of NV vectors: those of one vector of units stand together, gate by
// gate, so that the gates act at once; with BACK, U transposed.
kernel void recurrent_pack(int units, int K, int strips, global const real *u, global real *packed) {
  const int at = get_global_id(0), k = at / strips, strip = at % strips;
  if (k >= K) return;
  for (int v = 0; v < NV; v++)
    for (int lane = 0; lane < LANES; lane++) {
#ifdef BACK
      const int unit = (strip * NV + v) * LANES + lane;
      const real x = u[(size_t)min(unit, units - 1) * K + k];
#else
      const int unit = (strip * NB + v / PG) * LANES + lane;
      const real x = u[((size_t)k * PG + v % PG) * units + min(unit, units - 1)];
#endif
#ifdef VW
      packed[(((size_t)strip * K + k) * NV + v) * LANES + lane] = unit < units ? x : 0;
#else
      packed[((size_t)k * NV + v) * strips + strip] = unit < units ? x : 0;
#endif
    }
}
#else

#if WIDTH > 1
#define STAGE local real staged[MR * DEEP];
#define STAGED , staged
#define STAGED_ARG , local real *staged
#define BARRIER barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);
#else
#define STAGE
#define STAGED
#define STAGED_ARG
#define BARRIER
#endif

// t (MR, NV) = MR rows of A (rows of them there, K numbers each) times one strip of a packed matrix
INLINE void multiply(global const real *A, size_t stride, int rows, int K, global const real *b, int strips, T *t STAGED_ARG) {
  for (int k0 = 0; k0 < K; k0 += DEEP) {
    const int kc = min(DEEP, K - k0);
    T acc[MR][NV];
    UNROLL for (int r = 0; r < MR; r++) UNROLL for (int v = 0; v < NV; v++) acc[r][v] = (T)(0);
#if WIDTH > 1
    BARRIER                                                        // what was staged before has been read
    for (int e = get_local_id(0); e < MR * kc; e += WIDTH)
      staged[e / kc * DEEP + e % kc] = A[min(e / kc, rows - 1) * stride + k0 + e % kc];
    BARRIER
#define A_AT(r, k) staged[(r) * DEEP + (k)]
#else
    global const real *a[MR];
    UNROLL for (int r = 0; r < MR; r++) a[r] = A + min(r, rows - 1) * stride + k0;
#define A_AT(r, k) a[r][k]
#endif
    for (int k = 0; k < kc; k++) {
      T bv[NV];
#ifdef VW
      UNROLL for (int v = 0; v < NV; v++) bv[v] = VLOAD(v, b);
      b += NV * VW;
#else
      UNROLL for (int v = 0; v < NV; v++) bv[v] = b[(size_t)v * strips];
      b += (size_t)NV * strips;
#endif
      UNROLL for (int r = 0; r < MR; r++) {
        const T x = (T)(A_AT(r, k));
        UNROLL for (int v = 0; v < NV; v++) acc[r][v] += x * bv[v];
      }
    }
    UNROLL for (int r = 0; r < MR; r++)
      UNROLL for (int v = 0; v < NV; v++) t[r * NV + v] = k0 ? t[r * NV + v] + acc[r][v] : acc[r][v];
  }
}
#ifdef VW
#define STRIP(strip, K) ((size_t)(strip) * (K) * NV * VW)
#else
#define STRIP(strip, K) (size_t)(strip)
#endif

// An activation f with what is kept of it
#define A_F CAT(ACT, _f)
#define R_F CAT(RACT, _f)
#ifdef ACT_X
#define A_KEPT(x, y) (x)
#define A_VALUE(kept) A_F(kept)
#else
#define A_KEPT(x, y) (y)
#define A_VALUE(kept) (kept)
#endif
#ifdef RACT_X
#define R_KEPT(x, y) (x)
#define R_VALUE(kept) R_F(kept)
#else
#define R_KEPT(x, y) (y)
#define R_VALUE(kept) (kept)
#endif
#define A_SLOPE(kept) CAT(ACT, _df)((kept), (kept))
#define R_SLOPE(kept) CAT(RACT, _df)((kept), (kept))

// batch, steps, units, rows of a group, rows of an output's sample, which of them are the sequence's (-1: none), which is the
// last h (-1: none), 1 if the last c follows it, depth, 1 for backwards, 1 for outputs in the order of time, strips, flags,
// strips of packed2, the first step of this launch and the one behind its last
#define SIZES int16 s
#define UNPACK                                                                                                        \
  const int batch = s.s0, steps = s.s1, units = s.s2, first = get_group_id(0) * s.s3, last = min(batch, first + s.s3); \
  const int out_rows = s.s4, seq_at = s.s5, h_at = s.s6, with_c = s.s7, depth = s.s8, strips = s.sb, strips2 = s.sd, id = get_local_id(0), begin = s.se, until = s.sf;
#define TIME(step) (s.s9 ? steps - 1 - (step) : (step))
#define PLACE(step) (seq_at + (s.sa ? TIME(step) : (step)))
#define STATE(b, step) (((size_t)(b) * depth + (s.s9 ? depth - 1 - (step) % depth : (step) % depth)) * units)
#define OUT(b, row) (((size_t)(b) * out_rows + (row)) * units)
#define EACH_UNIT(i) int i = id * LANES; i < units; i += WIDTH * LANES
#define WITH_BIAS (s.sc & 1)
#define WITH_STATES (s.sc & 2)
#define WITH_MASK (s.sc & 4)
#define WITH_DROP (s.sc & 8)
#define KEEP (s.sc & 16)
#define LIVE(b, t) (!WITH_MASK || mask[(size_t)(b) * steps + (t)] != 0)
#define DROPPED(x, b, i) ((x) * VLOAD(0, drop + (size_t)(b) * units + (i)))

// What inputs add to the gates of `rows` rows from b0 is in other lines of memory at each time: fetched a step before it is wanted
#ifdef STACK
#define FETCH_GATES(b0, rows, time, strip)                                                                                 \
  for (int r = 0; r < rows; r++)                                                                                           \
    UNROLL for (int v = 0; v < NB * G; v++) __builtin_prefetch((const void *)(size_t)                                      \
      (z + (((size_t)(b0 + r) * steps + time) * G + v % G) * units + (strip * NB + v / G) * LANES), 0, 2);
#else
#define FETCH_GATES(b0, rows, time, strip)
#endif

#ifdef FORWARD
kernel GROUP_SIZE void recurrent_forward(SIZES, global real *z, global const real *packed, global const real *bias,
                              global const real *h0, global const real *c0, global const MASK *mask,
                              global const real *drop, global real *y, global real *hs, global real *ha, global real *cs, global real *ends, global real *rec,
                              global real *reset, global const real *packed2) {
  UNPACK
  STAGE
  T t[MR * NV];
  for (int b = first; b < last && begin == 0; b++)
    for (EACH_UNIT(i)) {
      const int n = units - i;
      const T h = WITH_STATES ? VLOAD(0, h0 + (size_t)b * units + i) : (T)(0);
      store_n(h, hs + STATE(b, 0) + i, n);
      if (WITH_DROP) store_n(DROPPED(h, b, i), ha + STATE(b, 0) + i, n);
#ifdef LSTM
      store_n(WITH_STATES ? VLOAD(0, c0 + (size_t)b * units + i) : (T)(0), cs + STATE(b, 0) + i, n);
#endif
    }
  BARRIER
  for (int step = begin; step < until; step++) {
    const int time = TIME(step);
#ifdef BEFORE
    for (int from = 0; from < strips2; from += WIDTH) {
      const int strip = min(from + id, strips2 - 1);
      for (int b0 = first; b0 < last; b0 += MR) {
        const int rows = min(MR, last - b0);
        multiply(ha + STATE(b0, step), (size_t)depth * units, rows, units, packed2 + STRIP(strip, units), strips2, t STAGED);
        for (int r = 0; r < rows; r++) UNROLL for (int w = 0; w < NV / 2; w++) {
          const int b = b0 + r, i = (strip * (NV / 2) + w) * LANES, n = units - i;
          if (n <= 0 || from + id >= strips2) continue;
          global real *gates = z + ((size_t)b * steps + time) * G * units + i;
          const T xz = load_n(gates, n) + t[r * NV + w * 2], xr = load_n(gates + units, n) + t[r * NV + w * 2 + 1];
          const T vr = R_F(xr);
          store_n(R_KEPT(xz, R_F(xz)), gates, n);
          if (KEEP) store_n(R_KEPT(xr, vr), gates + units, n);
          store_n(vr * load_n(ha + STATE(b, step) + i, n), reset + STATE(b, step) + i, n);
        }
      }
    }
    BARRIER
    global const real *multiplied = reset;
#else
    global const real *multiplied = ha;
#endif
    for (int from = 0; from < strips; from += WIDTH) {
      const int strip = min(from + id, strips - 1);
      for (int b0 = first; b0 < last; b0 += MR) {
        const int rows = min(MR, last - b0);
        if (step + 1 < until) { FETCH_GATES(b0, rows, TIME(step + 1), strip) }
        multiply(multiplied + STATE(b0, step), (size_t)depth * units, rows, units, packed + STRIP(strip, units), strips, t STAGED);
        for (int r = 0; r < rows; r++) UNROLL for (int w = 0; w < NB; w++) {
          const int b = b0 + r, i = (strip * NB + w) * LANES, n = units - i;
          if (n <= 0 || from + id >= strips) continue;
          global real *gates = z + ((size_t)b * steps + time) * G * units + i;
          const T before = load_n(hs + STATE(b, step) + i, n);
          T x[G], h;
          UNROLL for (int g = 0; g < G; g++) {
            x[g] = load_n(gates + g * units, n);
#ifdef BEFORE
            if (g == 2) x[g] += t[r * NV + w];
            continue;
#elif defined(GRU)
            if (g == 2) continue;
#endif
            x[g] += t[r * NV + w * G + g];
            if (WITH_BIAS) x[g] += VLOAD(0, bias + g * units + i);
          }
#ifdef BEFORE
          const T vz = R_VALUE(x[0]), vh = A_F(x[2]);
          h = vz * before + (1 - vz) * vh;
          if (KEEP) store_n(A_KEPT(x[2], vh), gates + 2 * units, n);
#elif defined(LSTM)
          const T vi = R_F(x[0]), vf = R_F(x[1]), vg = A_F(x[2]), vo = R_F(x[3]);
          const T c_before = load_n(cs + STATE(b, step) + i, n);
          T c = vf * c_before + vi * vg;
          const T a = A_F(c);
          h = vo * a;
          if (KEEP) {
            store_n(A_KEPT(c, a), ends + ((size_t)b * steps + time) * units + i, n);
            store_n(R_KEPT(x[0], vi), gates, n);
            store_n(R_KEPT(x[1], vf), gates + units, n);
            store_n(A_KEPT(x[2], vg), gates + 2 * units, n);
            store_n(R_KEPT(x[3], vo), gates + 3 * units, n);
          }
          if (!LIVE(b, time)) c = c_before;
          if (step + 1 < steps) store_n(c, cs + STATE(b, step + 1) + i, n);
          else if (with_c) store_n(c, y + OUT(b, h_at + 1) + i, n);
#elif defined(GRU)
          T q = t[r * NV + w * G + 2];
          if (WITH_BIAS) q += VLOAD(0, bias + 2 * units + i);
          const T vz = R_F(x[0]), vr = R_F(x[1]);
          x[2] += vr * q;
          const T vh = A_F(x[2]);
          h = vz * before + (1 - vz) * vh;
          if (KEEP) {
            store_n(R_KEPT(x[0], vz), gates, n);
            store_n(R_KEPT(x[1], vr), gates + units, n);
            store_n(A_KEPT(x[2], vh), gates + 2 * units, n);
            store_n(q, rec + ((size_t)b * steps + time) * G * units + 2 * units + i, n);
          }
#else
          h = A_F(x[0]);
          if (KEEP) store_n(A_KEPT(x[0], h), gates, n);
#endif
          if (!LIVE(b, time)) h = before;
          if (step + 1 < steps) {
            store_n(h, hs + STATE(b, step + 1) + i, n);
            if (WITH_DROP) store_n(DROPPED(h, b, i), ha + STATE(b, step + 1) + i, n);
          } else if (h_at >= 0) store_n(h, y + OUT(b, h_at) + i, n);
          if (seq_at >= 0) store_n(h, y + OUT(b, PLACE(step)) + i, n);
        }
      }
    }
    BARRIER
  }
}
#endif

#ifdef BACKWARD
// dz over z and, of a GRU, the gradients by h U over rec, or by reset U. dh and dc (batch, units) carry what comes back from the later steps,
// and end as the gradients by the first states.
kernel GROUP_SIZE void recurrent_backward(SIZES, global real *z, global const real *packed, global const MASK *mask,
                               global const real *drop, global const real *dy, global const real *hs,
                               global const real *cs, global const real *ends, global real *rec,
                               global real *dh, global real *dc, global const real *packed2) {
  UNPACK
  STAGE
  T t[MR * NV];
  for (int step = until - 1; step >= begin; step--) {
    const int time = TIME(step);
    for (int b = first; b < last; b++)
      for (EACH_UNIT(i)) {
        const int n = units - i;
        const size_t row = (size_t)b * steps + time, carry = (size_t)b * units + i;
        global real *gates = z + row * G * units + i;
        T flows = (T)(0);
        if (step + 1 < steps) flows = load_n(dh + carry, n);
        else if (h_at >= 0) flows = VLOAD(0, dy + OUT(b, h_at) + i);
        if (seq_at >= 0) flows += VLOAD(0, dy + OUT(b, PLACE(step)) + i);
        T rest = (T)(0), d[G];                                    // `rest` goes back without the product
        UNROLL for (int g = 0; g < G; g++) d[g] = load_n(gates + g * units, n);
#ifdef LSTM
        const T before = VLOAD(0, cs + STATE(b, step) + i);
        const T vi = R_VALUE(d[0]), vf = R_VALUE(d[1]), vg = A_VALUE(d[2]), vo = R_VALUE(d[3]);
        const T end = VLOAD(0, ends + row * units + i), a = A_VALUE(end);
        T flows_c = (T)(0);
        if (step + 1 < steps) flows_c = load_n(dc + carry, n);
        else if (with_c) flows_c = VLOAD(0, dy + OUT(b, h_at + 1) + i);
        const T by_c = flows_c + flows * vo * A_SLOPE(end);
        d[3] = flows * a * R_SLOPE(d[3]);
        d[0] = by_c * vg * R_SLOPE(d[0]);
        d[1] = by_c * before * R_SLOPE(d[1]);
        d[2] = by_c * vi * A_SLOPE(d[2]);
        store_n(LIVE(b, time) ? by_c * vf : flows_c, dc + carry, n);
#elif defined(BEFORE)
        const T before = VLOAD(0, hs + STATE(b, step) + i), vz = R_VALUE(d[0]), vh = A_VALUE(d[2]);
        d[0] = flows * (before - vh) * R_SLOPE(d[0]);
        d[2] = flows * (1 - vz) * A_SLOPE(d[2]);
        rest = flows * vz;
#elif defined(GRU)
        global real *inner = rec + row * G * units + i;
        const T q = load_n(inner + 2 * units, n), before = VLOAD(0, hs + STATE(b, step) + i);
        const T vz = R_VALUE(d[0]), vr = R_VALUE(d[1]), vh = A_VALUE(d[2]);
        d[0] = flows * (before - vh) * R_SLOPE(d[0]);
        d[2] = flows * (1 - vz) * A_SLOPE(d[2]);
        d[1] = d[2] * q * R_SLOPE(d[1]);
        rest = flows * vz;
        const T by_q = LIVE(b, time) ? d[2] * vr : (T)(0);
        store_n(by_q, inner + 2 * units, n);
#else
        d[0] = flows * A_SLOPE(d[0]);
#endif
        if (!LIVE(b, time)) {
          rest = flows;
          UNROLL for (int g = 0; g < G; g++) d[g] = (T)(0);
        }
        UNROLL for (int g = 0; g < G; g++) store_n(d[g], gates + g * units, n);
#ifdef BEFORE
        store_n(d[2], rec + row * units + i, n);
#elif defined(GRU)
        store_n(d[0], inner, n);
        store_n(d[1], inner + units, n);
#endif
        store_n(rest, dh + carry, n);
      }
    BARRIER
#ifdef BEFORE
    for (int from = 0; from < strips; from += WIDTH) {
      const int strip = min(from + id, strips - 1);
      for (int b0 = first; b0 < last; b0 += MR) {
        const int rows = min(MR, last - b0);
        multiply(rec + ((size_t)b0 * steps + time) * units, (size_t)steps * units, rows, units, packed + STRIP(strip, units), strips, t STAGED);
        for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < NV; v++) {
          const int b = b0 + r, i = (strip * NV + v) * LANES, n = units - i;
          if (n <= 0 || from + id >= strips) continue;
          global real *gate = z + (((size_t)b * steps + time) * G + 1) * units + i, *o = dh + (size_t)b * units + i;
          const T kept = load_n(gate, n), h = VLOAD(0, hs + STATE(b, step) + i);
          const T x = WITH_DROP ? DROPPED(t[r * NV + v], b, i) : t[r * NV + v];
          store_n(LIVE(b, time) ? x * h * R_SLOPE(kept) : (T)(0), gate, n);
          store_n(load_n(o, n) + (LIVE(b, time) ? x * R_VALUE(kept) : (T)(0)), o, n);
        }
      }
    }
    BARRIER
    global const real *by_gates = z, *u_gates = packed2;
    const int K = 2 * units;
#else
    global const real *by_gates = rec, *u_gates = packed;
    const int K = G * units;
#endif
    for (int from = 0; from < strips; from += WIDTH) {
      const int strip = min(from + id, strips - 1);
      for (int b0 = first; b0 < last; b0 += MR) {
        const int rows = min(MR, last - b0);
        multiply(by_gates + ((size_t)b0 * steps + time) * G * units, (size_t)steps * G * units, rows, K, u_gates + STRIP(strip, K), strips, t STAGED);
        for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < NV; v++) {
          const int b = b0 + r, i = (strip * NV + v) * LANES, n = units - i;
          if (n <= 0 || from + id >= strips) continue;
          global real *o = dh + (size_t)b * units + i;
          const T x = t[r * NV + v];
          store_n(load_n(o, n) + (WITH_DROP ? DROPPED(x, b, i) : x), o, n);
        }
      }
    }
    BARRIER
  }
}
#endif
#endif
