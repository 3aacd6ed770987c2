// What every kernel file starts from: the real type, and formulas that read the same for scalars and vectors.
// REAL is float or double (a build option). T is what formulas compute with: REAL, or a vector of VW of them.
#ifdef cl_khr_fp64
#pragma OPENCL EXTENSION cl_khr_fp64 : enable
#endif
#ifndef REAL
#define REAL float
#endif
// For functions that are given pointers to local memory: PoCL 3.1 hands them other memory where it does not inline them.
#define INLINE static inline __attribute__((always_inline))
// For large functions in kernels whose groups are single work-items: inlined into the loops there, they take PoCL up to three
// times as long to compile. STACK (see Device.local_on_stack) says that local memory is the work-item's own stack; then
// they can stay apart.
#ifdef STACK
#define APART static __attribute__((noinline))
#define local
#else
#define APART INLINE
#endif
#include "denormals.cl"
#define CAT_(a, b) a##b
#define CAT(a, b) CAT_(a, b)
typedef REAL real;
typedef CAT(REAL, 2) real2;

#ifdef VW                                  // a vector: conditions are vectors of integers of the same width
typedef CAT(REAL, VW) T;
#define WHERE(condition, a, b) select((T)(b), (T)(a), (condition))
#else
typedef REAL T;
#define WHERE(condition, a, b) ((condition) ? (T)(a) : (T)(b))
#endif

// Long sums. n numbers added one after another lose up to n eps / 2 of their sum: percents, for a million floats. So sums go
// in spans: SPAN numbers at most are added in a row, and each span's sum goes to a TOTAL by two-sum (Knuth 1969; Ogita et al.
// 2005), which keeps beside it what rounding takes from every addition. What is lost then does not grow with n. Parts that
// work-items or launches leave for another to join are added the same way. (Only reduce.cl and products of matrices add
// parts of up to 1,024 numbers plainly, level upon level.)
#define SPAN 256
#define TOTAL(type, name) type name = (type)(0), name##_lost = (type)(0)
#define ADD_TO(type, name, x) {                                                     \
  const type x_ = (x), sum_ = name + x_, got_ = sum_ - name;                         \
  name##_lost += (name - (sum_ - got_)) + (x_ - got_);                               \
  name = sum_; }
#define WHOLE(name) (name##_lost == name##_lost ? name + name##_lost : name)  // lost is NaN once the sum is not finite
#define EACH_SPAN(first, n) int first = 0; first < (n); first += SPAN            // for (EACH_SPAN(first, n))
#define IN_SPAN(i, first, n) int i = (first); i < min((n), (first) + SPAN); i++  //   for (IN_SPAN(i, first, n)) ...

// A sink's pair (alpha, beta) for out = alpha * gradient + beta * out. Pairs are in rows of SCALE_PAIRS, one row a step;
// `at` holds the row's number, so a replay reads this step's learning rate from device memory.
#define SCALE_PAIRS 5
#define SCALE(table, at, column) ((table)[(at)[0] * SCALE_PAIRS + (column)])
// What the sink then holds; `out` is not read where beta is 0.
#define AXPBY(pair, gradient, out) ((pair).y == 0 ? (pair).x * (gradient) : (pair).x * (gradient) + (pair).y * (out))

// Row r of a mini-batch inside the whole data set: order[first + r], or first + r without an order. `state` holds first in
// [0] for the forward pass, and in [2] for the backward pass, when the loss has already moved [0] on.
#define ROW_OF(r, order, state, pass) ((order) ? (order)[(state)[pass] + (r)] : (state)[pass] + (r))

// A number that names none of `rows` rows: `missing` keeps the first place of such a one, and the rows that there are for it. The
// host reads it now and then (clnn/ops/index.py), because in a replay there is no other way to say it.
#define NOTE_MISSING(place, rows) { const int at_ = (place); if (atomic_min(missing, at_) > at_) missing[1] = (rows); }
