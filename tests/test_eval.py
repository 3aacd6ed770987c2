"""Training and eval mode, `net.train()` and `net.eval()`: what calls of a model do to it and to their results."""

import copy

import numpy as np
import pytest

import clnn


def model(seed=3):
    layers = [clnn.Conv2D(3, 3), clnn.BatchNorm("relu"), clnn.Dropout(0.5), clnn.Flatten(), clnn.Dense(4)]
    net = clnn.Sequential(layers, input_shape=(2, 5, 5), seed=seed)
    x = np.random.default_rng(0).normal(1, 2, (8, 2, 5, 5)).astype(np.float32)
    net.fit(x, np.arange(8) % 4, loss="cross_entropy", optimizer="sgd", epochs=2, batch_size=4, progress=False, seed=0)
    return net, x


def state(net):
    return {name: array.tobytes() for name, array in net.state_dict().items()}


def test_eval_is_inference_and_train_ends_it(device):
    net, x = model()
    before, want = state(net), net.predict(x)
    assert net.eval() is net and not net.layers[1].training
    np.testing.assert_allclose(net(x).numpy(), want, rtol=1e-5, atol=1e-5)  # as the answer of predict
    np.testing.assert_allclose(net(x[:1]).numpy(), want[:1], rtol=1e-5, atol=1e-5)  # no sample moves another's
    assert state(net) == before
    with clnn.no_grad():
        np.testing.assert_array_equal(net(x).numpy(), want)
    assert net.train() is net
    assert np.abs(net(x).numpy() - want).max() > 0.1  # dropout
    assert state(net) != before  # statistics


@pytest.mark.parametrize("layer", [
    lambda: clnn.Dropout(0.5), lambda: clnn.SpatialDropout(0.5), lambda: clnn.GaussianDropout(0.5), lambda: clnn.BatchNorm(),
    lambda: clnn.TemporalBlock(6, 2, dropout=0.5), lambda: clnn.LSTM(4, dropout=0.5, recurrent_dropout=0.5),
    lambda: clnn.MultiHeadAttention(2, dropout=0.5), lambda: clnn.TransformerEncoderLayer(2, 8, dropout=0.5),
    lambda: clnn.Bidirectional(clnn.GRU(4, recurrent_dropout=0.5)), lambda: clnn.distributed.SyncBatchNorm(),
], ids=lambda make: type(make()).__name__)  # fmt: skip
def test_every_layer_that_tells_training_from_inference(layer, device):
    x = np.random.default_rng(1).normal(size=(4, 6, 6)).astype(np.float32)
    net = clnn.Sequential([layer()], input_shape=(6, 6), seed=1)
    assert np.abs(net(x).numpy() - net.predict(x)).max() > 1e-3
    np.testing.assert_allclose(net.eval()(x).numpy(), net.predict(x), rtol=1e-5, atol=1e-6)


def test_a_recorded_step_sees_the_mode(device):
    net, x = model()
    optimizer, target = clnn.SGD(0.0), np.eye(4, dtype=np.float32)[np.arange(8) % 4]

    @clnn.step
    def loss_of(x, target):
        loss = clnn.losses.cross_entropy(net(x), target)
        loss.backward()
        optimizer.step(net.parameters())
        return loss

    losses = [float(loss_of(x, target).numpy()) for _ in range(6)]
    assert len(set(losses)) > 1  # dropout
    net.eval()
    before = state(net)
    losses = [float(loss_of(x, target).numpy()) for _ in range(6)]
    assert max(losses) - min(losses) < 1e-6 and state(net) == before
    net.train()
    assert len({float(loss_of(x, target).numpy()) for _ in range(6)}) > 1


def test_gradients_in_eval_mode_are_those_of_inference(device):
    """By differences of predict, for the input and for BatchNorm's gamma and beta."""
    net, x = model()
    net.eval()
    given = clnn.tensor(x, requires_grad=True)
    weights = np.random.default_rng(2).normal(size=(8, 4)).astype(np.float32)
    (net(given) * weights).sum().backward()
    norm = net.layers[1]

    def by_difference(arrays, at, h=1e-2):
        found = []
        for sign in (1, -1):
            moved = {name: array.copy() for name, array in arrays.items()}
            name, index = at
            moved[name][index] += sign * h
            net.load_state_dict({name: moved[name] for name in arrays if name != "x"})
            found.append(float((net.predict(moved["x"]).astype(np.float64) * weights).sum()))
        return (found[0] - found[1]) / (2 * h)

    arrays = net.state_dict() | {"x": x}
    for p in (norm.gamma, norm.beta):
        for i in range(3):
            want = by_difference(arrays, (p.name, i))
            assert abs(p.grad.numpy()[i] - want) < 0.05 * max(1, abs(want))
    want = by_difference(arrays, ("x", (2, 1, 3, 3)))
    assert abs(given.grad.numpy()[2, 1, 3, 3] - want) < 0.05 * max(1, abs(want))


def test_fit_refuses_a_layer_in_eval_mode(device):
    net, x = model()
    net.layers[1].eval()
    with pytest.raises(
        clnn.ConfigurationError, match=r"fit trains, and batch_norm\w* is in eval mode: call net.train\(\)"
    ):
        net.fit(x, np.arange(8) % 4, loss="cross_entropy", optimizer="sgd", progress=False)
    net.train().fit(x, np.arange(8) % 4, loss="cross_entropy", optimizer="sgd", progress=False)


def test_a_copy_keeps_the_mode_and_a_file_does_not(device, tmp_path):
    net, x = model()
    assert not copy.deepcopy(net.eval()).layers[1].training
    net.save(tmp_path / "net.safetensors")
    assert all(layer.training for layer in clnn.load(tmp_path / "net.safetensors").layers_inside())


def test_a_class_of_one_s_own(device):
    class Noisy(clnn.Layer):
        def forward(self, x):
            return x + 1.0 if self.trains() else x

    net = clnn.Sequential([Noisy()], input_shape=2)
    x = np.zeros((1, 2), np.float32)
    assert net(x).numpy().sum() == 2 and net.eval()(x).numpy().sum() == 0 and net.predict(x).sum() == 0


def test_fit_refuses_a_model_that_a_callback_leaves_in_eval_mode(device):
    def after(model, *_):
        model.layers[1].eval()

    net, x = model()
    y = np.zeros_like(net.predict(x))
    with pytest.raises(clnn.ConfigurationError, match=r"is in eval mode: call net.train\(\)"):
        net.fit(
            x, y, loss="mse", optimizer="sgd", epochs=3, progress=False, callbacks=[clnn.Lambda(on_epoch_end=after)]
        )
    assert net.optimizer.epochs == 1
