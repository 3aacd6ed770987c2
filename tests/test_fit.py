"""fit, evaluate and predict: what they compute, what they report, and what bad input gets."""

import gc
import warnings

import numpy as np
import pytest

import clnn
from clnn.gemm import clblast_problem
from clnn.runtime.device import int_vector
from clnn.train.feed import Batch, Feed


@pytest.fixture
def blobs(rng):
    """Three well separated classes in eight dimensions."""
    centres = 4 * rng.standard_normal((3, 8))
    y = rng.integers(0, 3, 203)
    return (0.2 * (centres[y] + rng.standard_normal((203, 8)))).astype(np.float32), y.astype(np.int32)


def net_on(device, *layers, input_shape=8, seed=0, **options):
    with clnn.use(device):
        return clnn.Sequential(
            list(layers) or [clnn.Dense(16, "tanh"), clnn.Dense(3)], input_shape=input_shape, seed=seed, **options
        )


def weights(net):
    return np.concatenate([p.numpy().ravel() for p in net.parameters()])


def test_fit_learns_and_reports_what_evaluate_finds(device, blobs):
    x, y = blobs
    net = net_on(device)
    history = net.fit(
        x,
        y,
        loss="cross_entropy",
        optimizer=clnn.SGD(0.1, momentum=0.9),
        epochs=8,
        batch_size=10,
        seed=1,
        validation=(x, y),
    )
    assert set(history.history) == {"loss", "accuracy", "val_loss", "val_accuracy", "lr", "seconds"}
    assert all(len(values) == 8 for values in history.history.values())
    assert history["val_accuracy"][-1] > 0.95 and history["loss"][-1] < history["loss"][0]
    found = net.evaluate(x, y)
    assert found["loss"] == pytest.approx(history["val_loss"][-1], rel=1e-5)
    assert found["accuracy"] == np.mean(net.predict_classes(x) == y)
    probabilities = net.predict_proba(x)
    assert np.allclose(probabilities.sum(1), 1, atol=1e-5)
    picked = -np.log(probabilities[np.arange(len(y)), y].astype(np.float64))
    assert found["loss"] == pytest.approx(picked.mean(), rel=1e-4)


