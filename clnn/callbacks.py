"""Callbacks: what fit calls as it goes, those that end it, set the learning rate and measure gradients among them."""

from __future__ import annotations

import math
import re
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .checks import check_count, check_flag, in_range, numbers
from .errors import ConfigurationError, Diverged, ShapeError
from .foreign import Called
from .layers.base import Layer, snake
from .losses import host_target
from .ops.random import Generator
from .parameters import consolidate, gradients_aside, runs, statistics_kept
from .random import drawing_from
from .runtime.device import Device
from .runtime.memory import Block
from .tensor import Parameter, tensor


class Callback(Called):
    """Override what you need. `model.stop_training = True` ends fit after the current epoch.

    `state_dict()` is what a `Checkpoint` keeps of it, and `load_state_dict` is given when fit resumes: by name, arrays and what
    JSON can hold.
    """

    def state_dict(self) -> dict[str, Any]:
        """What it knows between two epochs."""
        return {}

    def load_state_dict(self, state: dict[str, Any], model: Any) -> None:
        """Go on from there, after `on_train_begin`."""

    def on_data(self, model: Any, xs: Sequence[np.ndarray], y: Any, sample_weight: Any) -> None:
        """First of all: what will be trained on, an array for each of the model's inputs, the targets, the weights or None. Of
        several outputs the targets and weights are tuples or dicts, as the outputs are. Where fit is given what yields batches,
        `xs` is that, and the targets and weights are None."""

    def on_train_begin(self, model: Any) -> None:
        """Before the first epoch."""

    def on_epoch_begin(self, model: Any, epoch: int) -> None:
        """Before epoch 0, 1, ..."""

    def on_epoch_end(self, model: Any, epoch: int, logs: dict[str, float]) -> None:
        """After an epoch, with its losses, accuracies, learning rate and seconds."""

    def on_diverged(self, model: Any, epoch: int, error: Diverged) -> bool:
        """In place of `on_epoch_end`, where a loss of the epoch is not finite: True if fit is to end here without the error."""
        return False

    def on_train_end(self, model: Any) -> None:
        """After the last epoch, or an error."""


def better_when(who: str, monitor: str, mode: str | None) -> str:
    """ "min" or "max": when a value of that name is better."""
    if mode is None:
        mode = "min" if re.search(r"loss$", monitor) else "max" if re.search(r"(accuracy|top_\d+)$", monitor) else ""
    if mode not in ("min", "max"):
        raise ConfigurationError(
            f'{who} cannot tell whether {monitor!r} is better when small or large: give mode="min" or mode="max"'
        )
    return mode


def monitored(who: str, monitor: str, logs: dict[str, float]) -> float:
    """The value of that name."""
    if monitor not in logs:
        more = "; those of held-out samples need validation= or validation_split=" if monitor.startswith("val_") else ""
        raise ConfigurationError(f"{who}: nothing called {monitor!r} is measured, only {', '.join(logs)}{more}")
    return logs[monitor]


class KeptWeights:
    """A copy on the device of a model's weights and statistics, taken by `keep` and put back by `restore`, wherever they are."""

    def __init__(self) -> None:
        self.copies: dict[Parameter, tuple[Device, Block]] = {}
        self._laid: list[Any] = []  # where the weights are that are copied
        self._blocks: list[Block] = []  # for each run of them one

    def keep(self, model: Any) -> None:
        """Copy the weights as they are now over the copy that there is."""
        consolidate(parameters := model.parameters())  # a callback may have made some
        pieces = runs(parameters)
        laid: list[Any] = [(run.start, run.stop) for run in pieces]
        laid += [(id(p), weakref.ref(p.store), p.position) for p in parameters]
        if laid != self._laid:
            self.copies, self._laid, self._blocks = {}, laid, []  # the old ones go before there are others
            for run in pieces:
                self._blocks.append(block := run.store.device.memory.allocate(run.stop - run.start, pooled=False))
                mine = [p for p in parameters if p.store is run.store and run.start <= p.position < run.stop]
                self.copies |= {p: (p.device, block.view(p.position - run.start, p.nbytes)) for p in mine}
            self.copies = {p: self.copies[p] for p in parameters}  # files hold them in this order
        for run, block in zip(pieces, self._blocks):
            run.store.device.copy(run.part(run.store.block), block, block.nbytes)

    def restore(self) -> None:
        """Put the copy back, where there is one, and let it go."""
        for p, (device, copy) in self.copies.items():
            if p.device is device:
                device.copy(copy, p.block, p.nbytes)
            else:
                p.device.upload(device.read(copy, np.empty(p.shape, p.dtype)), p.block)
            p.version += 1
        self.copies, self._laid, self._blocks = {}, [], []


