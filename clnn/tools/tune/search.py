"""`clnn tune`: measures tiles, CLBlast's parameters, the two engines and plans of convolutions on this device, and keeps what
is fastest.

Candidates run in a process of their own, because a compiler can end or hang the process that calls it. Each is compared
with float64 NumPy before it is timed, in rounds that alternate with the best one so far: a machine's speed drifts, and a
candidate has to win by minimum and by median. Results are stored class by class, so a stopped search goes on from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import queue
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...errors import ClnnError, ConfigurationError
from ...files import as_path
from ...gemm import Product, Scale, Shape, clblast, clblast_problem, gemm, tile, tuning
from ...gemm.tuning import Choice
from ...ops.image import conv_plan
from ...ops.image.conv_plan import Plan
from ...runtime.device import Device
from ...runtime.devices.choice import device, find_device
from ...runtime.program import read_source
from ...runtime.recorder import Recorder
from ...runtime.recording import Recording
from ..bench.nets import Convolution
from . import conv

Sizes = tuple[str, int, int, int]  # form, m, n, k
# files of kernels/
CONVOLUTION = (
    "conv_rows", "conv_columns", "conv_scatter", "conv_weights", "conv_lanes", "conv_local", "winograd", "winograd_gpu",
)  # fmt: skip
GAIN = 1.03  # what a candidate must win by
SECONDS = 0.003  # a timing takes about that long
PATIENCE = 90  # seconds for one candidate, compiling included; CLBlast gets twice that


class Level(NamedTuple):
    """How hard to search."""

    shapes: int  # of each class, at most
    tiles: int  # candidates of a class
    parameters: int  # candidates for CLBlast
    rounds: int
    seconds: float  # for one class; CLBlast's parameters take ten times that
    plans: int  # candidates of a convolution
    dtypes: tuple[str, ...] = ("float32",)


LEVELS = {
    "quick": Level(2, 8, 4, 5, 12, 6),
    "default": Level(3, 20, 12, 9, 40, 10),
    "thorough": Level(4, 400, 60, 15, 400, conv_plan.PLANS, ("float32", "float64")),
}
# (batch, out, in) of layers: each is a product forward (nn), one for the weights (tn) and one for the input (nt)
LAYERS = (
    (128, 512, 784), (128, 256, 512), (128, 10, 256), (10, 30, 784), (10, 10, 30), (10, 100, 64), (10, 10, 100),
    (256, 128, 9216), (64, 100, 784), (32, 30, 30), (128, 24, 784), (128, 10, 4096), (128, 1024, 1024),
)  # fmt: skip
SQUARES = (512, 1024, 2048)


# -- what is measured -------------------------------------------------------------------------------------------------
def shapes(device: Device, dtype: str, level: Level) -> dict[str, list[Sizes]]:
    """The products to time, by class; a class's first ones matter most."""
    every: list[Sizes] = []
    for batch, out, into in LAYERS:
        every += [("nn", batch, out, into), ("tn", into, out, batch), ("nt", batch, into, out)]
    for size in SQUARES if device.kind == "gpu" or level.shapes > 3 else SQUARES[:2]:
        every += [(form, size, size, size) for form in ("nn", "tn", "nt", "tt")]
    found: dict[str, list[Sizes]] = {}
    for shape in every:
        found.setdefault(class_of(device, dtype, shape), []).append(shape)
    if level.shapes == 2:
        found = {name: some for name, some in found.items() if some[0][0] != "tt"}
    return {name: some[: level.shapes] for name, some in found.items()}


def class_of(device: Device, dtype: str, sizes: Sizes) -> str:
    return tuning.shape_class(device, Shape.of(*sizes, np.dtype(dtype)))


def rule(device: Device, dtype: str, sizes: Sizes) -> tuple[int, int, int, int]:
    """The tile that is used where nothing was measured."""
    mr, nv, vw, kc, *_ = tile.choose(device, Shape.of(*sizes, np.dtype(dtype)))
    return mr, nv, vw, kc


