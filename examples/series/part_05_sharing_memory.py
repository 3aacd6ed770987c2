"""Part 5, sharing memory: inference needs no buffer for each layer.

A layer's output is the next one's input and nothing else's, so it can go when that is done. At any time there are the
two activations between which a layer works, however deep the net is.

python examples/series/part_05_sharing_memory.py
"""

import numpy as np

import clnn

BATCH, SIZES = 1000, [1000, 800, 300, 1200, 600, 900, 100, 500, 1000, 700, 10]
device = clnn.device()
net = clnn.Sequential([clnn.Dense(n, "relu") for n in SIZES[1:]], input_shape=SIZES[0])
x = clnn.tensor(np.random.default_rng(1).standard_normal((BATCH, SIZES[0]), dtype=np.float32))
with clnn.no_grad():
    net(x)  # compiles what there is to compile

    before = device.memory_in_use  # parameters and x
    device.reset_memory_peak()
    y = net(x)
    needed = device.memory_peak - before

activations = [4 * BATCH * n for n in SIZES]
pairs = [a + b for a, b in zip(activations[1:], activations[2:])]
print(f"{len(SIZES) - 1} layers, parameters and input {before:,} bytes")
print(f"a buffer for each layer would be {sum(activations[1:]):,} bytes")
print(f"the two largest neighbours are   {max(pairs):,} bytes")
print(f"the peak beside parameters was   {needed:,} bytes, {needed / sum(activations[1:]):.0%} of a buffer for each")

assert y.shape == (BATCH, 10)
assert needed <= 1.07 * max(pairs)  # the pool of buffers rounds sizes up by up to 1/16
