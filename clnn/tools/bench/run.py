"""The parent: starts a worker for each side, checks what it computes, and measures in interleaved rounds."""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...errors import ClnnError, ConfigurationError
from ...runtime.devices.selftest import cores
from . import nets
from . import workloads as w
from .peers import LIBRARIES, PEERS
from .sequences import TASKS, Task

WORKLOADS = (
    *("gemm", "conv", "nielsen", "mlp", "mlp1", "cnn", "lenet", "resnet", "mobilenet"),
    *("gpt", "generate", "attention", "lstm", "gru", "embedding"),
    *("predict-1", "inference", "deep", "optimizer", "short", "first-step", "memory"),
)
DEFAULT = ("gemm", "nielsen", "mlp", "inference", "optimizer", "memory")
ROUND = 0.3  # seconds of training that a round takes about
PAUSE = 0.05  # seconds after each turn, in which the other libraries' spinning threads go to sleep
PATIENCE = 600  # seconds that one answer may take
PROCESSES = 4  # at least, from which a side's best is taken: where in memory a process lies can double its times
LONG = 2.0  # seconds of a turn from which a side gets three rounds at most
PACKAGE = Path(__file__).resolve().parents[2]
CACHES = (
    "POCL_CACHE_DIR",
    "CLNN_CACHE_DIR",
    "XDG_CACHE_HOME",
    "HOME",
    "CUDA_CACHE_PATH",
)  # what names folders of caches
FIRST_STEPS = ("nielsen", "mlp", "cnn")  # whose compiling is profiled
# Peers get a package `clnn` without its __init__, so that they load no driver and import nothing of clnn's.
BOOT = """import time; began = time.time()
import json, sys, types
name, kind, options, folder = sys.argv[1:]
if name != "clnn":
    sys.modules["clnn"] = package = types.ModuleType("clnn")
    package.__path__ = [folder]
from clnn.tools.bench.worker import main
main(name, kind, json.loads(options), began)"""


