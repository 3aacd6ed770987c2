"""A process that compiles kernels along with the one that trains, in a cache of its own; runtime/ahead.py starts it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyopencl as cl

from ..runtime.device import Device
from ..runtime.devices.choice import devices
from ..runtime.memory import SLACK
from ..runtime.program import Source

IDLE = 20.0  # seconds without work after which it ends
PAGE = 4096  # bytes, at a multiple of which buffers start
SMALL = 1 << 15  # PoCL compiles kernels once more for grids above twice that along an axis


def main(identity: str, folder: str, kept: str) -> None:
    """Compile the bundles of programs that are listed in the file which a line of the input names, until another line comes: move
    each from `folder` into `kept`, and say by its number when it is begun and done."""
    try:
        device = next(one for one in devices() if one.identity == identity)
        cl.Program(device.context, "kernel void nothing() {}").build()  # the compiler is loaded while no work has come
        unread = b""
        while True:
            while b"\n" not in unread:
                if not select.select([0], [], [], IDLE)[0] or not (more := os.read(0, 1 << 20)):
                    return
                unread += more
            *_, line, unread = unread.split(b"\n")
            for bundle, listed in json.loads(Path(os.fsdecode(line)).read_bytes()) if line else ():
                print(json.dumps({"begun": bundle}), flush=True)
                kernels = [
                    (Source(**{**one, "defines": tuple(map(tuple, one["defines"]))}), *how) for one, *how in listed
                ]
                device.programs.load([*dict.fromkeys(source.program for source, *_ in kernels)])
                for kernel in kernels:
                    compile_one(device, *kernel)
                move(Path(folder), Path(kept))
                print(json.dumps({"done": bundle}), flush=True)
                if select.select([0], [], [], 0)[0]:
                    break
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def compile_one(device: Device, source: Source, size: list[int], local: list[int], args: list[Any]) -> None:
    """Build a kernel, and run one group of it on zeros, since PoCL makes machine code when a kernel first runs."""
    real = np.float64 if source.real == "double" else np.float32
    values, types, arrays = list[Any](), list[Any](), list[np.ndarray]()
    for kind, *what in args:
        if kind == "block":
            arrays.append(zeros(what[0] + SLACK))
            flags = cl.mem_flags.READ_WRITE | cl.mem_flags.USE_HOST_PTR
            values.append(cl.Buffer(device.context, flags, hostbuf=cast(Any, arrays[-1])))
        else:
            values.append(np.array(what[1:], what[0]) if kind == "array" else what[0] if what else None)
        types.append((real if isinstance(what[0], float) else np.int32) if kind == "number" else None)
    kernel = device.programs.new_kernel(source, tuple(types))
    if max(size) < SMALL:
        kernel.set_args(*values)
        cl.enqueue_nd_range_kernel(device.queue, kernel, tuple(local), tuple(local))
        device.finish()


def zeros(nbytes: int) -> np.ndarray:
    """Bytes that take no memory until they are written, from the start of a page."""
    array = np.zeros(nbytes + PAGE, np.uint8)
    return array[-array.ctypes.data % PAGE :][:nbytes]


def move(folder: Path, kept: Path) -> None:
    """Whole programs from one cache of PoCL's to another, each at once, where the other has none of that name."""
    for program in folder.glob("??/*/program.bc"):
        target = kept / program.parent.relative_to(folder)
        with contextlib.suppress(OSError):  # it is there already
            target.parent.mkdir(exist_ok=True)
            program.parent.rename(target)
