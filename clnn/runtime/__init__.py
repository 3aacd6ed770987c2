"""Devices, programs, memory and recording; everything above launches kernels through here."""

import os
import tempfile

from platformdirs import user_cache_dir

try:  # pyopencl ends in an error where it cannot write its own cache, as on a full disk or without a home
    folder = user_cache_dir("pytools", "pytools")
    os.makedirs(folder if os.path.isabs(folder) else "", exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(1 << 16))
except (OSError, RuntimeError):
    os.environ.setdefault("PYOPENCL_NO_CACHE", "1")
