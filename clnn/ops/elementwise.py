"""Functions of two arrays with broadcasting, and the sums that gradients need."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ..errors import ShapeError
from ..gemm import Scale
from .array import Array, Backward, check_float, check_together, empty, empty_like, vector8
from .reduce import sum_to


class Binary(NamedTuple):
    """A function of two variables: whether it has a gradient, and what it is."""

    gradient: bool
    formula: str


BINARY = {
    "add": Binary(True, "a + b"),
    "subtract": Binary(True, "a - b"),
    "multiply": Binary(True, "a b"),
    "divide": Binary(True, "a / b"),
    "power": Binary(True, "a to the power of b"),
    "maximum": Binary(True, "the larger of a and b, NaN if one is; where they are equal they share the gradient"),
    "minimum": Binary(True, "the smaller of a and b, NaN if one is; where they are equal they share the gradient"),
    "equal": Binary(False, "1 where a = b, else 0"),
    "not_equal": Binary(False, "0 where a = b, else 1"),
    "less": Binary(False, "1 where a < b, else 0"),
    "less_equal": Binary(False, "1 where a <= b, else 0"),
    "greater": Binary(False, "1 where a > b, else 0"),
    "greater_equal": Binary(False, "1 where a >= b, else 0"),
}


def broadcast_shape(name: str, a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """NumPy's rule: from the last axis backwards, axes are equal, or one of them is 1."""
    shape = []
    for i in range(max(len(a), len(b))):
        p = a[-1 - i] if i < len(a) else 1
        q = b[-1 - i] if i < len(b) else 1
        if p != q and 1 not in (p, q):
            raise ShapeError(f"{name}: shapes {a} and {b} do not broadcast")
        shape.append(q if p == 1 else p)
    return tuple(reversed(shape))


def check_not_paired(name: str, a: tuple[int, ...], b: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """ShapeError where arrays of which one is a mini-batch, such as targets (n,) and outputs (n, 1), would make `shape`, (n, n):
    each sample against every other."""
    if len(a) != len(b) and a[:1] == b[:1] and math.prod(shape) > max(math.prod(a), math.prod(b)):
        raise ShapeError(
            f"{name}: of a mini-batch, shapes {a} and {b} would make {shape}, each sample against every other; bring both to one "
            "shape, such as y.reshape(-1, 1), or where that is meant, one to (1, n)"
        )


def broadcast_strides(shape: tuple[int, ...], target: tuple[int, ...]) -> list[int]:
    """Strides in elements that read an array of `shape` as if it had the shape `target`."""
    strides, step = [0] * len(target), 1
    for i in range(1, len(shape) + 1):
        strides[-i] = step if shape[-i] > 1 else 0
        step *= shape[-i]
    return strides


def binary(name: str, a: Array | float, b: Array | float) -> tuple[Array, Backward]:
    """y = f(a, b), elementwise; one of them may be a number. Comparisons also take int32, and give float32."""
    extra: dict[str, Any] = {}
    operands: tuple[Any, ...]
    if not isinstance(a, Array):
        assert isinstance(b, Array)
        shape, one, operands, extra = b.shape, b, (float(a), b.block), {"SCALAR_FIRST": 1}
    elif not isinstance(b, Array):
        shape, one, operands, extra = a.shape, a, (a.block, float(b)), {"SCALAR": 1}
    else:
        check_together(name, a, b)
        shape, one, operands = broadcast_shape(name, a.shape, b.shape), a, (a.block, b.block)
        if a.shape != b.shape:
            if (a.rows or b.rows) and one.dtype != np.int32:
                check_not_paired(name, a.shape, b.shape, shape)
            strides = [vector8(broadcast_strides(x.shape, shape), 0) for x in (a, b)]
            operands, extra = (vector8(shape, 1), *strides, *operands), {"BROADCAST": 1}
    device, dtype = one.device, one.dtype
    if dtype == np.int32 and not BINARY[name].gradient:
        dtype, extra["INTS"] = np.dtype(np.float32), 1
        operands = tuple(_whole(name, x) if isinstance(x, (int, float)) else x for x in operands)
    else:
        check_float(name, one)
    y = empty(device, shape, dtype)
    n = y.size
    device.launch("elementwise", "binary_forward", (n,), n, *operands, y.block, real=y.real, OP=name, **extra)

    def backward(dy):
        for letter, x in (("a", a), ("b", b)):
            if isinstance(x, Array) and BINARY[name].gradient:
                if name == "add" or (name == "subtract" and letter == "a"):
                    dx = dy  # the derivative is 1
                else:
                    dx = empty_like(dy)
                    device.launch(
                        "elementwise", f"binary_backward_{letter}", (n,), n, *operands, dy.block, dx.block,
                        real=one.real, OP=name, **extra,
                    )  # fmt: skip
                yield x, sum_to(dx, x.shape)

    return y, backward


def _whole(name: str, number: float) -> int:
    if not float(number).is_integer() or abs(number) >= 2**31:
        raise ShapeError(
            f"{name}: int32 is compared with int32, and {number:g} is none; convert with .astype('float32')"
        )
    return int(number)


def scale_add(gradient: Array, out, scale: Scale) -> None:
    """out = alpha * gradient + beta * out, into a block, with a sink's pair."""
    gradient.device.launch(
        "elementwise", "scale_add", (gradient.size,), gradient.size, gradient.block, out, scale.table, scale.at, scale.column,
        real=gradient.real,
    )  # fmt: skip


def add(a: Array, b: Array, activation: str = "linear") -> tuple[Array, Backward]:
    """y = f(a + b), elementwise over equal shapes, in one launch; f an activation whose derivative reads y."""
    check_together("add", a, b)
    check_float("add", a)
    if a.shape != b.shape:
        raise ShapeError(f"add: shapes {a.shape} and {b.shape} differ")
    y = empty_like(a)
    extra: dict[str, Any] = {} if activation == "linear" else {"ACT": activation}
    a.device.launch(
        "elementwise", "binary_forward", (y.size,), y.size, a.block, b.block, y.block, real=y.real, OP="add", **extra
    )
    y.made_by = activation
    if extra:
        y.activation = (activation, y.alias())

    def backward(dz):
        yield a, dz
        yield b, dz

    return y, backward
