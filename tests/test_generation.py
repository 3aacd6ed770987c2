"""Writing with a language model, against a table whose probabilities are known; and the text to learn from."""

import copy
import hashlib
import os
import threading
from functools import partial

import numpy as np
import pytest

import clnn
from clnn.data import text


class GPT(clnn.Model):
    """A small one, of any kind of blocks and positions."""

    whole_inputs = True

    def __init__(self, places=None, layers=2, dtype=np.float32, norm=clnn.LayerNorm, **how):
        self.letters, self.places = clnn.Embedding(11, 16, weight_init="normal"), places
        self.blocks = [clnn.TransformerEncoderLayer(4, 24, causal=True, **how) for _ in range(layers)]
        self.norm = norm()
        self.place(clnn.device(), dtype)

    def forward(self, x):
        x = self.letters(x)
        x = x if self.places is None else self.places(x)
        for block in self.blocks:
            x = block(x)
        return self.letters.tied(self.norm(x))


class Translator(clnn.Model):
    """A decoder that attends to a sentence, its second input."""

    whole_inputs = (True, False)

    def __init__(self):
        self.letters, self.places = clnn.Embedding(11, 16, weight_init="normal"), clnn.SinusoidalPositions()
        self.blocks = [clnn.TransformerDecoderLayer(4, 24) for _ in range(2)]

    def forward(self, x, sentence):
        x = self.places(self.letters(x))
        for block in self.blocks:
            x = block(x, sentence)
        return self.letters.tied(x)


class ByHand(clnn.Model):
    """Attention and a gated unit written out with functions of tensors."""

    whole_inputs = True

    def __init__(self):
        self.letters, self.q, self.gate = clnn.Embedding(11, 16, weight_init="normal"), clnn.Dense(16), clnn.Dense(16)

    def forward(self, x):
        x = self.letters(x)
        q = clnn.rotary(self.q(x).reshape(*x.shape[:2], 2, 8), pairs="neighbours")
        heads = x.reshape(*x.shape[:2], 2, 8)
        y = clnn.scaled_dot_product_attention(q, clnn.rotary(heads), heads * 2, causal=True, time_first=True)
        turned = (t.transpose(0, 2, 1, 3) for t in (q, heads, heads))
        z = clnn.scaled_dot_product_attention(*turned, causal=True).transpose(0, 2, 1, 3)
        return self.letters.tied(clnn.swish(self.gate(x)) * (y + z).reshape(x.shape))


def recurrent(layer, **how):
    two = (lambda: layer(12, return_sequences=True, **how),) * 2
    return lambda: clnn.Sequential(
        [clnn.Embedding(11, 8, weight_init="normal"), *(one() for one in two), clnn.Dense(11)]
    )


MODELS = {
    "learned places": lambda: GPT(clnn.PositionalEmbedding(40)),
    "sines, one layer": lambda: GPT(clnn.SinusoidalPositions(), 1),
    "rotary, groups": lambda: GPT(None, 3, rotary=True, key_heads=2),
    "no places, rms, last": lambda: GPT(None, norm=clnn.RMSNorm, norm_first=False, key_heads=1),
    "cross attention": Translator,
    "by hand": ByHand,
    "LSTM": recurrent(clnn.LSTM),
    "GRU": recurrent(clnn.GRU, dropout=0.1),
    "SimpleRNN": recurrent(clnn.SimpleRNN),
    "float64": lambda: GPT(clnn.PositionalEmbedding(40), dtype=np.float64, rotary=True),
}
SENTENCE = np.linspace(-1, 1, 2 * 5 * 6, dtype=np.float32).reshape(2, 5, 6)


class Table(clnn.Model):
    """Scores of the next token by the last one alone: row t of a table."""

    whole_inputs = True

    def __init__(self, scores):
        self.scores = clnn.constant(np.asarray(scores, np.float32))

    def forward(self, x):
        return clnn.take_rows(self.scores, x)


CYCLE = np.roll(np.eye(5), 1, 1) * 50  # after t comes t + 1


