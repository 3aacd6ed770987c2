"""Work on sequences that every side does: training steps of a small GPT and texts that it writes, attention and recurrent layers
with their gradients, an embedding's steps.

NumPy only, as workloads.py: the arrays that all sides start from, and what they have to find, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..verify.references import attention, normalized, softmax
from .workloads import SEED

LR, DECAY, EPSILON = 1e-3, 0.1, 1e-8  # of AdamW, whose decay is of what has two axes; the embedding's Adam has none
NORM = 1e-5  # what layer normalisation adds to the variance
LETTERS, BATCHES, CHECKED = 65, 8, 3  # symbols, batches that steps go round, and steps whose losses are compared
FIRST = 3  # the letter that a text begins with


class Task(NamedTuple):
    """`gpt`, `generate`: layers, heads, width, context, batch. `attention`: batch, heads, steps, depth. `lstm`, `gru`: batch,
    steps, features, units. `embedding`: tokens, size, batch, steps."""

    kind: str
    sizes: tuple[int, ...]

    @property
    def name(self) -> str:
        words = {
            "gpt": "step, {} layers, {} heads, width {}, context {}, batch {}",
            "generate": "a text, {} layers, {} heads, width {}, {} tokens, batch {}",
            "attention": "causal, {} x {} heads, {} steps, depth {}, and gradients",
            "lstm": "batch {}, {} steps, {} to {} units, and gradients",
            "gru": "batch {}, {} steps, {} to {} units, and gradients",
            "embedding": "Adam step, {:,} x {}, tokens {} x {}",
        }
        return words[self.kind].format(*self.sizes)

    @property
    def flops(self) -> int:
        """Of the products, forward and back; of causal attention half of all pairs count, and the scores twice going back."""
        if self.kind == "attention":
            b, h, t, d = self.sizes
            return 2 * b * h * t * t * d * 7 // 2
        if self.kind in GATES:
            b, t, features, units = self.sizes
            return 6 * b * t * (features + units) * GATES[self.kind] * units
        if self.kind == "embedding":
            return 0
        layers, _, width, context, batch = self.sizes
        if self.kind == "generate":  # a token attends to half of them
            return batch * context * (2 * (12 * layers * width**2 + LETTERS * width) + layers * 2 * context * width)
        return batch * context * (6 * (12 * layers * width**2 + LETTERS * width) + layers * 7 * context * width)

    @property
    def bytes(self) -> int:
        """Adam's pass over a table with its gradient, as for the workload `optimizer`."""
        return 28 * math.prod(self.sizes[:2]) if self.kind == "embedding" else 0

    def arrays(self) -> list[np.ndarray]:
        """`gpt`, `generate`: all weights. `attention`: q, k, v and the output's gradient, (batch, heads, steps, depth). `lstm`,
        `gru`: x (batch, steps, features), w, u and b as clnn has them, a GRU's recurrent b, and all outputs' gradient.
        `embedding`: the table, and the values that its rows are to become."""
        rng = np.random.default_rng(SEED)
        normal: Any = lambda *shape: rng.standard_normal(shape, dtype=np.float32)  # noqa: E731
        if self.kind == "attention":
            return [normal(*self.sizes) for _ in range(4)]
        if self.kind in GATES:
            (batch, steps, features, units), scale = self.sizes, np.float32(self.sizes[3] ** -0.5)
            columns = GATES[self.kind] * units
            shapes = [(features, columns), (units, columns), *[(columns,)] * (2 if self.kind == "gru" else 1)]
            weights = [normal(*shape) * scale for shape in shapes]
            return [normal(batch, steps, features), *weights, normal(batch, steps, units)]
        if self.kind == "embedding":
            tokens, size, batch, steps = self.sizes
            return [normal(tokens, size), normal(batch, steps, size)]
        layers, _, width, context, _ = self.sizes
        spread = np.float32(0.3 if self.kind == "generate" else 0.02)  # so large that texts are of many letters
        one: Any = lambda *shape: normal(*shape) * spread  # noqa: E731
        norm = lambda: [1 + one(width), one(width)]  # noqa: E731
        square = lambda: [one(width, width), one(width)]  # noqa: E731
        found = [one(LETTERS, width), one(context, width)]
        for _ in range(layers):
            found += [*norm(), *square(), *square(), *square(), *square(), *norm()]
            found += [one(width, 4 * width), one(4 * width), one(4 * width, width), one(width)]
        return found + norm()

    def batch(self, i: int) -> np.ndarray:
        """Batch i: a GPT's (batch, context + 1), of which all but the first are to follow; an embedding's (batch, steps)."""
        rng = np.random.default_rng((SEED, i % BATCHES))
        if self.kind == "embedding":
            return rng.integers(0, self.sizes[0], self.sizes[2:], dtype=np.int32)
        x = rng.integers(0, LETTERS, (self.sizes[4], self.sizes[3] + 1), dtype=np.int32)
        keep = rng.random(x.shape) < 0.7  # seven in ten follow from the one before
        for t in range(1, x.shape[1]):
            x[:, t] = np.where(keep[:, t], (7 * x[:, t - 1] + 3) % LETTERS, x[:, t])
        return x

    def wanted(self) -> list[np.ndarray]:
        """The output and the gradients of attention or a recurrent layer, or the losses of the first steps, in float64."""
        if self.kind in GATES:
            return _recurrent(self.kind, *(a.astype(np.float64) for a in self.arrays()))
        if self.kind == "attention":
            *given, dy = (a.astype(np.float64) for a in self.arrays())
            y, back = attention(*given, seen=np.tri(self.sizes[2]))
            return [y, *back(dy)]
        parameters = [p.astype(np.float64) for p in self.arrays()]
        learns = parameters if self.kind == "gpt" else parameters[:1]
        moments = [(np.zeros_like(p), np.zeros_like(p)) for p in learns]
        losses = []
        for i in range(CHECKED):
            side = Tape()
            if self.kind == "gpt":
                x = self.batch(i)
                scores = gpt(self, side, list(map(side.leaf, parameters)), x[:, :-1])
                loss, slope = cross_entropy(scores.value.reshape(-1, LETTERS), x[:, 1:].ravel())
                gradients = side.gradients(scores, slope.reshape(scores.value.shape))
            else:
                rows, wanted = self.batch(i), parameters[1]
                slope = (parameters[0][rows] - wanted) / len(rows)
                loss, gradients = 0.5 * float((slope**2).sum()) * len(rows), [np.zeros_like(parameters[0])]
                np.add.at(gradients[0], rows, slope)
            losses.append(loss)
            for p, g, (m, v) in zip(learns, gradients, moments):
                m += 0.1 * (g - m)
                v += 0.001 * (g * g - v)
                decayed = LR * DECAY * p if self.kind == "gpt" and p.ndim > 1 else 0
                p -= LR * (m / (1 - 0.9 ** (i + 1))) / (np.sqrt(v / (1 - 0.999 ** (i + 1))) + EPSILON) + decayed
        return [np.array(losses)]

    def error(self, got: Sequence[Any]) -> float:
        """The largest error relative to the largest value of each result. Of a text (batch, tokens), after `FIRST`: how much
        smaller the score of a token is than the largest at its place."""
        if self.kind == "generate":
            (tokens,) = (np.asarray(one).reshape(self.sizes[4], -1) for one in got)
            known = np.concatenate([np.full((len(tokens), 1), FIRST), tokens[:, :-1]], 1)
            side = Tape()
            scores = gpt(self, side, [side.leaf(p.astype(np.float64)) for p in self.arrays()], known).value
            taken = np.take_along_axis(scores, tokens[..., None].astype(np.int64), -1)[..., 0]
            return float((scores.max(-1) - taken).max() / np.abs(scores).max())
        pairs = zip(map(np.asarray, got), self.wanted(), strict=True)
        return max(float(np.abs(a.reshape(want.shape) - want).max() / np.abs(want).max()) for a, want in pairs)


