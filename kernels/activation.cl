// Every activation and function of one variable, once: its name, f(x), and f' from x or from y = f(x), as its line in
// clnn/ops/activation.py says. NaN stays NaN (fmax would swallow it). Sources stand in that Python file.
#include "common.cl"

#define FUNCTION(name, f, df) /* CAT, as where ACT is used: tanh, exp, ... are macros on PoCL */ \
  static inline T CAT(name, _f)(T x) { return f; }             \
  static inline T CAT(name, _df)(T x, T y) { return df; }

// ---- exponentials of floats, without calls --------------------------------------------------------------------------
// Built-in functions, which doubles take, are calls, or computed lane by lane, on CPUs. exp(x) is 2^k times a polynomial, k whole.
#define FLOATS_float 1
#if CAT(FLOATS_, REAL)
#ifdef VW
#define AS_INTS CAT(as_int, VW)
#define AS_REALS CAT(as_float, VW)
#else
#define AS_INTS as_int
#define AS_REALS as_float
#endif
#define ROUND_BY 12582912                   // 1.5 * 2^23: a float that it was added to is whole, and stands in the lowest bits
#define TWO_TO(k) AS_REALS((AS_INTS(k) + 127) << 23)         // of such a sum 2^k, 0 for -127
static inline T exp_of_negative(T x) {      // exp(x), x <= 0, to 2^-23 and |x| 2^-24: 2^k 2^f, |f| <= 1/2; 0 below 2^-126
  const T p = x * 1.44269504088896340736, q = WHERE(p < -127, -127, p), k = q + ROUND_BY, f = q - (k - ROUND_BY);
  return (((((1.32764704e-3 * f + 9.67554162e-3) * f + 5.55071328e-2) * f + 2.40221197e-1) * f + 6.93146967e-1) * f + 1.00000007) * TWO_TO(k);
}
#else
#define exp_of_negative exp
#endif

// The sigmoid and the hyperbolic tangent of a vector on PoCL, whose exp and tanh take longer, and a division of 16 lanes as long as 16
// products. Both are a quotient of what exp(-t), t >= 0, makes, with a divisor from 1 to 2. BUILT_IN: a fused step of another driver's, whose
// launches alone are without STACK, gives the same bits as they do.
#if CAT(FLOATS_, REAL) && defined(STACK) && defined(VW) && !defined(BUILT_IN)
// scale = 2^k and less = exp(r) - 1, so that exp(-t) = scale (1 + less): -t = k log 2 + r, |r| <= log(2) / 2. Two parts of log 2, of which the
// first has so few bits that k times it is exact (Cody and Waite 1980). 0 below 2^-126.
#define DECAY(t)                                                                                                           \
  const T in_range = WHERE((t) > 88.03, 88.03, t), k = ROUND_BY - in_range * 1.44269504088896340736, whole = k - ROUND_BY; \
  const T r = (-in_range - whole * 0.693359375) + whole * 2.12194440054690583e-4, scale = TWO_TO(k);                       \
  const T less = ((((1.38145383e-3 * r + 8.36874545e-3) * r + 4.16683927e-2) * r + 1.66665211e-1) * r + 0.49999994) * (r * r) + r;
static inline T quotient(T x, T d) {        // x / d, 1 <= d <= 2: a parabola, to 1/99, and Newton's steps, of which each squares the error
  T y = (0.32323232 * d - 1.45454545) * d + 2.12121212;
  y += y * (1 - d * y);
  y += y * (1 - d * y);
  return x * y;
}
static inline T sigmoid_of(T x) {           // to three units in the last place
  const T t = fabs(x);
  DECAY(t)
  const T e = (1 + less) * scale;
  return quotient(WHERE(x < 0, e, 1), 1 + e);
}
static inline T tanh_of(T x) {              // (1 - e) / (1 + e) with e = exp(-2 |x|), by m = e - 1 of tiny x too; to three units
  const T t = 2 * fabs(x);
  DECAY(t)
  const T m = less * scale + (scale - 1);
  return quotient(WHERE(x < 0, m, fabs(m)), 2 + m);
}
#else
#define sigmoid_of(x) (1 / (1 + exp(-(x))))
#define tanh_of tanh
#endif

