// C (M, N) = epilogue(op(A) (M, K) . op(B) (K, N)), row-major, any M, N, K, leading dimensions and offsets.
//
//            N                  gemm_tile: a work-item owns MC x NC of C (the host says which) and goes over it in strips of
//        +-----+  B             NR = NV * VW columns and tiles of MR rows, held in MR * NV vector registers: per k, a row of
//      K |  #  |                NR values of B times a column of MR values of A. COPY copies blocks of B first,
//        +-----+                and of A if it is transposed, KC deep, to local memory. On a CPU that is the thread's own scratch:
//    K   +-----+                the copy stays in this core's cache (lines shared by two cores are slow to fetch), has no large
//  +---+ |     |                strides, and transposes B only once.
// M|###| |  #  | C              gemm_row, for up to 3 rows of A (inference of single samples): B is read in long runs.
//  +---+ +-----+                gemm_local, for GPUs: a work-group owns a tile of C and stages operands in local memory.
//                               Where M x N is too small to fill the device, K is split: the partial products are stored
//                               one after the other, and gemm_sum adds them and applies the epilogue.
//
// Epilogue, in this order, each part there only if its define is:
//   SCALED  alpha * s + beta * C, the pair from a scale table (sink.cl)
//   TIMES_DERIVATIVE: the product is multiplied by ACT's derivative at SAVED (M, N) before beta * C is added
//   BIAS    + bias (N)
//   KEEP    ACT's derivative at the value so far goes to SAVED: of activations whose derivative needs x
//   ACT     f(...), unless TIMES_DERIVATIVE
//   SUMS    beside it: D (N) = alpha * column sums of op(B) + beta * D, with a pair of its own (NN and TN only)
// HALVES: B holds halves, not transposed; sums are of floats, as reading halves is in the core of OpenCL C and computing with them is
// not. gemm_row and gemm_tile without COPY can do that.
#ifndef MR
#define MR 4   // rows of C in registers
#endif
#ifndef NV
#define NV 2   // vectors of C a row
#endif
#ifndef VW
#define VW 4   // lanes a vector: the device's width
#endif
#ifndef KC
#define KC 16  // depth of what is copied at a time
#endif
#ifdef SCALED
#define PAIR SCALE(scale, at, s.sa)
#endif
#include "sink.cl"

#define NR (NV * VW)

#ifdef HALVES
#define B_REAL half
#define B_LOAD(i, p) CAT(vload_half, VW)(i, p)
#else
#define B_REAL real
#define B_LOAD(i, p) VLOAD(i, p)
#endif

#ifdef FROM_SET
#define FROM_ARGS , global const int *order, global const int *state
#define FROM_USED , order, state
#else
#define FROM_ARGS
#define FROM_USED
#endif
// s: M N K, leading dimensions of A B C, steps from one A B C of a batch to the next, whether j runs first, the columns of the pairs for C
// and for D, MC, NC, the depth of a part where K is split (else 0), and how deep to go at a time where nothing is copied
#define ARGS int16 s, global const real *restrict A, global const B_REAL *restrict B, global real *C, global const real *bias, \
  global real *saved, global real *D, global const real2 *scale, global const int *at FROM_ARGS
#define UNPACK                                                                                                        \
  const int M = s.s0, N = s.s1, K = s.s2, lda = s.s3, ldb = s.s4, ldc = s.s5, depth = s.se;                           \
  const real2 pair = PAIR;                                                                                            \
  const size_t batch = get_global_id(1);                                                                              \
  A += batch * s.s6; B += batch * s.s7; C += batch * s.s8; saved += batch * M * N;

// What becomes of the sum x of one vector of C at row, col. `later`: C already holds the products of earlier k.
INLINE T epilogue(T x, int later, int last, global const real *c, global const real *bias, global real *saved, int N,
                  int row, int col, int n, real2 pair) {
  // where C holds alpha times the products of earlier k already, beta is 1
  x = sunk(x, saved + (size_t)row * N + col, c, n, (real2)(pair.x, later ? 1 : pair.y));
  if (!last) return x;
#ifdef BIAS
  x += VLOAD(0, bias + col);
#endif
#ifdef KEEP
  store_n(DERIVATIVE(x), saved + (size_t)row * N + col, n);
#endif
#ifndef TIMES_DERIVATIVE
  x = ACTIVATE(x);
#endif
  return x;
}

