"""fit, evaluate and predict, for any `Layer`.

The data lies on the device (or comes in chunks, where it would not fit); each epoch uploads one permutation, and the
steps gather their rows through it. Losses and hits gather in a table on the device that is read once an epoch, so the
host never waits inside one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from . import random
from .callbacks import Callback, Progress
from .checks import check_count, in_range, numbers, whole
from .data.validate import check_features
from .errors import ConfigurationError, DataError, Diverged, OutOfDeviceMemory, ShapeError
from .gemm import RowsOf
from .layers.base import Layer, for_shapes
from .losses import LOSSES, Loss, find_loss, host_target
from .metrics import Metric, accuracy, find_metrics, metric_name
from .ops.array import block_of
from .ops.loss import Record
from .optim import Optimizer, find_optimizer
from .parameters import consolidate, statistics_kept
from .runtime.device import Device
from .runtime.lock import exclusive
from .runtime.memory import Block
from .runtime.recording import advance_cells, structure_changed, structure_version
from .runtime.watch import Watch
from .step import Step, copied
from .tensor import Node, Tensor, grad_enabled, no_grad, tensor

EVALUATION_BATCH = 512
AUDITS = 0.005  # of fit's time, at most, for audits after callbacks where all code is clnn's
COPY_BYTES = 1 << 16  # of a batch that one CPU thread gathers
CHUNK_BYTES = 32 << 20  # evaluation and prediction pass data through a buffer of about this size


class History:
    """What fit measured: `history` maps names to lists with one value an epoch."""

    def __init__(self) -> None:
        self.history: dict[str, list[float]] = {}

    def add(self, logs: dict[str, float]) -> None:
        """An epoch more: its losses, metrics and the like, by name."""
        for name, value in logs.items():
            self.history.setdefault(name, []).append(value)

    def __getitem__(self, name: str) -> list[float]:
        return self.history[name]

    def __repr__(self) -> str:
        last = ", ".join(f"{name} {values[-1]:.4g}" for name, values in self.history.items())
        return f"<History of {len(self.history.get('loss', []))} epochs: {last}>"

    def plot(self, path: str | None = None) -> Any:
        """Curves of loss and accuracy by epoch; saved to `path` if given. Needs matplotlib."""
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise ConfigurationError('History.plot() needs matplotlib: pip install "clnn[plot]"') from error
        groups = [[n for n in self.history if n.endswith(part)] for part in ("loss", "accuracy")]
        groups = [names for names in groups if names]
        figure, axes = plt.subplots(1, len(groups), figsize=(5 * len(groups), 3.5), squeeze=False)
        for axis, names in zip(axes[0], groups):
            for name in names:
                axis.plot(range(1, len(self.history[name]) + 1), self.history[name], label=name)
            axis.set_xlabel("epoch")
            axis.legend()
        figure.tight_layout()
        if path is not None:
            figure.savefig(path)
            plt.close(figure)
        return figure


# -- what users give --------------------------------------------------------------------------------------------------
def as_inputs(x: Any, dtype: Any, name: str = "x") -> list[np.ndarray]:
    """One array per input of the model, in the model's type, checked for NaN and infinity."""
    arrays = list(x) if isinstance(x, tuple) else [x]
    found = []
    for i, value in enumerate(arrays):
        label = name if len(arrays) == 1 else f"{name}[{i}]"
        array = numbers(value, label)
        if array.ndim < 1:
            raise DataError(f"{label} should be an array of numbers with one row a sample, not one number")
        if array.dtype != dtype or not array.flags.c_contiguous:
            array = np.ascontiguousarray(array, dtype)
        check_features(array, label)
        found.append(array)
    if any(len(a) != len(found[0]) for a in found):
        raise ShapeError(f"the inputs have {[len(a) for a in found]} samples; they need the same number")
    return found


