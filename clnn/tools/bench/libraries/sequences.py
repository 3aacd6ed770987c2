"""The work of ../sequences.py in PyTorch, JAX and (but for writing) tinygrad: each gives run(count), which waits for its results,
and result()."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..sequences import CHECKED, DECAY, EPSILON, FIRST, GATES, LR, NORM, Task, gpt
from ..workloads import Calls


def trained(make: Any, wait: Any) -> Calls:
    """Of make(), which gives step(i) from the first weights on: loss i, that wait(loss) waits for and returns."""
    step, at = make(), 0

    def run(count: int) -> None:
        nonlocal at
        for _ in range(count):
            loss, at = step(at), at + 1
        wait(loss)

    def result() -> list[Any]:
        fresh = make()
        return [np.array([wait(fresh(i)) for i in range(CHECKED)])]

    return run, result


def swapped(kind: str, a: np.ndarray) -> np.ndarray:
    """Rows with a GRU's gates z, r, h as PyTorch's r, z, n, or back."""
    if kind != "gru":
        return a
    first, second, third = np.split(a, 3)
    return np.ascontiguousarray(np.concatenate([second, first, third]))


def cell(kind: str, z: Any, h: Any, c: Any, u: Any, b: Any, sigmoid: Any, tanh: Any) -> Any:
    """The next h and c; z is what the inputs add to the gates, b a GRU's recurrent bias."""
    units = u.shape[0]
    parts = lambda a: [a[:, i * units : (i + 1) * units] for i in range(GATES[kind])]  # noqa: E731
    if kind == "lstm":
        i, f, g, o = parts(z + h @ u)
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        return sigmoid(o) * tanh(c), c
    (xz, xr, xh), (hz, hr, hh) = parts(z), parts(h @ u + b)
    update = sigmoid(xz + hz)
    return update * h + (1 - update) * tanh(xh + sigmoid(xr + hr) * hh), c