#ifdef SUMS
// D[c] for the columns [j, end) of B, four vectors at a time: long runs of each row
INLINE void column_sums(int N, int K, int j, int end, global const real *B, int ldb, global real *D, real2 pair) {
  for (int c = j; c < end; c += 4 * VW) {
    const int vectors = min(4, (end - c + VW - 1) / VW);
    real t[4 * VW] __attribute__((aligned(64))), lost[4 * VW] __attribute__((aligned(64)));
    UNROLL for (int v = 0; v < 4; v++) { VSTORE((T)(0), v, t); VSTORE((T)(0), v, lost); }
    global const real *b = B + c;
    for (EACH_SPAN(first, K)) {
      T x[4];
      UNROLL for (int v = 0; v < 4; v++) x[v] = (T)(0);
      if (vectors == 4) for (IN_SPAN(k, first, K), b += ldb) UNROLL for (int v = 0; v < 4; v++) x[v] += VLOAD(v, b);
      else for (IN_SPAN(k, first, K), b += ldb) UNROLL for (int v = 0; v < 3; v++) if (v < vectors) x[v] += VLOAD(v, b);
      UNROLL for (int v = 0; v < 4; v++) {
        T all = VLOAD(v, t), all_lost = VLOAD(v, lost);
        ADD_TO(T, all, x[v])
        VSTORE(all, v, t);
        VSTORE(all_lost, v, lost);
      }
    }
    for (int v = 0; v < vectors; v++) {
      global real *d = D + c + v * VW;
      const int n = N - c - v * VW;
      const T all = VLOAD(v, t), all_lost = VLOAD(v, lost);
      store_n(AXPBY(pair, WHOLE(all), load_n(d, n)), d, n);
    }
  }
}
#endif

// FROM_SET: A is the whole data set, and row r of a mini-batch is its row order[first + r]
#ifdef FROM_SET
#if TA
#define FROM(r) ROW_OF(r, order, state, 2)
#else
#define FROM(r) ROW_OF(r, order, state, 0)
#endif
#else
#define FROM(r) (r)
#endif

// The rows of the next mini-batch, which follow in `order`, are fetched from memory while those of this one, a few, are last
// used. Numbers past the order's end (in the SLACK that every block has) are no rows: nothing is read of those.
#if defined(FROM_SET) && defined(STACK) && TA
#define FEW_ROWS 32
#define FETCH_AHEAD(A, lda, i, rows)                                                                                      \
  if (rows <= FEW_ROWS)                                                                                                   \
    for (int r = rows; r < 2 * rows; r++) __builtin_prefetch((const void *)(size_t)(A + (size_t)FROM(r) * lda + i), 0, 2);
#else
#define FETCH_AHEAD(A, lda, i, rows) ;
#endif

// What the epilogue reads of a tile is fetched while a tile of some depth is summed up: short pieces of many rows
// are what processors do not foresee, and each would be waited for.
#ifdef STACK
#define DEEP_ENOUGH 64
INLINE void fetch_tile(global const real *p, int ld, int rows) {
  for (int r = 0; r < rows; r++, p += ld)
    UNROLL for (int v = 0; v < NV; v++) __builtin_prefetch((const void *)(size_t)(p + v * VW), 1, 2);
}
#endif

#ifdef WIDTH
#define GROUP_SIZE
#else
#define GROUP_SIZE __attribute__((reqd_work_group_size(1, 1, 1)))
#endif