@exclusive("device.lock")
def build_for(model: Layer, xs: Sequence[np.ndarray]) -> tuple[int, ...]:
    """Build the model if it is not, and the output's shape for one sample, which the model remembers, with the activation
    that its values come from."""

    def key() -> Any:
        return structure_version(), model.device, [(x.shape[1:], x.dtype) for x in xs]

    known = model.__dict__.get("_output_shape")
    if known and known[2].changed():
        structure_changed()  # recordings hold the old layers
    if known and known[0] == key():
        return known[1]
    samples = [np.zeros((1, *x.shape[1:]), x.dtype) for x in xs]
    built = all(layer.built for layer in model.layers_inside())
    restore = Watch([model]).saved() if built else lambda: None  # what forward() changes in layers is from no data
    with no_grad():
        try:
            y = for_shapes(model.device, lambda: model(*[tensor(x, x.dtype, model.device) for x in samples]))
        finally:
            restore()
    if not isinstance(y, Tensor):
        raise ConfigurationError(f"forward() returned {type(y).__name__}; fit, evaluate and predict need one tensor")
    model.__dict__["_output_shape"] = key(), y.shape[1:], Watch([model]), y.made_by
    return y.shape[1:]


def made_by(model: Layer) -> str:
    """The activation that the outputs of the last `build_for` come from, where that is known."""
    return model.__dict__["_output_shape"][3]


def as_target(y: Any, loss: Any, output: tuple[int, ...], n: int, dtype: Any, name: str = "y") -> np.ndarray:
    """The targets for n outputs of that shape, checked."""
    array = host_target(y, dtype, name)
    if array.ndim < 1 or len(array) != n:
        raise ShapeError(f"{name} has {len(array) if array.ndim else 'no'} samples and x has {n}")
    if array.dtype != np.int32:
        check_features(array, name)
    if isinstance(loss, Loss):
        loss.check((n, *output), array.shape, array.dtype)
        loss.check_values(array, (n, *output), name)
        array = array if array.dtype == np.int32 else array.reshape(n, *output)
    return np.ascontiguousarray(array)


def as_weights(sample_weight: Any, y: np.ndarray, dtype: Any, name: str = "sample_weight") -> np.ndarray | None:
    """One weight a sample, or None."""
    if sample_weight is None:
        return None
    weight = np.ascontiguousarray(numbers(sample_weight, name), dtype)
    if weight.shape != (len(y),):
        raise ShapeError(f"{name} has the shape {weight.shape}; {len(y)} samples need {(len(y),)}")
    check_features(weight, name)
    return weight


def by_class(class_weight: Any, y: np.ndarray, loss: Any, outputs: int, dtype: Any) -> np.ndarray:
    """The weight of each sample's class, 1 for a class that `class_weight` does not name."""
    if not isinstance(class_weight, Mapping):
        raise ConfigurationError(
            f"class_weight maps class numbers to weights, such as {{0: 1.0, 1: 5.0}}; {class_weight!r} was given"
        )
    if getattr(loss, "takes", "numbers") == "numbers":
        raise ConfigurationError(
            "class_weight needs one of clnn's losses over classes; weight samples by sample_weight"
        )
    classes = max(2, outputs)
    weights = np.ones(classes, dtype)
    for label, value in class_weight.items():
        number = int(label) if isinstance(label, (bool, np.bool_)) else whole(label)
        if number is None or not 0 <= number < classes:
            raise ConfigurationError(
                f"class_weight names the class {label!r}, and the {classes} classes are numbered 0 to {classes - 1}"
            )
        weights[number] = in_range(f"class_weight's {number}", value, 0.0, math.inf)
    return weights[classes_of(y)]


def classes_of(y: np.ndarray, why: str = "class_weight") -> np.ndarray:
    """The class of each sample whose targets are y: class numbers, a 0 or 1 for one output, or a row by class."""
    if y.dtype == np.int32:
        return y
    rows = y.reshape(len(y), -1)
    if rows.shape[1] == 1:
        found, clear = (rows[:, 0] > 0.5).astype(np.int32), np.isin(rows[:, 0], (0, 1))
    else:
        found = rows.argmax(1)
        clear = (rows == rows.max(1, keepdims=True)).sum(1) == 1
    if not clear.all():
        at = int(np.flatnonzero(~clear)[0])
        raise DataError(
            f"{why}: the targets y[{at}] = {y[at].tolist()} name no single class; give class numbers, one-hot rows, "
            f"0 or 1 for one output, or {'sample_weight' if why == 'class_weight' else 'a metric of your own'} instead"
        )
    return found


