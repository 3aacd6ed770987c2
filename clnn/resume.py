"""`Checkpoint`: a folder with the state of a `fit` under way, from which `fit(..., resume=folder)` goes on exactly."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from . import checkpoint, losses, optim, random, schedules
from .callbacks import OUT_OF_TIME, Callback, better_when, monitored
from .checkpoint import CheckpointWarning, settings
from .checks import check_count, check_flag, in_range
from .data.validate import checksum
from .errors import CheckpointError, ConfigurationError, warn
from .files import as_path
from .layers.base import Layer
from .metrics import metric_name
from .registry import PLAIN, config_from
from .runtime.watching.watch import structure_changed


class Checkpoint(Callback):
    """Save the model, the optimizer, the history and the other callbacks' state to `folder` after every `every` epochs.

        net.fit(x, y, ..., epochs=100, seed=1, callbacks=[clnn.Checkpoint("run")], resume="run")

    That line begins a run, and after a crash goes on with it, to the bits that an undisturbed run ends with. `minutes`: as
    often as that at most, in place of `every`. `keep`: of the last so many files the older ones are deleted. `best_only`: save
    only where `monitor` is better than it was ("min" or "max" by `mode`, as for `EarlyStopping`). Files are written whole or not
    at all; `clnn.load` reads each as a model. Where one cannot be written, a CheckpointWarning says so, the last good one stays,
    and training goes on. Several of them, such as one with `best_only`, each have a folder, of which `resume` is one.
    ConfigurationError for a folder that holds another run, which `resume` was not given for.
    """

    def __init__(
        self, folder: str | Path, every: int = 1, minutes: float | None = None, keep: int = 2, best_only: bool = False,
        monitor: str = "val_loss", mode: str | None = None,
    ) -> None:  # fmt: skip
        self.folder, self.every, self.keep = as_path(folder), check_count("every", every), check_count("keep", keep)
        self.minutes = None if minutes is None else in_range("minutes", minutes, 0.0, math.inf, "()")
        self.best_only, self.monitor = check_flag("best_only", best_only), monitor
        self.mode = better_when("Checkpoint", monitor, mode) if best_only else ""
        self.best: float | None = None
        self._under_way: dict[str, Any] = {}

    def begins(
        self, told: dict[str, Any], history: dict[str, list[float]], others: Sequence[Any], source: Path | None, done: int,
        world: Any,
    ) -> None:  # fmt: skip
        """A fit begins, with these settings, and goes on from a file, of so many epochs, or None: said by `fit`."""
        try:
            here = self.folder.resolve()
        except OSError as error:  # the working folder is gone
            raise ConfigurationError(f"Checkpoint: {self.folder} cannot be written: {error}") from None
        if sum(isinstance(one, Checkpoint) and one.folder.resolve() == here for one in others) > 1:
            raise ConfigurationError(f"two Checkpoints in {self.folder} delete each other's files: give each its own")
        self.best, files = None, saved_in(self.folder) if world.rank == 0 else []
        if files and (source is None or source.parent.resolve() != here):
            last = {} if source is None else checkpoint.read(files[-1])[1].get("run", {}).get("settings", {})
            if last.get("run") != told["run"]:  # which all Checkpoints of a run write
                raise ConfigurationError(
                    f"{self.folder} holds a run already, up to {files[-1].name}: give resume={str(self.folder)!r} or a new folder"
                )
        for later in files:  # damaged, or of a future that this fit leaves
            if source is not None and _epochs(later) > done:
                later.replace(later.with_suffix(".set-aside"))
        self._under_way = {"told": told, "history": history, "others": others, "world": world, "source": source}

    def on_train_begin(self, model: Any) -> None:
        self._saved_at = time.monotonic()
        if not self.best_only and self._under_way["source"] is None:
            self._save(model, 0)  # what cannot be saved is said before anything is trained

    def on_epoch_end(self, model: Any, epoch: int, logs: dict[str, float]) -> None:
        if self.best_only:
            value = monitored("Checkpoint", self.monitor, logs)
            if self.best is not None and not (value < self.best if self.mode == "min" else value > self.best):
                return
            self.best = None if math.isnan(value) else value
        elif self.minutes is not None:
            if time.monotonic() - self._saved_at < 60 * self.minutes and not model.stop_training:
                return
        elif (epoch + 1) % self.every and not model.stop_training:
            return
        self._saved_at = time.monotonic()
        try:
            self._save(model, epoch + 1)
        except CheckpointError as error:
            good = saved_in(self.folder)
            last = good[-1] if good else "none"
            warn(f"{error}; training goes on, and the last good checkpoint is {last}", CheckpointWarning)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best} if self.best_only else {}

    def load_state_dict(self, state: dict[str, Any], model: Any) -> None:
        self.best = state["best"]

    def _save(self, model: Any, epochs: int) -> None:
        if self._under_way["world"].rank:
            return
        arrays: dict[str, np.ndarray] = {}
        callbacks: list[dict[str, Any]] = []
        for i, one in enumerate(model.stateful_layers()):
            arrays |= {f"carried.{i}.{j}": state.numpy() for j, state in enumerate(one.carried)}
        for one in self._under_way["others"]:
            if state := one.state_dict():
                arrays |= {f"callback.{len(callbacks)}.{k}": v for k, v in state.items() if isinstance(v, np.ndarray)}
                rest = {k: v for k, v in state.items() if not isinstance(v, np.ndarray)}
                callbacks.append({"class": type(one).__name__, "state": rest})
        run = {
            "epochs": epochs, "ranks": self._under_way["world"].size,
            "stopped": bool(model.stop_training) and model.stop_training != OUT_OF_TIME,
            "history": {name: [v if math.isfinite(v) else str(v) for v in values] for name, values in
                        self._under_way["history"].items()},
            "settings": self._under_way["told"], "callbacks": callbacks, "generator": random.generator(model.device).state(),
            "shuffling": random.host().bit_generator.state,
            "still": [path for path, one in [("", model), *model._walk("")] if not one._trainable],
            "parameters": {name: settings(p) for name, p in model.named_parameters()},
            "arguments": _as_json({path: config for path, _, config in _arguments(model, model.loss)}),
        }  # fmt: skip
        model._write(self.folder / f"epoch-{epochs:06d}.safetensors", arrays, {"run": run}, model.optimizer)
        for old in saved_in(self.folder)[: -self.keep]:
            old.unlink(missing_ok=True)


def _knows(one: Any) -> bool:
    """Whether a callback knows something between epochs; one whose attributes come with on_train_begin does."""
    try:
        return bool(one.state_dict())
    except AttributeError:
        return True


def saved_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the last one last."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        names = []
    except OSError as error:
        raise CheckpointError(f"the folder {folder} cannot be read: {error}") from error
    return sorted((folder / name for name in names if re.fullmatch(r"epoch-\d{6,}\.safetensors", name)), key=_epochs)


def _epochs(file: Path) -> int:
    return int(file.stem.removeprefix("epoch-"))


def _told_of_optimizer(optimizer: Any) -> dict[str, Any] | None:
    """An optimizer as its file has it, but for a schedule that no file can hold: that one's name stands for it."""
    if not callable(optimizer.lr) or schedules.is_known(optimizer.lr):
        return optim.describe(optimizer)
    return {"name": type(optimizer).__name__, "config": config_from(optimizer)}


