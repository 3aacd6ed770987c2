"""Masks of steps go from Embedding and Masking on to later layers: padded sequences are what they are alone."""

import copy
import sys
import weakref

import numpy as np
import pytest
from helpers import assert_close

import clnn

TOKENS = np.array([[3, 1, 4, 1, 5], [9, 2, 0, 0, 0], [6, 0, 0, 0, 0], [5, 3, 5, 8, 0]])
LENGTHS = (TOKENS != 0).sum(1)


def stacks():
    """Layers behind an Embedding, by name; each ends in an output for each sequence."""
    layernorm, drop = clnn.LayerNorm(), clnn.Dropout(0.3)
    return {
        "lstm": [clnn.LSTM(5)],
        "two": [clnn.LSTM(5, return_sequences=True), drop, clnn.Dense(4, "relu"), clnn.GRU(3), clnn.Dense(2)],
        "backwards": [clnn.SimpleRNN(5, return_sequences=True, go_backwards=True), clnn.LSTM(4)],
        "both ways": [clnn.Bidirectional(clnn.GRU(4, return_sequences=True)), clnn.Bidirectional(clnn.LSTM(3), "sum")],
        "by step": [clnn.TimeDistributed(clnn.Dense(3)), layernorm, clnn.Activation("tanh"), clnn.GRU(4)],
        "places": [clnn.PositionalEmbedding(9), clnn.SinusoidalPositions(), clnn.LSTM(5)],
        "attention": [clnn.MultiHeadAttention(3, rotary=True), clnn.LSTM(5)],
        "encoder": [clnn.TransformerEncoderLayer(2, 8, norm_first=False), clnn.TransformerEncoderLayer(2, 8), clnn.LSTM(5)],
        "nested": [clnn.Sequential([clnn.Dense(4), clnn.LSTM(5, return_sequences=True)]), clnn.LSTM(3)],
    }  # fmt: skip


@pytest.mark.parametrize("name", stacks())
def test_padded_tokens_are_what_they_are_alone(device, name):
    net = clnn.Sequential([clnn.Embedding(10, 6, mask_zero=True), *stacks()[name]])
    with clnn.no_grad():
        together = net(TOKENS).numpy()
        for row, n in enumerate(LENGTHS):
            assert_close(together[row], net(TOKENS[row : row + 1, :n]).numpy()[0], 1e-6, name)
    assert_close(net.predict(TOKENS), together, 0)
    again = clnn.no_grad()(clnn.step(lambda x: net(x)))
    for shift in range(4):
        assert_close(again(np.roll(TOKENS, shift, 0)).numpy(), np.roll(together, shift, 0), 1e-6)
    net.layers[0].mask_zero = False
    assert np.abs(net.predict(TOKENS) - together).max() > 1e-5  # zeros are tokens then


def test_the_last_layer_gives_the_mask_on(device):
    net = clnn.Sequential([clnn.Embedding(10, 6, mask_zero=True), clnn.LSTM(4, return_sequences=True), clnn.Dense(2)])
    np.testing.assert_array_equal(net(TOKENS).mask.numpy(), TOKENS != 0)
    back = clnn.LSTM(4, return_sequences=True, return_state=True, go_backwards=True)
    y, h, c = back(net.layers[0](TOKENS))
    np.testing.assert_array_equal(y.mask.numpy(), (TOKENS != 0)[:, ::-1])
    assert h.mask is None and c.mask is None and clnn.LSTM(4)(net.layers[0](TOKENS)).mask is None
    ahead, behind = clnn.Bidirectional(clnn.GRU(3, return_sequences=True), None)(net.layers[0](TOKENS))
    np.testing.assert_array_equal(ahead.mask.numpy() + behind.mask.numpy(), 2 * (TOKENS != 0))


