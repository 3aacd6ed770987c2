"""copy.deepcopy and pickle: an independent twin that computes and trains as the first does, also in another process."""

import copy
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

import clnn
from clnn import schedules
from clnn.optim import OPTIMIZERS

WAYS = {"deepcopy": copy.deepcopy, "pickle": lambda one: pickle.loads(pickle.dumps(one))}


@pytest.fixture(params=WAYS)
def twin_of(request):
    return WAYS[request.param]


@clnn.register
class Tied(clnn.Model):
    """One layer in two places, a parameter of its own, and a list that holds both."""

    def __init__(self):
        self.first = clnn.Dense(6, "tanh")
        self._again = [self.first, clnn.Dense(6, "tanh")]
        self.last = clnn.Dense(3, weight_init=clnn.init.normal(0.0, 0.3), bias_init=clnn.init.constant(0.1))

    def build(self, shape):
        self.scale = self.parameter((6,), "ones")

    def forward(self, x):
        x = self.first(x)
        for layer in self._again:
            x = layer(x)
        return self.last(x * self.scale)


def tied():
    return Tied()


def mixed():
    layers = [clnn.Dense(6, "relu", max_norm=2.0), clnn.BatchNorm(), clnn.Dropout(0.25), clnn.Dense(3)]
    return clnn.Sequential(layers, input_shape=6, seed=4)


MODELS = {"tied": tied, "mixed": mixed}


