"""Layers for sequences: embeddings, positions, multi-head attention, transformer blocks, in models that are trained."""

import numpy as np
import pytest
from helpers import assert_close, eps, normal, parameter
from test_attention import reference

import clnn


def values(layer):
    return {name: p.numpy().astype(np.float64) for name, p in layer.named_parameters()}


# -- embeddings -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("given", ["int64", "uint8", "floats", "list", "tensor"])
def test_embedding(rng, device, given):
    layer = clnn.Embedding(11, 5, padding=3)
    x = rng.integers(0, 11, (4, 6))
    x[0, :3], x[1] = 3, 7
    forms = {"int64": x, "uint8": x.astype(np.uint8), "floats": x * 1.0, "list": x.tolist(), "tensor": clnn.tensor(x)}
    y = layer(forms[given])
    w = layer.w.numpy()
    np.testing.assert_array_equal(y.numpy(), np.where((x == 3)[..., None], 0, w[x]))
    dy = normal(rng, y.shape, np.float32)
    y.backward(dy)
    wanted = np.zeros(w.shape)
    np.add.at(wanted, x, np.where((x == 3)[..., None], 0, dy))
    assert_close(layer.w.grad.numpy(), wanted, 32 * eps(np.float32))


def test_tied_weights_get_both_gradients(rng, device):
    layer = clnn.Embedding(7, 4)
    x = rng.integers(0, 7, (3, 5))
    y = layer.tied(layer(x))
    w = layer.w.numpy().astype(np.float64)
    assert_close(y.numpy(), w[x] @ w.T, 16 * eps(np.float32))
    dy = normal(rng, y.shape, np.float32)
    y.backward(dy)
    wanted = np.einsum("btv,btd->vd", dy, w[x])
    np.add.at(wanted, x, dy @ w)
    assert_close(layer.w.grad.numpy(), wanted, 64 * eps(np.float32))


def test_tokens_that_there_are_not(rng, device):
    net = clnn.Sequential([clnn.Embedding(5, 3), clnn.Flatten(), clnn.Dense(2)], input_shape=4)
    x, y = rng.integers(0, 5, (20, 4)), rng.integers(0, 2, 20)
    bad = x.copy()
    bad[13, 2] = 5
    calls = {
        "fit": lambda a: net.fit(a, y, loss="cross_entropy", optimizer=clnn.SGD(0.1), progress=False),
        "evaluate": lambda a: net.evaluate(a, y, loss="cross_entropy"),
        "predict": net.predict,
    }
    for call in calls.values():
        with pytest.raises(clnn.DataError, match=r"x\[13, 2\] is 5, and .* has 5 tokens, 0 to 4"):
            call(bad)
        with pytest.raises(clnn.DataError, match=r"\d.5 is none"):
            call(x + 0.5)
    with pytest.raises(clnn.ShapeError, match="tokens are whole numbers, and the input is float32"):
        net.layers[0](clnn.zeros((2, 4)))
    with pytest.raises(clnn.ConfigurationError, match="padding is a token from 0 to 4"):
        clnn.Embedding(5, 3, padding=5)


def test_tokens_are_not_counted_from_the_end(rng, device):
    """-1 and -100 mark what is to be left out elsewhere: no token has such a number."""
    layer = clnn.Embedding(5, 3)
    layer(np.zeros(1, int))
    for bad in (-1, -100, 5):
        for given in (np.array([0, bad]), clnn.tensor([0, bad])):
            with pytest.raises(clnn.DataError, match=rf"\[1\] is {bad}, and Embedding has 5 tokens"):
                layer(given)

    @clnn.step
    def step(x):
        layer.w.zero_grad()
        y = layer(x)
        clnn.where(clnn.isnan(y), 0.0, y).sum().backward()
        return y, layer.w.grad * 1.0

    for _ in range(5):
        y, grad = step(np.array([0, 4, 4], np.int32))
    np.testing.assert_array_equal(grad.numpy()[:, 0], [1, 0, 0, 0, 2])
    for bad in (-1, 5):
        with pytest.raises(clnn.DataError, match=rf"an argument of the step\[2\] is {bad}, and Embedding has 5 tokens"):
            step(np.array([4, 4, bad]))
        with pytest.raises(clnn.DataError, match=rf"an argument of the step\[2\] is {bad}, and Embedding has 5 tokens"):
            step(clnn.tensor([4, 4, bad]))
    for entry in step.replays._entries.values():  # as of what a step computes itself
        entry.known.checks.clear()
    y, grad = step(clnn.tensor([-1, 4, 5]))  # nobody looks
    assert np.isnan(y.numpy()[[0, 2]]).all() and not np.isnan(y.numpy()[1]).any()
    np.testing.assert_array_equal(grad.numpy()[:, 0], [0, 0, 0, 0, 1])


