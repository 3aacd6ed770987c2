"""Chapter 5: the gradient in a deep network of sigmoids is small in its first layers, and stays so as it learns.

Norms of the cost's gradient by each layer's biases, over the first 1,000 images: at the first weights, and in training.

python examples/book/chapter_5_vanishing_gradient.py [epochs [norms.png]]
"""

import sys

import clnn

from network2 import load_data

if "--help" in sys.argv:
    sys.exit(print(__doc__))

training_data, _, _ = load_data()
x, y = (part[:1000] for part in training_data)
epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 100
curves = {}
for layers in (2, 3, 4):
    start = {"activation": "sigmoid", "weight_init": "nielsen_new", "bias_init": "normal"}
    dense = [clnn.Dense(n, **start) for n in [*[30] * layers, 10]]
    net = clnn.Sequential(dense, input_shape=x.shape[1], seed=5)
    norms = clnn.callbacks.GradientNorms()
    optimizer = clnn.SGD(0.1, weight_decay=5.0 / len(training_data[0]))
    net.fit(
        x, y, loss="quadratic", optimizer=optimizer, epochs=epochs, batch_size=len(x), callbacks=[norms], progress=False
    )  # fmt: skip
    curves[layers] = [norms.history[layer.name] for layer in dense[:-1]]
    first = [values[0] for values in curves[layers]]
    print(f"{layers} hidden layers: norms at first", " ".join(f"{norm:.2e}" for norm in first))
    assert first[0] < first[-1], "the gradient did not vanish"

if len(sys.argv) > 2:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(curves), figsize=(12, 3.5), sharey=True)
    for axis, found in zip(axes, curves.values()):
        for number, values in enumerate(found, 1):
            axis.semilogy(values, label=f"hidden layer {number}")
        axis.set_xlabel("epoch")
        axis.legend()
    axes[0].set_ylabel("norm of the gradient by biases")
    figure.tight_layout()
    figure.savefig(sys.argv[2])

# Exercises
# 1. By which factor does the norm fall from layer to layer? Compare it with the largest value of sigmoid's derivative.
# 2. Draw the weights from N(0, 1) (nielsen_old): does the gradient vanish, explode, or neither?