@pytest.mark.parametrize("window", [1, 3, 8])
def test_each_token_follows_from_those_before(device, window):
    net = Table(CYCLE)
    for temperature in (0.0, 1.0):
        got = clnn.generate(net, [2], 9, window=window, temperature=temperature)
        assert got.dtype == np.int32 and got.tolist() == [3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert net.generate([2], 4, window=window).tolist() == [3, 4, 0, 1]
    both = clnn.generate(net, [[0, 1, 2, 3], [3, 2, 1, 0]], 3, window=window)
    assert both.tolist() == [[4, 0, 1], [1, 2, 3]]
    assert clnn.generate(net, [2], 0, window=window).shape == (0,)


def test_draws_have_the_model_s_probabilities(device):
    p = np.array([0.5, 0.25, 0.15, 0.1])
    net = Table(np.log(np.tile(p, (4, 1))))

    def drawn(**how):
        found = clnn.generate(net, np.zeros((4000, 1), int), 1, window=2, seed=5, **how)
        return np.bincount(found.ravel(), minlength=4) / len(found)

    for how, want in (
        ({}, p),
        ({"temperature": 0.5}, p**2 / (p**2).sum()),
        ({"top_k": 2}, np.array([2 / 3, 1 / 3, 0, 0])),
        ({"top_p": 0.7}, np.array([2 / 3, 1 / 3, 0, 0])),
        ({"top_p": 0.4}, np.array([1.0, 0, 0, 0])),
        ({"top_k": 3, "top_p": 1.0}, p * (p > 0.12) / 0.9),
    ):
        assert np.abs(drawn(**how) - want).max() < 0.035, how
    a, b, c = (clnn.generate(net, [0], 30, window=4, seed=seed) for seed in (1, 1, 2))
    assert a.tolist() == b.tolist() != c.tolist()


def test_scores_and_temperatures_at_the_end_of_the_range(device):
    """A temperature however small takes the largest; what is masked by -inf is never drawn, and infinity is no score."""
    table = np.where(np.eye(5) + CYCLE > 0, 10 * np.eye(5) + CYCLE, -np.inf)
    for temperature in (1e-320, 1e-300, 1e-3):
        for how in ({}, {"top_k": 2}, {"top_p": 0.9}):
            assert clnn.generate(Table(table), [2], 4, temperature=temperature, seed=1, **how).tolist() == [3, 4, 0, 1]
    drawn = clnn.generate(Table(table / 1e9), [[2]] * 200, 1, temperature=1e300, seed=1)
    assert set(drawn.ravel().tolist()) == {2, 3}
    for wrong in (np.inf, np.nan):
        for temperature in (0.0, 1.0):
            with pytest.raises(clnn.ConfigurationError, match="largest of the model's scores is"):
                clnn.generate(Table(np.where(np.eye(5) > 0, wrong, table)), [2], 3, temperature=temperature)
    with pytest.raises(clnn.ConfigurationError, match="scores is -inf"):
        clnn.generate(Table(np.full((5, 5), -np.inf)), [2], 3)


def test_a_model_that_has_changed_is_found_out_by_two_tokens(device):
    """Though it was once proved to fit a cache."""

    class Mean(clnn.Layer):
        def forward(self, x):
            return x + 5 * x.mean(1, keepdims=True)

    clnn.seed(1)
    net = clnn.Sequential(
        [clnn.Embedding(11, 16, weight_init="normal"), clnn.LSTM(16, return_sequences=True), clnn.Dense(11)]
    )
    net.generate([1, 2, 3], 6)
    net.layers = [net.layers[0], Mean(), *net.layers[1:]]
    for hides in (False, True):  # a token, by -inf
        if hides:
            net.layers[-1].b = clnn.tensor(np.where(np.arange(11) == 4, -np.inf, 0), requires_grad=True)
        with pytest.raises(clnn.ConfigurationError, match="scores that differ"):
            net.generate([1, 2, 3], 2)


ENDS = {
    "Dense": lambda: [clnn.Dense(9, "softmax")],
    "Activation": lambda: [clnn.Dense(9), clnn.Activation("softmax")],
    "TimeDistributed": lambda: [clnn.TimeDistributed(clnn.Dense(9, "softmax"))],
}


@pytest.mark.parametrize(
    "how", [{}, {"temperature": 0.5}, {"temperature": 0}, {"top_k": 3, "cache": False}, {"top_p": 0.8, "window": 3}]
)
@pytest.mark.parametrize("end", ENDS)
def test_a_model_that_ends_with_a_softmax_draws_as_one_without(device, rng, end, how):
    def model(*last):
        return clnn.Sequential([clnn.Embedding(9, 8), clnn.LSTM(5, return_sequences=True), *last], input_shape=4)

    one, other = model(clnn.Dense(9)), model(*ENDS[end]())
    for net in one, other:
        values = np.random.default_rng(1)
        net.load_state_dict({name: 3 * values.standard_normal(a.shape) for name, a in net.state_dict().items()})
    prompts = rng.integers(0, 9, (8, 3))
    np.testing.assert_array_equal(one.generate(prompts, 9, seed=2, **how), other.generate(prompts, 9, seed=2, **how))


@pytest.mark.parametrize("first", [False, True])
def test_within_a_step_nothing_is_generated(device, first):
    """Its counters would move on at the end of that step alone."""
    net = clnn.Sequential([clnn.Embedding(9, 8), clnn.LSTM(5, return_sequences=True), clnn.Dense(9)])
    if first:
        net.generate([1, 2], 12, window=2, cache=False)
    step = clnn.step(lambda x: net.generate([1, 2], 12, window=2, cache=False))
    for _ in range(3):
        with pytest.raises(clnn.ClnnError, match="generate is for outside of steps"):
            step(np.array([1, 2]))
    assert net.generate([1, 2], 3).shape == (3,)


@pytest.mark.parametrize("outputs", ["last", "tuple", "dict"])
def test_outputs_that_are_no_scores_of_each_step(device, outputs):
    tokens = clnn.Input((5,), "int32")
    y = clnn.LSTM(4, return_sequences=outputs != "last")(clnn.Embedding(9, 8)(tokens))
    make, told = {
        "last": (lambda: clnn.Dense(9)(y), r"gives \(9,\)"),
        "tuple": (lambda: [clnn.Dense(9)(y), clnn.Dense(9)(y)], r"gives a tuple or dict of \(2, 9\), \(2, 9\)"),
        "dict": (lambda: {"scores": clnn.Dense(9)(y)}, r"gives a tuple or dict of \(2, 9\)"),
    }[outputs]
    net = clnn.Model(tokens, make())
    for cache in (True, False):
        with pytest.raises(clnn.ShapeError, match=told + " for a sequence.*one tensor.*return_sequences"):
            net.generate([1, 2], 3, cache=cache)


@pytest.mark.parametrize("call", [partial(clnn.generate, n=2), clnn.train.predict, partial(clnn.train.evaluate, y=[2])])
def test_what_is_no_model(device, call):
    for model in (5, None, clnn.Sequential, lambda x: x):
        with pytest.raises(clnn.ConfigurationError, match="takes a model"):
            call(model, [1])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"inputs": 5}, "inputs are a tuple"),
        ({"inputs": SENTENCE}, "inputs are a tuple"),
        ({"prompt": []}, "at least one token"),
        ({"prompt": [[[1]]]}, r"\(batch, time\)"),
        ({"prompt": [0.5]}, "whole numbers"),
        ({"n": -1}, "n should be"),
        ({"window": 0}, "window should be"),
        ({"prompt": [[1], [-1]]}, "numbers from 0 on, and -1"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"prompt": [7]}, "NaN|no row 7"),
    ],
)
def test_wrong_arguments(device, how, message):
    given = {"prompt": [1], "n": 2, "window": 4} | how
    with pytest.raises(clnn.ClnnError, match=message):
        clnn.generate(Table(CYCLE), given.pop("prompt"), given.pop("n"), **given)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"prompt": [1] * 9}, "at most 8 steps|takes 8: give generate window=8"),
        ({"n": 9}, "takes 8: give generate window=8"),
        ({"window": 9, "n": 20}, "takes 8: give generate window=8"),
        ({"prompt": [3, 11]}, "Embedding has 11 tokens|NaN"),
        ({"prompt": [[3], [-1]]}, "numbers from 0 on, and -1"),
    ],
)
@pytest.mark.parametrize("recorded", ["", "recorded", "fused"])
def test_more_than_the_model_has(device, how, message, recorded, monkeypatch):
    """And what comes after it is not to blame."""
    if recorded == "fused":
        monkeypatch.setenv("CLNN_FUSE", "always")
    net = GPT(clnn.PositionalEmbedding(8), 1)
    for _ in range(4 if recorded else 0):
        clnn.generate(net, [1], 7)
        clnn.generate(net, [[1], [2]], 7)
    for _ in range(3):
        with pytest.raises(clnn.ClnnError, match=message):
            clnn.generate(net, **({"prompt": [1], "n": 3} | how))
        assert np.isfinite(net.predict(np.array([[1, 2]]))).all()
        assert clnn.generate(net, [1], 7).shape == (7,)
    assert clnn.generate(net, [1], 20, window=8).shape == (20,)


