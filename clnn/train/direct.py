"""`Direct`: the answers of a recording, by memory that host and device share where there is such: nothing is copied twice."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, finalize

import numpy as np
import pyopencl as cl

from ..runtime.device import Device
from ..runtime.memory import SLACK, Block
from ..runtime.recording import Recording
from ..runtime.watching.watch import structure_version
from ..step import Step
from ..tensor import Tensor

SOON, PATIENCE = 2e-4, 8  # seconds, and how many answers in a row may come later before they are waited for at once
let_others_run: Callable[..., Any] = getattr(os, "sched_yield", partial(time.sleep, 0))
ALIGNED = 128  # bytes, as OpenCL's largest type
# Memory whose block has gone, while what is enqueued may still use it
_leaving: WeakKeyDictionary[Device, list[Any]] = WeakKeyDictionary()


def finish(device: Device) -> None:
    """Wait for all work enqueued so far, and give memory back that was shared and has gone before."""
    leaving = _leaving.setdefault(device, [])
    n = len(leaving)
    device.finish()
    del leaving[:n]


def shared(t: Tensor) -> np.ndarray | None:
    """Have a tensor, whose elements are lost, in memory that host and device share, and give that; None where a device has none.
    What uses it is bound anew: a recording knows only the buffer that it had."""
    block, device = t.block, t.device
    if type(block) is not Block or device.kind != "cpu" or not t.nbytes:
        return None
    if getattr(block.buffer, "hostbuf", None) is None:
        try:
            if not device.cl_device.svm_capabilities & cl.device_svm_capabilities.FINE_GRAIN_BUFFER:
                return None
            array = cl.fsvm_empty(device.context, block.nbytes + SLACK, np.dtype(np.uint8), alignment=ALIGNED)
        except (cl.Error, AttributeError):  # drivers of OpenCL 1.2 do not know the question
            return None
        array[...] = 255 if device.memory.poisoned else 0
        take_over(device.context, block, array)
        finish(device)
        finalize(block, _leaving[device].append, array)
    found: np.ndarray = block.buffer.hostbuf[: t.nbytes].view(t.dtype).reshape(t.shape)
    return found


def take_over(context: cl.Context, block: Block, array: np.ndarray) -> None:
    """Have a block in the memory of an array."""
    flags = cl.mem_flags.READ_WRITE | cl.mem_flags.USE_HOST_PTR
    block.buffer = cl.Buffer(context, flags, hostbuf=array)


class Unchanged:
    """What a recording of a model's outputs stands on, other than the values of its parameters."""

    def __init__(self, model: Any, step: Step) -> None:
        self.model, self.device, self.watch, self.version = model, model.device, step.watched(), structure_version()
        self.parameters = [(p, p.block) for p in model.parameters()]

    def holds(self) -> bool:
        """Whether that is as it was."""
        return (
            self.version == structure_version()
            and self.model.device is self.device
            and all(p.block is block for p, block in self.parameters)
            and not self.watch.changed()
        )


class Direct:
    """A recording between arrays of the host: `inputs`, whose memory was shared when it was made, and `outputs`."""

    def __init__(self, recording: Recording, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        self.recording, self.inputs, self.outputs = recording, inputs, outputs
        self.device = recording.device
        self.places = [shared(t) for t in inputs]
        # Others may be weights, which other recordings have where they are
        self.found = [shared(t) if recording.made(t.block) else None for t in outputs]
        self.patience = PATIENCE
        recording.calls = []  # bound anew at the next replay

    def _look_for_a_while(self) -> None:
        """Ask until a replay has ended, if that is soon: a thread that sleeps is woken late."""
        event, until = self.recording.last, time.perf_counter() + SOON
        while (
            self.patience
            and event is not None
            and event.command_execution_status > cl.command_execution_status.COMPLETE
        ):
            if time.perf_counter() > until:
                self.patience -= 1
                return
            let_others_run()
        self.patience = self.patience and PATIENCE

    def put(self, arrays: Iterable[np.ndarray]) -> None:
        """The inputs of the next replay."""
        if any(place is not None for place in self.places):
            self.device.finish()  # an upload before it may be under way
        for t, place, array in zip(self.inputs, self.places, arrays):
            if place is None:
                self.device.upload(np.ascontiguousarray(array), t.block)
            else:
                place[...] = array

    def take(self) -> list[np.ndarray]:
        """Copies of the outputs, after the last replay."""
        if any(place is not None for place in self.found):
            self._look_for_a_while()
            finish(self.device)
        return [t.numpy() if place is None else place.copy() for t, place in zip(self.outputs, self.found)]
