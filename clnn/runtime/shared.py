"""Memory shared with arrays of PyOpenCL: theirs as a block, and a block as one of theirs, without a copy where that is safe."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.tools as cl_tools
from pyopencl.array import Array

from ..errors import ClnnError, DataError
from .device import Device
from .memory import SLACK, Block

TYPES = [np.dtype(kind) for kind in (np.float32, np.float64, np.int32)]
PLAIN = cl.mem_flags.READ_WRITE | cl.mem_flags.ALLOC_HOST_PTR | cl.mem_flags.COPY_HOST_PTR


class Foreign(Block):
    """The memory of an array of PyOpenCL, which it keeps alive: a buffer `base` from `offset` on."""

    __slots__ = ("base", "offset")

    def __init__(self, device: Device, array: Any) -> None:
        self.base, self.offset = array.base_data, array.offset
        super().__init__(device, array.nbytes, self.base, device.memory, 0, False)
        self.written_once = True


def check_array(array: Any) -> None:
    """DataError for what is no array of PyOpenCL."""
    if not isinstance(array, Array):
        raise DataError(
            f"from_pyopencl takes a pyopencl.array.Array, and a {type(array).__name__} was given; clnn.tensor(array) takes "
            "NumPy's arrays, and clnn.from_dlpack(array) those of other libraries"
        )


def obstacle(device: Device, array: Any) -> str:
    """Why clnn cannot work on an array's memory as it is, and the remedy; "" where it can."""
    base, end = array.base_data, array.offset + array.nbytes + SLACK
    if array.context != device.context:
        return f"it lies in another context than {device!r}; make it in the queue clnn.device().queue"
    if array.dtype not in TYPES:
        return f"it holds {array.dtype}, and tensors hold float32, float64 or int32; convert it with .astype"
    if not array.flags.c_contiguous:
        return (
            f"its shape is {array.shape} with strides of {array.strides} bytes, and tensors are contiguous, row by row"
        )
    if not isinstance(base, cl.MemoryObjectHolder):
        return f"its memory is a {type(base).__name__}, and tensors lie in buffers"
    if base.flags & ~PLAIN:
        return "its buffer is not one that kernels read and write in the device's own memory (it has other mem_flags)"
    if array.offset % device.alignment:
        return (
            f"it begins {array.offset} bytes into its buffer, which is no multiple of the device's {device.alignment}"
        )
    if base.size < end:
        return (
            f"its buffer has {base.size} bytes, and {end} are needed, because kernels may read {SLACK} bytes behind an array; "
            "allocate it with allocator=clnn.device().allocator"
        )
    if isinstance(base, cl_tools.PooledBuffer) and array.queue != device.usual_queue:
        return "its memory is from a pool, which gives it away for other work in another queue; use clnn.device().queue"
    return ""


def adopt(device: Device, array: Any) -> Block:
    """The memory of an array, which `obstacle` allows, after the work on it that was enqueued before."""
    _wait_for(device, array)
    block = Foreign(device, array)
    if array.offset:
        try:
            whole: Any = cl.Buffer.from_int_ptr(block.base.int_ptr)  # one from a pool gives no regions
            block.buffer = whole.get_sub_region(array.offset, array.nbytes + SLACK)
        except cl.Error as error:  # of a buffer that is part of another one
            raise DataError(
                f"from_pyopencl cannot share a part of this array's buffer: {error}; copy=True copies it"
            ) from error
    return block


def copied(device: Device, array: Any, block: Block) -> bool:
    """Copy an array into a block on the device, if both are there; whether they are. Nobody has to wait for it."""
    together = array.context == device.context and isinstance(array.base_data, cl.MemoryObjectHolder)
    if not (together and array.flags.c_contiguous and array.dtype in TYPES):
        return False
    _wait_for(device, array)
    device.call("copy", _copy_from, (Foreign(device, array), block), (array.offset, array.nbytes))
    if array.queue != device.queue:
        device.finish()  # the array may be written in its own queue next
    return True


def values(array: Any) -> np.ndarray:
    """An array's elements on the host, of any strides."""
    queue, base = array.queue or cl.CommandQueue(array.context), array.base_data
    array.finish()
    if array.flags.forc or not hasattr(base, "size"):  # of shared virtual memory
        found: np.ndarray = array.get(queue)
        return found
    whole = np.empty(base.size, np.uint8)
    cl.enqueue_copy(queue, whole, base)
    return np.ndarray(array.shape, array.dtype, whole, array.offset, array.strides)


def lend(device: Device, block: Block, shape: tuple[int, ...], dtype: np.dtype[Any], queue: Any) -> Any:
    """An array of PyOpenCL over a block, in a queue of its own or else clnn's, after the work that was enqueued before."""
    if not block.written_once:
        raise ClnnError(
            f"to_pyopencl(): this tensor of shape {shape} is a constant, or clnn writes into it again (a parameter, a gradient, "
            "a layer's state, what was kept from within a step), and the array would change with it: give copy=True"
        )
    queue = device.usual_queue if queue is None else queue
    if queue.context != device.context:
        raise ClnnError(
            f"to_pyopencl: the queue is one of another context; give one of {device!r}'s, clnn.device().context"
        )
    if queue != device.queue:
        device.finish()
    base, offset = (block.base, block.offset) if isinstance(block, Foreign) else (block.buffer, 0)
    return Array(queue, shape, dtype, data=base, offset=offset, allocator=device.allocator)


def _wait_for(device: Device, array: Any) -> None:
    array.finish()  # its events
    if array.queue is not None and array.queue != device.queue:
        array.queue.finish()


def _copy_from(
    queue: cl.CommandQueue, source: cl.Buffer, target: cl.Buffer, offset: int, nbytes: int
) -> cl.Event | None:
    return cl.enqueue_copy(queue, target, source, src_offset=offset, byte_count=nbytes)
