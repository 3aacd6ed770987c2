"""A recorded step of small launches as one kernel that runs many steps: no launch between them, weights in one cache.

Where every launch of a recording is a single work-item (small layers on a CPU, see clnn/gemm/tile.py), the kernels are
compiled apart, each under a name of its own, and linked with a kernel that calls them in order, with the recorded numbers
as constants, in a loop over steps. What moves from step to step is on the device already. The results are the same bits.
Compiling takes seconds, so a step has to be replayed often before it pays (`WORTH`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pyopencl as cl

from ..errors import BuildError, ConfigurationError
from .memory import Block

if TYPE_CHECKING:
    from .device import Device
    from .recording import Launch

WORTH = 20_000  # steps to come, or replays so far, from which a step is fused
STEPS = 64  # at most, in one launch


def allowed(device: Device) -> bool:
    """Whether steps may be fused: on CPUs, by PoCL 3.1 or later (an older one might not survive the linking).

    `CLNN_FUSE=0` switches it off.
    """
    wish = os.environ.get("CLNN_FUSE", "1").strip()
    if wish not in ("0", "1"):
        raise ConfigurationError(f"CLNN_FUSE={wish!r} should be 1 or 0")
    return wish == "1" and device.kind == "cpu" and device.pocl_version >= (3, 1)


class Fused:
    """The kernel of many steps, and the arguments it is bound to."""

    def __init__(self, device: Device, launches: list[Launch]) -> None:
        self.device = device
        self._names: dict[Any, str] = {}
        self._args: list[Any] = []
        parts, prototypes, calls = [], [], []
        for index, launch in enumerate(launches):
            file, kernel, real, defines = launch.source
            name = f"part_{index}"
            parts.append(device.programs.compile_part(file, real, (*defines, (kernel, name))))
            written = [self._written(arg, real) for arg in launch.args]
            prototypes.append(f"kernel void {name}({', '.join(kind for kind, _ in written)});")
            calls.append(f"    {name}({', '.join(text for _, text in written)});")
        buffers = "".join(f", global void *{name}" for name in self._names.values())
        main = "\n".join(
            [
                "#ifdef cl_khr_fp64\n#pragma OPENCL EXTENSION cl_khr_fp64 : enable\n#endif",
                *prototypes,
                f"kernel __attribute__((reqd_work_group_size(1, 1, 1))) void steps(int count{buffers}) {{",
                "  for (int step = 0; step < count; step++) {",
                *calls,
                "  }\n}",
            ]
        )
        self.kernel = device.programs.link(main, parts, "steps")

    @staticmethod
    def possible(device: Device, launches: list[Launch]) -> bool:
        """Whether these launches can become one kernel."""
        return allowed(device) and all(launch.kernel is not None and set(launch.size) == {1} for launch in launches)

    def _written(self, arg: Any, real: str) -> tuple[str, str]:
        """An argument's type and its text in the source; buffers become arguments of the whole."""
        if arg is None:
            return "global void *", "0"
        if isinstance(arg, np.ndarray):
            return f"int{len(arg)}", f"(int{len(arg)})({', '.join(str(int(v)) for v in arg)})"
        if isinstance(arg, float):
            return real, f"(({real}){arg!r}{'f' if real == 'float' else ''})"
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
        self.kernel.set_args(np.int32(1), *[resolve(arg) for arg in self._args])

    def run(self, count: int) -> None:
        """Enqueue `count` steps."""
        if count != self.count:
            self.kernel.set_arg(0, np.int32(count))
            self.count = count
        cl.enqueue_nd_range_kernel(self.device.queue, self.kernel, (1,), (1,))


def fuse(device: Device, launches: list[Launch]) -> Fused | None:
    """The launches as one kernel, or None where that cannot be: then they are replayed one by one, to the same bits."""
    if not Fused.possible(device, launches):
        return None
    try:
        return Fused(device, launches)
    except BuildError:  # a driver that cannot link has lost nothing but speed
        return None
