"""Seeds: one generator per device for weights and dropout, and one on the host for shuffling."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import numpy as np

from .checks import whole
from .errors import ConfigurationError
from .ops.random import Generator
from .runtime.device import Device

_generators: dict[Device, Generator] = {}
_drawing = threading.local()  # of each thread: the generators that `drawing_from` has put in place
_seed: int | None = None
_host: np.random.Generator | None = None


def seed(number: int) -> None:
    """Make everything random from here on the same in every run: weights, dropout, shuffling.

    Threads draw from it in turns, whoever comes first; `fit(seed=...)` draws from generators of its own.
    """
    global _seed, _host
    if whole(number) is None or not 0 <= number < 1 << 64:
        raise ConfigurationError(f"a seed is an integer of 0 or more, below 2**64, and {number!r} was given")
    _seed, _host = int(number), None
    for generator in _generators.values():
        generator.reseed(_seed)


def generator(device: Device) -> Generator:
    """The generator that draws on `device`: the innermost `drawing_from`'s, else the device's own."""
    for one in reversed(getattr(_drawing, "stack", ())):
        if one.device is device:
            return one
    with device.lock:
        if device not in _generators:
            _generators[device] = Generator(device, _seed)
        return _generators[device]


def host() -> np.random.Generator:
    """The host's generator, which shuffles."""
    global _host
    if _host is None:  # numpy.random is slow to import: at first use
        _host = np.random.default_rng(_seed)
    return _host


def permutation(n: int, shuffle: bool, seed: int | None, epoch: int) -> np.ndarray:
    """The order of n samples in an epoch: by (seed, epoch), so that a resumed run sees what an uninterrupted one sees."""
    if not shuffle:
        return np.arange(n)
    generator = host() if seed is None else np.random.default_rng((seed, epoch))
    return generator.permutation(n)


@contextlib.contextmanager
def drawing_from(one: Generator | None) -> Iterator[None]:
    """Within it, `one` draws on its device (None changes nothing)."""
    if one is None:
        yield
        return
    stack = _drawing.__dict__.setdefault("stack", [])
    stack.append(one)
    try:
        yield
    finally:
        stack.pop()
