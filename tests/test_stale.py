"""A recording never outlives what it froze: whatever is changed between calls, the next call does what the Python says."""

import array
import collections
import contextvars
import copy
import ctypes
import functools
import importlib
import itertools
import operator
import os
import pickle
import queue
import random
import re
import sys
import time
import types
import warnings
import weakref
from dataclasses import dataclass

import numpy as np
import pytest

import clnn
from clnn.runtime.watching.watch import Watch

RATE = 1.0  # globals that functions below read
TABLE = {"rate": 1.0, "deep": [1.0, {"inner": 2.0}]}
MODULE = types.ModuleType("settings")


class Config:
    rate = 1.0


@dataclass
class Settings:
    rate: float = 1.0


@clnn.register
class Free(clnn.Layer):
    """Whatever a user's layer may hold, and reads in its forward."""

    shift = 0.25  # of the class

    def __init__(self):
        self.rates = [0.5, 0.25]
        self.nested = [[1.0], {"a": (1.0, [0.2])}]
        self.table = {"rate": 1.0}
        self.kinds = {1, 2}
        self.pair = (1.0, 2.0)
        self.offset = None
        self.array = np.array([1.0, 2.0])
        self._hidden = 1.0
        self.settings = Settings()
        self.space = types.SimpleNamespace(rate=1.0)
        self.layers = {"one": clnn.Dense(3, "tanh"), "two": clnn.Dense(3)}
        self.chosen = "one"
        self.wide = False
        self.call = None
        self.optional = 1.5

    def build(self, shape):
        self.w = self.parameter(shape, "ones")

    def forward(self, x):
        y = x * sum(self.rates) * self.nested[0][0] * self.nested[1]["a"][0] * self.nested[1]["a"][1][0]
        y = y * self.table["rate"] * float(len(self.kinds)) + self.pair[0] - self.pair[-1]
        y = y * float(self.array.sum()) * self._hidden * self.settings.rate * self.space.rate * self.w + self.shift
        if self.offset is not None:
            y = y + self.offset
        if hasattr(self, "optional"):
            y = y * self.helper()
        if self.call is not None:
            y = self.call(y)
        if self.wide:
            y = clnn.concat([y, y], axis=1)
        return self.layers[self.chosen](y)

    def helper(self):
        return self.optional


def made(*more):
    net = clnn.Sequential([clnn.Dense(4, "tanh"), Free(), *more], input_shape=4, seed=1)
    net.layers[1].layers["two"].ensure_built((4,))
    return net


def tensor_of(value):
    return clnn.tensor(np.full(4, value, np.float32))


def swapped(net):
    other = clnn.Parameter(tensor_of(0.3).block, (4,), np.float32, net.device)
    net.layers[1].w = other


# name: what happens to the net between two calls
CHANGES = {
    "list item": lambda net: net.layers[1].rates.__setitem__(0, 5.0),
    "list append": lambda net: net.layers[1].rates.append(5.0),
    "list +=": lambda net: net.layers[1].rates.__iadd__([7.0]),
    "list slice": lambda net: net.layers[1].rates.__setitem__(slice(0, 1), [4.0, 4.0]),
    "list del": lambda net: net.layers[1].rates.__delitem__(0),
    "list clear": lambda net: net.layers[1].rates.clear(),
    "list rebound": lambda net: setattr(net.layers[1], "rates", [9.0]),
    "nested list": lambda net: net.layers[1].nested[0].__setitem__(0, 6.0),
    "nested dict": lambda net: net.layers[1].nested[1].update(a=(2.0, [1.0])),
    "list in a tuple in a dict": lambda net: net.layers[1].nested[1]["a"][1].__setitem__(0, 8.0),
    "dict": lambda net: net.layers[1].table.update(rate=3.0),
    "set": lambda net: net.layers[1].kinds.add(3),
    "set discard": lambda net: net.layers[1].kinds.discard(1),
    "tuple": lambda net: setattr(net.layers[1], "pair", (4.0, 2.0)),
    "tensor for None": lambda net: setattr(net.layers[1], "offset", tensor_of(2.0)),
    "array rebound": lambda net: setattr(net.layers[1], "array", np.array([5.0])),
    "array in place": lambda net: net.layers[1].array.__setitem__(0, 7.0),
    "hidden": lambda net: setattr(net.layers[1], "_hidden", 2.0),
    "dataclass": lambda net: setattr(net.layers[1].settings, "rate", 2.0),
    "namespace": lambda net: setattr(net.layers[1].space, "rate", 2.0),
    "object rebound": lambda net: setattr(net.layers[1], "settings", Settings(3.0)),
    "layer chosen by name": lambda net: setattr(net.layers[1], "chosen", "two"),
    "layer in a dict": lambda net: net.layers[1].layers.__setitem__("one", net.layers[1].layers["two"]),
    "new layer in a dict": lambda net: net.layers[1].layers.update(one=clnn.Dense(3, "relu")),
    "attribute deleted": lambda net: delattr(net.layers[1], "optional"),
    "attribute read by a helper": lambda net: setattr(net.layers[1], "optional", 3.0),
    "function": lambda net: setattr(net.layers[1], "call", lambda y: y * 2.0),
    "parameter": swapped,
    "attribute of the class": lambda net: setattr(Free, "shift", 1.5),
    "method of the class": lambda net: setattr(Free, "helper", lambda self: 7.0),
    "method of the object": lambda net: setattr(net.layers[1], "helper", lambda: 5.0),
    "pop": lambda net: net.layers.pop(),
    "append": lambda net: net.layers.append(clnn.Activation("softmax")),
    "insert": lambda net: net.layers.insert(1, clnn.Activation("sigmoid")),
    "extend": lambda net: net.layers.extend([clnn.Activation("tanh"), clnn.Dense(2)]),
    "last replaced": lambda net: net.layers.__setitem__(-1, clnn.Dense(5)),
    "first replaced": lambda net: net.layers.__setitem__(0, clnn.Dense(4, "relu")),
    "activation": lambda net: setattr(net.layers[0], "activation", "relu"),
    "layers rebound": lambda net: setattr(net, "layers", net.layers[:1]),
}


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """What the changes above reach is what it was in the next test."""
    monkeypatch.setattr(Free, "shift", Free.shift)
    monkeypatch.setattr(Free, "helper", Free.helper)
    monkeypatch.setattr(Config, "rate", 1.0)
    monkeypatch.setitem(sys.modules[__name__].__dict__, "RATE", 1.0)
    MODULE.rate = 1.0
    TABLE.update(rate=1.0, deep=[1.0, {"inner": 2.0}])
    with warnings.catch_warnings():
        warnings.simplefilter("error", clnn.RecordingWarning)  # what is watched needs no word
        warnings.filterwarnings("ignore", ".*and replays do not")  # tests count how often their functions run
        yield


def eager(net, *inputs):
    with clnn.no_grad():
        return net(*[clnn.tensor(x) for x in inputs]).numpy()


@pytest.mark.parametrize("calls", [3, 7])
@pytest.mark.parametrize("name", CHANGES)
def test_predict_follows(device, rng, name, calls):
    net, x = made(), rng.standard_normal((5, 4)).astype(np.float32)
    for _ in range(calls):
        before = net.predict(x)
    CHANGES[name](net)
    for _ in range(6):
        found, expected = net.predict(x), eager(net, x)
        assert np.array_equal(found, expected), name
    assert before.shape != expected.shape or not np.array_equal(before, expected), "the change changes nothing"


@pytest.mark.parametrize("name", CHANGES)
def test_evaluate_and_steps_follow(device, rng, name):
    net, x = made(), rng.standard_normal((5, 4)).astype(np.float32)
    y = eager(net, x) + 1.0

    @clnn.step
    def run(x):
        with clnn.no_grad():
            return net(x)

    for _ in range(5):
        net.evaluate(x, y, loss="mse"), run(x)
    CHANGES[name](net)
    for _ in range(5):
        expected = eager(net, x)
        assert np.array_equal(run(x).numpy(), expected)
        loss = net.evaluate(x, np.zeros_like(expected), loss="mse")["loss"]
        assert np.isclose(loss, np.mean(expected.astype(np.float64) ** 2), rtol=1e-4)