def test_an_error_hides_no_row_that_an_earlier_step_missed(device):
    """Not that of its own input either."""
    net, table = GPT(clnn.PositionalEmbedding(8), 1), clnn.tensor(np.ones((5, 2), np.float32))
    clnn.generate(net, [1], 3)
    taken = clnn.step(lambda rows: clnn.take(table, rows + 0, axis=0))
    for _ in range(4):
        taken(clnn.tensor(np.array([0, 4], np.int32)))
    taken(clnn.tensor(np.array([0, 7], np.int32)))
    with pytest.raises(clnn.OutOfRangeError, match="names none of 5 rows"):
        clnn.generate(net, [1] * 9, 3)  # more than 8
    with pytest.raises(clnn.ShapeError):
        clnn.generate(net, [1] * 9, 3)
    assert clnn.generate(net, [1], 3).shape == (3,)


def by_hand(net, prompt, n, window=None, temperature=1.0, top_k=None, top_p=None, seed=None, inputs=(), near=None):
    """What `generate` writes, (batch, n), by NumPy and the whole sequence for each token. `near` takes how near a number that
    decides came to another decision: closer than rounding of probabilities, `generate` may take the other one."""
    whole, near = np.atleast_2d(prompt), [] if near is None else near
    uniform = np.random.default_rng(seed).random((n, len(whole)))
    for u in uniform:
        z = net.predict((whole if window is None else whole[:, -window:], *inputs))[:, -1].astype(np.float64)
        order = np.argsort(-z, -1, kind="stable")
        if temperature:
            p = np.exp((z - z.max(-1, keepdims=True)) / temperature)
            p = np.take_along_axis(p, order, -1) if top_k or top_p else p
            p[:, top_k or p.shape[1] :] = 0
            if top_p:
                before = (np.cumsum(p, -1) - p) / p.sum(-1, keepdims=True)
                near.append(np.abs(before - top_p).min())
                p[before >= top_p] = 0
            near.append(np.abs(np.cumsum(p, -1) / p.sum(-1, keepdims=True) - u[:, None]).min())
            at = (np.cumsum(p, -1) < u[:, None] * p.sum(-1, keepdims=True)).sum(-1)
            at = np.take_along_axis(order, at[:, None], -1)[:, 0] if top_k or top_p else at
        else:
            at = order[:, 0]
        whole = np.concatenate([whole, at[:, None]], 1)
    return whole[:, -n:]


