"""Convolutional networks: each is a list of layers that every side reads; their weights, data, flops, and float64 losses.

NumPy only, as workloads.py. Arrays are (batch, channels, height, width).
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..verify.references import normalized, softmax
from . import workloads
from .workloads import CLASSES, SEED, Net, update

EPSILON, MOMENTUM = 1e-5, 0.9  # of batch normalisation: what is added to the variance, what running statistics keep


class Layer(NamedTuple):
    """One layer; which fields count is for `kind` to say, and the functions below make them."""

    kind: str
    size: int = 0  # channels of a convolution, units of a dense layer, the window and stride of a pool
    kernel: int = 0
    stride: int = 1
    padding: int = 0
    groups: int = 1
    bias: bool = True
    relu: bool = False  # at the end
    rate: float = 0.0
    inside: tuple[Layer, ...] = ()
    shortcut: tuple[Layer, ...] = ()

    @classmethod
    def of(cls, values: Sequence[Any]) -> Layer:
        """A layer that has been through JSON."""
        inside, shortcut = (tuple(map(cls.of, part)) for part in values[-2:])
        return cls(*values)._replace(inside=inside, shortcut=shortcut)


def conv(size: int, kernel: int, relu: bool = False, **more: Any) -> Layer:
    return Layer("conv", size, kernel, relu=relu, **more)


def norm(relu: bool = True) -> Layer:
    """Over the batch and space, gamma and beta for each channel (Ioffe and Szegedy 2015)."""
    return Layer("norm", relu=relu)


def pool(size: int) -> Layer:
    return Layer("pool", size)


def drop(rate: float) -> Layer:
    return Layer("drop", rate=rate)


def dense(size: int, relu: bool = False) -> Layer:
    return Layer("dense", size, relu=relu)


def block(channels: int, stride: int = 1, widens: bool = False) -> Layer:
    """Two convolutions beside an identity, or beside a projection where shapes change (He et al. 2015, option B)."""
    inside = (
        *(conv(channels, 3, stride=stride, padding=1, bias=False), norm()),
        *(conv(channels, 3, padding=1, bias=False), norm(relu=False)),
    )
    shortcut = (conv(channels, 1, stride=stride, bias=False), norm(relu=False)) if widens else ()
    return Layer("residual", relu=True, inside=inside, shortcut=shortcut)


def separable(before: int, channels: int, stride: int = 1) -> tuple[Layer, ...]:
    """A filter for each channel, then one pixel's channels mixed (Howard et al. 2017)."""
    depthwise = conv(before, 3, stride=stride, padding=1, groups=before, bias=False)
    return depthwise, norm(), conv(channels, 1, bias=False), norm()


FLATTEN, MEAN = Layer("flatten"), Layer("mean")  # (n, c, h, w) -> (n, c h w) and, averaged, (n, c)


def read(layers: Iterable[Layer], x: Any, take: Callable[[], Any], side: Any) -> Any:
    """The output of layers, computed by a side's functions; take() gives the next parameter."""
    for layer in layers:
        if layer.kind == "conv":
            x = side.conv(x, take(), take() if layer.bias else None, layer)
        elif layer.kind == "dense":
            x = side.dense(x, take(), take(), layer.size)
        elif layer.kind == "norm":
            x = side.norm(x, take(), take())
        elif layer.kind == "pool":
            x = side.pool(x, layer.size)
        elif layer.kind == "drop":
            x = side.drop(x, layer.rate) if layer.rate else x
        elif layer.kind == "residual":
            y = read(layer.inside, x, take, side)
            x = side.add(y, read(layer.shortcut, x, take, side))
        else:
            x = getattr(side, layer.kind)(x)
        x = side.relu(x) if layer.relu else x
    return x


