"""GEMM with one face and two engines: `tile`, clnn's own fused kernel, and `clblast`, through pyclblast."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ..errors import ConfigurationError, DeviceError
from ..runtime.device import Device, DType, ceil_div
from ..runtime.memory import Block
from . import clblast, tile, tuning
from .product import SCALE_PAIRS, Product, RowsOf, Scale, Shape, constant_block, epilogue_defines

__all__ = [
    "SCALE_PAIRS", "Product", "RowsOf", "Scale", "Shape", "clblast_problem", "column_sums", "constant_block", "engine_name",
    "epilogue_defines", "forced_engine", "gemm",
]  # fmt: skip
ENGINES = ("clblast", "tile")


def forced_engine() -> str:
    """What CLNN_GEMM says, or ""."""
    forced = os.environ.get("CLNN_GEMM", "").strip().lower()
    if forced and forced not in ENGINES:
        raise ConfigurationError(f"CLNN_GEMM={forced!r} is no GEMM engine; there are {' and '.join(ENGINES)}")
    return forced


def clblast_problem(device: Device) -> str:
    """Why CLBlast cannot be used on `device`, or ""."""
    return clblast.problem(device, tuning.known(device).clblast)


def engine_name(device: Device, shape: Shape | None = None) -> str:
    """The engine in use on `device`: what CLNN_GEMM says, else what was measured for the product's class of shape, else
    CLBlast on a GPU; `tile` wherever CLBlast is not there or fails its self-test."""
    return _engine(device, tuning.find(device, shape).engine if shape is not None else "")


def _engine(device: Device, measured: str) -> str:
    forced = forced_engine()
    if forced == "clblast":
        if problem := clblast_problem(device):
            raise DeviceError(f"CLNN_GEMM=clblast, but {problem}; unset CLNN_GEMM or set it to tile")
        return "clblast"
    engine = forced or measured
    if engine == "tile" or (not engine and device.kind != "gpu"):
        return "tile"
    return "tile" if clblast_problem(device) else "clblast"


def gemm(device: Device, p: Product) -> None:
    """Compute a product and all that goes with it, by the engine that suits it."""
    m, n, k, dtype, _, _ = p.shape
    if m == 0 or n == 0:  # no element of C; but D still wants its sums
        if p.sums and n:
            column_sums(device, n, k, p.b, p.sums, dtype)
        return
    another = p.sums and p.scale and (p.scale.table is not p.sums[1].table or p.scale.at is not p.sums[1].at)
    if p.sums and (another or 2 * k > device.most_turns > 0):
        column_sums(device, n, k, p.b, p.sums, dtype)  # tile reads one table, and adds up each column in one loop
        p = p._replace(sums=None)
    measured = tuning.find(device, p.shape)
    refused = k == 0 or p.halves or p.rows or (p.batch > 1 and 0 in p.steps)  # by CLBlast
    run = tile.run if refused or _engine(device, measured.engine) == "tile" else _unfused
    run(device, p, measured.tile)


def _unfused(device: Device, p: Product, measured: tile.Measured) -> None:
    """The product by CLBlast, and what `tile` would have fused as launches of its own."""
    m, n, k, dtype, _, _ = p.shape
    real = device.real(dtype)
    size = m * n
    plain = p.strides[2] == n and p.batch == 1
    if not plain and (p.bias or p.derivative or p.saved or p.activation != "linear"):
        tile.run(device, p, measured)  # an epilogue on part of a matrix: no launch of its own for so rare a thing
        return
    if p.derivative:
        target = device.allocate(size * np.dtype(dtype).itemsize)
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
                "epilogue", "bias_activate", (n, m), n, m, p.bias, p.c, p.saved, real=real, ACT=p.activation, **extra
            )
    if p.sums:
        column_sums(device, n, k, p.b, p.sums, dtype)


def column_sums(device: Device, n: int, rows: int, x: Block, sums: tuple[Block, Scale], dtype: DType) -> None:
    # each by loops that do not end early
    parts = max(1, ceil_div(2 * rows, device.most_turns)) if device.most_turns else 1
    out, scale = sums
    if parts > 1:
        out, scale = device.allocate(parts * n * np.dtype(dtype).itemsize), Scale.constant(device, dtype, 1, 0)
    device.launch(
        "epilogue", "column_sums", (n, parts), n, rows, ceil_div(rows, parts), x, out, scale.table, scale.at, scale.column,
        real=device.real(dtype),
    )  # fmt: skip
    if parts > 1:
        column_sums(device, n, parts, out, sums, dtype)
