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

// Functions of two variables: name, f(a, b), df/da, df/db.
#define BINARY(name, f, da, db)                                \
  static inline T name##_f2(T a, T b) { return f; }            \
  static inline T name##_da(T a, T b) { return da; }           \
  static inline T name##_db(T a, T b) { return db; }
BINARY(add,           a + b,                                               1,                               1)
BINARY(subtract,      a - b,                                               1,                               -1)
BINARY(multiply,      a * b,                                               b,                               a)
BINARY(divide,        a / b,                                               1 / b,                           -a / b / b)
BINARY(power,         pow(a, b),                                           WHERE(b == 0, 0, b * pow(a, b - 1)), WHERE(a == 0 && b >= 0, 0, pow(a, b) * log(a)))
BINARY(maximum,       WHERE(a >= b, a, WHERE(a < b, b, a + b)),            WHERE(a > b, 1, WHERE(a == b, 0.5, 0)), WHERE(a < b, 1, WHERE(a == b, 0.5, 0)))
BINARY(minimum,       WHERE(a <= b, a, WHERE(a > b, b, a + b)),            WHERE(a < b, 1, WHERE(a == b, 0.5, 0)), WHERE(a > b, 1, WHERE(a == b, 0.5, 0)))
BINARY(equal,         WHERE(a == b, 1, 0),                                 0,                               0)
BINARY(not_equal,     WHERE(a == b, 0, 1),                                 0,                               0)
BINARY(less,          WHERE(a < b, 1, 0),                                  0,                               0)
BINARY(less_equal,    WHERE(a <= b, 1, 0),                                 0,                               0)
BINARY(greater,       WHERE(a > b, 1, 0),                                  0,                               0)
BINARY(greater_equal, WHERE(a >= b, 1, 0),                                 0,                               0)

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
#ifdef INTS                                // integers are compared by the sign of their difference, which a float keeps
#define IN int
#define F2(a, b) CAT(OP, _f2)((T)sub_sat(a, b), (T)0)
#else
#define IN real
#define F2(a, b) CAT(OP, _f2)(a, b)
#endif
#ifdef BROADCAST
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
kernel void binary_forward(BINARY_ARGS, global real *y) {
  const int i = get_global_id(0);
#ifdef ACT
  if (i < n) y[i] = ACTIVATE(F2(A, B));
#else
  if (i < n) y[i] = F2(A, B);
#endif
}

#ifndef INTS
// The gradient by a and by b, each before it is summed over the axes that were broadcast.
kernel void binary_backward_a(BINARY_ARGS, global const real *dy, global real *da) {
  const int i = get_global_id(0);
  if (i < n) da[i] = dy[i] * CAT(OP, _da)(A, B);
}
kernel void binary_backward_b(BINARY_ARGS, global const real *dy, global real *db) {
  const int i = get_global_id(0);
  if (i < n) db[i] = dy[i] * CAT(OP, _db)(A, B);
}
#endif
#endif

// out = alpha * g + beta * out, with a sink's (alpha, beta)
kernel void scale_add(int n, global const real *g, global real *out, global const real2 *scale, global const int *at, int column) {
  const int i = get_global_id(0);
  if (i >= n) return;
  const real2 pair = SCALE(scale, at, column);
  out[i] = AXPBY(pair, g[i], out[i]);
}

// y = value everywhere
kernel void fill(int n, global real *y, real value) {
  const int i = get_global_id(0);
  if (i < n) y[i] = value;
}
