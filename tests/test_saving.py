"""Every layer, and models of one's own, saved and loaded: the same architecture, and the same answers to the bit; or refused."""

import json
from contextlib import nullcontext

import numpy as np
import pytest

import clnn
from clnn.layers import base

IMAGE = (4, 6, 6)
LAYERS = {  # class: (ways to make one, the shape of a sample)
    "Dense": ([lambda: clnn.Dense(3, "tanh", bias=False, max_norm=2.0), lambda: clnn.Dense(3, "softmax")], (5,)),
    "Activation": (
        [
            lambda: clnn.Activation("gelu"),
            lambda: clnn.Activation("log_softmax"),
            lambda: clnn.Activation("leaky_relu", slope=0.3),
            lambda: clnn.Activation("elu", alpha=2),
        ],
        (5,),
    ),
    "PReLU": ([lambda: clnn.PReLU(), lambda: clnn.PReLU(-1, "ones"), lambda: clnn.PReLU(None, 0.1)], IMAGE),
    "Flatten": ([clnn.Flatten], (2, 3)),
    "Reshape": ([lambda: clnn.Reshape((3, -1)), lambda: clnn.Reshape(6)], (2, 3)),
    "Dropout": ([lambda: clnn.Dropout(0.3)], (5,)),
    "SpatialDropout": ([lambda: clnn.SpatialDropout(0.3)], IMAGE),
    "GaussianDropout": ([lambda: clnn.GaussianDropout(0.3)], (5,)),
    "BatchNorm": ([lambda: clnn.BatchNorm("relu", momentum=0.7), lambda: clnn.BatchNorm(affine=False)], IMAGE),
    "LayerNorm": ([lambda: clnn.LayerNorm((-2, -1)), lambda: clnn.LayerNorm(affine=False)], (3, 4)),
    "RMSNorm": ([lambda: clnn.RMSNorm(epsilon=1e-3)], (3, 4)),
    "GroupNorm": ([lambda: clnn.GroupNorm(2, "tanh")], IMAGE),
    "InstanceNorm": ([lambda: clnn.InstanceNorm()], IMAGE),
    "LocalResponseNorm": ([lambda: clnn.LocalResponseNorm(3, alpha=0.1)], IMAGE),
    "Conv1D": (
        [
            lambda: clnn.Conv1D(3, 3, "relu", stride=2, padding="same"),
            lambda: clnn.Conv1D(3, 2, dilation=3, padding="causal"),
        ],
        (4, 9),
    ),
    "Conv2D": (
        [
            lambda: clnn.Conv2D(4, (3, 2), "tanh", padding=((1, 0), (0, 1)), dilation=2, groups=2),
            lambda: clnn.Conv2D(2, 3, bias=False, padding="valid"),
        ],
        IMAGE,
    ),
    "Conv3D": ([lambda: clnn.Conv3D(2, 2, stride=(1, 2, 1))], (2, 4, 4, 4)),
    "Conv1DTranspose": ([lambda: clnn.Conv1DTranspose(3, 3, stride=2, output_padding=1)], (4, 5)),
    "Conv2DTranspose": ([lambda: clnn.Conv2DTranspose(3, 2, "relu", stride=2, padding=1)], IMAGE),
    "Conv3DTranspose": ([lambda: clnn.Conv3DTranspose(2, 2, bias=False)], (2, 3, 3, 3)),
    "DepthwiseConv2D": ([lambda: clnn.DepthwiseConv2D(3, "relu", multiplier=2, padding="same")], IMAGE),
    "MaxPool1D": ([lambda: clnn.MaxPool1D(3, 2, ceil_mode=True)], (4, 9)),
    "MaxPool2D": ([lambda: clnn.MaxPool2D((2, 3), padding=1)], IMAGE),
    "MaxPool3D": ([lambda: clnn.MaxPool3D(2)], (2, 4, 4, 4)),
    "AvgPool1D": ([lambda: clnn.AvgPool1D(2)], (4, 9)),
    "AvgPool2D": ([lambda: clnn.AvgPool2D(2, padding=1, count_include_pad=False)], IMAGE),
    "AvgPool3D": ([lambda: clnn.AvgPool3D(2, 1)], (2, 4, 4, 4)),
    "AdaptiveMaxPool": ([lambda: clnn.AdaptiveMaxPool(2)], IMAGE),
    "AdaptiveAvgPool": ([lambda: clnn.AdaptiveAvgPool((2, 3))], IMAGE),
    "GlobalMaxPool": ([clnn.GlobalMaxPool], IMAGE),
    "GlobalAvgPool": ([clnn.GlobalAvgPool], IMAGE),
    "Residual": (
        [
            lambda: clnn.Residual([clnn.Dense(4, "relu"), clnn.Dense(5)], activation="tanh"),
            lambda: clnn.Residual(clnn.Dense(3), shortcut=[clnn.Dense(4), clnn.Dense(3)]),
        ],
        (5,),
    ),
    "SimpleRNN": ([lambda: clnn.SimpleRNN(20, "relu", go_backwards=True)], (4, 3)),
    "LSTM": (
        [
            lambda: clnn.LSTM(20, return_sequences=True, unit_forget_bias=False),
            lambda: clnn.LSTM(20, dropout=0.2, recurrent_dropout=0.3, recurrent_init="glorot_normal"),
        ],
        (4, 3),
    ),
    "Bidirectional": ([lambda: clnn.Bidirectional(clnn.GRU(20), "ave")], (4, 3)),
    "TimeDistributed": ([lambda: clnn.TimeDistributed(clnn.Dense(3, "tanh"))], (4, 3)),
    "Masking": (
        [
            lambda: clnn.Masking([clnn.LSTM(20, return_sequences=True), clnn.Dense(3)], mask_value=2.0),
            lambda: clnn.Masking(mask_value=2.0),
        ],
        (4, 3),
    ),
    "GRU": ([lambda: clnn.GRU(20, recurrent_activation="hard_sigmoid"), lambda: clnn.GRU(20, use_bias=False)], (4, 3)),
    "SimpleRNNCell": ([lambda: clnn.SimpleRNNCell(20, "relu")], (3,)),
    "GRUCell": ([lambda: clnn.GRUCell(20, use_bias=False, recurrent_init="normal")], (3,)),
    "TemporalBlock": (
        [
            lambda: clnn.TemporalBlock(3, 2, dilation=2, dropout=0.2),
            lambda: clnn.TemporalBlock(4, 3, weight_init="zeros"),
        ],
        (4, 9),
    ),
    "UpSampling": ([lambda: clnn.UpSampling((2, 3), "bilinear"), lambda: clnn.UpSampling()], IMAGE),
    "Padding": ([lambda: clnn.Padding(((1, 2), (0, 1)), "reflect"), lambda: clnn.Padding(1, value=2.5)], IMAGE),
    "Embedding": (
        [lambda: clnn.Embedding(9, 4, padding=2, mask_zero=False), lambda: clnn.Embedding(3, 2, weight_init="normal")],
        (5,),
    ),
    "PositionalEmbedding": ([lambda: clnn.PositionalEmbedding(7)], (6, 4)),
    "SinusoidalPositions": ([clnn.SinusoidalPositions, lambda: clnn.SinusoidalPositions(9)], (6, 4)),
    "MultiHeadAttention": (
        [
            lambda: clnn.MultiHeadAttention(2, causal=True, rotary=True),
            lambda: clnn.MultiHeadAttention(4, key_heads=2, bias=False, dropout=0.2),
        ],
        (6, 8),
    ),
    "TransformerEncoderLayer": (
        [
            lambda: clnn.TransformerEncoderLayer(2, 12, causal=True, norm="rms", dropout=0.1),
            lambda: clnn.TransformerEncoderLayer(2, 6, "relu", norm_first=False, rotary=True, key_heads=1),
        ],
        (6, 8),
    ),
    "Sequential": ([lambda: clnn.Sequential([clnn.Dense(4, "tanh"), clnn.Dense(3)], seed=3)], (5,)),
    "Model": ([lambda: clnn.Model(a := clnn.Input(5), clnn.Add()(a, (d := clnn.Dense(5, "tanh"))(d(a))))], (5,)),
}
WAYS = [(name, i) for name, (ways, _) in LAYERS.items() for i in range(len(ways))]