@pytest.mark.platform("losses", "state")
@pytest.mark.parametrize("record", [True, False])
def test_an_epoch_is_numpys_epoch(device, rng, record):
    """Losses and weights of two epochs with a remainder batch against float64 NumPy."""
    x, y = rng.random((53, 6), dtype=np.float32), rng.integers(0, 4, 53).astype(np.int32)
    net = net_on(device, clnn.Dense(7, "sigmoid"), clnn.Dense(4, "sigmoid"), input_shape=6)
    w1, b1, w2, b2 = (p.numpy().astype(np.float64) for p in net.parameters())
    history = net.fit(x, y, loss="quadratic", optimizer=clnn.SGD(0.5), epochs=2, batch_size=10, seed=7, record=record)

    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    losses = []
    for epoch in range(2):
        order, total = np.random.default_rng((7, epoch)).permutation(53), 0.0
        for start in range(0, 53, 10):
            rows = order[start : start + 10]
            a, t = x[rows].astype(np.float64), np.eye(4)[y[rows]]
            h = sigmoid(a @ w1 + b1)
            o = sigmoid(h @ w2 + b2)
            total += ((o - t) ** 2).sum() / 2
            d2 = (o - t) * o * (1 - o) / len(rows)
            d1 = (d2 @ w2.T) * h * (1 - h)
            w2 -= 0.5 * h.T @ d2
            b2 -= 0.5 * d2.sum(0)
            w1 -= 0.5 * a.T @ d1
            b1 -= 0.5 * d1.sum(0)
        losses.append(total / 53)
    assert history["loss"] == pytest.approx(losses, rel=1e-5)
    for p, expected in zip(net.parameters(), (w1, b1, w2, b2)):
        assert np.allclose(p.numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("optimizer", [clnn.SGD, clnn.Adam])
def test_every_sample_is_seen_once_an_epoch_in_another_order(device, optimizer):
    """Sums of the samples that steps saw, by a model that learns nothing (lr 0)."""
    n = 47
    x = np.eye(n, dtype=np.float32)
    seen = []

    class Spy(clnn.Layer):
        def build(self, shape):
            self.w = self.parameter(shape, init="ones")

        def forward(self, x):
            if x.device.recorder is None and x.shape[0] != 1:
                seen.append(x.numpy().argmax(1))
            return (x * self.w).sum(axis=1, keepdims=True)

    with clnn.use(device):
        net = clnn.Sequential([Spy()], input_shape=n)
    net.fit(x, np.zeros(n, np.float32), loss="mse", optimizer=optimizer(0.0), epochs=2, batch_size=10, record=False)
    first, second = np.concatenate(seen[:5]), np.concatenate(seen[5:10])
    assert sorted(first) == sorted(second) == list(range(n))
    assert not np.array_equal(first, second)
    assert set(np.diff(np.sort(first[:10]))) != {1}  # samples are shuffled, not batches


def test_the_same_seed_gives_the_same_bits_recorded_or_not(device, blobs):
    x, y = blobs
    found = []
    for record in (True, False, True):
        net = net_on(device, clnn.Dense(16, "relu"), clnn.Dropout(0.3), clnn.Dense(3))
        net.fit(x, y, loss="cross_entropy", optimizer=clnn.SGD(0.1), epochs=3, batch_size=32, seed=3, record=record)
        found.append(weights(net))
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


@pytest.mark.parametrize(
    "make", [lambda: clnn.SGD(0.1), lambda: clnn.SGD(0.1, 0.9, weight_decay=1e-3), lambda: clnn.Adam(0.01)]
)
def test_saving_in_the_middle_resumes_exactly(device, blobs, tmp_path, make):
    x, y = blobs
    layers = lambda: [clnn.Dense(16, "relu"), clnn.Dropout(0.3), clnn.Dense(3)]  # noqa: E731
    options = {"loss": "cross_entropy", "batch_size": 20, "seed": 3}
    whole = net_on(device, *layers())
    whole.fit(x, y, optimizer=make(), epochs=4, **options)
    half = net_on(device, *layers())
    half.fit(x, y, optimizer=make(), epochs=2, **options)
    half.save(tmp_path / "half.safetensors")
    with clnn.use(device):
        clnn.load(tmp_path / "half.safetensors").save(tmp_path / "copy.safetensors")  # which loses nothing
        again = clnn.load(tmp_path / "copy.safetensors")
    again.fit(x, y, optimizer=again.optimizer, epochs=2, **options)
    assert np.array_equal(weights(whole), weights(again))


def test_the_data_leave_the_device_with_fit(device, rng):
    """Whether Python's collector of cycles runs or not."""
    x = rng.standard_normal((1000, 500)).astype(np.float32)
    net = net_on(device, clnn.Dense(3), input_shape=500)
    before = device.memory_in_use
    gc.disable()
    try:
        net.fit(x, np.zeros(1000, np.int32), loss="cross_entropy", optimizer=clnn.Adam(), epochs=2, batch_size=50)
        assert device.memory_in_use - before < x.nbytes / 4
    finally:
        gc.enable()


def test_a_second_fit_with_the_same_optimizer_goes_on_and_a_new_one_starts_afresh(device, blobs):
    x, y = blobs
    options = {"loss": "cross_entropy", "batch_size": 20, "seed": 3}
    found = []
    for epochs in ([4], [2, 2]):
        net, optimizer = net_on(device), clnn.SGD(0.1, momentum=0.9)
        for count in epochs:
            net.fit(x, y, optimizer=optimizer, epochs=count, **options)
        found.append(weights(net))
    assert np.array_equal(*found)


def test_data_beyond_the_budget_is_streamed(device, blobs, monkeypatch):
    x, y = blobs
    found = []
    for capacity in (None, 40):
        if capacity:
            monkeypatch.setattr("clnn.train.loop._capacity", lambda *args: (False, 40))
        net = net_on(device)
        history = net.fit(x, y, loss="cross_entropy", optimizer=clnn.SGD(0.1), epochs=2, batch_size=20, seed=3)
        found.append((weights(net), history["loss"], history["accuracy"]))
    assert np.array_equal(found[0][0], found[1][0]) and found[0][1:] == found[1][1:]


def test_the_budget_decides_what_is_streamed(device, blobs, monkeypatch):
    x, y = blobs
    from clnn.train.inputs import Samples
    from clnn.train.loop import _capacity

    samples = Samples([x], [y], [None])
    assert _capacity(device, 203, 20, samples) == (True, 203)
    monkeypatch.setattr(device.memory, "limit", device.memory.in_use + 8 * 100 * (8 * 4 + 4 + 4))
    resident, rows = _capacity(device, 20300, 20, samples)
    assert not resident and rows == 100


def test_what_is_measured_goes_through_in_the_memory_that_is_left(device, blobs, monkeypatch):
    """All samples at once do not: a few batches do, of the size that was asked for."""
    x, y = (np.concatenate([one] * 5) for one in blobs)
    net, other = net_on(device), net_on(device)
    outputs, measured = net.predict(x, batch_size=64), net.evaluate(x, y, loss="cross_entropy", batch_size=64)
    gc.collect()
    monkeypatch.setattr(device.memory, "limit", device.memory.in_use + 20_000)
    assert np.array_equal(other.predict(x, batch_size=64), outputs)
    assert other.evaluate(x, y, loss="cross_entropy", batch_size=64) == pytest.approx(measured, rel=1e-6)
    assert [one.batch for one in other._evaluations.values()] == [64, 64]


def test_sample_and_class_weights_multiply_losses(device, blobs):
    x, y = blobs
    weight = np.linspace(0, 2, len(y)).astype(np.float32)
    net = net_on(device)
    logits = net.predict(x).astype(np.float64)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]
    history = net.fit(
        x, y, loss="cross_entropy", optimizer=clnn.SGD(0.0), epochs=1, batch_size=20, sample_weight=weight
    )
    assert history["loss"][0] == pytest.approx((losses * weight).mean(), rel=1e-5)
    history = net.fit(
        x, y, loss="cross_entropy", optimizer=clnn.SGD(0.0), epochs=1, batch_size=20, class_weight={0: 3.0, 2: 0.5}
    )
    assert history["loss"][0] == pytest.approx((losses * np.array([3.0, 1.0, 0.5])[y]).mean(), rel=1e-5)
    assert net.evaluate(x, y, sample_weight=weight)["loss"] == pytest.approx((losses * weight).mean(), rel=1e-5)


