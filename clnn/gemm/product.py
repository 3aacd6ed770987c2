"""What a product of matrices is, for every engine: its shape, where its matrices are, and the epilogue that goes with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..runtime.device import Device, DType
from ..runtime.memory import Block

SCALE_PAIRS = 5  # (alpha, beta) pairs in a row of a `Scale`'s table, as in kernels/common.cl


class Scale(NamedTuple):
    """The pair (alpha, beta) of a sink, out = alpha * product + beta * out.

    It is in a table on the device, `SCALE_PAIRS` pairs a row, one row a step; `at` holds the current row. `value`
    gives the same pair on the host, for an engine that takes alpha and beta as numbers."""

    table: Block
    at: Block
    column: int
    value: Callable[[], tuple[float, float]]

    @staticmethod
    def constant(device: Device, dtype: DType, alpha: float, beta: float) -> Scale:
        """A pair that never changes; kept per device."""
        common = [(1.0, 0.0), (1.0, 1.0)]  # these two share a table, so that one launch can use both
        pair = (float(alpha), float(beta))
        row = common + [(0.0, 0.0)] * (SCALE_PAIRS - 2) if pair in common else [pair] * SCALE_PAIRS
        key = ("scale", np.dtype(dtype).char, *row)
        if key not in device.constants:
            device.constants[key] = constant_block(device, np.array(row, dtype))
        return Scale(device.constants[key], zero_cell(device), row.index(pair), lambda: pair)


def constant_block(device: Device, array: np.ndarray) -> Block:
    """A block of its own, outside any recording, that holds `array` and is never written again."""
    block = device.memory.allocate(array.nbytes)
    device.upload(array, block, constant=True)
    return block


def zero_cell(device: Device) -> Block:
    """An int32 that is always 0."""
    if "zero" not in device.constants:
        device.constants["zero"] = constant_block(device, np.zeros(1, np.int32))
    return device.constants["zero"]


def epilogue_defines(
    activation: str, scale: Scale | None, saved: Block | None, derivative: bool, bias: Block | None
) -> dict[str, Any]:
    """What kernels/gemm.cl and conv_epilogue.cl are built with for an epilogue. With `derivative` it is multiplied by the
    activation's derivative at `saved`, else `saved` is written."""
    there = {"SCALED": scale, "BIAS": bias, "TIMES_DERIVATIVE" if derivative else "KEEP": saved}
    return {"ACT": activation, **{name: 1 for name, part in there.items() if part is not None}}


class RowsOf(NamedTuple):
    """A mini-batch inside a whole data set: its row r is row order[first + r] of `source`, or first + r without an order.

    `state` holds first for the forward pass in [0], and for the backward pass in [2]: the loss moves [0] on in between.
    """

    source: Block
    order: Block | None
    state: Block


class Shape(NamedTuple):
    """The sizes of C (m, n) = op(A) op(B), where op(A) is (m, k) and op(B) is (k, n), each stored as it is or transposed."""

    m: int
    n: int
    k: int
    dtype: DType = np.float32
    transpose_a: bool = False
    transpose_b: bool = False

    @staticmethod
    def of(form: str, m: int, n: int, k: int, dtype: DType = np.float32) -> Shape:
        """By BLAS's letters for A and B: n for one that is stored as it is, t for one that is stored transposed."""
        return Shape(m, n, k, dtype, *(letter in "tT" for letter in form))

    @property
    def weights(self) -> int:
        """Elements of the layer's weights, in each of its three products."""
        return self.n * (self.m if self.transpose_a else self.k)


class Product(NamedTuple):
    """C = activation(alpha * op(A) op(B) + beta * C + bias), row-major; strides count elements.

    There are `batch` such products; `steps` lead from one A, B, C to the next (0: it is the same one for all).

    `scale` holds alpha and beta (None: 1 and 0). `saved` (m, n) takes the activation's derivative, where C does not tell it. With
    `derivative` it is read: the product is multiplied by the derivative of `activation` there, and no activation is applied.
    `rows` says that A is `rows.source`, a whole data set, and which of its rows count; only `tile` can do that.
    `halves` says that B, not transposed, holds halves: for a few rows of A; only `tile` can do that.
    `sums` = (D, scale) adds D (n) = alpha * column sums of B (k, n) + beta * D, B not transposed."""

    shape: Shape
    a: Block
    b: Block
    c: Block
    lda: int = 0  # from a row to the next; 0: one follows the other
    ldb: int = 0
    ldc: int = 0
    batch: int = 1
    steps: tuple[int, int, int] = (0, 0, 0)
    scale: Scale | None = None
    bias: Block | None = None
    activation: str = "linear"
    saved: Block | None = None
    derivative: bool = False
    sums: tuple[Block, Scale] | None = None
    rows: RowsOf | None = None
    halves: bool = False

    @property
    def strides(self) -> tuple[int, int, int]:
        """`lda`, `ldb` and `ldc` as the engines take them: at least 1, also of empty matrices."""
        m, n, k, _, transpose_a, transpose_b = self.shape
        return self.lda or (m if transpose_a else k) or 1, self.ldb or (k if transpose_b else n) or 1, self.ldc or n
