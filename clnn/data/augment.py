"""Augmentation on the device: training images shifted, warped, distorted, mirrored, cropped, cut out and mixed.

Images are arrays or tensors (n, h, w) or (n, channels, h, w); flat ones are reshaped first: `x.reshape(-1, 28, 28)`. What
comes back is a tensor on the device: of a tensor's type, and of arrays float32 (integers are not scaled). No gradient goes
through. All channels of an image go the same way. Places are in pixels, x to the right and y downwards, and what comes
from outside the image has the value `fill`. The functions that interpolate do so bilinearly, as if the image lay on an
endless sheet of `fill`; a NaN stays among its neighbours, and a pixel that comes from a whole place keeps its bits.

What is random is drawn on the device, by its own generator (`clnn.seed`) or from `seed`: the same seed gives the same
images on the same device, and the same random numbers on every device. Inside a `clnn.step` leave `seed` out.

Shapes that do not fit are a ShapeError, amounts out of range a ConfigurationError, and values that are no numbers a
DataError.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import random
from ..checks import numbers, whole, whole_numbers
from ..errors import ConfigurationError, DataError, ShapeError
from ..foreign import tell
from ..gemm import constant_block
from ..ops.array import Array, check_float, check_together, empty
from ..ops.linear import matmul
from ..ops.random import Generator
from ..runtime.device import Device, int_vector
from ..tensor import Tensor, tensor
from .validate import check_features

TRUNCATE = 4.0  # deviations after which the Gaussian of `elastic` ends
CHUNK = 1 << 22  # displacements that `elastic` draws together: they stay small beside the images
Range = float | tuple[float, float]


# -- moved by whole pixels: exact -------------------------------------------------------------------------------------
def shift(images: Any, dx: Any, dy: Any, fill: float = 0.0) -> Tensor:
    """y[r, c] = x[r - dy, c - dx]: dx pixels to the right and dy down, exactly. Each is an integer or an array (n,)."""
    x = _images(images)
    n, _, h, w = _sizes(x)
    dx, dy = (_whole(name, value, [(), (n,)]) for name, value in (("dx", dx), ("dy", dy)))
    return _place(x, _moves(x, dx, dy), n, h, w, fill, 1 if dx.ndim or dy.ndim else n)


def expand(
    images: Any, labels: Any, shifts: Sequence[tuple[int, int]] = ((1, 0), (-1, 0), (0, 1), (0, -1)), fill: float = 0.0
) -> tuple[Tensor, np.ndarray]:
    """The images followed by copies of all of them shifted by each (dx, dy), and their labels, a NumPy array.

    50,000 images become 250,000 as in Nielsen's expand_mnist.py (chapter 6), which shuffles them in the end: training
    does that in every epoch.
    """
    x, labels = _images(images), np.asanyarray(labels)
    n, _, h, w = _sizes(x)
    if labels.ndim == 0 or len(labels) != n:
        raise ShapeError(f"expand: labels of shape {labels.shape} for {n} images; give one label an image")
    pairs = _whole("shifts", shifts if len(shifts) else np.zeros((0, 2), int), [(len(shifts), 2)])
    dx, dy = np.concatenate([np.zeros_like(pairs, shape=(1, 2)), pairs]).T
    y = _place(x, _moves(x, dx, dy), len(dx) * n, h, w, fill, n)
    return y, np.concatenate([labels] * len(dx))


def flip(
    images: Any, horizontal: bool = True, vertical: bool = False, probability: float = 1.0, seed: int | None = None
) -> Tensor:
    """Mirrored left to right (`horizontal`), top to bottom (`vertical`), or both, each with that probability."""
    x = _images(images)
    if not 0 <= probability <= 1:
        raise ConfigurationError(f"flip's probability should be in [0, 1], {probability!r} was provided instead")
    _, _, h, w = _sizes(x)
    return _random_place(
        x, h, w, (0, 0), (1, 1), (probability * bool(horizontal), probability * bool(vertical)), 0.0, seed
    )


def crop(
    images: Any, size: int | tuple[int, int], padding: int = 0, fill: float = 0.0, seed: int | None = None
) -> Tensor:
    """A random piece of `size` (h, w) out of each image with `padding` pixels of `fill` around it; all places are equally
    likely. An integer is a square's side."""
    x = _images(images)
    _, _, h, w = _sizes(x)
    (padding,), sides = whole_numbers("crop's padding", padding), whole_numbers("crop's size", size)
    if len(sides) not in (1, 2):
        raise ShapeError(f"crop's size is a number or a pair (h, w), and {size!r} was given")
    size_h, size_w = sides[0], sides[-1]
    places = (w + 2 * padding - size_w + 1, h + 2 * padding - size_h + 1)
    if padding < 0 or min(size_h, size_w) < 1 or min(places) < 1:
        raise ShapeError(
            f"crop: a piece of {size_h} x {size_w} does not fit into {h} x {w} pixels with padding {padding}; "
            "size is 1 or more, padding 0 or more"
        )
    return _random_place(x, size_h, size_w, (-padding, -padding), places, (0.0, 0.0), fill, seed)


