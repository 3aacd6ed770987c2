"""Whether a device may be trusted, and what its loops can do: a self-test when it is first opened, in a process of its own.

A driver that does not know its processor, or has a faulty compiler, gives wrong numbers without a word, or ends the process.
So a device is tested once for each platform, version, driver and clnn version, by `clnn/tools/selftest.py`; that it passed is
remembered in the cache folder, and where that cannot be written, each process tests anew. A device that fails is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ...errors import ConfigurationError, DeviceError, warn
from ...files import cache_folder, write_atomically
from ..memory import Block, Memory
from ..timing import unseen

SECONDS = 180  # that a self-test may take; a GPU's compiler takes some 20, a hung driver for ever
TURNS = 100_000  # of the loop that is tried
FACTOR = 1664525
COMPILED = 4  # answers: it opens the device, compiles, makes random numbers, and begins with another test
FEW_TURNS = 1 << 15  # a loop that ends earlier is a fault that no choice of kernels gets round
# what the process runs: first of all it forgets the working folder, whose modules may have any name
CHILD = r"import sys; sys.path[:] = sys.argv[1].split('\n'); from MODULE import main; main(*sys.argv[2:])"


class Tested(Protocol):
    """What the self-test asks of a device."""

    platform: str
    version: str
    form: str

    @property
    def identity(self) -> str: ...

    @property
    def memory(self) -> Memory: ...

    def launch(self, file: str, name: str, size: Sequence[int], *args: Any) -> None: ...

    def read(self, block: Block, array: np.ndarray) -> np.ndarray: ...


class SelfTestWarning(UserWarning):
    """A device is used untested."""


def check(device: Tested, meanwhile: Callable[[], Any] = lambda: None) -> int | None:
    """The most turns that loops of a work-item can take in all (0: any number), None where that was not tested; a
    `DeviceError` if the device fails its self-test.

    `CLNN_SELF_TEST=0` has devices used untested. Oclgrind is: it checks kernels, slowly, and is no driver of a device.
    """
    said = os.environ.get("CLNN_SELF_TEST", "").strip() or "1"
    if said not in ("0", "1"):
        raise ConfigurationError(f"CLNN_SELF_TEST={said!r} should be 0, for devices that are used untested, or 1")
    if said == "0" or device.platform == "Oclgrind":
        return None
    path, key = _place(device)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):  # none, or a damaged one
        remembered = json.loads(path.read_text(encoding="utf-8"))
        if remembered["passed"] == key:
            return int(remembered["turns"])
    problem, turns, untested = run(device, meanwhile)
    if untested:
        warn(f"clnn could not test {device!r}, and uses it untested: {untested}", SelfTestWarning)
        return None
    if problem:
        raise DeviceError(
            f"{device!r} ({device.version}) fails clnn's self-test, and so is not used: {problem}. Update its driver, or take "
            "another driver or device (CLNN_DEVICE); `clnn doctor` says more. CLNN_SELF_TEST=0 has clnn use it regardless."
        )
    with contextlib.suppress(OSError):  # a read-only cache folder costs a self-test per process, nothing else
        write_atomically(path, json.dumps({"passed": key, "turns": turns}).encode())
    return turns


def _place(device: Tested) -> tuple[Path, str]:
    """The file that remembers, and what it says of a device that passed."""
    from ... import __version__

    key = f"{device.identity} | clnn {__version__}"
    return cache_folder() / f"self-test-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json", key


def child(module: str) -> list[str] | None:
    """The command of a process that calls `main` of a module with what follows; None where there is no interpreter for it."""
    from multiprocessing.spawn import get_executable  # an embedding program may have set another

    if getattr(sys, "frozen", False) or not get_executable():
        return None
    home, paths = str(Path(__file__).resolve().parents[3]), [part for part in sys.path if isinstance(part, str)]
    path = "\n".join(paths if home in paths else [*paths, home])
    return [os.fsdecode(get_executable()), "-W", "ignore", "-c", CHILD.replace("MODULE", module), path]


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment(form: str) -> dict[str, str]:
    """The variables of such a process, which finds a device of that form and does not test it."""
    found = {**os.environ, "CLNN_SELF_TEST": "0", "PYTHONIOENCODING": "utf-8"}
    return found | {"CLNN_DEVICE_EXCLUDE": "", "CLNN_DEVICE_AS": form, "CLNN_COMPILERS": "0"}


def run(device: Tested, meanwhile: Callable[[], Any] = lambda: None) -> tuple[str, int, str]:
    """Test the device in a process of its own: (what is wrong or "", the most turns of its loops, why it was not tested).
    `meanwhile()` is called once, when kernels were compiled there and have run."""
    import subprocess

    command, answers, until = child("clnn.tools.selftest"), list[dict[str, Any]](), time.monotonic() + SECONDS
    errors = deque[str](maxlen=3)  # the last lines of them
    if command is None:
        return "", 0, "this program has no Python interpreter of its own to do so"
    try:
        with subprocess.Popen(
            [*command, device.identity], env={**environment(device.form), "CLNN_GEMM": "tile"},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", errors="replace",
        ) as process:  # fmt: skip
            listening = threading.Thread(target=errors.extend, args=(process.stderr,), daemon=True)
            timer = threading.Timer(SECONDS, process.kill)
            listening.start()
            timer.start()
            try:
                for line in process.stdout or ():
                    answer = None
                    with contextlib.suppress(ValueError):  # drivers print things of their own
                        answer = json.loads(line)
                    if isinstance(answer, dict):
                        answers.append(answer)
                        if len(answers) == COMPILED:
                            meanwhile()
            except BaseException:
                process.kill()
                raise
            finally:
                timer.cancel()
            listening.join(10)  # a process that it started may live on, and hold the pipe
            code = process.wait() if time.monotonic() < until else None
    except OSError as error:  # no memory or no right to start a process
        return "", 0, str(error)
    problems = [answer["wrong"].rstrip(".") for answer in answers if "wrong" in answer]
    if answers and "turns" in answers[-1]:
        return "; ".join(dict.fromkeys(problems)), answers[-1]["turns"], ""
    how = f"gave no answer for {SECONDS} s" if code is None else f"ended with signal {-code}" if code < 0 else "failed"
    if errors and code is not None:
        how += f" ({' '.join(map(str.strip, errors))})"
    at = [answer["test"] for answer in answers if "test" in answer]
    if not at:
        return "", 0, f"the process that was to do so {how}"
    return "; ".join([*problems, f"at {at[-1]} its process {how}"]), 0, ""


@unseen()
def count_turns(device: Tested) -> int:
    """How many turns the loops of a work-item take before the driver ends them, up to `TURNS`; 0 if it does not.

    llvmpipe ends them after 65,535, without a word.
    """
    block = device.memory.allocate(4)
    device.launch("selftest", "turns", (1,), TURNS, np.uint32(FACTOR), block)
    got, value = int(device.read(block, np.empty(1, np.uint32))[0]), 1
    for turn in range(TURNS):
        if got == value and turn >= FEW_TURNS:
            return turn
        value = (value * FACTOR + turn) & 0xFFFFFFFF
    if got != value:
        raise DeviceError(f"a loop of {TURNS:,} turns comes to {got}, and {value} is right")
    return 0