// ---- activations ---------------------------------------------------------------------------------------------------
FUNCTION(linear,       x,                                               (T)(1))
FUNCTION(step,         WHERE(x > 0, 1, WHERE(x <= 0, 0, x)),            (T)(0))
FUNCTION(sigmoid,      sigmoid_of(x),                                   y * (1 - y))
FUNCTION(tanh,         tanh_of(x),                                      1 - y * y)
FUNCTION(relu,         WHERE(x < 0, 0, x),                              WHERE(y > 0, 1, 0 * y))
FUNCTION(leaky_relu,   WHERE(x < 0, 0.01 * x, x),                       WHERE(y > 0, 1, 0.01))
FUNCTION(elu,          WHERE(x < 0, expm1(x), x),                       WHERE(y < 0, y + 1, 1))
#define SELU_SCALE 1.0507009873554804934193349852946
#define SELU_ALPHA 1.6732632423543772848170429916717
FUNCTION(selu,         SELU_SCALE * WHERE(x < 0, SELU_ALPHA * expm1(x), x), WHERE(y > 0, SELU_SCALE, y + SELU_SCALE * SELU_ALPHA))
FUNCTION(softplus,     log1p(exp(-fabs(x))) + relu_f(x),                -expm1(-y))
FUNCTION(softsign,     x / (1 + fabs(x)),                               (1 - fabs(y)) * (1 - fabs(y)))
FUNCTION(hard_sigmoid, WHERE(x < -3, 0, WHERE(x > 3, 1, x / 6 + 0.5)),  WHERE(y > 0 && y < 1, 1.0 / 6.0, 0 * y))
FUNCTION(hard_tanh,    WHERE(x < -1, -1, WHERE(x > 1, 1, x)),           WHERE(fabs(y) < 1, 1, 0 * y))
FUNCTION(hard_swish,   x * hard_sigmoid_f(x),                           WHERE(x <= -3, 0, WHERE(x >= 3, 1, x / 3 + 0.5)))
FUNCTION(swish,        x * sigmoid_of(x),                               sigmoid_f(x) * (1 + x * (1 - sigmoid_f(x))))
FUNCTION(mish,         x * tanh_of(softplus_f(x)),                      tanh_of(softplus_f(x)) + x * sigmoid_f(x) / (cosh(softplus_f(x)) * cosh(softplus_f(x))))
#define INV_SQRT_2 0.70710678118654752440084436210485
#define INV_SQRT_2PI 0.39894228040143267793994605993438
// The error function and the normal distribution, of floats in vectors and without calls, to two units in the last place of 1: built-in
// functions, which doubles take, are calls, or computed lane by lane, on CPUs. Near 0 they are a polynomial (coefficients: Juffa), farther
// out exp(-t t) times one, R. GELU and its derivative take that exponential from the density, exp(-x x / 2).
#if CAT(FLOATS_, REAL)
#define FAR_FROM 0.927734375                // where the two meet
static inline T erf_near(T t) {
  const T s = t * t;
  return (((((-5.96761703e-4 * s + 4.99119423e-3) * s - 2.67681349e-2) * s + 1.12819925e-1) * s - 3.76125336e-1) * s + 1.28379166e-1) * t + t;
}
static inline T erfc_far(T t, T e) {        // e R(t), e = exp(-t t); from 4.2 on R stays, where e is less than 2^-25
  const T u = WHERE(t > 4.2, 4.2, t);
  return e * (((((((-4.54741441e-4 * u + 6.82199842e-3) * u - 4.52436904e-2) * u + 1.76121600e-1) * u - 4.51549917e-1) * u
                + 8.11937660e-1) * u - 1.05845607) * u + 9.88406714e-1);
}
static inline T erf_of(T x) {
  const T t = fabs(x), far = 1 - erfc_far(t, exp_of_negative(-x * x));
  return WHERE(t > FAR_FROM, WHERE(x < 0, -far, far), erf_near(x));
}
static inline T normal_of(T x, T e) {       // Phi(x), e = exp(-x x / 2)
  const T t = fabs(x) * INV_SQRT_2, far = 0.5 * erfc_far(t, e);
  return WHERE(t > FAR_FROM, WHERE(x < 0, far, 1 - far), 0.5 + 0.5 * erf_near(x * INV_SQRT_2));
}
#else
#define erf_of erf
#define normal_of(x, e) (0.5 * (1 + erf(INV_SQRT_2 * (x))))
#endif
#define BELL(x) exp_of_negative(-0.5 * (x) * (x))
FUNCTION(gelu,         x * normal_of(x, BELL(x)),                       normal_of(x, BELL(x)) + x * INV_SQRT_2PI * BELL(x))
#define SQRT_2_PI 0.79788456080286535587989211986876
#define GELU_GATE(x) sigmoid_f(2 * SQRT_2_PI * ((x) + 0.044715 * (x) * (x) * (x)))   // (1 + tanh(u)) / 2 = sigmoid(2 u)
#define GELU_CUT(x) WHERE(x < -20, -20, WHERE(x > 20, 20, x))   // beyond, the derivative's second term is 0, where x x would overflow
FUNCTION(gelu_tanh,    x * GELU_GATE(x),
         GELU_GATE(x) * (1 + GELU_CUT(x) * (1 - GELU_GATE(x)) * 2 * SQRT_2_PI * (1 + 3 * 0.044715 * GELU_CUT(x) * GELU_CUT(x))))

