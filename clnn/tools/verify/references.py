"""What `clnn verify` and the tests compare with: formulas in NumPy and float64, written from their papers.

A function with gradients gives its result and the closure that takes a gradient back: `y, backward = f(...)`, and
`backward(dy)` is the tuple of the gradients by each array.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

STEP = 1e-5  # of central differences; their error is about STEP^2 + 1e-16 / STEP
Arrays = tuple[np.ndarray, ...]
Backward = Callable[[np.ndarray], Arrays]


# -- functions of one variable ----------------------------------------------------------------------------------------
def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _elu(x: np.ndarray, alpha: float = 1.0) -> np.ndarray:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf, otypes=[float])(x)


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "linear": lambda x: x,
    "step": lambda x: np.where(np.isnan(x), x, np.heaviside(x, 0.0)),
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "elu": _elu,
    "selu": lambda x: 1.0507009873554805 * _elu(x, 1.6732632423543772),
    "softplus": lambda x: np.logaddexp(0, x),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "hard_tanh": lambda x: np.clip(x, -1, 1),
    "hard_swish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "swish": lambda x: x * sigmoid(x),
    "mish": lambda x: x * np.tanh(np.logaddexp(0, x)),
    "gelu": lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "square": np.square,
    "abs": np.abs,
    "negative": np.negative,
    "sin": np.sin,
    "cos": np.cos,
    "erf": _erf,
    "log1p": np.log1p,
    "expm1": np.expm1,
    "reciprocal": np.reciprocal,
    "sign": np.sign,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.round,
    "isnan": lambda x: np.isnan(x) * 1.0,
    "isfinite": lambda x: np.isfinite(x) * 1.0,
    "logical_not": lambda x: np.logical_not(x) * 1.0,
}
KINKS: dict[str, tuple[float, ...]] = {  # where there is no derivative: random inputs keep away
    "step": (0,), "relu": (0,), "leaky_relu": (0,), "elu": (0,), "selu": (0,), "abs": (0,),
    "hard_sigmoid": (-3, 3), "hard_tanh": (-1, 1), "hard_swish": (-3, 3),
    "sign": (0,), "floor": tuple(range(-6, 7)), "ceil": tuple(range(-6, 7)),
    "round": tuple(i + 0.5 for i in range(-6, 6)),
}  # fmt: skip
POSITIVE = ("log", "sqrt", "log1p", "reciprocal")  # whose inputs are greater than 0


def derivative(name: str, x: np.ndarray, h: float = STEP) -> np.ndarray:
    """f'(x) by a central difference."""
    f = FUNCTIONS[name]
    with np.errstate(all="ignore"):
        return (f(x + h) - f(x - h)) / (2 * h)


def away_from_kinks(name: str, x: np.ndarray) -> np.ndarray:
    """x with what is too near to a kink of the function moved."""
    for kink in KINKS.get(name, ()):
        x = np.where(np.abs(x - kink) < 0.01, x + 0.05, x)
    return np.abs(x) + 0.1 if name in POSITIVE else x


def by_columns(f: Callable[[np.ndarray], np.ndarray], x: np.ndarray, dy: Any) -> np.ndarray:
    """The gradient of sum(f(x) dy) by x (rows, n), of a function that has each row by itself, by central differences."""
    dx = np.empty(x.shape)
    for j in range(x.shape[1]):
        up, down = x.copy(), x.copy()
        up[:, j] += STEP
        down[:, j] -= STEP
        dx[:, j] = ((f(up) - f(down)) * dy).reshape(len(x), -1).sum(1) / (2 * STEP)
    return dx


def by_elements(f: Callable[..., np.ndarray], *arrays: np.ndarray) -> tuple[np.ndarray, Backward]:
    """f(*arrays), and the closure of its gradients, by complex steps of one element at a time (Squire and Trapp 1998)."""

    def backward(dy: np.ndarray) -> Arrays:
        found = tuple(np.empty(a.shape) for a in arrays)
        for i, d in enumerate(found):
            for at in np.ndindex(d.shape):
                moved = [a + 0j for a in arrays]
                moved[i][at] += 1e-30j
                d[at] = (f(*moved).imag * dy).sum() * 1e30
        return found

    return f(*arrays), backward