class At(clnn.Callback):
    """Does something at the end of an epoch, once."""

    def __init__(self, epoch, do):
        self.epoch, self.do = epoch, do

    def on_epoch_end(self, model, epoch, logs):
        if epoch == self.epoch:
            self.do(model)


def trained(net, rng_seed, change, record, loss="mse", optimizer=None, epochs=5, outputs=3, at=1, momentum=0.9):
    rng = np.random.default_rng(rng_seed)
    x = rng.standard_normal((22, 4)).astype(np.float32)
    y = rng.standard_normal((22, outputs)).astype(np.float32)
    history = net.fit(
        x, y, loss=loss, optimizer=optimizer or clnn.SGD(0.01, momentum=momentum), epochs=epochs, batch_size=4, seed=3,
        callbacks=[At(at, change)], record=record, progress=False,
    )  # fmt: skip
    return history["loss"], [p.numpy() for p in net.parameters()]


def same(found):
    (losses, weights), (expected, right) = found
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert len(weights) == len(right)
    for w, v in zip(weights, right):
        np.testing.assert_allclose(w, v, rtol=1e-4, atol=1e-6)


KEEPS_SHAPE = sorted(set(CHANGES) - {"last replaced", "extend", "layers rebound", "pop"})


@pytest.mark.parametrize("name", KEEPS_SHAPE)
def test_fit_follows_a_callback(device, name):
    found = []
    for record in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Free, "shift", Free.shift)
            patch.setattr(Free, "helper", Free.helper)
            clnn.seed(5)  # of layers made on the way
            found.append(trained(made(), 0, CHANGES[name], record))
    same(found)


# -- read from outside --------------------------------------------------------------------------------------------------
class Weighted:
    """A loss with an attribute, called like a function."""

    def __init__(self, weight=1.0):
        self.weight = weight
        self.target = clnn.constant(np.float32([0.0]))

    def __call__(self, output, target):
        return clnn.losses.mse(output - self.target, target) * self.weight


class Own(clnn.losses.Loss):
    """One derived from clnn's, with a weight of the class."""

    name, takes, mean_over_outputs, weight = "mse", "numbers", True, 1.0

    def rows(self, output, target, *args, **options):
        return super().rows(output * self.weight, target, *args, **options)


def closure():
    weight = 1.0

    def loss(output, target):
        return clnn.losses.mse(output, target) * weight

    def change(_):
        nonlocal weight
        weight = 4.0

    return loss, change


def read_from_outside(kind):
    """A loss, and what changes its weight to 4."""
    space = sys.modules[__name__].__dict__
    MODULE.rate, weighted, own, held = 1.0, Weighted(), Own(), {"rate": [1.0]}

    def by(read):
        return lambda output, target: clnn.losses.mse(output, target) * read()

    def default(output, target, rates=held["rate"]):
        return clnn.losses.mse(output, target) * rates[0]

    def helper():
        return RATE

    class Table:
        def __init__(self):
            self.values, self._rate = {"rate": 1.0}, 1.0

        def __getitem__(self, name):
            return self.values[name]

        @property
        def rate(self):
            return self._rate

    class Slotted:
        __slots__ = ("rate",)

    helper.rate, table, users, slotted = 1.0, Table(), collections.UserDict(rate=1.0), Slotted()
    slotted.rate = 1.0

    def partly(weights, output, target):
        return clnn.losses.mse(output, target) * weights["rate"][0]

    return {
        "closure": closure(),
        "global": (by(lambda: RATE), lambda _: space.update(RATE=4.0)),
        "helper's global": (by(lambda: helper()), lambda _: space.update(RATE=4.0)),
        "dict": (by(lambda: TABLE["rate"]), lambda _: TABLE.update(rate=4.0)),
        "deep": (by(lambda: TABLE["deep"][1]["inner"]), lambda _: TABLE["deep"][1].update(inner=4.0)),
        "module": (by(lambda: MODULE.rate), lambda _: setattr(MODULE, "rate", 4.0)),
        "class": (by(lambda: Config.rate), lambda _: setattr(Config, "rate", 4.0)),
        "default argument": (default, lambda _: held["rate"].__setitem__(0, 4.0)),
        "partial": (functools.partial(partly, held), lambda _: held["rate"].__setitem__(0, 4.0)),
        "object": (weighted, lambda _: setattr(weighted, "weight", 4.0)),
        "bound method": (weighted.__call__, lambda _: setattr(weighted, "weight", 4.0)),
        "tensor of an object": (weighted, lambda _: setattr(weighted, "target", clnn.constant(np.float32([2.0])))),
        "a Loss": (own, lambda _: setattr(own, "weight", 2.0)),
        "class of a Loss": (own, lambda _: setattr(Own, "weight", 2.0)),
        "environment": (
            by(lambda: float(os.environ.get("STALE_RATE", "1"))),
            lambda _: os.environ.update(STALE_RATE="4"),
        ),
        "function's attribute": (by(lambda: helper.rate), lambda _: setattr(helper, "rate", 4.0)),
        "item of an object": (by(lambda: table["rate"]), lambda _: table.values.update(rate=4.0)),
        "UserDict": (by(lambda: users["rate"]), lambda _: users.update(rate=4.0)),
        "property": (by(lambda: table.rate), lambda _: setattr(table, "_rate", 4.0)),
        "slots": (by(lambda: slotted.rate), lambda _: setattr(slotted, "rate", 4.0)),
    }[kind]


OUTSIDE = (
    "closure", "global", "helper's global", "dict", "deep", "module", "class", "default argument", "partial", "object",
    "bound method", "tensor of an object", "a Loss", "class of a Loss", "environment", "function's attribute",
    "item of an object", "UserDict", "property", "slots",
)  # fmt: skip


@pytest.mark.parametrize("kind", (*OUTSIDE, "huber"))
@pytest.mark.parametrize("at", [0, 2])
def test_a_loss_that_a_callback_changes(device, monkeypatch, kind, at):
    found = []
    for record in (True, False):
        monkeypatch.setitem(sys.modules[__name__].__dict__, "RATE", 1.0)
        monkeypatch.setattr(Config, "rate", 1.0)
        monkeypatch.setattr(Own, "weight", 1.0)
        monkeypatch.setenv("STALE_RATE", "1")
        TABLE.update(rate=1.0, deep=[1.0, {"inner": 2.0}])
        if kind == "huber":
            loss = clnn.losses.Huber(1.0)
            change = lambda _, loss=loss: setattr(loss, "parameter", 0.1)  # noqa: E731
        else:
            loss, change = read_from_outside(kind)
        net = clnn.Sequential([clnn.Dense(3)], input_shape=4, seed=1)
        found.append(trained(net, 0, change, record, loss, clnn.SGD(0.01), at=at))
    same(found)


def test_what_nobody_sees_change_is_found_and_said(device, tmp_path):
    file = tmp_path / "rate"
    file.write_text("1")

    def loss(output, target):
        return clnn.losses.mse(output, target) * float(file.read_text())

    net = clnn.Sequential([clnn.Dense(3)], input_shape=4, seed=1)
    with pytest.warns(
        clnn.RecordingWarning, match=r"is 1.0, then 4.0.*recorded anew. Pass what changes as an argument"
    ):
        trained(net, 0, lambda _: file.write_text("4"), True, loss, clnn.SGD(0.01), 6, at=3)

    @clnn.step
    def run(x):
        return x * float(file.read_text())

    file.write_text("1")
    x = np.ones(3, np.float32)
    for _ in range(5):
        run(x)
    file.write_text("2")
    with pytest.warns(
        clnn.RecordingWarning, match=r"the last 1 replays, unchecked, may have been out of date; it runs eager"
    ):
        found = [float(run(x).numpy()[0]) for _ in range(4)]
    assert found == [1, 2, 2, 2]
    file.write_text("3")  # eager from here on
    assert run(x).numpy()[0] == 3


