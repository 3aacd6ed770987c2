// Scaled dot-product attention without its matrix: o = softmax(scale q k^T + mask) v, by blocks of queries and keys with a
// running maximum and sum (Milakov and Gimelshein 2018; Dao et al. 2022). Memory is linear in the number of keys.
//
//             keys         A block of queries stays in local memory. Blocks of keys pass by: scores S of BQ x BK, then what
//        +-----------+     they add to the output. The backward pass computes S anew, and its exponentials from lse, each row's
//   q    |  S  |     |     largest score, and behind those of all rows the logarithm of its sum (their sum would round it away
//        +-----------+     where scores are large, as where a mask of -1e9 hides all): one kernel by blocks of queries for dq, one
//                          by blocks of keys for dk and dv, so that nobody adds to what another writes. Where there are heads
//                          enough, a CPU's work-item has one whole, and adds to all three from the same scores. Where causal
//                          blocks are cut by the diagonal, products leave most of S out.
//
// With VW, for CPUs, a work-item has a block of BQ queries, or of BK keys, or a head. Else, for GPUs, it has one query, or one key, in
// registers, and neighbours read the same keys, or queries, at the same time; where a driver ends long loops, a launch goes over a
// piece of them, from p.sa up to p.sb, and on from what the one before it left in o and lse, or adds to the gradients.
//
// D, DV: the lengths of queries and keys, and of values. CAUSAL: query i sees the keys up to `past` + i. A mask is added to the
// scores; a query that sees no key has the output 0. Several heads of queries may share one of keys (grouped queries).
#include "group.cl"

// p: heads of queries and of keys, queries and keys in a head, then steps from batch to batch, head to head, and row to row of q
// and of k; r: the same of v and o. m: steps of the mask along batch, heads, queries and keys
#define HEADS_ARGS int16 p, int8 r, int4 m, global const real *restrict q, global const real *restrict k, global const real *restrict v, \
  global const real *restrict mask, global const int *past, real scale
#define UNPACK                                                                                                            \
  const int H = p.s0, G = p.s1, Tq = p.s2, Tk = p.s3, before = past ? past[0] : 0, n = past ? min(Tk, before + Tq) : Tk;
// A cache that is too short for its queries: a wrong answer is NaN
#define TOO_SHORT (past && (before < 0 || before > Tk - Tq))
#define Q_OF(b, h) (q + (size_t)(b) * p.s4 + (size_t)(h) * p.s5)
#define K_OF(b, g) (k + (size_t)(b) * p.s7 + (size_t)(g) * p.s8)
#define V_OF(b, g) (v + (size_t)(b) * r.s0 + (size_t)(g) * r.s1)
#define AT_O(b, h) ((size_t)(b) * r.s3 + (size_t)(h) * r.s4)
#define Q_ROW p.s6
#define K_ROW p.s9
#define V_ROW r.s2
#define O_ROW r.s5
#define SUMS ((size_t)batch * p.s0 * p.s2)   // of lse: where logarithms begin. Of a query that sees no key the largest score is infinite
#ifdef MASK
#define MASK_AT(b, h, i, j) mask[(size_t)(b) * m.s0 + (size_t)(h) * m.s1 + (size_t)(i) * m.s2 + (size_t)(j) * m.s3]
#else
#define MASK_AT(b, h, i, j) 0
#endif
#ifdef CAUSAL
#define SEES(i, j) ((j) <= before + (i))
#define KEYS_OF(last) min(n, before + (last) + 1)      // that some query up to `last` sees
#define FIRST_FOR(j) max(0, (j) - before)              // the first query that sees key j
#else
#define SEES(i, j) 1
#define KEYS_OF(last) n
#define FIRST_FOR(j) 0
#endif

#ifdef VW
// ---- for CPUs ----------------------------------------------------------------------------------------------------------
// For exp_of_negative: scores are at most their row's largest, and the logarithm of its sum
#include "activation.cl"
#define GROUP_SIZE __attribute__((reqd_work_group_size(1, 1, 1)))
#define WIDE (2 * VW)
#define DP ((D + WIDE - 1) / WIDE * WIDE)
#define DVP ((DV + WIDE - 1) / WIDE * WIDE)
#define ROWS (BQ + MR)

