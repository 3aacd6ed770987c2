"""The parent of `clnn verify`: a process for each family and each measurement, with a limit of time, and what came of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ...errors import BuildError, ConfigurationError
from .report import SLOW, expected

NAMES = (
    *(
        "elementwise",
        "gemm",
        "linear",
        "conv",
        "fit",
        "reduce",
        "softmax",
        "loss",
        "optimizer",
        "random",
        "pool",
        "norm",
    ),
    *(
        "conv-3x3",
        "conv-transposed",
        "conv-grouped",
        "conv-1d-3d",
        "shape",
        "resize",
        "augment",
        "sequence",
        "clblast",
        "float64",
    ),
)  # the important ones first: time may end
SPEEDS = ("peaks", "products", "convolutions", "nielsen", "mlp", "cnn")
LIMIT = 60.0  # seconds that a process may take
RESERVED = 0.25  # of the time, for measurements
REPORT = "please open an issue with this text"
UPDATE = "update the driver, or use another device (CLNN_DEVICE; `clnn devices` lists them)"


def verify(
    names: Sequence[str] = (), minutes: float = 3.0, limit: float = LIMIT, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Check the families `names` (none: all, and then measure speed) on the device in use; what was found, as JSON holds it."""
    unknown = [name for name in names if name not in (*NAMES, *SPEEDS)]
    if unknown:
        raise ConfigurationError(
            f"there is nothing called {unknown[0]!r} to verify; there are {', '.join((*NAMES, *SPEEDS))}"
        )
    end = time.monotonic() + 60 * minutes
    found: dict[str, Any] = {"families": {}, "speed": {}}
    found["device"] = _summary("device", *_process("device", limit))
    if "facts" not in found["device"]:
        return found
    chosen = [name for name in NAMES if not names or name in names]
    measured = [name for name in SPEEDS if not names or name in names]

    def one(name: str) -> dict[str, Any]:
        left = end - time.monotonic() - (RESERVED * 60 * minutes if name in chosen and measured else 0)
        if left < 1:
            return {
                "verdict": f"not run: the {minutes:g} minutes were over",
                "remedy": f"`clnn verify {name}` runs it alone, --minutes gives more time",
            }
        return _summary(name, *_process(name, min(limit, left)), cut_off=left < limit)

    # On a CPU most of the time goes into compiling, on one core. Measurements are alone, and so is what shares a GPU, whose
    # driver may end both.
    several = found["device"]["facts"]["kind"] == "cpu" and (os.cpu_count() or 1) > 1
    for names, group, at_once in ((chosen, found["families"], 1 + several), (measured, found["speed"], 1)):
        with ThreadPoolExecutor(at_once) as pool:
            try:
                for name, result in zip(names, pool.map(one, names)):
                    group[name] = result
                    say(f"{name}: {result['verdict']}")
            except BaseException:  # Ctrl-C
                pool.shutdown(wait=False, cancel_futures=True)
                list(map(_kill, list(_running)))
                raise
    _judge_speed(found)
    return found


def faults(found: dict[str, Any]) -> list[str]:
    """The families and measurements that are wrong, crashed or hung: the exit status is for these."""
    everything = {"device": found["device"], **found["families"], **found["speed"]}
    return [name for name, one in everything.items() if one.get("fault")]


_running: set[subprocess.Popen[bytes]] = set()


