"""fit, the training loop for any `Layer`.

The data is on the device (or comes in chunks, where it would not fit); each epoch uploads one permutation, and the
steps gather their rows through it. Losses and hits gather in a table on the device that is read once an epoch, so the
host never waits inside one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from .. import random
from ..callbacks import Callback
from ..checks import check_count, check_flag
from ..data.mapped import MappedRows
from ..data.sparse import SparseRows
from ..errors import ConfigurationError, Diverged, ShapeError
from ..foreign import check_called
from ..layers.base import Layer, called, for_shapes
from ..losses import Loss, parts_of
from ..ops.random import Generator
from ..optim import Optimizer, find_optimizer
from ..parameters import consolidate, statistics_kept
from ..progress import Progress
from ..resume import Checkpoint, Resumed, told_of_fit
from ..runtime.device import Device
from ..runtime.lock import exclusive
from ..runtime.recorder import StepContext
from ..runtime.watching.watch import structure_version
from ..step import Step
from ..tensor import tensor
from .alone import together, within
from .evaluation import CHUNK_BYTES, Evaluation
from .feed import Feed
from .history import History
from .inputs import Samples, build_for, check_trains, counts_hits, given_to_fit
from .outputs import Outputs
from .record import Results, record_loss, record_metrics
from .stream import Stream, held_out_batches, one_pass, over, parts_of_batch, streams_of_fit

AUDITS = 0.005  # share of fit's time for audits of the step after callbacks (step.py), where all code is clnn's


def fit(
    model: Any,
    x: Any,
    y: Any = None,
    *,
    loss: Any,
    optimizer: str | Optimizer,
    epochs: int = 1,
    batch_size: int | None = None,
    steps_per_epoch: int | None = None,
    loss_weights: Any = None,
    metrics: Any = None,
    validation: Any = None,
    validation_split: float = 0.0,
    callbacks: Sequence[Any] = (),
    shuffle: bool = True,
    seed: int | None = None,
    sample_weight: Any = None,
    class_weight: dict[int, float] | str | None = None,
    record: bool = True,
    progress: bool = True,
    world: Any = None,
    resume: Any = None,
) -> History:
    """Train `model` on samples x and targets y; the history of losses and accuracies comes back.

    x: array (n, ...), or for a model of several inputs a tuple of arrays, or a dict by the names in `forward`. y: class
    numbers (n,), or values of the output's shape; class numbers (n, time) go with outputs (n, time, classes) and a loss of
    vectors, such as cross_entropy. loss, optimizer and metrics: by name, or objects. Samples are shuffled anew each epoch, and
    the remainder batch is trained on too. `validation` = (x, y) or (x, y, sample_weight) is evaluated after each epoch;
    `validation_split` takes that fraction of the samples from the end instead, with their `sample_weight`. `sample_weight`
    (n,), or one for each class number, multiplies losses, and so does `class_weight` {class: weight} those of training;
    "balanced" gives class c, of n_c of the n samples, the weight n / (classes n_c). A step's mean loss divides by the number of
    its targets, less those that the loss ignores (`CrossEntropy(ignore_index=...)`); the history's is the mean over all such
    targets of the epoch. With `seed`, shuffling and dropout repeat from run to run. `record=False` keeps every step eager.
    A second fit with the same optimizer object goes on where the first ended. Callbacks leave arrays as they are: samples that
    fit into the device's memory are read at the beginning, others and those that are held out in each epoch.
    In place of arrays, x may yield batches, (x, y) or (x, y, sample_weight): `clnn.data.Batches`, a DataLoader of PyTorch, any
    iterable, or with `steps_per_epoch` a generator. Their order, and how many samples are in each, is theirs; `batch_size`,
    which is 32 for arrays, is then left out. An epoch is one pass, or `steps_per_epoch` batches, where what can be gone through
    again is begun anew at its end. Rows of one batch have one shape; another batch's may be longer or shorter, where the model
    takes that, as recurrent layers and attention do with sequences. `validation` may be such an iterable, too. Where fit
    resumes, those of before are drawn and dropped (`Batches` knows their order); whether they are the same is not checked.
    `world` (clnn.distributed.init()): its ranks, which are all to call this with the same samples, share out each mini-batch of
    `batch_size` times as many samples as there are ranks, and add up their gradients.
    `resume`: a folder, or a file, of `Checkpoint`: fit goes on where that was saved, up to `epochs` in all, and ends with the
    bits of a fit that was never interrupted; in an empty folder, which a `Checkpoint` is to fill, it begins. The history holds
    the epochs before, too.

    Where `forward` returns several outputs, as a tuple (then called output_1, output_2, ...) or as a dict, y, loss,
    loss_weights (1 unless given), metrics and sample_weight are tuples or dicts likewise; one loss, one list of metrics or one
    array of weights is for all outputs. The loss is sum_i w_i loss_i; the history has it as "loss", and each output's as
    "<name>_loss", "<name>_accuracy" and so on. ConfigurationError for a name that is unknown or missing.
    """
    optimizer, callbacks = find_optimizer(optimizer), as_callbacks(callbacks)
    with contextlib.ExitStack() as stack:
        world = stack.enter_context(together(world, optimizer))
        epochs, shuffle = check_count("epochs", epochs, 0), check_flag("shuffle", shuffle)
        given = batch_size, steps_per_epoch, validation, validation_split, sample_weight, class_weight, world
        stream, held_stream = streams_of_fit(x, y, epochs, *given)
        if stream is not None:
            stream.seed = seed
            x, y, sample_weight = parts_of_batch(stream.first(), "the first batch")
        held_stream, validation = held_out_batches(held_stream, validation, validation_split, model, x)
        loss, metrics, outputs, samples, held_out = given_to_fit(
            model, x, y, loss, loss_weights, metrics, sample_weight, class_weight, validation, validation_split
        )
        batch_size = check_count("batch_size", 32 if batch_size is None else batch_size)
        batch_size = batch_size if stream is None else len(samples.xs[0])
        history, told, done, last = History(), dict[str, Any](), 0, epochs
        if resume is not None or any(isinstance(one, Checkpoint) for one in callbacks):
            held, size = held_stream if held_out is None else held_out, batch_size * world.size
            measured, by = (outputs.names, counts_hits(loss, samples), metrics), (sample_weight, class_weight, model)
            told = told_of_fit(stream or samples, size, shuffle, seed, loss, optimizer, held, measured, *by)
        saved = None if resume is None else world.first(Resumed(resume) if world.rank == 0 else None)
        if saved:
            saved.put(model, loss, optimizer, told, history.history, callbacks, world.size)
            done, last = saved.epochs, saved.epochs if saved.stopped else epochs
        run = _Run(
            model, loss, metrics, outputs, samples, held_out, optimizer, epochs, done, batch_size, shuffle, seed, record, world,
            stream, class_weight,
        )  # fmt: skip
        stack.enter_context(random.drawing_from(run.draws))
        evaluation = Evaluation(model, outputs, loss, metrics, record) if held_out or held_stream is not None else None
        bar = Progress(max(0, last - done), len(run.plan), progress and world.rank == 0, model.device)
        model.stop_training, begun = False, list[Any]()
        try:
            for callback in (one for one in callbacks if isinstance(one, Checkpoint)):
                callback.begins(told, history.history, callbacks, saved.file if saved else None, done, world)
            for callback in callbacks:
                bare = stream is not None or all(w is None for w in samples.weights)
                ys = outputs.together(samples.ys) if stream is None else None
                weights = None if bare else outputs.together(samples.weights)
                callback.on_data(model, samples.xs if stream is None else stream.source, ys, weights)
                callback.on_train_begin(model)
                begun.insert(0, callback)
            if saved:
                saved.put_callbacks(model, world)
                last = done if model.stop_training else last
            for epoch in range(done, last):
                for callback in callbacks:
                    callback.on_epoch_begin(model, epoch)
                began = time.perf_counter()
                run.prepare()
                if stream is None:
                    run.train(epoch, bar, called_back=bool(callbacks))
                else:
                    stream.train(run, epoch, bar, called_back=bool(callbacks))
                try:
                    logs = run.means(epoch)
                except Diverged as error:
                    ends = [one.on_diverged(model, epoch, error) for one in callbacks if isinstance(one, Callback)]
                    if not any(ends):
                        raise
                    break
                if evaluation:
                    held = (
                        evaluation.run(held_out, world)
                        if held_out
                        else over(evaluation, one_pass(held_stream), "validation ")
                    )
                    logs |= {f"val_{key}": value for key, value in held.items()}
                run.observe(logs)  # before callbacks, which may save the model
                logs["seconds"] = time.perf_counter() - began
                run.seconds += logs["seconds"]
                logs = world.first(logs)
                history.add(logs)
                bar.epoch(epoch, epochs, logs)
                for callback in callbacks:
                    callback.on_epoch_end(model, epoch, logs)
                if any(world.gather(bool(model.stop_training))):
                    break
        finally:
            bar.close()
            for callback in begun:  # the stack goes from its end: in their order, and all, even if one raises
                stack.callback(callback.on_train_end, model)
        return history


class _Run:
    """A fit under way: the step, the samples that it is fed with, and an epoch in four parts (`prepare`, `train`, `means`,
    `observe`). The device's lock is held while something is launched, and let go in between for other threads."""

    def __init__(
        self, model: Any, loss: Any, metrics: list[Any], outputs: Outputs, samples: Samples, held_out: Samples | None,
        optimizer: Optimizer, epochs: int, done: int, batch_size: int, shuffle: bool, seed: int | None, record: bool, world: Any,
        stream: Stream | None = None, class_weight: Any = None,
    ) -> None:  # fmt: skip
        self.model, self.loss, self.outputs, self.samples, self.optimizer = model, loss, outputs, samples, optimizer
        self.epochs, self.batch_size, self.shuffle, self.seed, self.world = epochs, batch_size, shuffle, seed, world
        self.device: Device = model.device
        self.n = len(samples.xs[0])
        self.stream, self.class_weight = stream, class_weight
        self.stretches = world.stretches(self.n, batch_size) if stream is None else [(self.n, stream.steps, None)]
        self.plan = np.concatenate([np.full(count, rows) for rows, count, _ in self.stretches])
        self.counted = np.concatenate([np.full(n, rows * (share != 0)) for rows, n, share in self.stretches])
        if stateful := model.stateful_layers():
            _check_stateful(
                stateful[0], self.n % batch_size, shuffle, held_out is not None, world.size, stream is not None
            )
        if self.plan.min() == 1 and stream is None:
            each = batch_size * world.size
            left = f"of {self.n} samples in mini-batches of {each} the last has {self.n % each or each}"
            _check_alone(model, samples.xs, left + (f" for {world.size} ranks" if world.size > 1 else ""))
        with self.device.lock:  # another thread may train another model with the same optimizer
            optimizer.attach(consolidated(model))
            settings = {"epochs": epochs, "batch_size": batch_size, "shuffle": shuffle, "seed": seed, "loss": loss}
            world.begin(model, optimizer, (samples, held_out), settings)
            optimizer.begin_fit(len(self.plan), max(0, epochs - done))
            given, position = optimizer.given, optimizer.steps
        if stream is not None:
            stream.begin(optimizer, done)
        model.loss, model.optimizer = loss, optimizer
        self.resident, self.capacity = False, self.n
        if stream is None:
            self.resident, self.capacity = _capacity(self.device, self.n, batch_size, samples)
        counts = counts_hits(loss, samples)
        self.results = Results(self.device, len(self.plan), model.dtype, outputs, loss, counts, metrics)
        self.record, self.structure = record, structure_version()
        self.train_by(Feed(self.device, self.capacity, *samples, ordered=self.resident), given)
        # with a seed a generator of its own, where an uninterrupted run would be: no other fit draws from it
        self.draws = None if seed is None else Generator(self.device, seed, position, by_step=True)
        with random.drawing_from(self.draws):
            world.reseed(self.device)
        self.seconds = 0.0  # of all epochs so far, without what callbacks did
        if self.resident:
            self.feed.load(*samples)

    def train_by(self, feed: Feed, given: Any) -> None:
        """Have a step train these parameters on what a feed carries."""
        self.feed, what = feed, (self.model, self.outputs, self.loss, self.optimizer)
        self.function = _training_step(*what, feed, self.results, self.batch_size)
        self.step = Step(self.function, self.record, [self.optimizer], [self.model, self.loss, *self.results.metrics])
        self.step.given = given

    def prepare(self) -> None:
        """Before an epoch: gradients from elsewhere are forgotten, and what a callback has changed of the model is looked at."""
        with self.device.lock:
            for p in self.step.given:  # gradients from elsewhere have no part in this
                p.spent()
            now = build_for(self.model, self.samples.xs)
            if self.structure != structure_version():  # a callback has changed something
                check_trains(self.model)
                for one, shape, y in zip(parts_of(self.loss), now.shapes, self.samples.ys):
                    if isinstance(one, Loss):
                        one.check((self.n, *shape), y.shape, y.dtype)
                self.optimizer.attach(consolidated(self.model))
                self.step.given, self.structure = self.optimizer.given, structure_version()
            self.step.claim()
            if self.stream is None:
                order = random.permutation(self.n, self.shuffle, self.seed, self.optimizer.epochs)
                self.order = self.world.order(order, self.batch_size)
            self.first_step = self.optimizer.steps

    def train(self, epoch: int, bar: Progress, called_back: bool) -> None:
        """All steps of an epoch: over the set as it is on the device, or over one part of it after the other."""
        done = 0
        for start in range(0, len(self.order), self.capacity):
            part = self.order[start : start + self.capacity]
            if self.resident:
                self.feed.rewind(part)
            else:
                in_order = not self.shuffle and self.world.size == 1
                self.feed.load(*self.samples.part(slice(start, start + self.capacity) if in_order else part))
                self.feed.rewind(step=done)
            for rows, count, share in within(self.stretches, start, start + len(part)):
                self.steps(rows, share, count, (self.epochs - epoch) * count, bar, called_back)
                done += count

    def steps(
        self, rows: int, share: float | None, count: int, to_come: int, bar: Progress, called_back: bool, first: bool = True
    ) -> None:  # fmt: skip
        """`count` steps of as many rows, of whose loss a rank has this share; `to_come`: with those of later epochs; `first`:
        those after callbacks were called."""
        step, device, key = self.step, self.device, self.step.key(self.device, (rows, share))
        run = partial(self.function, rows=rows, share=share)
        # a callback may have changed what a user's code reads and nobody can watch; clnn's own reads nothing such
        afford = step.audited <= AUDITS * self.seconds
        with device.lock:
            step.verify(device, key, run, first and (step.foreign or (called_back and afford)))
        done = 0
        while done < count:
            with device.lock:  # for a few short replays at a time: other threads come in between
                taken = step.run_some(device, key, run, self.world.at_once(count - done), to_come)
                if step.foreign:  # code that is not clnn's may see something new between callbacks, too
                    step.verify(device, key, run)
            bar.step(taken)
            done += taken
            self.world.check()

    def means(self, epoch: int) -> dict[str, float]:
        """The epoch is over: its means, which the device is waited for."""
        self.world.settle(self.model)
        logs = self.results.means(self.counted, epoch, self.first_step, self.world)
        with self.device.lock:
            self.step.claim()
            self.optimizer.end_epoch(self.stream.passed() if self.stream else None)
        return logs

    def observe(self, logs: dict[str, Any]) -> None:
        """Note the learning rate, and let it go by the loss, that of validation where there is one."""
        with self.device.lock:
            self.step.claim()
            logs["lr"] = self.optimizer.rate(max(0, self.optimizer.steps - 1))
            self.optimizer.observe(logs.get("val_loss", logs["loss"]))