// c (rows, columns) = or += a b: a has element [i, l] at i * ai + l * al, b is (depth, columns). Columns are whole strips of NV vectors;
// of the last MR rows of a some may be none of its own: they are read and dropped. Row i of a is 0 before from + i, and from to + i on:
// only what is between is multiplied.
#define MULTIPLY(name, MR, NV)                                                                                                     \
  APART void name(local real *c, int ldc, local const real *a, int ai, int al, local const real *b, int ldb, int rows, int columns, \
                  int depth, int add, int from, int to) {                                                                           \
    for (int j = 0; j < columns; j += NV * VW) for (int i = 0; i < rows; i += MR) {                                                 \
      T acc[MR][NV], bv[NV];                                                                                                        \
      const int first = max(0, from + i), last = min(depth, to + i + MR - 1);                                                       \
      UNROLL for (int r = 0; r < MR; r++) UNROLL for (int v = 0; v < NV; v++) acc[r][v] = (T)(0);                                   \
      local const real *x = a + i * ai + first * al, *y = b + first * ldb + j;                                                      \
      for (int l = first; l < last; l++, x += al, y += ldb) {                                                                       \
        UNROLL for (int v = 0; v < NV; v++) bv[v] = VLOAD(v, y);                                                                    \
        UNROLL for (int r = 0; r < MR; r++) {                                                                                       \
          const T of = (T)(x[r * ai]);                                                                                              \
          UNROLL for (int v = 0; v < NV; v++) acc[r][v] += of * bv[v];                                                              \
        }                                                                                                                           \
      }                                                                                                                             \
      local real *out = c + i * ldc + j;                                                                                            \
      UNROLL for (int r = 0; r < MR; r++) {                                                                                         \
        if (i + r < rows) UNROLL for (int v = 0; v < NV; v++) {                                                                     \
          if (add) acc[r][v] += VLOAD(v, out + r * ldc);                                                                            \
          VSTORE(acc[r][v], v, out + r * ldc);                                                                                      \
        }                                                                                                                           \
      }                                                                                                                             \
    }                                                                                                                               \
  }
MULTIPLY(multiply_pairs, MR, 2)
MULTIPLY(multiply_fours, 6, 4)  // for 32 registers, which are more often used for each load
INLINE void multiply(local real *c, int ldc, local const real *a, int ai, int al, local const real *b, int ldb, int rows, int columns, int depth,
                     int add, int from, int to) {
  if (MR < 8 || columns % (4 * VW)) multiply_pairs(c, ldc, a, ai, al, b, ldb, rows, columns, depth, add, from, to);
  else multiply_fours(c, ldc, a, ai, al, b, ldb, rows, columns, depth, add, from, to);
}
#define ALL (1 << 28)  // of a row of a
// 0, 1, ...: of each lane its number
INLINE T numbers(void) {
  real t[VW];
  UNROLL for (int l = 0; l < VW; l++) t[l] = l;
  return VLOAD(0, t);
}
INLINE real largest_lane(T x) {
  real t[VW];
  VSTORE(x, 0, t);
  for (int h = VW / 2; h; h /= 2) for (int l = 0; l < h; l++) t[l] = fmax(t[l], t[l + h]);
  return t[0];
}
INLINE real inner(global const real *a, global const real *b, int n) {
  T part = (T)(0);
  int c = 0;
  for (; c + VW <= n; c += VW) part += VLOAD(0, a + c) * VLOAD(0, b + c);
  real sum = sum_of_lanes(part);
  for (; c < n; c++) sum += a[c] * b[c];
  return sum;
}
INLINE void zero(local real *x, int n) { for (int i = 0; i < n; i += VW) VSTORE((T)(0), 0, x + i); }
// Rows of n values, a constant, then zeros
INLINE void rows_of(local real *to, int wide, global const real *from, int step, int rows, int n) {
  for (int i = 0; i < rows; i++, to += wide, from += step) {
    UNROLL for (int c = 0; c < wide; c += VW) VSTORE(c < n ? VLOAD(0, from + c) : (T)(0), 0, to + c);
    for (int c = n; c < wide; c++) to[c] = 0;
  }
}
// Of a query that sees no key, nothing is subtracted
#define FINITE(x) WHERE((x) == -INFINITY, 0, (x))
// Long sums are of spans of keys (common.cl): what a span adds to o and sum is added to what those before it left in `all` and
// all_sum when their largest score was all_top. Where `more` come, it is kept there, and o and sum begin anew.
#define SPAN_OF_KEYS (16 * BK)
INLINE void join(local real *o, real *sum, const real *top, local real *all, real *all_sum, real *all_top, int rows, int more) {
  for (int i = 0; i < rows; i++) {
    const real less = all_sum[i] == 0 ? 0 : exp(all_top[i] - top[i]), whole = sum[i] + all_sum[i] * less;
    for (int c = 0; c < DVP; c += VW) {
      const T joined = VLOAD(0, o + i * DVP + c) + VLOAD(0, all + i * DVP + c) * less;
      VSTORE(more ? joined : (T)(0), 0, all + i * DVP + c);
      VSTORE(more ? (T)(0) : joined, 0, o + i * DVP + c);
    }
    all_sum[i] = whole;
    all_top[i] = top[i];
    sum[i] = more ? 0 : whole;
  }
}

