"""Launches over the rows of an array: how they are divided among work-items, and what a gradient's sink adds to them."""

from __future__ import annotations

from typing import Any

from ..runtime.device import Device
from ..runtime.memory import Block
from .array import Sink

WORTH = 1 << 12  # elements that are worth a CPU's work-item (a few us)
COMBS = 64  # vectors that a CPU's work-item holds side by side, at most: they lie on its stack
PARTS = 16  # work-items for each core, at most: the last ones to finish are not long waited for


def divided(
    device: Device, dtype: Any, n: int, width: int, step: int = 1
) -> tuple[int, tuple[int, ...], Any, dict[str, Any]]:
    """How a launch goes over n rows of `width` elements: the rows of a work-item, global and local size, defines.

    A CPU's work-item does several rows in vectors (VW), of which one holds the row, or every `step`th element of it, if any
    does; elsewhere, and where the vectors of a step are more than COMBS, each does one element.
    """
    if not device.long_loops or step > COMBS:
        return 1, (n * width,), None, {}
    parts = max(1, min(n, n * width // WORTH, PARTS * device.compute_units))
    each = max(1, -(-n // parts))
    lanes = 1 << max(1, (-(-width // step) - 1).bit_length())
    return each, (-(-n // each),), (1,), {"VW": min(lanes, device.vector_width(dtype))}


def elements(device: Device, dtype: Any, n: int) -> tuple[int, tuple[int, ...], Any, dict[str, Any]]:
    """How a launch goes over n elements: those of a work-item, global and local size, defines; as `divided`."""
    if not device.long_loops:
        return 1, (n,), None, {}
    width = device.vector_width(dtype)
    parts = max(1, min(n // WORTH, PARTS * device.compute_units))
    each = -(-n // (parts * width)) * width
    return each, (-(-n // each) if n else 0,), (1,), {"VW": width}


def sink_of(sink: Sink) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A gradient's last arguments (saved, dx, the scale's table, row and column), and the defines that go with them."""
    defines: dict[str, Any] = {}
    saved: Block | None = None
    scale: tuple[Any, ...] = (None, None, 0)
    if sink.scale is not None:
        defines["SCALED"], scale = 1, (sink.scale.table, sink.scale.at, sink.scale.column)
    if sink.times is not None:
        defines["ACT"], before = sink.times
        defines["TIMES"], saved = 1, before.block
    return (saved, sink.out, *scale), defines
