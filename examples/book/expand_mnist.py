"""expand_mnist.py of Nielsen's book (chapter 6): every training image once more, moved by a pixel in each direction.

50,000 images become 250,000; each distortion that is named adds another 50,000. They go into expanded.npz.

python examples/book/expand_mnist.py [folder] [rotation] [skew] [elastic]
"""

import sys
import time
from pathlib import Path

import numpy as np

import clnn

DISTORTIONS = {
    "rotation": lambda x: clnn.data.augment.affine(x, rotation=15),
    "skew": lambda x: clnn.data.augment.affine(x, skew=0.3),
    "elastic": lambda x: clnn.data.augment.elastic(x, alpha=x.shape[-1] * 1.2, sigma=x.shape[-1] / 7),
}

if __name__ == "__main__":
    if "--help" in sys.argv:
        sys.exit(print(__doc__))
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    if unknown := set(sys.argv[2:]) - set(DISTORTIONS):
        sys.exit(f"{', '.join(sorted(unknown))}: no such distortion; there are {', '.join(DISTORTIONS)}")
    try:
        (images, labels), *_ = clnn.data.mnist(validation=10000, raw=True)
        brightest = 255
    except clnn.DataError:
        print("MNIST is not there, so this expands clnn's own digits, which are smaller and fewer.")
        (images, labels), *_ = clnn.data.digits(raw=True)
        brightest = 16

    clnn.seed(1)
    began = time.perf_counter()
    x, y = clnn.data.augment.expand(images, labels)
    parts, targets = [np.asarray(x)], [y]
    for name in sys.argv[2:]:
        parts.append(np.asarray(DISTORTIONS[name](images)))
        targets.append(labels)
    pixels = np.concatenate([np.rint(part).clip(0, brightest).astype(np.uint8) for part in parts])
    print(f"{len(images):,} images became {len(pixels):,} in {time.perf_counter() - began:.1f} s")

    began, path = time.perf_counter(), folder / "expanded.npz"
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, x=pixels, y=np.concatenate(targets))
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, written in {time.perf_counter() - began:.1f} s")
