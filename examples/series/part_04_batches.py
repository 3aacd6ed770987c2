"""Part 4, increasing performance with batch processing: many inputs in one matrix, one product for all of them.

python examples/series/part_04_batches.py
"""

import statistics
import time

import numpy as np

import clnn

SAMPLES, INPUTS, OUTPUTS = 256, 1000, 1000
device = clnn.device()
layer = clnn.Dense(OUTPUTS, "tanh")
x = clnn.tensor(np.random.default_rng(1).standard_normal((SAMPLES, INPUTS), dtype=np.float32))
rows = [clnn.tensor(row) for row in x.numpy().reshape(SAMPLES, 1, INPUTS)]


@clnn.no_grad()
def timed(inputs):
    """The outputs, the seconds until they are there, and the launches that took."""
    device.finish()
    launches, began = device.launches, time.perf_counter()
    outputs = [layer(one) for one in inputs]
    device.finish()
    return outputs, time.perf_counter() - began, device.launches - launches


together, alone = [], []
for _ in range(5):  # in turns, so that a machine whose speed drifts treats both alike
    (batch,), seconds, few = timed([x])
    together.append(seconds)
    singles, seconds, many = timed(rows)
    alone.append(seconds)

print(f"one by one: {many} launches, {statistics.median(alone) * 1e3:.2f} ms")
print(f"one batch:  {few} launch{'' if few == 1 else 'es'}, {statistics.median(together) * 1e3:.2f} ms")
print(f"the batch is {statistics.median(alone) / statistics.median(together):.1f} times as fast (the series: about 10)")

assert np.allclose(batch.numpy(), np.concatenate([y.numpy() for y in singles]), rtol=1e-3, atol=1e-4)
assert many >= SAMPLES * few
