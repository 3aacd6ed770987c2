"""The choice of a device: which devices there are, which one a name means, and which one is in use.

The default is a GPU before an accelerator before a CPU, then one with memory of its own, then the fastest (ranking.py);
`CLNN_DEVICE` chooses another.
"""

from __future__ import annotations

import contextlib
import copyreg
import os
import threading
from typing import Any

import pyopencl as cl

from ...errors import ArgumentError, DeviceError, warn
from ..device import Device
from .form import KINDS
from .pocl import pinned_threads, why_none
from .ranking import distinct, mark_twins, rank

BROKEN = (cl.Error, UnicodeDecodeError)  # what asking a broken driver ends in
HOW_TO_GET_ONE = (
    "A driver is installed as a system package (Debian, Ubuntu: pocl-opencl-icd for any CPU, mesa-opencl-icd or "
    "rocm-opencl-runtime for AMD, intel-opencl-icd for Intel; Nvidia's driver brings its own), or, without root on "
    "Linux x86-64, by pip install pocl-binary-distribution. `clnn doctor` says more."
)

_lock = threading.Lock()
_found: list[Device] | None = None
_faults: list[str] = []
_default: tuple[Any, Device] | None = None


class _Chosen(threading.local):
    """The devices of the `clnn.use(...)` that a thread is in, the innermost last."""

    def __init__(self) -> None:
        self.stack: list[Device] = []


_chosen = _Chosen()


def devices() -> list[Device]:
    """Every device of every OpenCL platform, less those that `CLNN_DEVICE_EXCLUDE` names, by kinds and parts of names with
    commas between; empty without a driver."""
    global _found
    with _lock:
        if _found is None:
            every: list[Device] = []
            _faults.clear()
            try:
                with pinned_threads():
                    platforms = cl.get_platforms()
            except cl.Error:  # the loader found no platform at all
                platforms = []
            for p, platform in enumerate(platforms):
                try:
                    with pinned_threads():
                        found = platform.get_devices()
                    if not found:
                        name = platform.name.strip()
                        _faults.append(f"platform {p}, {name}, has no device{why_none(name)}")
                except BROKEN as error:
                    _faults.append(f"platform {p} does not list its devices: {error}")
                    continue
                for d, cl_device in enumerate(found):
                    try:
                        every.append(Device(cl_device, p, d))
                    except BROKEN as error:
                        _faults.append(f"device {p}:{d} does not say what it is: {error}")
            mark_twins(every)
            _found = every
    unwanted = [part.strip().lower() for part in os.environ.get("CLNN_DEVICE_EXCLUDE", "").split(",") if part.strip()]
    return [device for device in _found if not any(_fits(device, part) for part in unwanted)]


def faults() -> list[str]:
    """What was wrong with platforms and devices that `devices()` left out, a sentence each."""
    devices()
    return list(_faults)


def _fits(device: Device, part: str) -> bool:
    """Whether `part` is the device's kind, or for other words a part of its names."""
    return device.kind == part if part in KINDS else part in _label(device)


def _label(device: Device) -> str:
    maker, vendor = device.cl_device.vendor, device.cl_device.platform.vendor
    return f"{device.platform} {device.version} {vendor} {device.name} {maker} {device.driver}".lower()


def find_device(want: str = "", source: str = "the name") -> Device:
    """The device that `want` means: a kind (gpu, cpu, accelerator), a part of a name, either with `:index`, or
    platform:device as two indices; empty means the best one. No match is an error, never another device. A device that two
    platforms have counts once, as that of the first, except where the indices or the name say the other.
    """
    if not isinstance(want, str):
        raise ArgumentError(f"a device is named by text such as 'cpu', or is one of clnn.devices(); not {want!r:.80}")
    there = devices()
    if not there and _found:
        raise DeviceError("CLNN_DEVICE_EXCLUDE leaves out every OpenCL device. Correct or unset it.")
    if not there:
        found_none = f"There is no OpenCL device{''.join(f'; {fault}' for fault in _faults)}"
        raise DeviceError(f"{found_none}. {HOW_TO_GET_ONE}")
    best_first = sorted(there, key=rank, reverse=True)
    want = want.strip()
    if not want:
        return distinct(best_first)[0]
    head, _, tail = want.partition(":")
    matches: list[Device] = []
    if head.isdecimal() and (not tail or tail.isdecimal()):
        wanted = [(number.lstrip("0") or "0")[:9] for number in (head, tail)]  # Python reads no numbers of any length
        matches = [d for d in there if wanted == [str(d.platform_index), str(d.device_index)]]
    else:
        index = int(tail[:9]) if tail.isdecimal() else None
        part = head if index is not None else want
        found = distinct([d for d in best_first if _fits(d, part.lower())])
        matches = found if index is None else found[index : index + 1]
    if not matches:
        listing = "\n".join(
            f"  {d.platform_index}:{d.device_index}  {d.kind}  {d.name}  ({d.platform} {d.version})" for d in there
        )
        hidden = len(_found or ()) - len(there)
        less = f" (CLNN_DEVICE_EXCLUDE leaves out {hidden})" if hidden else ""
        raise DeviceError(
            f"{source} {want!r} matches no OpenCL device{less}. There are:\n{listing}\n"
            f"Give a kind (gpu, cpu), a part of a name, or platform:device such as 0:0. {HOW_TO_GET_ONE}"
        )
    return matches[0]


def device() -> Device:
    """The device in use: that of the innermost `clnn.use(...)`, else CLNN_DEVICE's, else PYOPENCL_CTX's, else the best."""
    global _default
    if _chosen.stack:
        return _chosen.stack[-1]
    asked = (
        os.environ.get("CLNN_DEVICE", ""),
        os.environ.get("PYOPENCL_CTX", ""),
        os.environ.get("CLNN_DEVICE_EXCLUDE", ""),
    )
    if _default is None or _default[0] != asked:
        if asked[0].strip():
            found = find_device(asked[0], "CLNN_DEVICE")
        elif asked[1].strip():
            found = find_device(asked[1], "PYOPENCL_CTX")
        else:
            found = find_device()
        _default = (asked, found)
    return _default[1]


copyreg.pickle(Device, lambda one: (device, ()))  # what was pickled with it comes back on the device in use there


class Using(contextlib.ContextDecorator):
    """The block, or the function, in which a device is used. Whoever drops it without one is warned: nothing has changed."""

    def __init__(self, chosen: Device) -> None:
        self.chosen, self.taken = chosen, False

    def __call__(self, function: Any) -> Any:
        self.taken = True
        return super().__call__(function)

    def __enter__(self) -> Device:
        self.taken = True
        _chosen.stack.append(self.chosen)
        return self.chosen

    def __exit__(self, *_: Any) -> None:
        _chosen.stack.pop()

    def __del__(self) -> None:
        if not self.taken:
            warn('clnn.use() alone changes nothing: write "with clnn.use(...):"')


def use(which: str | Device) -> Using:
    """`with clnn.use("gpu"):` makes new models and tensors on that device, in this thread."""
    return Using(which if isinstance(which, Device) else find_device(which, "clnn.use"))


def resolve(which: str | Device | None) -> Device:
    """A device from what a user gave: a `Device`, a name as for CLNN_DEVICE, or None for the one in use."""
    if which is None:
        return device()
    return which if isinstance(which, Device) else find_device(which, "device")
