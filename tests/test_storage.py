"""Half storage: what a forward pass keeps for the backward pass, kept as halves."""

import threading

import numpy as np
import pytest

import clnn
from clnn.ops.half import pack
from clnn.storage import STORAGES, Keeper, storing

pytestmark = pytest.mark.usefixtures("device")


@pytest.mark.parametrize("n", [0, 1, 3, 16, 1000, pytest.param(40_001, marks=pytest.mark.platform("half"))])
def test_halves_are_numpys(device, rng, n):
    x = (rng.standard_normal(n) * 10.0 ** rng.uniform(-9, 6, n)).astype(np.float32)
    x[: min(n, 12)] = [0, -0.0, np.inf, -np.inf, np.nan, 65519.9, 65520, -7e4, 6e-8, 3e-8, 2.9e-8, 1.0][: min(n, 12)]
    t = clnn.tensor(x)
    before = device.memory_in_use
    pack(t)
    if n > 1000:
        assert device.memory_in_use < before - n
    with np.errstate(over="ignore"):
        want = x.astype(np.float16).astype(np.float32)
    for _ in range(2):
        found = t.numpy()
        np.testing.assert_array_equal(found, want)
        assert np.array_equal(np.signbit(found), np.signbit(want)) or np.isnan(want).any()


NETS = {
    "dense": lambda: [clnn.Dense(24, name) for name in ("relu", "gelu", "tanh", "swish", "softplus", None)],
    "softmax": lambda: [clnn.Dense(24, "softmax"), clnn.Activation("elu", alpha=0.5), clnn.PReLU()],
    "dropout": lambda: [clnn.Dense(24, "relu"), clnn.Dropout(0.3), clnn.GaussianDropout(0.2), clnn.Dense(9)],
    "norms": lambda: [clnn.Dense(24), clnn.BatchNorm(), clnn.Dense(24), clnn.LayerNorm(), clnn.Dense(9), clnn.RMSNorm()],
    "images": lambda: [
        clnn.Reshape((2, 8, 6)), clnn.Conv2D(8, 3, "relu", padding="same"), clnn.BatchNorm(), clnn.MaxPool2D(2),
        clnn.Conv2D(8, 3, "gelu", stride=2, padding="same"), clnn.UpSampling(2), clnn.AvgPool2D(2), clnn.GroupNorm(2),
        clnn.DepthwiseConv2D(3, padding="same"), clnn.Conv2DTranspose(4, 2), clnn.GlobalAvgPool(),
    ],
    "residual": lambda: [
        clnn.Reshape((2, 8, 6)),
        clnn.Residual(
            [clnn.Conv2D(8, 3, "relu", padding="same"), clnn.BatchNorm(), clnn.Conv2D(8, 3, padding="same")],
            shortcut=clnn.Conv2D(8, 1), activation="relu",
        ),
        clnn.Residual([clnn.BatchNorm(), clnn.Activation("swish"), clnn.Conv2D(8, 3, padding="same")]), clnn.Flatten(),
    ],
    "lstm": lambda: [clnn.Reshape((8, 12)), clnn.LSTM(7, return_sequences=True), clnn.Bidirectional(clnn.LSTM(5))],
    "gru": lambda: [clnn.Reshape((8, 12)), clnn.GRU(7, return_sequences=True), clnn.SimpleRNN(6, dropout=0.1)],
    "attention": lambda: [
        clnn.Reshape((8, 12)), clnn.SinusoidalPositions(), clnn.TransformerEncoderLayer(3, 40, dropout=0.0),
        clnn.MultiHeadAttention(2), clnn.TimeDistributed(clnn.Dense(8, "relu")), clnn.TemporalBlock(6, 2), clnn.Flatten(),
    ],
    "nested": lambda: [
        clnn.Dense(24, "relu"), clnn.Sequential([clnn.Dense(24, "gelu"), clnn.Sequential([clnn.Dense(20), clnn.Dense(9)])]),
    ],
}  # fmt: skip


