"""Pooling over 1 to 3 spatial axes: the largest, or the mean, of windows or of a given number of bins (kernels/pool.cl)."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ...errors import ConfigurationError, ShapeError
from ...gemm import constant_block
from ...runtime.device import Device, int_vector
from ...runtime.memory import Block
from ..array import Array, Backward, Flow, Sink, check_float, empty
from ..rows import divided
from ..trace import op
from .window import Window


def check_window(window: Window) -> Window:
    """Every window of a pooling holds an element of the input: a ShapeError or a ConfigurationError where one would not."""
    if 0 in window.space:
        raise ShapeError(f"pooling over no elements: the spatial axes are {window.space}")
    for size, before, after in zip(window.size, window.before, window.after):
        if max(before, after) >= size:
            raise ConfigurationError(
                f"padding should be less than the window's size {size}, or some windows would hold nothing else; "
                f"{(before, after)} was provided instead"
            )
    return window


@op
def pool(
    x: Array, window: Window, kind: str = "max", include_pad: bool = True, keep: bool = True
) -> tuple[Array, Backward]:
    """y = the largest element ("max") or the mean of each window: x (batch, channels, *space) -> (batch, channels, *out).

    Padding is never the largest, and NaN always is; the gradient goes to the first of equals. A mean counts padding as
    zeros with `include_pad`, but never what is beyond it (as PyTorch's does where the last window is a part only).
    With `keep` the places of the largest are kept for the gradient, in bytes for windows of up to 256 elements.
    """
    check_float("pooling", x)
    w = check_window(window).in_3d()
    device, planes = x.device, math.prod(x.shape[:2])
    device.check_turns(_turns(w.size), f"pooling over windows of {' x '.join(map(str, w.size))}")
    y = empty(device, (*x.shape[:2], *window.out), x.dtype)
    defines: dict[str, Any] = {"STEP": w.stride[2]}
    defines.update(zip(("K_D", "K_H", "K_W", "S_D", "S_H"), (*w.size, *w.stride)))
    index = None
    if kind == "max":
        small = math.prod(w.size) <= 256
        defines.update(MAX=1, INDEX="uchar" if small else "int")
        index = device.allocate(y.size * (1 if small else 4)) if keep else None
    elif include_pad:
        defines["INCLUDE_PAD"] = 1

    def launch(kernel: str, space: tuple[int, ...], step: int, *arguments: Any, **how: Any) -> None:
        rows = planes * space[0] * space[1]
        each, size, local, vectors = divided(device, x.dtype, rows, space[2], step)
        sizes = [*w.space, *w.out, *w.before, *w.after, rows, each, 0, 0]
        device.launch(
            "pool", kernel, size, int_vector(sizes), *arguments,
            local=local, real=x.real, **defines, **vectors, **how,
        )  # fmt: skip

    launch("pool_forward", w.out, 1, x.block, y.block, index, FORWARD=1, **({} if index is None else {"KEEP": 1}))

    largest = weakref.ref(y.block) if kind == "max" else None

    def backward(dy: Array) -> Iterator[Flow]:
        def write(sink: Sink) -> None:
            arguments, how = _sink_of(sink, x, largest)
            launch("pool_backward", w.space, w.stride[2], dy.block, index, *arguments, **how)

        yield x, write

    return y, backward


def _turns(sizes: Sequence[int]) -> int:
    """Of loops in loops, the innermost last."""
    d, h, w = sizes
    return d * (1 + h * (1 + w))


def _sink_of(sink: Sink, x: Array, largest: weakref.ref[Block] | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A sink's arguments and defines; where an activation's derivative would read x, it reads the largest of x, the same
    numbers and fewer, if something else keeps them in memory."""
    (saved, *rest), how = sink.arguments(), sink.defines()
    kept = None if largest is None else largest()
    if kept is not None and kept.half is None and saved is x.block:
        return (kept, *rest), how | {"FROM_Y": 1}
    return (saved, *rest), how


def _bins(device: Device, sides: Sequence[int], bins: Sequence[int]) -> Block:
    """The table of kernels/pool.cl that says which elements are in which bins; kept per device."""
    key = ("bins", *sides, *bins)
    if key not in device.constants:
        parts = []
        for n, out in zip(sides, bins):
            o, i = np.arange(out, dtype=np.int64), np.arange(n, dtype=np.int64)
            parts += [o * n // out, -((o + 1) * -n // out), i * out // n, -((i + 1) * -out // n) - 1]
        device.constants[key] = constant_block(device, np.concatenate(parts).astype(np.int32))
    return device.constants[key]


@op
def adaptive_pool(x: Array, out: Sequence[int], kind: str = "max", keep: bool = True) -> tuple[Array, Backward]:
    """y = the largest element or the mean of each bin: x (batch, channels, *space) -> (batch, channels, *out).

    Bin o of an axis holds the elements from floor(o in / out) up to ceil((o + 1) in / out), as PyTorch's do; `out` may be
    larger than the input. Equals and NaN as in `pool`.
    """
    check_float("pooling", x)
    space, out = x.shape[2:], tuple(out)
    if len(space) != len(out) or not 1 <= len(space) <= 3 or 0 in space:
        axes = "1 to 3 spatial axes" if len(space) == len(out) else f"{len(out)} spatial axes"
        raise ShapeError(
            f"an input has a batch, channels and {axes} with elements, and this one has the shape {x.shape}"
        )
    device, planes = x.device, math.prod(x.shape[:2])
    y = empty(device, (*x.shape[:2], *out), x.dtype)
    missing = (1,) * (3 - len(out))
    sides, bins = (*missing, *space), (*missing, *out)
    if math.prod(out) == 1:  # one bin: space is one long row
        sides = (1, 1, math.prod(space))
    for over, by in ((sides, bins), (bins, sides)):  # elements of a bin, and bins of an element
        device.check_turns(_turns([-(-n // m) + (n % m > 0) for n, m in zip(over, by)]), f"pooling {space} to {out}")
    defines: dict[str, Any] = {"ADAPTIVE": 1}
    index = None
    if kind == "max":
        defines["MAX"] = 1
        index = device.allocate(4 * y.size) if keep else None
    table = _bins(device, sides, bins)

    def launch(kernel: str, n: int, width: int, *arguments: Any, **how: Any) -> None:
        each, size, local, vectors = divided(device, x.dtype, n, width)
        device.launch(
            "pool", kernel, size, int_vector([*sides, *bins, n, each]), table, *arguments,
            local=local, real=x.real, **defines, **vectors, **how,
        )  # fmt: skip

    read = max(1, math.prod(sides) // math.prod(bins)) if device.long_loops else 1  # elements for each bin
    how = {} if index is None else {"KEEP": 1}
    launch("adaptive_forward", y.size, read, x.block, y.block, index, FORWARD=1, **how)

    largest = weakref.ref(y.block) if kind == "max" else None

    def backward(dy: Array) -> Iterator[Flow]:
        def write(sink: Sink) -> None:
            arguments, how = _sink_of(sink, x, largest)
            launch("adaptive_backward", planes * sides[0] * sides[1], sides[2], dy.block, index, *arguments, **how)

        yield x, write

    return y, backward
