"""What clnn/named.py makes of its tables; .ci/stubs writes this file."""

from .tensor import Operand, Tensor

__all__ = [
    "sigmoid",
    "tanh",
    "relu",
    "selu",
    "softplus",
    "softsign",
    "hard_sigmoid",
    "hard_tanh",
    "hard_swish",
    "swish",
    "mish",
    "gelu",
    "gelu_tanh",
    "exp",
    "log",
    "sqrt",
    "square",
    "abs",
    "sin",
    "cos",
    "erf",
    "log1p",
    "expm1",
    "reciprocal",
    "sign",
    "floor",
    "ceil",
    "round",
    "isnan",
    "isfinite",
    "logical_not",
    "add",
    "subtract",
    "multiply",
    "divide",
    "power",
    "maximum",
    "minimum",
    "arctan2",
    "logaddexp",
    "remainder",
    "floor_divide",
    "equal",
    "not_equal",
    "less",
    "less_equal",
    "greater",
    "greater_equal",
    "logical_and",
    "logical_or",
    "logical_xor",
]

def sigmoid(x: Operand) -> Tensor:
    """1 / (1 + exp(-x)), elementwise."""

def tanh(x: Operand) -> Tensor:
    """tanh(x), elementwise."""

def relu(x: Operand) -> Tensor:
    """max(x, 0) (Nair and Hinton 2010), elementwise."""

def selu(x: Operand) -> Tensor:
    """1.0507 x where x > 0, else 1.7581 (exp(x) - 1) (Klambauer et al. 2017), elementwise."""

def softplus(x: Operand) -> Tensor:
    """log(1 + exp(x)) (Dugas et al. 2001), elementwise."""

def softsign(x: Operand) -> Tensor:
    """x / (1 + |x|) (Bergstra et al. 2009), elementwise."""

def hard_sigmoid(x: Operand) -> Tensor:
    """x / 6 + 1/2, cut to [0, 1] (Howard et al. 2019), elementwise."""

def hard_tanh(x: Operand) -> Tensor:
    """x cut to [-1, 1] (Collobert 2004), elementwise."""

def hard_swish(x: Operand) -> Tensor:
    """x hard_sigmoid(x) (Howard et al. 2019), elementwise."""

def swish(x: Operand) -> Tensor:
    """x sigmoid(x), also called SiLU (Elfwing et al. 2017, Ramachandran et al. 2017), elementwise."""

def mish(x: Operand) -> Tensor:
    """x tanh(softplus(x)) (Misra 2019), elementwise."""

def gelu(x: Operand) -> Tensor:
    """x Phi(x), Phi the normal distribution (Hendrycks and Gimpel 2016), elementwise."""

def gelu_tanh(x: Operand) -> Tensor:
    """GELU with Phi approximated by a tanh (Hendrycks and Gimpel 2016), elementwise."""

def exp(x: Operand) -> Tensor:
    """exp(x), elementwise."""

def log(x: Operand) -> Tensor:
    """natural logarithm, elementwise."""

def sqrt(x: Operand) -> Tensor:
    """square root, elementwise."""

def square(x: Operand) -> Tensor:
    """x x, elementwise."""

def abs(x: Operand) -> Tensor:
    """|x|, with derivative 0 at 0, elementwise."""

def sin(x: Operand) -> Tensor:
    """sin(x), x in radians, elementwise."""

def cos(x: Operand) -> Tensor:
    """cos(x), x in radians, elementwise."""

def erf(x: Operand) -> Tensor:
    """the error function, 2 / sqrt(pi) times the integral of exp(-t t) from 0 to x, elementwise."""

def log1p(x: Operand) -> Tensor:
    """log(1 + x), exact for small x, elementwise."""

def expm1(x: Operand) -> Tensor:
    """exp(x) - 1, exact for small x, elementwise."""

def reciprocal(x: Operand) -> Tensor:
    """1 / x, elementwise."""

def sign(x: Operand) -> Tensor:
    """-1, 0 or 1; its derivative is 0, elementwise."""

def floor(x: Operand) -> Tensor:
    """the largest whole number that is at most x; its derivative is 0, elementwise."""

def ceil(x: Operand) -> Tensor:
    """the least whole number that is at least x; its derivative is 0, elementwise."""

def round(x: Operand) -> Tensor:
    """the nearest whole number, of two the even one; its derivative is 0, elementwise."""

def isnan(x: Operand) -> Tensor:
    """1 where x is NaN, else 0, elementwise."""

def isfinite(x: Operand) -> Tensor:
    """1 where x is neither infinite nor NaN, else 0, elementwise."""

def logical_not(x: Operand) -> Tensor:
    """1 where x is 0, else 0, elementwise."""

def add(a: Operand, b: Operand) -> Tensor:
    """a + b; elementwise, with broadcasting."""

def subtract(a: Operand, b: Operand) -> Tensor:
    """a - b; elementwise, with broadcasting."""

def multiply(a: Operand, b: Operand) -> Tensor:
    """a b; elementwise, with broadcasting."""

def divide(a: Operand, b: Operand) -> Tensor:
    """a / b; elementwise, with broadcasting."""

def power(a: Operand, b: Operand) -> Tensor:
    """a to the power of b; elementwise, with broadcasting."""

def maximum(a: Operand, b: Operand) -> Tensor:
    """the larger of a and b, NaN if one is; equal ones share the gradient; elementwise, with broadcasting."""

def minimum(a: Operand, b: Operand) -> Tensor:
    """the smaller of a and b, NaN if one is; equal ones share the gradient; elementwise, with broadcasting."""

def arctan2(a: Operand, b: Operand) -> Tensor:
    """the angle of the point (b, a), in radians from -pi to pi; elementwise, with broadcasting."""

def logaddexp(a: Operand, b: Operand) -> Tensor:
    """log(exp(a) + exp(b)), without overflow; elementwise, with broadcasting."""

def remainder(a: Operand, b: Operand) -> Tensor:
    """a - b floor(a / b), of b's sign, as Python's a % b; by 0 NaN, of int32 0; elementwise, with broadcasting."""

def floor_divide(a: Operand, b: Operand) -> Tensor:
    """floor(a / b), with derivative 0; by 0 infinite or NaN, of int32 0; elementwise, with broadcasting."""

def equal(a: Operand, b: Operand) -> Tensor:
    """1 where a = b, else 0; elementwise, with broadcasting."""

def not_equal(a: Operand, b: Operand) -> Tensor:
    """0 where a = b, else 1; elementwise, with broadcasting."""

def less(a: Operand, b: Operand) -> Tensor:
    """1 where a < b, else 0; elementwise, with broadcasting."""

def less_equal(a: Operand, b: Operand) -> Tensor:
    """1 where a <= b, else 0; elementwise, with broadcasting."""

def greater(a: Operand, b: Operand) -> Tensor:
    """1 where a > b, else 0; elementwise, with broadcasting."""

def greater_equal(a: Operand, b: Operand) -> Tensor:
    """1 where a >= b, else 0; elementwise, with broadcasting."""

def logical_and(a: Operand, b: Operand) -> Tensor:
    """1 where neither a nor b is 0, else 0; elementwise, with broadcasting."""

def logical_or(a: Operand, b: Operand) -> Tensor:
    """0 where a and b are 0, else 1; elementwise, with broadcasting."""

def logical_xor(a: Operand, b: Operand) -> Tensor:
    """1 where one of a and b is 0, else 0; elementwise, with broadcasting."""
