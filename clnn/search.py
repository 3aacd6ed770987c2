"""Search for hyper-parameters: a grid, random draws, or successive halving, over the arguments of a function that builds.

    def build(hidden=100, lr=0.1, batch_size=10):
        net = clnn.Sequential([clnn.Dense(hidden, "relu"), clnn.Dense(10)], input_shape=64)
        return net, dict(loss="cross_entropy", optimizer=clnn.SGD(lr, momentum=0.9), batch_size=batch_size)

    space = {"lr": clnn.search.log_uniform(0.001, 1), "hidden": [30, 100]}
    found = clnn.search.random(build, space, (x, y), (x_val, y_val), epochs=10, trials=20, file="search.json")
    print(found)  # a table, best first
    found.best_model.evaluate(x_test, y_test)

`build` returns a model and a dict of arguments for `fit`: whatever it has an argument for can be searched. Each trial
builds a model of its own, with a seed of its own, and is measured on the validation data after its last epoch, or after
the epoch whose weights `EarlyStopping` ends it with.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import json
import math
import os
import pickle
import re
import signal
import sys
import textwrap
import time
import weakref
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .callbacks import Callback, EarlyStopping
from .checks import check_count, in_range
from .errors import CheckpointError, ClnnError, ConfigurationError, Diverged, OutOfDeviceMemory
from .files import write_atomically
from .foreign import Called
from .layers.base import Layer
from .ops.random import Generator
from .optim import find_optimizer
from .random import drawing_from
from .runtime.devices.choice import device, use
from .train import History, as_inputs, build_for, fit, loss_for
from .train.loop import as_callbacks


# -- spaces -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, repr=False)
class Range:
    """Numbers between two others: what `uniform`, `log_uniform` and `integers` make."""

    kind: str
    low: float
    high: float

    def draw(self, generator: np.random.Generator) -> float:
        """A value of this range."""
        if self.kind == "integers":
            return int(generator.integers(int(self.low), int(self.high), endpoint=True))
        if self.kind == "uniform":
            return generator.uniform(self.low, self.high)
        value = math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        return min(max(value, self.low), self.high)  # exp(log(x)) is off by a rounding

    def __repr__(self) -> str:
        return f"{self.kind}({self.low!r}, {self.high!r})"


def uniform(low: float, high: float) -> Range:
    """Numbers from `low` to `high`, all as likely."""
    low = in_range("uniform's low", low, -math.inf, math.inf, "()")
    return Range("uniform", low, in_range("uniform's high", high, low, math.inf, "()"))


def log_uniform(low: float, high: float) -> Range:
    """Numbers from `low` to `high` whose logarithms are all as likely: for rates and penalties."""
    low = in_range("log_uniform's low", low, 0.0, math.inf, "()")
    return Range("log_uniform", low, in_range("log_uniform's high", high, low, math.inf, "()"))


def integers(low: int, high: int) -> Range:
    """Whole numbers from `low` to `high`, both included, all as likely."""
    low = check_count("integers' low", low, -(1 << 62))
    return Range("integers", low, check_count("integers' high", high, low + 1))


Space = Mapping[str, Sequence[Any] | Range]


def _values(name: str, values: Any) -> list[Any] | Range:
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if isinstance(values, Range) or (isinstance(values, (list, tuple, range)) and len(values)):
        return values if isinstance(values, Range) else list(values)
    raise ConfigurationError(
        f"{name!r} is searched over a list of values, or uniform, log_uniform or integers(low, high); "
        f"{values!r} was provided instead"
    )


# -- what users call --------------------------------------------------------------------------------------------------
def grid(build: Any, space: Space, train: Any, validation: Any, *, epochs: int = 1, **options: Any) -> Results:
    """Every combination of the listed values. `options`: those of `Search`."""
    trials = 1
    for name, values in space.items():
        found = _values(name, values)
        if isinstance(found, Range):
            raise ConfigurationError(
                f"a grid needs a list of values for {name!r}, {found!r} was provided instead: give some of its numbers, or "
                "use search.random"
            )
        trials *= len(found)
    return Search("grid", build, space, train, validation, [trials], [epochs], **options).run()


def random(
    build: Any, space: Space, train: Any, validation: Any, *, trials: int, epochs: int = 1, **options: Any
) -> Results:
    """`trials` draws from the space (Bergstra and Bengio 2012). `options`: those of `Search`.

    Draw i depends on `seed` and i alone: with a larger `trials` the same file goes on.
    """
    sizes = [check_count("trials", trials, 1)]
    return Search("random", build, space, train, validation, sizes, [epochs], **options).run()


def halving(
    build: Any, space: Space, train: Any, validation: Any, *, trials: int, epochs: int | Sequence[int] = 1,
    keep: float = 1 / 3, **options: Any,
) -> Results:  # fmt: skip
    """Successive halving: random draws, of which the best `keep` go on in each rung, until one is left
    (Karnin et al. 2013, algorithm 1; Jamieson and Talwalkar 2016). `options`: those of `Search`.

    ceil(keep n) of n trials survive and train on from where they were, with the same optimizer. `epochs` are those of the
    first rung; the survivors train 1/keep as long in the next, so that every rung costs the same. A list gives the epochs
    of each rung itself. The models of a rung all stay on the device. A schedule spans one rung unless it has `epochs=`.
    """
    keep = in_range("keep", keep, 0.0, 1.0, "()")
    sizes = [check_count("trials", trials, 1)]
    while (left := min(sizes[-1] - 1, math.ceil(sizes[-1] * keep - 1e-9))) > 1:
        sizes.append(left)
    if isinstance(epochs, (list, tuple)):
        if len(epochs) != len(sizes):
            raise ConfigurationError(
                f"{trials} trials with keep={keep:.3g} make {len(sizes)} rungs, of {', '.join(map(str, sizes))} trials; "
                f"epochs has {len(epochs)} numbers"
            )
        plan = list(epochs)
    else:
        plan = [round(check_count("epochs", epochs, 1) / keep**rung) for rung in range(len(sizes))]
    return Search("halving", build, space, train, validation, sizes, plan, **options).run()


class Search(Called):
    """A search, and the options that every kind of it takes.

    metric: what counts, of what `fit` measures on the validation data. Less is better of "loss", more of "accuracy" and
    "top_<k>"; for other metrics say `maximise=`. seed: draws, weights (of models without a seed of their own), shuffling
    and dropout repeat with it. processes: so many share the trials, which can pay where one is too small to keep the
    device busy and takes longer than a process's start, seconds; `build` has to be a module's own function then, and a
    script has to search under `if __name__ == "__main__":`. With processes="mpi" they are the ranks of
    `mpirun -n 4 python -m mpi4py.futures script.py`, of which the first runs the script. file: finished trials are kept
    there, as JSON, and a second call goes on; in halving those that survive train again up to where they were, with the
    same result. A trial that diverges or needs too much memory is a row with the reason; any other error ends the search.
    """

    def __init__(
        self, kind: str, build: Callable[..., Any], space: Space, train: Any, validation: Any, sizes: list[int],
        plan: list[int], *, metric: str = "accuracy", maximise: bool | None = None, seed: int = 0, processes: int | str = 1,
        file: str | Path | None = None, progress: bool = True,
    ) -> None:  # fmt: skip
        self.kind, self.build, self.name = kind, build, getattr(build, "__qualname__", repr(build))
        self.space = {name: _values(name, values) for name, values in space.items()}
        known = inspect.signature(build).parameters.values()
        names = [p.name for p in known if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        unknown = [name for name in space if name not in names]
        if unknown and not any(p.kind is p.VAR_KEYWORD for p in known):
            raise ConfigurationError(f"{self.name} has no argument {unknown[0]!r}; it has {', '.join(names) or 'none'}")
        needed = [p.name for p in known if p.name in names and p.default is p.empty and p.name not in space]
        if needed:
            raise ConfigurationError(f"{self.name} needs {needed[0]!r}: search over it, or give it a default")
        for name, pair in (("train", train), ("validation", validation)):
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise ConfigurationError(f"{name} is a pair (x, y), {type(pair).__name__} was provided instead")
        self.train, self.validation = train, validation
        if maximise is None and metric != "loss" and not re.fullmatch(r"accuracy|top_\d+", metric):
            raise ConfigurationError(f"say with maximise=True or False whether more of {metric!r} is better")
        self.metric, self.sign = metric, -1 if (metric != "loss" if maximise is None else maximise) else 1
        self.sizes = sizes  # the trials of each rung; only halving has several
        self.plan = [check_count("epochs", epochs, 1) for epochs in plan]
        self.seed = check_count("seed", seed, 0)
        self.processes = "mpi" if processes == "mpi" else min(check_count("processes", processes, 1), sizes[0])
        self.file, self.progress = None if file is None else Path(file), progress
        self.device = f"{device().platform_index}:{device().device_index}"
        self.beyond: list[dict[str, Any]] = []  # rows in the file that an earlier call with more trials found

    def arguments(self, trial: int) -> dict[str, Any]:
        """What trial 0, 1, ... calls build with."""
        if self.kind == "grid":
            lists = [values for values in self.space.values() if isinstance(values, list)]
            return dict(zip(self.space, next(itertools.islice(itertools.product(*lists), trial, None))))
        generator = np.random.default_rng([self.seed, trial])
        return {
            name: values.draw(generator) if isinstance(values, Range) else values[generator.integers(len(values))]
            for name, values in self.space.items()
        }

    def order(self, row: dict[str, Any]) -> tuple[Any, ...]:
        """What sorts rows, best first: those that got further in halving, then by score; failures last."""
        scores = row["scores"]
        return bool(row["failed"]), -len(scores), self.sign * scores[-1] if scores else 0, row["trial"]

    def run(self) -> Results:
        """Train every trial that the file does not hold yet."""
        from tqdm import tqdm

        rows = self._stored() if self.file is not None and os.path.exists(self.file) else {}
        results, alive = Results(self, rows), list(range(self.sizes[0]))
        kind: Any = {1: Worker, "mpi": Ranks}.get(self.processes, Processes)
        with (
            contextlib.closing(kind(self)) as workers,
            tqdm(total=sum(self.sizes), unit="trial", disable=None if self.progress and sys.stderr else True) as bar,
        ):
            for rung, size in enumerate(self.sizes):
                if rung:  # a trial that failed has no score for the rung before
                    scores = [
                        (self.sign * rows[n]["scores"][rung - 1], n) for n in alive if len(rows[n]["scores"]) >= rung
                    ]
                    alive = [n for _, n in sorted(scores)[:size]]
                new = [n for n in alive if n not in rows or not (rows[n]["failed"] or len(rows[n]["scores"]) > rung)]
                bar.update(size - len(new))
                for row, weights in workers.train(new, rung, alive):
                    rows[row["trial"]] = row
                    if results.rows[0] is row:
                        results.weights = row["trial"], weights
                    if self.file is not None:
                        results.save(self.file)
                    bar.update()
        return results

    @cached_property
    def signature(self) -> dict[str, Any]:
        """What has to be the same for a file to go on, as JSON gives it back."""
        data = [_digest(part) for pair in (self.train, self.validation) for part in pair]
        mine = {"kind": self.kind, "build": self.name, "space": list(self.space.items()), "epochs": self.plan}
        mine |= {"trials": None if self.kind == "random" else self.sizes, "data": data}
        mine |= {"metric": self.metric, "maximise": self.sign < 0, "seed": self.seed}
        return json.loads(json.dumps(mine, default=_said))

    def _stored(self) -> dict[int, dict[str, Any]]:
        """The finished trials in the file."""
        assert self.file is not None
        remedy = "give another file=, or delete it"
        try:
            found = json.loads(self.file.read_text(encoding="utf-8"))
            rows = {row["trial"]: row for row in found["rows"]}
            self.beyond = [rows.pop(number) for number in sorted(rows) if number >= self.sizes[0]]
            other = [name for name, value in self.signature.items() if found["search"].get(name) != value]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{self.file} is no file of a search, or is damaged ({error!r}); {remedy}") from None
        if other:
            raise ConfigurationError(f"{self.file} is of another search, by its {', '.join(other)}: {remedy}")
        print(f"{self.file} has {len(rows)} of {self.sizes[0]} trials; the search goes on from there", file=sys.stderr)
        return {
            number: {**row, "arguments": self.arguments(number)} for number, row in rows.items()
        }  # not as JSON has them


def _digest(part: Any) -> list[Any]:
    parts = part.values() if isinstance(part, dict) else part if isinstance(part, tuple) else (part,)
    return [[*a.shape, zlib.crc32(a.tobytes())] for a in map(np.asarray, parts)]


def _said(value: Any) -> str:
    """A value in a table, and in a file where JSON has nothing like it."""
    return f"{value:.4g}" if isinstance(value, float) else getattr(value, "__qualname__", str(value))


# -- results ----------------------------------------------------------------------------------------------------------
class Results:
    """What a search found; `print` shows it as a table, best first.

    `rows` are dicts: trial, arguments, score (None where it failed), scores (one a rung), epochs, seconds, seed (fit's),
    failed (the reason, or ""), history.
    """

    def __init__(self, search: Search, rows: dict[int, dict[str, Any]]) -> None:
        self.search, self.by_trial = search, rows
        self.weights: tuple[int, dict[str, np.ndarray]] | None = None  # of which trial, and what they are

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The trials, best first."""
        return sorted(self.by_trial.values(), key=self.search.order)

    def _best(self) -> dict[str, Any]:
        row = self.rows[0]
        if row["failed"]:
            raise ClnnError(f"no trial came to its end; of trial {row['trial']} the reason is: {row['failed']}")
        return row

    @property
    def best(self) -> dict[str, Any]:
        """The arguments of the best trial."""
        return self._best()["arguments"]

    @cached_property
    def best_model(self) -> Any:
        """The best trial's model as it was trained; where that was an earlier call, it is trained again, to the same."""
        row = self._best()
        trial = Trial(self.search, row["trial"])
        trial.start()
        if self.weights is None or self.weights[0] != row["trial"]:
            for epochs in self.search.plan[: len(row["scores"])]:
                trial.fit(epochs)
            return trial.model
        x = self.search.train[0]
        outputs = build_for(trial.model, [a[:1] for a in as_inputs(x, trial.model)])
        trial.model.load_state_dict(self.weights[1])
        trial.model.loss = loss_for(outputs, trial.options["loss"], trial.options.get("loss_weights"))
        return trial.model

    def save(self, path: str | Path) -> None:
        """Write the rows as `file=path` does."""
        found = {"search": self.search.signature, "rows": self.rows + self.search.beyond}
        write_atomically(Path(path), json.dumps(found, default=_said, indent=1).encode())

    def _table(self) -> list[list[str]]:
        rows = self.rows
        failed = any(row["failed"] for row in rows)
        table = [["trial", *self.search.space, f"val_{self.search.metric}", "epochs", "seconds", *["failed"] * failed]]
        for row in rows:
            score = "" if row["score"] is None else f"{row['score']:.5g}"
            cells = [row["trial"], *row["arguments"].values(), score, row["epochs"], f"{row['seconds']:.1f}"]
            reason = [textwrap.shorten(row["failed"], 90, placeholder=" ...")] * failed
            table.append([*map(_said, cells), *reason])
        return table

    def __str__(self) -> str:
        table = self._table()
        widths = [max(map(len, column)) for column in zip(*table)]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in table)

    def __repr__(self) -> str:
        return f"<Results of {len(self.by_trial)} trials>"

    def markdown(self) -> str:
        """The table in Markdown."""
        head, *rows = [[cell.replace("|", "\\|") for cell in row] for row in self._table()]
        return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


