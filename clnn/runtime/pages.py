"""Large pages for large blocks on CPUs: one of 4 KB has to be looked up, and faults at its first use, as one of 2 MB does.

Linux gives them to everybody ("always"), to nobody, or to those who ask ("madvise"), as NumPy does for its arrays. Without
them a first upload of 16 MB took twice as long, and in two of seven processes, by where in memory it came to lie, a product with
200 MB of weights a third longer.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyopencl as cl

LARGE = 4 << 20  # bytes of a block that is worth the 0.1 ms that asking takes
PAGE = 4096  # where what is asked for begins and ends
MADV_HUGEPAGE = 14
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


class LargePages:
    """Asks for a device's blocks, where that helps: on PoCL's CPUs, whose buffers are memory of this process."""

    def __init__(self, context: cl.Context, device: cl.Device) -> None:
        pocl = device.platform.name.strip() == "Portable Computing Language"
        setting = ""
        if pocl and device.type & cl.device_type.CPU and sys.platform == "linux":
            with contextlib.suppress(OSError):
                setting = SETTING.read_text(encoding="utf-8")
        # a queue of its own, in which nothing has to be waited for
        self._queue = cl.CommandQueue(context) if "[madvise]" in setting else None

    def ask(self, buffer: Any, nbytes: int) -> None:
        """Ask for a buffer that was just allocated. Where Linux has none left, it stays as it is."""
        if self._queue is None:
            return
        with contextlib.suppress(cl.Error):
            write = cl.map_flags.WRITE
            mapped: Any = cl.enqueue_map_buffer(self._queue, buffer, write, 0, (nbytes,), np.uint8, is_blocking=True)
            array = mapped[0]
            start = array.__array_interface__["data"][0]
            first, last = -(-start // PAGE) * PAGE, (start + nbytes) // PAGE * PAGE
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), MADV_HUGEPAGE)
            array.base.release(self._queue)
            self._queue.finish()