def hidden_from_sight(kind):
    """A function that reads 1.0 in a way that is easily overlooked, and what has it read 4.0."""

    class Meta(type):
        rate = 1.0

    class Plain(metaclass=Meta):
        pass

    class Dynamic:
        def __init__(self):
            self.kept = 1.0

        def __getattr__(self, name):
            return self.__dict__["kept"]

    class Listed(list):
        rate = 1.0

    class Number(float):
        pass

    def default(rate=1.0):
        return rate

    table, plain, dynamic, listed, number = {"rate": 1.0}, Plain(), Dynamic(), Listed(), Number(2.0)
    plain.rate = number.rate = 1.0
    reference, proxy, fetch = weakref.ref(plain), types.MappingProxyType(table), operator.attrgetter("rate")
    numbers, octets, seen, real = (
        array.array("d", [1.0]),
        bytearray([1]),
        memoryview(bytearray([1])),
        ctypes.c_double(1),
    )
    many, objects = np.ones(9000, np.float32), np.array([table, None], object)
    variable, made = contextvars.ContextVar("rate", default=1.0), collections.defaultdict(lambda: table["rate"])
    net, optimizer = two_layers(), clnn.SGD(1.0)
    net.loss = clnn.losses.Huber(1.0)
    return {
        "metaclass": (lambda: Plain.rate, lambda: setattr(Meta, "rate", 4.0)),
        "__getattr__": (lambda: dynamic.anything, lambda: setattr(dynamic, "kept", 4.0)),
        "getattr": (lambda: getattr(plain, "rate"), lambda: setattr(plain, "rate", 4.0)),  # noqa: B009
        "vars": (lambda: vars(plain)["rate"], lambda: setattr(plain, "rate", 4.0)),
        "eval": (lambda: (plain, eval("plain.rate"))[1], lambda: setattr(plain, "rate", 4.0)),  # noqa: S307
        "attrgetter": (lambda: fetch(plain), lambda: setattr(plain, "rate", 4.0)),
        "weak reference": (lambda: reference().rate, lambda: setattr(plain, "rate", 4.0)),
        "attribute of a list": (lambda: listed.rate, lambda: setattr(listed, "rate", 4.0)),
        "attribute of a number": (lambda: number.rate, lambda: setattr(number, "rate", 4.0)),
        "mapping proxy": (lambda: proxy["rate"], lambda: table.update(rate=4.0)),
        "default dict": (lambda: made.default_factory(), lambda: table.update(rate=4.0)),
        "array of objects": (lambda: objects[0]["rate"], lambda: table.update(rate=4.0)),
        "default": (default, lambda: setattr(default, "__defaults__", (4.0,))),
        "code": (default, lambda: setattr(default, "__code__", (lambda rate: 4.0).__code__)),
        "array": (lambda: numbers[0], lambda: numbers.__setitem__(0, 4.0)),
        "bytes": (lambda: float(octets[0]), lambda: octets.__setitem__(0, 4)),
        "memory": (lambda: float(seen[0]), lambda: seen.__setitem__(0, 4)),
        "ctypes": (lambda: real.value, lambda: setattr(real, "value", 4.0)),
        "large array": (lambda: float(many[8000]), lambda: many.__setitem__(8000, 4.0)),
        "context variable": (lambda: variable.get(), lambda: variable.set(4.0)),
        "a model's loss": (lambda: net.loss.parameter, lambda: setattr(net, "loss", clnn.losses.Huber(4.0))),
        "a model's flag": (lambda: 4.0 if net.stop_training else 1.0, lambda: setattr(net, "stop_training", True)),
        "a layer's name": (lambda: float(len(net.layers[0].name) == 4) * 3 + 1, lambda: setattr(net.layers[0], "name", "four")),
        "a rate": (lambda: optimizer.lr, lambda: setattr(optimizer, "lr", 4.0)),
        "epochs": (lambda: optimizer.epochs + 1.0, lambda: setattr(optimizer, "epochs", 3)),
    }[kind]  # fmt: skip


HIDDEN = (
    "metaclass", "__getattr__", "getattr", "vars", "eval", "attrgetter", "weak reference", "attribute of a list",
    "attribute of a number", "mapping proxy", "default dict", "array of objects", "default", "code", "array", "bytes",
    "memory", "ctypes", "large array", "context variable", "a model's loss", "a model's flag", "a layer's name", "a rate",
    "epochs",
)  # fmt: skip


@pytest.mark.parametrize("kind", HIDDEN)
def test_a_step_that_reads_what_is_easily_overlooked(device, kind):
    read, change = hidden_from_sight(kind)
    run, x = clnn.step(lambda x: x * read()), np.ones(1, np.float32)
    assert [float(run(x)) for _ in range(6)] == [1.0] * 6 and len(run.replays.launches()) == 1
    change()
    assert [float(run(x)) for _ in range(6)] == [4.0] * 6 and len(run.replays.launches()) == 1


@pytest.mark.parametrize("kind", OUTSIDE)
@pytest.mark.parametrize("calls", [6])
def test_a_step_that_reads_from_outside(device, monkeypatch, kind, calls):
    monkeypatch.setenv("STALE_RATE", "1")
    monkeypatch.setattr(Own, "weight", 1.0)
    loss, change = read_from_outside(kind)
    run = clnn.step(lambda output, target: loss(output, target))
    y, t = np.full((2, 3), 3, np.float32), np.ones((2, 3), np.float32)
    before = [float(run(y, t)) for _ in range(calls)]
    assert len(run.replays.launches()) == 1
    change(None)
    expected = float(loss(clnn.tensor(y), clnn.tensor(t)))
    assert [float(run(y, t)) for _ in range(6)] == [expected] * 6 and before[0] != expected
    assert len(run.replays.launches()) == 1  # recorded anew


def test_a_global_read_in_a_forward(device, rng):
    class Reads(clnn.Layer):
        def forward(self, x):
            return x * RATE + self.more(x)

        def more(self, x):
            return x * TABLE["deep"][0] if Config.rate == 1.0 else x

    net, x = clnn.Sequential([Reads()], input_shape=3), rng.standard_normal((2, 3)).astype(np.float32)
    for _ in range(4):
        net.predict(x)
    for change in (
        lambda: sys.modules[__name__].__dict__.update(RATE=3.0),
        lambda: TABLE["deep"].__setitem__(0, 9.0),
        lambda: setattr(Config, "rate", 2.0),
    ):
        change()
        assert [np.array_equal(net.predict(x), eager(net, x)) for _ in range(5)] == [True] * 5


class Stochastic(clnn.Layer):
    """Stochastic depth by a generator on the host."""

    def __init__(self, draw):
        self.draw = draw
        self.body = clnn.Dense(4)

    def forward(self, x):
        return self.body(x) if self.draw() < 0.5 else x


@pytest.mark.parametrize("kind", ["random", "numpy", "own numpy", "own random"])
def test_draws_on_the_host_are_not_recorded(device, kind):
    draws = {
        "random": lambda _: random.random,
        "numpy": lambda _: np.random.random,
        "own numpy": lambda _: np.random.default_rng(3).random,
        "own random": lambda _: random.Random(3).random,
    }[kind]
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        for record in (True, False):
            random.seed(1), np.random.seed(1)  # noqa: NPY002
            net = clnn.Sequential([Stochastic(draws(None)), clnn.Dense(3)], input_shape=4, seed=0)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                found.append(trained(net, 0, lambda model: None, record))
            assert any("random numbers were drawn inside" in str(w.message) for w in caught) == record
    same(found)


# -- what is trainable ---------------------------------------------------------------------------------------------------
def frozen(net):
    net.layers[0].trainable = False


def frozen_parameter(net):
    net.layers[0].w.trainable = False


THAWED = {"a layer": frozen, "a parameter": frozen_parameter}
PARAMETERS = {
    "rate_factor": lambda net: setattr(net.layers[0].w, "rate_factor", 0.25),
    "decays": lambda net: setattr(net.layers[0].w, "decays", False),
    "max_norm": lambda net: setattr(net.layers[0].w, "max_norm", 0.1),
    "a layer's max_norm": lambda net: setattr(net.layers[0], "max_norm", 0.1),
    "frozen layer": frozen,
    "frozen parameter": frozen_parameter,
    "frozen model but one": lambda net: [setattr(net, "trainable", False), setattr(net.layers[1], "trainable", True)],
}
OPTIMIZERS = {
    "sgd": lambda: clnn.SGD(0.05, weight_decay=0.1),
    "momentum": lambda: clnn.SGD(0.05, momentum=0.9, weight_decay=0.1),
    "adam": lambda: clnn.Adam(0.05, weight_decay=0.1),
    "lamb": lambda: clnn.optim.LAMB(0.05),
    "clipped": lambda: clnn.SGD(0.05, momentum=0.5, weight_decay=0.1, clip_norm=0.5, ema=0.9),
}


