"""Part 8, the forward pass: training shares its weights with inference, and a layer's input is the previous output.

Training has to keep every activation, for the backward pass; it copies none of them, and no weights.

python examples/series/part_08_the_forward_pass.py
"""

import numpy as np

import clnn

BATCH, SIZES = 1000, [784, 512, 256, 128, 10]
device = clnn.device()
net = clnn.Sequential([clnn.Dense(n, "sigmoid") for n in SIZES[1:]], input_shape=SIZES[0])
x = clnn.tensor(np.random.default_rng(1).random((BATCH, SIZES[0]), dtype=np.float32))
y = net(x)
del y

before, launches = device.memory_in_use, device.launches
y = net(x)  # taken on tape, as in training
kept, launches = device.memory_in_use - before, device.launches - launches

activations = 4 * BATCH * sum(SIZES[1:])
weights = sum(p.nbytes for p in net.parameters())
print(f"a forward pass of {len(SIZES) - 1} layers: {launches} launches")
print(f"activations {activations:,} bytes, kept by the tape {kept:,} bytes ({kept / activations:.3f} times)")
print(f"weights {weights:,} bytes, copied: none")
assert activations <= kept <= 1.07 * activations  # the pool of buffers rounds sizes up by up to 1/16

with clnn.no_grad():
    inference = net(x)
assert np.array_equal(inference.numpy(), y.numpy())  # the same weights, the same kernels, the same bits