@pytest.mark.platform("metrics")
def test_metrics_and_one_hot_targets(device, blobs):
    x, y = blobs
    net = net_on(device)
    hot = np.eye(3, dtype=np.float32)[y]
    history = net.fit(
        x,
        hot,
        loss="quadratic",
        optimizer=clnn.SGD(0.0),
        epochs=1,
        batch_size=20,
        metrics=["accuracy", "top_2"],
        validation=(x, hot),
    )
    z = net.predict(x)
    top2 = np.mean([label in np.argsort(-row)[:2] for row, label in zip(z, y)])
    assert history["accuracy"][0] == pytest.approx(np.mean(z.argmax(1) == y))
    assert history["top_2"][0] == pytest.approx(top2) == history["val_top_2"][0]


def test_validation_split_takes_the_end(device, blobs):
    x, y = blobs
    net = net_on(device)
    history = net.fit(
        x, y, loss="cross_entropy", optimizer=clnn.SGD(0.0), epochs=1, batch_size=20, validation_split=0.25
    )
    kept = len(y) - round(len(y) * 0.25)
    assert history["val_loss"][0] == pytest.approx(net.evaluate(x[kept:], y[kept:])["loss"], rel=1e-6)
    assert history["loss"][0] == pytest.approx(net.evaluate(x[:kept], y[:kept])["loss"], rel=1e-5)


@pytest.mark.platform("data")
def test_a_model_of_several_inputs_and_a_loss_of_ones_own(device, rng):
    class Both(clnn.Model):
        def __init__(self):
            self.left, self.right = clnn.Dense(4), clnn.Dense(4)
            self.out = clnn.Dense(1)

        def forward(self, a, b):
            return self.out(clnn.tanh(self.left(a) + self.right(b)))

    def huber(y, t):
        e = abs(y - t)
        return clnn.minimum(0.5 * e**2, e - 0.5).mean()

    a, b = rng.standard_normal((90, 3)).astype(np.float32), rng.standard_normal((90, 5)).astype(np.float32)
    t = (a[:, 0] - b[:, 1]).astype(np.float32)
    with clnn.use(device):
        net = Both()
        history = net.fit((a, b), t[:, None], loss=huber, optimizer=clnn.Adam(0.02), epochs=20, batch_size=16)
    assert history["loss"][-1] < 0.2 * history["loss"][0]
    assert net.predict((a, b)).shape == (90, 1)


def test_predictions_of_one_batch_and_of_several_in_any_order(device, rng):
    """One batch is read where the step left it; of several each is copied. Neither may see the other's rows or results."""
    net = net_on(device, clnn.Dense(5, "tanh"), clnn.Dense(3))
    x = rng.random((40, 8), dtype=np.float32)
    want = np.concatenate([net(clnn.tensor(x[i : i + 1], device=device)).numpy() for i in range(40)])
    found = []
    for start, rows in [(0, 3), (1, 20), (2, 3), (5, 1), (0, 40), (7, 3), (3, 17), (9, 8), (1, 1), (4, 20), (6, 3)] * 2:
        found.append((start, net.predict(x[start : start + rows], batch_size=8)))
    for start, y in found:
        assert np.allclose(y, want[start : start + len(y)], rtol=1e-5, atol=1e-6)


def test_frozen_layers_do_not_move(device, blobs):
    x, y = blobs
    net = net_on(device)
    net.layers[0].trainable = False
    before = [p.numpy() for p in net.layers[0].parameters()]
    for optimizer in (clnn.SGD(0.1), clnn.SGD(0.1, 0.9), clnn.Adam(0.1)):
        net.fit(x, y, loss="cross_entropy", optimizer=optimizer, epochs=1, batch_size=20)
    assert all(np.array_equal(p.numpy(), q) for p, q in zip(net.layers[0].parameters(), before))
    assert "frozen" in net.summary()


def test_the_remainder_batch_and_evaluation_compile_nothing_new(device, blobs):
    x, y = blobs
    net = net_on(device)
    net.fit(x[:40], y[:40], loss="cross_entropy", optimizer=clnn.SGD(0.1), epochs=1, batch_size=20)
    net.evaluate(x[:20], y[:20])
    built = set(device.programs._programs)
    net.fit(x[:47], y[:47], loss="cross_entropy", optimizer=clnn.SGD(0.1), epochs=2, batch_size=20, validation=(x, y))
    assert set(device.programs._programs) == built


@pytest.mark.slow
def test_float64_where_the_device_has_it(device, blobs):
    x, y = blobs
    if not device.has_fp64:
        with pytest.raises(clnn.DeviceError, match="float64"):
            net_on(device, dtype="float64")
        return
    net = net_on(device, dtype="float64")
    net.fit(x, y, loss="cross_entropy", optimizer=clnn.SGD(0.1), epochs=3, batch_size=20, seed=1)
    assert net.predict(x).dtype == np.float64 and net.evaluate(x, y)["accuracy"] > 0.9


def test_callbacks_and_stopping(device, blobs):
    x, y = blobs
    calls = []

    class Notes(clnn.Callback):
        def on_train_begin(self, model):
            calls.append("begin")

        def on_epoch_end(self, model, epoch, logs):
            calls.append((epoch, sorted(logs)))
            model.stop_training = epoch == 1

        def on_train_end(self, model):
            calls.append("end")

    net = net_on(device)
    history = net.fit(x, y, loss="cross_entropy", optimizer="adam", epochs=5, batch_size=50, callbacks=[Notes()])
    assert [c if isinstance(c, str) else c[0] for c in calls] == ["begin", 0, 1, "end"]
    assert len(history["loss"]) == 2