@pytest.mark.parametrize("window", [3, 8])
def test_a_window_sees_the_end_of_a_prompt_that_is_longer_than_the_places(rng, device, window):
    net, prompts, how = GPT(clnn.PositionalEmbedding(8), 1), rng.integers(0, 11, (2, 13)), {"temperature": 0.0}
    for given in (prompts, prompts[:, :8], prompts[:, :9]):
        found = clnn.generate(net, given, 4, window=window, **how)
        assert found.tolist() == by_hand(net, given, 4, window=window, **how).tolist()
    both = clnn.generate(net, [prompts[0], prompts[1, :2]], 4, window=window, **how)
    assert both[0].tolist() == clnn.generate(net, prompts[0], 4, window=window, **how).tolist()


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.platform("index", "attention")] if "groups" in n else []) for n in MODELS],
)
def test_a_cache_changes_no_score(rng, device, monkeypatch, name):
    """Of prompts of one token and of more, over the window's end too, for one text and several; and nothing is recorded anew."""
    if name == "float64" and not device.has_fp64:
        pytest.skip("no float64")
    clnn.seed(1)
    monkeypatch.setenv("CLNN_FUSE", "0")  # one kernel of all launches would be a program more
    net, compared = MODELS[name](), []
    close = 1e-12 if name == "float64" else 1e-5
    prove = clnn.generation._Writer._prove

    def strictly(writer, tokens, count):
        whole = net.predict((tokens, *how["inputs"]))[:, -count:]
        told = writer.draws.scores(count, whole.shape[-1])
        assert np.abs(told - whole).max() <= close * np.abs(whole).max()
        compared.append(count)
        prove(writer, tokens, count)

    monkeypatch.setattr(clnn.generation._Writer, "_prove", strictly)
    for prompt, n, window in (([3], 12, None), ([[1, 2, 3, 4], [10, 9, 8, 7]], 14, 12), ([5, 6], 17, None)):
        batch = len(np.atleast_2d(prompt))
        how = {"window": window, "inputs": (SENTENCE[:batch],) if name == "cross attention" else ()}
        how |= {"temperature": 20.0, "seed": 2}  # else it may write one letter for ever
        got, want = clnn.generate(net, prompt, n, **how), clnn.generate(net, prompt, n, cache=False, **how)
        assert got.shape == (*np.shape(prompt)[:-1], n) and len(np.unique(got)) > 2
        assert got.tolist() == want.tolist() and (
            batch == 1 or want.tolist() == by_hand(net, prompt, n, **how).tolist()
        )
    assert compared == [2, 10, 2, 7, 2, 15]  # each is a batch, or a room, of its own, proved by two tokens first
    clnn.generate(net, [1], 16, inputs=how["inputs"])
    key = ("generate", True, 16, 1, np.dtype(np.int32), *[(x.shape, x.dtype) for x in how["inputs"]])
    writer = net._evaluations[key]
    entry = next(e for key, e in writer.step.replays._entries.items() if not key[1][0] and e.recording)
    built, replays = len(device.programs._programs), entry.replays
    clnn.generate(net, [1], 16, inputs=how["inputs"])
    assert len(device.programs._programs) == built and entry.recording is not None and entry.replays == replays + 1