def _training_step(
    model: Any, outputs: Outputs, loss: Any, optimizer: Optimizer, feed: Feed, results: Results, batch_size: int
) -> Callable[..., None]:
    """The step of fit, as Python: the next `rows` rows forward, their loss, and the descent."""

    def train(context: StepContext, rows: int, share: float | None) -> None:
        for p in optimizer.given:  # whatever read one since the last step has no part in this, nor have its gradients
            p.spent()
        batch, ts, ws = feed.batch(rows)
        outs = outputs.tensors(model(*batch))
        record_metrics(feed, results, outs, ts)
        start = record_loss(loss, outs, ts, ws, feed, results, max(batch_size, rows), context, share, optimizer.world)
        if start is None:
            raise ConfigurationError("the loss depends on no trainable parameter")
        del batch, outs, ts, ws
        optimizer.descend(start)

    return train


def as_callbacks(callbacks: Any) -> list[Any]:
    """What `fit` calls as it goes, a list."""
    found = list(callbacks or ()) if isinstance(callbacks or (), Iterable) else [callbacks]
    wrong = [one for one in found if isinstance(one, type) or not hasattr(one, "on_data")]
    if wrong:
        rest = "schedules go to lr, functions to clnn.Lambda"
        raise ConfigurationError(f"callbacks is a list of clnn.Callback objects, not {wrong[0]!r}; {rest}")
    for one in found:
        named = [name for name in dir(one) if name.startswith("on_") and not hasattr(Callback, name)]
        if unknown := [name for name in named if callable(getattr(one, name))]:
            known = ", ".join(name for name in vars(Callback) if name.startswith("on_"))
            raise ConfigurationError(
                f"{type(one).__name__}.{unknown[0]}: fit never calls that, but {known}; within an epoch steps are replayed "
                "without Python: write a loop of your own, with @clnn.step, where each batch matters"
            )
        check_called(one, Callback)
    return sorted(found, key=lambda one: isinstance(one, Checkpoint))  # which keep what the others know after the epoch


