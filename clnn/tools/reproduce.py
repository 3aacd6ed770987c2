"""`clnn reproduce`: the experiments of Nielsen's book "Neural Networks and Deep Learning", over several seeds.

Each run (an experiment with one seed) is kept in a file as it ends, and a convolutional one after each epoch too, so what
was stopped goes on. What comes out is a table of the book's figures beside clnn's, and pictures of the curves.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..callbacks import Callback
from ..checks import check_count
from ..data.augment import expand
from ..data.datasets import mnist
from ..ensemble import elect
from ..errors import CheckpointError, ConfigurationError, DataError, Diverged
from ..files import as_path, check_place, write_atomically
from ..init import normal, scaled
from ..layers import Activation, Conv2D, Dense, Dropout, Flatten, Layer, MaxPool2D, Reshape, register
from ..model import Sequential, load
from ..optim import SGD
from ..tensor import Tensor

FORMAT = 1
BATCH = 10
KERNEL, POOL = 5, 2  # of network3's convolutions
CURVES = {  # the book's own runs, by experiment: its file of curves, and the key there
    "new-weights": ("weight_initialization_30", "default_weight_initialization"),
    "old-weights": ("weight_initialization_30", "large_weight_initialization"),
    "new-weights-100": ("weight_initialization_100", "default_weight_initialization"),
    "old-weights-100": ("weight_initialization_100", "large_weight_initialization"),
}


class Measure(NamedTuple):
    """A figure of the book: on which images, which of an epoch's accuracies, and what the book says, in percent."""

    images: str  # test or validation
    which: str  # best, last, first, or at: the test accuracy of the last epoch with the best validation accuracy
    book: float


