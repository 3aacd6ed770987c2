"""clnn's own side: training through `fit`, inference through `predict`, products as recorded launches; and the device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np

from ... import layers
from ...callbacks import Callback
from ...gemm import Product as Multiplication
from ...gemm import Scale, Shape, engine_name, gemm
from ...layers import Dense
from ...model import Sequential
from ...ops.array import Array, Sink
from ...ops.image.conv import conv
from ...ops.image.window import slide
from ...optim import SGD, Adam
from ...runtime.device import Device
from ...runtime.devices.choice import device
from ...runtime.memory import Block
from ...runtime.profile import Profile
from ...runtime.recording import Replays
from ...tensor import Parameter
from .nets import EPSILON, MOMENTUM, ConvNet, Convolution
from .nets import Layer as Described
from .own_sequences import sequence
from .sequences import Task
from .workloads import SEED, Net, Product

CALLS = 20  # of a profile

FOR_EVER = 10**9  # epochs
STEADY = 1 << 22  # multiply-adds of a recorded step in which small products repeat, as a training step has several


def layer_of(described: Described) -> Any:
    """A layer as clnn's users write it."""
    d, relu = described, "relu" if described.relu else None
    if d.kind == "conv":
        sizes: dict[str, Any] = {"stride": d.stride, "padding": d.padding, "bias": d.bias}
        if d.groups == d.size > 1:
            return layers.DepthwiseConv2D(d.kernel, relu, **sizes)
        return layers.Conv2D(d.size, d.kernel, relu, groups=d.groups, **sizes)
    if d.kind == "residual":
        inside, shortcut = ([layer_of(one) for one in part] for part in (d.inside, d.shortcut))
        return layers.Residual(inside, shortcut or None, relu)
    if d.kind == "norm":
        return layers.BatchNorm(relu, momentum=MOMENTUM, epsilon=EPSILON)
    if d.kind == "dense":
        return layers.Dense(d.size, relu)
    if d.kind == "pool":
        return layers.MaxPool2D(d.size)
    if d.kind == "drop":
        return layers.Dropout(d.rate)
    return layers.Flatten() if d.kind == "flatten" else layers.GlobalAvgPool()


def model_of(net: Net | ConvNet) -> Sequential:
    """The net as clnn's users write it, with the weights that all sides start from."""
    if isinstance(net, ConvNet):
        model = Sequential([layer_of(described) for described in net.layers], input_shape=net.shape)
        state = model.state_dict()
        state.update(zip((name for name, p in model.named_parameters() if p.learns), net.weights()))
        model.load_state_dict(state)
        return model
    hidden = [Dense(size, net.hidden) for size in net.sizes[1:-1]]
    last = Dense(net.sizes[-1], "sigmoid" if net.loss == "quadratic" else None)
    model = Sequential([*hidden, last], input_shape=net.sizes[0])
    names = [name for name, _ in model.named_parameters()]
    model.load_state_dict(dict(zip(names, [p for layer in net.weights() for p in layer])))
    return model


class Epochs(Callback):
    def __init__(self, after: Callable[[float], None]) -> None:
        self.after = after

    def on_epoch_end(self, model: Any, epoch: int, logs: dict[str, float]) -> None:
        self.after(logs["loss"])


