"""Functions of tensors, losses and activations against PyTorch: values and gradients, eager and replayed, a line a case."""

import numpy as np
import pytest
from helpers import assert_close, eps, scale_of

import clnn
from clnn import losses

torch = pytest.importorskip("torch")
F = torch.nn.functional
I, R, M = np.array([[2, 0], [-1, 2]]), np.array([2, 2, 0]), np.arange(12).reshape(3, 4) % 3 == 0
KEPT = {}


def kept(array, like):
    """An array on the device of a tensor, made once: numbers of its type, whole numbers as int32."""
    key = array.tobytes(), array.shape, array.dtype.str, like.dtype, like.device
    if key not in KEPT:
        KEPT[key] = clnn.constant(array, like.dtype if array.dtype.kind == "f" else None, like.device)
    return KEPT[key]


# What both do of `c` (clnn or torch) and arrays, where they agree on how it is written
BOTH = {
    "erf": (lambda c, a: c.erf(a), (3, 5)),
    "log1p": (lambda c, a: c.log1p(a * a), (3, 5)),
    "expm1": (lambda c, a: c.expm1(a), (7,)),
    "sign": (lambda c, a: c.sign(a) * a, (2, 1, 3)),
    "abs": (lambda c, a: c.abs(a), (4,)),
    "floor": (lambda c, a: c.floor(a) * a + c.ceil(a) + c.round(a), (9,)),
    "where": (lambda c, a, b: c.where(a > b, a * b, b), (3, 1, 5), (4, 1)),
    "where, one": (lambda c, a: c.where(a > 0, a, a * a), (1,)),
    "maximum": (lambda c, a, b: c.maximum(a, b) - c.minimum(a, b), (3, 4), (4,)),
    "clip": (lambda c, a: c.clip(a, -0.5, 0.25), (3, 7)),
    "clip, none": (lambda c, a: c.clip(a, -0.5, 0.25), (0, 7)),
    "logaddexp": (lambda c, a, b: c.logaddexp(a, b), (2, 3), (3,)),
    "remainder": (lambda c, a, b: c.remainder(a, b), (17,), (17,)),
    "divide": (lambda c, a, b: a / (b * b + 1) - 2 / (a * a + 1), (3, 1), (1, 4)),
    "power": (lambda c, a, b: (a * a + 0.5) ** b, (3, 4), (4,)),
    "stack": (lambda c, a, b: c.stack([a, b, a], -1), (2, 3), (2, 3)),
    "stack, none": (lambda c, a: c.stack([a, a], 1), (3, 0)),
    "flip": (lambda c, a: c.flip(a, (0, -1)), (2, 3, 4)),
    "roll": (lambda c, a: c.roll(a, -4, 1), (2, 3, 4)),
    "tile": (lambda c, a: c.tile(a, (2, 1, 3)), (2, 3)),
    "tile, none": (lambda c, a: c.tile(a, (2, 0)), (2, 3)),
    "squeeze": (lambda c, a: c.squeeze(a, -2), (3, 1, 2)),
    "tril": (lambda c, a: c.tril(a, -1), (2, 4, 3)),
    "triu": (lambda c, a: c.triu(a, 1), (3, 5)),
    "cumsum": (lambda c, a: c.cumsum(a, 1), (2, 7, 3)),
    "cumsum, none": (lambda c, a: c.cumsum(a, -1), (2, 0)),
    "logsumexp": (lambda c, a: c.logsumexp(a * 30, -1), (3, 5)),
    "logsumexp, several": (lambda c, a: c.logsumexp(a, (0, 2)), (3, 5, 2)),
    "key, rows": (lambda c, a: a[I], (3, 5)),
    "key, two": (lambda c, a: a[[0, 2, 1], [3, 0, -1]], (3, 4, 2)),
    "key, apart": (lambda c, a: a[[0, 2], :, [1, 1]], (3, 4, 2)),
    "key, mask": (lambda c, a: a[M], (3, 4, 2)),
    "key, mask and None": (lambda c, a: a[..., None, [True, False, True, False]], (3, 4)),
    "key, ellipsis": (lambda c, a: a[..., 1:, None, 0], (3, 4, 2)),
    "key, nothing": (lambda c, a: a[[False] * 3], (3, 4)),
    "key, an empty list": (lambda c, a: a[:, np.zeros(0, int)], (3, 4)),
    "einsum": (lambda c, a, b: c.einsum("bij,bjk->bik", a, b), (3, 2, 4), (3, 4, 5)),
    "einsum, ordered": (lambda c, a, b: c.einsum("ijb,kbj->bki", a, b), (4, 2, 3), (5, 3, 2)),
    "einsum, outer": (lambda c, a, b: c.einsum("i,j->ji", a, b), (3,), (4,)),
    "einsum, lone": (lambda c, a, b: c.einsum("bij,k->ik", a, b), (2, 3, 4), (2,)),
    "matmul": (lambda c, a, b: a @ b, (2, 1, 3, 4), (5, 4, 2)),
    "matmul, vectors": (lambda c, a, b: a @ b, (4,), (3, 4, 2)),
    "matmul, odd": (lambda c, a, b: a @ b, (3, 1, 7), (7, 1)),
    "matmul, none": (lambda c, a, b: a @ b, (2, 3, 0), (2, 0, 4)),
    "softmax": (lambda c, a: c.softmax(a * 9, 1), (2, 3, 4)),
    "log_softmax": (lambda c, a: c.log_softmax(a * 9, 0), (3, 4)),
    "prod": (lambda c, a: c.prod(a, 1), (3, 4)),
    "prod, one": (lambda c, a: c.prod(a, -1), (3, 1)),
    "products with zeros": (lambda c, a: c.prod(a * c.where(a > 0.5, 0.0 * a, 1.0 + 0.0 * a), 0), (6, 5)),
}
# What clnn does, what PyTorch does, shapes of the arguments
CASES = {
    "masked_fill": (lambda a: clnn.masked_fill(a, kept(M, a), -9.0), lambda a: a.masked_fill(torch.tensor(M), -9.0), (2, 3, 4)),
    "repeat": (lambda a: clnn.repeat(a, 3, 1), lambda a: a.repeat_interleave(3, 1), (2, 3)),
    "squeeze, all": (clnn.squeeze, torch.squeeze, (1, 3, 1, 2)),
    "expand_dims": (lambda a: clnn.expand_dims(a, -2), lambda a: a.unsqueeze(-2), (3, 2)),
    "std": (lambda a: clnn.std(a, 1, ddof=1), lambda a: a.std(1), (3, 4)),
    "var": (lambda a: clnn.var(a, (0, 2), keepdims=True), lambda a: a.var((0, 2), correction=0, keepdim=True), (3, 4, 2)),
    "argmin": (lambda a: clnn.argmin(a, 0) * 1, lambda a: a.argmin(0).int(), (5, 3)),
    "argmin, all": (lambda a: clnn.argmin(a, None) * 1, lambda a: a.argmin().int(), (5, 3)),
    "topk": (lambda a: clnn.topk(a, 2, 0)[0], lambda a: a.topk(2, 0)[0], (5, 3)),
    "topk, least": (lambda a: clnn.topk(a, 3, largest=False)[1] * 1, lambda a: a.topk(3, largest=False)[1].int(), (2, 7)),
    "sort": (lambda a: clnn.sort(a, 1, descending=True), lambda a: a.sort(1, descending=True)[0], (2, 33, 2)),
    "take": (lambda a: clnn.take(a, kept(R, a), 1), lambda a: a.index_select(1, torch.tensor(R)), (2, 3, 2)),
    "gather": (lambda a: clnn.gather(a, kept(M * 1, a), 1), lambda a: a.gather(1, torch.tensor(M * 1)), (3, 2)),
    "scatter_add": (
        lambda a, v: clnn.scatter_add(a, kept(R, a), v),
        lambda a, v: a.index_add(0, torch.tensor(R), v),
        (4, 2),
        (3, 2),
    ),
    "largest": (lambda a: a.max(1), lambda a: a.amax(1), (3, 4)),
    "embedding": (lambda w: clnn.take_rows(w, kept(I % 3, w)), lambda w: F.embedding(torch.tensor(I % 3), w), (3, 5)),
    "leaky_relu": (lambda a: clnn.leaky_relu(a, 0.3), lambda a: F.leaky_relu(a, 0.3), (3, 5)),
    "elu": (lambda a: clnn.elu(a, 0.3), lambda a: F.elu(a, 0.3), (3, 5)),
    "prelu": (lambda a, s: clnn.leaky_relu(a, s.reshape(-1, 1)), F.prelu, (2, 3, 4), (3,)),
    "swish": (clnn.swish, F.silu, (17,)),
    "triplet": (losses.triplet, F.triplet_margin_loss, (4, 5), (4, 5), (4, 5)),
}  # fmt: skip
CASES |= {
    name: ((lambda *a, f=f: f(clnn, *a)), (lambda *a, f=f: f(torch, *a)), *shapes)
    for name, (f, *shapes) in BOTH.items()
}
for _name in ("relu", "selu", "gelu", "softplus", "softsign", "mish"):
    CASES[_name] = (getattr(clnn, _name), getattr(F, _name), (3, 9))
