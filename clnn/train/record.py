"""What a step measures: losses, hits and metrics gather in a table on the device that is read once an epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..errors import ConfigurationError, Diverged, ShapeError
from ..losses import Loss, parts_of, weights_of
from ..metrics import Metric, metric_name
from ..ops.array import Array, block_of, empty, fill
from ..ops.elementwise import binary
from ..ops.index import check_rows
from ..ops.loss import Record
from ..ops.rows import group_of
from ..runtime.device import Device
from ..runtime.recorder import StepContext
from ..tape import Node, grad_enabled
from ..tensor import Tensor
from .feed import Feed
from .outputs import Outputs


class Results:
    """Per step: of each output the mean loss and the numbers of hits and of targets that count, and the means of further
    metrics."""

    def __init__(
        self, device: Device, steps: int, dtype: Any, outputs: Outputs, loss: Any, hits: Sequence[bool],
        metrics: Sequence[Metric],
    ) -> None:  # fmt: skip
        """`hits`: of which outputs the hits are reported."""
        self.device, self.steps, self.dtype, self.metrics = device, steps, np.dtype(dtype), list(metrics)
        self.outputs, self.hits, self.loss = outputs, list(hits), loss
        self.last: float | None = None  # the loss of the last step of the epoch before
        size = self.dtype.itemsize
        self.main = [device.memory.allocate(max(1, 3 * steps) * size) for _ in outputs.names]
        self.extra = device.memory.allocate(max(1, steps * len(self.metrics)) * size)

    def read(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean losses, hits and counts (3, steps) of each output, and the means (steps, metrics), in float64. OutOfRangeError
        where a step was given a row, or a token, that is not there."""
        check_rows(self.device)
        main = [self.device.read(block, np.empty((steps, 3), self.dtype)).T for block in self.main]
        extra = self.device.read(self.extra, np.empty((steps, len(self.metrics)), self.dtype))
        return np.array(main, np.float64), extra.astype(np.float64)

    def sums(self, main: np.ndarray) -> np.ndarray:
        """Over steps, of each output: of losses, of hits, and of targets that count."""
        return np.array([(losses @ counts, right.sum(), counts.sum()) for losses, right, counts in main])

    def logs(self, sums: np.ndarray) -> dict[str, float]:
        """By name the means that these sums say."""
        means = sums[:, :2] / np.maximum(1.0, sums[:, 2:])
        found = {"loss": float(means[:, 0] @ weights_of(self.loss))}
        for name, (loss, accuracy), hits in zip(self.outputs.names, means, self.hits):
            if self.outputs.several:
                found[f"{name}_loss"] = float(loss)
            if hits:
                found[f"{name}_accuracy" if self.outputs.several else "accuracy"] = float(accuracy)
        return found

    def means(self, plan: np.ndarray, epoch: int, first_step: int, world: Any) -> dict[str, float]:
        """The means over an epoch whose steps had so many rows each, by name. Diverged where a loss is not finite."""
        main, extra = self.read(len(plan))
        if world.size > 1:  # of a row that only stood in for none
            main[..., plan == 0] = extra[plan == 0] = 0.0
        losses = np.tensordot(weights_of(self.loss), main[:, 0], 1)
        bad = np.flatnonzero(~np.isfinite(losses))
        found = world.gather((int(bad[0]), float(losses[bad[0]])) if bad.size else (len(plan), 0.0))
        at, loss = min(found, key=lambda one: one[0])
        if at < len(plan):
            before = losses[at - 1] if at else self.last
            last = "no loss was finite before" if before is None else f"the last finite loss was {before:.6g}"
            ranks = ", ".join(str(rank) for rank, (first, _) in enumerate(found) if first == at)
            whose = "" if world.size == 1 else f" of rank {ranks} of {world.size}"
            raise Diverged(
                f"the loss{whose} stopped being finite at step {at + 1} of {len(plan)} in epoch {epoch + 1} "
                f"({first_step + at + 1} in all): {loss}; {last}. Use a smaller learning rate, weight decay, or scaled inputs."
            )
        self.last = float(losses[-1])
        return self.together(self.sums(main), plan @ extra, plan.sum(), world)

    def together(self, sums: np.ndarray, extra: np.ndarray, rows: float, world: Any) -> dict[str, float]:
        """By name the means that all ranks' sums say: `sums`, those of further metrics times rows, and of rows."""
        found = world.sums(np.concatenate([sums.ravel(), extra, [rows]]))
        further = zip(map(metric_name, self.metrics), found[sums.size : -1] / found[-1])
        return self.logs(found[: sums.size].reshape(sums.shape)) | {name: float(value) for name, value in further}


