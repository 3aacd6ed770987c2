"""Functions of one element, or of one from each input with broadcasting: arithmetic, activations, comparisons, types."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from ... import arrays
from ...ops.array import FLOATS, Array, Backward, empty
from ...ops.elementwise import TYPES
from ...tensor import Tensor, apply, elementwise, function
from ..graph import FLOATS as ONNX_FLOATS
from ..registry import Context, of_dtype, operator


def both(c: Context, a: Any, b: Any) -> tuple[Any, Any]:
    """The inputs of a function of two, one of which is on the device: arrays of one element as numbers, others as tensors."""
    like = a if isinstance(a, Tensor) else b

    def ready(x: Any) -> Any:
        if isinstance(x, np.ndarray) and x.size == 1 and x.ndim <= like.ndim and x.dtype != object:
            return x.item()
        x = c.tensor(x)
        return of_dtype(x, like.dtype) if like.dtype in FLOATS and x.dtype in FLOATS else x

    return ready(a), ready(b)


def on_host(c: Context, grows: bool = True) -> bool:
    """Whether a function of numbers is computed by NumPy: of constants and shapes, of texts, and where whole numbers would need
    more than 32 bits, which the result of one that `grows` may."""
    small = not grows and all(v is None or not isinstance(v.data, np.ndarray) or fits(v.data) for v in c.values)
    if not (c.exact or (small and "string" not in c.types)):
        c.values = [c.values[i] and c.values[i]._replace(data=c.host(i)) for i in range(len(c.values))]
    return c.all_host()


def fits(x: np.ndarray) -> bool:
    """Whether an array's whole numbers fit into 32 bits."""
    return x.dtype.kind not in "iu" or not x.size or (int(x.min()) >= -(2**31) and int(x.max()) < 2**31)


def truncated(a: Any, b: Any) -> Any:
    """a / b, of whole numbers rounded to 0."""
    if a.dtype.kind == "f":
        return np.divide(a, b)
    b = np.where(b == 0, 1, b).astype(a.dtype)
    q = a // b
    return (q + ((q * b != a) & ((a < 0) != (b < 0)))).astype(a.dtype)


def placed(c: Context, a: Any, b: Any, axis: int | None) -> Any:
    """b with axes of 1 behind it, so that its first axis is a's `axis`, as operator sets before 7 broadcast."""
    if axis is None:
        return b
    b = b.reshape((*b.shape, *[1] * (a.ndim - axis % max(1, a.ndim) - b.ndim)))
    c.values = [c.values[0], c.values[1]._replace(data=b)]
    return b


def add_binary(name: str, since: int, ours: str, of_numpy: Any, gives: str | None = None) -> None:
    """The entry for a function of two."""

    def binary(c: Context, a: Any, b: Any) -> Any:
        if on_host(c, gives is None):
            a, b = c.host(0), c.host(1)
            found = np.asarray(of_numpy(a, b))
            return found if gives or found.dtype == a.dtype or a.dtype == object else found.astype(a.dtype)
        if ours == "divide" and c.types[0] == "int32":
            return np.asarray(truncated(c.host(0), c.host(1)))
        return elementwise(ours, *both(c, a, b))

    def by_attributes(
        c: Context, a: Any, b: Any, *, axis: Any = None, broadcast: int = 0, consumed_inputs: Any = None
    ) -> Any:
        return binary(c, a, placed(c, a, b, axis if broadcast else None))

    operator(name, since, gives=gives)(binary)
    if since == 7:
        operator(name, 1, gives=gives)(by_attributes)


_numpy: Any
_run: Any
for _name, _since, _ours, _numpy in (
    ("Add", 7, "add", np.add), ("Sub", 7, "subtract", np.subtract), ("Mul", 7, "multiply", np.multiply),
    ("Div", 7, "divide", truncated),
):  # fmt: skip
    add_binary(_name, _since, _ours, _numpy)
