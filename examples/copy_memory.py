"""A temporal convolutional network repeats what it saw long ago: python examples/copy_memory.py [sequences] [delay]

The copy task of Arjovsky, Shah and Bengio (2016), as Bai, Kolter and Koltun (2018) give it to this network: ten symbols of 1 to
8, a delay of zeros, and a bell, 9, from which on the ten symbols are to be said again. Who remembers nothing says 0 until the
bell and then guesses: a cross-entropy of 10 ln 8 / (delay + 20) for each step.
"""

import math
import sys

import numpy as np

import clnn

if "--help" in sys.argv:
    sys.exit(print(__doc__))

SEQUENCES = int(sys.argv[1]) if len(sys.argv) > 1 else 40_000
DELAY = int(sys.argv[2]) if len(sys.argv) > 2 else 100
BATCH, STEPS, SYMBOLS = 32, DELAY + 20, 10
LEVELS = math.ceil(math.log2(STEPS / 4 + 1))  # so many blocks, with dilations 1, 2, 4, ..., see a whole sequence
clnn.seed(1)
rng = np.random.default_rng(1)


def sequences(count):
    """x (count, SYMBOLS, STEPS), a 1 for each symbol, and y (count, STEPS), what is to be said."""
    symbols = rng.integers(1, 9, (count, 10))
    x, y = np.zeros((count, STEPS), np.int32), np.zeros((count, STEPS), np.int32)
    x[:, :10], x[:, -11:], y[:, -10:] = symbols, 9, symbols
    return np.eye(SYMBOLS, dtype=np.float32)[x].transpose(0, 2, 1), y


blocks = [clnn.TemporalBlock(32, 3, dilation=2**level) for level in range(LEVELS)]
net = clnn.Sequential([*blocks, clnn.Conv1D(SYMBOLS, 1)], input_shape=(SYMBOLS, STEPS))
optimizer = clnn.Adam(0.002, clip_norm=1.0)


def loss_of(x, y):
    return clnn.losses.cross_entropy(net(x).transpose(0, 2, 1).reshape(-1, SYMBOLS), y.reshape(-1))


@clnn.step
def step(x, y):
    loss = loss_of(x, y)
    loss.backward()
    optimizer.step(net.parameters())
    return loss


tests, said = sequences(200)
print(f"without a memory: a loss of {10 * math.log(8) / STEPS:.4f}")
for seen in range(BATCH, SEQUENCES + 1, BATCH):
    step(*sequences(BATCH))
    if seen % (100 * BATCH) == 0 or seen + BATCH > SEQUENCES:
        with clnn.no_grad():
            loss = float(loss_of(tests, clnn.tensor(said)))
        right = (net.predict(tests).argmax(1) == said)[:, -10:].mean()
        print(f"{seen:7,} sequences with a delay of {DELAY}: a loss of {loss:.4f}, {right:.1%} of the symbols right")
        if right == 1:
            break
