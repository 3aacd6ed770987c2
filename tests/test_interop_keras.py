"""Weights from Keras 3 and back: values and gradients agree, and what does not fit is refused; where keras and torch are."""

import importlib
import os

import numpy as np
import pytest
from helpers import assert_close

import clnn

torch = pytest.importorskip("torch")
os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")
K = keras.layers
pytestmark = pytest.mark.filterwarnings("ignore")  # Keras' own
BATCH = {"epsilon": 1e-3, "momentum": 0.99}


def images():
    there = [
        K.Conv2D(4, 3, padding="same", strides=2, activation="relu"),
        K.BatchNormalization(),
        K.DepthwiseConv2D((2, 3), depth_multiplier=2, padding="same"),
        K.SeparableConv2D(6, 2, depth_multiplier=2),
        K.GroupNormalization(2),
        K.Conv2DTranspose(6, 3, strides=2, padding="same", activation="silu"),
        K.Conv2D(4, (3, 2), dilation_rate=2, groups=2, use_bias=False),
        K.PReLU(shared_axes=[1, 2]),
        K.MaxPooling2D(2),
        K.Flatten(),
        K.BatchNormalization(),
        K.Dropout(0.0),
        K.Dense(7, "gelu"),
        K.Dense(3),
    ]
    here = [
        clnn.Conv2D(4, 3, "relu", padding="same", stride=2),
        clnn.BatchNorm(**BATCH),
        clnn.DepthwiseConv2D((2, 3), multiplier=2, padding="same"),
        clnn.DepthwiseConv2D(2, multiplier=2, bias=False),
        clnn.Conv2D(6, 1),
        clnn.GroupNorm(2, epsilon=1e-3),
        clnn.Conv2DTranspose(6, 3, "silu", stride=2, padding="same"),
        clnn.Conv2D(4, (3, 2), dilation=2, groups=2, bias=False),
        clnn.PReLU(),
        clnn.MaxPool2D(2),
        clnn.Flatten(),
        clnn.BatchNorm(**BATCH),
        clnn.Dropout(0.0),
        clnn.Dense(7, "gelu"),
        clnn.Dense(3),
    ]
    return there, here, (11, 9, 3)


def one_axis():
    there = [K.Conv1D(4, 3, padding="causal"), K.Conv1DTranspose(3, 2, 3), K.MaxPooling1D(2), K.Flatten(), K.Dense(2)]
    here = [
        clnn.Conv1D(4, 3, padding="causal"),
        clnn.Conv1DTranspose(3, 2, stride=3, output_padding=1),
        clnn.MaxPool1D(2),
        clnn.Flatten(),
        clnn.Dense(2),
    ]
    return there, here, (7, 3)


def sequences():
    there = [
        K.Bidirectional(K.LSTM(4, return_sequences=True)),
        K.GRU(5, return_sequences=True),
        K.GRU(4, return_sequences=True, reset_after=False),
        K.LayerNormalization(),
        K.TimeDistributed(K.Dense(4, "tanh")),
        K.SimpleRNN(3, return_sequences=True, activation="relu"),
        K.Flatten(),
        K.Dense(2, activation="softmax"),
    ]
    here = [
        clnn.Bidirectional(clnn.LSTM(4, return_sequences=True)),
        clnn.GRU(5, return_sequences=True),
        clnn.GRU(4, return_sequences=True, reset_after=False),
        clnn.LayerNorm(epsilon=1e-3),
        clnn.TimeDistributed(clnn.Dense(4, "tanh")),
        clnn.SimpleRNN(3, "relu", return_sequences=True),
        clnn.Flatten(),
        clnn.Dense(2),
        clnn.Activation("softmax"),
    ]
    return there, here, (6, 3)


MODELS = {"images": images, "one axis": one_axis, "sequences": sequences}


def close(got, wanted, dtype, what=""):
    wanted = wanted.detach().numpy() if hasattr(wanted, "detach") else np.asarray(wanted)
    bound = (1e-10 if dtype is np.float64 else 1e-4) * max(1.0, float(np.abs(wanted).max(initial=0.0)))
    assert_close(np.asarray(got), wanted, bound, what)


def drawn(model, rng):
    for weight in model.weights:
        weight.assign(0.2 + 0.4 * rng.random(tuple(weight.shape)))
    return model