class ConvNet(NamedTuple):
    """A convolutional network of images, how it is trained by softmax cross-entropy, and how many steps an epoch has."""

    shape: tuple[int, int, int]
    layers: tuple[Layer, ...]
    optimizer: str
    lr: float
    momentum: float
    decay: float  # of what has two axes or more, into the gradient
    batch: int
    steps: int
    loss: str = "cross_entropy"

    @classmethod
    def of(cls, values: Sequence[Any]) -> ConvNet:
        """A net that has been through JSON."""
        return cls(tuple(values[0]), tuple(map(Layer.of, values[1])), *values[2:])

    @property
    def shapes(self) -> Shapes:
        return Shapes(self)

    @property
    def flops(self) -> int:
        """Of a step's convolutions and dense layers: forward, and gradients by weights and but the first by input."""
        shapes = self.shapes
        works = [c.flops for c in shapes.convolutions] + [2 * self.batch * k * n for k, n in shapes.products]
        return 3 * sum(works) - works[0]

    def certain(self) -> ConvNet:
        """The same without dropout, whose losses can be foretold."""
        return self._replace(layers=tuple(layer._replace(rate=0.0) for layer in self.layers))

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """x (n, channels, height, width) in [0, 1], float32, and int32 labels, as a perceptron's."""
        x, labels = Net((math.prod(self.shape), CLASSES), "", self.loss, "", 0.0, self.batch, self.steps).data()
        return x.reshape(len(x), *self.shape), labels

    def weights(self) -> list[np.ndarray]:
        """All parameters, float32, in the order in which layers take them: w, b; gamma, beta; a shortcut's after those of
        what it passes by. w is (out, in / groups, height, width) or (in, out), of variance 2 / inputs (He et al. 2015)."""
        rng = np.random.default_rng(SEED + 1)
        found = []
        for name, shape in self.shapes.parameters:
            if name == "w":
                inputs = math.prod(shape[1:]) if len(shape) == 4 else shape[0]
                w = rng.random(shape, dtype=np.float32)
                w -= np.float32(0.5)
                w *= np.float32((24 / inputs) ** 0.5)
                found.append(w)
            else:
                found.append((name == "gamma") + rng.standard_normal(shape).astype(np.float32) / np.float32(10))
        return found

    def order(self, epoch: int) -> np.ndarray:
        """As Net.order."""
        return np.random.default_rng((SEED, epoch)).permutation(self.batch * self.steps).astype(np.int32)