def test_every_layer_is_here():
    library = ("clnn.layers.", "clnn.model")  # `clnn reproduce` has one of its own
    assert {name for name, cls in base.REGISTRY.items() if cls.__module__.startswith(library)} == {
        *LAYERS,
        "TransformerDecoderLayer",
        "LSTMCell",  # test_recurrent.py
        *("Add", "Average", "Concatenate", "Maximum", "Multiply", "Split", "Subtract"),  # test_graphs.py
    }


def trained(net, rng, device, shape, seed=1):
    """After a few steps, so that statistics and biases are something; and a batch."""
    x = rng.standard_normal((7, *shape)).astype(np.float32)
    if net.takes_whole(0):
        x = np.abs(np.round(x)).astype(np.int32) % 3
    y = np.zeros((7, *net.predict(x).shape[1:]), np.float32)
    if any(p.trainable for p in net.parameters()):
        net.fit(x, y, loss="mse", optimizer=clnn.SGD(0.05), epochs=2, batch_size=7, seed=seed, progress=False)
    return x


def assert_comes_back(net, x, path):
    """The file gives a model with the same layers, parameters and answers, which can be saved and loaded again."""
    net.save(path)
    with clnn.use(net.device):
        again = clnn.load(path)
    assert repr(again) == repr(net) and type(again) is type(net)
    for (name, p), (other, q) in zip(net.named_parameters(), again.named_parameters(), strict=True):
        assert name == other and (p.learns, p.trainable, p.decays) == (q.learns, q.trainable, q.decays)
        np.testing.assert_array_equal(p.numpy(), q.numpy())
    given = x if isinstance(x, tuple) else (x,)
    np.testing.assert_array_equal(net.predict(x), again.predict(x))
    with clnn.no_grad():
        np.testing.assert_array_equal(net(*given).numpy(), again(*given).numpy())
    again.save(path)
    with clnn.use(net.device):
        np.testing.assert_array_equal(clnn.load(path).predict(x), net.predict(x))
    return again


