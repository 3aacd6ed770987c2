"""How optimizers' kernels pass over a store, and two limits: the norm of all gradients, and the length of columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..errors import ConfigurationError
from ..parameters import Run
from ..runtime.device import Device
from ..runtime.memory import Block
from ..tensor import Parameter

STRIP, ACROSS = 64, 16  # columns that max-norm handles at a time: STRIP by a CPU thread, ACROSS by a work-group
ITEM = 1 << 15  # elements that a CPU thread updates at once: fewer are not worth waking another, and can be fused


class Grid(NamedTuple):
    """How a kernel passes over a store: `width` work-items a group, `each` vectors of `vector` elements a work-item."""

    vector: int
    each: int
    width: int

    @staticmethod
    def over(device: Device, dtype: Any, sums: bool = False) -> Grid:
        """The grid for a device; for `sums` a group has several vectors a work-item, so that there are fewer groups."""
        vector = device.vector_width(dtype)
        if device.long_loops:
            return Grid(vector, ITEM // vector, 1)
        return Grid(vector, 8 if sums else 1, device.group_width)

    def fitting(self, device: Device, kernel: str, dtype: Any, **defines: Any) -> Grid:
        """The same with the groups that a kernel takes as it is compiled."""
        return self._replace(
            width=device.fitting(
                self.width, "optimizer", kernel, device.real(dtype), VW=self.vector, EACH=self.each, **defines
            )
        )

    def groups(self, elements: int) -> int:
        return -(-elements // (self.vector * self.each * self.width))

    def defines(self) -> dict[str, Any]:
        return {"VW": self.vector, "EACH": self.each, "WIDTH": self.width}


def _strips(device: Device, rows: int) -> tuple[int, int, int]:
    """How max-norm cuts a matrix up: work-items in a group, columns that it passes over at a time, and columns in all."""
    if device.long_loops:
        return 1, STRIP, max(STRIP, ITEM // max(1, rows) // STRIP * STRIP)
    across = min(ACROSS, device.group_width)
    return device.group_width, across, across


def clip_factor(plan: Sequence[Run], clip_norm: float, clip_value: float | None) -> Block:
    """min(1, clip_norm / (norm of all gradients + 1e-6)) on the device: sums of squares by group, then one group adds them up."""
    first = plan[0].store
    device, dtype = first.device, first.dtype
    if any((run.store.device, run.store.dtype) != (device, dtype) for run in plan):
        raise ConfigurationError(
            "clip_norm needs all parameters on one device and in one type; give each device an optimizer of its own, "
            "or use clip_value"
        )
    clipped = {} if clip_value is None else {"CLIP_VALUE": 1}
    values, real = () if clip_value is None else (clip_value,), device.real(dtype)
    whole = Grid.over(device, dtype, sums=True)
    grid = whole.fitting(device, "squares", dtype, SQUARES=1, **clipped)
    counts = [grid.groups(run.elements) for run in plan]
    partial, factor = device.allocate(2 * sum(counts) * dtype.itemsize), device.allocate(dtype.itemsize)
    for index, run in enumerate(plan):
        device.launch(
            "optimizer", "squares", (counts[index] * grid.width,), run.elements // grid.vector, sum(counts[:index]),
            run.part(run.store.gradients()), partial, *values, local=(grid.width,), real=real, SQUARES=1, **grid.defines(),
            **clipped,
        )  # fmt: skip
    grid = whole.fitting(device, "clip_factor", dtype, SCALING=1)
    device.launch(
        "optimizer", "clip_factor", (grid.width,), sum(counts), partial, factor, clip_norm,
        local=(grid.width,), real=real, SCALING=1, **grid.defines(),
    )  # fmt: skip
    return factor


def limit_columns(p: Parameter, average: Sequence[Block]) -> None:
    """Max-norm: each column of p, the weights into one unit, is scaled to the length p.max_norm if it is longer. `average`: the
    table of rates, its counter and the moving average, where there is one."""
    device, rows, columns = p.device, math.prod(p.shape[:-1]), p.shape[-1]
    device.check_turns(2 * rows, f"max_norm over {rows:,} rows")
    defines: dict[str, Any] = {"MAX_NORM": 1, **({"EMA": 1} if average else {})}
    width, across, share = _strips(device, rows)
    width = device.fitting(width, "optimizer", "max_norm", device.real(p.dtype), ACROSS=across, **defines)
    if not device.long_loops:
        share = across = min(across, width)
    device.launch(
        "optimizer", "max_norm", (-(-columns // share) * width,), rows, columns, share, p.block, p.max_norm, *average,
        local=(width,), real=device.real(p.dtype), WIDTH=width, ACROSS=across, **defines,
    )  # fmt: skip
