"""Training, evaluating and predicting on batches that come one by one: `Batches`, generators, PyTorch's DataLoader."""

import gc
import itertools
import threading
import time
import warnings

import numpy as np
import pytest

import clnn
from clnn.data import Batches
from clnn.train import stream

N = 70
X = np.random.default_rng(0).standard_normal((N, 6)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int32)
W = np.random.default_rng(1).uniform(0.5, 2, N).astype(np.float32)


def made(device):
    with clnn.use(device):
        return clnn.Sequential([clnn.Dense(8, "tanh"), clnn.Dropout(0.3), clnn.Dense(2)], input_shape=6, seed=0)


def fit(device, *data, epochs=4, **options):
    """A net, and the history of its fit."""
    net = options.pop("net", None) or made(device)
    given = {"loss": "cross_entropy", "optimizer": clnn.Adam(0.01), "seed": 3, "progress": False}
    return net, net.fit(*data, epochs=epochs, **given | options)


def same(a, b):
    """Whether two fits came to the same bits, and measured the same."""
    equal = all(np.array_equal(p.numpy(), q.numpy()) for p, q in zip(a[0].parameters(), b[0].parameters()))
    logs = [{name: values for name, values in h.history.items() if name != "seconds"} for _, h in (a, b)]
    return equal and logs[0] == logs[1]


def generated(epochs=4, size=32, seed=3, weights=None):
    """The batches that fit makes of the arrays itself."""
    for epoch in range(epochs):
        order = np.random.default_rng((seed, epoch)).permutation(N)
        for start in range(0, N, size):
            rows = order[start : start + size]
            yield (X[rows], Y[rows]) if weights is None else (X[rows], Y[rows], weights[rows])


class Again:
    """What can be gone through again, a pass for each epoch."""

    def __init__(self, length=3):
        self.length, self.epoch = length, -1

    def __len__(self):
        return self.length

    def __iter__(self):
        self.epoch += 1
        return iter([*generated()][3 * self.epoch : 3 * self.epoch + 3])


# -- the same weights as those arrays give ---------------------------------------------------------------------------------
SOURCES = {
    "batches": lambda: (Batches(X, Y, 32), {}),
    "batches, seed": lambda: (Batches(X, Y, 32, seed=3), {"seed": 3}),
    "batches, no thread": lambda: (Batches(X, Y, 32, workers=0), {}),
    "batches, 3 threads": lambda: (Batches(X, Y, 32, workers=3, transform=lambda x, y: (x, y)), {}),
    "generator": lambda: (generated(), {"steps_per_epoch": 3}),
    "an object": lambda: (Again(), {}),
    "an object without end": lambda: (Again(), {"steps_per_epoch": 3}),
    "a list": lambda: ([*generated(1)] * 4, {"steps_per_epoch": 3}),
    "lists": lambda: (([x.tolist(), y.tolist()] for x, y in generated()), {"steps_per_epoch": 3}),
    "float64": lambda: (((x.astype(float), y.astype(np.int64)) for x, y in generated()), {"steps_per_epoch": 3}),
}  # fmt: skip


@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize("source", SOURCES)
def test_batches_train_to_the_bits_of_arrays(device, source, record):
    batches, options = SOURCES[source]()
    if source == "a list":  # one order for all epochs
        order = np.random.default_rng((3, 0)).permutation(N)
        arrays = fit(device, X[order], Y[order], batch_size=32, shuffle=False, record=record)
    else:
        arrays = fit(device, X, Y, batch_size=32, record=record)
    assert same(arrays, fit(device, batches, record=record, **options))


def test_weights_come_with_batches(device):
    arrays = fit(device, X, Y, batch_size=32, sample_weight=W, class_weight={0: 3.0})
    assert same(arrays, fit(device, generated(weights=W), steps_per_epoch=3, class_weight={0: 3.0}))
    assert same(arrays, fit(device, Batches(X, Y, 32, sample_weight=W), class_weight={0: 3.0}))
    assert not same(arrays, fit(device, Batches(X, Y, 32), class_weight={0: 3.0}))


def test_several_inputs_and_outputs(device):
    def built():
        with clnn.use(device):
            clnn.seed(0)
            a, b = clnn.Input((6,), name="a"), clnn.Input((2,), name="b")
            both = clnn.Concatenate()(clnn.Dense(4, "tanh")(a), b)
            return clnn.Model((a, b), {"kind": clnn.Dense(2)(both), "size": clnn.Dense(1)(both)})

    x, y = {"a": X, "b": X[:, :2]}, {"kind": Y, "size": X[:, 1]}
    how = {"loss": {"kind": "cross_entropy", "size": "mse"}}
    arrays = fit(device, x, y, batch_size=32, net=built(), **how)
    assert same(arrays, fit(device, Batches(x, y, 32), net=built(), **how))
    assert same(arrays, fit(device, Batches((X, X[:, :2]), y, 32), net=built(), **how))
    net = arrays[0]
    found, want = net.evaluate(Batches(x, y, 32)), net.evaluate(x, y)
    assert found == pytest.approx(want, rel=1e-5) and found.keys() == want.keys()
    assert all(np.array_equal(net.predict(Batches(x, y, 512))[k], v) for k, v in net.predict(x).items())


def test_batches_of_other_sizes_among_them_larger_ones(device):
    """The feed grows with the largest; each size is a recording of its own."""
    cuts = [0, 8, 40, 48, 49, 70]
    batches = [(X[a:b], Y[a:b]) for a, b in zip(cuts, cuts[1:])]
    net, history = fit(device, batches, epochs=6)
    eager, other = fit(device, batches, epochs=6, record=False)
    assert same((net, history), (eager, other))
    for p, q in zip(net.parameters(), eager.parameters()):
        assert np.array_equal(p.numpy(), q.numpy())
    frozen = made(device)
    found = frozen.fit(batches, loss="cross_entropy", optimizer=clnn.SGD(0.0), progress=False)
    assert found["loss"][0] > 0 and 0 <= found["accuracy"][0] <= 1