for _name, _since, _ours, _numpy in (
    ("Equal", 7, "equal", np.equal), ("Less", 7, "less", np.less), ("Greater", 7, "greater", np.greater),
    ("LessOrEqual", 12, "less_equal", np.less_equal), ("GreaterOrEqual", 12, "greater_equal", np.greater_equal),
    ("And", 7, "logical_and", np.logical_and), ("Or", 7, "logical_or", np.logical_or), ("Xor", 7, "logical_xor", np.logical_xor),
):  # fmt: skip
    add_binary(_name, _since, _ours, _numpy, "bool")


@operator("Pow", 1)
def power(c: Context, a: Any, b: Any, *, axis: Any = None, broadcast: int = 0) -> Any:
    """a to the power of b, of a's type."""
    b = placed(c, a, b, axis if broadcast else None)
    if on_host(c) or c.types[0] not in ONNX_FLOATS:
        a, b = c.host(0), c.host(1)
        return np.asarray(np.power(a, b)).astype(a.dtype)
    if isinstance(b, np.ndarray) and b.size == 1 and b.ndim <= a.ndim:
        b = b.item()
        return a**2 if b == 2 else function(a, "sqrt") if b == 0.5 else elementwise("power", a, float(b))
    a, b = both(c, a, b)
    return elementwise("power", a, of_dtype(b, a.dtype) if isinstance(b, Tensor) and isinstance(a, Tensor) else b)


@operator("Mod", 10)
def modulo(c: Context, a: Any, b: Any, *, fmod: int = 0) -> Any:
    """a modulo b with the sign of b, or with `fmod` of a."""
    if on_host(c):
        return np.asarray((np.fmod if fmod else np.mod)(c.host(0), c.host(1)))
    a, b = both(c, a, b)
    if not fmod:
        return elementwise("remainder", a, b)
    if not isinstance(a, Tensor):
        a = c.tensor(np.full((), a))
    by = (
        abs(b)
        if not isinstance(b, Tensor)
        else function(b, "abs")
        if b.dtype in FLOATS
        else elementwise("maximum", b, -b)
    )
    if a.dtype not in FLOATS:  # the least number has no absolute value
        left = elementwise("remainder", a, by)
        return arrays.where((a < 0) & (left > 0), left - by, left)
    left = elementwise("remainder", function(a, "abs"), by)
    return arrays.where(a < 0, -left, left)


def add_variadic(name: str, since: int, ours: str, of_numpy: Any) -> None:
    """The entry for a function of two that goes over any number of inputs."""

    def variadic(c: Context, *xs: Any, consumed_inputs: Any = None) -> Any:
        if on_host(c, ours == "add"):
            return functools.reduce(of_numpy, [c.host(i) for i in range(len(xs))])
        found = xs[0]
        for x in xs[1:]:
            all_host = isinstance(found, np.ndarray) and isinstance(x, np.ndarray)
            found = np.asarray(of_numpy(found, x)) if all_host else elementwise(ours, *both(c, found, x))
        return found

    operator(name, since)(variadic)


for _name, _since, _ours, _numpy in (
    ("Max", 1, "maximum", np.maximum), ("Min", 1, "minimum", np.minimum), ("Sum", 1, "add", np.add),
):  # fmt: skip
    add_variadic(_name, _since, _ours, _numpy)


@operator("Mean", 1)
def mean(*xs: Any) -> Any:
    return functools.reduce(lambda a, b: a + b, xs) / len(xs)


# -- of one element ---------------------------------------------------------------------------------------------------
def add_unary(name: str, since: int, ours: Any, of_numpy: Any = None, gives: str | None = None) -> None:
    """The entry for a function of one: clnn's by name or a function of a tensor, and NumPy's for constants and shapes."""
    run = (lambda x: function(x, ours)) if isinstance(ours, str) else ours

    def unary(c: Context, x: Any) -> Any:
        whole = c.types[0] not in ("float32", "float64", "float16", "bfloat16", "bool")
        if of_numpy is not None and (whole or isinstance(x, np.ndarray)):
            found = np.asarray(of_numpy(c.host(0)))
            return found.astype(bool) if gives else found
        return run(c.tensor(x))

    operator(name, since, gives=gives)(unary)


