"""Part 7, learning and backpropagation: four formulas, checked against differences of the cost.

    delta_L = dC/da_L * f'(z_L)      delta_l = (delta_(l+1) W_(l+1)') * f'(z_l)
    dC/db_l = the sum of delta_l     dC/dW_l = a_(l-1)' delta_l

python examples/series/part_07_backpropagation.py
"""

import numpy as np

import clnn

rng = np.random.default_rng(7)
dtype = "float64" if clnn.device().has_fp64 else "float32"
net = clnn.Sequential([clnn.Dense(5, "tanh"), clnn.Dense(3, "sigmoid")], input_shape=4, dtype=dtype, seed=1)
x, y = rng.standard_normal((6, 4)).astype(dtype), rng.random((6, 3)).astype(dtype)


def cost():
    """The quadratic cost, a mean over samples."""
    return 0.5 * float(((net.predict(x) - y) ** 2).sum()) / len(x)


# By the formulas, on the host
w1, b1, w2, b2 = (p.numpy() for p in net.parameters())
a1 = np.tanh(x @ w1 + b1)
a2 = 1 / (1 + np.exp(-(a1 @ w2 + b2)))
delta2 = (a2 - y) / len(x) * a2 * (1 - a2)
delta1 = delta2 @ w2.T * (1 - a1**2)
formulas = [x.T @ delta1, delta1.sum(0), a1.T @ delta2, delta2.sum(0)]

# By clnn, on the device
clnn.losses.quadratic(net(x), y).backward()

h, tolerance = (1e-5, 1e-8) if dtype == "float64" else (1e-2, 1e-3)
state = net.state_dict()
for name, p, formula in zip(state, net.parameters(), formulas):
    differences = np.empty(p.shape)
    for i in np.ndindex(p.shape):  # by differences: every weight a little up and down
        costs = []
        for sign in (1, -1):
            moved = state[name].copy()
            moved[i] += sign * h
            net.load_state_dict({**state, name: moved})
            costs.append(cost())
        differences[i] = (costs[0] - costs[1]) / (2 * h)
    net.load_state_dict(state)
    error = abs(p.grad.numpy() - differences).max()
    print(f"{name}: clnn's gradient and differences of the cost differ by {error:.1e} at most")
    assert error < tolerance and np.allclose(p.grad.numpy(), formula, rtol=1e-4, atol=tolerance)