# -- a process --------------------------------------------------------------------------------------------------------
def _process(name: str, limit: float) -> tuple[list[dict[str, Any]], str, float]:
    """What a worker said, how it ended if that was not well, and the seconds that it took."""
    home = str(Path(__file__).resolve().parents[3])  # so that the child imports this clnn
    path = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH", ""))))
    environ = {**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"}
    if name == "peaks":  # where launches are fused there is none to measure
        environ["CLNN_FUSE"] = "0"
    began, ended = time.monotonic(), ""
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "clnn.tools.verify.worker", name], stdin=subprocess.DEVNULL, stdout=output, stderr=errors,
            env=environ, start_new_session=os.name == "posix",
        )  # fmt: skip
        _running.add(process)
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            ended = f"no end after {limit:.0f} s"
        finally:
            _kill(process)
            _running.discard(process)
        said = [_read(errors)[-3:], _read(output)]
    answers = [json.loads(line) for line in said[1] if line.startswith("{") and line.endswith("}")]
    if not ended and not any("done" in answer or "failed" in answer for answer in answers):
        code = process.returncode
        ended = "\n".join([f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}", *said[0]])
    return answers, ended, time.monotonic() - began


def _read(file: Any) -> list[str]:
    file.seek(0)
    return [line for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it started; one that hangs in the driver cannot always be ended, and is left behind."""
    if process.poll() is None:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL) if os.name == "posix" else process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)


def _summary(
    name: str, answers: list[dict[str, Any]], ended: str, seconds: float, cut_off: bool = False
) -> dict[str, Any]:
    """The verdict on a worker, in words and in numbers, and what to do about it; `cut_off`: it had less time than others."""
    wrong = [answer for answer in answers if "wrong" in answer]
    last: dict[str, Any] = next(
        (answer for answer in reversed(answers) if "case" in answer), {"case": "its start", "at": 0.0}
    )
    case = last["case"]
    failed = next((answer["failed"] for answer in answers if "failed" in answer), "")
    facts = next((answer["done"] for answer in answers if "done" in answer), None)
    one: dict[str, Any] = {"seconds": round(seconds, 2), "fault": True}
    one["notes"] = [answer["note"] for answer in answers if "note" in answer]
    one["timed"] = [answer for answer in answers if "timed" in answer]
    one["wrong"] = wrong
    if facts is not None:
        one["facts"] = facts
    if wrong:
        one["verdict"] = wrong[0]["wrong"]
        one["remedy"] = _remedy(name)
        if ended:
            one["verdict"] += f"; then {ended.splitlines()[0]} at {case}"
    elif failed:
        lines = failed.splitlines()
        one["verdict"] = f"failed at {case}: " + "\n".join(lines[:4])
        one["remedy"] = BuildError.remedy(failed) or _remedy(name)
    elif ended.startswith("no end") and cut_off:
        one |= {"verdict": f"not run to its end: the time was over at {case}", "fault": False}
        one["remedy"] = f"`clnn verify {name}` runs it alone, --minutes gives more time"
    elif ended.startswith("no end") and seconds - last["at"] < seconds / 2:
        one |= {"verdict": f"too slow: {ended}, and {case} was the last case", "fault": False}
        one["remedy"] = "--minutes and --limit give it more time; a second run finds what is compiled already"
    elif ended.startswith("no end"):
        one["verdict"] = f"hangs: {ended} at {case}"
        one["remedy"] = f"{UPDATE}; where it is only slow, --minutes and --limit give it more time"
    elif ended:
        one["verdict"] = f"crashed at {case}: {ended}"
        one["remedy"] = _remedy(name)
    else:
        empty = name in NAMES and not (facts or {}).get("comparisons")
        one |= {"verdict": "left out" if empty else "right" if name in NAMES else "measured", "fault": False}
    return one


def _remedy(name: str) -> str:
    return f"set CLNN_GEMM=tile, which does without CLBlast; {REPORT}" if name == "clblast" else f"{UPDATE}; {REPORT}"


def _judge_speed(found: dict[str, Any]) -> None:
    """Where a measurement is far from what the device's own peaks allow, say so; nothing is a fault for that."""
    peaks = found["speed"].get("peaks", {}).get("facts")
    if not peaks:
        return
    least = SLOW[found["device"]["facts"]["kind"] == "cpu"]
    for one in found["speed"].values():
        for timed in one.get("timed", []):
            timed["share"] = expected(timed, peaks) / timed["seconds"]
        slow = [timed for timed in one.get("timed", []) if timed["share"] < least[timed["what"]]]
        if slow and not one["fault"]:
            worst = min(slow, key=lambda timed: timed["share"])
            one["verdict"] = (
                f"slow: {worst['timed']} reaches {worst['share']:.0%} of what the peaks allow, "
                f"{least[worst['what']]:.0%} and more is usual"
            )
            one["remedy"] = (
                f"close other programs and run it again; `clnn tune --quick` may find faster kernels; {REPORT}"
            )
