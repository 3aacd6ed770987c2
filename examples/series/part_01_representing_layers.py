"""Part 1, representing layers and connections: a layer is a matrix, and a network is a chain of products.

There are no neurons in memory, only weights. The series writes h = W x with a column x; here samples are rows, so that a
batch of them is a matrix, and weights lie as (inputs, outputs): h = x W.

python examples/series/part_01_representing_layers.py
"""

import numpy as np

import clnn

x = clnn.tensor([[0.3, 0.9]])
w1 = clnn.tensor([[0.3, 0.6], [0.1, 2.0], [0.9, 3.7], [0.0, 1.0]]).T
w2 = clnn.tensor([[0.75, 0.15, 0.22, 0.33]]).T

h = x @ w1
y = h @ w2
print("hidden layer", h.numpy()[0], "output", y.numpy()[0])

assert np.allclose(h.numpy(), [[0.63, 1.83, 3.6, 0.9]])
assert np.allclose(y.numpy(), [[1.836]])
