"""Activations and other functions of one variable: the registry, and the op that applies one.

An activation is one line in kernels/activation.cl and one line here. `saves` says what its derivative is a function
of: its output y (then nothing more is kept), or its input x.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from ..errors import ConfigurationError
from ..foreign import unknown
from .array import Array, Backward, Flow, check_float, empty_like
from .rows import elements
from .trace import op


class Function(NamedTuple):
    """A function of one variable: the variable its derivative reads, and where it comes from."""

    saves: str
    source: str


ACTIVATIONS = {
    "linear": Function("y", "y = x"),
    "step": Function("y", "1 where x > 0, else 0; its derivative is 0 (Rosenblatt 1958)"),
    "sigmoid": Function("y", "1 / (1 + exp(-x))"),
    "tanh": Function("y", "tanh(x)"),
    "relu": Function("y", "max(x, 0) (Nair and Hinton 2010)"),
    "leaky_relu": Function("y", "x where x > 0, else 0.01 x (Maas et al. 2013)"),
    "elu": Function("y", "x where x > 0, else exp(x) - 1 (Clevert et al. 2016)"),
    "selu": Function("y", "1.0507 x where x > 0, else 1.7581 (exp(x) - 1) (Klambauer et al. 2017)"),
    "softplus": Function("y", "log(1 + exp(x)) (Dugas et al. 2001)"),
    "softsign": Function("y", "x / (1 + |x|) (Bergstra et al. 2009)"),
    "hard_sigmoid": Function("y", "x / 6 + 1/2, cut to [0, 1] (Howard et al. 2019)"),
    "hard_tanh": Function("y", "x cut to [-1, 1] (Collobert 2004)"),
    "hard_swish": Function("x", "x hard_sigmoid(x) (Howard et al. 2019)"),
    "swish": Function("x", "x sigmoid(x), also called SiLU (Elfwing et al. 2017, Ramachandran et al. 2017)"),
    "mish": Function("x", "x tanh(softplus(x)) (Misra 2019)"),
    "gelu": Function("x", "x Phi(x), Phi the normal distribution (Hendrycks and Gimpel 2016)"),
    "gelu_tanh": Function("x", "GELU with Phi approximated by a tanh (Hendrycks and Gimpel 2016)"),
}
ALIASES = {"silu": "swish", "identity": "linear", "none": "linear"}
SOFTMAX = ("softmax", "log_softmax")  # activations that look at a whole row

MATH = {
    "exp": Function("y", "exp(x)"),
    "log": Function("x", "natural logarithm"),
    "sqrt": Function("y", "square root"),
    "square": Function("x", "x x"),
    "abs": Function("x", "|x|, with derivative 0 at 0"),
    "negative": Function("x", "-x"),
    "sin": Function("x", "sin(x), x in radians"),
    "cos": Function("x", "cos(x), x in radians"),
    "erf": Function("x", "the error function, 2 / sqrt(pi) times the integral of exp(-t t) from 0 to x"),
    "log1p": Function("x", "log(1 + x), exact for small x"),
    "expm1": Function("y", "exp(x) - 1, exact for small x"),
    "reciprocal": Function("y", "1 / x"),
    "sign": Function("y", "-1, 0 or 1; its derivative is 0"),
    "floor": Function("y", "the largest whole number that is at most x; its derivative is 0"),
    "ceil": Function("y", "the least whole number that is at least x; its derivative is 0"),
    "round": Function("y", "the nearest whole number, of two the even one; its derivative is 0"),
    "isnan": Function("y", "1 where x is NaN, else 0"),
    "isfinite": Function("y", "1 where x is neither infinite nor NaN, else 0"),
    "logical_not": Function("y", "1 where x is 0, else 0"),
}
FUNCTIONS = {**ACTIVATIONS, **MATH}
# What activation's values functions of an activation's values still are: probabilities, for losses.
KEPT = {(made, name): made for made in ("sigmoid", "softmax") for name in ("abs", "relu", "round", "sqrt", "square")}
KEPT["log_softmax", "exp"] = "softmax"


def activation_name(name: str | None) -> str:
    """The registered name that `name` means; None is linear."""
    found = ALIASES.get(name or "linear", name or "linear")
    if found not in ACTIVATIONS:
        known = sorted([*ACTIVATIONS, *ALIASES, *SOFTMAX])
        own = "; one of your own is a clnn.Layer behind it, whose forward(x) returns f(x)" if callable(name) else ""
        raise ConfigurationError(unknown("activation", name, known, own))
    return found


def end_with(y: Array, name: str, keep: bool) -> Array | None:
    """Record on `y`, an op's output, that its launch ends with the activation `name`. The op's backward closure then gets the
    gradient at the activation's input. Returns the array in which the launch must keep the derivative; None without `keep`, and
    where y tells it."""
    y.made_by = name
    if name == "linear":
        return None
    on_input = ACTIVATIONS[name].saves == "x"
    saved = empty_like(y) if on_input and keep else None
    y.activation = ((name, y.alias()) if saved is None else ("kept", saved)) if keep or not on_input else None
    return saved


@op
def unary(x: Array, name: str) -> tuple[Array, Backward]:
    """y = f(x), elementwise."""
    check_float(name, x)
    y = empty_like(x)
    each, size, local, vectors = elements(x.device, x.dtype, x.size)
    x.device.launch(
        "elementwise", "unary_forward", size, x.size, each, x.block, y.block, local=local, real=x.real, ACT=name, **vectors
    )  # fmt: skip
    y.made_by = KEPT.get((x.made_by, name), name)
    y.activation = (name, (y if FUNCTIONS[name].saves == "y" else x).alias())

    def backward(dz: Array) -> Iterator[Flow]:
        yield x, dz

    return y, backward


def back_through(activation: tuple[str, Array], dy: Array, into: Array | None = None) -> Array:
    """dz = dy * f'(saved), a new array, or added to `into`."""
    name, saved = activation
    out = empty_like(dy) if into is None else into
    extra: dict[str, Any] = {} if into is None else {"ACCUMULATE": 1}
    each, size, local, vectors = elements(dy.device, dy.dtype, dy.size)
    dy.device.launch(
        "elementwise", "unary_backward", size, dy.size, each, saved.block, dy.block, out.block,
        local=local, real=dy.real, ACT=name, **vectors, **extra,
    )  # fmt: skip
    return out