class Convolution(NamedTuple):
    """A convolution of x (shape), or its gradient: `way` is forward (with the layer's bias and relu), dx or dw (with db)."""

    way: str
    shape: tuple[int, int, int, int]
    layer: Layer

    @classmethod
    def of(cls, values: Sequence[Any]) -> Convolution:
        return cls(values[0], tuple(values[1]), Layer.of(values[2]))

    @property
    def out(self) -> tuple[int, int, int, int]:
        l, (n, _, h, w) = self.layer, self.shape
        height, width = ((side + 2 * l.padding - l.kernel) // l.stride + 1 for side in (h, w))
        return n, l.size, height, width

    @property
    def filters(self) -> tuple[int, int, int, int]:
        """The shape of w."""
        return self.layer.size, self.shape[1] // self.layer.groups, self.layer.kernel, self.layer.kernel

    @property
    def flops(self) -> int:
        return 2 * math.prod(self.out) * math.prod(self.filters[1:])

    @property
    def name(self) -> str:
        l = self.layer
        more = [f"/{l.stride}"] * (l.stride > 1) + [f"{l.groups} groups"] * (l.groups > 1)
        return " ".join([self.way, "x".join(map(str, self.shape)), "*", "x".join(map(str, self.filters)), *more])

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]:
        """x, w, b or None, and dy, in [-0.5, 0.5)."""
        rng = np.random.default_rng(SEED)
        shapes = (self.shape, self.filters, self.filters[:1], self.out)
        x, w, b, dy = (rng.random(shape, dtype=np.float32) - np.float32(0.5) for shape in shapes)
        return x, w, b if self.layer.bias else None, dy

    def error(self, *got: np.ndarray) -> float:
        """The largest error relative to the largest value of each result, against float64: of y or dx in some samples, or
        of dw in some filters' every fourth channel, and of db."""
        x, w, b, dy = self.arrays()
        few = np.unique(np.linspace(0, len(x) - 1, 3).astype(int))
        layer, side = self.layer, Reference()
        if self.way == "dw":
            wanted, w_few = [], np.unique(np.linspace(0, len(w) - 1, 5).astype(int))
            share, each = self.filters[1], len(w) // layer.groups
            for o in w_few:
                part = slice(o // each * share, (o // each + 1) * share, 4)
                xs, ws = x[:, part].astype(np.float64), w[o : o + 1, ::4].astype(np.float64)
                side.conv(xs, ws, None, layer._replace(groups=1))
                wanted.append(side.gradients(dy[:, o : o + 1].astype(np.float64))[id(ws)])
            pairs = [(got[0][w_few, ::4], np.concatenate(wanted))]
            if b is not None:
                pairs.append((got[1], dy.sum((0, 2, 3), dtype=np.float64)))
        else:
            xs, ws = x[few].astype(np.float64), w.astype(np.float64)
            y = side.conv(xs, ws, None if b is None else b.astype(np.float64), layer)
            if self.way == "dx":
                y = side.gradients(dy[few].astype(np.float64))[id(xs)]
            elif layer.relu:
                y = side.relu(y)
            pairs = [(got[0][few], y)]
        return max(float(np.abs(a - want).max() / np.abs(want).max()) for a, want in pairs)


class Shapes:
    """A side that computes nothing: it lists parameters (name, shape), convolutions, dense layers (in, out), and how many
    values training keeps of each layer."""

    def __init__(self, net: ConvNet) -> None:
        self.parameters: list[tuple[str, tuple[int, ...]]] = []
        self.convolutions: list[Convolution] = []
        self.products: list[tuple[int, int]] = []
        self.kept: list[int] = []
        read(net.layers, (net.batch, *net.shape), lambda: None, self)

    def keep(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        self.kept.append(math.prod(shape))
        return shape

    def conv(self, x: Any, w: None, b: None, layer: Layer) -> Any:
        found = Convolution("forward", x, layer)
        self.convolutions.append(found)
        self.parameters += [("w", found.filters), ("b", found.filters[:1])][: 1 + layer.bias]
        return self.keep(found.out)

    def dense(self, x: Any, w: None, b: None, size: int) -> Any:
        self.products.append((x[1], size))
        self.parameters += [("w", (x[1], size)), ("b", (size,))]
        return self.keep((x[0], size))

    def norm(self, x: Any, gamma: None, beta: None) -> Any:
        self.parameters += [("gamma", x[1:2]), ("beta", x[1:2])]
        return self.keep(x)

    def pool(self, x: Any, size: int) -> Any:
        return self.keep((*x[:2], x[2] // size, x[3] // size))

    def drop(self, x: Any, rate: float) -> Any:
        return self.keep(x)

    def add(self, x: Any, beside: Any) -> Any:
        return self.keep(x)

    def mean(self, x: Any) -> Any:
        return self.keep(x[:2])

    def flatten(self, x: Any) -> Any:
        return x[0], math.prod(x[1:])

    def relu(self, x: Any) -> Any:
        return x  # in place


_RESNET = [block(16), block(16), block(16), block(32, 2, True), block(32), block(32), block(64, 2, True), block(64)]
_SEPARABLE = [*separable(32, 64), *separable(64, 128, 2), *separable(128, 128)]
NETS = {
    "cnn": ConvNet(
        (1, 28, 28),
        (conv(32, 3, True), conv(64, 3, True), pool(2), drop(0.25), FLATTEN, dense(128, True), drop(0.5), dense(10)),
        "adam", 0.001, 0.0, 0.0, 128, 10,
    ),
    "lenet": ConvNet(
        (1, 28, 28),
        (conv(20, 5, True), pool(2), conv(40, 5, True), pool(2), FLATTEN, dense(100, True), dense(10)),
        "sgd", 0.03, 0.0, 0.0, 10, 100,
    ),
    "resnet": ConvNet(
        (3, 32, 32),
        (conv(16, 3, padding=1, bias=False), norm(), *_RESNET, block(64), MEAN, dense(10)),
        "sgd", 0.1, 0.9, 1e-4, 128, 4,
    ),
    "mobilenet": ConvNet(
        (3, 32, 32),
        (conv(32, 3, padding=1, bias=False), norm(), *_SEPARABLE, MEAN, dense(10)),
        "sgd", 0.1, 0.9, 0.0, 128, 4,
    ),
}  # fmt: skip
ALL: ChainMap[str, Any] = ChainMap(NETS, workloads.NETS)  # type: ignore[arg-type]


def net_of(values: Sequence[Any]) -> Net | ConvNet:
    """A net of either kind that has been through JSON."""
    return Net.of(list(values)) if isinstance(values[1], str) else ConvNet.of(values)


def needs(net: Net | ConvNet) -> dict[str, int]:
    """The bytes that backpropagation needs: the data set, parameters and their gradients, the optimizer's moments, and each
    layer's output for a batch."""
    if isinstance(net, ConvNet):
        shapes = net.shapes
        parameters, kept = 4 * sum(math.prod(shape) for _, shape in shapes.parameters), sum(shapes.kept)
    else:
        parameters, kept = 4 * sum(k * n + n for k, n in net.layers), net.batch * sum(net.sizes[1:])
    return {
        "data": sum(part.nbytes for part in net.data()),
        "parameters": parameters,
        "gradients": parameters,
        "optimizer": (2 if net.optimizer == "adam" else 1 if net.momentum else 0) * parameters,
        "activations": 4 * kept,
    }


def convolutions(nets: Iterable[ConvNet]) -> list[Convolution]:
    """Each distinct convolution of nets, forward and both gradients; images need none by themselves."""
    found: dict[Convolution, None] = {}
    for net in nets:
        for i, one in enumerate(net.shapes.convolutions):
            for way in ("forward", "dx", "dw") if i else ("forward", "dw"):
                found[one._replace(way=way)] = None
    return list(found)


# -- float64 ----------------------------------------------------------------------------------------------------------
class Reference:
    """Layers in NumPy, in the type of what comes in, and their gradients by a tape."""

    def __init__(self) -> None:
        self.tape: list[tuple[Any, Callable[[Any], Iterator[tuple[Any, Any]]]]] = []

    def note(self, y: Any, backward: Callable[[Any], Iterator[tuple[Any, Any]]]) -> Any:
        self.tape.append((y, backward))
        return y

    def gradients(self, dy: Any) -> dict[int, Any]:
        """The gradients of everything that the last output was computed from, by id. The tape is empty then."""
        found = {id(self.tape[-1][0]): dy}
        while self.tape:
            y, backward = self.tape.pop()
            for x, dx in backward(found[id(y)]):
                found[id(x)] = found[id(x)] + dx if id(x) in found else dx
        return found

    def conv(self, x: Any, w: Any, b: Any, layer: Layer) -> Any:
        n, c, height, width = x.shape
        g, k, s, p = layer.groups, layer.kernel, layer.stride, layer.padding
        padded = np.pad(x, ((0, 0), (0, 0), (p, p), (p, p)))
        windows = sliding_window_view(padded, (k, k), (2, 3))[:, :, ::s, ::s].transpose(0, 1, 4, 5, 2, 3)
        out = windows.shape[4:]
        filters = w.reshape(g, len(w) // g, -1)
        scratch = np.empty(windows.shape[1:], x.dtype)  # a sample's windows, which stay in the cache
        columns = scratch.reshape(g, c // g * k * k, -1)
        y = np.empty((n, len(w), *out), x.dtype)
        for i in range(n):
            np.copyto(scratch, windows[i])
            np.matmul(filters, columns, out=y[i].reshape(g, len(w) // g, -1))
        if b is not None:
            y += b[:, None, None]

        def backward(dy: Any) -> Iterator[tuple[Any, Any]]:
            dw, dx = np.zeros_like(filters), np.zeros_like(padded)
            for i in range(n):
                d = dy[i].reshape(g, len(w) // g, -1)
                np.copyto(scratch, windows[i])
                dw += d @ columns.swapaxes(1, 2)
                np.matmul(filters.swapaxes(1, 2), d, out=columns)
                for top in range(k):
                    for left in range(k):
                        rows, pixels = slice(top, top + s * out[0], s), slice(left, left + s * out[1], s)
                        dx[i, :, rows, pixels] += scratch[:, top, left]
            yield w, dw.reshape(w.shape)
            if b is not None:
                yield b, dy.sum((0, 2, 3))
            yield x, dx[:, :, p : p + height, p : p + width]

        return self.note(y, backward)

    def dense(self, x: Any, w: Any, b: Any, size: int) -> Any:
        return self.note(x @ w + b, lambda dy: iter([(w, x.T @ dy), (b, dy.sum(0)), (x, dy @ w.T)]))

    def norm(self, x: Any, gamma: Any, beta: Any) -> Any:
        axes, scale = (0, 2, 3), gamma[:, None, None]
        z, back = normalized(x, axes, EPSILON)

        def backward(dy: Any) -> Iterator[tuple[Any, Any]]:
            yield gamma, (dy * z).sum(axes)
            yield beta, dy.sum(axes)
            yield x, back(scale * dy)

        return self.note(z * scale + beta[:, None, None], backward)

    def pool(self, x: Any, size: int) -> Any:
        n, c, height, width = x.shape
        out = (n, c, height // size, width // size)
        cut = (..., slice(out[2] * size), slice(out[3] * size))
        windows = x[cut].reshape(*out[:3], size, out[3], size).swapaxes(3, 4).reshape(*out, size * size)
        at = windows.argmax(-1)[..., None]

        def backward(dy: Any) -> Iterator[tuple[Any, Any]]:
            parts, dx = np.zeros_like(windows), np.zeros_like(x)
            np.put_along_axis(parts, at, dy[..., None], -1)
            dx[cut] = parts.reshape(*out, size, size).swapaxes(3, 4).reshape(*out[:2], out[2] * size, -1)
            yield x, dx

        return self.note(np.take_along_axis(windows, at, -1)[..., 0], backward)

    def relu(self, x: Any) -> Any:
        return self.note(np.maximum(x, 0), lambda dy: iter([(x, dy * (x > 0))]))

    def add(self, x: Any, beside: Any) -> Any:
        return self.note(x + beside, lambda dy: iter([(x, dy), (beside, dy)]))

    def mean(self, x: Any) -> Any:
        share = math.prod(x.shape[2:])
        return self.note(x.mean((2, 3)), lambda dy: iter([(x, np.zeros_like(x) + dy[:, :, None, None] / share)]))

    def flatten(self, x: Any) -> Any:
        return self.note(x.reshape(len(x), -1), lambda dy: iter([(x, dy.reshape(x.shape))]))


def reference_losses(net: ConvNet, epochs: int, dtype: Any = np.float64) -> list[float]:
    """The mean loss of each epoch, of a net without dropout."""
    x, labels = net.data()
    parameters = [p.astype(dtype) for p in net.weights()]
    moments = [[np.zeros_like(p), np.zeros_like(p)] for p in parameters]
    picked, losses, step = np.arange(net.batch), [], 0
    for epoch in range(epochs):
        total = 0.0
        for rows in net.order(epoch).reshape(net.steps, net.batch):
            step, side = step + 1, Reference()
            z = read(net.layers, x[rows].astype(dtype), iter(parameters).__next__, side)
            p = softmax(z)
            total -= np.log(p[picked, labels[rows]]).mean()
            p[picked, labels[rows]] -= 1
            found = side.gradients(p / net.batch)
            update(net, step, parameters, [found[id(p)] for p in parameters], moments)
        losses.append(float(total / net.steps))
    return losses