class EarlyStopping(Callback):
    """End fit when `monitor` has not improved for `patience` epochs in a row, with the best epoch's weights.

    `monitor`: a name that `History` has. An improvement is a value less than the best so far minus `min_delta`, or, for
    accuracies and top_k, greater than the best plus `min_delta`; for metrics of your own `mode` says "min" or "max". NaN
    is none. With `restore_best` the weights of the best epoch are in the model when fit ends, also where it ends for
    another reason; until then they lie on the device in one copy. The optimizer's state is that of the last epoch.
    (Nielsen chapter 3, "no improvement in n epochs")

    Afterwards `best` is the best value, `best_epoch` its epoch, and `stopped_epoch` the last one (from 0), or None where
    patience was not at an end.
    """

    def __init__(
        self, monitor: str = "val_loss", patience: int = 10, min_delta: float = 0.0, restore_best: bool = True,
        mode: str | None = None,
    ) -> None:  # fmt: skip
        self.monitor, self.restore_best = monitor, check_flag("restore_best", restore_best)
        self.patience = check_count("EarlyStopping's patience", patience, 1)
        self.min_delta = in_range("EarlyStopping's min_delta", min_delta, 0.0, math.inf)
        self.mode = better_when("EarlyStopping", monitor, mode)
        self._start()

    def _start(self) -> None:
        self.best, self.best_epoch = math.nan, -1
        self.stopped_epoch: int | None = None
        self._kept = KeptWeights()

    def on_train_begin(self, model: Any) -> None:
        self._start()

    def on_epoch_end(self, model: Any, epoch: int, logs: dict[str, float]) -> None:
        value = monitored("EarlyStopping", self.monitor, logs)
        ahead = self.best - value if self.mode == "min" else value - self.best
        if math.isnan(self.best) and not math.isnan(value) or ahead > self.min_delta:
            self.best, self.best_epoch = value, epoch
            if self.restore_best:
                self._kept.keep(model)
        elif epoch - self.best_epoch >= self.patience:
            self.stopped_epoch = epoch
            model.stop_training = True

    def state_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"best": None if math.isnan(self.best) else self.best}
        found |= {"best_epoch": self.best_epoch, "stopped_epoch": self.stopped_epoch}
        for i, (p, (device, copy)) in enumerate(self._kept.copies.items()):
            found[f"kept_{i}"] = device.read(copy, np.empty(p.shape, p.dtype))
        return found

    def load_state_dict(self, state: dict[str, Any], model: Any) -> None:
        self.best, self.best_epoch = math.nan if state["best"] is None else state["best"], state["best_epoch"]
        self.stopped_epoch = state.get("stopped_epoch")  # which older files go without
        if "kept_0" in state:
            self._kept.keep(model)
            for i, (p, (device, copy)) in enumerate(self._kept.copies.items()):
                device.upload(np.ascontiguousarray(state[f"kept_{i}"].reshape(p.shape), p.dtype), copy)

    def on_train_end(self, model: Any) -> None:
        self._kept.restore()


class TerminateOnNaN(Callback):
    """End fit where a loss is no longer finite, with the weights of the epoch before, in place of the `Diverged` that it raises
    without this.

    `stopped_epoch` is then that epoch (from 0), `error` the `Diverged` that says at which step it was; both are None where all
    was well. The history ends with the epoch before. The optimizer's state is that of the last step: a further fit
    needs a new optimizer, with a smaller learning rate.
    """

    def __init__(self) -> None:
        self.stopped_epoch: int | None = None
        self.error: Diverged | None = None
        self._kept = KeptWeights()

    def on_train_begin(self, model: Any) -> None:
        self.stopped_epoch = self.error = None
        self._kept = KeptWeights()
        self._kept.keep(model)

    def on_epoch_end(self, model: Any, epoch: int, logs: dict[str, float]) -> None:
        self._kept.keep(model)

    def on_diverged(self, model: Any, epoch: int, error: Diverged) -> bool:
        self.stopped_epoch, self.error = epoch, error
        self._kept.restore()
        return True

    def on_train_end(self, model: Any) -> None:
        self._kept = KeptWeights()