#if defined(FORWARD) && defined(FEW)
// One query a work-item, for the steps of `generate`
kernel GROUP_SIZE void attention_forward(int batch, HEADS_ARGS, global real *o, global real *lse) {
  UNPACK
  local real S[BK] __attribute__((aligned(64))), O[DVP] __attribute__((aligned(64))), all[DVP] __attribute__((aligned(64)));
  const int i = get_global_id(0) % Tq, bh = get_global_id(0) / Tq, h = bh % H, b = bh / H, g = h / (H / G), keys = KEYS_OF(i);
  if (b >= batch) return;
  global const real *mine = Q_OF(b, h) + (size_t)i * Q_ROW;
  real top = -INFINITY, sum = 0, all_top = 0, all_sum = 0;
  zero(O, DVP);
  zero(all, DVP);
  for (int j0 = 0; j0 < keys; j0 += BK) {
    const int kn = min(BK, keys - j0);
    if (j0 && j0 % SPAN_OF_KEYS == 0) join(O, &sum, &top, all, &all_sum, &all_top, 1, 1);
    for (int j = 0; j < kn; j++) {
      S[j] = inner(mine, K_OF(b, g) + (size_t)(j0 + j) * K_ROW, D) * scale + MASK_AT(b, h, i, j0 + j);
    }
    for (int j = kn; j < BK; j++) S[j] = -INFINITY;
    T most = VLOAD(0, S), part = (T)(0);
    for (int c = VW; c < BK; c += VW) most = fmax(most, VLOAD(0, S + c));
    const real high = fmax(top, largest_lane(most)), by = high == -INFINITY ? 0 : high, shrink = exp(top - by);
    for (int c = 0; c < BK; c += VW) { const T e = exp_of_negative(VLOAD(0, S + c) - by); part += e; VSTORE(e, 0, S + c); }
    sum = sum * shrink + sum_of_lanes(part);
    top = high;
    for (int c = 0; c < DV; c += VW) {
      T out = (T)(0);
      global const real *value = V_OF(b, g) + (size_t)j0 * V_ROW + c;
      for (int j = 0; j < kn; j++, value += V_ROW) out += S[j] * VLOAD(0, value);
      VSTORE(VLOAD(0, O + c) * shrink + out, 0, O + c);
    }
  }
  join(O, &sum, &top, all, &all_sum, &all_top, 1, 0);
  global real *to = o + AT_O(b, h) + (size_t)i * O_ROW;
  const real over = TOO_SHORT ? (real)NAN : sum == 0 ? 0 : 1 / sum;
  for (int c = 0; c < DV; c += VW) store_n(VLOAD(0, O + c) * over, to + c, DV - c);
  if (lse) { lse[(size_t)bh * Tq + i] = sum == 0 ? INFINITY : top; lse[SUMS + (size_t)bh * Tq + i] = sum == 0 ? 0 : log(sum); }
}
#endif

// How many of the keys from j0 on query i sees, or more than there are, or fewer than none
#ifdef CAUSAL
#define SEEN(i, j0) (before + (i) + 1 - (j0))
#else
#define SEEN(i, j0) ALL
#endif

// A row of c for each of kn keys of a, a lane for each of BQ queries of bT: their products, where some lane of WIDE sees the key.
// The first query sees the first `seen` keys, and each one more.
INLINE void multiply_by_key(local real *c, local const real *a, int lda, local const real *bT, int depth, int kn, int seen) {
  if (seen >= kn) multiply(c, BQ, a, lda, 1, bT, BQ, kn, BQ, depth, 0, -ALL, ALL);
  else
    for (int i = 0; i < BQ; i += WIDE)
      multiply_pairs(c + i, BQ, a, lda, 1, bT + i, BQ, min(kn, seen + i + WIDE - 1), WIDE, depth, 0, -ALL, ALL);
}
// The scores of kn keys from j0, a row each, and VW queries, a lane each, from i on: the mask is added, and those that a query does not
// see become -infinity. The result is how many keys some of the queries see.
INLINE int hide(local real *S, HEADS_ARGS, int b, int h, int i, int lanes, int j0, int kn) {
  UNPACK
#ifdef MASK
  for (int j = 0; j < kn; j++) for (int l = 0; l < lanes; l++) S[j * BQ + l] += MASK_AT(b, h, i + l, j0 + j);
#endif
  const int seen = SEEN(i, j0);
  if (seen >= kn) return kn;
  const T lane = numbers();
  const int some = max(0, min(kn, seen + VW - 1));
  for (int j = max(0, seen); j < some; j++) VSTORE(WHERE(lane > j - seen, VLOAD(0, S + j * BQ), -INFINITY), 0, S + j * BQ);
  return some;
}
#define HIDE(S, i, lanes) hide(S, p, r, m, q, k, v, mask, past, scale, b, h, i, lanes, j0, kn)
// Rows of VW lanes, BQ apart, are 0 from `first` on
INLINE void none_from(local real *x, int first, int rows) { for (int j = first; j < rows; j++) VSTORE((T)(0), 0, x + j * BQ); }

