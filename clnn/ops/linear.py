"""Products of matrices: the linear layer's op with bias and activation fused, and matmul."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..errors import ShapeError
from ..gemm import Product, Shape, column_sums, engine_name, gemm
from .activation import end_with
from .array import Array, Backward, Flow, Sink, block_of, check_float, empty
from .elementwise import broadcast_shape
from .half import halves_of
from .reduce import sum_to
from .shape import broadcast_to
from .trace import op


@op
def linear(
    x: Array, w: Array, b: Array | None, activation: str = "linear", keep: bool = True, transposed: bool = False
) -> tuple[Array, Backward]:
    """y = f(x w + b): x (..., in), w (in, out), b (out,) -> y (..., out). `transposed`: y = f(x w^T), w (out, in), without b.

    With `keep` the derivative of an activation is kept, where y does not tell it; inference goes without.
    """
    check_float("linear", x, w, b)
    assert b is None or not transposed
    k, n = w.shape[::-1] if transposed else w.shape
    if x.ndim < 1 or x.shape[-1] != k:
        told = f"an input of shape {x.shape} does not fit weights of shape {w.shape}: the last axis must be {k}"
        raise ShapeError(told)
    m, device, dtype = math.prod(x.shape[:-1]), x.device, x.dtype
    y = empty(device, (*x.shape[:-1], n), dtype)
    saved = end_with(y, activation, keep)
    # a mini-batch of two axes is read in the data set, as A; with more axes a sample is several rows of the matrix
    rows = x.rows if x.ndim == 2 and not transposed and engine_name(device) == "tile" else None
    source, halves = x.block if rows is None else rows.source, halves_of(w, m, transposed)
    forward = Product(
        Shape(m, n, k, dtype, transpose_b=transposed and not halves), source, halves or w.block, y.block, rows=rows,
        bias=block_of(b), activation=activation, saved=block_of(saved), halves=halves is not None,
    )  # fmt: skip
    gemm(device, forward)

    def backward(dz: Array) -> Iterator[Flow]:
        # the rows that the backward pass reads are this batch's once the counters have moved on: not within a forward pass
        in_place = rows if rows is not None and device.step is not None and device.step.moved else None
        source = x.block if in_place is None else in_place.source

        def write_dx(sink: Sink) -> None:
            name, before = sink.derivative or ("linear", None)
            dx = Product(
                Shape(m, k, n, dtype, transpose_b=not transposed), dz.block, w.block, sink.out,
                scale=sink.scale, activation=name, saved=block_of(before), derivative=before is not None,
            )  # fmt: skip
            gemm(device, dx)

        def write_dw_db(for_w: Sink | None, for_b: Sink | None = None) -> None:
            sums = None
            if for_b:
                assert for_b.scale is not None
                sums = for_b.out, for_b.scale
            if for_w and transposed:
                gemm(device, Product(Shape(n, k, m, dtype, True), dz.block, x.block, for_w.out, scale=for_w.scale))
            elif for_w:
                shape = Shape(k, n, m, dtype, transpose_a=True)
                gemm(device, Product(shape, source, dz.block, for_w.out, scale=for_w.scale, sums=sums, rows=in_place))
            elif sums:
                column_sums(device, n, m, dz.block, sums, dtype)

        yield x, write_dx  # before dw: a sink may be the weights themselves
        yield w, b, write_dw_db

    return y, backward


def _broadcast(x: Array, leading: tuple[int, ...], step: int) -> tuple[Array, int]:
    """x with its leading axes broadcast, and the elements from one matrix to the next: 0 where all are the same one."""
    if math.prod(x.shape[:-2]) == 1:
        return x, 0
    return (x if x.shape[:-2] == leading else broadcast_to(x, (*leading, *x.shape[-2:]))[0]), step


@op
def matmul(a: Array, b: Array) -> tuple[Array, Backward]:
    """y = a b: (..., m, k) and (..., k, n) -> (..., m, n), in one launch; leading axes are broadcast, as NumPy has it."""
    check_float("matmul", a, b)
    pairs = zip(a.shape[-3::-1], b.shape[-3::-1])
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2] or any(p != q and 1 not in (p, q) for p, q in pairs):
        raise ShapeError(f"matmul: shapes {a.shape} and {b.shape} do not fit: (..., m, k) times (..., k, n)")
    if b.ndim == 2:
        return linear(a, b, None)
    (m, k), n, device, dtype = a.shape[-2:], b.shape[-1], a.device, a.dtype
    leading = broadcast_shape("matmul", a.shape[:-2], b.shape[:-2])

    def batch(
        x: Array, y: Array, m: int, n: int, k: int, transpose_a: bool = False, transpose_b: bool = False
    ) -> Array:
        out = empty(device, (*leading, m, n), dtype)
        (x, x_step), (y, y_step) = _broadcast(x, leading, m * k), _broadcast(y, leading, k * n)
        shape, count = Shape(m, n, k, dtype, transpose_a, transpose_b), math.prod(leading)
        if count:
            gemm(device, Product(shape, x.block, y.block, out.block, batch=count, steps=(x_step, y_step, m * n)))
        return out

    def backward(dy: Array) -> Iterator[Flow]:
        yield a, sum_to(batch(dy, b, m, k, n, transpose_b=True), a.shape)
        yield b, sum_to(batch(a, dy, k, n, m, transpose_a=True), b.shape)

    return batch(a, b, m, n, k), backward