def two_layers(seed=1):
    return clnn.Sequential([clnn.Dense(4, "tanh"), clnn.Dense(3)], input_shape=4, seed=seed)


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_parameters_that_a_callback_changes(device, name, optimizer):
    found = []
    for record in (True, False):
        found.append(trained(two_layers(), 0, PARAMETERS[name], record, optimizer=OPTIMIZERS[optimizer]()))
    same(found)
    unchanged = trained(two_layers(), 0, lambda net: None, True, optimizer=OPTIMIZERS[optimizer]())
    if (name, optimizer) != ("decays", "lamb"):
        assert not np.allclose(unchanged[1][0], found[0][1][0], rtol=1e-5)


@pytest.mark.parametrize("kind", THAWED)
@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_freezing_and_thawing_take_effect_at_the_next_step(device, rng, kind, recorded, optimizer):
    net, optimizer = two_layers(), OPTIMIZERS[optimizer]()
    x, y = rng.standard_normal((6, 4)).astype(np.float32), rng.standard_normal((6, 3)).astype(np.float32)

    @clnn.step(record=recorded)
    def train(x, y):
        loss = clnn.losses.mse(net(x), y)
        loss.backward()
        optimizer.step(None if optimizer.parameters else net.parameters())
        return loss

    w, other = net.layers[0].w, net.layers[1].w
    for _ in range(2):
        for moves in (True, False, True):
            for _ in range(5):
                before, rest = w.numpy(), other.numpy()
                train(x, y)
                assert np.array_equal(w.numpy(), before) != moves
                assert not np.array_equal(other.numpy(), rest)
            w.trainable = not moves
            if kind == "a layer":
                net.layers[0].trainable = not moves
        w.trainable = net.layers[0].trainable = True


@pytest.mark.parametrize("name", ["closure", "object", "class", "list"])
@pytest.mark.parametrize("recorded", [True, False])
def test_a_function_of_the_rate_that_reads_what_changes(device, name, recorded):
    rates, space = [0.5], types.SimpleNamespace(rate=0.5)
    Config.rate = 0.5

    class Rate:
        scale = 0.5

        def __call__(self, step):
            return self.scale

    rate = Rate()
    given = {
        "closure": lambda t: rates[0],
        "object": rate,
        "class": lambda t: Config.rate,
        "list": lambda t: space.rate,
    }[name]
    w = clnn.tensor(np.zeros(2, np.float32), requires_grad=True)
    optimizer = clnn.SGD(given)

    @clnn.step(record=recorded)
    def train():
        (w * 1.0).sum().backward()
        optimizer.step([w])

    for _ in range(5):
        train()
    rates[0] = space.rate = Config.rate = rate.scale = 0.25
    for _ in range(5):
        train()
    assert np.allclose(w.numpy(), -5 * 0.5 - 5 * 0.25)


def test_schedules_are_followed_when_changed(device):
    w = clnn.tensor(np.zeros(2, np.float32), requires_grad=True)
    optimizer = clnn.SGD(clnn.schedules.StepDecay(0.5, 100, steps_per_epoch=1))

    @clnn.step
    def train():
        (w * 1.0).sum().backward()
        optimizer.step([w])

    for _ in range(5):
        train()
    optimizer.lr.lr = 0.25
    for _ in range(5):
        train()
    assert np.allclose(w.numpy(), -5 * 0.5 - 5 * 0.25)


# -- what must not be given up ---------------------------------------------------------------------------------------------
def recordings(model):
    return sum(len(one.step.replays.launches()) for one in model.__dict__["_evaluations"].values())


class Counting(clnn.Layer):
    """Counts its calls, and keeps what it saw last."""

    def __init__(self):
        self.calls, self.seen = 0, []

    def forward(self, x):
        self.calls += 1
        self.last = x.shape
        self.output = x * 2.0
        return self.output


def test_a_count_in_a_forward_does_not_stop_replays(device, rng):
    layer = Counting()
    net = clnn.Sequential([clnn.Dense(3), layer], input_shape=4)
    x = rng.standard_normal((2, 4)).astype(np.float32)
    for _ in range(12):
        assert np.array_equal(net.predict(x), eager(net, x))
    counted = layer.calls
    for _ in range(12):
        net.predict(x)
        assert np.array_equal(layer.output.numpy(), net.predict(x))
    assert recordings(net) == 1 and layer.calls == counted  # audits put back what they change


def counting(kind):
    """A forward that does something else after some calls, which it counts."""
    count = 0

    class Attribute(clnn.Layer):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return x * 2.0 if self.calls > 6 else x

    class Elsewhere(clnn.Layer):
        def __init__(self):
            self.calls = 0

        def forward(self, x):
            self.calls = self.calls + 1
            return self.scaled(x)

        def scaled(self, x):
            return x * 2.0 if self.calls > 6 else x

    class Variable(clnn.Layer):
        def forward(self, x):
            nonlocal count
            count += 1
            return x * 2.0 if count > 6 else x

    class Global(clnn.Layer):
        def forward(self, x):
            global COUNT
            COUNT += 1
            return x * 2.0 if COUNT > 6 else x

    layers = {"attribute": Attribute, "elsewhere": Elsewhere, "variable": Variable, "global": Global}
    if kind in layers:
        layer = layers[kind]()
        layer.ensure_built((2,))
        return lambda x: layer(x)

    class Object:
        __slots__ = ("calls", "__dict__")
        total = 0

        def __init__(self):
            self.calls = self.more = 0

        def tick(self):
            self.more += 1
            return self.more

    def drawn():
        yield from [1.0] * 6 + [2.0] * 9

    one, listed, table, octets = Object(), [0], {"calls": 0}, bytearray(1)
    many, left, waiting, later = np.zeros(2, int), collections.deque([1.0] * 6 + [2.0] * 9), queue.Queue(), drawn()
    net, numbers = clnn.Sequential([clnn.Dense(2)]), itertools.count(1)
    net.calls = 0
    for value in left:
        waiting.put(value)

    def in_slots(x):
        one.calls += 1
        return x * (2.0 if one.calls > 6 else 1.0)

    def in_class(x):
        Object.total += 1
        return x * (2.0 if Object.total > 6 else 1.0)

    def in_list(x):
        listed[0] += 1
        return x * (2.0 if listed[0] > 6 else 1.0)

    def length(x):
        listed.append(0)
        return x * (2.0 if len(listed) > 7 else 1.0)

    def in_dict(x):
        table["calls"] += 1
        return x * (2.0 if table["calls"] > 6 else 1.0)

    def in_bytes(x):
        octets[0] += 1
        return x * (2.0 if octets[0] > 6 else 1.0)

    def in_array(x):
        many[0] += 1
        return x * (2.0 if many[0] > 6 else 1.0)

    def one_more():
        listed[0] += 1
        return listed

    def in_itself(x):
        in_itself.calls += 1
        return x * (2.0 if in_itself.calls > 6 else 1.0)

    def in_model(x):
        net.calls += 1
        return x * (2.0 if net.calls > 6 else 1.0)

    def over(x):
        (rate,) = itertools.islice(later, 1)
        return x * rate

    in_itself.calls = 0
    return {
        "slot": in_slots, "class": in_class, "list": in_list, "length": length, "dict": in_dict, "bytes": in_bytes,
        "array": in_array, "function": in_itself, "model": in_model, "generator": over,
        "returned": lambda x: x * (2.0 if one_more()[0] > 6 else 1.0),
        "method": lambda x: x * (2.0 if one.tick() > 6 else 1.0), "count": lambda x: x * (2.0 if next(numbers) > 6 else 1.0),
        "deque": lambda x: x * left.popleft(), "queue": lambda x: x * waiting.get(),
    }[kind]  # fmt: skip


COUNT = 0
COUNTERS = {  # and what is said of it
    "attribute": "Attribute.calls", "elsewhere": "Elsewhere.calls", "variable": "count", "global": "COUNT",
    "slot": "Object.calls", "class": "Object.total", "list": "listed .a list.", "length": "listed .a list.",
    "dict": "table .a dict.", "bytes": "octets .an array.", "array": "many .an array.", "function": "in_itself.calls",
    "model": "Sequential.calls", "method": "Object.more", "deque": "left .a deque.", "queue": "queue .a deque.",
    "count": "in a count", "returned": "listed .a list.", "generator": "in a generator",
}  # fmt: skip


