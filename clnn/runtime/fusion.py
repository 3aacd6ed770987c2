"""A recorded step as one kernel that runs many steps: no launch, and no core to wake, between its parts.

The kernels of a recording (on a CPU, each work-item a group of its own) become functions of the number of their work-item,
all in one text, with a kernel that calls them in order, with the recorded sizes as constants, in a loop over steps. One
work-item per core runs it, and they share out each launch's items (kernels/fusion.cl). What moves from step to step is on
the device already. The results are the same bits. Compiling takes a second or more, so a step has to be replayed often
before it pays (`worth`), and its launches have to be short (`SHORT`). What was compiled is kept as a binary in the cache
folder, from where a later process has it within milliseconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import platform
import re
import struct
import threading
from collections.abc import Callable
from functools import cached_property, lru_cache, reduce
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyopencl as cl

from ..errors import BuildError, ConfigurationError
from ..files import cache_folder, write_atomically
from .bundles import ATTRIBUTE, FUNCTION, KERNEL, MACRO, apart
from .device import Device
from .devices.pocl import deep_stacks
from .memory import Block
from .program import Source, kernel_folder, read_source, source_for
from .recorder import Launch, Temporary

# Seconds, about, until a step is one kernel: where the driver has to compile it, with those for each of its parts and for each
# further launch of one; has compiled it before; and where this process has it. Each launch takes SAVED less then, 5 to 20 us by
# measurements: an enqueued one costs that, whatever it does.
COMPILING, PART_OF_IT, CALL_OF_IT, LOADING, HAVING, SAVED = 0.3, 0.08, 0.03, 0.01, 0.002, 1e-5
OTHERS = 2.5  # times as long as PoCL other drivers, Intel's, compile
MOST_PARTS = 256  # launches of a step
STEPS = 64  # at most, in one launch
SECONDS = 0.02  # of one launch: who waits for it, or interrupts, waits as long
# On average, of a launch of a step that is fused. With longer ones there is little to gain by not sleeping between them.
SHORT = 250e-6
MOST_KEPT = 256  # files, of some 150 KB each: those written last
KEPT = struct.Struct(
    "<32sd"
)  # before a binary: the SHA-256 of what follows, and the seconds of a step that is not fused
# Versions of PoCL that were seen to give a fused step's binary, and other drivers. Of further ones each process builds the text,
# which PoCL keeps too: some end the process when they are asked for the binary of a kernel that they run.
GIVING, LOADING_TEXT = (0, 3, 5, 6), 0.07
TICKETS = 8  # of a stage, for each core: more, and neighbouring items part; fewer, and some core waits
SEEN, QUEUES, LINE = (
    64,
    96,
    32,
)  # where the counters of kernels/fusion.cl are: what a trial saw, the first queue's, from one to the next
FRAME = 1 << 20  # bytes of stack that a kernel may take, where it says how many: threads have twice that
TRIED = 64  # steps of a trial
PATIENCE = 1 << 26  # looks at the counter, of a second or more, until a wait has failed there

LOCAL = re.compile(r"\blocal (real|int) \w+\[")
GROUPS = re.compile(r"\b(barrier|get_local_id|get_group_id)\b")
OPTIONAL = re.compile(r"^#if(?:def)? (WIDTH > 1|RECORD)\b.*?(?=^#(?:else|endif))", re.MULTILINE | re.DOTALL)
# Local memory becomes the core's stack. A part that uses any is not inlined, or the stack frames of all would add up.
# random.cl ends contraction for itself.
PART = """
#pragma OPENCL FP_CONTRACT ON
#define get_global_id(d) ((size_t)((d) == 0 ? item_x : (d) == 1 ? item_y : item_z))
#define get_group_id(d) get_global_id(d)
#define get_local_id(d) ((size_t)0)
#define barrier(which)
#define local
#define reqd_work_group_size(...) unused
#define STACK 1
"""
STAGE = """
    wait_for(turn, base + {start});
    for (int q = 0; q < {workers}; q++) {{
      const int queue = (me + q) % {workers};
      for (int t; (t = take(turn, queue, own + {until})) >= 0;) {{
        const int ticket = queue * {share} + t - own - {since};
        if (ticket >= {tickets}) continue;
        {calls}
        done(turn);
      }}
    }}"""
# Every way through it ends with `leave`: where a kernel may end at once, Intel's compiler (2026.2) does what comes before twice,
# and a ticket would be lost.
MAIN = """
kernel __attribute__((reqd_work_group_size(1, 1, 1))) void steps(int count, global int *turn{arguments}) {{
  flush_denormals();
  const int me = get_global_id(0);
  for (int step = 0; step < count; step++) {{
    const int base = step * {tickets}, own = step * {shares};{stages}
  }}
  leave(turn, {workers});
}}"""


def _wish() -> str:
    wish = os.environ.get("CLNN_FUSE", "").strip() or "1"
    if wish not in ("0", "1", "always"):
        raise ConfigurationError(f"CLNN_FUSE={wish!r} should be 1, 0 or always")
    return wish


def always() -> bool:
    """Whether each step is fused that can be, at its first replay, whatever that costs: `CLNN_FUSE=always`."""
    return _wish() == "always"


def allowed(device: Device) -> bool:
    """Whether steps may be fused: on CPUs whose threads have the stack for it and end no loop early; not by PoCL before 3.1,
    which might not survive the linking. On others than PoCL Python's threads compute along while they wait.

    `CLNN_FUSE=0` switches it off.
    """
    if _wish() == "0" or not device.long_loops or not deep_stacks():
        return False
    if device.pocl_version > (0, 0):
        return device.pocl_version >= (3, 1)
    return not 0 < threading.stack_size() < 2 * FRAME


@lru_cache(maxsize=16)
def takes_turns(device: Device) -> bool:
    """Whether a device runs work-items so that one may wait for what another has begun: each in a thread, to its end. Else a
    fused step would hang. A small one tells, whose waits end, and whose parts see whether those before them were done."""
    workers = 4 * cores(device)
    stages = [(1, [f"turn[SEEN] = (turn[SEEN] * 3 + base + {i}) % 10007;"]) for i in range(2)]
    text = f"#define PATIENCE {PATIENCE}\n{read_source('fusion')}{_main(stages, workers)}"
    turn = _turn(device, workers)
    kernel = cl.Kernel(device.programs.build_text(text), "steps")
    kernel.set_args(np.int32(TRIED), turn.buffer)
    cl.enqueue_nd_range_kernel(device.queue, kernel, (workers,), (1,))
    right = np.zeros(QUEUES + LINE * workers, np.int32)
    right[SEEN] = reduce(lambda x, t: (x * 3 + t) % 10007, range(2 * TRIED))
    return np.array_equal(device.read(turn, np.empty_like(right)), right)


def _turn(device: Device, workers: int) -> Block:
    """The counters of kernels/fusion.cl."""
    zeros = np.zeros(QUEUES + LINE * workers, np.int32)
    turn = device.memory.allocate(zeros.nbytes, pooled=False)
    device.upload(zeros, turn, constant=True)
    return turn


def _main(stages: list[tuple[int, list[str]]], workers: int, arguments: str = "") -> str:
    """The kernel that does stages, each so many tickets and what is called for one."""
    text, start, since = "", 0, 0
    for tickets, calls in stages:
        share = -(-tickets // workers)
        text += STAGE.format(
            start=start, since=since, until=since + share, share=share, tickets=tickets, workers=workers,
            calls="\n        ".join(calls),
        )  # fmt: skip
        start, since = start + tickets, since + share
    return MAIN.format(arguments=arguments, tickets=start, shares=since, stages=text, workers=workers)


def cores(device: Device) -> int:
    """How many work-items share out a step."""
    return device.compute_units


def most_steps(seconds: float) -> int:
    """How many steps of so many seconds one launch does."""
    return max(1, min(STEPS, int(SECONDS / seconds)))


class Fused:
    """The kernel of many steps, and the arguments it is bound to."""

    def __init__(self, device: Device, launches: list[Launch]) -> None:
        self.device, self.launches = device, len(launches)
        self._names: dict[Any, str] = {}
        self._args: list[Any] = []
        self._parameters: list[str] = []
        self._parts: dict[Source, str] = {}  # the names of what is compiled: layers of the same kind share it
        stages: list[tuple[int, list[str]]] = []  # tickets, and what is called for each
        shares = cores(device)
        for launch in launches:
            written = [self._written(arg, launch.source.real) for arg in launch.args]
            name = self._parts.setdefault(launch.source, f"part_{len(self._parts)}")
            tickets, call = _call(name, launch.size, ", ".join(written), shares)
            if tickets == 1 and stages and stages[-1][0] == 1:
                stages[-1][1].append(call)  # one core goes on
            else:
                stages.append((tickets, [call]))
        self.workers = min(shares, max(tickets for tickets, _ in stages))
        self._main = _main(stages, self.workers, "".join(f", {one}" for one in self._parameters))
        made = f"{device.identity} | {_processor()} | {_made_from(kernel_folder())} | {[*self._parts]} | {self._main}"
        self.name = hashlib.sha256(made.encode()).hexdigest()[:32]

    @property
    def text(self) -> str:
        """What is compiled."""
        parts = "".join(part(*source[:3], name, source.defines) for source, name in self._parts.items())
        return parts + read_source("fusion") + self._main

    def build(self, seconds: float) -> Fused:
        """Have it as a kernel: this process' own, that of the binary which was kept, or one compiled now. Without it a step takes
        about so many `seconds`."""
        device, made = self.device, self.device.programs.made
        if not (device.pocl_version > (0, 0) or takes_turns(device)):
            raise BuildError(f"on {device!r} a work-item cannot wait for another")
        self.most = most_steps(seconds)
        if self.name not in made:
            kept = self._kept[1] if self._kept else b""
            made[self.name] = self._program_of(kept) or self._compile(seconds), seconds
        vars(self).pop("_kept", None)  # the binary's bytes
        self.kernel = cl.Kernel(made[self.name][0], "steps")
        frame = self.kernel.get_work_group_info(cl.kernel_work_group_info.PRIVATE_MEM_SIZE, device.cl_device)
        if frame > FRAME:
            raise BuildError(f"it takes {frame:,} bytes of a thread's stack, and clnn counts on {FRAME:,}")
        self.turn = _turn(device, self.workers)
        return self

    @property
    def _file(self) -> Path:
        return cache_folder() / f"step-{self.name}"

    @cached_property
    def _kept(self) -> tuple[float, bytes] | None:
        """The seconds of a step that was kept, and its binary. None for a file that is damaged, or another user's: it is
        machine code, which may do anything."""
        with contextlib.suppress(OSError, struct.error), open(self._file, "rb") as file:
            data, owner = file.read(), os.fstat(file.fileno()).st_uid
            digest, seconds = KEPT.unpack_from(data)
            if hashlib.sha256(data[len(digest) :]).digest() == digest and (os.name == "nt" or owner == os.geteuid()):
                return seconds, data[KEPT.size :]
        return None

    def _program_of(self, binary: bytes) -> cl.Program | None:
        """The program of a binary; None where there is none, or the driver does not take it."""
        with contextlib.suppress(cl.Error):
            program = cl.Program(self.device.context, [self.device.cl_device], [binary]) if binary else None
            if program is not None:
                program.build(self.device.programs.options_of_made)
            return program
        return None

    def _compile(self, seconds: float) -> cl.Program:
        """It compiled, and kept. Its machine code is in the binary; for the text, PoCL would make it again."""
        program = self.device.programs.build_text(self.text)
        gives = self.device.pocl_version[0] in GIVING
        binaries: Any = program.get_info(cl.program_info.BINARIES) if gives else [b""]
        data = struct.pack("<d", seconds) + binaries[0]
        with contextlib.suppress(OSError):  # a read-only cache folder
            write_atomically(self._file, hashlib.sha256(data).digest() + data)
            files = sorted(self._file.parent.glob("step-*"), key=os.path.getmtime)
            for file in files[:-MOST_KEPT]:
                file.unlink()
        return self._program_of(binaries[0]) or program

    @property
    def known(self) -> float | None:
        """The seconds of a step before it was fused, where that was done already."""
        there = self.device.programs.made.get(self.name)
        return there[1] if there else self._kept[0] if self._kept else None

    def pays(self, seconds: float) -> bool:
        """Whether it gains by being fused, where it takes so long before."""
        return seconds <= SHORT * self.launches or always()

    @property
    def worth(self) -> int:
        """Steps to come, or replays so far, from which it pays."""
        if always():
            return 1
        if self.known is not None:
            here = self.name in self.device.programs.made
            cost = HAVING if here else LOADING if self._kept and self._kept[1] else LOADING_TEXT
        else:
            parts = len(self._parts)
            cost = COMPILING + PART_OF_IT * parts + CALL_OF_IT * (self.launches - parts)
            cost *= 1 if self.device.pocl_version > (0, 0) else OTHERS
        return max(1, round(cost / (SAVED * self.launches)))

    @staticmethod
    def possible(device: Device, launches: list[Launch]) -> bool:
        """Whether these launches can become one kernel."""
        return (
            allowed(device)
            and 0 < len(launches) <= MOST_PARTS
            and all(launch.make is not None and _apart(launch) for launch in launches)
        )

    def _written(self, arg: Any, real: str) -> str:
        """An argument's text in the source; buffers and floats become arguments of the whole."""
        if arg is None:
            return "0"
        if isinstance(arg, np.ndarray):
            return f"(int{len(arg)})({', '.join(str(int(v)) for v in arg)})"
        if isinstance(arg, int):
            return str(int(arg))
        if isinstance(arg, float):  # no constant, by which compilers divide otherwise than by a variable
            arg = np.dtype("f8" if real == "double" else "f4").type(arg)
        key = arg.role if isinstance(arg, Block) else arg if isinstance(arg, Temporary) else (real, float(arg).hex())
        if key not in self._names:
            kind = real if isinstance(arg, np.floating) else "global void *"
            self._names[key] = f"b{len(self._names)}"
            self._parameters.append(f"{kind} {self._names[key]}")
            self._args.append(arg)
        return self._names[key]

    def bind(self, resolve: Callable[[Any], Any]) -> None:
        """Set the arguments, and the number of steps to 1."""
        self.count = 1
        self.kernel.set_args(np.int32(1), self.turn.buffer, *[resolve(arg) for arg in self._args])

    def run(self, count: int) -> cl.Event:
        """Enqueue `count` steps."""
        if count != self.count:
            self.kernel.set_arg(0, np.int32(count))
            self.count = count
        return cl.enqueue_nd_range_kernel(self.device.queue, self.kernel, (self.workers,), (1,))


