"""What PoCL needs: threads that stay where they are and have the stack for it, and, pip's, a linker."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from platform import libc_ver
from typing import Any

import pyopencl as cl

from ...errors import DeviceError


@contextlib.contextmanager
def pinned_threads() -> Iterator[None]:
    """PoCL pins its threads if POCL_AFFINITY=1 while it starts, and otherwise often wakes two on one core (measured:
    half the speed of small GEMMs). The user's own setting wins; the variable goes again, so that children do not pin.
    """
    if "POCL_AFFINITY" in os.environ:
        yield
        return
    os.environ["POCL_AFFINITY"] = "1"
    try:
        yield
    finally:
        del os.environ["POCL_AFFINITY"]


def deep_stacks() -> bool:
    """Whether threads have 2 MiB of stack or more, as with glibc; musl gives them 128 KiB, macOS 512."""
    if libc_ver()[0] != "glibc":
        return False
    import resource  # not on Windows

    most = resource.getrlimit(resource.RLIMIT_STACK)[0]
    return most == resource.RLIM_INFINITY or most >= 1 << 21


def why_none(platform: str) -> str:
    """What leaves PoCL without a device, in words; "" for other platforms."""
    if platform != "Portable Computing Language":
        return ""
    named = os.environ.get("POCL_DEVICES")
    if named is not None:
        return f": POCL_DEVICES={named!r} names none that this PoCL has; unset it"
    return ": it has none where it may not write its cache; set POCL_CACHE_DIR, ~/.cache/pocl if unset, to a folder that can be"


def find_linker(device: Any) -> None:
    """pip's PoCL links kernels with `ld`, and without one ends the whole process: look for it first."""
    if device.pocl_version != (3, 0) or shutil.which("ld"):
        return
    scripts = os.path.join(sys.prefix, "bin")
    if not shutil.which("ld", path=scripts):
        raise DeviceError(
            f"{device!r} links its kernels with ld, which is not here; install it (Debian, Ubuntu: apt-get install "
            "binutils libc6-dev libgcc-12-dev), or take a PoCL from your system's packages"
        )
    os.environ["PATH"] = os.environ.get("PATH", "") + os.pathsep + scripts


def early(device: Any) -> Iterator[cl.Context]:
    """A context, with what PoCL loads for the first program of each, which takes it half a second; none on other platforms."""
    if device.pocl_version != (0, 0):
        with pinned_threads(), contextlib.suppress(cl.Error):
            context = cl.Context([device.cl_device])
            cl.Program(context, "kernel void nothing() {}").build()
            yield context