def test_steps_are_replayed(device):
    """The Python of the model runs for the first steps of each size, and no more."""
    calls = []

    class Counting(clnn.Layer):
        def forward(self, x):
            calls.append(x.shape[0])
            return x

    with clnn.use(device):
        net = clnn.Sequential([clnn.Dense(4, "tanh"), Counting(), clnn.Dense(2)], input_shape=6, seed=0)
    net.fit([*generated()][:2] * 40, loss="cross_entropy", optimizer="sgd", progress=False)
    assert len(calls) < 40


# -- evaluate, predict, validation -----------------------------------------------------------------------------------------
def test_evaluate_and_predict(device):
    net, _ = fit(device, X, Y)
    for batches in (Batches(X, Y, 16), [*Batches(X, Y, 16, shuffle=False)], Batches(X, Y, 16, workers=0)):
        found = net.evaluate(batches, metrics=["accuracy"])
        assert found == pytest.approx(net.evaluate(X, Y, metrics=["accuracy"]), rel=1e-5)
    weighted = net.evaluate(Batches(X, Y, 16, sample_weight=W))
    assert weighted == pytest.approx(net.evaluate(X, Y, sample_weight=W), rel=1e-5)
    shuffled = Batches(X, Y, 16, seed=1)  # in the order of the samples all the same
    assert np.allclose(net.predict(shuffled), net.predict(X), atol=1e-6) and shuffled.epoch == 0
    assert np.allclose(net.predict(Batches(X, None, 16)), net.predict(X), atol=1e-6)
    assert np.array_equal(net.predict_classes(x for x, _ in Batches(X, Y, 16, shuffle=False)), net.predict_classes(X))


def test_validation_of_batches(device):
    held = X[:30], Y[:30]
    arrays, found = (fit(device, X, Y, batch_size=32, validation=one) for one in (held, Batches(*held, 512)))
    assert same(arrays, found)
    assert same(arrays, fit(device, Batches(X, Y, 32), validation=held))
    once = fit(device, X, Y, epochs=1, batch_size=32, validation=iter([held]))[1]
    assert once["val_loss"] == arrays[1]["val_loss"][:1]


def test_sequences_of_other_lengths(device):
    """What is held out, evaluated or predicted may be longer than what was trained on, step by step too."""
    rng = np.random.default_rng(0)
    lengths = [
        (rng.integers(0, 9, (n, steps)), rng.integers(0, 3, (n, steps))) for n, steps in ((8, 5), (4, 7), (3, 5))
    ]
    net = clnn.Sequential([clnn.Embedding(9, 4), clnn.GRU(5, return_sequences=True), clnn.Dense(3)], seed=1)
    how = {"loss": "cross_entropy", "optimizer": "adam", "progress": False}
    history = net.fit(*lengths[0], validation=lengths[1], **how)
    alone = [net.evaluate(x, y) for x, y in lengths]
    assert history["val_loss"] == pytest.approx([alone[1]["loss"]], rel=1e-6)
    counts = [y.size for _, y in lengths]
    for found in (net.evaluate(lengths), net.evaluate(iter(lengths))):
        for name, value in found.items():
            assert value == pytest.approx(np.average([one[name] for one in alone], weights=counts), rel=1e-5)
    with pytest.raises(clnn.ShapeError, match=r"outputs of \[\(5, 3\), \(7, 3\)\].* predict each by itself"):
        net.predict(iter([x for x, _ in lengths]))


def by_length(rng, lengths, dtype=np.float32):
    """A batch of vectors, and one of classes, for each length."""
    return [
        (rng.standard_normal((n, steps, 3)).astype(dtype), rng.integers(0, 3, (n, steps)))
        for n, steps in zip(itertools.cycle((4, 3, 6)), lengths)
    ]


def sequences(layer, device):
    with clnn.use(device):
        return clnn.Sequential([layer(), clnn.Dense(3)], input_shape=(5, 3), seed=1)