#if defined(FORWARD) && !defined(FEW)
kernel GROUP_SIZE void attention_forward(int batch, HEADS_ARGS, global real *o, global real *lse) {
  UNPACK
  local real QT[D * BQ] __attribute__((aligned(64))), K[(BK + MR) * DP] __attribute__((aligned(64)));
  local real S[BK * BQ] __attribute__((aligned(64))), V[BK * DVP] __attribute__((aligned(64))), O[ROWS * DVP] __attribute__((aligned(64)));
  local real all[ROWS * DVP] __attribute__((aligned(64)));
  real top[BQ] __attribute__((aligned(64))), sum[BQ] __attribute__((aligned(64))), shrink[BQ] __attribute__((aligned(64)));
  real all_top[BQ], all_sum[BQ];
  const int blocks = (Tq + BQ - 1) / BQ, i0 = get_global_id(0) % blocks * BQ, bh = get_global_id(0) / blocks, h = bh % H, b = bh / H;
  if (b >= batch) return;
  const int rows = min(BQ, Tq - i0), g = h / (H / G), keys = KEYS_OF(i0 + rows - 1);
  copy_transposed(QT, BQ, Q_OF(b, h) + (size_t)i0 * Q_ROW, Q_ROW, rows, D);
  for (int c = 0; c < D * BQ; c += VW) VSTORE(VLOAD(0, QT + c) * scale, 0, QT + c);
  zero(O, BQ * DVP);
  if (keys > SPAN_OF_KEYS) zero(all, BQ * DVP);
  for (int c = 0; c < BQ; c += VW) { VSTORE((T)(-INFINITY), 0, top + c); VSTORE((T)(0), 0, sum + c); }
  for (int i = 0; i < BQ; i++) all_sum[i] = 0;
  for (int j0 = 0; j0 < keys; j0 += BK) {
    const int kn = min(BK, keys - j0);
    if (j0 && j0 % SPAN_OF_KEYS == 0) join(O, sum, top, all, all_sum, all_top, rows, 1);
    rows_of(K, DP, K_OF(b, g) + (size_t)j0 * K_ROW, K_ROW, kn, D);
    rows_of(V, DVP, V_OF(b, g) + (size_t)j0 * V_ROW, V_ROW, kn, DV);
    multiply_by_key(S, K, DP, QT, D, kn, SEEN(i0, j0));
    for (int c = 0; c < rows; c += VW) {
      const int seen = HIDE(S + c, i0 + c, min(VW, rows - c));
      const T last = VLOAD(0, top + c);
      T high = last, part = (T)(0);
      for (int j = 0; j < seen; j++) high = fmax(high, VLOAD(0, S + j * BQ + c));
      const T by = FINITE(high), less = exp_of_negative(last - by);
      for (int j = 0; j < seen; j++) { const T e = exp_of_negative(VLOAD(0, S + j * BQ + c) - by); part += e; VSTORE(e, 0, S + j * BQ + c); }
      none_from(S + c, seen, kn);
      VSTORE(VLOAD(0, sum + c) * less + part, 0, sum + c);
      VSTORE(high, 0, top + c);
      VSTORE(less, 0, shrink + c);
    }
    for (int i = 0; i < rows; i++)
      if (shrink[i] != 1) for (int c = 0; c < DVP; c += VW) VSTORE(VLOAD(0, O + i * DVP + c) * shrink[i], 0, O + i * DVP + c);
    multiply(O, DVP, S, 1, BQ, V, DVP, rows, DVP, kn, 1, -ALL, SEEN(i0, j0));
  }
  if (keys > SPAN_OF_KEYS) join(O, sum, top, all, all_sum, all_top, rows, 0);
  for (int c = 0; c < rows; c += VW) {
    const T all = VLOAD(0, sum + c);
    if (lse) {
      store_n(WHERE(all == 0, INFINITY, VLOAD(0, top + c)), lse + (size_t)bh * Tq + i0 + c, rows - c);
      store_n(WHERE(all == 0, 0, log(all)), lse + SUMS + (size_t)bh * Tq + i0 + c, rows - c);
    }
    VSTORE(TOO_SHORT ? (T)(NAN) : WHERE(all == 0, 0, 1 / all), 0, sum + c);
  }
  for (int i = 0; i < rows; i++) {
    global real *to = o + AT_O(b, h) + (size_t)(i0 + i) * O_ROW;
    for (int c = 0; c < DV; c += VW) store_n(VLOAD(0, O + i * DVP + c) * sum[i], to + c, DV - c);
  }
}
#endif

