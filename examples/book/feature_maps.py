"""Chapter 6: what a convolutional layer has learned, as a picture: its filters, and the feature maps they make of a digit.

python examples/book/feature_maps.py [picture.png [epochs]]
"""

import math
import sys

import matplotlib
import numpy as np

import clnn

from network2 import load_data

if __name__ == "__main__":
    if "--help" in sys.argv:
        sys.exit(print(__doc__))
    matplotlib.use("Agg")  # into a file, without a screen
    from matplotlib import pyplot as plt

    (x, y), _, (x_test, y_test) = load_data()
    epochs = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    side = math.isqrt(x.shape[1])
    net = clnn.Sequential(
        [
            clnn.Reshape((1, side, side)),
            clnn.Conv2D(20, 5, "relu", weight_init="he_normal"),
            clnn.MaxPool2D(2),
            clnn.Flatten(),
            clnn.Dense(100, "relu", weight_init="he_normal"),
            clnn.Dense(10),
        ],
        input_shape=x.shape[1],
        seed=1,
    )
    net.fit(
        x, y, loss="cross_entropy", optimizer=clnn.Adam(0.001), epochs=epochs, batch_size=32, seed=1, progress=False
    )
    print(f"test accuracy {net.evaluate(x_test, y_test)['accuracy']:.2%}")

    reshape, convolution, pooling = net.layers[:3]
    digit = x_test[:1]
    with clnn.no_grad():
        maps = convolution(reshape(digit))
        rows = {"filters": convolution.w.numpy()[:, 0], "maps": maps.numpy()[0], "pooled": pooling(maps).numpy()[0]}

    columns = 10
    figure, axes = plt.subplots(6, columns, figsize=(columns, 6.6))
    for start, (name, images) in zip((0, 2, 4), rows.items(), strict=True):
        most = abs(images).max()
        colours = {"cmap": "RdBu_r", "vmin": -most, "vmax": most} if name == "filters" else {"cmap": "gray_r"}
        for axis, image in zip(axes[start : start + 2].flat, images, strict=True):
            axis.imshow(image, **colours)
        axes[start, 0].set_ylabel(name)
    for axis in np.ravel(axes):
        axis.set(xticks=[], yticks=[])
    figure.suptitle(f"20 filters of 5 x 5, red above zero and blue below, and what they see in a {y_test[0]}")
    figure.tight_layout()
    path = sys.argv[1] if len(sys.argv) > 1 else "feature_maps.png"
    figure.savefig(path, dpi=80)
    print(f"filters and feature maps in {path}")
