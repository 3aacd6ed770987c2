"""When a recorded step becomes one kernel: after so many replays that it pays, and some that are timed."""

from __future__ import annotations

import math
from functools import cached_property

from .device import Device
from .fusion import Fused, always
from .recorder import Launch

TIMED = 10  # replays, of which the fastest says whether a step is worth fusing
# Where launches take longer than this on average, one kernel is timed beside them now and then: so many replays of each, and then
# so many of the faster form.
LONG, TRIED, BETWEEN = 50e-6, 2, 128


class Contest:
    """Which of two forms of a step is the faster one now: number 0, one kernel, or 1, its launches.

    In one kernel cores wait for each other busily. Where other processes want them too, that takes longer than to sleep."""

    def __init__(self) -> None:
        self.replays, self.seconds = 0, [math.inf, math.inf]

    @property
    def timed(self) -> bool:
        """Whether the next replay is."""
        return self.replays < 2 * TRIED

    @property
    def form(self) -> int:
        """Of the next replay."""
        return self.replays % 2 if self.timed else int(self.seconds[1] < self.seconds[0])

    def took(self, seconds: float) -> None:
        """There was a replay."""
        if self.timed:
            self.seconds[self.form] = min(self.seconds[self.form], seconds)
        self.replays += 1
        if self.replays == 2 * TRIED + BETWEEN:
            self.replays, self.seconds = 0, [math.inf, math.inf]


class Fusing:
    """What is known of a recording's launches: whether they can be one kernel, how long they take, and how often they ran."""

    def __init__(self, device: Device, launches: list[Launch]) -> None:
        self.device, self.launches = device, launches
        self.wanted = True  # until that kernel is made, or cannot be
        self.timed, self.seconds = 0, math.inf  # replays timed so far, and the fastest of them
        self.ready = False  # to be made, before the next replay
        self.contest: Contest | None = None  # of the kernel that was made with the launches, where these are long

    @cached_property
    def one(self) -> Fused | None:
        """What the launches are as one kernel; None where that cannot be."""
        return Fused(self.device, self.launches) if Fused.possible(self.device, self.launches) else None

    @cached_property
    def worth(self) -> int:
        """Steps to come, or replays of this step in all of this process' recordings, from which they are made one kernel."""
        return self.one.worth if self.one is not None else 0

    def due(self, to_come: int) -> bool:
        """Whether the next replay is timed, after which `to_come` follow. Not where it is known to be short; that it is long
        may have been said by a machine that had much else to do."""
        self.wanted = self.wanted and self.one is not None
        if not self.wanted or self.ready or self.one is None:
            return False
        replays = self.device.programs.replays
        replays[self.one.name] += 1
        if max(replays[self.one.name], to_come) < self.worth:
            return False
        if self.one.known is not None and self.one.pays(self.one.known):
            self.seconds, self.ready = self.one.known, True
        return not self.ready

    def took(self, seconds: float) -> None:
        """A replay was timed."""
        self.timed, self.seconds = self.timed + 1, min(self.seconds, seconds)
        self.ready = self.timed >= (1 if always() else TIMED)

    def fuse(self) -> Fused | None:
        """The launches as one kernel, or None where they are long. `BuildError` where the driver cannot compile them."""
        self.wanted = self.ready = False
        assert self.one is not None
        if not self.one.pays(self.seconds):
            return None
        made = self.one.build(self.seconds)
        self.contest = Contest() if self.seconds > LONG * len(self.launches) and not always() else None
        return made
