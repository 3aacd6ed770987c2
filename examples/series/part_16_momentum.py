"""Part 16, momentum: v = mu v - (eta / n) a' delta is a GEMM with beta = mu, and v lies where the gradient would.

So momentum takes no more memory and no more launches than a gradient with a buffer of its own.

python examples/series/part_16_momentum.py
"""

import gc

import numpy as np

import clnn

device = clnn.device()
rng = np.random.default_rng(1)
x = rng.random((3200, 256), dtype=np.float32)
y = np.tanh(x @ rng.standard_normal((256, 32), dtype=np.float32) / 16)


def trained(optimizer, name=""):
    """Bytes that training leaves on the device (parameters, and gradients or velocities), launches a step, and the cost."""
    net = clnn.Sequential([clnn.Dense(512, "tanh"), clnn.Dense(32)], input_shape=256, seed=1)
    options = {"loss": "quadratic", "optimizer": optimizer, "batch_size": 32, "progress": False, "seed": 1}
    net.fit(x, y, epochs=1, **options)
    launches = device.launches
    history = net.fit(x, y, epochs=4, **options)
    launches = (device.launches - launches) / 400
    gc.collect()
    held = device.memory_in_use - before
    if name:
        print(f"{name:15} {held:,} bytes, {launches:.2f} launches a step, cost {history['loss'][-1]:.4f}")
    return held, launches, history["loss"][-1]


before = device.memory_in_use
trained(clnn.SGD(0.002, momentum=0.9))  # what is made once for all, small constants, does not count
gc.collect()  # that network has gone
before = device.memory_in_use
plain = trained(clnn.SGD(0.002, keep_gradients=True), "gradients apart")
momentum = trained(clnn.SGD(0.002, momentum=0.9), "momentum")

assert momentum[0] == plain[0], "momentum took memory"
assert momentum[1] == plain[1], "momentum took launches"
assert momentum[2] < plain[2], "momentum did not help"