@register
class Thinned(Layer):
    """network3's dropout: in training each value is 0 with probability `rate`, otherwise all are multiplied by 1 - rate.

    `Dropout` divides by 1 - rate in training instead; from the same first weights, eta would mean another rate there.
    """

    def __init__(self, rate: float) -> None:
        self.rate, self.dropout = rate, Dropout(rate)

    def forward(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        return self.dropout(x) * (1 - self.rate)

    def config(self) -> dict[str, Any]:
        return {"rate": self.rate}


class Experiment(NamedTuple):
    """A network, how it is trained, and what is measured."""

    sizes: tuple[int, ...]
    eta: float
    epochs: int
    measures: tuple[Measure, ...]
    chapter: int
    loss: str = "binary_cross_entropy"
    weights: str = "nielsen_new"
    lmbda: float = 0.0
    samples: int = 50000
    softmax: bool = False  # network3's last layer, with the log-likelihood
    fails: bool = False  # it is meant to
    conv: tuple[int, ...] = ()  # network3's ConvPoolLayers before the other layers: channels of each
    activation: str = "sigmoid"
    dropout: float = 0.0  # of what goes into each dense layer
    expanded: bool = False  # by shifts of one pixel, to five times as many images

    @property
    def images(self) -> int:
        """How many there are to train on."""
        return self.samples * (5 if self.expanded else 1)

    def settings(self) -> str:
        """The hyper-parameters in words."""
        cost = "softmax, log-likelihood" if self.softmax else {"quadratic": "quadratic"}.get(self.loss, "cross-entropy")
        weights = {"nielsen_old": "weights N(0, 1)", "nielsen_new": "weights N(0, 1/in)"}.get(self.weights, "")
        parts = [f"conv {channels} {KERNEL}x{KERNEL}, pool {POOL}" for channels in self.conv]
        parts += ["-".join(map(str, self.sizes[bool(self.conv) :]))]
        parts += [self.activation] * bool(self.conv) + [f"dropout {self.dropout:g}"] * bool(self.dropout)
        parts += [cost, weights, f"eta {self.eta:g}"]
        parts += [f"lambda {self.lmbda:g}"] * bool(self.lmbda)
        parts += [f"first {self.samples:,} images"] * (self.samples < 50000)
        parts += [f"expanded to {self.images:,} images"] * self.expanded
        return ", ".join(filter(None, [*parts, f"{self.epochs} epochs"]))

    def model(self, seed: int) -> Sequential:
        """The network with its first weights."""
        if not self.softmax:
            start: dict[str, Any] = {"weight_init": self.weights, "bias_init": "normal"}
            layers: list[Layer] = [Dense(n, "sigmoid", **start) for n in self.sizes[1:]]
            return Sequential(layers, input_shape=self.sizes[0], seed=seed)
        # network3: N(0, 1/out) in hidden layers, where out of a ConvPoolLayer is the channels times the kernel's area over
        # the pool's; zeros in the last; biases N(0, 1). Maxima come before the activation, which is monotonic.
        layers, side = [], math.isqrt(self.sizes[0])
        for channels in self.conv:
            weights = normal(0.0, math.sqrt(POOL**2 / (channels * KERNEL**2)))
            layers += [Conv2D(channels, KERNEL, weight_init=weights, bias_init="normal"), MaxPool2D(POOL)]
            layers += [Activation(self.activation)]
        if self.conv:
            layers = [Reshape((1, side, side)), *layers, Flatten()]
        by_outputs = scaled(lambda n_in, n_out: 1.0 / n_out, "normal")
        dense = [Dense(n, self.activation, weight_init=by_outputs, bias_init="normal") for n in self.sizes[1:-1]]
        for layer in (*dense, Dense(self.sizes[-1], weight_init="zeros", bias_init="zeros")):
            layers += [Thinned(self.dropout), layer] if self.dropout else [layer]
        return Sequential(layers, input_shape=self.sizes[0], seed=seed)

    def optimizer(self) -> SGD:
        """network2 adds lambda / (2 n) times the sum of squared weights to the mean cost of a mini-batch, n the images;
        network3 has the number of mini-batches in place of n: the same lambda counts ten times as much."""
        return SGD(self.eta, weight_decay=self.lmbda / (self.images / BATCH if self.softmax else self.images))


class Vote(NamedTuple):
    """Networks of one experiment, with seeds 0, 1, ..., that vote."""

    of: str
    voters: int
    book: float


def _test(book: float, which: str = "best") -> tuple[Measure, ...]:
    return (Measure("test", which, book),)


def _validation(book: float, which: str = "best") -> tuple[Measure, ...]:
    return (Measure("validation", which, book),)


def _started(first: float, last: float) -> tuple[Measure, ...]:
    return (Measure("validation", "first", first), Measure("validation", "last", last))


SMALL, WIDE = (784, 30, 10), (784, 100, 10)
_CONV = Experiment(WIDE, 0.03, 60, (), 6, "cross_entropy", "", softmax=True, conv=(20, 40))
_DEEP = _CONV._replace(sizes=(784, 1000, 1000, 10), epochs=40)
EXPERIMENTS: dict[str, Experiment] = {
    "quadratic-30": Experiment(SMALL, 3.0, 30, _test(95.42), 1, "quadratic", "nielsen_old"),
    "quadratic-100": Experiment(WIDE, 3.0, 30, _test(96.59), 1, "quadratic", "nielsen_old"),
    "too-slow": Experiment(WIDE, 0.001, 30, _test(21.42, "last"), 1, "quadratic", "nielsen_old", fails=True),
    "too-fast": Experiment(SMALL, 100.0, 30, _test(9.82, "last"), 1, "quadratic", "nielsen_old", fails=True),
    "cross-entropy-30": Experiment(SMALL, 0.5, 30, _test(95.49), 3, weights="nielsen_old"),
    "overfitting": Experiment(SMALL, 0.5, 400, _test(82.27), 3, weights="nielsen_old", samples=1000),
    "regularized-1000": Experiment(SMALL, 0.5, 400, _test(87.1), 3, weights="nielsen_old", lmbda=0.1, samples=1000),
    "regularized": Experiment(SMALL, 0.5, 30, _test(96.49), 3, weights="nielsen_old", lmbda=5.0),
    "regularized-100": Experiment(WIDE, 0.5, 30, _validation(97.92), 3, weights="nielsen_old", lmbda=5.0),
    "regularized-100-slower": Experiment(WIDE, 0.1, 60, _validation(98.04), 3, weights="nielsen_old", lmbda=5.0),
    "new-weights": Experiment(SMALL, 0.1, 30, _started(92.70, 96.50), 3, lmbda=5.0),
    "old-weights": Experiment(SMALL, 0.1, 30, _started(86.43, 96.37), 3, weights="nielsen_old", lmbda=5.0),
    "new-weights-100": Experiment(WIDE, 0.1, 30, _started(92.95, 97.81), 3, lmbda=5.0),
    "old-weights-100": Experiment(WIDE, 0.1, 30, _started(89.94, 97.42), 3, weights="nielsen_old", lmbda=5.0),
    "hidden-layers-1": Experiment(SMALL, 0.1, 30, _validation(96.48, "last"), 5, lmbda=5.0),
    "hidden-layers-2": Experiment((784, 30, 30, 10), 0.1, 30, _validation(96.90, "last"), 5, lmbda=5.0),
    "hidden-layers-3": Experiment((784, 30, 30, 30, 10), 0.1, 30, _validation(96.57, "last"), 5, lmbda=5.0),
    "hidden-layers-4": Experiment((784, 30, 30, 30, 30, 10), 0.1, 30, _validation(96.53, "last"), 5, lmbda=5.0),
    "softmax-100": Experiment(WIDE, 0.1, 60, _test(97.80, "at"), 6, "cross_entropy", "", softmax=True),
    "conv-pool": _CONV._replace(conv=(20,), eta=0.1, measures=_test(98.78, "at")),
    "conv-pool-2": _CONV._replace(eta=0.1, measures=_test(99.06, "at")),
    "conv-relu": _CONV._replace(activation="relu", lmbda=0.1, measures=(*_test(99.23, "at"), *_test(99.23, "last"))),
    "conv-relu-expanded": _CONV._replace(activation="relu", lmbda=0.1, expanded=True, measures=_test(99.37, "at")),
    "conv-dropout": _DEEP._replace(activation="relu", dropout=0.5, expanded=True, measures=_test(99.60, "at")),
}
VOTES = {"vote": Vote("conv-dropout", 5, 99.67)}
BASELINES = {"darkness": 22.25, "svm": 94.35}
NETWORK = ("quadratic-30", "quadratic-100")  # network.py's own: those that NumPy can be measured against


# -- a run ------------------------------------------------------------------------------------------------------------
class Unfinished:
    """Where a long run stands after an epoch: the log, then the model with its optimizer, in two files beside `path`."""

    def __init__(self, path: Path, settings: str) -> None:
        self.path, self.settings = path, settings
        self.log, self.model = path.with_suffix(".json"), path.with_suffix(".clnn")

    def save(self, model: Any, log: dict[str, list[float]]) -> None:
        write_atomically(self.log, json.dumps({"settings": self.settings, "log": log}).encode())
        model.save(self.model)

    def load(self) -> tuple[Any, dict[str, list[float]]] | None:
        """The model and the log up to its epoch (the log on file may be one ahead), if they are of these settings."""
        try:
            kept = json.loads(self.log.read_text(encoding="utf-8"))
            model = load(self.model)
            log = {name: values[: model.optimizer.epochs] for name, values in kept["log"].items()}
            return (model, log) if kept["settings"] == self.settings else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, CheckpointError) as error:
            raise DataError(f"{self.path}.json and .clnn are no unfinished run ({error}); remove them") from error

    def remove(self) -> None:
        for file in (self.log, self.model):
            file.unlink(missing_ok=True)


