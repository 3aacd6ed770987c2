"""Part 14, learning a regression: f(x) = sin x1 + cos x2 + tanh x3 + x4^2 from 10,000 samples, by two networks.

python examples/series/part_14_regression.py [curves.png]
"""

import sys

import numpy as np

import clnn

if "--help" in sys.argv:
    sys.exit(print(__doc__))


def f(x):
    return (np.sin(x[:, 0]) + np.cos(x[:, 1]) + np.tanh(x[:, 2]) + x[:, 3] ** 2)[:, None]


rng = np.random.default_rng(14)
x, x_test = rng.random((10000, 4), dtype=np.float32), rng.random((5000, 4), dtype=np.float32)
histories = {}
for sizes in ((16, 64, 8), (8, 8)):
    hidden = [clnn.Dense(n, "tanh") for n in sizes]
    net = clnn.Sequential([*hidden, clnn.Dense(1)], input_shape=4, seed=1)
    history = net.fit(
        x, f(x), loss="quadratic", optimizer=clnn.SGD([(60, 0.2), (20, 0.05)]), epochs=80, batch_size=50,
        validation=(x_test, f(x_test)), seed=1, progress=False,
    )  # fmt: skip
    name = "-".join(map(str, (4, *sizes, 1)))
    histories[name] = history["loss"]
    print(f"{name:12} cost {history['loss'][0]:.5f} at first, {history['loss'][-1]:.6f} at last,", end=" ")
    print(f"on new samples {history['val_loss'][-1]:.6f}; f has a variance of {f(x_test).var():.3f}")
    assert history["val_loss"][-1] < 0.005 * f(x_test).var()

if len(sys.argv) > 1:
    import matplotlib.pyplot as plt

    for name, losses in histories.items():
        plt.semilogy(range(1, len(losses) + 1), losses, label=name)
    plt.xlabel("epoch")
    plt.ylabel("quadratic cost")
    plt.legend()
    plt.savefig(sys.argv[1])
    print(f"curves: {sys.argv[1]}")
