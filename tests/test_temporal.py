"""TemporalBlock: two causal convolutions beside which the input passes."""

import numpy as np
import pytest
from helpers import check_op, normal

import clnn


def causal(x, w, b, dilation):
    """relu(b[:, None] + sum over k of w[:, :, k] x[t - dilation (kernel - 1 - k)])"""
    y = b[:, None] + np.zeros((len(x), 1, x.shape[2]))
    for k in range(w.shape[2]):
        shift = dilation * (w.shape[2] - 1 - k)
        if shift < x.shape[2]:
            y[:, :, shift:] += np.einsum("kc,nct->nkt", w[:, :, k], x[:, :, : x.shape[2] - shift])
    return np.maximum(y, 0)


@pytest.mark.parametrize("channels", [3, 5])
def test_against_numpy(rng, dtype, device, channels):
    """Values, and gradients by x and by all parameters, with a shortcut of width 1 and without."""
    x = normal(rng, (2, 3, 9), dtype)
    block = clnn.TemporalBlock(channels, 2, dilation=3)
    block.place(device, dtype)
    block(clnn.tensor(x, dtype))  # builds it
    names = [name for name, _ in block.named_parameters()]
    assert ("shortcut.w" in names) == (channels != 3)
    weights = [normal(rng, p.shape, dtype) for _, p in block.named_parameters()]

    def wanted(x, *weights):
        p = dict(zip(names, weights))
        y = causal(causal(x, p["body.0.w"], p["body.0.b"], 3), p["body.1.w"], p["body.1.b"], 3)
        if channels != 3:
            x = np.einsum("kc,nct->nkt", p["shortcut.w"][:, :, 0], x) + p["shortcut.b"][:, None]
        return np.maximum(x + y, 0)

    def op(x, *weights):
        for name, w in zip(names, weights):
            where, key = name.rsplit(".", 1)
            layer = block.shortcut if where == "shortcut" else block.body[int(where[-1])]
            layer.__dict__[key] = w
        return block(x)

    check_op(rng, op, wanted, x, *weights, dtype=dtype, rounding=64)


def test_how_far_a_stack_sees(rng, device):
    """1 + 2 (kernel - 1) (2^n - 1) steps back, and none ahead."""
    net = clnn.Sequential(
        [clnn.TemporalBlock(4, 3, dilation=2**i, weight_init="ones") for i in range(3)], input_shape=(2, 40)
    )
    x = clnn.tensor(rng.uniform(0.5, 1, (1, 2, 40)).astype(np.float32), requires_grad=True)
    net(x)[:, :, 33].sum().backward()
    seen = np.flatnonzero(x.grad.numpy().any((0, 1)))
    np.testing.assert_array_equal(seen, np.arange(33 - 28, 34))
    later = x.numpy().copy()
    later[:, :, 34:] = np.nan
    np.testing.assert_array_equal(net(later).numpy()[:, :, :34], net(x).numpy()[:, :, :34])


def test_dropout_drops_whole_channels_in_training_alone(rng, device):
    block = clnn.TemporalBlock(40, 1, dropout=0.5, weight_init="zeros")
    x = np.zeros((8, 40, 6), np.float32)
    block(x)
    for layer in block.body:
        layer.load_state_dict({"w": np.eye(40)[:, :, None], "b": np.ones(40)})
    with clnn.no_grad():
        assert (block(x).numpy() == 2).all()
    y = block(x).numpy()  # 0, or 1 / 0.5 by the second convolution alone, or with the first's 2: 2 (2 + 1)
    assert set(np.unique(y)) == {0.0, 2.0, 6.0} and (y == y[:, :, :1]).all()


def test_bad_input(device):
    for wrong in ({"channels": 0}, {"kernel": 0}, {"dilation": 1.5}, {"dropout": 1.0}):
        with pytest.raises(clnn.ConfigurationError, match=f"TemporalBlock's {next(iter(wrong))} should be"):
            clnn.TemporalBlock(**{"channels": 4, "kernel": 3, **wrong})
    for shape in ((2, 4), (2, 4, 5, 5)):
        with pytest.raises(clnn.ShapeError, match=r"TemporalBlock: an input has the shape \(batch, channels, length\)"):
            clnn.TemporalBlock(4, 3)(np.zeros(shape, np.float32))
    with pytest.raises(clnn.ShapeError, match="does not fit along axis 2 of an input of shape"):
        clnn.TemporalBlock(4, 3)(np.zeros((2, 4, 0), np.float32))
    block = clnn.TemporalBlock(4, 3)
    block.trainable = False
    block(np.zeros((2, 3, 5), np.float32))
    assert not any(p.trainable for p in block.parameters())
    with pytest.raises(clnn.ConfigurationError, match="comes too late"):
        block.dilation = 2