class Watch(Callback):
    """Accuracies in percent, and the seconds so far, after each epoch, on the images that the experiment asks for; of a long
    run also the probabilities of the test images at the best validation accuracy."""

    def __init__(self, one: Experiment, data: Any, say: Callable[[str], None], keep: Path | None) -> None:
        (_, validation, test), self.one, self.say, self.keep = data, one, say, keep
        wanted = {m.images for m in one.measures} | ({"validation"} if one.measures[0].which == "at" else set())
        self.parts = {n: p for n, p in (("validation", validation), ("test", test)) if n in wanted}
        self.log: dict[str, list[float]] = {name: [] for name in ("seconds", *self.parts)}
        self.unfinished = Unfinished(keep, one.settings()) if keep else None
        self.began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the run began, where it was stopped without the time between."""
        return time.perf_counter() - self.began

    def resume(self) -> Any:
        """The model of a run that was stopped."""
        found = self.unfinished.load() if self.unfinished else None
        if found is None:
            return None
        model, self.log = found
        self.began -= self.log["seconds"][-1]
        self.say(f"goes on after epoch {len(self.log['seconds'])}")
        return model

    def on_epoch_end(self, model: Any, epoch: int, logs: dict[str, float]) -> None:
        for name, part in self.parts.items():
            self.log[name].append(round(100 * model.evaluate(*part)["accuracy"], 4))
        done = len(self.log["seconds"]) + 1
        if self.keep and best(self.log["validation"]) == done - 1:
            probabilities = io.BytesIO()
            np.save(probabilities, model.predict_proba(self.parts["test"][0]))
            write_atomically(self.keep.with_suffix(".npy"), probabilities.getvalue())
        seconds = self.seconds - (self.log["seconds"] or [0.0])[-1]
        self.log["seconds"].append(self.seconds)
        if self.unfinished:
            self.unfinished.save(model, self.log)
        found = ", ".join(f"{name} {self.log[name][-1]:.2f}%" for name in self.parts)
        self.say(f"epoch {done} of {self.one.epochs}: {found}, {seconds:.1f} s")


def train(
    one: Experiment, seed: int, data: Any, say: Callable[[str], None], keep: Path | None = None
) -> dict[str, Any]:
    """Train once: the accuracies by epoch, the seconds with testing and all, and where the loss ran away if it did. With
    `keep`, a path without suffix, it goes on where it was stopped, and keeps what a vote needs in a .npy file."""
    x, y = (part[: one.samples] for part in data[0])
    watch = Watch(one, data, say, keep)
    if one.expanded:
        side = math.isqrt(one.sizes[0])
        images, y = expand(x.reshape(-1, side, side), y)
        x = images.numpy().reshape(len(y), -1)
        del images
    model = watch.resume()
    optimizer = model.optimizer if model else one.optimizer()
    found: dict[str, Any] = {}
    try:
        (model or one.model(seed)).fit(
            x, y, loss=one.loss, optimizer=optimizer, epochs=one.epochs - optimizer.epochs, batch_size=BATCH, seed=seed,
            callbacks=[watch], progress=False,
        )  # fmt: skip
    except Diverged as error:
        found["diverged"] = str(error)
    return {**found, "seconds": watch.seconds, "accuracies": {name: watch.log[name] for name in watch.parts}}


def best(validation: Sequence[float]) -> int:
    """The last epoch with the best validation accuracy, as network3 has it."""
    return len(validation) - 1 - int(np.argmax(validation[::-1]))


def figure(measure: Measure, run: dict[str, Any]) -> float:
    """A run's figure for one of the book's; NaN where the loss ran away before the first epoch's end."""
    values = run["accuracies"][measure.images]
    if not values:
        return float("nan")
    if measure.which == "at":
        return values[best(run["accuracies"]["validation"])]
    return {"best": max(values), "first": values[0], "last": values[-1]}[measure.which]