@pytest.mark.parametrize("kind", COUNTERS)
def test_a_count_that_matters_keeps_the_step_eager(device, kind):
    global COUNT
    run, COUNT, x = clnn.step(counting(kind)), 0, np.ones((1, 2), np.float32)
    words = " may be taken" if COUNTERS[kind].startswith("in a ") else " changes inside the step"
    with pytest.warns(clnn.RecordingWarning, match=COUNTERS[kind] + words):
        assert [run(x).numpy()[0, 0] for _ in range(10)] == [1] * 6 + [2] * 4


@pytest.mark.parametrize("how", ["*=", "setattr", "steps", "rate", "schedule"])
def test_a_rate_that_the_step_itself_moves_keeps_it_eager(device, how):
    w, rate = clnn.tensor(np.zeros(2, np.float32), requires_grad=True), 0.5
    optimizer = clnn.SGD(clnn.StepDecay(rate, 99, steps_per_epoch=1) if how == "schedule" else rate)

    @clnn.step
    def train():
        (w * 1.0).sum().backward()
        optimizer.step([w])
        if how == "*=":
            optimizer.lr *= 0.5
        elif how == "setattr":
            setattr(optimizer, "lr", 0.5 * optimizer.lr)  # noqa: B010
        elif how == "steps":
            optimizer.lr = 0.5 * 0.5**optimizer.steps
        elif how == "rate":
            optimizer.lr = 0.5 * optimizer.rate(0)
        else:
            optimizer.lr.lr *= 0.5

    with pytest.warns(
        clnn.RecordingWarning, match="lr is set inside|(rates|steps) are read inside|StepDecay.lr changes"
    ):
        for _ in range(8):
            train()
    assert np.allclose(w.numpy(), -sum(0.5 * 0.5**i for i in range(8)))


def test_memory_that_is_let_go_of_is_no_error(device):
    view = memoryview(bytearray([2]))
    run = clnn.step(lambda x: x * (float(view[0]) if kept else 3.0))
    kept = [1]
    assert [float(run(np.ones(1, np.float32))) for _ in range(5)] == [2.0] * 5
    kept.clear(), view.release()
    assert [float(run(np.ones(1, np.float32))) for _ in range(5)] == [3.0] * 5


def test_what_the_step_only_writes_does_not_stop_replays(device):
    """And an audit leaves it as it was."""
    log, counts, seen, last = [], {"calls": 0}, np.zeros(3), {}

    @clnn.step
    def run(x):
        log.append(len(x))
        seen[0] = 7.0
        last["y"] = x * 2.0
        counts.update(calls=len(x))
        return last["y"]

    with pytest.warns(
        clnn.RecordingWarning, match=r"'run' changes log \(a list\), and replays do not: change it outside"
    ) as told:
        for _ in range(9):
            run(np.ones(2, np.float32))
    assert len(run.replays.launches()) == 1 and len(log) == 3 and len(told) == 1


def counters():
    """Steps that count for whoever is outside, and what is told of them."""
    count, one, table, found = 0, Named(), {}, []

    def free(x):
        nonlocal count
        count += 1
        return x * 2.0

    def attribute(x):
        one.scale_kl += 1.0
        return x * 2.0

    def appended(x):
        found.append("text")
        return x * 2.0

    def kept(x):  # the same each time, and a tensor of each call
        one.scale_kl, table["y"] = 3.0, x * 2.0
        return table["y"]

    return {
        free: "changes count,", attribute: "changes Named.scale_kl,", appended: r"changes found \(a list\),", kept: None,
    }  # fmt: skip


@pytest.mark.parametrize("at", range(4))
def test_what_the_step_counts_for_others_is_told(device, at):
    run, said = list(counters().items())[at]
    step = clnn.step(run)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(40):
            assert float(step(np.ones(1, np.float32))) == 2.0
    assert len(told) == (said is not None) and len(step.replays.launches()) == 1
    assert said is None or re.search(said + " and replays do not: change it outside", str(told[0].message))


def test_evaluate_by_name_replays(device, rng):
    net, x, y = two_layers(), rng.standard_normal((6, 4)).astype(np.float32), np.eye(6, 3, dtype=np.float32)
    y[3:, 0] = 1.0
    for make in (lambda: "mse", lambda: clnn.losses.Huber(0.5), lambda: clnn.losses.mse):
        net.__dict__.pop("_evaluations", None)
        for _ in range(6):
            net.evaluate(x, y, loss=make(), metrics=["accuracy"])
        assert len(net.__dict__["_evaluations"]) == 1 and recordings(net) == 1
    labels = np.arange(6) % 3
    net.__dict__.pop("_evaluations")
    for _ in range(6):
        net.evaluate(x, labels, loss="cross_entropy", metrics=["top_2"])
    assert recordings(net) == 1
    loss = clnn.losses.Huber(1.0)  # equal ones, of which one changes
    for _ in range(5):
        first = net.evaluate(x, y + 9, loss=loss)["loss"]
    loss.parameter = 0.1
    for _ in range(5):
        second = net.evaluate(x, y + 9, loss=loss)["loss"]
        assert net.evaluate(x, y + 9, loss=clnn.losses.Huber(1.0))["loss"] == first
    assert second < 0.2 * first


def test_what_the_step_does_not_read_costs_an_audit_only(device, rng):
    """A number of the epoch on the model, a list that grows beside: recordings stay."""
    net, x = two_layers(), rng.standard_normal((2, 4)).astype(np.float32)
    for epoch in range(12):
        net.epoch = epoch
        net.predict(x)
    (one,) = net.__dict__["_evaluations"].values()
    (entry,) = one.step.replays._entries.values()
    assert entry.recording is not None and entry.replays == 5

    class Trainer:
        def __init__(self):
            self.net, self.losses, self.count = net, [], 0
            self.run = clnn.step(self.forward)

        def forward(self, x):
            with clnn.no_grad():
                return self.net(x)

        def go(self):
            for _ in range(8):
                self.count += 1
                self.losses.append(self.run(x))

    trainer = Trainer()
    trainer.go()
    assert len(trainer.run.replays.launches()) == 1
    trainer.net = other = clnn.Sequential([clnn.Dense(2)], input_shape=4)
    assert np.array_equal(trainer.run(x).numpy(), eager(other, x))


