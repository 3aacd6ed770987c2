"""Compiling ahead: a step's first launches are put off until all are known, and other processes compile the last ones meanwhile.

PoCL compiles one kernel at a time in a process, in any number of threads. So its first steps took as long as all their kernels
together. Helpers (tools/compiler.py) now begin at the end of the list while this process begins at its start; each has a
cache of PoCL's to itself, and moves what is done into the one that this process reads. Where there is nothing to compile, no
helper is started, and without any the same launches run in the same order.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyopencl as cl

from ..errors import ConfigurationError
from .bundles import Bundles, Key
from .devices.selftest import child, cores, environment
from .memory import Block, host_available
from .program import Source, kernel_folder
from .timing import active

MOST, ROOM = 4, 1 << 30  # helpers of a device, and bytes of free memory for each, of which it takes some 150 MB
PATIENCE = 20.0  # seconds that this process waits for one program of a helper's, which then ends
FEW = 3  # programs that are not worth one
TOGETHER = 6  # programs in one text, at most
TURNS = 2  # texts for each of several processes, at least: who is done early takes another one


class Opened(Protocol):
    """What is asked of a device."""

    form: str
    kind: str

    @property
    def identity(self) -> str: ...

    @property
    def pocl_version(self) -> tuple[int, int]: ...


def wanted(device: Opened) -> int:
    """How many helpers a device may have: `CLNN_COMPILERS`, else one for each core but one. Only PoCL's need them.

    ConfigurationError for anything else than a whole number."""
    text = os.environ.get("CLNN_COMPILERS", "").strip()
    if text and not (text.isascii() and text.isdigit()):
        raise ConfigurationError(f"CLNN_COMPILERS is how many processes compile along, 0 or more, and {text!r} is not")
    if device.kind != "cpu" or device.pocl_version == (0, 0) or os.name != "posix" or kept_by() is None:
        return 0
    return min(int(text) if text else cores() - 1, MOST)


def notes(device: Opened) -> Bundles:
    """What PoCL keeps compiled for a CPU; other drivers' programs are built one by one."""
    kept = kept_by() if device.kind == "cpu" and device.pocl_version != (0, 0) else None
    kernels = sorted(kernel_folder().glob("*.cl"))
    return Bundles(kept, lambda: (device.identity, *(file.read_text(encoding="utf-8") for file in kernels)))


def bundles(device: Any) -> bool:
    """Whether programs become one text on a device: where it is noted what is kept of them."""
    return device.programs.bundles.folder is not None


def kept_by() -> Path | None:
    """The folder where PoCL keeps programs; None where it keeps none."""
    if os.environ.get("POCL_KERNEL_CACHE", "1") == "0":
        return None
    if named := os.environ.get("POCL_CACHE_DIR"):
        return Path(named)
    home = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("HOME") and os.path.join(os.environ["HOME"], ".cache"))
    return Path(home, "pocl", "kcache") if home else None


