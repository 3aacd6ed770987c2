"""`clnn reproduce`: the experiments of Nielsen's book "Neural Networks and Deep Learning", over several seeds.

Each run (an experiment with one seed) is kept in a file as it ends, so what was stopped goes on. What comes out is a table
of the book's figures beside clnn's, and pictures of the curves.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .callbacks import Callback
from .data.datasets import mnist
from .errors import ConfigurationError, DataError, Diverged
from .files import write_atomically
from .init import scaled
from .layers import Dense
from .model import Sequential
from .optim import SGD

FORMAT = 1
BATCH = 10
CURVES = {  # the book's own runs, by experiment: its file of curves, and the key there
    "new-weights": ("weight_initialization_30", "default_weight_initialization"),
    "old-weights": ("weight_initialization_30", "large_weight_initialization"),
    "new-weights-100": ("weight_initialization_100", "default_weight_initialization"),
    "old-weights-100": ("weight_initialization_100", "large_weight_initialization"),
}


class Measure(NamedTuple):
    """A figure of the book: on which images, which of an epoch's accuracies, and what the book says, in percent."""

    images: str  # test or validation
    which: str  # best, last, first, or at: the test accuracy of the epoch with the best validation accuracy
    book: float


class Experiment(NamedTuple):
    """A network, how it is trained, and what is measured. The book counts lambda over the whole training set."""

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

    def settings(self) -> str:
        """The hyper-parameters in words."""
        cost = "softmax, log-likelihood" if self.softmax else {"quadratic": "quadratic"}.get(self.loss, "cross-entropy")
        weights = {"nielsen_old": "weights N(0, 1)", "nielsen_new": "weights N(0, 1/in)"}.get(self.weights, "")
        parts = ["-".join(map(str, self.sizes)), cost, weights, f"eta {self.eta:g}"]
        parts += [f"lambda {self.lmbda:g}"] * bool(self.lmbda)
        parts += [f"first {self.samples:,} images"] * (self.samples < 50000)
        return ", ".join(filter(None, [*parts, f"{self.epochs} epochs"]))

    def model(self, seed: int) -> Sequential:
        """The network with its first weights."""
        if self.softmax:  # network3: N(0, 1/out) in hidden layers, zeros in the last
            by_outputs = scaled(lambda n_in, n_out: 1.0 / n_out, "normal")
            layers = [Dense(n, "sigmoid", weight_init=by_outputs, bias_init="normal") for n in self.sizes[1:-1]]
            last = Dense(self.sizes[-1], weight_init="zeros", bias_init="zeros")
        else:
            start: dict[str, Any] = {"weight_init": self.weights, "bias_init": "normal"}
            layers = [Dense(n, "sigmoid", **start) for n in self.sizes[1:-1]]
            last = Dense(self.sizes[-1], "sigmoid", **start)
        return Sequential([*layers, last], input_shape=self.sizes[0], seed=seed)

    def optimizer(self) -> SGD:
        return SGD(self.eta, weight_decay=self.lmbda / self.samples)


def _test(book: float, which: str = "best") -> tuple[Measure, ...]:
    return (Measure("test", which, book),)


def _validation(book: float, which: str = "best") -> tuple[Measure, ...]:
    return (Measure("validation", which, book),)


def _started(first: float, last: float) -> tuple[Measure, ...]:
    return (Measure("validation", "first", first), Measure("validation", "last", last))


SMALL, WIDE = (784, 30, 10), (784, 100, 10)
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
}
BASELINES = {"darkness": 22.25, "svm": 94.35}
NETWORK = ("quadratic-30", "quadratic-100")  # network.py's own: those that NumPy can be measured against


# -- a run ------------------------------------------------------------------------------------------------------------
class Accuracies(Callback):
    """Accuracies in percent after each epoch, on the images that the experiment asks for."""

    def __init__(self, parts: dict[str, Any], say: Callable[[str], None]) -> None:
        self.parts, self.say = parts, say
        self.found: dict[str, list[float]] = {name: [] for name in parts}

    def on_epoch_end(self, model: Any, epoch: int, logs: dict[str, float]) -> None:
        for name, part in self.parts.items():
            self.found[name].append(round(100 * model.evaluate(*part)["accuracy"], 4))
        self.say(f"epoch {epoch + 1}: " + ", ".join(f"{name} {values[-1]:.2f}%" for name, values in self.found.items()))


def train(one: Experiment, seed: int, data: Any, say: Callable[[str], None]) -> dict[str, Any]:
    """Train once: the accuracies by epoch, the seconds with testing and all, and where the loss ran away if it did."""
    (x, y), validation, test = data
    wanted = {m.images for m in one.measures} | ({"validation"} if one.measures[0].which == "at" else set())
    accuracies = Accuracies({n: p for n, p in (("validation", validation), ("test", test)) if n in wanted}, say)
    found: dict[str, Any] = {}
    began = time.perf_counter()
    try:
        one.model(seed).fit(
            x[: one.samples], y[: one.samples], loss=one.loss, optimizer=one.optimizer(), epochs=one.epochs,
            batch_size=BATCH, seed=seed, callbacks=[accuracies], progress=False,
        )  # fmt: skip
    except Diverged as error:
        found["diverged"] = str(error)
    return {**found, "seconds": time.perf_counter() - began, "accuracies": accuracies.found}


def figure(measure: Measure, run: dict[str, Any]) -> float:
    """A run's figure for one of the book's; NaN where the loss ran away before the first epoch's end."""
    values = run["accuracies"][measure.images]
    if not values:
        return float("nan")
    if measure.which == "at":
        return values[int(np.argmax(run["accuracies"]["validation"]))]
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
    """One of network.py's networks as clnn.bench's NumPy side takes it: hand-written, vectorised over the mini-batch."""

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


