"""Compiled models that read copies of their weights as halves."""

import copy
import pickle
import threading

import numpy as np
import pytest
from helpers import REFERENCES, as_a_cpu, assert_close, eps, normal

import clnn
from clnn.gemm import tile
from clnn.ops import half
from clnn.ops.half import HalfWeights, reading
from clnn.tensor import linear_layer

pytestmark = pytest.mark.usefixtures("device")


def rounded(w):
    return w.astype(np.float16).astype(w.dtype)


def a_parameter(array):
    """A layer's parameter with these values."""
    layer = clnn.Dense(array.shape[1], bias=False, weight_init=0.0)
    layer(clnn.tensor(np.zeros((1, len(array)), np.float32)))
    layer.load_state_dict({"w": array})
    return layer.w


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("k, n", [(1, 1), (3, 5), (16, 64), (37, 129), (200, 70), (513, 33)])
def test_products_are_those_of_rounded_weights(device, rng, monkeypatch, k, n, cut):
    """Of up to eight rows, whole vectors and not, with K in one part or in several."""
    monkeypatch.setattr(half, "LEAST", 1)
    if cut:
        as_a_cpu(device, monkeypatch)
        for name, value in (("MOST_RUN", 64 * 8 * 8), ("DEEP", 16), ("SMALL", 8), ("ALONE", 1)):
            monkeypatch.setattr(tile, name, value)
    w, b = normal(rng, (k, n)), normal(rng, n)
    w.flat[0] = 65504
    p, bias = a_parameter(w.astype(np.float32)), clnn.tensor(b.astype(np.float32))
    copies = HalfWeights([p])
    for m in (0, 1, 3, 8, 9):
        x, used = normal(rng, (m, k)), w if m > 8 else rounded(w)
        with clnn.no_grad(), reading(copies):
            found = linear_layer(clnn.tensor(x.astype(np.float32)), p, bias, "tanh").numpy()
            plain = linear_layer(clnn.tensor(x.astype(np.float32)), p, None, "linear").numpy()
        bound = (k + 4) * eps(np.float32) * (np.abs(x) @ np.abs(used) + np.abs(b))
        assert_close(plain, x @ used, bound)
        assert_close(found, REFERENCES["tanh"](x @ used + b), bound + 4 * eps(np.float32))
    with clnn.no_grad(), reading(copies):  # a matrix that is read transposed has a copy that is not
        x = normal(rng, (2, n))
        found = linear_layer(clnn.tensor(x.astype(np.float32)), p, None, "linear", transposed=True).numpy()
    assert_close(found, x @ rounded(w).T, (n + 4) * eps(np.float32) * (np.abs(x) @ np.abs(w).T))
    assert [key[1:] for key in copies.copies] == [((k, n), False), ((k, n), True)]


def as_halves(net, x):
    """What a network of Dense layers says by weights that are rounded."""
    with clnn.use(net.device):
        twin = copy.deepcopy(net)
        twin.load_state_dict({name: rounded(p) if p.ndim > 1 else p for name, p in net.state_dict().items()})
        return twin.predict(x)


@pytest.fixture
def small(monkeypatch):
    """Small matrices count, and nothing is compiled into one kernel, which takes its time."""
    monkeypatch.setattr(half, "LEAST", 1)
    monkeypatch.setenv("CLNN_FUSE", "0")


def a_net(seed=1, **how):
    layers = [clnn.Dense(20, "tanh"), clnn.Dense(20, "tanh"), clnn.Dense(3)]
    return clnn.Sequential(layers, input_shape=7, seed=seed, **how)


def told(net, f, x):
    """Whether f says what rounded weights say, and not what the weights themselves say."""
    found, want = f(x), as_halves(net, x)
    off, plain = np.abs(found - want).max(), np.abs(net.predict(x) - want).max()
    return off <= 1e-5 * np.abs(want).max() and plain > off


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_large_weights_are_rounded_and_others_are_not(rng, batch, monkeypatch):
    monkeypatch.setenv("CLNN_FUSE", "0")
    net = clnn.Sequential([clnn.Dense(300, "relu"), clnn.Dense(220), clnn.Dense(20)], input_shape=5, seed=1)
    x, before = rng.standard_normal((batch, 5)).astype(np.float32), net.state_dict()
    f = net.compiled(batch, weights="float16")
    assert [key[1] for key in f.halves.copies] == [(300, 220)]
    state = net.state_dict()
    assert all(np.array_equal(state[name], before[name]) for name in before)
    twin = copy.deepcopy(net)
    twin.load_state_dict(state | {"1.w": rounded(state["1.w"])})
    np.testing.assert_allclose(f(x), twin.predict(x), rtol=1e-5, atol=1e-6)
    assert not np.array_equal(f(x), net.predict(x))


