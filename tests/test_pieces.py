"""A device that gives memory in small pieces only: models, steps and data that take several, to the bit as in one."""

import numpy as np
import pytest

import clnn
from clnn import checkpoint
from clnn.runtime.memory import Memory

PIECE = 48 << 10  # bytes; the optimizer's table of rates takes 40 KiB
FEATURES, CLASSES, SAMPLES = 40, 5, 400

OPTIMIZERS = {
    "sgd": lambda: clnn.SGD(0.1),
    "momentum": lambda: clnn.SGD(0.1, momentum=0.9),
    "nesterov": lambda: clnn.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda: clnn.Adam(weight_decay=1e-3),
    "lamb": lambda: clnn.LAMB(0.01),
    "ema": lambda: clnn.Adam(ema=0.9),
    "clip_norm": lambda: clnn.SGD(0.1, clip_norm=0.5),
}


@pytest.fixture
def limited(device, monkeypatch):
    """The device with pieces of 48 KiB: a function that says so, and another that says that it gives all again."""

    def limit(piece=PIECE, alignment=1024):
        monkeypatch.setattr(device, "max_piece", piece)
        monkeypatch.setattr(device, "alignment", alignment)
        monkeypatch.setattr(device, "arena", None)
        monkeypatch.setitem(vars(device), "_memory", Memory(device))

    return limit


class Pieces(clnn.Callback):
    """Remembers the arena's pieces, which goes with the steps when fit returns."""

    def on_epoch_end(self, model, epoch, logs):
        arena = model.device.arena and model.device.arena()
        self.sizes = [block.counted for block in arena.blocks] if arena else []


def network(**options):
    layers = [
        clnn.Dense(120, "relu"),
        clnn.BatchNorm(),
        clnn.Dense(90, "tanh"),
        clnn.Dense(60, "relu"),
        clnn.Dense(CLASSES),
    ]
    return clnn.Sequential(layers, input_shape=FEATURES, seed=3, **options)


def trained(optimizer, record=True, epochs=3, net=None, callbacks=()):
    rng = np.random.default_rng(7)
    x, y = rng.standard_normal((SAMPLES, FEATURES)).astype(np.float32), rng.integers(0, CLASSES, SAMPLES)
    net = net or network()
    history = net.fit(
        x, y, loss="cross_entropy", optimizer=optimizer, epochs=epochs, batch_size=32, seed=1, record=record,
        validation=(x[:90], y[:90]), progress=False, callbacks=callbacks,
    )  # fmt: skip
    return net, history.history["loss"] + history.history["val_loss"]


def weights(net):
    return np.concatenate([p.numpy().ravel() for p in net.parameters()])