# -- trials, and the workers that train them --------------------------------------------------------------------------
class Trial(Callback):
    """A model in training, and what its epochs measured."""

    model: Any = None

    def __init__(self, search: Search, number: int) -> None:
        self.search, self.number, self.arguments = search, number, search.arguments(number)
        self.seed, first = (int(n) for n in np.random.SeedSequence([search.seed, number, 1]).generate_state(2))
        self.generator = Generator(device(), first)
        self.history, self.seconds = History(), 0.0
        self.scores: list[float] = []

    def start(self) -> None:
        """Build the model."""
        name, search = self.search.name, self.search
        with drawing_from(self.generator):
            built = search.build(**self.arguments)
        if not isinstance(built, tuple) or [isinstance(*b) for b in zip(built, (Layer, dict))] != [True, True]:
            raise ConfigurationError(f"{name} has to return a model and a dict of fit's arguments, not {built!r}")
        self.model, options = built
        if missing := {"loss", "optimizer"} - options.keys():
            raise ConfigurationError(f"{name} has to return fit's {' and '.join(sorted(missing))} beside the model")
        if taken := {"validation", *["epochs"] * (search.kind == "halving")} & options.keys():
            raise ConfigurationError(f"{name} returns {taken.pop()}=, which the search gives to fit itself")
        self.options = {**options, "optimizer": find_optimizer(options["optimizer"])}

    def fit(self, epochs: int) -> None:
        """Train on, and note the score."""
        own = {"epochs": epochs, "seed": self.seed, "progress": False, **self.options}
        own["callbacks"] = [self, *as_callbacks(own.get("callbacks"))]
        with drawing_from(self.generator):
            found = fit(self.model, *self.search.train, validation=self.search.validation, **own)
        measured, name = found.history, f"val_{self.search.metric}"
        if not measured:  # which TerminateOnNaN ends without an error
            raise Diverged("no epoch came to its end")
        if name not in measured:
            there = ", ".join(key[4:] for key in measured if key.startswith("val_"))
            raise ConfigurationError(
                f"fit measured no {self.search.metric!r}, only {there}: let {self.search.name} return metrics="
            )
        stops = [one.best_epoch for one in own["callbacks"] if isinstance(one, EarlyStopping) and one.restore_best]
        ended = next((epoch for epoch in reversed(stops) if epoch >= 0), -1)  # the epoch whose weights fit ended with
        score = measured[name][ended]
        if not math.isfinite(score):
            raise Diverged(f"{name} was {score}")
        self.scores.append(score)

    def on_epoch_end(self, model: Any, epoch: int, logs: dict[str, float]) -> None:
        self.history.add(logs)

    def row(self, failed: str) -> dict[str, Any]:
        """What is kept of it."""
        history, score = self.history.history, None if failed else self.scores[-1]
        return {
            "trial": self.number, "arguments": self.arguments, "score": score, "scores": [*self.scores],
            "epochs": len(history.get("loss", ())), "seconds": self.seconds, "seed": self.seed, "failed": failed,
            "history": {name: [*values] for name, values in history.items()},
        }  # fmt: skip