def _half(x: Any, y: Any) -> Any:
    return (x + y) * 0.5


def sinh(x: Tensor) -> Tensor:
    """By expm1, which is exact near 0; beyond that exp would overflow before the result does, so half of it is taken."""
    e = function(x, "expm1")
    near = _half(e, e / (e + 1.0))
    half = function(function(x, "abs") - math.log(2.0), "exp")
    return arrays.where(function(x, "abs") > 10.0, function(x, "sign") * half, near)


def cosh(x: Tensor) -> Tensor:
    size = function(x, "abs") - math.log(2.0)
    return function(size, "exp") + function(-size, "exp") * 0.25


def right(x: Tensor) -> Tensor:
    """The other side of a triangle whose longest is 1."""
    return function((1.0 - x) * (x + 1.0), "sqrt")


def asinh(x: Tensor) -> Tensor:
    size = function(x, "abs")
    big = size > 1e8  # where x x + 1 is x x
    safe = arrays.where(big, 1.0, size)
    near = function(safe + safe * safe / (function(safe * safe + 1.0, "sqrt") + 1.0), "log1p")
    far = function(arrays.where(big, size, 1.0), "log") + math.log(2.0)
    return function(x, "sign") * arrays.where(big, far, near)


def acosh(x: Tensor) -> Tensor:
    big = x > 1e8  # where x x - 1 is x x; below 1 both roots are NaN
    less = arrays.where(big, 1.0, x) - 1.0
    near = function(less + function(less, "sqrt") * function(less + 2.0, "sqrt"), "log1p")
    return arrays.where(big, function(arrays.where(big, x, 1.0), "log") + math.log(2.0), near)


for _name, _since, _run, _numpy in (
    ("Abs", 6, "abs", np.abs), ("Neg", 6, "negative", np.negative), ("Sign", 9, "sign", np.sign),
    ("Floor", 6, "floor", np.floor), ("Ceil", 6, "ceil", np.ceil), ("Round", 11, "round", np.rint),
    ("Exp", 6, "exp", None), ("Log", 6, "log", None), ("Sqrt", 6, "sqrt", np.sqrt),
    ("Reciprocal", 6, "reciprocal", np.reciprocal), ("Erf", 9, "erf", None),
    ("Sin", 7, "sin", None), ("Cos", 7, "cos", None), ("Tan", 7, lambda x: function(x, "sin") / function(x, "cos"), None),
    ("Sinh", 9, sinh, None), ("Cosh", 9, cosh, None), ("Asinh", 9, asinh, None),
    ("Asin", 7, lambda x: elementwise("arctan2", x, right(x)), None),
    ("Acos", 7, lambda x: elementwise("arctan2", right(x), x), None),
    ("Atan", 7, lambda x: elementwise("arctan2", x, 1.0), None),
    ("Acosh", 9, acosh, None), ("Atanh", 9, lambda x: _half(function(x, "log1p"), -function(-x, "log1p")), None),
    ("Relu", 6, "relu", lambda x: np.maximum(x, 0) if x.dtype.kind in "iu" else np.where(x < 0, 0, x).astype(x.dtype)),
    ("Sigmoid", 6, "sigmoid", None), ("Tanh", 6, "tanh", None), ("Softplus", 1, "softplus", None),
    ("Softsign", 1, "softsign", None), ("Mish", 18, "mish", None), ("HardSwish", 14, "hard_swish", None),
):  # fmt: skip
    add_unary(_name, _since, _run, _numpy)


@operator("Not", 1, gives="bool")
def logical_not(c: Context, x: Any) -> Any:
    return np.logical_not(x) if isinstance(x, np.ndarray) else elementwise("equal", x, 0)


