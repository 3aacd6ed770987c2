"""A convolution in numbers, as its kernels take them: sizes over three axes, of the forward pass or of a gradient by inputs."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ...runtime.device import int_vector
from .window import Window


class Geometry(NamedTuple):
    """A convolution as the kernels see it: `groups` of `c` inputs and `k` outputs, over three axes; `up` - 1 zeros are
    between inputs. Padding `before` may be negative: then the input is cut."""

    groups: int
    c: int
    k: int
    space: tuple[int, ...]
    out: tuple[int, ...]
    size: tuple[int, ...]
    stride: tuple[int, ...]
    before: tuple[int, ...]
    dilation: tuple[int, ...]
    up: tuple[int, ...] = (1, 1, 1)

    @property
    def taps(self) -> int:
        return math.prod(self.size)

    def flops(self, n: int) -> int:
        """Those of its sums over n images, and of either of its gradients' as many: asked of the forward pass's geometry."""
        return 2 * n * self.groups * self.c * self.k * self.taps * math.prod(self.out)

    def vectors(self, first: int, *last: int) -> tuple[np.ndarray, np.ndarray]:
        """The two arguments of sizes that every kernel takes."""
        p = [self.groups, self.c, self.k, *self.space, *self.out, *self.size, *self.stride, first]
        q = [*self.before, *self.dilation, *self.up, *last]
        return int_vector(p), int_vector(q + [0] * (16 - len(q)))


def geometry(window: Window, groups: int, c: int, k: int) -> Geometry:
    """That of the forward pass: c inputs and k outputs in each group."""
    w = window.in_3d()
    space, out = w.space, w.out
    if w.size == w.stride == w.dilation == (1, 1, 1) and not any(w.before + w.after):  # 1x1: space is one long row
        space = out = (1, 1, math.prod(space))
    return Geometry(groups, c, k, space, out, w.size, w.stride, w.before, w.dilation)


def flipped(g: Geometry) -> Geometry:
    """That of the gradient by inputs: the flipped kernel slides over dy, which has stride - 1 zeros between its elements."""
    before = tuple(d * (s - 1) - b for d, s, b in zip(g.dilation, g.size, g.before))
    return Geometry(g.groups, g.k, g.c, g.out, g.space, g.size, (1, 1, 1), before, g.dilation, g.stride)
