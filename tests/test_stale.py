"""A recording never outlives what it froze: whatever is changed between calls, the next call does what the Python says."""

import sys
import types
import warnings
from dataclasses import dataclass

import numpy as np
import pytest

import clnn

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
