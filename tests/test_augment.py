"""Augmentation against NumPy in float64 and SciPy: exact moves, bilinear warps, elastic fields, what is random and how."""

import math

import numpy as np
import pytest
from helpers import assert_close, eps, host, normal

import clnn
from clnn.data import augment
from clnn.ops.random import Generator

SHAPES = [(2, 5, 7), (3, 2, 4, 4), (2, 1, 9), (1, 8, 1), (1, 1, 1, 1), (0, 3, 3), (2, 0, 4)]


@pytest.fixture(params=[*SHAPES, "random"], ids=str)
def shape(request, rng):
    if request.param != "random":
        return request.param
    return tuple(int(v) for v in (*rng.integers(1, 4, int(rng.integers(1, 3))), *rng.integers(1, 40, 2)))


def planes(x):
    """(n, h, w) as (n, 1, h, w)"""
    return x if x.ndim == 4 else x[:, None]


def sample(x, rows, columns, fill):
    """x (n, h, w) or (n, channels, h, w) at places (n, h, w), each neighbour times its weight, without those of weight 0."""
    a = planes(x)
    (h, w), y = a.shape[-2:], np.zeros((*a.shape[:2], *rows.shape[1:]))
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    image, channel = np.arange(len(a))[:, None, None, None], np.arange(a.shape[1])[:, None, None]
    for r, by_row in ((top, 1 - (rows - top)), (top + 1, rows - top)):
        for c, by_column in ((left, 1 - (columns - left)), (left + 1, columns - left)):
            inside = (r >= 0) & (r < h) & (c >= 0) & (c < w)
            picked = a[image, channel, np.clip(r, 0, h - 1)[:, None], np.clip(c, 0, w - 1)[:, None]] if a.size else y
            weight = (by_row * by_column)[:, None]
            y += np.where(weight == 0, 0, weight * np.where(inside[:, None], picked, fill))
    return y.reshape(*x.shape[:-2], *rows.shape[1:])


def warped(x, matrices, fill):
    n, (h, w) = len(x), x.shape[-2:]
    u, v = np.arange(w) - (w - 1) / 2, np.arange(h)[:, None] - (h - 1) / 2
    m = np.broadcast_to(matrices, (n, 2, 3))[:, :, :, None, None]
    columns, rows = (m[:, k, 0] * u + m[:, k, 1] * v + m[:, k, 2] for k in range(2))
    return sample(x, rows + (h - 1) / 2, columns + (w - 1) / 2, fill)


def inverse_of(rotation, skew, scale, dx, dy):
    """The matrix (2, 3) that says where pixels come from, of: scale, then skew, then rotate, then shift."""
    a = math.radians(rotation)
    forward = np.eye(3)  # y points down, so a turn counter-clockwise has its minus below
    forward[:2, :2] = [[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]] @ np.array([[1, skew], [0, 1]]) * scale
    forward[:2, 2] = dx, dy
    return np.linalg.inv(forward)[:2]


def bound(x, dtype, largest=1.0):
    """Of bilinear values: a place of so many pixels is off by some eps of them, and a pixel's value by as much."""
    return 32 * eps(dtype) * (max(x.shape[-2:]) + largest) * (np.abs(x).max(initial=0) + 1)


def same_bits(a, b):
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# -- moved by whole pixels --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
def test_shift(rng, dtype, device, shape, apart):
    x = normal(rng, shape, dtype).astype(dtype)
    n, (h, w) = len(x), x.shape[-2:]
    dx, dy = rng.integers(-w - 1, w + 2, n), rng.integers(-h - 1, h + 2, n)
    if not apart:
        dx, dy = (int(v[0]) if n else 3 for v in (dx, dy))
    expected = np.full_like(x, 0.5)
    for i, a, b in zip(range(n), np.broadcast_to(dx, n), np.broadcast_to(dy, n)):
        for r in range(max(0, b), min(h, h + b)):
            for c in range(max(0, a), min(w, w + a)):
                expected[i, ..., r, c] = x[i, ..., r - b, c - a]
    y = augment.shift(clnn.tensor(x, dtype), dx, dy, fill=0.5)
    assert isinstance(y, clnn.Tensor) and y.device is device
    same_bits(y, expected)


