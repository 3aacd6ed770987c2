"""What a step measures: losses, hits and metrics gather in a table on the device that is read once an epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ConfigurationError, Diverged, ShapeError
from ..losses import Loss
from ..metrics import Metric, metric_name
from ..ops.array import block_of
from ..ops.loss import Record
from ..runtime.device import Device
from ..runtime.recorder import StepContext
from ..tape import Node, grad_enabled
from ..tensor import Tensor
from .feed import Feed


class Results:
    """Per step: the mean loss, the numbers of hits and of targets that count, and the means of further metrics."""

    def __init__(self, device: Device, steps: int, dtype: Any, metrics: Sequence[Metric]) -> None:
        self.device, self.steps, self.dtype, self.metrics = device, steps, np.dtype(dtype), list(metrics)
        self.last: float | None = None  # the loss of the last step of the epoch before
        size = self.dtype.itemsize
        self.main = device.memory.allocate(max(1, 3 * steps) * size)
        self.extra = device.memory.allocate(max(1, steps * len(self.metrics)) * size)

    def read(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
        main = self.device.read(self.main, np.empty((steps, 3), self.dtype))
        return main, self.device.read(self.extra, np.empty((steps, len(self.metrics)), self.dtype))

    def means(self, plan: np.ndarray, epoch: int, first_step: int, hits: bool) -> dict[str, float]:
        """The means over an epoch whose steps had so many rows each, by name. Diverged where a loss is not finite."""
        main, extra = self.read(len(plan))
        losses, right, counts = main.astype(np.float64).T
        bad = np.flatnonzero(~np.isfinite(losses))
        if bad.size:
            at = int(bad[0])
            before = losses[at - 1] if at else self.last
            last = "no loss was finite before" if before is None else f"the last finite loss was {before:.6g}"
            raise Diverged(
                f"the loss stopped being finite at step {at + 1} of {len(plan)} in epoch {epoch + 1} (step "
                f"{first_step + at + 1} in all): "
                f"it was {losses[at]}; {last}. Use a smaller learning rate, weight decay, or scaled inputs."
            )
        self.last = float(losses[-1])
        rows, counted = plan.astype(np.float64), max(1.0, counts.sum())
        logs = {"loss": float(losses @ counts / counted)}
        if hits:
            logs["accuracy"] = float(right.sum() / counted)
        for i, metric in enumerate(self.metrics):
            logs[metric_name(metric)] = float(extra[:, i].astype(np.float64) @ rows / rows.sum())
        return logs


def steps_of(n: int, batch: int) -> list[tuple[int, int]]:
    """(rows, steps) of a pass over n samples: whole batches, and the remainder as a step of its own."""
    return [part for part in ((batch, n // batch), (n % batch, 1)) if all(part)]


def rows_by_step(n: int, batch: int) -> np.ndarray:
    """The rows of each step, one by one."""
    return np.concatenate([np.full(count, rows) for rows, count in steps_of(n, batch)])


def record_metrics(feed: Feed, results: Results, output: Tensor, target: Tensor) -> None:
    """The means of further metrics of this step."""
    for column, metric in enumerate(results.metrics):
        values = metric(output, target)
        wanted = isinstance(values, Tensor) and values.dtype == results.dtype and values.size
        if not wanted or (values.size != 1 and values.size % output.shape[0]):
            raise ConfigurationError(
                f"the metric {metric_name(metric)} should return a {results.dtype} tensor with a value for each sample, or one "
                f"for all of them (a comparison, a == b, is one of floats); it returned {values!r}"
            )
        feed.device.launch(
            "metrics", "record_mean", (1,), values.size, len(results.metrics), column, values.block, feed.state, results.extra,
            local=(1,), real=feed.device.real(results.dtype),
        )  # fmt: skip


def record_loss(
    loss: Any,
    output: Tensor,
    y: Tensor,
    w: Tensor | None,
    feed: Feed,
    results: Results,
    batch: int,
    context: StepContext,
) -> Node | None:
    """Compute the loss, record it with the hits, move the counters on, and say where backpropagation starts.

    The counters move here, after everything that reads their old values (gathering, dropout) and before everything that
    reads the new ones (rates). Any function of two tensors serves as a loss.
    """
    device = feed.device
    cells = context.take_cells()
    for cell, by in cells[2:]:
        context.advance(cell, by)
    record = Record(results.main, feed.state, cells[:2])
    if isinstance(loss, Loss):
        together = batch <= device.group_width and math.prod(loss.shape(output.shape)) == output.shape[0]
        found, source = loss.rows(output, y, w, y.dtype == np.int32, record if together else None)

        def closure(_: Any) -> Any:
            return ((source, gradient) for _, gradient in found.backward(None))

        start = Node(found.losses, closure, of_loss=True) if grad_enabled() and source.requires_grad else None
        losses, hit, kept = found.losses, found.hits, found.kept
    else:
        if w is not None:
            raise ConfigurationError(
                "sample_weight and class_weight need one of clnn's losses; weight samples inside your own"
            )
        losses, hit, kept, together = loss(output, y), None, None, False
        if not isinstance(losses, Tensor) or losses.size != 1:
            raise ShapeError("a loss of your own should return a tensor of one number, the mean over samples")
        start = losses.node
    if not together:
        device.check_turns(2 * max(losses.size, output.shape[0]), f"the mean of {losses.size:,} losses")
        device.launch(
            "state", "end_step", (1,), output.shape[0], losses.size, losses.block, block_of(hit), block_of(kept), *record.args(),
            local=(1,), real=device.real(results.dtype),
        )  # fmt: skip
    context.moved = True
    return start