@exclusive("device.lock")
def _check_alone(model: Layer, xs: Sequence[np.ndarray], why: str) -> None:
    """ShapeError where the model cannot be trained on one row alone, such as batch normalisation; there is one, says `why`."""
    with statistics_kept(model.parameters()):
        try:
            for_shapes(model.device, lambda: Outputs.of(model(*[tensor(x[:1], x.dtype, model.device) for x in xs])))
        except ShapeError as error:
            raise ShapeError(f"{error}; {why}: take another batch_size") from None


def _check_stateful(layer: Layer, left: int, shuffle: bool, validation: bool, ranks: int, comes: bool) -> None:
    """ConfigurationError where samples would not meet the states that a stateful layer carries from batch to batch."""
    for wrong, what in (
        (comes, "batches that come one by one may be of any samples: give arrays"),
        (shuffle, "shuffled samples do not go on where those of the batch before ended: give shuffle=False"),
        (left, f"the last batch has {left} samples only: give whole batches"),
        (validation, "validation would carry the states on, too: evaluate after fit, and reset_states() around it"),
        (ranks > 1, "ranks share out each batch, so that states would be of other samples: train on one"),
    ):
        if wrong:
            raise ConfigurationError(f"fit: {called(layer)} is stateful, and {what}")


@exclusive("device.lock")
def consolidated(model: Layer) -> list[Any]:
    """The model's parameters, in a flat store."""
    parameters = model.parameters()
    consolidate(parameters)
    return parameters


def _capacity(device: Device, n: int, batch: int, samples: Samples) -> tuple[bool, int]:
    """Whether n such samples may all stay on the device, and the rows of a chunk (whole batches) if not."""
    row, memory = Feed.row_bytes(*samples), device.memory
    if any(isinstance(x, (SparseRows, MappedRows)) for x in samples.xs):  # as many rows at a time as evaluations have
        return False, max(batch, min(n, CHUNK_BYTES // sum(row) // batch * batch))
    free = memory.limit - memory.in_use
    if n * sum(row) <= free // 2 and memory.fits(n * max(row)):
        return True, n
    return False, max(batch, min(free // 8 // sum(row), memory.piece // 2 // max(row)) // batch * batch)
