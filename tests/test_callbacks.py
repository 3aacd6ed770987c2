"""Early stopping, and norms of gradients against NumPy."""

import numpy as np
import pytest
from helpers import REFERENCES

import clnn


def net_on(device, *layers, input_shape=6, seed=0, **options):
    with clnn.use(device):
        return clnn.Sequential(list(layers), input_shape=input_shape, seed=seed, **options)


def weights(net):
    return np.concatenate([p.numpy().ravel() for p in net.parameters()])


def logged(callback, values, net, name="val_loss"):
    """The epoch at which `callback` stops, when fit reports these values; the weights of epoch i are all i."""
    net.stop_training = False
    callback.on_train_begin(net)
    for epoch, value in enumerate(values):
        for p in net.parameters():
            net.device.upload(np.full(p.shape, epoch, np.float32), p.block)
        callback.on_epoch_end(net, epoch, {"loss": 0.0, name: value})
        if net.stop_training:
            break
    callback.on_train_end(net)
    return epoch


@pytest.fixture
def net(device):
    net = net_on(device, clnn.Dense(3, "tanh"), clnn.Dense(2))
    clnn.parameters.consolidate(net.parameters())
    return net


class Told(clnn.Callback):
    """Notes what it is told of, and raises where it is to."""

    def __init__(self, name, notes, *, raises=None):
        self.name, self.notes, self.raises = name, notes, raises

    def _note(self, what):
        if self.raises == what:
            raise OSError(f"{self.name} at its {what}")
        self.notes.append((self.name, what))

    def on_train_begin(self, model):
        self._note("beginning")

    def on_epoch_end(self, model, epoch, logs):
        self._note("epoch")

    def on_train_end(self, model):
        self._note("end")


@pytest.mark.parametrize(
    ("where", "ended"), [("beginning", "a"), ("epoch", "abc"), ("end", "ac"), (None, "abc")], ids=str
)
def test_each_that_has_begun_hears_of_the_end(device, rng, where, ended):
    """In their order, whatever one of them raises; weights of the best epoch are put back all the same."""
    net, notes, seen = net_on(device, clnn.Dense(2)), [], []
    stops = clnn.EarlyStopping("loss", patience=9)
    watch = clnn.Lambda(on_epoch_end=lambda model, epoch, logs: seen.append((logs["loss"], weights(model))))
    told = [Told(name, notes, raises=where if name == "b" else None) for name in "abc"]
    fit = {
        "loss": "mse",
        "optimizer": clnn.SGD(9.0),
        "epochs": 3,
        "callbacks": [watch, *told, stops],
        "progress": False,
    }
    x, y = rng.standard_normal((20, 6)).astype(np.float32), rng.standard_normal((20, 2)).astype(np.float32)
    if where is None:
        net.fit(x, y, **fit)
    else:
        with pytest.raises(OSError, match=f"b at its {where}"):
            net.fit(x, y, **fit)
    assert "".join(name for name, what in notes if what == "end") == ended
    if where in ("end", None):
        assert stops.best_epoch < 2 and np.array_equal(weights(net), seen[stops.best_epoch][1])


# -- early stopping --------------------------------------------------------------------------------------------------------
NAN = float("nan")


@pytest.mark.parametrize(
    ("values", "options", "stops", "best"),
    [
        ([3, 2, 1, 1, 1, 1, 0], {"patience": 3}, 5, 2),  # as good is no better
        ([3, 2, 2.5, 1, 1.5, 1.5], {"patience": 2}, 5, 3),
        ([5, 4, 3, 2], {"patience": 1}, 3, 3),
        ([5, 4.5, 4.1, 3.9], {"patience": 3, "min_delta": 1.0}, 3, 3),  # small steps add up
        ([5, 4.5, 4.1, 3.9], {"patience": 2, "min_delta": 1.0}, 2, 0),
        ([NAN, 2, NAN, NAN], {"patience": 2}, 3, 1),
        ([NAN, NAN, NAN], {"patience": 2}, 1, -1),
        ([3, 4, 5], {"patience": 2, "mode": "max"}, 2, 2),
        ([5, 4, 3], {"patience": 2, "mode": "max"}, 2, 0),
    ],
)
def test_when_it_stops_and_what_is_best(net, values, options, stops, best):
    stopping = clnn.EarlyStopping(**options)
    assert logged(stopping, values, net) == stops
    assert stopping.stopped_epoch == (stops if net.stop_training else None) and stopping.best_epoch == best
    assert (weights(net) == (best if best >= 0 else stops)).all()
    if best >= 0:
        assert stopping.best == values[best]
    again = [1.0, 9.0] if stopping.mode == "max" else [9.0, 1.0]
    assert logged(stopping, again, net) == 1 == stopping.best_epoch and (weights(net) == 1).all()  # starts afresh