LAYERS = {
    "lstm": lambda: clnn.LSTM(6, return_sequences=True),
    "both ways": lambda: clnn.Bidirectional(clnn.GRU(4, return_sequences=True)),
    "attention": lambda: clnn.TransformerEncoderLayer(heads=1, hidden=8, dropout=0.2),
    "masked": lambda: clnn.Sequential([clnn.Masking(0.0), clnn.SimpleRNN(4, return_sequences=True)]),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_each_batch_may_have_a_length_of_its_own(device, rng, layer):
    """As one fit a length, which goes on with the same optimizer; recorded, to the bits of running each step as Python."""
    batches = by_length(rng, (5, 9, 1, 5, 12, 9, 5))
    how = {"loss": "cross_entropy", "progress": False, "seed": 3}
    nets = [sequences(LAYERS[layer], device) for _ in range(3)]
    seen = [
        net.fit(batches, optimizer=clnn.Adam(0.01), epochs=6, record=one, **how)
        for net, one in zip(nets, (True, False))
    ]
    assert seen[0]["loss"] == seen[1]["loss"] and seen[0]["accuracy"] == seen[1]["accuracy"]
    for p, q in zip(nets[0].parameters(), nets[1].parameters()):
        assert np.array_equal(p.numpy(), q.numpy())
    if layer == "attention":  # dropout draws other numbers where each fit begins
        return
    one_by_one, optimizer = nets[2], clnn.Adam(0.01)
    for _ in range(6):
        losses = [one_by_one.fit(*one, optimizer=optimizer, shuffle=False, batch_size=9, **how) for one in batches]
    for p, q in zip(nets[0].parameters(), one_by_one.parameters()):
        np.testing.assert_allclose(p.numpy(), q.numpy(), rtol=1e-4, atol=1e-5)
    counts = [y.size for _, y in batches]
    assert seen[0]["loss"][-1] == pytest.approx(
        np.average([one["loss"][0] for one in losses], weights=counts), rel=1e-4
    )


def test_lengths_are_replayed_and_their_recordings_kept_within_bounds(device, rng, monkeypatch):
    calls, lengths = [], (5, 8, 2)

    class Counting(clnn.Layer):
        def forward(self, x):
            calls.append(x.shape[1])
            return x

    with clnn.use(device):
        net = clnn.Sequential(
            [clnn.GRU(4, return_sequences=True), Counting(), clnn.Dense(3)], input_shape=(5, 3), seed=1
        )
    batches = [*by_length(rng, lengths)] * 30
    net.fit(batches, loss="cross_entropy", optimizer="sgd", progress=False, epochs=2)
    assert set(calls) == {*lengths} and len(calls) < 400 < 2 * 2 * len(batches) * 3
    monkeypatch.setattr(stream, "MOST_FORMS", 1)
    few, all_of_them = (sequences(LAYERS["lstm"], device) for _ in range(2))
    for one, most in ((few, 1), (all_of_them, 64)):
        monkeypatch.setattr(stream, "MOST_FORMS", most)
        one.fit(batches[:12], loss="cross_entropy", optimizer="adam", progress=False, epochs=2)
    for p, q in zip(few.parameters(), all_of_them.parameters()):
        assert np.array_equal(p.numpy(), q.numpy())


def test_what_a_callback_changes_reaches_every_length(device, rng, tmp_path):
    """Also what clnn cannot watch, and looks at after callbacks, such as a file."""

    class Scaled(clnn.Layer):
        def forward(self, x):
            return x * float((tmp_path / "scale").read_text())

    def losses(record):
        (tmp_path / "scale").write_text("1.0")
        change = clnn.Lambda(
            on_epoch_end=lambda m, epoch, _: (tmp_path / "scale").write_text("1.5" if epoch >= 6 else "1.0")
        )
        with clnn.use(device):
            net = clnn.Sequential([clnn.Dense(4, "tanh"), Scaled(), clnn.Dense(3)], input_shape=(5, 3), seed=1)
        how = {"optimizer": clnn.SGD(0.1), "progress": False, "epochs": 10, "callbacks": [change], "record": record}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", clnn.RecordingWarning)
            return net.fit(batches, loss="cross_entropy", **how)["loss"]

    batches = by_length(rng, (5, 7, 9))
    assert losses(True) == losses(False)


def test_recordings_of_many_lengths_share_one_arena(device, rng):
    """Where they ascend, too: each grows it, and none keeps the one before."""
    peaks = []
    for lengths in ([512] * 12, [32 * (i + 1) for i in range(16)]):
        with clnn.use(device):
            net = clnn.Sequential([clnn.Dense(256, "tanh"), clnn.Dense(3)], input_shape=(5, 3), seed=1)
        batches = by_length(rng, lengths)
        gc.collect()
        device.reset_memory_peak()
        before = device.memory_in_use
        net.fit(batches, loss="cross_entropy", optimizer="sgd", epochs=5, progress=False)
        peaks.append(device.memory_peak - before)
    assert peaks[1] < 2.5 * peaks[0], peaks


def test_weights_classes_and_validation_go_with_lengths(device, rng):
    batches = [(x, y, rng.uniform(0.5, 2, y.shape).astype(np.float32)) for x, y in by_length(rng, (5, 7, 4, 5))]
    net = sequences(LAYERS["lstm"], device)
    held = type("Held", (), {"__iter__": lambda _: iter(batches)})()
    how = {"loss": "cross_entropy", "optimizer": clnn.SGD(0.0), "progress": False, "epochs": 2}
    found = net.fit(batches, class_weight={1: 3.0}, validation=held, **how)
    weights = [np.where(y == 1, 3.0, 1.0) * w for _, y, w in batches]
    losses = [-np.log(np.take_along_axis(net.predict_proba(x), y[..., None], -1))[..., 0] for x, y, _ in batches]
    counts = [y.size for _, y, _ in batches]
    want = [
        np.average([(one * w).mean() for one, w in zip(losses, ws)], weights=counts)
        for ws in (weights, [b[2] for b in batches])
    ]
    assert found["loss"] == pytest.approx([want[0]] * 2, rel=1e-4)
    assert found["val_loss"] == pytest.approx([want[1]] * 2, rel=1e-4)


def test_a_batch_that_the_model_or_its_targets_do_not_take(device, rng):
    (x, y), (longer, _) = by_length(rng, (5, 7))
    net = sequences(LAYERS["lstm"], device)
    flat = clnn.Sequential([clnn.Flatten(), clnn.Dense(3)], input_shape=(5, 3))
    before = [p.numpy() for p in net.parameters()]
    for model, second, words in (
        (net, (longer, y), r"epoch 1, batch 2: .*y"),
        (net, (x[..., :2], y), r"epoch 1, batch 2: .*\(batch, steps, 3\) here"),
        (
            net,
            (x[..., 0], y),
            r"epoch 1, batch 2: rows are of x \(5,\) float32, and those of the first batch .* the same axes",
        ),
        (net, (x[:, :0], y[:, :0]), "epoch 1, batch 2: "),
        (flat, (longer[:, :, :], y[: len(longer), 0]), "epoch 1, batch 2: .*the last axis must be 15"),
    ):
        first = (x, y) if model is net else (x, y[:, 0])
        with pytest.raises((clnn.DataError, clnn.ShapeError), match=words):
            model.fit([first, second], loss="cross_entropy", optimizer=clnn.SGD(0.0), progress=False)
    for p, was in zip(net.parameters(), before):
        assert np.array_equal(p.numpy(), was)


def both(a, b):
    """A model of two inputs."""
    return clnn.Model((a, b), clnn.Dense(2)(clnn.Concatenate()(a, b)))


FIRST, SECOND, LAST = ((X[rows], Y[rows]) for rows in (slice(30), slice(30, 60), slice(60, None)))
LISTS = {
    "one": [(X, Y)],
    "two": [(X[:40], Y[:40]), (X[40:], Y[40:])],
    "three": [FIRST, SECOND, LAST],
    "a tuple": (FIRST, SECOND, LAST),
    "lists": [[X[:40], Y[:40]], [X[40:], Y[40:]]],
    "four": [(X[i::4], Y[i::4]) for i in range(4)],
    "weighted": [(X[:40], Y[:40], np.ones(40)), (X[40:], Y[40:], np.ones(30))],
    "lists of numbers": [(X[:40].tolist(), Y[:40].tolist()), (X[40:].tolist(), Y[40:].tolist())],
}


@pytest.mark.parametrize("source", ["arrays", "batches"])
@pytest.mark.parametrize("batches", LISTS)
def test_validation_may_be_a_list_of_batches(device, batches, source):
    data = (X, Y) if source == "arrays" else (Batches(X, Y, 32),)
    arrays, listed = (fit(device, *data, validation=one)[1] for one in ((X, Y), LISTS[batches]))
    assert listed["val_loss"] == pytest.approx(arrays["val_loss"], rel=1e-5) and len(listed["val_loss"]) == 4
    assert listed["val_accuracy"] == pytest.approx(arrays["val_accuracy"])
    with pytest.raises(clnn.ConfigurationError, match="not both|do not go with validation_split"):
        fit(device, *data, validation=LISTS[batches], validation_split=0.2)


def test_validation_of_two_inputs_is_arrays_or_batches(device):
    """((a, b), y), where y may be (a, b) too, is no list of batches."""
    a, b = X[:, :3], X[:, 3:]
    with clnn.use(device):
        found = [
            fit(device, (a, b), Y, validation=one, net=both(clnn.Input((3,)), clnn.Input((3,))), loss="cross_entropy")[
                1
            ]
            for one in ([(a, b), Y], [((a[:9], b[:9]), Y[:9]), ((a[9:], b[9:]), Y[9:])])
        ]
        one, two = clnn.Input((3,)), clnn.Input((3,))
        net = clnn.Model((one, two), (clnn.Dense(3)(one), clnn.Dense(3)(two)))
        history = fit(device, (a, b), (b, a), validation=[(a, b), (b, a)], net=net, loss="mse")[1]
    assert len(found[0]["val_loss"]) == len(found[1]["val_loss"]) == len(history["val_loss"]) == 4
    expected = net.evaluate((a, b), (b, a), loss="mse")["loss"]
    assert history["val_loss"][-1] == pytest.approx(expected, rel=1e-5)


def test_rows_in_lists_are_arrays(device):
    """[[x0, x1], [y0, y1]] of as long rows: two samples, and their two targets."""
    with clnn.use(device):
        net = clnn.Sequential([clnn.Dense(6)], input_shape=6, seed=0)
    rows = [[X[0], X[1]], [X[2], X[3]]]
    history = fit(device, X, X, validation=rows, net=net, loss="mse")[1]
    assert history["val_loss"][-1] == pytest.approx(net.evaluate(X[:2], X[2:4], loss="mse")["loss"], rel=1e-5)
    for wrong in ([X], X, (X, Y, W, W), []):
        with pytest.raises(
            clnn.ConfigurationError, match="batches come as a list of such tuples, or from what yields them"
        ):
            fit(device, X, Y, validation=wrong)


# -- going on --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("source", ["batches", "an object", "generator", "an object without end"])
def test_a_run_goes_on_with_the_batches_that_were_next(device, tmp_path, source):
    class Stop(Exception):
        pass

    def end(model, epoch, logs):
        if epoch == 1:
            raise Stop

    batches, options = SOURCES[source]()
    undisturbed = fit(device, batches, **options)
    batches, options = SOURCES[source]()
    first = [clnn.Checkpoint(tmp_path), clnn.Lambda(on_epoch_end=end)]
    with pytest.raises(Stop):
        fit(device, batches, callbacks=[first[1], first[0]], resume=tmp_path, **options)
    batches, options = SOURCES[source]()
    again = [clnn.Lambda(on_epoch_begin=lambda *_: None), clnn.Checkpoint(tmp_path)]
    assert same(undisturbed, fit(device, batches, callbacks=again, resume=tmp_path, **options))


def test_a_second_fit_goes_on_in_the_order(device):
    optimizer = clnn.Adam(0.01)
    net, _ = fit(device, Batches(X, Y, 32), epochs=2, optimizer=optimizer)
    fit(device, Batches(X, Y, 32), epochs=2, optimizer=optimizer, net=net)
    with clnn.use(device):
        other = clnn.Adam(0.01)
        whole, _ = fit(device, X, Y, epochs=2, batch_size=32, optimizer=other)
        fit(device, X, Y, epochs=2, batch_size=32, optimizer=other, net=whole)
    assert all(np.array_equal(p.numpy(), q.numpy()) for p, q in zip(net.parameters(), whole.parameters()))


def test_an_epoch_may_be_a_part_of_a_pass(device):
    """Two batches an epoch of three in a pass: none is left out."""
    seen = []
    batches = Batches(X, Y, 32, seed=5, transform=lambda x, y: (seen.append(x[0, 0]), (x, y))[1], workers=0)
    fit(device, batches, epochs=3, steps_per_epoch=2)
    order = [np.random.default_rng((5, epoch)).permutation(N) for epoch in range(2)]
    assert seen[1:] == [X[o[start], 0] for o in order for start in (0, 32, 64)]  # the first only shows the form


def rows_of(numbers, size=32):
    """The first feature of each batch of the passes of these numbers, by seed 5."""
    orders = [np.random.default_rng((5, number)).permutation(N) for number in numbers]
    return [X[order[start], 0] for order in orders for start in range(0, N, size)]


FITS = {  # epochs, steps, size of batches; and which batches of passes of 3 are trained on, from 0
    "parts of passes": ([(3, None, 32), (2, 2, 32)], rows_of(range(5))[:13]),
    "within a pass": ([(1, 2, 32), (3, 1, 32), (2, 2, 32)], rows_of(range(3))),
    "more than a pass": ([(2, 4, 32), (2, 2, 32)], rows_of(range(4))),
    "whole passes after parts": ([(4, 3, 32), (3, 1, 32), (1, None, 32)], rows_of(range(6))),
    "whole passes within one": ([(2, 2, 32), (2, None, 32)], rows_of([0, 1])[:4] + rows_of([2, 3])),
    "smaller batches": (
        [(2, 2, 32), (1, 1, 8), (1, None, 8)],
        rows_of([0, 1])[:4] + rows_of([2], 8)[:1] + rows_of([3], 8),
    ),
}


@pytest.mark.parametrize("way", ["the same", "saved", "another model between"])
@pytest.mark.parametrize("fits", FITS)
def test_a_further_fit_takes_the_batches_that_come_next(device, tmp_path, fits, way):
    (plan, expected), seen, net, optimizer = FITS[fits], [], made(device), clnn.SGD(0.01)
    for epochs, steps, size in plan:
        before = len(seen)
        batches = Batches(X, Y, size, seed=5, transform=lambda x, y: (seen.append(x[0, 0]), (x, y))[1], workers=0)
        fit(device, batches, epochs=epochs, steps_per_epoch=steps, optimizer=optimizer, net=net)
        del seen[before]  # which only shows the form
        if way == "saved":
            net.save(tmp_path / "net")
            with clnn.use(device):
                net = clnn.load(tmp_path / "net")
            optimizer = net.optimizer
        elif way == "another model between":
            fit(device, Batches(X, Y, 16), epochs=1, steps_per_epoch=3, optimizer=optimizer)
    assert seen == expected


def test_passes_go_on_after_epochs_of_arrays(device):
    seen, optimizer = [], clnn.SGD(0.01)
    net, _ = fit(device, X, Y, batch_size=8, epochs=2, optimizer=optimizer)
    batches = Batches(X, Y, 32, seed=5, transform=lambda x, y: (seen.append(x[0, 0]), (x, y))[1], workers=0)
    fit(device, batches, epochs=2, steps_per_epoch=2, optimizer=optimizer, net=net)
    assert seen[1:] == rows_of([2, 3])[:4]


def test_a_further_fit_that_is_interrupted_takes_the_same_batches(device, tmp_path):
    def run(folder, epochs):
        optimizer = clnn.Adam(0.01)
        net, _ = fit(device, Batches(X, Y, 32), epochs=2, steps_per_epoch=2, optimizer=optimizer)
        return fit(
            device, Batches(X, Y, 32), epochs=epochs, steps_per_epoch=5, optimizer=optimizer, net=net, resume=tmp_path / folder,
            callbacks=[clnn.Checkpoint(tmp_path / folder)],
        )  # fmt: skip

    whole = run("whole", 4)
    run("parts", 1), run("parts", 3)
    assert same(whole, run("parts", 4))


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_pass_without_a_seed_goes_on_in_its_order(device, tmp_path, shuffle):
    """Epochs of two batches of three: the rest of a pass comes after the checkpoint, or in the next fit."""
    seen = []

    def noisy(x, y, rng):
        return x + (seen.append(x[0, 0]), np.float32(rng.normal()))[1], y

    def run(folder, epochs, seed, optimizer=None, **options):
        clnn.seed(seed)
        batches, optimizer = Batches(X, Y, 32, transform=noisy, shuffle=shuffle, workers=0), optimizer or clnn.SGD(0.01)
        options |= {"callbacks": [clnn.Checkpoint(tmp_path / folder)], "resume": tmp_path / folder}
        return fit(device, batches, epochs=epochs, steps_per_epoch=2, optimizer=optimizer, seed=None, **options)

    whole = run("whole", 6, 1)
    for epochs, seed in ((0, 1), (1, 2), (4, 3)):
        run("parts", epochs, seed)
    assert same(whole, run("parts", 6, 4))
    seen.clear()
    optimizer = clnn.SGD(0.01)
    net, _ = run("one", 1, 1, optimizer)
    run("two", 1, 2, optimizer, net=net)
    assert len({*seen[1:3], seen[4]}) == 3  # of one pass; the first of each fit only shows the form


# -- Batches alone ---------------------------------------------------------------------------------------------------------
def test_passes_have_orders_of_their_own_and_repeat_by_seed():
    def passes(**options):
        batches = Batches(X, Y, 32, **options)
        return [np.concatenate([y for _, y in batches]) for _ in range(2)], [len(x) for x, _ in batches]

    (first, second), lengths = passes(seed=2)
    assert lengths == [32, 32, 6] and len(Batches(X, Y, 32)) == 3
    assert not np.array_equal(first, second) and sorted(first) == sorted(Y)
    assert np.array_equal(first, Y[np.random.default_rng((2, 0)).permutation(N)])
    assert all(np.array_equal(a, b) for a, b in zip(passes(seed=2)[0], (first, second)))
    assert all(np.array_equal(one, Y) for one in passes(shuffle=False)[0])
    clnn.seed(4)
    by_seed = passes()[0]
    clnn.seed(4)
    assert np.array_equal(passes()[0][0], by_seed[0])


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_what_a_transform_draws_is_of_its_batch(workers):
    def noisy(x, y, rng):
        time.sleep(rng.uniform(0, 0.003))  # threads end in another order
        return x + rng.normal(size=x.shape), y

    runs = []
    for n in (0, workers):
        batches = Batches(X, Y, 8, seed=1, transform=noisy, workers=n)
        runs.append([x for _ in range(2) for x, _ in batches])
    assert all(np.array_equal(a, b) for a, b in zip(*runs)) and not np.array_equal(runs[0][0], runs[0][9])
    assert np.array_equal(next(iter(Batches(X, None, 70, shuffle=False, transform=np.abs)))[0], np.abs(X))
    assert all(len(one) == 3 for one in Batches(X, Y, 8, sample_weight=W, transform=noisy))


def test_batches_are_made_ahead_and_no_thread_stays():
    made_by, before = [], threading.active_count()
    batches = Batches(X, Y, 8, workers=2, transform=lambda x: (made_by.append(threading.get_ident()), x)[1])
    passing = iter(batches)
    next(passing)
    limit = time.monotonic() + 5
    while len(made_by) < 4 and time.monotonic() < limit:
        time.sleep(0.01)
    assert 4 <= len(made_by) <= 5 and threading.get_ident() not in made_by
    passing.close()
    assert threading.active_count() == before

    def fails(x, y):
        raise RuntimeError("no such image")

    with pytest.raises(RuntimeError, match="no such image"):
        list(Batches(X, Y, transform=fails))
    assert threading.active_count() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_a_transform_that_runs_out_of_something_ends_no_pass(workers):
    """Its StopIteration is not that of the batches, of which predict and evaluate would else take a part for all."""

    def batches():
        noise = iter(range(3))
        return Batches(X, Y, 16, workers=workers, transform=lambda x, y: (x + next(noise), y))

    net = clnn.Sequential([clnn.Dense(3)], input_shape=X.shape[1])
    for use in (list, net.predict, lambda b: net.evaluate(b, loss="cross_entropy")):
        with pytest.raises(RuntimeError, match="StopIteration"):
            use(batches())


def test_a_transform_may_use_the_device_while_fit_does(device):
    def on_device(x, y):
        with clnn.use(device):
            return (clnn.tensor(x) * 2.0).numpy(), y

    doubled = fit(device, Batches(2 * X, Y, 32), validation=(2 * X, Y))
    found = fit(
        device, Batches(X, Y, 32, transform=on_device, workers=2), validation=Batches(X, Y, 512, transform=on_device)
    )
    assert same(doubled, found)
    with clnn.use(device):
        assert np.allclose(
            found[0].predict(Batches(X, Y, 16, transform=on_device)), doubled[0].predict(2 * X), atol=1e-6
        )


def test_sparse_rows(device):
    sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
    x = np.where(X > 0.5, X, 0).astype(np.float32)
    arrays = fit(device, x, Y, batch_size=32)
    assert same(arrays, fit(device, Batches(sparse.csr_matrix(x), Y, 32)))


@pytest.mark.parametrize("form", ["matrix", "array"])
@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "lil", "dia", "bsr", "dok"])
def test_every_form_of_sparse_matrix(device, kind, form):
    scipy = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
    x = np.where(X > 0.5, X, 0).astype(np.float32)
    sparse = getattr(scipy, f"{kind}_{form}")(x)
    arrays = fit(device, x, Y, batch_size=32, validation=(x, Y))
    assert same(arrays, fit(device, sparse, Y, batch_size=32, validation=(sparse, Y)))
    assert same(arrays, fit(device, Batches(sparse, Y, 32), validation=(x, Y)))
    net = arrays[0]
    assert np.array_equal(net.predict(sparse), net.predict(x)) and net.evaluate(sparse, Y) == net.evaluate(x, Y)
    with pytest.raises(clnn.DataError, match="y is a sparse matrix, which only the inputs"):
        net.evaluate(x, sparse, loss="mse")

    class Both(clnn.Model):
        def __init__(self):
            self.one, self.two = clnn.Dense(2), clnn.Dense(2)

        def forward(self, a, b):
            return {"one": self.one(a), "two": self.two(b)}

    with clnn.use(device):
        both = Both()
        assert np.array_equal(both.predict((x, x))["two"], both.predict({"a": sparse, "b": sparse})["two"])
        with pytest.raises(
            clnn.ConfigurationError, match=f"y: the model has the outputs one, two, and a {kind}_{form} was"
        ):
            both.evaluate((x, x), sparse, loss="mse")


