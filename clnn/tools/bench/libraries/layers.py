"""The layers of convolutional networks in the other libraries, as nets.read asks for them, and single convolutions.

A side's layers are made for each forward pass: statistics() then gives each normalisation's running mean and variance in
turn. Every side keeps these running, though training never reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..nets import EPSILON, MOMENTUM, ConvNet, Convolution, Layer


def running(net: ConvNet) -> list[np.ndarray]:
    """The running means and variances that a net starts with."""
    gammas = [shape for name, shape in net.shapes.parameters if name == "gamma"]
    return [first(shape, np.float32) for shape in gammas for first in (np.zeros, np.ones)]


# -- torch ------------------------------------------------------------------------------------------------------------
class TorchLayers:
    """torch.nn.functional's; weights of dense layers are (out, in), as torch.nn.Linear has them."""

    def __init__(self, statistics: Callable[[], Any]) -> None:
        from torch.nn import functional

        self.f, self.statistics = functional, statistics

    def conv(self, x: Any, w: Any, b: Any, layer: Layer) -> Any:
        return self.f.conv2d(x, w, b, layer.stride, layer.padding, 1, layer.groups)

    def dense(self, x: Any, w: Any, b: Any, size: int) -> Any:
        return self.f.linear(x, w, b)

    def norm(self, x: Any, gamma: Any, beta: Any) -> Any:
        mean, variance = self.statistics(), self.statistics()
        return self.f.batch_norm(x, mean, variance, gamma, beta, True, 1 - MOMENTUM, EPSILON)

    def pool(self, x: Any, size: int) -> Any:
        return self.f.max_pool2d(x, size)

    def drop(self, x: Any, rate: float) -> Any:
        return self.f.dropout(x, rate)

    def relu(self, x: Any) -> Any:
        return self.f.relu(x, inplace=True)

    def add(self, x: Any, beside: Any) -> Any:
        return x.add_(beside)

    def mean(self, x: Any) -> Any:
        return x.mean((2, 3))

    def flatten(self, x: Any) -> Any:
        return x.flatten(1)


def torch_arrays(arrays: list[np.ndarray], form: str) -> list[Any]:
    """Tensors of a net's arrays: images and filters in the form's layout, weights of dense layers transposed."""
    import torch

    layout = torch.channels_last if form == "channels_last" else torch.contiguous_format
    found = [torch.from_numpy(a).clone() for a in arrays]  # into memory of its own, which can be counted
    return [
        a.contiguous(memory_format=layout) if a.ndim == 4 else a.T.contiguous() if a.ndim == 2 else a for a in found
    ]


def torch_convolution(c: Convolution, form: str) -> Callable[[], list[Any]]:
    import torch
    from torch.nn import functional as F

    l = c.layer
    x, w, dy = torch_arrays([a for a in c.arrays() if a is not None and a.ndim == 4], form)
    b = torch.from_numpy(c.arrays()[2]) if l.bias else None
    two, zero = [l.stride] * 2, [0, 0]

    def forward() -> list[Any]:
        y = F.conv2d(x, w, b, l.stride, l.padding, 1, l.groups)
        return [y.relu_() if l.relu else y]

    def backward() -> list[Any]:
        mask = [c.way == "dx", c.way == "dw", c.way == "dw" and l.bias]
        found = torch.ops.aten.convolution_backward(
            dy, x, w, [l.size], two, [l.padding] * 2, [1, 1], False, zero, l.groups, mask
        )
        return [part for part, asked in zip(found, mask) if asked]

    return torch.no_grad()(forward if c.way == "forward" else backward)