GATES = {"lstm": 4, "gru": 3}
TASKS = {
    "gpt": [Task("gpt", (4, 4, 128, 64, 12))],
    "generate": [Task("generate", (4, 4, 128, 256, 1))],
    "attention": [Task("attention", (2, 8, 1024, 64))],
    "lstm": [Task("lstm", (32, 100, 128, 128))],
    "gru": [Task("gru", (32, 100, 128, 128))],
    "embedding": [Task("embedding", (65_536, 128, 64, 64))],
}


def gpt(task: Task, side: Any, weights: Sequence[Any], tokens: Any) -> Any:
    """The scores (batch, context, letters), by a side's functions: blocks that are normalised first, tied weights."""
    take, heads = iter(weights).__next__, task.sizes[1]
    table = take()
    x = side.add(side.take(table, tokens), take())
    for _ in range(task.sizes[0]):
        y = side.norm(x, take(), take())
        q, k, v = (side.linear(y, take(), take()) for _ in range(3))
        x = side.add(x, side.linear(side.attend(q, k, v, heads), take(), take()))
        y = side.gelu(side.linear(side.norm(x, take(), take()), take(), take()))
        x = side.add(x, side.linear(y, take(), take()))
    return side.tied(side.norm(x, take(), take()), table)


# -- float64 ----------------------------------------------------------------------------------------------------------
def _recurrent(kind: str, x: Any, w: Any, u: Any, b: Any, *more: Any) -> list[np.ndarray]:
    """Of all steps the outputs; gradients by x, w, u, b, and a GRU's recurrent b. The last of `more` is the outputs' gradient."""
    (*recurrent_b, dy), units = more, u.shape[0]
    z, sigmoid = x @ w + b, lambda a: 1 / (1 + np.exp(-a))
    dz, dr = np.zeros_like(z), np.zeros_like(z)  # dr: by what h adds, which a GRU's reset gate multiplies
    h = c = np.zeros((len(x), units))
    kept: list[Any] = []
    for t in range(x.shape[1]):
        r = h @ u + sum(recurrent_b)
        if kind == "lstm":
            i, f, g, o = np.split(z[:, t] + r, 4, axis=1)
            i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
            kept.append((h, c, i, f, g, o))
            c = f * c + i * g
            h = o * np.tanh(c)
        else:
            update, reset = (sigmoid(a) for a in np.split((z[:, t] + r)[:, : 2 * units], 2, axis=1))
            inner = r[:, 2 * units :]
            new = np.tanh(z[:, t, 2 * units :] + reset * inner)
            kept.append((h, update, reset, inner, new))
            h = update * h + (1 - update) * new
    outputs = [one[0] for one in kept[1:]] + [h]
    dh, dc = np.zeros_like(h), np.zeros_like(h)
    for t in reversed(range(x.shape[1])):
        dh = dh + dy[:, t]
        if kind == "lstm":
            before, c, i, f, g, o = kept[t]
            end = np.tanh(f * c + i * g)
            dc = dc + dh * o * (1 - end**2)
            parts = [dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g**2), dh * end * o * (1 - o)]
            dz[:, t] = dr[:, t] = np.concatenate(parts, 1)
            dh, dc = dr[:, t] @ u.T, dc * f
        else:
            before, update, reset, inner, new = kept[t]
            slope = dh * (1 - update) * (1 - new**2)
            parts = [dh * (before - new) * update * (1 - update), slope * inner * reset * (1 - reset)]
            dz[:, t], dr[:, t] = (np.concatenate([*parts, last], 1) for last in (slope, slope * reset))
            dh = dr[:, t] @ u.T + dh * update
    du = sum(one[0].T @ dr[:, t] for t, one in enumerate(kept))
    dw, biases = np.einsum("btf,btg->fg", x, dz), [dz.sum((0, 1)), *([dr.sum((0, 1))] if recurrent_b else [])]
    return [np.stack(outputs, 1), dz @ w.T, dw, du, *biases]