@pytest.mark.parametrize("name", MODELS)
def test_values_and_gradients(device, dtype, rng, name, request, monkeypatch):
    with_type = np.dtype(dtype).name
    for set_type in (keras.config.set_floatx, keras.config.set_dtype_policy):
        request.addfinalizer(lambda set_type=set_type: set_type("float32"))
        set_type(with_type)
    types = importlib.import_module("keras.src.backend.common.dtypes").BIT64_TO_BIT32_DTYPE
    monkeypatch.setitem(types, "float64", "float64")  # else Keras computes products of float64 in float32 on PyTorch
    there, here, shape = MODELS[name]()
    model = drawn(keras.Sequential([keras.Input(shape), *there]), rng)
    moved = name != "sequences"
    net = clnn.Sequential(here, (shape[-1], *shape[:-1]) if moved else shape, with_type)
    report = clnn.interop.from_keras(model, net)
    assert ("channels last" in str(report)) == moved and "was not compared" not in str(report)
    x = rng.standard_normal((3, *shape)).astype(dtype)
    mine = np.moveaxis(x, -1, 1) if moved else x
    wanted = model(torch.tensor(x), training=False)
    close(net.predict(mine), wanted, dtype, "values")
    inputs = torch.tensor(x, requires_grad=True)
    wanted = model(inputs, training=True)
    seed = rng.standard_normal(tuple(wanted.shape)).astype(dtype)
    (wanted * torch.tensor(seed)).sum().backward()
    at = clnn.tensor(mine, dtype, requires_grad=True)
    (net(at) * clnn.tensor(seed, dtype)).sum().backward()
    gradient = at.grad.numpy()
    close(np.moveaxis(gradient, 1, -1) if moved else gradient, inputs.grad, dtype, "gradient by the input")
    first = next(iter(net.parameters())).grad.numpy()
    expected = model.trainable_weights[0].value.grad.numpy()
    close(first, np.moveaxis(expected, (-1, -2), (0, 1)) if moved else expected, dtype, "gradient by the first weight")

    net.load_state_dict({n: a * 1.25 for n, a in net.state_dict().items()})
    clnn.interop.to_keras(net, model)
    close(net.predict(mine), model(torch.tensor(x), training=False), dtype, "values on the way back")


def test_attention_and_tokens(device, rng):
    class Attending(clnn.Model):
        def __init__(self):
            self.embedding = clnn.Embedding(9, 8, mask_zero=True)
            self.attention = clnn.MultiHeadAttention(2)
            self.out = clnn.Dense(3)

        def forward(self, tokens):
            x = self.embedding(tokens)
            return self.out(self.attention(x))

        whole_inputs = True

    tokens = keras.Input((5,), dtype="int32")
    x = K.Embedding(9, 8, mask_zero=True, name="embedding")(tokens)
    x = K.MultiHeadAttention(2, 4, name="attention")(x, x)
    model = drawn(keras.Model(tokens, K.Dense(3, name="out")(x)), rng)
    net, given = Attending(), np.array([[3, 4, 1, 0, 0], [1, 2, 8, 5, 7]])
    net.predict(given)
    clnn.interop.from_keras(model, net)
    live = (given != 0)[:, :, None]
    close(np.where(live, net.predict(given), 0), np.where(live, model.predict(given, verbose=0), 0), np.float32)
    net.load_state_dict({n: -a for n, a in net.state_dict().items()})
    clnn.interop.to_keras(net, model)
    close(np.where(live, net.predict(given), 0), np.where(live, model.predict(given, verbose=0), 0), np.float32)


@pytest.mark.parametrize("first", [True, False], ids=["channels first here", "as they come"])
def test_flattened_inputs(device, rng, first):
    """Without a convolution the shape of clnn's inputs says in which order their values are."""
    model = drawn(keras.Sequential([keras.Input((4, 5, 3)), K.Flatten(), K.Dense(2)]), rng)
    net = clnn.Sequential([clnn.Flatten(), clnn.Dense(2)], (3, 4, 5) if first else (4, 5, 3))
    clnn.interop.from_keras(model, net)
    x = rng.standard_normal((2, 4, 5, 3)).astype(np.float32)
    close(net.predict(np.moveaxis(x, -1, 1) if first else x), model.predict(x, verbose=0), np.float32)