@pytest.mark.parametrize("name", ["accuracy", "val_accuracy", "top_5", "val_top_3"])
def test_accuracies_are_to_grow(net, name):
    assert logged(clnn.EarlyStopping(name, 2), [0.5, 0.6, 0.55, 0.6, 0.9], net, name) == 3
    assert (weights(net) == 1).all()


def test_the_last_weights_stay_without_restore_best(net):
    before = net.device.memory.in_use
    stopping = clnn.EarlyStopping(patience=2, restore_best=False)
    assert logged(stopping, [1, 2, 3, 4], net) == 2 and (weights(net) == 2).all()
    assert net.device.memory.in_use == before


def test_it_keeps_one_copy_of_the_parameters(net):
    store = net.parameters()[0].store
    before = net.device.memory.in_use
    stopping = clnn.EarlyStopping()
    stopping.on_train_begin(net)
    for epoch in range(3):
        stopping.on_epoch_end(net, epoch, {"val_loss": -epoch})
        assert before < net.device.memory.in_use <= before + store.nbytes + 512
    stopping.on_train_end(net)
    assert net.device.memory.in_use == before


def test_fit_ends_with_the_weights_that_were_best(device, rng):
    """Steps that are far too long: sooner or later validation gets worse."""
    x, y = rng.standard_normal((60, 6)).astype(np.float32), rng.integers(0, 2, 60)
    x_val, y_val = rng.standard_normal((40, 6)).astype(np.float32), rng.integers(0, 2, 40)
    net, stopping = net_on(device, clnn.Dense(32, "tanh"), clnn.Dense(2)), clnn.EarlyStopping(patience=3)
    history = net.fit(
        x, y, loss="cross_entropy", optimizer=clnn.Adam(0.03), epochs=200, batch_size=20, validation=(x_val, y_val),
        callbacks=[stopping], progress=False,
    )  # fmt: skip
    losses = history["val_loss"]
    assert len(losses) < 200 and stopping.stopped_epoch == len(losses) - 1 == stopping.best_epoch + 3
    assert stopping.best == min(losses) == losses[stopping.best_epoch]
    assert net.evaluate(x_val, y_val)["loss"] == pytest.approx(min(losses), rel=1e-5)


def restored(net, ends, change, first=False, epochs=9):
    """The weights that a fit ends with, and those after its first epoch, where `change(net)` is called after the second."""
    kept, x = [], np.random.default_rng(0).standard_normal((24, 6)).astype(np.float32)

    def after(model, epoch, logs):
        if epoch == 0:
            kept.append(weights(model))
        if epoch == 1:
            change(model)

    def worse(model, epoch):
        if epoch == 2 and isinstance(ends, clnn.TerminateOnNaN):
            model.optimizer.lr = 1e30

    mine = clnn.Lambda(on_epoch_begin=worse, on_epoch_end=after)
    net.fit(
        x, x[:, :2], loss="mse", optimizer=clnn.SGD(0.05, momentum=0.5), epochs=epochs, batch_size=8, progress=False,
        callbacks=[mine, ends] if first else [ends, mine],
    )  # fmt: skip
    return weights(net), kept[0]