#ifdef SUM
// C = epilogue(the sum of `parts` partial products), a vector a work-item
kernel void gemm_sum(int16 s, int parts, global const real *partial, global real *C, global const real *bias, global real *saved,
                     global const real2 *scale, global const int *at) {
  const int M = s.s0, N = s.s1, ldc = s.s5, col = get_global_id(0) * VW, row = get_global_id(1);
  if (col >= N || row >= M) return;
  const real2 pair = PAIR;
  TOTAL(T, sum);
  const size_t batch = get_global_id(2);
  for (int part = 0; part < parts; part++) ADD_TO(T, sum, VLOAD(0, partial + ((batch * parts + part) * M + row) * N + col))
  global real *o = C + batch * s.s8 + (size_t)row * ldc + col;
  saved += batch * M * N;
  store_n(epilogue(WHOLE(sum), 0, 1, o, bias, saved, N, row, col, N - col, pair), o, N - col);
}

#elif defined(ROW)
// Where B is in memory, not in caches, its next eight rows are fetched meanwhile: processors foresee runs once they have begun, late
// where these are of a few kilobytes.
#define FAR (1 << 20)  // elements of B
#ifdef STACK
#define FETCH_ROWS(p) \
  if (far) UNROLL for (int r = 8; r < 16; r++) __builtin_prefetch((const void *)(size_t)((p) + r * (size_t)ldb), 0, 3);
#else
#define FETCH_ROWS(p)
#endif

// MR rows of A, all there are, times up to NC columns of B as it is stored: eight rows of B at a time are added up in local memory,
// so that B is read once, in runs of kilobytes. For few rows and a large B, of which each value counts only M times.
kernel GROUP_SIZE void gemm_row(ARGS) {
  UNPACK
  local real sums[MR * NC] __attribute__((aligned(64)));
  const int along = (N + s.sd - 1) / s.sd, g = get_global_id(0), tile = g % along, part = g / along;
  const int begin = part * depth, end = depth ? min(K, begin + depth) : K, j = tile * s.sd, n = min(N - j, s.sd);
  if (depth ? begin >= K : part > 0) return;
  C += (size_t)part * M * N;
  global const B_REAL *b = B + (size_t)begin * ldb + j;
  const int far = (size_t)K * N > FAR;
  for (int i = 0; i < MR; i++) for (int c = 0; c < n; c += VW) VSTORE((T)(0), 0, sums + i * NC + c);
  int k = begin;
  for (; k + 8 <= end; k += 8, b += 8 * (size_t)ldb) {
    real a[MR][8];
    UNROLL for (int i = 0; i < MR; i++) UNROLL for (int r = 0; r < 8; r++) a[i][r] = A[(size_t)FROM(i) * lda + k + r];
    for (int c = 0; c < n; c += VW) {
      FETCH_ROWS(b + c)
      T bv[8];
      UNROLL for (int r = 0; r < 8; r++) bv[r] = B_LOAD(0, b + r * (size_t)ldb + c);
      UNROLL for (int i = 0; i < MR; i++) {
        const T x = (T)(a[i][0]) * bv[0] + (T)(a[i][1]) * bv[1], y = (T)(a[i][2]) * bv[2] + (T)(a[i][3]) * bv[3];
        const T z = (T)(a[i][4]) * bv[4] + (T)(a[i][5]) * bv[5], w = (T)(a[i][6]) * bv[6] + (T)(a[i][7]) * bv[7];
        VSTORE(VLOAD(0, sums + i * NC + c) + ((x + y) + (z + w)), 0, sums + i * NC + c);
      }
    }
  }
  for (; k < end; k++, b += ldb)
    for (int i = 0; i < MR; i++) {
      const T x = (T)(A[(size_t)FROM(i) * lda + k]);
      for (int c = 0; c < n; c += VW) VSTORE(VLOAD(0, sums + i * NC + c) + x * B_LOAD(0, b + c), 0, sums + i * NC + c);
    }
  for (int i = 0; i < MR; i++)
    for (int c = 0; c < n; c += VW) {
      global real *o = C + (size_t)i * ldc + j + c;
      const T x = VLOAD(0, sums + i * NC + c);
      store_n(depth ? x : epilogue(x, 0, 1, o, bias, saved, N, i, j + c, n - c, pair), o, n - c);
    }
}

