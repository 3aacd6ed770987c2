// Every activation and function of one variable, once: its name, f(x), and f' from x or from y = f(x), as its line in
// clnn/ops/activation.py says. NaN stays NaN (fmax would swallow it). Sources stand in that Python file.
#include "common.cl"

#define FUNCTION(name, f, df) /* CAT, as where ACT is used: tanh, exp, ... are macros on PoCL */ \
  static inline T CAT(name, _f)(T x) { return f; }             \
  static inline T CAT(name, _df)(T x, T y) { return df; }

// ---- activations ---------------------------------------------------------------------------------------------------
FUNCTION(linear,       x,                                               (T)(1))
FUNCTION(step,         WHERE(x > 0, 1, WHERE(x <= 0, 0, x)),            (T)(0))
FUNCTION(sigmoid,      1 / (1 + exp(-x)),                               y * (1 - y))
FUNCTION(tanh,         tanh(x),                                         1 - y * y)
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
FUNCTION(swish,        x / (1 + exp(-x)),                                sigmoid_f(x) * (1 + x * (1 - sigmoid_f(x))))
FUNCTION(mish,         x * tanh(softplus_f(x)),                         tanh(softplus_f(x)) + x * sigmoid_f(x) / (cosh(softplus_f(x)) * cosh(softplus_f(x))))
// erf of floats in vectors, by a polynomial near 0 and the exponential of one farther out, to one unit in the last place (coefficients:
// Juffa). The built-in function, which doubles take, is computed lane by lane on CPUs.
#define WITHOUT_erf_float 1
#if CAT(WITHOUT_erf_, REAL)
static inline T erf_of(T x) {
  const T t = fabs(x), s = x * x;
  const T far = (((((-1.72853470e-5 * t + 3.83197126e-4) * s + (-3.88396438e-3 * t + 2.42546219e-2)) * t - 1.06777877e-1) * t
                  - 6.34846687e-1) * t - 1.28717512e-1) * t - t;
  const T near = (((((-5.96761703e-4 * s + 4.99119423e-3) * s - 2.67681349e-2) * s + 1.12819925e-1) * s - 3.76125336e-1) * s
                  + 1.28379166e-1) * x + x;
  return WHERE(t > 0.927734375, WHERE(x < 0, exp(far) - 1, 1 - exp(far)), near);
}
#else
#define erf_of erf
#endif
#define INV_SQRT_2 0.70710678118654752440084436210485
#define INV_SQRT_2PI 0.39894228040143267793994605993438
FUNCTION(gelu,         0.5 * x * (1 + erf_of(INV_SQRT_2 * x)),             0.5 * (1 + erf_of(INV_SQRT_2 * x)) + x * INV_SQRT_2PI * exp(-0.5 * x * x))
#define SQRT_2_PI 0.79788456080286535587989211986876
#define GELU_GATE(x) sigmoid_f(2 * SQRT_2_PI * ((x) + 0.044715 * (x) * (x) * (x)))   // (1 + tanh(u)) / 2 = sigmoid(2 u)
FUNCTION(gelu_tanh,    x * GELU_GATE(x),
         GELU_GATE(x) * (1 + x * (1 - GELU_GATE(x)) * 2 * SQRT_2_PI * (1 + 3 * 0.044715 * x * x)))

// ---- other functions of one variable -------------------------------------------------------------------------------
FUNCTION(exp,          exp(x),                                          y)
FUNCTION(log,          log(x),                                          1 / x)
FUNCTION(sqrt,         sqrt(x),                                         0.5 / y)
FUNCTION(square,       x * x,                                           2 * x)
FUNCTION(abs,          fabs(x),                                         WHERE(x > 0, 1, WHERE(x < 0, -1, x)))
FUNCTION(negative,     -x,                                              (T)(-1))
FUNCTION(sin,          sin(x),                                          cos(x))
FUNCTION(cos,          cos(x),                                          -sin(x))
FUNCTION(erf,          erf_of(x),                                          2 * 0.56418958354775628694807945156077 * exp(-x * x))
FUNCTION(log1p,        log1p(x),                                        1 / (1 + x))
FUNCTION(expm1,        expm1(x),                                        y + 1)
FUNCTION(reciprocal,   1 / x,                                           -y * y)
FUNCTION(sign,         WHERE(x > 0, 1, WHERE(x < 0, -1, x)),            (T)(0))
FUNCTION(floor,        floor(x),                                        (T)(0))
FUNCTION(ceil,         ceil(x),                                         (T)(0))
FUNCTION(round,        rint(x),                                         (T)(0))
FUNCTION(isnan,        WHERE(x != x, 1, 0),                             (T)(0))
FUNCTION(isfinite,     WHERE(x - x == 0, 1, 0),                         (T)(0))
FUNCTION(logical_not,  WHERE(x == 0, 1, 0),                             (T)(0))

#ifdef ACT
#define ACTIVATE(x) CAT(ACT, _f)(x)
#define DERIVATIVE(saved) CAT(ACT, _df)((saved), (saved))   // each line reads only the one that was saved
#endif
