"""What clnn is measured beside: NumPy, written here, and the libraries of libraries/, which only a checkout of clnn has.

`PEERS` holds those that are here. libraries/ says what each of them can be asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .workloads import Calls, Net, Product, forward, one_hot

LIBRARIES = ("sklearn", "torch", "jax", "tinygrad")


class Numpy:
    """float32, vectorised over the mini-batch, in place, parameters in one flat array."""

    package, forms, layouts = "numpy", ("",), ()
    nets = products = True

    def train(self, net: Net, options: dict[str, Any], after: Callable[[float], None]) -> None:
        x, labels = net.data()
        target, picked = one_hot(labels), np.arange(net.batch)
        shapes = [shape for k, n in net.layers for shape in ((k, n), (n,))]
        ends = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes)])
        flat, gradient, m, v = (np.zeros(ends[-1], np.float32) for _ in range(4))
        views = [[a[i:j].reshape(s) for i, j, s in zip(ends, ends[1:], shapes)] for a in (flat, gradient)]
        (w, b), (dw, db) = ((part[::2], part[1::2]) for part in views)
        for to, value in zip(views[0], [p for layer in net.weights() for p in layer]):
            to[...] = value
        self.weights = list(zip(w, b))  # for whoever wants to test the net between epochs
        h = [np.empty((net.batch, size), np.float32) for size in net.sizes]
        d = [np.empty_like(a) for a in h]
        scratch, chunk, last = np.empty(1 << 15, np.float32), 1 << 15, len(net.layers)
        squash, step, epoch = net.hidden == "sigmoid", 0, 0
        losses = np.empty(net.steps, np.float32)

        def logistic(a: np.ndarray) -> None:
            np.negative(a, out=a)
            np.exp(a, out=a)
            a += 1
            np.reciprocal(a, out=a)

        while True:
            order = net.order(epoch)
            for at in range(net.steps):
                rows = order[at * net.batch : (at + 1) * net.batch]
                np.take(x, rows, 0, out=h[0], mode="clip")
                for i in range(last):
                    np.matmul(h[i], w[i], out=h[i + 1])
                    h[i + 1] += b[i]
                    if i < last - 1:
                        logistic(h[i + 1]) if squash else np.maximum(h[i + 1], 0, out=h[i + 1])
                y, delta = h[last], d[last]
                if net.loss == "cross_entropy":
                    wanted = labels[rows]
                    y -= y.max(1, keepdims=True)
                    np.exp(y, out=delta)
                    total = delta.sum(1, keepdims=True)
                    losses[at] = (np.log(total[:, 0]) - y[picked, wanted]).mean()
                    delta /= total
                    delta[picked, wanted] -= 1
                else:
                    logistic(y)
                    np.subtract(y, target[rows], out=delta)
                    losses[at] = 0.5 * np.vdot(delta, delta) / net.batch
                    delta *= y
                    np.subtract(1, y, out=y)
                    delta *= y
                delta *= np.float32(1 / net.batch)
                for i in range(last - 1, -1, -1):
                    np.matmul(h[i].T, d[i + 1], out=dw[i])
                    np.add.reduce(d[i + 1], 0, out=db[i])
                    if i:
                        np.matmul(d[i + 1], w[i].T, out=d[i])
                        if squash:
                            d[i] *= h[i]
                            np.subtract(1, h[i], out=h[i])
                            d[i] *= h[i]
                        else:
                            d[i] *= h[i] > 0
                step += 1
                if net.optimizer == "sgd":
                    gradient *= np.float32(net.lr)
                    flat -= gradient
                    continue
                root = (1 - 0.999**step) ** 0.5
                rate, epsilon = np.float32(net.lr * root / (1 - 0.9**step)), np.float32(1e-8 * root)
                for start in range(0, len(flat), chunk):  # pieces that stay in the cache
                    part = slice(start, start + chunk)
                    g, mm, vv = gradient[part], m[part], v[part]
                    s = scratch[: len(g)]
                    np.multiply(g, g, out=s)
                    s *= np.float32(0.001)
                    vv *= np.float32(0.999)
                    vv += s
                    g *= np.float32(0.1)
                    mm *= np.float32(0.9)
                    mm += g
                    np.sqrt(vv, out=s)
                    s += epsilon
                    np.divide(mm, s, out=s)
                    s *= rate
                    flat[part] -= s
            epoch += 1
            after(float(losses.mean()))

    def outputs(self, net: Net) -> Calls:
        x, weights = net.data()[0], net.weights()
        return lambda count: [forward(net, weights, x) for _ in range(count)], lambda: forward(net, weights, x)[-1]

    def product(self, p: Product) -> Calls:
        a, b = p.stored()
        a, b, c = (a.T if p.form[0] == "T" else a), (b.T if p.form[1] == "T" else b), np.empty((p.m, p.n), np.float32)

        def run(count: int) -> None:
            for _ in range(count):
                np.matmul(a, b, out=c)

        return run, lambda: (c,)


PEERS: dict[str, Any] = {"numpy": Numpy()}
try:
    from .libraries import SIDES

    PEERS |= SIDES
except ModuleNotFoundError as error:
    if error.name != f"{__package__}.libraries":
        raise
