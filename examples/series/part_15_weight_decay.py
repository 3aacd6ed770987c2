"""Part 15, weight decay: weights that run away, and weights that are kept short.

    w = v + (1 - eta lambda / n) w

A rate of .3 is too much for 32-16-1 with weights this large: they grow until the cost is NaN, and clnn says at which step.
With decay, the same run learns. In a plain step decay is GEMM's beta, 1 - eta lambda: no launch, no memory.

python examples/series/part_15_weight_decay.py [curves.png]
"""

import sys

import numpy as np

import clnn

rng = np.random.default_rng(15)
x = rng.standard_normal((1600, 32), dtype=np.float32)
y = np.tanh(x[:, :4].sum(1, keepdims=True)) + 0.1 * rng.standard_normal((1600, 1), dtype=np.float32)


class Lengths(clnn.Callback):
    """The length of the weight vector after each epoch."""

    def __init__(self):
        self.found = []

    def on_epoch_end(self, model, epoch, logs):
        self.found.append(float(np.sqrt(sum((p.numpy() ** 2).sum() for p in model.parameters() if p.ndim > 1))))


lengths = {}
for decay in (0.0, 0.1):
    net = clnn.Sequential([clnn.Dense(16, "relu", weight_init="normal"), clnn.Dense(1)], input_shape=32, seed=4)
    watch = lengths[decay] = Lengths()
    try:
        history = net.fit(
            x, y, loss="quadratic", optimizer=clnn.SGD(0.3, weight_decay=decay), epochs=100, batch_size=100, seed=1,
            callbacks=[watch], progress=False,
        )  # fmt: skip
        print(f"decay {decay}: cost {history['loss'][-1]:.4f}, weights of length {watch.found[-1]:.3f}")
        ended = "converged"
    except clnn.Diverged as error:
        print(f"decay {decay}: {error}")
        ended = "diverged"
    assert ended == ("converged" if decay else "diverged")

if len(sys.argv) > 1:
    import matplotlib.pyplot as plt

    for decay, watch in lengths.items():
        plt.semilogy(watch.found, label=f"decay {decay}")
    plt.xlabel("epoch")
    plt.ylabel("length of the weights")
    plt.legend()
    plt.savefig(sys.argv[1])