def baseline(name: str, data: Any) -> dict[str, Any]:
    """The book's classifiers without a network, chapter 1: by the mean darkness of each digit; a support vector machine."""
    (x, y), _, (x_test, y_test) = data
    began = time.perf_counter()
    if name == "darkness":
        darkness = x.sum(1, dtype=np.float64)
        means = np.array([darkness[y == digit].mean() for digit in range(10)])
        predicted = abs(x_test.sum(1, dtype=np.float64)[:, None] - means).argmin(1)
    else:
        try:
            from sklearn.svm import SVC
        except ImportError:
            raise ConfigurationError("svm needs scikit-learn: pip install scikit-learn") from None
        # scikit-learn's defaults when the book was written (gamma is now "scale", which is better)
        predicted = SVC(gamma="auto").fit(x, y).predict(x_test)
    accuracy = 100 * float((predicted == y_test).mean())
    return {"seconds": time.perf_counter() - began, "accuracies": {"test": [accuracy]}}


class _Book:
    """One of network.py's networks as clnn.tools.bench's NumPy side takes it: hand-written, vectorised over the mini-batch."""

    hidden, loss, optimizer, batch = "sigmoid", "quadratic", "sgd", BATCH

    def __init__(self, one: Experiment, seed: int, data: Any) -> None:
        self.sizes, self.lr, self.seed = one.sizes, one.eta, seed
        self.layers = list(zip(one.sizes, one.sizes[1:]))
        self.steps = one.samples // BATCH
        parameters = [p.numpy() for p in one.model(seed).parameters()]
        self._weights, self._data = list(zip(parameters[::2], parameters[1::2])), data

    def data(self) -> Any:
        return self._data

    def weights(self) -> Any:
        return self._weights

    def order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch)).permutation(len(self._data[0]))