@operator("IsNaN", 9, gives="bool")
def is_nan(x: Tensor) -> Tensor:
    return function(x, "isnan")


@operator("IsInf", 10, gives="bool")
def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    if detect_negative and detect_positive:
        return elementwise("equal", function(x, "abs"), math.inf)
    if not detect_negative and not detect_positive:
        return elementwise("not_equal", x, x) * 0.0
    return elementwise("equal", x, math.inf if detect_positive else -math.inf)


@operator("LeakyRelu", 6)
def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return arrays.leaky_relu(x, 0.01 if abs(alpha - 0.01) < 1e-8 else alpha)


@operator("PRelu", 1)
def prelu_by_channel(x: Tensor, slope: Tensor, *, consumed_inputs: Any = None) -> Tensor:
    return arrays.leaky_relu(x, slope.reshape(-1, *[1] * (x.ndim - 2)) if slope.ndim == 1 and x.ndim > 2 else slope)


@operator("PRelu", 7)
def prelu(c: Context, x: Any, slope: Any) -> Any:
    if c.types[0] not in ONNX_FLOATS:
        x = c.host(0)
        return np.where(x < 0, x * c.host(1), x)
    return arrays.leaky_relu(c.tensor(x), c.tensor(slope))


@operator("Elu", 6)
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return arrays.elu(x, alpha)


@operator("Celu", 12)
def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return arrays.where(x < 0, function(arrays.where(x < 0, x, 0.0) / alpha, "expm1") * alpha, x)


@operator("Selu", 6)
def selu(x: Tensor, *, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805) -> Tensor:
    if abs(alpha - 1.6732632423543772) < 1e-6 and abs(gamma - 1.0507009873554805) < 1e-6:
        return function(x, "selu")
    return arrays.elu(x, alpha) * gamma


@operator("ThresholdedRelu", 10)
def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return arrays.where(x <= alpha, 0.0, x)


@operator("Shrink", 9)
def shrink(c: Context, x: Any, *, bias: float = 0.0, lambd: float = 0.5) -> Any:
    if c.types[0] not in ("float32", "float64", "float16"):
        x = c.host(0)
        return np.where(x < -lambd, x + bias, np.where(x > lambd, x - bias, 0)).astype(x.dtype)
    x = c.tensor(x)
    return arrays.where(x < -lambd, x + bias, arrays.where(x > lambd, x - bias, x * 0.0))


@operator("HardSigmoid", 6)
def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return function(x, "hard_sigmoid")
    return arrays.clip(x * alpha + beta, 0.0, 1.0)


@operator("Gelu", 20)
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return function(x, "gelu_tanh" if approximate == "tanh" else "gelu")


@operator("Swish", 24)
def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return function(x, "swish") if alpha == 1 else x * function(x * alpha, "sigmoid")


@operator("Clip", 11)
def clip(c: Context, x: Any, low: Any = None, high: Any = None) -> Any:
    """x, at least `low` and then at most `high`."""
    if on_host(c):
        bounds: list[Any] = [c.host(i) if i < len(c.values) and c.values[i] is not None else None for i in range(3)]
        found = bounds[0] if bounds[1] is None else np.maximum(bounds[0], bounds[1])
        return np.asarray(found if bounds[2] is None else np.minimum(found, bounds[2]))
    x = c.tensor(x)
    for bound, ours in ((low, "maximum"), (high, "minimum")):
        if bound is not None:
            bound = bound.item() if isinstance(bound, np.ndarray) and bound.size == 1 else bound
            x = elementwise(ours, x, bound.reshape(()) if isinstance(bound, Tensor) else bound)
    return x


@operator("Clip", 6)
def clip_by_attributes(x: Tensor, *, min: float = -math.inf, max: float = math.inf) -> Tensor:  # noqa: A002
    for bound, ours in ((min, "maximum"), (max, "minimum")):
        x = x if math.isinf(bound) else elementwise(ours, x, bound)
    return x