@pytest.mark.parametrize("changes", [3, 8, 20])
def test_a_model_that_changes_before_its_first_calls_is_recorded_once_it_is_quiet(device, rng, changes):
    """What keeps it eager meanwhile is said once, as it is: the changes, and not that it could not be replayed."""
    net, x = two_layers(), rng.standard_normal((2, 4)).astype(np.float32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for i in range(changes):
            net.layers[0].activation = ("relu", "sigmoid", "tanh")[i % 3]
            assert np.array_equal(net.predict(x), eager(net, x))
        assert recordings(net) == 0
    words = "eagerly, with the same results, while what it reads changes before every call: launch 0 is gemm"
    assert [words in str(one.message) for one in caught] == [True] * (changes > 5)
    for _ in range(3):
        net.predict(x)
    assert recordings(net) == 1


def test_an_audit_changes_nothing(device, rng):
    """Statistics, generators, counters, velocities: a run with an audit at every step is one without."""
    x, y = rng.standard_normal((20, 4)).astype(np.float32), rng.integers(0, 3, 20)
    found = []
    for audited in (True, False):
        clnn.seed(7), random.seed(3), np.random.seed(3)  # noqa: NPY002
        net = clnn.Sequential(
            [clnn.Dense(5), clnn.BatchNorm("relu"), clnn.Dropout(0.3), Counting(), clnn.Dense(3)], input_shape=4, seed=2
        )
        optimizer = clnn.SGD(clnn.schedules.Cosine(0.1, epochs=20, steps_per_epoch=1), momentum=0.9, ema=0.9)

        @clnn.step
        def train(x, y, net=net, optimizer=optimizer):
            loss = clnn.losses.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step(net.parameters())
            return loss

        losses = []
        for _ in range(10):
            if audited and train.replays.launches():
                clnn.runtime.watching.watch.structure_changed()
            losses.append(float(train(x, y)))
        (entry,) = train.replays._entries.values()
        assert entry.recording is not None
        found.append(
            (losses, [p.numpy() for p in net.parameters()], optimizer.state_dict(), net.layers[3].calls,
             random.random(), np.random.random())  # noqa: NPY002
        )  # fmt: skip
    a, b = found
    assert a[0] == b[0] and a[3:] == b[3:] and a[2]["steps"] == b[2]["steps"]
    assert all(np.array_equal(v, w) for v, w in zip(a[1], b[1]))
    assert all(np.array_equal(v, b[2]["arrays"][k]) for k, v in a[2]["arrays"].items())


def test_a_result_that_is_no_tensor_is_compared(device):
    @clnn.step
    def run(x):
        return x * 2.0, time.perf_counter_ns()

    with pytest.warns(clnn.RecordingWarning, match=r"it returned \d+, then \d+"):
        assert len({run(np.ones(2, np.float32))[1] for _ in range(6)}) == 6


# -- shapes of models --------------------------------------------------------------------------------------------------------
class Swapping(clnn.Model):
    """A model of one's own, whose head is exchanged."""

    def __init__(self):
        self.trunk, self.head = clnn.Dense(4, "relu"), clnn.Dense(3)

    def forward(self, x):
        return self.head(self.trunk(x))


def convolutions():
    return clnn.Sequential(
        [
            clnn.Residual([clnn.Conv2D(2, 3, padding="same"), clnn.BatchNorm()], activation="relu"),
            clnn.Conv2D(2, 1),
            clnn.MaxPool2D(2) if hasattr(clnn, "MaxPool2D") else clnn.Activation("relu"),
            clnn.Flatten(),
        ],
        input_shape=(2, 8, 8),
        seed=3,
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda net: setattr(net.layers[1], "stride", (2, 2)),
        lambda net: setattr(net.layers[1], "activation", "tanh"),
        lambda net: net.layers[0].body.append(clnn.Activation("tanh")),
        lambda net: net.layers[0].body.__setitem__(0, clnn.Conv2D(2, 1)),
        lambda net: net.layers[0].body.pop(),
        lambda net: setattr(net.layers[0], "shortcut", [clnn.Conv2D(2, 1)]),
        lambda net: setattr(net.layers[0], "activation", "linear"),
        lambda net: setattr(net.layers[0].body[1], "epsilon", 10.0),
        lambda net: net.layers.insert(1, clnn.Activation("sigmoid")),
    ],
    ids=["stride", "activation", "body grows", "body layer", "body shrinks", "shortcut", "linear", "epsilon", "insert"],
)
def test_convolutional_networks_follow(device, rng, change):
    net, x = convolutions(), rng.standard_normal((2, 2, 8, 8)).astype(np.float32)
    for _ in range(5):
        before = net.predict(x)
    change(net)
    for _ in range(5):
        found, expected = net.predict(x), net.predict(np.concatenate([x, x]))[:2]
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, eager(net, x), rtol=1e-4, atol=1e-5)
    assert before.shape != found.shape or not np.allclose(before, found)


def test_a_model_of_ones_own_and_a_second_one(device, rng, tmp_path):
    x = rng.standard_normal((5, 4)).astype(np.float32)
    nets = [Swapping(), Swapping()]
    for _ in range(5):
        found = [net.predict(x) for net in nets]
    nets[0].head = clnn.Dense(2)
    for _ in range(5):
        assert nets[0].predict(x).shape == (5, 2) and np.array_equal(nets[0].predict(x), eager(nets[0], x))
        assert np.array_equal(nets[1].predict(x), found[1])
    nets[0].head = nets[1].head  # shared
    for _ in range(5):
        assert np.array_equal(nets[0].predict(x), eager(nets[0], x))
    net = two_layers()
    net.predict(x)
    net.save(tmp_path / "net")
    loaded = clnn.load(tmp_path / "net")
    for _ in range(5):
        assert np.array_equal(loaded.predict(x), net.predict(x))
    loaded.layers.pop()
    for _ in range(5):
        assert np.array_equal(loaded.predict(x), eager(loaded, x)) and loaded.predict(x).shape == (5, 4)
        assert net.predict(x).shape == (5, 3)


def test_layers_that_a_callback_adds_are_trained(device):
    def grow(net):
        net.layers.append(clnn.Dense(3))

    found = []
    for record in (True, False):
        net = two_layers()
        clnn.seed(11)
        found.append(trained(net, 0, grow, record))
        assert len(found[-1][1]) == 6
    same(found)

    def last(net):
        net.layers[-1] = clnn.Dense(5)

    with pytest.raises(clnn.ShapeError, match=r"\(22, 3\).*\(22, 5\)"):
        trained(two_layers(), 0, last, True)


def test_metrics_with_attributes(device, rng):
    class Scaled:
        scale = 1.0

        def __call__(self, output, target):
            return abs(output - target).mean(1) * self.scale

    metric, net = Scaled(), two_layers()
    x, y = rng.standard_normal((6, 4)).astype(np.float32), np.zeros((6, 3), np.float32)
    for _ in range(5):
        first = net.evaluate(x, y, loss="mse", metrics=[metric])["Scaled"]
    metric.scale = 3.0
    for _ in range(5):
        assert np.isclose(net.evaluate(x, y, loss="mse", metrics=[metric])["Scaled"], 3 * first)


def test_a_step_that_names_sys_reads_not_every_module(device):
    """Through sys.modules it would reach `secrets`, and be taken for one that draws numbers which nobody can repeat."""
    chosen = []

    def scaled(x):
        if "choice" in sys.modules:
            chosen.append(random.choice)
        return x * 2.0

    step = clnn.step(scaled)
    for _ in range(4):
        assert float(step(np.ones(1, np.float32))) == 2.0
    assert step.replays.launches()


@pytest.mark.parametrize("record", [True, False])
def test_a_step_forgets_an_optimizer_whose_parameters_are_all_frozen(device, rng, record):
    """It goes on with another model; the one before was frozen whole meanwhile."""
    now = {}

    def train(x, y):
        loss = clnn.losses.mse(now["net"](x), y)
        loss.backward()
        now["optimizer"].step(now["net"].parameters())
        return loss

    step = clnn.step(train, record=record)
    x, y = rng.standard_normal((6, 3)).astype(np.float32), np.ones((6, 2), np.float32)
    for _ in range(2):
        now.update(net=clnn.Sequential([clnn.Dense(2)], input_shape=3), optimizer=clnn.SGD(0.1))
        losses = [float(step(x, y)) for _ in range(6)]
        assert losses == sorted(losses, reverse=True) and losses[0] > losses[-1]
        now["net"].trainable = False
    with pytest.raises(clnn.ConfigurationError, match="no trainable parameter"):
        now["optimizer"].step(now["net"].parameters())


# -- arguments, and what a step changes on the host ------------------------------------------------------------------------
class Named:
    """Equal by name, whatever else it holds."""

    def __init__(self, rate):
        self.rate = rate

    def __eq__(self, other):
        return isinstance(other, Named)

    def __hash__(self):
        return 1


@dataclass(frozen=True)
class Frozen:
    flag: object


TOLD_APART = {
    "True and 1": (True, 1, lambda x, flag: x * 2.0 if flag is True else x * 5.0),
    "1 and 1.0": (1, 1.0, lambda x, one: x * 2.0 if isinstance(one, int) else x * 5.0),
    "the sign of 0": (0.0, -0.0, lambda x, zero: 1.0 / (x * zero)),
    "equal objects": (Named(2.0), Named(5.0), lambda x, one: x * one.rate),
    "in a tuple": ((True, 2), (1, 2), lambda x, pair: x * 2.0 if pair[0] is True else x * 5.0),
    "in a dataclass": (Frozen(True), Frozen(1), lambda x, one: x * 2.0 if one.flag is True else x * 5.0),
}


@pytest.mark.parametrize("name", TOLD_APART)
def test_arguments_that_python_takes_for_equal(device, name):
    first, second, function = TOLD_APART[name]
    run, x = clnn.step(function), np.ones((2, 2), np.float32)
    for value in [first] * 6 + [second] * 6:
        assert np.array_equal(run(x, value).numpy(), function(clnn.tensor(x), value).numpy())
    assert len(run.replays.launches()) == 2