def data(seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((40, 6)).astype(np.float32), rng.integers(0, 3, 40)


def trained(net, optimizer, epochs=2):
    net.fit(*data(), loss="cross_entropy", optimizer=optimizer, epochs=epochs, batch_size=8, seed=5, progress=False)
    return net


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_twin_goes_on_as_the_first_does(device, twin_of, make, optimizer):
    net = trained(MODELS[make](), OPTIMIZERS[optimizer](ema=0.9))
    twin = twin_of(net)
    assert type(twin) is type(net) and twin.device is device and repr(twin) == repr(net)
    before = net.state_dict()
    same(before, twin.state_dict())
    mine, theirs = set(map(id, net.parameters())), set(map(id, twin.parameters()))
    assert not mine & theirs and len(mine) == len(theirs)
    x, y = data(1)
    np.testing.assert_array_equal(net.predict(x), twin.predict(x))
    trained(twin, twin.optimizer)
    same(before, net.state_dict())  # nothing of the first was touched
    after = twin.state_dict()
    trained(net, net.optimizer)
    same(net.state_dict(), after)
    assert net.evaluate(x, y) == twin.evaluate(x, y)
    with net.optimizer.averaged(), twin.optimizer.averaged():
        same(net.state_dict(), twin.state_dict())


def test_a_twin_of_a_twin_before_and_after_its_build(device, twin_of):
    net = clnn.Sequential([clnn.Dense(4), clnn.Dense(2)], seed=3)
    for one in (net, twin_of(net), twin_of(twin_of(net))):
        assert not one.built
        assert one(np.ones((2, 5), np.float32)).shape == (2, 2)
    same(net.state_dict(), twin_of(twin_of(net)).state_dict())


def test_what_is_frozen_stays_so(device, twin_of):
    net = mixed()
    net.layers[0].trainable = False
    net.layers[3].w.rate_factor = 0.5
    twin = twin_of(net)
    assert not twin.layers[0].trainable and not twin.layers[0].w.trainable and twin.layers[3].w.trainable
    assert twin.layers[3].w.rate_factor == 0.5 and twin.layers[0].w.max_norm == 2.0 and not twin.layers[3].b.decays
    assert not twin.layers[1].running_mean.learns
    same(trained(net, clnn.SGD(0.1)).state_dict(), trained(twin, clnn.SGD(0.1)).state_dict())


def test_a_layer_in_two_places_is_one_in_the_twin(device, twin_of):
    net = tied()
    net.predict(data()[0])
    twin = twin_of(net)
    assert twin._again[0] is twin.first and twin.first is not net.first
    assert len(twin.parameters()) == len(net.parameters()) == 7
    both = twin_of({"a": net, "b": net})
    assert both["a"] is both["b"]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_optimizer_with_its_parameters(device, twin_of, optimizer):
    """A loop of one's own, on a copy of model and optimizer together."""

    def steps(net, optimizer, count):
        x, y = data()
        for _ in range(count):
            clnn.losses.cross_entropy(net(x), y).backward()
            optimizer.step()

    net, rule = clnn.Sequential([clnn.Dense(3)], input_shape=6, seed=1), OPTIMIZERS[optimizer](0.01)
    clnn.losses.cross_entropy(net(data()[0]), data()[1]).backward()
    rule.step(net.parameters())
    twin, its = twin_of((net, rule))
    assert its.steps == 1 and its is not rule
    steps(net, rule, 3), steps(twin, its, 3)
    same(net.state_dict(), twin.state_dict())
    assert its.steps == rule.steps == 4
    again = twin_of(its)
    assert again.steps == 4 and again.config() == its.config()


@pytest.mark.parametrize(
    "rate", [0.1, schedules.Cosine(0.1), schedules.StepDecay(0.1, 1), schedules.OneCycle(0.1), [(1, 0.1), (1, 0.01)]], ids=str
)  # fmt: skip
def test_schedules(device, twin_of, rate):
    net = trained(clnn.Sequential([clnn.Dense(3)], input_shape=6, seed=1), clnn.SGD(rate), epochs=1)
    twin = twin_of(net)
    assert [twin.optimizer.rate(i) for i in range(12)] == [net.optimizer.rate(i) for i in range(12)]
    same(trained(net, net.optimizer).state_dict(), trained(twin, twin.optimizer).state_dict())


@pytest.mark.parametrize("kind", [copy.copy, copy.deepcopy, WAYS["pickle"]])
def test_tensors(rng, device, dtype, kind):
    for array in (
        rng.standard_normal((3, 2)).astype(dtype),
        np.arange(3, dtype=np.int32),
        np.zeros((0, 2), dtype),
        dtype(2),
    ):
        t = clnn.tensor(array, dtype=np.asarray(array).dtype)
        twin = kind(t)
        assert (
            type(twin) is clnn.Tensor and twin.dtype == t.dtype and twin.device is device and twin.block is not t.block
        )
        np.testing.assert_array_equal(twin, array)
    p = clnn.tensor(array, dtype=dtype, requires_grad=True)
    p.name, p.rate_factor = "w", 0.5
    twin = kind(p)
    assert twin.requires_grad and (twin.name, twin.rate_factor) == ("w", 0.5) and twin.block is not p.block
    np.testing.assert_array_equal(twin, array)
    (twin * twin).backward()
    assert twin.grad.item() == 4 and p.grad is None
    for learned in (p * 2, clnn.exp(p)):
        with pytest.raises(clnn.ClnnError, match=r"a copy or a pickle takes no gradient back.*\.detach\(\)"):
            kind(learned)
        assert kind(learned.detach()).item() == learned.item()
    same_sigmoid = kind(clnn.sigmoid(clnn.zeros((2, 1))))
    assert clnn.losses.binary_cross_entropy(same_sigmoid, np.array([0, 1])).item() == pytest.approx(np.log(2))


@pytest.mark.parametrize(
    "one",
    [
        clnn.losses.CrossEntropy(0.1),
        clnn.losses.Huber(0.5),
        clnn.losses.mse,
        clnn.EarlyStopping(patience=3),
        clnn.GradientNorms(),
        schedules.WarmUp(0.1, 2),
        clnn.Adam(0.01),
        clnn.init.normal(0.0, 0.1),
        clnn.init.orthogonal(),
        clnn.Dense(3),
        clnn.Conv2D(4, 3, "relu", padding="same"),
    ],
    ids=lambda one: type(one).__name__,
)
def test_everything_else_that_fit_takes(device, twin_of, one):
    twin = twin_of(one)
    assert type(twin) is type(one)
    if hasattr(one, "config"):
        assert twin.config() == one.config()


def test_callbacks_go_on(device, twin_of):
    stop = clnn.EarlyStopping("loss", patience=2)
    net = clnn.Sequential([clnn.Dense(3)], input_shape=6, seed=1)
    net.fit(*data(), loss="cross_entropy", optimizer=clnn.SGD(0.1), epochs=2, callbacks=[stop], progress=False)
    twin = twin_of(stop)
    assert twin.best == stop.best and twin.best_epoch == stop.best_epoch == 1


class WithStep(clnn.Model):
    def __init__(self):
        self.dense = clnn.Dense(2, weight_init="ones")
        self.run = clnn.step(self._run)

    def forward(self, x):
        return self.dense(x)

    def _run(self, x):
        return self(x) * 1.0


def test_a_step_of_the_model_is_the_twins_own(device, twin_of):
    net, x = WithStep(), np.ones((2, 3), np.float32)
    for _ in range(5):
        net.run(x)
    twin = twin_of(net)
    twin.dense.load_state_dict({"w": np.full((3, 2), 2.0), "b": np.zeros(2)})
    for _ in range(5):
        np.testing.assert_array_equal(twin.run(x), np.full((2, 2), 6.0))
        np.testing.assert_array_equal(net.run(x), np.full((2, 2), 3.0))


def test_memory_itself_is_refused_with_the_remedy(device, twin_of):
    with pytest.raises(clnn.ClnnError, match=r"neither copied nor pickled.*net.save\(path\) and clnn.load\(path\)"):
        twin_of(clnn.zeros(3).block)


def test_copies_that_nest(device, twin_of):
    net = clnn.Dense(3)
    for _ in range(60):
        net = clnn.Sequential([net])
    net = clnn.Sequential([net], input_shape=4)
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(twin_of(net).predict(x), net.predict(x))


CHILD = """
import pickle, sys
import numpy as np
import clnn
net, ensemble, tensor = pickle.load(open(sys.argv[1], "rb"))
x, y = np.load(sys.argv[2]), np.load(sys.argv[3])
found = [net.predict(x), ensemble.predict_proba(x), tensor.numpy()]
net.fit(x, y, loss=net.loss, optimizer=net.optimizer, epochs=2, batch_size=8, seed=5, progress=False)
pickle.dump([*found, net.state_dict()], open(sys.argv[4], "wb"))
"""


def test_another_process_goes_on(device, tmp_path):
    net = trained(mixed(), clnn.Adam(schedules.Cosine(0.01)))
    x, y = data()
    tensor, ensemble = clnn.tensor(x), clnn.Ensemble([net, trained(mixed(), clnn.SGD(0.1, momentum=0.9))])
    with open(tmp_path / "in", "wb") as file:
        pickle.dump((net, ensemble, tensor), file)
    np.save(tmp_path / "x.npy", x), np.save(tmp_path / "y.npy", y)
    names = [str(tmp_path / name) for name in ("in", "x.npy", "y.npy", "out")]
    with_device = {**os.environ, "CLNN_DEVICE": f"{device.platform_index}:{device.device_index}"}
    subprocess.run([sys.executable, "-c", CHILD, *names], check=True, timeout=300, env=with_device)
    with open(tmp_path / "out", "rb") as file:
        outputs, probabilities, values, state = pickle.load(file)
    np.testing.assert_array_equal(outputs, net.predict(x))
    np.testing.assert_array_equal(probabilities, ensemble.predict_proba(x))
    np.testing.assert_array_equal(values, x)
    same(state, trained(net, net.optimizer).state_dict())
