"""A recorded step as one kernel that runs many steps: no launch, and no core to wake, between its parts.

The kernels of a recording (on a CPU, each work-item a group of its own) are compiled apart, each a function of the number of
its work-item, and linked with a kernel that calls them in order, with the recorded numbers as constants, in a loop over
steps. One work-item per core runs it, and they share out each launch's items (kernels/fusion.cl). What moves from step to
step is on the device already. The results are the same bits. Compiling takes seconds, so a step has to be replayed often
before it pays (`WORTH`), and its launches have to be short (`SHORT`).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyopencl as cl

from ..errors import ConfigurationError
from .device import Device
from .memory import Block
from .program import read_source, source_for
from .recorder import Launch

# Steps to come, or replays so far, from which a step is fused: a launch saved is worth about 30 us, and takes a second to
# compile, a tenth of one where PoCL has it cached.
WORTH = 30_000
MOST_PARTS = 64  # launches of a step
STEPS = 64  # at most, in one launch
SECONDS = 0.02  # of one launch: who waits for it, or interrupts, waits as long
# On average, of a launch of a step that is fused. With longer ones there is little to gain by not sleeping between them, and
# something to lose where other processes want the same cores.
SHORT = 150e-6
TICKETS = 8  # of a stage, for each core: more, and neighbouring items part; fewer, and some core waits
TURN = np.zeros(128, np.int32)  # the counters of kernels/fusion.cl

LOCAL = re.compile(r"\blocal (real|int) \w+\[")
GROUPS = re.compile(r"\b(barrier|get_local_id|get_group_id)\b")
KERNEL = re.compile(r"^kernel\b[\s\S]*?\bvoid (\w+)\(", re.MULTILINE)
# A kernel, or another one in its file, as a function of its item
FUNCTION = "#define {kernel}(...) {name}(int item_x, int item_y, int item_z, __VA_ARGS__)\n"
# Local memory becomes the core's stack. A part that uses any is not inlined, or the stack frames of all would add up
PART = """\
#define get_global_id(d) ((size_t)((d) == 0 ? item_x : (d) == 1 ? item_y : item_z))
#define get_group_id(d) get_global_id(d)
#define get_local_id(d) ((size_t)0)
#define barrier(which)
#define local
"""
STAGE = """
    if (t < base + {end}) {{
      wait_for(turn, base + {start});
      do {{
        const int ticket = t - base - {start};
        {calls}
        done(turn);
        t = take(turn);
      }} while (t < base + {end});
    }}"""
MAIN = """
#ifdef cl_khr_fp64
#pragma OPENCL EXTENSION cl_khr_fp64 : enable
#endif
{prototypes}
kernel __attribute__((reqd_work_group_size(1, 1, 1))) void steps(int count, global int *turn{buffers}) {{
  flush_denormals();
  int t = take(turn);
  for (int step = 0; step < count; step++) {{
    const int base = step * {tickets};{stages}
  }}
  leave(turn, {workers});
}}"""


def allowed(device: Device) -> bool:
    """Whether steps may be fused: on CPUs, by PoCL 3.1 or later (an older one might not survive the linking), whose
    threads have the stack for it.

    `CLNN_FUSE=0` switches it off.
    """
    wish = os.environ.get("CLNN_FUSE", "1").strip()
    if wish not in ("0", "1"):
        raise ConfigurationError(f"CLNN_FUSE={wish!r} should be 1 or 0")
    return wish == "1" and device.local_on_stack and device.pocl_version >= (3, 1)


def cores(device: Device) -> int:
    """How many work-items share out a step."""
    return device.compute_units


def most_steps(seconds: float) -> int:
    """How many steps of so many seconds one launch does."""
    return max(1, min(STEPS, int(SECONDS / seconds)))


class Fused:
    """The kernel of many steps, and the arguments it is bound to. A step takes about `seconds` before it is fused."""

    def __init__(self, device: Device, launches: list[Launch], seconds: float) -> None:
        self.device = device
        self.most = most_steps(seconds)
        self._names: dict[Any, str] = {}
        self._args: list[Any] = []
        names: dict[Any, str] = {}  # of what is compiled: layers of the same kind share it
        parts: list[cl.Program] = []
        prototypes: list[str] = []
        stages: list[tuple[int, list[str]]] = []  # tickets, and what is called for each
        shares = cores(device)
        for launch in launches:
            file, kernel, real, defines = launch.source
            written = [self._written(arg, real) for arg in launch.args]
            name = names.setdefault(launch.source, f"part_{len(names)}")
            if len(names) > len(parts):
                parts.append(device.programs.compile_part(part(file, kernel, real, name), real, defines))
                prototypes.append(f"kernel void {name}(int, int, int, {', '.join(kind for kind, _ in written)});")
            tickets, call = _call(name, launch.size, ", ".join(text for _, text in written), shares)
            if tickets == 1 and stages and stages[-1][0] == 1:
                stages[-1][1].append(call)  # one core goes on
            else:
                stages.append((tickets, [call]))
        ends = np.cumsum([tickets for tickets, _ in stages])
        self.workers = min(shares, max(tickets for tickets, _ in stages))
        main = MAIN.format(
            prototypes="\n".join(prototypes),
            buffers="".join(f", global void *{name}" for name in self._names.values()),
            tickets=ends[-1],
            stages="".join(
                STAGE.format(start=end - tickets, end=end, calls="\n        ".join(calls))
                for (tickets, calls), end in zip(stages, ends, strict=True)
            ),
            workers=self.workers,
        )
        self.kernel = device.programs.link(read_source("fusion") + main, parts, "steps")
        self.turn = device.memory.allocate(TURN.nbytes, pooled=False)
        device.upload(TURN, self.turn, constant=True)

    @staticmethod
    def possible(device: Device, launches: list[Launch], seconds: float) -> bool:
        """Whether these launches can become one kernel, and are short enough to gain by it."""
        return (
            allowed(device)
            and len(launches) <= MOST_PARTS
            and seconds <= SHORT * len(launches)
            and all(launch.kernel is not None and _apart(launch) for launch in launches)
        )

    def _written(self, arg: Any, real: str) -> tuple[str, str]:
        """An argument's type and its text in the source; buffers become arguments of the whole."""
        if arg is None:
            return "global void *", "0"
        if isinstance(arg, np.ndarray):
            return f"int{len(arg)}", f"(int{len(arg)})({', '.join(str(int(v)) for v in arg)})"
        if isinstance(arg, float):
            return real, f"(({real}){float(arg)!r}{'f' if real == 'float' else ''})"
        if isinstance(arg, int):
            return "int", str(int(arg))
        key = arg.role if isinstance(arg, Block) else arg
        if key not in self._names:
            self._names[key] = f"b{len(self._names)}"
            self._args.append(arg)
        return "global void *", self._names[key]

    def bind(self, resolve: Callable[[Any], Any]) -> None:
        """Set the buffers, and the number of steps to 1."""
        self.count = 1
        self.kernel.set_args(np.int32(1), self.turn.buffer, *[resolve(arg) for arg in self._args])

    def run(self, count: int) -> None:
        """Enqueue `count` steps."""
        if count != self.count:
            self.kernel.set_arg(0, np.int32(count))
            self.count = count
        cl.enqueue_nd_range_kernel(self.device.queue, self.kernel, (self.workers,), (1,))