def _arguments(model: Any, loss: Any) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """The layers and losses, by their names in errors, with the arguments that make each, which callbacks may change."""
    for path, one in [("model", model), *((k, v) for k, v in model._walk("layer ") if isinstance(v, Layer))]:
        yield path, one, {k: v for k, v in one.config().items() if not k.endswith("_init")}
    for i, one in enumerate(losses.parts_of(loss)):
        if isinstance(one, losses.Loss):
            yield f"loss {i}", one, config_from(one)
    if isinstance(loss, losses.Joint):
        yield "the losses", loss, {"weights": tuple(loss.weights)}


def _as_json(told: dict[str, Any]) -> dict[str, Any]:
    """It as JSON gives it back, with names for what JSON cannot hold."""
    return dict(json.loads(json.dumps(told, default=lambda one: getattr(one, "__name__", type(one).__name__))))


def _count(samples: Any) -> int | str:
    """How many samples there are, or how many batches yields what gives them, as far as it says."""
    if isinstance(samples, tuple) and hasattr(samples, "xs"):
        return len(samples.xs[0])
    try:
        return f"{len(samples)} batches"
    except TypeError:
        return "batches"


def told_of_fit(
    samples: Any, mini_batch: int, shuffle: bool, seed: int | None, loss: Any, optimizer: Any, held_out: Any, measured: Any,
    sample_weight: Any, class_weight: Any, model: Any,
) -> dict[str, Any]:  # fmt: skip
    """What has to be the same where a fit goes on, as JSON gives it back. `measured`: the outputs' names, of which of them the
    accuracy is reported, and the metrics."""
    names, hits, metrics = measured
    reported = {f"{name}_accuracy".removeprefix("_") for name, hit in zip(names, hits) if hit}
    reported.update(map(metric_name, metrics))
    if class_weight is not None and not isinstance(class_weight, str):
        class_weight = {str(int(label)): float(weight) for label, weight in class_weight.items()}
    told: dict[str, Any] = {"mini-batch": mini_batch, "shuffle": shuffle, "seed": seed, "run": os.urandom(8).hex()}
    told["samples"] = f"{samples.steps} batches in an epoch" if hasattr(samples, "steps") else _count(samples)
    told |= {"loss": losses.describe(loss), "optimizer": _told_of_optimizer(optimizer), "metrics": sorted(reported)}
    told |= {"validation": None if held_out is None else _count(held_out), "class_weight": class_weight}
    if isinstance(loss, losses.Joint):
        described = {name: losses.describe(one) or one for name, one in loss.losses.items()}
        told |= {"losses": described, "loss_weights": [*map(float, loss.weights)]}
    told["frozen"] = sorted(name for name, p in model.named_parameters() if p.learns and not p.trainable)
    told |= {f"(rate_factor, decays, max_norm) of {name}": settings(p) for name, p in model.named_parameters()}
    told |= {path: [type(one).__name__, config] for path, one, config in _arguments(model, None)}
    for what, one in (("samples", samples), ("validation", held_out)):
        told[f"checksum of the {what}"] = checksum(chain(*one)) if hasattr(one, "xs") else None
    return _as_json(told | {"sample_weight": "given" if sample_weight is not None else None})


