// Convolution and its gradients for GPUs, as a product of matrices (implicit GEMM).
//
// A (M, depth) times B (depth, columns) in tiles of TILE x TILE by groups of SIDE x SIDE work-items, EACH x EACH a work-item. SIDE
// is 16, or as small a power of 2 as the device needs it.
//   forward   A = weights (K, C TAPS), B = inputs (C TAPS, N positions), gathered
//   WEIGHTS   A = dy (K, N positions), B = inputs (N positions, C TAPS and a column of ones), gathered; `depth` a part
//   UP        inputs have zeros between them
//
// A position and a tap together say which input is meant: where it is, is the sum of the two places. What belongs to a column of B
// is found once. What belongs to its rows, KC work-items find for all, a step ahead, and by counting on: the loop has no division.
#include "conv.cl"
#define EACH 4
#define TILE (SIDE * EACH)
#define KC_float 16
#define KC_double 8  // for a and b to fit 32 KB
#define KC (SIDE < 4 ? SIDE * SIDE : CAT(KC_, REAL))
#define FETCH (TILE * KC / (SIDE * SIDE))
typedef CAT(REAL, 4) real4;

// Numbers with digits, the least first: a tap (kw, kh, kd, c) and a position (w, h, d, n)
INLINE uint4 digits(uint e, uint4 base) {
  return (uint4)(e % base.x, e / base.x % base.y, e / base.x / base.y % base.z, e / base.x / base.y / base.z);
}
INLINE uint4 counted_on(uint4 a, uint4 by, uint4 base) {
  a += by;
  if (a.x >= base.x) { a.x -= base.x; a.y++; }
  if (a.y >= base.y) { a.y -= base.y; a.z++; }
  if (a.z >= base.z) { a.z -= base.z; a.w++; }
  return a;
}

typedef struct {
  uint4 at;    // column, row, plane, and number in x; below 0 they wrap around, which makes them too large
#ifdef UP
  int4 rest;   // of column, row and plane, which are divided by those of UP
#endif
} Place;
#define NOWHERE 0x80000000u  // is too large, whatever place is added
INLINE Place place_of(uint4 at, int16 p, int16 q) {  // column, row, plane, channel
  UNPACK
  Place to;
#ifdef UP
  const int4 by = (int4)(UW, UH, UD, 1), v = as_int4(at), down = select(v / by, (v + 1) / by - 1, v < 0);
  to.rest = v - down * by;
  at = as_uint4(down);
#endif
  to.at = (uint4)(at.xyz, ((at.w * ID + at.z) * IH + at.y) * IW + at.x);
  return to;
}
INLINE Place place_of_tap(uint4 t, int16 p, int16 q) {
  UNPACK
  return place_of((uint4)(t.x * DW, t.y * DH, t.z * DD, t.w), p, q);
}
INLINE Place place_of_position(uint4 t, int g, int16 p, int16 q) {
  UNPACK
  return place_of((uint4)(t.x * SW - PW, t.y * SH - PH, t.z * SD - PD, (t.w * G + g) * C), p, q);
}
// The input at the sum of two places, `outside` where there is none: then x[0] is read and dropped, which costs less than a branch
INLINE real gather(int16 p, int16 q, global const real *x, Place one, Place other, real outside) {
  UNPACK
  uint4 at = one.at + other.at;
  int inside = 1;
#ifdef UP
  const int4 rest = one.rest + other.rest;  // 0 and UP are none
  const int w = rest.x == UW, h = rest.y == UH, d = rest.z == UD;
  inside = (!rest.x | w) & (!rest.y | h) & (!rest.z | d);
  at += (uint4)(w, h, d, (d * IH + h) * IW + w);
#endif
  inside &= (at.x < (uint)IW) & (at.y < (uint)IH) & (at.z < (uint)ID);
  const real value = x[inside ? at.w : 0];
  return inside ? value : outside;
}