#else
// ---- tile -----------------------------------------------------------------------------------------------------------
#define COPY_A (COPY && TA)  // rows of A are read in runs where they are
#if COPY_A
#define A_K (MC + 16)  // from one k to the next, not a power of two: they must not share cache sets
#define A_ARGS local const real *copy, int i
#define A_ROWS local const real *a = copy + i;
#define A_ROW_OF_K
#define A_AT(r, k) a[(k) * A_K + (r)]
#elif TA
#define A_ARGS global const real *A, int lda, int i, int rows, int k0 FROM_ARGS
#define A_ROWS
#define A_ROW_OF_K global const real *a = A + (size_t)FROM(k0 + k) * lda + i;
#define A_AT(r, k) a[r]
#else
#define A_ARGS global const real *A, int lda, int i, int rows, int k0 FROM_ARGS
#define A_ROWS \
  global const real *a[MR]; UNROLL for (int r = 0; r < MR; r++) a[r] = A + (size_t)FROM(i + min(r, rows - 1)) * lda + k0;
#define A_ROW_OF_K
#define A_AT(r, k) a[r][k]
#endif

// Where among n columns vector v of a row starts. Of less than NR columns, the last vectors overlap those before: then a row
// is read and written in whole vectors, and what is computed twice comes out the same. (A copy is made of whole strips.)
#if COPY
#define FIRST(v) ((v) * VW)
#define LONG NR       // columns from which a row is read and written so
#define B_SPACE local
#define B_VECTOR(v) VLOAD(v, b)
#else
#define FIRST(v) max(0, min((v) * VW, n - VW))
#define LONG VW
#define B_SPACE global
#if TB
#define B_VECTOR(v) gather(b + k, ldb, FIRST(v), n)
#else
#define B_VECTOR(v) B_LOAD(0, b + FIRST(v))
#endif
#endif
#if TB && !COPY
#define B_NEXT
INLINE T gather(global const real *b, int ldb, int first, int n) {  // one value of each of VW rows
  real t[VW];
  UNROLL for (int l = 0; l < VW; l++) t[l] = b[(size_t)min(first + l, n - 1) * ldb];
  return VLOAD(0, t);
}
#else
#define B_NEXT b += ldb
#endif

// A weight gradient's sums, of which the epilogue makes little, go to C from their registers where the tile is whole
#if defined(SCALED) && !defined(TIMES_DERIVATIVE) && !defined(BIAS) && !defined(KEEP) && !COPY
#define DIRECT
#define C_ARGS , int whole, global real *c, int ldc, real2 pair
#define C_USED , whole, C + (size_t)i * ldc + j, ldc, pair
#else
#define C_ARGS
#define C_USED
#endif

// t (MR, NR) = MR rows of A from i, times n columns of B, over kc values of k from k0. The last tile may have rows past
// the end of A: they are read (every block has SLACK bytes after it), computed and discarded.
APART void multiply(A_ARGS, B_SPACE const B_REAL *b, int ldb, int n, int kc, real *t C_ARGS) {
  A_ROWS
  T acc[MR][NV], bv[NV];
  UNROLL for (int r = 0; r < MR; r++) UNROLL for (int v = 0; v < NV; v++) acc[r][v] = (T)(0);
  for (int k = 0; k < kc; k++) {
    UNROLL for (int v = 0; v < NV; v++) bv[v] = B_VECTOR(v);
    A_ROW_OF_K
    UNROLL for (int r = 0; r < MR; r++) {
      const T x = (T)(A_AT(r, k));
      UNROLL for (int v = 0; v < NV; v++) acc[r][v] += x * bv[v];
    }
    B_NEXT;
  }
#ifdef DIRECT
  if (whole) {
    UNROLL for (int r = 0; r < MR; r++, c += ldc) {
      UNROLL for (int v = 0; v < NV; v++) acc[r][v] = epilogue(acc[r][v], 0, 1, c + FIRST(v), 0, 0, 0, 0, 0, VW, pair);
      UNROLL for (int v = 0; v < NV; v++) VSTORE(acc[r][v], 0, c + FIRST(v));
    }
    return;
  }
#endif
  UNROLL for (int r = 0; r < MR; r++) UNROLL for (int v = 0; v < NV; v++) VSTORE(acc[r][v], r * NV + v, t);
}