# -- what is refused -------------------------------------------------------------------------------------------------------
def rows(*shape):
    return np.zeros(shape, np.float32)


BAD = {
    "no steps": (lambda: generated(), {}, "does not say how many: give steps_per_epoch"),
    "steps 0": (lambda: generated(), {"steps_per_epoch": 0}, "steps_per_epoch should be an integer of 1"),
    "ends early": (
        lambda: generated(2),
        {"steps_per_epoch": 3},
        "ended after 6 batches, 0 of 3 in epoch 3; .*only once",
    ),
    "ends within": (lambda: generated(2), {"steps_per_epoch": 4}, "ended after 6 batches, 2 of 4 in epoch 2"),
    "nothing": (lambda: iter(()), {"steps_per_epoch": 1}, "ended after 0 batches"),
    "length 0": (list, {}, "yields no batch"),
    "shorter than len": (
        lambda: Again(4),
        {},
        "ended after 3 batches, 3 of 4 in epoch 1; len.. says that there are more",
    ),
    "longer than len": (lambda: Again(2), {}, "yields more batches than the 2 that len"),
    "batch_size": (
        lambda: [*zip(X, Y)],
        {"batch_size": 8},
        r"do not go with batch_size: .*map\(np.array, zip\(\*pairs\)\)$",
    ),
    "split": (lambda: Batches(X, Y), {"validation_split": 0.2}, "do not go with validation_split"),
    "weights": (lambda: Batches(X, Y), {"sample_weight": W}, "sample_weight comes with batches"),
    "validation once": (lambda: Batches(X, Y), {"validation": generated()}, "validation can be gone through only once"),
    "validation split": (lambda: Batches(X, Y), {"validation": Batches(X, Y), "validation_split": 0.1}, "not both"),
    "validation nothing": (
        lambda: Batches(X, Y),
        {"validation": Again(0), "epochs": 5},
        "validation x yields no batch",
    ),
    "an array": (lambda: X, {}, "fit needs targets: give y"),
    "arrays": (lambda: [X, Y], {}, "the first batch is a ndarray; a batch is"),
    "a number": (lambda: iter([3]), {"steps_per_epoch": 1}, "the first batch is a int; a batch is"),
    "four": (lambda: iter([(X, Y, W, W)]), {"steps_per_epoch": 1}, "the first batch is a tuple of 4"),
    "dicts": (lambda: [{"x": X, "y": Y}], {}, "the first batch is a dict; a batch is"),
    "features": (
        lambda: [(X, Y), (X[:, :3], Y)],
        {},
        "epoch 1, batch 2: dense_1: .*the last axis must be 6",
    ),
    "rows": (lambda: [(X, Y), (X[:3], Y)], {}, "epoch 1, batch 2: y has 70 samples and x has 3"),
    "floats": (lambda: [(X, Y), (X, Y.astype(float))], {}, "epoch 1, batch 2: cross_entropy"),
    "classes": (lambda: [(X, Y), (X, Y + 5)], {}, "epoch 1, batch 2: y.*outside 0 to 1"),
    "nan": (lambda: [(X, Y), (X * np.nan, Y)], {}, r"epoch 1, batch 2: x\[0, 0\] is nan"),
    "empty": (lambda: [(X, Y), (X[:0], Y[:0])], {}, r"epoch 1, batch 2: x has no samples: its shape is \(0, 6\)"),
    "some weights": (
        lambda: [(X, Y), (X, Y, W)],
        {},
        "batch 2: rows are of .* and those of the first .* no sample_weight",
    ),
    "text": (lambda: [(X, Y), (X.astype(str), Y)], {}, "epoch 1, batch 2: x should be an array of numbers"),
}