Trained = tuple[dict[str, Any], dict[str, np.ndarray]]  # a trial's row, and its weights


class Worker:
    """Trains trials in this process, and holds those that may go on."""

    def __init__(self, search: Search) -> None:
        self.search = search
        self.held: dict[int, Trial] = {}
        self.seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def train_one(self, number: int, rung: int, alive: Collection[int]) -> Trained:
        """Train a trial to the end of a rung, from wherever it is; all but those alive are let go."""
        began, failed = time.perf_counter(), ""
        self.held = {n: trial for n, trial in self.held.items() if n in alive}
        trial = self.held.pop(number, None) or Trial(self.search, number)
        try:
            if trial.model is None:
                trial.start()
                self._check_new(trial.model)
                self._check_new(trial.options["optimizer"])
            for epochs in self.search.plan[len(trial.scores) : rung + 1]:
                trial.fit(epochs)
        except (Diverged, OutOfDeviceMemory) as error:
            failed = f"{type(error).__name__}: {error}"
        trial.seconds += time.perf_counter() - began
        if not failed and rung + 1 < len(self.search.plan):
            self.held[number] = trial
        return trial.row(failed), {} if failed else trial.model.state_dict()

    def _check_new(self, thing: Any) -> None:
        if thing in self.seen:
            kind = type(thing).__name__
            raise ConfigurationError(f"{self.search.name} returned the {kind} of an earlier trial; make one each time")
        self.seen.add(thing)

    def train(self, numbers: Sequence[int], rung: int, alive: Collection[int]) -> Iterator[Trained]:
        """Trials in the order in which they finish."""
        for number in numbers:
            yield self.train_one(number, rung, alive)

    def close(self) -> None:
        """Let go of all trials."""
        self.held.clear()


