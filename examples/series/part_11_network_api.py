"""Part 11, a simple neural network API: the size of the input, and a list of layers.

python examples/series/part_11_network_api.py
"""

import numpy as np

import clnn


def network(inputs, layers):
    """The series' own words: network(784, [(512, "relu"), (10, "sigmoid")])."""
    return clnn.Sequential([clnn.Dense(size, activation) for size, activation in layers], input_shape=inputs)


net = network(4, [(16, "sigmoid"), (64, "tanh"), (8, "tanh"), (1, "linear")])
print(net.summary())

y = net(np.random.default_rng(1).random((1000, 4), dtype=np.float32))  # a network is a function
assert y.shape == (1000, 1)
assert sum(p.size for p in net.parameters()) == 4 * 16 + 16 + 16 * 64 + 64 + 64 * 8 + 8 + 8 + 1