def test_a_query_that_sees_no_key_gives_zeros_with_dropout_too(rng, device):
    layer = clnn.MultiHeadAttention(2, dropout=0.5, bias=False)
    x, mask = clnn.tensor(normal(rng, (2, 4, 8))), np.ones((2, 1, 4, 4), bool)
    mask[1, :, 2] = False
    y = layer(x, x, mask)
    np.testing.assert_array_equal(y.numpy()[1, 2], 0)
    (y * y).sum().backward()
    assert all(np.isfinite(p.grad.numpy()).all() for p in layer.parameters())
    with clnn.no_grad():
        np.testing.assert_array_equal(layer(x, x, mask).numpy()[1, 2], 0)


def test_a_model_of_tokens_learns_and_comes_back(rng, device, tmp_path):
    """Which of two tokens is more frequent: with fit, over several batches and a remainder, and after saving."""
    x = rng.integers(0, 6, (300, 9)).astype(np.int64)
    y = ((x == 1).sum(1) > (x == 2).sum(1)).astype(int)
    net = clnn.Sequential(
        [clnn.Embedding(6, 8), clnn.Flatten(), clnn.Dense(16, "relu"), clnn.Dense(2)], input_shape=9, seed=1
    )
    history = net.fit(
        x, y, loss="cross_entropy", optimizer=clnn.Adam(0.01), epochs=30, batch_size=32, progress=False, seed=1,
        sample_weight=np.ones(300), validation=(x[:50], y[:50]),
    )  # fmt: skip
    assert history["accuracy"][-1] > 0.95 and history["val_accuracy"][-1] > 0.95
    assert net.evaluate(x, y)["accuracy"] > 0.95
    with clnn.no_grad():
        eager = net(x).numpy()
    np.testing.assert_array_equal(net.predict(x), eager)
    net.save(tmp_path / "net")
    again = clnn.load(tmp_path / "net")
    np.testing.assert_array_equal(again.predict(x), eager)
    assert again.layers[0].whole_inputs