@pytest.mark.parametrize(
    "told",
    ["GRU(3)", "LSTM(4, return_sequences=True)", "Bidirectional(GRU(2, dropout=0.1))", "Conv2DTranspose(2, 3, stride=2)",
     "LSTMCell(3)", "GRU(3, reset_after=False)", "DepthwiseConv2D(3)"],
)  # fmt: skip
def test_a_layer_is_told_by_what_was_given(device, told):
    """Not by all that its bases take."""
    assert repr(eval(told, vars(clnn).copy())) == told  # noqa: S307 - repr is how it was made


@pytest.mark.parametrize(("name", "way"), WAYS)
@pytest.mark.parametrize("built", ["with it", "at the first call"])
def test_every_layer_comes_back(device, rng, tmp_path, name, way, built):
    make, shape = LAYERS[name][0][way], LAYERS[name][1]
    layer = make()
    if name != "Model":  # of a graph it says how large that is
        again = eval(repr(layer), {**vars(clnn), name: base.REGISTRY[name]})  # noqa: S307 - repr is how it was made
        assert repr(again) == repr(layer)
    with clnn.use(device):
        net = clnn.Sequential([layer], input_shape=shape if built == "with it" else None)
    x = trained(net, rng, device, shape)
    with clnn.no_grad():
        eager = net(x).numpy()
    for _ in range(5):
        np.testing.assert_array_equal(net.predict(x), eager)
    assert_comes_back(net, x, tmp_path / "net")
    net.trainable = False
    assert_comes_back(net, x, tmp_path / "net")


@pytest.mark.parametrize("name", [name for name, (_, shape) in LAYERS.items() if shape == (5,) and name != "Embedding"])
def test_layers_within_layers_and_shared_ones(device, rng, tmp_path, name):
    """A layer that stands in a model twice is one afterwards, too."""
    make = LAYERS[name][0][0]
    with clnn.use(device):
        shared = clnn.Dense(5, "tanh")
        inner = clnn.Sequential([clnn.Residual([shared]), clnn.Dense(5)])
        net = clnn.Sequential([shared, inner, shared, make(), clnn.Dense(5), inner], input_shape=5)
    x = trained(net, rng, device, (5,))
    again = assert_comes_back(net, x, tmp_path / "net")
    assert again.layers[0] is again.layers[2] is again.layers[1].layers[0].body[0]
    assert again.layers[1] is again.layers[5]
    again.fit(x, net.predict(x), loss="mse", optimizer=clnn.SGD(0.1), progress=False)
    np.testing.assert_array_equal(again.layers[0].w.numpy(), again.layers[1].layers[0].body[0].w.numpy())


# -- models of one's own ----------------------------------------------------------------------------------------------
@pytest.fixture(autouse=True)
def registry():
    """What a test registers is gone afterwards."""
    before = dict(base.REGISTRY), dict(base.VERSIONS)
    yield
    for now, then in zip((base.REGISTRY, base.VERSIONS), before):
        now.clear()
        now.update(then)


def two(register=clnn.register):
    @register
    class Two(clnn.Model):
        def __init__(self, hidden=3, activation="tanh"):
            self.hidden, self.activation = hidden, activation
            self.a, self.b = clnn.Dense(hidden, activation), clnn.Dense(2)

        def forward(self, x):
            return self.b(self.a(x))

        def config(self):
            return {"hidden": self.hidden, "activation": self.activation}

    return Two


def test_a_model_of_ones_own(device, rng, tmp_path):
    with clnn.use(device):
        net = two()(7, "relu")
    x = trained(net, rng, device, (5,))
    again = assert_comes_back(net, x, tmp_path / "net")
    assert again.hidden == 7 and again.a.activation == "relu" and len(again.parameters()) == 4
    for one in (net, again):
        one.fit(x, np.zeros((7, 2), np.float32), loss="mse", optimizer=one.optimizer, epochs=2, seed=4, progress=False)
    np.testing.assert_array_equal(net.predict(x), again.predict(x))
    net.a.trainable = False
    assert not assert_comes_back(net, x, tmp_path / "net").a.w.trainable


def test_a_model_of_several_inputs_with_lists_and_shared_layers(device, rng, tmp_path):
    @clnn.register
    class Towers(clnn.Model):
        def __init__(self, depth=2):
            self.depth = depth
            self.encoder = clnn.Sequential([clnn.Dense(4, "tanh"), clnn.BatchNorm()])
            self.tower = [clnn.Dense(4, "tanh") for _ in range(depth)]
            self.heads = {"left": clnn.Dense(2), "right": clnn.Dense(2)}
            self.same = self.tower[0]

        def build(self, *shapes):
            self.scale = self.parameter(len(shapes), init="ones")

        def forward(self, x, y):
            x, y = self.encoder(x), self.encoder(y)
            for layer in self.tower:
                x, y = layer(x), self.same(layer(y))
            return self.heads["left"](x) * self.scale[0] + self.heads["right"](y) * self.scale[1]

        def config(self):
            return {"depth": self.depth}

    with clnn.use(device):
        net = Towers(3)
    x = tuple(rng.standard_normal((9, 5)).astype(np.float32) for _ in range(2))
    y = rng.standard_normal((9, 2)).astype(np.float32)
    net.fit(x, y, loss="mse", optimizer=clnn.Adam(0.01), epochs=3, batch_size=3, progress=False)
    again = assert_comes_back(net, x, tmp_path / "net")
    assert again.same is again.tower[0]
    for one in (net, again):
        one.fit(x, y, loss="mse", optimizer=one.optimizer, epochs=2, batch_size=3, seed=4, progress=False)
    np.testing.assert_array_equal(net.predict(x), again.predict(x))


