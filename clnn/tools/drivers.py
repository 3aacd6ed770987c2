"""What lies between clnn and a device: the OpenCL loader in use, the drivers it is told of, and the cards in this machine.

Nothing here loads a driver.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

VENDORS = "/etc/OpenCL/vendors"
# Variables that some loader reads: ocl-icd, which pyopencl's wheels bring along, knows no OCL_ICD_FILENAMES (its issue 797)
VARIABLES = ("OCL_ICD_VENDORS", "OPENCL_VENDOR_PATH", "OCL_ICD_FILENAMES")
REGISTRY = r"SOFTWARE\Khronos\OpenCL\Vendors"
MAKERS = {"0x1002": "AMD", "0x8086": "Intel", "0x10de": "Nvidia"}
NEEDS = {
    "AMD": "rocm-opencl-icd or rocm-opencl-runtime where the card is supported, or mesa-opencl-icd and RUSTICL_ENABLE=radeonsi",
    "Intel": "intel-opencl-icd (intel-compute-runtime on Arch and Fedora)",
    "Nvidia": "Nvidia's own driver with its OpenCL part (Debian: nvidia-opencl-icd; Arch: opencl-nvidia)",
}


class Loader(NamedTuple):
    """The library libOpenCL in this process: its path ("" where the system does not tell), and the variables it reads."""

    path: str
    bundled: bool
    kind: str
    reads: tuple[str, ...]

    def __str__(self) -> str:
        whose = "pyopencl's own copy of " if self.bundled else "the system's " if self.path else ""
        return f"{whose}{self.kind}" + (f", {self.path}" if self.path else "")


def loader() -> Loader:
    """The loader that pyopencl is linked with."""
    import pyopencl as cl

    path = _loaded("libOpenCL" if sys.platform == "linux" else "OpenCL")
    if not path:
        return Loader("", False, "the system's libOpenCL", VARIABLES)
    bundled = Path(path).is_relative_to(Path(cl.__file__).parent.parent)
    try:
        content = Path(path).read_bytes()
    except OSError:
        return Loader(path, bundled, "libOpenCL", VARIABLES)
    kind = "ocl-icd" if b"ocl-icd" in content else "Khronos' loader" if b"OCL_ICD_FILENAMES" in content else "libOpenCL"
    return Loader(path, bundled, kind, tuple(name for name in VARIABLES if name.encode() in content))


def _loaded(name: str) -> str:
    """The path of a library of this process by the start of its name, where the system tells."""
    if sys.platform == "win32":
        kernel: Any = ctypes.WinDLL("kernel32")
        kernel.GetModuleHandleW.restype = ctypes.c_void_p
        kernel.GetModuleFileNameW.argtypes = [ctypes.c_void_p, ctypes.c_wchar_p, ctypes.c_uint32]
        text = ctypes.create_unicode_buffer(1024)
        handle = kernel.GetModuleHandleW(f"{name}.dll")
        return text.value if handle and kernel.GetModuleFileNameW(handle, text, 1024) else ""
    if sys.platform == "darwin":
        system = ctypes.CDLL(None)
        system._dyld_get_image_name.restype = ctypes.c_char_p
        paths = [os.fsdecode(system._dyld_get_image_name(i) or b"") for i in range(system._dyld_image_count())]
    else:
        try:
            lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        except OSError:
            return ""
        paths = [line.split(maxsplit=5)[-1] for line in lines]
    return next((path for path in paths if path.rpartition("/")[2].startswith(name)), "")


def vendor_files(of: Loader) -> list[Path]:
    """The .icd files that the loader reads: each holds the name of one library, a driver. Also those beside pyopencl's own."""
    names = [name for name in ("OCL_ICD_VENDORS", "OPENCL_VENDOR_PATH") if name in of.reads and os.environ.get(name)]
    where = Path(os.environ[names[0]] if names else VENDORS)
    files = [where] if where.is_file() else sorted(where.glob("*.icd"))
    beside = sorted(Path(of.path).parent.glob("*.icd")) if of.path else []
    return files + [file for file in beside if file not in files]


def registered() -> list[str]:
    """The drivers in Windows' registry under the key of old; newer ones are registered with their display adapter."""
    if sys.platform != "win32":
        return []
    import winreg

    found = []
    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, REGISTRY) as key:
            for i in range(winreg.QueryInfoKey(key)[1]):
                name, value, _ = winreg.EnumValue(key, i)
                found.append(f"{name}{'' if value == 0 else ' (switched off)'}")
    except OSError:
        pass
    return found


class Card(NamedTuple):
    """A graphics card that Linux knows, the kernel's driver of it, and the files of it that this user may not open."""

    maker: str
    driver: str
    closed: tuple[str, ...]


def cards(root: Path = Path("/")) -> list[Card]:
    """The cards of Linux' /sys by AMD, Intel and Nvidia, and a card behind WSL's /dev/dxg."""
    found = []
    for device in sorted(root.glob("sys/class/drm/card[0-9]*/device")):
        if "-" in device.parent.name:  # an output of a card
            continue
        try:
            maker = MAKERS.get((device / "vendor").read_text(encoding="ascii").strip())
        except (OSError, UnicodeDecodeError):
            continue
        if maker:
            driver = (device / "driver").resolve().name if (device / "driver").exists() else "none"
            files = [root / "dev/dri" / node.name for node in sorted(device.glob("drm/renderD*"))]
            files += [root / "dev/kfd"] if driver == "amdgpu" else []
            found.append(Card(maker, driver, tuple(str(file) for file in files if _closed(file))))
    if not any(card.maker == "Nvidia" for card in found) and (root / "dev/nvidia0").exists():
        found.append(Card("Nvidia", "nvidia", ()))
    if (root / "dev/dxg").exists():
        found.append(Card("WSL", "dxgkrnl", ("/dev/dxg",) if _closed(root / "dev/dxg") else ()))
    return found


def _closed(file: Path) -> bool:
    return file.exists() and not os.access(file, os.R_OK | os.W_OK)