@pytest.mark.parametrize("what", BAD)
def test_batches_that_do_not_fit(device, what):
    source, options, words = BAD[what]
    with pytest.raises((clnn.ConfigurationError, clnn.DataError, clnn.ShapeError), match=words):
        fit(device, source(), **options)


def test_what_else_is_refused(device):
    net, _ = fit(device, X, Y)
    for call, words in (
        (lambda: fit(device, Batches(X, Y), Y), "x yields batches, a Batches, and y is given too"),
        (lambda: fit(device, [(X[:40], Y[:40]), (X[40:], Y[40:])], Y), "x yields batches, a list, and y is given too"),
        (lambda: made(device).evaluate([(X, Y)], Y, loss="mse"), "x yields batches, a list, and y is given too"),
        (lambda: fit(device, X, Y, validation_steps=3), "no validation_steps: give as many .*islice"),
        (lambda: fit(device, X, Y, steps_per_epoch=3), "steps_per_epoch is for an x that yields batches"),
        (
            lambda: fit(device, Batches(X, Y), class_weight="balanced"),
            "class_weight: how many samples are of each class",
        ),
        (lambda: net.evaluate(X), "evaluate needs targets: give y"),
        (lambda: net.evaluate(iter(())), "yields no batch"),
        (lambda: net.evaluate([(X, Y), (X[:, :3], Y)]), "the last axis must be 6"),
        (lambda: net.predict(iter(())), "yields no batch"),
        (lambda: net.predict(iter([(X, Y, W, W)])), "batch 1 is a tuple of 4"),
        (lambda: net.predict(Batches(rows(3, 5))), "x"),
        (lambda: fit(device, Batches(X, Y), callbacks=[clnn.GradientNorms()]), "batches that come one by one: give"),
        (lambda: Batches(X, Y[:3]), r"the same number of samples, and these have \[70, 3\]"),
        (lambda: Batches(X[:0], Y[:0]), "there are no samples"),
        (lambda: Batches(3.0), "a row for each sample, not one number"),
        (lambda: Batches(X, Y, 0), "batch_size should be"),
        (lambda: Batches(X, Y, workers=-1), "workers should be"),
        (lambda: Batches(X, Y, transform=3), "transform is a function"),
        (lambda: Batches(X, Y, transform=lambda a, b, c, d: a), "needs 4 arguments"),
        (lambda: list(Batches(X, Y, transform=lambda x, y: x)), r"returns \(x, y\), and this one returned a ndarray"),
        (lambda: Batches(X, sample_weight=W), "give y too"),
    ):
        with pytest.raises((clnn.ConfigurationError, clnn.DataError, clnn.ShapeError), match=words):
            call()