def test_masking_in_front_is_masking_around(device, rng):
    """As Keras writes it, and with the layers inside; both learn the same."""
    x = rng.standard_normal((4, 5, 3)).astype(np.float32)
    x[TOKENS == 0] = -1
    found = []
    for make in (
        lambda *layers: clnn.Sequential([clnn.Masking(mask_value=-1.0), *layers], input_shape=(5, 3), seed=1),
        lambda *layers: clnn.Sequential([clnn.Masking(-1.0), *layers], input_shape=(5, 3), seed=1),
        lambda *layers: clnn.Sequential([clnn.Masking([*layers], -1.0)], input_shape=(5, 3), seed=1),
    ):
        net = make(clnn.LSTM(4, return_sequences=True), clnn.GRU(3), clnn.Dense(1))
        net.fit(
            x, LENGTHS[:, None], loss="mse", optimizer=clnn.SGD(0.1), epochs=9, batch_size=2, seed=2, progress=False
        )
        found.append(net.predict(x))
        assert_close(net.predict(x[1:2, :2]), found[-1][1:2], 1e-6)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_a_mask_of_one_s_own(device, rng):
    """Anywhere, as bools, whole numbers or floats; what lies under it does not count, NaN neither, and lengths go beside it."""
    layer, masking = clnn.LSTM(4), clnn.Masking()
    x, mask = rng.standard_normal((4, 5, 3)).astype(np.float32), np.array(rng.random((4, 5)) < 0.6)
    mask[:, 1] = True
    found = []
    for junk in (0.0, np.nan, 7.0):
        given = np.where(mask[:, :, None], x, junk).astype(np.float32)
        for kind in (bool, np.int32, np.float32):
            layer.zero_grad()
            y = layer(masking(given, mask.astype(kind)))
            (y * y).sum().backward()
            found.append([y.numpy(), *(p.grad.numpy() for p in layer.parameters())])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
    for row in range(4):
        assert_close(layer(x[row : row + 1, mask[row]]).numpy()[0], found[0][0][row], 1e-6)
    both = layer(masking(x, mask), LENGTHS).numpy()
    seen = mask & (np.arange(5) < LENGTHS[:, None])
    np.testing.assert_array_equal(both, layer(masking(x, seen)).numpy())
    plain = clnn.tensor(x)
    masking(plain, mask)
    assert plain.mask is None  # of the output, not of what was given


def test_attention_sees_no_key_that_is_masked(device, rng):
    x, mask = rng.standard_normal((4, 5, 6)).astype(np.float32), TOKENS != 0
    masked = clnn.Masking()(x, mask)
    for layer in (clnn.MultiHeadAttention(2), clnn.TransformerEncoderLayer(2, 8)):
        y, keys = layer(masked), mask[:, None, None, :]
        given = (x, x, keys) if isinstance(layer, clnn.MultiHeadAttention) else (x, keys)
        assert_close(y.numpy()[mask], layer(*given).numpy()[mask], 1e-6)
        assert y.mask is masked.mask
        with pytest.raises(clnn.ConfigurationError, match="no other mask is taken"):
            layer(masked, *given[1:]) if len(given) == 2 else layer(masked, masked, keys)
    decoder = clnn.TransformerDecoderLayer(2, 8)
    assert_close(decoder(x, masked).numpy(), decoder(x, x, mask[:, None, None, :]).numpy(), 1e-6)


@pytest.mark.parametrize(
    "layer",
    [clnn.Flatten(), clnn.Conv1D(2, 3), clnn.GlobalAvgPool(), clnn.BatchNorm(), clnn.SpatialDropout(0.1), clnn.Reshape(-1),
     clnn.LayerNorm((-2, -1)), clnn.Residual(clnn.Conv1D(5, 3, padding="same"))],
    ids=lambda layer: type(layer).__name__,
)  # fmt: skip
def test_layers_that_would_mix_steps(device, layer):
    layer = copy.deepcopy(layer)  # built on this device alone
    with pytest.raises(clnn.ConfigurationError, match="would mix steps that a mask"):
        clnn.Sequential([clnn.Embedding(10, 6, mask_zero=True), layer])(TOKENS)
    clnn.Sequential([clnn.Embedding(10, 6, padding=0), layer])(TOKENS)
    clnn.Sequential([clnn.Embedding(10, 6, mask_zero=True), clnn.LSTM(6), clnn.Flatten()])(TOKENS)


def test_a_residual_block_has_the_mask_of_what_it_adds(device):
    """A padded sequence is what it is alone, also behind a block around layers that know masks."""
    body = [
        clnn.GRU(6, return_sequences=True),
        clnn.Residual([clnn.LayerNorm(), clnn.Dense(6, "relu")], activation="elu"),
    ]
    net = clnn.Sequential([clnn.Embedding(10, 6, mask_zero=True), clnn.Residual(body, clnn.Dense(6)), clnn.GRU(3)])
    tokens = np.array([[3, 1, 4, 1, 5], [2, 7, 0, 0, 0]])
    np.testing.assert_allclose(net.predict(tokens)[1], net.predict(tokens[1:, :2])[0], rtol=1e-5, atol=1e-6)
    turned = clnn.Residual(clnn.GRU(6, return_sequences=True, go_backwards=True))
    with pytest.raises(clnn.ConfigurationError, match="residual_1: masks .* leave different steps out come together"):
        clnn.Sequential([clnn.Embedding(10, 6, mask_zero=True), turned])(tokens)