for _name, _theirs in (("hard_sigmoid", "hardsigmoid"), ("hard_swish", "hardswish"), ("hard_tanh", "hardtanh")):
    CASES[_name] = (lambda a, n=_name: getattr(clnn, n)(a * 2), lambda a, n=_theirs: getattr(F, n)(a * 2), (3, 9))

Y, T, D = np.array([[1, -100, 3], [0, 2, -100]]), np.array([[0.0, 1, 0.5, 1], [1, 0.25, 0, 1]]), np.full((2, 4), 0.25)
P = [1, 2, 0.5, 3]


def by_sample(l, how):
    """What clnn makes of PyTorch's losses, one for each output: one for each sample, and the mean or sum of these."""
    return l if how == "none" else getattr(l, how)()


# The loss in clnn, in PyTorch, the outputs' shape, the targets, and what `reduction` there is called
LOSSES = {
    "cross_entropy": (
        losses.CrossEntropy(0.1, -100),
        lambda z, t, how: F.cross_entropy(z.transpose(1, 2), t, ignore_index=-100, label_smoothing=0.1, reduction=how),
        (2, 3, 4),
        Y,
    ),
    "cross_entropy of rows": (
        losses.CrossEntropy(),
        lambda z, t, how: F.cross_entropy(z, t, reduction=how),
        (2, 4),
        D + np.eye(4)[:2] - 0.25 * np.eye(4)[2:],
    ),
    "log_likelihood": (
        losses.LogLikelihood(ignore_index=3),
        lambda z, t, how: F.nll_loss(z.transpose(1, 2), t, ignore_index=3, reduction=how),
        (2, 3, 4),
        Y % 4,
    ),
    "binary_cross_entropy": (
        losses.BinaryCrossEntropy(P),
        lambda z, t, how: by_sample(
            F.binary_cross_entropy_with_logits(z, t, pos_weight=torch.tensor(P).to(z), reduction="none").sum(1), how
        ),
        (2, 4),
        T,
    ),
    "kl_divergence": (
        lambda z, t, **how: losses.kl_divergence(clnn.log_softmax(z), t, **how),
        lambda z, t, how: by_sample(F.kl_div(F.log_softmax(z, 1), t, reduction="none").sum(1), how),
        (2, 4),
        D,
    ),
    "cosine": (losses.cosine, lambda z, t, how: F.cosine_embedding_loss(z, t, torch.ones(2), reduction=how), (2, 4), T),
    "mse": (losses.mse, lambda z, t, how: by_sample(F.mse_loss(z, t, reduction="none").mean(1), how), (2, 4), T),
    "mae": (losses.mae, lambda z, t, how: by_sample(F.l1_loss(z, t, reduction="none").mean(1), how), (2, 4), T),
    "huber": (
        losses.Huber(0.7),
        lambda z, t, how: by_sample(F.huber_loss(z, t, delta=0.7, reduction="none").mean(1), how),
        (2, 4),
        T,
    ),
    "hinge": (
        losses.hinge,
        lambda z, t, how: by_sample(F.relu(1 - (2 * t - 1) * z).mean(1), how),
        (2, 4),
        np.eye(4)[:2],
    ),
}
for _name, (_ours, _theirs, _shape, _target) in LOSSES.items():
    for _how in ("mean", "sum", "none"):
        CASES[f"{_name}, {_how}"] = (
            lambda z, f=_ours, t=_target, how=_how: f(z, kept(t, z), reduction=how),
            lambda z, f=_theirs, t=_target, how=_how: f(
                z, torch.tensor(t).to(z) if t.dtype.kind == "f" else torch.tensor(t), how
            ),
            _shape,
        )