def _apart(launch: Launch) -> bool:
    """Whether its items know nothing of each other: each is a group of its own, or its kernel never asks for groups."""
    file, kernel, _, defines = launch.source
    there = frozenset("WIDTH > 1" if name == "WIDTH" and value > 1 else name for name, value in defines)
    return set(launch.local) == {1} or not asks_for_groups(file, kernel, there)


@lru_cache(maxsize=256)
def asks_for_groups(file: str, kernel: str, there: frozenset[str]) -> bool:
    """Whether a kernel, or a function or macro of its file that it uses, knows of work-groups; of what is OPTIONAL, with
    what is `there`."""
    pieces: dict[str, str] = {}
    whole = OPTIONAL.sub(lambda found: found[0] if found[1] in there else "", read_source(file))
    for piece in re.split(r"^(?=static|INLINE|APART|kernel|#define)", whole, flags=re.MULTILINE):
        for name in KERNEL.findall(piece) or [
            *map(itemgetter(0), MACRO.findall(piece)),
            *FUNCTION.findall(ATTRIBUTE.sub("", piece)),
        ]:
            pieces[name] = pieces.get(name, "") + piece
    seen: set[str] = set()
    waiting = [kernel]
    while waiting:
        text = pieces.pop(waiting.pop(), "")
        if GROUPS.search(text):
            return True
        seen |= (found := set(re.findall(r"\w+", text)) - seen)
        waiting += found & pieces.keys()
    return False