_here: Worker  # in a worker process


def _begin(search: Search) -> int:
    """The first task of a worker process; its id comes back."""
    global _here
    os.environ["POCL_AFFINITY"] = "0"  # PoCL pins from core 0 on: pinned workers would share it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent as well, which ends its workers
    with use(search.device):
        _here = Worker(search)
    return os.getpid()


def _begin_rank(search: Search) -> None:
    from .distributed import device_of  # which most searches do without

    # asking MPI takes all ranks, and the first one waits for results
    names = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK")
    one = device_of(int(next((os.environ[name] for name in names if name in os.environ), 0)))
    search.device = f"{one.platform_index}:{one.device_index}"
    _begin(search)


def _train_here(number: int, rung: int, alive: Collection[int]) -> Trained:
    with use(_here.search.device):
        return _here.train_one(number, rung, alive)


class Processes:
    """Workers in processes of their own, each with the trials that it has begun."""

    def __init__(self, search: Search) -> None:
        self._check_importable(search)
        import multiprocessing

        spawn = multiprocessing.get_context("spawn")  # OpenCL does not survive a fork
        self.workers = [futures.ProcessPoolExecutor(1, spawn) for _ in range(int(search.processes))]
        self.holder: dict[int, Any] = {}
        self.ids: list[int] = []
        with self._alive():
            self.ids = [begun.result() for begun in [worker.submit(_begin, search) for worker in self.workers]]

    @staticmethod
    def _check_importable(search: Search) -> None:
        try:
            pickle.dumps((search.build, search.space))
            importable = search.build.__module__ != "__main__" or hasattr(sys.modules["__main__"], "__file__")
        except (pickle.PicklingError, AttributeError, TypeError):
            importable = False
        if not importable:
            raise ConfigurationError(
                f"processes={search.processes!r} needs a build that other processes can import, and {search.name} is not: put "
                "it, and any function in the space, at the top of a module (no lambda, no notebook)"
            )

    @contextlib.contextmanager
    def _alive(self) -> Iterator[None]:
        try:
            yield
        except futures.BrokenExecutor as error:
            self.close()
            raise ClnnError(
                "a worker process has ended; what it said stands above. A script that searches with processes= has to do so "
                'under `if __name__ == "__main__":`, because workers import it'
            ) from error

    def train(self, numbers: Sequence[int], rung: int, alive: Collection[int]) -> Iterator[Trained]:
        """Trials as they finish; one that has begun goes to the worker that holds it, others to the first idle one."""
        waiting, busy = list(numbers), dict[Any, Any]()
        while waiting or busy:
            for worker in set(self.workers) - set(busy.values()):
                number = next((n for n in waiting if self.holder.get(n, worker) is worker), None)
                if number is not None:
                    waiting.remove(number)
                    self.holder[number] = worker
                    with self._alive():
                        busy[worker.submit(_train_here, number, rung, alive)] = worker
            for future in futures.wait(busy, return_when=futures.FIRST_COMPLETED).done:
                del busy[future]
                with self._alive():
                    trained = future.result()
                yield trained

    def close(self) -> None:
        """End the worker processes, without waiting for what they do."""
        import multiprocessing

        for process in multiprocessing.active_children():
            if process.pid in self.ids:  # it may be in the middle of a trial that nobody waits for any more
                process.terminate()
        for worker in self.workers:
            worker.shutdown()