def test_no_warnings_in_an_ordinary_fit(device, blobs):
    x, y = blobs
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net_on(device).fit(x, y, loss="cross_entropy", optimizer=clnn.SGD(0.1), epochs=4, batch_size=20)


# -- what bad input gets ---------------------------------------------------------------------------------------------------
def fit(net, x, y, **options):
    return net.fit(
        x, y, **{"loss": "cross_entropy", "optimizer": clnn.SGD(0.1), "epochs": 1, "batch_size": 20, **options}
    )


def test_nan_in_the_data_is_named_and_nothing_moves(device, blobs):
    x, y = blobs
    net = net_on(device)
    before = weights(net)
    bad = x.copy()
    bad[17, 3] = np.nan
    with pytest.raises(clnn.DataError, match=r"17, 3"):
        fit(net, bad, y)
    assert np.array_equal(weights(net), before)


def test_labels_out_of_range_are_named(device, blobs):
    x, y = blobs
    bad = y.copy()
    bad[5] = 3
    with pytest.raises(clnn.DataError, match=r"y\[5\] is 3.*0 to 2"):
        fit(net_on(device), x, bad)
    bad[5] = -1
    with pytest.raises(clnn.DataError, match="-1"):
        net_on(device).evaluate(x, bad, loss="cross_entropy")


def test_wrong_shapes_give_both_and_the_layers_name(device, blobs):
    x, y = blobs
    net = net_on(device)
    with pytest.raises(clnn.ShapeError, match=r"dense_1.*7.*8"):
        net.predict(x[:, :7])
    with pytest.raises(clnn.ShapeError, match=r"202.*203|203.*202"):
        fit(net, x, y[:-1])
    with pytest.raises(clnn.ShapeError, match=r"\(203, 2\).*\(203, 3\)"):
        fit(net, x, np.zeros((203, 2), np.float32))


def test_a_loss_that_runs_away_says_at_which_epoch_and_step(device, rng):
    x, y = rng.standard_normal((40, 8)).astype(np.float32), rng.standard_normal(40).astype(np.float32)
    net = net_on(device, clnn.Dense(1))
    with pytest.raises(clnn.Diverged, match=r"step \d+ of 4 in epoch \d+.*last finite loss|finite before"):
        fit(net, x, y, loss="mse", optimizer=clnn.SGD(1e4), epochs=50, batch_size=10)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "cross_entrop"}, "known ones are"),
        ({"optimizer": "adamm"}, "known ones are"),
        ({"epochs": -1}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"metrics": ["acc"]}, "accuracy"),
        ({"validation_split": 1.0}, "validation_split"),
        ({"class_weight": {"a": 1.0}}, "class_weight"),
        ({"sample_weight": np.ones(3)}, r"\(3,\)"),
    ],
)
def test_options_that_make_no_sense(device, blobs, options, words):
    with pytest.raises(clnn.ClnnError, match=words):
        fit(net_on(device), *blobs, **options)


def test_losses_and_last_layers_that_do_not_go_together(device, blobs):
    x, y = blobs
    with pytest.raises(clnn.ConfigurationError, match="binary_cross_entropy"):
        fit(net_on(device, clnn.Dense(3, "sigmoid")), x, y)
    with pytest.raises(clnn.ConfigurationError, match="tanh"):
        fit(net_on(device, clnn.Dense(3, "tanh")), x, y, loss="binary_cross_entropy")


def test_unknown_activation_lists_the_known():
    with pytest.raises(clnn.ConfigurationError, match=r"reluu.*relu"):
        clnn.Dense(3, "reluu")


def test_no_samples(device):
    with pytest.raises(clnn.DataError, match="no samples"):
        fit(net_on(device), np.zeros((0, 8), np.float32), np.zeros(0, np.int32))
    assert net_on(device).predict(np.zeros((0, 8), np.float32)).shape == (0, 3)
    before = weights(net_on(device, clnn.Dense(2)))
    for x, y in ((np.empty((0, 8)), np.empty(0, int)), ([], [])):
        net = net_on(device, clnn.Dense(2))
        with pytest.raises(clnn.DataError, match=r"^validation x has no samples: its shape is \(0"):
            fit(net, np.ones((4, 8)), np.zeros(4, int), validation=(x, y))
        assert np.array_equal(weights(net), before)


class _Product(clnn.Layer):
    """y = x w, by the operator."""

    def build(self, *shapes):
        self.w = self.parameter((shapes[0][-1], 5))

    def forward(self, x):
        return x @ self.w


class _Transposed(clnn.Layer):
    """A product with the mini-batch on its right: y = w x for each sample."""

    def build(self, *shapes):
        self.w = self.parameter((5, shapes[0][-2]))

    def forward(self, x):
        w = self.w.broadcast_to((*x.shape[:-2], *self.w.shape))
        return w @ x


_WAYS_TO_READ_A_BATCH = {
    "dense": lambda: [clnn.Dense(5, "tanh")],
    "after dropout": lambda: [clnn.Dropout(0.2), clnn.Dense(5)],
    "residual": lambda: [clnn.Residual([clnn.Dense(6, "relu")])],
    "shortcut": lambda: [clnn.Residual([clnn.Dense(5, "relu")], shortcut=clnn.Dense(5))],
    "operator": lambda: [_Product()],
    "on the right": lambda: [_Transposed()],
    "nested": lambda: [clnn.Sequential([clnn.Dropout(0.1), clnn.Dense(5, "sigmoid")])],
}


