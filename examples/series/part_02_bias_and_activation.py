"""Part 2, bias and activation function: what makes two layers more than one.

The series subtracts its biases, so they enter here as -b. Its sigmoid is written as a hyperbolic tangent:
1 / (1 + exp(-x)) = tanh(x / 2) / 2 + 1 / 2.

python examples/series/part_02_bias_and_activation.py
"""

import numpy as np

import clnn

x = clnn.tensor([[0.3, 0.9]])
w1 = clnn.tensor([[0.3, 0.6], [0.1, 2.0], [0.9, 3.7], [0.0, 1.0]]).T
b1 = clnn.tensor([0.7, 0.2, 1.1, 2.0])
z = x @ w1 - b1

expected = {
    "step": [0, 1, 1, 0],
    "relu": [0, 1.63, 2.5, 0],
    "tanh": [-0.0698858903, 0.9260615814, 0.9866142982, -0.8004990218],
    "sigmoid": [0.4825071423, 0.8361696388, 0.92414182, 0.2497398944],
}
for name, values in expected.items():
    h = clnn.Activation(name)(z).numpy()[0]
    print(f"{name:8}", h)
    assert np.allclose(h, values, rtol=1e-5, atol=1e-7), name

assert np.allclose((0.5 * clnn.tanh(0.5 * z) + 0.5).numpy(), clnn.sigmoid(z).numpy(), atol=1e-6)
