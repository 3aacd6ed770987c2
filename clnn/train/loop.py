"""fit, the training loop for any `Layer`.

The data lies on the device (or comes in chunks, where it would not fit); each epoch uploads one permutation, and the
steps gather their rows through it. Losses and hits gather in a table on the device that is read once an epoch, so the
host never waits inside one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from .. import random
from ..callbacks import Callback, Progress
from ..checks import check_count, in_range
from ..errors import ConfigurationError, DataError, Diverged, ShapeError
from ..layers.base import Layer, for_shapes
from ..losses import Loss, find_loss
from ..metrics import Metric, find_metrics, metric_name
from ..optim import Optimizer, find_optimizer
from ..parameters import consolidate, statistics_kept
from ..runtime.device import Device
from ..runtime.lock import exclusive
from ..runtime.recorder import StepContext
from ..runtime.watch import structure_version
from ..step import Step
from ..tensor import tensor
from .evaluation import Evaluation
from .feed import Feed
from .history import History
from .inputs import as_inputs, as_target, as_weights, build_for, by_class, check_accuracy
from .record import Results, record_loss, record_metrics, rows_by_step, steps_of

AUDITS = 0.005  # of fit's time, at most, for audits after callbacks where all code is clnn's


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

    plan = rows_by_step(n, batch_size)
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

    def train(context: StepContext, rows: int) -> None:
        batch, t, w = feed.batch(rows)
        out = model.forward(*batch)
        assert t is not None
        record_metrics(feed, results, out, t)
        start = record_loss(loss, out, t, w, classes, feed, results, batch_size, context)
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
                for rows_now, count in steps_of(len(part), batch_size):
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