def test_a_stateful_layer_takes_arrays(device):
    with clnn.use(device):
        net = clnn.Sequential([clnn.LSTM(3, stateful=True), clnn.Dense(2)], input_shape=(5, 1))
    x = X[:32, :5, None]
    with pytest.raises(clnn.ConfigurationError, match="is stateful, and batches that come one by one"):
        fit(device, Batches(x, Y[:32], 16, shuffle=False), net=net, shuffle=False)


# -- PyTorch ---------------------------------------------------------------------------------------------------------------
def test_a_data_loader_of_pytorch(device):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    data = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y.astype(np.int64)))
    loader = torch.utils.data.DataLoader(data, batch_size=32)
    arrays = fit(device, X, Y, batch_size=32, shuffle=False, validation=(X, Y))
    assert same(arrays, fit(device, loader, validation=torch.utils.data.DataLoader(data, batch_size=512)))
    net = arrays[0]
    assert np.allclose(net.predict(loader), net.predict(X), atol=1e-6)
    assert net.evaluate(loader) == pytest.approx(net.evaluate(X, Y), rel=1e-5)
    shuffled = torch.utils.data.DataLoader(data, batch_size=32, shuffle=True, drop_last=True)
    assert len(fit(device, shuffled)[1]["loss"]) == 4
    stream = torch.utils.data.DataLoader(type("S", (torch.utils.data.IterableDataset,), {"__iter__": lambda s: iter(data)})(),
                                         batch_size=32)  # fmt: skip
    with pytest.raises(clnn.ConfigurationError, match="give steps_per_epoch"):
        fit(device, stream)
    assert same(arrays, fit(device, stream, steps_per_epoch=3, validation=(X, Y)))
    half = torch.utils.data.TensorDataset(torch.from_numpy(X).to(torch.bfloat16), torch.from_numpy(Y))
    with pytest.raises(clnn.DataError, match="x is no array of numbers.*BFloat16"):
        fit(device, torch.utils.data.DataLoader(half, batch_size=32))


