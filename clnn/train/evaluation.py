"""evaluate and predict: a model's outputs, losses and metrics without a tape, in recorded steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..checks import check_count
from ..errors import ConfigurationError, DataError, OutOfDeviceMemory
from ..losses import LOSSES, Loss, find_loss
from ..metrics import Metric, find_metrics, metric_name
from ..ops.array import block_of
from ..runtime.lock import exclusive
from ..runtime.recorder import StepContext
from ..step import Step, copied
from ..tape import no_grad
from ..tensor import Tensor
from .feed import Feed
from .inputs import as_inputs, as_target, as_weights, build_for, check_accuracy
from .record import Results, record_loss, record_metrics, rows_by_step

EVALUATION_BATCH = 512
CHUNK_BYTES = 32 << 20  # evaluation and prediction pass data through a buffer of about this size


class Evaluation:
    """Passes data through a model without a tape, in recorded steps; kept by a model between calls."""

    def __init__(
        self, model: Any, loss: Any, metrics: Sequence[Metric], record: bool = True, batch: int = EVALUATION_BATCH
    ) -> None:
        self.model, self.loss, self.metrics, self.batch = model, loss, list(metrics), batch
        self.feed: Feed | None = None
        self.results: Results | None = None
        self.record = record
        self.step: Step | None = None
        self.moved = True  # whether the feed may be elsewhere than at its first row

    @exclusive("model.device.lock")
    def run(self, xs: Sequence[np.ndarray], y: np.ndarray, weight: np.ndarray | None = None) -> dict[str, float]:
        """The mean loss and metrics."""
        return self._in_batches_that_fit(len(xs[0]), lambda: self._measured(xs, y, weight))

    @exclusive("model.device.lock")
    def outputs(self, xs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The model's outputs, chunk by chunk."""
        return self._in_batches_that_fit(len(xs[0]), lambda: self._outputs(xs))

    def _in_batches_that_fit(self, n: int, passes: Callable[[], Any]) -> Any:
        """What `passes()` returns. Where memory does not do for a batch, it goes on in smaller ones, with the same results:
        who trained in small batches has not chosen those of an evaluation."""
        while True:
            try:
                return passes()
            except OutOfDeviceMemory:
                if min(self.batch, n) <= 1:
                    raise
                self.batch, self.feed, self.step = min(self.batch, n) // 2, None, None

    def _measured(self, xs: Sequence[np.ndarray], y: np.ndarray, weight: np.ndarray | None) -> dict[str, float]:
        n, classes = len(xs[0]), y.dtype == np.int32 and isinstance(self.loss, Loss)
        if n == 0:
            raise DataError(f"x has no samples: its shape is {xs[0].shape}")
        lost = right = counted = 0.0
        sums = dict.fromkeys(map(metric_name, self.metrics), 0.0)
        for rows in self._chunks(xs, y, weight):
            plan = rows_by_step(rows, self.batch)
            for rows_now in plan:
                self._run(int(rows_now))
            assert self.results is not None
            main, extra = self.results.read(len(plan))
            means, hits, counts = main.astype(np.float64).T
            lost, right, counted = lost + means @ counts, right + hits.sum(), counted + counts.sum()
            for name, values in zip(sums, extra.astype(np.float64).T):
                sums[name] += float(values @ (plan / n))
        counted = max(1.0, counted)
        return {"loss": float(lost / counted)} | ({"accuracy": float(right / counted)} if classes else {}) | sums

    def _outputs(self, xs: Sequence[np.ndarray]) -> list[np.ndarray]:
        found = []
        for rows in self._chunks(xs, None, None):
            plan = rows_by_step(rows, self.batch)
            alone = len(plan) == 1  # what is read at once needs no counter and no copy
            found += [out.numpy() for out in [self._run(int(rows_now), alone) for rows_now in plan]]
        return found

    def _chunks(self, xs: Sequence[np.ndarray], y: np.ndarray | None, weight: np.ndarray | None):
        n, row = len(xs[0]), sum(Feed.row_bytes(xs, y, weight))
        room = min(CHUNK_BYTES, self.model.device.memory.piece // 2)
        most = max(1, room // row // self.batch) * self.batch
        feed = self.feed
        if feed is None or not feed.fits(min(n, most), xs, y, weight):
            capacity = min(most, 1 << max(0, n - 1).bit_length())
            device = self.model.device
            self.feed = feed = Feed(device, capacity, xs, y, weight, ordered=False)
            self.results = Results(device, -(-capacity // self.batch), self.model.dtype, self.metrics)
            self.step = Step(self._forward, self.record, reads=[self.model, self.loss, *self.metrics])
            self.moved = True
        for start in range(0, n, feed.capacity):
            part = slice(start, start + feed.capacity)
            feed.load([a[part] for a in xs], None if y is None else y[part], weight if weight is None else weight[part])
            if self.moved:
                feed.rewind()
                self.moved = False
            yield len(xs[0][part])

    def _run(self, rows: int, alone: bool = False) -> Any:
        """The step on the next rows. `alone`: the rows are all there are, and the result is read before the next call."""
        assert self.step is not None
        device = self.model.device
        self.moved = self.moved or not alone
        with no_grad():
            key = self.step.key(device, (rows, alone))
            forward = partial(self._forward, rows=rows, alone=alone)
            self.step.verify(device, key, forward)
            result, fixed = self.step.run(device, key, forward)
        return copied(result) if fixed and not alone else result

    def _forward(self, context: StepContext, rows: int, alone: bool) -> Tensor | None:
        assert self.feed is not None and self.results is not None
        batch, t, w = self.feed.batch(rows)
        out = self.model.forward(*batch)
        if t is None:
            block_of(out)  # a model that hands its input on: the rows are gathered within the step
            if not alone:
                out.device.advance([(self.feed.state, rows)])
            return out
        record_metrics(self.feed, self.results, out, t)
        record_loss(self.loss, out, t, w, self.feed, self.results, self.batch, context)
        return None


def evaluation_of(model: Any, kind: str, loss: Any, metrics: Sequence[Metric], batch: int) -> Evaluation:
    """The evaluation that a model keeps for a loss and metrics, so that a second call replays the first's recordings."""
    kept: dict[Any, Evaluation] = model.__dict__.setdefault("_evaluations", {})
    same = (type(loss), repr(loss.config())) if type(loss) in LOSSES.values() else id(loss)  # what is kept is held
    key = (kind, same, tuple(map(id, metrics)), batch)
    if key not in kept:
        while len(kept) >= 4:
            kept.pop(next(iter(kept)))
        kept[key] = Evaluation(model, loss, metrics, batch=batch)
    kept[key].loss = loss  # an equal one may have been changed since
    return kept[key]


@exclusive("device.lock")
def evaluate(
    model: Any,
    x: Any,
    y: Any,
    *,
    loss: Any = None,
    metrics: Sequence[str | Metric] | None = None,
    batch_size: int = EVALUATION_BATCH,
    sample_weight: Any = None,
) -> dict[str, float]:
    """The mean loss (by default the last fit's), the accuracy for class labels, and metrics, as a dict."""
    batch_size = check_count("batch_size", batch_size)
    loss = loss if loss is not None else getattr(model, "loss", None)
    if not loss:
        raise ConfigurationError(
            'evaluate needs a loss: fit the model first, or give one, such as loss="cross_entropy"'
        )
    loss = find_loss(loss)
    xs = as_inputs(x, model)
    output = build_for(model, xs)
    target = as_target(y, loss, output, len(xs[0]), model.dtype)
    found = find_metrics(metrics)
    check_accuracy(found, model, loss, output, target)
    weight = as_weights(sample_weight, target, loss, model.dtype)
    return evaluation_of(model, "evaluate", loss, found, batch_size).run(xs, target, weight)


@exclusive("device.lock")
def predict(model: Any, x: Any, *, batch_size: int = EVALUATION_BATCH) -> np.ndarray:
    """The model's raw outputs as an array, in batches."""
    xs, batch_size = as_inputs(x, model), check_count("batch_size", batch_size)
    output = build_for(model, xs)
    if len(xs[0]) == 0:
        return np.empty((0, *output), model.dtype)
    return np.concatenate(evaluation_of(model, "predict", None, (), batch_size).outputs(xs))