@pytest.mark.parametrize(
    "cut",
    [{}, {"top_k": 3}, {"top_p": 0.8}, pytest.param({"top_k": 40, "top_p": 0.5}, marks=pytest.mark.platform("sampling")),
     {"temperature": 0.0}], ids=str,
)  # fmt: skip
def test_draws_are_those_of_numpy(rng, device, cut):
    """From 5 and from 300 tokens, more than work-items of a group, with equal scores among them, for several texts."""
    for tokens in (5, 300):
        how = {"temperature": 1.3, "seed": 4} | cut
        for prompt in ([[1], [0], [4]], [[2, 3], [1, 1], [0, 4]]):
            near = [0]
            while min(near, default=1) < 2e-6:
                near.clear()
                net = Table(np.round(3 * rng.standard_normal((tokens, tokens)), 1))
                want = by_hand(net, prompt, 70, 2, **how, near=near).tolist()  # it is all the same what comes before
            assert (
                clnn.generate(net, prompt, 70, **how).tolist()
                == clnn.generate(net, prompt, 70, window=2, **how).tolist()
                == want
            )


def test_scores_that_fill_their_memory_are_compared_in_between(device, monkeypatch):
    clnn.seed(1)
    net = GPT(None, 1)
    want = net.generate([1, 2], 9, seed=1, temperature=20.0)
    assert net._evaluations["generate", True, 16, 1, np.dtype(np.int32)].slots == 16
    monkeypatch.setattr(clnn.generation, "TOLD", 5 * 11 * 4)
    net = copy.deepcopy(net)
    for _ in range(3):
        assert net.generate([1, 2], 9, seed=1, temperature=20.0).tolist() == want.tolist()
    assert net._evaluations["generate", True, 16, 1, np.dtype(np.int32)].slots == 5