def test_a_model_of_ones_own_within_another(device, rng, tmp_path):
    Two = two()
    with clnn.use(device):
        inner = Two(3)
        net = clnn.Sequential([clnn.Dense(4), inner, clnn.Dense(4), inner.a], input_shape=5)
    with pytest.raises(clnn.CheckpointError, match="inner|its parameters differ|is"):
        net.save(tmp_path / "net")  # inner's own layer is made anew by it, and would no longer be shared
    assert not (tmp_path / "net").exists()
    with clnn.use(device):
        net = clnn.Sequential([clnn.Dense(4), Two(3), clnn.Dense(5), Two(2)], input_shape=5)
    assert_comes_back(net, trained(net, rng, device, (5,)), tmp_path / "net")


def test_whole_numbers_as_input(device, tmp_path):
    @clnn.register
    class Lookup(clnn.Model):
        def build(self, *shapes):
            self.table = self.parameter((4, 3))

        def forward(self, index):
            assert index.dtype == np.int32
            return clnn.take_rows(self.table, index)

    with clnn.use(device):
        net = Lookup()
        index = clnn.tensor([1, 3, 0])
        with clnn.no_grad():
            expected = net(index).numpy()
            net.save(tmp_path / "net")
            np.testing.assert_array_equal(clnn.load(tmp_path / "net")(index).numpy(), expected)


def refuse(kind, make, words):
    return pytest.param(kind, make, words, id=kind)


class Scale(clnn.Layer):
    def __init__(self, factor=2.0):
        self.factor = factor

    def forward(self, x):
        return x * self.factor


class Wide(clnn.Layer):
    def __init__(self, width=2):
        self.size = width

    def build(self, shape):
        self.w = self.parameter((shape[-1], self.size))

    def forward(self, x):
        return x @ self.w


class Grows(clnn.Model):
    def __init__(self):
        self.a = clnn.Dense(2)

    def forward(self, x):
        return self.a(x)


def grown():
    net = Grows()
    net.more = clnn.Dense(3)
    return net


