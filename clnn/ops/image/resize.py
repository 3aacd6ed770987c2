"""Arrays (batch, channels, *space) made larger over 1 to 3 spatial axes: upsampled, or padded (kernels/resize.cl)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from ...errors import ConfigurationError, ShapeError
from ...runtime.device import int_vector
from ..array import Array, Backward, Flow, Sink, check_float, empty
from ..rows import COMBS, divided
from ..trace import op

UPSAMPLINGS = ("nearest", "bilinear", "linear")
PADDINGS = ("constant", "reflect", "replicate")


def check_mode(what: str, mode: str, modes: Sequence[str]) -> str:
    """`mode`, if it is one of `modes`."""
    if mode not in modes:
        raise ConfigurationError(f"{what}'s mode should be one of {', '.join(modes)}, {mode!r} was provided instead")
    return mode


def _resized(
    x: Array,
    out: Sequence[int],
    name: str,
    forward: tuple[Any, ...],
    before: Sequence[int] = (0, 0, 0),
    gathered: int = 1,
    **defines: Any,
) -> tuple[Array, Backward]:
    """x (batch, channels, *space) -> y (batch, channels, *out) by the kernels `name`. `gathered`: of how many outputs the
    gradient of an element is the sum, at most."""
    device, planes = x.device, math.prod(x.shape[:2])
    missing = (1,) * (3 - len(out))
    space, sides = (*missing, *x.shape[2:]), (*missing, *out)
    y = empty(device, (*x.shape[:2], *out), x.dtype)

    def launch(kernel: str, over: tuple[int, ...], *arguments: Any, **how: Any) -> None:
        rows = planes * over[0] * over[1]
        step = defines.get("STEP", 1)
        each, size, local, vectors = divided(device, x.dtype, rows, over[2], step if step > COMBS else 1)
        sizes = [*space, *sides, *before, rows, each, 0, 0, 0, 0, 0]
        device.launch(
            "resize", kernel, size, int_vector(sizes), *arguments,
            local=local, real=x.real, **defines, **vectors, **how,
        )  # fmt: skip

    launch(f"{name}_forward", sides, x.block, y.block, *forward, FORWARD=1)

    def backward(dy: Array) -> Iterator[Flow]:
        device.check_turns(2 * gathered, f"the gradient of an element that {name} copied {gathered:,} times")

        def write(sink: Sink) -> None:
            arguments, how = sink.arguments(), sink.defines()
            launch(f"{name}_backward", space, dy.block, *arguments, **how)

        yield x, write

    return y, backward


@op
def upsample(x: Array, factor: Sequence[int], mode: str = "nearest") -> tuple[Array, Backward]:
    """y[o] = x[floor(o / factor)], or linear interpolation over all spatial axes ("bilinear", "linear").

    x (batch, channels, *space) -> (batch, channels, *(space factor)). Interpolation is between the centres of elements, at
    (o + 1/2) / factor - 1/2, and repeats the edge (PyTorch's align_corners=False, TensorFlow 2's half-pixel centres).
    """
    check_float("upsampling", x)
    if len(factor) != x.ndim - 2 or not 1 <= len(factor) <= 3:
        raise ShapeError(f"factors {tuple(factor)} do not fit an input of shape {x.shape}: one for each spatial axis")
    extra: dict[str, Any] = {} if check_mode("upsampling", mode, UPSAMPLINGS) == "nearest" else {"LINEAR": 1}
    f_d, f_h, step = (*(1,) * (3 - len(factor)), *factor)
    x.device.check_turns(4 * f_d * f_h * (3 * step + 2), f"upsampling by {tuple(factor)}")
    out = [n * f for n, f in zip(x.shape[2:], factor)]
    return _resized(x, out, "upsample", (), F_D=f_d, F_H=f_h, STEP=step, **extra)


@op
def pad(
    x: Array, amounts: Sequence[tuple[int, int]], mode: str = "constant", value: float = 0.0
) -> tuple[Array, Backward]:
    """x with `amounts` (before, after) more elements along each spatial axis: (batch, channels, *space) -> larger.

    They are `value` ("constant"), the edge's element ("replicate"), or those on its other side ("reflect", as NumPy's: the
    edge is not repeated, so each amount is less than the axis is long).
    """
    check_float("padding", x)
    check_mode("padding", mode, PADDINGS)
    space = x.shape[2:]
    if len(amounts) != len(space) or not 1 <= len(space) <= 3:
        raise ShapeError(
            f"amounts {tuple(amounts)} do not fit an input of shape {x.shape}: one pair for each spatial axis"
        )
    for n, (before, after) in zip(space, amounts):
        if mode == "reflect" and max(before, after) >= n:
            raise ShapeError(
                f"{mode} by {before} and {after} needs an axis of more than {max(before, after)} elements, and the input's "
                f"shape is {x.shape}"
            )
        if mode == "replicate" and max(before, after) > 0 and n == 0:
            raise ShapeError(f"{mode} needs an element to repeat, and the input's shape is {x.shape}")
    out = [n + before + after for n, (before, after) in zip(space, amounts)]
    starts = (*(0,) * (3 - len(amounts)), *(before for before, _ in amounts))
    how: dict[str, Any] = {mode.upper(): 1}
    copies = [before + after if n == 1 else max(before, after) for n, (before, after) in zip(space, amounts)]
    gathered = math.prod(n + 1 for n in copies) if mode == "replicate" else 1 << len(space)
    return _resized(x, out, "pad", (float(value),), starts, gathered, **how)
