"""GEMM with one face and two engines: `tile`, clnn's own fused kernel, and `clblast`, through pyclblast."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..errors import ConfigurationError, DeviceError
from ..runtime.device import Device
from ..runtime.memory import Block
from . import clblast, tile, tuning

ENGINES = ("clblast", "tile")
SCALE_PAIRS = 5  # pairs in a row of a scale table, as in kernels/common.cl


class Scale(NamedTuple):
    """The pair (alpha, beta) of a sink, out = alpha * product + beta * out.

    It lies in a table on the device, `SCALE_PAIRS` pairs a row, one row a step; `at` holds the current row. `value`
    gives the same pair on the host, for an engine that takes alpha and beta as numbers.
    """

    table: Block
    at: Block
    column: int
    value: Callable[[], tuple[float, float]]

    @staticmethod
    def constant(device: Device, dtype: Any, alpha: float, beta: float) -> Scale:
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


class RowsOf(NamedTuple):
    """A mini-batch inside a whole data set: its row r is row order[first + r] of `source`, or first + r without an order.

    `state` holds first for the forward pass in [0], for the backward pass in [2].
    """

    source: Block
    order: Block | None
    state: Block


class Product(NamedTuple):
    """One GEMM, C (M, N) = epilogue(op(A) op(B)), as both engines take it; sizes and offsets in elements."""

    m: int
    n: int
    k: int
    a: Block
    b: Block
    c: Block
    dtype: Any
    transpose_a: bool
    transpose_b: bool
    lda: int
    ldb: int
    ldc: int
    a_offset: int
    b_offset: int
    c_offset: int
    scale: Scale | None
    bias: Block | None
    activation: str
    saved: Block | None
    times: bool
    sums: tuple[Block, Scale] | None
    rows: RowsOf | None


def forced_engine() -> str:
    """What CLNN_GEMM says, or ""."""
    forced = os.environ.get("CLNN_GEMM", "").strip().lower()
    if forced and forced not in ENGINES:
        raise ConfigurationError(f"CLNN_GEMM={forced!r} is no GEMM engine; there are {' and '.join(ENGINES)}")
    return forced


def engine_name(device: Device, product: Product | None = None) -> str:
    """The engine in use on `device`: what CLNN_GEMM says, else what was measured for the product's class of shape, else
    CLBlast on a GPU; `tile` wherever CLBlast is not there or fails its self-test."""
    forced = forced_engine()
    if forced == "clblast":
        if problem := clblast.problem(device):
            raise DeviceError(f"CLNN_GEMM=clblast, but {problem}; unset CLNN_GEMM or set it to tile")
        return "clblast"
    engine = forced or (tuning.find(device, product).engine if product is not None else "")
    if engine == "tile" or (not engine and device.kind != "gpu"):
        return "tile"
    return "tile" if clblast.problem(device) else "clblast"


def gemm(
    device: Device,
    m: int,
    n: int,
    k: int,
    a: Block,
    b: Block,
    c: Block,
    *,
    dtype: Any = np.float32,
    transpose_a: bool = False,
    transpose_b: bool = False,
    lda: int | None = None,
    ldb: int | None = None,
    ldc: int | None = None,
    a_offset: int = 0,
    b_offset: int = 0,
    c_offset: int = 0,
    scale: Scale | None = None,
    bias: Block | None = None,
    activation: str = "linear",
    saved: Block | None = None,
    times: bool = False,
    sums: tuple[Block, Scale] | None = None,
    rows: RowsOf | None = None,
) -> None:
    """C (m, n) = activation(alpha * op(A) op(B) + beta * C + bias), row-major.

    `scale` holds alpha and beta (None: 1 and 0). `saved` (m, n) takes the value before the activation; with `times`
    it is read instead: the product is multiplied by the activation's derivative there, and no activation is applied.
    `rows` says that A is `rows.source`, a whole data set, and which of its rows count; only `tile` can do that.
    `sums` = (D, scale) adds D (n) = alpha * column sums of B (k, n) + beta * D, B not transposed.
    """
    if m == 0 or n == 0:  # no element of C; but D still wants its sums
        if sums and n:
            column_sums(device, n, k, b, sums, dtype)
        return
    product = Product(
        m, n, k, a, b, c, dtype, transpose_a, transpose_b,
        lda or max(1, m if transpose_a else k), ldb or max(1, k if transpose_b else n), ldc or n,
        a_offset, b_offset, c_offset, scale, bias, activation, saved, times, sums, rows,
    )  # fmt: skip
    if sums and scale and (scale.table is not sums[1].table or scale.at is not sums[1].at):  # tile reads one table
        column_sums(device, n, k, b, sums, dtype)
        product = product._replace(sums=None)
    if k == 0 or rows or engine_name(device, product) == "tile":  # CLBlast refuses k = 0
        tile.run(device, product)
    else:
        _unfused(device, product)


def _unfused(device: Device, p: Product) -> None:
    """The product by CLBlast, and what `tile` would have fused as launches of its own."""
    real = device.real(p.dtype)
    size = p.m * p.n
    plain = p.ldc == p.n and p.c_offset == 0
    if not plain and (p.bias or p.times or p.saved or p.activation != "linear"):
        tile.run(device, p)  # an epilogue on part of a matrix: no launch of its own for so rare a thing
        return
    if p.times:
        target = device.allocate(size * np.dtype(p.dtype).itemsize)
        clblast.run(device, p._replace(c=target, scale=None))
        value = (1.0, 0.0) if p.scale is None else p.scale.value()
        assert value in ((1.0, 0.0), (1.0, 1.0)), "gradients of activations are assigned or added"
        extra: dict[str, Any] = {"ACCUMULATE": 1} if value[1] else {}
        device.launch(
            "elementwise", "unary_backward", (size,), size, 1, p.saved, target, p.c, real=real, ACT=p.activation, **extra
        )  # fmt: skip
    else:
        clblast.run(device, p)
        if p.bias or p.saved or p.activation != "linear":
            extra = {"KEEP": 1} if p.saved else {}
            device.launch(
                "epilogue",
                "bias_activate",
                (p.n, p.m),
                p.n,
                p.m,
                p.bias,
                p.c,
                p.saved,
                real=real,
                ACT=p.activation,
                **extra,
            )
    if p.sums:
        column_sums(device, p.n, p.k, p.b, p.sums, p.dtype)


def column_sums(device: Device, n: int, rows: int, x: Block, sums: tuple[Block, Scale], dtype: Any) -> None:
    out, scale = sums
    device.check_turns(2 * rows, f"column sums of {rows:,} rows")
    device.launch(
        "epilogue", "column_sums", (n,), n, rows, x, out, scale.table, scale.at, scale.column, real=device.real(dtype)
    )