#define BACKWARD_ARGS int batch, HEADS_ARGS, global const real *restrict o, global const real *restrict lse, global const real *restrict dy

#if defined(FOR_Q) && !defined(FOR_K)
kernel GROUP_SIZE void attention_backward_q(BACKWARD_ARGS, global real *dq) {
  UNPACK
  local real QT[D * BQ] __attribute__((aligned(64))), dOT[DV * BQ] __attribute__((aligned(64)));
  local real K[(BK + MR) * DP] __attribute__((aligned(64))), V[(BK + MR) * DVP] __attribute__((aligned(64)));
  local real S[BK * BQ] __attribute__((aligned(64))), dP[BK * BQ] __attribute__((aligned(64))), dQ[ROWS * DP] __attribute__((aligned(64)));
  real tops[BQ] __attribute__((aligned(64))), logs[BQ] __attribute__((aligned(64))), delta[BQ] __attribute__((aligned(64)));
  const int blocks = (Tq + BQ - 1) / BQ, i0 = get_global_id(0) % blocks * BQ, bh = get_global_id(0) / blocks, h = bh % H, b = bh / H;
  if (b >= batch) return;
  const int rows = min(BQ, Tq - i0), g = h / (H / G), keys = KEYS_OF(i0 + rows - 1);
  const size_t at = AT_O(b, h) + (size_t)i0 * O_ROW;
  copy_transposed(QT, BQ, Q_OF(b, h) + (size_t)i0 * Q_ROW, Q_ROW, rows, D);
  for (int c = 0; c < D * BQ; c += VW) VSTORE(VLOAD(0, QT + c) * scale, 0, QT + c);
  copy_transposed(dOT, BQ, dy + at, O_ROW, rows, DV);
  for (int i = 0; i < BQ; i++) {
    delta[i] = i < rows ? inner(o + at + (size_t)i * O_ROW, dy + at + (size_t)i * O_ROW, DV) : 0;
    tops[i] = i < rows ? lse[(size_t)bh * Tq + i0 + i] : 0;
    logs[i] = i < rows ? lse[SUMS + (size_t)bh * Tq + i0 + i] : 0;
  }
  zero(dQ, BQ * DP);
  for (int j0 = 0; j0 < keys; j0 += BK) {
    const int kn = min(BK, keys - j0);
    rows_of(K, DP, K_OF(b, g) + (size_t)j0 * K_ROW, K_ROW, kn, D);
    rows_of(V, DVP, V_OF(b, g) + (size_t)j0 * V_ROW, V_ROW, kn, DV);
    multiply_by_key(S, K, DP, QT, D, kn, SEEN(i0, j0));
    multiply_by_key(dP, V, DVP, dOT, DV, kn, SEEN(i0, j0));
    for (int c = 0; c < rows; c += VW) {
      const int seen = HIDE(S + c, i0 + c, min(VW, rows - c));
      const T top = VLOAD(0, tops + c), log_sum = VLOAD(0, logs + c), less = VLOAD(0, delta + c);
      for (int j = 0; j < seen; j++)
        VSTORE(exp_of_negative(VLOAD(0, S + j * BQ + c) - top - log_sum) * (VLOAD(0, dP + j * BQ + c) - less), 0, dP + j * BQ + c);
      none_from(dP + c, seen, kn);
    }
    multiply(dQ, DP, dP, 1, BQ, K, DP, rows, DP, kn, 1, -ALL, SEEN(i0, j0));
  }
  for (int i = 0; i < rows; i++) {
    global real *to = dq + (size_t)b * p.s4 + (size_t)h * p.s5 + (size_t)(i0 + i) * Q_ROW;
    for (int c = 0; c < D; c += VW) store_n(VLOAD(0, dQ + i * DP + c) * scale, to + c, D - c);
  }
}
#endif

