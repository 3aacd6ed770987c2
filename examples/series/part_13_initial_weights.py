"""Part 13, initializing weights: gaussians, so narrow that a unit's input is about as large as its output.

The series takes a variance of 2 / (in + out), and later a deviation of 1 / in. They are drawn on the device, from a
counter and a seed, so the same seed gives the same weights on every device.

python examples/series/part_13_initial_weights.py
"""

import math

import numpy as np

import clnn

IN, OUT = 1000, 500
for name, deviation in {"series": math.sqrt(2 / (IN + OUT)), "series_by_inputs": 1 / IN}.items():
    net = clnn.Sequential([clnn.Dense(OUT, weight_init=name)], input_shape=IN, seed=13)
    w = net.parameters()[0].numpy()
    print(f"{name:16} mean {w.mean():+.2e}, deviation {w.std():.6f} (expected {deviation:.6f})")
    assert abs(w.mean()) < 4 * deviation / math.sqrt(w.size)  # four standard errors
    assert abs(w.std() - deviation) < 4 * deviation / math.sqrt(2 * w.size)

again = clnn.Sequential([clnn.Dense(OUT, weight_init=name)], input_shape=IN, seed=13)
assert np.array_equal(again.parameters()[0].numpy(), w), "the same seed gave other weights"

x = clnn.tensor(np.random.default_rng(1).standard_normal((1000, 500), dtype=np.float32))
for scale, name in ((1.0, "normal"), (None, "series")):
    deep = clnn.Sequential([clnn.Dense(500, "tanh", weight_init=name) for _ in range(6)], input_shape=500, seed=1)
    with clnn.no_grad():
        saturated = float((abs(deep(x).numpy()) > 0.99).mean())
    print(f"six tanh layers with weights by {name!r}: {saturated:.0%} of outputs are saturated")
    assert saturated > 0.8 if scale else saturated < 0.01
