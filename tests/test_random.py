"""Random numbers: Philox's known answers, the same bits everywhere, distributions, dropout, seeds."""

import math
import pickle

import numpy as np
import pytest
from helpers import assert_close, eps, host, normal, parameter

import clnn
from clnn import random
from clnn.ops.random import Generator, dropout, gaussian_dropout, spatial_dropout
from clnn.runtime import program
from clnn.tensor import apply

N = 100_003  # not a multiple of the numbers of a work-item


def philox(counter, key):
    """Philox 4x32-10 in Python's whole numbers, from the paper (Salmon et al. 2011)."""
    c, (k0, k1), mask = list(counter), key, 0xFFFFFFFF
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [p1 >> 32 ^ c[1] ^ k0, p1 & mask, p0 >> 32 ^ c[3] ^ k1, p0 & mask]
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return c


KNOWN = [  # counter, key, result: kat_vectors of the authors' Random123
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]
KNOWN_ANSWER = """
#include "random.cl"
kernel void known(global const uint *c, global uint *y) {
  words v[4];
  for (int k = 0; k < 4; k++) v[k] = (words)(c[k]);
  philox(v, v + 1, v + 2, v + 3, c[4], c[5]);
  for (int k = 0; k < 4; k++) {
    uint lanes[COUNTERS];
    STORE(v[k], lanes);
    for (int l = 0; l < COUNTERS; l++) y[4 * l + k] = lanes[l];
  }
}
"""