def _apart(launch: Launch) -> bool:
    """Whether its items know nothing of each other: each is a group of its own, or the file never asks for groups."""
    return set(launch.local) == {1} or not GROUPS.search(read_source(launch.source[0]))


def part(file: str, kernel: str, real: str, name: str) -> str:
    """The text of `kernel` as a function `name`; the file's other kernels are renamed too: no names meet in the whole."""
    text = source_for(file, real)
    attribute = "__attribute__((noinline)) " if LOCAL.search(text) else ""
    names = {other: f"{name}_{other}" for other in KERNEL.findall(text)} | {kernel: attribute + name}
    return "".join(FUNCTION.format(kernel=old, name=new) for old, new in names.items()) + PART + text


def _call(name: str, size: tuple[int, ...], args: str, shares: int) -> tuple[int, str]:
    """How many tickets a launch of `size` items has, and the statement that does the items of one, `ticket`."""
    items, x, y = math.prod(size), size[0], size[1] if len(size) > 1 else 1
    if items == 1:
        return 1, f"{name}(0, 0, 0, {args});"
    each = -(-items // (TICKETS * shares))
    item = "i, 0, 0" if items == x else f"i % {x}, i / {x} % {y}, i / {x * y}"
    loop = f"for (int i = ticket * {each}; i < min({items}, (ticket + 1) * {each}); i++)"
    return -(-items // each), f"{loop} {name}({item}, {args});"


def fuse(device: Device, launches: list[Launch], seconds: float) -> Fused | None:
    """The launches as one kernel, or None where that cannot be. `BuildError` where the driver cannot link them."""
    return Fused(device, launches, seconds) if Fused.possible(device, launches, seconds) else None