def cross_entropy(z: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean loss of scores (n, letters), and its gradient."""
    p = softmax(z)
    at = np.arange(len(z)), labels
    loss = float(-np.log(p[at]).mean())
    p[at] -= 1
    return loss, p / len(z)


class Value:
    """An array on a tape, and the gradient that has come to it."""

    def __init__(self, value: np.ndarray) -> None:
        self.value, self.gradient = value, np.zeros_like(value)


class Tape:
    """The functions of `gpt` in NumPy, with gradients."""

    def __init__(self) -> None:
        self.leaves: list[Value] = []
        self.steps: list[Callable[[], None]] = []

    def leaf(self, value: np.ndarray) -> Value:
        self.leaves.append(Value(value))
        return self.leaves[-1]

    def note(self, value: np.ndarray, backward: Callable[[np.ndarray], Iterator[tuple[Value, np.ndarray]]]) -> Value:
        y = Value(value)

        def step() -> None:
            for x, dx in backward(y.gradient):
                x.gradient += dx

        self.steps.append(step)
        return y

    def gradients(self, y: Value, dy: np.ndarray) -> list[np.ndarray]:
        y.gradient += dy
        for step in reversed(self.steps):
            step()
        return [one.gradient for one in self.leaves]

    def add(self, a: Value, b: Value) -> Value:
        """b may lack the batch."""
        return self.note(
            a.value + b.value,
            lambda dy: iter([(a, dy), (b, dy.sum(0) if b.value.ndim < dy.ndim else dy)]),
        )

    def take(self, table: Value, tokens: np.ndarray) -> Value:
        def backward(dy: np.ndarray) -> Iterator[tuple[Value, np.ndarray]]:
            found = np.zeros_like(table.value)
            np.add.at(found, tokens, dy)
            yield table, found

        return self.note(table.value[tokens], backward)

    def linear(self, x: Value, w: Value, b: Value) -> Value:
        def backward(dy: np.ndarray) -> Iterator[tuple[Value, np.ndarray]]:
            yield x, dy @ w.value.T
            yield w, x.value.reshape(-1, w.value.shape[0]).T @ dy.reshape(-1, w.value.shape[1])
            yield b, dy.reshape(-1, w.value.shape[1]).sum(0)

        return self.note(x.value @ w.value + b.value, backward)

    def tied(self, x: Value, table: Value) -> Value:
        def backward(dy: np.ndarray) -> Iterator[tuple[Value, np.ndarray]]:
            yield x, dy @ table.value
            yield table, dy.reshape(-1, dy.shape[-1]).T @ x.value.reshape(-1, x.value.shape[-1])

        return self.note(x.value @ table.value.T, backward)

    def norm(self, x: Value, gamma: Value, beta: Value) -> Value:
        z, back = normalized(x.value, (-1,), NORM)

        def backward(dy: np.ndarray) -> Iterator[tuple[Value, np.ndarray]]:
            yield gamma, (dy * z).sum((0, 1))
            yield beta, dy.sum((0, 1))
            yield x, back(dy * gamma.value)

        return self.note(z * gamma.value + beta.value, backward)

    def gelu(self, x: Value) -> Value:
        half = 0.5 + 0.5 * np.vectorize(math.erf)(x.value / math.sqrt(2))
        density = np.exp(-0.5 * x.value**2) / math.sqrt(2 * math.pi)
        return self.note(x.value * half, lambda dy: iter([(x, dy * (half + x.value * density))]))

    def attend(self, q: Value, k: Value, v: Value, heads: int) -> Value:
        b, t, width = q.value.shape

        apart = lambda a: a.reshape(b, t, heads, -1).swapaxes(1, 2)  # noqa: E731
        y, back = attention(*(apart(one.value) for one in (q, k, v)), seen=np.tri(t))
        joined = lambda a: a.swapaxes(1, 2).reshape(b, t, width)  # noqa: E731
        return self.note(joined(y), lambda dy: zip((q, k, v), map(joined, back(apart(dy)))))