def test_as_one_kernel(device, rng, monkeypatch):
    monkeypatch.setattr(half, "LEAST", 1)
    net, x = a_net(), rng.standard_normal((2, 7)).astype(np.float32)
    f = net.compiled(2, weights="float16")
    assert told(net, f, x)
    net.load_state_dict({name: p * 2 for name, p in net.state_dict().items()})
    assert told(net, f, x)


class Asks(clnn.Callback):
    """Asks while fit runs."""

    def __init__(self, ask):
        self.ask = ask

    def on_epoch_begin(self, model, epoch):
        self.ask()

    def on_epoch_end(self, model, epoch, logs):
        self.ask()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("how", [{}, {"storage": "float16"}])
def test_whatever_changes_weights_is_seen(rng, tmp_path, how):
    net, other = a_net(**how), a_net(2)
    x, y = rng.standard_normal((40, 7)).astype(np.float32), np.arange(40) % 3
    f, g = net.compiled(2, weights="float16"), other.compiled(2, weights="float16")
    asked = []

    def ask():
        asked.append(told(net, f, x[:2]) and told(other, g, x[2:4]))

    ask()
    fit = {"loss": "cross_entropy", "epochs": 4, "batch_size": 10, "progress": False, "callbacks": [Asks(ask)]}
    for optimizer in (clnn.SGD(0.5), clnn.SGD(0.1, momentum=0.9), clnn.Adam(0.02), clnn.SGD(0.1, clip_norm=1.0)):
        net.fit(x, y, optimizer=optimizer, **fit)
        ask()
    adam = clnn.Adam(0.02, ema=0.5)

    @clnn.step
    def train(x, y):
        loss = clnn.losses.cross_entropy(net(x), y)
        loss.backward()
        adam.step(net.parameters())
        return loss

    for _ in range(6):
        train(x, y)
        ask()
    with adam.averaged():
        ask()
    ask()
    stop = clnn.EarlyStopping(patience=1, monitor="loss", min_delta=10.0)  # the first epoch is the best one
    net.fit(x, y, optimizer=clnn.SGD(0.5), **(fit | {"callbacks": [Asks(ask), stop]}))
    ask()
    clnn.LBFGS().minimize(lambda: clnn.losses.cross_entropy(net(x), y), net.parameters(), steps=3)
    ask()
    other.save(tmp_path / "other.safetensors")
    net.load_state_dict(clnn.load(tmp_path / "other.safetensors").state_dict())
    ask()
    net.layers[1] = other.layers[1]  # both have it now
    ask()
    other.fit(x, y, optimizer=clnn.SGD(0.5), **fit)
    ask()
    net.layers[1].trainable = False
    net.layers.append(clnn.Activation("tanh"))
    ask()
    net.to(net.device)
    ask()
    assert len(asked) > 50 and [i for i, right in enumerate(asked) if not right] == []


@pytest.mark.usefixtures("small")
def test_threads_see_a_fit_as_it_goes(rng):
    """Each answer is that of weights between two steps; the last one that of the last."""
    net, x, y = a_net(), rng.standard_normal((40, 7)).astype(np.float32), np.arange(40) % 3
    f, found = net.compiled(1, weights="float16"), []
    over = threading.Event()

    def ask():
        while not over.is_set():
            found.append(f(x[:1]).tobytes())

    asker = threading.Thread(target=ask)
    asker.start()
    net.fit(x, y, loss="cross_entropy", optimizer=clnn.SGD(0.1), epochs=60, batch_size=10, progress=False)
    over.set()
    asker.join()
    assert len(set(found)) > 5 and told(net, f, x[:1])
    wrong = []
    wanted = {i: f(x[i : i + 1]) for i in range(3)}
    ask = lambda i: wrong.extend(i for _ in range(20) if not np.array_equal(f(x[i : i + 1]), wanted[i]))  # noqa: E731
    threads = [threading.Thread(target=ask, args=(i,)) for i in wanted]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not wrong