OUT_OF_TIME = "out of time"  # `stop_training`, where nothing else has ended fit: with more time it may go on


class TimeBudget(Callback):
    """End fit after the epoch in which so many seconds, minutes and hours in all have passed since it began.

    Where fit resumes, the time before counts too; with more of it a run that had none left goes on. Afterwards `spent` is the
    time in seconds, and `stopped_epoch` the last epoch (from 0), or None where there was time left.
    """

    def __init__(self, seconds: float = 0.0, minutes: float = 0.0, hours: float = 0.0) -> None:
        given = [in_range(f"TimeBudget's {k}", v, 0.0, math.inf) for k, v in
                 (("seconds", seconds), ("minutes", minutes), ("hours", hours))]  # fmt: skip
        self.seconds = in_range("TimeBudget in all", given[0] + 60 * given[1] + 3600 * given[2], 0.0, math.inf, "()")
        self.spent = 0.0
        self.stopped_epoch: int | None = None
        self._epoch: int | None = None  # the last one so far

    def on_train_begin(self, model: Any) -> None:
        self.spent, self.stopped_epoch, self._began, self._epoch = 0.0, None, time.monotonic(), None

    def on_epoch_end(self, model: Any, epoch: int, logs: dict[str, float]) -> None:
        now = time.monotonic()
        self.spent, self._began, self._epoch = self.spent + now - self._began, now, epoch
        if self.spent >= self.seconds:
            self.stopped_epoch = epoch
            model.stop_training = model.stop_training or OUT_OF_TIME

    def state_dict(self) -> dict[str, Any]:
        return {"spent": self.spent, "epoch": self._epoch}

    def load_state_dict(self, state: dict[str, Any], model: Any) -> None:
        self.spent, self._epoch = float(state["spent"]), state.get("epoch")  # older files go without the epoch
        if self.spent >= self.seconds:
            self.stopped_epoch = self._epoch
            model.stop_training = model.stop_training or OUT_OF_TIME


class LearningRate(Callback):
    """Train epoch 0, 1, ... at the learning rate function(epoch); `clnn.schedules` has rates by the step, too.

    ConfigurationError where that is no number of 0 or more, or where the optimizer has a schedule already.
    """

    def __init__(self, function: Callable[[int], float]) -> None:
        if not callable(function):
            raise ConfigurationError(f"LearningRate takes a function of the epoch, and {function!r} is none")
        self.function = function

    def on_train_begin(self, model: Any) -> None:
        if callable(rate := model.optimizer.lr):
            raise ConfigurationError(f"LearningRate: the optimizer has the schedule {rate!r}: leave this out, or that")

    def on_epoch_begin(self, model: Any, epoch: int) -> None:
        model.optimizer.lr = in_range(f"LearningRate of epoch {epoch}", self.function(epoch), 0.0, math.inf)


class Lambda(Callback):
    """A callback of functions, by what `Callback` calls them: `Lambda(on_epoch_end=lambda model, epoch, logs: print(logs))`."""

    def __init__(self, *wrong: Any, **functions: Callable[..., Any]) -> None:
        known = [name for name in vars(Callback) if not name.startswith("__")]
        for name, function in (*(("a function without a name", one) for one in wrong), *functions.items()):
            if name not in known or not callable(function):
                raise ConfigurationError(
                    f"clnn.Lambda, a callback, takes functions by the names {', '.join(known)}, and {name}={function!r} is none "
                    "of them; a layer is a class with a forward(), of clnn.Layer"
                )
        vars(self).update(functions)