// rows x n of C from t
INLINE void finish(real *t, int rows, int n, int part, int later, int last, global real *C, int ldc,
                   global const real *bias, global real *saved, int N, int row, int col, real2 pair) {
#define FINISHED(x, c, n)                                                                         \
  if (!part) x = epilogue(x, later, last, o + (c), bias, saved, N, row + r, col + (c), n, pair); \
  else if (later) x += load_n(o + (c), n);
  for (int r = 0; r < rows; r++, t += NR) {
    global real *o = C + (size_t)(row + r) * ldc + col;
    if (n >= LONG) {
      T x[NV];
      UNROLL for (int v = 0; v < NV; v++) {  // all are read before the first is written
        x[v] = VLOAD(v, t);
        FINISHED(x[v], FIRST(v), VW)
      }
      UNROLL for (int v = 0; v < NV; v++) VSTORE(x[v], 0, o + FIRST(v));
      continue;
    }
    for (int c = 0; c < n; c += VW) {
      T x = VLOAD(0, t + c);
      FINISHED(x, c, n - c)
      store_n(x, o + c, n - c);
    }
  }
}

kernel GROUP_SIZE void gemm_tile(ARGS) {
  UNPACK
#if COPY_A
  local real copy_a[KC * A_K + MR] __attribute__((aligned(64)));
#endif
#if COPY
  local real copy_b[KC * NC] __attribute__((aligned(64)));
#endif
  real t[MR * NR] __attribute__((aligned(64)));
  const int MCs = s.sc, NCs = s.sd, down = (M + MCs - 1) / MCs, along = (N + NCs - 1) / NCs;
  const int g = get_global_id(0), tile = g % (down * along), part = g / (down * along);
  const int begin = part * depth, end = depth ? min(K, begin + depth) : K;
  if (depth ? begin >= K : part > 0) return;                      // work-items that fill the last group of a GPU
  const int top = (s.s9 ? tile / along : tile % down) * MCs, j0 = (s.s9 ? tile % along : tile / down) * NCs;
  const int bottom = min(M, top + MCs), j1 = min(N, j0 + NCs);
#ifdef SUMS
  if (top == 0 && begin == 0) column_sums(N, K, j0, j1, B, ldb, D, SCALE(scale, at, s.sb));
#endif
  C += (size_t)part * M * N;
#if COPY_A
#define ROWS_AT_ONCE MC
#else
#define ROWS_AT_ONCE MCs
#endif
#if COPY
#define DEPTH_AT_ONCE KC
#else
#define DEPTH_AT_ONCE s.sf
#endif
  for (int i0 = top; i0 < bottom; i0 += ROWS_AT_ONCE) for (int k0 = begin; k0 < end || k0 == begin; k0 += DEPTH_AT_ONCE) {
    const int i1 = min(bottom, i0 + ROWS_AT_ONCE), kc = min(DEPTH_AT_ONCE, end - k0);
#if COPY_A
    for (int k = 0; k < kc; k++) copy_row(copy_a + k * A_K, A + (size_t)FROM(k0 + k) * lda + i0, i1 - i0, i1 - i0);
#endif
#if COPY
    for (int jb = j0; jb < j1; jb += NC) {
      const int je = min(j1, jb + NC);
#if TB
      for (int j = jb; j < je; j += NR)
        copy_transposed(copy_b + (j - jb) * KC, NR, B + (size_t)j * ldb + k0, ldb, min(NR, je - j), kc);
#else
      for (int k = 0; k < kc; k++) {  // row by row through all strips: long runs, which processors fetch ahead
        global const real *from = B + (size_t)(k0 + k) * ldb + jb;
        int j = 0;
        for (; j + NR <= je - jb; j += NR)
          UNROLL for (int v = 0; v < NV; v++) VSTORE(VLOAD(v, from + j), v, copy_b + j * KC + k * NR);
        if (j < je - jb) copy_row(copy_b + j * KC + k * NR, from + j, je - jb - j, NR);
      }
#endif
#else
    {
      const int jb = j0, je = j1;
#endif
      for (int j = jb; j < je; j += NR) {
        const int n = min(NR, je - j);
#if !COPY && TB
        global const real *from = B + (size_t)j * ldb + k0;
#elif !COPY
        global const B_REAL *from = B + (size_t)k0 * ldb + j;
#endif
#if COPY
#define B_USED copy_b + (j - jb) * KC, NR, n, kc, t
#else
#define B_USED from, ldb, n, kc, t
#endif
#if COPY_A
#define A_USED copy_a, i - i0
#else
#define A_USED A, lda, i, rows, k0 FROM_USED
#endif
        for (int i = i0; i < i1; i += MR) {
          const int rows = min(MR, i1 - i);
          if (j == j0) FETCH_AHEAD(A, lda, i, K)
#ifdef STACK
          if (kc >= DEEP_ENOUGH) {
#ifdef SCALED
            fetch_tile(C + (size_t)i * ldc + j, ldc, rows);
#endif
#ifdef TIMES_DERIVATIVE
            fetch_tile(saved + (size_t)i * N + j, N, rows);
#endif
          }
#endif
#ifdef DIRECT
          const int whole = rows == MR && n >= VW && !depth && kc == K;
#else
          const int whole = 0;
#endif
          multiply(A_USED, B_USED C_USED);
          if (!whole) finish(t, rows, n, depth, k0 > begin, k0 + kc >= end, C, ldc, bias, saved, N, i, j, pair);
        }
      }
    }
  }
}

// ---- local: for GPUs --------------------------------------------------------------------------------------------------
// A group of 16 x 16 work-items owns (16 MR) x (16 NR) of C: each MR rows one below the other, and NV vectors 16 VW apart,
// so that neighbours read and write neighbouring memory. While a step of KC is computed, the next one is fetched.
#ifdef LOCAL
#define SIDE 16
#define TILE_M (SIDE * MR)
#define TILE_N (SIDE * NR)
#define AT_ONCE 8  // of KC, which is a multiple: compilers that see more read ahead more than registers hold
#define FETCH_A (TILE_M * KC / (SIDE * SIDE))
#define FETCH_B (TILE_N * KC / (SIDE * SIDE))
#if TA
#define A_I(e) ((e) % TILE_M)
#define A_KK(e) ((e) / TILE_M)
#define A_FROM(i, k) A[(size_t)FROM(k) * lda + (i)]
#else
#define A_I(e) ((e) / KC)
#define A_KK(e) ((e) % KC)
#define A_FROM(i, k) A[(size_t)FROM(i) * lda + (k)]
#endif
#if TB
#define B_J(e) ((e) / KC)
#define B_KK(e) ((e) % KC)
#define B_FROM(k, j) B[(size_t)(j) * ldb + (k)]
#else
#define B_J(e) ((e) % TILE_N)
#define B_KK(e) ((e) / TILE_N)
#define B_FROM(k, j) B[(size_t)(k) * ldb + (j)]
#endif
#define FETCH(k0)                                                                                  \
  UNROLL for (int f = 0; f < FETCH_A; f++) {                                                       \
    const int e = f * SIDE * SIDE + me, i = i0 + A_I(e), k = (k0) + A_KK(e);                       \
    next_a[f] = i < M && k < end ? A_FROM(i, k) : 0;                                               \
  }                                                                                                \
  UNROLL for (int f = 0; f < FETCH_B; f++) {                                                       \
    const int e = f * SIDE * SIDE + me, j = j0 + B_J(e), k = (k0) + B_KK(e);                       \
    next_b[f] = j < N && k < end ? B_FROM(k, j) : 0;                                               \
  }

// What a work-item has summed up goes to C every LONGEST of k: no more products are added in a row (long sums: common.cl)
#define LONGEST 1024
#define WRITE(later, last)                                                                                               \
  UNROLL for (int v = 0; v < NV; v++) {                                                                                  \
    const int col = j0 + (v * SIDE + tx) * VW, n = N - col;                                                              \
    if (n > 0) UNROLL for (int r = 0; r < MR; r++) {                                                                     \
      const int row = i0 + ty * MR + r;                                                                                  \
      global real *o = C + (size_t)row * ldc + col;                                                                      \
      if (row >= M) continue;                                                                                            \
      if (!depth) acc[r][v] = epilogue(acc[r][v], later, last, o, bias, saved, N, row, col, n, pair);                    \
      else if (later) acc[r][v] += load_n(o, n);                                                                         \
      store_n(acc[r][v], o, n);                                                                                          \
    }                                                                                                                    \
  }

kernel __attribute__((reqd_work_group_size(SIDE * SIDE, 1, 1))) void gemm_local(ARGS) {
  UNPACK
  local real at_a[KC][TILE_M + VW] __attribute__((aligned(sizeof(T)))), at_b[KC][TILE_N] __attribute__((aligned(sizeof(T))));
  const int down = (M + TILE_M - 1) / TILE_M, along = (N + TILE_N - 1) / TILE_N;
  const int me = get_local_id(0), tx = me % SIDE, ty = me / SIDE;
  const int g = get_group_id(0), tile = g % (down * along), part = g / (down * along);
  const int begin = part * depth, end = depth ? min(K, begin + depth) : K;
  const int i0 = (s.s9 ? tile / along : tile % down) * TILE_M, j0 = (s.s9 ? tile % along : tile / down) * TILE_N;
  real next_a[FETCH_A], next_b[FETCH_B];
  T acc[MR][NV];
  C += (size_t)part * M * N;
  // Written once in this text, where nothing is being fetched: registers are what limits how many groups run at a time
  for (int from = begin; from < end || from == begin; from += LONGEST) {
    const int to = min(end, from + LONGEST);
    UNROLL for (int r = 0; r < MR; r++) UNROLL for (int v = 0; v < NV; v++) acc[r][v] = (T)(0);
    FETCH(from)
    for (int k0 = from; k0 < to; k0 += KC) {
      UNROLL for (int f = 0; f < FETCH_A; f++) { const int e = f * SIDE * SIDE + me; at_a[A_KK(e)][A_I(e)] = next_a[f]; }
      UNROLL for (int f = 0; f < FETCH_B; f++) { const int e = f * SIDE * SIDE + me; at_b[B_KK(e)][B_J(e)] = next_b[f]; }
      barrier(CLK_LOCAL_MEM_FENCE);
      FETCH(k0 + KC)
      _Pragma("unroll 1") for (int first = 0; first < KC; first += AT_ONCE) UNROLL for (int k = first; k < first + AT_ONCE; k++) {
        T bv[NV];
        UNROLL for (int v = 0; v < NV; v++) bv[v] = ((local const T *)at_b[k])[v * SIDE + tx];
        real av[MR] __attribute__((aligned(sizeof(T))));
#if MR % VW == 0
        UNROLL for (int r = 0; r < MR; r += VW) *(private T *)(av + r) = ((local const T *)at_a[k])[(ty * MR + r) / VW];
#else
        UNROLL for (int r = 0; r < MR; r++) av[r] = at_a[k][ty * MR + r];
#endif
        UNROLL for (int r = 0; r < MR; r++) {
          const T x = (T)(av[r]);
          UNROLL for (int v = 0; v < NV; v++) acc[r][v] += x * bv[v];
        }
      }
      barrier(CLK_LOCAL_MEM_FENCE);
    }
    WRITE(from > begin, to == end)
  }
#ifdef SUMS
  if (i0 == 0 && begin == 0 && ty == 0)
    UNROLL for (int v = 0; v < NV; v++) {
      const int col = j0 + (v * SIDE + tx) * VW;
      if (col < N) column_sums(N, K, col, min(N, col + VW), B, ldb, D, SCALE(scale, at, s.sb));
    }
#endif
}
#endif
#endif