@pytest.mark.platform
@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_known_answers(device, counter, key, result, monkeypatch, tmp_path):
    """The kernel's own function, whatever counters the library gives it."""
    for file in program.kernel_folder().glob("*.cl"):
        (tmp_path / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "known.cl").write_text(KNOWN_ANSWER)
    monkeypatch.setattr(program, "kernel_folder", lambda: tmp_path)
    assert philox(counter, key) == result
    for each in (4, 32):
        given, got = device.allocate(24), device.allocate(4 * each)
        device.upload(np.array(counter + key, np.uint32), given)
        device.launch("known", "known", (1,), given, got, local=(1,), EACH=each)
        assert device.read(got, np.empty((each // 4, 4), np.uint32)).tolist() == [result] * (each // 4)


@pytest.mark.parametrize("n", [1, 3, 4, 31, 33, 1000])
@pytest.mark.parametrize("make", ["bits", "uniform", "normal", "dropout"])
def test_numbers_do_not_depend_on_how_many_a_work_item_makes(device, dtype, make, n):
    """CPUs make 32 side by side, GPUs 4."""
    found = []
    for each in (4, 32):
        generator = Generator(device, 123)
        generator.each = each
        if make == "bits":
            found.append([generator.bits(n)])
        elif make == "dropout":
            y, backward = dropout(clnn.ones((n,), dtype=dtype), 0.5, generator)
            found.append([host(y), host(next(backward(clnn.ones((n,), dtype=dtype)))[1])])
        else:
            found.append([host(getattr(generator, make)((n,), -1.0, 3.0, dtype))])
    for a, b in zip(*found):
        assert_close(a, b, 8 * eps(dtype) * np.maximum(1, np.abs(a)) if make == "normal" else 0)


@pytest.mark.oclgrind
def test_bits(device):
    """Block i of a draw has the counter (i, 0, position, 0) and the seed as key; what is left of a block is dropped."""
    seed = 0x123456789ABCDEF
    generator = Generator(device, seed)
    for position, n in enumerate((1, 4, 7, 33)):
        key = [seed & 0xFFFFFFFF, seed >> 32]
        expected = [word for i in range(-(-n // 4)) for word in philox([i, 0, position, 0], key)][:n]
        assert generator.bits(n).tolist() == expected
    assert generator.state() == [4, seed & 0xFFFFFFFF, seed >> 32]


def test_uniform_is_the_same_on_every_device(rng, device):
    """24 bits of each word, exactly: also with limits that are no powers of two."""
    generator = Generator(device, int(rng.integers(1 << 62)))
    start = generator.state()
    words = generator.bits(999)
    for low, high in ((0.0, 1.0), (-0.3, 0.7), (-0.05, 0.05)):
        generator.set_state(start)
        got = host(generator.uniform((999,), low, high))
        unit = (words >> 8).astype(np.float32) / np.float32(2**24)
        low, high = np.float32(low), np.float32(high)
        np.testing.assert_array_equal(got, low + (high - low) * unit)


def test_uniform_stays_below_its_upper_limit(device):
    """Where low and high are two roundings apart, half of the numbers would be rounded up to high or more."""
    x = host(Generator(device).uniform((1001,), 1.0, 1.0 + 2.0**-22))
    assert set(x.tolist()) == {1.0, 1.0 + 2.0**-23}


@pytest.mark.two_devices
def test_all_devices_agree(rng, device, other_device):
    seed = int(rng.integers(1 << 62))
    for other in [d for d in clnn.devices() if d is not device]:
        a, b = Generator(device, seed), Generator(other, seed)
        np.testing.assert_array_equal(a.bits(1001), b.bits(1001))
        np.testing.assert_array_equal(host(a.uniform((1001,), -0.3, 0.7)), host(b.uniform((1001,), -0.3, 0.7)))
        x, y = host(a.normal((1001,))), host(b.normal((1001,)))
        assert_close(x, y, 8 * eps(np.float32) * np.maximum(1, np.abs(x)))


def moments(x, mean, deviation, kurtosis):
    """Mean and variance within five standard errors (once in 10^6 runs it is more)."""
    x, n = np.asarray(x, np.float64).ravel(), x.size
    assert abs(x.mean() - mean) < 5 * deviation / math.sqrt(n)
    assert abs(x.var() / deviation**2 - 1) < 5 * math.sqrt((kurtosis - 1) / n)
    centred = (
        x - mean
    ) / deviation  # neighbours, and numbers of the same work-item, have nothing to do with each other
    for lag in (1, 2, 3, 4, 128):
        assert abs((centred[lag:] * centred[:-lag]).mean()) < 5 / math.sqrt(n), f"numbers {lag} apart"


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-2.0, 3.0)])
def test_uniform(device, dtype, low, high):
    x = host(Generator(device).uniform((N,), low, high, dtype))
    assert x.dtype == dtype and x.min() >= low and x.max() < high
    moments(x, (low + high) / 2, (high - low) / math.sqrt(12), 1.8)
    counts = np.histogram(x, 16, (low, high))[0]
    assert ((counts - N / 16) ** 2 / (N / 16)).sum() < 60  # chi squared of 15 degrees: beyond it once in 10^6 runs


@pytest.mark.platform("random")
@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (3.0, 0.1)])
def test_normal(device, dtype, mean, deviation):
    x = host(Generator(device).normal((N,), mean, deviation, dtype))
    assert x.dtype == dtype and np.isfinite(x).all()
    moments(x, mean, deviation, 3)
    z = np.sort((x - mean) / deviation)
    cdf = np.array([(1 + math.erf(v / math.sqrt(2))) / 2 for v in z[::50]])
    at = np.arange(z.size)[::50] / z.size
    assert np.abs(cdf - at).max() < 2.7 / math.sqrt(N)  # Kolmogorov and Smirnov: beyond it once in 10^6 runs


def test_normal_from_its_bits(rng, device):
    """Box and Muller's two from two words."""
    generator = Generator(device, int(rng.integers(1 << 62)))
    start = generator.state()
    b = (generator.bits(4000) >> 8).astype(np.float64).reshape(-1, 2, 2) / 2**24
    generator.set_state(start)
    radius, turn = np.sqrt(-2 * np.log(1 - b[..., 0])), 2 * np.pi * b[..., 1]
    expected = np.stack([radius * np.cos(turn), radius * np.sin(turn)], axis=-1).ravel()
    assert_close(host(generator.normal((4000,))), expected, 8 * eps(np.float32) * 6)


def test_draws_differ_and_seeds_repeat_them(device):
    a, b = Generator(device, 7), Generator(device, 7)
    first, second = a.bits(100), a.bits(100)
    assert (first != second).any()
    np.testing.assert_array_equal(first, b.bits(100))
    state = b.state()
    np.testing.assert_array_equal(second, b.bits(100))
    b.set_state(state)
    np.testing.assert_array_equal(second, b.bits(100))
    a.reseed(7)
    np.testing.assert_array_equal(first, a.bits(100))
    assert (Generator(device, 8).bits(100) != first).any()
    assert (Generator(device).bits(100) != Generator(device).bits(100)).any()
    assert Generator(device, 1).bits(0).size == 0
    assert (Generator(device, (1 << 64) - 1).bits(9) != Generator(device, 0).bits(9)).any()
    for wrong in (-1, 0.5, "1", 1 << 64):  # of which only 64 bits would count
        with pytest.raises(clnn.ConfigurationError, match="a seed is an integer of 0 or more, below 2..64"):
            Generator(device, wrong)


# -- dropout ----------------------------------------------------------------------------------------------------------
@pytest.mark.platform("random")
@pytest.mark.parametrize("rate", [0.0, 0.25, 0.9])
def test_dropout(rng, dtype, device, rate):
    """Kept values are divided by the chance to be kept, and the same go through backwards."""
    x = np.abs(normal(rng, (N,), dtype)) + 0.1
    dy = np.abs(normal(rng, (N,), dtype)) + 0.1
    t = clnn.tensor(x, dtype=dtype)
    y, backward = dropout(t, rate, Generator(device))
    got = host(y)
    kept = got != 0
    assert abs(kept.mean() - (1 - rate)) <= 5 * math.sqrt(rate * (1 - rate) / N)
    assert_close(got, np.where(kept, x / (1 - rate), 0), 2 * eps(dtype) * np.abs(x) / (1 - rate))
    ((source, dx),) = backward(clnn.tensor(dy, dtype=dtype))
    assert source is t
    assert_close(host(dx), np.where(kept, dy / (1 - rate), 0), 2 * eps(dtype) * np.abs(dy) / (1 - rate))


@pytest.mark.oclgrind
@pytest.mark.parametrize("size", [0, 1, 3, 5])
def test_dropout_of_odd_sizes(device, size):
    y, backward = dropout(clnn.ones((size,)), 0.5, Generator(device))
    assert set(host(y).tolist()) <= {0.0, 2.0}
    ((_, dx),) = backward(clnn.ones((size,)))
    np.testing.assert_array_equal(host(dx), host(y))


def test_dropout_layer(device):
    """Nothing is dropped without a tape; with one each call drops others, and the seed repeats them."""
    x, layer = parameter(np.ones((50, 40))), clnn.Dropout(0.5)
    with clnn.no_grad():
        assert_close(layer(x).numpy(), np.ones((50, 40)), 0)
    clnn.seed(3)
    a, b = layer(x).numpy(), layer(x).numpy()
    assert (a != b).any()
    clnn.seed(3)
    np.testing.assert_array_equal(layer(x).numpy(), a)
    for wrong in (-0.1, 1.0, 1, True, "x"):
        with pytest.raises(clnn.ConfigurationError, match="rate should be in \\[0, 1\\)"):
            clnn.Dropout(wrong)


def test_dropout_in_a_recorded_step(device):
    """Replays draw anew, and what they draw is what an eager run with the same seed draws."""
    x = parameter(np.ones(2000))
    drawn = {}
    for record in (False, True):
        generator = Generator(device, 5)

        @clnn.step(record=record)
        def draw(t, generator=generator):
            with random.drawing_from(generator):
                return clnn.Dropout(0.5)(x) + t

        drawn[record] = [draw(np.zeros(1, np.float32)).numpy() for _ in range(6)]
    for eager, recorded in zip(drawn[False], drawn[True]):
        np.testing.assert_array_equal(eager, recorded)
    assert all((a != b).any() for a, b in zip(drawn[True], drawn[True][1:]))


@pytest.mark.platform("planes")
@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_spatial_dropout(rng, dtype, device, kind, monkeypatch):
    """Whole channels, forwards and backwards, by either kernel; a channel that is dropped is 0 whatever it held."""
    monkeypatch.setattr(device, "kind", kind)
    rate, shape = 0.3, (40, 50, 3, 7)
    x, dy = np.abs(normal(rng, shape, dtype)) + 0.1, normal(rng, shape, dtype)
    t = parameter(x, dtype)
    with random.drawing_from(Generator(device)):
        y = apply(spatial_dropout, clnn.tanh(t), rate=rate, generator=random.generator(device))
    kept = y.numpy().any((2, 3), keepdims=True)
    assert abs(kept.mean() - (1 - rate)) <= 5 * math.sqrt(rate * (1 - rate) / kept.size)
    assert_close(y.numpy(), np.where(kept, np.tanh(x) / (1 - rate), 0), 8 * eps(dtype))
    y.backward(dy)
    slope = 1 - np.tanh(x) ** 2
    assert_close(t.grad.numpy(), np.where(kept, dy * slope / (1 - rate), 0), 16 * eps(dtype) * np.abs(dy).max())
    y, _ = spatial_dropout(clnn.tensor(np.full(shape, np.nan), dtype=dtype), rate, Generator(device))
    assert not host(y)[~np.isnan(host(y))].any()


def test_gaussian_dropout(rng, dtype, device):
    """Mean 1, variance rate / (1 - rate); the gradient has the same factors."""
    rate = 0.2
    x, dy = np.abs(normal(rng, (N,), dtype)) + 0.5, normal(rng, (N,), dtype)
    t = parameter(x, dtype)
    y = apply(gaussian_dropout, t, rate=rate, generator=Generator(device))
    noise, deviation = y.numpy() / x, math.sqrt(rate / (1 - rate))
    assert abs(noise.mean() - 1) <= 5 * deviation / math.sqrt(N)
    assert abs(noise.std() - deviation) <= 5 * deviation / math.sqrt(2 * N)
    y.backward(dy)
    assert_close(t.grad.numpy(), dy * noise, 4 * eps(dtype) * np.abs(dy * noise) + 1e-30)


@pytest.mark.parametrize("kind", [clnn.SpatialDropout, clnn.GaussianDropout])
def test_layers_of_other_dropouts(device, kind):
    """Off without a tape; the seed repeats them; replays draw anew, and what they draw is what eager runs draw."""
    x, layer = parameter(np.ones((20, 30, 4))), kind(0.5)
    with clnn.no_grad():
        assert_close(layer(x).numpy(), np.ones((20, 30, 4)), 0)
    assert kind(0.0)(x) is x and layer.config() == {"rate": 0.5}
    drawn = {}
    for record in (False, True):
        generator = Generator(device, 5)

        @clnn.step(record=record)
        def draw(t, generator=generator):
            with random.drawing_from(generator):
                y = layer(x) + t
            y.sum().backward()
            gradient = x.grad
            x.zero_grad()
            return y, gradient

        drawn[record] = [[a.numpy() for a in draw(np.zeros(1, np.float32))] for _ in range(6)]
    for eager, recorded in zip(drawn[False], drawn[True]):
        for a, b in zip(eager, recorded):
            np.testing.assert_array_equal(a, b)
    assert all((a[0] != b[0]).any() for a, b in zip(drawn[True], drawn[True][1:]))
    for wrong in (-0.1, 1.0, True, "x"):
        with pytest.raises(clnn.ConfigurationError, match=f"{kind.__name__}'s rate should be in"):
            kind(wrong)
    empty = layer(np.zeros((0, 3, 4), np.float32))
    assert empty.shape == (0, 3, 4)


def test_spatial_dropout_needs_channels(device):
    with pytest.raises(clnn.ShapeError, match=r"SpatialDropout: .*\(3,\)"):
        clnn.SpatialDropout(0.5)(parameter(np.ones(3)))


# -- seeds ------------------------------------------------------------------------------------------------------------
def test_seed(device):
    clnn.seed(11)
    a, shuffled = random.generator(device).bits(10), random.host().permutation(20)
    clnn.seed(11)
    np.testing.assert_array_equal(random.generator(device).bits(10), a)
    np.testing.assert_array_equal(random.host().permutation(20), shuffled)
    own = Generator(device, 1)
    with random.drawing_from(own):
        assert random.generator(device) is own
        with random.drawing_from(None):
            assert random.generator(device) is own
    assert random.generator(device) is not own
    for wrong in (-1, 1.5, None, 1 << 64):
        with pytest.raises(clnn.ConfigurationError, match="a seed is an integer"):
            clnn.seed(wrong)


@pytest.mark.parametrize("seed", [5, None])
def test_a_step_draws_what_is_drawn_outside(device, rng, seed):
    """Layers that are built in it, every dropout of each call, replays too, and a fit inside, which begins anew with its seed."""
    x, y = normal(rng, (24, 6), np.float32), np.arange(24) % 3
    options = {"epochs": 2, "batch_size": 8, "shuffle": False, "progress": False}
    made = {}
    for inside in (False, True):
        clnn.seed(1)
        layers = [clnn.Dense(5), clnn.Dropout(0.3), clnn.Dense(4), clnn.Dropout(0.3), clnn.Dense(3)]
        net, optimizer = clnn.Sequential(layers, seed=3), clnn.SGD(0.1)

        def train(x, y, net=net, optimizer=optimizer, dropout=layers[1]):
            clnn.losses.cross_entropy(net(x), y).backward()
            optimizer.step(net.parameters())
            return dropout(x)

        def fit(net=net, dropout=layers[1]):
            dropout(clnn.ones((3,)))
            net.fit(x, y, loss="cross_entropy", optimizer="sgd", seed=seed, **options)
            return random.generator(device).bits(4), dropout(clnn.ones((9,)))

        train, fit = (clnn.step(train), clnn.step(fit)) if inside else (train, fit)
        drawn = [train(x, y.astype(np.int32)).numpy() for _ in range(6)]
        bits, dropped = fit()
        made[inside] = [*drawn, bits, dropped.numpy(), *net.state_dict().values(), random.generator(device).state()]
    for a, b in zip(made[False], made[True]):
        np.testing.assert_array_equal(a, b)


def test_seeding_and_copying_inside_a_step(device):
    """What the step has drawn before neither moves a new seed on nor is missing in a copy."""

    @clnn.step
    def draw():
        own = Generator(device, 3)
        first = own.bits(4), own.bits(4)
        other = pickle.loads(pickle.dumps(own))
        again = own.bits(4), other.bits(4)
        own.reseed(3)
        return first, again, (own.bits(4), own.bits(4)), own

    first, again, seeded, own = draw()
    np.testing.assert_array_equal(*again)
    np.testing.assert_array_equal(first, seeded)
    assert (again[0] != first[0]).any() and (again[0] != first[1]).any() and own.state()[0] == 2
