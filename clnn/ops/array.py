"""An `Array`: a shape and a type over a block of device memory; always contiguous, row-major."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import DeviceError, ShapeError
from ..gemm import RowsOf, Scale
from ..runtime.device import Device, DType, int_vector
from ..runtime.memory import Block
from ..runtime.recorder import Argument, Defines
from .trace import op

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
MASK = "bool"  # `made_by` of int32 that was bools, and of what a comparison made: as an index, a mask


class Array:
    """Elements of `dtype` in `shape` on `device`.

    `made_by` names the activation whose values these are, if any (losses look at it), or is MASK. `activation` = (name, saved
    array) says that the backward closure takes dz, see clnn/ops. `logits` is what a softmax was taken of.
    `rows` says where a mini-batch is that is not gathered yet: GEMM and losses read it there, `block` gathers it.
    """

    __slots__ = ("memory", "shape", "dtype", "device", "made_by", "activation", "logits", "rows", "__weakref__")

    def __init__(self, block: Block, shape: Sequence[int], dtype: DType, device: Device) -> None:
        self.memory, self.shape, self.dtype, self.device = block, tuple(shape), np.dtype(dtype), device
        self.made_by = ""
        self.activation: tuple[str, Array] | None = None
        self.logits: Any = None  # of the same class as this one
        self.rows: RowsOf | None = None

    @property
    def block(self) -> Block:
        """Its memory; of what is kept as halves, a copy in float32."""
        return self.memory if self.memory.half is None else self.memory.half.unpacked()

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        """How many axes it has."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes its elements take."""
        return self.size * self.dtype.itemsize

    @property
    def real(self) -> str:
        """The OpenCL type of its elements."""
        return self.device.real(self.dtype)

    def alias(self) -> Array:
        """The same memory as an array of its own, without the rest (so that there is no cycle of references)."""
        return Array(self.block, self.shape, self.dtype, self.device)

    def reshaped(self, shape: Sequence[int]) -> Array:
        """The same memory under another shape of the same size."""
        y = Array(self.block, shape, self.dtype, self.device)
        y.made_by = self.made_by
        return y


class Sink(NamedTuple):
    """Where a gradient goes: out = alpha * gradient (* f'(saved)) + beta * out; kernels/sink.cl writes it."""

    out: Block
    scale: Scale | None = None
    derivative: tuple[str, Array] | None = None  # f and saved

    def arguments(self) -> tuple[Argument, ...]:
        """What a kernel takes as SINK_ARGS: saved, out, the scale's table, row and column."""
        saved = self.derivative[1].block if self.derivative else None
        scale = self.scale
        return saved, self.out, *((scale.table, scale.at, scale.column) if scale else (None, None, 0))

    def defines(self) -> Defines:
        """The defines that go with them."""
        scaled: Defines = {"SCALED": 1} if self.scale else {}
        return scaled | ({"TIMES_DERIVATIVE": 1, "ACT": self.derivative[0]} if self.derivative else {})


Writer = Callable[..., None]  # writes gradients where it is told: a Sink for each input, None for one that wants none
Gradient = Array | Writer
# One or more inputs, and last their gradient: an array for one input, a writer for several. A writer for one input alone goes by
# its sink's `derivative`; for weights and bias there is one writer for two, also where the bias is None.
Flow = tuple[Any, ...]
Backward = Callable[[Array], Iterable[Flow]]  # from an output's gradient to those of the inputs
LossBackward = Callable[[Array | None], Iterable[tuple[Array, Array]]]  # where None stands for a gradient of 1


def empty(device: Device, shape: Sequence[int], dtype: DType = np.float32) -> Array:
    """An array whose elements are not set."""
    dtype = np.dtype(dtype)
    return Array(device.allocate(math.prod(shape) * dtype.itemsize), shape, dtype, device)


def empty_like(x: Array) -> Array:
    """An array of the same form, with anything in it."""
    return empty(x.device, x.shape, x.dtype)


def block_of(x: Array | None) -> Block | None:
    """The array's memory, or None without an array."""
    return None if x is None else x.block


@op
def fill(x: Array, value: float) -> Array:
    """Set every element to `value`; returns x."""
    x.device.launch("elementwise", "fill", (x.size,), x.size, x.block, float(value), real=x.real)
    return x


def check_together(what: str, *arrays: Array | None) -> None:
    """The arrays of one op share a device and a float type."""
    there = [x for x in arrays if x is not None]
    for x in there[1:]:
        if x.device is not there[0].device:
            where = f"{there[0].device!r} and {x.device!r}"
            raise DeviceError(f"{what}: arrays on two devices, {where}; move one with .to(device)")
        if x.dtype != there[0].dtype:
            types = f"{there[0].dtype} and {x.dtype}; convert one by .astype(), classes by clnn.one_hot()"
            raise ShapeError(f"{what}: arrays of two types, {types}")


def check_float(what: str, x: Array, *others: Array | None) -> None:
    """ShapeError unless its elements are floats, and those of the others of the same type."""
    if others:
        check_together(what, x, *others)
    if x.dtype not in FLOATS:
        raise ShapeError(f"{what} takes floats, not {x.dtype}; convert with .astype('float32')")


def vector8(values: Sequence[int], fill: int) -> np.ndarray:
    """Up to eight numbers as an int8 argument, `fill` in front."""
    if len(values) > 8:
        raise ShapeError(f"arrays have at most 8 axes here, and this one has {len(values)}")
    return int_vector([fill] * (8 - len(values)) + list(values))
