"""Which pixels does an answer hang on? |d score / d pixel|, by one backward pass to the input (Simonyan et al. 2013).

python examples/saliency.py [picture.png [epochs]]
"""

import math
import sys

import matplotlib
import numpy as np

import clnn


def saliency(net, images, labels):
    """|d score / d x| for each image, where the score is the net's output for the label, before any softmax."""
    net.trainable = False  # so that gradients go to the images alone
    x = clnn.tensor(images, requires_grad=True)
    (net(x) * np.eye(10, dtype=np.float32)[labels]).sum().backward()
    net.trainable = True
    return abs(x.grad.numpy())


if __name__ == "__main__":
    if "--help" in sys.argv:
        sys.exit(print(__doc__))
    matplotlib.use("Agg")  # into a file, without a screen
    from matplotlib import pyplot as plt

    try:
        (x, y), (x_test, y_test) = clnn.data.mnist()
    except clnn.DataError:
        print("MNIST is not there, so this trains on clnn's own digits, which are smaller and fewer.")
        (x, y), (x_test, y_test) = clnn.data.digits()
    side = math.isqrt(x.shape[1])
    layers = [
        clnn.Reshape((1, side, side)),
        clnn.Conv2D(16, 3, "relu", padding="same", weight_init="he_normal"),
        clnn.MaxPool2D(2),
        clnn.Conv2D(32, 3, "relu", padding="same", weight_init="he_normal"),
        clnn.MaxPool2D(2),
        clnn.Flatten(),
        clnn.Dense(10),
    ]
    net = clnn.Sequential(layers, input_shape=x.shape[1], seed=1)
    epochs = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    net.fit(
        x, y, loss="cross_entropy", optimizer=clnn.Adam(0.001), epochs=epochs, batch_size=64, seed=1, progress=False
    )
    print(f"test accuracy {net.evaluate(x_test, y_test)['accuracy']:.2%}")

    ten = [np.flatnonzero(y_test == digit)[0] for digit in range(10)]
    found = saliency(net, x_test[ten], y_test[ten])
    figure, axes = plt.subplots(2, 10, figsize=(10, 2.3))
    for column, pictures in enumerate(zip(x_test[ten], found)):
        for axis, picture, colours in zip(axes[:, column], pictures, ("gray_r", "hot")):
            axis.imshow(picture.reshape(side, side), cmap=colours)
            axis.set(xticks=[], yticks=[])
    figure.tight_layout()
    path = sys.argv[1] if len(sys.argv) > 1 else "saliency.png"
    figure.savefig(path, dpi=80)
    print(f"ten digits and what they are told by in {path}")
