"""House prices in California, with blanks and a column of text: prepared by scikit-learn, learnt by clnn and by
scikit-learn's MLPRegressor, two networks of the same size trained alike.

python examples/deep_diamond/california.py [seeds] [epochs]
"""

import csv
import os
import sys
import warnings
from pathlib import Path

import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.metrics import r2_score
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import clnn

if "--help" in sys.argv:
    sys.exit(print(__doc__))

warnings.simplefilter("ignore", ConvergenceWarning)  # it stops after `epochs`, as it should
seeds = range(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
epochs = int(sys.argv[2]) if len(sys.argv) > 2 else 20
file = Path(os.environ.get("CLNN_DATA_DIR", ""), "california", "housing.csv")
if not file.is_file():
    sys.exit(
        "set CLNN_DATA_DIR to a folder that holds california/housing.csv, the table with the column ocean_proximity"
    )
with open(file, newline="", encoding="utf-8") as lines:
    rows = [[*map(float, (cell or "nan" for cell in row[:9])), row[9]] for row in list(csv.reader(lines))[1:]]

prepare = ColumnTransformer(
    [("numbers", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), list(range(8))),
     ("near what", OneHotEncoder(handle_unknown="ignore", sparse_output=False), [9])]
)  # fmt: skip
train, test = train_test_split(np.array(rows, object), test_size=0.2, random_state=0)
x, x_test = (prepare.fit_transform(train).astype(np.float32), prepare.transform(test).astype(np.float32))
y, y_test = ((part[:, 8].astype(np.float32) - 2e5) / 1e5 for part in (train, test))  # in 100,000 dollars

ours, theirs = [], []
for seed in seeds:
    hidden = [clnn.Dense(64, "relu") for _ in range(2)]
    net = clnn.Sequential([*hidden, clnn.Dense(1)], input_shape=x.shape[1], seed=seed)
    net.fit(x, y, loss="mse", optimizer=clnn.Adam(0.001), epochs=epochs, batch_size=128, seed=seed, progress=False)
    ours.append(r2_score(y_test, net.predict(x_test)[:, 0]))

    same = {"batch_size": 128, "max_iter": epochs, "n_iter_no_change": epochs, "random_state": seed}
    other = MLPRegressor(hidden_layer_sizes=(64, 64), alpha=0, **same).fit(x, y)
    theirs.append(r2_score(y_test, other.predict(x_test)))
    print(f"seed {seed}: R2 {ours[-1]:.4f} by clnn, {theirs[-1]:.4f} by scikit-learn")
for name, found in (("clnn", ours), ("scikit-learn", theirs)):
    print(f"{name:12}  mean R2 {np.mean(found):.4f}, standard deviation {np.std(found):.4f}")
assert np.mean(ours) >= np.mean(theirs) - np.std(theirs) - np.std(ours)  # better, or equal within what seeds make of it