def other_layer():
    net = Grows()
    net.a = clnn.Dense(4)
    return net


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: clnn.Sequential([Scale(5.0)]), "factor of layers.0 is 5.0, then 2.0"),
        (lambda: clnn.Sequential([Wide(3)]), r"layers.0.w \(5, 3\), then \(5, 2\)|0.w \(5, 3\), then \(5, 2\)"),
        (grown, "more is Dense"),
        (other_layer, r"a.w \(5, 4\), then \(5, 2\)"),
        (lambda: clnn.Sequential([Needs(3)]), "does not fit|missing"),
        (lambda: clnn.Sequential([Holds(np.zeros(5))]), "a config holds"),
        (
            lambda: clnn.Sequential([Holds(np.float32(np.inf))]),
            "a config holds inf, which JSON cannot; use finite numbers",
        ),
    ],
)
def test_what_could_not_be_loaded_is_refused_when_saving(device, rng, tmp_path, make, words):
    for cls in (Scale, Wide, Grows, Needs, Holds):
        clnn.register(cls)
    with clnn.use(device):
        net = make()
    net.predict(rng.standard_normal((2, 5)).astype(np.float32))
    with pytest.raises(clnn.CheckpointError, match=words):
        net.save(tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


class Needs(Scale):
    def __init__(self, factor):
        super().__init__(factor)


class Holds(Scale):
    def config(self):
        return {"factor": self.factor}


def test_saving_draws_no_random_numbers_and_changes_nothing(device, rng, tmp_path):
    """Training goes on to the same bits whether the model is saved between or not."""
    x, y = rng.standard_normal((16, 5)).astype(np.float32), rng.standard_normal((16, 2)).astype(np.float32)
    found = []
    for saves in (False, True):
        with clnn.use(device):
            clnn.seed(5)
            net = clnn.Sequential(
                [clnn.Dense(6, "tanh"), clnn.Dropout(0.2), clnn.BatchNorm(), clnn.Dense(2)], input_shape=5
            )
            optimizer = clnn.Adam(0.01)
            for _ in range(3):
                net.fit(x, y, loss="mse", optimizer=optimizer, epochs=2, batch_size=8, progress=False)
                if saves:
                    net.save(tmp_path / "net")
        found.append(net.predict(x))
    np.testing.assert_array_equal(*found)


def test_tensors_that_a_layer_makes_besides_its_parameters(device, rng, tmp_path):
    @clnn.register
    class Masked(clnn.Layer):
        def build(self, shape):
            self.mask = clnn.ones(shape, device=self.device) * 3.0
            self.offset = clnn.tensor(np.arange(shape[0], dtype=np.float32), device=self.device)

        def __init__(self):
            self.by, self.own = clnn.ones((5,)) * 2.0, [clnn.tensor([0.5])]

        def forward(self, x):
            return x * self.mask * self.by + self.offset * self.own[0]

    with clnn.use(device):
        net = clnn.Sequential([Masked(), clnn.Dense(2)], input_shape=5)
    assert_comes_back(net, rng.standard_normal((3, 5)).astype(np.float32), tmp_path / "net")


def test_a_loaded_models_store_has_zeros_between_its_parameters(device, rng, tmp_path):
    """Norms are taken over them, too."""
    with clnn.use(device):
        net = clnn.Sequential([clnn.Dense(3), clnn.Dense(2)], input_shape=5)
        net.save(tmp_path / "net")
        again = clnn.load(tmp_path / "net")
    stores = {p.store for p in again.parameters()}
    assert stores
    for store in stores:
        found = device.read(store.block, np.empty(store.nbytes // 4, np.float32))
        for p in again.parameters():
            found[p.position // 4 : p.position // 4 + p.size] = 0
        assert not found.any()


# -- losses, optimizers and schedules of one's own -----------------------------------------------------------------------
class OwnLoss(clnn.losses.Loss):
    name, takes = "mse", "numbers"

    def __init__(self, weight=1.0):
        self.weight = weight

    def rows(self, output, *args, **options):
        return super().rows(output * self.weight, *args, **options)

    def config(self):
        return {"weight": self.weight}


class OwnHuber(clnn.losses.Huber):
    pass


class Called:
    def __init__(self, weight=1.0):
        self.weight = weight

    def __call__(self, output, target):
        return clnn.losses.mse(output, target) * self.weight

    def config(self):
        return {"weight": self.weight}


def own_loss(output, target):
    return clnn.losses.mse(output, target) * 2.0


class OwnAdam(clnn.Adam):
    def __init__(self, lr=0.01, slower=1.0, **options):
        super().__init__(lr, **options)
        self.slower = slower

    def numbers(self, lr, t):
        return super().numbers(lr / self.slower, t)

    def config(self):
        return {**super().config(), "slower": self.slower}


class OwnSchedule(clnn.schedules.Schedule):
    def __init__(self, lr):
        super().__init__()
        self.lr = lr

    def rate(self, t):
        return self.lr / (1 + t)


def own_rate(t):
    return 0.1 / (1 + t)


OWN = {  # kind: the loss, the optimizer, and what a file goes without where it is not registered
    "loss": (lambda: OwnLoss(3.0), clnn.SGD, "loss OwnLoss"),
    "loss derived from one of clnn's": (lambda: OwnHuber(0.2), clnn.SGD, "loss OwnHuber"),
    "object": (lambda: Called(3.0), clnn.SGD, "loss Called"),
    "function": (lambda: own_loss, clnn.SGD, "loss own_loss"),
    "optimizer": (lambda: "mse", lambda: OwnAdam(0.05, slower=4.0, ema=0.9), "optimizer OwnAdam"),
    "schedule": (lambda: "mse", lambda: clnn.Adam(OwnSchedule(0.1)), "schedule OwnSchedule"),
    "function of the rate": (lambda: "mse", lambda: clnn.Adam(own_rate), "schedule own_rate"),
    "warm-up": (lambda: "mse", lambda: clnn.SGD(clnn.WarmUp(OwnSchedule(0.1), 3), momentum=0.9), "schedule WarmUp"),
}
OWN_CLASSES = (OwnLoss, OwnHuber, Called, own_loss, OwnAdam, OwnSchedule, own_rate)


def fitted(device, loss, optimizer):
    with clnn.use(device):
        net = clnn.Sequential([clnn.Dense(3, "tanh"), clnn.Dense(2)], input_shape=4, seed=2)
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((12, 4)).astype(np.float32), rng.standard_normal((12, 2)).astype(np.float32)

    def go_on(net, loss=loss, optimizer=optimizer):
        net.fit(x, y, loss=loss, optimizer=optimizer, epochs=2, batch_size=4, seed=7, progress=False)

    go_on(net)
    return net, go_on


@pytest.mark.parametrize("kind", OWN)
def test_what_is_registered_comes_back_and_goes_on(device, tmp_path, kind):
    for one in OWN_CLASSES:
        clnn.register(one)
    loss, optimizer, _ = OWN[kind]
    net, go_on = fitted(device, loss(), optimizer())
    net.save(tmp_path / "net")
    with clnn.use(device):
        again = clnn.load(tmp_path / "net")
    assert type(again.loss) is type(net.loss) and type(again.optimizer) is type(net.optimizer)
    again.save(tmp_path / "again")
    go_on(net)
    go_on(again, again.loss, again.optimizer)
    for p, q in zip(net.parameters(), again.parameters(), strict=True):
        np.testing.assert_array_equal(p.numpy(), q.numpy())


@pytest.mark.parametrize("kind", OWN)
def test_what_is_not_registered_is_said(device, tmp_path, kind):
    loss, optimizer, name = OWN[kind]
    net, _ = fitted(device, loss(), optimizer())
    with pytest.warns(clnn.CheckpointWarning, match=f"goes without the {name}: decorate it .*@clnn.register"):
        net.save(tmp_path / "net")
    with clnn.use(device):
        again = clnn.load(tmp_path / "net")
    for p, q in zip(net.parameters(), again.parameters(), strict=True):
        np.testing.assert_array_equal(p.numpy(), q.numpy())


@pytest.mark.parametrize(
    ("loss", "optimizer", "words"),
    [
        (
            lambda: forgetful(OwnLoss)(3.0),
            clnn.SGD,
            r"a loss Forgetful made of its config\(\) would have the weight 3.0, then 1.0",
        ),
        (lambda: "mse", lambda: forgetful(OwnAdam)(slower=3.0), "optimizer Forgetful .* slower 3.0, then 1.0"),
        (lambda: "mse", lambda: forgetful(OwnAdam, "missing")(), "optimizer Forgetful .* cannot be made"),
        (lambda: forgetful(OwnLoss, weight=np.ones(2))(), clnn.SGD, "loss Forgetful .* cannot be made"),
    ],
    ids=["loss", "optimizer", "argument", "array"],
)
def test_what_could_not_be_made_again_is_refused_when_saving(device, tmp_path, loss, optimizer, words):
    net, _ = fitted(device, loss(), optimizer())
    with pytest.raises(clnn.CheckpointError, match=words):
        net.save(tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


def forgetful(base, *unknown, **more):
    class Forgetful(base):
        def config(self):
            return {**(clnn.Adam.config(self) if base is OwnAdam else {}), **dict.fromkeys(unknown, 1), **more}

    return clnn.register(Forgetful)


def test_a_file_whose_loss_is_not_known_here(device, tmp_path):
    clnn.register(OwnLoss), clnn.register(OwnAdam), clnn.register(Scale)
    net, _ = fitted(device, OwnLoss(), OwnAdam())
    net.save(tmp_path / "net")
    for name, what in (("OwnAdam", "optimizer"), ("OwnLoss", "loss")):
        kept = base.REGISTRY.pop(name)
        with (
            clnn.use(device),
            pytest.raises(clnn.CheckpointError, match=f"names a {what} class '{name}'.*@clnn.register"),
        ):
            clnn.load(tmp_path / "net")
        base.REGISTRY[name] = kept
    arrays, header = clnn.checkpoint.read(tmp_path / "net")
    for wrong in (
        {"optimizer": {**header["optimizer"], "class": "Scale"}},
        {"loss": {"class": "Nothing"}},
        {"loss": {"loss": "nothing"}},
        {"model": {**header["model"], "class": "OwnAdam"}},
    ):
        clnn.checkpoint.write(tmp_path / "wrong", arrays, {**header, **wrong})
        with clnn.use(device), pytest.raises(clnn.CheckpointError):
            clnn.load(tmp_path / "wrong")
    with pytest.raises(clnn.ConfigurationError, match="functions with a name"):
        clnn.register(lambda output, target: output)


# -- versions of a class ----------------------------------------------------------------------------------------------
def test_a_renamed_argument_does_not_break_files(device, rng, tmp_path):
    x = rng.standard_normal((3, 5)).astype(np.float32)

    def scale(version):
        class Times(clnn.Layer):
            def __init__(self, **options):
                self.__dict__.update(options)

            def forward(self, x):
                return x * (self.factor if version == 1 else self.by)

            def config(self):
                return {"factor": self.factor} if version == 1 else {"by": self.by}

            if version > 1:

                @staticmethod
                def upgrade(config, version):
                    assert version == 1
                    return {"by": config["factor"]}

        return clnn.register(Times) if version == 1 else clnn.register(version=version)(Times)

    old = scale(1)
    with clnn.use(device):
        net = clnn.Sequential([clnn.Dense(3), old(factor=3.0)], input_shape=5)
        expected = net.predict(x)
        net.save(tmp_path / "old")
        new = scale(2)
        again = clnn.load(tmp_path / "old")
        assert again.layers[1].by == 3.0 and type(again.layers[1]) is new
        np.testing.assert_array_equal(again.predict(x), expected)
        again.save(tmp_path / "new")
        np.testing.assert_array_equal(clnn.load(tmp_path / "new").predict(x), expected)
        scale(1)
        with pytest.raises(clnn.CheckpointError, match="Times of version 2, and here is 1: update"):
            clnn.load(tmp_path / "new")
        clnn.register(type("Times", (clnn.Layer,), {"__init__": lambda self, by: None}))  # without a version
        with pytest.raises(clnn.CheckpointError, match=r"does not fit this class.* @clnn.register\(version=2\)"):
            clnn.load(tmp_path / "old")
        with pytest.raises(
            clnn.ConfigurationError, match=r"Scale of version 3 needs a static method upgrade\(config, version\)"
        ):
            clnn.register(version=3)(Scale)
        _, header = clnn.checkpoint.read(tmp_path / "new")
        assert json.dumps(header["model"]).count('"version": 2') == 1


# -- what is changed after a model was made -----------------------------------------------------------------------------------
def test_settings_of_parameters_and_names_of_layers_come_back(device, rng, tmp_path):
    x, y = rng.standard_normal((20, 5)).astype(np.float32), rng.standard_normal((20, 2)).astype(np.float32)
    net = clnn.Sequential([clnn.Dense(4, "tanh"), clnn.Dense(2)], input_shape=5)
    net.layers[0].name, net.layers[1].name = "encoder", "head"
    net.layers[0].w.rate_factor, net.layers[1].w.decays, net.layers[1].w.max_norm = 0.1, False, 0.5
    options = {"loss": "mse", "epochs": 2, "batch_size": 6, "seed": 1, "progress": False}
    net.fit(x, y, optimizer=clnn.SGD(0.1, momentum=0.5, weight_decay=0.3), **options)
    net.save(tmp_path / "net")
    loaded = clnn.load(tmp_path / "net")
    assert [layer.name for layer in loaded.layers] == ["encoder", "head"]
    for one in (net, loaded):
        one.fit(x, y, optimizer=one.optimizer, **options)
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, loaded.state_dict()[name])


@pytest.mark.parametrize("loaded_before", [False, True])
def test_the_state_of_a_layer_that_is_gone_stays_behind(device, rng, tmp_path, loaded_before):
    """The next layer has its name now, and of the same shape it would get its moments."""
    x, y = rng.standard_normal((20, 5)).astype(np.float32), rng.standard_normal((20, 2)).astype(np.float32)
    net = clnn.Sequential(
        [clnn.Dense(5, "tanh"), clnn.Dense(5, "tanh"), clnn.Dense(5, "relu"), clnn.Dense(2)], input_shape=5
    )
    options = {"loss": "mse", "epochs": 2, "batch_size": 6, "seed": 1, "progress": False}
    net.fit(x, y, optimizer=clnn.Adam(0.01), **options)
    net.save(tmp_path / "whole")
    if loaded_before:
        net = clnn.load(tmp_path / "whole")
    net.layers.pop(1)
    net.save(tmp_path / "net")
    if loaded_before:  # of a state that waits for parameters of these names no more is known
        net = clnn.load(tmp_path / "whole")
        net.optimizer.attach(net.parameters())
        net.layers.pop(1)
    loaded = clnn.load(tmp_path / "net")
    for one in (net, loaded):
        one.fit(x, y, optimizer=one.optimizer, **options)
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, loaded.state_dict()[name])


@clnn.register
class Holding(clnn.Layer):
    def __init__(self):
        self.mask, self.rates, self.calls, self.seen = np.ones(5, np.float32), [1.0], 0, None
        self.tensor, self.scales, self.later = clnn.ones((5,)) * 2, {"first": clnn.tensor([1.0])}, None

    def forward(self, x):
        self.calls += 1
        self.seen = [self.calls]
        return x * self.mask * self.rates[0] * self.tensor * self.scales["first"] * (self.later or 1.0)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("mask", lambda one: one.mask.fill(2.0)),
        ("rates", lambda one: one.rates.append(2.0)),
        ("tensor", lambda one: setattr(one, "tensor", clnn.ones((5,)))),
        ("scales", lambda one: one.scales.update(first=clnn.tensor([3.0]))),
        ("later", lambda one: setattr(one, "later", 4.0)),
        ("", lambda one: None),
        ("", lambda one: setattr(one, "trainable", False)),
    ],
    ids=["array", "list", "tensor", "dict", "None before", "counts", "frozen"],
)
def test_a_file_says_what_of_a_layer_it_goes_without(device, tmp_path, name, change):
    net = clnn.Sequential([Holding(), clnn.Dense(2)], input_shape=5)
    net.predict(np.ones((1, 5)))
    change(net.layers[0])
    with pytest.warns(clnn.CheckpointWarning, match=f"goes without {name} of layers.0") if name else nullcontext():
        net.save(tmp_path / "net")


# -- the optimizer of a loop of one's own ------------------------------------------------------------------------------
def own_loop(net, optimizer, x, target, steps, recorded=False):
    def train(x, target):
        loss = clnn.losses.mse(net(x), target)
        loss.backward()
        optimizer.step(net.parameters())
        return loss

    train = clnn.step(train) if recorded else train
    return [float(train(x, target).numpy()) for _ in range(steps)]


@pytest.mark.parametrize("recorded", [False, True], ids=["eager", "recorded"])
@pytest.mark.parametrize("kind", [clnn.Adam, lambda: clnn.SGD(0.1, momentum=0.9)], ids=["Adam", "SGD"])
def test_save_with_the_optimizer_of_a_loop_of_one_s_own(kind, recorded, device, tmp_path):
    """It is left out with a warning, and with `optimizer=` the loop goes on exactly."""
    rng = np.random.default_rng(0)
    x, target = rng.normal(size=(6, 3)).astype(np.float32), rng.normal(size=(6, 2)).astype(np.float32)
    net, optimizer, path = (
        clnn.Sequential([clnn.Dense(4, "tanh"), clnn.Dense(2)], input_shape=3, seed=1),
        kind(),
        tmp_path / "a",
    )
    own_loop(net, optimizer, x, target, 5, recorded)
    name = type(optimizer).__name__
    with pytest.warns(
        clnn.CheckpointWarning, match=rf"without the state of {name}, which stepped.*optimizer=optimizer"
    ) as said:
        net.save(path)
    assert said[0].filename == __file__ and clnn.load(path).optimizer is None
    net.save(path, optimizer=None)
    assert clnn.load(path).optimizer is None
    net.save(path, optimizer=optimizer)
    again = clnn.load(path)
    want = own_loop(net, optimizer, x, target, 5, recorded)
    assert own_loop(again, again.optimizer, x, target, 5, recorded) == want


def test_save_after_fit_and_a_loop_keeps_what_is_asked_for(device, tmp_path):
    x, target, path = np.ones((4, 3), np.float32), np.ones((4, 2), np.float32), tmp_path / "a"
    net = clnn.Sequential([clnn.Dense(2)], input_shape=3)
    net.fit(x, target, loss="mse", optimizer="adam", progress=False)
    net.save(path)  # fit's, without a word
    optimizer = clnn.SGD(0.1, momentum=0.5)
    own_loop(net, optimizer, x, target, 2)
    with pytest.warns(clnn.CheckpointWarning, match="without the state of SGD"):
        net.save(path)
    net.save(path, optimizer=optimizer)
    assert type(clnn.load(path).optimizer) is clnn.SGD
    net.fit(x, target, loss="mse", optimizer="adam", progress=False)  # a new one takes charge
    net.save(path)
    assert type(clnn.load(path).optimizer) is clnn.Adam
    del optimizer
    own_loop(net, clnn.SGD(0.1), x, target, 2)  # and one that is gone is missed by nobody
    net.save(path)


@pytest.mark.parametrize("wrong", ["adam", clnn.SGD, 3, {}], ids=["name", "class", "number", "dict"])
def test_save_takes_an_optimizer(wrong, device, tmp_path):
    net = clnn.Sequential([clnn.Dense(2)], input_shape=3)
    with pytest.raises(
        clnn.ConfigurationError, match="optimizer is an optimizer that stepped this model, or None, and not"
    ):
        net.save(tmp_path / "a", optimizer=wrong)
    other, optimizer = clnn.Sequential([clnn.Dense(2)], input_shape=3), clnn.SGD(0.1)
    for one in (clnn.SGD(0.1), optimizer):
        with pytest.raises(clnn.ConfigurationError, match="this SGD has not stepped this model"):
            net.save(tmp_path / "a", optimizer=one)
        own_loop(other, optimizer, np.ones((4, 3), np.float32), np.ones((4, 2), np.float32), 1)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "name, remedy", [("a.onnx", "clnn.onnx.load"), ("a.keras", "clnn.interop"), ("a.PT", "interop")]
)
def test_files_of_other_libraries_are_told_how_they_come_in(device, tmp_path, name, remedy):
    (tmp_path / name).write_bytes(b"PK\3\4" * 30)
    with pytest.raises(clnn.CheckpointError, match=rf"{name} is no model file of clnn.*{remedy}"):
        clnn.load(tmp_path / name)