def train_numpy(one: Experiment, seed: int, data: Any, say: Callable[[str], None]) -> dict[str, Any]:
    """The same run, from the same weights and in the same order, in NumPy."""
    from .bench.peers import Numpy
    from .bench.workloads import sigmoid

    (x, y), _, (x_test, y_test) = data
    side, found = Numpy(), []

    class Done(Exception):
        pass

    def after(_: float) -> None:
        a = x_test
        for w, b in side.weights:
            a = sigmoid(a @ w + b)
        found.append(round(100 * float((a.argmax(1) == y_test).mean()), 4))
        say(f"NumPy, epoch {len(found)}: test {found[-1]:.2f}%")
        if len(found) == one.epochs:
            raise Done

    book: Any = _Book(one, seed, (x, y))
    began = time.perf_counter()
    with contextlib.suppress(Done):
        side.train(book, {}, after)
    return {"seconds": time.perf_counter() - began, "accuracies": {"test": found}}


# -- the file of runs -------------------------------------------------------------------------------------------------
def slug(title: str) -> str:
    """A title as a file's name: `conv-relu, 2 epochs` is conv-relu-2-epochs."""
    return title.replace(", ", "-").replace(" ", "-")


class Runs:
    """Finished runs by experiment and seed, kept in `folder`/runs.json."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "runs.json"
        self.found: dict[str, dict[str, Any]] = {}
        try:
            kept = json.loads(self.path.read_text(encoding="utf-8"))
            if kept["format"] != FORMAT:
                raise ValueError(f"its format is {kept['format']!r}, and this clnn writes {FORMAT}")
            self.found = kept["runs"]
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self.path} is no file of runs ({error}); move it away or name another folder") from None

    def get(self, name: str, settings: str, key: str) -> dict[str, Any] | None:
        """A finished run with these settings."""
        kept = self.found.get(name)
        return kept["runs"].get(key) if kept and kept["settings"] == settings else None

    def add(self, name: str, settings: str, key: str, run: dict[str, Any]) -> None:
        """Keep a run; those of other settings go."""
        if self.found.get(name, {}).get("settings") != settings:
            self.found[name] = {"settings": settings, "runs": {}}
        self.found[name]["runs"][key] = run
        text = json.dumps({"format": FORMAT, "runs": self.found}, indent=1)
        write_atomically(self.path, text.encode())

    def file(self, name: str, seed: int) -> Path:
        """The path, without a suffix, of the files of a long run."""
        return self.path.with_name(f"{slug(name)}-{seed}")


# -- the command ------------------------------------------------------------------------------------------------------
Plan = Experiment | Vote | float  # a float: a baseline's figure in the book


def chosen(names: Sequence[str], everything: bool = False) -> list[str]:
    """The experiments named: the one of a name, or all that begin with it, and `network` for network.py's. Without names all
    but the convolutional ones, which take hours, and with `everything` those too."""
    known = [*EXPERIMENTS, *VOTES, *BASELINES]
    if not names:
        return [k for k in known if everything or not (k in VOTES or (k in EXPERIMENTS and EXPERIMENTS[k].conv))]
    found: list[str] = []
    for name in names:
        matches = list(NETWORK) if name == "network" else [name] if name in known else []
        matches = matches or [k for k in known if k.startswith(f"{name}-")]
        if not matches:
            raise ConfigurationError(f"there is no experiment {name!r}; the known ones are network, {', '.join(known)}")
        found += [match for match in matches if match not in found]
    return found


def planned(names: Sequence[str], epochs: int | None = None) -> dict[str, Plan]:
    """What is to be run, by title. One of more than `epochs` is cut down to so many, and its title says so: it is not the
    book's then, and its runs are kept beside those of the whole one."""
    most = math.inf if epochs is None else check_count("epochs", epochs)
    known: dict[str, Plan] = {**EXPERIMENTS, **VOTES, **BASELINES}
    found: dict[str, Plan] = {}
    for name in names:
        one = known[name]
        trained = EXPERIMENTS[one.of] if isinstance(one, Vote) else one
        if not isinstance(trained, Experiment) or trained.epochs <= most:
            found[name] = one
        elif isinstance(one, Vote):
            found[f"{name}, {most} epochs"] = one._replace(of=f"{one.of}, {most} epochs")
        else:
            found[f"{name}, {most} epochs"] = trained._replace(epochs=int(most))
    return found


