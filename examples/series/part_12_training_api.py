"""Part 12, a simple neural network training API: epochs and a rate, or a list of (epochs, rate).

The series trains its first network on one sample, given twice, and prints the quadratic cost of the last forward pass.
Its own figures fall more slowly than these: it computes z = W x - b, but moves b as if it were added.

python examples/series/part_12_training_api.py
"""

import numpy as np

import clnn

dtype = "float64" if clnn.device().has_fp64 else "float32"
net = clnn.Sequential([clnn.Dense(4, "tanh"), clnn.Dense(1, "sigmoid")], input_shape=2, dtype=dtype)
net.load_state_dict(
    {
        "0.w": np.transpose([[0.3, 0.6], [0.1, 2.0], [0.9, 3.7], [0.0, 1.0]]),
        "0.b": -np.array([0.7, 0.2, 1.1, 2.0]),
        "1.w": np.transpose([[0.75, 0.15, 0.22, 0.33]]),
        "1.b": -np.array([0.3]),
    }
)
x, y = np.array([[0.3, 0.9], [0.3, 0.9]]), np.array([[0.5], [0.5]])


def sgd(epochs, rate):
    """Train on both samples at once; the cost of the last forward pass."""
    options = {"loss": "quadratic", "optimizer": clnn.SGD(rate), "batch_size": 2, "shuffle": False, "progress": False}
    return net.fit(x, y, epochs=epochs, **options)["loss"][-1]


for epochs, expected in ((1, 2.09870e-3), (20, 1.19955e-3), (200, 3.95672e-6)):
    cost = sgd(epochs, 0.05)
    print(f"{epochs:5} epochs: cost {cost:.5e}")
    assert abs(cost - expected) < (1e-8 if dtype == "float64" else 1e-5), expected
cost = sgd(2000, 0.05)
print(f" 2000 epochs: cost {cost:.5e}")
assert cost < (1e-28 if dtype == "float64" else 1e-12)

history = net.fit(
    x, y + 0.1, loss="quadratic", optimizer=clnn.SGD([(5, 0.05), (5, 0.5)]), epochs=10, batch_size=2, progress=False
)
print("a list of (epochs, rate):", [f"{rate:g}" for rate in history["lr"]])
assert history["lr"] == [0.05] * 5 + [0.5] * 5
