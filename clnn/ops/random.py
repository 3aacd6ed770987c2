"""Random numbers on the device: a counter-based generator (Philox), its distributions, and dropout of three kinds."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..checks import in_range, whole
from ..errors import ConfigurationError, ShapeError
from ..runtime.device import Device, DType
from .array import Array, Backward, Flow, Sink, check_float, empty, empty_like, fill
from .elementwise import binary
from .rows import divided
from .trace import op


class Generator:
    """A stream of random numbers that lives on a device as (position, seed low, seed high): replays move on by themselves.

    The same seed gives the same bits on every device; uniform numbers are equal, normal ones within 4 ulp.
    """

    def __init__(self, device: Device, seed: int | None = None, position: int = 0, by_step: bool = False) -> None:
        """`by_step`: a step moves on by one, whatever it draws, so that fit can begin at any step. Else each draw does."""
        self.device, self.by_step = device, by_step
        self.cell = device.memory.allocate(12)
        self.each = 32 if device.long_loops else 4  # numbers that a work-item makes, see kernels/random.cl
        self.reseed(seed, position)

    def reseed(self, seed: int | None = None, position: int = 0) -> None:
        """Start again from `seed` (None: from the system's entropy), in place: recordings follow."""
        if seed is None:
            seed = secrets.randbits(62)
        if whole(seed) is None or not 0 <= seed < 1 << 64:
            raise ConfigurationError(f"a seed is an integer of 0 or more, below 2**64, and {seed!r} was given")
        seed = int(seed)
        words = np.array([position, seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF], np.uint32)
        if step := self.device.step:  # what it has drawn moves on another position
            step.forget(self.cell)
        self.device.upload(words, self.cell)

    def __reduce__(self) -> Any:
        position, low, high = self.state()
        return Generator, (self.device, low | high << 32, position, self.by_step)

    def state(self) -> list[int]:
        """[position, seed low, seed high]"""
        if step := self.device.step:
            self.device.advance(step.forget(self.cell))
        return [int(v) for v in self.device.read(self.cell, np.empty(3, np.uint32))]

    def set_state(self, state: Sequence[int]) -> None:
        """Go on from where `state()` was."""
        position, low, high = (int(v) for v in state)
        self.reseed(low | high << 32, position)

    def draw(self, kernel: str, n: int, *args: Any, real: str) -> None:
        """Launch a kernel of random.cl over n elements and move on."""
        step, size = self.device.step, (-(-n // self.each),)
        number = step.draw(self.cell, self.by_step) if step else 0
        draw = np.array((number, 0) if self.by_step else (0, number), np.int32)
        self.device.launch("random", kernel, size, n, draw, self.cell, *args, real=real, EACH=self.each)
        if not step:
            self.device.advance([(self.cell, 1)])

    def uniform(self, shape: Sequence[int], low: float = 0.0, high: float = 1.0, dtype: DType = np.float32) -> Array:
        """Uniform in [low, high)."""
        y = empty(self.device, shape, dtype)
        self.draw("uniform", y.size, y.block, float(low), float(high), real=y.real)
        return y

    def normal(
        self, shape: Sequence[int], mean: float = 0.0, deviation: float = 1.0, dtype: DType = np.float32
    ) -> Array:
        """Normal with mean and standard deviation."""
        y = empty(self.device, shape, dtype)
        self.draw("normal", y.size, y.block, float(mean), float(deviation), real=y.real)
        return y

    def bits(self, n: int) -> np.ndarray:
        """n random 32-bit words, read back."""
        y = empty(self.device, (n,), np.int32)
        self.draw("random_bits", n, y.block, real="float")
        return self.device.read(y.block, np.empty(n, np.uint32))


def _check_dropout(x: Array, rate: float) -> None:
    check_float("dropout", x)
    in_range("dropout's rate", rate, 0.0, 1.0)


@op
def dropout(x: Array, rate: float, generator: Generator) -> tuple[Array, Backward]:
    """y = x / (1 - rate) with probability 1 - rate, else 0 (Srivastava et al. 2014, scaled in training)."""
    _check_dropout(x, rate)
    y = empty_like(x)
    mask = x.device.allocate(x.size)
    keep = 1.0 - rate
    generator.draw("dropout_forward", x.size, x.block, y.block, mask, keep, real=x.real)

    def backward(dy: Array) -> Iterator[Flow]:
        dx = empty_like(dy)
        values = x.size, mask, dy.block, dx.block, keep
        x.device.launch("random", "dropout_backward", (x.size,), *values, real=x.real, EACH=generator.each)
        yield x, dx

    return y, backward


@op
def spatial_dropout(x: Array, rate: float, generator: Generator) -> tuple[Array, Backward]:
    """y = x / (1 - rate) or 0 for a whole channel at a time: x (batch, channels, *space) (Tompson et al. 2015)."""
    _check_dropout(x, rate)
    if x.ndim < 2:
        raise ShapeError(f"an input has a batch, channels and space, and this one has the shape {x.shape}")
    planes, run = math.prod(x.shape[:2]), math.prod(x.shape[2:])
    factor, _ = dropout(fill(empty(x.device, (planes,), x.dtype), 1.0), rate, generator)
    y = empty_like(x)

    def scale(source: Array, sink: Sink) -> None:
        each, size, local, vectors = divided(x.device, x.dtype, planes, run)
        x.device.launch(
            "planes", "planes_scale", size, planes, run, each, factor.block, source.block, *sink.arguments(),
            local=local, real=x.real, **vectors, **sink.defines(),
        )  # fmt: skip

    scale(x, Sink(y.block))

    def backward(dy: Array) -> Iterator[Flow]:
        yield x, partial(scale, dy)

    return y, backward


@op
def gaussian_dropout(x: Array, rate: float, generator: Generator) -> tuple[Array, Backward]:
    """y = x n, n normal with mean 1 and standard deviation sqrt(rate / (1 - rate)) (Srivastava et al. 2014, section 10)."""
    _check_dropout(x, rate)
    noise = generator.normal(x.shape, 1.0, math.sqrt(rate / (1.0 - rate)), x.dtype)

    def backward(dy: Array) -> Iterator[Flow]:
        yield x, binary("multiply", dy, noise)[0]

    return binary("multiply", x, noise)[0], backward
