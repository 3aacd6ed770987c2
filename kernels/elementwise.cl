// Elementwise work: functions of one variable and of two with broadcasting, and sums of gradients.
// One work-item an element; each kernel guards the last, partly filled work-group. With VW, on CPUs, a work-item takes
// `each` elements of a function of one variable, in vectors: few drivers make a vector of exp in the loop over a group.
#include "activation.cl"
#include "strided.cl"
#ifdef VW
#include "vectors.cl"
#define OVER_ELEMENTS(n, each) \
  for (int i = (int)get_global_id(0) * each, left = min(each, n - i); left > 0; i += VW, left -= VW)
#endif

// Functions of two variables: name, f(a, b), df/da, df/db. Those of whole numbers too have an INTEGER line.
#define BINARY(name, f, da, db)                                \
  static inline T CAT(name, _f2)(T a, T b) { return f; }            \
  static inline T CAT(name, _da)(T a, T b) { return da; }           \
  static inline T CAT(name, _db)(T a, T b) { return db; }
#define INTEGER(name, f) static inline int CAT(name, _int)(int a, int b) { return f; }
#define COMPARISON(name, condition) BINARY(name, WHERE(condition, 1, 0), 0, 0) INTEGER(name, condition)
BINARY(add,           a + b,                                               1,                               1)
BINARY(subtract,      a - b,                                               1,                               -1)
BINARY(multiply,      a * b,                                               b,                               a)
BINARY(divide,        a / b,                                               1 / b,                           -a / b / b)
BINARY(power,         pow(a, b),                                           WHERE(b == 0, 0, b * pow(a, b - 1)), WHERE(a == 0 && b >= 0, 0, pow(a, b) * log(a)))
BINARY(maximum,       WHERE(a >= b, a, WHERE(a < b, b, a + b)),            WHERE(a > b, 1, WHERE(a == b, 0.5, 0)), WHERE(a < b, 1, WHERE(a == b, 0.5, 0)))
BINARY(minimum,       WHERE(a <= b, a, WHERE(a > b, b, a + b)),            WHERE(a < b, 1, WHERE(a == b, 0.5, 0)), WHERE(a > b, 1, WHERE(a == b, 0.5, 0)))
#define SQUARES(a, b) WHERE(a == 0 && b == 0, 1, a * a + b * b)                      // at the origin the derivatives are 0, as in PyTorch
BINARY(arctan2,       atan2(a, b),                                         b / SQUARES(a, b),               -a / SQUARES(a, b))
BINARY(logaddexp,     WHERE(a == b, a + 0.69314718055994530942, WHERE(a > b, a, b) + log1p(exp(-fabs(a - b)))), 1 / (1 + exp(b - a)), 1 / (1 + exp(a - b)))
#define LOWER(a, b) (fmod(a, b) != 0 && (fmod(a, b) < 0) != (b < 0))               // a / b is rounded down, as in Python, not to 0
BINARY(floor_divide,  WHERE(b == 0, a / b, rint((a - fmod(a, b)) / b) - WHERE(LOWER(a, b), 1, 0)), 0,       0)
BINARY(remainder,     WHERE(LOWER(a, b), fmod(a, b) + b, fmod(a, b)),      1,                               -floor_divide_f2(a, b))
INTEGER(add, a + b) INTEGER(subtract, a - b) INTEGER(multiply, a * b) INTEGER(maximum, max(a, b)) INTEGER(minimum, min(a, b))
INTEGER(remainder, b == 0 ? 0 : b == -1 ? 0 : (a % b != 0 && (a % b < 0) != (b < 0) ? a % b + b : a % b))
INTEGER(floor_divide, b == 0 ? 0 : b == -1 ? -a : a / b - (a % b != 0 && (a % b < 0) != (b < 0)))
COMPARISON(equal,         a == b)
COMPARISON(not_equal,     a != b)
COMPARISON(less,          a < b)
COMPARISON(less_equal,    a <= b)
COMPARISON(greater,       a > b)
COMPARISON(greater_equal, a >= b)
COMPARISON(logical_and,   a != 0 && b != 0)
COMPARISON(logical_or,    a != 0 || b != 0)
COMPARISON(logical_xor,   (a != 0) != (b != 0))

#ifdef ACT
#ifdef ACCUMULATE
#define ADDED(before, d) ((before) + (d))
#else
#define ADDED(before, d) (d)
#endif
#ifdef VW
// y = f(x)
kernel void unary_forward(int n, int each, global const real *x, global real *y) {
  OVER_ELEMENTS(n, each) store_n(ACTIVATE(load_n(x + i, left)), y + i, left);
}