def test_classes_of_one_s_own_say_what_they_do(device):
    class Twice(clnn.Layer):
        def forward(self, x):
            return x * 2

    net = clnn.Sequential([clnn.Embedding(10, 6, mask_zero=True), Twice(), clnn.LSTM(3)])
    with pytest.raises(clnn.ConfigurationError, match="Twice|twice"):
        net(TOKENS)
    Twice.keeps_mask = True
    y = net(TOKENS).numpy()
    assert_close(net(TOKENS[1:2, :2]).numpy(), y[1:2], 1e-6)

    class Mean(clnn.Layer):
        """Of the steps that count."""

        reads_mask = True

        def forward(self, x):
            mask = x.mask.reshape(*x.shape[:2], 1)
            return (x * mask).sum(1) / mask.sum(1)

    net = clnn.Sequential([clnn.Embedding(10, 6, mask_zero=True), Mean()])
    assert_close(net(TOKENS[1:2, :2]).numpy(), net(TOKENS).numpy()[1:2], 1e-6)


def test_steps_and_predictions_lose_no_mask_unseen(device, rng):
    """What a step returns has its mask in replays, too; a tensor with a mask is refused where the mask would not come along."""
    net = clnn.Sequential([clnn.Embedding(10, 6, mask_zero=True), clnn.LSTM(4, return_sequences=True), clnn.Dense(3)])
    after, found = clnn.LSTM(2), clnn.step(lambda x: net(x))
    for shift in range(6):
        x = np.roll(TOKENS, shift, 0)
        with clnn.no_grad():
            y = found(x)
            np.testing.assert_array_equal(y.mask.numpy(), x != 0)
            np.testing.assert_array_equal(after(y).numpy(), after(net(x)).numpy())
    assert any(entry.recording for entry in found.replays._entries.values())
    masked, layer = clnn.Masking()(rng.standard_normal((4, 5, 3)), TOKENS != 0), clnn.Sequential([clnn.LSTM(2)])
    step = clnn.step(lambda t: layer(t))
    for call in (step, layer.predict, lambda t: layer.evaluate(t, np.ones((4, 2)), loss="mse")):
        with pytest.raises(clnn.ConfigurationError, match="mask of steps"):
            call(masked)


def test_a_mask_of_floats_is_refused_before_it_is_recorded(device, rng):
    """Of ones alone it hides nothing rightly, and so would the next one, of which nobody sees the values."""

    class Attends(clnn.Model):
        def __init__(self):
            self.attention = clnn.MultiHeadAttention(1)

        def forward(self, x, mask):
            return self.attention(x, x, mask.reshape(len(x), 1, 1, -1))

    mask = np.ones((8, 5), np.float32)
    mask[4:, 3:] = 0
    with pytest.raises(clnn.ConfigurationError, match="would hide nothing"):
        Attends().predict((rng.standard_normal((8, 5, 3)), mask), batch_size=4)
    Attends().predict((rng.standard_normal((8, 5, 3)), (mask - 1) * 1e9), batch_size=4)


def test_a_mask_of_floats_is_looked_at_in_replays_too(device, rng):
    q = rng.standard_normal((2, 3, 5, 4)).astype(np.float32)

    @clnn.step
    def attend(q, mask):
        return clnn.scaled_dot_product_attention(q, q, q, mask=mask)

    for _ in range(5):
        attend(q, np.zeros((5, 5), np.float32))
    hidden = np.where(rng.random((5, 5)) < 0.3, -np.inf, 0.0).astype(np.float32)
    hidden[:, 0] = 0
    np.testing.assert_array_equal(
        attend(q, hidden).numpy(), clnn.scaled_dot_product_attention(q, q, q, mask=hidden).numpy()
    )
    with pytest.raises(clnn.ConfigurationError, match="an argument of the step is added .* would hide nothing"):
        attend(q, np.isfinite(hidden).astype(np.float32))
    with pytest.raises(clnn.ConfigurationError, match="an argument of the step is added .* would hide nothing"):
        attend(q, clnn.tensor(np.isfinite(hidden).astype(np.float32)))
    attend(q, hidden), attend(q, clnn.tensor(hidden))