# -- the command ------------------------------------------------------------------------------------------------------
def chosen(names: Sequence[str]) -> list[str]:
    """The experiments named: all without a name, those that begin with a name, and `network` for network.py's."""
    known = [*EXPERIMENTS, *BASELINES]
    if not names:
        return known
    found: list[str] = []
    for name in names:
        matches = list(NETWORK) if name == "network" else [k for k in known if k == name or k.startswith(f"{name}-")]
        if not matches:
            raise ConfigurationError(f"there is no experiment {name!r}; the known ones are network, {', '.join(known)}")
        found += [match for match in matches if match not in found]
    return found


def reproduce(
    names: Sequence[str] = (), seeds: int = 3, folder: str | Path = "reproduced", against: str = "", say: Any = print
) -> str:
    """Run experiments that were not run yet, with seeds 0, 1, ...; the table (Markdown) of all that were asked for comes
    back, and lies with the curves in `folder`. `against="numpy"` runs network.py's in NumPy as well, in turns."""
    if seeds < 1:
        raise ConfigurationError(f"seeds should be 1 or more, {seeds} was provided instead")
    if against not in ("", "numpy"):
        raise ConfigurationError(f"there is no {against!r} to run against; the only one is numpy")
    wanted, runs = chosen(names), Runs(Path(folder))
    data = mnist(validation=10000, scale=256)
    for name in wanted:
        if name in BASELINES:
            if runs.get(name, name, "0") is None:
                say(f"{name} ...")
                runs.add(name, name, "0", baseline(name, data))
            continue
        one = EXPERIMENTS[name]
        for seed in range(seeds):
            sides = [("", train)] + [(" numpy", train_numpy)] * (against == "numpy" and name in NETWORK)
            for suffix, side in sides:
                if runs.get(name, one.settings(), f"{seed}{suffix}") is None:
                    label = f"{name}, seed {seed}{suffix}"
                    run = side(one, seed, data, lambda text, label=label: say(f"{label}: {text}"))  # type: ignore[misc]
                    runs.add(name, one.settings(), f"{seed}{suffix}", run)
                    say(f"{label}: {run['seconds']:.1f} s")
    text = table(runs, wanted, seeds)
    write_atomically(Path(folder) / "table.md", (text + "\n").encode())
    draw(runs, wanted, seeds, Path(folder), say)
    return text


def table(runs: Runs, names: Sequence[str], seeds: int) -> str:
    """The book's figures beside clnn's: median, minimum and maximum over seeds, and the median of seconds."""
    lines = [
        "| experiment | settings | measured | book | clnn | min | max | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    total = {"": 0.0, " numpy": 0.0}
    for name in names:
        if name in BASELINES:
            run = runs.found[name]["runs"]["0"]
            value = run["accuracies"]["test"][0]
            lines.append(
                f"| {name} | no network | test | {BASELINES[name]:.2f} | {value:.2f} | | | {run['seconds']:.1f} |"
            )
            continue
        one = EXPERIMENTS[name]
        for suffix in total:
            kept = [runs.get(name, one.settings(), f"{seed}{suffix}") for seed in range(seeds)]
            found = [run for run in kept if run is not None]
            if not found:
                continue
            seconds = [run["seconds"] for run in found]
            total[suffix] += sum(seconds)
            for measure in one.measures:
                values = [figure(measure, run) for run in found]
                what = f"{measure.images}, {'at best validation' if measure.which == 'at' else measure.which}"
                away = sum("diverged" in run for run in found)
                what += f"; {away} of {len(found)} ran away" * bool(away)
                title = f"{name}{suffix and ', NumPy'}"
                lines.append(
                    f"| {title} | {one.settings()} | {what} | {measure.book:.2f} | {statistics.median(values):.2f} | "
                    f"{min(values):.2f} | {max(values):.2f} | {statistics.median(seconds):.1f} |"
                )
    text = "\n".join(lines)
    if total[" numpy"]:
        own = sum(
            run["seconds"]
            for name in NETWORK if name in names
            for seed in range(seeds)
            if (run := runs.get(name, EXPERIMENTS[name].settings(), str(seed)))
        )  # fmt: skip
        text += f"\n\nnetwork.py's runs: clnn {own:.1f} s, NumPy {total[' numpy']:.1f} s, {own / total[' numpy']:.2f} of it."
    return text


def draw(runs: Runs, names: Sequence[str], seeds: int, folder: Path, say: Any) -> None:
    """A picture of each experiment's curves, over the book's own where CLNN_DATA_DIR has them."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        say('no pictures, since matplotlib is not installed: pip install "clnn[plot]"')
        return
    for name in names:
        if name in BASELINES:
            continue
        one, figure_ = EXPERIMENTS[name], plt.figure(figsize=(5, 3.5))
        for seed in range(seeds):
            run = runs.get(name, one.settings(), str(seed))
            for images, values in (run["accuracies"] if run else {}).items():
                colour = {"test": "C0", "validation": "C1"}[images]
                plt.plot(range(1, len(values) + 1), values, colour, label=images if seed == 0 else None, alpha=0.7)
        if (book := book_curve(name)) is not None:
            plt.plot(range(1, len(book) + 1), book, "k--", label="the book")
        for measure in one.measures:
            plt.axhline(measure.book, color="0.7", linewidth=0.8)
        plt.title(name)
        plt.xlabel("epoch")
        plt.ylabel("accuracy, %")
        plt.legend()
        plt.tight_layout()
        plt.savefig(folder / f"{name}.png", dpi=100)
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
