"""Every exception that clnn raises on purpose, and `warn`.

ClnnError
├── DeviceError            no such device, or one that cannot do what was asked
├── BuildError             an OpenCL program did not compile; carries the build log
├── ShapeError             (also ValueError)
│   └── OutOfRangeError    (also IndexError): what ends an iteration, too
├── OutOfDeviceMemory      (also MemoryError)
├── CheckpointError        a model file that is missing, damaged or does not fit
├── DataError              (also ValueError)
├── ConfigurationError     (also ValueError)
│   └── ArgumentError      (also TypeError): an argument that a class does not take
├── DistributedError       a rank that failed, differs or does not come (clnn.distributed)
└── Diverged               a loss that stopped being finite
"""

import re
import sys
import warnings

__all__ = [
    "ArgumentError", "BuildError", "CheckpointError", "ClnnError", "ConfigurationError", "DataError", "DeviceError",
    "DistributedError", "Diverged", "OutOfDeviceMemory", "OutOfRangeError", "ShapeError",
]  # fmt: skip


class ClnnError(Exception):
    """Base of every error clnn raises on purpose."""


class DeviceError(ClnnError):
    """No OpenCL device matches, or the device cannot do what was asked of it."""


class BuildError(ClnnError):
    """An OpenCL program did not compile; the message holds the build log."""

    @staticmethod
    def remedy(log: str) -> str:
        """What a user can do about it, or "" where only we can."""
        # without a word of its compiler
        if "error:" not in log and re.search(r"Device \S.* failed to build the program\s+\(options", log):
            return (
                "PoCL says so where it cannot write its cache: make room on its disk, or set POCL_CACHE_DIR (~/.cache/pocl if "
                "unset) to a folder that can be written"
            )
        if "unknown target CPU" not in log:
            return ""
        return (
            "The driver is older than this processor and does not know it: install a newer PoCL (Debian 12 and Ubuntu 24.04 "
            "have one as pocl-opencl-icd), or on x86 Intel's runtime from pip (CONTRIBUTING.md says how)"
        )


class ShapeError(ClnnError, ValueError):
    """Arrays whose shapes do not fit each other or the layer they were given to."""


class OutOfRangeError(ShapeError, IndexError):
    """An index that an axis does not have."""


class OutOfDeviceMemory(ClnnError, MemoryError):
    """A buffer would exceed the device's memory, the largest piece that it gives, or the budget set for it."""

    def inside(self, layer: str) -> None:
        """Say which layer it was that wanted the memory: the innermost, whose call comes first."""
        if not getattr(self, "layer", ""):
            self.layer = layer
            self.args = (f"{layer}: {self}",)


class CheckpointError(ClnnError):
    """A model file is missing, damaged, or does not fit the model it is loaded into."""


class DataError(ClnnError, ValueError):
    """A data file, feature or label that cannot be used as it stands."""


class ConfigurationError(ClnnError, ValueError):
    """An unknown name or a hyper-parameter outside its range."""


class ArgumentError(ConfigurationError, TypeError):
    """An argument that a class does not take, such as one of another library's name."""


class DistributedError(ClnnError):
    """Of several ranks one failed, does something else than the others, or does not come; the message names it."""


class Diverged(ClnnError):
    """The loss of a training step stopped being finite."""


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    """A warning at the line that called clnn, however deep in it the reason was found."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("clnn", "contextlib"):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, category, stacklevel=level)