def test_a_mask_of_floats_that_a_step_makes_is_not_kept(device, rng, monkeypatch):
    q = rng.standard_normal((2, 3, 5, 4)).astype(np.float32)
    made, kept = sys.modules["clnn.attention"].added_mask, []

    def noted(mask, q):
        found = made(mask, q)
        kept.append(weakref.ref(found.block))
        return found

    monkeypatch.setattr("clnn.attention.added_mask", noted)

    @clnn.step
    def attend(q, x):
        return clnn.scaled_dot_product_attention(q, q, q, mask=(x - 1.0) * 1e9)

    for _ in range(5):
        x = (rng.random((5, 5)) < 0.7).astype(np.float32)
        x[:, 0] = 1
        want = clnn.scaled_dot_product_attention(q, q, q, mask=x > 0).numpy()
        assert_close(attend(q, x).numpy(), want, 1e-5)
    assert kept and not any(one() for one in kept)


def test_masks_survive_files_and_another_type(device, tmp_path):
    net = clnn.Sequential([clnn.Embedding(10, 6, mask_zero=True), clnn.Masking(), clnn.LSTM(3)], seed=1)
    wanted = net(TOKENS).numpy()
    net.save(tmp_path / "net.clnn")
    np.testing.assert_array_equal(clnn.load(tmp_path / "net.clnn")(TOKENS).numpy(), wanted)
    if device.has_fp64:
        masked = clnn.Masking()(np.ones((4, 5, 3)), TOKENS != 0)
        layer = clnn.LSTM(3)
        layer.place(device, "float64")
        # it is converted, mask and all
        np.testing.assert_array_equal(layer(masked).numpy(), layer(np.ones((4, 5, 3)), LENGTHS).numpy())


def test_wrong_masks(device):
    x = np.zeros((4, 5, 3), np.float32)
    for mask in (np.ones((4, 4)), np.ones(5), np.ones((4, 5, 1))):
        with pytest.raises(clnn.ShapeError, match="a mask of shape"):
            clnn.Masking()(x, mask)
    for make in (
        lambda: clnn.Masking(["lstm"]),
        lambda: clnn.Masking("lstm"),
        lambda: clnn.Embedding(5, 3, mask_zero=True, padding=2),
    ):
        with pytest.raises(clnn.ConfigurationError):
            make()
    with pytest.raises(clnn.ShapeError, match="a mask of steps"):
        clnn.TimeDistributed(clnn.LSTM(3))(clnn.Embedding(9, 4, mask_zero=True)(np.ones((2, 3, 4), int)))


def test_a_mask_of_attention_in_float64(device, rng):
    if not device.has_fp64:
        pytest.skip("no float64 here")
    layer, x = clnn.MultiHeadAttention(2), clnn.tensor(rng.standard_normal((4, 5, 6)), "float64")
    layer.place(device, "float64")
    masked = clnn.Masking()
    masked.place(device, "float64")
    y = layer(masked(x, TOKENS != 0)).numpy()
    live = TOKENS != 0
    assert_close(y[live], layer(x, x, live[:, None, None, :]).numpy()[live], 1e-12)
    for row, n in enumerate(LENGTHS):
        assert_close(y[row, :n], layer(x[row : row + 1, :n]).numpy()[0], 1e-12)


def test_a_mask_of_other_numbers_than_0_and_1(device, rng):
    """They counted, as in Keras, NaN too; in a step each array is looked at."""
    masking, x = clnn.Masking([clnn.LSTM(4)]), rng.standard_normal((2, 3, 4)).astype(np.float32)
    mask = np.array([[1, 0, 1], [1, 1, 0]], np.float32)
    found = masking(x, mask).numpy()

    @clnn.step
    def run(x, mask):
        return masking(x, mask)

    for _ in range(4):
        np.testing.assert_array_equal(run(x, mask).numpy(), found)
    for wrong, kind in ((0.5, np.float32), (np.nan, np.float32), (-1, np.int32), (2, np.int32)):
        other = mask.astype(kind)
        other[1, 2] = wrong
        told = f"is 1 or True for what counts, 0 or False for the rest, and holds {wrong}.*compare it, as in mask > 0.5"
        with pytest.raises(clnn.ConfigurationError, match=told):
            masking(x, other)
        with pytest.raises(clnn.ConfigurationError, match=told):
            run(x, other)
    np.testing.assert_array_equal(run(x, mask > 0.5).numpy(), found)
    np.testing.assert_array_equal(masking(x, clnn.tensor(mask) > 0.5).numpy(), found)
