"""Part 6, CUDA and OpenCL: the same code on the CPU and on every GPU.

Nothing below names a device; what runs it is chosen around it.

python examples/series/part_06_every_device.py
"""

import time

import numpy as np

import clnn

x = np.random.default_rng(1).standard_normal((4096, 512), dtype=np.float32)
results = []
for device in clnn.devices():
    with clnn.use(device):
        net = clnn.Sequential([clnn.Dense(1024, "tanh"), clnn.Dense(64, "sigmoid")], input_shape=512, seed=1)
        for _ in range(4):  # the first compiles, the next two are noted down, the fourth repeats what was noted
            launches, began = device.launches, time.perf_counter()
            y = net.predict(x)
            seconds, launches = time.perf_counter() - began, device.launches - launches
        results.append(y)
        print(
            f"{device.kind} {device.name}, {device.platform}: {seconds * 1e3:.1f} ms, {launches} launches, "
            f"{device.memory_in_use:,} bytes, {2 * 4096 * (512 * 1024 + 1024 * 64) / seconds / 1e9:.0f} GFLOP/s"
        )

assert results, "there is no OpenCL device; `clnn doctor` says what to install"
for y in results[1:]:
    assert np.allclose(y, results[0], rtol=1e-3, atol=1e-4), "two devices disagree"