# -- in which order values are ----------------------------------------------------------------------------------------
class Doubled(clnn.Layer):
    def forward(self, x):
        return 2.0 * x


class Repeated(clnn.Layer):
    def forward(self, x):
        return clnn.repeat(clnn.expand_dims(x, 1), 3, 1)


def behind(*layers, shape=(5, 6, 3)):
    """A convolution, its values in a row, and what is behind."""
    return keras.Sequential([keras.Input(shape), K.Conv2D(4, 3), K.Flatten(), *layers])


def behind_here(*layers):
    return clnn.Sequential([clnn.Conv2D(4, 3), clnn.Flatten(), *layers], (3, 5, 6))


def several(join, join_here, flat_first=True):
    image, vector = keras.Input((5, 6, 3)), keras.Input((4,))
    parts = [K.Flatten()(K.Conv2D(4, 3)(image)), K.Dense(7)(vector)]
    there = keras.Model([image, vector], K.Dense(3)(join(parts if flat_first else parts[::-1])))
    a, b = clnn.Input((3, 5, 6)), clnn.Input((4,))
    parts = [clnn.Flatten()(clnn.Conv2D(4, 3)(a)), clnn.Dense(7)(b)]
    return there, clnn.Model((a, b), clnn.Dense(3)(join_here(*(parts if flat_first else parts[::-1]))))


def added(of_images):
    i, a = keras.Input((5, 6, 3)), clnn.Input((3, 5, 6))
    x, y = K.Conv2D(4, 3, padding="same")(i), clnn.Conv2D(4, 3, padding="same")(a)
    more, more_here = K.Conv2D(4, 1)(x), clnn.Conv2D(4, 1)(y)
    if of_images:
        there, here = K.Flatten()(K.Add()([x, more])), clnn.Flatten()(clnn.Add()(y, more_here))
    else:
        there, here = (
            K.Add()([K.Flatten()(x), K.Flatten()(more)]),
            clnn.Add()(clnn.Flatten()(y), clnn.Flatten()(more_here)),
        )
    return keras.Model(i, K.Dense(3)(there)), clnn.Model(a, clnn.Dense(3)(here))


def nested(within):
    if within == "row":
        inner, inner_here = behind(), behind_here()
        outer, outer_here = [inner, K.Dense(3)], [inner_here, clnn.Dense(3)]
    else:
        inner = keras.Sequential([keras.Input((5, 6, 3)), K.Conv2D(4, 3), K.MaxPooling2D(2)])
        outer = [inner, K.Flatten(), K.LayerNormalization(), K.Dense(3)]
        outer_here = [clnn.Conv2D(4, 3), clnn.MaxPool2D(2), clnn.Flatten(), clnn.LayerNorm(epsilon=1e-3), clnn.Dense(3)]
    return keras.Sequential([keras.Input((5, 6, 3)), *outer]), clnn.Sequential(outer_here, (3, 5, 6))


def steps(*last, here=()):
    there = [K.TimeDistributed(K.Conv2D(4, 3)), K.TimeDistributed(K.Flatten()), *last]
    mine = [clnn.TimeDistributed(clnn.Conv2D(4, 3)), clnn.TimeDistributed(clnn.Flatten()), *here]
    return keras.Sequential([keras.Input((2, 5, 6, 3)), *there]), clnn.Sequential(mine, (2, 3, 5, 6))


def masked(one, here):
    return keras.Sequential([keras.Input((6, 3)), K.Masking(), one]), clnn.Sequential([clnn.Masking(), here], (6, 3))


def pooled():
    there = [K.Conv1D(4, 3), K.GlobalAveragePooling1D(keepdims=True), K.Flatten(), K.Dense(2)]
    here = [clnn.Conv1D(4, 3), clnn.GlobalAvgPool(), clnn.Dense(2)]
    return keras.Sequential([keras.Input((9, 3)), *there]), clnn.Sequential(here, (3, 9))