@pytest.mark.parametrize("engine", ["tile", "clblast"])
@pytest.mark.parametrize("inner", [(6,), (3, 6), (2, 3, 6)], ids=["2 axes", "3 axes", "4 axes"])
@pytest.mark.parametrize("way", _WAYS_TO_READ_A_BATCH)
def test_a_batch_of_any_axes_is_the_rows_that_it_should_be(device, rng, monkeypatch, way, inner, engine):
    """fit, evaluate and predict read mini-batches out of the data set: as if each had been given by itself."""
    if engine == "clblast" and clblast_problem(device):
        pytest.skip("no CLBlast here")
    if way == "on the right" and len(inner) == 1:
        pytest.skip("a product of matrices")
    monkeypatch.setenv("CLNN_GEMM", engine)
    n, batch = 43, 10
    x = rng.standard_normal((n, *inner)).astype(np.float32)
    nets = [net_on(device, *_WAYS_TO_READ_A_BATCH[way](), input_shape=inner, seed=3) for _ in range(2)]
    shape = nets[0].predict(x[:1]).shape[1:]
    y = rng.standard_normal((n, *shape)).astype(np.float32)
    fitted, twin = nets

    def by_hand(rows):
        with clnn.no_grad():
            return twin(clnn.tensor(x[rows], device=device)).numpy()

    def check(what):
        expected = by_hand(slice(None))
        for size in (batch, 7, n):
            assert np.allclose(fitted.predict(x, batch_size=size), expected, atol=1e-5), f"predict {what}"
            found = fitted.evaluate(x, y, loss="mse", batch_size=size)["loss"]
            assert found == pytest.approx(np.mean((expected.astype(np.float64) - y) ** 2), rel=1e-4), f"loss {what}"

    check("before fit")
    epochs = 3  # eager, recorded and replayed steps of whole and of remainder batches
    history = fitted.fit(
        x,
        y,
        loss="mse",
        optimizer=clnn.SGD(0.05),
        epochs=epochs,
        batch_size=batch,
        seed=11,
        validation=(x[:23], y[:23]),
    )
    optimizer = clnn.SGD(0.05)
    clnn.random.generator(device).reseed(11)
    for epoch in range(epochs):
        order = np.random.default_rng((11, epoch)).permutation(n)
        for start in range(0, n, batch):
            rows = order[start : start + batch]
            loss = clnn.losses.mse(twin(clnn.tensor(x[rows], device=device)), clnn.tensor(y[rows], device=device))
            loss.backward()
            optimizer.step(twin.parameters())
        expected = np.mean((by_hand(slice(0, 23)).astype(np.float64) - y[:23]) ** 2)
        assert history["val_loss"][epoch] == pytest.approx(expected, rel=1e-4)
    assert np.allclose(weights(fitted), weights(twin), atol=1e-5)  # dropout draws the same numbers
    check("after fit")