def test_shift_as_in_the_book(rng, device):
    """expand_mnist.py rolls an axis by one and sets the line that came round to 0."""
    x = rng.random((3, 28, 28), np.float32)
    for d, axis, line in ((1, 0, 0), (-1, 0, 27), (1, 1, 0), (-1, 1, 27)):
        rolled = np.roll(x, d, axis + 1)
        np.moveaxis(rolled, axis + 1, 0)[line] = 0
        same_bits(augment.shift(x, d * axis, d * (1 - axis)), rolled)
    same_bits(augment.shift(x, 10**12, 0), np.zeros_like(x))


def test_expand(rng, device):
    x, labels = rng.random((7, 5, 4), np.float32), rng.integers(0, 10, 7)
    y, expanded = augment.expand(x, labels)
    assert y.shape == (35, 5, 4) and expanded.dtype == labels.dtype
    np.testing.assert_array_equal(expanded, np.tile(labels, 5))
    moves = [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)]
    same_bits(y, np.concatenate([augment.shift(x, *move) for move in moves]))
    y, expanded = augment.expand(x[:, None], np.eye(7), shifts=[(2, -1)], fill=1.0)
    assert y.shape == (14, 1, 5, 4) and expanded.shape == (14, 7)
    same_bits(y.numpy()[7:], augment.shift(x[:, None], 2, -1, fill=1.0))
    assert augment.expand(x[:0], labels[:0])[0].shape == (0, 5, 4)
    same_bits(augment.expand(x, labels, shifts=[])[0], x)


def test_flip(rng, dtype, device, shape):
    x = normal(rng, shape, dtype).astype(dtype)
    same_bits(augment.flip(clnn.tensor(x, dtype)), x[..., ::-1])
    same_bits(augment.flip(clnn.tensor(x, dtype), horizontal=False, vertical=True), x[..., ::-1, :])
    same_bits(augment.flip(clnn.tensor(x, dtype), vertical=True), x[..., ::-1, ::-1])
    same_bits(augment.flip(clnn.tensor(x, dtype), probability=0.0), x)


def test_flip_by_chance(device):
    n, x = 20_000, np.arange(4, dtype=np.float32).reshape(1, 2, 2)
    y = augment.flip(np.repeat(x, n, 0), vertical=True, probability=0.3).numpy()[:, 0, 0]
    counts = [(y == v).mean() for v in range(4)]  # as it was, left to right, top to bottom, both
    for count, p in zip(counts, (0.49, 0.21, 0.21, 0.09)):
        assert abs(count - p) < 5 * math.sqrt(p * (1 - p) / n)