# -- warped: bilinear -------------------------------------------------------------------------------------------------
def warp(images: Any, matrices: Any, fill: float = 0.0) -> Tensor:
    """y at (c, r) = x at M (c, r, 1), both counted from the image's centre ((w - 1) / 2, (h - 1) / 2), bilinearly.

    matrices: (n, 2, 3), or (2, 3) for all. M says where a pixel comes from: the inverse of how the picture moves.
    """
    x = _images(images)
    m = matrices if isinstance(matrices, Tensor) else np.asarray(matrices, x.dtype)
    if m.shape not in ((2, 3), (len(x), 2, 3)):
        raise ShapeError(
            f"warp: matrices of shape {m.shape} for {len(x)} images; give ({len(x)}, 2, 3), or (2, 3) for all"
        )
    if not isinstance(m, Tensor):
        check_features(m, "matrices")
        m = tensor(m, x.dtype, x.device)
    check_together("warp", x, m)
    return _warp(x, m, fill)


def affine(
    images: Any, rotation: Range = 0.0, skew: Range = 0.0, scale: Range = 0.0, shift: Range = 0.0, fill: float = 0.0,
    seed: int | None = None,
) -> Tensor:  # fmt: skip
    """Each image scaled, skewed, rotated and shifted by amounts of its own, uniform within ranges, around its centre.

    A number a means [-a, a], around 1 for the scale; a pair is the range itself. rotation: degrees, counter-clockwise;
    skew: pixels to the right for each pixel down; scale: a factor; shift: fractions of the width and of the height,
    drawn apart.

        affine(x, rotation=15, skew=0.1, scale=0.1, shift=0.05)
    """
    x = _images(images)
    n, _, h, w = _sizes(x)
    ranges = [
        _range("rotation", rotation),
        _range("skew", skew),
        _range("scale", scale, 1),
        *[_range("shift", shift)] * 2,
    ]
    if ranges[2][0] <= 0:
        raise ConfigurationError(
            f"affine's scale should stay above 0, {scale!r} was provided instead: a factor of 1 +- it"
        )
    low, high = np.zeros((2, 8), x.dtype)
    low[:5], high[:5] = np.transpose(ranges)
    u = _generator(x.device, seed).uniform((n, 5), dtype=x.dtype)
    matrices = empty(x.device, (n, 2, 3), x.dtype)
    x.device.launch("augment", "random_matrices", (n,), n, h, w, u.block, matrices.block, low, high - low, real=x.real)
    return _warp(x, matrices, fill)


