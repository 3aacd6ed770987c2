"""Part 3, fully connected inference layers: weights, bias and activation in one object that can be called.

A large net shows who owns the memory: the device's count goes up with the net and back when the net goes.

python examples/series/part_03_fully_connected_layers.py
"""

import numpy as np

import clnn

net = clnn.Sequential([clnn.Dense(4, "tanh"), clnn.Dense(1, "sigmoid")], input_shape=2)
net.load_state_dict(
    {
        "0.w": np.transpose([[0.3, 0.6], [0.1, 2.0], [0.9, 3.7], [0.0, 1.0]]),
        "0.b": -np.array([0.7, 0.2, 1.1, 2.0]),
        "1.w": np.transpose([[0.75, 0.15, 0.22, 0.33]]),
        "1.b": -np.array([0.3]),
    }
)
y = net.predict([[0.3, 0.9]])
print("output", y)
assert np.allclose(y, 0.4352126044)

device = clnn.device()
before = device.memory_in_use
large = clnn.Sequential([clnn.Dense(5000, "relu"), clnn.Dense(1000, "relu"), clnn.Dense(10)], input_shape=10000)
held = device.memory_in_use - before
weights = 4 * (10000 * 5000 + 5000 + 5000 * 1000 + 1000 + 1000 * 10 + 10)
print(f"10000-5000-1000-10: {weights:,} bytes of weights and biases, {held:,} bytes on the device")
assert weights <= held < 1.001 * weights

del large
print(f"without it: {device.memory_in_use - before:,} bytes")
assert device.memory_in_use - before < 4096
