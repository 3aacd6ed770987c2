"""Launches over the rows of an array: how they are divided among work-items."""

from __future__ import annotations

from typing import Any

from ..runtime.device import Device, DType

WORTH = 1 << 12  # elements that are worth a CPU's work-item (a few us)
COMBS = 64  # vectors that a CPU's work-item holds side by side, at most: they are on its stack
PARTS = 16  # work-items for each core, at most: the last ones to finish are not long waited for


def divided(
    device: Device, dtype: DType, n: int, width: int, step: int = 1
) -> tuple[int, tuple[int, ...], Any, dict[str, Any]]:
    """How a launch goes over n rows of `width` elements: the rows of a work-item, global and local size, defines.

    A CPU's work-item does several rows in vectors (VW), of which one holds the row, or every `step`th element of it, if any
    does; elsewhere, and where the vectors of a step are more than COMBS, each does one element.
    """
    if not device.long_loops or step > COMBS:
        return 1, (n * width,), None, {}
    each = max(1, -(-n // max(1, min(n, n * width // WORTH, PARTS * device.compute_units))))
    lanes = 1 << max(1, (-(-width // step) - 1).bit_length())
    return each, (-(-n // each),), (1,), {"VW": min(lanes, device.vector_width(dtype))}


def group_of(device: Device, n: int) -> int:
    """Work-items that share a row of n elements, a power of 2: one on a CPU, and on a GPU where the row is short. Neighbours
    read neighbouring elements then."""
    return 1 if device.long_loops or n < 32 else 1 << (min(n // 4, 256, device.group_width).bit_length() - 1)


def by_groups(
    device: Device, n: int, rows: int, file: str, kernel: str, real: str, **defines: Any
) -> tuple[tuple[int], Any, dict[str, Any]]:
    """How a launch gives each of `rows` rows of n elements to a group: global and local size, and defines."""
    width = device.fitting(group_of(device, n), file, kernel, real, **defines)
    return ((rows,), None, {}) if width == 1 else ((rows * width,), (width,), {"WIDTH": width})


def elements(device: Device, dtype: DType, n: int) -> tuple[int, tuple[int, ...], Any, dict[str, Any]]:
    """How a launch goes over n elements: those of a work-item, global and local size, defines; as `divided`."""
    if not device.long_loops:
        return 1, (n,), None, {}
    width = device.vector_width(dtype)
    each = -(-n // (max(1, min(n // WORTH, PARTS * device.compute_units)) * width)) * width
    return each, (-(-n // each) if n else 0,), (1,), {"VW": width}
