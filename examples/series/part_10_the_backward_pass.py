"""Part 10, the backward pass: gradients go where they are needed, and plain gradient descent needs them in the weights.

    v = -(eta / n) a' delta,  w = w + v      is one product,      w = -(eta / n) a' delta + 1 w,

a GEMM with alpha = -eta / n, beta = 1 and C = w. So a training step keeps no gradients and needs no launch to apply them.

python examples/series/part_10_the_backward_pass.py
"""

import gc

import numpy as np

import clnn

device = clnn.device()
rng = np.random.default_rng(1)
x, y = rng.random((3200, 256), dtype=np.float32), rng.random((3200, 32), dtype=np.float32)


def trained(optimizer, name=""):
    """Bytes that training leaves on the device (parameters, and whatever else it needs), launches a step, the weights."""
    net = clnn.Sequential([clnn.Dense(512, "tanh"), clnn.Dense(32)], input_shape=256, seed=1)
    options = {"loss": "quadratic", "optimizer": optimizer, "batch_size": 32, "progress": False, "seed": 1}
    net.fit(x, y, epochs=1, **options)
    launches = device.launches
    history = net.fit(x, y, epochs=1, **options)  # 100 steps
    launches = (device.launches - launches) / 100
    gc.collect()
    held = device.memory_in_use - before
    if name:
        print(f"{name:27} {held:,} bytes, {launches:.2f} launches a step, cost {history['loss'][-1]:.4f}")
    return held, launches, net.parameters()[0].numpy()


before = device.memory_in_use
trained(clnn.SGD(0.002))  # what is made once for all, small constants, does not count
gc.collect()  # that network has gone
before = device.memory_in_use
straight = trained(clnn.SGD(0.002), "straight into the weights")
apart = trained(clnn.SGD(0.002, keep_gradients=True), "with gradients of their own")

parameters = 4 * (256 * 512 + 512 + 512 * 32 + 32)
print(f"the difference is {apart[0] - straight[0]:,} bytes; the parameters have {parameters:,}")
assert parameters <= straight[0] < 1.2 * parameters
assert parameters <= apart[0] - straight[0] < 1.1 * parameters
assert straight[1] < apart[1]
assert np.allclose(straight[2], apart[2], atol=1e-5)