@lru_cache(maxsize=1)
def _processor() -> str:
    """What the processor can do, where Linux says it: another machine with the same home folder may have another one."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return platform.processor()


@lru_cache(maxsize=4)
def _made_from(folder: Path) -> str:
    """The digest of what texts are made from: the kernels in a folder, and the modules that put them together."""
    files = [*sorted(folder.glob("*.cl")), *sorted(Path(__file__).parent.glob("*.py"))]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


@lru_cache(maxsize=256)
def part(file: str, kernel: str, real: str, name: str, defines: tuple[tuple[str, Any], ...]) -> str:
    """The text of `kernel` as a function `name`. Everything that its file names is renamed, and no macro outlives it, so that
    parts may follow each other in one text."""
    text = source_for(file, real)
    alone = "static __attribute__((noinline))" if LOCAL.search(text) else "static"
    kernels = {**{other: f"{name}_{other}" for other in KERNEL.findall(text)}, kernel: name}
    calls = [
        f"#define {old}(...) {new}(int item_x, int item_y, int item_z, __VA_ARGS__)\n" for old, new in kernels.items()
    ]
    same = {} if ("STACK", 1) in defines else {"BUILT_IN": 1}  # activation.cl as when it is launched alone
    return apart(text, name, {"REAL": real, **same, **dict(defines)}, f"{PART}#define kernel {alone}\n{''.join(calls)}")


def _call(name: str, size: tuple[int, ...], args: str, shares: int) -> tuple[int, str]:
    """How many tickets a launch of `size` items has, and the statement that does the items of one, `ticket`."""
    items, x, y = math.prod(size), size[0], size[1] if len(size) > 1 else 1
    if items == 1:
        return 1, f"{name}(0, 0, 0, {args});"
    each = -(-items // (TICKETS * shares))
    item = "i, 0, 0" if items == x else f"i % {x}, i / {x} % {y}, i / {x * y}"
    loop = f"for (int i = ticket * {each}; i < min({items}, (ticket + 1) * {each}); i++)"
    return -(-items // each), f"{loop} {name}({item}, {args});"