# -- PyTorch ----------------------------------------------------------------------------------------------------------
class TorchSide:
    @staticmethod
    def take(table: Any, tokens: Any) -> Any:
        from torch.nn import functional as F

        return F.embedding(tokens, table)

    @staticmethod
    def add(a: Any, b: Any) -> Any:
        return a + b

    @staticmethod
    def norm(x: Any, gamma: Any, beta: Any) -> Any:
        from torch.nn import functional as F

        return F.layer_norm(x, gamma.shape, gamma, beta, NORM)

    @staticmethod
    def linear(x: Any, w: Any, b: Any) -> Any:
        from torch.nn import functional as F

        return F.linear(x, w.T, b)

    @staticmethod
    def gelu(x: Any) -> Any:
        from torch.nn import functional as F

        return F.gelu(x)

    @staticmethod
    def attend(q: Any, k: Any, v: Any, heads: int) -> Any:
        from torch.nn import functional as F

        q, k, v = (one.view(*one.shape[:2], heads, -1).transpose(1, 2) for one in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        return y.reshape(*y.shape[:2], -1)

    @staticmethod
    def tied(x: Any, table: Any) -> Any:
        return x @ table.T


class TorchCache(TorchSide):
    """Keeps the keys and values of all steps so far; it is given one step at a time."""

    def __init__(self, task: Task) -> None:
        import torch

        self.layers, heads, width, tokens, batch = task.sizes
        self.keys, self.values = torch.zeros(2, self.layers, batch, heads, tokens, width // heads)
        self.seen = 0

    def attend(self, q: Any, k: Any, v: Any, heads: int) -> Any:  # type: ignore[override]
        from torch.nn import functional as F

        layer, at = self.seen % self.layers, self.seen // self.layers
        self.seen += 1
        q, k, v = (one.view(len(one), heads, 1, -1) for one in (q, k, v))
        keys, values = self.keys[layer], self.values[layer]
        keys[:, :, at], values[:, :, at] = k[:, :, 0], v[:, :, 0]
        return F.scaled_dot_product_attention(q, keys[:, :, : at + 1], values[:, :, : at + 1]).view(len(q), 1, -1)


def torch_writing(task: Task) -> Calls:
    import torch

    table, places, *weights = (torch.from_numpy(a) for a in task.arrays())

    @torch.inference_mode()
    def write() -> Any:
        side, found = TorchCache(task), []
        token = torch.full((task.sizes[4], 1), FIRST)
        for t in range(task.sizes[3]):
            token = gpt(task, side, [table, places[t : t + 1], *weights], token)[:, -1].argmax(-1, keepdim=True)
            found.append(token)
        return torch.cat(found, 1)

    return lambda count: [write() for _ in range(count)][-1], lambda: [write().numpy()]


def torch_sequence(task: Task) -> Calls:
    import torch
    from torch.nn import functional as F

    if task.kind == "generate":
        return torch_writing(task)
    if task.kind == "attention":
        *given, dy = (torch.from_numpy(a) for a in task.arrays())
        for one in given:
            one.requires_grad_()

        def go() -> list[Any]:
            y = F.scaled_dot_product_attention(*given, is_causal=True)
            return [y.detach(), *torch.autograd.grad(y, given, dy)]

        return lambda count: [go() for _ in range(count)][-1], lambda: [a.numpy() for a in go()]
    if task.kind in GATES:
        first, w, u, *biases, slope = task.arrays()
        layer = (torch.nn.LSTM if task.kind == "lstm" else torch.nn.GRU)(*task.sizes[2:], batch_first=True)
        values = [swapped(task.kind, a) for a in (w.T, u.T, biases[0], biases[-1] * (task.kind == "gru"))]
        layer.load_state_dict({name: torch.from_numpy(a) for name, a in zip(layer.state_dict(), values)})
        x, dy = torch.from_numpy(first).requires_grad_(), torch.from_numpy(slope)

        def again() -> list[Any]:
            y, _ = layer(x)
            return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], dy)]

        def found() -> list[Any]:
            y, dx, *rest = (a.numpy() for a in again())
            dw, du, *db = (swapped(task.kind, a) for a in rest)
            return [y, dx, dw.T, du.T, *db[: len(biases)]]

        return lambda count: [again() for _ in range(count)][-1], found

    def make() -> Any:
        arrays = [torch.from_numpy(a.copy()) for a in task.arrays()]
        weights = [a.requires_grad_() for a in (arrays if task.kind == "gpt" else arrays[:1])]
        decay = DECAY if task.kind == "gpt" else 0.0
        groups = [
            {"params": [p for p in weights if (p.ndim > 1) == many], "weight_decay": decay * many} for many in (1, 0)
        ]
        optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=LR, eps=EPSILON, fused=True)
        batches = [torch.from_numpy(task.batch(i)).long() for i in range(8)]

        def step(i: int) -> Any:
            x = batches[i % len(batches)]
            if task.kind == "gpt":
                scores = gpt(task, TorchSide, weights, x[:, :-1])
                loss = F.cross_entropy(scores.view(-1, scores.shape[-1]), x[:, 1:].reshape(-1))
            else:
                loss = 0.5 / len(x) * ((F.embedding(x, weights[0]) - arrays[1]) ** 2).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step

    return trained(make, float)


# -- JAX --------------------------------------------------------------------------------------------------------------
class JaxSide(TorchSide):
    @staticmethod
    def take(table: Any, tokens: Any) -> Any:
        return table[tokens]

    @staticmethod
    def norm(x: Any, gamma: Any, beta: Any) -> Any:
        from jax import lax

        centred = x - x.mean(-1, keepdims=True)
        return centred * lax.rsqrt((centred**2).mean(-1, keepdims=True) + NORM) * gamma + beta

    @staticmethod
    def linear(x: Any, w: Any, b: Any) -> Any:
        return x @ w + b

    @staticmethod
    def gelu(x: Any) -> Any:
        import jax

        return jax.nn.gelu(x, approximate=False)

    @staticmethod
    def attend(q: Any, k: Any, v: Any, heads: int) -> Any:
        import jax

        q, k, v = (one.reshape(*one.shape[:2], heads, -1) for one in (q, k, v))
        y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        return y.reshape(*y.shape[:2], -1)