def check_accuracy(metrics: Sequence[Metric], model: Layer, loss: Any, output: tuple[int, ...], y: np.ndarray) -> None:
    """An error where `accuracy` is asked for, and outputs or targets name no classes."""
    if accuracy not in metrics:
        return
    if output[-1:] == (1,):
        last, name = made_by(model), getattr(loss, "name", "a loss of your own")
        if last != "sigmoid" and name != "binary_cross_entropy":
            raise ConfigurationError(
                f"accuracy: one output of {last or 'an unknown activation'}, trained with {name}, may say yes above 0 or above "
                "1/2; give a metric of your own, such as lambda y, t: (y > 0.5) == t"
            )
    elif y.dtype != np.int32 and y.shape[1:] == output:
        classes_of(y.reshape(-1, y.shape[-1]), "accuracy")


# -- data on the device -----------------------------------------------------------------------------------------------
class Feed:
    """Samples, targets and weights on the device, `capacity` rows of them, and the batch that a step gathers."""

    def __init__(
        self,
        device: Device,
        capacity: int,
        xs: Sequence[np.ndarray],
        y: np.ndarray | None,
        weighted: bool,
        ordered: bool,
    ) -> None:
        self.device, self.capacity = device, capacity
        rows = lambda a: (capacity, *a.shape[1:])  # noqa: E731

        def hold(shape: Sequence[int], dtype: Any) -> Block:  # of its own: the pool would round it up by up to 6%
            return device.memory.allocate(math.prod(shape) * np.dtype(dtype).itemsize, pooled=False)

        self.shapes = [(x.shape[1:], x.dtype) for x in xs]
        self.xs = [hold(rows(x), x.dtype) for x in xs]
        self.target = None if y is None else (y.shape[1:], y.dtype)
        self.y = None if y is None else hold(rows(y), y.dtype)
        self.weight = hold((capacity,), xs[0].dtype) if weighted else None
        self.order = hold((capacity,), np.int32) if ordered else None
        self.state = hold((3,), np.int32)

    @staticmethod
    def row_bytes(xs: Sequence[np.ndarray], y: np.ndarray | None, weighted: bool) -> list[int]:
        """The bytes of one row in each array, the order and the weights included."""
        arrays = [*xs] if y is None else [*xs, y]
        return [*(math.prod(a.shape[1:]) * a.dtype.itemsize for a in arrays), 4, *([8] if weighted else [])]

    def fits(self, rows: int, xs: Sequence[np.ndarray], y: np.ndarray | None) -> bool:
        """Whether this feed can carry `rows` rows of such data."""
        target = None if y is None else (y.shape[1:], y.dtype)
        return rows <= self.capacity and self.shapes == [(x.shape[1:], x.dtype) for x in xs] and self.target == target

    def load(self, xs: Sequence[np.ndarray], y: np.ndarray | None, weight: np.ndarray | None) -> None:
        """Bring rows to the device."""
        for array, block in zip(xs, self.xs):
            self.device.upload(np.ascontiguousarray(array), block)
        if y is not None and self.y is not None:
            self.device.upload(np.ascontiguousarray(y), self.y)
        if weight is not None and self.weight is not None:
            self.device.upload(np.ascontiguousarray(weight), self.weight)

    def rewind(self, order: np.ndarray | None = None, step: int = 0) -> None:
        """Start again at the first row, in a new order; `step` is where results go on."""
        if order is not None and self.order is not None:
            self.device.upload(np.ascontiguousarray(order, np.int32), self.order)
        self.device.upload(np.array([0, step, 0], np.int32), self.state)

    def batch(self, rows: int) -> tuple[list[Tensor], Tensor | None, Tensor | None]:
        """The next `rows` rows as tensors: inputs, targets, weights; gathered when something asks for their memory."""

        def part(block: Any, shape: Sequence[int], dtype: Any) -> Tensor:
            return Batch(RowsOf(block, self.order, self.state), (rows, *shape), dtype, self.device)

        xs = [part(block, *shape) for block, shape in zip(self.xs, self.shapes)]
        y = part(self.y, *self.target) if self.target else None
        return xs, y, part(self.weight, (), self.shapes[0][1]) if self.weight else None