def test_save_writes_no_file_that_is_called_onnx(device, tmp_path):
    """Its own format under that name was refused by `clnn serve`, `clnn predict` and every reader of ONNX."""
    net = clnn.Sequential([clnn.Dense(2)], input_shape=3)
    with pytest.raises(clnn.CheckpointError, match=r"clnn.onnx.save\(net, path\) writes one"):
        net.save(tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_a_folder_is_not_said_to_be_missing(device, tmp_path):
    with pytest.raises(clnn.CheckpointError, match="is no file, but a folder"):
        clnn.load(tmp_path)


@pytest.mark.parametrize("name", ["Dense", "Sequential", "SyncBatchNorm", "Cosine"])
def test_a_name_of_clnns_is_not_given_to_another_class(name):
    """Else every file with clnn's would be read with the other."""
    with pytest.raises(
        clnn.ConfigurationError, match=f"files call a class of clnn's {name}, .*: give yours another name"
    ):
        clnn.register(type(name, (), {}))
    mine = clnn.register(type("Mine", (), {}))
    assert clnn.register(type("Mine", (), {"again": 1})) is not mine  # as a notebook's cell does that runs twice


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (None, "a state is arrays by their names, as .* gives them, not None"),
        ("net.safetensors", "by their names, as .* not 'net.safetensors'"),
        ([("0.w", np.zeros((5, 2)))], "by their names"),
        ({0: np.zeros(2)}, "missing are 0.b, 0.w; unknown are 0"),
        ({"0.w": np.zeros((5, 2)), "0.b": np.zeros(2), "": np.zeros(2)}, "missing are none"),
    ],
)
def test_what_is_no_state_of_a_model(device, state, words):
    with clnn.use(device):
        net = clnn.Sequential([clnn.Dense(2)], input_shape=5)
    with pytest.raises(clnn.CheckpointError, match=words):
        net.load_state_dict(state)