// PoCL's sine and cosine of a vector of floats (3.0 to 6.0) take another way for all lanes where one of them, be it
// past an array's end, is above some millions, and that way is wrong below 1/128: such a lane is taken out of the vector first.
#define MIXES_LANES_float 1
#if defined(VW) && CAT(MIXES_LANES_, REAL)
#define LANE_BY_LANE(name, f)                                                      \
  static inline T name(T x) {                                                      \
    const T near = f(WHERE(fabs(x) < 4194304, x, 0));                              \
    return all(fabs(x) < 4194304) ? near : WHERE(fabs(x) < 4194304, near, f(x));   \
  }
LANE_BY_LANE(sin_of, sin)
LANE_BY_LANE(cos_of, cos)
#else
#define sin_of sin
#define cos_of cos
#endif

// ---- other functions of one variable -------------------------------------------------------------------------------
FUNCTION(exp,          exp(x),                                          y)
FUNCTION(log,          log(x),                                          1 / x)
FUNCTION(sqrt,         sqrt(x),                                         0.5 / y)
FUNCTION(square,       x * x,                                           2 * x)
FUNCTION(abs,          fabs(x),                                         WHERE(x > 0, 1, WHERE(x < 0, -1, WHERE(x == 0, 0, x))))
FUNCTION(negative,     -x,                                              (T)(-1))
FUNCTION(sin,          sin_of(x),                                       cos_of(x))
FUNCTION(cos,          cos_of(x),                                       -sin_of(x))
FUNCTION(erf,          erf_of(x),                                       2 * 0.56418958354775628694807945156077 * exp(-x * x))
FUNCTION(log1p,        log1p(x),                                        1 / (1 + x))
FUNCTION(expm1,        expm1(x),                                        y + 1)
FUNCTION(reciprocal,   1 / x,                                           -y * y)
FUNCTION(sign,         WHERE(x > 0, 1, WHERE(x < 0, -1, WHERE(x == 0, 0, x))), (T)(0))  // denormal x may be 0 here, and come out of WHERE
FUNCTION(floor,        floor(x),                                        (T)(0))
FUNCTION(ceil,         ceil(x),                                         (T)(0))
FUNCTION(round,        rint(x),                                         (T)(0))
FUNCTION(isnan,        WHERE(x != x, 1, 0),                             (T)(0))
FUNCTION(isfinite,     WHERE(x - x == 0, 1, 0),                         (T)(0))
FUNCTION(logical_not,  WHERE(x == 0, 1, 0),                             (T)(0))

// Where the derivative is one of x, a launch that ends with an activation keeps the derivative: it shares most of its terms with f(x).
// What goes back is multiplied by what was kept.
FUNCTION(kept,         x,                                               y)

#ifdef ACT
#define ACTIVATE(x) CAT(ACT, _f)(x)
#define DERIVATIVE(saved) CAT(ACT, _df)((saved), (saved))   // each line reads only the one that was saved
#endif