def described(one: Plan) -> str:
    """A line for a list: the chapter, and what it is."""
    if isinstance(one, Experiment):
        return f"chapter {one.chapter}: {one.settings()}"
    return f"chapter 6: {one.voters} of {one.of}" if isinstance(one, Vote) else "chapter 1: no network"


def finished(
    runs: Runs, title: str, one: Experiment, seed: int, data: Any, say: Callable[[str], None], suffix: str = ""
) -> dict[str, Any]:
    """A run, which is done first if it was not yet."""
    label, key = f"{title}, seed {seed}{suffix}", f"{seed}{suffix}"
    if (kept := runs.get(title, one.settings(), key)) is not None:
        return kept
    progress = lambda text: say(f"{label}: {text}")  # noqa: E731
    file = runs.file(title, seed) if one.conv else None
    run = train_numpy(one, seed, data, progress) if suffix else train(one, seed, data, progress, file)
    runs.add(title, one.settings(), key, run)
    if file:
        Unfinished(file, one.settings()).remove()
    say(f"{label}: {run['seconds']:.1f} s")
    return run


def vote(runs: Runs, title: str, one: Vote, of: Experiment, data: Any, say: Callable[[str], None]) -> None:
    """Let networks vote on the test images, each as it was at its best validation accuracy; they are trained first if they
    were not yet."""
    trained = [finished(runs, one.of, of, seed, data, say) for seed in range(one.voters)]
    settings = f"{one.voters} of {one.of}: {of.settings()}"
    if runs.get(title, settings, "0") is not None:
        return
    found = []
    for seed in range(one.voters):
        file = runs.file(one.of, seed).with_suffix(".npy")
        try:
            found.append(np.load(file))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{title} needs {file} ({error}); restore it, or take seed {seed} of {one.of} out of {runs.path}, which "
                "trains that network again"
            ) from None
    accuracy = 100 * float((elect(np.array(found, np.float64)) == data[2][1]).mean())
    seconds = sum(run["seconds"] for run in trained)
    runs.add(title, settings, "0", {"seconds": seconds, "accuracies": {"test": [accuracy]}})


def reproduce(
    names: Sequence[str] = (),
    seeds: int = 3,
    folder: str | Path = "reproduced",
    against: str = "",
    say: Any = print,
    everything: bool = False,
    epochs: int | None = None,
) -> str:
    """Run experiments that were not run yet, with seeds 0, 1, ...; the table (Markdown) of all that were asked for comes
    back, and lies with the curves in `folder`. `against="numpy"` runs network.py's in NumPy as well, in turns; `epochs`
    cuts longer experiments down."""
    seeds = check_count("seeds", seeds)
    if against not in ("", "numpy"):
        raise ConfigurationError(f"there is no {against!r} to run against; the only one is numpy")
    wanted, runs = chosen(names, everything), Runs(as_path(folder))
    check_place(runs.path)  # before hours of training
    if left := [name for name in chosen((), True) if not names and name not in wanted]:
        say(f"left out, since they take hours: {', '.join(left)}; name them, or give --all")
    plans, data = planned(wanted, epochs), mnist(validation=10000, scale=256)
    voters = planned([VOTES[name].of for name in wanted if name in VOTES], epochs)
    for title, one in plans.items():
        if isinstance(one, Experiment):
            numpys = [" numpy"] * (against == "numpy" and title.split(",")[0] in NETWORK)
            for seed in range(seeds):
                for suffix in ("", *numpys):
                    finished(runs, title, one, seed, data, say, suffix)
        elif isinstance(one, Vote):
            vote(runs, title, one, voters[one.of], data, say)  # type: ignore[arg-type]
        elif runs.get(title, title, "0") is None:
            say(f"{title} ...")
            runs.add(title, title, "0", baseline(title, data))
    text = table(runs, plans, seeds)
    write_atomically(runs.path.with_name("table.md"), (text + "\n").encode())
    draw(runs, plans, seeds, runs.path.parent, say)
    return text