@pytest.mark.oclgrind
def test_few_draws(rng, device):
    for how in ({}, {"top_p": 0.8}):
        near = [0]
        while min(near) < 2e-6:
            near.clear()
            net = Table(np.round(3 * rng.standard_normal((70, 70)), 1))
            want = by_hand(net, [[1], [0]], 3, 2, seed=1, **how, near=near).tolist()
        assert clnn.generate(net, [[1], [0]], 3, window=2, seed=1, **how).tolist() == want


def test_prompts_of_several_lengths(device):
    """In one call they give what each gives alone; inputs go with their prompts."""
    clnn.seed(2)
    prompts = [[3], np.array([1, 2, 3]), (7,), [10, 9, 8, 7, 6]]
    for net, inputs in (
        (GPT(clnn.PositionalEmbedding(40)), ()),
        (MODELS["LSTM"](), ()),
        (Translator(), (np.tile(SENTENCE, (2, 1, 1)),)),
    ):
        got = net.generate(prompts, 9, temperature=0, inputs=inputs)
        for i, (row, prompt) in enumerate(zip(got, prompts)):
            assert (
                row.tolist() == net.generate(prompt, 9, temperature=0, inputs=[x[i : i + 1] for x in inputs]).tolist()
            )
    a, b = (net.generate(prompts, 9, seed=3, inputs=inputs).tolist() for _ in range(2))
    assert a == b
    with pytest.raises(clnn.ShapeError, match=r"4 prompts, and inputs of the shapes \(2, 5, 6\)"):
        net.generate(prompts, 2, inputs=(SENTENCE,))
    for wrong, message in (
        ([[1, 2], []], "number 1 of a list"),
        ([[1, 2], [[3]]], r"shape is \(1, 1\)"),
        ([[1, 2], [-1]], "and -1"),
        ([[1, 2], [0.5]], "prompt 1"),
        ([[1, 2], 3], "prompt"),
    ):
        with pytest.raises(clnn.ClnnError, match=message):
            net.generate(wrong, 2)


def test_steps_follow_the_weights(rng, device, tmp_path):
    """After training, after loading, after freezing, of another model and of a copy, and beside training in another thread."""
    clnn.seed(1)
    block = lambda: clnn.TransformerEncoderLayer(2, 24, causal=True)  # noqa: E731
    net, other = (
        clnn.Sequential(
            [
                clnn.Embedding(11, 16, weight_init="normal"),
                clnn.PositionalEmbedding(16),
                block(),
                block(),
                clnn.Dense(11),
            ]
        )
        for _ in range(2)
    )

    def write(model, **how):
        return clnn.generate(model, [[3, 1], [4, 5]], 8, temperature=0, **how).tolist()

    def same(model):
        found = write(model)
        assert found == write(model, cache=False)
        return found

    def fit(epochs):
        x = rng.integers(0, 11, (32, 8))
        how = {"loss": "mse", "epochs": epochs, "batch_size": 8, "progress": False}
        net.fit(x[:, :-1], np.eye(11)[x[:, 1:]], optimizer=clnn.Adam(0.05), **how)

    first, foreign = [same(net) for _ in range(4)][0], same(other)
    fit(3)
    trained = same(net)
    assert trained != first and same(other) == foreign
    net.save(tmp_path / "net.clnn")
    assert same(clnn.load(tmp_path / "net.clnn")) == same(copy.deepcopy(net)) == trained
    net.layers[2].trainable = False
    assert same(net) == trained
    net.load_state_dict(other.state_dict())
    assert same(net) == foreign
    net.layers = [*net.layers[:2], *net.layers[3:]]
    assert same(net) != foreign
    written = []
    thread = threading.Thread(target=lambda: written.extend(write(other) for _ in range(20)))
    thread.start()
    fit(10)
    thread.join()
    assert written == [foreign] * 20