def elastic(images: Any, alpha: float, sigma: float, fill: float = 0.0, seed: int | None = None) -> Tensor:
    """Elastic distortion (Simard, Steinkraus and Platt 2003): y at (c, r) = x at (c, r) + alpha G * u, bilinearly.

    u holds two uniform numbers in [-1, 1) for each pixel, and G is a Gaussian of standard deviation `sigma` pixels that
    ends after 4 sigma, sums to 1, and sees zeros outside the image. `alpha` is in pixels: the usual displacement is
    about alpha / (6 sigma) of them. The paper's 28 x 28 digits: sigma=4, alpha=34.
    """
    x = _images(images)
    n, channels, h, w = _sizes(x)
    for name, value in (("alpha", alpha), ("sigma", sigma)):
        if not (math.isfinite(value) and value >= 0):
            raise ConfigurationError(
                f"elastic's {name} should be a number of pixels, 0 or more; {value!r} was provided"
            )
    y, generator = empty(x.device, x.shape, x.dtype), _generator(x.device, seed)
    chunk = max(1, CHUNK // max(1, 2 * h * w))
    for first in range(0, n if h * w else 0, chunk):
        count = min(chunk, n - first)
        u = generator.uniform((h * 2 * count, w), -1.0, 1.0, x.dtype)
        across = matmul(u, _gaussian(x, w, sigma))[0]
        field = matmul(_gaussian(x, h, sigma), across.reshaped((h, 2 * count * w)))[0]
        where = channels, first, count, x.block, field.block, y.block
        _launch(x, "displace", count * channels * h, h, w, *where, float(alpha), float(fill))
    return _tensor(y)


# -- cut out and mixed ------------------------------------------------------------------------------------------------
def cutout(images: Any, size: int, fill: float = 0.0, seed: int | None = None) -> Tensor:
    """A square of `size` pixels set to `fill`, its middle anywhere in the image (DeVries and Taylor 2017)."""
    x = _images(images)
    n, channels, h, w = _sizes(x)
    if whole(size) is None or size < 0:
        raise ConfigurationError(f"cutout's size should be a whole number of pixels, {size!r} was provided instead")
    y, u = empty(x.device, x.shape, x.dtype), _generator(x.device, seed).uniform((n, 2), dtype=x.dtype)
    size = min(int(size), 2 * max(h, w) + 1)
    _launch(x, "cutout", n * channels * h, h, w, channels, size, x.block, u.block, y.block, float(fill))
    return _tensor(y)


def mixup(images: Any, targets: Any, alpha: float = 0.2, seed: int | None = None) -> tuple[Tensor, Tensor]:
    """Mix-up (Zhang et al. 2018): k x + (1 - k) x', and the targets likewise, x' the batch in another order.

    targets: (n, classes), such as `np.eye(10)[labels]`. k ~ Beta(alpha, alpha) for each image. The few numbers it needs
    are drawn on the host (`seed`, or the generator that shuffles), so that it goes before a recorded step, not into one.
    """
    x = _images(images)
    if not (math.isfinite(alpha) and alpha > 0):
        raise ConfigurationError(f"mixup's alpha should be greater than 0, {alpha!r} was provided instead")
    t = tensor(targets, device=x.device, dtype=x.dtype)
    if t.ndim < 2 or len(t) != len(x):
        raise ShapeError(
            f"mixup: targets of shape {t.shape} for {len(x)} images; give (n, classes): np.eye(10)[labels]"
        )
    rng = random.host() if seed is None else np.random.default_rng(seed)
    order = tensor(rng.permutation(len(x)), device=x.device)
    share = tensor(rng.beta(alpha, alpha, len(x)), device=x.device, dtype=x.dtype)

    def mixed(a: Tensor) -> Tensor:
        y = empty(a.device, a.shape, a.dtype)
        _launch(a, "mixup", len(a), 1, math.prod(a.shape[1:]), a.block, order.block, share.block, y.block)
        return _tensor(y)

    return mixed(x), mixed(t)


class Compose:
    """One function after the other; with a `seed` of its own, which goes on from call to call.

    distort = Compose([lambda x: affine(x, rotation=15), lambda x: elastic(x, alpha=34, sigma=4)], seed=1)
    for epoch in range(30):
        net.fit(distort(images), labels, epochs=1)
    """

    def __init__(self, functions: Sequence[Callable[[Any], Any]], seed: int | None = None) -> None:
        for function in functions:
            if not callable(function):
                raise ConfigurationError(f"Compose takes functions of images, and {function!r} was given")
        self.functions, self.seed = list(functions), seed
        self._generators: dict[Device, Generator] = {}

    def __call__(self, images: Any) -> Tensor:
        x = _images(images)
        if self.seed is not None and x.device not in self._generators:
            self._generators[x.device] = Generator(x.device, self.seed)
        with random.drawing_from(self._generators.get(x.device)):
            for function in self.functions:
                x = function(x)
        return x


# -- what they share --------------------------------------------------------------------------------------------------
def _images(images: Any) -> Tensor:
    """Images as a tensor of floats with three or four axes."""
    if not isinstance(images, Tensor):
        array = np.asarray(images)
        if array.dtype.kind not in "fiub":
            raise DataError(
                f"images are arrays of numbers, and {array.dtype} was given; convert with .astype('float32')"
            )
        numbers(images, "images")
        images = tensor(array, np.float32)
    images.refuse_history("augmentation")
    check_float("augmentation", images)
    if images.ndim not in (3, 4):
        raise ShapeError(
            f"images are (n, h, w) or (n, channels, h, w), and the shape {images.shape} was given; "
            "flat ones are reshaped first, e.g. x.reshape(-1, 28, 28)"
        )
    return images


def _sizes(x: Array) -> tuple[int, int, int, int]:
    """n, channels, h, w"""
    return x.shape[0], x.shape[1] if x.ndim == 4 else 1, x.shape[-2], x.shape[-1]


def _whole(name: str, value: Any, shapes: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Whole pixels in one of these shapes."""
    array = np.asarray(value)
    if array.dtype.kind not in "iu":
        raise ConfigurationError(f"{name} is in whole pixels, and {value!r} was given; warp() moves by fractions")
    if array.shape not in shapes:
        raise ShapeError(f"{name} of shape {array.shape}; give integers in the shape {' or '.join(map(str, shapes))}")
    return array


def _moves(x: Array, dx: np.ndarray, dy: np.ndarray) -> Array:
    """The table of `place` for shifts. A single one is kept on the device, so that a recorded step finds it there."""
    h, w = x.shape[-2:]
    dx, dy = np.broadcast_arrays(dx.clip(-w, w), dy.clip(-h, h))  # more than the whole image is as good as the whole
    moves = np.ones((dx.size, 4), np.int32)
    moves[:, 0], moves[:, 1] = -dx, -dy
    if dx.ndim:
        return tensor(moves, device=x.device)
    key = ("moves", int(dx), int(dy))
    if key not in x.device.constants:
        x.device.constants[key] = constant_block(x.device, moves)
    return Array(x.device.constants[key], moves.shape, moves.dtype, x.device)


def _range(name: str, value: Any, middle: float = 0) -> tuple[float, float]:
    """A number or a pair as (low, high)."""
    try:
        low, high = value if np.ndim(value) else (middle - value, middle + value)
        if -math.inf < low <= high < math.inf:
            return float(low), float(high)
    except (TypeError, ValueError):
        pass
    raise ConfigurationError(
        f"affine's {name} should be a number of 0 or more or a pair (low, high), {value!r} was provided"
    )


def _generator(device: Device, seed: int | None) -> Generator:
    return random.generator(device) if seed is None else Generator(device, seed)


def _gaussian(x: Array, size: int, sigma: float) -> Array:
    """The matrix (size, size) that smooths along an axis: element (i, j) is exp(-(i - j)^2 / (2 sigma^2)), truncated, over
    the sum of such a row that nothing cuts off."""
    key = ("gaussian", size, float(sigma), x.dtype.char)
    if key not in x.device.constants:
        radius = int(TRUNCATE * sigma + 0.5)
        weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / max(sigma, 1e-9)) ** 2)
        apart = np.subtract.outer(np.arange(size), np.arange(size))
        inside = (weights / weights.sum())[np.clip(apart + radius, 0, 2 * radius)]
        band = np.where(abs(apart) <= radius, inside, 0).astype(x.dtype)
        x.device.constants[key] = constant_block(x.device, band)
    return Array(x.device.constants[key], (size, size), x.dtype, x.device)


def _launch(x: Array, kernel: str, rows: int, h: int, w: int, *args: Any) -> None:
    """Run a kernel for `rows` rows of w pixels: a row a work-item on a CPU, a pixel elsewhere."""
    by_row = x.device.long_loops
    defines: dict[str, Any] = {"ROWS": 1} if by_row else {}
    if rows * w:
        size = (rows if by_row else rows * w,)
        x.device.launch("augment", kernel, size, rows * w, h, w, *args, real=x.real, **defines)


def _place(x: Tensor, moves: Array, n: int, h: int, w: int, fill: float, each: int = 1) -> Tensor:
    """n images (h, w), each a piece of an image of x; a row of `moves` says which for every `each` (kernels/augment.cl)."""
    y = empty(x.device, (n, *x.shape[1:-2], h, w), x.dtype)
    count, channels, from_h, from_w = _sizes(x)
    args = each * channels, count * channels, from_h, from_w, x.block, moves.block, y.block, float(fill)
    _launch(x, "place", n * channels * h, h, w, *args)
    return _tensor(y)


def _random_place(
    x: Tensor, h: int, w: int, start: Any, places: Any, chance: Any, fill: float, seed: int | None
) -> Tensor:
    """Pieces (h, w) from one of `places` columns and rows on from `start`, mirrored by `chance`."""
    n, (start, places) = len(x), (int_vector(v) for v in (start, places))
    u = _generator(x.device, seed).uniform((n, 4), dtype=x.dtype)
    moves = empty(x.device, (n, 4), np.int32)
    chances = np.array(chance, x.dtype)
    x.device.launch("augment", "random_moves", (n,), n, h, w, start, places, u.block, moves.block, chances, real=x.real)
    return _place(x, moves, n, h, w, fill)


def _warp(x: Tensor, matrices: Array, fill: float) -> Tensor:
    y = empty(x.device, x.shape, x.dtype)
    n, channels, h, w = _sizes(x)
    each = channels * (1 if matrices.ndim == 3 else n)
    _launch(x, "warp", n * channels * h, h, w, each, x.block, matrices.block, y.block, float(fill))
    return _tensor(y)


def _tensor(y: Array) -> Tensor:
    return Tensor(y.block, y.shape, y.dtype, y.device)


tell(sys.modules[__name__])
