"""What is measured: nets, their data and first weights from a seed, products of matrices, and all of it in float64.

NumPy only: the workers of other libraries read this without loading clnn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..verify.references import sigmoid, softmax

# how a side computes something: as often as it is told, and its result
Calls = tuple[Callable[[int], Any], Callable[[], Any]]
SEED = 1
CLASSES = 10
# Largest relative differences from float64 that count as the same: of the mean loss of an epoch, and of outputs.
LOSS_TOLERANCE = 1e-3
OUTPUT_TOLERANCE = 1e-4


class Net(NamedTuple):
    """A multilayer perceptron, how it is trained, and how many steps an epoch has."""

    sizes: tuple[int, ...]
    hidden: str  # the activation of hidden layers: sigmoid or relu
    loss: str  # quadratic and binary_cross_entropy have sigmoid outputs; cross_entropy is that of their softmax
    optimizer: str  # sgd or adam
    lr: float
    batch: int
    steps: int
    momentum: float = 0.0  # stay 0: convolutional networks have them
    decay: float = 0.0

    @classmethod
    def of(cls, values: list[Any]) -> Net:
        """A net that has been through JSON."""
        return cls(tuple(values[0]), *values[1:])

    @property
    def layers(self) -> list[tuple[int, int]]:
        return list(zip(self.sizes, self.sizes[1:]))

    @property
    def flops(self) -> int:
        """Of a training step's products: forward, weight gradients, and input gradients but the first layer's."""
        sizes = [k * n for k, n in self.layers]
        return 2 * self.batch * (3 * sum(sizes) - sizes[0])

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """x (n, in) in [0, 1], float32, and int32 labels that can be learned from it, one in five of them wrong."""
        rng = np.random.default_rng(SEED)
        n = self.batch * self.steps
        means = rng.random((CLASSES, self.sizes[0]), dtype=np.float32)
        labels = rng.integers(0, CLASSES, n, dtype=np.int32)
        x = (means[labels] + 3 * rng.random((n, self.sizes[0]), dtype=np.float32)) / 4
        return x, np.where(rng.random(n) < 0.2, rng.integers(0, CLASSES, n, dtype=np.int32), labels)

    def weights(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """(w (in, out), b (out,)) of each layer, float32."""
        rng = np.random.default_rng(SEED + 1)
        found = []
        for k, n in self.layers:
            w = rng.random((k, n), dtype=np.float32)
            w -= np.float32(0.5)
            w *= np.float32(3.4 / k**0.5)  # the variance of N(0, 1/in)
            found.append((w, rng.standard_normal(n).astype(np.float32) / 10))
        return found

    def order(self, epoch: int) -> np.ndarray:
        """The samples of an epoch as fit(seed=SEED) orders them: every side makes it anew at every epoch."""
        return np.random.default_rng((SEED, epoch)).permutation(self.batch * self.steps).astype(np.int32)


NETS = {
    "nielsen": Net((784, 30, 10), "sigmoid", "quadratic", "sgd", 0.5, 10, 1000),
    "mlp": Net((784, 512, 256, 10), "relu", "cross_entropy", "adam", 1e-4, 128, 40),
    "mlp1": Net((784, 256, 10), "relu", "cross_entropy", "sgd", 0.05, 128, 40),
}
# Outputs of inference are softmax's inputs; the last number is the samples that one call gets.
INFERENCE = {
    "predict-1": [NETS["mlp"]._replace(batch=1, steps=1)],
    "inference": [NETS["mlp"]._replace(batch=batch, steps=1) for batch in (1, 256)],
    # the series, part 3
    "deep": [Net((10000, 5000, 1000, 10), "relu", "cross_entropy", "sgd", 0.0, batch, 1) for batch in (1, 256)],
}


def one_hot(labels: np.ndarray) -> np.ndarray:
    return np.eye(CLASSES, dtype=np.float32)[labels]


def forward(net: Net, weights: list[Any], x: np.ndarray) -> list[np.ndarray]:
    """The inputs of each layer, and at the end the outputs before the loss's own activation."""
    found = [x]
    for i, (w, b) in enumerate(weights):
        z = found[-1] @ w + b
        last = i == len(weights) - 1
        found.append(z if last else sigmoid(z) if net.hidden == "sigmoid" else np.maximum(z, 0))
    return found


def reference_losses(net: Net, epochs: int) -> list[float]:
    """The mean loss of each epoch in float64: what every side has to find."""
    x, labels = net.data()
    target = one_hot(labels).astype(np.float64)
    weights = [(w.astype(np.float64), b.astype(np.float64)) for w, b in net.weights()]
    moments = [[np.zeros_like(p), np.zeros_like(p)] for layer in weights for p in layer]
    losses, step = [], 0
    for epoch in range(epochs):
        order, total = net.order(epoch), 0.0
        for rows in order.reshape(net.steps, net.batch):
            step += 1
            inputs = forward(net, weights, x[rows].astype(np.float64))
            z, t = inputs.pop(), target[rows]
            if net.loss == "cross_entropy":
                p = softmax(z)
                total -= (t * np.log(p)).sum() / net.batch
                d = p - t
            else:
                y = sigmoid(z)
                if net.loss == "quadratic":
                    total += 0.5 * ((y - t) ** 2).sum() / net.batch
                    d = (y - t) * y * (1 - y)
                else:
                    total -= (t * np.log(y) + (1 - t) * np.log(1 - y)).sum() / net.batch
                    d = y - t
            d /= net.batch
            gradients: list[np.ndarray] = []
            for (w, _), h in zip(weights[::-1], inputs[::-1]):
                gradients[:0] = [h.T @ d, d.sum(0)]
                d = (d @ w.T) * (h * (1 - h) if net.hidden == "sigmoid" else h > 0)
            update(net, step, [p for layer in weights for p in layer], gradients, moments)
        losses.append(float(total / net.steps))
    return losses