# -- jax --------------------------------------------------------------------------------------------------------------
class JaxLayers:
    """Channels first, or last with filters (height, width, in, out). `after` gathers the new running statistics."""

    def __init__(self, form: str, statistics: Callable[[], Any], key: Any) -> None:
        self.form, self.statistics, self.key, self.after = form, statistics, key, []  # type: ignore[var-annotated]
        self.space = (1, 2) if form == "NHWC" else (2, 3)

    def conv(self, x: Any, w: Any, b: Any, layer: Layer) -> Any:
        y = jax_conv(self.form, layer)(x, w)
        return y if b is None else y + self.each(b)

    def each(self, channel: Any) -> Any:
        return channel if self.form == "NHWC" else channel[:, None, None]

    def dense(self, x: Any, w: Any, b: Any, size: int) -> Any:
        return x @ w + b

    def norm(self, x: Any, gamma: Any, beta: Any) -> Any:
        import jax

        axes = (0, *self.space)
        mean, variance = x.mean(axes), x.var(axes)
        new = jax.lax.stop_gradient((mean, variance))
        self.after += [MOMENTUM * self.statistics() + (1 - MOMENTUM) * part for part in new]
        scale = gamma * jax.lax.rsqrt(variance + EPSILON)
        return x * self.each(scale) + self.each(beta - mean * scale)

    def pool(self, x: Any, size: int) -> Any:
        import jax

        top = self.space[0]  # windows get axes of their own: a gradient quicker than reduce_window's
        height, width = (side // size for side in x.shape[top : top + 2])
        x = jax.lax.slice_in_dim(jax.lax.slice_in_dim(x, 0, height * size, axis=top), 0, width * size, axis=top + 1)
        return x.reshape(*x.shape[:top], height, size, width, size, *x.shape[top + 2 :]).max((top + 1, top + 3))

    def drop(self, x: Any, rate: float) -> Any:
        import jax

        self.key, now = jax.random.split(self.key)
        return jax.numpy.where(jax.random.bernoulli(now, 1 - rate, x.shape), x / (1 - rate), 0)

    def relu(self, x: Any) -> Any:
        import jax

        return jax.nn.relu(x)

    def add(self, x: Any, beside: Any) -> Any:
        return x + beside

    def mean(self, x: Any) -> Any:
        return x.mean(self.space)

    def flatten(self, x: Any) -> Any:
        return x.reshape(len(x), -1)


def jax_arrays(net: ConvNet, form: str) -> list[Any]:
    """A net's parameters in the form's layout; so are the rows of a dense layer that reads pixels."""
    from jax import numpy as jnp

    last = form == "NHWC"
    found, channels = [], net.shape[0]
    for (name, shape), value in zip(net.shapes.parameters, net.weights()):
        if name == "w" and len(shape) == 4:
            channels = shape[0]
            value = value.transpose(2, 3, 1, 0) if last else value
        elif name == "w" and last and shape[0] > channels:
            value = value.reshape(channels, -1, shape[1]).swapaxes(0, 1).reshape(shape)
        channels = shape[1] if name == "w" and len(shape) == 2 else channels
        found.append(jnp.asarray(value))
    return found


def jax_conv(form: str, layer: Layer) -> Callable[[Any, Any], Any]:
    import jax

    layout = (form, "HWIO", form) if form == "NHWC" else (form, "OIHW", form)
    padding, stride = [(layer.padding, layer.padding)] * 2, (layer.stride, layer.stride)

    def conv(x: Any, w: Any) -> Any:
        return jax.lax.conv_general_dilated(
            x, w, stride, padding, dimension_numbers=layout, feature_group_count=layer.groups
        )

    return conv


def jax_convolution(c: Convolution, form: str) -> tuple[Callable[[], list[Any]], Callable[[Any], np.ndarray]]:
    """A call, and what brings its results into the order of the others'."""
    import jax
    from jax import numpy as jnp

    last = form == "NHWC"
    x, w, b, dy = c.arrays()
    x, dy = ((a.transpose(0, 2, 3, 1) if last else a) for a in (x, dy))
    w = w.transpose(2, 3, 1, 0) if last else w
    conv, axes = jax_conv(form, c.layer), (0, 1, 2) if last else (0, 2, 3)

    def forward(x: Any, w: Any, b: Any) -> list[Any]:
        y = conv(x, w) if b is None else conv(x, w) + (b if last else b[:, None, None])
        return [jax.nn.relu(y) if c.layer.relu else y]

    def dx(dy: Any, w: Any) -> list[Any]:
        return list(jax.linear_transpose(lambda x: conv(x, w), x)(dy))

    def dw(dy: Any, x: Any) -> list[Any]:
        found = list(jax.linear_transpose(lambda w: conv(x, w), w)(dy))
        return found if b is None else [*found, dy.sum(axes)]

    given = {"forward": (x, w, b), "dx": (dy, w), "dw": (dy, x)}[c.way]
    ways: dict[str, Any] = {"forward": forward, "dx": dx, "dw": dw}
    go, held = jax.jit(ways[c.way]), jax.tree_util.tree_map(jnp.asarray, given)

    def back(a: Any) -> np.ndarray:
        a = np.asarray(a)
        return a if a.ndim == 1 or not last else a.transpose((3, 2, 0, 1) if c.way == "dw" else (0, 3, 1, 2))

    return lambda: go(*held), back


# -- tinygrad ---------------------------------------------------------------------------------------------------------
class TinygradLayers:
    """Tensor's own; norms() gives each normalisation's nn.BatchNorm, which holds the running statistics, in turn."""

    def __init__(self, norms: Callable[[], Any]) -> None:
        self.norms = norms

    def conv(self, x: Any, w: Any, b: Any, layer: Layer) -> Any:
        return x.conv2d(w, b, layer.groups, layer.stride, 1, layer.padding)

    def dense(self, x: Any, w: Any, b: Any, size: int) -> Any:
        return x.linear(w, b)

    def norm(self, x: Any, gamma: Any, beta: Any) -> Any:
        one = self.norms()
        one.weight, one.bias = gamma, beta
        return one(x)

    def pool(self, x: Any, size: int) -> Any:
        return x.max_pool2d((size, size))

    def drop(self, x: Any, rate: float) -> Any:
        return x.dropout(rate)

    def relu(self, x: Any) -> Any:
        return x.relu()

    def add(self, x: Any, beside: Any) -> Any:
        return x + beside

    def mean(self, x: Any) -> Any:
        return x.mean((2, 3))

    def flatten(self, x: Any) -> Any:
        return x.flatten(1)


def tinygrad_norms(net: ConvNet) -> list[Any]:
    from tinygrad import nn

    return [
        nn.BatchNorm(shape[0], EPSILON, momentum=1 - MOMENTUM)
        for name, shape in net.shapes.parameters
        if name == "gamma"
    ]


def tinygrad_convolution(c: Convolution) -> Callable[[], list[Any]]:
    from tinygrad import Tensor, TinyJit

    l, arrays = c.layer, c.arrays()
    x, w, b, dy = (None if a is None else Tensor(a).realize() for a in arrays)
    assert x is not None and w is not None and dy is not None

    def step(dy: Any) -> list[Any]:
        y = x.conv2d(w, b, l.groups, l.stride, 1, l.padding)
        if c.way == "forward":
            found = [y.relu() if l.relu else y]
        else:
            found = y.gradient(*([x] if c.way == "dx" else [w] if b is None else [w, b]), gradient=dy)
        Tensor.realize(*found)
        return found

    go = TinyJit(step)

    def call() -> list[Any]:
        return go(dy)

    return call