CHANGES = {
    "moved": lambda net: net.to(net.device),
    "loaded": lambda net: net.load_state_dict(net.state_dict()),
    "of another rate": lambda net: setattr(net.layers[0].w, "rate_factor", 0.5),
    "thawed": lambda net: setattr(net.layers[2], "trainable", True),
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_restored_is_what_the_weights_are_now(device, change, first):
    def net():
        made = net_on(device, clnn.Dense(3, "tanh"), clnn.BatchNorm(), clnn.Dense(3), clnn.Dense(2))
        made.layers[2].trainable = False
        return made

    best = clnn.EarlyStopping("loss", patience=3, min_delta=1e9)  # epoch 0 is the best
    found, kept = restored(net(), best, CHANGES[change], first)
    assert np.array_equal(found, kept)
    ended = clnn.TerminateOnNaN()
    found, kept = restored(net(), ended, CHANGES[change], first)
    assert ended.stopped_epoch == 2 and np.isfinite(found).all() and not np.array_equal(found, kept)


@pytest.mark.two_devices
def test_weights_are_restored_on_the_device_that_they_are_on_now(device, other_device):
    net = net_on(device, clnn.Dense(3, "tanh"), clnn.BatchNorm(), clnn.Dense(2))
    best = clnn.EarlyStopping("loss", patience=3, min_delta=1e9)
    found, kept = restored(net, best, lambda model: model.to(other_device), epochs=2)
    assert np.array_equal(found, kept) and net.device is other_device


def test_a_monitor_that_is_not_measured_names_those_that_are(device, rng):
    x, y = rng.standard_normal((20, 6)).astype(np.float32), rng.integers(0, 2, 20)
    net = net_on(device, clnn.Dense(2))
    for monitor, words in (("val_loss", "loss, accuracy, lr, seconds; those of held-out"), ("top_2", "only loss")):
        with pytest.raises(clnn.ConfigurationError, match=words):
            net.fit(x, y, loss="cross_entropy", optimizer="sgd", callbacks=[clnn.EarlyStopping(monitor)])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"patience": 0}, "patience should be an integer of 1 or more, 0"),
        ({"patience": 2.5}, "patience"),
        ({"min_delta": -1.0}, "min_delta"),
        ({"mode": "less"}, "mode"),
        ({"monitor": "val_f1"}, "'val_f1'.*mode="),
    ],
)
def test_options_of_early_stopping(options, words):
    with pytest.raises(clnn.ConfigurationError, match=words):
        clnn.EarlyStopping(**options)


# -- norms of gradients ----------------------------------------------------------------------------------------------------
OPTIMIZERS = [
    lambda: clnn.SGD(0.1), lambda: clnn.SGD(0.1, momentum=0.9), lambda: clnn.Adam(0.01),
    lambda: clnn.SGD(0.1, momentum=0.9, keep_gradients=True),
]  # fmt: skip


@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize("make", OPTIMIZERS, ids=["straight", "velocity", "adam", "kept"])
def test_training_is_not_disturbed(device, rng, make, record):
    """The same bits with and without, also where gradients' memory is the velocities', and dropout draws."""
    x, y = rng.standard_normal((70, 6)).astype(np.float32), rng.integers(0, 3, 70)
    found = []
    for callbacks in ([], [clnn.GradientNorms(batch_size=32)], [clnn.GradientNorms(x[:9], y[:9])]):
        net = net_on(device, clnn.Dense(8, "relu"), clnn.Dropout(0.4), clnn.Dense(3))
        net.fit(
            x, y, loss="cross_entropy", optimizer=make(), epochs=6, batch_size=16, seed=5, callbacks=callbacks,
            record=record, progress=False,
        )  # fmt: skip
        found.append(weights(net))
        if net.optimizer.keep_gradients:
            found[-1] = np.append(found[-1], [p.grad.numpy().sum() for p in net.parameters()])
        for norms in callbacks:
            assert set(norms.history) == set(norms.weights) == {"dense_1", "dense_2"}
            assert all(len(values) == 7 and min(values) > 0 for values in norms.history.values())
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