def recurrent(kind: str, mask: Any, z: np.ndarray, u: np.ndarray, u_h: np.ndarray | None = None) -> np.ndarray:
    """h after each step: z (batch, steps, gates units), u (units, gates units), `mask` (batch, steps) or None, as
    clnn/ops/sequence/recurrent.py has them; `u_h` is that of a GRU that resets h before the product."""
    found: list[np.ndarray] = []
    h = c = np.zeros((len(z), len(u)))
    seen = np.ones(z.shape[:2]) if mask is None else mask
    for x, now in zip(z.swapaxes(0, 1), seen.T[..., None]):
        y, before = h @ u, (h, c)
        if kind == "RNN":
            h = np.tanh(x + y)
        elif kind == "LSTM":
            i, f, g, o = np.split(x + y, 4, -1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        else:
            (xz, xr, xh), (yz, yr, *yh) = np.split(x, 3, -1), np.split(y, 3 if u_h is None else 2, -1)
            r = sigmoid(xr + yr)
            new = np.tanh(xh + (r * yh[0] if u_h is None else (r * h) @ u_h))
            h = new + sigmoid(xz + yz) * (h - new)
        h, c = (np.where(now, after, old) for after, old in zip((h, c), before))
        found.append(h)
    return np.stack(found, 1)


def attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, *, seen: Any = 1, added: Any = 0.0
) -> tuple[np.ndarray, Backward]:
    """softmax(q k^T / sqrt(depth) + added) v of (batch, heads, time, depth), over the keys whose `seen` is not 0; heads of q
    share those of k and v in order, and a query that sees no key gives zeros."""
    sharing, root = q.shape[1] // k.shape[1], math.sqrt(q.shape[-1])
    each_k, each_v = (a.repeat(sharing, 1) for a in (k, v))
    p = np.nan_to_num(softmax(np.where(seen, q @ each_k.swapaxes(-1, -2) / root + added, -np.inf)))
    y = p @ each_v

    def backward(dy: np.ndarray) -> Arrays:
        ds = p * (dy @ each_v.swapaxes(-1, -2) - (dy * y).sum(-1, keepdims=True)) / root
        by_head = ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ dy
        return ds @ each_k, *(d.reshape(len(d), -1, sharing, *d.shape[2:]).sum(2) for d in by_head)

    return y, backward


# -- rows -------------------------------------------------------------------------------------------------------------
def softmax(x: np.ndarray) -> np.ndarray:
    """exp(x) / sum(exp(x)) over the last axis."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def losses(name: str, t: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The loss of each row of outputs y, a function of y; t are values, or distributions over classes."""
    length = lambda v: np.sqrt((v * v).sum(1))  # noqa: E731
    hinge = lambda y: np.maximum(0, 1 - np.where(t > 0, 1, -1) * y)  # noqa: E731
    return {
        "quadratic": lambda y: ((y - t) ** 2).sum(1) / 2,
        "mse": lambda y: ((y - t) ** 2).mean(1),
        "mae": lambda y: np.abs(y - t).mean(1),
        "huber": lambda y: np.where(np.abs(y - t) <= 1, (y - t) ** 2 / 2, np.abs(y - t) - 0.5).mean(1),
        "poisson": lambda y: (np.exp(y) - t * y).mean(1),
        "binary_cross_entropy": lambda y: (np.logaddexp(0, y) - t * y).sum(1),
        "cross_entropy": lambda y: -(t * log_softmax(y)).sum(1),
        "log_likelihood": lambda y: -(t * y).sum(1),
        "kl_divergence": lambda y: (t * (np.log(np.where(t > 0, t, 1)) - log_softmax(y))).sum(1),
        "cosine": lambda y: 1 - (y * t).sum(1) / np.where(length(t) == 0, 1, length(t) * length(y)),
        "hinge": lambda y: hinge(y).mean(1),
        "squared_hinge": lambda y: (hinge(y) ** 2).mean(1),
    }[name]