// dx = dy * f'(saved), added to dx where ACCUMULATE
kernel void unary_backward(int n, int each, global const real *saved, global const real *dy, global real *dx) {
  OVER_ELEMENTS(n, each) store_n(ADDED(load_n(dx + i, left), load_n(dy + i, left) * DERIVATIVE(load_n(saved + i, left))), dx + i, left);
}
#else
kernel void unary_forward(int n, int each, global const real *x, global real *y) {
  const int i = get_global_id(0);
  if (i < n) y[i] = ACTIVATE(x[i]);
}

kernel void unary_backward(int n, int each, global const real *saved, global const real *dy, global real *dx) {
  const int i = get_global_id(0);
  if (i < n) dx[i] = ADDED(dx[i], dy[i] * DERIVATIVE(saved[i]));
}
#endif
#endif

#ifdef OP
#ifdef INTS                                // INTS is the type of the result: of a comparison real, else int
#define IN int
#define F2(a, b) CAT(OP, _int)(a, b)
#else
#define INTS real
#define IN real
#define F2(a, b) CAT(OP, _f2)(a, b)
#define DIFFERENTIABLE
#endif
#define EACH_I const int i = get_global_id(0); if (i < n)
#ifdef A_STEP                              // broadcast, for CPUs: n rows of `row.x` elements, of which a work-item has row.y
#define BINARY_ARGS int n, int2 row, int8 shape, int8 a_strides, int8 b_strides, global const IN *a, global const IN *b
#undef EACH_I
#define EACH_I                                                                                                              \
  for (int r = get_global_id(0) * row.y, last = min(n, r + row.y); r < last; r++)                                           \
    for (int c = 0, i = r * row.x, a0 = strided(r, shape, a_strides), b0 = strided(r, shape, b_strides); c < row.x; c++, i++)
#define A a[a0 + c * A_STEP]
#define B b[b0 + c * B_STEP]
#elif defined(BROADCAST)
#define BINARY_ARGS int n, int8 shape, int8 a_strides, int8 b_strides, global const IN *a, global const IN *b
#define A a[strided(i, shape, a_strides)]
#define B b[strided(i, shape, b_strides)]
#elif defined(SCALAR)                      // b is a number of the host
#define BINARY_ARGS int n, global const IN *a, IN b
#define A a[i]
#define B b
#elif defined(SCALAR_FIRST)                // a is
#define BINARY_ARGS int n, IN a, global const IN *b
#define A a
#define B b[i]
#else
#define BINARY_ARGS int n, global const IN *a, global const IN *b
#define A a[i]
#define B b[i]
#endif

// y = f(a, b), and what ACT makes of it
kernel void binary_forward(BINARY_ARGS, global INTS *y) {
#ifdef ACT
  EACH_I y[i] = ACTIVATE(F2(A, B));
#else
  EACH_I y[i] = F2(A, B);
#endif
}

#ifdef DIFFERENTIABLE
// The gradient by a and by b, each before it is summed over the axes that were broadcast.
kernel void binary_backward_a(BINARY_ARGS, global const real *dy, global real *da) {
  EACH_I da[i] = dy[i] * CAT(OP, _da)(A, B);
}
kernel void binary_backward_b(BINARY_ARGS, global const real *dy, global real *db) {
  EACH_I db[i] = dy[i] * CAT(OP, _db)(A, B);
}
#endif
#endif

#ifdef CONDITION                           // its type
// y = a where the condition is not 0, else b. Each is an array that is broadcast to `shape`, or with A_NUMBER, B_NUMBER a number.
#ifdef A_NUMBER
#define A_ARG ELEMENT a
#define A_OF(i) a
#else
#define A_ARG global const ELEMENT *a
#define A_OF(i) a[strided(i, shape, a_strides)]
#endif
#ifdef B_NUMBER
#define B_ARG ELEMENT b
#define B_OF(i) b
#else
#define B_ARG global const ELEMENT *b
#define B_OF(i) b[strided(i, shape, b_strides)]
#endif
kernel void choose(int n, int8 shape, int8 strides, int8 a_strides, int8 b_strides, global const CONDITION *condition, A_ARG, B_ARG,
                   global ELEMENT *y) {
  const int i = get_global_id(0);
  if (i < n) y[i] = condition[strided(i, shape, strides)] != 0 ? A_OF(i) : B_OF(i);
}
#endif

// out = alpha * g + beta * out, with a sink's (alpha, beta)
kernel void scale_add(int n, global const real *g, global real *out, global const real2 *scale, global const int *at, int column) {
  const int i = get_global_id(0);
  if (i >= n) return;
  const real2 pair = SCALE(scale, at, column);
  out[i] = AXPBY(pair, g[i], out[i]);
}

#ifdef FROM
// y = x, of type FROM, as TO
kernel void convert(int n, global const FROM *x, global TO *y) {
  const int i = get_global_id(0);
  if (i < n) y[i] = (TO)x[i];
}
#endif

// y = value everywhere
kernel void fill(int n, global real *y, real value) {
  const int i = get_global_id(0);
  if (i < n) y[i] = value;
}
