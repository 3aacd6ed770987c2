"""Convolutions for `clnn tune`: which ones are measured, their operands on the device, and whether a plan computes right.

Like products they are known by sizes of the layer; the batch is that of the network that they come from.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np

from ...errors import ConfigurationError, ShapeError
from ...gemm import Scale
from ...ops.array import Sink
from ...ops.image import conv, conv_plan
from ...ops.image.conv import Call, Epilogue
from ...ops.image.conv_plan import Plan
from ...ops.image.geometry import Geometry, flipped
from ...ops.image.geometry import geometry as geometry_of
from ...ops.image.window import slide
from ...runtime.device import Device
from ...runtime.memory import Block
from ..bench import nets
from ..bench.nets import Convolution, Layer, Reference

FEW = 3  # images that a plan has to get right
GUARD = 64  # values behind a result that have to stay as they are
QUICK = ("cnn", "lenet")  # the networks of --quick, as in `clnn bench conv`


# -- which ------------------------------------------------------------------------------------------------------------
def of_networks(quick: bool) -> list[Convolution]:
    """What `clnn bench conv` measures."""
    return nets.convolutions(nets.NETS[name] for name in (QUICK if quick else nets.NETS))


def parse(text: str) -> list[Convolution]:
    """A convolution of the user's, forward and both gradients, such as "128x32x26x26,64,3": the input's shape, channels out,
    size, and where they are not 1, 0 and 1: stride, padding, groups."""
    try:
        shape, channels, size, *more = text.split(",")
        n, c, height, width = map(int, shape.split("x"))
        stride, padding, groups = [*map(int, more), *(1, 0, 1)[len(more) :]]
        layer = Layer("conv", int(channels), int(size), stride, padding, groups)
        found = [Convolution(way, (n, c, height, width), layer) for way in ("forward", "dx", "dw")]
        if min(n, c, height, width, layer.size, layer.kernel, stride, groups) < 1 or padding < 0:
            raise ValueError
        if c % groups or layer.size % groups:
            raise ValueError
        geometry(found[0])
    except (ValueError, ShapeError):
        raise ConfigurationError(
            f"--conv {text!r} should be an input's NxCxHxW, channels out, size, and if wanted stride, padding, groups, such as "
            "128x32x26x26,64,3 or 128x64x32x32,64,3,2,1,64; the window has to fit the input, and groups the channels"
        ) from None
    return found


def geometry(c: Convolution) -> Geometry:
    """As the kernels see it."""
    l = c.layer
    window = slide("tuning", c.shape, (l.kernel,) * 2, (l.stride,) * 2, ((l.padding,) * 2,) * 2)
    g = geometry_of(window, l.groups, c.filters[1], l.size // l.groups)
    return flipped(g) if c.way == "dx" else g


def plans(device: Device, c: Convolution, dtype: str, measured: Any = None) -> tuple[Plan, ...]:
    """What may be tried, from this batch on, the model's choice first; or `measured`, an entry of a file, if it is valid here."""
    g, weights = geometry(c), c.way == "dw"
    plan, _ = conv_plan.measured_plan(device, g, np.dtype(dtype), weights, measured)
    every = conv_plan.plans(device, g, np.dtype(dtype), weights, plan)
    return tuple(p._replace(cb=min(p.cb, c.shape[0])) if p.kernel == "winograd_gpu" else p for p in every)


def named(device: Device, every: Iterable[Convolution], dtypes: Iterable[str]) -> dict[str, tuple[Convolution, str]]:
    """By the names that plans are stored under, which the batch is no part of: those for which there is a choice."""
    found: dict[str, tuple[Convolution, str]] = {}
    every = list(every)
    for dtype in dtypes:
        for c in every:
            if len(plans(device, c, dtype)) > 1:
                found.setdefault(conv_plan.name(geometry(c), np.dtype(dtype), c.way == "dw"), (c, dtype))
    return found


# -- on the device ----------------------------------------------------------------------------------------------------
class Case:
    """A convolution, or one of its gradients, with the epilogue that it has in training."""

    def __init__(self, device: Device, c: Convolution, dtype: str) -> None:
        self.device, self.c, self.dtype = device, c, np.dtype(dtype)
        x, w, b, dy = c.arrays()
        self.x, self.w, self.dy = map(self._held, (x, w, dy))
        self.b = None if b is None else self._held(b)
        self.shapes = [c.out] if c.way == "forward" else [c.shape] if c.way == "dx" else [c.filters, c.filters[:1]]
        self.outs = [self._held(self._nothing(shape)) for shape in self.shapes]

    def _held(self, array: np.ndarray) -> Block:
        block = self.device.memory.allocate(array.size * self.dtype.itemsize)
        self.device.upload(array.astype(self.dtype), block, constant=True)
        return block

    def _nothing(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.full(int(np.prod(shape)) + GUARD, np.nan, self.dtype)

    def run(self, plan: Plan) -> None:
        c, device, dtype, n = self.c, self.device, self.dtype, self.c.shape[0]
        g, plain = geometry(c._replace(way="forward")), Scale.constant(device, dtype, 1.0, 0.0)
        with conv_plan.forced(device, geometry(c), dtype, c.way == "dw", plan):
            if c.way == "dw":
                for_w, for_b = (Sink(out, plain) for out in self.outs)
                conv.weight_gradients(Call(device, dtype, n, g, self.x, self.dy), for_w, for_b)
            elif c.way == "dx":
                conv.convolve(
                    Call(device, dtype, n, g, self.dy, self.w), self.outs[0], Epilogue(scale=plain), flip=True
                )
            else:
                epilogue = Epilogue(self.b, "relu" if c.layer.relu else "linear")
                conv.convolve(Call(device, dtype, n, g, self.x, self.w), self.outs[0], epilogue)

    def error_of(self, plan: Plan) -> str:
        """What is wrong with results by `plan`, against float64 NumPy, or ""."""
        for shape, out in zip(self.shapes, self.outs):
            self.device.upload(self._nothing(shape), out, constant=True)
        self.run(plan)
        for shape, out, want in zip(self.shapes, self.outs, expected(self.c)):
            got = self.device.read(out, self._nothing(shape))
            if not np.isnan(got[want.size :]).all():
                return f"writes past the end for {self.c.name}"
            bound = 1000 * np.finfo(self.dtype).eps * np.abs(want).max()
            if not np.abs(got[: want.size] - want.ravel()).max() <= bound:
                return f"wrong numbers for {self.c.name}"
        return ""


@lru_cache(maxsize=4)
def case(device: Device, c: Convolution, dtype: str) -> Case:
    return Case(device, c, dtype)


@lru_cache(maxsize=4)
def expected(c: Convolution) -> list[np.ndarray]:
    """Its results in float64."""
    x, w, b, dy = (None if a is None else a.astype(np.float64) for a in c.arrays())
    side = Reference()
    y = side.conv(x, w, b, c.layer)
    if c.way == "forward":
        return [side.relu(y) if c.layer.relu else y]
    assert dy is not None
    found = side.gradients(dy)
    return [found[id(x)]] if c.way == "dx" else [found[id(w)], dy.sum((0, 2, 3))]


def error_of(device: Device, c: Convolution, dtype: str, plan: Plan) -> str:
    """What is wrong with a plan, in a few images."""
    return case(device, c._replace(shape=(FEW, *c.shape[1:])), dtype).error_of(plan)
