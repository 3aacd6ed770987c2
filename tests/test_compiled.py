"""Compiled models: what predict says, by one call without Python's layers in between."""

import copy
import pickle
import threading

import numpy as np
import pytest

import clnn
from clnn.train import direct


class Two(clnn.Model):
    """A model of one's own with two inputs, one of whole numbers, and two outputs, one of which is an input."""

    whole_inputs = (False, True)

    def __init__(self):
        self.embedding, self.dense, self.factor = clnn.Embedding(5, 3), clnn.Dense(4, "tanh"), 2.0

    def forward(self, x, tokens):
        return {"sum": self.dense(x) * self.factor + self.dense(self.embedding(tokens)[:, 0]), "same": x}


def made(kind):
    rng = np.random.default_rng(0)
    if kind == "two":
        net, x = Two(), (rng.random((2, 3), dtype=np.float32), rng.integers(0, 5, (2, 6)).astype(np.int32))
        net(*x)
    elif kind == "image":
        layers = [clnn.Conv2D(3, 3, "relu"), clnn.BatchNorm(), clnn.MaxPool2D(2), clnn.Flatten(), clnn.Dense(4)]
        net, x = clnn.Sequential(layers, input_shape=(1, 8, 8), seed=1), (rng.random((2, 1, 8, 8), dtype=np.float32),)
    else:
        net = clnn.Sequential([clnn.Dense(300, "relu"), clnn.Dense(70), clnn.Dense(3)], input_shape=200, seed=1)
        x = (rng.random((2, 200), dtype=np.float32),)
    return net, x


def same(found, wanted):
    if isinstance(wanted, dict):
        return all(np.array_equal(found[name], wanted[name]) for name in wanted) and found.keys() == wanted.keys()
    return np.array_equal(found, wanted)


@pytest.mark.parametrize("kind", ["dense", "image", "two"])
def test_it_says_what_predict_says_whatever_changes(device, kind):
    with clnn.use(device):
        net, x = made(kind)
        f = net.compiled(2)
        for step in range(3):
            assert same(f(*x), net.predict(x if kind == "two" else x[0]))
            if step == 0:  # weights change in place
                net.load_state_dict({name: p.numpy() + 1 for name, p in net.named_parameters()})
            elif kind == "two":
                net.factor = 3.0
            else:
                net.layers.append(clnn.Activation("tanh"))
            x = tuple(a[::-1].copy() for a in x)
        kept = f(*x)
        f(*(a * 0 for a in x))
        assert same(kept, net.predict(x if kind == "two" else x[0]))  # no later call writes into it


def test_what_it_refuses_and_takes(device):
    with clnn.use(device):
        net, (x,) = made("dense")
        f = net.compiled(2)
        assert same(f(x.astype("float64").tolist()), net.predict(x))
        with pytest.raises(clnn.ShapeError, match=r"compiled for inputs of shape \(2, 200\), and \(1, 200\) was given"):
            f(x[:1])
        with pytest.raises(clnn.ShapeError, match=r"takes 1 inputs one by one, f\(\*x\), and 2 were given"):
            f(x, x)
        with pytest.raises(clnn.ConfigurationError, match="needs a model that is built"):
            clnn.Sequential([clnn.Dense(3)]).compiled()
        two, (a, tokens) = made("two")
        with pytest.raises(clnn.ConfigurationError, match="batch_size"):
            two.compiled(0)


def test_copies_are_compiled_for_the_copy_of_the_model(device):
    with clnn.use(device):
        net, (x,) = made("dense")
        f, want = net.compiled(2), net.predict(x)
        twins = copy.deepcopy((net, f)), (net, copy.copy(f)), pickle.loads(pickle.dumps((net, f)))
        net.load_state_dict({name: 2 * p.numpy() for name, p in net.named_parameters()})
        for one, twin in twins:
            assert twin.model is one and same(twin(x), one.predict(x)) and same(twin(x), want) == (one is not net)


def test_more_than_there_is_room_for(device):
    with clnn.use(device), pytest.raises(clnn.OutOfDeviceMemory):
        made("dense")[0].compiled(1 << 31)