def test_equal_values_share_a_recording(device):
    run, x = clnn.step(lambda x, *more: x * 2.0), np.ones(2, np.float32)
    for _ in range(5):
        run(x, 2.0, float("nan"), "a" * 3, (1, ("b",)), Frozen((1, 2)), np.float64(3), np.dtype("int32"))
    assert len(run.replays.launches()) == 1
    with pytest.raises(clnn.ConfigurationError, match="can be hashed"):
        run(x, [1])


def rewritten(name):
    """A function, and what is done to it after some calls."""

    def one(x, k=2.0, *, more=1.0):
        return x * k * more

    def other(x, k=9.0, *, more=2.0):
        return x * k + more

    return one, {
        "code": lambda: setattr(one, "__code__", other.__code__),
        "defaults": lambda: setattr(one, "__defaults__", (7.0,)),
        "keyword defaults": lambda: setattr(one, "__kwdefaults__", {"more": 3.0}),
    }[name]


@pytest.mark.parametrize("name", ["code", "defaults", "keyword defaults"])
def test_a_function_that_is_rewritten(device, name):
    one, change = rewritten(name)
    run, x = clnn.step(lambda x: one(x)), np.ones(3, np.float32)
    for _ in range(5):
        before = run(x).numpy()
    change()
    for _ in range(5):
        assert np.array_equal(run(x).numpy(), one(clnn.tensor(x)).numpy())
    assert not np.array_equal(before, run(x).numpy())


class Trainer:
    def __init__(self, seed, rate):
        self.net, self.optimizer, self.weight = two_layers(seed), clnn.SGD(rate, momentum=0.5), 1.0

    def train(self, x, y):
        loss = clnn.losses.mse(self.net(x), y) * self.weight
        loss.backward()
        self.optimizer.step(self.net.parameters())
        return loss

    recorded = clnn.step(train)


def test_a_step_as_a_method(device, rng):
    x, y = rng.standard_normal((5, 4)).astype(np.float32), np.ones((5, 3), np.float32)
    pairs = [(Trainer(seed, 0.1 * seed), Trainer(seed, 0.1 * seed)) for seed in (1, 2)]
    for call in range(8):
        for one, twin in pairs:
            assert float(one.recorded(x, y)) == float(twin.train(clnn.tensor(x), y))
            if call == 4:
                one.weight = twin.weight = 3.0
    assert all(len(one.recorded.replays.launches()) == 1 for one, _ in pairs)
    again = copy.deepcopy(pairs[0][0])
    again.recorded(x, y)
    assert not np.array_equal(
        again.net.predict(x), pairs[0][0].net.predict(x)
    )  # it has trained what was copied with it


def appending(record):
    kept = []

    def run(x):
        kept.append(x * 2.0)
        return kept[-1]

    return run, lambda: [y.numpy() for y in kept]


def appending_later(record):
    kept, chosen = [], {"keep": False}

    def run(x):
        y = x * 2.0
        if chosen["keep"]:
            kept.append(y)
        return y

    def found():
        chosen["keep"] = True
        return [y.numpy() for y in kept]

    return run, found


def drawing_later(record):
    chosen, generator = {"deep": False}, random.Random(3)

    def run(x):
        return x * 2.0 if chosen["deep"] and generator.random() < 0.5 else x

    return run, lambda: chosen.update(deep=True)


def iterating(record):
    rates = itertools.cycle([1.0] * 4 + [2.0] * 3)
    return (lambda x: x * next(rates)), lambda: None


def from_a_generator(record):
    rates = (float(i > 9) for i in range(100))
    return (lambda x: x * next(rates)), lambda: None


@pytest.mark.parametrize("make", [appending, appending_later, drawing_later, iterating, from_a_generator])
def test_what_a_step_does_on_the_host_is_done_at_each_call(device, make):
    found = []
    for record in (True, False):
        run, look = make(record)
        step = clnn.step(run, record=record)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found.append(
                [(step(np.full(2, i, np.float32)).numpy().tolist(), np.array(look()).tolist()) for i in range(16)]
            )
        assert any("a replay" in str(w.message) for w in caught) == record
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["lr", "beta1"])
def test_rates_that_are_set_inside_a_step(device, name):
    found = []
    for record in (True, False):
        net, optimizer = two_layers(), clnn.Adam(0.01)

        def loss(output, target, optimizer=optimizer):
            setattr(optimizer, name, 0.9 * getattr(optimizer, name))
            return ((output - target) ** 2).mean()

        x, y = np.ones((12, 4), np.float32), np.zeros((12, 3), np.float32)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            net.fit(x, y, loss=loss, optimizer=optimizer, epochs=4, batch_size=3, seed=0, record=record, progress=False)
        assert any(f"optimizer's {name} is set inside the step" in str(w.message) for w in caught) == record
        found.append((optimizer.lr, [net.layers[0].w.numpy()]))
    same(found)


def test_a_tensor_is_known_for_its_activation_on_both_sides_of_a_step(device, rng):
    net = clnn.Sequential([clnn.Dense(1, "sigmoid")], input_shape=3, seed=1)
    x, y = rng.standard_normal((4, 3)).astype(np.float32), np.array([0, 1, 1, 0], np.float32)
    outputs = clnn.step(lambda x: net(x))
    loss = clnn.step(lambda output: clnn.losses.binary_cross_entropy(output, y[:, None]), record=False)
    with clnn.no_grad():
        expected = float(clnn.losses.binary_cross_entropy(net(clnn.tensor(x)), y))
        for _ in range(5):
            output = outputs(x)
            assert abs(float(clnn.losses.binary_cross_entropy(output, y)) - expected) < 1e-6
            assert abs(float(loss(output)) - expected) < 1e-6


@pytest.mark.parametrize("what", ["weights", "a view of the weights", "gradients", "statistics", "a loose parameter"])
@pytest.mark.parametrize("record", [True, False])
def test_results_are_those_of_their_call(device, rng, what, record):
    """What a step returns does not change when a later call changes the parameters."""
    net, optimizer = (
        clnn.Sequential([clnn.Dense(4), clnn.BatchNorm(), clnn.Dense(3)], input_shape=4, seed=1),
        clnn.SGD(0.1),
    )
    loose = clnn.tensor(np.ones(3, np.float32), requires_grad=True)
    w = net.layers[0].w

    def train(x, y):
        clnn.losses.mse(net(x) * loose, y).backward()
        gradient = w.grad
        optimizer.step([*net.parameters(), loose])
        return {
            "weights": w,
            "a view of the weights": w.reshape(16),
            "gradients": gradient,
            "statistics": net.layers[1].running_mean,
            "a loose parameter": loose,
        }[what]

    run = clnn.step(train, record=record)
    x, y = rng.standard_normal((6, 4)).astype(np.float32), np.ones((6, 3), np.float32)
    results = [run(x, y) for _ in range(6)]
    before = [result.numpy() for result in results]
    run(x, y)
    assert all(np.array_equal(result.numpy(), value) for result, value in zip(results, before))
    assert all(not np.array_equal(a, b) for a, b in zip(before, before[1:]))


class Renamed:
    """A method that is a step under another name than its function's, which stays as it is."""

    def __init__(self):
        self.weight = 2.0

    def plain(self, x):
        return x * self.weight

    fast = clnn.step(plain)


def test_a_step_as_a_method_goes_by_its_attribute(device):
    one, other, x = Renamed(), Renamed(), np.ones(3, np.float32)
    other.weight = 5.0
    for _ in range(5):
        np.testing.assert_array_equal(one.fast(x).numpy(), [2.0] * 3)
        np.testing.assert_array_equal(other.fast(x).numpy(), [5.0] * 3)
    assert one.fast is one.fast and len(one.fast.replays.launches()) == 1
    np.testing.assert_array_equal(one.plain(x), [2.0] * 3)  # no step, and so NumPy's
    assert isinstance(one.plain(x), np.ndarray)


class Named:
    """An object whose values are asked for by names that stand nowhere in the code."""

    class_kl = 1.0
    __slots__ = ("slot_kl", "__dict__")

    def __init__(self):
        self.scale_kl = self.slot_kl = 1.0
        self.inner = types.SimpleNamespace(scale_kl=1.0)