def gradients(net, x, y):
    """A float32 network's loss and gradients."""
    clnn.seed(5)
    loss = clnn.losses.mse(net(clnn.tensor(x)), y)
    loss.backward()
    return float(loss), {name: p.grad.numpy() for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", NETS)
def test_gradients_are_those_of_rounded_activations(rng, kind):
    x = rng.standard_normal((33, 96)).astype(np.float32)
    nets = [clnn.Sequential([*NETS[kind](), clnn.Dense(3)], input_shape=96, seed=3, storage=s) for s in STORAGES]
    y = rng.standard_normal((33, 3)).astype(np.float32)
    (loss, want), (again, found) = (gradients(net, x, y) for net in nets)
    assert again == loss  # a forward pass is the same to the bit
    assert {*found} == {*want} and found
    largest = max(
        np.abs(one).max() for one in want.values()
    )  # a bias before a softmax, or a norm, has none but rounding's
    for name in want:
        scale = max(np.abs(want[name]).max(), 0.1 * largest)
        np.testing.assert_allclose(found[name] / scale, want[name] / scale, atol=0.01, err_msg=name)
    assert any((found[name] != want[name]).any() for name in want), "nothing was rounded"


def test_what_halves_hold_exactly_changes_no_bit(rng):
    x = rng.integers(-3, 4, (40, 12)).astype(np.float32)
    y = rng.integers(-3, 4, (40, 4)).astype(np.float32)
    found = []
    for storage in STORAGES:
        net = clnn.Sequential(
            [clnn.Dense(16, "relu"), clnn.Dense(8, "relu"), clnn.Dense(4)], input_shape=12, storage=storage
        )
        draw = np.random.default_rng(1)
        net.load_state_dict({name: draw.integers(-1, 2, a.shape) for name, a in net.state_dict().items()})
        found.append(gradients(net, x, y))
    for name, want in found[0][1].items():
        np.testing.assert_array_equal(found[1][1][name], want)


def deep(storage, layers=12):
    body = [clnn.Dense(256, "relu", weight_init="he_normal") for _ in range(layers)]
    return clnn.Sequential([*body, clnn.Dense(10)], input_shape=64, seed=2, storage=storage)


def test_memory(device, rng):
    """Of a deep network it takes little more than half, eagerly and recorded."""
    x, y = rng.standard_normal((1024, 64)).astype(np.float32), rng.integers(0, 10, 1024)
    peaks = {}
    for storage in STORAGES:
        net = deep(storage)
        own = sum(p.nbytes for p in net.parameters())
        for record in (False, True):
            before = device.memory_in_use
            device.reset_memory_peak()
            net.fit(
                x,
                y,
                loss="cross_entropy",
                optimizer=clnn.SGD(0.01),
                batch_size=1024,
                epochs=4,
                record=record,
                progress=False,
            )
            peaks[storage, record] = device.memory_peak - before - x.nbytes - own
        del net
    for record in (False, True):
        assert peaks["float16", record] < 0.72 * peaks["float32", record], peaks


def test_recorded_and_eager_steps_give_the_same_bits(rng):
    x, y = rng.standard_normal((160, 64)).astype(np.float32), rng.integers(0, 10, 160)
    found = []
    for record in (False, True):
        layers = [clnn.Dense(32, "gelu"), clnn.Dropout(0.2), clnn.BatchNorm(), clnn.Residual([clnn.Dense(32, "relu")])]
        net = clnn.Sequential([*layers, clnn.Dense(10)], input_shape=64, seed=2, storage="float16")
        history = net.fit(
            x,
            y,
            loss="cross_entropy",
            optimizer=clnn.Adam(),
            batch_size=32,
            epochs=4,
            seed=1,
            record=record,
            progress=False,
        )
        found.append([history["loss"], *net.state_dict().values()])
    assert found[0][0] == found[1][0]
    for a, b in zip(found[0][1:], found[1][1:]):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("always", [False, True])
def test_a_step_as_one_kernel(monkeypatch, rng, always):
    if always:
        monkeypatch.setenv("CLNN_FUSE", "always")
    x, y = rng.standard_normal((90, 64)).astype(np.float32), rng.integers(0, 10, 90)
    net = deep("float16", layers=2)
    history = net.fit(x, y, loss="cross_entropy", optimizer="sgd", batch_size=30, epochs=6, seed=1, progress=False)
    again = deep("float16", layers=2)
    other = again.fit(
        x, y, loss="cross_entropy", optimizer="sgd", batch_size=30, epochs=6, seed=1, record=False, progress=False
    )
    assert history["loss"] == other["loss"]


def test_what_a_layer_holds_on_to_follows_each_step(rng):
    class Held(clnn.Layer):
        def forward(self, x):
            self.held = 2.0 * x
            return clnn.tanh(self.held * x)

    held = Held()
    net = clnn.Sequential(
        [clnn.Dense(16), held, clnn.Dense(16, "relu"), clnn.Dense(2)], input_shape=4, storage="float16"
    )
    optimizer = clnn.SGD(0.0)

    @clnn.step
    def train(x):
        loss = net(x).sum()
        loss.backward()
        optimizer.step(net.parameters())
        return loss

    w, b = (net.layers[0].w.numpy(), net.layers[0].b.numpy())
    for _ in range(6):
        x = rng.standard_normal((8, 4)).astype(np.float32)
        train(x)
        np.testing.assert_allclose(held.held.numpy(), 2 * (x @ w + b), rtol=2e-3, atol=1e-3)
        np.testing.assert_allclose(held.held.numpy(), 2 * (x @ w + b), rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("where", ["before", "build", "forward"])
@pytest.mark.parametrize("use", ["multiply", "matmul", "attention"])
def test_what_is_not_the_networks_own_stays_exact(rng, where, use):
    """Constants, inputs and targets are as large as activations and are captured by closures, too."""
    table = rng.standard_normal((16, 16)).astype(np.float32) / 3

    class Uses(clnn.Layer):
        def __init__(self):
            self.table = clnn.tensor(table) if where == "before" else None

        def build(self, shape):
            if where == "build":
                self.table = clnn.tensor(table)

        def forward(self, x):
            if where == "forward" and clnn.tape.grad_enabled() and self.table is None:
                self.table = clnn.tensor(table)
            held = clnn.tensor(table) if self.table is None else self.table
            if use == "multiply":
                return x * held
            if use == "matmul":
                return clnn.tanh(x @ held)
            x, held = x.reshape(1, 1, -1, 16), held.reshape(1, 1, 16, 16)
            return clnn.scaled_dot_product_attention(x, held, held).reshape(-1, 16)

    def inputs():
        return clnn.Input((16,))

    x = clnn.tensor(rng.standard_normal((16, 16)).astype(np.float32))
    before = x.numpy()
    for graph in (False, True):
        uses = Uses()
        if graph:
            a = inputs()
            y = clnn.Dense(16, "relu")(uses(clnn.Dense(16, "relu")(a)))
            net = clnn.Model(a, clnn.Dense(2)(clnn.Dense(16)(y)), storage="float16")
        else:
            layers = [clnn.Dense(16, "relu"), uses, clnn.Dense(16, "relu"), clnn.Dense(16), clnn.Dense(2)]
            net = clnn.Sequential(layers, input_shape=16, storage="float16")
        for _ in range(3):
            net(x).sum().backward()
            net.zero_grad()
        np.testing.assert_array_equal(x.numpy(), before)
        if uses.table is not None:
            np.testing.assert_array_equal(uses.table.numpy(), table)


def test_graphs_keep_what_is_read_again(rng):
    def made(storage):
        clnn.seed(4)
        a, b = clnn.Input((12,)), clnn.Input((5,))
        shared = clnn.Dense(8, "gelu")
        h = clnn.Dense(12, "relu")(a)
        joined = clnn.Concatenate()(shared(h), shared(clnn.Dense(12, "tanh")(b)), h)
        y = clnn.Dense(2)(clnn.Add()(clnn.Dense(28, "relu")(joined), joined))
        return clnn.Model((a, b), {"y": y, "z": clnn.Dense(3)(joined)}, storage=storage)

    xs = rng.standard_normal((50, 12)).astype(np.float32), rng.standard_normal((50, 5)).astype(np.float32)
    ys = {"y": rng.standard_normal((50, 2)).astype(np.float32), "z": rng.integers(0, 3, 50)}
    losses = {}
    for storage in STORAGES:
        net = made(storage)
        history = net.fit(
            xs, ys, loss={"y": "mse", "z": "cross_entropy"}, optimizer=clnn.SGD(0.05), batch_size=25, epochs=5, seed=1,
            progress=False,
        )  # fmt: skip
        losses[storage] = history["loss"]
    np.testing.assert_allclose(losses["float16"], losses["float32"], rtol=1e-3)
    assert losses["float16"] != losses["float32"]


def test_files_copies_and_changes(tmp_path, rng):
    x, y = rng.standard_normal((40, 64)).astype(np.float32), rng.integers(0, 10, 40)
    net = deep("float16", layers=2)
    assert "storage='float16'" in repr(net) and "storage" not in repr(deep("float32", layers=2))
    net.save(tmp_path / "net.clnn")
    loaded = clnn.load(tmp_path / "net.clnn")
    assert loaded.storage == "float16"
    np.testing.assert_array_equal(loaded.predict(x), net.predict(x))
    how = {"loss": "cross_entropy", "batch_size": 20, "seed": 1, "progress": False}
    want = deep("float32", layers=2).fit(x, y, optimizer="sgd", epochs=4, **how)["loss"]
    assert loaded.fit(x, y, optimizer="sgd", epochs=4, **how)["loss"] != want
    loaded = deep("float16", layers=2)
    loaded.storage = "float32"
    assert loaded.fit(x, y, optimizer="sgd", epochs=4, **how)["loss"] == want
    a, b = clnn.Input((3,)), clnn.Input((3,))
    graph = clnn.Model((a, b), clnn.Add()(a, b), storage="float16")
    graph.save(tmp_path / "graph.clnn")
    assert clnn.load(tmp_path / "graph.clnn").storage == "float16"


def test_a_change_between_two_fits_is_recorded_anew(rng):
    x, y = rng.standard_normal((40, 64)).astype(np.float32), rng.integers(0, 10, 40)
    nets = [deep("float32", layers=3) for _ in range(2)]
    optimizers = [clnn.SGD(0.1) for _ in nets]

    @clnn.step
    def train(x, y, which):
        loss = clnn.losses.cross_entropy(nets[which](x), y)
        loss.backward()
        optimizers[which].step(nets[which].parameters())
        return loss

    for i in range(12):
        if i == 6:
            nets[1].storage = "float16"
        found = [float(train(x, y, which)) for which in (0, 1)]
        assert i > 6 or found[0] == found[1], (i, found)
    first, second = (net.state_dict() for net in nets)
    assert any((first[name] != second[name]).any() for name in first)


def test_what_is_too_large_for_a_half_is_told(rng):
    net = clnn.Sequential(
        [clnn.Dense(16, "relu"), clnn.Dense(16, "relu"), clnn.Dense(2)], input_shape=4, storage="float16"
    )
    net.layers[0].w.device.upload(np.full((4, 16), 3e5, np.float32), net.layers[0].w.block)
    x, y = np.abs(rng.standard_normal((8, 4))).astype(np.float32) + 1, rng.standard_normal((8, 2)).astype(np.float32)
    with pytest.raises(clnn.Diverged):
        net.fit(x, y, loss="mse", optimizer=clnn.SGD(1e-30), epochs=2, progress=False)


@pytest.mark.parametrize("value", ["half", "float64", np.float16, None, 16])
def test_other_names_are_refused(value):
    with pytest.raises(clnn.ConfigurationError, match="storage is 'float32' or 'float16', .* was provided"):
        clnn.Sequential([clnn.Dense(2)], input_shape=3, storage=value)
    net = clnn.Sequential([clnn.Dense(2)], input_shape=3)
    with pytest.raises(clnn.ConfigurationError, match="storage"):
        net.storage = value
    assert net.storage == "float32"


def test_a_forward_of_ones_own_is_refused():
    class Own(clnn.Model):
        def __init__(self, **options):
            super().__init__(**options)
            self.inner = clnn.Sequential([clnn.Dense(4, "relu"), clnn.Dense(2)], storage="float16")

        def forward(self, x):
            return self.inner(x)

    with pytest.raises(clnn.ConfigurationError, match="have your forward.. call Sequential"):
        Own(storage="float16")
    with pytest.raises(clnn.ConfigurationError, match="is for Sequential and Model"):
        Own().storage = "float16"
    net = Own()
    net(np.ones((3, 5))).sum().backward()
    assert net.storage == "float32" and net.inner.storage == "float16"


def test_float64_is_refused(device):
    if not device.has_fp64:
        pytest.skip("no float64")
    with pytest.raises(clnn.ConfigurationError, match="for networks of float32, and this one is of float64"):
        clnn.Sequential([clnn.Dense(2)], input_shape=3, dtype="float64", storage="float16")


def test_other_threads_and_other_networks_keep_floats(rng):
    seen = []
    other = clnn.Sequential([clnn.Dense(4, "relu"), clnn.Dense(2)], input_shape=3)
    with storing("float16"):
        assert Keeper().since is not None
        thread = threading.Thread(target=lambda: seen.append(Keeper().since))
        thread.start()
        thread.join()
        with clnn.no_grad():
            assert Keeper().since is None
    assert seen == [None] and Keeper().since is None
    x = rng.standard_normal((5, 3)).astype(np.float32)
    with pytest.raises(clnn.ShapeError), storing("float16"):
        other(rng.standard_normal((5, 4)))
    assert Keeper().since is None
    other(x).sum().backward()