def squeezed():
    """Channels that are weighed by the means over them."""
    i, a = keras.Input((5, 6, 3)), clnn.Input((3, 5, 6))
    x, y = K.Conv2D(4, 3)(i), clnn.Conv2D(4, 3)(a)
    weights = K.Reshape((1, 1, 4))(K.Dense(4, "sigmoid")(K.GlobalAveragePooling2D()(x)))
    mine = clnn.Reshape((4, 1, 1))(clnn.Dense(4, "sigmoid")(clnn.GlobalAvgPool()(y)))
    there = keras.Model(i, K.Dense(3)(K.Flatten()(K.Multiply()([x, weights]))))
    return there, clnn.Model(a, clnn.Dense(3)(clnn.Flatten()(clnn.Multiply()(y, mine))))


def turned_by_keras():
    """Its convolutions have their channels first, too, and its Flatten turns them to be last, when it is told so."""
    how = {"data_format": "channels_first"}
    there = [keras.Input((3, 5, 6)), K.Conv2D(4, 3, **how), K.Flatten(**how), K.BatchNormalization(), K.Dense(2)]
    return keras.Sequential(there), behind_here(clnn.BatchNorm(**BATCH), clnn.Dense(2))


def two_inputs():
    """The vector is as long as the image has values, and is not taken for it."""
    i, j, a, b = keras.Input((5, 6, 3)), keras.Input((90,)), clnn.Input((3, 5, 6)), clnn.Input((90,))
    there = K.Dense(2)(K.Concatenate()([K.Flatten()(i), K.Dense(2)(j)]))
    return keras.Model([i, j], there), clnn.Model(
        (a, b), clnn.Dense(2)(clnn.Concatenate()(clnn.Flatten()(a), clnn.Dense(2)(b)))
    )


def grown():
    there = [K.Conv1D(4, 3), K.UpSampling1D(2), K.ZeroPadding1D(1), K.Flatten(), K.Dense(2)]
    here = [clnn.Conv1D(4, 3), clnn.UpSampling(2), clnn.Padding([(1, 1)]), clnn.Flatten(), clnn.Dense(2)]
    return keras.Sequential([keras.Input((9, 3)), *there]), clnn.Sequential(here, (3, 9))


def vectors():
    there = keras.Sequential([keras.Input((4, 5, 3)), K.Flatten(), K.Dense(2)])
    return there, clnn.Sequential([clnn.Dense(2)], 60)