def test_training_of_stateful_layers_is_not_disturbed(device, rng):
    """Their states are after a measurement as before it, of whatever batch: one of another size was a ShapeError."""
    x, y = rng.standard_normal((8, 3, 2)).astype(np.float32), rng.integers(0, 3, 8)
    found = []
    for callbacks in ([], *([clnn.GradientNorms(batch_size=size)] for size in (4, 3, 512))):
        net = net_on(device, clnn.SimpleRNN(5, stateful=True), clnn.Dense(3), input_shape=(3, 2))
        how = {"optimizer": clnn.SGD(0.1), "batch_size": 4, "shuffle": False, "progress": False}
        net.fit(x, y, loss="cross_entropy", epochs=4, callbacks=callbacks, **how)
        found.append(weights(net))
    assert all(np.array_equal(found[0], one) for one in found[1:])


@pytest.mark.parametrize("weighted", [False, True])
def test_norms_are_numpys(device, rng, weighted):
    """Of all samples together, whatever the batch; a learning rate of 0 keeps the weights where they are."""
    x, t = rng.standard_normal((53, 6)).astype(np.float32), rng.standard_normal((53, 2)).astype(np.float32)
    weight = rng.random(53).astype(np.float32) if weighted else None
    net = net_on(device, clnn.Dense(5, "sigmoid"), clnn.Dense(2))
    norms = clnn.GradientNorms(batch_size=20)
    net.fit(
        x, t, loss="quadratic", optimizer=clnn.SGD(0.0), epochs=2, batch_size=10, callbacks=[norms], progress=False,
        sample_weight=weight,
    )  # fmt: skip
    w1, b1, w2, b2 = (p.numpy().astype(np.float64) for p in net.parameters())
    h = REFERENCES["sigmoid"](x @ w1 + b1)
    d2 = (h @ w2 + b2 - t) * (1 if weight is None else weight[:, None]) / 53
    d1 = (d2 @ w2.T) * h * (1 - h)
    for found, expected in ((norms.history, (d1.sum(0), d2.sum(0))), (norms.weights, (x.T @ d1, h.T @ d2))):
        for name, gradient in zip(("dense_1", "dense_2"), expected):
            assert found[name] == pytest.approx([np.linalg.norm(gradient)] * 3, rel=1e-4)


def test_other_samples_frozen_layers_and_layers_without_a_name(device, rng):
    class Both(clnn.Model):
        def __init__(self):
            self.left, self.right, self.more = clnn.Dense(4), clnn.Dense(4, bias=False), [clnn.Dense(1)]
            self.unused = clnn.Dense(3)

        def build(self, a, b):
            self.shift = self.parameter((4,), init="normal")
            self.unused.ensure_built(a)

        def forward(self, a, b):
            return self.more[0](clnn.tanh(self.left(a) + self.right(b) + self.shift))

    a, b = rng.standard_normal((30, 3)).astype(np.float32), rng.standard_normal((30, 5)).astype(np.float32)
    t = rng.standard_normal((30, 1)).astype(np.float32)
    norms = clnn.GradientNorms((a[:7], b[:7]), t[:7])
    with clnn.use(device):
        net = Both()
        net.predict((a, b))
        net.more[0].trainable = False
        net.fit((a, b), t, loss=lambda y, t: ((y - t) ** 2).mean(), optimizer="adam", callbacks=[norms], epochs=2)
    assert set(norms.history) == {"both", "left", "unused"} and set(norms.weights) == {"left", "right", "unused"}
    assert norms.history["unused"] == [0, 0, 0] and min(norms.history["both"]) > 0


def test_wrong_arguments_of_gradient_norms():
    with pytest.raises(clnn.ConfigurationError, match="x and y, or neither"):
        clnn.GradientNorms(np.zeros((3, 2)))
    with pytest.raises(clnn.ShapeError, match=r"\[3\] samples and y has 4"):
        clnn.GradientNorms(np.zeros((3, 2)), np.zeros(4))
    with pytest.raises(clnn.ConfigurationError, match="batch_size.*0"):
        clnn.GradientNorms(batch_size=0)