class Ahead:
    """The launches of a step that are put off, in order, until all of it is known or something is waited for. Each has its
    arguments as they were, so memory goes back to the pool and is given away as if it had been enqueued at once."""

    def __init__(self, device: Any, helpers: int) -> None:
        self.device, self.helpers = device, helpers
        self.waiting: list[tuple[Callable[[], Any], tuple[Any, ...] | None]] = []

    def put_off(self, run: Callable[[], Any], job: tuple[Any, ...] | None = None) -> None:
        """Have `run()` called later. `job`: the kernel that it launches, and how (`job_of`); None for what fills or copies."""
        self.waiting.append((run, job))

    def run(self) -> None:
        """Call what waits; what it enqueues is not put off again. Ctrl-C comes when that is done: the Python is further already,
        and takes memory for written. After an error, with which the step ends, memory is filled and copied, and no more."""
        if self.waiting:
            with uninterrupted():
                self._run()

    def _run(self) -> None:
        waiting, self.waiting = self.waiting, []
        now, programs, helpers = self.device._now, self.device.programs, self.device.helpers
        missing: dict[Key, dict[Any, Any]] = {}  # by program: a launch of each kernel and group in it
        for _, job in waiting:
            if job is not None and not programs.has(job[0].program):
                missing.setdefault(job[0].program, {}).setdefault((job[0], job[2]), job)
        now.ahead = None
        failed: BaseException | None = None
        fresh: dict[Key, tuple[Key, ...]] = {}
        try:
            fresh = bundled([one for one in missing if not programs.bundles.keeps(one)], self.helpers)
            helpers.compile(missing, [*dict.fromkeys(fresh.values())])
        except BaseException as error:  # a signal's handler may raise anything
            failed = error
        for run, job in waiting:
            new = missing.pop(job[0].program, None) if job is not None else None
            try:
                if (
                    job is not None
                    and new
                    and not failed
                    and not programs.has(job[0].program)
                    and job[0].program in fresh
                ):
                    helpers.wait(fresh[job[0].program])
                    programs.load(fresh[job[0].program])
                if job is None or not failed:
                    run()
                if new and not failed and fresh:  # machine code is made before the next build
                    self.device.finish()
            except BaseException as error:
                failed = failed or error
        helpers.rest()
        now.ahead = self
        if failed:
            raise failed


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C inside comes at its end. (Only the main thread is interrupted.)"""
    if threading.current_thread() is not threading.main_thread() or not callable(signal.getsignal(signal.SIGINT)):
        yield
        return
    came: list[Any] = []
    usual: Any = signal.signal(signal.SIGINT, lambda *given: came.append(given))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
        if came:
            usual(*came[0])


def raw(value: Any) -> Any:
    """An argument as the driver takes it: for a block its memory, which stays as it is when the pool gives it away again."""
    return cl.Buffer.from_int_ptr(value.buffer.int_ptr, True) if isinstance(value, Block) else value


def bundled(programs: Sequence[Key], helpers: int) -> dict[Key, tuple[Key, ...]]:
    """The bundle for each program: neighbours in this order, shared out to this process and its helpers."""
    most = -(-len(programs) // (TURNS * (1 + helpers))) if helpers else len(programs)
    size = max(1, min(most, TOGETHER))
    return {one: tuple(programs[i - i % size : i - i % size + size]) for i, one in enumerate(programs)}


def job_of(source: Source, size: Sequence[int], local: Sequence[int], values: Sequence[Any]) -> tuple[Any, ...]:
    """A launch in numbers and words: its kernel, its size and what each argument is, a buffer's bytes for a buffer."""
    args = tuple(
        ("block", value.nbytes) if isinstance(value, Block)
        else ("array", str(value.dtype), *value.tolist()) if isinstance(value, np.ndarray)
        else ("number", value) if value is not None else ("none",)
        for value in values
    )  # fmt: skip
    return source, tuple(size), tuple(local), args


@contextlib.contextmanager
def putting_off(device: Any) -> Iterator[None]:
    """Launches inside are put off until its end, or until something is waited for, where that lets programs be one text."""
    now, helpers = device._now, wanted(device)
    if now.ahead is not None or now.dry or now.recorder is not None or active.profiles or not bundles(device):
        yield
        return
    now.ahead = ahead = Ahead(device, helpers)
    try:
        yield
    finally:
        try:
            ahead.run()
        finally:
            now.ahead = None