def normalized(
    x: np.ndarray, axes: tuple[int, ...], epsilon: float = 1e-5, centred: bool = True
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """(x - mean) / sqrt(variance + epsilon) over some axes, or without the mean; and dx of a gradient."""
    keep: dict[str, Any] = {"axis": axes, "keepdims": True}
    moved = x - x.mean(**keep) if centred else x
    root = 1 / np.sqrt((moved**2).mean(**keep) + epsilon)
    z = moved * root
    return z, lambda d: root * (d - centred * d.mean(**keep) - z * (d * z).mean(**keep))


# -- windows: each output's elements of the input, by their index -----------------------------------------------------
def windows(
    space: Sequence[int],
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    out: Sequence[int] | None = None,
) -> tuple[np.ndarray, tuple[int, ...]]:
    """(positions, taps) of indices into an image of `space`, -1 in the padding; and the shape of positions."""
    axes = len(space)
    index: Any = np.zeros((1,) * (2 * axes), int)
    inside: Any = np.ones((1,) * (2 * axes), bool)
    shape = []
    for a, (n, k, s, p, d) in enumerate(zip(space, size, stride, padding, dilation)):
        count = out[a] if out is not None else (n + 2 * p - d * (k - 1) - 1) // s + 1
        at = np.arange(count)[:, None] * s - p + np.arange(k) * d
        lie = [1] * (2 * axes)
        lie[a], lie[axes + a] = count, k
        index = index * n + at.reshape(lie)
        inside = inside & ((at >= 0) & (at < n)).reshape(lie)
        shape.append(count)
    taps = math.prod(size)
    return np.where(inside, index, -1).reshape(-1, taps), tuple(shape)


def unfold(x: np.ndarray, index: np.ndarray, outside: float = 0.0) -> np.ndarray:
    """x (n, c, space) as columns (n, c, positions, taps)."""
    behind = np.full((*x.shape[:2], 1), outside)
    return np.concatenate([x.reshape(*x.shape[:2], -1), behind], 2)[:, :, index]


def fold(columns: np.ndarray, index: np.ndarray, space: Sequence[int]) -> np.ndarray:
    """The sums of columns (n, c, positions, taps) at the elements that they come from."""
    x = np.zeros((*columns.shape[:2], math.prod(space) + 1))
    for tap in range(index.shape[1]):
        places: Any = (slice(None), slice(None), index[:, tap])
        np.add.at(x, places, columns[..., tap])
    return x[:, :, :-1].reshape(*columns.shape[:2], *space)


def convolution(
    x: np.ndarray, w: np.ndarray, b: np.ndarray, index: np.ndarray, out: Sequence[int], groups: int = 1
) -> tuple[np.ndarray, Backward]:
    """y = x * w + b (cross-correlation): w (channels out, channels in / groups, *size)."""
    n, c, k = len(x), x.shape[1] // groups, len(w) // groups
    columns = unfold(x, index).reshape(n, groups, c, *index.shape).swapaxes(2, 3).reshape(n, groups, len(index), -1)
    filters = w.reshape(groups, k, -1)
    y = (columns @ filters.swapaxes(1, 2)).swapaxes(2, 3).reshape(n, len(w), *out)

    def backward(dy: np.ndarray) -> Arrays:
        d = dy.reshape(n, groups, k, -1)
        taken = (d.swapaxes(2, 3) @ filters).reshape(n, groups, len(index), c, -1).swapaxes(2, 3)
        dx = fold(taken.reshape(n, groups * c, *index.shape), index, x.shape[2:])
        return dx, (d @ columns).sum(0).reshape(w.shape), dy.sum((0, *range(2, dy.ndim)))

    return y + b.reshape(-1, *[1] * len(out)), backward


def transposed_convolution(
    x: np.ndarray, w: np.ndarray, b: np.ndarray, index: np.ndarray, out: Sequence[int], groups: int = 1
) -> tuple[np.ndarray, Backward]:
    """The gradient by inputs of a convolution whose outputs x are: w (channels in, channels out / groups, *size)."""
    none = np.zeros(len(w))
    image = np.zeros((len(x), groups * w.shape[1], *out))
    _, by_input = convolution(image, w, none, index, x.shape[2:], groups)
    y = by_input(x)[0]

    def backward(dy: np.ndarray) -> Arrays:
        dx, by_weights = convolution(dy, w, none, index, x.shape[2:], groups)
        return dx, by_weights(x)[1], dy.sum((0, *range(2, dy.ndim)))

    return y + b.reshape(-1, *[1] * len(out)), backward


def pooled(
    x: np.ndarray, index: np.ndarray, out: Sequence[int], largest: bool, count_padding: bool = True
) -> tuple[np.ndarray, Backward]:
    """The largest or the mean of each window."""
    if largest:
        columns = unfold(x, index, -np.inf)
        share = columns.argmax(-1)[..., None] == np.arange(index.shape[1])
        y = columns.max(-1)
    else:
        seen = np.full(len(index), index.shape[1]) if count_padding else (index >= 0).sum(1)
        share = np.broadcast_to(1 / seen[:, None], (*x.shape[:2], *index.shape))
        y = (unfold(x, index) * share).sum(-1)

    def backward(dy: np.ndarray) -> Arrays:
        return (fold(dy.reshape(*dy.shape[:2], -1, 1) * share, index, x.shape[2:]),)

    return y.reshape(*x.shape[:2], *out), backward


def along_axes(x: np.ndarray, matrices: Sequence[np.ndarray]) -> np.ndarray:
    """Each spatial axis of x (n, c, *space) times its matrix."""
    for axis, m in enumerate(matrices, 2):
        x = np.moveaxis(np.tensordot(m, x, (1, axis)), 0, axis)
    return x


def upsampling(n: int, factor: int, linear: bool) -> np.ndarray:
    """(n factor, n): how much of each element there is in each output, between centres where `linear`."""
    m = np.zeros((n * factor, n))
    for o in range(n * factor):
        at = (o + 0.5) / factor - 0.5
        low, share = (math.floor(at), at - math.floor(at)) if linear else (o // factor, 0.0)
        m[o, min(max(low, 0), n - 1)] += 1 - share
        m[o, min(max(low + 1, 0), n - 1)] += share
    return m


def padding(n: int, before: int, after: int, mode: str) -> np.ndarray:
    """(before + n + after, n): which element each output is; all 0 for a constant."""
    found = np.arange(n)
    if mode == "constant":
        found = np.pad(found, (before, after), constant_values=-1)
    else:
        how: Any = "edge" if mode == "replicate" else mode
        found = np.pad(found, (before, after), mode=how)
    return (found[:, None] == np.arange(n)).astype(float)


def warped(x: np.ndarray, m: np.ndarray, fill: float) -> np.ndarray:
    """y at (c, r) = x at M (c, r, 1) from the centre, bilinearly, as if x (n, c, h, w) lay on an endless sheet of `fill`."""
    n, _, h, w = x.shape
    sheet = np.pad(x, ((0, 0), (0, 0), (h, h), (w, w)), constant_values=fill)
    y = np.empty(x.shape)
    c, r = np.meshgrid(np.arange(w) - (w - 1) / 2, np.arange(h) - (h - 1) / 2)
    for i in range(n):
        at_c = m[i, 0, 0] * c + m[i, 0, 1] * r + m[i, 0, 2] + (w - 1) / 2 + w
        at_r = m[i, 1, 0] * c + m[i, 1, 1] * r + m[i, 1, 2] + (h - 1) / 2 + h
        c0, r0 = np.floor(at_c).astype(int), np.floor(at_r).astype(int)
        u, v = at_c - c0, at_r - r0
        y[i] = (1 - v) * ((1 - u) * sheet[i][:, r0, c0] + u * sheet[i][:, r0, c0 + 1])
        y[i] += v * ((1 - u) * sheet[i][:, r0 + 1, c0] + u * sheet[i][:, r0 + 1, c0 + 1])
    return y


# -- random numbers ---------------------------------------------------------------------------------------------------
def philox(position: int, seed: int, n: int) -> np.ndarray:
    """n words of Philox 4x32-10 (Salmon et al. 2011): block i has the counter (i, 0, position, 0) and the seed as key."""
    mask = np.uint64(0xFFFFFFFF)
    blocks = -(-n // 4)
    c = [np.arange(blocks, dtype=np.uint64), *(np.full(blocks, word, np.uint64) for word in (0, position, 0))]
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        p0, p1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        high0, high1 = p0 >> np.uint64(32), p1 >> np.uint64(32)
        c = [high1 ^ c[1] ^ np.uint64(k0), p1 & mask, high0 ^ c[3] ^ np.uint64(k1), p0 & mask]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack(c, 1).ravel()[:n].astype(np.uint32)


# -- optimizers: what a step subtracts from w; o is the optimizer, t counts steps from 1, s holds three states ---------
def _moments(o: Any, t: int, g: np.ndarray, s: np.ndarray) -> Arrays:
    s[0] = o.beta1 * s[0] + (1 - o.beta1) * g
    s[1] = o.beta2 * s[1] + (1 - o.beta2) * g**2
    return s[0] / (1 - o.beta1**t), s[1] / (1 - o.beta2**t)


def sgd(o: Any, lr: float, t: int, w: np.ndarray, g: np.ndarray, s: np.ndarray, decay: float) -> np.ndarray:
    s[0] = o.momentum * s[0] + g
    return lr * (g + o.momentum * s[0] if o.nesterov else s[0])


def adam(o: Any, lr: float, t: int, w: np.ndarray, g: np.ndarray, s: np.ndarray, decay: float) -> np.ndarray:
    m, v = _moments(o, t, g, s)
    return lr * m / (np.sqrt(v) + o.epsilon)


def amsgrad(o: Any, lr: float, t: int, w: np.ndarray, g: np.ndarray, s: np.ndarray, decay: float) -> np.ndarray:
    m, _ = _moments(o, t, g, s)
    s[2] = np.maximum(s[2], s[1])
    return lr * m / (np.sqrt(s[2] / (1 - o.beta2**t)) + o.epsilon)


def nadam(o: Any, lr: float, t: int, w: np.ndarray, g: np.ndarray, s: np.ndarray, decay: float) -> np.ndarray:
    _moments(o, t, g, s)
    mu = [o.beta1 * (1 - 0.5 * 0.96 ** (i * o.momentum_decay)) for i in range(1, t + 2)]
    step = mu[-1] * s[0] / (1 - np.prod(mu)) + (1 - mu[-2]) * g / (1 - np.prod(mu[:-1]))
    return lr * step / (np.sqrt(s[1] / (1 - o.beta2**t)) + o.epsilon)


def lamb(o: Any, lr: float, t: int, w: np.ndarray, g: np.ndarray, s: np.ndarray, decay: float) -> np.ndarray:
    m, v = _moments(o, t, g, s)
    step = m / (np.sqrt(v) + o.epsilon) + decay * w
    norms = np.linalg.norm(w), np.linalg.norm(step)
    return lr * step * (norms[0] / norms[1] if w.ndim > 1 and all(norms) else 1)


def rmsprop(o: Any, lr: float, t: int, w: np.ndarray, g: np.ndarray, s: np.ndarray, decay: float) -> np.ndarray:
    s[0] = o.alpha * s[0] + (1 - o.alpha) * g**2
    s[1] = o.alpha * s[1] + (1 - o.alpha) * g if o.centered else 0
    s[2] = o.momentum * s[2] + g / (np.sqrt(s[0] - s[1] ** 2) + o.epsilon)
    return lr * s[2]


def adagrad(o: Any, lr: float, t: int, w: np.ndarray, g: np.ndarray, s: np.ndarray, decay: float) -> np.ndarray:
    s[0] += g**2
    return lr / (1 + (t - 1) * o.lr_decay) * g / (np.sqrt(s[0]) + o.epsilon)


def adadelta(o: Any, lr: float, t: int, w: np.ndarray, g: np.ndarray, s: np.ndarray, decay: float) -> np.ndarray:
    s[0] = o.rho * s[0] + (1 - o.rho) * g**2
    step = np.sqrt(s[1] + o.epsilon) / np.sqrt(s[0] + o.epsilon) * g
    s[1] = o.rho * s[1] + (1 - o.rho) * step**2
    return lr * step


def lion(o: Any, lr: float, t: int, w: np.ndarray, g: np.ndarray, s: np.ndarray, decay: float) -> np.ndarray:
    step = lr * np.sign(o.beta1 * s[0] + (1 - o.beta1) * g)
    s[0] = o.beta2 * s[0] + (1 - o.beta2) * g
    return step


RULES: dict[str, Callable[..., np.ndarray]] = {
    "SGD": sgd, "Adam": adam, "AdamW": adam, "AMSGrad": amsgrad, "Nadam": nadam, "LAMB": lamb, "RMSprop": rmsprop,
    "Adagrad": adagrad, "Adadelta": adadelta, "Lion": lion,
}  # fmt: skip


class Optimization:
    """The same optimizer in NumPy and float64, with its clipping, decay and moving average of the weights."""

    def __init__(self, optimizer: Any) -> None:
        self.o, self.t = optimizer, 0
        self.state: dict[str, np.ndarray] = {}
        self.average: dict[str, np.ndarray] = {}
        self.max_norm: dict[str, float] = {}  # by name

    def step(self, parameters: dict[str, tuple[np.ndarray, bool]], gradients: dict[str, np.ndarray]) -> None:
        """`parameters`: (array, whether it decays) by name, updated in place."""
        o = self.o
        lr = o.lr(self.t) if callable(o.lr) else o.lr
        self.t += 1
        gradients = {name: gradients[name].astype(np.float64) for name in parameters}
        if o.clip_value is not None:
            gradients = {name: np.clip(g, -o.clip_value, o.clip_value) for name, g in gradients.items()}
        if o.clip_norm is not None:
            norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
            gradients = {name: g * min(1, o.clip_norm / (norm + 1e-6)) for name, g in gradients.items()}
        for name, (w, decays) in parameters.items():
            g, s = gradients[name], self.state.setdefault(name, np.zeros((3, *w.shape)))
            average, decay = self.average.setdefault(name, w.copy()), o.weight_decay if decays else 0
            if decays:
                g = g + o.l1 * np.sign(w)
            if not o.decoupled:
                g = g + decay * w
            elif type(o).__name__ != "LAMB":
                w *= 1 - lr * decay
            w -= RULES[type(o).__name__](o, lr, self.t, w, g, s, decay)
            if name in self.max_norm:
                with np.errstate(divide="ignore"):
                    w *= np.minimum(1, self.max_norm[name] / np.linalg.norm(w, axis=0))
            average += (1 - (o.ema or 0)) * (w - average)