def steps_of(n: int, batch: int) -> list[tuple[int, int]]:
    """(rows, steps) of a pass over n samples: whole batches, and the remainder as a step of its own."""
    return [part for part in ((batch, n // batch), (n % batch, 1)) if all(part)]


def rows_by_step(n: int, batch: int) -> np.ndarray:
    """The rows of each step, one by one."""
    return np.concatenate([np.full(count, rows) for rows, count in steps_of(n, batch)])


def record_metrics(feed: Feed, results: Results, outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    """The means of further metrics of this step."""
    for column, metric in enumerate(results.metrics):
        values = metric(outputs, targets) if results.outputs.several else metric(outputs[0], targets[0])  # type: ignore
        wanted = isinstance(values, Tensor) and values.dtype == results.dtype and values.size
        if not wanted or (values.size != 1 and values.size % targets[0].shape[0]):
            raise ConfigurationError(
                f"the metric {metric_name(metric)} should return a {results.dtype} tensor with a value for each sample, or one "
                f"for all of them (a comparison, a == b, is one of floats); it returned {values!r}: NumPy's go into a callback"
            )
        feed.device.launch(
            "metrics", "record_mean", (1,), values.size, len(results.metrics), column, values.block, feed.state, results.extra,
            local=(1,), real=feed.device.real(results.dtype),
        )  # fmt: skip


def _ones(x: Tensor, _: Any) -> Iterator[tuple[Tensor, Array]]:
    """The gradient of x where backpropagation starts there."""
    yield x, fill(empty(x.device, x.shape, x.dtype), 1.0)


def record_loss(
    loss: Any, outputs: Sequence[Tensor], ys: Sequence[Tensor], ws: Sequence[Tensor | None], feed: Feed, results: Results,
    batch: int, context: StepContext, share: float | None = None, world: Any = None,
) -> Node | None:  # fmt: skip
    """Compute the loss of each output, record it with the hits, move the counters on, and say where backpropagation starts.

    Where several ranks of a `world` train together, gradients are those of this rank's `share` of the mean over all of them.

    The counters move here, after everything that reads their old values (gathering, dropout) and before everything that
    reads the new ones (rates). Any function of two tensors serves as a loss.
    """
    device, n, start, losses = feed.device, ys[0].shape[0], None, None
    cells = [one for cell in [*context.cells][:2] if cell not in context.draws for one in context.forget(cell)]
    flows: list[tuple[Tensor, Any, Any]] = []  # where gradients start, what gives them, and the factor
    for i, (one, output, y, w) in enumerate(zip(parts_of(loss), outputs, ys, ws)):
        record = Record(results.main[i], feed.state, cells[:2])
        weight: Any = weights_of(loss)[i] * (1.0 if share is None else share)
        together = False
        if isinstance(one, Loss):
            if output.shape[0] != n:
                told = f"{one.name}: forward() returned {output.shape[0]} rows for {n} samples; its first axis is the samples'"
                raise ShapeError(told)
            together = len(ys) == 1 and batch <= device.group_width and math.prod(one.shape(output.shape)) == n
            together &= group_of(device, math.prod(output.shape[1:])) == 1  # rows that have a group each end no step
            found, source = one.rows(output, y, w, y.dtype == np.int32, record if together else None)
            losses, hit, kept = found.losses, found.hits, found.kept
            if kept is not None and share is not None:  # how many targets count, each rank knows of its own
                weight = binary("multiply", world.share(kept, share > 0), weights_of(loss)[i])[0]
            if grad_enabled() and source.requires_grad:
                flows.append((source, found.backward, weight))
        else:
            if w is not None:
                told = "sample_weight and class_weight need one of clnn's losses; weight samples inside your own"
                raise ConfigurationError(told)
            losses, hit, kept = one(output, y), None, None
            if not isinstance(losses, Tensor) or losses.size != 1:
                kind = f"a tensor of shape {losses.shape}" if isinstance(losses, Tensor) else type(losses).__name__
                raise ShapeError(f"a loss of your own returns a tensor of one number, the samples' mean, not {kind}")
            if not results.outputs.several and share is None:
                start = losses.node
            elif losses.requires_grad:
                flows.append((scaled := losses * weight, partial(_ones, scaled), 1.0))
        if not together:
            last = i + 1 == len(outputs)
            kernel, real = "end_step" if last else "end_part", device.real(results.dtype)
            width = 1 if device.long_loops else device.fitting(device.group_width, "state", kernel, real)
            device.check_turns(2 * -(-max(losses.size, n) // width), f"the mean of {losses.size:,} losses")
            device.launch(
                "state", kernel, (width,), n, losses.size, losses.block,
                block_of(hit), block_of(kept), *record.args()[: None if last else 2],
                local=(width,), real=real, **({} if width == 1 else {"WIDTH": width}),
            )  # fmt: skip
    context.moved = True
    if not flows:
        return start

    def closure(_: Any) -> Any:
        while flows:
            source, backward, weight = flows.pop(0)
            for _, gradient in backward(None):
                yield source, gradient if weight == 1 else binary("multiply", gradient, weight)[0]

    assert losses is not None
    return Node(losses, closure, of_loss=True)
