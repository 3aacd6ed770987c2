"""Chapter 6: several networks vote, and are right more often than any of them.

python examples/book/vote.py [networks [epochs]]
"""

import sys

import clnn

from network2 import load_data

if "--help" in sys.argv:
    sys.exit(print(__doc__))

training_data, _, test_data = load_data()
number = int(sys.argv[1]) if len(sys.argv) > 1 else 5
epochs = int(sys.argv[2]) if len(sys.argv) > 2 else 30
networks = []
for seed in range(number):
    layers = [clnn.Dense(100, "sigmoid"), clnn.Dropout(0.2), clnn.Dense(10)]
    net = clnn.Sequential(layers, input_shape=training_data[0].shape[1], seed=seed)
    net.fit(
        *training_data, loss="cross_entropy", optimizer=clnn.SGD(0.1), epochs=epochs, batch_size=10, seed=seed, progress=False
    )  # fmt: skip
    networks.append(net)
    print(f"network {seed + 1}: {net.evaluate(*test_data)['accuracy']:.2%}")

x_test, y_test = test_data
for how in ("vote", "mean"):
    ensemble = clnn.Ensemble(networks, how=how)
    print(f"all {number}, by {how}: {(ensemble.predict_classes(x_test) == y_test).mean():.2%}")