@pytest.mark.parametrize("record", [True, False], ids=["recorded", "eager"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_in_pieces_is_training_in_one(device, limited, name, record):
    whole, expected = trained(OPTIMIZERS[name](), record)
    assert len({p.store for p in whole.parameters()}) == 1
    limited()
    pieces = Pieces()
    net, losses = trained(OPTIMIZERS[name](), record, callbacks=[pieces])
    assert len({p.store for p in net.parameters()}) == 3
    assert len(pieces.sizes) >= 2 * record and max(pieces.sizes, default=0) <= PIECE
    if name == "clip_norm":  # the sum of squares goes by stores
        np.testing.assert_allclose(weights(net), weights(whole), atol=1e-5)
        np.testing.assert_allclose(losses, expected, rtol=1e-5)
    else:
        np.testing.assert_array_equal(weights(net), weights(whole))
        assert losses == expected


@pytest.mark.parametrize("name", ["momentum", "adam", "ema", "lamb"])
def test_a_run_is_saved_and_resumed_across_pieces_and_alignments(device, limited, tmp_path, name):
    """What a file holds knows nothing of pieces: it is written in one form and read in another, and back."""
    whole, expected = trained(OPTIMIZERS[name](), epochs=6)
    first, _ = trained(OPTIMIZERS[name](), epochs=2)
    first.save(tmp_path / "one")
    limited()
    second = clnn.load(tmp_path / "one")
    second.save(tmp_path / "again")
    (arrays, header), (again, other) = checkpoint.read(tmp_path / "one"), checkpoint.read(tmp_path / "again")
    assert header == other and arrays.keys() == again.keys()
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays)
    trained(second.optimizer, epochs=2, net=second)
    assert len({p.store for p in second.parameters()}) == 3
    second.save(tmp_path / "two")
    limited(1 << 30, 4096)
    third = clnn.load(tmp_path / "two")
    _, losses = trained(third.optimizer, epochs=2, net=third)
    assert len({p.store for p in third.parameters()}) == 1
    np.testing.assert_array_equal(weights(third), weights(whole))
    assert losses[-1] == expected[-1]


def test_averages_early_stopping_and_gradients_in_pieces(device, limited):
    def run():
        stop = clnn.EarlyStopping("val_loss", patience=1, min_delta=0.5)
        norms = clnn.GradientNorms(batch_size=90)
        optimizer = clnn.SGD(0.1, momentum=0.9, ema=0.5)
        net, _ = trained(optimizer, epochs=5, callbacks=[stop, norms])
        restored = weights(net)
        with optimizer.averaged():
            averages = weights(net)
        assert not np.array_equal(averages, restored)
        np.testing.assert_array_equal(weights(net), restored)
        return restored, averages, stop.best_epoch, norms.weights

    whole = run()
    limited()
    for expected, found in zip(whole, run()):
        np.testing.assert_equal(found, expected)


def test_a_minimizer_holds_all_parameters_in_one_array(device, limited):
    limited(24 << 10)
    net = clnn.Sequential([clnn.Dense(60, "tanh"), clnn.Dense(70), clnn.Dense(1)], input_shape=40, seed=1)
    x, y = np.ones((3, 40), np.float32), np.ones((3, 1), np.float32)
    with pytest.raises(
        clnn.OutOfDeviceMemory, match="^minimize.., which has all parameters in one array: .* 24.0 KiB in"
    ):
        clnn.LBFGS().minimize(lambda: clnn.losses.mse(net(x), y), net.parameters(), steps=2)
    net.layers[0].trainable = False  # what learns fits
    assert clnn.LBFGS().minimize(lambda: clnn.losses.mse(net(x), y), net.parameters(), steps=2).loss < 10


def test_evaluation_takes_batches_that_fit(device, limited):
    """Its batches are not the user's: where 512 samples do not fit, fewer go at a time, with the same results."""
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((1000, FEATURES)).astype(np.float32), rng.integers(0, CLASSES, 1000)
    whole = network()
    whole.loss = "cross_entropy"
    expected, outputs = whole.evaluate(x, y, loss="cross_entropy"), whole.predict(x)
    limited()
    net = network()
    found = net.evaluate(x, y, loss="cross_entropy")
    np.testing.assert_allclose(net.predict(x), outputs, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)
    assert found["accuracy"] == pytest.approx(expected["accuracy"])


def test_one_array_above_a_piece_names_the_layer_and_what_to_do(device, limited):
    limited()
    with pytest.raises(clnn.OutOfDeviceMemory) as error:
        clnn.Sequential([clnn.Dense(200), clnn.Dense(100)], input_shape=30)
    assert str(error.value).startswith("dense_2: 78.1 KiB asked for on ")
    assert "the device gives at most 48.0 KiB in one piece, and an array is one piece" in str(error.value)
    net = clnn.Sequential([clnn.Dense(60), clnn.Dense(50, "relu")], input_shape=30)
    with pytest.raises(clnn.OutOfDeviceMemory, match="^dense_1: .* in one piece.*; use a smaller batch or model"):
        net(np.zeros((300, 30), np.float32))
    assert net(np.zeros((200, 30), np.float32)).shape == (200, 50)
    with pytest.raises(clnn.OutOfDeviceMemory, match="^78.1 KiB asked for"):
        clnn.zeros((100, 200))


def test_a_block_as_large_as_a_piece(device, limited):
    """The pool would round it up beyond the piece: it becomes a block of its own."""
    limited()
    x = np.arange(48 * 256 - 128, dtype=np.float32)
    assert x.nbytes == PIECE - 512
    np.testing.assert_array_equal((clnn.tensor(x) + 1.0).numpy(), x + 1)

    @clnn.step
    def both(x):
        return ((x + 1.0) * 2.0 + x) * 0.5

    for _ in range(5):
        np.testing.assert_array_equal(both(x).numpy(), ((x + 1) * 2 + x) * np.float32(0.5))
