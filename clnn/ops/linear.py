"""Products of matrices: the linear layer's op with bias and activation fused, and matmul."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ..errors import ShapeError
from ..gemm import Product, Shape, column_sums, engine_name, gemm
from .activation import fused
from .array import Array, Backward, Flow, Sink, block_of, check_float, check_together, empty


def linear(
    x: Array, w: Array, b: Array | None, activation: str = "linear", keep: bool = True
) -> tuple[Array, Backward]:
    """y = f(x w + b): x (..., in), w (in, out), b (out,) -> y (..., out).

    With `keep` the input of an activation whose derivative needs it is kept; inference goes without.
    """
    check_together("linear", x, w, b)
    check_float("linear", x)
    k, n = w.shape
    if x.ndim < 1 or x.shape[-1] != k:
        raise ShapeError(
            f"an input of shape {x.shape} does not fit weights of shape {w.shape}: the last axis must be {k}"
        )
    m, device, dtype = math.prod(x.shape[:-1]), x.device, x.dtype
    y = empty(device, (*x.shape[:-1], n), dtype)
    saved = fused(y, activation, keep)
    # a mini-batch of two axes is read where it lies in the data set; with more axes a sample is several rows of the matrix
    rows = x.rows if x.ndim == 2 and engine_name(device) == "tile" else None
    source = x.block if rows is None else rows.source
    gemm(
        device,
        Product(
            Shape(m, n, k, dtype), source, w.block, y.block,
            rows=rows, bias=block_of(b), activation=activation, saved=block_of(saved),
        ),
    )  # fmt: skip

    def backward(dz: Array) -> Iterator[Flow]:
        # the rows that the backward pass reads are this batch's once the counters have moved on: not within a forward pass
        lying = rows if rows is not None and device.step is not None and device.step.moved else None
        source = x.block if lying is None else lying.source

        def write_dx(sink: Sink) -> None:
            name, before = sink.times or ("linear", None)
            gemm(
                device,
                Product(
                    Shape(m, k, n, dtype, transpose_b=True), dz.block, w.block, sink.out,
                    scale=sink.scale, activation=name, saved=block_of(before), times=before is not None,
                ),
            )  # fmt: skip

        def write_dw_db(for_w: Sink | None, for_b: Sink | None = None) -> None:
            sums = None
            if for_b:
                assert for_b.scale is not None
                sums = for_b.out, for_b.scale
            if for_w:
                shape = Shape(k, n, m, dtype, transpose_a=True)
                gemm(device, Product(shape, source, dz.block, for_w.out, scale=for_w.scale, sums=sums, rows=lying))
            elif sums:
                column_sums(device, n, m, dz.block, sums, dtype)

        yield x, write_dx  # before dw: a sink may be the weights themselves
        yield (w, write_dw_db) if b is None else (w, b, write_dw_db)

    return y, backward


def matmul(a: Array, b: Array) -> tuple[Array, Backward]:
    """y = a b: (..., m, k) and (k, n), or (..., m, k) and (..., k, n) with equal leading axes -> (..., m, n)."""
    check_together("matmul", a, b)
    check_float("matmul", a)
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2] or (b.ndim > 2 and a.shape[:-2] != b.shape[:-2]):
        raise ShapeError(f"matmul: shapes {a.shape} and {b.shape} do not fit: (..., m, k) times (k, n) or (..., k, n)")
    if b.ndim == 2:
        return linear(a, b, None)
    (m, k), n, count = a.shape[-2:], b.shape[-1], math.prod(a.shape[:-2])
    device, dtype = a.device, a.dtype

    def each(
        x: Array,
        y: Array,
        shape: Sequence[int],
        sizes: tuple[int, int, int],
        transpose_a: bool = False,
        transpose_b: bool = False,
    ) -> Array:
        out = empty(device, shape, dtype)
        rows, columns, depth = sizes
        product = Product(Shape(rows, columns, depth, dtype, transpose_a, transpose_b), x.block, y.block, out.block)
        for i in range(count):
            from_x, from_y, to = i * rows * depth, i * depth * columns, i * rows * columns
            gemm(device, product._replace(a_offset=from_x, b_offset=from_y, c_offset=to))
        return out

    def backward(dy: Array) -> Iterator[Flow]:
        yield a, each(dy, b, a.shape, (m, k, n), transpose_b=True)
        yield b, each(a, dy, b.shape, (k, n, m), transpose_a=True)

    return each(a, b, (*a.shape[:-2], m, n), (m, n, k)), backward