class Ranks(Processes):
    """Workers that MPI has started, by mpi4py.futures. A trial that survives a rung may go to another, which trains it anew up to
    where it was."""

    def __init__(self, search: Search) -> None:
        self._check_importable(search)
        try:
            from mpi4py import MPI
            from mpi4py.futures import MPIPoolExecutor
        except (ImportError, RuntimeError) as error:
            raise ConfigurationError(
                f'processes="mpi" needs mpi4py ({error}): pip install mpi4py mpich (impi-rt on Windows)'
            ) from None
        if MPI.COMM_WORLD.size == 1 or "-m" not in sys.orig_argv or "mpi4py.futures" not in sys.orig_argv:
            raise ConfigurationError(
                'processes="mpi" takes the ranks that MPI has started: mpirun -n 4 python -m mpi4py.futures script.py'
            )
        self.pool = MPIPoolExecutor(initializer=_begin_rank, initargs=(search,))

    def train(self, numbers: Sequence[int], rung: int, alive: Collection[int]) -> Iterator[Trained]:
        """Trials as they finish, each by whichever worker is idle."""
        with self._alive():
            begun = [self.pool.submit(_train_here, number, rung, alive) for number in numbers]
            for future in futures.as_completed(begun):
                yield future.result()

    def close(self) -> None:
        """No further trial begins."""
        self.pool.shutdown(cancel_futures=True)