class Resumed:
    """What fit goes on from: the newest checkpoint of a folder that can be read, or a checkpoint's file."""

    def __init__(self, path: str | Path) -> None:
        self.given = as_path(path)
        a_file = os.path.exists(self.given) and not os.path.isdir(self.given)
        files = [self.given] if a_file else saved_in(self.given)
        self.run: dict[str, Any] | None = None
        self.file: Path | None = None
        self.arrays: dict[str, np.ndarray] = {}
        for file in reversed(files):
            try:
                self.arrays, self.header = checkpoint.read(file)
                self.run, self.file = self.header["run"], file
                break
            except KeyError:
                raise CheckpointError(
                    f"{file} is a model that net.save wrote, not a Checkpoint's: clnn.load reads it"
                ) from None
            except CheckpointError as error:
                if file is files[0]:
                    raise
                warn(f"{error}; the checkpoint before it is taken", CheckpointWarning)
        self.epochs = 0 if self.run is None else int(self.run["epochs"])
        self.stopped = self.run is not None and bool(self.run["stopped"])

    def put(
        self, model: Any, loss: Any, optimizer: Any, told: dict[str, Any], history: dict[str, list[float]],
        callbacks: Sequence[Any], ranks: int,
    ) -> None:  # fmt: skip
        """Give the model and the optimizer the state that was saved. ConfigurationError, before anything is changed, where fit's
        settings are others."""
        if self.run is None:
            if not any(isinstance(one, Checkpoint) for one in callbacks):
                raise ConfigurationError(
                    f"resume: there is no checkpoint in {self.given}, and no Checkpoint among the callbacks to write one"
                )
            return
        self.knowing = [one for one in callbacks if _knows(one)]
        told["run"] = self.run["settings"].get("run", told["run"])
        told = told | {"dtype": model.dtype.name, "callbacks": [type(one).__name__ for one in self.knowing]}
        was = {"frozen": sorted(self.header.get("frozen", ()))} | self.run["settings"]  # which older files go without
        was |= {"dtype": self.header["dtype"], "callbacks": [one["class"] for one in self.run["callbacks"]]}
        if ranks != self.run["ranks"]:  # as many samples for each rank, so others in a mini-batch
            was.pop("mini-batch", None)
        different = [f"{k} was {v!r} and is {told[k]!r}" for k, v in was.items() if told.get(k, v) != v]
        if different:
            raise ConfigurationError(
                f"resume: {self.file} is of a fit whose {'; '.join(different)}: give the same, or train what clnn.load("
                f"{str(self.file)!r}) returns in another way"
            )
        if "optimizer" not in self.header:
            raise CheckpointError(f"{self.file} went without its optimizer: register its class, and begin the run anew")
        model.load_state_dict(self._part("parameter."))  # all of it, or an error and nothing
        if "still" in self.run:  # which older files go without: callbacks may have frozen or thawed something
            for path, one in [("", model), *model._walk("")]:
                one._trainable = path not in self.run["still"]
            for name, p in model.named_parameters():
                p.rate_factor, p.decays, p.max_norm = self.run["parameters"][name]
            structure_changed()
        was = self.run.get("arguments", {})  # by then, as callbacks had set them
        for path, one, config in _arguments(model, loss):
            for name, value in was.get(path, {}).items():
                if value != _as_json(config).get(name) and isinstance(config.get(name), (*PLAIN, type(None))):
                    setattr(one, name, tuple(value) if isinstance(value, list) else value)
        now = _as_json({path: config for path, _, config in _arguments(model, loss)})
        if left := [f"{path}, by then {was[path]}" for path in was if now.get(path) != was[path]]:
            raise ConfigurationError(f"resume: nothing sets again what a callback had changed of {'; '.join(left)}")
        first = (self.run["settings"].get("optimizer") or {}).get("config", {})
        for name, value in (self.header["optimizer"].get("config") or {}).items():
            was = first.get(name, value)  # a name stands for a schedule that the file has only a number of
            if value != was and not (isinstance(was, str) and isinstance(value, float)):  # a callback had set it
                setattr(optimizer, name, value)
        for i, one in enumerate(model.stateful_layers()):
            carried = self._part(f"carried.{i}.")
            one._reset_states(next(map(len, carried.values()), None))
            for j, state in carried.items():
                one.device.upload(np.ascontiguousarray(state), one._states_of(len(state))[int(j)].block)
        optimizer.load_state_dict({**self.header["optimizer"], "arrays": self._part("optimizer.")})
        history.update({name: [*map(float, values)] for name, values in self.run["history"].items()})

    def put_callbacks(self, model: Any, world: Any) -> None:
        """Give the callbacks that `put` was given, and the generators, the state that was saved."""
        if self.run is None:
            return
        for i, (one, was) in enumerate(zip(self.knowing, self.run["callbacks"])):
            one.load_state_dict({**was["state"], **self._part(f"callback.{i}.")}, model)
        if world.size == self.run["ranks"] == 1:  # several draw other numbers each
            random.generator(model.device).set_state(self.run["generator"])
        random.host().bit_generator.state = self.run["shuffling"]

    def _part(self, prefix: str) -> dict[str, np.ndarray]:
        return {n.removeprefix(prefix): a for n, a in self.arrays.items() if n.startswith(prefix)}
