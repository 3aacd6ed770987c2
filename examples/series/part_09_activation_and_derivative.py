"""Part 9, the activation and its derivative: most derivatives are cheap, given the activation's own value.

    sigmoid' = a (1 - a)      tanh' = 1 - a^2      relu' = 1 where a > 0      linear' = 1

So the input z need not be kept, and the derivative is taken where the gradient is computed, in the same kernel.

python examples/series/part_09_activation_and_derivative.py
"""

import numpy as np

import clnn

DERIVATIVES = {
    "sigmoid": lambda a: a * (1 - a),
    "tanh": lambda a: 1 - a**2,
    "relu": lambda a: (a > 0).astype(a.dtype),
    "linear": lambda a: np.ones_like(a),
}
z = clnn.tensor(np.random.default_rng(1).standard_normal(1000), dtype="float32", requires_grad=True)
for name, derivative in DERIVATIVES.items():
    a = clnn.Activation(name)(z)
    a.sum().backward()
    error = abs(z.grad.numpy() - derivative(a.numpy())).max()
    print(f"{name:8} differs from its formula by {error:.1e} at most")
    assert error < 1e-6
    z.zero_grad()

# In a layer it costs no launch: these two networks differ in nothing else.
counts = {}
for name in ("linear", "tanh"):
    net = clnn.Sequential([clnn.Dense(64, name), clnn.Dense(64, name), clnn.Dense(1)], input_shape=64, seed=1)
    x = clnn.tensor(np.ones((8, 64), np.float32))
    launches = clnn.device().launches
    net(x).sum().backward()
    counts[name] = clnn.device().launches - launches
print(f"forward and backward: {counts['tanh']} launches with tanh, {counts['linear']} without")
assert counts["tanh"] == counts["linear"] or clnn.device().kind == "gpu"  # CLBlast, there, fuses nothing
