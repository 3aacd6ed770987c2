"""Part 10, the backward pass: gradients go where they are needed, and plain gradient descent needs them in the weights.

    v = -(eta / n) a' delta,  w = w + v      is one product,      w = -(eta / n) a' delta + 1 w,

a GEMM with alpha = -eta / n, beta = 1 and C = w. So a training step keeps no gradients and needs no launch to apply them.

python examples/series/part_10_the_backward_pass.py
"""

import numpy as np

import clnn

device = clnn.device()
rng = np.random.default_rng(1)
x, y = rng.random((3200, 256), dtype=np.float32), rng.random((3200, 32), dtype=np.float32)
found = {}
for name, optimizer in {
    "straight into the weights": clnn.SGD(0.1),
    "with gradients of their own": clnn.SGD(0.1, keep_gradients=True),
}.items():
    net = clnn.Sequential([clnn.Dense(512, "tanh"), clnn.Dense(32)], input_shape=256, seed=1)
    options = {"loss": "quadratic", "optimizer": optimizer, "batch_size": 32, "progress": False, "seed": 1}
    before = device.memory_in_use
    net.fit(x, y, epochs=1, **options)
    held = device.memory_in_use - before
    launches = device.launches
    history = net.fit(x, y, epochs=1, **options)  # 100 steps
    launches = (device.launches - launches) / 100
    found[name] = held, launches, net.parameters()[0].numpy()
    print(f"{name}: {held:,} bytes kept after training, {launches:.2f} launches a step, loss {history['loss'][-1]:.4f}")

straight, apart = found.values()
parameters = sum(p.nbytes for p in net.parameters())
print(f"the difference is {apart[0] - straight[0]:,} bytes; the parameters have {parameters:,}")
assert apart[0] - straight[0] >= parameters
assert straight[1] < apart[1]
assert np.allclose(straight[2], apart[2], atol=1e-5)