def candidates(
    device: Device, dtype: str, some: list[Sizes], best: list[tuple[int, ...]], level: Level
) -> Iterator[tuple[int, int, int, int]]:
    """Tiles to try, most promising first. The last of `best` steers them; the last ones are in random order."""
    start, tried, most = best[-1], set(best), max(n for _, _, n, _ in some)

    def fresh(*one: int) -> Iterator[tuple[int, int, int, int]]:
        idle = one[1] > 1 and (one[1] - 1) * one[2] >= most  # vectors that would hang over C altogether
        if not idle and one not in tried and not tile.problem(device, np.dtype(dtype), one):
            tried.add(one)
            yield one  # type: ignore[misc]

    # many registers in use, and few loads for each multiply-add
    blocks = [(mr, nv) for mr in (4, 5, 6, 8, 10, 12, 14) for nv in (1, 2, 3, 4)]
    blocks.sort(key=lambda one: (one[0] + one[1]) / (one[0] * one[1]) - 0.01 * one[0] * one[1])
    blocks = [one for one in blocks if not tile.problem(device, np.dtype(dtype), (*one, start[2], 0))]
    depths = (0, 256, 128, 64)
    for kc in depths:
        yield from fresh(*best[-1][:3], kc)
    for mr, nv in blocks[: level.tiles // 2]:
        yield from fresh(mr, nv, *best[-1][2:])
    for kc in depths:
        yield from fresh(*best[-1][:3], kc)
    for mr, nv in blocks[:4]:
        yield from fresh(mr, nv, start[2] // 2, best[-1][3])
    rest = [(mr, nv, vw, kc) for mr, nv in blocks for vw in (start[2], start[2] // 2) for kc in depths]
    random.Random(0).shuffle(rest)
    for one in rest:
        yield from fresh(*one)


def parameters(device: Device, dtype: str) -> Iterator[dict[str, dict[str, int]]]:
    """Parameters of CLBlast to try: known good ones, then random valid ones."""
    routine = {"XGEMM_MIN_INDIRECT_SIZE": 1}
    plain = {"GEMMK": 0, "KREG": 1, "KWG": 32, "KWI": 2, "SA": 0, "SB": 0, "STRM": 0, "STRN": 0}
    good = (
        {"MDIMA": 8, "MDIMC": 8, "MWG": 128, "NDIMB": 8, "NDIMC": 8, "NWG": 64, "VWM": 8, "VWN": 8},
        {"MDIMA": 1, "MDIMC": 1, "MWG": 32, "NDIMB": 1, "NDIMC": 1, "NWG": 8, "VWM": 8, "VWN": 1},
        {"MDIMA": 16, "MDIMC": 16, "MWG": 64, "NDIMB": 8, "NDIMC": 8, "NWG": 64, "VWM": 1, "VWN": 1},
        {"MDIMA": 16, "MDIMC": 16, "MWG": 128, "NDIMB": 8, "NDIMC": 8, "NWG": 64, "VWM": 2, "VWN": 2},
        {"MDIMA": 32, "MDIMC": 32, "MWG": 32, "NDIMB": 4, "NDIMC": 4, "NWG": 32, "VWM": 1, "VWN": 1},
    )
    every = [plain | one for one in good] if device.kind == "cpu" else []
    generator = random.Random(0)
    names = {name: tuple(values) for name, values in clblast.CLBLAST["Xgemm"].items()}
    for _ in range(1_000_000):
        if every:
            one = every.pop(0)
        else:
            one = {name: generator.choice(values) for name, values in names.items()}
            elements = one["MWG"] * one["NWG"] / (one["MDIMC"] * one["NDIMC"])  # of C, for one work-item
            threads = one["MDIMC"] * one["NDIMC"]
            if device.kind == "cpu" and (one["SA"] or one["SB"]) or device.kind != "cpu" and threads < 32:
                continue
            if not 8 <= elements <= 512:  # all of them unrolled: more compiles for minutes
                continue
        if not clblast.kernel_problem(device, np.dtype(dtype), "Xgemm", one):
            yield {"Xgemm": one, "GemmRoutine": routine} if device.kind == "cpu" else {"Xgemm": one}


# -- the search -------------------------------------------------------------------------------------------------------
class Search:
    """What is to be done for one device, and what was found so far."""

    def __init__(
        self,
        device: Device,
        level: str = "default",
        minutes: float | None = None,
        engine: str = "all",
        *,
        convolutions: Sequence[Convolution] | None = None,
        path: Path | None = None,
        shipped: bool = True,
        worker: Worker | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        if minutes is not None and not minutes > 0:
            raise ConfigurationError(f"--minutes {minutes:g} should be more than 0")
        self.device, self.name, self.level, self.engine = device, level, LEVELS[level], engine
        self.path, self.say = path or tuning.user_file(), say
        self.worker = worker or Worker(device)
        self.deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
        self.known = tuning.load(device, shipped)  # what was in use before
        empty: dict[str, Any] = {part: {} for part in ("classes", "clblast", "convolutions", "done", "tried")}
        self.found = empty | tuning.read(self.path, device.identity)
        for name in [name for name, entry in self.found["classes"].items() if not isinstance(entry, dict)]:
            del self.found["classes"][name]  # what load() warned of
        for dtype in [*self.found["clblast"]]:
            if clblast.parameters_problem(device, dtype, self.found["clblast"][dtype]):
                del self.found["clblast"][dtype]
        for part, files in (("kernel", ("gemm",)), ("convolution kernel", CONVOLUTION)):
            if self.found.get(part) != _digest(*files):  # of another kernel: what was found is where to start
                done = self.found["done"].items()
                left = {step: name for step, name in done if step.startswith("convolution ") != (files is CONVOLUTION)}
                self.found.update({part: _digest(*files), "done": left})
        self.classes = {
            name: some for dtype in self._dtypes() for name, some in shapes(device, dtype, self.level).items()
        }
        self.convolutions: dict[str, tuple[Convolution, str]] = {}
        if engine in ("conv", "all") and shipped:  # the table that ships has none
            every = conv.of_networks(level == "quick") if convolutions is None else convolutions
            self.convolutions = conv.named(device, every, self._dtypes())

    def _dtypes(self) -> list[str]:
        return [dtype for dtype in self.level.dtypes if dtype == "float32" or self.device.has_fp64]

    def steps(self) -> list[str]:
        """Everything there is to do at this level, in order: tiles of a class, plan of a convolution, parameters of CLBlast,
        engine of a class."""
        found: list[str] = []
        if self.engine in ("tile", "all") and self.device.long_loops:
            found += [f"tile {name}" for name in self.classes]
        found += [f"convolution {name}" for name in self.convolutions]
        if self.engine in ("clblast", "all") and clblast.available():
            found += [f"clblast {dtype}" for dtype in self._dtypes()] + [f"engine {name}" for name in self.classes]
        return found

    def run(self) -> bool:
        """Do what is not done yet; whether all of it is."""
        every, done, order = self.steps(), self.found["done"], list(LEVELS)
        left = [one for one in every if done.get(one) not in order[order.index(self.name) :]]
        if len(left) < len(every):
            self.say(f"{len(every) - len(left)} of {len(every)} steps were done before; --forget starts anew")
        with self.worker:
            for at, step in enumerate(left):
                now = time.monotonic()
                if now >= self.deadline:
                    self.say(f"time is up with {len(left) - at} steps to go; the next run goes on from here")
                    return False
                kind, _, name = step.partition(" ")
                weights = [10 if one.startswith("clblast ") else 1 for one in left[at:]]
                share = (self.deadline - now) * weights[0] / sum(weights)
                until = now + min(share, self.level.seconds * weights[0])
                began = f"[{len(every) - len(left) + at + 1}/{len(every)}] {step}: "
                does = {"tile": self._tile, "convolution": self._plan, "clblast": self._clblast, "engine": self._engine}
                said = does[kind](name, until)
                done[step] = self.name
                tuning.write(self.path, self.device.identity, self.found)
                self.say(began + said)
        tuning.load(self.device)
        return True

    def _tile(self, name: str, until: float) -> str:
        some, dtype = self.classes[name], name.split()[0]
        mine = self.found["classes"].get(name, {}).get("tile")
        if tile.problem(self.device, np.dtype(dtype), mine):
            mine = None
        before = self.known.classes.get(name, Choice()).tile or rule(self.device, dtype, some[0])
        best = [tuple(mine) if mine else before]
        tried, failed = 0, 0
        for one in candidates(self.device, dtype, some, best, self.level):
            if tried >= self.level.tiles or time.monotonic() >= until:
                break
            tried += 1
            found = self.compare(some, dtype, Choice("tile", best[-1]), Choice("tile", one))
            failed += found is None
            if found and found.better:
                best.append(one)
        chosen = best[-1]
        result = self.compare(some, dtype, Choice("tile", before), Choice("tile", chosen), extra=2)
        if chosen != before and not (result and result.better):  # luck, not speed
            chosen = before
        entry = self.found["classes"].setdefault(name, {})
        entry["tile"] = list(chosen)
        if result:
            entry.update(before=result.before, after=result.after if chosen != before else result.before)
        failures = f", {failed} failed" if failed else ""
        if chosen == before:
            return f"{shown(chosen)} stays ({tried} tried{failures})"
        return f"{shown(before)} -> {shown(chosen)}{result.text if result else ''} ({tried} tried{failures})"

    def _plan(self, name: str, until: float) -> str:
        """Stored is only a plan that beats the model's choice."""
        c, dtype = self.convolutions[name]
        stored = self.found["convolutions"].pop(name, None)
        before, *others = conv.plans(self.device, c, dtype)
        best = [conv.plans(self.device, c, dtype, stored)[0]]
        tried, failed = 0, 0
        for one in others[: self.level.plans - 1]:
            if time.monotonic() >= until:
                break
            if one != best[0]:
                tried += 1
                found = self.compare_plans(c, dtype, best[-1], one)
                failed += found is None
                if found and found.better:
                    best.append(one)
        result = self.compare_plans(c, dtype, before, best[-1], extra=2) if best[-1] != before else None
        counts = f"({tried} tried{f', {failed} failed' if failed else ''})"
        if result is None or not result.better:  # luck, not speed
            return f"{conv_plan.shown(before)} stays {counts}"
        self.found["convolutions"][name] = {"plan": list(best[-1]), "before": result.before, "after": result.after}
        return f"{conv_plan.shown(before)} -> {conv_plan.shown(best[-1])}{result.text} {counts}"

    def _clblast(self, dtype: str, until: float) -> str:
        """Each set of parameters is measured against `tile`, in a process of its own: changing them back costs seconds.

        What was measured is stored at once, since one set takes as long as a class of tiles.
        """
        some: list[Sizes] = [("nn", 128, 512, 784), ("tn", 784, 512, 128), ("nn", 512, 512, 512)]
        tried: list[Any] = self.found["tried"].setdefault(dtype, [])
        own: dict[str, dict[str, int]] = {}
        for one in (own, *itertools.islice(parameters(self.device, dtype), self.level.parameters)):
            if any(known["parameters"] == one for known in tried):
                continue
            if tried and time.monotonic() >= until:
                break
            self.worker.stop()
            sides = Choice("tile"), Choice("clblast")
            found = self.compare(some, dtype, *sides, seconds=2 * PATIENCE, clblast={dtype: one} if one else {})
            tried.append(
                {"parameters": one, "least": found.least if found else 0, "median": found.median if found else 0}
            )
            tuning.write(self.path, self.device.identity, self.found)
            if found:
                self.say(f"    set {len(tried)}{'' if one else ', its own'}: {found.least:.2f}x tile")
        self.worker.stop()
        best = first = next(known for known in tried if known["parameters"] == own)
        for known in tried:
            if all(known[part] > GAIN * best[part] for part in ("least", "median")):
                best = known
        self.found["clblast"][dtype] = best["parameters"]
        for name in self.classes:
            if name.startswith(dtype):
                self.found["done"].pop(f"engine {name}", None)
        gain = f"{best['least'] / first['least']:.2f}x its own parameters, " if first["least"] else ""
        return f"{gain}{best['least']:.2f}x tile ({len(tried)} tried, {sum(not k['least'] for k in tried)} failed)"

    def _engine(self, name: str, until: float) -> str:
        some, entry, dtype = self.classes[name], self.found["classes"].setdefault(name, {}), name.split()[0]
        chosen = entry.get("tile") or self.known.classes.get(name, Choice()).tile
        mine = Choice("tile", tuple(chosen) if chosen else None)
        parameters = {kind: values for kind, values in self.found["clblast"].items() if values}
        found = self.compare(some, dtype, mine, Choice("clblast"), clblast=parameters, seconds=2 * PATIENCE)
        default = "clblast" if self.device.kind == "gpu" else "tile"
        if found is None:
            entry["engine"] = "tile"
            return "tile, since CLBlast fails"
        entry["clblast"] = found.after
        if default == "clblast":
            entry["engine"] = "tile" if max(found.least, found.median) * GAIN < 1 else "clblast"
        else:
            entry["engine"] = "clblast" if found.better else "tile"
        return f"{entry['engine']} (CLBlast {found.least:.2f}x tile)"

    def compare(
        self,
        some: list[Sizes],
        dtype: str,
        best: Choice,
        candidate: Choice,
        extra: int = 1,
        seconds: float = PATIENCE,
        **more: Any,
    ) -> Result | None:
        """Time the candidate against the best one; None where it fails, whatever way."""
        task = dict(shapes=some, dtype=dtype, best=best, candidate=candidate, rounds=extra * self.level.rounds, **more)
        return self._result(task, seconds, shown(candidate.tile) if candidate.tile else candidate.engine)

    def compare_plans(self, c: Convolution, dtype: str, best: Plan, candidate: Plan, extra: int = 1) -> Result | None:
        """The same for plans of a convolution."""
        rounds = extra * self.level.rounds
        task = {"convolution": c, "dtype": dtype, "best": best, "candidate": candidate, "rounds": rounds}
        return self._result(task, PATIENCE, conv_plan.shown(candidate))

    def _result(self, task: dict[str, Any], seconds: float, candidate: str) -> Result | None:
        answer = self.worker.ask(task, seconds)
        if "wrong" in answer:
            self.say(f"    {candidate}: {answer['wrong']}")
            return None
        return Result.of(answer["best"], answer["candidate"])


class Result(NamedTuple):
    """How a candidate does against the best one: times in microseconds, and how many times as fast it is."""

    before: float
    after: float
    least: float
    median: float

    @staticmethod
    def of(best: list[list[float]], candidate: list[list[float]]) -> Result:
        """From rounds of seconds a shape; a round counts as the geometric mean over its shapes."""
        one, two = ([math.exp(statistics.fmean(map(math.log, times))) for times in side] for side in (best, candidate))
        least, median = min(one) / min(two), statistics.median(one) / statistics.median(two)
        return Result(round(1e6 * min(one), 2), round(1e6 * min(two), 2), least, median)

    @property
    def better(self) -> bool:
        return min(self.least, self.median) > GAIN

    @property
    def text(self) -> str:
        return f", {self.before:,.1f} -> {self.after:,.1f} us, {self.least:.2f}x"


def shown(one: Any) -> str:
    """A tile in words."""
    mr, nv, vw, kc = one
    return f"{mr}x{nv}x{vw}" + (f" by {kc}" if kc else "")


def _digest(*files: str) -> str:
    return hashlib.sha256("".join(map(read_source, files)).encode()).hexdigest()[:12]


# -- the process that candidates run in -------------------------------------------------------------------------------
class Worker:
    """A process that takes tasks as lines of JSON and answers each with one; a new one is started where it ends."""

    def __init__(self, device: Device, command: list[str] | None = None) -> None:
        where = f"{device.platform_index}:{device.device_index}"
        self.command = command or [sys.executable, "-m", "clnn.tools.tune.search", where]
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        home = str(Path(__file__).resolve().parents[3])  # so that the child imports this clnn
        path = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH", ""))))
        environ = {**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8", "CLNN_FUSE": "0"}
        environ["OPENBLAS_NUM_THREADS"] = "1"  # NumPy's threads go on spinning for a while after each product
        environ.pop("CLNN_GEMM", None)
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed in stop()
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
            encoding="utf-8", errors="replace", env=environ, start_new_session=True,
        )  # fmt: skip
        self.answers: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_listen, args=(self.process.stdout, self.answers), daemon=True).start()

    def ask(self, task: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The answer, or {"wrong": what happened} where the process ends or does not answer in time."""
        if self.process is None:
            self.start()
        assert self.process is not None and self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(task) + "\n")
            self.process.stdin.flush()
            answer = self.answers.get(timeout=seconds)
        except queue.Empty:
            self.stop()
            return {"wrong": f"no answer after {seconds:g} s"}
        except OSError:
            answer = None
        if answer is not None:
            return json.loads(answer)
        code = self.process.wait()
        self.errors.seek(0)
        last = [line.strip() for line in self.errors if line.strip()][-1:]
        self.stop()
        ended = f"signal {-code}" if code < 0 else f"exit code {code}"
        return {"wrong": ": ".join([f"ended its process with {ended}", *last])}

    def stop(self) -> None:
        """End the process, if there is one; the next task starts another."""
        if self.process is None:
            return
        process, self.process = self.process, None
        process.kill()
        process.wait()
        for stream in (process.stdin, self.errors):
            with contextlib.suppress(OSError):  # what it never read
                stream and stream.close()


def _listen(stream: Any, answers: queue.Queue[str | None]) -> None:
    with stream:
        for line in stream:
            if line.startswith("{"):  # drivers print things of their own
                answers.put(line)
    answers.put(None)


def work(where: str) -> None:
    """The worker's loop."""
    device = find_device(where)
    for line in sys.stdin:
        task = json.loads(line)
        try:
            answer = (compare_plans if "convolution" in task else compare)(device, **task)
        except (ClnnError, RuntimeError, ValueError) as error:
            answer = {"wrong": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
        print(json.dumps(answer), flush=True)


def compare(
    device: Device,
    shapes: list[Sizes],
    dtype: str,
    best: Any,
    candidate: Any,
    rounds: int,
    clblast: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Seconds for each shape in each round, of the best one and the candidate, if the candidate computes right."""
    from ...gemm import clblast as engine

    known = tuning.known(device)
    one, two = (Choice(choice[0], choice[1] and tuple(choice[1])) for choice in (best, candidate))
    if two.engine == "clblast":
        if clblast is not None and known.clblast != clblast:
            known.clblast = clblast
            engine._problems.clear()
        if wrong := clblast_problem(device):
            return {"wrong": wrong}
    for form in dict.fromkeys(shape[0] for shape in shapes):
        sizes = _ragged(two, form) if two.engine == "tile" else [(131, 67, 93), (37, 130, 65), (3, 5, 7)]
        if two.engine == "clblast":
            sizes += [tuple(shape[1:]) for shape in shapes if shape[0] == form]  # type: ignore[misc]
        for m, n, k in sizes:
            if wrong := error_of(device, np.dtype(dtype), form, m, n, k, two):
                return {"wrong": wrong}
    products = [(form, m, n, k) for form, m, n, k in shapes]  # lists, after JSON
    sides = [[timed_product(device, dtype, shape, choice) for shape in products] for choice in (one, two)]
    return measure(sides, rounds)


def compare_plans(
    device: Device, convolution: list[Any], dtype: str, best: list[Any], candidate: list[Any], rounds: int
) -> dict[str, Any]:
    """The same for two plans of a convolution."""
    c = Convolution.of(convolution)
    one, two = Plan(*best), Plan(*candidate)
    if wrong := conv.error_of(device, c, dtype, two):
        return {"wrong": wrong}
    work = conv.case(device, c, dtype).run
    return measure([[Timed(device, partial(work, plan))] for plan in (one, two)], rounds)


def measure(sides: list[list[Timed]], rounds: int) -> dict[str, Any]:
    """Seconds of each in each round, of the best one and the candidate, in turns."""
    counts = [timed.count() for timed in sides[0]]
    times: tuple[list[list[float]], list[list[float]]] = ([], [])
    for number in range(rounds):
        for side in (0, 1) if number % 2 else (1, 0):
            times[side].append([timed.seconds(count) for timed, count in zip(sides[side], counts)])
        if number == 1 and Result.of(*times).least < 0.8:  # no need to know how slow
            break
    return {"best": times[0], "candidate": times[1]}


def _ragged(choice: Choice, form: str) -> list[tuple[int, int, int]]:
    """Sizes with an edge of every kind for a tile."""
    mr, nv, vw, kc = choice.tile or (8, 2, 16, 256)
    width = nv * vw
    return [(3, width + 5, 7), (2 * mr + 7, 2 * width + 3, (kc or 64) + 9), (tile.MOST_ROWS + mr + 1, width - 1, 40)]


class Operands(NamedTuple):
    """A product's matrices, in NumPy and on the device."""

    a: np.ndarray
    b: np.ndarray
    saved: np.ndarray
    bias: np.ndarray
    blocks: tuple[Any, ...]


@lru_cache(maxsize=16)
def operands(device: Device, dtype: Any, form: str, m: int, n: int, k: int) -> Operands:
    generator = np.random.default_rng([m, n, k])

    def random_array(*shape: int) -> np.ndarray:
        return (generator.random(shape, np.float32) - 0.5).astype(dtype)

    a = random_array(*((k, m) if form[0] == "t" else (m, k)))
    b = random_array(*((n, k) if form[1] == "t" else (k, n)))
    saved, bias = random_array(m, n), random_array(n)
    blocks = []
    for array in (a, b, saved, bias, np.full((m + 1, n), np.nan, dtype), np.full(n, np.nan, dtype)):
        blocks.append(device.memory.allocate(array.nbytes))
        device.upload(array, blocks[-1], constant=True)
    return Operands(a, b, saved, bias, tuple(blocks))


def multiply(device: Device, dtype: Any, form: str, m: int, n: int, k: int, with_: Operands) -> None:
    """The product with the epilogue that it has in training."""
    a, b, saved, bias, c, sums = with_.blocks
    plain = Scale.constant(device, dtype, 1.0, 0.0)
    epilogue: dict[str, dict[str, Any]] = {
        "nn": {"bias": bias, "activation": "relu"},
        "tn": {"scale": plain, "sums": (sums, plain)},
        "nt": {"scale": plain, "activation": "relu", "saved": saved, "derivative": True},
        "tt": {},
    }
    gemm(device, Product(Shape.of(form, m, n, k, dtype), a, b, c, **epilogue[form]))


def error_of(device: Device, dtype: Any, form: str, m: int, n: int, k: int, choice: Choice) -> str:
    """What is wrong with one product by `choice`, against float64 NumPy, or ""."""
    used = operands(device, dtype, form, m, n, k)
    c, total = used.blocks[4:]
    for block, count in ((c, (m + 1) * n), (total, n)):
        device.upload(np.full(count, np.nan, dtype), block, constant=True)
    with tuning.forced(device, choice):
        multiply(device, dtype, form, m, n, k, used)
    got, sums = device.read(c, np.empty((m + 1, n), dtype)), device.read(total, np.empty(n, dtype))
    a, b = (x.T if form[i] == "t" else x for i, x in enumerate((used.a.astype(np.float64), used.b.astype(np.float64))))
    expected, size = a @ b, np.abs(a) @ np.abs(b)
    if form == "nn":
        expected, size = np.maximum(expected + used.bias, 0), size + np.abs(used.bias)
    if form == "nt":
        expected = expected * (used.saved > 0)
    eps = float(np.finfo(dtype).eps)
    what = f"{m} x {n} x {k} ({form})"
    if not (np.abs(got[:m] - expected) <= (k / 2 + 16) * eps * (1 + size)).all():
        return f"wrong numbers for {what}"
    if not np.isnan(got[m]).all():
        return f"writes past the end for {what}"
    if form == "tn" and not np.allclose(sums, b.sum(axis=0), rtol=0, atol=(k + 16) * eps * (1 + k / 4)):
        return f"wrong sums for {what}"
    return ""


class Timed:
    """Launches, such as one product's by one choice, recorded once."""

    def __init__(self, device: Device, work: Callable[[], None]) -> None:
        self.device = device
        device.recorder = recorder = Recorder()
        try:
            work()
        finally:
            device.recorder = None
        self.recording = Recording(device, recorder)
        self.seconds(2)

    def seconds(self, count: int) -> float:
        """For one of them, of `count` in a row."""
        self.device.finish()
        began = time.perf_counter()
        for _ in range(count):
            self.recording.replay()
        self.device.finish()
        return (time.perf_counter() - began) / count

    def count(self) -> int:
        """How many take about SECONDS."""
        return max(1, min(1000, round(SECONDS / min(self.seconds(3) for _ in range(3)))))


def timed_product(device: Device, dtype: str, shape: Sizes, choice: Choice) -> Timed:
    used = operands(device, np.dtype(dtype), *shape)
    with tuning.forced(device, choice):
        return Timed(device, lambda: multiply(device, np.dtype(dtype), *shape, used))


# -- what people see --------------------------------------------------------------------------------------------------
def tune(
    level: str = "default",
    minutes: float | None = None,
    engine: str = "all",
    show: bool = False,
    forget: bool = False,
    ship: str = "",
    convolutions: Sequence[str] = (),
) -> int:
    """Search on the device in use, or show what is known; `ship` adds what was found to a table for others. With some
    `convolutions` of the user's it does these alone."""
    own = [c for text in convolutions for c in conv.parse(text)]
    if own and (ship or engine not in ("conv", "all")):
        raise ConfigurationError("--conv measures convolutions alone: leave out --ship and --engine")
    engine = "conv" if own else engine
    used, path = device(), tuning.user_file()
    if forget:
        tuning.write(path, used.identity, None)
        used.tuned = None
    if show:
        print(describe(used))
        return 0

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    search = Search(used, level, minutes, engine, convolutions=own or None, shipped=not ship, say=say)
    say(f"{used.name} ({used.platform}); results go to {path}. Ctrl-C stops, and the next run goes on.")
    if engine in ("clblast", "all") and not clblast.available():
        say(f"CLBlast is left out: {clblast_problem(used)}")
    done = search.run()
    if engine != "conv":
        print(table(used, search.found["classes"]))
    if search.found["convolutions"]:
        print(table_of_plans(search.found["convolutions"]))
    if ship:
        export(search, as_path(ship))
        say(f"added to {ship}")
    return 0 if done else 3


def export(search: Search, path: Path) -> None:
    """Put what was found into the table that ships with clnn, under what the device is and its maker: what is not the rule."""
    used, found, classes = search.device, search.found, {}
    for name, some in search.classes.items():
        entry = dict(found["classes"].get(name, {}))
        if entry.get("tile") == list(rule(used, name.split()[0], some[0])):
            del entry["tile"]
        if entry.get("engine") == ("clblast" if used.kind == "gpu" else "tile"):
            del entry["engine"]
        if "tile" in entry or "engine" in entry:
            classes[name] = entry
    kept = {
        "measured": f"clnn tune --{search.name} --ship, on {used.identity}, {used.compute_units} units",
        "classes": classes,
        "clblast": {dtype: kernels for dtype, kernels in found["clblast"].items() if kernels},
    }
    about = (
        "Tiles, engines and CLBlast's parameters by platform, version, vector width and maker, made by "
        "`clnn tune --ship FILE`; without a maker, for those that are not listed. tile: mr, nv, vw, kc. before, after, "
        "clblast: microseconds by clnn's rule, by this tile and by CLBlast, the geometric mean of the shapes of a class "
        "(clnn/tools/tune/search.py). Where the rule stays, a class is not listed."
    )
    tuning.write(path, tuning.families(used)[1], kept, about=about)


def table(used: Device, classes: dict[str, Any]) -> str:
    """What was found, a line a class."""
    rows = [("class", "before (us)", "after (us)", "gain", "CLBlast (us)", "engine", "tile")]
    for name, entry in classes.items():
        before, after, other = (entry.get(part) for part in ("before", "after", "clblast"))
        by_clblast = entry.get("engine") == "clblast"
        after = other if by_clblast else after
        rows.append(
            (
                name,
                f"{before:,.1f}" if before else "",
                f"{after:,.1f}" if after else "",
                f"{before / after:.2f}x" if before and after else "",
                f"{other:,.1f}" if other else "",
                entry.get("engine") or ("clblast" if used.kind == "gpu" else "tile"),
                shown(entry["tile"]) if entry.get("tile") and not by_clblast else "",
            )
        )
    return _aligned(rows)


def table_of_plans(convolutions: dict[str, Any]) -> str:
    """The same of convolutions: those whose plan is not the model's choice."""
    rows = [("convolution", "before (us)", "after (us)", "gain", "plan")]
    for name, entry in convolutions.items():
        if plan := conv_plan.stored_plan(entry):
            before, after = entry.get("before", 0), entry.get("after", 0)
            gain = f"{before / after:.2f}x" if after else ""
            rows.append((name, f"{before:,.1f}", f"{after:,.1f}", gain, conv_plan.shown(plan)))
    return _aligned(rows)


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def describe(used: Device) -> str:
    """What is known of a device, and where from."""
    text = [f"{used.name} ({used.platform})"]
    for title, path, found in (
        ("measured here", tuning.user_file(), tuning.read(tuning.user_file(), used.identity)),
        ("shipped with clnn", tuning.SHIPPED, tuning.shipped_for(used)),
    ):
        classes, by = found.get("classes", {}), found.get("measured")
        text.append(f"\n{title}, {path}: {len(classes)} classes{f', by {by}' if by else ''}")
        if classes:
            text.append(table(used, classes))
        if found.get("convolutions"):
            text.append(table_of_plans(found["convolutions"]))
        for dtype, kernels in found.get("clblast", {}).items():
            for kernel, values in kernels.items():
                said = " ".join(f"{name}={value}" for name, value in values.items())
                text.append(f"CLBlast {dtype} {kernel}: {said}")
    return "\n".join(text)


if __name__ == "__main__":
    work(sys.argv[1])