def by_a_name_made_as_it_runs():
    """Functions that give a number, and what makes it 5."""
    one, kind, layer = Named(), "kl", clnn.Dense(2)
    module = sys.modules["stale_module"] = types.ModuleType("stale_module")
    module.K, layer.scale, key = 1.0, 1.0, "STALE_NUMBER"
    os.environ[key] = "1"
    Named.class_kl = 1.0

    def imported():
        from stale_module import K

        return K

    def as_module():
        import stale_module as found

        return found.K

    def five(target, name):
        return lambda: setattr(target, name, 5.0)

    def chosen(name, default=1.0):
        return getattr(one, name, default)

    return {
        "getattr": (lambda: getattr(one, "scale_" + kind), five(one, "scale_kl")),
        "getattr of a format": (lambda: getattr(one, f"scale_{kind}", 1.0), five(one, "scale_kl")),
        "getattr of an argument": (lambda: chosen("_".join(["scale", kind])), five(one, "scale_kl")),
        "getattr of what is inside": (lambda: getattr(one.inner, "scale_" + kind), five(one.inner, "scale_kl")),
        "getattr of a class's": (lambda: getattr(one, "class_" + kind), five(Named, "class_kl")),
        "getattr of a slot": (lambda: getattr(one, "slot_" + kind), five(one, "slot_kl")),
        "getattr of what comes": (lambda: getattr(one, "new_" + kind, 1.0), five(one, "new_kl")),
        "hasattr": (lambda: 5.0 if hasattr(one, "new_" + kind) else 1.0, five(one, "new_kl")),
        "vars": (lambda: vars(one)["scale_" + kind], five(one, "scale_kl")),
        "__dict__": (lambda: one.__dict__["scale_" + kind], five(one, "scale_kl")),
        "from an import": (imported, five(module, "K")),
        "an import": (as_module, five(module, "K")),
        "sys.modules": (lambda: sys.modules["stale_module"].K, five(module, "K")),
        "import_module": (lambda: importlib.import_module("stale_module").K, five(module, "K")),
        "environ": (lambda: float(os.environ[key]), lambda: os.environ.update({key: "5"})),
        "getenv": (lambda: float(os.getenv(key)), lambda: os.environ.update({key: "5"})),
        "a layer that is not built": (lambda: layer.scale, five(layer, "scale")),
    }


@pytest.mark.parametrize("kind", by_a_name_made_as_it_runs())
def test_names_that_are_made_as_the_step_runs(device, kind):
    read, change = by_a_name_made_as_it_runs()[kind]
    try:

        @clnn.step
        def run(x):
            return x * read()

        x = np.ones(1, np.float32)
        assert [float(run(x)) for _ in range(20)] == [1.0] * 20  # no audit is due before 32
        assert len(run.replays.launches()) == 1
        change()
        assert [float(run(x)) for _ in range(9)] == [5.0] * 9
    finally:
        sys.modules.pop("stale_module"), os.environ.pop("STALE_NUMBER")


class Bag:
    def __init__(self, **values):
        vars(self).update(values)


@pytest.mark.parametrize(
    "text",
    ['getattr(one, "a")', 'getattr(one.b.c, "a")', 'getattr(one, "a", 0)', 'hasattr(one, "a") and one.a', "one.a"],
)
def test_names_that_are_written_out_have_nothing_else_watched(text):
    """Whatever else an object has may change all the time."""
    one = Bag(a=1.0, other=0, b=Bag(c=Bag(a=2.0, other=0)))
    watch = Watch([eval(f"lambda: {text}", {"one": one, "__name__": "users"})])
    one.other = one.b.c.other = 1
    assert not watch.changed()
    one.a = one.b.c.a = 3.0
    assert watch.changed()


def test_more_objects_than_are_watched_are_told(device):
    many = [[[] for _ in range(900)] for _ in range(30)]

    @clnn.step
    def run(x):
        return x * len(many)

    with pytest.warns(
        clnn.RecordingWarning, match="more than 20,000 objects can be reached, and changes of the others are seen"
    ):
        run(np.ones(3, np.float32))
    for _ in range(5):  # told once
        run(np.ones(3, np.float32))


class Doubled:
    factor = 2.0

    @clnn.step
    def scaled(self, x):
        return x * self.factor

    @classmethod
    @clnn.step
    def of_class(cls, x):
        return x * cls.factor


class PlainAbove(Doubled):
    def scaled(self, x):
        return super().scaled(x) + 1.0


class StepAbove(Doubled):
    factor = 3.0

    @clnn.step
    def scaled(self, x):
        return super().scaled(x) + 1.0


class StepAboveThat(StepAbove):
    @clnn.step
    def scaled(self, x):
        return super().scaled(x) + 1.0


@pytest.mark.parametrize(("kind", "value"), [(Doubled, 2.0), (PlainAbove, 3.0), (StepAbove, 4.0), (StepAboveThat, 5.0)])
def test_a_step_as_a_method_that_a_subclass_overrides(device, kind, value):
    one, other, x = kind(), kind(), np.ones(3, np.float32)
    other.factor = 10.0
    for _ in range(6):
        np.testing.assert_array_equal(one.scaled(x).numpy(), [value] * 3)
        np.testing.assert_array_equal(other.scaled(x).numpy(), [value - kind.factor + 10.0] * 3)
        np.testing.assert_array_equal(Doubled.scaled.__get__(one)(x).numpy(), [kind.factor] * 3)
        np.testing.assert_array_equal(kind.of_class(x).numpy(), [kind.factor] * 3)
        np.testing.assert_array_equal(Doubled.of_class(x).numpy(), [2.0] * 3)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_step_as_a_method_of_a_copy(device, copied):
    one, x = StepAbove(), np.ones(3, np.float32)
    for _ in range(4):
        one.scaled(x)
    other = copied(one)
    one.factor, other.factor = 7.0, 8.0
    for _ in range(5):
        np.testing.assert_array_equal(other.scaled(x).numpy(), [9.0] * 3)
        np.testing.assert_array_equal(one.scaled(x).numpy(), [8.0] * 3)
    assert one.scaled is one.scaled is not other.scaled and len(one.scaled.replays.launches()) == 1


def test_a_step_as_a_method_that_is_replaced(device):
    class Replaced:
        @clnn.step
        def run(self, x):
            return x * 2.0

    one, x = Replaced(), np.ones(3, np.float32)
    for _ in range(4):
        one.run(x)
    Replaced.run = clnn.step(lambda self, x: x * 5.0)
    np.testing.assert_array_equal(one.run(x).numpy(), [5.0] * 3)
    one.run = lambda x: x * 6.0
    np.testing.assert_array_equal(one.run(x), [6.0] * 3)


@pytest.mark.parametrize("make", ["ones", "constant"])
def test_a_tensor_that_an_audit_made_and_a_cache_kept(device, make):
    """An audit computes nothing, so that it is an error to read it. Constants are made outside of an audit."""

    class Cut(clnn.Layer):
        def __init__(self):
            self.n = 3

        def forward(self, x):
            return x[:, : self.n] + mask(self.n)

    mask = functools.cache(lambda n: clnn.ones((n,)) * 2.0 if make == "ones" else clnn.constant(np.full(n, 2.0)))
    x, layer = np.ones((2, 6), np.float32), Cut()
    step = clnn.step(lambda x: layer(x))
    for n in (3, 4):
        layer.n = n
        if (make, n) == ("ones", 4):
            with pytest.raises(clnn.DeviceError, match="without values.*clnn.constant"):
                step(x)
            mask.cache_clear()
        for _ in range(6):
            np.testing.assert_array_equal(step(x).numpy(), np.full((2, n), 3.0))


def test_libraries_that_a_model_names_are_not_walked_through():
    """A user's own package is, to its last function."""
    found = {}
    for name in ("torch", "mine"):
        library = types.ModuleType(name)
        exec("def other(): return 1\ndef helper(): return other()\nclass Tensor: size = helper", vars(library))

        class Named(clnn.Model):
            def __init__(self, library):
                self.dense, self.library = clnn.Dense(2), library

            def forward(self, x):
                return self.dense(clnn.tensor(x.size()) if isinstance(x, self.library.Tensor) else x)

        model = Named(library)
        model.predict(np.zeros((3, 4), np.float32))
        (evaluation,) = model._evaluations.values()
        found[name] = {f.__name__ for f in evaluation.step.watched().functions}
    assert "forward" in found["torch"] and found["mine"] - found["torch"] == {"helper", "other"}
