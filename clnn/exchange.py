"""Arrays of other libraries as tensors: by DLPack, and of PyOpenCL over the same memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from .errors import DataError
from .runtime import shared
from .runtime.device import Device
from .runtime.devices.choice import resolve
from .tensor import Tensor, tensor, truths

# kinds of devices by DLDeviceType in dlpack.h, DLPack 1.1
HOST = (1, 3, 11)  # its memory, also what CUDA and ROCm have pinned there
OTHERS = {2: "CUDA", 4: "OpenCL", 7: "Vulkan", 8: "Metal", 10: "ROCm", 13: "CUDA (managed)", 14: "oneAPI"}


def from_dlpack(value: Any, device: str | Device | None = None, *, copy: bool | None = None) -> Tensor:
    """A tensor with a copy of what an array of another library holds, which has `__dlpack__` and lies in the host's memory. Types
    as for `tensor`, but for float64, which stays. DataError where it lies elsewhere, or has a type that NumPy has not, and for
    copy=False; of PyOpenCL's arrays `from_pyopencl` makes tensors without a copy. A tensor that is already there comes back as it
    is, unless `copy` is True.
    """
    if isinstance(value, Tensor) and not copy:
        return tensor(value, device=device)
    if copy is False:
        raise DataError(
            "from_dlpack copies what lies in the host's memory, and copy=False was asked for: leave copy out"
        )
    if isinstance(value, Tensor):
        value.refuse_history("from_dlpack with a copy")
    try:
        place = tuple(value.__dlpack_device__())
        if place[0] not in HOST:
            raise BufferError(
                f"it lies on a device of {OTHERS.get(place[0], 'another kind')}, {place} in DLPack's terms"
            )
        array = value if isinstance(value, np.ndarray) else np.from_dlpack(value)
    except (TypeError, ValueError, RuntimeError, BufferError, AttributeError) as error:
        remedy = (
            "clnn.from_pyopencl(array) shares it"
            if type(value).__module__ == "pyopencl.array"
            else "bring it there and to float32 or int32 first, as .cpu() and .float() do in PyTorch, or give clnn.tensor() an "
            "array of NumPy"
        )
        raise DataError(
            f"from_dlpack takes an array with __dlpack__ in the host's memory, and this {type(value).__name__} is none: {error}; "
            f"{remedy}"
        ) from error
    return truths(tensor(array, np.float64 if array.dtype == np.float64 else None, device), value)


def from_pyopencl(array: Any, device: str | Device | None = None, *, copy: bool = False) -> Tensor:
    """A tensor over the memory of a `pyopencl.array.Array`, which has to be in the context of the device in use, or of `device`;
    what is written into the array, the tensor holds.

        queue, allocator = clnn.device().queue, clnn.device().allocator
        t = clnn.from_pyopencl(pyopencl.array.to_device(queue, x, allocator=allocator))

    In that queue all is done in order. Another queue of the array is waited for here, and from then on each side waits for the
    other, by `array.finish()` and `clnn.device().finish()`. The memory lives as long as either side.

    DataError where clnn's kernels cannot work there: the context, the type, the strides, where the array begins, no room behind
    it. With `copy` it is copied instead, from any context, with types as for `tensor`, but for float64, which stays. ClnnError
    within a step.
    """
    shared.check_array(array)
    where = resolve(device)
    where.check_outside("from_pyopencl", "give the tensor as an argument, or make it before")
    if copy or not array.size:
        if array.dtype not in shared.TYPES:
            return tensor(shared.values(array), None, where)
        where.real(array.dtype)
        y = Tensor(where.allocate(array.nbytes), array.shape, array.dtype, where)
        if not shared.copied(where, array, y.block):
            where.upload(np.ascontiguousarray(shared.values(array)), y.block)
        return y
    if why := shared.obstacle(where, array):
        raise DataError(f"from_pyopencl cannot share this array: {why}; or give copy=True")
    where.real(array.dtype)  # an error where it has none
    return Tensor(shared.adopt(where, array), array.shape, array.dtype, where)