#ifdef FOR_K
// A row of c for each of `rows` queries of a, a lane for each of BK keys of bT: their products, where the query sees some key of WIDE.
// The first query sees the first `seen` keys, and each one more.
INLINE void multiply_by_query(local real *c, local const real *a, int lda, local const real *bT, int depth, int rows, int seen) {
  if (seen >= BK) multiply(c, BK, a, lda, 1, bT, BK, rows, BK, depth, 0, -ALL, ALL);
  else
    for (int j = 0; j < BK; j += WIDE) {
      const int i = max(0, j + 1 - seen);
      multiply_pairs(c + i * BK + j, BK, a + i * lda, lda, 1, bT + j, BK, rows - i, WIDE, depth, 0, -ALL, ALL);
    }
}
// S becomes P = exp(S - top - log sum), the probabilities, and dP scale P (dP - delta): of `rows` queries from i0, a row each, and BK keys from j0,
// of which the first kn count
INLINE void slopes(local real *S, local real *dP, const real *tops, const real *logs, const real *delta, HEADS_ARGS, int b, int h, int i0, int rows,
                   int j0, int kn) {
  UNPACK
  const T lane = numbers();
  for (int i = 0; i < rows; i++) {
    local real *s = S + i * BK, *d = dP + i * BK;
    const int seen = min(kn, SEEN(i0 + i, j0));
#ifdef MASK
    for (int c = 0; c < kn; c++) s[c] += MASK_AT(b, h, i0 + i, j0 + c);
#endif
    int c = 0;
    for (; c < seen; c += VW) {
      T e = exp_of_negative(VLOAD(0, s + c) - tops[i] - logs[i]), slope = scale * e * (VLOAD(0, d + c) - delta[i]);
      if (c + VW > seen) e = WHERE(lane < seen - c, e, 0), slope = WHERE(lane < seen - c, slope, 0);
      VSTORE(e, 0, s + c);
      VSTORE(slope, 0, d + c);
    }
    zero(s + c, BK - c);
    zero(d + c, BK - c);
  }
}
#define SLOPES(S, dP, tops, logs, delta) slopes(S, dP, tops, logs, delta, p, r, m, q, k, v, mask, past, scale, b, h, i0, rows, j0, kn)