class Batch(Tensor):
    """A mini-batch that lies in the data set until something asks for its `block`: then its rows are gathered."""

    __slots__ = ("_memory",)
    _memory: Any

    def __init__(self, rows: RowsOf, shape: Sequence[int], dtype: Any, device: Device) -> None:
        super().__init__(None, shape, dtype, device)  # type: ignore[arg-type]
        self.rows = rows

    @property
    def block(self) -> Any:
        if self._memory is None:
            device, rows, columns = self.device, self.shape[0], math.prod(self.shape[1:])
            assert self.rows is not None
            self._memory = device.allocate(self.nbytes)
            each = max(1, COPY_BYTES // max(1, columns * self.dtype.itemsize))
            size, extra = ((columns, rows), {}) if not device.long_loops else ((-(-rows // each),), {"ROWS": 1})
            device.launch(
                "data", "gather", size, columns, rows, *self.rows, self._memory, each,
                local=(1,) if extra else None, real="float" if self.dtype == np.int32 else device.real(self.dtype),
                E="int" if self.dtype == np.int32 else "real", **extra,
            )  # fmt: skip
        return self._memory

    @block.setter
    def block(self, value: Any) -> None:
        self._memory = value


class Results:
    """Per step: the mean loss, the number of hits, and the means of further metrics."""

    def __init__(self, device: Device, steps: int, dtype: Any, metrics: Sequence[Metric]) -> None:
        self.device, self.steps, self.dtype, self.metrics = device, steps, np.dtype(dtype), list(metrics)
        self.last: float | None = None  # the loss of the last step of the epoch before
        size = self.dtype.itemsize
        self.main = device.memory.allocate(max(1, 2 * steps) * size)
        self.extra = device.memory.allocate(max(1, steps * len(self.metrics)) * size)

    def read(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
        main = self.device.read(self.main, np.empty((steps, 2), self.dtype))
        return main, self.device.read(self.extra, np.empty((steps, len(self.metrics)), self.dtype))


def _steps(n: int, batch: int) -> list[tuple[int, int]]:
    """(rows, steps) of a pass over n samples: whole batches, and the remainder as a step of its own."""
    return [part for part in ((batch, n // batch), (n % batch, 1)) if all(part)]


def _rows(n: int, batch: int) -> np.ndarray:
    """The rows of each step, one by one."""
    return np.concatenate([np.full(count, rows) for rows, count in _steps(n, batch)])


def _record_metrics(feed: Feed, results: Results, output: Tensor, target: Tensor) -> None:
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


def _loss(
    loss: Any,
    output: Tensor,
    y: Tensor,
    w: Tensor | None,
    hits: bool,
    feed: Feed,
    results: Results,
    batch: int,
    context: Any,
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
        together = batch <= device.group_width
        found, source = loss.rows(output, y, w, hits, record if together else None)

        def closure(_: Any) -> Any:
            return ((source, gradient) for _, gradient in found.backward(None))

        closure.starts_at_one = closure.folds = True  # type: ignore[attr-defined]
        start = Node(found.losses, closure) if grad_enabled() and source.requires_grad else None
        losses, hit = found.losses, found.hits
    else:
        if w is not None:
            raise ConfigurationError(
                "sample_weight and class_weight need one of clnn's losses; weight samples inside your own"
            )
        losses, hit, together = loss(output, y), None, False
        if not isinstance(losses, Tensor) or losses.size != 1:
            raise ShapeError("a loss of your own should return a tensor of one number, the mean over samples")
        start = losses.node
    if not together:
        device.check_turns(2 * max(losses.size, output.shape[0]), f"the mean of {losses.size:,} losses")
        device.launch(
            "state", "end_step", (1,), output.shape[0], losses.size, losses.block, block_of(hit), *record.args(),
            local=(1,), real=device.real(results.dtype),
        )  # fmt: skip
    context.moved = True
    return start


# -- fit --------------------------------------------------------------------------------------------------------------
def fit(
    model: Any,
    x: Any,
    y: Any,
    *,
    loss: Any,
    optimizer: str | Optimizer,
    epochs: int = 1,
    batch_size: int = 32,
    metrics: Sequence[str | Metric] | None = None,
    validation: Sequence[Any] | None = None,
    validation_split: float = 0.0,
    callbacks: Sequence[Any] = (),
    shuffle: bool = True,
    seed: int | None = None,
    sample_weight: Any = None,
    class_weight: dict[int, float] | None = None,
    record: bool = True,
    progress: bool = True,
) -> History:
    """Train `model` on samples x and targets y; the history of losses and accuracies comes back.

    x: array (n, ...), or a tuple of arrays for a model of several inputs. y: class numbers (n,), or values of the
    output's shape. loss, optimizer and metrics: by name, or objects. Samples are shuffled anew each epoch, and the
    remainder batch is trained on too. `validation` = (x, y) or (x, y, sample_weight) is evaluated after each epoch;
    `validation_split` takes that fraction of the samples from the end instead, with their `sample_weight`.
    `sample_weight` (n,) multiplies losses, and so does `class_weight` {class: weight} those of training. With `seed`,
    shuffling and dropout repeat from run to run. `record=False` keeps every step eager.
    A second fit with the same optimizer object goes on where the first ended.
    """
    epochs, batch_size = check_count("epochs", epochs, 0), check_count("batch_size", batch_size)
    loss, optimizer = find_loss(loss), find_optimizer(optimizer)
    found_metrics, callbacks = find_metrics(metrics), as_callbacks(callbacks)
    device, dtype = model.device, model.dtype
    xs = as_inputs(x, dtype)
    n = len(xs[0])
    if n == 0:
        raise DataError(f"x has no samples: its shape is {xs[0].shape}")
    output = build_for(model, xs)
    target = as_target(y, loss, output, n, dtype)
    weight = as_weights(sample_weight, target, dtype)
    check_accuracy(found_metrics, model, loss, output, target)
    validation_split = in_range("validation_split", validation_split, 0.0, 1.0)
    if validation is not None and validation_split:
        raise ConfigurationError("give validation or validation_split, not both")
    held_out: tuple[list[np.ndarray], np.ndarray, np.ndarray | None] | None = None
    if validation_split:
        kept = n - max(1, round(n * validation_split))
        if kept < 1:
            raise ConfigurationError(f"validation_split={validation_split} leaves none of {n} samples to train on")
        held_out = [a[kept:] for a in xs], target[kept:], weight if weight is None else weight[kept:]
        xs, target, weight, n = [a[:kept] for a in xs], target[:kept], weight if weight is None else weight[:kept], kept
    elif validation is not None:
        if not isinstance(validation, (tuple, list)) or len(validation) not in (2, 3):
            raise ConfigurationError("validation is (x, y) or (x, y, sample_weight); several inputs are ((x1, x2), y)")
        x_val, y_val, w_val = (*validation, None)[:3]
        x_val = as_inputs(x_val, dtype, "validation x")
        y_val = as_target(y_val, loss, output, len(x_val[0]), dtype, "validation y")
        held_out = x_val, y_val, as_weights(w_val, y_val, dtype, "validation sample_weight")
    if class_weight is not None:
        of_class = by_class(class_weight, target, loss, output[-1] if output else 1, dtype)
        weight = of_class if weight is None else weight * of_class

    plan = _rows(n, batch_size)
    if plan.min() == 1:
        _check_alone(model, xs, f"of {n} samples in mini-batches of {batch_size} the last has 1")
    with device.lock:  # another thread may train another model with the same optimizer
        optimizer.attach(consolidated(model))
        optimizer.begin_fit(len(plan), epochs)
        given, position = optimizer.given, optimizer.steps
    model.loss, model.optimizer = loss, optimizer
    classes = target.dtype == np.int32
    resident, capacity = _capacity(device, n, batch_size, xs, target, weight is not None)
    feed = Feed(device, capacity, xs, target, weight is not None, ordered=resident)
    results = Results(device, len(plan), dtype, found_metrics)

    def train(context: Any, rows: int) -> None:
        batch, t, w = feed.batch(rows)
        out = model.forward(*batch)
        assert t is not None
        _record_metrics(feed, results, out, t)
        start = _loss(loss, out, t, w, classes, feed, results, batch_size, context)
        if start is None:
            raise ConfigurationError("the loss depends on no trainable parameter")
        del batch, out, t, w
        optimizer.descend(start)

    step = Step(train, record, [optimizer], reads=[model, loss, *found_metrics])
    step.given, structure = given, structure_version()
    if seed is not None:  # where an uninterrupted run would be
        random.generator(device).reseed(seed, position=position)
    history = History()
    bar = Progress(epochs, len(plan), progress)
    evaluation = Evaluation(model, loss, found_metrics, record) if held_out else None
    model.stop_training = False
    started = time.perf_counter()
    if resident:
        feed.load(xs, target, weight)
    try:
        for callback in callbacks:
            callback.on_data(model, xs, target, weight)
            callback.on_train_begin(model)
        for epoch in range(epochs):
            for callback in callbacks:
                callback.on_epoch_begin(model, epoch)
            with device.lock:
                for p in step.given:  # gradients from elsewhere have no part in this
                    p.spent()
                    p.version += 1  # replays do not say so
            began = time.perf_counter()
            output = build_for(model, xs)
            with device.lock:
                if structure != structure_version():  # a callback has changed something
                    if isinstance(loss, Loss):
                        loss.check((n, *output), target.shape, target.dtype)
                    optimizer.attach(consolidated(model))
                    step.given, structure = optimizer.given, structure_version()
                step.claim()
                order, first_step = _permutation(n, shuffle, seed, optimizer.epochs), optimizer.steps
            done = 0
            for start in range(0, n, capacity):
                part = order[start : start + capacity]
                if resident:
                    feed.rewind(part)
                else:
                    rows = part if shuffle else slice(start, start + capacity)
                    feed.load([a[rows] for a in xs], target[rows], weight if weight is None else weight[rows])
                    feed.rewind(step=done)
                for rows_now, count in _steps(len(part), batch_size):
                    key = step.key(device, rows_now)
                    run = partial(train, rows=rows_now)
                    steps_to_come = (epochs - epoch) * count
                    end = done + count
                    # a callback may have changed what a user's code reads and nobody can watch; clnn's own reads nothing such
                    afford = step.audited <= AUDITS * (time.perf_counter() - started)
                    with device.lock:
                        step.verify(device, key, run, step.foreign or (bool(callbacks) and afford))
                    while done < end:
                        with device.lock:  # for a replay at a time: other threads come in between
                            times = step.run_some(device, key, run, end - done, steps_to_come)
                            if step.foreign:  # code that is not clnn's may see something new between callbacks, too
                                step.verify(device, key, run)
                        bar.step(times)
                        done += times
            logs = _epoch_logs(results, plan, classes, epoch, first_step)
            with device.lock:
                step.claim()
                optimizer.epochs += 1
            if evaluation and held_out:
                logs |= {f"val_{key}": value for key, value in evaluation.run(*held_out).items()}
            with device.lock:
                step.claim()
                logs["lr"] = optimizer.rate(max(0, optimizer.steps - 1))
                optimizer.observe(logs.get("val_loss", logs["loss"]))  # before callbacks, which may save the model
            logs["seconds"] = time.perf_counter() - began
            history.add(logs)
            bar.epoch(epoch, epochs, logs)
            for callback in callbacks:
                callback.on_epoch_end(model, epoch, logs)
            if model.stop_training:
                break
    finally:
        bar.close()
        for callback in callbacks:
            callback.on_train_end(model)
    return history


def as_callbacks(callbacks: Any) -> list[Any]:
    """What `fit` calls as it goes, a list."""
    found = list(callbacks or ()) if not isinstance(callbacks, Callback) else [callbacks]
    wrong = next((one for one in found if isinstance(one, type) or not hasattr(one, "on_data")), None)
    if wrong is not None:
        raise ConfigurationError(f"callbacks is a list of clnn.Callback objects, and {wrong!r} is none")
    return found


@exclusive("device.lock")
def _check_alone(model: Layer, xs: Sequence[np.ndarray], why: str) -> None:
    """ShapeError where the model cannot be trained on one row alone, such as batch normalisation; there is one, says `why`."""
    with statistics_kept(model.parameters()):
        try:
            for_shapes(model.device, lambda: model(*[tensor(x[:1], x.dtype, model.device) for x in xs]))
        except ShapeError as error:
            raise ShapeError(f"{error}; {why}: take another batch_size") from None


@exclusive("device.lock")
def consolidated(model: Layer) -> list[Any]:
    """The model's parameters, in a flat store."""
    parameters = model.parameters()
    consolidate(parameters)
    return parameters


def _capacity(device: Device, n: int, batch: int, xs: Any, y: Any, weighted: bool) -> tuple[bool, int]:
    """Whether all data may stay on the device, and the rows of a chunk (whole batches) if not."""
    row, memory = Feed.row_bytes(xs, y, weighted), device.memory
    free = memory.limit - memory.in_use
    if n * sum(row) <= free // 2 and memory.fits(n * max(row)):
        return True, n
    rows = min(free // 8 // sum(row), memory.piece // 2 // max(row)) // batch * batch
    return False, max(batch, rows)


def _permutation(n: int, shuffle: bool, seed: int | None, epoch: int) -> np.ndarray:
    """The order of samples in an epoch: by (seed, epoch), so that a resumed run sees what an uninterrupted one sees."""
    if not shuffle:
        return np.arange(n)
    generator = random.host() if seed is None else np.random.default_rng((seed, epoch))
    return generator.permutation(n)


def _epoch_logs(results: Results, plan: np.ndarray, classes: bool, epoch: int, first_step: int) -> dict[str, float]:
    main, extra = results.read(len(plan))
    losses = main[:, 0].astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(losses))
    if bad.size:
        at = int(bad[0])
        before = losses[at - 1] if at else results.last
        last = "no loss was finite before" if before is None else f"the last finite loss was {before:.6g}"
        raise Diverged(
            f"the loss stopped being finite at step {at + 1} of {len(plan)} in epoch {epoch + 1} (step "
            f"{first_step + at + 1} in all): "
            f"it was {losses[at]}; {last}. Use a smaller learning rate, weight decay, or scaled inputs."
        )
    results.last = float(losses[-1])
    rows = plan.astype(np.float64)
    logs = {"loss": float(losses @ rows / rows.sum())}
    if classes:
        logs["accuracy"] = float(main[:, 1].sum(dtype=np.float64) / rows.sum())
    for i, metric in enumerate(results.metrics):
        logs[metric_name(metric)] = float(extra[:, i].astype(np.float64) @ rows / rows.sum())
    return logs


# -- evaluate and predict ---------------------------------------------------------------------------------------------
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
        n, classes = len(xs[0]), y.dtype == np.int32
        if n == 0:
            raise DataError(f"x has no samples: its shape is {xs[0].shape}")
        sums: dict[str, float] = {}
        for rows in self._chunks(xs, y, weight):
            plan = _rows(rows, self.batch)
            for rows_now in plan:
                self._run(int(rows_now), classes)
            assert self.results is not None
            main, extra = self.results.read(len(plan))
            share = plan / n
            values: dict[str, Any] = {"loss": main[:, 0].astype(np.float64) @ share}
            if classes:
                values["accuracy"] = float(main[:, 1].sum(dtype=np.float64)) / n
            for i, metric in enumerate(self.metrics):
                values[metric_name(metric)] = extra[:, i].astype(np.float64) @ share
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + float(value)
        return sums

    def _outputs(self, xs: Sequence[np.ndarray]) -> list[np.ndarray]:
        found = []
        for rows in self._chunks(xs, None, None):
            plan = _rows(rows, self.batch)
            alone = len(plan) == 1  # what is read at once needs no counter and no copy
            found += [out.numpy() for out in [self._run(int(rows_now), False, alone) for rows_now in plan]]
        return found

    def _chunks(self, xs: Sequence[np.ndarray], y: np.ndarray | None, weight: np.ndarray | None):
        n, row = len(xs[0]), sum(Feed.row_bytes(xs, y, weight is not None))
        room = min(CHUNK_BYTES, self.model.device.memory.piece // 2)
        most = max(1, room // row // self.batch) * self.batch
        weighted = weight is not None
        feed = self.feed
        if feed is None or not feed.fits(min(n, most), xs, y) or (feed.weight is not None) != weighted:
            capacity = min(most, 1 << max(0, n - 1).bit_length())
            device = self.model.device
            self.feed = feed = Feed(device, capacity, xs, y, weighted, ordered=False)
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

    def _run(self, rows: int, classes: bool, alone: bool = False) -> Any:
        """The step on the next rows. `alone`: the rows are all there are, and the result is read before the next call."""
        assert self.step is not None
        device = self.model.device
        self.moved = self.moved or not alone
        with no_grad():
            key = self.step.key(device, (rows, classes, alone))
            forward = partial(self._forward, rows=rows, classes=classes, alone=alone)
            self.step.verify(device, key, forward)
            result, fixed = self.step.run(device, key, forward)
        return copied(result) if fixed and not alone else result

    def _forward(self, context: Any, rows: int, classes: bool, alone: bool) -> Tensor | None:
        assert self.feed is not None and self.results is not None
        batch, t, w = self.feed.batch(rows)
        out = self.model.forward(*batch)
        if t is None:
            block_of(out)  # a model that hands its input on: the rows are gathered within the step
            if not alone:
                advance_cells(out.device, [(self.feed.state, rows)])
            return out
        _record_metrics(self.feed, self.results, out, t)
        _loss(self.loss, out, t, w, classes, self.feed, self.results, self.batch, context)
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
    loss = find_loss(loss if loss is not None else getattr(model, "loss", None) or _no_loss())
    xs = as_inputs(x, model.dtype)
    output = build_for(model, xs)
    target = as_target(y, loss, output, len(xs[0]), model.dtype)
    found = find_metrics(metrics)
    check_accuracy(found, model, loss, output, target)
    weight = as_weights(sample_weight, target, model.dtype)
    return evaluation_of(model, "evaluate", loss, found, batch_size).run(xs, target, weight)


def _no_loss() -> Any:
    raise ConfigurationError('evaluate needs a loss: fit the model first, or give one, such as loss="cross_entropy"')


@exclusive("device.lock")
def predict(model: Any, x: Any, *, batch_size: int = EVALUATION_BATCH) -> np.ndarray:
    """The model's raw outputs as an array, in batches."""
    xs, batch_size = as_inputs(x, model.dtype), check_count("batch_size", batch_size)
    output = build_for(model, xs)
    if len(xs[0]) == 0:
        return np.empty((0, *output), model.dtype)
    return np.concatenate(evaluation_of(model, "predict", None, (), batch_size).outputs(xs))