@pytest.mark.usefixtures("small")
def test_a_step_that_breaks_off_is_seen(rng):
    """It may have changed some weights by then."""
    net, x, y = a_net(), rng.standard_normal((10, 7)).astype(np.float32), np.arange(10) % 3
    f, found = net.compiled(2, weights="float16"), []
    apply = clnn.SGD._apply

    def one_time(*given, **how):
        if found:
            raise KeyboardInterrupt
        apply(*given, **how)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(clnn.SGD, "_apply", one_time)
        asks = Asks(lambda: net.optimizer.steps and found.append(f(x[:2])))
        net.fit(x, y, loss="cross_entropy", optimizer=clnn.SGD(0.5), epochs=4, progress=False, callbacks=[asks])
    assert told(net, f, x[:2]) and not np.array_equal(f(x[:2]), found[-1])


@pytest.mark.usefixtures("small")
def test_copies_and_pickles_read_halves_too(rng):
    net, x = a_net(), rng.standard_normal((2, 7)).astype(np.float32)
    f = net.compiled(2, weights="float16")
    twins = copy.deepcopy((net, f)), (net, copy.copy(f)), pickle.loads(pickle.dumps((net, f)))
    net.load_state_dict({name: 2 * p for name, p in net.state_dict().items()})
    assert all(twin.weights == "float16" and told(one, twin, x) for one, twin in (*twins, (net, f)))


@pytest.mark.usefixtures("small")
def test_an_embedding_whose_matrix_is_read_transposed(rng):
    class Tied(clnn.Model):
        whole_inputs = (True,)

        def __init__(self):
            super().__init__()
            self.embedding = clnn.Embedding(50, 6)

        def forward(self, tokens):
            return self.embedding.tied(self.embedding(tokens).mean(axis=1))

    net, tokens = Tied(), rng.integers(0, 50, (2, 4)).astype(np.int32)
    net(tokens)
    f = net.compiled(2, weights="float16")
    for factor in (1, 3):
        w = net.embedding.w.numpy() * factor
        net.load_state_dict({"embedding.w": w})
        np.testing.assert_allclose(f(tokens), w[tokens].mean(1) @ rounded(w).T, rtol=1e-4, atol=1e-6)
    assert [key[2] for key in f.halves.copies] == [True]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("value", [65504.1, -1e9, np.nan, np.inf])
def test_weights_beyond_halves_are_an_error_until_they_have_changed(rng, value):
    net, x = a_net(), rng.standard_normal((1, 7)).astype(np.float32)
    f, good = net.compiled(weights="float16"), net.state_dict()
    w = net.layers[1].w.numpy()
    for at in ((0, 0), (19, 19), (13, 2)):
        bad = w.copy()
        bad[at] = value
        net.device.upload(bad, net.layers[1].w.block)
        net.layers[1].w.version += 1
        for ask in (lambda: f(x), lambda: f(x), lambda: net.compiled(weights="float16")):
            with pytest.raises(clnn.ConfigurationError, match="between -65,504 and 65,504, and 1.w has other weights"):
                ask()
    net.load_state_dict(good | {"1.w": np.full_like(w, 65504)})
    assert np.isfinite(f(x)).all()
    net.load_state_dict(good)
    assert told(net, f, x)


def test_what_is_refused():
    net = a_net()
    with pytest.raises(clnn.ConfigurationError, match="weights is 'float32' or 'float16', 'half' was provided instead"):
        net.compiled(weights="half")
    with pytest.raises(clnn.ConfigurationError, match="65,536 weights or more .* the model has none: leave it out"):
        net.compiled(weights="float16")
    wide = clnn.Sequential([clnn.Dense(400)], input_shape=200)
    with pytest.raises(clnn.ConfigurationError, match="for this batch size the model has none"):
        wide.compiled(9, weights="float16")


def test_doubles_are_refused(device):
    try:
        net = a_net(dtype="float64")
    except clnn.DeviceError:
        pytest.skip("the device has no doubles")
    with pytest.raises(clnn.ConfigurationError, match="weights='float16' is for networks of float32, .* float64"):
        net.compiled(weights="float16")
