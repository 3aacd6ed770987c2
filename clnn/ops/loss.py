"""Losses by row, with the gradient of their mean computed in the same launch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..runtime.device import int_vector
from ..runtime.memory import Block
from .array import Array, LossBackward, block_of, check_together, empty, empty_like
from .rows import by_groups, group_of


class Rows(NamedTuple):
    """losses (rows,); hits (rows,), 1 where the largest output is the label's; backward, for the gradient of the mean; kept,
    where targets are ignored: (max(1, n), n) for the n targets that count, the first of which the mean divides by."""

    losses: Array
    hits: Array | None
    backward: LossBackward
    kept: Array | None = None


class Record(NamedTuple):
    """What a step of fit records as soon as the loss is known: its mean loss and hits go to `results`, and `state` and
    up to two further counters, (block, amount), move on."""

    results: Block
    state: Block
    cells: list[tuple[Block, int]]

    def args(self) -> tuple[Any, ...]:
        """Arguments for kernels/state.cl's record_step."""
        (a, i), (b, j) = (self.cells + [(None, 0), (None, 0)])[:2]
        return self.results, self.state, a, b, int_vector([i, j])


# The kernel and the defines of losses that are no line of kernels/losses.cl.
KERNELS: dict[str, tuple[str, dict[str, Any]]] = {
    "softmax_cross_entropy": ("softmax_cross_entropy", {}),
    "kl_divergence": ("softmax_cross_entropy", {"ENTROPY": 1}),
    "cosine": ("cosine", {"COSINE": 1}),
}


def yes_above(made_by: str) -> float:
    """What one output alone has to exceed to say yes, class 1: a probability 1/2, a sigmoid's input 0."""
    return 0.5 if made_by in ("sigmoid", "softmax") else 0.0


def rows(
    name: str, y: Array, target: Array, weight: Array | None = None, *, factor: float = 1.0, parameter: float | Array = 0.0,
    gradient: bool = True, hits: bool = True, folded: bool = False, record: Record | None = None, positions: int = 1,
    ignore: int | None = None, summed: bool = False,
) -> Rows:  # fmt: skip
    """The loss `name` (a line of kernels/losses.cl) of outputs y (rows, n) and targets: labels (rows,) or values (rows, n).

    Labels of one output alone are 0 for no and 1 for yes. A label that is no class makes its row's loss and gradient NaN.
    `factor` is 1 / n for losses that are means over outputs. `folded` says that the formula's derivative already
    includes f' of y's activation. `gradient` asks for dy (it needs a tape). `record` needs rows that fit one group.
    `positions`: the rows of a sample, which may have one weight together. `ignore`: the class number of targets that do not
    count. With `summed` the gradient is that of the sum. A `parameter` that is an array has an element for each output.
    """
    count, n = y.shape
    labels = target.dtype == np.int32
    check_together(name, y, None if labels else target, weight)
    device = y.device
    width = group_of(device, n) if record is None and name != "cosine" else 1
    device.check_turns(5 * n // width + (3 * count if record is not None else 0), f"{name} over {n:,} outputs")
    losses, hit = empty(device, (count,), y.dtype), empty(device, (count,), np.int32) if hits else None
    dy = empty_like(y) if gradient else None
    kernel, defines = KERNELS.get(name, ("elementwise_loss", {"LOSS": name}))
    flags = {"LABELS": labels, "VECTORS": device.long_loops, "SUM": summed, "RECORD": record is not None}
    defines = defines | {flag: 1 for flag, there in flags.items() if there}
    if labels and n == 1:
        defines["YES"] = yes_above(y.made_by)
    saved = None
    if gradient and not folded and y.activation:
        defines["ACT"], saved = y.activation
        defines["TIMES_DERIVATIVE"] = 1
    size, local = (count,), None
    if record is not None:
        assert count <= device.group_width, "the rows of a recorded loss are in one work-group"
        if device.long_loops:
            defines["SERIAL"], size, local = 1, (1,), (1,)
    # targets and weights are read in the data set where both are there, else each from its own memory
    in_place = target.rows if weight is None or weight.rows else None
    where: tuple[Any, ...] = ()
    if in_place is None:
        t, w = target.block, block_of(weight)
    else:
        t, w, where = in_place.source, weight.rows.source if weight is not None and weight.rows else None, in_place[1:]
        defines["FROM_SET"] = 1
    of_row: tuple[Any, ...] = ()
    if positions > 1:
        of_row, defines["POSITIONS"] = (positions, count // max(1, weight.size if weight is not None else count)), 1
    kept = None
    if ignore is not None:
        defines["IGNORE"], counting = ignore, 1 if device.long_loops else device.group_width
        device.check_turns(-(-count // counting), f"{name} over {count:,} targets")
        kept = empty(device, (2,), y.dtype)
        device.launch(
            "losses", "count_kept", (counting,), count, t, kept.block, *of_row, *where,
            local=(counting,), real=y.real, WIDTH=counting,
            **{one: defines[one] for one in ("LABELS", "IGNORE", "FROM_SET", "POSITIONS") if one in defines},
        )  # fmt: skip
    extra: tuple[Any, ...] = (*(() if kept is None else (kept.block,)), *of_row)
    if isinstance(parameter, Array):
        defines["PER_OUTPUT"], extra, parameter = 1, (*extra, parameter.block, parameter.size), 0.0
    if width > 1:
        size, local, group = by_groups(device, n, count, "losses", kernel, y.real, **defines)
        defines |= group
    device.launch(
        "losses", kernel, size, count, n, y.block, t, w, block_of(saved),
        losses.block, block_of(hit), block_of(dy), factor, parameter, *extra, *(record.args() if record else ()), *where,
        local=local, real=y.real, **defines,
    )  # fmt: skip

    def backward(dloss: Array | None) -> Iterator[tuple[Array, Array]]:
        assert dy is not None
        yield y, dy  # by y's activation's input already, where it has one

    return Rows(losses, hit, backward, kept)