class Clnn:
    """clnn as its users write it."""

    def train(self, net: Net | ConvNet, options: dict[str, Any], after: Callable[[float], None]) -> None:
        x, y = net.data()
        more = {"momentum": net.momentum, "weight_decay": net.decay} if net.optimizer == "sgd" else {}
        optimizer = {"sgd": SGD, "adam": Adam}[net.optimizer](net.lr, **more)
        model, one_by_one = model_of(net), options.get("form") == "a fit an epoch"
        while True:  # a fit goes on where the one before has ended
            model.fit(
                x, y, loss=net.loss, optimizer=optimizer, epochs=1 if one_by_one else FOR_EVER, batch_size=net.batch, seed=SEED,
                callbacks=[Epochs(after)], progress=False,
            )  # fmt: skip

    def outputs(self, net: Net) -> Any:
        model, x = model_of(net), net.data()[0]

        def result() -> np.ndarray:
            return model.predict(x, batch_size=net.batch)

        return lambda count: [result() for _ in range(count)], result

    def compiled(self, net: Net, form: str) -> Any:
        """Outputs of `batch` samples as a server asks for them."""
        x = net.data()[0]
        f = model_of(net).compiled(net.batch, "float16" if form == "halves" else "float32")
        return lambda count: [f(x) for _ in range(count)], lambda: f(x)

    def product(self, p: Product) -> Any:
        """With the epilogue that it has in training, in recorded launches with the queue kept full."""
        d = device()
        a, b = (held(d, part) for part in p.stored())
        before, bias = p.extras()
        c, extra = held(d, before), held(d, bias)
        saved = held(d, before)
        pair = Scale.constant(d, np.float32, -0.5, 1.0)
        epilogues: dict[str, dict[str, Any]] = {
            "NN": {"bias": extra, "activation": "relu"},
            "TN": {"scale": pair, "sums": (extra, pair)},
            "NT": {"derivative": True, "activation": "relu", "saved": saved},
        }
        multiplication = Multiplication(Shape.of(*p), a, b, c, **epilogues[p.form])
        each = max(1, min(8, STEADY // p.work))

        def step(_: Any) -> None:
            for _ in range(each):
                gemm(d, multiplication)

        replays = Replays("bench")

        def run(count: int) -> None:
            for _ in range(-(-count // each)):
                replays.run(d, "product", step)
            d.finish()

        def result() -> tuple[np.ndarray, np.ndarray]:
            d.upload(before, c)  # what the launches so far have added goes again
            d.upload(bias, extra)
            gemm(d, multiplication)
            return d.read(c, np.empty_like(before)), d.read(extra, np.empty_like(bias))

        run.at_once = each  # type: ignore[attr-defined]
        return run, result

    def sequence(self, task: Task) -> Any:
        return sequence(task)

    def convolution(self, c: Convolution, form: str) -> Any:
        """In recorded launches with the queue kept full; gradients are written as a training step writes them."""
        d, arrays = device(), c.arrays()
        x, w, b, dy = (None if a is None else Array(held(d, a), a.shape, a.dtype, d) for a in arrays)
        assert x is not None and w is not None and dy is not None
        l, plain = c.layer, Scale.constant(d, np.float32, 1.0, 0.0)
        window = slide("bench", x.shape, (l.kernel,) * 2, (l.stride,) * 2, ((l.padding,) * 2,) * 2)
        outs = [
            held(d, np.zeros_like(a)) for a in {"dx": arrays[:1], "dw": arrays[1:3]}.get(c.way, ()) if a is not None
        ]
        sinks = [Sink(out, plain) for out in outs]

        def forward() -> Array:
            return conv(x, w, b, window, l.groups, "relu" if l.relu else "linear")[0]

        (_, write_dx), (*_, write_dw_db) = conv(x, w, b, window, l.groups)[1](dy)
        backward: Any = write_dx if c.way == "dx" else write_dw_db
        each = max(1, min(8, STEADY // (c.flops // 2)))

        def step(_: Any) -> None:
            for _ in range(each):
                backward(*sinks) if outs else forward()

        replays = Replays("bench")

        def run(count: int) -> None:
            for _ in range(-(-count // each)):
                replays.run(d, "convolution", step)
            d.finish()

        def result() -> list[np.ndarray]:
            if outs:
                shapes = [c.shape] if c.way == "dx" else [c.filters, c.filters[:1]]
                return [d.read(out, np.empty(shape, np.float32)) for out, shape in zip(outs, shapes)]
            y = forward()
            return [d.read(y.block, np.empty(y.shape, np.float32))]

        run.at_once = each  # type: ignore[attr-defined]
        return run, result

    def memory(self, net: Net | ConvNet, form: str) -> int:
        """Peak bytes on the device while the net is trained, the data set's with them."""
        d = device()
        d.reset_memory_peak()
        train_epochs(net, 3)
        return d.memory_peak

    def optimizer(self, n: int) -> Any:
        """Adam over a flat store of n parameters, in recorded launches with the queue kept full."""
        d, adam = device(), Adam(0.0)
        p = Parameter(held(d, np.zeros(n, np.float32)), (n,), np.float32, d)
        adam.attach([p])
        adam.prepare()
        _, row = adam._rates.on(p)
        d.upload(np.zeros(1, np.int32), row)  # every launch reads the first step's rates
        replays = Replays("bench")

        def step(_: Any) -> None:
            for one in adam._plan():
                adam._update(one)()

        def run(count: int) -> None:
            for _ in range(count):
                replays.run(d, "optimizer", step)
            d.finish()

        return run, p.numpy


def held(where: Device, array: np.ndarray) -> Block:
    """A block with the array's values."""
    block = where.memory.allocate(array.nbytes)
    where.upload(np.ascontiguousarray(array), block)
    return block


class Enough(Exception):
    """Ends a fit."""


def train_epochs(net: Net | ConvNet, epochs: int) -> None:
    """Train for so many epochs."""
    left = epochs

    def after(_: float) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise Enough

    with contextlib.suppress(Enough):
        Clnn().train(net, {}, after)


def profile(kind: str, what: Any) -> Profile:
    """The launches of training "steps" or of "answers" of a net, or of a "product"."""
    if kind == "steps":
        run = lambda _: train_epochs(what._replace(steps=min(what.steps, 40)), 3)  # noqa: E731
    else:
        run, _ = (Clnn().product if kind == "product" else Clnn().outputs)(what)
    with Profile() as found:
        run(CALLS)
    return found


def about() -> dict[str, Any]:
    """The device in words."""
    d = device()
    version = d.version.split("  ")[0]  # PoCL lists how it was built after two spaces
    return {"device": d.name, "platform": d.platform, "version": version, "driver": d.driver, "gemm": engine_name(d)}
