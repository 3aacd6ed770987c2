"""An LSTM adds two numbers that it saw long ago: python examples/adding_problem.py [sequences] [steps] [seed]

The problem is Hochreiter and Schmidhuber's (1997): each step has a number in [0, 1) and a mark; two steps of a sequence are
marked, and the target is the sum of their numbers. Who always answers 1, the mean, has a mean squared error of 1 / 6 = 0.167.
"""

import sys

import numpy as np

import clnn

if "--help" in sys.argv:
    sys.exit(print(__doc__))

SEQUENCES = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
STEPS = int(sys.argv[2]) if len(sys.argv) > 2 else 100
SEED = int(sys.argv[3]) if len(sys.argv) > 3 else 1
BATCH = 50
clnn.seed(SEED)
rng = np.random.default_rng(SEED)


def sequences(count):
    """x (count, STEPS, 2), a mark in each half, and the sums (count, 1)."""
    x = np.zeros((count, STEPS, 2), np.float32)
    x[:, :, 0] = rng.random((count, STEPS))
    rows = np.arange(count)
    for first, last in ((0, STEPS // 2), (STEPS // 2, STEPS)):
        x[rows, rng.integers(first, last, count), 1] = 1
    return x, (x[:, :, 0] * x[:, :, 1]).sum(1, keepdims=True)


net = clnn.Sequential([clnn.LSTM(64), clnn.Dense(1)], input_shape=(STEPS, 2))
optimizer = clnn.Adam(0.004, clip_norm=1.0)
tests, sums = sequences(1000)


@clnn.step
def step(x, y):
    loss = clnn.losses.mse(net(x), y)
    loss.backward()
    optimizer.step(net.parameters())
    return loss


for seen in range(0, SEQUENCES, BATCH):
    step(*sequences(BATCH))
    if (seen + BATCH) % 5_000 == 0 or seen + BATCH >= SEQUENCES:
        error = float(np.mean((net.predict(tests) - sums) ** 2))
        print(f"{seen + BATCH:7,} sequences of {STEPS} steps: a mean squared error of {error:.4f}")
        if error < 0.001:
            break
