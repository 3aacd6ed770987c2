"""`clnn run-mpi`: a program on several ranks of this machine, each on cores of its own, by the mpirun that belongs to mpi4py."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import ConfigurationError

FOLDER = "RUN_MPI_FOLDER"  # where each rank writes the number of its process
# How mpirun of either kind says which process ended it
ENDED = (re.compile(rb"PID (?P<pid>\d+) RUNNING AT"), re.compile(rb"process rank (?P<rank>\d+) with PID"))
OPEN_MPI = ("--oversubscribe", "--bind-to", "none", "--allow-run-as-root")
LOCAL = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK"), ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE")
NAMES = ("mpirun", "mpiexec")  # MPI for Windows has the second alone,
WINDOWS = ("Scripts",), ("Library", "bin")  # and pip puts it into one of these folders
RANK = ("PMI_RANK", "OMPI_COMM_WORLD_RANK")


def mpirun() -> list[str]:
    """The command mpirun or mpiexec of the environment that Python runs in, else of the PATH, with what a machine alone needs."""
    own = os.pathsep.join([os.path.dirname(sys.executable), *(os.path.join(sys.prefix, *p) for p in WINDOWS)])
    found = next(filter(None, (shutil.which(name, path=path) for path in (own, None) for name in NAMES)), None)
    if found is None or importlib.util.find_spec("mpi4py") is None:
        lacks = "mpi4py" if found else "mpirun"
        raise ConfigurationError(f"there is no {lacks} here: pip install mpi4py mpich (impi-rt on Windows) brings both")
    said = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
    return [found, *(OPEN_MPI if "Open MPI" in said or "PRRTE" in said else ())]


def run(ranks: int, program: Sequence[str]) -> int:
    """Run `python program` on so many ranks; mpirun's exit status. Ctrl-C goes to the ranks, a second one to mpirun."""
    if ranks < 1 or not program:
        raise ConfigurationError("run-mpi takes -n with 1 or more ranks, and a script: clnn run-mpi -n 2 script.py")
    if not os.path.isfile(program[0]):
        raise ConfigurationError(f"there is no script {program[0]!r}")
    with tempfile.TemporaryDirectory(prefix="clnn-mpi-") as folder:
        process = subprocess.Popen(
            [*mpirun(), "-n", str(ranks), sys.executable, "-m", "clnn.tools.mpi", *program],
            env={**os.environ, FOLDER: folder}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        ended: list[str] = []
        threads = [
            threading.Thread(target=_pass_on, args=(source, sink.buffer, Path(folder), ended))
            for source, sink in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
        ]
        for thread in threads:
            thread.start()
        interrupts = 0

        def interrupt(*_: Any) -> None:
            nonlocal interrupts
            interrupts += 1
            first = interrupts == 1 and os.name == "posix"  # on Windows Ctrl-C reaches every process of the console
            for pid in [int(file.read_text(encoding="ascii")) for file in Path(folder).iterdir()] if first else ():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGINT)
            if interrupts > 1:
                process.terminate()

        before = signal.signal(signal.SIGINT, interrupt), signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            status = process.wait()
            for thread in threads:
                thread.join()
        finally:
            signal.signal(signal.SIGINT, before[0])
            signal.signal(signal.SIGTERM, before[1])
    # mpirun kills the others, and where it is busy it may hear of one of those first
    killed = abs(status) % 128 == 9
    how = "was killed, perhaps by mpirun once another one had ended," if killed else "ended before the others,"
    for rank in dict.fromkeys(ended):
        print(f"clnn run-mpi: rank {rank} of {ranks} {how} with status {status}", file=sys.stderr)
    return status if status >= 0 else 128 - status


def _pass_on(source: Any, sink: BinaryIO, folder: Path, ended: list[str]) -> None:
    """Lines of mpirun go on as they come; `ended` gets the rank that they name as the one that ended first."""
    for line in iter(source.readline, b""):
        sink.write(line)
        sink.flush()
        for found in (one.search(line) for one in ENDED):
            if found and "rank" in found.groupdict():
                ended.append(found["rank"].decode())
            elif found:
                ended += [
                    file.name for file in folder.iterdir() if file.read_text(encoding="ascii") == found["pid"].decode()
                ]


def share_of_cores(cores: Sequence[int], rank: int, ranks: int) -> list[int]:
    """The cores of a rank among those of this machine: disjoint where there are as many, else one each, in turns."""
    if len(cores) < ranks:
        return [cores[rank % len(cores)]]
    return list(cores[len(cores) * rank // ranks : len(cores) * (rank + 1) // ranks])


def begin() -> None:
    """On a rank, before its program: its process's number into the folder, and cores of its own."""
    rank, local, ranks = (next((os.environ[n] for n in names if n in os.environ), "") for names in (RANK, *LOCAL))
    Path(os.environ.pop(FOLDER), rank or "0").write_text(str(os.getpid()), encoding="ascii")
    if hasattr(os, "sched_setaffinity") and local.isdecimal() and ranks.isdecimal():
        mine = share_of_cores(sorted(os.sched_getaffinity(0)), int(local), int(ranks))
        os.sched_setaffinity(0, mine)
        os.environ.setdefault("POCL_AFFINITY", "0")  # pinned by number, ranks would meet on the first cores
        for name in ("POCL_MAX_PTHREAD_COUNT", "POCL_CPU_MAX_CU_COUNT"):  # PoCL until 4 and from 5 on
            os.environ.setdefault(name, str(len(mine)))


if __name__ == "__main__":
    begin()
    sys.argv = sys.argv[1:]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