def test_an_output_that_is_copied_on_the_device(device):
    """A stateful layer copies the state that it returns."""
    with clnn.use(device):
        net, x = (
            clnn.Sequential([clnn.GRU(6, stateful=True)], input_shape=(4, 5), seed=1),
            np.ones((3, 4, 5), np.float32),
        )
        f = net.compiled(3)
        net.reset_states()
        found = f(x)
        net.reset_states()
        assert same(found, net.predict(x, batch_size=3))


def test_threads_share_it(device):
    with clnn.use(device):
        net, (x,) = made("dense")
        f, wrong = net.compiled(2), []
        inputs = [x * k for k in range(1, 5)]
        wanted = [net.predict(one) for one in inputs]

        def ask(i):
            wrong.extend(i for _ in range(30) if not np.array_equal(f(inputs[i]), wanted[i]))

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert not wrong


def test_it_calls_a_model_as_everyone_does(device):
    class Doubled(clnn.Sequential):
        def __call__(self, x):
            return super().__call__(x) * 2

    with clnn.use(device):
        net, x = Doubled([clnn.Dense(3)], input_shape=4, seed=1), np.ones((1, 4), np.float32)
        assert same(net.compiled()(x), net.predict(x)) and np.allclose(
            net.predict(x), 2 * net.forward(clnn.tensor(x)).numpy()
        )


# -- predict of one batch, which goes through memory that the host shares ------------------------------------------------
class Keeps(clnn.Model):
    """Keeps its output, and returns it, a constant and its input."""

    def __init__(self):
        super().__init__()
        self.dense, self.scale = clnn.Dense(3), clnn.tensor(np.float32([[1, 2, 3], [1, 2, 3]]))

    def forward(self, x):
        self.last = self.dense(x) * 2.0
        return {"y": self.last, "scale": self.scale, "x": x, "flat": x.reshape(x.shape[0], -1)}


def test_answers_of_one_batch_of_any_size_and_form(device, rng):
    """In turns, as often as not replayed, with batches of several sizes and inputs of other layouts between."""
    with clnn.use(device):
        net, dense = Keeps(), clnn.Sequential([clnn.Dense(3, "tanh")], input_shape=5, seed=1)
        w, b = (p.numpy().astype(np.float64) for p in dense.parameters())
        for turn in range(30):
            n = int(rng.choice([1, 2, 3, 7]))
            x = rng.standard_normal((n, 5)).astype(rng.choice([np.float32, np.float64]))
            x = [x, np.asfortranarray(x), np.repeat(x, 2, axis=0)[::2], x.tolist()][turn % 4]
            want = np.tanh(np.asarray(x, np.float64) @ w + b)
            assert np.abs(dense.predict(x, batch_size=5) - want).max() < 1e-5, turn
        found = []
        for _ in range(8):
            x = rng.standard_normal((2, 5)).astype(np.float32)
            y = net.predict(x)
            w, b = (p.numpy().astype(np.float64) for p in net.dense.parameters())
            assert np.abs(y["y"] - 2 * (x @ w + b)).max() < 1e-5 and same(y["y"], net.last.numpy())
            assert same(y["x"], x) and same(y["flat"], x) and same(y["scale"], [[1, 2, 3], [1, 2, 3]])
            found.append((x, y))
        for x, y in found:  # what was answered stays as it was
            assert same(y["x"], x)
        with pytest.raises(clnn.DataError, match=r"x\[0, 4\] is nan"):
            dense.predict(np.float32([[1, 2, 3, 4, np.nan]]))
        x = rng.standard_normal((1, 5)).astype(np.float32)
        assert same(dense.predict(x), dense.predict(np.repeat(x, 700, axis=0))[:1])


def test_answers_beside_training(device, rng):
    """A callback predicts: weights that a recorded step changes are those of now."""
    x, answers = rng.standard_normal((40, 5)).astype(np.float32), []
    with clnn.use(device):
        net = clnn.Sequential([clnn.Dense(4, "relu"), clnn.Dense(1)], input_shape=5, seed=1)

        def look(model, epoch, logs):
            layers = [[p.numpy() for p in layer.parameters()] for layer in model.layers]
            (w1, b1), (w2, b2) = layers
            answers.append(np.abs(model.predict(x[:1]) - (np.maximum(x[:1] @ w1 + b1, 0) @ w2 + b2)).max())

        net.fit(
            x, x.sum(1, keepdims=True), epochs=12, batch_size=8, loss="mse", optimizer=clnn.SGD(0.05),
            callbacks=[clnn.Lambda(on_epoch_end=look)], progress=False,
        )  # fmt: skip
    assert len(answers) == 12 and max(answers) < 1e-5