class Mixing(clnn.Model):
    """A model that one thing makes unfit for a cache."""

    whole_inputs = True

    def __init__(self, how):
        self.letters, self.how = clnn.Embedding(11, 16, weight_init="normal"), how
        self.layers = {
            "self": clnn.MultiHeadAttention(2),
            "causal": clnn.MultiHeadAttention(2, causal=True),
            "conv": clnn.Conv1D(16, 3, padding=((2, 0),)),
            "both": clnn.Bidirectional(clnn.LSTM(8, return_sequences=True)),
            "back": clnn.GRU(16, return_sequences=True, go_backwards=True),
            "states": clnn.GRU(16, return_sequences=True),
        }

    def forward(self, x):
        y = self.letters(x)
        time = x.shape[1]
        if self.how == "mean":
            y = y + y.mean(1, keepdims=True)
        elif self.how == "places":
            y = y + self.letters(clnn.arange(time, device=x.device) % 11)
        elif self.how == "mask":
            y = self.layers["causal"].attend(y, None, np.tri(time) > 0)
        elif self.how == "cumsum":
            y = clnn.cumsum(y, 1)
        elif self.how == "states":
            y = self.layers["states"](y, y[:, 0])
        elif self.how == "conv":
            y = self.layers["conv"](y.transpose(0, 2, 1)).transpose(0, 2, 1)
        else:
            y = self.layers[self.how](y)
        return self.letters.tied(y)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("self", "without causal=True"), ("mask", "mask says nothing"), ("mean", "scores that differ"),
        ("places", "scores that differ"), ("cumsum", "scores that differ"), ("conv", "scores that differ"),
        ("both", "goes on from its own states"), ("back", "goes on from its own states"), ("states", "goes on from its own"),
    ],
)  # fmt: skip
def test_a_model_that_mixes_steps_otherwise_is_found_out(device, how, message):
    """It never writes something else without a word; without a cache it writes."""
    clnn.seed(3)
    net = Mixing(how)
    for prompt in ([1, 2], [1, 2, 3]):  # of one token again and again even these give the right scores
        with pytest.raises(clnn.ConfigurationError, match=f"{message}.*cache=False"):
            clnn.generate(net, prompt, 4, temperature=0)
        got, tokens = clnn.generate(net, prompt, 4, temperature=0, cache=False), list(prompt)
        for _ in range(4):
            tokens.append(int(net.predict(np.array([tokens]))[0, -1].argmax()))
        assert got.tolist() == tokens[len(prompt) :]


def test_shakespeare(monkeypatch, tmp_path):
    monkeypatch.setenv("CLNN_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("CLNN_CACHE_DIR", str(tmp_path / "cache"))
    words, tried = b"To be, or not to be", []
    monkeypatch.setattr(text, "SHA256", hashlib.sha256(words).hexdigest())

    def read(urls, check):
        tried.append(list(urls))
        check(words, tried[-1][0])
        return words, tried[-1][0]

    monkeypatch.setattr(text, "download", read)
    assert clnn.data.shakespeare() == clnn.data.shakespeare() == words.decode() and len(tried) == 1
    os.makedirs(tmp_path / "shakespeare")
    (tmp_path / "shakespeare" / "input.txt").write_bytes(b"To be")
    with pytest.raises(clnn.DataError, match="not the 1,115,394 characters"):
        clnn.data.shakespeare()
    monkeypatch.setenv("CLNN_DATA_DIR", str(tmp_path / "none"))  # as for the other data sets
    with pytest.raises(clnn.DataError, match="CLNN_DATA_DIR is .*none', which is not a folder"):
        clnn.data.shakespeare()