@pytest.mark.parametrize("sizes", [[35, 35], [30, 1, 39], [70]], ids=str)
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_predict_takes_the_list_of_batches_that_fit_takes(device, sizes, parts):
    """Of equal batches it was one array of inputs and targets, of others an error."""
    with clnn.use(device):
        net = clnn.Sequential([clnn.Dense(2)], input_shape=1, seed=0)
        a, b = clnn.Input((1,)), clnn.Input((1,))
        two = clnn.Model((a, b), clnn.Dense(2)(clnn.Concatenate()(a, b)))
    ends = np.cumsum(sizes)
    x, other = X[:, :1], X[:, 1:2]
    batches = [(x[e - n : e], other[e - n : e], W[e - n : e])[:parts] for n, e in zip(sizes, ends)]
    np.testing.assert_allclose(net.predict(batches), net.predict(x), rtol=1e-6)
    paired = [((x[e - n : e], other[e - n : e]), Y[e - n : e], W[e - n : e])[:parts] for n, e in zip(sizes, ends)]
    np.testing.assert_allclose(two.predict(paired), two.predict((x, other)), rtol=1e-6)


def test_samples_that_are_tuples_are_no_batches(device):
    with clnn.use(device):
        net = clnn.Sequential([clnn.Dense(2)], input_shape=3, seed=0)
        images = clnn.Sequential([clnn.Conv2D(2, 3)], input_shape=(3, 5, 4), seed=0)
    x = X[:4, :3]
    for rows in ([tuple(row) for row in x], [tuple(row.tolist()) for row in x], [*x]):
        np.testing.assert_array_equal(net.predict(rows), net.predict(x))
    a, b = clnn.Input((2,)), clnn.Input((2,))
    two = clnn.Model((a, b), clnn.Concatenate()(a, b))
    assert two.predict([((1, 2), (3, 4)), ((5, 6), (7, 8))]).tolist() == [[1, 2, 5, 6], [3, 4, 7, 8]]
    x = np.resize(X, (4, 3, 5, 4))
    np.testing.assert_array_equal(images.predict([tuple(image) for image in x]), images.predict(x))


def test_batches_without_an_end_are_told(device, monkeypatch):
    """It is said while they come: nothing else tells why fit, evaluate or predict does not return."""
    monkeypatch.setattr(stream, "MOST_UNTOLD", 5)

    class Ended(Exception):
        pass

    def batches(number=20, end=True):
        for _ in range(number):
            yield X[:8], Y[:8]
        if end:
            raise Ended

    class Endless:
        def __iter__(self):
            return batches()

    net = made(device)
    calls = (
        lambda: fit(device, X, Y, net=net, epochs=1, validation=batches()),
        lambda: fit(device, X, Y, net=net, epochs=2, validation=Endless()),
        lambda: net.evaluate(batches(), loss="cross_entropy"),
        lambda: net.predict(batches()),
    )
    for call in calls:
        with (
            pytest.warns(UserWarning, match=r"5 batches have come, and a (generator|Endless) .*islice"),
            pytest.raises(Ended),
        ):
            call()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.evaluate(batches(5, end=False), loss="cross_entropy")
        net.evaluate([*batches(9, end=False)], loss="cross_entropy")