@clnn.register
class _Ranged(clnn.Layer):
    """Whose config() has a tuple, which comes back as a list."""

    def __init__(self, limits=(0.0, 1.0)):
        self.limits = tuple(limits)

    def config(self):
        return {"limits": self.limits}

    def forward(self, x):
        return clnn.clip(x, *self.limits)


@clnn.register
class _Kept(_Ranged):
    def __init__(self, limits=(0.0, 1.0)):
        self.limits = limits


@clnn.register
class _Lost(_Ranged):
    def __init__(self, limits=(0.0, 1.0)):
        self.limits = (limits[0], limits[1] + 1)


@pytest.mark.parametrize("kind", [_Ranged, _Kept])
def test_a_tuple_in_a_config_is_a_list_in_the_file(device, tmp_path, kind):
    """It was refused as another one, with a remedy that was followed already."""
    clnn.Sequential([kind((0.0, 0.5))], input_shape=3).save(tmp_path / "net")
    assert clnn.load(tmp_path / "net").predict(np.ones((1, 3))).tolist() == [[0.5, 0.5, 0.5]]


def test_another_tuple_than_the_one_in_a_config_is_refused(device, tmp_path):
    with pytest.raises(clnn.CheckpointError, match=r"limits of layers.0 is \(0.0, 1.5\), then \(0.0, 2.5\)"):
        clnn.Sequential([_Lost((0.0, 0.5))], input_shape=3).save(tmp_path / "net")