// With FOR_Q a work-item has a head of keys, and the gradients of its queries too, which then need no scores of their own. `deltas` is
// where it keeps, of each query, the sum of dO o.
#ifdef FOR_Q
kernel GROUP_SIZE void attention_backward(BACKWARD_ARGS, global real *dk, global real *dv, global real *dq, global real *deltas) {
#define DELTA(i, product) (j0 ? deltas[i] : (product))
#else
kernel GROUP_SIZE void attention_backward_k(BACKWARD_ARGS, global real *dk, global real *dv) {
#define DELTA(i, product) (product)
#endif
  UNPACK
  local real Q[ROWS * DP] __attribute__((aligned(64))), KT[D * BK] __attribute__((aligned(64))), VT[DV * BK] __attribute__((aligned(64)));
  local real S[ROWS * BK] __attribute__((aligned(64))), dP[ROWS * BK] __attribute__((aligned(64))), dO[ROWS * DVP] __attribute__((aligned(64)));
  real tops[BQ], logs[BQ], delta[BQ];
  local real dK[(BK + MR) * DP] __attribute__((aligned(64))), dV[(BK + MR) * DVP] __attribute__((aligned(64)));
#ifdef FOR_Q
  local real K[BK * DP] __attribute__((aligned(64))), dQ[ROWS * DP] __attribute__((aligned(64)));
  const int bg = get_global_id(0), start = 0, end = Tk;
#else
  const int blocks = (Tk + BK - 1) / BK, bg = get_global_id(0) / blocks, start = get_global_id(0) % blocks * BK, end = start + 1;
#endif
  const int g = bg % G, b = bg / G;
  if (b >= batch) return;
  for (int j0 = start; j0 < end; j0 += BK) {
    const int kn = min(BK, n - j0), every = min(BK, Tk - j0);
    zero(dK, BK * DP);
    zero(dV, BK * DVP);
    if (kn > 0 || !j0) {
      copy_transposed(KT, BK, K_OF(b, g) + (size_t)j0 * K_ROW, K_ROW, kn, D);
      for (int c = 0; c < D * BK; c += VW) VSTORE(VLOAD(0, KT + c) * scale, 0, KT + c);
      copy_transposed(VT, BK, V_OF(b, g) + (size_t)j0 * V_ROW, V_ROW, kn, DV);
#ifdef FOR_Q
      rows_of(K, DP, K_OF(b, g) + (size_t)j0 * K_ROW, K_ROW, kn, D);
#endif
      for (int h = g * (H / G); h < (g + 1) * (H / G); h++) for (int i0 = j0 ? FIRST_FOR(j0) / BQ * BQ : 0; i0 < Tq; i0 += BQ) {
        const int rows = min(BQ, Tq - i0), seen = SEEN(i0, j0);
        const size_t at = AT_O(b, h) + (size_t)i0 * O_ROW, row = ((size_t)b * H + h) * Tq + i0;
        rows_of(Q, DP, Q_OF(b, h) + (size_t)i0 * Q_ROW, Q_ROW, rows, D);
        rows_of(dO, DVP, dy + at, O_ROW, rows, DV);
        for (int i = 0; i < rows; i++) {
          tops[i] = lse[row + i];
          logs[i] = lse[SUMS + row + i];
          delta[i] = DELTA(row + i, inner(o + at + (size_t)i * O_ROW, dy + at + (size_t)i * O_ROW, DV));
        }
        multiply_by_query(S, Q, DP, KT, D, rows, seen);
        multiply_by_query(dP, dO, DVP, VT, DV, rows, seen);
        SLOPES(S, dP, tops, logs, delta);
        multiply(dV, DVP, S, 1, BK, dO, DVP, BK, DVP, rows, 1, 1 - seen, ALL);
        multiply(dK, DP, dP, 1, BK, Q, DP, BK, DP, rows, 1, 1 - seen, ALL);
#ifdef FOR_Q
        global real *to = dq + (size_t)b * p.s4 + (size_t)h * p.s5 + (size_t)i0 * Q_ROW;
        for (int i = 0; i < rows; i++) {
          if (j0) for (int c = 0; c < D; c += VW) VSTORE(load_n(to + (size_t)i * Q_ROW + c, D - c), 0, dQ + i * DP + c);
          else deltas[row + i] = delta[i];
        }
        multiply(dQ, DP, dP, BK, 1, K, DP, rows, DP, kn, j0, -ALL, seen);
        for (int i = 0; i < rows; i++, to += Q_ROW) for (int c = 0; c < D; c += VW) store_n(VLOAD(0, dQ + i * DP + c), to + c, D - c);
#endif
      }
    }
    for (int j = 0; j < every; j++) {
      global real *to_k = dk + (size_t)b * p.s7 + (size_t)g * p.s8 + (size_t)(j0 + j) * K_ROW;
      global real *to_v = dv + (size_t)b * r.s0 + (size_t)g * r.s1 + (size_t)(j0 + j) * V_ROW;
      for (int c = 0; c < D; c += VW) store_n(VLOAD(0, dK + j * DP + c), to_k + c, D - c);
      for (int c = 0; c < DV; c += VW) store_n(VLOAD(0, dV + j * DVP + c), to_v + c, DV - c);
    }
  }
}
#endif

#else
// ---- for GPUs ----------------------------------------------------------------------------------------------------------
#define UNROLL _Pragma("unroll")
#define LOAD(to, from, n) UNROLL for (int c_ = 0; c_ < (n); c_++) (to)[c_] = (from)[c_];
// Sums of a span are in registers, those of all spans in memory (long sums: common.cl)
#define EACH_SPAN_OF(from, until) int first = (from), end = (until); first < end; first += SPAN
static inline real inner(const real *a, global const real *b) { real s = 0; UNROLL for (int c = 0; c < D; c++) s += a[c] * b[c]; return s; }
static inline real dot_v(const real *a, global const real *b) { real s = 0; UNROLL for (int c = 0; c < DV; c++) s += a[c] * b[c]; return s; }

#ifdef FORWARD
kernel void attention_forward(int batch, HEADS_ARGS, global real *o, global real *lse) {
  UNPACK
  const int i = get_global_id(0) % Tq, bh = get_global_id(0) / Tq, h = bh % H, b = bh / H, g = h / (H / G);
  if (b >= batch) return;
  real mine[D], out[DV], top = -INFINITY, sum = 0;
  global real *to = o + AT_O(b, h) + (size_t)i * O_ROW;
  LOAD(mine, Q_OF(b, h) + (size_t)i * Q_ROW, D)
  if (p.sa > 0 && lse[(size_t)bh * Tq + i] != INFINITY) { top = lse[(size_t)bh * Tq + i]; sum = exp(lse[SUMS + (size_t)bh * Tq + i]); }
  UNROLL for (int c = 0; c < DV; c++) to[c] = sum == 0 ? 0 : to[c] * sum;  // the mean of keys before
  for (EACH_SPAN_OF(p.sa, min(p.sb, KEYS_OF(i)))) {
    const real before = top;
    real part = 0;
    UNROLL for (int c = 0; c < DV; c++) out[c] = 0;
    for (IN_SPAN(j, first, end)) {
      const real s = inner(mine, K_OF(b, g) + (size_t)j * K_ROW) * scale + MASK_AT(b, h, i, j), high = fmax(top, s);
      const real by = high == -INFINITY ? 0 : high, shrink = exp(top - by), e = exp(s - by);
      global const real *value = V_OF(b, g) + (size_t)j * V_ROW;
      UNROLL for (int c = 0; c < DV; c++) out[c] = out[c] * shrink + e * value[c];
      part = part * shrink + e;
      top = high;
    }
    const real shrink = exp(before - (top == -INFINITY ? 0 : top));
    UNROLL for (int c = 0; c < DV; c++) to[c] = to[c] * shrink + out[c];
    sum = sum * shrink + part;
  }
  UNROLL for (int c = 0; c < DV; c++) to[c] = TOO_SHORT ? (real)NAN : sum == 0 ? 0 : to[c] / sum;
  if (lse) { lse[(size_t)bh * Tq + i] = sum == 0 ? INFINITY : top; lse[SUMS + (size_t)bh * Tq + i] = sum == 0 ? 0 : log(sum); }
}
#endif
#define BACKWARD_ARGS int batch, HEADS_ARGS, global const real *restrict o, global const real *restrict lse, global const real *restrict dy
#ifdef FOR_Q
kernel void attention_backward_q(BACKWARD_ARGS, global real *dq) {
  UNPACK
  const int i = get_global_id(0) % Tq, bh = get_global_id(0) / Tq, h = bh % H, b = bh / H, g = h / (H / G);
  if (b >= batch) return;
  real mine[D], slope[DV], sum[D];
  const size_t at = AT_O(b, h) + (size_t)i * O_ROW;
  LOAD(mine, Q_OF(b, h) + (size_t)i * Q_ROW, D)
  LOAD(slope, dy + at, DV)
  global real *to = dq + (size_t)b * p.s4 + (size_t)h * p.s5 + (size_t)i * Q_ROW;
  if (!p.sa) UNROLL for (int c = 0; c < D; c++) to[c] = 0;
  const real delta = dot_v(slope, o + at), top = lse[(size_t)bh * Tq + i], log_sum = lse[SUMS + (size_t)bh * Tq + i];
  for (EACH_SPAN_OF(p.sa, min(p.sb, KEYS_OF(i)))) {
    UNROLL for (int c = 0; c < D; c++) sum[c] = 0;
    for (IN_SPAN(j, first, end)) {
      global const real *key = K_OF(b, g) + (size_t)j * K_ROW;
      const real e = exp(inner(mine, key) * scale + MASK_AT(b, h, i, j) - top - log_sum);
      const real d = e * (dot_v(slope, V_OF(b, g) + (size_t)j * V_ROW) - delta);
      UNROLL for (int c = 0; c < D; c++) sum[c] += d * key[c];
    }
    UNROLL for (int c = 0; c < D; c++) to[c] += sum[c] * scale;
  }
}
#endif
#ifdef FOR_K
kernel void attention_backward_k(BACKWARD_ARGS, global real *dk, global real *dv) {
  UNPACK
  const int j = get_global_id(0) % Tk, bg = get_global_id(0) / Tk, g = bg % G, b = bg / G;
  if (b >= batch) return;
  real key[D], value[DV], sum_k[D], sum_v[DV];
  LOAD(key, K_OF(b, g) + (size_t)j * K_ROW, D)
  LOAD(value, V_OF(b, g) + (size_t)j * V_ROW, DV)
  global real *to_k = dk + (size_t)b * p.s7 + (size_t)g * p.s8 + (size_t)j * K_ROW, *to_v = dv + (size_t)b * r.s0 + (size_t)g * r.s1 + (size_t)j * V_ROW;
  if (!p.sa) {
    UNROLL for (int c = 0; c < D; c++) to_k[c] = 0;
    UNROLL for (int c = 0; c < DV; c++) to_v[c] = 0;
  }
  for (int h = g * (H / G); h < (j < n ? (g + 1) * (H / G) : 0); h++) for (EACH_SPAN_OF(max(p.sa, FIRST_FOR(j)), min(p.sb, Tq))) {
    UNROLL for (int c = 0; c < D; c++) sum_k[c] = 0;
    UNROLL for (int c = 0; c < DV; c++) sum_v[c] = 0;
    for (IN_SPAN(i, first, end)) {
      global const real *query = Q_OF(b, h) + (size_t)i * Q_ROW, *slope = dy + AT_O(b, h) + (size_t)i * O_ROW;
      global const real *out = o + AT_O(b, h) + (size_t)i * O_ROW;
      const size_t row = ((size_t)b * H + h) * Tq + i;
      const real e = exp(inner(key, query) * scale + MASK_AT(b, h, i, j) - lse[row] - lse[SUMS + row]);
      real delta = 0;
      UNROLL for (int c = 0; c < DV; c++) delta += slope[c] * (value[c] - out[c]);
      UNROLL for (int c = 0; c < DV; c++) sum_v[c] += e * slope[c];
      UNROLL for (int c = 0; c < D; c++) sum_k[c] += e * delta * query[c];
    }
    UNROLL for (int c = 0; c < D; c++) to_k[c] += sum_k[c] * scale;
    UNROLL for (int c = 0; c < DV; c++) to_v[c] += sum_v[c];
  }
}
#endif
#endif
