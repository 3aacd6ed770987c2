"""evaluate and predict: a model's outputs, losses and metrics without a tape, in recorded steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from ..checks import check_count
from ..data.sparse import SparseRows
from ..errors import ConfigurationError, DataError, OutOfDeviceMemory
from ..losses import LOSSES, Joint
from ..metrics import Metric
from ..ops.array import block_of
from ..ops.index import check_rows
from ..runtime.lock import exclusive, lock_of
from ..runtime.recorder import StepContext
from ..runtime.watching.watch import chosen
from ..step import Step, copied
from ..tape import no_grad
from .alone import Alone
from .direct import Direct, Unchanged, shared
from .feed import Feed
from .inputs import Samples, as_inputs, build_for, checked, counts_hits
from .outputs import OfOutput, Outputs
from .record import Results, record_loss, record_metrics, rows_by_step
from .stream import inputs_of_batches, joined, one_pass, over, parts_of_batch, streams, yields_batches

EVALUATION_BATCH = 512
CHUNK_BYTES = 32 << 20  # evaluation and prediction pass data through a buffer of about this size


class Last(NamedTuple):
    """What the last prediction of one batch was made by."""

    form: Any  # shape and type of the samples, and what the environment says
    direct: Direct
    unchanged: Unchanged


class Evaluation:
    """Passes data through a model without a tape, in recorded steps; kept by a model between calls."""

    def __init__(
        self,
        model: Any,
        outputs: Outputs,
        loss: Any,
        metrics: Sequence[Metric],
        record: bool = True,
        batch: int = EVALUATION_BATCH,
    ) -> None:
        self.model, self.given, self.loss, self.metrics = model, outputs, loss, list(metrics)
        self.asked = self.batch = batch
        self.room, self.one_by_one = CHUNK_BYTES, False  # bytes that go through at once, and whether a batch does
        self.feed: Feed | None = None
        self.results: Results | None = None
        self.record = record
        self.step: Step | None = None
        self.direct: Direct | None = None  # between arrays and the recording that was replayed last, of one batch
        self.last: Last | None = None  # that batch, if it was one array of floats
        self.moved = True  # whether the feed may be elsewhere than at its first row

    @exclusive("model.device.lock")
    def run(self, samples: Samples, world: Any = None) -> dict[str, float]:
        """The mean loss and metrics. The ranks of a `world` measure a part of the samples each, and get the same."""
        whole = world is None or any(isinstance(x, SparseRows) for x in samples.xs)  # whose part would be dense
        n, world = len(samples.xs[0]), Alone() if whole else world
        mine = world.part(n)
        alone = samples if mine == slice(n) else samples.part(mine if mine.stop > mine.start else slice(1))
        sums, further = self.sums(alone)
        rows = len(alone.xs[0])
        if mine.start == mine.stop:  # the sample only stood in
            rows, sums, further = 0, np.zeros_like(sums), np.zeros_like(further)
        assert self.results is not None
        return self.results.together(sums, further, rows, world)

    @exclusive("model.device.lock")
    def sums(self, samples: Samples) -> tuple[np.ndarray, np.ndarray]:
        """What `_measured` finds; `results` is told what it is of."""
        found: tuple[np.ndarray, np.ndarray] = self._in_batches_that_fit(
            len(samples.xs[0]), lambda: self._measured(samples)
        )
        assert self.results is not None
        self.results.hits, self.results.loss = counts_hits(self.loss, samples), self.loss
        return found

    @exclusive("model.device.lock")
    def outputs(self, xs: Sequence[np.ndarray]) -> list[Any]:
        """The model's outputs as arrays, batch by batch. OutOfRangeError where it named a row, or a token, that is not there."""
        found: list[Any] = self._in_batches_that_fit(len(xs[0]), lambda: self._outputs(xs))
        check_rows(self.model.device)
        return found

    def _in_batches_that_fit(self, n: int, passes: Callable[[], Any]) -> Any:
        """What `passes()` returns. Where memory does not do, fewer batches go through at once, then smaller ones, with the same
        results: who trained in small batches has not chosen those of an evaluation. Stateful layers are after it as before."""
        states = {one: one._copied_states() for one in self.model.stateful_layers()}
        while True:
            try:
                return passes()
            except Exception as error:
                for one, before in states.items():
                    one._take_states(before)
                if not isinstance(error, OutOfDeviceMemory) or min(self.batch, n) <= 1:
                    raise
                self.batch = min(self.batch, n) // 2 if self.one_by_one else self.batch
                self.room, self.feed, self.step = self.room // 4, None, None

    def _measured(self, samples: Samples) -> tuple[np.ndarray, np.ndarray]:
        """Of each output the sums of losses, hits and targets that count, and those of further metrics times rows."""
        sums, further = np.zeros((len(samples.ys), 3)), np.zeros(len(self.metrics))
        for rows in self._chunks(samples):
            plan = rows_by_step(rows, self.batch)
            for rows_now in plan:
                self._run(int(rows_now))
            assert self.results is not None
            main, extra = self.results.read(len(plan))
            sums += self.results.sums(main)
            further += plan @ extra
        return sums, further

    def _outputs(self, xs: Sequence[np.ndarray]) -> list[Any]:
        samples, several, found, self.last = Samples([*xs], [], []), self.given.several, list[Any](), None
        if len(xs[0]) <= self.batch:
            alone = self._alone(samples)
            return [alone] if several else alone
        for rows in self._chunks(samples):
            steps = [self._run(int(rows_now)) for rows_now in rows_by_step(rows, self.batch)]
            found += [[t.numpy() for t in out] for out in steps] if several else [out.numpy() for out in steps]
        return found

    def _alone(self, samples: Samples) -> list[np.ndarray]:
        """The outputs for samples that are one batch: what is read at once needs no counter and no copy."""
        rows, device, feed = len(samples.xs[0]), self.model.device, self._feed_for(samples)
        self._rewind()
        assert self.step is not None
        with no_grad():
            key, forward = self.step.key(device, (rows, True)), partial(self._forward, rows=rows, alone=True)
            self.step.verify(device, key, forward)
            entry = self.step.replays.entry(key)
            if entry is None or entry.recording is None or device.step is not None:
                feed.load(*samples)
                result, _ = self.step.run(device, key, forward)
                return [t.numpy() for t in (result if self.given.several else [result])]
            if self.direct is None or self.direct.recording is not entry.recording:
                outs = entry.result if self.given.several else [entry.result]
                self.direct = Direct(entry.recording, feed.inputs(rows), outs)
            x, *more = samples.xs
            plain = type(x) is np.ndarray and not more and not self.given.several and not self.model.takes_whole(0)
            if plain and x.dtype == self.model.dtype and not self.step.foreign:
                self.last = Last((x.shape, x.dtype, chosen()), self.direct, Unchanged(self.model, self.step))
            self.direct.put(samples.xs)
            self.step.run(device, key, forward)
            return self.direct.take()

    def again(self, x: np.ndarray) -> np.ndarray | None:
        """The output for samples like the last ones, which need only be finite; None where more has to be looked at."""
        device, last = self.model.device, self.last
        if last is None or last.form != (x.shape, x.dtype, chosen()) or not device.reads or device.step is not None:
            return None
        if not last.unchanged.holds() or not np.isfinite(x).all():
            return None
        self._rewind()
        last.direct.put([x])
        last.direct.recording.replay()
        (found,) = last.direct.take()
        check_rows(device)
        return found

    def _chunks(self, samples: Samples):
        n, feed = len(samples.xs[0]), self._feed_for(samples)
        for start in range(0, n, feed.capacity):
            feed.load(*(samples if n <= feed.capacity else samples.part(slice(start, start + feed.capacity))))
            self._rewind()
            yield min(n - start, feed.capacity)

    def _feed_for(self, samples: Samples) -> Feed:
        """The feed for samples like these, as many of them as go at once."""
        n, feed = len(samples.xs[0]), self.feed
        if feed is not None and n <= self.batch and feed.fits(n, *samples):
            return feed
        room, row = min(self.room, self.model.device.memory.piece // 2), sum(Feed.row_bytes(*samples))
        most = max(1, room // row // self.batch) * self.batch
        self.one_by_one = min(n, most) <= self.batch
        if feed is None or not feed.fits(min(n, most), *samples):
            capacity = min(most, 1 << max(0, n - 1).bit_length())
            device = self.model.device
            self.feed = feed = Feed(device, capacity, *samples, ordered=False)
            self.results = Results(
                device, -(-capacity // self.batch), self.model.dtype, self.given, self.loss, (), self.metrics
            )
            self.step = Step(self._forward, self.record, reads=[self.model, self.loss, *self.metrics])
            self.moved, self.direct = True, None
            if not samples.ys:
                for t in feed.inputs(1):
                    shared(t)  # before a recording knows where it is
        return feed

    def _rewind(self) -> None:
        assert self.feed is not None
        if self.moved:
            self.feed.rewind()
            self.moved = False

    def _run(self, rows: int) -> Any:
        """The step on the next rows."""
        assert self.step is not None
        device, self.moved = self.model.device, True
        with no_grad():
            key, forward = self.step.key(device, (rows, False)), partial(self._forward, rows=rows, alone=False)
            self.step.verify(device, key, forward)
            result, fixed = self.step.run(device, key, forward)
        return copied(result) if fixed else result

    def _forward(self, context: StepContext, rows: int, alone: bool) -> Any:
        assert self.feed is not None and self.results is not None
        batch, ts, ws = self.feed.batch(rows)
        outs = self.given.tensors(self.model(*batch))
        if not ts:
            for out in outs:
                block_of(out)  # a model that hands its input on: the rows are gathered within the step
            if not alone:
                self.feed.device.advance([(self.feed.state, rows)])
            return outs if self.given.several else outs[0]
        record_metrics(self.feed, self.results, outs, ts)
        record_loss(self.loss, outs, ts, ws, self.feed, self.results, self.batch, context)
        return None


def evaluation_of(
    model: Any, kind: str, outputs: Outputs, loss: Any, metrics: Sequence[Metric], batch: int
) -> Evaluation:
    """The evaluation that a model keeps for a loss and metrics, so that a second call replays the first's recordings."""
    kept: dict[Any, Evaluation] = model.__dict__.setdefault("_evaluations", {})
    key = (kind, outputs.kind, *outputs.names, loss and _same(loss), *map(_same, metrics), batch)
    if key not in kept:
        while len(kept) >= 4:
            kept.pop(next(iter(kept)))
        kept[key] = Evaluation(model, outputs, loss, metrics, batch=batch)
    kept[key].loss = loss  # an equal one may have been changed since
    return kept[key]


def _same(one: Any) -> Any:
    """What is equal for losses and metrics that measure the same; what is kept is held, so that no other gets its identity."""
    if isinstance(one, Joint):
        return (*one.losses, *map(_same, one.losses.values()), *one.weights)
    if isinstance(one, OfOutput):
        return one.i, one.__name__, id(one.metric)
    return (type(one), repr(one.config())) if type(one) in LOSSES.values() else id(one)


def evaluate(
    model: Any, x: Any, y: Any = None, *, loss: Any = None, loss_weights: Any = None, metrics: Any = None,
    batch_size: int = EVALUATION_BATCH, sample_weight: Any = None,
) -> dict[str, float]:  # fmt: skip
    """The mean loss (by default the last fit's), the accuracy for class labels, and metrics, as a dict. Of several outputs each
    has its own, under its name. x may yield batches in place of arrays, which are taken as they come; see `fit`."""
    lock, batch_size = lock_of(model, "device.lock", "evaluate"), check_count("batch_size", batch_size)
    loss = loss if loss is not None else getattr(model, "loss", None)
    if not loss:
        raise ConfigurationError('evaluate needs a loss: fit the model first, or give one, such as loss="mse"')
    passing = one_pass(x) if streams(x, y, "evaluate", sample_weight) else None
    if passing is not None:
        first = next(passing, None)
        if first is None:
            raise DataError("x yields no batch")
        x, y, sample_weight = parts_of_batch(first, "batch 1")
    with lock:
        xs = as_inputs(x, model, least=1)
        loss, found, outputs, samples = checked(model, xs, y, sample_weight, loss, loss_weights, metrics)
        evaluation = evaluation_of(model, "evaluate", outputs, loss, found, batch_size)
        if passing is None:
            return evaluation.run(samples)
    return over(evaluation, chain([first], passing))


def predict(model: Any, x: Any, *, batch_size: int = EVALUATION_BATCH) -> Any:
    """The model's raw outputs as an array, or as a tuple or dict of arrays as `forward` returns them, in batches. x may yield
    batches in place of arrays: x, (x, y) or (x, y, sample_weight), of which x is taken."""
    lock, batch_size = lock_of(model, "device.lock", "predict"), check_count("batch_size", batch_size)
    if type(x) is np.ndarray:
        for one in [*model.__dict__.get("_evaluations", {}).values()]:
            if isinstance(one, Evaluation) and one.last is not None and one.asked == batch_size:
                with lock:
                    if (answer := one.again(x)) is not None:
                        return answer
    if not (yields_batches(x) or _lists_batches(x, model)):
        with lock:
            outputs, found = _predicted(model, as_inputs(x, model), batch_size)
    else:
        found = []
        for xs in inputs_of_batches(one_pass(x), lambda each, name: as_inputs(each, model, name)):
            with lock:
                outputs, more = _predicted(model, xs, batch_size)
            found += more
        if not found:
            raise DataError("x yields no batch")
    return outputs.together([*map(joined, zip(*found))]) if outputs.several else joined(found)


def _lists_batches(x: Any, model: Any) -> bool:
    """Whether x is a list of batches, (x, y) or (x, y, sample_weight) each, as fit takes one, and not of samples."""
    shapes = model.__dict__.get("_input_shapes")
    if not shapes or not isinstance(x, list) or not all(isinstance(one, tuple) and one for one in x):
        return False
    firsts = [(*one[0], None)[0] if shapes[1:] and isinstance(one[0], tuple) else one[0] for one in x]
    return bool(x) and all(isinstance(one, dict) or getattr(one, "ndim", 0) == 1 + len(shapes[0]) for one in firsts)


def _predicted(model: Any, xs: list[Any], batch_size: int) -> tuple[Outputs, list[Any]]:
    """The outputs of the model, and the arrays that they are, batch by batch."""
    outputs = build_for(model, xs)
    if len(xs[0]) == 0:
        empty = [np.empty((0, *shape), model.dtype) for shape in outputs.shapes]
        return outputs, [empty if outputs.several else empty[0]]
    return outputs, evaluation_of(model, "predict", outputs, None, (), batch_size).outputs(xs)