class Side(NamedTuple):
    """One library with one setting."""

    name: str  # as in the table
    library: str = ""
    threads: int = 0
    form: str = ""
    variables: tuple[tuple[str, str], ...] = ()

    @property
    def setting(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}" if self.threads else ""
        return ", ".join(part for part in (threads, self.form) if part)

    def environment(self) -> dict[str, str]:
        n = str(self.threads)
        if not self.threads:
            return dict(self.variables)
        found = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"), n)
        if self.library == "jax":  # XLA sizes its pool by NPROC
            found |= {"NPROC": n, "JAX_PLATFORMS": "cpu"}
            if self.threads == 1:
                found["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
        if self.library == "tinygrad":
            found |= {"DEV": "CL", "POCL_MAX_PTHREAD_COUNT": n, "POCL_AFFINITY": str(int(self.form == "pinned"))}
        return found


CLNN = Side("clnn", "clnn")
UNFUSED = Side("clnn, not fused", "clnn", variables=(("CLNN_FUSE", "0"),))
AT_ONCE = Side("clnn", "clnn", variables=(("CLNN_FUSE", "always"),))  # as in a long training, or a later process
COMPILED = Side("clnn, compiled", "clnn", form="compiled")
HALVES = Side("clnn, halves", "clnn", form="halves")  # compiled, with weights="float16": errors and bytes are others
ONE_BY_ONE = Side("clnn", "clnn", form="a fit an epoch")
FUSED = ("nielsen", "lenet")  # whose launches are short enough for that
CLBLAST = Side("CLBlast", "clnn", variables=(("CLNN_GEMM", "clblast"), ("CLNN_FUSE", "0")))


class Failed(Exception):
    """A worker that cannot go on, and why."""


class Worker:
    """A side's process; it sleeps unless asked."""

    def __init__(self, side: Side, kind: str, variables: dict[str, str] | None = None, **options: Any) -> None:
        self.side = side
        environment = {**os.environ, **side.environment(), **(variables or {})}
        path = [str(PACKAGE.parent), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(path)
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # installed libraries have theirs
        options |= {"threads": side.threads, "form": side.form}
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        self.process = subprocess.Popen(
            [sys.executable, "-c", BOOT, side.library, kind, json.dumps(options), str(PACKAGE)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, encoding="utf-8", env=environment,
        )  # fmt: skip

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request (none: only wait), and wait for its answer."""
        assert self.process.stdin and self.process.stdout
        guard = threading.Timer(PATIENCE, self.process.kill)
        guard.start()
        try:
            if request:
                print(json.dumps(request), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except OSError:
            line = ""
        finally:
            guard.cancel()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            said = self.errors.read().decode(errors="replace").strip().splitlines()
            raise Failed(f"its process ended with code {self.process.returncode}" + (f": {said[-1]}" if said else ""))
        answer = json.loads(line)
        if "failed" in answer:
            raise Failed(answer["failed"])
        return answer

    def close(self) -> None:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            assert self.process.stdin
            self.process.stdin.close()
            self.process.wait(2)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.errors):
            with contextlib.suppress(OSError):  # a request that it never read
                pipe.close()  # type: ignore[union-attr]


class Turn(NamedTuple):
    """What a worker does in each round, and how many steps or calls each unit of its answer stands for."""

    worker: Worker
    request: dict[str, Any]
    per_count: int = 1

    def take(self) -> float:
        """Seconds a step or call."""
        answer = self.worker.ask(**self.request)
        time.sleep(PAUSE)
        return answer["seconds"] / (answer["count"] * self.per_count)


class Bench:
    """One run: its workers, its rows, and the device's peaks, measured in every round."""

    def __init__(self, against: Sequence[str] = (), rounds: int = 7, quick: bool = False, say: Any = print) -> None:
        for name in against:
            if name in LIBRARIES and name not in PEERS:
                raise ConfigurationError(
                    f"what measures {name} is no part of the installed package: run `python -m clnn bench --against {name}` "
                    "in a clone of clnn's repository (clnn/tools/bench/libraries/ is there)"
                )
            if name not in PEERS:
                raise ConfigurationError(f"there is no peer {name!r}; the known ones are numpy, {', '.join(LIBRARIES)}")
        if rounds < 1:
            raise ConfigurationError(f"rounds should be 1 or more, {rounds} was provided instead")
        self.rounds, self.quick, self.say = rounds, quick, say
        self.rows: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.versions: dict[str, str] = {}
        for name in against:
            package = PEERS[name].package
            try:
                self.versions[name] = metadata.version(package)
            except metadata.PackageNotFoundError:
                self.notes.append(f"{name} is not installed: pip install {package}")
        self.workers: list[Worker] = []
        self.peaks: list[dict[str, float]] = []
        self.device: dict[str, Any] = {}

    # -- workers ------------------------------------------------------------------------------------------------------
    def __enter__(self) -> Bench:
        try:
            self._peaks = self.start(CLNN, "device")
            self.device = self._peaks.ask()
        except Failed as error:
            self.__exit__()
            raise ClnnError(f"the device cannot be measured: {error}") from None
        return self

    def __exit__(self, *_: Any) -> None:
        for worker in self.workers:
            worker.close()
        self.workers.clear()

    def start(self, side: Side, kind: str, variables: dict[str, str] | None = None, **options: Any) -> Worker:
        worker = Worker(side, kind, variables, **options)
        self.workers.append(worker)
        return worker

    def stop(self, worker: Worker) -> None:
        worker.close()
        if worker in self.workers:
            self.workers.remove(worker)

    def settings(self, peer: str, forms: Sequence[str] = ()) -> list[Side]:
        """A peer with each number of threads, powers of two, and each of these forms; without any, its first, unnamed."""
        counts = sorted({*(1 << i for i in range(cores().bit_length())), cores()})
        return [Side(peer, peer, threads, form) for threads in counts for form in forms or ("",)]

    def with_layouts(self) -> dict[str, tuple[str, ...]]:
        """The peers that train convolutional networks, and the layouts that each has for them."""
        return {peer: PEERS[peer].layouts for peer in self.versions if PEERS[peer].layouts}

    def repeated(self, sides: Sequence[Side]) -> list[Side]:
        """Each side as often as it takes for PROCESSES of them; once where it has to be quick."""
        return [*sides] * (1 if self.quick else -(-PROCESSES // len(sides)))

    # -- rounds -------------------------------------------------------------------------------------------------------
    def measure(self, turns: dict[str, Turn], rounds: int | None = None) -> dict[str, list[float]]:
        """Seconds a step by side and round; one side works while the others sleep. A side that fails leaves."""
        found: dict[str, list[float]] = {name: [] for name in turns}
        slow: set[str] = set()
        self.peaks.clear()
        for number in range(self.rounds if rounds is None else rounds):
            self.peaks.append(self._peaks.ask(measure=1))
            for name, turn in turns.items():
                if name not in found or (name in slow and number >= 3):
                    continue
                began = time.perf_counter()
                try:
                    found[name].append(turn.take())
                except Failed as error:
                    self.note(f"{name}: {error}")
                    del found[name]
                if time.perf_counter() - began > LONG:
                    slow.add(name)
        return found

    def best(self, turns: list[Turn]) -> Turn:
        """The fastest of several settings of one side, by the best of three interleaved short rounds."""
        times = [[turn.take()] for turn in turns]
        near = [i for i, (first,) in enumerate(times) if first < 2 * min(t[0] for t in times)]
        for _ in range(2 if len(near) > 1 else 0):
            for i in near:
                times[i].append(turns[i].take())
        return turns[min(range(len(turns)), key=lambda i: min(times[i]))]

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.say(f"  {text}")

    def add(self, workload: str, task: str, turns: dict[str, Turn], notes: dict[str, str], **facts: Any) -> None:
        """Measure, and keep a row for each side."""
        times = self.measure(turns)
        gflops = statistics.median(p["gflops"] for p in self.peaks)
        gbytes = statistics.median(p["gbytes"] for p in self.peaks)
        for name, seconds in times.items():
            setting = turns[name].worker.side.setting
            row = self.row(workload, task, name, seconds, times.get("clnn"), setting=setting, note=notes.get(name, ""))
            row |= {"peak_gflops": gflops, "copy_gbytes": gbytes, **facts}
            if facts.get("flops"):
                row["gflops"] = facts["flops"] / row["median"] / 1e9
                row["share_of_peak"] = row["gflops"] / gflops
            if facts.get("bytes"):
                row["share_of_copy"] = facts["bytes"] / (1 + (name == HALVES.name)) / row["median"] / 1e9 / gbytes

    def row(
        self, workload: str, task: str, side: str, seconds: list[float], base: list[float] | None, **facts: Any
    ) -> dict[str, Any]:
        """Add a row: a side's seconds, and clnn's (`base`) over them."""
        row: dict[str, Any] = {"workload": workload, "task": task, "side": side, "setting": "", "note": ""} | facts
        row |= {"seconds": seconds, "minimum": min(seconds), "median": statistics.median(seconds)}
        if base and side != "clnn":
            row["ratio_minimum"] = min(base) / row["minimum"]
            row["ratio_median"] = statistics.median(base) / row["median"]
            row["ratio_rounds"] = statistics.median(b / t for t, b in zip(seconds, base))
        self.rows.append(row)
        self.say(f"  {task}: {side} {row['median'] * 1e6:,.1f} us")
        return row

    def refuse(self, workload: str, task: str, side: str, why: str) -> None:
        """A row without times, and why."""
        self.rows.append({"workload": workload, "task": task, "side": side, "note": why})
        self.say(f"  {workload} {task}: no times for {side}: {why}")


def run(names: Sequence[str], bench: Bench) -> None:
    """Run workloads one after the other."""
    for name in names:
        if name not in WORKLOADS:
            raise ConfigurationError(f"there is no workload {name!r}; the known ones are {', '.join(WORKLOADS)}")
    with bench:
        for name in names:
            bench.say(f"{name} ...")
            if name in nets.ALL:
                training(bench, name, nets.ALL[name])
            elif name == "short":  # fits of 500 steps, one after the other
                training(bench, name, w.NETS["nielsen"]._replace(steps=500), ONE_BY_ONE)
            elif name == "conv":
                found = [nets.NETS[one] for one in (("cnn", "lenet") if bench.quick else nets.NETS)]
                convolutions(bench, nets.convolutions(found))
            elif name == "gemm":
                products(bench, w.QUICK_PRODUCTS if bench.quick or not bench.versions else w.PRODUCTS)
            elif name in TASKS:
                sequences(bench, name, TASKS[name])
            elif name in w.INFERENCE:
                inference(bench, name, w.INFERENCE[name])
            elif name == "optimizer":
                optimizer(bench)
            elif name == "first-step":
                first_step(
                    bench,
                    {one: nets.ALL[one] for one in ("nielsen", "mlp", "cnn", "resnet")[: 2 if bench.quick else 4]},
                )
            else:
                for one in ("mlp", "cnn"):
                    memory(bench, one, nets.ALL[one])


# -- the workloads ----------------------------------------------------------------------------------------------------
def wrong_losses(got: Sequence[float], want: Sequence[float], *others: Sequence[float]) -> str:
    """How an epoch's losses differ from what they have to be in float64, or ""; those of `others` are as good."""
    for epoch, (a, *rest) in enumerate(zip(got, want, *others), 1):
        if not any(abs(a - b) <= w.LOSS_TOLERANCE * abs(b) for b in rest):
            return (
                f"its loss in epoch {epoch} is {a:.6g}, and {rest[0]:.6g} in float64 (tolerance {w.LOSS_TOLERANCE:g})"
            )
    return ""


def references(net: Any) -> tuple[Any, list[list[float]]]:
    """The net whose losses can be foretold, and these: of two epochs, or the first of a convolutional network, as there
    float32's rounding grows: after the 4 steps of ResNet-20's first epoch sides are off by up to 2e-4, after 8 by 2e-2.
    Convolutional networks' are given in float32 too: two inputs of a maximum may be so close that rounding decides, and
    which one learns makes 1.5e-3 in the first epoch of `lenet` (float64 with weights off by 1e-7 finds either loss)."""
    if not isinstance(net, nets.ConvNet):
        return net, [w.reference_losses(net, 2)]
    return net.certain(), [nets.reference_losses(net.certain(), 1, dtype) for dtype in (np.float64, np.float32)]


def training(bench: Bench, name: str, net: w.Net | nets.ConvNet, own: Side = CLNN) -> None:
    """Whole epochs: shuffling, gathering batches, steps, and every step's loss."""
    wanted: dict[Any, tuple[Any, list[list[float]]]] = {}
    turns: dict[str, Turn] = {}
    notes: dict[str, str] = {}
    images = isinstance(net, nets.ConvNet)
    peers = bench.with_layouts() if images else {peer: PEERS[peer].forms for peer in bench.versions}
    groups = [[own], *([[UNFUSED]] if name in FUSED else []), *(bench.settings(*peer) for peer in peers.items())]
    for peer in bench.versions:
        if peer not in peers:
            bench.note(f"{peer} trains no convolutional networks here")
    for group in groups:
        alive: list[Turn] = []
        problem = ""
        mine: Any = net
        difference = ""
        if not images and hasattr(PEERS.get(group[0].library), "as_trained"):
            mine, difference = PEERS[group[0].library].as_trained(net)
        if mine not in wanted:
            wanted[mine] = references(mine)
        certain, want = wanted[mine]
        check = {"check": certain} if certain != mine else {}
        for side in bench.repeated(group):
            worker = bench.start(side, "train", net=mine, **check)
            try:
                losses = worker.ask(epochs=1)["losses"] if check else []
                answers = [worker.ask(epochs=1) for _ in range(2)]
                found = [answer["losses"][0] for answer in answers]
                problem = wrong_losses(losses or found, *want)
                if not problem and not all(map(math.isfinite, found)):
                    problem = f"its losses are {found}"
                if not problem:
                    seconds = answers[1]["seconds"]
                    if seconds < LONG:  # one more: some of that went into compiling
                        seconds = worker.ask(epochs=1)["seconds"]
                    alive.append(Turn(worker, {"epochs": max(1, min(20, math.ceil(ROUND / seconds)))}, net.steps))
            except Failed as error:
                problem = str(error)
            if problem:
                bench.stop(worker)
        if not alive:
            bench.refuse(name, "step", group[0].name, problem)
            continue
        chosen = turns[group[0].name] = bench.best(alive)
        notes[group[0].name] = difference
        for turn in alive:
            if turn is not chosen:
                bench.stop(turn.worker)
    bench.add(name, "step", turns, notes, flops=net.flops, unit="step")
    for turn in turns.values():
        bench.stop(turn.worker)


def products(bench: Bench, shapes: Sequence[w.Product]) -> None:
    """Products of matrices: clnn's with the epilogue of training, the peers' plain."""
    own = CLNN._replace(variables=UNFUSED.variables)
    groups: dict[str, list[Worker]] = {"clnn": [bench.start(side, "products") for side in bench.repeated([own])]}
    for peer in bench.versions:
        if PEERS[peer].products:
            groups[peer] = [bench.start(side, "products") for side in bench.repeated(bench.settings(peer))]
    if bench.versions:
        groups[CLBLAST.name] = [bench.start(CLBLAST, "products")]
    for p in shapes:
        bytes_moved = 4 * (p.m * p.k + p.k * p.n + p.m * p.n)
        calls(bench, "gemm", p.name, groups, list(p), flops=2 * p.work, bytes=bytes_moved, unit="product")
    for worker in [one for group in groups.values() for one in group]:
        bench.stop(worker)


def convolutions(bench: Bench, shapes: Sequence[nets.Convolution]) -> None:
    """Single convolutions and their gradients: without the network's epilogues but forward's bias and ReLU."""
    own = CLNN._replace(variables=UNFUSED.variables)
    groups: dict[str, list[Worker]] = {"clnn": [bench.start(side, "convolutions") for side in bench.repeated([own])]}
    for peer, layouts in bench.with_layouts().items():
        sides = bench.repeated(bench.settings(peer, layouts))
        groups[peer] = [bench.start(side, "convolutions") for side in sides]
    for c in shapes:
        bytes_moved = 4 * sum(math.prod(shape) for shape in (c.shape, c.filters, c.out))
        calls(bench, "conv", c.name, groups, list(c), flops=c.flops, bytes=bytes_moved, unit="convolution")
    for worker in [one for group in groups.values() for one in group]:
        bench.stop(worker)


def calls(
    bench: Bench, workload: str, task: str, groups: dict[str, list[Worker]], values: list[Any], **facts: Any
) -> None:
    """One task of sides that are called: open it everywhere, check it, choose settings, and measure."""
    turns: dict[str, Turn] = {}
    for name, workers in groups.items():
        alive: list[Turn] = []
        problem = ""
        for worker in [one for one in workers if one in bench.workers]:
            try:
                error = worker.ask(open=values)["error"]
                if error <= w.OUTPUT_TOLERANCE * (10 if name == HALVES.name else 1):
                    alive.append(Turn(worker, {"count": worker.ask(count=0)["count"]}))
                else:
                    problem = f"its results are off by {error:.2g} (tolerance {w.OUTPUT_TOLERANCE:g})"
            except Failed as failure:
                problem = str(failure)
                bench.stop(worker)
        if alive:
            turns[name] = bench.best(alive)
        elif problem:
            bench.refuse(workload, task, name, problem)
    bench.add(workload, task, turns, {}, **facts)


def inference(bench: Bench, name: str, perceptrons: Sequence[w.Net]) -> None:
    """Outputs for a NumPy array, as a NumPy array."""
    own = [CLNN, *{"predict-1": [COMPILED], "deep": [HALVES]}.get(name, [])]
    groups = {side.name: [bench.start(side, "inference")] for side in own}
    for peer in bench.versions:
        if PEERS[peer].nets:
            groups[peer] = [bench.start(side, "inference") for side in bench.settings(peer)]
    for net in perceptrons:
        size = sum(k * n for k, n in net.layers)
        facts = {"flops": 2 * net.batch * size, "bytes": 4 * size, "unit": "call"}
        there = {side: group for side, group in groups.items() if side != HALVES.name or net.batch == 1}
        calls(bench, name, f"batch {net.batch}", there, list(net), **facts)
    for worker in [one for group in groups.values() for one in group]:
        bench.stop(worker)


def sequences(bench: Bench, name: str, tasks: Sequence[Task]) -> None:
    """Steps and gradients of sequences.py, whose losses or results are compared with float64's first."""
    own = {"generate": [CLNN, UNFUSED], "gpt": [AT_ONCE, UNFUSED]}.get(name, [CLNN])
    groups = {one.name: [bench.start(side, "sequences") for side in bench.repeated([one])] for one in own}
    for peer in bench.versions:
        if hasattr(PEERS[peer], "sequence") and name not in getattr(PEERS[peer], "without", ()):
            groups[peer] = [bench.start(side, "sequences") for side in bench.repeated(bench.settings(peer))]
        else:
            bench.note(f"{peer} has no part in {name}")
    for task in tasks:
        calls(
            bench,
            name,
            task.name,
            groups,
            list(task),
            flops=task.flops,
            bytes=task.bytes,
            unit="text" if name == "generate" else "step",
        )
    for worker in [one for group in groups.values() for one in group]:
        bench.stop(worker)


def optimizer(bench: Bench) -> None:
    """Adam's pass over parameters, against copying: it reads four arrays and writes three."""
    groups = {"clnn": [bench.start(CLNN, "optimizer")]}
    for n in w.PARAMETERS:
        calls(bench, "optimizer", f"Adam, {n:,} parameters", groups, [n], bytes=28 * n, flops=0, unit="pass")
    bench.stop(groups["clnn"][0])


def first_step(bench: Bench, trained: dict[str, Any]) -> None:
    """Fresh processes, from before the imports to the end of the first training step, with cold and warm caches."""
    for name, net in trained.items():
        net, wanted = references(net._replace(steps=1))
        images = isinstance(net, nets.ConvNet)
        peers = bench.with_layouts() if images else {peer: PEERS[peer].forms for peer in bench.versions}
        times: dict[tuple[str, str], list[float]] = {}
        whole: dict[tuple[str, str], list[float]] = {}
        sides = [CLNN, *(bench.settings(*peer)[-1] for peer in peers.items())]
        for _ in range(min(3, bench.rounds)):
            for side in sides:
                for caches, (seconds, total) in _first_step(bench, side, name, net, wanted):
                    times.setdefault((caches, side.name), []).append(seconds)
                    whole.setdefault((caches, side.name), []).append(total)
        for (caches, side_name), found in times.items():
            facts = {"unit": "process", "from_process_start": whole[caches, side_name]}
            bench.row("first-step", f"{name}, {caches} caches", side_name, found, times.get((caches, "clnn")), **facts)


def _first_step(
    bench: Bench, side: Side, name: str, net: Any, wanted: list[list[float]]
) -> Iterator[tuple[str, tuple[float, float]]]:
    own = not isinstance(net, nets.ConvNet) and hasattr(PEERS.get(side.library), "as_trained")
    mine = PEERS[side.library].as_trained(net)[0] if own else net
    wanted = [w.reference_losses(mine, 1)] if mine != net else wanted
    with tempfile.TemporaryDirectory() as folder:
        for caches in ("cold", "warm"):
            started = time.time()
            worker = bench.start(side, "first-step", dict.fromkeys(CACHES, folder), net=mine)
            try:
                answer = worker.ask()
                if problem := wrong_losses(answer["losses"], *wanted):
                    raise Failed(problem)
                yield caches, (answer["seconds"], answer["ended"] - started)
            except Failed as error:
                bench.refuse("first-step", f"{name}, {caches} caches", side.name, str(error))
                return
            finally:
                bench.stop(worker)


def memory(bench: Bench, name: str, net: w.Net | nets.ConvNet) -> None:
    """Peak bytes of training, the data set's with them, and what backpropagation needs. PyTorch's are those of its
    allocator, in the better of its layouts."""
    sides = {"clnn": [CLNN]}
    if isinstance(net, nets.ConvNet) and "torch" in bench.versions:
        sides["torch"] = bench.settings("torch", PEERS["torch"].layouts)[-len(PEERS["torch"].layouts) :]
    found = nets.needs(net)
    for name_of_side, settings in sides.items():
        peaks: dict[str, int] = {}
        for side in settings:
            worker = bench.start(side, "memory", net=net)
            try:
                peaks[side.setting] = worker.ask()["peak"]
            except Failed as error:
                bench.refuse("memory", name, name_of_side, str(error))
            bench.stop(worker)
        if peaks:
            setting = min(peaks, key=lambda one: peaks[one])
            facts = {"setting": setting, "note": "", "unit": "bytes", "need": sum(found.values()), **found}
            bench.rows.append(
                {"workload": "memory", "task": name, "side": name_of_side, "peak": peaks[setting], **facts}
            )


def profile(name: str) -> dict[str, Any]:
    """The launches of training steps, predictions or products: each with its seconds at best, and all as a table; of "first-step"
    the table alone, of what compiling takes, by program, in one process that finds nothing kept."""
    if name == "first-step":
        with tempfile.TemporaryDirectory() as folder:
            environ = {**os.environ, **dict.fromkeys(CACHES, folder), "CLNN_COMPILERS": "0"}
            warm = [sys.executable, "-m", "clnn", "warm", *FIRST_STEPS]
            done = subprocess.run(warm, env=environ, capture_output=True, text=True, encoding="utf-8")
        if done.returncode:
            raise ClnnError(f"the profile of first steps failed: {done.stderr.strip()}")
        return {"table": done.stdout}
    asked = {one: [("", "steps", net)] for one, net in nets.ALL.items()}
    asked |= {one: [(f"batch {net.batch}\n", "answers", net) for net in some] for one, some in w.INFERENCE.items()}
    asked["gemm"] = [(f"{p.name}\n", "product", p) for p in w.QUICK_PRODUCTS]
    if name not in asked:
        raise ConfigurationError(f"--profile takes one of first-step, {', '.join(asked)}, not {name!r}")
    found: dict[str, Any] = {"launches": [], "table": ""}
    for title, kind, what in asked[name]:
        with contextlib.closing(Worker(UNFUSED, "profile", of=kind, what=what)) as worker:
            try:
                answer = worker.ask()
            except Failed as error:
                raise ClnnError(f"the profile of {name} failed: {error}") from None
        found["launches"] += answer["launches"]
        found["table"] += f"{title}{answer['table']}\n"
    return found