# -- positions --------------------------------------------------------------------------------------------------------
def sines(time, size, past=0, base=10000.0):
    angle = (np.arange(time) + past)[:, None] * base ** (-2 * np.arange(size // 2) / size)
    return np.stack([np.sin(angle), np.cos(angle)], -1).reshape(time, size)


def turned(x, past=0, pairs="halves"):
    """By complex numbers: (batch, time, heads, depth)."""
    depth = x.shape[-1]
    angle = (np.arange(x.shape[1]) + past)[:, None, None] * 10000.0 ** (-2 * np.arange(depth // 2) / depth)
    a, b = (x[..., : depth // 2], x[..., depth // 2 :]) if pairs == "halves" else (x[..., ::2], x[..., 1::2])
    z = (a + 1j * b) * np.exp(1j * angle)
    joined = (z.real, z.imag)
    return np.concatenate(joined, -1) if pairs == "halves" else np.stack(joined, -1).reshape(x.shape)


@pytest.mark.parametrize("past", [None, 0, 5, 1000])
def test_positions(rng, device, past):
    before = past or 0
    bound = (1 + before / 4) * 8 * eps(np.float32)
    assert_close(clnn.sinusoidal_positions(9, 6, past).numpy(), sines(9, 6, before), bound)
    x = normal(rng, (2, 9, 3, 8))
    for pairs in ("halves", "neighbours"):
        assert_close(clnn.rotary(x, past, pairs=pairs).numpy(), turned(x, before, pairs), 4 * bound * 4)
    layer, given = clnn.SinusoidalPositions(), normal(rng, (2, 9, 6), np.float32)
    at = [] if past is None else [clnn.tensor(past) if past else past]
    assert_close(layer(given, *at).numpy(), given + sines(9, 6, before), bound + 8 * eps(np.float32))
    if before < 20:
        layer = clnn.PositionalEmbedding(20)
        y = layer(given, *at)
        assert_close(y.numpy(), given + layer.w.numpy()[before : before + 9], 4 * eps(np.float32))
        y.backward(np.ones(y.shape))
        assert layer.w.grad.numpy().sum() == 2 * 9 * 6


@pytest.mark.parametrize(
    "place",
    [
        lambda past: clnn.sinusoidal_positions(3, 4, past),
        lambda past: clnn.rotary(np.ones((1, 3, 2, 4)), past),
        lambda past: clnn.SinusoidalPositions()(np.ones((1, 3, 4)), past),
        lambda past: clnn.PositionalEmbedding(8)(np.ones((1, 3, 4)), past),
        lambda past: clnn.scaled_dot_product_attention(*[np.ones((1, 2, 3, 4))] * 3, past=past),
    ],
    ids=["sines", "rotary", "SinusoidalPositions", "PositionalEmbedding", "attention"],
)
@pytest.mark.parametrize(
    "past", [2.5, np.array([0.5]), clnn.tensor, [0, 1, 2], "0"], ids=["2.5", "[0.5]", "tensor", "list", "text"]
)
def test_how_many_came_before_is_one_whole_number(device, place, past):
    past = clnn.tensor(0.5) if past is clnn.tensor else past
    with pytest.raises((clnn.DataError, clnn.ShapeError), match="whole number|is one number|array of numbers|float32"):
        place(past)


def test_places_that_are_not_there(device):
    for past in (-1, -3, 6, 2**31 - 1):
        with pytest.raises(clnn.OutOfRangeError, match=f"3 steps after {past} others are not among 8 places"):
            clnn.PositionalEmbedding(8)(np.ones((1, 3, 4)), past)
    layer = clnn.PositionalEmbedding(8)
    step = clnn.step(lambda x, past: layer(x, past))
    x = np.ones((1, 3, 4), np.float32)
    for past in (0, 5, 2, 1):
        np.testing.assert_array_equal(step(x, np.int32([past])).numpy(), x + layer.w.numpy()[past : past + 3])
    for past in (-1, 6):
        with pytest.raises(clnn.OutOfRangeError, match="none of 8 rows"):
            step(x, np.int32([past])).sum().item()
    for base in (0, -1.0, np.inf):
        with pytest.raises(clnn.ConfigurationError, match="the base of positions"):
            clnn.sinusoidal_positions(3, 4, base=base)


def test_tied_weights_before_any_token(device):
    assert clnn.Embedding(9, 3).tied(np.ones((2, 3))).shape == (2, 9)


# -- attention and blocks ---------------------------------------------------------------------------------------------
def heads_of(x, w, name, heads):
    b, t, _ = x.shape
    return (x @ w[f"w{name}"] + w.get(f"b{name}", 0)).reshape(b, t, heads, -1).swapaxes(1, 2)


def attended(x, w, heads, key_heads, source, mask=None, causal=False, turn=False):
    q, k, v = heads_of(x, w, "q", heads), heads_of(source, w, "k", key_heads), heads_of(source, w, "v", key_heads)
    if turn:
        q, k = (turned(a.swapaxes(1, 2)).swapaxes(1, 2) for a in (q, k))
    y = reference(q, k, v, mask, causal).swapaxes(1, 2)
    return y.reshape(*x.shape[:2], -1) @ w["wo"] + w.get("bo", 0)


OPTIONS = [
    {"heads": 1},
    {"heads": 4, "causal": True},
    {"heads": 4, "key_heads": 2, "bias": False},
    {"heads": 2, "rotary": True, "causal": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_multi_head_attention(rng, device, options):
    layer = clnn.MultiHeadAttention(**options)
    x = normal(rng, (3, 7, 8))
    y = layer(x)
    w = values(layer)
    for name in w:
        if name.startswith("b"):
            p = dict(layer.named_parameters())[name]
            layer.load_state_dict({**layer.state_dict(), name: normal(rng, p.shape, np.float32)})
    y, w = layer(x), values(layer)
    key_heads = options.get("key_heads", options["heads"])
    how = {"causal": options.get("causal", False), "turn": options.get("rotary", False)}
    assert_close(y.numpy(), attended(x, w, options["heads"], key_heads, x, **how), 256 * eps(np.float32))
    mask = rng.random((3, 1, 7, 7)) < 0.7
    for given in (mask, mask.astype(np.int32), clnn.tensor(mask)):
        got = (
            layer.attend(x, None, given)
            if not isinstance(given, clnn.Tensor)
            else layer(clnn.tensor(x), clnn.tensor(x), given)
        )
        wanted = attended(x, w, options["heads"], key_heads, x, mask, **how)
        assert_close(got.numpy(), wanted, 256 * eps(np.float32))
    if not how["causal"]:
        context = normal(rng, (3, 5, 6))
        other = clnn.MultiHeadAttention(**options)
        got = other(x, context)
        wanted = attended(x, values(other), options["heads"], key_heads, context)
        assert_close(got.numpy(), wanted, 256 * eps(np.float32))


def test_dropout_of_probabilities(rng, device):
    """In training a share of them is dropped, and on average nothing changes; otherwise none is."""
    layer, plain = (clnn.MultiHeadAttention(2, dropout=rate, causal=True) for rate in (0.3, 0.0))
    x = normal(rng, (64, 12, 8))
    layer(x), plain(x)
    plain.load_state_dict(layer.state_dict())
    with clnn.no_grad():
        np.testing.assert_array_equal(layer(x).numpy(), plain(x).numpy())
    draws = np.mean([layer(x).numpy() for _ in range(60)], 0)
    assert np.abs(layer(x).numpy() - plain(x).numpy()).max() > 0.01
    assert np.abs(draws - plain(x).numpy()).mean() < 0.1 * np.abs(plain(x).numpy()).mean() + 0.05
    layer.dropout = 0.0
    np.testing.assert_array_equal(layer(x).numpy(), plain(x).numpy())


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("first", [True, False])
def test_encoder_block(rng, device, norm, first):
    block = clnn.TransformerEncoderLayer(2, 12, "relu", causal=True, norm_first=first, norm=norm)
    x = normal(rng, (3, 6, 8))
    y = block(x)
    w = values(block)

    def normed(a):
        centred = a - a.mean(-1, keepdims=True) if norm == "layer" else a
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)

    def beside(a, inner):
        return a + inner(normed(a)) if first else normed(a + inner(a))

    inside = {name.removeprefix("attention."): v for name, v in w.items() if name.startswith("attention.")}
    z = beside(x, lambda a: attended(a, inside, 2, 2, a, causal=True))
    z = beside(z, lambda a: np.maximum(a @ w["widen.w"] + w["widen.b"], 0) @ w["narrow.w"] + w["narrow.b"])
    assert_close(y.numpy(), z, 512 * eps(np.float32) * (1 + np.abs(z).max()))


def test_decoder_block_sees_no_later_step_and_all_of_the_context(rng, device):
    block = clnn.TransformerDecoderLayer(2, 12)
    x, context = normal(rng, (2, 6, 8)), normal(rng, (2, 5, 4))
    y = block(x, context).numpy()
    later = x.copy()
    later[:, 4:] += 1
    np.testing.assert_array_equal(block(later, context).numpy()[:, :4], y[:, :4])
    assert np.abs(block(later, context).numpy()[:, 4:] - y[:, 4:]).min() > 0
    assert np.abs(block(x, context + np.eye(5, 4)).numpy() - y).max(-1).min() > 0
    mask = np.arange(5) < 3
    other = context.copy()
    other[:, 3:] = 9
    np.testing.assert_array_equal(block(x, context, mask).numpy(), block(x, other, mask).numpy())


class Language(clnn.Model):
    """A small GPT."""

    whole_inputs = True

    def __init__(self, tokens, size=16):
        self.embedding, self.places = clnn.Embedding(tokens, size), clnn.PositionalEmbedding(12)
        self.blocks = [clnn.TransformerEncoderLayer(2, 2 * size, causal=True) for _ in range(2)]
        self.norm = clnn.LayerNorm()

    def forward(self, x):
        y = self.places(self.embedding(x))
        for block in self.blocks:
            y = block(y)
        return self.embedding.tied(self.norm(y))


def test_a_small_language_model_learns_to_copy(rng, device):
    """The next token is the one three places before; recorded steps give the bits of eager ones."""
    first = rng.integers(0, 5, (64, 3))
    x = np.tile(first, (1, 5))[:, :13]

    def losses(record):
        clnn.seed(3)
        net, optimizer = Language(5), clnn.AdamW(0.01)

        @clnn.step(record=record)
        def step(tokens, following):
            loss = clnn.losses.cross_entropy(net(tokens).reshape(-1, 5), following.reshape(-1))
            loss.backward()
            optimizer.step(net.parameters())
            return loss

        return [float(step(x[:, :-1], x[:, 1:])) for _ in range(60 if record else 8)]

    recorded, eager = losses(True), losses(False)
    assert recorded[:8] == eager
    assert recorded[-1] < 0.35 * recorded[0]  # two of twelve tokens cannot be known


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: clnn.MultiHeadAttention(3)(np.zeros((2, 4, 8))), "a multiple of 3 heads"),
        (lambda: clnn.MultiHeadAttention(4, key_heads=3), "no multiple of 3 key_heads"),
        (lambda: clnn.MultiHeadAttention(2)(np.zeros((2, 8))), "heads"),
        (lambda: clnn.PositionalEmbedding(3)(np.zeros((2, 4, 8))), "at most 3 steps"),
        (lambda: clnn.TransformerEncoderLayer(2, 8, norm="batch"), 'norm is "layer" or "rms"'),
        (
            lambda: clnn.TransformerEncoderLayer(8, 2)(np.zeros((2, 4, 8))),
            r"^Tra.*: \(8, 2\) are \(heads, hidden\), .* d_model is",
        ),
        (lambda: clnn.TransformerDecoderLayer(8, 2)(*np.zeros((2, 1, 4, 8))), r"^TransformerDecoder.*Layer\(8, 2048\)"),
        (lambda: clnn.rotary(np.zeros((1, 2, 1, 3))), "even depth"),
        (lambda: clnn.rotary(np.zeros((1, 2, 1, 0))), "even depth"),
        (lambda: clnn.rotary(np.zeros((1, 2, 1, 4)), pairs="odd"), "halves"),
        (lambda: clnn.sinusoidal_positions(3, 5), "even"),
    ],
)
def test_wrong_arguments(device, make, message):
    with pytest.raises(clnn.ClnnError, match=message):
        make()


@clnn.register
class Translator(clnn.Model):
    """A decoder over the embedded words of another language: two inputs of tokens."""

    whole_inputs = True

    def __init__(self):
        self.source, self.target = clnn.Embedding(7, 8), clnn.Embedding(5, 8)
        self.block, self.output = clnn.TransformerDecoderLayer(2, 12), clnn.Dense(5)

    def forward(self, x, context):
        return self.output(self.block(self.target(x), self.source(context)))


def test_a_decoder_is_saved_and_loaded(rng, device, tmp_path):
    net, x, context = Translator(), rng.integers(0, 5, (3, 6)), rng.integers(0, 7, (3, 4))
    y = net.predict((x, context))
    net.save(tmp_path / "net")
    np.testing.assert_array_equal(clnn.load(tmp_path / "net").predict((x, context)), y)


def test_types_change_on_the_device(rng, device):
    t = clnn.tensor(rng.integers(-9, 9, (3, 70)))
    np.testing.assert_array_equal(t.astype("float32").numpy(), t.numpy())
    if device.has_fp64:
        x = parameter(normal(rng, 9))
        (x.astype("float64") ** 2).sum().backward()
        assert_close(x.grad.numpy(), 2 * x.numpy().astype(float), 4 * eps(np.float32))


def test_a_mask_that_is_none_is_none(rng, device):
    """As a model of one's own hands it on whose forward(x, mask=None) is given none."""
    x, context = normal(rng, (2, 3, 4)).astype(np.float32), normal(rng, (2, 5, 6)).astype(np.float32)
    with clnn.no_grad():
        for layer, *inputs in (
            (clnn.MultiHeadAttention(2), x, context),
            (clnn.TransformerEncoderLayer(2, 8), x),
            (clnn.TransformerDecoderLayer(2, 8), x, context),
        ):
            np.testing.assert_array_equal(layer(*inputs, None).numpy(), layer(*inputs).numpy())


def test_keys_and_values_are_one_input(rng, device):
    """In PyTorch and Keras it is called with three. Where sizes allow, the third would be added to the scores."""
    x = clnn.tensor(normal(rng, (2, 4, 4)).astype(np.float32))
    for layer in (clnn.MultiHeadAttention(2), clnn.MultiHeadAttention(2, dropout=0.5)):
        with pytest.raises(
            clnn.ShapeError, match=r"the third input is a mask, .* \(2, 4, 4\), from which keys and values come"
        ):
            layer(x, x, x)
        assert layer(x, x, x[None]).shape == x.shape
        assert layer(x, x, np.tri(4, dtype=bool) & np.ones((2, 1, 1), bool)).shape == x.shape


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_mask_of_batch_queries_and_keys_is_told_what_it_lacks(rng, device, dropout):
    layer = clnn.MultiHeadAttention(2, dropout=dropout)
    x, mask = normal(rng, (3, 4, 6)), np.tri(4, dtype=bool) & np.ones((3, 1, 1), bool)
    with pytest.raises(clnn.ShapeError, match=r"as Keras has it, is mask\[:, None\] here"):
        layer.attend(clnn.tensor(x, np.float32), mask=mask)
    assert layer.attend(clnn.tensor(x, np.float32), mask=mask[:, None]).shape == x.shape
    with pytest.raises(clnn.ShapeError, match=r"\(3, 2, 4, 4\)$"):
        layer.attend(clnn.tensor(x, np.float32), mask=mask[:2, None])