class Helpers:
    """The processes that compile for a device. They start at the first build that takes time, wait for work, and end with the
    device, with this process, or after a while without work."""

    def __init__(self, device: Opened) -> None:
        self.device, self.processes, self.folders = device, list[Any](), list[str]()
        self.tried, self.begun = False, 0
        self.numbers: dict[tuple[Key, ...], int] = {}  # of the bundles that they were told to compile
        self.at: dict[int, Any] = {}  # by the number of one that is begun and not done: the process
        self.close = weakref.finalize(self, end, os.getpid(), self.processes, self.folders)

    def start_early(self) -> None:
        """Start them before anything is built, if PoCL has kept no program yet, so that all will be compiled."""
        kept = kept_by()
        with contextlib.suppress(OSError):
            if kept and not (kept.is_dir() and any(len(name) == 2 for name in os.listdir(kept))):
                self.start()

    def start(self) -> None:
        """Start them, once, if the device may have any; where that is not possible, there are none."""
        import subprocess  # here, because most processes start none

        kept, command = kept_by(), child("clnn.tools.compiler")
        many = wanted(self.device) if kept and command and not self.tried else 0
        many = min(many, host_available(ROOM * MOST) // ROOM)
        self.tried = True
        for _ in range(many):
            assert kept is not None and command is not None
            with contextlib.suppress(OSError):  # a full disk, a folder that may not be written, too many processes
                kept.mkdir(parents=True, exist_ok=True)
                self.folders.append(tempfile.mkdtemp(prefix="tempfile-clnn-", dir=kept))
                environ = environment(self.device.form)
                # a pinned thread of a helper would be on the core of one that computes
                environ |= {"POCL_CACHE_DIR": self.folders[-1], "POCL_AFFINITY": "0"}
                self.processes.append(
                    subprocess.Popen(
                        [*command, self.device.identity, self.folders[-1], str(kept)], env=environ, bufsize=0,
                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
                    )
                )  # fmt: skip

    def compile(self, missing: dict[Key, dict[Any, Any]], bundles: Sequence[tuple[Key, ...]]) -> None:
        """Have them compile bundles, of which this process needs the first one first: from the last one on. `missing`: the
        launches of each program."""
        bundles = bundles[1:]
        if self.numbers or sum(map(len, bundles)) < FEW:
            return
        for process in [one for one in self.processes if one.poll() is not None]:
            self._forget(process)
        self.start()
        if not self.processes:
            return
        self.numbers = {bundle: number for number, bundle in enumerate(bundles, self.begun)}
        self.begun += len(bundles)
        backwards, many = bundles[::-1], len(self.processes)
        for i, process in enumerate(list(self.processes)):
            listed = {one: [job for program in one for job in missing[program].values()] for one in backwards[i::many]}
            jobs = [[self.numbers[one], [[job[0]._asdict(), *job[1:]] for job in listed[one]]] for one in listed]
            list_of_them = Path(process.args[-2], f"{self.begun}.json")  # a pipe would take some only, and have us wait
            with contextlib.suppress(OSError):
                list_of_them.write_text(json.dumps(jobs, default=str), encoding="utf-8")
                self._tell(process, str(list_of_them))

    def wait(self, bundle: tuple[Key, ...]) -> None:
        """Until a bundle is compiled that one of them is about to finish; at once where none has begun it."""
        late = time.monotonic() + PATIENCE
        self._listen(0)
        while process := self._compiles(bundle):
            self._listen(max(0, late - time.monotonic()))
            if time.monotonic() > late and self._compiles(bundle) is process:
                process.kill()
                self._forget(process)

    def _compiles(self, bundle: tuple[Key, ...]) -> Any:
        """The process that has begun a bundle and has not finished it, or None."""
        process = self.at.get(self.numbers.get(bundle, -1))
        return process if process in self.processes else None

    def rest(self) -> None:
        """What they have been told to compile is not needed any more."""
        for process in list(self.processes) if self.numbers else ():
            self._tell(process, "")
        self.numbers, self.at = {}, {}

    def _listen(self, seconds: float) -> None:
        """Read what they say."""
        with selectors.DefaultSelector() as ready:
            for one in self.processes:
                ready.register(one.stdout, selectors.EVENT_READ, one)
            there = [key.data for key, _ in ready.select(seconds)]
        for process in there:
            said = os.read(process.stdout.fileno(), 1 << 16)
            if not said:  # it has ended
                self._forget(process)
            for line in said.splitlines():  # each is written at once; drivers print things of their own
                with contextlib.suppress(ValueError, AttributeError):
                    answer = json.loads(line)
                    self.at.pop(answer.get("done"), None)
                    self.at |= {answer["begun"]: process} if "begun" in answer else {}

    def _tell(self, process: Any, line: str) -> None:
        try:
            process.stdin.write(os.fsencode(line) + b"\n")
        except (OSError, ValueError):
            self._forget(process)

    def _forget(self, process: Any) -> None:
        """It has ended: after a while without work, or by a fault of the driver. The next work starts others, if none is left."""
        forget(process)
        self.processes.remove(process)
        self.tried = bool(self.processes)


def end(owner: int, processes: list[Any], folders: list[str]) -> None:
    """End the helpers that `owner` started: their device is gone, or this process ends. Not in one that was forked."""
    if os.getpid() == owner:
        for process in processes:
            process.kill()
            forget(process)
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def forget(process: Any) -> None:
    """What the operating system keeps of one that ends."""
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            pipe.close()
    process.wait()