// Which rows and columns of a tile a work-item has: neighbours have neighbouring results. What is EACH in a row is read at once.
#ifdef WEIGHTS
#define COLUMN_OF(v) (tx * EACH + (v))
#define B_ROW(f) kk                                              // what of B a work-item fetches
#define B_COLUMN(f) (((f) * SIDE * SIDE + me) / KC)
#define APART P                                                  // from row to row of A
#define START(e, n) ((uint)(n) * (G * K - 1) * P + (e))          // of A's column e in the group's part of it, at row 0
#else
#define COLUMN_OF(v) ((v) * SIDE + tx)
#define B_ROW(f) (((f) * SIDE * SIDE + me) / TILE)
#define B_COLUMN(f) (((f) * SIDE * SIDE + me) % TILE)
#ifdef FLIP
#define APART TAPS
#define START(e, c) ((uint)(c) * (K + 1) * TAPS + TAPS - 1 - (e))
#else
#define APART (C * TAPS)
#define START(e, c) (e)
#endif
#endif

kernel __attribute__((reqd_work_group_size(SIDE * SIDE, 1, 1)))
void conv_local(int16 p, int16 q, int N, global const real *x, global const real *w, global const real *factor, global const real *bias, global real *y,
                global real *saved, global const real2 *scale, global const int *at) {
  UNPACK
  const int column = q.sd, depth = q.se, P = OD * OH * OW, me = get_local_id(0);
#ifdef WEIGHTS
  const int columns = C * TAPS + 1, all = N * P, tx = me / SIDE, ty = me % SIDE;
#else
  const int columns = N * P, all = C * TAPS, tx = me % SIDE, ty = me / SIDE;
#endif
  const int across = (columns + TILE - 1) / TILE, high = (K + TILE - 1) / TILE;
  int item = get_group_id(0);
  const int j0 = item % across * TILE; item /= across;
  const int i0 = item % high * TILE; item /= high;
  const int g = item % G, part = item / G, begin = part * depth, end = min(all, begin + depth);
  local real a[2][KC][TILE + EACH] __attribute__((aligned(sizeof(real4)))), b[2][KC][TILE + EACH] __attribute__((aligned(sizeof(real4))));
  local Place rows[2][KC];  // of B, for the next step
  local uint starts[2][KC];
  const int kk = me % KC;
#ifdef WEIGHTS
  w += (size_t)g * K * P;
  const uint4 base = (uint4)(OW, OH, OD, 1);
#define ROW_PLACE(t) place_of_position(t, g, p, q)
  Place mine[FETCH];
  real ones[FETCH];
  UNROLL for (int f = 0; f < FETCH; f++) {
    const int j = j0 + (f * SIDE * SIDE + me) / KC;
    mine[f] = place_of_tap(digits(min(j, columns - 1), (uint4)(KW, KH, KD, 1)), p, q);
    ones[f] = j == columns - 1;
    if (j >= columns - 1) mine[f].at.y = NOWHERE;  // twice the same axis would make it 0
  }
#else
  w += (size_t)g * K * C * TAPS;
  const uint4 base = (uint4)(KW, KH, KD, 1);
#define ROW_PLACE(t) place_of_tap(t, p, q)
#define MINE ((TILE + SIDE * SIDE - 1) / (SIDE * SIDE))  // columns of B that a work-item fetches
  Place mine[MINE];
  UNROLL for (int f = 0; f < MINE; f++)
    mine[f] = place_of_position(digits(min(j0 + f * SIDE * SIDE + me % TILE, columns - 1), (uint4)(OW, OH, OD, 1)), g, p, q);
#endif
  uint of_a[FETCH];  // where the rows of A start
  UNROLL for (int f = 0; f < FETCH; f++) of_a[f] = (uint)min(i0 + (f * SIDE * SIDE + me) / KC, K - 1) * APART;
  const uint4 by = digits(KC, base);
  uint4 row = digits(begin + kk, base);

#define PREPARE(now, k0)                                                                                                  \
  if (me < KC) {                                                                                                          \
    Place to = ROW_PLACE(row);                                                                                            \
    if ((k0) + me >= end) to.at.x = NOWHERE;                                                                              \
    rows[now][me] = to;                                                                                                   \
    starts[now][me] = START((k0) + me, row.w);                                                                            \
    row = counted_on(row, by, base);                                                                                      \
  }
#ifdef WEIGHTS
#define GATHERED(now, f) gather(p, q, x, rows[now][kk], mine[f], ones[f])
#else
#define GATHERED(now, f) gather(p, q, x, mine[(f) % MINE], rows[now][B_ROW(f)], 0)
#endif
#define FETCH_STEP(now, k0)                                                                                               \
  {                                                                                                                       \
    const int there = (k0) + kk < end;                                                                                    \
    const uint start = there ? starts[now][kk] : 0;                                                                       \
    UNROLL for (int f = 0; f < FETCH; f++) {                                                                              \
      const real value = w[start + of_a[f]];                                                                              \
      next_a[f] = there ? value : 0;                                                                                      \
      next_b[f] = GATHERED(now, f);                                                                                       \
    }                                                                                                                     \
  }
  real next_a[FETCH], next_b[FETCH];
  real acc[EACH][EACH], total[EACH][EACH];                // of up to LONGEST products, and of those before (long sums: common.cl)
  UNROLL for (int r = 0; r < EACH; r++) UNROLL for (int v = 0; v < EACH; v++) total[r][v] = 0;
  PREPARE(1, begin)
  barrier(CLK_LOCAL_MEM_FENCE);
  FETCH_STEP(1, begin)
  int now = 0;  // which buffer: the other is still read while this one is written, and one barrier a step is enough
  for (int from = begin; from < end; from += LONGEST) {
    UNROLL for (int r = 0; r < EACH; r++) UNROLL for (int v = 0; v < EACH; v++) acc[r][v] = 0;
    for (int k0 = from; k0 < min(end, from + LONGEST); k0 += KC, now ^= 1) {
      UNROLL for (int f = 0; f < FETCH; f++) {
        a[now][kk][(f * SIDE * SIDE + me) / KC] = next_a[f];
        b[now][B_ROW(f)][B_COLUMN(f)] = next_b[f];
      }
      PREPARE(now, k0 + KC)
      barrier(CLK_LOCAL_MEM_FENCE);
      FETCH_STEP(now, k0 + KC)
      UNROLL for (int k = 0; k < KC; k++) {
        const real4 four = ((local const real4 *)a[now][k])[ty];
        const real av[EACH] = {four.x, four.y, four.z, four.w};
        real bv[EACH];
        UNROLL for (int v = 0; v < EACH; v++) bv[v] = b[now][k][COLUMN_OF(v)];
        UNROLL for (int r = 0; r < EACH; r++) UNROLL for (int v = 0; v < EACH; v++) acc[r][v] += av[r] * bv[v];
      }
    }
    UNROLL for (int r = 0; r < EACH; r++) UNROLL for (int v = 0; v < EACH; v++) total[r][v] += acc[r][v];
  }
  UNROLL for (int v = 0; v < EACH; v++) UNROLL for (int r = 0; r < EACH; r++) {
    const int i = i0 + ty * EACH + r, j = j0 + COLUMN_OF(v);
    if (i < K && j < columns) {
#ifdef WEIGHTS
      y[(((size_t)part * G + g) * columns + j) * K + i] = total[r][v];
#else
      const size_t to = (((size_t)(j / P) * G + g) * K + i) * P + j % P;
      const real by = FACTOR_OF(g * K + i), shift = BIAS_OF(g * K + i);
      y[to] = epilogue(total[r][v], by, shift, saved + to, saved + to, y + to, 1, PAIR);
#endif
    }
  }
}
