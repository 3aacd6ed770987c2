"""House prices in Boston by a network 13-64-64-1, as in the functional tests of Deep Diamond: off by 3 (thousand dollars) or
less on average, over several splits and first weights.

python examples/deep_diamond/boston.py [seeds]
"""

import csv
import os
import sys
from pathlib import Path

import numpy as np

import clnn

if "--help" in sys.argv:
    sys.exit(print(__doc__))

file = Path(os.environ.get("CLNN_DATA_DIR", ""), "boston", "BostonHousing.csv")
if not file.is_file():
    sys.exit("set CLNN_DATA_DIR to a folder that holds boston/BostonHousing.csv, 13 features and the price in each row")
with open(file, newline="", encoding="utf-8") as lines:
    table = np.array(list(csv.reader(lines))[1:], np.float32)  # 506 rows

for seed in range(int(sys.argv[1]) if len(sys.argv) > 1 else 5):
    rows = np.random.default_rng(seed).permutation(table)
    x, y = rows[:, :13], rows[:, 13:]
    x = (x - x[:404].mean(axis=0)) / x[:404].std(axis=0)  # test rows by what training rows are like

    net = clnn.Sequential([clnn.Dense(64, "relu"), clnn.Dense(64, "relu"), clnn.Dense(1)], input_shape=13, seed=seed)
    net.fit(
        x[:404], y[:404], loss="quadratic", optimizer=clnn.Adam(), epochs=80, batch_size=16, seed=seed, progress=False
    )
    error = net.evaluate(x[404:], y[404:], loss="mae")["loss"]
    print(f"seed {seed}: a mean absolute error of {error:.2f} on {len(x) - 404} test rows")
    assert error <= 3
