"""Chapter 4: a network of one hidden layer can compute any function, and here is how: steps, bumps, towers.

A sigmoid with a large weight w is a step at s = -b / w; two steps of opposite heights are a bump; bumps side by side come as
close to a continuous function as there are bumps enough. Nothing is trained: the weights are written down.

python examples/book/chapter_4_universality.py [picture.png]
"""

import sys

import numpy as np

import clnn

if "--help" in sys.argv:
    sys.exit(print(__doc__))


def f(x):
    """The book's function."""
    return 0.2 + 0.4 * x**2 + 0.3 * x * np.sin(15 * x) + 0.05 * np.cos(50 * x)


def bumps(n, steepness=3000.0):
    """A network whose n pairs of hidden neurons make n bumps as high as f on [0, 1]."""
    edges = np.linspace(0, 1, n + 1)
    edges[0] = -1.0  # the first bump begins before 0
    steps = np.stack([edges[:-1], edges[1:]], 1).ravel()
    heights = np.repeat(f(np.linspace(0, 1, n + 1)[:-1] + 0.5 / n), 2) * np.tile([1, -1], n)
    net = clnn.Sequential([clnn.Dense(2 * n, "sigmoid"), clnn.Dense(1)], input_shape=1)
    weights = np.full((1, 2 * n), steepness)
    values = [weights, -steepness * steps, heights[:, None], np.zeros(1)]
    net.load_state_dict(dict(zip(net.state_dict(), values)))
    return net


x = np.linspace(0.0, 0.999, 1000, dtype=np.float32)[:, None]
outputs = {n: bumps(n).predict(x) for n in (5, 10, 50, 250)}
errors = {n: float(abs(y - f(x)).mean()) for n, y in outputs.items()}
for n, error in errors.items():
    print(f"{n:3} bumps, {2 * n:3} hidden neurons: mean error {error:.4f}")
assert list(errors.values()) == sorted(errors.values(), reverse=True) and errors[250] < 0.006

# Two inputs: a step of the sum of a bump along x and a bump along y is a tower.
corners = np.array([[0.5, 0.5], [0.5, 0.9], [0.9, 0.5], [0.1, 0.1]], np.float32)
tower = clnn.Sequential([clnn.Dense(4, "sigmoid"), clnn.Dense(1, "sigmoid")], input_shape=2)
w = np.array([[1000, 1000, 0, 0], [0, 0, 1000, 1000]], float)
b = -np.array([400, 600, 400, 600], float)  # steps at .4 and .6 along each
values = [w, b, 20 * np.array([[1], [-1], [1], [-1]], float), np.array([-30.0])]
tower.load_state_dict(dict(zip(tower.state_dict(), values)))
print("a tower over [.4, .6] x [.4, .6]:", tower.predict(corners).ravel().round(3))
assert np.array_equal(tower.predict_classes(corners), [1, 0, 0, 0])

if len(sys.argv) > 1:
    import matplotlib.pyplot as plt

    plt.plot(x, f(x), "k", label="f")
    for n in (5, 10, 50):
        plt.plot(x, outputs[n], label=f"{n} bumps", linewidth=1)
    plt.legend()
    plt.savefig(sys.argv[1])

# Exercises
# 1. Lower the steepness to 30: how many bumps come closest to f then, and why not more?
# 2. Build a tower over a triangle. How many hidden neurons does it take?