# Differences that are meant. Errors here: an axis 0 of a number, `einsum` with "..." or a letter twice, `squeeze` of an
# axis that is longer than 1, an index of `gather` that is shorter along other axes, a gradient by targets. Where all targets are
# ignored, the mean is 0 and PyTorch's NaN. PyTorch takes 1e-8 for the length of shorter vectors in cosines, and its gradients of
# hardsigmoid and hardswish have 1/6 and 1/3 in float32, in float64 too.
LOOSE = {("hard_sigmoid", "float64"): 1e-7, ("hard_swish", "float64"): 1e-7}
LOOSE |= {(f"cosine, {how}", "float64"): 1e-11 for how in ("mean", "sum", "none")}


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_pytorchs(rng, device, name, kind):
    """Eager at the first call, replayed from the fourth on, with other values each time."""
    if kind == "float64" and not device.has_fp64:
        pytest.skip("no float64")
    ours, theirs, *shapes = CASES[name]
    parameters = [clnn.tensor(np.zeros(shape), kind, requires_grad=True) for shape in shapes]
    dy = None

    def once(dy, *arrays):
        for p in parameters:
            p.zero_grad()
        y = ours(*(p + a for p, a in zip(parameters, arrays)))
        if not y.requires_grad:
            return (y,)
        y.backward(dy)
        return (y, *(p.grad * 1.0 for p in parameters))

    step = clnn.step(once) if not name.startswith("key") else once
    for _ in range(5):
        arrays = [np.asarray(rng.standard_normal(shape), kind) for shape in shapes]
        tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
        expected = theirs(*tensors)
        dy = np.asarray(rng.standard_normal(tuple(expected.shape)), kind)
        wanted = [expected]
        if expected.requires_grad:
            wanted += torch.autograd.grad(expected, tensors, torch.tensor(dy))
        found = step(clnn.tensor(dy, kind), *(clnn.tensor(a, kind) for a in arrays))
        assert len(found) == len(wanted)
        for part, (got, want) in enumerate(zip(found, wanted)):
            want = want.detach().numpy()
            bound = 256 * eps(kind) * scale_of(want, dy, *arrays) ** 2 + LOOSE.get((name, kind), 0)
            assert_close(got.numpy(), want, bound, "the value" if part == 0 else f"the gradient by argument {part}")
    if step is not once and expected.numel():
        assert step.replays.launches(), "it was not replayed"
