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