def test_predictions_one_after_the_other(device, rng):
    """The second of a form goes to the launches at once; whatever changes between them is seen."""
    net = clnn.Sequential([clnn.Dense(8, "tanh"), clnn.Dense(3)], input_shape=5, seed=1)
    x = rng.standard_normal((4, 5)).astype(np.float32)

    def compare(x=x):
        with clnn.no_grad():
            want = net(clnn.tensor(x)).numpy()
        for _ in range(5):
            np.testing.assert_array_equal(net.predict(x), want)

    compare()
    for bad in (np.nan, np.inf):
        wrong = x.copy()
        wrong[2, 3] = bad
        with pytest.raises(clnn.DataError, match=r"x\[2, 3\]"):
            net.predict(wrong)
    compare(-x)
    compare(x[:, ::-1])
    compare(x[:2])
    compare(x)
    with pytest.raises(clnn.ShapeError):
        net.predict(x[:, :4])
    net.load_state_dict({name: 2 * array for name, array in net.state_dict().items()})
    compare()
    net.layers[1].activation = "relu"
    compare()
    net.layers.pop()
    compare()
    net.layers.append(clnn.Dense(2))
    compare()
    np.testing.assert_array_equal(net.predict(x, batch_size=3), net.predict(x))
    np.testing.assert_array_equal(net.predict(x.astype(np.float64)), net.predict(x))
    np.testing.assert_array_equal(net.predict(x.tolist()), net.predict(x))
    twin = copy.deepcopy(net)
    for p in net.parameters():
        device.fill_zero(p.block)
    assert not net.predict(x).any() and twin.predict(x).any()
    inside = clnn.step(lambda a: clnn.tensor(net.predict(x)) + a, record=False)
    assert not inside(np.zeros((4, 2), np.float32)).numpy().any()


@pytest.mark.parametrize("soon", [0.0, 10.0])
def test_answers_that_come_late_are_waited_for(device, rng, monkeypatch, soon):
    """Who asked in vain eight times in a row asks no more; the answers are the same."""
    monkeypatch.setattr(direct, "SOON", soon)
    net = clnn.Sequential([clnn.Dense(300, "relu"), clnn.Dense(3)], input_shape=200, seed=1)
    f = net.compiled(40)

    def check():
        x = rng.random((40, 200), dtype=np.float32)
        np.testing.assert_array_equal(f(x), net.predict(x))

    for _ in range(10):
        check()
    if soon or f.recording is None:
        return

    class Running:
        command_execution_status = 1

    f.recording.last, f.direct.patience = Running(), 8
    for left in (7, 6, 5, 4, 3, 2, 1, 0, 0):
        f.direct._look_for_a_while()
        assert f.direct.patience == left
    check()
    assert f.direct.patience == 0


def test_a_prediction_again_looks_at_the_environment(device, monkeypatch):
    """What the last one was made by is used again only where it would be chosen again."""
    net = clnn.Sequential([clnn.Dense(5, "relu"), clnn.Dense(2)], input_shape=3, seed=0)
    x = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    expected = [net.predict(x) for _ in range(6)][-1]
    (evaluation,) = net._evaluations.values()
    assert evaluation.last is not None and evaluation.again(x) is not None
    monkeypatch.setenv("CLNN_WINOGRAD", "0")
    assert evaluation.again(x) is None
    np.testing.assert_array_equal(net.predict(x), expected)
    net.layers[0].trainable = False
    assert evaluation.again(x) is None
    for one in (np.full_like(x, np.nan), x[:1], x.astype(np.float64), np.repeat(x, 600, axis=0)):
        assert evaluation.again(one) is None
    with pytest.raises(clnn.DataError):
        net.predict(np.full_like(x, np.nan))
    assert len(net.predict(np.repeat(x, 600, axis=0))) == 1200 and evaluation.last is None
    np.testing.assert_array_equal(net.predict(x), expected)
