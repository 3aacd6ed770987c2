"""The pacer: keeps the host from enqueueing work faster than the device does it, and uploads alive until they are done."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pyopencl as cl

MOST_HELD = 1024  # uploads under way
IN_FLIGHT = 0.050  # seconds of enqueued work, at most about that
MOST_BETWEEN = 256  # steps between markers: a driver keeps some hundred bytes for every launch that waits


class Pacer:
    """Keeps the host from running more than about 50 ms ahead: a marker every few steps, waited for one later."""

    def __init__(self, queue: cl.CommandQueue, waited: Callable[[Callable[[], Any]], Any]) -> None:
        """`waited` calls what waits for the device."""
        self.queue, self.waited = queue, waited
        self.every, self.count = 1, 0
        self.marker: cl.Event | None = None
        self.held: list[cl.Event] = []  # uploads since the last marker, and those before it
        self.held_before: list[cl.Event] = []
        self.last = time.perf_counter()

    def hold(self, event: cl.Event) -> None:
        """Keep an upload alive until a later marker has been waited for."""
        self.held.append(event)
        if len(self.held) >= MOST_HELD:
            self.waited(event.wait)
            self.held.clear()

    def step(self) -> None:
        """A step was enqueued."""
        self.count += 1
        if self.count < self.every:
            return
        self.count = 0
        previous, self.marker = self.marker, cl.enqueue_marker(self.queue)
        self.queue.flush()
        if previous is not None:
            self.waited(previous.wait)
        self.held_before, self.held = self.held, []  # what goes here was enqueued before the marker that was waited for
        now = time.perf_counter()
        if now - self.last < IN_FLIGHT / 4:
            self.every = min(2 * self.every, MOST_BETWEEN)
        elif now - self.last > IN_FLIGHT / 2:
            self.every = max(1, self.every // 2)
        self.last = now
