"""Devices, programs, memory and recording; everything above launches kernels through here."""

import os

if os.path.expanduser("~") == "~" and not os.environ.get("XDG_CACHE_HOME"):  # pyopencl's own cache needs a home
    os.environ.setdefault("PYOPENCL_NO_CACHE", "1")
