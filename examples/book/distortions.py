"""Digits under each distortion that Nielsen's book speaks of (chapters 3 and 6), and others: one row of a picture each.

python examples/book/distortions.py [picture.png]
"""

import sys

import matplotlib
import numpy as np

import clnn

augment = clnn.data.augment
DISTORTIONS = {
    "as it is": lambda x: x,
    "shift": lambda x: augment.shift(x, dx=x.shape[-1] // 8, dy=-(x.shape[-1] // 8)),
    "rotation": lambda x: augment.affine(x, rotation=25),
    "skew": lambda x: augment.affine(x, skew=0.4),
    "scale": lambda x: augment.affine(x, scale=0.3),
    "elastic": lambda x: augment.elastic(x, alpha=x.shape[-1] * 1.2, sigma=x.shape[-1] / 7),
    "flip": lambda x: augment.flip(x, probability=0.5),
    "crop": lambda x: augment.crop(x, x.shape[-1], padding=x.shape[-1] // 7),
    "cut-out": lambda x: augment.cutout(x, x.shape[-1] // 3),
    "mix-up": lambda x: augment.mixup(x, np.eye(len(x)), alpha=1.0)[0],
}

if __name__ == "__main__":
    if "--help" in sys.argv:
        sys.exit(print(__doc__))
    matplotlib.use("Agg")  # into a file, without a screen
    from matplotlib import pyplot as plt

    try:
        (x, labels), _ = clnn.data.mnist()
    except clnn.DataError:
        print("MNIST is not there, so these are clnn's own digits, which are smaller.")
        (x, labels), _ = clnn.data.digits()
    side = round(x.shape[1] ** 0.5)
    ten = x[[np.flatnonzero(labels == digit)[0] for digit in range(10)]].reshape(10, side, side)

    clnn.seed(3)
    figure, axes = plt.subplots(len(DISTORTIONS), 1, figsize=(8, len(DISTORTIONS)))
    for axis, (name, distort) in zip(axes, DISTORTIONS.items(), strict=True):
        axis.imshow(np.hstack(np.asarray(distort(ten))), cmap="gray_r", vmin=0, vmax=1)
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
        axis.set(xticks=[], yticks=[])
    figure.tight_layout()
    path = sys.argv[1] if len(sys.argv) > 1 else "distortions.png"
    figure.savefig(path)
    print(f"{len(DISTORTIONS)} rows of digits in {path}")