FOLLOWED = {
    "LayerNormalization": lambda: (
        behind(K.LayerNormalization(), K.Dense(3)),
        behind_here(clnn.LayerNorm(epsilon=1e-3), clnn.Dense(3)),
    ),
    "RMSNormalization": lambda: (
        behind(K.RMSNormalization(epsilon=1e-3), K.Dense(3)),
        behind_here(clnn.RMSNorm(epsilon=1e-3), clnn.Dense(3)),
    ),
    "PReLU": lambda: (behind(K.PReLU(), K.Dense(3)), behind_here(clnn.PReLU(), clnn.Dense(3))),
    "Identity": lambda: (behind(K.Identity(), K.Dense(3)), behind_here(clnn.Dense(3))),
    "ActivityRegularization": lambda: (behind(K.ActivityRegularization(), K.Dense(3)), behind_here(clnn.Dense(3))),
    "Rescaling": lambda: (behind(K.Rescaling(2.0), K.Dense(3)), behind_here(Doubled(), clnn.Dense(3))),
    "RepeatVector": lambda: (behind(K.RepeatVector(3), K.GRU(2)), behind_here(Repeated(), clnn.GRU(2))),
    "concatenated": lambda: several(K.Concatenate(), clnn.Concatenate()),
    "concatenated behind": lambda: several(K.Concatenate(), clnn.Concatenate(), False),
    "rows that are added": lambda: added(False),
    "images that are added": lambda: added(True),
    "nested, a row": lambda: nested("row"),
    "nested, images": lambda: nested("images"),
    "steps, LSTM": lambda: steps(K.LSTM(2), here=[clnn.LSTM(2)]),
    "steps, both ways": lambda: steps(K.Bidirectional(K.GRU(2)), here=[clnn.Bidirectional(clnn.GRU(2))]),
    "steps, Dense": lambda: steps(K.Dense(2), here=[clnn.Dense(2)]),
    "steps in a row": lambda: steps(K.Flatten(), K.Dense(2), here=[clnn.Flatten(), clnn.Dense(2)]),
    "masked LSTM": lambda: masked(K.LSTM(2), clnn.LSTM(2)),
    "masked GRU": lambda: masked(K.GRU(2), clnn.GRU(2)),
    "masked SimpleRNN": lambda: masked(K.SimpleRNN(2), clnn.SimpleRNN(2)),
    "pooled with its axes": pooled,
    "squeezed": squeezed,
    "turned by Keras": turned_by_keras,
    "two inputs": two_inputs,
    "grown": grown,
    "vectors": vectors,
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_rows_are_in_the_order_that_they_have_here(device, rng, name):
    model, net = FOLLOWED[name]()
    for weight in model.weights:
        weight.assign(rng.random(tuple(weight.shape)))
    xs = [rng.standard_normal((3, *one.shape[1:])).astype(np.float32) for one in model.inputs]
    shapes = [tuple(shape) for shape in net._input_shapes]
    moved = [x if x.shape[1:] == shape else np.moveaxis(x, -1, 2 if x.ndim == 5 else 1) for x, shape in zip(xs, shapes)]
    mine = [x.reshape(3, *shape) if name == "vectors" else y for x, y, shape in zip(xs, moved, shapes)]
    mine = tuple(mine) if len(mine) > 1 else mine[0]

    def agree():
        close(net.predict(mine), model.predict(xs if len(xs) > 1 else xs[0], verbose=0), np.float32, name)

    report = clnn.interop.from_keras(model, net)
    agree()
    assert ("with the channels first" in str(report)) == (name != "vectors" and "masked" not in name)
    net.load_state_dict({n: a * rng.uniform(0.5, 1.5, a.shape) for n, a in net.state_dict().items()})
    clnn.interop.to_keras(net, model)
    agree()


class Own(keras.Model):
    """What it does is seen nowhere."""

    def __init__(self):
        super().__init__()
        self.convolution, self.flatten, self.out = K.Conv2D(4, 3), K.Flatten(), K.Dense(2)

    def call(self, x):
        return self.out(self.flatten(self.convolution(x)))


def own():
    model = Own()
    model(np.zeros((1, 5, 6, 3), np.float32))
    return model, behind_here(clnn.Dense(2))


def shared():
    i, j, dense = keras.Input((5, 6, 3)), keras.Input((48,)), K.Dense(3)
    a, b, here = clnn.Input((3, 5, 6)), clnn.Input((48,)), clnn.Dense(3)
    there = keras.Model([i, j], K.Add()([dense(K.Flatten()(K.Conv2D(4, 3)(i))), dense(j)]))
    return there, clnn.Model((a, b), clnn.Add()(here(clnn.Flatten()(clnn.Conv2D(4, 3)(a))), here(b)))


def plain(there, here, shape, mine):
    return lambda: (keras.Sequential([keras.Input(shape), *there()]), clnn.Sequential(here(), mine))


UNSEEN = {
    "a Lambda": (
        lambda: (behind(K.Lambda(lambda x: x), K.Dense(3)), behind_here(clnn.Dense(3))),
        r"from lambda\w* \(Lambda\) on it",
    ),
    "groups of a row": (
        lambda: (
            behind(K.GroupNormalization(4), K.Dense(3)),
            behind_here(clnn.GroupNorm(4, epsilon=1e-3), clnn.Dense(3)),
        ),
        "GroupNormalization",
    ),
    "a row and a vector are added": (
        lambda: several(
            lambda parts: K.Add()([parts[0], K.Dense(48)(parts[1])]), lambda a, b: clnn.Add()(a, clnn.Dense(48)(b))
        ),
        r"\(Add\)",
    ),
    "a row and a vector share a layer": (shared, "Dense"),
    "a class of one's own": (own, "Own"),
    "channels for steps": (
        plain(
            lambda: [K.Conv1D(8, 3, padding="same"), K.LSTM(2)],
            lambda: [clnn.Conv1D(8, 3, padding="same"), clnn.LSTM(2)],
            (8, 3),
            (3, 8),
        ),
        "LSTM",
    ),
    "a pool over steps": (
        plain(
            lambda: [K.LSTM(9, return_sequences=True), K.GlobalAveragePooling1D(), K.Dense(2)],
            lambda: [clnn.LSTM(9, return_sequences=True), clnn.GlobalAvgPool(), clnn.Dense(2)],
            (9, 3),
            (9, 3),
        ),
        "GlobalAveragePooling1D",
    ),
    "a pool over as many steps as are given": (
        plain(
            lambda: [K.LSTM(6, return_sequences=True), K.GlobalMaxPooling1D(), K.Dense(2)],
            lambda: [clnn.LSTM(6, return_sequences=True), clnn.GlobalMaxPool(), clnn.Dense(2)],
            (None, 3),
            (6, 3),
        ),
        "GlobalMaxPooling1D",
    ),
    "steps for channels": (
        plain(
            lambda: [K.GRU(6, return_sequences=True), K.Conv1D(2, 3)],
            lambda: [clnn.GRU(6, return_sequences=True), clnn.Conv1D(2, 3)],
            (6, 3),
            (6, 3),
        ),
        "Conv1D",
    ),
    "pooled steps in a row": (
        plain(
            lambda: [K.LSTM(6, return_sequences=True), K.MaxPooling1D(2), K.Flatten(), K.Dense(2)],
            lambda: [clnn.LSTM(6, return_sequences=True), clnn.MaxPool1D(2), clnn.Flatten(), clnn.Dense(2)],
            (8, 3),
            (8, 3),
        ),
        "Flatten",
    ),
    "images of features": (
        plain(
            lambda: [K.Dense(48), K.Reshape((4, 4, 3)), K.Conv2DTranspose(2, 3)],
            lambda: [clnn.Dense(48), clnn.Reshape((3, 4, 4)), clnn.Conv2DTranspose(2, 3)],
            (5,),
            5,
        ),
        "Conv2DTranspose",
    ),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_an_order_that_cannot_be_seen_is_an_error(device, name):
    made, said = UNSEEN[name]
    model, net = made()
    before = net.state_dict()
    with pytest.raises(clnn.CheckpointError, match=rf"{said}.*cannot be seen.*go on with ignore=") as error:
        clnn.interop.from_keras(model, net)
    with pytest.raises(clnn.CheckpointError, match="cannot be seen"):
        clnn.interop.to_keras(net, model)
    assert all((a == before[n]).all() for n, a in net.state_dict().items())
    layer = str(error.value).partition(":")[0]
    if name in ("channels for steps", "steps for channels", "a Lambda"):
        clnn.interop.from_keras(model, net, ignore=layer)
        assert any((a != before[n]).any() for n, a in net.state_dict().items())


def test_behind_what_is_ignored_rows_are_followed_again(device, rng):
    """Images that come with their channels first, which Keras turns and clnn need not."""
    there = [K.Permute((2, 3, 1)), K.Conv2D(4, 3, name="told"), K.Flatten(), K.Dense(2)]
    model, net = drawn(keras.Sequential([keras.Input((3, 5, 6)), *there]), rng), behind_here(clnn.Dense(2))
    with pytest.raises(clnn.CheckpointError, match="told.*cannot be seen"):
        clnn.interop.from_keras(model, net)
    clnn.interop.from_keras(model, net, ignore="told")
    x = rng.standard_normal((2, 3, 5, 6)).astype(np.float32)
    close(net.predict(x), model.predict(x, verbose=0), np.float32)


def test_slopes_along_another_axis(device):
    model = drawn(
        keras.Sequential([keras.Input((3, 3)), K.Dense(3), K.PReLU(shared_axes=[1])]), np.random.default_rng(1)
    )
    with pytest.raises(clnn.CheckpointError, match="alpha"):
        clnn.interop.from_keras(model, clnn.Sequential([clnn.Dense(3), clnn.PReLU()], (3, 3)))
    net, x = clnn.Sequential([clnn.Dense(3), clnn.PReLU(-1)], (3, 3)), -np.ones((1, 3, 3), np.float32)
    clnn.interop.from_keras(model, net)
    close(net.predict(x), model.predict(x, verbose=0), np.float32)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
@pytest.mark.parametrize("both", [False, True])
def test_a_mask_that_keras_does_not_turn_is_refused(rng, device, kind, both):
    """Where nothing reads it behind, or steps stay in their order, numbers are those of Keras, whichever steps are masked."""
    x = rng.normal(0, 1, (9, 6, 3)).astype(np.float32) * (rng.random((9, 6, 1)) < 0.6)

    def models(there, here):
        back = {"return_sequences": True, "go_backwards": not both}
        first = getattr(K, kind)(3, **back), getattr(clnn, kind)(3, **back)
        if both:
            first = K.Bidirectional(first[0]), clnn.Bidirectional(first[1])
        return (
            keras.Sequential([keras.Input((6, 3)), K.Masking(), first[0], *there]),
            clnn.Sequential([clnn.Masking(), first[1], *here], (6, 3)),
        )

    model, net = models([K.Dense(2)], [clnn.Dense(2)])
    clnn.interop.from_keras(model, net)
    kept = x.any(2) if both else x.any(2)[:, ::-1] | True
    close(net.predict(x)[kept], model.predict(x, verbose=0)[kept], np.float32)
    for wrapped in (False, True):
        there, here = getattr(K, kind)(2), getattr(clnn, kind)(2)
        model, net = models(
            [K.Bidirectional(there) if wrapped else there], [clnn.Bidirectional(here) if wrapped else here]
        )
        if both:
            clnn.interop.from_keras(model, net)
            close(net.predict(x), model.predict(x, verbose=0), np.float32)
            continue
        before = net.state_dict()
        with pytest.raises(clnn.CheckpointError, match="gives its steps backwards.*ignore="):
            clnn.interop.from_keras(model, net)
        assert all((array == before[name]).all() for name, array in net.state_dict().items())
        clnn.interop.from_keras(model, net, ignore=(model.layers[1].name,))
        model = keras.Sequential([keras.Input((6, 3)), *model.layers[1:]])  # without masks
        clnn.interop.from_keras(model, clnn.Sequential(net.layers[1:], (6, 3)))


def test_masked_steps_of_both_ways_are_noted(device):
    wrapped = K.Bidirectional(K.LSTM(2, return_sequences=True))
    here = clnn.Bidirectional(clnn.LSTM(2, return_sequences=True))
    model, net = masked(wrapped, here)
    assert "steps that are masked are 0 in what" in str(clnn.interop.from_keras(model, net))
    model = keras.Sequential([keras.Input((6, 3)), K.Bidirectional(K.LSTM(2, return_sequences=True))])
    report = clnn.interop.from_keras(
        model, clnn.Sequential([clnn.Bidirectional(clnn.LSTM(2, return_sequences=True))], (6, 3))
    )
    assert "masked" not in str(report)


def test_layers_of_halves_that_are_too_small(device):
    model = keras.Sequential([keras.Input((2,)), K.Dense(2, dtype="float16")])
    net = clnn.Sequential([clnn.Dense(2, weight_init=7e4)], 2)
    before = model.get_weights()
    with pytest.raises(clnn.CheckpointError, match=r"beyond 6\.55e\+04.*float16"):
        clnn.interop.to_keras(net, model)
    assert all((a == b).all() for a, b in zip(model.get_weights(), before))


STEPS = (6, 3)
WRONG = {
    "epsilon": (lambda: K.BatchNormalization(), lambda: clnn.BatchNorm(), (4,), r"has epsilon 0\.001"),
    "momentum": (lambda: K.BatchNormalization(), lambda: clnn.BatchNorm(epsilon=1e-3), (4,), "momentum"),
    "activation": (lambda: K.Dense(3, "relu"), lambda: clnn.Dense(3), (4,), "activation 'relu'"),
    "slope": (lambda: K.Dense(3, "leaky_relu"), lambda: clnn.Dense(3, "leaky_relu"), (4,), "leaky_relu with a slope"),
    "gelu": (lambda: K.Dense(3, keras.activations.gelu), lambda: clnn.Dense(3, "gelu_tanh"), (4,), "activation 'gelu'"),
    "no activation here": (lambda: K.Dense(3, "exponential"), lambda: clnn.Dense(3), (4,), "exponential"),
    "reset_after": (lambda: K.GRU(3, reset_after=False), lambda: clnn.GRU(3), STEPS, "reset_after"),
    "reset before": (
        lambda: K.GRU(3, use_bias=False),
        lambda: clnn.GRU(3, use_bias=False, reset_after=False),
        STEPS,
        "reset_after",
    ),
    "backwards": (lambda: K.LSTM(3, go_backwards=True), lambda: clnn.LSTM(3), STEPS, "go_backwards"),
    "gate": (
        lambda: K.LSTM(3, recurrent_activation="hard_sigmoid"),
        lambda: clnn.LSTM(3),
        STEPS,
        "recurrent_activation",
    ),
    "no scale": (lambda: K.BatchNormalization(scale=False), lambda: clnn.BatchNorm(**BATCH), (4,), "0.gamma"),
    "another size": (lambda: K.Dense(4), lambda: clnn.Dense(3), (4,), "Left over in Keras"),
    "another class": (lambda: K.Dense(3), lambda: clnn.SimpleRNN(3), STEPS, "Left over in Keras"),
    "padding": (lambda: K.Conv1D(3, 3, padding="same"), lambda: clnn.Conv1D(3, 3), STEPS, "padding"),
    "axis": (lambda: K.LayerNormalization(axis=1), lambda: clnn.LayerNorm(epsilon=1e-3), (3, 3), "axis"),
    "merge_mode": (
        lambda: K.Bidirectional(K.GRU(3), merge_mode="sum"),
        lambda: clnn.Bidirectional(clnn.GRU(3)),
        STEPS,
        "merge_mode 'sum'",
    ),
    "steps for features": (
        lambda: K.BatchNormalization(),
        lambda: clnn.BatchNorm(**BATCH),
        (3, 3),
        r"works along axis \[2\]",
    ),
    "scaled": (
        lambda: K.LayerNormalization(rms_scaling=True),
        lambda: clnn.LayerNorm(epsilon=1e-3),
        (3, 3),
        "rms_scaling",
    ),
}


BETWEEN = {
    "a slope": (
        lambda: K.LeakyReLU(),
        lambda: clnn.Activation("leaky_relu"),
        r"leaky_relu\(0.3\) in Keras, and leaky_relu here",
    ),
    "a pool": (lambda: K.MaxPooling2D(3, 2), lambda: clnn.MaxPool2D(3), "stride=2"),
    "what is padded": (
        lambda: K.AveragePooling2D(3, padding="same"),
        lambda: clnn.AvgPool2D(3, padding="same"),
        "count_include_pad=False",
    ),
    "another activation": (lambda: K.Activation("relu"), lambda: clnn.Activation("elu"), "relu in Keras, and elu here"),
}


@pytest.mark.parametrize("what", BETWEEN)
def test_what_is_between_weights_is_compared(device, what):
    made, here, said = BETWEEN[what]
    model = keras.Sequential([keras.Input((9, 9, 2)), K.Conv2D(3, 1), made(), K.Conv2D(2, 1)])
    net = clnn.Sequential([clnn.Conv2D(3, 1), here(), clnn.Conv2D(2, 1)], (2, 9, 9))
    with pytest.raises(clnn.CheckpointError, match=f"step 2 .*{said}.*ignore=..between"):
        clnn.interop.from_keras(model, net)
    clnn.interop.from_keras(model, net, ignore="between")


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_an_error_and_changes_nothing(device, what):
    made, here, shape, said = WRONG[what]
    model = keras.Sequential([keras.Input(shape), made()])
    net = clnn.Sequential([here()], shape[::-1] if "Conv1D" in repr(here()) else shape)
    before, theirs = net.state_dict(), model.get_weights()
    with pytest.raises(clnn.ClnnError, match=said):
        clnn.interop.from_keras(model, net)
    with pytest.raises(clnn.ClnnError, match=said):
        clnn.interop.to_keras(net, model)
    assert all((a == before[name]).all() for name, a in net.state_dict().items())
    assert all((a == b).all() for a, b in zip(model.get_weights(), theirs))


def test_what_is_no_model_of_keras(device):
    net = clnn.Sequential([clnn.Dense(3)], 4)
    with pytest.raises(clnn.ConfigurationError, match="str is neither"):
        clnn.interop.from_keras("model.keras", net)
    with pytest.raises(clnn.CheckpointError, match="not built"):
        clnn.interop.from_keras(keras.Sequential([K.Dense(3)]), net)
    reshaped = keras.Sequential([keras.Input((4, 4, 3)), K.Reshape((6, 8)), K.Flatten(), K.Dense(3)])
    with pytest.raises(clnn.CheckpointError, match="Reshape"):
        clnn.interop.from_keras(reshaped, net)
