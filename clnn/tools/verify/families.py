"""What `clnn verify` computes, family by family: each file of kernels/ at odd and large sizes, gradients included."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np

from ... import layers, losses, metrics, optim
from ...arrays import argsort, cumsum, gather, prod, sort, take_rows, where
from ...attention import scaled_dot_product_attention
from ...cache import Cache
from ...data import augment
from ...functions import log_softmax, softmax
from ...gemm import Product, Scale, Shape, clblast, clblast_problem, engine_name, gemm
from ...gemm.tile import local_tiles
from ...ops.activation import FUNCTIONS
from ...ops.half import pack
from ...ops.image import conv_plan
from ...ops.random import Generator, dropout, spatial_dropout
from ...ops.sequence.recurrent import GATES, Cell, recurrent
from ...ops.sequence.sampling import Draws
from ...step import step
from ...tape import no_grad
from ...tensor import Tensor, apply, concat, function, linear_layer, tensor
from ...tensor import elementwise as of_two
from ..bench import nets, workloads
from ..bench.own import model_of
from . import references as ref
from .checks import Checks

LARGE = 100_003  # elements of a large array: prime
DIFFERENCES = 1e-11  # what references with central differences are good to
Forward = Callable[..., tuple[np.ndarray, ref.Backward]]


def _plain(f: Callable[..., np.ndarray], backward: Callable[..., Any]) -> Forward:
    """A reference of a function and what is its `backward(dy, *arrays)`."""
    return lambda *arrays: (f(*arrays), lambda dy: backward(dy, *arrays))


def _summed(d: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The gradient by an array that was broadcast."""
    d = d.sum(tuple(range(d.ndim - like.ndim)))
    return d.sum(tuple(i for i, n in enumerate(like.shape) if n == 1 < d.shape[i]), keepdims=True)


# -- elementwise ------------------------------------------------------------------------------------------------------
def elementwise(c: Checks) -> None:
    """Functions of one and of two variables, and halves."""
    for name in FUNCTIONS:
        if name == "linear":  # nothing is launched for it
            continue
        for n in (1, 7, LARGE) if name in ("relu", "sigmoid") else (1007,):
            x = ref.away_from_kinks(name, 2 * c.normal(n))
            f = _plain(ref.FUNCTIONS[name], lambda dy, x, name=name: (dy * ref.derivative(name, x),))
            c.op(f"{name} of {n:,}", lambda x, name=name: function(x, name), f, x)
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -3.0])
    for name in ("relu", "leaky_relu", "sigmoid", "tanh"):
        c.case(f"{name} of NaN and infinities")
        with np.errstate(all="ignore"):
            c.close("y", function(c.tensor(special), name), ref.FUNCTIONS[name](special))
    a, b = np.abs(c.normal(33, 1031)) + 0.1, np.abs(c.normal(1031)) + 0.1
    two: dict[str, Any] = {
        "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "**": operator.pow,
        "maximum": partial(of_two, "maximum"), "minimum": partial(of_two, "minimum"),
    }  # fmt: skip
    for name, f in two.items():
        g = {"maximum": np.maximum, "minimum": np.minimum}.get(name, f)

        def back(dy: np.ndarray, a: np.ndarray, b: np.ndarray, g: Any = g) -> Any:  # slopes by complex steps
            slopes = (g(a + 1e-30j, b), a), (g(a, b + 1e-30j), b)
            return tuple(_summed(dy * moved.imag * 1e30, x) for moved, x in slopes)

        c.op(f"{name} of (33, 1031) and (1031,)", f, _plain(g, back), a, b, rounding=128)
    for n in (1, 7, LARGE):
        c.case(f"{n:,} floats as halves")
        packed = c.tensor(np.concatenate([c.normal(n), special, [65519.0, 65520.0, 1e-7]]))
        with np.errstate(over="ignore"):
            halves = packed.numpy().astype(np.float16)
        pack(packed)
        c.same("read again", packed, halves)
    c.op("a + b of (7, 5) and (7, 1)", operator.add, _plain(np.add, lambda dy, a, b: (dy, _summed(dy, b))),
         c.normal(7, 5), c.normal(7, 1))  # fmt: skip


def reduction(c: Checks) -> None:
    """Sums, means, extremes."""
    for shape, axis in (((LARGE,), None), ((7, 5, 3), None), ((7, 5, 3), 1), ((333, 1031), 0), ((333, 1031), 1)):
        _reduced(c, c.normal(*shape), axis)


def _reduced(c: Checks, x: np.ndarray, axis: int | None) -> None:
    count = x.size if axis is None else x.shape[axis]

    spread = partial(np.expand_dims, axis=() if axis is None else axis)

    def check(name: str, slope: Callable[[np.ndarray], Any], rounding: float = 32.0) -> None:
        over = f"{name} of {x.shape} over {axis}"
        value = lambda x: np.asarray(getattr(x, name)(axis=axis))  # noqa: E731
        back = lambda dy, x: (slope(spread(value(x))) * spread(dy) + np.zeros(x.shape),)  # noqa: E731
        c.op(over, lambda t: getattr(t, name)(axis=axis), _plain(value, back), x, rounding=rounding)

    check("sum", lambda y: 1, 32 + 4 * math.sqrt(count))
    check("mean", lambda y: 1 / count, 32 + 4 * math.sqrt(count))
    check("max", lambda y: x == y)
    check("min", lambda y: x == y)
    if axis is not None:
        c.case(f"argmax of {x.shape} over {axis}")
        c.same("y", c.tensor(x).argmax(axis=axis), x.argmax(axis=axis))