def table(runs: Runs, plans: dict[str, Plan], seeds: int) -> str:
    """The book's figures beside clnn's: median, minimum and maximum over seeds, and the median of seconds."""
    lines = [
        "| experiment | settings | measured | book | clnn | min | max | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    own = numpys = 0.0  # seconds, of what ran on both sides
    for title, one in plans.items():
        if not isinstance(one, Experiment):
            kept = runs.found[title]
            run, book = kept["runs"]["0"], one.book if isinstance(one, Vote) else one
            settings, what = (kept["settings"], ", at best validation") if isinstance(one, Vote) else ("no network", "")
            value = run["accuracies"]["test"][0]
            lines.append(f"| {title} | {settings} | test{what} | {book:.2f} | {value:.2f} | | | {run['seconds']:.1f} |")
            continue
        both = []
        for suffix in ("", " numpy"):
            tried = [runs.get(title, one.settings(), f"{seed}{suffix}") for seed in range(seeds)]
            found = [run for run in tried if run is not None]
            if not found:
                continue
            seconds = [run["seconds"] for run in found]
            both.append(sum(seconds))
            for measure in one.measures:
                values = [figure(measure, run) for run in found]
                what = f"{measure.images}, {'at best validation' if measure.which == 'at' else measure.which}"
                away = sum("diverged" in run for run in found)
                what += f"; {away} of {len(found)} ran away" * bool(away)
                lines.append(
                    f"| {title}{suffix and ', NumPy'} | {one.settings()} | {what} | {measure.book:.2f} | "
                    f"{statistics.median(values):.2f} | {min(values):.2f} | {max(values):.2f} | "
                    f"{statistics.median(seconds):.1f} |"
                )
        if len(both) == 2:
            own, numpys = own + both[0], numpys + both[1]
    text = "\n".join(lines)
    if numpys:
        text += f"\n\nnetwork.py's runs: clnn {own:.1f} s, NumPy {numpys:.1f} s, {own / numpys:.2f} of it."
    return text


def draw(runs: Runs, plans: dict[str, Plan], seeds: int, folder: Path, say: Any) -> None:
    """A picture of each experiment's curves, over the book's own where CLNN_DATA_DIR has them."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        say("no pictures, since matplotlib is not installed: pip install matplotlib")
        return
    for name, one in plans.items():
        if not isinstance(one, Experiment):
            continue
        figure_ = plt.figure(figsize=(5, 3.5))
        for seed in range(seeds):
            run = runs.get(name, one.settings(), str(seed))
            for images, values in (run["accuracies"] if run else {}).items():
                colour = {"test": "C0", "validation": "C1"}[images]
                plt.plot(
                    range(1, len(values) + 1),
                    values,
                    colour,
                    label=f"{images}, {seeds} seeds" if seed == 0 else None,
                    alpha=0.7,
                )
        if (book := book_curve(name)) is not None:
            plt.plot(range(1, len(book) + 1), book, "k--", label="the book")
        for i, measure in enumerate(one.measures):
            plt.axhline(measure.book, color="0.7", linewidth=0.8, label=None if i else "figures in the book's text")
        plt.title(name)
        plt.xlabel("epoch")
        plt.ylabel("accuracy, %")
        plt.legend()
        plt.tight_layout()
        plt.savefig(folder / f"{slug(name)}.png", dpi=100)
        plt.close(figure_)


def book_curve(name: str) -> list[float] | None:
    """The validation accuracies of the book's own run, where CLNN_DATA_DIR has them."""
    file, key = CURVES.get(name, ("", ""))
    path = Path(os.environ.get("CLNN_DATA_DIR", "")) / "nielsen_curves" / f"{file}.json"
    if not file or not path.is_file():
        return None
    try:
        return [value / 100 for value in json.loads(path.read_text(encoding="utf-8"))[key][1]]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(f"{path} does not hold the book's curves ({error}); restore it or remove it") from error
