"""How devices compare: which one is the best, and which are one device that is listed twice."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyopencl as cl

from ..device import Device

KIND_ORDER = ("other", "cpu", "accelerator", "gpu")
# Multiplications of floats that what a maker of GPUs calls a compute unit starts in a cycle
UNIT_LANES = {
    "nvidia": 128,  # a multiprocessor, but for NARROW (CUDA C++ Programming Guide, table "Arithmetic Instructions")
    "amd": 64,  # 4 vectors of 16, or 2 of 32 (the white papers "AMD Graphics Cores Next" and "RDNA Architecture")
    "advanced micro devices": 64,
    "intel": 8,  # an execution unit ("The Compute Architecture of Intel Processor Graphics Gen9", section 5.3)
    "apple": 128,  # a core; an M1 has 8 of them and 1,024 units for arithmetic
}
NARROW = {(6, 0), (7, 0), (7, 2), (7, 5), (8, 0)}  # Nvidia's compute capabilities with 64
OTHER_LANES = 32  # a core of the GPUs of phones, from 16 to 128
USUAL_CLOCK = 1000  # MHz, where a driver says 0


def unit_lanes(device: Device) -> int:
    """Floats that a compute unit multiplies in a cycle, as far as is known; 1 for all but GPUs, which are compared as they
    are."""
    if device.kind != "gpu":
        return 1
    one = device.cl_device
    maker = next((word for word in UNIT_LANES if re.search(rf"\b{word}\b", one.vendor, re.IGNORECASE)), "")
    with contextlib.suppress(cl.Error, AttributeError):
        if maker == "nvidia" and (one.compute_capability_major_nv, one.compute_capability_minor_nv) in NARROW:
            return 64
    return UNIT_LANES.get(maker, OTHER_LANES)


def rank(device: Device) -> tuple[int, bool, int]:
    """The larger the better: the kind, then memory of its own, then multiplications a microsecond."""
    kind = KIND_ORDER.index(device.kind)
    return kind, not device.unified, device.compute_units * unit_lanes(device) * (device.clock_mhz or USUAL_CLOCK)


def reason(device: Device) -> str:
    """What `rank` goes by, in words."""
    lanes = f" x {unit_lanes(device)} lanes" if device.kind == "gpu" else ""
    clock = f"{device.clock_mhz} MHz" if device.clock_mhz else f"a clock that is not told, taken for {USUAL_CLOCK} MHz"
    memory = "the host's memory" if device.unified else "memory of its own"
    return f"{device.kind}, {memory}, {device.compute_units} units{lanes} x {clock}"


def _slot(cl_device: Any) -> tuple[int, ...] | None:
    """Where a card sits on the PCI bus, where its driver tells: domain, bus, device."""
    with contextlib.suppress(cl.Error, AttributeError):
        bus = cl_device.pci_bus_id_nv, cl_device.pci_slot_id_nv
        with contextlib.suppress(cl.Error, AttributeError):
            return (cl_device.pci_domain_id_nv, *bus)
        return (0, *bus)
    with contextlib.suppress(cl.Error, AttributeError):
        at = cl_device.topology_amd
        return 0, at.bus & 0xFF, at.device & 0xFF  # signed bytes there
    return None


def mark_twins(devices: Sequence[Device]) -> None:
    """Set `twin` on each device that an earlier platform has as well: the same card, or, where no driver tells its place,
    the same name by the same driver, which two vendor files for one library make."""
    seen: dict[Any, Device] = {}
    count: Counter[Any] = Counter()
    for device in devices:
        slot = _slot(device.cl_device)
        key = slot or (device.platform, device.version, device.driver, device.name)
        count[device.platform_index, key] += 1  # a platform's own devices are all different
        first = seen.setdefault((key, count[device.platform_index, key]), device)
        device.twin = None if first is device else first


def distinct(devices: Sequence[Device]) -> list[Device]:
    """Without those whose twin is among them too."""
    return [device for device in devices if device.twin not in devices]