def softmaxes(c: Checks) -> None:
    """Softmax and its logarithm."""
    for shape in ((1, 1), (9, 1031), (1001, 10)):
        x = 3 * c.normal(*shape)
        p = ref.softmax(x)
        c.op(f"softmax of {shape}", softmax,
             lambda x, p=p: (p, lambda dy: (p * (dy - (dy * p).sum(-1, keepdims=True)),)), x)  # fmt: skip
        c.op(f"log_softmax of {shape}", log_softmax,
             lambda x, p=p: (ref.log_softmax(x), lambda dy: (dy - p * dy.sum(-1, keepdims=True),)), x,
             rounding=64)  # fmt: skip


# -- products ---------------------------------------------------------------------------------------------------------
SHAPES = ((1, 1, 1), (1, 700, 300), (67, 45, 33), (129, 515, 785), (31, 7, 5003), (517, 259, 1031), (65, 1031, 1033))


def products(c: Checks) -> None:
    """Products of matrices by clnn's own kernels: every form, and the epilogues of training."""
    c.say(note=f"the engine in use is {engine_name(c.device)}")
    _by_engine(c, "tile")


def by_clblast(c: Checks) -> None:
    """The same by CLBlast, where it is there."""
    if not clblast.available():
        c.say(note="pyclblast is not installed")
    elif problem := clblast_problem(c.device):
        c.say(note=f"clnn does without CLBlast: {problem}")
    else:
        _by_engine(c, "clblast")


def _by_engine(c: Checks, engine: str) -> None:
    with patch.dict(os.environ, CLNN_GEMM=engine):
        for m, n, k in SHAPES:
            for ta, tb in ((False, False), (True, False), (False, True), (True, True)):
                _product(c, engine, m, n, k, ta, tb)
        for m, n, k in (*SHAPES[1:5], (1033, 1031, 65)):
            _epilogues(c, engine, m, n, k)


def _product(c: Checks, engine: str, m: int, n: int, k: int, ta: bool, tb: bool) -> None:
    d, size = c.device, c.dtype.itemsize
    a, b = c.normal(m, k), c.normal(k, n)
    c.case(f"{'NT'[ta]}{'NT'[tb]} {m}x{n}x{k} by {engine}")
    on_a, on_b, on_c = _held(c, a.T if ta else a), _held(c, b.T if tb else b), d.allocate(m * n * size)
    gemm(d, Product(Shape(m, n, k, c.dtype, ta, tb), on_a, on_b, on_c))
    c.close("C", d.read(on_c, np.empty((m, n), c.dtype)), a @ b, 16, np.abs(a) @ np.abs(b))


def _epilogues(c: Checks, engine: str, m: int, n: int, k: int) -> None:
    """NN with bias and an activation; TN scaled and added, with column sums; NT times an activation's derivative."""
    d = c.device
    a, b, before, bias = c.normal(m, k), c.normal(k, n), c.normal(m, n), c.normal(n)
    product, scale = a @ b, np.abs(a) @ np.abs(b)
    read = lambda block, shape: d.read(block, np.empty(shape, c.dtype))  # noqa: E731
    for act in ("relu", "gelu"):
        c.case(f"NN {m}x{n}x{k} with bias and {act} by {engine}")
        out, saved = _held(c, before), _held(c, before) if act == "gelu" else None
        shape = Shape(m, n, k, c.dtype)
        gemm(d, Product(shape, _held(c, a), _held(c, b), out, bias=_held(c, bias), activation=act, saved=saved))
        c.close("C", read(out, (m, n)), ref.FUNCTIONS[act](product + bias), 32, scale + 1)
        if saved is not None:
            c.close(
                "what its derivative needs", read(saved, (m, n)), ref.derivative(act, product + bias), 32, scale + 1
            )
    c.case(f"TN {m}x{n}x{k} added to C, with column sums, by {engine}")
    pair, out, sums = Scale.constant(d, c.dtype, -0.5, 1.0), _held(c, before), _held(c, bias)
    shape = Shape(m, n, k, c.dtype, transpose_a=True)
    gemm(d, Product(shape, _held(c, a.T), _held(c, b), out, scale=pair, sums=(sums, pair)))
    c.close("C", read(out, (m, n)), before - product / 2, 32, scale + 1)
    c.close("column sums", read(sums, (n,)), bias - b.sum(0) / 2, 32, np.abs(b).sum(0) + 1)
    c.case(f"NT {m}x{n}x{k} times a derivative by {engine}")
    out, saved = _held(c, np.full((m, n), np.nan)), _held(c, before)
    shape = Shape(m, n, k, c.dtype, transpose_b=True)
    gemm(d, Product(shape, _held(c, a), _held(c, b.T), out, activation="relu", saved=saved, derivative=True))
    c.close("C", read(out, (m, n)), product * (before > 0), 32, scale + 1)


def _held(c: Checks, array: np.ndarray) -> Any:
    block = c.device.memory.allocate(array.size * c.dtype.itemsize)
    c.device.upload(np.ascontiguousarray(array, c.dtype), block)
    return block


def linear(c: Checks) -> None:
    """Dense layers, and products of stacks."""
    for (n, k, m), act in (
        ((1, 37, 5), "sigmoid"), ((129, 785, 257), "relu"), ((130, 300, 10), "gelu"), ((3, 1000, 600), "tanh"),
        ((64, 64, 64), "linear"),
    ):  # fmt: skip
        c.layer(f"Dense({m}, {act!r}) of ({n}, {k})", layers.Dense(m, act), _dense(act), c.normal(n, k),
                rounding=32 + 4 * math.sqrt(k))  # fmt: skip
    back = lambda dy, a, b: (dy @ b.swapaxes(1, 2), a.swapaxes(1, 2) @ dy)  # noqa: E731
    c.op("(3, 7, 33) @ (3, 33, 5)", lambda a, b: a @ b, _plain(np.matmul, back), c.normal(3, 7, 33), c.normal(3, 33, 5))


