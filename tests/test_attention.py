"""Attention against float64 NumPy, with gradients; positions and caches."""

import numpy as np
import pytest
from helpers import assert_close, check_op, eps, normal, parameter

import clnn
from clnn.ops.sequence import attention as op

attend = clnn.scaled_dot_product_attention


def reference(q, k, v, mask=None, causal=False, scale=None, past=None):
    """The textbook's, over (batch, heads, time, depth); a query that sees no key gives zeros."""
    k, v = (np.repeat(a, q.shape[1] // k.shape[1], 1) for a in (k, v))
    s = q @ k.swapaxes(-1, -2) * (1 / np.sqrt(q.shape[-1]) if scale is None else scale)
    i, j = np.indices(s.shape[-2:])
    if mask is not None:
        s = np.where(mask, s, -np.inf) if mask.dtype.kind in "iub" else s + mask
    s = np.where(
        (j > i + (past or 0)) & bool(causal) | (j >= (past or 0) + s.shape[-2]) & (past is not None), -np.inf, s
    )
    top = s.max(-1, keepdims=True)
    e = np.exp(s - np.where(np.isfinite(top), top, 0))
    return e / np.where(e.sum(-1, keepdims=True) > 0, e.sum(-1, keepdims=True), 1) @ v


CASES = {  # batch, heads, key heads, queries, keys, depth, depth of values, options
    "one": (1, 1, 1, 1, 1, 1, 1, {}),
    "small": (2, 3, 3, 5, 7, 4, 6, {}),
    "blocks and rest": (1, 2, 2, 67, 131, 20, 33, {}),
    "causal": (2, 2, 2, 70, 70, 16, 16, {"causal": True}),
    "causal, one": (3, 1, 1, 1, 1, 8, 8, {"causal": True}),
    "grouped": (2, 6, 2, 9, 9, 8, 5, {"causal": True}),
    "causal, blocks and rest": (1, 4, 2, 131, 131, 20, 33, {"causal": True}),
    "one key head": (1, 4, 1, 6, 65, 12, 12, {}),
    "scale": (1, 2, 2, 4, 4, 5, 5, {"scale": 0.7}),
}


def arrays(rng, name, dtype=np.float32):
    b, h, g, tq, tk, d, dv, options = CASES[name]
    return [normal(rng, s, dtype) for s in ((b, h, tq, d), (b, g, tk, d), (b, g, tk, dv))], options


BACKWARD = {"by heads": 0, "by blocks": 10**6}  # heads for each core with which CPUs go back by heads


@pytest.fixture(params=BACKWARD)
def backward(request, monkeypatch):
    """Gradients by heads and by blocks, however many cores there are."""
    monkeypatch.setattr(op, "ENOUGH", BACKWARD[request.param])
    return request.param


@pytest.mark.parametrize("name", CASES)
def test_against_numpy(rng, device, name, backward):
    given, options = arrays(rng, name)
    check_op(
        rng,
        lambda q, k, v: attend(q, k, v, **options),
        lambda q, k, v: reference(q, k, v, **options),
        *given,
        rounding=64,
    )


@pytest.mark.platform("attention")
@pytest.mark.parametrize("name", ["blocks and rest", "grouped"])
def test_one_launch_forward(rng, device, name):
    given, options = arrays(rng, name)
    q, k, v = map(parameter, given)
    before = device.launches
    y = attend(q, k, v, **options)
    assert device.launches == before + 1
    assert_close(y.numpy(), reference(*given, **options), 64 * eps(np.float32))
    (y * y).sum().backward()
    again = attend(q, k, v, **options)
    assert_close(again.numpy(), y.numpy(), 0)


def test_one_or_two_launches_backward(rng, device, backward, monkeypatch):
    given, options = arrays(rng, "grouped")
    y, launched, launch = attend(*map(parameter, given), **options), [], type(device).launch
    noted = lambda self, file, name, *args, **how: launched.append(name) or launch(self, file, name, *args, **how)  # noqa: E731
    monkeypatch.setattr(type(device), "launch", noted)
    y.backward(np.ones(y.shape, np.float32))
    by_heads = backward == "by heads" and device.long_loops
    wanted = ["attention_backward"] if by_heads else ["attention_backward_q", "attention_backward_k"]
    assert [name for name in launched if name.startswith("attention")] == wanted


def test_in_float64(rng, device):
    if not device.has_fp64:
        pytest.skip("no float64")
    given, options = arrays(rng, "grouped", np.float64)
    check_op(
        rng, lambda q, k, v: attend(q, k, v, **options), lambda q, k, v: reference(q, k, v, **options), *given,
        dtype=np.float64, rounding=64,
    )  # fmt: skip


MASKS = {
    "true attends": lambda rng: rng.random((2, 1, 5, 7)) < 0.6,
    "ints": lambda rng: (rng.random((1, 3, 1, 7)) < 0.6).astype(int),
    "of keys": lambda rng: np.arange(7) < np.array([[[[3]]], [[[6]]]]),
    "added": lambda rng: normal(rng, (3, 5, 7), np.float32),
    "nothing is seen": lambda rng: np.arange(5)[:, None] * np.ones(7) > 1,
}


@pytest.mark.oclgrind
@pytest.mark.parametrize("name", MASKS)
def test_masks(rng, device, name, backward):
    given, _ = arrays(rng, "small")
    mask = MASKS[name](rng)
    check_op(rng, lambda q, k, v: attend(q, k, v, mask), lambda q, k, v: reference(q, k, v, mask), *given, rounding=64)
    again = attend(*map(clnn.tensor, given), clnn.tensor(mask)).numpy()
    assert_close(again, reference(*given, mask), 64 * eps(np.float32))


@pytest.fixture
def by_fours(device, monkeypatch):
    """The device's driver ends loops, so early that a launch takes four keys or queries."""
    check = lambda turns, what: 2 if what.startswith("attention of heads") else 10**9 // max(1, turns)  # noqa: E731
    monkeypatch.setattr(device, "most_turns", 10**9)
    monkeypatch.setattr(device, "check_turns", check)


@pytest.mark.parametrize("name", [*CASES, *MASKS])
def test_pieces_of_keys_where_a_driver_ends_loops(rng, device, by_fours, name):
    given, options = arrays(rng, name if name in CASES else "small")
    mask = None if name in CASES else MASKS[name](rng)
    launches, most = device.launches, max(given[0].shape[-2], given[1].shape[-2])
    check_op(
        rng, lambda q, k, v: attend(q, k, v, mask, **options), lambda q, k, v: reference(q, k, v, mask, **options), *given,
        rounding=64,
    )  # fmt: skip
    assert device.launches - launches >= -(-most // 4)


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize("hidden", [-1e9, -1e30])
def test_gradients_where_a_number_hides_all_keys(request, rng, device, backward, hidden, pieces):
    """Scores are rounded away, and so was the logarithm of how many there are: each key got the whole gradient."""
    if pieces:
        request.getfixturevalue("by_fours")
    given, _ = arrays(rng, "small")
    q, k, v = map(parameter, given)
    dy = normal(rng, (2, 3, 5, 6), np.float32)
    y = attend(q, k, v, np.full((5, 1), hidden, np.float32))
    y.backward(dy)
    even = np.full((2, 3, 5, 7), 1 / 7)
    ds = even * (dy @ given[2].swapaxes(-1, -2) - (dy * (even @ given[2])).sum(-1, keepdims=True)) / 2
    for found, wanted in ((y, even @ given[2]), (q.grad, ds @ given[1])):
        assert_close(found.numpy(), wanted, 64 * eps(np.float32))
    for found, wanted in ((k.grad, ds.swapaxes(-1, -2) @ given[0]), (v.grad, even.swapaxes(-1, -2) @ dy)):
        assert_close(found.numpy(), wanted, 64 * eps(np.float32))


COMPARED = {
    "greater": lambda t: t > 0,
    "of a comparison": lambda t: (t > 0) != 0.0,
    "reshaped": lambda t: (t > 0).reshape(35).reshape(1, 5, 7)[:, :, :],
    "both": lambda t: clnn.logical_and(t > 0, t < 9),
    "not": lambda t: clnn.logical_not(t <= 0),
    "isfinite": lambda t: clnn.isfinite(1 / clnn.maximum(t, 0.0)),
}


@pytest.mark.parametrize("name", COMPARED)
@pytest.mark.parametrize("recorded", [False, True])
def test_masks_that_a_comparison_makes_say_what_is_attended(rng, device, name, recorded):
    given, _ = arrays(rng, "small")
    told = np.where(rng.random((5, 7)) < 0.6, 1.0, -1.0).astype(np.float32)
    tensors = list(map(clnn.tensor, given))
    step = clnn.step(lambda t: attend(*tensors, COMPARED[name](t)), record=recorded)
    for _ in range(5):
        assert_close(step(told).numpy(), reference(*given, told > 0), 64 * eps(np.float32))


@pytest.mark.parametrize(
    "make", [lambda m: m, lambda m: m.astype(np.float64), clnn.tensor], ids=["float32", "float64", "tensor"]
)
def test_floats_of_0_and_1_are_no_mask(rng, device, make):
    """They would be added to the scores, as numpy.tril(numpy.ones(...)) would, and hide nothing."""
    given, _ = arrays(rng, "small")
    with pytest.raises(clnn.ConfigurationError, match="of 0 and 1, would hide nothing: give bools"):
        attend(*given, make(np.tril(np.ones((5, 7), np.float32))))
    assert_close(attend(*given, make(np.zeros((5, 7), np.float32))).numpy(), reference(*given), 64 * eps(np.float32))


def test_time_first_is_the_same_without_a_transposition(rng, device):
    given, options = arrays(rng, "grouped")
    turned = [np.ascontiguousarray(a.swapaxes(1, 2)) for a in given]
    check_op(
        rng, lambda q, k, v: attend(q, k, v, time_first=True, **options),
        lambda q, k, v: reference(*(a.swapaxes(1, 2) for a in (q, k, v)), **options).swapaxes(1, 2), *turned, rounding=64,
    )  # fmt: skip


@pytest.mark.parametrize("past", [-1, 6, 2**31 - 1])
def test_a_cache_that_is_too_short(rng, device, past):
    """An error where it can be seen, NaN where a step is recorded."""
    q, k, v = (clnn.tensor(normal(rng, s)) for s in ((1, 2, 3, 8), (1, 2, 8, 8), (1, 2, 8, 5)))
    for time_first in (False, True):
        given = [t.transpose(0, 2, 1, 3) if time_first else t for t in (q, k, v)]
        with pytest.raises(clnn.OutOfRangeError, match=f"{past} past keys and 3 queries do not fit a cache of 8 keys"):
            attend(*given, past=past, time_first=time_first)
    step = clnn.step(lambda before: attend(q, k, v, past=before))
    for before in (0, 5, 2, 1, 5):
        got = step(np.array(before, np.int32))
        assert_close(got.numpy(), reference(*(t.numpy() for t in (q, k, v)), past=before), 64 * eps(np.float32))
    assert np.isnan(step(np.array(past, np.int32)).numpy()).all()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("pieces", [False, True])
def test_past_keys_of_a_cache(request, rng, device, causal, pieces):
    """Keys that are not there yet may be anything, NaN too."""
    if pieces:
        request.getfixturevalue("by_fours")
    q, k, v = (normal(rng, s) for s in ((2, 4, 3, 8), (2, 2, 80, 8), (2, 2, 80, 5)))
    for past in (0, 2, 61, 77):
        k[:, :, past + 3 :], v[:, :, past + 3 :] = np.nan, np.nan
        want = reference(q, np.nan_to_num(k), np.nan_to_num(v), causal=causal, past=past)
        got = attend(q, k, v, causal=causal, past=past)
        assert_close(got.numpy(), want, 64 * eps(np.float32))
        k, v = np.nan_to_num(k) + 0.5, np.nan_to_num(v) + 0.5


def test_a_recorded_step_gives_the_same_bits(rng, device):
    given, options = arrays(rng, "causal")

    def run(record):
        parts = [parameter(a) for a in given]

        @clnn.step(record=record)
        def step(s):
            y = attend(*(p * s for p in parts), **options)
            (y * y).sum().backward()
            return [y, *(p.grad * 1.0 for p in parts)]

        found = []
        for i in range(5):
            for p in parts:
                p.zero_grad()
            found += [t.numpy() for t in step(clnn.tensor(1.0 + i))]
        return found

    for a, b in zip(run(True), run(False)):
        np.testing.assert_array_equal(a, b)


def test_nan_and_large_scores(device):
    q = np.array([[[[1e4], [np.nan], [-1e4]]]])
    k, v = np.array([[[[3.0], [-2.0]]]]), np.array([[[[1.0], [2.0]]]])
    np.testing.assert_array_equal(attend(q, k, v).numpy(), [[[[1.0], [np.nan], [2.0]]]])


WRONG = {
    "axes": (lambda q, k, v: attend(q[0], k, v), "4 axes"),
    "depths": (lambda q, k, v: attend(q, k[..., :3], v), "do not fit"),
    "heads": (lambda q, k, v: attend(q[:, :2], k, v), "multiple"),
    "keys": (lambda q, k, v: attend(q, k[:, :, :3], v), "do not fit"),
    "mask": (lambda q, k, v: attend(q, k, v, np.zeros((5, 8))), r"a mask of shape \(5, 8\)"),
    "causal": (lambda q, k, v: attend(q, k, v, causal=True), "5 queries of 7 keys"),
    "deep": (lambda q, k, v: attend(np.ones((1, 1, 2, 300)), np.ones((1, 1, 2, 300)), v[:1, :1, :2]), "depth of 1 to 256"),
}  # fmt: skip


@pytest.mark.parametrize(
    "how", [{"mask": [[1, 0], [1]]}, {"mask": "causal"}, {"mask": [[None]]}, {"past": [0.5]}, {"past": "0"}], ids=str
)
def test_what_is_no_array_of_numbers(rng, device, how):
    with pytest.raises(clnn.DataError, match=next(iter(how))):
        attend(*arrays(rng, "small")[0], **how)


def test_no_steps(device):
    for layer in (clnn.MultiHeadAttention(2), clnn.MultiHeadAttention(2, key_heads=1, causal=True)):
        assert layer(np.zeros((2, 0, 4))).shape == (2, 0, 4)


@pytest.mark.parametrize("heads", [1, 64])
def test_no_keys(rng, device, heads):
    """Zeros, and no gradient, which what lay in memory before does not show through."""
    q, k = parameter(rng.standard_normal((1, heads, 3, 4))), parameter(np.zeros((1, heads, 0, 4)))
    for _ in range(3):
        clnn.ones((1, heads, 3, 4)).numpy()
        y = attend(q, k, k)
        (y * y + y).sum().backward()
        assert not y.numpy().any() and not q.grad.numpy().any()
        q.zero_grad()


@pytest.mark.parametrize("scale", ["a", np.nan, (1, 2), np.inf])
def test_a_scale_that_is_no_number(rng, device, scale):
    with pytest.raises(clnn.ConfigurationError, match="attention's scale should be in"):
        clnn.scaled_dot_product_attention(*arrays(rng, "small")[0][:3], scale=scale)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(rng, device, name):
    call, message = WRONG[name]
    with pytest.raises(clnn.ShapeError, match=message):
        call(*arrays(rng, "small")[0])