def test_a_step_is_recorded_when_all_its_rows_have_a_loss(device, rng, monkeypatch):
    """On GPUs a work-item a row: the first of them ends the step, after the others."""
    monkeypatch.setattr(device, "kind", "gpu")
    monkeypatch.setenv("CLNN_GEMM", "tile")
    rows = min(100, device.group_width)
    x, y = rng.standard_normal((2 * rows, 8)).astype(np.float32), rng.integers(0, 3, 2 * rows)
    net = clnn.Sequential([clnn.Dense(3)], input_shape=8)
    logits = x.astype(np.float64) @ net.layers[0].w.numpy() + net.layers[0].b.numpy()
    history = net.fit(x, y, loss="cross_entropy", optimizer=clnn.SGD(0.0), epochs=5, batch_size=rows, progress=False)
    expected = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]
    np.testing.assert_allclose(history["loss"], expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(history["accuracy"], (logits.argmax(1) == y).mean(), rtol=1e-6)


@pytest.mark.parametrize("make", [lambda: clnn.Dropout(0.5), lambda: clnn.Flatten(), lambda: clnn.Activation("linear")])
def test_a_model_that_hands_its_input_on(device, rng, make):
    """What it is given at each call, not what it was given when it was recorded."""
    net = net_on(device, make(), input_shape=4)
    for _ in range(6):
        for rows in (3, 11):
            x = rng.standard_normal((rows, 4)).astype(np.float32)
            assert np.array_equal(net.predict(x, batch_size=4), x)
            assert net.evaluate(x, x + 1, loss="mse", batch_size=4)["loss"] == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_long_rows_are_gathered_by_several_work_items(rng, device, kind):
    """Of rows of 20 KB a CPU's work-item copies three, so a mini-batch of seven has several; tokens too."""
    feed = Feed(device, 9, [x := rng.integers(0, 99, (9, 5_001)).astype(kind)], (), (), ordered=True)
    feed.load([x], (), ())
    order = rng.permutation(9)
    feed.rewind(order)
    (batch,), _, _ = feed.batch(7)
    np.testing.assert_array_equal(batch.numpy(), x[order[:7]])


@pytest.mark.parametrize("own", [[3.0], [1.0, 2.0, 3.0]])
def test_what_a_loss_of_ones_own_calls_weights_is_its_own(device, rng, own):
    class Mine:
        weights = own

        def __call__(self, y, t):
            return ((y - t) ** 2).mean()

    x, y = rng.standard_normal((10, 8)).astype(np.float32), rng.standard_normal((10, 2)).astype(np.float32)
    net = net_on(device, clnn.Dense(2))
    expected = ((net.predict(x) - y) ** 2).mean()
    assert net.evaluate(x, y, loss=Mine())["loss"] == pytest.approx(expected, rel=1e-5)
    history = net.fit(x, y, loss=Mine(), optimizer=clnn.SGD(0.0), progress=False)
    assert history["loss"] == pytest.approx([expected], rel=1e-5)


@pytest.mark.parametrize("width", [1, 4, 32])
@pytest.mark.parametrize("rows", [1, 3, pytest.param(37, marks=pytest.mark.oclgrind), 257, 20_000])
def test_a_group_adds_up_the_losses_of_a_step(device, rng, rows, width):
    """By as many work-items as may be: one of a GPU would take milliseconds for a batch of tokens."""
    if device.max_group < width or (device.most_turns and 2 * rows > device.most_turns * width):
        pytest.skip("more than a group or a loop takes there")
    losses, hits = rng.random(rows, np.float32), rng.integers(0, 2, rows).astype(np.int32)
    kept, moved = np.array([max(1, rows - 1), rows - 1], np.float32), clnn.tensor(np.array([4, 1, 0], np.int32))
    cells = [clnn.tensor(np.array([number], np.int32)) for number in (7, 9)]
    defines = {} if width == 1 else {"WIDTH": width}
    results = clnn.tensor(np.full(9, -1, np.float32))

    def launch(kernel, hits, kept, *args):
        blocks = [None if a is None else clnn.tensor(a).block for a in (losses, hits, kept)]
        device.launch(
            "state", kernel, (width,), 5, rows, *blocks, results.block, moved.block, *args, local=(width,), **defines
        )
        return results.numpy()

    mean = losses.astype(np.float64).mean()
    for right, counting in ((hits, kept), (hits, None), (None, None)):
        by, counted = kept if counting is not None else (rows, rows if right is not None else 5)
        expected = [mean * rows / by, 0 if right is None else right.sum(), counted]
        found = launch("end_part", right, counting)
        np.testing.assert_allclose(found[3:6], expected, rtol=1e-6)
        assert (found[[0, 1, 2, 6, 7, 8]] == -1).all() and moved.numpy().tolist() == [4, 1, 0]
    launch("end_step", hits, None, cells[0].block, cells[1].block, int_vector([2, 3]))
    np.testing.assert_allclose(results.numpy()[3:6], [mean, hits.sum(), rows], rtol=1e-6)
    assert moved.numpy().tolist() == [9, 2, 4] and [int(c) for c in cells] == [9, 12]


# -- class numbers of several axes, and those that are ignored ---------------------------------------------------------
@pytest.mark.parametrize("weights_of", [None, "samples", "tokens"])
@pytest.mark.parametrize("ignore", [None, -1, 2])
@pytest.mark.parametrize("record", [True, False])
def test_an_epoch_of_tokens_is_numpys_epoch(device, rng, record, ignore, weights_of):
    """Outputs (n, 3, 4) with class numbers (n, 3): a remainder batch, and one of nothing that counts."""
    x, y = rng.standard_normal((37, 3, 5)).astype(np.float32), rng.integers(0, 4, (37, 3))
    if ignore is not None:
        y[rng.random((37, 3)) < 0.3] = ignore
        y[10:20] = ignore
    w = {None: None, "samples": rng.random(37), "tokens": rng.random((37, 3))}[weights_of]
    net = net_on(device, clnn.Dense(4), input_shape=(3, 5))
    v, b = (p.numpy().astype(np.float64) for p in net.parameters())
    loss = clnn.losses.CrossEntropy(ignore_index=ignore)
    history = net.fit(x, y, loss=loss, optimizer=clnn.SGD(0.5), epochs=3, batch_size=10, shuffle=False, record=record,
                      sample_weight=w, validation=(x, y) if w is None else (x, y, w), progress=False)  # fmt: skip

    def measured(rows):
        z = x[rows] @ v + b
        p = np.exp(z - z.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        kept = np.ones(y[rows].shape, bool) if ignore is None else y[rows] != ignore
        each = 1.0 if w is None else w[rows] if w.ndim == 2 else w[rows][:, None]
        right = np.take_along_axis(p, np.where(kept, y[rows], 0)[..., None], -1)[..., 0]
        dz = (p - np.eye(4)[np.where(kept, y[rows], 0)]) * (kept * each)[..., None] / max(1, kept.sum())
        hits = ((z.argmax(-1) == y[rows]) & kept).sum()
        return (-np.log(right) * each * kept).sum(), hits, kept.sum(), dz

    for epoch in range(3):
        total, hits, count = 0.0, 0, 0
        for start in range(0, 37, 10):
            rows = slice(start, min(37, start + 10))
            lost, right, kept, dz = measured(rows)
            total, hits, count = total + lost, hits + right, count + kept
            v -= 0.5 * np.einsum("nti,nto->io", x[rows], dz)
            b -= 0.5 * dz.sum((0, 1))
        lost, right, kept, _ = measured(slice(None))
        found = {name: values[epoch] for name, values in history.history.items()}
        assert found["loss"] == pytest.approx(total / count, rel=1e-4)
        assert found["accuracy"] == pytest.approx(hits / count) and found["val_accuracy"] == pytest.approx(right / kept)
        assert found["val_loss"] == pytest.approx(lost / kept, rel=1e-4)
    np.testing.assert_allclose(net.parameters()[0].numpy(), v, rtol=1e-4, atol=1e-5)
    for batch in (7, 512):  # the mean is that over all targets, however they are cut up
        found = net.evaluate(x, y, sample_weight=w, batch_size=batch)
        assert found["loss"] == pytest.approx(lost / kept, rel=1e-4) and found["accuracy"] == pytest.approx(
            right / kept
        )


def test_targets_of_tokens_in_other_forms(device, rng):
    """Distributions, class weights and a metric by token; and what does not fit."""
    x, y = rng.standard_normal((8, 3, 5)).astype(np.float32), rng.integers(0, 4, (8, 3))
    net, options = net_on(device, clnn.Dense(4), input_shape=(3, 5)), {"optimizer": clnn.SGD(0.0), "progress": False}
    of_class = {0: 2.0, 3: 0.5}
    z = net.predict(x).astype(np.float64)
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    each = -np.take_along_axis(log_p, y[..., None], -1)[..., 0]
    weighed = each * np.array([2.0, 1, 1, 0.5])[y]
    for given in (y, np.eye(4)[y]):
        assert net.evaluate(x, given, loss="cross_entropy")["loss"] == pytest.approx(each.mean(), rel=1e-5)
        found = net.fit(x, given, loss="cross_entropy", class_weight=of_class, sample_weight=np.ones(8), **options)
        assert found["loss"][0] == pytest.approx(weighed.mean(), rel=1e-5)
    ignoring = clnn.losses.CrossEntropy(ignore_index=3)
    found = net.fit(x, y, loss=ignoring, class_weight=of_class, **options)
    assert found["loss"][0] == pytest.approx(weighed[y != 3].mean(), rel=1e-5)
    found = net.evaluate(x, y, loss="cross_entropy", metrics=["accuracy", "top_2"])
    assert found["accuracy"] == pytest.approx(np.mean(z.argmax(-1) == y))
    assert found["top_2"] == pytest.approx(np.mean((np.argsort(-z, -1)[..., :2] == y[..., None]).any(-1)))
    for arguments, says in (
        ({"loss": "cross_entropy", "y": y[:, :2]}, "do not fit outputs|without the last axis"),
        ({"loss": "mse", "y": y}, "class numbers of shape"),
        ({"loss": "quadratic", "y": y}, r"they need the shape \(n,\)"),
        ({"loss": clnn.losses.CrossEntropy(reduction="sum"), "y": y}, "reduction='sum': leave that out"),
        ({"loss": ignoring, "y": y, "metrics": ["top_2"]}, "loss ignores those of class 3: the accuracy of the others"),
        ({"loss": ignoring, "y": np.eye(4)[y]}, "ignore_index=3 is a class number"),
        ({"loss": "cross_entropy", "y": y, "sample_weight": np.ones((8, 2))}, r"8 samples need \(8,\) or \(8, 3\)"),
        ({"loss": "quadratic", "y": np.eye(4)[y], "class_weight": {1: 2.0}}, "more than one class a sample"),
    ):
        with pytest.raises(clnn.ClnnError, match=says):
            net.fit(x, **options, **arguments)
    with pytest.raises(clnn.ConfigurationError, match="reduction='none'"):
        net.evaluate(x, y, loss=clnn.losses.CrossEntropy(reduction="none"))


def test_accuracy_is_said_of_clnns_losses_alone(device, blobs):
    """What a loss of one's own takes for right, nobody knows: an accuracy of 0 was reported."""
    x, y = blobs
    net = net_on(device)
    own = lambda z, t: clnn.losses.cross_entropy(z, t) * 1.0  # noqa: E731
    history = net.fit(x, y, loss=own, optimizer="sgd", progress=False)
    assert set(history.history) == {"loss", "lr", "seconds"} and set(net.evaluate(x, y)) == {"loss"}
    found = net.evaluate(x, y, metrics=["accuracy"])
    assert found["accuracy"] == pytest.approx(np.mean(net.predict_classes(x) == y))


def test_a_loss_and_its_ignored_class_come_back(device, rng, tmp_path):
    x, y = rng.standard_normal((8, 3, 5)).astype(np.float32), rng.integers(0, 4, (8, 3))
    net = net_on(device, clnn.Dense(4), input_shape=(3, 5))
    loss = clnn.losses.CrossEntropy(ignore_index=0)
    net.fit(
        x, y, loss=loss, optimizer="sgd", progress=False, callbacks=[norms := clnn.GradientNorms(x, y, batch_size=3)]
    )
    net.save(tmp_path / "net")
    with clnn.use(device):
        again = clnn.load(tmp_path / "net")
    assert again.loss.ignore_index == 0 and again.evaluate(x, y) == net.evaluate(x, y)
    net(x).reshape(-1, 4)
    whole = loss(net(x), y)
    whole.backward()
    length = np.linalg.norm(net.parameters()[0].grad.numpy())
    assert [*norms.weights.values()][0][-1] == pytest.approx(length, rel=1e-4)


@pytest.mark.parametrize("weight", [3.0, (1.0, 2.0, 0.5)])
def test_the_weight_of_a_yes_in_fit(device, rng, weight):
    """A number for each output lies on the device, once: the step is replayed, and follows when it is set anew."""
    x, y = rng.standard_normal((40, 8)).astype(np.float32), rng.integers(0, 2, (40, 3)).astype(np.float32)
    net, loss = net_on(device, clnn.Dense(3)), clnn.losses.BinaryCrossEntropy(weight)
    z = net.predict(x).astype(np.float64)
    for p in (weight, 2.0, (3.0, 1.0, 1.0)):
        loss.pos_weight = p
        want = (np.array(p) * y * np.logaddexp(0, -z) + (1 - y) * np.logaddexp(0, z)).sum(1).mean()
        for found in (net.fit(x, y, loss=loss, optimizer=clnn.SGD(0.0), epochs=2, batch_size=5, progress=False)["loss"][-1],
                      net.evaluate(x, y, loss=loss)["loss"]):  # fmt: skip
            assert found == pytest.approx(want, rel=1e-5)
    step = clnn.step(lambda z, y: loss(z, y))
    for i in range(6):
        loss.pos_weight = p = (1.0 + i // 4, 1.0, 3.0)
        want = (np.array(p) * y * np.logaddexp(0, -z) + (1 - y) * np.logaddexp(0, z)).sum(1).mean()
        assert float(step(z.astype(np.float32), y)) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("kind", ["sequential", "own", "graph"])
@pytest.mark.parametrize("record", [True, False])
def test_mini_batches_are_read_where_they_are(rng, device, monkeypatch, kind, record):
    """A product and a loss read the rows of a mini-batch in the data set: no launch copies them first."""

    class Own(clnn.Model):
        def __init__(self):
            self.first, self.last = clnn.Dense(6, "relu"), clnn.Dense(3)

        def forward(self, x):
            return self.last(self.first(x))

    def never(batch):
        raise AssertionError(f"a mini-batch of shape {batch.shape} is copied")

    x, y = rng.random((50, 4)).astype(np.float32), rng.integers(0, 3, 50)
    if kind == "graph":
        a = clnn.Input(4)
        net = clnn.Model(a, clnn.Dense(3)(clnn.Dense(6, "relu")(a)))
    else:
        net = Own() if kind == "own" else clnn.Sequential([clnn.Dense(6, "relu"), clnn.Dense(3)], input_shape=4)
    monkeypatch.setattr(Batch, "gathered", never)
    for loss, target in (("cross_entropy", y), ("mse", rng.random((50, 3)))):
        net.fit(x, target, loss=loss, optimizer=clnn.SGD(0.1), batch_size=16, epochs=3, record=record, progress=False)
        net.evaluate(x, target, loss=loss)
    net.predict(x)


@pytest.mark.parametrize("value", ["batch", "no", 2, 0.5])
def test_shuffle_is_a_truth_value(device, value):
    """Keras' "batch" shuffled samples, and so did "no"."""
    net = clnn.Sequential([clnn.Dense(3)], input_shape=4)
    how = {"loss": "cross_entropy", "optimizer": "sgd"}
    with pytest.raises(clnn.ConfigurationError, match=f"shuffle is True or False, and {value!r} was given"):
        net.fit(np.ones((4, 4)), np.zeros(4, int), shuffle=value, **how)
    with pytest.raises(clnn.ConfigurationError, match="shuffle is True or False"):
        clnn.data.Batches(np.ones((4, 4)), shuffle=value)
    for accepted in (None, 0, np.False_, np.True_, 1):
        net.fit(np.ones((4, 4)), np.zeros(4, int), shuffle=accepted, **how)


def test_a_monitor_where_a_truth_value_stands_is_an_error(tmp_path):
    """It was taken for True, and val_loss was monitored."""
    with pytest.raises(clnn.ConfigurationError, match="best_only is True or False, and 'val_accuracy' was given"):
        clnn.Checkpoint(tmp_path, best_only="val_accuracy")
    with pytest.raises(clnn.ConfigurationError, match="restore_best is True or False"):
        clnn.EarlyStopping(restore_best="val_accuracy")


@pytest.mark.parametrize(
    "argument, said",
    [
        ("num_workers", "clnn.data.Batches"), ("lr", "give it to the optimizer"),
    ],
)  # fmt: skip
def test_what_fit_takes_elsewhere_says_what_it_is_here(argument, said):
    with pytest.raises(clnn.ConfigurationError, match=f"fit takes no {argument}: .*{said}"):
        clnn.Sequential([clnn.Dense(3)], input_shape=4).fit(
            np.ones((4, 4)), np.zeros(4, int), loss="mse", optimizer="sgd", **{argument: 1}
        )


@pytest.mark.parametrize("wrong", [5, clnn.EarlyStopping, "early", [None], [clnn.EarlyStopping("loss"), None]])
def test_callbacks_that_are_none(device, wrong):
    net = clnn.Sequential([clnn.Dense(3)], input_shape=4)
    with pytest.raises(clnn.ConfigurationError, match="callbacks is a list of clnn.Callback objects, not "):
        net.fit(np.ones((4, 4)), np.zeros(4, int), loss="cross_entropy", optimizer="sgd", callbacks=wrong)


def test_a_world_is_what_init_gives(device):
    net = clnn.Sequential([clnn.Dense(3)], input_shape=4)
    with pytest.raises(
        clnn.ConfigurationError, match=r"world is what clnn.distributed.init\(\) gives, and 2 was given"
    ):
        net.fit(np.ones((4, 4)), np.zeros(4, int), loss="cross_entropy", optimizer="sgd", world=2)
