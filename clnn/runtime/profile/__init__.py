"""What launches take on the device's own clock: `with clnn.profile() as p:`, then `print(p)` or `p.save("trace.json")`.

A queue of OpenCL times either all its commands or none. So a device that works under a profile has a queue that does, until
the last such profile ends; the queue before it is empty by then, and recordings are bound anew. Profiles belong to the
thread that opened them (timing.py): without one, a launch or a replay looks whether there is one, and that is all.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyopencl as cl

from ...checks import in_range
from ...errors import ConfigurationError, DeviceError
from ...files import as_path, write_atomically
from ..device import Device
from ..memory import Block
from ..recorder import Temporary
from ..timing import active, enter, leave
from .peaks import check_clock, peak_gflops

MOST_PENDING = 1024  # events not yet asked for their times: a driver keeps some hundred bytes for each
MOST_HELD = 64 << 20  # bytes of host arrays that such events keep alive


class Row(NamedTuple):
    """A launch of a profile, over all the times that it ran. Times are in seconds, on the device's clock.

    In a step, the third launch of a kernel over so many work-items is another row than the second; outside of steps they are
    one. `bytes` is the size of the arrays that the launch is given, of which it may read a part. `flops` are those of one
    matrix product or convolution (of its plain sums, so Winograd's algorithm can be above the peak); of others they are
    None, and so are `gflops` and `share`.
    """

    device: Device
    launch: str  # file and name of a kernel and what is compiled in, or what else was enqueued
    size: tuple[int, ...] | None  # work-items
    runs: int
    minimum: float
    median: float
    total: float
    bytes: int
    flops: int | None
    gflops: float | None  # at the median
    share: float | None  # of the device's peak


class _Kind:
    """A row while it grows: when each of its launches started and ended, in nanoseconds."""

    __slots__ = ("device", "label", "size", "nbytes", "flops", "real", "starts", "ends")

    def __init__(self, device: Device, label: str, size: Any, nbytes: int, flops: int, real: str) -> None:
        self.device, self.label, self.size, self.nbytes = device, label, size, nbytes
        self.flops, self.real = flops, real
        self.starts, self.ends = array("q"), array("q")


class Profile:
    """The launches of a block of code and their times. `clnn.profile` makes one."""

    def __init__(self, peak: float | None = None) -> None:
        self.peak = None if peak is None else in_range("peak (in GFLOP/s)", peak, 0, float("inf"), "()")
        self._kinds: dict[tuple[Any, ...], _Kind] = {}
        self._devices: list[Device] = []  # whose queues have to time for this profile
        self._pending: list[tuple[_Kind, Any, Any]] = []  # with the events from whose end, and to whose, it ran
        self._held = 0
        self._step: Any = None  # the step under way, and how often each launch was seen in it
        self._seen: dict[tuple[Any, ...], int] = {}

    def __enter__(self) -> Profile:
        if self in active.profiles:
            raise ConfigurationError("this profile is open already: for a block inside its block take another one")
        enter(self)
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self not in active.profiles:
            raise ConfigurationError(
                "this profile is open in another thread, or in none: who opens one has to close it"
            )
        leave(self)
        try:
            self._collect()
        except (cl.Error, DeviceError):
            if error is None:  # else what happened first is what matters
                raise
        finally:
            self._pending, self._step = [], None
            self._seen.clear()
            while self._devices:
                self._devices.pop().time_launches(False)

    # -- while it is open ---------------------------------------------------------------------------------------------
    def join(self, device: Device) -> None:
        """Have the device's queue time what it runs."""
        if device not in self._devices:
            self._devices.append(device)  # first, because what is opened now asks for the queue
            try:
                check_clock(device)
                device.time_launches(True)
            except BaseException:
                self._devices.remove(device)
                raise

    def note(
        self, device: Device, label: str, size: Any, args: Sequence[Any], before: Any, event: Any, flops: int, real: str,
        step: Any, held: int,
    ) -> None:  # fmt: skip
        """Note what was enqueued, as timing.py says it."""
        if step is not self._step:
            self._step = step
            self._seen.clear()
        key: tuple[Any, ...] = (device, label, size)
        if step is not None:
            self._seen[key] = number = self._seen.get(key, 0) + 1
            key += (number,)
        found = self._kinds.get(key)
        if found is None:
            arrays = {id(one): one.nbytes for one in args if isinstance(one, (Block, Temporary))}
            found = self._kinds[key] = _Kind(device, label, size, held or sum(arrays.values()), flops, real)
        self._pending.append((found, before, event))
        self._held += held
        if len(self._pending) >= MOST_PENDING or self._held >= MOST_HELD:
            self._collect()

    def _collect(self) -> None:
        """Wait for what was launched, and keep its times."""
        pending, self._pending, self._held = self._pending, [], 0
        for device in self._devices if pending else ():
            device.finish()
        for found, before, event in pending:
            try:
                start, end = (event.profile.start if before is None else before.profile.end), event.profile.end
            except cl.Error as error:
                raise DeviceError(f"{found.device!r} does not say when {found.label} ran: {error}") from error
            found.starts.append(start)
            found.ends.append(max(start, end))

    # -- what it found ------------------------------------------------------------------------------------------------
    @property
    def rows(self) -> list[Row]:
        """Its launches, in the order in which each first ran. For shares of the peak, `peak` or else a measurement counts:
        a tenth of a second, once in a process for each device and type, where no step is under way."""
        self._collect()
        return [self._row(one) for one in self._kinds.values() if one.starts]

    def _row(self, one: _Kind) -> Row:
        seconds = [(end - start) * 1e-9 for start, end in zip(one.starts, one.ends)]
        median = statistics.median(seconds)
        rate = one.flops / median * 1e-9 if one.flops and median else None
        peak = self.peak if rate is None else self._peak(one.device, one.real)
        return Row(
            one.device, one.label, one.size, len(seconds), min(seconds), median, sum(seconds), one.nbytes, one.flops or None,
            rate, rate / peak if rate and peak else None,
        )  # fmt: skip

    def _peak(self, device: Device, real: str) -> float | None:
        if self.peak is not None or device.within:
            return self.peak
        open_here, active.profiles = active.profiles, ()  # the measurement is nobody's launch
        try:
            return peak_gflops(device, real)
        finally:
            active.profiles = open_here

    def table(self) -> str:
        """The rows as a table, for each device its own: times in microseconds, the total in milliseconds and percent."""
        rows = self.rows
        parts = []
        for device in dict.fromkeys(row.device for row in rows):
            mine = [row for row in rows if row.device is device]
            total = sum(row.total for row in mine)
            lines = [
                (
                    "launch",
                    "work-items",
                    "runs",
                    "minimum us",
                    "median us",
                    "total ms",
                    "%",
                    "MB",
                    "GFLOP/s",
                    "of peak",
                )
            ]
            for row in mine:
                lines.append((
                    row.launch.partition("{")[0],
                    "x".join(map(str, row.size or ())),
                    f"{row.runs:,}",
                    f"{row.minimum * 1e6:,.1f}",
                    f"{row.median * 1e6:,.1f}",
                    f"{row.total * 1e3:,.2f}",
                    f"{100 * row.total / total if total else 0:.1f}",
                    f"{row.bytes * 1e-6:,.3f}",
                    "" if row.gflops is None else f"{row.gflops:,.1f}",
                    "" if row.share is None else f"{row.share:.0%}",
                ))  # fmt: skip
            widths = [max(map(len, column)) for column in zip(*lines)]
            count = sum(row.runs for row in mine)
            parts.append(f"{device.name} ({device.platform}): {count:,} launches, {total * 1e3:,.2f} ms")
            parts += [
                "  ".join(
                    cell.rjust(w) if at else cell.ljust(w) for at, (cell, w) in enumerate(zip(line, widths))
                ).rstrip()
                for line in lines
            ]
        return "\n".join(parts) if parts else "no launches"

    __str__ = table

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write every launch, with its start and end, as JSON for a trace viewer (chrome://tracing, ui.perfetto.dev).

        A device is a process there. Times are microseconds since its first launch, whose time on the device's clock is the
        process's `clock_ns`.
        """
        self._collect()
        events: list[dict[str, Any]] = []
        for number, device in enumerate(dict.fromkeys(one.device for one in self._kinds.values() if one.starts)):
            mine = [one for one in self._kinds.values() if one.device is device]
            zero = min(start for one in mine for start in one.starts)
            about = {"name": f"{device.name} ({device.platform})", "clock_ns": zero}
            events.append({"ph": "M", "name": "process_name", "pid": number, "tid": 0, "args": about})
            for one in mine:
                args = {
                    "launch": one.label,
                    "size": one.size,
                    "bytes": one.nbytes,
                    **({"flops": one.flops} if one.flops else {}),
                }
                name = one.label.partition("{")[0]
                events += [
                    {
                        "ph": "X", "name": name, "pid": number, "tid": 0, "ts": (start - zero) / 1e3,
                        "dur": (end - start) / 1e3, "args": args,
                    }
                    for start, end in zip(one.starts, one.ends)
                ]  # fmt: skip
        events.sort(key=lambda event: (event["pid"], event.get("ts", -1)))
        try:
            write_atomically(as_path(path), json.dumps({"displayTimeUnit": "ns", "traceEvents": events}).encode())
        except OSError as error:
            raise ConfigurationError(f"the profile cannot be written: {error}") from error


def profile(peak: float | None = None) -> Profile:
    """Find out what takes the time: the launches of a step, a `fit` or any other code, with their times.

        with clnn.profile() as p:
            net.fit(x, y, loss="cross_entropy", optimizer="adam", epochs=1)
        print(p)              # or p.table(), p.rows
        p.save("trace.json")  # for chrome://tracing or ui.perfetto.dev

    Launches of this thread are noted, on whichever devices: kernels, copies, uploads and reads, with minimum, median and total
    of their times on the device's clock (not Python's), the bytes of their arrays, and for matrix products and convolutions
    GFLOP/s and the share of the device's peak. `peak` is that peak in GFLOP/s; None measures it.

    Steps that would be fused into one kernel run launch by launch meanwhile, to the same results, so a small network takes
    longer than without. A profile may be opened again, and adds up; one inside another one's block takes a part of its
    launches. It keeps 16 bytes for each launch. `CLNN_DEBUG=1` prints such a table for each step that is recorded.

    Raises ConfigurationError for a peak that is not above 0, DeviceError where a driver does not say when a launch ran.
    """
    return Profile(peak)


def profile_of_debug() -> contextlib.AbstractContextManager[Profile | None]:
    """A profile of the call that makes a recording, where CLNN_DEBUG=1 asks for one."""
    said = os.environ.get("CLNN_DEBUG", "").strip()
    if said not in ("", "0", "1"):
        raise ConfigurationError(f"CLNN_DEBUG should be 0 or 1, {said!r} was provided instead")
    return Profile() if said == "1" else contextlib.nullcontext()