@operator("Where", 9)
def where(c: Context, condition: Any, a: Any, b: Any) -> Any:
    c.gives(c.types[1])
    if c.all_host():
        return np.where(condition, a, b)
    if c.types[1] == "string":
        return np.where(c.host(0), c.host(1), c.host(2))
    values = [
        x.item() if isinstance(x, np.ndarray) and x.size == 1 and not x.ndim and x.dtype.kind == "f" else c.tensor(x)
        for x in (a, b)
    ]
    condition = c.tensor(condition)
    if not isinstance(values[0], Tensor) and not isinstance(values[1], Tensor):
        values[0] = c.tensor(a)
    return arrays.where(condition, *values)


# -- whole numbers and types ------------------------------------------------------------------------------------------
for _name, _numpy in (("BitwiseAnd", np.bitwise_and), ("BitwiseOr", np.bitwise_or), ("BitwiseXor", np.bitwise_xor)):
    operator(_name, 18, host=(0, 1))(lambda a, b, *, _f=_numpy: np.asarray(_f(a, b)))
operator("BitwiseNot", 18, host=(0,))(lambda a: np.asarray(np.bitwise_not(a)))


@operator("BitShift", 11, host=(0, 1))
def bit_shift(a: Any, b: Any, *, direction: str) -> Any:
    return np.asarray((np.left_shift if direction == "LEFT" else np.right_shift)(a, b))


def whole(x: Array) -> tuple[Array, Backward]:
    """x as int32, rounded to 0, on the device; it has no gradient."""
    y = empty(x.device, x.shape, np.int32)
    x.device.launch(
        "elementwise", "convert", (x.size,), x.size, x.block, y.block, real=x.real, FROM=TYPES[x.dtype], TO="int"
    )
    return y, lambda dy: iter(())


CASTS = {1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
         10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16"}  # fmt: skip


def cast_to(c: Context, x: Any, kind: str) -> Any:
    """x as another type. On the device float16 and bfloat16 are float32, and whole numbers int32."""
    c.gives(kind)
    before = c.types[0]
    if "string" in (kind, before):
        x = c.host(0)
        if kind != "string":
            return x.astype(np.float64).astype(kind) if np.dtype(kind).kind == "f" else x.astype(kind)
        if x.dtype.kind == "f":
            return np.array([np.format_float_positional(v, trim="0") for v in x.ravel()], object).reshape(x.shape)
        return x.astype(str).astype(object)
    if isinstance(x, np.ndarray):
        return x.astype("float32" if kind == "bfloat16" else kind)
    if kind == "bool":
        return elementwise("not_equal", x, 0)
    if kind in ("float32", "float64", "float16", "bfloat16"):
        return of_dtype(x, np.float64 if kind == "float64" else np.float32)
    if x.dtype in FLOATS:
        if before not in ("bool",) and kind not in ("int32", "int64"):  # which wrap around
            return c.host(0).astype(np.int64).astype(kind)
        if kind == "int64" and before != "bool":
            c.pass_.below(2**31, x, "whole numbers have 32 bits on the device, and this needs more: keep it a float")
        return apply(whole, x)
    wide = {"int8": 8, "int16": 16, "int32": 32, "int64": 64, "uint8": 7, "uint16": 15, "uint32": 31, "uint64": 63}
    if kind.startswith("u") or wide[kind] < min(wide[before] + before.startswith("u"), 32):
        return c.host(0).astype(kind)
    return x


@operator("Cast", 6)
def cast(c: Context, x: Any, *, to: int, saturate: int = 1, round_mode: str = "up") -> Any:
    if to not in CASTS:
        raise TypeError(f"type {to} is not known here")
    return cast_to(c, x, CASTS[to])


@operator("CastLike", 15)
def cast_like(c: Context, x: Any, like: Any, *, saturate: int = 1, round_mode: str = "up") -> Any:
    return cast_to(c, x, c.types[1])