def test_crop(rng, dtype, device, shape):
    """A piece of the padded image, whichever it is, and the same for all channels."""
    x = normal(rng, shape, dtype).astype(dtype)
    h, w = x.shape[-2:]
    padding, wanted = int(rng.integers(0, 3)) + (h == 0), (max(1, h - 1), max(1, w // 2))
    y = augment.crop(clnn.tensor(x, dtype), wanted, padding, fill=9.0).numpy()
    assert y.shape == (*x.shape[:-2], *wanted)
    ends = [(0, 0)] * (x.ndim - 2) + [(padding, padding)] * 2
    padded = np.pad(x, ends, constant_values=9.0)
    for image, piece in zip(padded, y):
        windows = np.lib.stride_tricks.sliding_window_view(image, wanted, (-2, -1))
        found = (windows == piece[..., None, None, :, :]).all((-1, -2))
        assert (found.all(0) if found.ndim == 3 else found).any()
    same_bits(augment.crop(clnn.tensor(x, dtype), (max(1, h), w)), x) if h else None


def test_crop_is_equally_likely_everywhere(device):
    n, x = 12_000, np.arange(30, dtype=np.float32).reshape(1, 5, 6)
    y = augment.crop(np.repeat(x, n, 0), 3).numpy()[:, 0, 0].astype(int)
    counts = np.bincount(y, minlength=30).reshape(5, 6)[:3, :4]
    assert counts.sum() == n and ((counts - n / 12) ** 2 / (n / 12)).sum() < 55  # chi squared of 11: once in 10^7 runs


# -- warped -----------------------------------------------------------------------------------------------------------
def test_identity_keeps_the_bits(rng, dtype, device, shape):
    x = normal(rng, shape, dtype).astype(dtype)
    x.ravel()[::3] = -0.0
    x.ravel()[1::5] = np.nan
    x.ravel()[2::7] = np.inf
    same_bits(augment.warp(clnn.tensor(x, dtype), np.eye(2, 3), fill=3.0), x)
    same_bits(augment.affine(clnn.tensor(x, dtype)), x)
    same_bits(augment.elastic(clnn.tensor(x, dtype), alpha=0, sigma=2), x)
    same_bits(augment.elastic(clnn.tensor(x, dtype), alpha=0, sigma=0), x)


def test_warp(rng, dtype, device, shape):
    x = normal(rng, shape, dtype)
    m = normal(rng, (len(x), 2, 3), dtype)
    m[:, :, 2] *= 3
    got = augment.warp(clnn.tensor(x, dtype), m, fill=0.5)
    assert got.dtype == dtype
    assert_close(got, warped(x, m, 0.5), bound(x, dtype, np.abs(m).max(initial=1) * max(shape)))
    if len(x):
        largest = np.abs(m).max() * max(shape)
        one = clnn.tensor(m[0], dtype=dtype)  # on the device already, for all images
        assert_close(augment.warp(clnn.tensor(x, dtype), one), warped(x, m[0], 0), bound(x, dtype, largest))


def test_warp_is_scipys(rng, device):
    ndimage = pytest.importorskip("scipy.ndimage")
    x, m = rng.random((3, 17, 12)).astype(np.float32), rng.standard_normal((3, 2, 3)).astype(np.float32)
    got = augment.warp(x, m, fill=0.25).numpy()
    for y, image, ((a, b, p), (c, d, q)) in zip(got, x, m.astype(np.float64)):
        swapped, middle = np.array([[d, c], [b, a]]), np.array([8, 5.5])  # rows before columns
        offset = middle + (q, p) - swapped @ middle
        options = {"order": 1, "mode": "grid-constant", "cval": 0.25}
        expected = ndimage.affine_transform(image.astype(np.float64), swapped, offset, **options)
        assert_close(y, expected, 1e-4)


def test_warp_by_whole_pixels_is_a_shift(rng, device):
    x = rng.random((2, 6, 9), np.float32)
    same_bits(augment.warp(x, [[1, 0, -2], [0, 1, 1]], fill=0.5), augment.shift(x, 2, -1, fill=0.5))


def test_a_nan_stays_local(device):
    x = np.zeros((1, 9, 9), np.float32)
    x[0, 4, 4] = np.nan
    bad = np.isnan(augment.warp(x, [[1, 0, 0.5], [0, 1, 0]]).numpy())[0]
    assert {tuple(map(int, at)) for at in np.argwhere(bad)} == {(4, 3), (4, 4)}
    bad = np.isnan(augment.warp(x, [[1, 0, 0.5], [0, 1, -0.5]]).numpy())[0]
    assert {tuple(map(int, at)) for at in np.argwhere(bad)} == {(4, 3), (4, 4), (5, 3), (5, 4)}
    for y in (augment.affine(x, rotation=20), augment.elastic(x, alpha=2, sigma=1), augment.shift(x, 1, 1)):
        assert 1 <= np.isnan(y.numpy()).sum() <= 9


@pytest.mark.parametrize("turns", [1, 2, 3, -1])
def test_rotation_by_right_angles(rng, dtype, device, turns):
    side = int(rng.integers(1, 12))
    x = rng.standard_normal((2, 3, side, side)).astype(dtype)
    y = augment.affine(clnn.tensor(x, dtype), rotation=(90 * turns, 90 * turns), fill=5.0)
    assert_close(y, np.rot90(x, turns, (-2, -1)), 64 * side * eps(dtype) * (np.abs(x).max() + 5))


@pytest.mark.parametrize(
    "ranges",
    [
        {"rotation": (30, 30)}, {"skew": (0.4, 0.4)}, {"scale": (1.25, 1.25)}, {"shift": (0.25, 0.25)},
        {"rotation": (-70, -70), "skew": (-0.2, -0.2), "scale": (0.6, 0.6), "shift": (-0.1, -0.1)},
    ],
    ids=["rotation", "skew", "scale", "shift", "all"],
)  # fmt: skip
def test_affine_of_given_amounts(rng, dtype, device, shape, ranges):
    x = normal(rng, shape, dtype)
    h, w = x.shape[-2:]
    p = {"rotation": 0, "skew": 0, "scale": 1, "shift": 0, **{name: low for name, (low, _) in ranges.items()}}
    expected = warped(x, inverse_of(p["rotation"], p["skew"], p["scale"], p["shift"] * w, p["shift"] * h), 0.5)
    assert_close(augment.affine(clnn.tensor(x, dtype), **ranges, fill=0.5), expected, bound(x, dtype, 2 * max(shape)))


def test_affine_of_drawn_amounts(rng, dtype, device):
    """Five numbers an image, each uniform within its range, from the seed's own bits."""
    x, seed = normal(rng, (40, 11, 8), dtype), int(rng.integers(1 << 62))
    u = host(Generator(device, seed).uniform((40, 5))).astype(np.float64)
    low, high = np.array([-20, -0.3, 0.8, -0.1, -0.1]), np.array([20, 0.1, 1.2, 0.1, 0.1])
    p = low + (high - low) * u
    matrices = np.stack([inverse_of(*values) for values in p * [1, 1, 1, 8, 11]])
    got = augment.affine(clnn.tensor(x, dtype), rotation=20, skew=(-0.3, 0.1), scale=0.2, shift=0.1, seed=seed)
    assert_close(got, warped(x, matrices, 0), bound(x, dtype, 20))


@pytest.mark.parametrize("chunk", [1, 1 << 22], ids=["image by image", "together"])
def test_elastic(rng, dtype, device, shape, chunk, monkeypatch):
    ndimage = pytest.importorskip("scipy.ndimage")
    monkeypatch.setattr(augment, "CHUNK", chunk)
    x, seed = normal(rng, shape, dtype), int(rng.integers(1 << 62))
    n, (h, w) = len(x), x.shape[-2:]
    alpha, sigma = float(rng.uniform(1, 20)), float(rng.uniform(0.3, 5))
    generator, parts = Generator(device, seed), 1 if chunk > 1 else n
    drawn = [host(generator.uniform((h, 2, n // parts, w), -1, 1, dtype)) for _ in range(parts)]
    field = np.concatenate([np.zeros((h, 2, 0, w)), *drawn], 2).transpose(2, 1, 0, 3).astype(np.float64)  # (n, 2, h, w)
    if field.size:
        field = ndimage.gaussian_filter(field, (0, 0, sigma, sigma), mode="constant", truncate=4)
    columns, rows = np.arange(w) + alpha * field[:, 0], np.arange(h)[:, None] + alpha * field[:, 1]
    got = augment.elastic(clnn.tensor(x, dtype), alpha, sigma, fill=0.5, seed=seed)
    assert_close(got, sample(x, rows, columns, 0.5), bound(x, dtype, 4 * alpha))
    if n:
        a, at = planes(x)[0, 0], (rows[0], columns[0])
        expected = ndimage.map_coordinates(a, at, order=1, mode="grid-constant", cval=0.5) if a.size else a
        assert_close(planes(got.numpy())[0, 0], expected, bound(x, dtype, 4 * alpha))


def test_elastic_displaces_as_far_as_it_says(device):
    """About alpha / (6 sigma) along each axis: a ramp shows by how much, and its middle does not know of the edges."""
    ramp = np.broadcast_to(np.arange(64, dtype=np.float32), (30, 64, 64))
    moved = (augment.elastic(ramp, alpha=12, sigma=2).numpy() - ramp)[:, 12:-12, 12:-12]
    assert abs(moved.std() / (12 / 12.28) - 1) < 0.15 and abs(moved.mean()) < 0.2


# -- cut out and mixed ------------------------------------------------------------------------------------------------
def test_cutout(rng, dtype, device, shape):
    x, seed, size = normal(rng, shape, dtype).astype(dtype), int(rng.integers(1 << 62)), int(rng.integers(0, 6))
    h, w = x.shape[-2:]
    u = host(Generator(device, seed).uniform((len(x), 2))).astype(np.float64)
    expected = x.copy()
    for image, (a, b) in zip(expected, u):
        c, r = int(a * w) - size // 2, int(b * h) - size // 2
        image[..., max(0, r) : max(0, r + size), max(0, c) : max(0, c + size)] = 7
    same_bits(augment.cutout(clnn.tensor(x, dtype), size, fill=7.0, seed=seed), expected)
    same_bits(augment.cutout(clnn.tensor(x, dtype), 10**12, fill=7.0), np.full_like(x, 7))


def test_mixup(rng, dtype, device):
    n, alpha = 1500, 0.4
    x, labels = rng.standard_normal((n, 2, 3)).astype(dtype), np.arange(n)
    y, t = augment.mixup(clnn.tensor(x, dtype), np.eye(n, dtype=dtype)[labels], alpha, seed=3)
    assert y.dtype == t.dtype == dtype and y.shape == x.shape
    y, t = y.numpy().astype(np.float64), t.numpy().astype(np.float64)
    assert_close(t.sum(1), np.ones(n), 4 * eps(dtype))
    assert_close(y, np.einsum("ij,jkl->ikl", t, x.astype(np.float64)), 16 * eps(dtype) * np.abs(x).max())
    k = np.diag(t)
    assert abs(k.mean() - 0.5) < 5 * 0.5 / math.sqrt(n) + 2 / n
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(k.var() / variance - 1) < 0.1
    again = augment.mixup(clnn.tensor(x, dtype), np.eye(n, dtype=dtype)[labels], alpha, seed=3)
    same_bits(again[0], y.astype(dtype)), same_bits(again[1], t.astype(dtype))
    assert augment.mixup(x[:0], np.zeros((0, 10)))[1].shape == (0, 10)


# -- seeds ------------------------------------------------------------------------------------------------------------
RANDOM = {
    "affine": lambda x, **seed: augment.affine(x, 20, 0.2, 0.2, 0.1, **seed),
    "elastic": lambda x, **seed: augment.elastic(x, 8, 2, **seed),
    "flip": lambda x, **seed: augment.flip(x, probability=0.5, **seed),
    "crop": lambda x, **seed: augment.crop(x, 10, 2, **seed),
    "cutout": lambda x, **seed: augment.cutout(x, 5, **seed),
    "mixup": lambda x, **seed: augment.mixup(x, np.eye(12), **seed)[0],
}


@pytest.fixture(params=RANDOM)
def random_one(request):
    return RANDOM[request.param]


def test_seeds(rng, device, random_one):
    x = rng.random((12, 12, 12), np.float32)
    same_bits(random_one(x, seed=5), random_one(x, seed=5))
    assert (random_one(x, seed=5).numpy() != random_one(x, seed=6).numpy()).any()
    clnn.seed(5)
    first, second = random_one(x).numpy(), random_one(x).numpy()
    assert (first != second).any()
    clnn.seed(5)
    same_bits(random_one(x), first)
    same_bits(random_one(x), second)
    for wrong in (-1, 0.5):
        with pytest.raises((clnn.ConfigurationError, ValueError, TypeError)):
            random_one(x, seed=wrong)


def test_all_devices_agree(rng, device, random_one):
    x = rng.random((12, 12, 12), np.float32)
    for other in clnn.devices():
        with clnn.use(other):
            assert_close(random_one(x, seed=5), random_one(clnn.tensor(x, device=device), seed=5).numpy(), 1e-4)


def test_compose(rng, device):
    x = rng.random((5, 8, 9), np.float32)
    chain = augment.Compose([lambda x: augment.affine(x, rotation=10), lambda x: augment.cutout(x, 3)], seed=4)
    first, second = chain(x), chain(x)
    generator = Generator(device, 4)
    with clnn.random.drawing_from(generator):
        for y in (first, second):
            same_bits(y, augment.cutout(augment.affine(x, rotation=10), 3))
    assert (first.numpy() != second.numpy()).any()
    same_bits(augment.Compose([])(x), x)
    with pytest.raises(clnn.ConfigurationError, match="takes functions of images, and 3 was given"):
        augment.Compose([3])


def test_in_a_recorded_step(rng, device):
    """Replays draw anew, and what they draw is what an eager run with the same seed draws."""
    x, made = rng.random((4, 1, 9, 9), np.float32), {}
    for record in (False, True):
        clnn.seed(8)

        @clnn.step(record=record)
        def distorted(x):
            y = augment.shift(augment.crop(augment.flip(x, probability=0.5), 9, 1), 1, 0)
            return augment.cutout(augment.elastic(augment.affine(y, 10, 0.1, 0.1, 0.1), 5, 1), 2)

        made[record] = [distorted(x).numpy() for _ in range(6)]
    for eager, recorded in zip(made[False], made[True]):
        same_bits(eager, recorded)
    assert all((a != b).any() for a, b in zip(made[True], made[True][1:]))


class Distort(clnn.Layer):
    def forward(self, *inputs):
        (x,) = inputs
        return augment.affine(x.reshape(-1, 8, 8), rotation=10, scale=0.1).reshape(x.shape)


def test_as_a_layer(device):
    """Training draws for every batch, inside the recorded step."""
    pytest.importorskip("sklearn")
    (x, y), _ = clnn.data.digits()
    net = clnn.Sequential([Distort(), clnn.Dense(10)], input_shape=64, seed=1)
    history = net.fit(x, y, loss="cross_entropy", optimizer=clnn.Adam(0.01), epochs=5, batch_size=32, progress=False)
    assert history["loss"][-1] < 0.7 * history["loss"][0]


# -- what goes in -----------------------------------------------------------------------------------------------------
def test_types(rng, device):
    x = rng.integers(0, 256, (2, 3, 4), np.uint8)
    for given in (x, x.tolist(), clnn.tensor(x.astype(np.float32)), x.astype(np.float16), np.asfortranarray(x)):
        same_bits(augment.shift(given, 1, 0), augment.shift(x.astype(np.float32), 1, 0))
    same_bits(augment.shift(x[:, ::-1, ::2], 0, 1), augment.shift(np.ascontiguousarray(x[:, ::-1, ::2]), 0, 1))


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda x: augment.shift(x.reshape(-1, 12), 1, 0), clnn.ShapeError, r"\(2, 12\) was given; flat ones"),
        (lambda x: augment.shift(x.astype(str), 1, 0), clnn.DataError, "arrays of numbers, and <U"),
        (lambda x: augment.shift(clnn.tensor(x.astype(int)), 1, 0), clnn.ShapeError, "takes floats, not int32"),
        (lambda x: augment.shift(x, 0.5, 0), clnn.ConfigurationError, "dx is in whole pixels, and 0.5 was given; warp"),
        (lambda x: augment.shift(x, 0, [1, 2, 3]), clnn.ShapeError, r"dy of shape \(3,\); give integers in"),
        (lambda x: augment.expand(x, [1, 2], [(0.5, 1)]), clnn.ConfigurationError, "shifts is in whole pixels"),
        (lambda x: augment.expand(x, [1, 2], [1]), clnn.ShapeError, r"shifts of shape .1,.; give integers"),
        (lambda x: augment.expand(x, [1, 2, 3]), clnn.ShapeError, r"labels of shape \(3,\) for 2 images"),
        (lambda x: augment.flip(x, probability=1.5), clnn.ConfigurationError, "in .0, 1., 1.5 was provided"),
        (lambda x: augment.crop(x, 5), clnn.ShapeError, "5 x 5 does not fit into 3 x 4 pixels with padding 0"),
        (lambda x: augment.crop(x, (0, 2)), clnn.ShapeError, "0 x 2 does not fit"),
        (lambda x: augment.crop(x, 2, padding=-1), clnn.ShapeError, "padding -1"),
        (lambda x: augment.warp(x, np.eye(3)), clnn.ShapeError, r"of shape \(3, 3\) for 2 images; give \(2, 2, 3\)"),
        (lambda x: augment.warp(x, clnn.tensor(np.eye(2, 3), "float64")), (clnn.ShapeError, clnn.DeviceError), "float64"),
        (lambda x: augment.warp(x, np.full((2, 3), np.inf)), clnn.DataError, r"matrices\[0, 0\] is inf"),
        (lambda x: augment.affine(x, rotation=-1), clnn.ConfigurationError, "rotation should be .* -1 was provided"),
        (lambda x: augment.affine(x, shift=(1, 2, 3)), clnn.ConfigurationError, r"shift should be .*\(1, 2, 3\)"),
        (lambda x: augment.affine(x, skew="x"), clnn.ConfigurationError, "skew should be .* 'x' was provided"),
        (lambda x: augment.affine(x, scale=1), clnn.ConfigurationError, "scale should stay above 0, 1 was provided"),
        (lambda x: augment.elastic(x, -1, 1), clnn.ConfigurationError, "alpha should be .* -1 was provided"),
        (lambda x: augment.elastic(x, 1, np.nan), clnn.ConfigurationError, "sigma should be .* nan was provided"),
        (lambda x: augment.cutout(x, 1.5), clnn.ConfigurationError, "size should be a whole number .* 1.5"),
        (lambda x: augment.mixup(x, np.eye(2), 0), clnn.ConfigurationError, "alpha should be greater than 0, 0 was"),
        (lambda x: augment.mixup(x, np.arange(2)), clnn.ShapeError, r"targets of shape \(2,\) for 2 images; .*np.eye"),
        (lambda x: augment.flip(x, seed=-1), clnn.ConfigurationError, "a seed is an integer of 0 or more"),
    ],
)  # fmt: skip
def test_errors_name_the_value_and_the_remedy(device, call, error, says):
    with pytest.raises(error, match=says):
        call(np.zeros((2, 3, 4), np.float32))


@pytest.mark.platform("augment")
@pytest.mark.oclgrind
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (1, 4)])
def test_every_kernel_stays_inside(device, size):
    """Small enough for Oclgrind; memory behind every array is NaN, which must not come in."""
    x = np.ones((2, 2, *size), np.float32)
    for y in (
        augment.shift(x, [1, -9], [0, 2], fill=1),
        augment.expand(x, [0, 1], fill=1)[0],
        augment.flip(x, vertical=True),
        augment.crop(x, (max(1, size[0] - 1), 1), 1, fill=1),
        augment.warp(x, [[1.5, 0.3, 0.7], [-0.4, 1.2, -30]], fill=1),
        augment.affine(x, 90, 1, 0.5, 1, fill=1),
        augment.elastic(x, 20, 0.5, fill=1),
        augment.cutout(x, 2, fill=1),
        *augment.mixup(x, np.ones((2, 3))),
    ):
        np.testing.assert_allclose(y, 1, rtol=1e-6)
