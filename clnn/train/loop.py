"""fit, the training loop for any `Layer`.

The data lies on the device (or comes in chunks, where it would not fit); each epoch uploads one permutation, and the
steps gather their rows through it. Losses and hits gather in a table on the device that is read once an epoch, so the
host never waits inside one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from .. import random
from ..callbacks import Callback, Progress
from ..checks import check_count
from ..errors import ConfigurationError, ShapeError
from ..layers.base import Layer, for_shapes
from ..losses import Loss, parts_of
from ..optim import Optimizer, find_optimizer
from ..parameters import consolidate, statistics_kept
from ..runtime.device import Device
from ..runtime.lock import exclusive
from ..runtime.recorder import StepContext
from ..runtime.watching.watch import structure_version
from ..step import Step
from ..tensor import tensor
from .evaluation import Evaluation
from .feed import Feed
from .history import History
from .inputs import Samples, build_for, counts_hits, given_to_fit
from .outputs import Outputs
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
    loss_weights: Any = None,
    metrics: Any = None,
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

    x: array (n, ...), or for a model of several inputs a tuple of arrays, or a dict by the names in `forward`. y: class
    numbers (n,), or values of the output's shape; class numbers (n, time) go with outputs (n, time, classes) and a loss of
    vectors, such as cross_entropy. loss, optimizer and metrics: by name, or objects. Samples are shuffled anew each epoch, and
    the remainder batch is trained on too. `validation` = (x, y) or (x, y, sample_weight) is evaluated after each epoch;
    `validation_split` takes that fraction of the samples from the end instead, with their `sample_weight`. `sample_weight`
    (n,), or one for each class number, multiplies losses, and so does `class_weight` {class: weight} those of training. A
    step's mean loss divides by the number of its targets, less those that the loss ignores
    (`CrossEntropy(ignore_index=...)`); the history's is the mean over all such targets of the epoch. With `seed`, shuffling
    and dropout repeat from run to run. `record=False` keeps every step eager.
    A second fit with the same optimizer object goes on where the first ended. The samples are those of its beginning: what a
    callback changes in these arrays meanwhile is for the next fit.

    Where `forward` returns several outputs, as a tuple (then called output_1, output_2, ...) or as a dict, y, loss,
    loss_weights (1 unless given), metrics and sample_weight are tuples or dicts likewise; one loss, one list of metrics or one
    array of weights is for all outputs. The loss is sum_i w_i loss_i; the history has it as "loss", and each output's as
    "<name>_loss", "<name>_accuracy" and so on. ConfigurationError for a name that is unknown or missing.
    """
    epochs, batch_size = check_count("epochs", epochs, 0), check_count("batch_size", batch_size)
    optimizer, callbacks = find_optimizer(optimizer), as_callbacks(callbacks)
    device = model.device
    loss, metrics, outputs, samples, held_out = given_to_fit(
        model, x, y, loss, loss_weights, metrics, sample_weight, class_weight, validation, validation_split
    )
    n = len(samples.xs[0])
    plan = rows_by_step(n, batch_size)
    if plan.min() == 1:
        _check_alone(model, samples.xs, f"of {n} samples in mini-batches of {batch_size} the last has 1")
    with device.lock:  # another thread may train another model with the same optimizer
        optimizer.attach(consolidated(model))
        optimizer.begin_fit(len(plan), epochs)
        given, position = optimizer.given, optimizer.steps
    model.loss, model.optimizer = loss, optimizer
    resident, capacity = _capacity(device, n, batch_size, samples)
    feed = Feed(device, capacity, *samples, ordered=resident)
    results = Results(device, len(plan), model.dtype, outputs, loss, counts_hits(loss, samples), metrics)
    train = _training_step(model, outputs, loss, optimizer, feed, results, batch_size)
    step = Step(train, record, [optimizer], reads=[model, loss, *metrics])
    step.given, structure = given, structure_version()
    if seed is not None:  # where an uninterrupted run would be
        random.generator(device).reseed(seed, position=position)
    history, bar = History(), Progress(epochs, len(plan), progress)
    evaluation = Evaluation(model, outputs, loss, metrics, record) if held_out else None
    model.stop_training = False
    started = time.perf_counter()
    if resident:
        feed.load(*samples)
    try:
        for callback in callbacks:
            weights = None if all(w is None for w in samples.weights) else outputs.together(samples.weights)
            callback.on_data(model, samples.xs, outputs.together(samples.ys), weights)
            callback.on_train_begin(model)
        for epoch in range(epochs):
            for callback in callbacks:
                callback.on_epoch_begin(model, epoch)
            with device.lock:
                for p in step.given:  # gradients from elsewhere have no part in this
                    p.spent()
                    p.version += 1  # replays do not say so
            began = time.perf_counter()
            now = build_for(model, samples.xs)
            with device.lock:
                if structure != structure_version():  # a callback has changed something
                    for one, shape, y_now in zip(parts_of(loss), now.shapes, samples.ys):
                        if isinstance(one, Loss):
                            one.check((n, *shape), y_now.shape, y_now.dtype)
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
                    feed.load(*samples.rows(part if shuffle else slice(start, start + capacity)))
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
                        with device.lock:  # for a few short replays at a time: other threads come in between
                            times = step.run_some(device, key, run, end - done, steps_to_come)
                            if step.foreign:  # code that is not clnn's may see something new between callbacks, too
                                step.verify(device, key, run)
                        bar.step(times)
                        done += times
            logs = results.means(plan, epoch, first_step)
            with device.lock:
                step.claim()
                optimizer.epochs += 1
            if evaluation and held_out:
                logs |= {f"val_{key}": value for key, value in evaluation.run(held_out).items()}
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


def _training_step(
    model: Any, outputs: Outputs, loss: Any, optimizer: Optimizer, feed: Feed, results: Results, batch_size: int
) -> Callable[..., None]:
    """The step of fit, as Python: the next `rows` rows forward, their loss, and the descent."""

    def train(context: StepContext, rows: int) -> None:
        batch, ts, ws = feed.batch(rows)
        outs = outputs.tensors(model.forward(*batch))
        record_metrics(feed, results, outs, ts)
        start = record_loss(loss, outs, ts, ws, feed, results, batch_size, context)
        if start is None:
            raise ConfigurationError("the loss depends on no trainable parameter")
        del batch, outs, ts, ws
        optimizer.descend(start)

    return train


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
            for_shapes(model.device, lambda: Outputs.of(model(*[tensor(x[:1], x.dtype, model.device) for x in xs])))
        except ShapeError as error:
            raise ShapeError(f"{error}; {why}: take another batch_size") from None


@exclusive("device.lock")
def consolidated(model: Layer) -> list[Any]:
    """The model's parameters, in a flat store."""
    parameters = model.parameters()
    consolidate(parameters)
    return parameters


def _capacity(device: Device, n: int, batch: int, samples: Samples) -> tuple[bool, int]:
    """Whether n such samples may all stay on the device, and the rows of a chunk (whole batches) if not."""
    row, memory = Feed.row_bytes(*samples), device.memory
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