class JaxCache(JaxSide):
    """Keys and values (layers, batch, tokens, heads, depth) of the steps before step `at`, and those of this one."""

    def __init__(self, keys: Any, values: Any, at: Any) -> None:
        self.keys, self.values, self.at, self.layer = keys, values, at, 0

    def attend(self, q: Any, k: Any, v: Any, heads: int) -> Any:  # type: ignore[override]
        import jax
        from jax import numpy as jnp

        layer, self.layer = self.layer, self.layer + 1
        q, k, v = (one.reshape(len(one), 1, heads, -1) for one in (q, k, v))
        self.keys = self.keys.at[layer, :, self.at].set(k[:, 0])
        self.values = self.values.at[layer, :, self.at].set(v[:, 0])
        there = jnp.arange(self.keys.shape[2]) <= self.at
        y = jax.nn.dot_product_attention(q, self.keys[layer], self.values[layer], mask=there[None, None, None])
        return y.reshape(len(y), 1, -1)


def jax_writing(task: Task) -> Calls:
    import jax
    from jax import numpy as jnp

    layers, heads, width, tokens, batch = task.sizes

    @jax.jit
    def write(weights: Any) -> Any:
        table, places, *rest = weights

        def step(state: Any, at: Any) -> Any:
            token, keys, values = state
            side = JaxCache(keys, values, at)
            scores = gpt(task, side, [table, jax.lax.dynamic_slice_in_dim(places, at, 1), *rest], token)
            token = scores[:, -1].argmax(-1, keepdims=True)
            return (token, side.keys, side.values), token[:, 0]

        empty = jnp.zeros((layers, batch, tokens, heads, width // heads))
        first = jnp.full((batch, 1), FIRST)
        return jax.lax.scan(step, (first, empty, empty), jnp.arange(tokens))[1].T

    weights = [jnp.asarray(a) for a in task.arrays()]

    def run(count: int) -> None:
        jax.block_until_ready([write(weights) for _ in range(count)][-1])

    return run, lambda: [np.asarray(write(weights))]


def jax_sequence(task: Task) -> Calls:
    import jax
    from jax import numpy as jnp

    if task.kind == "generate":
        return jax_writing(task)
    each = jax.tree_util.tree_map
    if task.kind == "attention":
        *given, dy = (jnp.asarray(a.swapaxes(1, 2)) for a in task.arrays())

        @jax.jit
        def go(given: Any, dy: Any) -> Any:
            y, back = jax.vjp(lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True), *given)
            return [y, *back(dy)]

        def run(count: int) -> None:
            jax.block_until_ready([go(given, dy) for _ in range(count)][-1])

        return run, lambda: [np.asarray(a).swapaxes(1, 2) for a in go(given, dy)]
    if task.kind in GATES:
        *weights, slope = (jnp.asarray(a) for a in task.arrays())

        def layer(x: Any, w: Any, u: Any, b: Any, *recurrent_b: Any) -> Any:
            def step(states: Any, z: Any) -> Any:
                h, c = cell(task.kind, z, states[0], states[1], u, sum(recurrent_b), jax.nn.sigmoid, jnp.tanh)
                return (h, c), h

            zeros = jnp.zeros((len(x), u.shape[0]))
            return jax.lax.scan(step, (zeros, zeros), (x @ w + b).swapaxes(0, 1))[1].swapaxes(0, 1)

        @jax.jit
        def all_steps(weights: Any, dy: Any) -> Any:
            y, back = jax.vjp(layer, *weights)
            return [y, *back(dy)]

        def wait(count: int) -> None:
            jax.block_until_ready([all_steps(weights, slope) for _ in range(count)][-1])

        return wait, lambda: [np.asarray(a) for a in all_steps(weights, slope)]

    def loss_of(weights: Any, wanted: Any, x: Any) -> Any:
        if task.kind == "embedding":
            return 0.5 / len(x) * ((weights[0][x] - wanted) ** 2).sum()
        scores = jax.nn.log_softmax(gpt(task, JaxSide, weights, x[:, :-1]))
        return -jnp.take_along_axis(scores, x[:, 1:, None], -1).mean()

    def step_of(state: Any, wanted: Any, x: Any) -> Any:
        weights, m, v, t = state
        loss, gradient = jax.value_and_grad(loss_of)(weights, wanted, x)
        t = t + 1
        m = each(lambda m, g: 0.9 * m + 0.1 * g, m, gradient)
        v = each(lambda v, g: 0.999 * v + 0.001 * g * g, v, gradient)
        first, second = 1 - 0.9**t, 1 - 0.999**t

        def moved(p: Any, m: Any, v: Any) -> Any:
            decay = DECAY if p.ndim > 1 and task.kind == "gpt" else 0.0
            return p - LR * (m / first / (jnp.sqrt(v / second) + EPSILON) + decay * p)

        return (each(moved, weights, m, v), m, v, t), loss

    jitted = jax.jit(step_of, donate_argnums=0)

    def make() -> Any:
        arrays = [jnp.asarray(a) for a in task.arrays()]
        weights, wanted = (arrays, None) if task.kind == "gpt" else (arrays[:1], arrays[1])
        state: Any = (weights, each(jnp.zeros_like, weights), each(jnp.zeros_like, weights), jnp.zeros(()))
        batches = [jnp.asarray(task.batch(i)) for i in range(8)]

        def step(i: int) -> Any:
            nonlocal state
            state, loss = jitted(state, wanted, batches[i % len(batches)])
            return loss

        return step

    return trained(make, float)


# -- tinygrad ---------------------------------------------------------------------------------------------------------
class TinygradSide(JaxSide):
    @staticmethod
    def norm(x: Any, gamma: Any, beta: Any) -> Any:
        return x.layernorm(eps=NORM) * gamma + beta

    @staticmethod
    def gelu(x: Any) -> Any:
        return 0.5 * x * (1 + (x * 0.5**0.5).erf())

    @staticmethod
    def attend(q: Any, k: Any, v: Any, heads: int) -> Any:
        q, k, v = (one.reshape(*one.shape[:2], heads, -1).transpose(1, 2) for one in (q, k, v))
        y = q.scaled_dot_product_attention(k, v, is_causal=True).transpose(1, 2)
        return y.reshape(*y.shape[:2], -1)


def tinygrad_sequence(task: Task) -> Calls:
    from tinygrad import Context, Device, Tensor, TinyJit, nn

    if task.kind == "attention":
        *given, dy = (Tensor(a).realize() for a in task.arrays())

        @TinyJit
        def go() -> list[Any]:
            y = given[0].scaled_dot_product_attention(given[1], given[2], is_causal=True)
            return [one.realize() for one in (y, *y.gradient(*given, gradient=dy))]

        def run(count: int) -> None:
            for _ in range(count):
                go()
            Device[Device.DEFAULT].synchronize()

        return run, lambda: [one.numpy() for one in go()]
    if task.kind in GATES:
        *weights, slope = (Tensor(a).realize() for a in task.arrays())

        @TinyJit
        def all_steps() -> list[Any]:
            x, w, u, b, *recurrent_b = weights
            z, h = x @ w + b, Tensor.zeros(len(x), u.shape[0])
            c, found = h, []
            for t in range(x.shape[1]):
                h, c = cell(task.kind, z[:, t], h, c, u, sum(recurrent_b), Tensor.sigmoid, Tensor.tanh)
                found.append(h)
            y = Tensor.stack(*found, dim=1)
            return [one.realize() for one in (y, *y.gradient(*weights, gradient=slope))]

        def wait(count: int) -> None:
            for _ in range(count):
                all_steps()
            Device[Device.DEFAULT].synchronize()

        return wait, lambda: [one.numpy() for one in all_steps()]

    def make() -> Any:
        arrays = [Tensor(a).realize() for a in task.arrays()]
        weights = arrays if task.kind == "gpt" else arrays[:1]
        for p in weights:
            p.requires_grad = True
        decay, parts = DECAY if task.kind == "gpt" else 0.0, []
        for many in (True, False):
            if some := [p for p in weights if (p.ndim > 1) == many]:
                parts.append(nn.optim.AdamW(some, lr=LR, eps=EPSILON, weight_decay=decay * many))
        optimizer = nn.optim.OptimizerGroup(*parts)
        batches = [Tensor(task.batch(i)).realize() for i in range(8)]

        @TinyJit
        def go(x: Any) -> Any:
            if task.kind == "gpt":
                loss = gpt(task, TinygradSide, weights, x[:, :-1]).sparse_categorical_crossentropy(x[:, 1:])
            else:
                loss = ((weights[0][x] - arrays[1]) ** 2).sum() * (0.5 / x.shape[0])
            optimizer.zero_grad()
            loss.backward()
            return loss.realize(*optimizer.schedule_step())

        def step(i: int) -> Any:
            with Context(TRAINING=1):
                return go(batches[i % len(batches)])

        return step

    return trained(make, lambda loss: float(loss.numpy()))
