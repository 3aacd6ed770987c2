"""Part 15, weight decay: weights that run away, and weights that are kept short.

    w = v + (1 - eta lambda) w

A rate of .3 is a little too much for 32-16-1 with these first weights: each step overshoots the last, the weights grow until
the cost is NaN, and clnn says at which step. Kept a little shorter, the same weights learn. In a plain step decay is GEMM's
beta, 1 - eta lambda: no launch, no memory.

python examples/series/part_15_weight_decay.py [curves.png]
"""

import sys

import numpy as np

import clnn

if "--help" in sys.argv:
    sys.exit(print(__doc__))


def f(x):
    return (np.sin(x[:, 0]) + np.cos(x[:, 1]) + np.tanh(x[:, 2]) + x[:, 3] ** 2)[:, None]


x = np.random.default_rng(14).random((2000, 4), dtype=np.float32)
first = clnn.init.scaled(lambda n_in, n_out: 1.21 * 2 / (n_in + n_out), "normal")  # a tenth longer than part 13's


class Lengths(clnn.Callback):
    """The length of all weights and biases after each epoch."""

    def __init__(self):
        self.found = []

    def on_epoch_end(self, model, epoch, logs):
        self.found.append(np.sqrt(sum(np.linalg.norm(p.numpy().astype(float)) ** 2 for p in model.parameters())))


lengths = {}
for decay in (0.0, 0.02):
    layers = [clnn.Dense(n, activation, weight_init=first) for n, activation in ((32, "tanh"), (16, "tanh"), (1, None))]
    net = clnn.Sequential(layers, input_shape=4, seed=0)
    watch = lengths[decay] = Lengths()
    optimizer = clnn.SGD(0.3, weight_decay=decay)
    options = {"loss": "quadratic", "epochs": 100, "batch_size": len(x), "callbacks": [watch], "progress": False}
    try:
        cost = net.fit(x, f(x), optimizer=optimizer, **options)["loss"][-1]
        print(
            f"decay {decay}: cost {cost:.4f}, weights of length {watch.found[-1]:.2f}; {f(x).var() / 2:.4f} is the mean's"
        )
    except clnn.Diverged as error:
        cost = None
        print(f"decay {decay}: {error}")
    assert cost is None if decay == 0 else cost < 0.01

if len(sys.argv) > 1:
    import matplotlib.pyplot as plt

    for decay, watch in lengths.items():
        plt.semilogy(watch.found, label=f"decay {decay}")
    plt.xlabel("epoch")
    plt.ylabel("length of the weights")
    plt.legend()
    plt.savefig(sys.argv[1])