def update(net: Any, step: int, parameters: list[np.ndarray], gradients: list[np.ndarray], moments: list[Any]) -> None:
    """The optimizer's step, in place; steps count from 1."""
    for p, g, (m, v) in zip(parameters, gradients, moments):
        if net.optimizer == "sgd":
            m *= net.momentum
            m += g + (net.decay * p if p.ndim > 1 else 0)
            p -= net.lr * m
            continue
        m += 0.1 * (g - m)
        v += 0.001 * (g * g - v)
        p -= net.lr * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)


def reference_outputs(net: Net) -> np.ndarray:
    """The outputs for the data in float64 (float32 weights of 200 MB are not copied: one layer at a time is)."""
    h = net.data()[0].astype(np.float64)
    for i, (w, b) in enumerate(net.weights()):
        h = h @ w.astype(np.float64) + b
        if i < len(net.sizes) - 2:
            h = np.maximum(h, 0) if net.hidden == "relu" else sigmoid(h)
    return h


# -- products ---------------------------------------------------------------------------------------------------------
class Product(NamedTuple):
    """C (m, n) = op(A) op(B) as in training: NN forward, TN the weights' gradient, NT the inputs' gradient."""

    form: str
    m: int
    n: int
    k: int

    @property
    def name(self) -> str:
        return f"{self.form} {self.m}x{self.n}x{self.k}"

    @property
    def work(self) -> int:
        """Multiply-adds."""
        return self.m * self.n * self.k

    def stored(self) -> tuple[np.ndarray, np.ndarray]:
        """A and B as they lie in memory, before op()."""
        rng = np.random.default_rng(SEED)
        a = (self.k, self.m) if self.form[0] == "T" else (self.m, self.k)
        b = (self.n, self.k) if self.form[1] == "T" else (self.k, self.n)
        return tuple(rng.random(shape, dtype=np.float32) - np.float32(0.5) for shape in (a, b))  # type: ignore[return-value]

    def extras(self) -> tuple[np.ndarray, np.ndarray]:
        """C before the product (also the saved outputs of an activation), and the bias (also D)."""
        rng = np.random.default_rng(SEED + 1)
        return rng.random((self.m, self.n), dtype=np.float32) - np.float32(0.5), rng.random(self.n, dtype=np.float32)

    def error(self, c: np.ndarray, d: np.ndarray | None = None) -> float:
        """The largest error of some rows of C relative to the largest value, against float64.

        With `d` the product has clnn's epilogue: NN max(AB + bias, 0), NT times (saved > 0), TN C - AB / 2 and, in
        d, bias - column sums of B / 2.
        """
        rows = np.unique(np.linspace(0, self.m - 1, 32).astype(int))
        a, b = self.stored()
        a = (a.T if self.form[0] == "T" else a)[rows].astype(np.float64)
        want = a @ (b.T if self.form[1] == "T" else b).astype(np.float64)
        worst = 0.0
        if d is not None:
            before, bias = self.extras()
            if self.form == "NN":
                want = np.maximum(want + bias, 0)
            elif self.form == "NT":
                want *= before[rows] > 0
            else:
                want = before[rows] - want / 2
                worst = float(np.abs(d - (bias - b.astype(np.float64).sum(0) / 2)).max())
        return max(worst, float(np.abs(c[rows] - want).max())) / float(np.abs(want).max())


def training_products(batch: int, sizes: tuple[int, ...]) -> list[Product]:
    """All products of a training step of a perceptron."""
    layers = list(zip(sizes, sizes[1:]))
    forward = [Product("NN", batch, n, k) for k, n in layers]
    return [
        *forward,
        *[Product("TN", k, n, batch) for k, n in layers],
        *[Product("NT", batch, k, n) for k, n in layers[1:]],
    ]


PARAMETERS = (535_040, 25_005_000)  # of the mlp about, and of one dense layer 5000 x 5000

QUICK_PRODUCTS = [
    *training_products(128, NETS["mlp"].sizes),
    *training_products(10, NETS["nielsen"].sizes),
    Product("NN", 960, 960, 960),
    Product("NN", 2048, 2048, 2048),
]
PRODUCTS = [
    *QUICK_PRODUCTS[:-2],
    *[Product("NN", n, n, n) for n in (512, 960, 1024, 2048, 4096)],
    *[Product(*form) for form in (("NN", 256, 128, 9216), ("TN", 9216, 128, 256), ("NT", 256, 9216, 128))],
    *[Product("NN", batch, 512, 784) for batch in (512, 4096)],  # what growing batches and
    Product("TN", 784, 512, 4096),
    *[Product(form, 128, width, width) for width in (1024, 4096) for form in ("NN", "NT")],  # wider layers do
    Product("NN", 1, 512, 784),
    Product("NN", 1, 1024, 5000),
]