def _dense(act: str) -> Forward:
    def backward(dy: np.ndarray, x: np.ndarray, w: np.ndarray, b: np.ndarray) -> ref.Arrays:
        d = dy * ref.derivative(act, x @ w + b)
        return d @ w.T, x.T @ d, d.sum(0)

    return _plain(lambda x, w, b: ref.FUNCTIONS[act](x @ w + b), backward)


# -- convolutions -----------------------------------------------------------------------------------------------------
def _convolution(
    c: Checks, shape: Sequence[int], k: int, size: Sequence[int], *, stride: int = 1, padding: int = 0,
    dilation: int = 1, groups: int = 1, act: str = "linear", transposed: bool = False,
) -> None:  # fmt: skip
    axes = len(size)
    name = f"Conv{axes}D" + "Transpose" * transposed
    how: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    layer = getattr(layers, name)(k, tuple(size), act, **how)
    all_axes: Any = ([stride] * axes, [padding] * axes, [dilation] * axes)
    if transposed:
        out: Any = tuple((n - 1) * stride + dilation * (s - 1) + 1 - 2 * padding for n, s in zip(shape[2:], size))
        index, _ = ref.windows(out, size, [stride] * axes, [padding] * axes, [dilation] * axes, shape[2:])
    else:
        index, out = ref.windows(shape[2:], size, *all_axes)
    op = ref.transposed_convolution if transposed else ref.convolution

    def reference(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> Any:
        z, backward = op(x, w, b, index, out, groups)
        return ref.FUNCTIONS[act](z), lambda dy: backward(dy * ref.derivative(act, z))

    different = [f"{option} {value}" for option, value in how.items() if value != (option != "padding")]
    words = ", ".join([f"{'x'.join(map(str, size))} to {k} channels", *different, *([act] if act != "linear" else [])])
    rounding = 64 + 8 * math.sqrt(math.prod(size) * shape[1] + len(index) * shape[0] / 4)
    c.layer(f"{name} {words}, of {'x'.join(map(str, shape))}", layer, reference, c.normal(*shape), rounding)


def convolutions(c: Checks) -> None:
    """Two axes: strides, padding, dilation, many and few channels."""
    _convolution(c, (3, 1, 28, 28), 20, (5, 5), act="relu")
    _convolution(c, (5, 3, 17, 19), 8, (3, 3), padding=1)
    _convolution(c, (2, 3, 31, 29), 7, (3, 3), stride=2, padding=1, act="gelu")
    _convolution(c, (2, 5, 13, 11), 33, (1, 1), act="sigmoid")
    _convolution(c, (2, 4, 15, 15), 6, (3, 3), dilation=2)
    _convolution(c, (1, 20, 12, 12), 40, (5, 5))
    _convolution(c, (17, 1, 1, 1), 1, (1, 1))


def winograd(c: Checks) -> None:
    """3 x 3 with many channels: Winograd's kernels, on GPUs by each tile of their products and in pieces."""
    every = conv_plan.plans
    for tile in [None] if c.device.long_loops else dict.fromkeys(local_tiles(c.device, c.dtype)):
        only = lambda *how, t=tile: [p._replace(cb=1) for p in every(*how) if p[:3] == ("winograd_gpu", *t[:2])]  # noqa: E731
        with patch.multiple(conv_plan, plans=only if tile else every, ROOM=1 << 19):
            _convolution(c, (2, 32, 14, 14), 32, (3, 3), padding=1, act="relu")
            _convolution(c, (5, 64, 9, 7), 48, (3, 3), padding=1)


def transposed(c: Checks) -> None:
    """Transposed convolutions."""
    _convolution(c, (2, 5, 7, 9), 4, (4, 4), stride=2, padding=1, transposed=True, act="relu")
    _convolution(c, (2, 6, 6, 5), 9, (3, 3), transposed=True)
    _convolution(c, (2, 4, 6, 5), 6, (3, 3), stride=2, groups=2, transposed=True)


def grouped(c: Checks) -> None:
    """Convolutions in groups, and depthwise ones."""
    _convolution(c, (2, 6, 11, 9), 10, (3, 3), padding=1, groups=2)
    _convolution(c, (2, 16, 15, 13), 16, (3, 3), padding=1, groups=16, act="relu")
    _convolution(c, (2, 7, 10, 10), 14, (3, 3), stride=2, groups=7)


def other_axes(c: Checks) -> None:
    """One and three axes."""
    _convolution(c, (3, 2, 101), 8, (5,), dilation=2, act="relu")
    _convolution(c, (1, 2, 7, 8, 9), 4, (3, 3, 3), padding=1)


def pooling(c: Checks) -> None:
    """Maxima and means of windows, regular, adaptive, and of all."""

    def check(
        what: str, kind: str, options: Any, x: np.ndarray, index: np.ndarray, out: Any, padded: bool = True
    ) -> None:
        layer = getattr(layers, what.format(kind))(*options)
        reference = lambda x: ref.pooled(x, index, out, kind == "Max", padded)  # noqa: E731
        c.layer(f"{what.format(kind)}{options} of {x.shape}", layer, reference, x)

    for kind in ("Max", "Avg"):
        for shape, size, stride, pad in (
            ((3, 5, 24, 24), 2, 2, 0), ((2, 3, 17, 13), 3, 2, 1), ((2, 2, 20, 20), 9, 3, 0), ((2, 3, 101), 3, 1, 0),
            ((1, 2, 6, 7, 8), 2, 2, 0),
        ):  # fmt: skip
            axes = len(shape) - 2
            index, out = ref.windows(shape[2:], [size] * axes, [stride] * axes, [pad] * axes, [1] * axes)
            check(f"{{}}Pool{axes}D", kind, (size, stride, pad), c.normal(*shape), index, out)
        x = c.normal(2, 3, 11, 13)
        for bins in (1, 3, 5):
            check("Adaptive{}Pool", kind, (bins,), x, _bins(x.shape[2:], bins), (bins, bins), False)
        check("Global{}Pool", kind, (), x, np.arange(11 * 13)[None], ())


def _bins(space: Sequence[int], bins: int) -> np.ndarray:
    """The elements of an image that lie in each of bins x bins, -1 behind them: bin i of n is [i n / bins, (i + 1) n / bins)
    rounded outwards."""
    index = np.full((bins * bins, math.prod(n // bins + 2 for n in space)), -1)
    edges = [[(i * n // bins, -(-(i + 1) * n // bins)) for i in range(bins)] for n in space]
    for at, ((top, bottom), (left, right)) in enumerate((rows, columns) for rows in edges[0] for columns in edges[1]):
        inside = (np.arange(top, bottom)[:, None] * space[1] + np.arange(left, right)).ravel()
        index[at, : inside.size] = inside
    return index


# -- normalisation ----------------------------------------------------------------------------------------------------
def _normalisation(act: str, axes: Any, parts: int = 0, centred: bool = True, last: bool = False) -> Forward:
    """Over some axes, or with `parts` over the space of each of so many parts of the channels; with `last` gamma and beta
    are over the last axis, else over channels."""

    def reference(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray | None = None) -> Any:
        source = x.reshape(len(x), parts, -1) if parts else x
        z, back = ref.normalized(source, (2,) if parts else axes, centred=centred)
        z = z.reshape(x.shape)
        lie = (-1,) if last else (1, -1, *[1] * (x.ndim - 2))
        others = tuple(i for i in range(x.ndim) if i != (x.ndim - 1 if last else 1))
        y = z * gamma.reshape(lie) + (0 if beta is None else beta.reshape(lie))

        def backward(dy: np.ndarray) -> ref.Arrays:
            d = dy * ref.derivative(act, y)
            dz = d * gamma.reshape(lie)
            dx = back(dz.reshape(source.shape)).reshape(x.shape)
            return dx, (d * z).sum(others), d.sum(others)

        return ref.FUNCTIONS[act](y), backward

    return reference


def normalisation(c: Checks) -> None:
    """Batch, layer, RMS, group, instance and local response normalisation."""
    x, rows = c.normal(9, 12, 7, 11), c.normal(301, 1031)
    space = (0, 2, 3)
    c.layer("BatchNorm of (9, 12, 7, 11)", layers.BatchNorm(), _normalisation("linear", space), x, 128)
    c.layer("BatchNorm('sigmoid')", layers.BatchNorm("sigmoid"), _normalisation("sigmoid", space), x, 128)
    c.layer("BatchNorm of (301, 1031)", layers.BatchNorm(), _normalisation("linear", (0,)), rows, 128)
    c.layer("GroupNorm(3) of (9, 12, 7, 11)", layers.GroupNorm(3, "tanh"), _normalisation("tanh", (), 3), x, 128)
    c.layer("InstanceNorm", layers.InstanceNorm(), _normalisation("linear", (2, 3)), x, 128)
    c.layer("LayerNorm of (301, 1031)", layers.LayerNorm(), _normalisation("linear", (1,), last=True), rows, 128)
    c.layer("RMSNorm of (301, 1031)", layers.RMSNorm(),
            _normalisation("linear", (1,), centred=False, last=True), rows, 128)  # fmt: skip

    def response(rows: np.ndarray) -> np.ndarray:  # (pixels, channels), over 5 neighbours, as its paper has them
        near = np.pad(rows**2, ((0, 0), (2, 2)))
        sums = sum(near[:, i : i + rows.shape[1]] for i in range(5))
        return rows / (1 + 1e-1 / 5 * sums) ** 0.75

    def reference(x: np.ndarray) -> Any:
        turned = np.moveaxis(x, 1, -1)
        back = lambda v: np.moveaxis(v.reshape(turned.shape), -1, 1)  # noqa: E731
        flat = lambda v: np.moveaxis(v, 1, -1).reshape(-1, x.shape[1])  # noqa: E731
        return back(response(flat(x))), lambda dy: (back(ref.by_columns(response, flat(x), flat(dy))),)

    c.layer("LocalResponseNorm(5)", layers.LocalResponseNorm(5, 1e-1), reference, x)
    c.case("BatchNorm by its running statistics")
    layer = layers.BatchNorm()
    layer.place(c.device, c.dtype)
    for _ in range(2):
        layer(c.parameter(x))
    n = x.size // 12
    mean, variance = x.mean(space), x.var(space) * n / (n - 1)
    mean, variance = 0.19 * mean, 0.81 + 0.19 * variance  # after two steps of 0.1 from 0 and 1
    with no_grad():
        y = layer(c.parameter(x))
    lie = (-1, 1, 1)
    c.close("y", y, (x - mean.reshape(lie)) / np.sqrt(variance.reshape(lie) + 1e-5), 128)


def resizing(c: Checks) -> None:
    """Upsampling and padding."""
    x = c.normal(3, 5, 9, 14)
    for factor, mode in ((2, "nearest"), (3, "nearest"), (2, "linear"), (3, "linear")):
        matrices = [ref.upsampling(n, factor, mode == "linear") for n in x.shape[2:]]
        c.layer(f"UpSampling({factor}, {mode!r})", layers.UpSampling(factor, mode), _by_matrices(matrices), x, 64)
    for mode in ("constant", "reflect", "replicate"):
        matrices = [ref.padding(n, 2, 2, mode) for n in x.shape[2:]]
        c.layer(f"Padding(2, {mode!r})", layers.Padding(2, mode), _by_matrices(matrices), x, 64)


def _by_matrices(matrices: list[np.ndarray]) -> Forward:
    return _plain(lambda x: ref.along_axes(x, matrices), lambda dy, x: (ref.along_axes(dy, [m.T for m in matrices]),))


# -- random numbers, shapes, images -----------------------------------------------------------------------------------
def random(c: Checks) -> None:
    """Philox bit for bit, its distributions, and dropout by it."""
    d, seed, n = c.device, 0x123456789ABCDEF, LARGE
    words = ref.philox(0, seed, n)
    unit = (words >> 8).astype(np.float64) / 2**24
    c.case(f"{n:,} random words")
    c.same("words", Generator(d, seed).bits(n), words)
    c.case("uniform numbers")
    c.close("numbers", Generator(d, seed).uniform((n,), -0.3, 0.7), unit - 0.3, 4)
    c.case("normal numbers")
    u, v = np.append(unit, ref.philox(0, seed, n + 1)[-1:] / 2**32)[: n + 1].reshape(-1, 2).T
    pairs = np.sqrt(-2 * np.log1p(-u)) * np.stack([np.cos(2 * np.pi * v), np.sin(2 * np.pi * v)])
    numbers = Generator(d, seed).normal((n - 1,))
    c.close("numbers", numbers, pairs.T.ravel()[: n - 1], 32, np.maximum(1, np.abs(pairs.T.ravel()[: n - 1])))
    x = c.normal(n)
    for rate in (0.5, 0.3):
        keep = np.float32(1 - rate)
        kept = unit.astype(np.float32) < keep
        c.op(f"dropout({rate})", lambda t, rate=rate: apply(dropout, t, rate=rate, generator=Generator(d, seed)),
             _plain(lambda x, kept=kept, keep=keep: np.where(kept, x / keep, 0),
                    lambda dy, x, kept=kept, keep=keep: (np.where(kept, dy / keep, 0),)), x)  # fmt: skip
    planes = c.normal(3, 7, 5, 3)
    factor = np.where(unit[:21].astype(np.float32) < np.float32(0.7), 1 / np.float32(0.7), 0).reshape(3, 7, 1, 1)
    c.op("spatial dropout", lambda t: apply(spatial_dropout, t, rate=0.3, generator=Generator(d, seed)),
         _plain(lambda x: x * factor, lambda dy, x: (dy * factor,)), planes)  # fmt: skip


def shapes(c: Checks) -> None:
    """Slices, transpositions, joins, and rows by their numbers."""
    x = c.normal(7, 5, 333)

    def scattered(key: Any) -> Forward:
        def backward(dy: np.ndarray, x: np.ndarray) -> ref.Arrays:
            dx = np.zeros(x.shape)
            dx[key] = dy
            return (dx,)

        return _plain(lambda x: x[key], backward)

    for key in (np.s_[2:6, :, 3:300:2], np.s_[:, 1], np.s_[::-1, 4:, 5], np.s_[3]):
        c.op(f"x[{key}]", lambda t, key=key: t[key] * 1.0, scattered(key), x)
    turn = _plain(lambda x: x.transpose(2, 0, 1), lambda dy, x: (dy.transpose(1, 2, 0),))
    c.op("transpose(2, 0, 1)", lambda t: t.transpose(2, 0, 1) * 1.0, turn, x)
    wide = _plain(lambda a: np.broadcast_to(a, (7, 5, 41)) * 1.0, lambda dy, a: (_summed(dy, a),))
    c.op("broadcast_to", lambda t: t.broadcast_to((7, 5, 41)) * 1.0, wide, c.normal(5, 1), rounding=128)
    joined = _plain(lambda a, b: np.concatenate([a, b], 1), lambda dy, a, b: (dy[:, :100], dy[:, 100:]))
    c.op("concatenate", lambda a, b: concat([a, b], 1) * 1.0, joined, c.normal(9, 100), c.normal(9, 31))
    c.op("runs behind a sigmoid", lambda a: concat([function(a, "sigmoid")[:, :128], a[:, 128:]], 1) * 1.0,
         _plain(lambda a: np.concatenate([ref.FUNCTIONS["sigmoid"](a[:, :128]), a[:, 128:]], 1), lambda dy, a: (
             np.concatenate([dy[:, :128] * ref.derivative("sigmoid", a[:, :128]), dy[:, 128:]], 1),)),
         c.normal(6, 256))  # fmt: skip
    c.case("rows by their numbers")
    rows, index = c.normal(1001, 37), c.rng.integers(0, 1001, 503).astype(np.int32)
    c.same("rows", take_rows(c.tensor(rows), index), rows[index])


def _attention(c: Checks) -> None:
    """Of every length, with masks, with heads of queries that share those of keys, and after keys of a cache."""
    seen, bias = c.rng.random((2, 1, 70, 131)) < 0.7, c.normal(66, 131)
    seen[:, :, 5] = False  # this query sees no key
    for (h, g, t, s, d, dv), more, known in (
        ((3, 3, 70, 131, 20, 33), {}, {}),
        ((2, 2, 67, 67, 16, 16), {"causal": True}, {"seen": np.tri(67)}),
        ((3, 3, 70, 131, 20, 33), {"mask": seen}, {"seen": seen}),
        ((6, 2, 66, 131, 16, 20), {"mask": bias}, {"added": bias}),
        ((6, 2, 66, 131, 16, 20), {"causal": True, "past": 40}, {"seen": np.tri(66, 131, 40)}),
        ((4, 2, 3, 131, 16, 20), {"causal": True, "past": 99, "mask": bias[:3]},
         {"seen": np.tri(3, 131, 99), "added": bias[:3]}),
    ):  # fmt: skip
        c.op(
            f"attention, {t} queries of {s} keys, {h} heads of {g}, {', '.join(more) or 'all seen'}",
            partial(scaled_dot_product_attention, **more), partial(ref.attention, **known),
            c.normal(2, h, t, d), c.normal(2, g, s, d), c.normal(2, g, s, dv), rounding=128,
        )  # fmt: skip
    c.case("attention to the keys of a cache")
    q, k, v = c.normal(2, 4, 20, 16), c.normal(2, 2, 20, 16), c.normal(2, 2, 20, 33)
    cache, parts = Cache(c.device, 23), []
    for at in (slice(13), slice(13, 14), slice(14, 20)):
        with cache.open():
            parts.append(scaled_dot_product_attention(*(c.tensor(a[:, :, at]) for a in (q, k, v)), causal=True).numpy())
        c.device.advance([(cache.past.block, parts[-1].shape[2])])
    c.close("y", np.concatenate(parts, 2), ref.attention(q, k, v, seen=np.tri(20))[0], 128)


def sequences(c: Checks) -> None:
    """Attention, recurrence over time, sorting, and gradients of indexing."""
    _attention(c)
    for kind, batch, steps, units, how in (
        ("RNN", 3, 9, 20, ""), ("RNN", 11, 4, 37, ", masked"), ("LSTM", 3, 4, 20, ""), ("LSTM", 3, 4, 20, ", masked"),
        ("GRU", 5, 3, 20, ""), ("GRU", 4, 4, 20, ", masked"), ("GRU", 4, 3, 20, ", reset before the product"),
    ):  # fmt: skip
        u, cell = c.normal(units, GATES[kind] * units) / math.sqrt(units), Cell(kind, sequence=True)
        mask = c.rng.random((batch, steps)) < 0.7 if how == ", masked" else None
        given = None if mask is None else c.tensor(mask)
        c.op(
            f"{kind}, {steps} steps of {batch} sequences, {units} units{how}",
            lambda z, u, *more, cell=cell, steps=steps, given=given: (
                apply(recurrent, z * 1.0, u, None, (), given, None, *more, cell=cell)[:, :steps] * 1.0
            ),
            partial(ref.by_elements, partial(ref.recurrent, kind, mask)), c.normal(batch, steps, u.shape[1]),
            *(np.split(u, [2 * units], 1) if how == ", reset before the product" else [u]), rounding=256,
        )  # fmt: skip
    c.case("sorting")
    x = np.round(c.normal(3, 501) * 20)
    c.same("values", sort(c.tensor(x)), np.sort(x, -1))
    c.same("places", argsort(c.tensor(x)).astype("float32"), np.argsort(x, -1, kind="stable"))
    index, places = c.rng.integers(0, 7, 301), c.rng.integers(0, 7, (33, 5)).astype(np.int32)
    for case, op, f, shape in (
        ("rows that are named more than once", lambda t: take_rows(t, index), lambda x: x[index], (7, 37)),
        ("elements that are named more than once", lambda t: gather(t, places, 0),
         lambda x: np.take_along_axis(x, places, 0), (7, 5)),
        ("tokens of which one is padding", lambda t: where((tensor(index) != 3).reshape(-1, 1), take_rows(t, index), 0.0),
         lambda x: x[index] * (index != 3)[:, None], (7, 37)),
        ("running sums", lambda t: cumsum(t, 1), lambda x: x.cumsum(1), (3, 301, 2)),
        ("products", lambda t: prod(t, 1), lambda x: x.prod(1), (5, 7, 3)),
        ("choices", lambda t: where(t > 0.0, t, t * t), lambda x: np.where(x.real > 0, x, x * x), (7, 37)),
    ):  # fmt: skip
        c.op(case, op, partial(ref.by_elements, f), c.normal(*shape), rounding=256)
    z, u = np.round(2 * c.normal(50, 301), 1), c.rng.random((1, 50))
    order = np.argsort(-z, -1, kind="stable")
    for heat, k in ((0.0, None), (1.3, None), (0.7, 40)):
        c.case(f"tokens drawn at temperature {heat}" + (f" from the {k} likeliest" if k else ""))
        p = np.exp((z - z.max(-1, keepdims=True)) / (heat or 1e-6))
        p = np.take_along_axis(p, order, -1)[:, :k] if k else p
        at = (np.cumsum(p, -1) < u.T * p.sum(-1, keepdims=True)).sum(-1)
        draws = Draws(c.device, c.dtype, 1, 50, 1)
        draws.decide(heat, k, None)
        draws.begin(u)
        draws.draw(c.tensor(z), ranked=bool(k))
        want = order[:, 0] if not heat else np.take_along_axis(order, at[:, None], -1)[:, 0] if k else at
        c.same("tokens", draws.read(1)[0][:, 0], want)


def augmentation(c: Checks) -> None:
    """Images moved, mirrored, warped, cut and mixed."""
    x = c.normal(5, 2, 13, 13)
    t = c.tensor(x)
    c.case("shift by (2, -3)")
    moved = np.zeros(x.shape)
    moved[:, :, :10, 2:] = x[:, :, 3:, :11]
    c.same("y", augment.shift(t, 2, -3), moved)
    c.case("flip")
    c.same("y", augment.flip(t), x[..., ::-1])
    c.case("crop")
    cut, padded = augment.crop(t, 9, padding=2, seed=1).numpy(), np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2)))
    for i in range(len(x)):
        places = [(r, s) for r in range(9) for s in range(9) if (padded[i, :, r : r + 9, s : s + 9] == cut[i]).all()]
        c.true(f"piece {i}", bool(places), "no place of the image looks like it")
    c.case("warp")
    m = np.array([[1, 0.1, 0.5], [-0.2, 0.9, 1.3]]) + c.normal(5, 2, 3) / 20
    m = m.astype(c.dtype).astype(np.float64)
    c.close("y", augment.warp(t, m.astype(c.dtype), 0.5), ref.warped(x, m, 0.5), 512)
    c.case("affine, a quarter turn")
    c.close("y", augment.affine(t, rotation=(90.0, 90.0), seed=1), np.rot90(x, axes=(2, 3)), 512)
    c.case("elastic, of one colour")
    one = np.full((3, 9, 9), 0.25)
    c.close("y", augment.elastic(c.tensor(one), 8.0, 3.0, fill=0.25, seed=1), one, 32)
    c.case("cutout")
    hole = augment.cutout(t, 5, fill=9.0, seed=1).numpy()
    c.same("y outside of the square", np.where(hole == 9, x, hole), x)
    c.true("the square", 0 < (hole == 9).sum() <= 5 * 2 * 25, f"{(hole == 9).sum()} pixels are set")
    c.case("mixup")
    labels = np.eye(5)
    mixed, targets = augment.mixup(t, c.tensor(labels), alpha=0.4, seed=7)
    rng = np.random.default_rng(7)
    order, share = rng.permutation(5), rng.beta(0.4, 0.4, 5)
    k = share.reshape(-1, 1, 1, 1)
    c.close("images", mixed, k * x + (1 - k) * x[order])
    c.close("targets", targets, share[:, None] * labels + (1 - share[:, None]) * labels[order])


# -- training ---------------------------------------------------------------------------------------------------------
def losses_and_metrics(c: Checks) -> None:
    """Losses with their gradients, weights of samples, accuracies."""
    for rows, n in ((7, 3), (1001, 10), (33, 301)):
        values, labels = c.normal(rows, n), c.rng.integers(0, n, rows).astype(np.int32)
        hot, weight = np.eye(n)[labels], np.abs(c.normal(rows))
        for name in losses.LOSSES:
            classes = name in ("cross_entropy", "log_likelihood")
            t = hot if classes else (c.rng.random((rows, n)) < 0.5).astype(float)
            kinks = t, 2 * t - 1  # of |y - t| and of the hinge
            y = values + 0.3 * np.any([np.abs(values - kink) < 0.01 for kink in kinks], 0)
            by_row, target = ref.losses(name, t), labels if classes else t.astype(c.dtype)

            def reference(y: np.ndarray, by_row: Any = by_row, weight: np.ndarray = weight) -> Any:
                share = (weight / len(y))[:, None]
                return np.asarray((by_row(y) * weight).mean()), lambda dy: (
                    dy * share * ref.by_columns(by_row, y, 1.0),
                )

            def loss(y: Tensor, name: str = name, target: Any = target, weight: np.ndarray = weight) -> Tensor:
                return getattr(losses, name)(y, target, sample_weight=weight.astype(c.dtype))

            c.op(f"{name} of ({rows}, {n})", loss, reference, y, rounding=64)
        c.case(f"accuracy and top_2 of ({rows}, {n})")
        output = c.tensor(values)
        c.same("accuracy", metrics.accuracy(output, labels), values.argmax(1) == labels)
        best = np.argsort(-values, 1)[:, :2]
        c.same("top_2", metrics.top_k(2)(output, tensor(labels, device=c.device)), (best == labels[:, None]).any(1))


def _optimizers() -> dict[str, Any]:
    return {
        "SGD, weight decay": optim.SGD(0.1, weight_decay=0.3),
        "SGD, momentum, l1": optim.SGD(0.1, momentum=0.9, weight_decay=0.3, l1=0.2),
        "SGD, Nesterov": optim.SGD(0.1, momentum=0.9, nesterov=True),
        "SGD, clipped, averaged": optim.SGD(0.1, momentum=0.9, clip_norm=20.0, clip_value=5.0, ema=0.75),
        "Adam": optim.Adam(0.01, weight_decay=0.3, epsilon=1e-3),
        "AdamW, averaged": optim.AdamW(0.01, weight_decay=0.3, ema=0.75),
        "AMSGrad": optim.AMSGrad(0.01, beta2=0.5),
        "Nadam": optim.Nadam(0.01, momentum_decay=0.3),
        "LAMB, clipped": optim.LAMB(0.01, weight_decay=0.3, clip_norm=30.0),
        "RMSprop, centred": optim.RMSprop(0.01, 0.9, centered=True, momentum=0.5),
        "Adagrad": optim.Adagrad(0.1),
        "Adadelta": optim.Adadelta(0.5, rho=0.95),
        "Lion": optim.Lion(0.01, beta1=0.75, beta2=0.5, weight_decay=0.3),
    }


def optimizers(c: Checks) -> None:
    """Six steps of each, recorded; gradients are whole numbers, so that they are known exactly."""
    shape = (300, 129)
    for name, optimizer in _optimizers().items():
        c.case(name)
        w, b = c.normal(*shape), c.normal(shape[1])
        on_w, on_b = c.parameter(w), c.parameter(b)
        reference = ref.Optimization(optimizer)
        on_w.max_norm = reference.max_norm["w"] = 17.0

        def train(x: Tensor, d: Tensor, on_w: Any = on_w, on_b: Any = on_b, optimizer: Any = optimizer) -> None:
            (linear_layer(x, on_w, on_b, "linear") * d).sum().backward()
            optimizer.step([on_w, on_b])

        recorded = step(train)
        for _ in range(6):
            x, d = (c.rng.integers(-3, 4, (7, n)).astype(np.float64) for n in shape)
            recorded(c.tensor(x), c.tensor(d))
            reference.step({"w": (w, True), "b": (b, False)}, {"w": x.T @ d, "b": d.sum(0)})
        largest = max(1.0, float(np.abs(w).max()), float(np.abs(reference.state["w"][0]).max()))
        c.close("w", on_w, w, 128, largest)
        c.close("b", on_b, b, 128, largest)
        if optimizer.ema is not None:
            with optimizer.averaged():
                c.close("the average of w", on_w, reference.average["w"], 128, largest)


def training(c: Checks) -> None:
    """Recorded fits: a perceptron of each kind and a convolutional network, by their losses and outputs."""
    found = {
        "784-30-10, sigmoid, SGD, batches of 10": workloads.NETS["nielsen"]._replace(steps=40),
        "100-65-33-10, ReLU, Adam, batches of 33": workloads.Net(
            (100, 65, 33, 10), "relu", "cross_entropy", "adam", 1e-3, 33, 12
        ),
    }
    for name, net in found.items():
        c.case(name)
        x, y = net.data()
        model = model_of(net)
        how = {"sgd": optim.SGD, "adam": optim.Adam}[net.optimizer](net.lr)
        fit: dict[str, Any] = {"loss": net.loss, "batch_size": net.batch, "seed": workloads.SEED, "progress": False}
        history = model.fit(x, y, optimizer=how, epochs=4, **fit).history["loss"]
        c.close("the loss of each epoch", history, workloads.reference_losses(net, 4), workloads.LOSS_TOLERANCE / c.eps)
        state = list(model.state_dict().values())
        layer_by_layer = [
            (state[i].astype(np.float64), state[i + 1].astype(np.float64)) for i in range(0, len(state), 2)
        ]
        want = workloads.forward(net, layer_by_layer, x[:77].astype(np.float64))[-1]
        want = ref.FUNCTIONS["sigmoid"](want) if net.loss == "quadratic" else want
        c.close("outputs of 77 samples", model.predict(x[:77]), want, 256)
    images = nets.ConvNet(
        (1, 12, 12),
        (nets.conv(8, 3, True), nets.pool(2), nets.conv(16, 3, padding=1, bias=False), nets.norm(), nets.FLATTEN,
         nets.dense(10)),
        "sgd", 0.03, 0.9, 1e-4, 32, 6,
    )  # fmt: skip
    c.case("a convolutional network, momentum, batches of 32")
    x, y = images.data()
    history = (
        model_of(images)
        .fit(x, y, loss="cross_entropy", optimizer=optim.SGD(images.lr, images.momentum, weight_decay=images.decay),
             epochs=2, batch_size=images.batch, seed=workloads.SEED, progress=False)
        .history["loss"]
    )  # fmt: skip
    c.close("the loss of each epoch", history, nets.reference_losses(images, 2), workloads.LOSS_TOLERANCE / c.eps)


def doubles(c: Checks) -> None:
    """float64, where the device has it: products, layers, a convolution, an optimizer, within its own rounding."""
    if not c.device.has_fp64:
        c.say(note="this device has no float64")
        return
    with patch.multiple(c, dtype=np.dtype(np.float64), eps=DIFFERENCES):
        linear(c)
        softmaxes(c)
        _convolution(c, (2, 3, 13, 11), 5, (3, 3), padding=1, act="tanh")


class Family(NamedTuple):
    """A group of kernels that are checked in one process, and the files of kernels/ that they are in."""

    run: Callable[[Checks], None]
    files: tuple[str, ...]


# On a CPU a plan chooses among them, on a GPU it is conv_local, or winograd_gpu.
CONVOLUTION = ("conv", "conv_rows", "conv_columns", "conv_scatter", "conv_weights", "conv_local")
FAMILIES = {
    "elementwise": Family(elementwise, ("elementwise", "activation", "half")),
    "reduce": Family(reduction, ("reduce",)),
    "softmax": Family(softmaxes, ("softmax",)),
    "gemm": Family(products, ("gemm", "epilogue")),
    "clblast": Family(by_clblast, ("epilogue",)),
    "linear": Family(linear, ("gemm",)),
    "conv": Family(convolutions, CONVOLUTION),
    "conv-3x3": Family(winograd, ("winograd", "winograd_gpu", "gemm")),
    "conv-transposed": Family(transposed, CONVOLUTION),
    "conv-grouped": Family(grouped, (*CONVOLUTION, "conv_lanes")),
    "conv-1d-3d": Family(other_axes, CONVOLUTION),
    "pool": Family(pooling, ("pool",)),
    "norm": Family(normalisation, ("norm",)),
    "resize": Family(resizing, ("resize",)),
    "random": Family(random, ("random", "planes")),
    "shape": Family(shapes, ("shape",)),
    "augment": Family(augmentation, ("augment",)),
    "sequence": Family(sequences, ("attention", "recurrent", "index", "sampling")),
    "loss": Family(losses_and_metrics, ("losses", "metrics")),
    "optimizer": Family(optimizers, ("optimizer", "state")),
    "fit": Family(training, ("data", "state")),
    "float64": Family(doubles, ("gemm", *CONVOLUTION, "softmax")),
}