class GradientNorms(Callback):
    """How large the gradient is in each layer: |dC/db| and |dC/dw|, Euclidean norms, before fit and after each epoch.

    C is the loss over all training samples, or over `x` and `y`, as fit computes it (without weight decay). `history`
    maps layers' names to the norms for biases, `weights` to those for weights: lists with one value more than there are
    epochs, the first of the first weights. Frozen parameters have none. Training goes on as if nothing had been measured;
    dropout draws from a generator of its own, the same numbers each time.
    (Nielsen chapter 5: layers that learn slowly are those whose gradients vanish)
    """

    def __init__(self, x: Any = None, y: Any = None, batch_size: int = 512) -> None:
        if (x is None) != (y is None):
            raise ConfigurationError("GradientNorms takes x and y, or neither for the training samples")
        self.batch_size = check_count("GradientNorms' batch_size", batch_size, 1)
        self.given = (
            None if x is None else ([numbers(a, "x") for a in (x if isinstance(x, tuple) else (x,))], numbers(y, "y"))
        )
        lengths = [*map(len, self.given[0])] if self.given else []
        if self.given and set(lengths) != {len(self.given[1])}:
            raise ShapeError(f"GradientNorms: x has {lengths} samples and y has {len(self.given[1])}")
        self.history: dict[str, list[float]] = {}
        self.weights: dict[str, list[float]] = {}
        self._data: Any = None

    def on_data(self, model: Any, xs: Sequence[np.ndarray], y: Any, sample_weight: Any) -> None:
        if isinstance(y, (tuple, dict)):
            raise ConfigurationError("GradientNorms measures models of one output, and this model has several")
        if y is None and self.given is None:
            raise ConfigurationError(
                "fit trains on batches that come one by one: give GradientNorms(x, y) what it is to measure"
            )
        self._data = xs, y, sample_weight
        if self.given is not None:
            output = model.__dict__["_output_shape"][1].shapes[0]  # fit has just looked
            self._data = self.given[0], host_target(self.given[1], model.dtype, (len(self.given[1]), *output)), None
        self.history, self.weights = {}, {}

    def on_train_begin(self, model: Any) -> None:
        self._measure(model)

    def on_epoch_end(self, model: Any, epoch: int, logs: dict[str, float]) -> None:
        self._measure(model)

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any], model: Any) -> None:
        self.history, self.weights = state["history"], state["weights"]

    def on_train_end(self, model: Any) -> None:
        self._data = None

    def _measure(self, model: Any) -> None:
        xs, y, sample_weight = self._data
        everything = model.parameters()
        parameters = [p for p in everything if p.trainable]
        counts = y != getattr(model.loss, "ignore_index", None)  # all, where none is ignored
        states = [(one, one.carried, one._copied_states()) for one in model.stateful_layers()]
        with gradients_aside(parameters), statistics_kept(everything), drawing_from(Generator(model.device, 0)):
            for start in range(0, len(y), self.batch_size):
                part = slice(start, start + self.batch_size)
                for one, *_ in states:  # which begins anew with sequences of another number
                    one.carried = [state for state in one.carried if len(state) == len(y[part])]
                more = () if sample_weight is None else (sample_weight[part],)
                target = tensor(y[part], None if y.dtype.kind in "iub" else model.dtype, model.device)
                loss = model.loss(model(*[x[part] for x in xs]), target, *more)
                loss.backward(np.full(loss.shape, counts[part].sum() / max(1, counts.sum()), model.dtype))
            for name, own in _by_layer(model).items():
                for history, axes in ((self.history, (0, 1)), (self.weights, range(2, 9))):
                    there = [p for p in own if p.trainable and p.ndim in axes]
                    if there:  # on the host and in float64, where the square of a vanishing gradient is not 0
                        gradients = [0.0 if p.grad is None else p.grad.numpy().astype(np.float64) for p in there]
                        history.setdefault(name, []).append(math.hypot(*map(np.linalg.norm, map(np.ravel, gradients))))
        for one, carried, before in states:
            one.carried = carried
            one._take_states(before)


def _by_layer(model: Layer) -> dict[str, list[Parameter]]:
    """The parameters that each layer has of its own, by its name, or by where it is in the model."""
    names = {"": model.name or snake(type(model).__name__)}
    found: dict[str, list[Parameter]] = {}
    for path, value in model._walk(""):
        if isinstance(value, Layer):
            names[path] = value.name if value.name and value.name not in names.values() else path
        else:
            owner = max((place for place in names if not place or path.startswith(f"{place}.")), key=len)
            found.setdefault(names[owner], []).append(value)
    return found
