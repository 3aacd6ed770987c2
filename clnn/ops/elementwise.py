"""Functions of two arrays with broadcasting, and the sums that gradients need."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..errors import DeviceError, ShapeError
from ..gemm import Scale
from ..runtime.device import Device, DType, int_vector
from ..runtime.memory import Block
from ..runtime.recorder import Argument
from .activation import end_with
from .array import Array, Backward, Flow, check_float, check_together, empty, empty_like, vector8
from .reduce import sum_to
from .rows import WORTH, divided
from .trace import op

SHORT = 16  # a row of fewer elements is not worth a loop of its own
TYPES = {np.dtype(np.float32): "float", np.dtype(np.float64): "double", np.dtype(np.int32): "int"}


class Binary(NamedTuple):
    """Of two variables: whether it has a gradient, what it is, what int32 becomes, of how many probabilities it makes such."""

    gradient: bool
    formula: str
    of_ints: str = ""
    keeps: int = 0


BINARY = {
    "add": Binary(True, "a + b", "int32", 2),
    "subtract": Binary(True, "a - b", "int32"),
    "multiply": Binary(True, "a b", "int32", 2),
    "divide": Binary(True, "a / b", keeps=1),
    "power": Binary(True, "a to the power of b", keeps=1),
    "maximum": Binary(True, "the larger of a and b, NaN if one is; equal ones share the gradient", "int32", 2),
    "minimum": Binary(True, "the smaller of a and b, NaN if one is; equal ones share the gradient", "int32", 2),
    "arctan2": Binary(True, "the angle of the point (b, a), in radians from -pi to pi"),
    "logaddexp": Binary(True, "log(exp(a) + exp(b)), without overflow"),
    "remainder": Binary(True, "a - b floor(a / b), of b's sign, as Python's a % b; by 0 NaN, of int32 0", "int32"),
    "floor_divide": Binary(True, "floor(a / b), with derivative 0; by 0 infinite or NaN, of int32 0", "int32"),
    "equal": Binary(False, "1 where a = b, else 0", "float32"),
    "not_equal": Binary(False, "0 where a = b, else 1", "float32"),
    "less": Binary(False, "1 where a < b, else 0", "float32"),
    "less_equal": Binary(False, "1 where a <= b, else 0", "float32"),
    "greater": Binary(False, "1 where a > b, else 0", "float32"),
    "greater_equal": Binary(False, "1 where a >= b, else 0", "float32"),
    "logical_and": Binary(False, "1 where neither a nor b is 0, else 0", "float32"),
    "logical_or": Binary(False, "0 where a and b are 0, else 1", "float32"),
    "logical_xor": Binary(False, "1 where one of a and b is 0, else 0", "float32"),
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


def _over_rows(
    device: Device, shape: tuple[int, ...], *arrays: Array
) -> tuple[tuple[Any, ...], tuple[int, ...], Any, dict[str, Any]]:
    """How a launch goes over `shape`, to which two arrays are broadcast: its first arguments, global and local size, defines.
    Finding an element takes eight divisions for each, more than the rest on a CPU: there it goes by rows."""
    strides = [broadcast_strides(x.shape, shape) for x in arrays]
    n, row = math.prod(shape), shape[-1] if shape[-1] <= WORTH else math.gcd(shape[-1], WORTH)
    if not device.long_loops or row < SHORT:
        return (n, vector8(shape, 1), *[vector8(s, 0) for s in strides]), (n,), None, {"BROADCAST": 1}
    each, size, local, _ = divided(device, np.float32, n // row, row)
    parts = [vector8([*s[:-1], s[-1] * row], 0) for s in strides]
    first = n // row, int_vector((row, each)), vector8([*shape[:-1], shape[-1] // row], 1), *parts
    return first, size, local, {"A_STEP": strides[0][-1], "B_STEP": strides[1][-1]}


@op
def binary(name: str, a: Array | float, b: Array | float, activation: str = "") -> tuple[Array, Backward]:
    """y = f(a, b), elementwise; one of them may be a number. Of int32 BINARY says whether it takes them, and what it gives. Of
    floats the launch may end with an `activation` whose derivative reads y."""
    extra: dict[str, Any] = {}
    first: tuple[Argument, ...]
    size: tuple[int, ...] = ()
    local = None
    if not isinstance(a, Array):
        assert isinstance(b, Array)
        shape, one, first, extra = b.shape, b, (b.size,), {"SCALAR_FIRST": 1}
    elif not isinstance(b, Array):
        shape, one, first, extra = a.shape, a, (a.size,), {"SCALAR": 1}
    else:
        check_together(name, a, b)
        shape, one, first = broadcast_shape(name, a.shape, b.shape), a, (a.size,)
        if a.shape != b.shape:
            if (a.rows or b.rows) and one.dtype != np.int32:
                check_not_paired(name, a.shape, b.shape, shape)
            first, size, local, extra = _over_rows(a.device, shape, a, b)
    device, dtype = one.device, one.dtype
    if dtype == np.int32 and BINARY[name].of_ints and not activation:
        dtype = np.dtype(BINARY[name].of_ints)
        extra["INTS"] = "int" if dtype == np.int32 else "real"
        if dtype == np.int32 and name in ("remainder", "floor_divide") and not isinstance(b, Array) and b == 0:
            raise ShapeError(f"{name}: int32 divided by 0 is no number; convert with .astype('float32') for infinities")
        number: Callable[[float], float] = partial(_whole, name)
    else:
        check_float(name, one)
        number = float
    y = empty(device, shape, dtype)

    def operands() -> tuple[Argument, ...]:
        return *first, *[x.block if isinstance(x, Array) else number(x) for x in (a, b)]

    size = size or (y.size,)
    end: dict[str, Any] = {"ACT": activation} if activation not in ("", "linear") else {}
    device.launch(
        "elementwise", "binary_forward", size, *operands(), y.block, local=local, real=one.real, OP=name, **extra, **end
    )
    if activation:
        end_with(y, activation, keep=True)

    def backward(dy: Array) -> Iterator[Flow]:
        for letter, x in (("a", a), ("b", b)):
            if isinstance(x, Array) and BINARY[name].gradient and x.dtype != np.int32:
                if name == "add" or (name == "subtract" and letter == "a"):
                    dx = dy  # the derivative is 1
                else:
                    dx = empty_like(dy)
                    device.launch(
                        "elementwise", f"binary_backward_{letter}", size, *operands(), dy.block, dx.block,
                        local=local, real=one.real, OP=name, **extra,
                    )  # fmt: skip
                yield x, sum_to(dx, x.shape)

    return y, backward


def _whole(name: str, number: float) -> int:
    if not float(number).is_integer() or not -(2**31) <= number < 2**31:
        raise ShapeError(f"{name}: int32 goes with int32, and {number:g} is none; convert with .astype('float32')")
    return int(number)


@op
def choose(condition: Array, a: Array | float, b: Array | float) -> tuple[Array, Backward]:
    """y = a where the condition is not 0 (NaN is not), else b, with broadcasting; a or b may be a number. A gradient goes to
    what was chosen, and what was not may be anything, NaN too."""
    arrays = [x for x in (a, b) if isinstance(x, Array)]
    check_together("where", *arrays)
    shape = condition.shape
    for x in arrays:
        if x.device is not condition.device:
            told = f"where: arrays on two devices, {condition.device!r} and {x.device!r}; move one with .to(device)"
            raise DeviceError(told)
        shape = broadcast_shape("where", shape, x.shape)
    dtype = arrays[0].dtype if arrays else np.dtype(np.float32)
    y = empty(condition.device, shape, dtype)

    def launch(out: Array, a: Array | float, b: Array | float) -> None:
        operands: list[Any] = []
        extra: dict[str, Any] = {}
        strides = [vector8(broadcast_strides(condition.shape, shape), 0)]
        for name, x in (("A", a), ("B", b)):
            strides.append(vector8(broadcast_strides(x.shape, shape) if isinstance(x, Array) else [], 0))
            if not isinstance(x, Array):
                extra[f"{name}_NUMBER"] = 1
            operands.append(x.block if isinstance(x, Array) else _whole("where", x) if dtype == np.int32 else float(x))
        condition.device.launch(
            "elementwise", "choose", (out.size,), out.size, vector8(shape, 1), *strides, condition.block, *operands, out.block,
            real=out.real, CONDITION=TYPES[condition.dtype], ELEMENT=TYPES[dtype], **extra,
        )  # fmt: skip

    launch(y, a, b)

    def backward(dy: Array) -> Iterator[Flow]:
        for at, x in enumerate((a, b)):
            if isinstance(x, Array) and dtype != np.int32:
                dx = empty_like(y)
                launch(dx, *((dy, 0.0) if at == 0 else (0.0, dy)))
                yield x, sum_to(dx, x.shape)

    return y, backward


@op
def convert(x: Array, dtype: DType) -> tuple[Array, Backward]:
    """x as float32 or float64, on the device; the gradient comes back in x's type."""
    y = empty(x.device, x.shape, dtype)
    x.device.launch(
        "elementwise", "convert", (x.size,), x.size, x.block, y.block, real=y.real, FROM=TYPES[x.dtype], TO=y.real
    )

    def backward(dy: Array) -> Iterator[Flow]:
        if x.dtype != np.int32:
            yield x, convert(dy, x.dtype)[0]

    return y, backward


def scale_add(gradient: Array, out: Block, scale: Scale) -> None:
    """out = alpha * gradient + beta * out, into a block, with a sink's pair."""
    gradient.device.launch(
        "elementwise", "scale_add", (gradient.size,), gradient.size, gradient.block, out, scale.table, scale.at, scale.column,
        real=gradient.real,
    )  # fmt: skip
