"""Residual: two ways whose ends are added."""

import numpy as np
import pytest
from helpers import assert_close, check_op, eps, normal

import clnn


def test_against_numpy(rng, device):
    """Values, and gradients by x and by every parameter, with and without a shortcut of its own."""
    x = normal(rng, (5, 4))
    for shortcut in (None, clnn.Dense(4, bias=False), [clnn.Dense(6, "tanh"), clnn.Dense(4)]):
        layer = clnn.Residual([clnn.Dense(7, "swish"), clnn.Dense(4)], shortcut, "sigmoid")
        with clnn.no_grad():
            layer(clnn.tensor(x, np.float32))  # builds it
        names, arrays = zip(*[(name, p.numpy()) for name, p in layer.named_parameters()])

        def reference(x, *weights, names=names, shortcut=shortcut):
            p = dict(zip(names, weights))
            z = x @ p["body.0.w"] + p["body.0.b"]
            y = z / (1 + np.exp(-z)) @ p["body.1.w"] + p["body.1.b"]
            if shortcut is None:
                y = y + x
            elif "shortcut.1.w" in p:
                y = y + np.tanh(x @ p["shortcut.0.w"] + p["shortcut.0.b"]) @ p["shortcut.1.w"] + p["shortcut.1.b"]
            else:
                y = y + x @ p["shortcut.0.w"]
            return 1 / (1 + np.exp(-y))

        def op(x, *weights, names=names, layer=layer):
            for name, w in zip(names, weights):
                way, i, key = name.split(".")
                object.__setattr__(getattr(layer, way)[int(i)], key, w)
            return layer(x)

        check_op(rng, op, reference, x, *arrays, rounding=64)


def test_residual_nets_are_trained_saved_and_loaded(rng, device, tmp_path):
    def block(channels, stride):
        layers = [
            clnn.Conv2D(channels, 3, stride=stride, padding=1),
            clnn.Activation("relu"),
            clnn.Conv2D(channels, 3, padding=1),
        ]
        return clnn.Residual(layers, clnn.Conv2D(channels, 1, stride=stride) if stride > 1 else None, "relu")

    inner = clnn.Residual([clnn.Residual(clnn.Dense(6)), clnn.SpatialDropout(0.2)])
    net = clnn.Sequential(
        [block(4, 2), block(4, 1), clnn.GlobalAvgPool(), clnn.Dense(6), inner, clnn.Dense(3)],
        input_shape=(2, 9, 10),
        seed=1,
    )
    x, y = rng.standard_normal((50, 2, 9, 10)).astype(np.float32), rng.integers(0, 3, 50)
    before = net.state_dict()
    net.fit(x, y, loss="cross_entropy", optimizer=clnn.Adam(0.01), epochs=3, batch_size=16, progress=False)
    assert all((net.state_dict()[name] != w).any() for name, w in before.items())
    net.save(tmp_path / "net")
    again = clnn.load(tmp_path / "net")
    np.testing.assert_array_equal(again.predict(x), net.predict(x))
    assert again.layers[0].shortcut is not None and again.layers[1].shortcut is None
    assert "Residual" in net.summary()


def test_wrong_shapes(device):
    layer = clnn.Residual([clnn.Dense(3)])
    with pytest.raises(
        clnn.ShapeError, match=r"Residual: .*\(2, 4\) the body ends in \(2, 3\) and the input.*\(2, 4\)"
    ):
        layer(clnn.zeros((2, 4)))
    layer = clnn.Residual([clnn.Dense(3)], clnn.Dense(5))
    with pytest.raises(clnn.ShapeError, match=r"\(2, 3\) and the shortcut in \(2, 5\)"):
        layer(clnn.zeros((2, 4)))


@pytest.mark.parametrize("wrong", [[], None, "relu", [clnn.Dense(2), "relu"]], ids=str)
def test_wrong_layers(wrong):
    with pytest.raises(clnn.ConfigurationError, match="Residual's layers should be"):
        clnn.Residual(wrong)
    if wrong is not None:
        with pytest.raises(clnn.ConfigurationError, match="Residual's shortcut should be"):
            clnn.Residual(clnn.Dense(2), wrong)


def test_a_single_layer_and_an_unbuilt_batch(rng, device):
    layer = clnn.Residual(clnn.Activation("tanh"))
    x = normal(rng, (3, 2))
    assert_close(layer(x.astype(np.float32)).numpy(), x + np.tanh(x), 8 * eps(np.float32) * 4)
    assert layer(np.zeros((0, 2), np.float32)).shape == (0, 2)
