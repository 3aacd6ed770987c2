"""Products of matrices, and softmax over an axis."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ... import arrays, functions
from ...errors import ShapeError
from ...tensor import Tensor, function, linear_layer
from ..registry import Context, operator

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


@operator("MatMul", 1)
def matmul(c: Context, a: Any, b: Any) -> Any:
    if c.types[0] not in ("float32", "float64", "float16", "bfloat16"):
        return np.matmul(c.host(0), c.host(1))
    return c.tensor(a) @ c.tensor(b)


@operator("Gemm", 1)
def gemm(
    c: Context, a: Any, b: Any, bias: Any = None, *, alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0,
    broadcast: int = 1,
) -> Any:  # fmt: skip
    """alpha a b + beta bias, each of a and b transposed if so."""
    if c.types[0] not in ("float32", "float64", "float16", "bfloat16"):
        a, b = (c.host(i).T if turned else c.host(i) for i, turned in ((0, transA), (1, transB)))
        y = a @ b * int(alpha)
        return (y if bias is None else y + c.host(2) * int(beta)).astype(a.dtype)
    if transB and (ready := c.prepared((b,), lambda w: [np.ascontiguousarray(w.T)])) is not None:
        (b,), transB = ready, 0
    a, b = c.tensor(a), c.tensor(b)
    if a.ndim != 2 or b.ndim != 2:
        raise ShapeError(f"Gemm takes matrices, and these are of shapes {a.shape} and {b.shape}")
    a = a.transpose() if transA else a
    n = b.shape[0] if transB else b.shape[1]
    bias = None if bias is None or beta == 0 else c.tensor(bias)
    fused = bias is not None and bias.size == n and bias.shape[-1:] == (n,) and alpha == beta == 1
    if fused:
        return linear_layer(a, b.transpose() if transB else b, bias.reshape(n), "linear")
    y = linear_layer(a, b, None, "linear", transposed=bool(transB))
    y = y if alpha == 1 else y * alpha
    return y if bias is None else y + (bias if beta == 1 else bias * beta)


def over_rest(x: Tensor, axis: int) -> Tensor:
    """x as a matrix whose rows are what lies from `axis` on."""
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


operator("Softmax", 13)(lambda x, *, axis=-1: functions.softmax(x, axis))
operator("LogSoftmax", 13)(lambda x, *, axis=-1: functions.log_softmax(x, axis))
operator("Softmax", 1)(lambda x, *, axis=1: function(over_rest(x, axis), "softmax").reshape(x.shape))
operator("LogSoftmax", 1)(lambda x, *, axis=1: function(over_rest(x, axis), "log_softmax").reshape(x.shape))


@operator("LpNormalization", 1)
def lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """x over its norm along an axis, and 0 where that is 0."""
    size = (
        function(x, "abs").sum(axis, keepdims=True)
        if p == 1
        else function(function(x, "square").sum(axis, True), "sqrt")
    )
    return x / arrays.where(size > 0, size, 1.0)


@operator("Einsum", 12)
def einsum(c: Context, *xs: Any, equation: str) -> Any:
    """Einstein's sums over any number of arrays: "..." are axes that run along, a letter twice in one array is its diagonal."""
    inputs, arrow, result = equation.replace(" ", "").partition("->")
    names, given = inputs.split(","), [c.tensor(x) for x in xs]
    if len(names) != len(given):
        raise ShapeError(f"{equation!r} is for {len(names)} arrays, and {len(given)} were given")
    letters = iter(one for one in LETTERS if one not in equation)
    more = max((t.ndim - len(name.replace("...", "")) for name, t in zip(names, given) if "..." in name), default=0)
    dots = "".join(next(letters) for _ in range(more))
    every = "".join(name.replace("...", "") for name in names)
    if not arrow:
        result = dots + "".join(sorted(one for one in set(every) if every.count(one) == 1))
    result = result.replace("...", dots)
    for i, (name, t) in enumerate(zip(names, given)):
        name = name.replace("...", dots[more - (t.ndim - len(name.replace("...", ""))) :] if "..." in name else "")
        for letter in [one for one in dict.fromkeys(name) if name.count(one) > 1]:  # its diagonal
            a, b = (at for at, one in enumerate(name) if one == letter)
            n = t.shape[a]
            order = [at for at in range(t.ndim) if at not in (a, b)]
            flat = t.transpose([a, b, *order]).reshape(n * n, *(t.shape[at] for at in order))
            t = arrays.take(flat, c.tensor(np.arange(n) * (n + 1)), 0)
            name = letter + "".join(name[at] for at in order)
        names[i], given[i] = name, t
    found, t = names[0], given[0]
    for i in range(1, len(names)):
        rest = set(result).union(*names[i + 1 :])
        kept = "".join(one for one in dict.fromkeys(found + names[i]) if one in rest)
        t, found = arrays.einsum(f"{found},{names[i]}->{kept}", *_alike(found, t, names[i], given[i])), kept
    return arrays.einsum(f"{found}->{result}", t) if found != result else t


def _alike(p: str, x: Tensor, q: str, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both with the same sizes: one of 1 is broadcast."""
    sizes: dict[str, int] = {}
    for names, t in ((p, x), (q, y)):
        for name, size in zip(names, t.shape):
            sizes[name] = max(size, sizes.get(name, 1)) if size != 0 else 0
    both = [(t, tuple(sizes[name] for name in names)) for names, t in ((p, x), (q, y))]
    x, y = (t if t.shape == shape else t.broadcast_to(shape) for t, shape in both)
    return x, y
