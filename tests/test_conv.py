"""Convolution and its transpose against float64 NumPy, every kernel and engine, with gradients by every argument."""

import contextlib
import itertools
import os

import numpy as np
import pytest
from helpers import REFERENCES, as_a_cpu, assert_close, check_op, eps, needs_local_memory, normal, parameter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import clnn
from clnn.gemm import Scale
from clnn.ops.array import Sink
from clnn.ops.image import conv as ops
from clnn.ops.image import conv_plan
from clnn.ops.image.geometry import geometry
from clnn.ops.image.window import paddings, per_axis, slide
from clnn.tape import grad_enabled
from clnn.tensor import on_tape

ENGINES = ["rows", "columns", "gpu"]


# -- references -------------------------------------------------------------------------------------------------------
def taps(shape, size, stride, before, dilation, out):
    """For each tap: its index, and the slices of the padded input that all outputs see through it."""
    for at in itertools.product(*map(range, size)):
        starts = [i * d for i, d in zip(at, dilation)]
        yield at, tuple(slice(a, a + (o - 1) * s + 1, s) for a, o, s in zip(starts, out, stride))


def padded(x, before, after):
    return np.pad(x, [(0, 0), (0, 0), *zip(before, after)])


def reference(x, w, b, window, groups):
    """y by its definition, a tap at a time."""
    k, c = w.shape[0] // groups, w.shape[1]
    y = np.zeros((len(x), w.shape[0], *window.out))
    wide = padded(x, window.before, window.after)
    for at, seen in taps(x.shape, window.size, window.stride, window.before, window.dilation, window.out):
        part = wide[(slice(None), slice(None), *seen)]
        for g in range(groups):
            rows, columns = slice(g * k, (g + 1) * k), slice(g * c, (g + 1) * c)
            y[:, rows] += np.einsum("kc,nc...->nk...", w[(rows, slice(None), *at)], part[:, columns])
    return y if b is None else y + b.reshape(-1, *(1 for _ in window.out))


def reference_gradients(x, w, window, groups, dy):
    """dx, dw, db by the transposes of the sums above."""
    k, c = w.shape[0] // groups, w.shape[1]
    wide, dw = padded(x, window.before, window.after), np.zeros(w.shape)
    back = np.zeros(wide.shape)
    for at, seen in taps(x.shape, window.size, window.stride, window.before, window.dilation, window.out):
        where = (slice(None), slice(None), *seen)
        for g in range(groups):
            rows, columns = slice(g * k, (g + 1) * k), slice(g * c, (g + 1) * c)
            flat = [a.reshape(*a.shape[:2], -1) for a in (dy[:, rows], wide[where][:, columns])]
            dw[(rows, slice(None), *at)] = np.einsum("nkp,ncp->kc", *flat)
            back[where][:, columns] += np.einsum("kc,nk...->nc...", w[(rows, slice(None), *at)], dy[:, rows])
    inside = tuple(slice(a, a + n) for a, n in zip(window.before, window.space))
    return back[(slice(None), slice(None), *inside)], dw, dy.sum((0, *range(2, dy.ndim)))


def convolve(x, w, b, window, groups=1, activation="linear"):
    """The op on tape."""
    y, backward = ops.conv(x, w, b, window, groups, activation, grad_enabled())
    return on_tape(y, (x, w) if b is None else (x, w, b), backward)


def transpose(x, w, b, window, groups=1, activation="linear"):
    y, backward = ops.conv_transpose(x, w, b, window, groups, activation, grad_enabled())
    return on_tape(y, (x, w) if b is None else (x, w, b), backward)


@pytest.fixture(params=ENGINES)
def engine(request, device, monkeypatch):
    """Each kernel that may do a convolution, whatever the plan would say; with small tiles, so that little is compiled."""
    choose(request.param, device, monkeypatch)
    return request.param


def choose(engine, device, monkeypatch):
    monkeypatch.setenv("CLNN_GEMM", "tile")
    if engine == "gpu":
        monkeypatch.setattr(device, "kind", "gpu")
    elif engine.startswith(
        "winograd_gpu"
    ):  # by that tile of gemm_local and in pieces, wherever the algorithm can do it
        monkeypatch.setattr(device, "kind", "gpu")
        if device.max_group < 256:
            pytest.skip(f"groups of {device.max_group} work-items are too small for gemm_local")
        monkeypatch.setenv("CLNN_WINOGRAD", "2")
        monkeypatch.setattr(conv_plan, "WINOGRAD_CHANNELS", 1)
        found, mr = conv_plan.plans, int(engine[-1])
        monkeypatch.setattr(
            conv_plan,
            "plans",
            lambda *how: [p._replace(cb=1, chunk=11) for p in found(*how) if p[:2] == ("winograd_gpu", mr)],
        )
    elif engine.startswith("winograd"):  # the smallest tiles and nothing else, where the algorithm can do it
        as_a_cpu(device, monkeypatch)
        monkeypatch.setenv("CLNN_WINOGRAD", engine[-1])
        monkeypatch.setattr(conv_plan, "WINOGRAD_CHANNELS", 1)
        side = int(engine[-1])
        plans_of = {name: getattr(conv_plan, name) for name in ("_winograd", "_winograd_weights")}
        for name, plans in plans_of.items():  # the first come with the smallest blocks
            monkeypatch.setattr(
                conv_plan, name, lambda *a, plans=plans: ((-1e9, p) for _, p in plans(*a) if p.rb == side)
            )
    elif engine != "planned":
        as_a_cpu(device, monkeypatch)
        monkeypatch.setenv("CLNN_WINOGRAD", "0")
        monkeypatch.setattr(conv_plan, "row_tiles", lambda _: [(3, 2)] if engine in ("rows", "scatter") else [])
        monkeypatch.setattr(
            conv_plan, "column_tiles", lambda wide, _: [(min(3, wide), 1)] if engine == "columns" else []
        )
        scatter = conv_plan._scatter
        monkeypatch.setattr(
            conv_plan, "_scatter", lambda *a: ((-1e9, p) for _, p in scatter(*a) if engine == "scatter")
        )
        monkeypatch.setattr(conv_plan, "SLAB_BYTES", 1 << (10 if engine == "scatter" else 12))  # channels in chunks
        if engine == "scatter":
            monkeypatch.setattr(conv_plan, "SCATTERED", 1 << 9)  # and not all outputs at once
    for plan in (conv_plan.plan_forward, conv_plan.plan_weights, conv_plan.plan_gpu):
        plan.cache_clear()


@pytest.fixture(autouse=True)
def plans_anew():
    yield
    for plan in (conv_plan.plan_forward, conv_plan.plan_weights, conv_plan.plan_gpu):
        plan.cache_clear()


def check(rng, dtype, n, space, c, k, size, stride, padding, dilation, groups, bias=True):
    """Value and all gradients of a convolution and of its transpose."""
    axes = len(space)
    window = slide("test", (n, groups * c, *space), size, stride, paddings("padding", padding, axes), dilation)
    x, w = normal(rng, (n, groups * c, *space), dtype), normal(rng, (groups * k, c, *size), dtype)
    b, dy = normal(rng, groups * k, dtype), normal(rng, (n, groups * k, *window.out), dtype)
    tensors = [parameter(a, dtype) for a in ((x, w, b) if bias else (x, w))]
    y = convolve(*tensors, *(() if bias else (None,)), window, groups)
    terms = c * window_taps(window) + 8
    assert_close(y.numpy(), reference(x, w, b if bias else None, window, groups), bound(terms, dtype), "value")
    y.backward(dy.astype(dtype))
    wanted = reference_gradients(x, w, window, groups, dy)
    sums = (k * window_taps(window), n * np.prod(window.out), n * np.prod(window.out))
    for name, t, expected, count in zip("xwb", tensors, wanted, sums):
        assert_close(t.grad.numpy(), expected, bound(count + 8, dtype), f"gradient by {name}")
    # the transpose, with x and y changing places
    z, v, shift = normal(rng, dy.shape, dtype), normal(rng, w.shape, dtype), normal(rng, groups * c, dtype)
    tensors = [parameter(a, dtype) for a in ((z, v, shift) if bias else (z, v))]
    y = transpose(*tensors, *(() if bias else (None,)), window, groups)
    column = (-1, *(1 for _ in space))
    expected = reference_gradients(x, v, window, groups, z)[0] + (shift.reshape(column) if bias else 0)
    assert_close(y.numpy(), expected, bound(sums[0] + 8, dtype), "transpose")
    seed = normal(rng, x.shape, dtype)
    y.backward(seed.astype(dtype))
    found = [t.grad.numpy() for t in tensors]
    assert_close(found[0], reference(seed, v, None, window, groups), bound(terms, dtype), "transpose by x")
    assert_close(
        found[1], reference_gradients(seed, v, window, groups, z)[1], bound(sums[1] + 8, dtype), "transpose by w"
    )
    if bias:
        total = seed.sum((0, *range(2, seed.ndim)))
        assert_close(found[2], total, bound(seed.size, dtype), "transpose by b")


def window_taps(window):
    return int(np.prod(window.size))


def bound(terms, dtype):
    """What a sum of so many products of normal values may be off by; Winograd's transforms multiply that."""
    more = {"0": 1, "2": 3, "4": 20}[os.environ.get("CLNN_WINOGRAD", "0")]
    return 4 * more * eps(dtype) * terms**0.5 * (terms**0.5 + 6)


# -- values and gradients ---------------------------------------------------------------------------------------------
SHAPES = [  # n, space, c, k, size, stride, padding, dilation, groups
    (3, (9, 11), 2, 5, (3, 3), (1, 1), 0, (1, 1), 1),
    (2, (8, 7), 5, 7, (3, 2), (2, 1), ((1, 2), (0, 1)), (3, 2), 1),
    (2, (9, 9), 1, 1, (3, 3), (1, 1), 1, (2, 1), 6),
    (2, (9, 10), 1, 2, (3, 3), (2, 2), "same", (1, 1), 3),
    (1, (6, 5), 4, 3, (1, 1), (1, 1), 0, (1, 1), 2),
    (2, (7, 8), 3, 4, (1, 1), (2, 3), 0, (1, 1), 1),
    (2, (23,), 3, 4, (5,), (3,), 2, (2,), 1),
    (2, (4, 5, 6), 2, 3, (2, 3, 2), (2, 2, 1), (1, 0, 1), (1, 1, 2), 2),
    (1, (3, 3), 2, 3, (5, 5), (1, 1), 2, (1, 1), 1),
    (2, (7, 1), 2, 3, (3, 1), (2, 1), 0, (1, 1), 1),
    (2, (2, 9), 2, 3, (1, 2), (1, 4), 0, (1, 1), 1),
    (1, (9, 11), 2, 9, (3, 3), (3, 3), 1, (2, 2), 1),  # taps of each phase of the stride
    (1, (4, 5, 6), 3, 9, (2, 2, 2), (1, 1, 1), 0, (2, 1, 1), 1),
]
MARKS = {  # one of each kernel file for every platform
    ("rows", 1): pytest.mark.platform("conv", "conv_rows", "conv_weights"),
    ("columns", 1): pytest.mark.platform("conv_columns"),
    ("columns", 2): pytest.mark.platform("conv_lanes"),
    ("gpu", 1): pytest.mark.platform("conv_local"),
}


@pytest.mark.parametrize(
    ("engine", "shape"),
    [
        pytest.param(
            engine, shape, marks=MARKS.get((engine, i), [pytest.mark.slow] * (engine == "gpu" and i not in (0, 3, 7)))
        )
        for engine, (i, shape) in itertools.product(ENGINES, enumerate(SHAPES))
    ],
    ids=str,
    indirect=["engine"],
)
def test_convolution(rng, engine, shape):
    check(rng, np.float32, *shape)


@pytest.mark.parametrize("engine", ["rows", "columns"])
@pytest.mark.parametrize("space", [(7, 9), (2, 5, 7)], ids=str)
def test_several_blocks_along_each_axis(rng, device, engine, space, monkeypatch):
    """Of outputs and of gradients by weights, those of the last rows and columns smaller; of several images and groups."""
    choose(engine, device, monkeypatch)
    monkeypatch.setattr(conv_plan, "_even", lambda n: [min(n, 3)])
    axes = len(space)
    for k in (2, 9):
        check(rng, np.float32, 2, space, 2, k, (2,) * axes, (1,) * axes, 0, (1,) * axes, 2)


@pytest.mark.parametrize("engine", ["rows", "columns"])
def test_channels_that_chunks_do_not_divide(rng, device, engine, monkeypatch):
    """The last chunk of each image and group is shorter, and what lies behind it is another's."""
    needs_local_memory(device)
    choose(engine, device, monkeypatch)
    even, ranked, chunks = conv_plan._even, conv_plan._ranked, []
    monkeypatch.setattr(conv_plan, "_even", lambda n: even(n)[-1:])  # blocks as large as they can be

    def noted(found, measured):
        plans = ranked(found, measured)
        chunks.append(plans[0])
        return plans

    monkeypatch.setattr(conv_plan, "_ranked", noted)
    check(rng, np.float32, 2, (14, 14), 7, 5, (3, 3), (1, 1), 0, (1, 1), 2)
    forward = [plan for plan in chunks if plan.kernel == engine and plan.rb == 12]  # rows of outputs
    assert forward and all(1 < plan.chunk < 7 for plan in forward), chunks


@pytest.mark.parametrize("most", [100, 3])
def test_a_gpu_whose_groups_are_small(rng, device, monkeypatch, most):
    """Its sums are long: loops of CPU kernels would end early on drivers that end them."""
    monkeypatch.setenv("CLNN_GEMM", "tile")
    monkeypatch.setattr(device, "kind", "gpu")
    monkeypatch.setattr(device, "max_group", most)
    monkeypatch.setitem(vars(device), "group_width", 1 << most.bit_length() - 1)
    launched, launch = [], type(device).launch
    monkeypatch.setattr(
        type(device),
        "launch",
        lambda self, file, name, *args, **how: launched.append(name) or launch(self, file, name, *args, **how),
    )
    wrong = most < 16 and device.platform == "rusticl"
    with pytest.raises(clnn.DeviceError, match="fewer than 16") if wrong else contextlib.nullcontext():
        check(rng, np.float32, 2, (12, 12), 240, 66, (3, 3), (1, 1), 1, (1, 1), 1)
    assert launched.count("conv_local") == (0 if wrong else 6)


@pytest.mark.parametrize("engine", [*ENGINES, "winograd_gpu4"], indirect=True)
def test_an_input_gradient_goes_where_its_sink_says(rng, engine):
    """alpha * gradient + beta * what is there: SGD straight into an input that learns."""
    device = clnn.device()
    x, w = normal(rng, (2, 3, 6, 5)), normal(rng, (4, 3, 3, 3))
    window = slide("test", x.shape, (3, 3), (1, 1), paddings("padding", 1, 2), (1, 1))
    dy, before = normal(rng, (2, 4, *window.out)), normal(rng, x.shape)
    expected = reference_gradients(x, w, window, 1, dy)[0]
    for alpha, beta in ((-0.5, 0.0), (0.25, 2.0), (1.0, 1.0)):  # the last in a column of its own
        _, backward = ops.conv(parameter(x), parameter(w), None, window)
        out = parameter(before)
        (_, write), *_ = backward(parameter(dy))
        write(Sink(out.block, Scale.constant(device, np.float32, alpha, beta)))
        assert_close(out.numpy(), alpha * expected + beta * before, bound(64, np.float32), f"{alpha}, {beta}")


SCATTERED = [  # what scatter takes: stride 1, in chunks of inputs and outputs; padding, dilation and groups
    SHAPES[0],
    (2, (6, 5), 3, 4, (2, 3), (1, 1), ((1, 0), (0, 2)), (1, 2), 2),
    (3, (4, 4), 7, 9, (5, 5), (1, 1), 4, (1, 1), 1),
    (2, (2, 3, 37), 2, 3, (1, 2, 2), (1, 1, 1), 0, (1, 1, 1), 1),  # several planes, and rows of several vectors
]


@pytest.mark.platform("conv_scatter")
@pytest.mark.parametrize(
    "shape", [pytest.param(shape, marks=[pytest.mark.slow] * (i == 2)) for i, shape in enumerate(SCATTERED)], ids=str
)
def test_scatter(rng, device, shape, monkeypatch):
    choose("scatter", device, monkeypatch)
    launched = launches(device, monkeypatch)
    check(rng, np.float32, *shape)
    if device.local_memory <= 1 << 16 and "conv_scatter" not in launched:
        pytest.skip(f"a block's outputs do not fit {device.local_memory:,} bytes of local memory")
    assert launched.count("conv_scatter") >= 2 or device.local_memory <= 1 << 16


def launches(device, monkeypatch):
    """The names of kernels, as they are launched."""
    found, launch = [], type(device).launch
    monkeypatch.setattr(
        type(device),
        "launch",
        lambda self, file, name, *a, **k: found.append(name) or launch(self, file, name, *a, **k),
    )
    return found


TILED = [  # what winograd takes: edges within a tile, several images in a block, several blocks, channels behind a vector
    SHAPES[0],
    (2, (5, 7), 3, 4, (3, 3), (1, 1), ((1, 2), (0, 1)), (1, 1), 2),
    (7, (8, 8), 20, 35, (3, 3), (1, 1), 1, (1, 1), 1),
    (70, (4, 3), 9, 8, (3, 3), (1, 1), 2, (1, 1), 1),
    (1, (3, 3), 17, 16, (3, 3), (1, 1), 0, (1, 1), 1),
]


@pytest.mark.platform("winograd")
@pytest.mark.parametrize(
    ("engine", "shape"),
    [
        pytest.param(engine, shape, marks=[pytest.mark.slow] * ((engine, shape) != ("winograd4", TILED[2])))
        for engine, shape in itertools.product(("winograd2", "winograd4"), TILED)
    ],
    ids=str,
)
def test_winograd(rng, device, engine, shape, monkeypatch):
    choose(engine, device, monkeypatch)
    launched = launches(device, monkeypatch)
    check(rng, np.float32, *shape)
    if device.local_memory <= 1 << 16 and "winograd" not in launched:
        pytest.skip(f"a block of tiles does not fit {device.local_memory:,} bytes of local memory")
    assert {"winograd", "winograd_gradients"} <= set(launched) or device.local_memory <= 1 << 16


ON_GPU = ("winograd_gpu4", TILED[1])


@pytest.mark.parametrize(
    ("engine", "shape"),
    [
        pytest.param(
            *one, marks=pytest.mark.platform("winograd_gpu") if one == ON_GPU else [pytest.mark.slow] * (i > 2)
        )
        for i, one in enumerate(itertools.product(("winograd_gpu4", "winograd_gpu8"), TILED))
    ],
    ids=str,
)
def test_winograd_on_a_gpu(rng, device, engine, shape, monkeypatch):
    """In pieces that end within a row of tiles, an image and a group of work-items."""
    choose(engine, device, monkeypatch)
    launched = launches(device, monkeypatch)
    check(rng, np.float32, *shape)
    assert {"winograd_inputs", "winograd_outputs", "winograd_to_dw"} <= set(launched) and "conv_local" not in launched


def test_one_piece_and_many_give_the_same(rng, device, monkeypatch):
    """A piece's tiles are all that it writes."""
    choose("winograd_gpu4", device, monkeypatch)
    few, (n, space, c, k, *_) = conv_plan.plans, TILED[2]
    x, w = normal(rng, (n, c, *space)), normal(rng, (k, c, 3, 3))
    window = slide("test", x.shape, (3, 3), (1, 1), ((1, 1), (1, 1)))
    found = []
    for chunk in (1, 5, 64, 1 << 20):
        monkeypatch.setattr(conv_plan, "plans", lambda *how, chunk=chunk: [p._replace(chunk=chunk) for p in few(*how)])
        found.append(convolve(parameter(x), parameter(w), None, window).numpy())
    for y in found[1:]:
        np.testing.assert_array_equal(y, found[0])


def geometry_of(n, channels, side, out=None):
    window = slide("test", (n, channels, side, side), (3, 3), (1, 1), ((1, 1), (1, 1)))
    return geometry(window, 1, channels, out or channels)


def test_on_a_gpu_winograd_has_to_pay(device, monkeypatch):
    """By the model: with channels and images enough, in groups that gemm_local takes, and unless CLNN_WINOGRAD=0."""
    monkeypatch.setattr(device, "kind", "gpu")
    monkeypatch.setattr(device, "max_group", 256)
    monkeypatch.setenv("CLNN_WINOGRAD", "4")

    def kernel(n, *sizes, weights=False, dtype=np.float32):
        return conv_plan.plan_for(device, geometry_of(n, *sizes), np.dtype(dtype), n, weights).kernel

    for weights in (False, True):
        assert kernel(128, 256, 14, weights=weights) == kernel(32, 512, 7, weights=weights) == "winograd_gpu"
        assert kernel(1, 256, 14, weights=weights) == kernel(128, 64, 56, weights=weights) == "local"
        assert kernel(128, 4096, 14, weights=weights) == "local", "its weights take a gigabyte"
    assert kernel(128, 512, 14, dtype=np.float64) == "winograd_gpu"
    for name, value in (("max_group", 128), ("kind", "accelerator"), ("max_piece", 1 << 20)):
        with monkeypatch.context() as patch:
            patch.setattr(device, name, value)
            assert device.long_loops or kernel(128, 256, 14) == "local", name
    monkeypatch.setenv("CLNN_WINOGRAD", "0")
    assert kernel(128, 256, 14) == "local"


@pytest.mark.parametrize("room", [1 << 20, 1 << 26])
def test_on_a_gpu_winograd_takes_no_more_than_its_room(device, monkeypatch, room):
    """Whatever the sizes: of transformed weights, and of a piece's transformed inputs and outputs."""
    monkeypatch.setattr(device, "kind", "gpu")
    monkeypatch.setattr(device, "max_group", 256)
    monkeypatch.setattr(conv_plan, "ROOM", room)
    seen = 0
    for c, k, groups, weights in itertools.product((8, 40, 300, 1000), (8, 50, 512), (1, 3), (False, True)):
        g = geometry_of(1, c, 9, k)._replace(groups=groups)
        for plan in conv_plan.plans(device, g, np.float32, weights):
            if plan.kernel == "winograd_gpu":
                seen += 1
                assert 64 * groups * c * k <= room and 64 * groups * (c + k) * plan.chunk <= room and plan.chunk >= 128
    assert seen


def test_on_a_gpu_winograd_trains_recorded_and_not_to_the_same_bits(device, monkeypatch):
    """And as plain sums do, but for rounding; remainders of a batch too."""
    (x, y), _ = clnn.data.digits()
    states, losses = [], []
    for engine, record in (("gpu", True), ("winograd_gpu4", True), ("winograd_gpu4", False)):
        with monkeypatch.context() as patch:
            choose(engine, device, patch)
            plans = conv_plan.plans
            patch.setattr(conv_plan, "plans", lambda *how, plans=plans: [p._replace(chunk=40) for p in plans(*how)])
            convolutions = [clnn.Conv2D(8, 3, "gelu"), clnn.Conv2D(9, 3, "relu", padding="same", bias=False)]
            model = clnn.Sequential(
                [clnn.Reshape((1, 8, 8)), *convolutions, clnn.GlobalAvgPool(), clnn.Dense(10)], input_shape=64, seed=1
            )
            history = model.fit(
                x[:12], y[:12], loss="cross_entropy", optimizer=clnn.SGD(0.02, momentum=0.9), epochs=3, batch_size=5, seed=3,
                record=record, progress=False,
            )  # fmt: skip
        states.append(model.state_dict())
        losses.append(history["loss"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    for name in states[1]:
        np.testing.assert_array_equal(states[1][name], states[2][name], err_msg=name)


def test_winograd_can_be_refused(device, monkeypatch):
    """CLNN_WINOGRAD says how large tiles may be; with 0 sums are plain ones."""
    needs_local_memory(device)
    as_a_cpu(device, monkeypatch)
    g = geometry(slide("test", (2, 32, 16, 16), (3, 3), (1, 1), ((1, 1), (1, 1))), 1, 32, 32)
    for asked, wanted in (("", 4), ("4", 4), ("2", 2), ("0", None)):
        monkeypatch.setenv("CLNN_WINOGRAD", asked)
        for weights in (False, True):
            plans = conv_plan.plans(device, g, np.float32, weights)
            assert max((p.rb for p in plans if p.kernel == "winograd"), default=None) == wanted
    monkeypatch.setenv("CLNN_WINOGRAD", "6")
    with pytest.raises(clnn.ConfigurationError, match="CLNN_WINOGRAD='6' should be 0, 2 or 4"):
        conv_plan.plans(device, g, np.float32, False)


@pytest.mark.parametrize(
    ("engine", "shape"),
    [
        *itertools.product(("rows", "columns"), SHAPES[1:3]),
        pytest.param("scatter", SCATTERED[1], marks=pytest.mark.slow),
        pytest.param("winograd2", TILED[1], marks=pytest.mark.slow),
        pytest.param("winograd4", TILED[1], marks=pytest.mark.slow),
        ("winograd_gpu4", TILED[1]),
    ],
    ids=str,
)
def test_without_bias_and_in_float64(rng, dtype, device, engine, shape, monkeypatch):
    choose(engine, device, monkeypatch)
    check(rng, dtype, *shape, bias=False)


@pytest.mark.parametrize(
    "engine", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("rows", "columns", "scatter")), "gpu"]
)
def test_any_arguments(rng, device, engine, monkeypatch):
    """Whatever is drawn: shape, stride, padding, dilation, groups."""
    choose(engine, device, monkeypatch)

    @st.composite
    def arguments(draw):
        axes = draw(st.integers(1, 3))
        each = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(axes))  # noqa: E731
        size, dilation, pads = (
            each(1, 3),
            each(1, 2),
            tuple((draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in range(axes)),
        )
        reach = [d * (k - 1) + 1 for k, d in zip(size, dilation)]
        space = tuple(max(1, r - a - b) + draw(st.integers(0, 6)) for r, (a, b) in zip(reach, pads))
        groups, c, k = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
        return draw(st.integers(1, 3)), space, c, k, size, each(1, 3), pads, dilation, groups

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=False, database=None)
    @given(arguments())
    def draws(shape):
        check(rng, np.float32, *shape)

    draws()


REAL = [  # tiles and blocks as training has them: MNIST, CIFAR, a depthwise block
    (5, (28, 28), 1, 20, (5, 5), (1, 1), 0, (1, 1), 1),
    (3, (12, 12), 20, 40, (5, 5), (1, 1), 0, (1, 1), 1),
    (2, (32, 32), 16, 16, (3, 3), (1, 1), 1, (1, 1), 1),
    (2, (16, 16), 32, 64, (3, 3), (2, 2), 1, (1, 1), 1),
    (2, (8, 8), 64, 64, (3, 3), (1, 1), 1, (1, 1), 1),
    (2, (16, 16), 1, 1, (3, 3), (2, 2), 1, (1, 1), 48),
]


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(shape, marks=pytest.mark.platform("conv") if i == 3 else pytest.mark.slow)
        for i, shape in enumerate(REAL)
    ],
    ids=str,
)
def test_layers_of_real_networks(rng, device, shape, monkeypatch):
    monkeypatch.setenv("CLNN_WINOGRAD", "4")
    check(rng, np.float32, *shape)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", [(1, (9, 9), 300, 200, (3, 3), (1, 1), 1, (1, 1), 1), (2, (3000,), 3, 4, (9,), (1,), 4, (1,), 1)], ids=str
)
def test_many_channels_and_long_rows(rng, device, shape, monkeypatch):
    monkeypatch.setenv("CLNN_WINOGRAD", "4")
    check(rng, np.float32, *shape)


def test_a_reach_that_no_plan_has_room_for(rng, device):
    """A window over more than a processor's cache holds goes by the general kernel."""
    check(rng, np.float32, 1, (60001,), 1, 1, (3,), (1,), 0, (30000,), 1)


@pytest.mark.parametrize("engine", [*ENGINES, "winograd_gpu4"], indirect=True)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_activations_are_fused(rng, engine, activation):
    """f(x * w + b), and the derivative in what follows: of both kinds, that read y and that read x."""
    f = REFERENCES[activation]
    window = slide("test", (2, 2, 5, 6), (3, 3), (1, 1), ((1, 1), (0, 0)))
    inner = slide("test", (2, 3, 5, 4), (2, 2), (2, 1), ((0, 0), (0, 0)))

    def two(x, w, b, v):
        return convolve(convolve(x, w, b, window, 1, activation), v, None, inner)

    def wanted(x, w, b, v):
        return reference(f(reference(x, w, b, window, 1)), v, None, inner, 1)

    check_op(
        rng,
        two,
        wanted,
        normal(rng, (2, 2, 5, 6)),
        normal(rng, (3, 2, 3, 3)),
        normal(rng, 3),
        normal(rng, (2, 3, 2, 2)),
        rounding=64,
    )


@pytest.mark.parametrize("engine", [*ENGINES, "winograd_gpu4"], indirect=True)
def test_a_tensor_used_twice_sums_its_gradients(rng, engine):
    window = slide("test", (2, 3, 6, 7), (3, 3), (1, 1), ((1, 1), (1, 1)))
    x, w = normal(rng, (2, 3, 6, 7)), normal(rng, (3, 3, 3, 3))

    def twice(x, w):
        y = convolve(x, w, None, window)
        return convolve(y, w, None, window) + convolve(clnn.tanh(y), w, None, window)

    def wanted(x, w):
        y = reference(x, w, None, window, 1)
        return reference(y, w, None, window, 1) + reference(np.tanh(y), w, None, window, 1)

    check_op(rng, twice, wanted, x, w, rounding=400)


@pytest.mark.platform
@pytest.mark.oclgrind
@pytest.mark.parametrize(
    ("engine", "shape"),
    [
        *itertools.product(("rows", "columns", "gpu"), (SHAPES[1], SHAPES[3])),
        ("scatter", SCATTERED[1]),
        ("winograd2", TILED[0]),
        pytest.param("winograd4", TILED[1], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_no_race_and_no_access_outside(rng, device, engine, shape, monkeypatch):
    choose(engine, device, monkeypatch)
    check(rng, np.float32, *shape)


@pytest.mark.parametrize("wanted", ["x", "w", "b", "xw", "wb"])
def test_only_the_gradients_that_are_wanted(rng, device, wanted):
    window = slide("test", (2, 2, 5, 5), (3, 3), (1, 1), ((0, 0), (0, 0)))
    x, w, b, seed = (normal(rng, s) for s in ((2, 2, 5, 5), (4, 2, 3, 3), 4, (2, 4, 3, 3)))
    tensors = {"x": parameter(x), "w": parameter(w), "b": parameter(b)}
    for name, t in tensors.items():
        t.trainable = name in wanted
    convolve(*tensors.values(), window).backward(seed)
    for name, expected in zip("xwb", reference_gradients(x, w, window, 1, seed)):
        if name in wanted:
            assert_close(tensors[name].grad.numpy(), expected, bound(40, np.float32), name)
        else:
            assert tensors[name].grad is None


def test_no_samples(rng, engine):
    w, b = parameter(normal(rng, (3, 2, 3, 3))), parameter(normal(rng, 3))
    y = convolve(clnn.zeros((0, 2, 5, 5)), w, b, slide("test", (0, 2, 5, 5), (3, 3), (1, 1), ((0, 0), (0, 0))))
    assert y.shape == (0, 3, 3, 3) and y.numpy().size == 0
    y.backward(np.zeros(y.shape))
    assert not w.grad.numpy().any() and not b.grad.numpy().any()


@pytest.mark.parametrize("engine", [*ENGINES, "winograd_gpu4"], indirect=True)
def test_nan_spreads_over_its_window_alone(rng, engine):
    x, w = normal(rng, (2, 2, 8, 9)), normal(rng, (3, 2, 3, 3))
    x[1, 0, 4, 5] = np.nan
    window = slide("test", x.shape, (3, 3), (1, 1), ((1, 1), (1, 1)))
    y = convolve(parameter(x), parameter(w), None, window).numpy()
    expected = np.zeros(y.shape, bool)
    expected[1, :, 3:6, 4:7] = True
    np.testing.assert_array_equal(np.isnan(y), expected)


# -- layers -----------------------------------------------------------------------------------------------------------
def net(**options):
    return clnn.Sequential(
        [
            clnn.Reshape((1, 8, 8)),
            clnn.Conv2D(6, 3, "relu", padding="same"),
            clnn.DepthwiseConv2D(3, "swish", stride=2, padding=1, multiplier=2),
            clnn.Conv2D(8, 1, "relu", groups=2),
            clnn.Conv2DTranspose(3, 2, stride=2),
            clnn.Flatten(),
            clnn.Dense(10),
        ],
        input_shape=64,
        seed=1,
        **options,
    )


@pytest.mark.parametrize(
    "optimizer",
    [clnn.SGD(0.05), pytest.param(clnn.SGD(0.05, momentum=0.9), marks=pytest.mark.slow), clnn.Adam(0.005)],
    ids=["sgd", "momentum", "adam"],
)
def test_training_recorded_and_not_gives_the_same_bits(device, optimizer):
    (x, y), _ = clnn.data.digits()
    states, losses = [], []
    for record in (True, False):
        model = net()
        history = model.fit(
            x[:330], y[:330], loss="cross_entropy", optimizer=type(optimizer)(**optimizer.config()), epochs=3, batch_size=32,
            seed=3, record=record, progress=False,
        )  # fmt: skip
        states.append(model.state_dict())
        losses.append(history["loss"])
    assert losses[0][-1] < losses[0][0]
    for name in states[0]:
        np.testing.assert_array_equal(states[0][name], states[1][name], err_msg=name)


def test_a_saved_model_is_the_same(device, tmp_path):
    model = net()
    model.save(tmp_path / "net.clnn")
    again = clnn.load(tmp_path / "net.clnn")
    x = np.random.default_rng(0).random((5, 64), np.float32)
    np.testing.assert_array_equal(model.predict(x), again.predict(x))
    assert repr(again.layers) == repr(model.layers)


@pytest.mark.parametrize("engine", ["planned", pytest.param("gpu", marks=pytest.mark.slow), "winograd_gpu4"])
@pytest.mark.parametrize(
    "layer", [clnn.Conv2D(5, 3), clnn.Conv2D(5, 3, bias=False), clnn.Conv2DTranspose(5, 2, stride=2)], ids=repr
)
def test_batch_normalisation_is_folded_in_at_inference(rng, device, layer, engine, monkeypatch):
    """The same outputs by running statistics, in as many launches fewer as there are layers."""
    choose(engine, device, monkeypatch)
    model = clnn.Sequential([type(layer)(**layer.config()), clnn.BatchNorm("gelu")], input_shape=(3, 6, 6))
    state = {name: rng.uniform(0.5, 2, value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    x = clnn.tensor(normal(rng, (2, 3, 6, 6)), dtype=np.float32)
    with clnn.no_grad():
        apart = model.layers[1](model.layers[0](x)).numpy()
        monkeypatch.setattr(clnn.BatchNorm, "forward", None)  # it is not called
        together = model(x).numpy()
    assert_close(together, apart, 1e-4 * np.abs(apart).max())


def test_a_convolution_of_ones_own_is_not_folded_away(rng, device):
    class Doubled(clnn.Conv2D):
        def forward(self, x):
            return super().forward(x) * 2.0

    model = clnn.Sequential([Doubled(2, 1, weight_init="ones"), clnn.BatchNorm()], input_shape=(1, 3, 3))
    x = normal(rng, (2, 1, 3, 3))
    assert_close(model.predict(x), np.repeat(2 * x, 2, 1), 1e-4 * np.abs(x).max())


@pytest.mark.parametrize(
    ("layer", "shape", "out"),
    [
        (clnn.Conv1D(4, 3), (2, 9), (4, 7)),
        (clnn.Conv1D(4, 3, stride=2, padding="same"), (2, 9), (4, 5)),
        (clnn.Conv1D(4, 3, stride=2, padding="causal", dilation=3), (2, 9), (4, 5)),
        (clnn.Conv1D(4, 3, stride=4, padding="causal"), (2, 1), (4, 1)),
        (clnn.Conv2D(4, (3, 2), padding=(1, 0), dilation=2), (2, 9, 8), (4, 7, 6)),
        (clnn.Conv2D(4, 3, padding=((1, 0), (2, 1))), (2, 9, 8), (4, 8, 9)),
        (clnn.Conv3D(4, 3, padding=1), (2, 5, 6, 7), (4, 5, 6, 7)),
        (clnn.Conv1DTranspose(3, 4, stride=3), (2, 5), (3, 16)),
        (clnn.Conv2DTranspose(3, 3, stride=2, padding=1, output_padding=1), (2, 5, 6), (3, 10, 12)),
        (clnn.Conv2DTranspose(3, 3, stride=2, padding="same"), (2, 5, 6), (3, 10, 12)),
        (clnn.Conv3DTranspose(3, 2, stride=2), (2, 2, 3, 4), (3, 4, 6, 8)),
        (clnn.DepthwiseConv2D(3, multiplier=2, padding="same"), (3, 5, 5), (6, 5, 5)),
    ],
    ids=repr,
)  # fmt: skip
def test_shapes_of_layers(device, layer, shape, out):
    model = clnn.Sequential([type(layer)(**layer.config())], input_shape=shape)
    assert model.output_shapes == [out]
    assert model.predict(np.ones((2, *shape), np.float32)).shape == (2, *out)


@pytest.mark.parametrize(("stride", "dilation", "groups"), [(1, 5, 2), (3, 2, 1)])
def test_a_causal_convolution(rng, engine, stride, dilation, groups):
    """y[t] = b + sum over k of w[k] x[t stride - dilation (kernel - 1 - k)], with gradients; and no sight of what comes later."""
    size, steps, dtype = 4, 23, np.float32
    x, w, b = normal(rng, (2, 4, steps), dtype), normal(rng, (6, 4 // groups, size), dtype), normal(rng, 6, dtype)
    layer = clnn.Conv1D(6, size, padding="causal", stride=stride, dilation=dilation, groups=groups)
    layer.place(clnn.device(), dtype)
    layer.ensure_built((4, steps))

    def wanted(x, w, b):
        y = np.repeat(b[:, None], -(-steps // stride), 1) + np.zeros((2, 1, 1))
        for t, k, g in itertools.product(range(y.shape[2]), range(size), range(groups)):
            at = t * stride - dilation * (size - 1 - k)
            if at >= 0:
                rows, seen = (
                    slice(g * 6 // groups, (g + 1) * 6 // groups),
                    slice(g * 4 // groups, (g + 1) * 4 // groups),
                )
                y[:, rows, t] += x[:, seen, at] @ w[rows, :, k].T
        return y

    def op(x, w, b):
        layer.__dict__.update(w=w, b=b)
        return layer(x)

    y = check_op(rng, op, wanted, x, w, b, dtype=dtype, rounding=64).numpy()
    for t in range(y.shape[2]):
        later = x.copy()
        later[:, :, t * stride + 1 :] = np.nan
        np.testing.assert_array_equal(op(later, layer.w, layer.b).numpy()[:, :, : t + 1], y[:, :, : t + 1])


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (clnn.Conv1D(4, 3, padding="causal"), r"conv1d_1: an input has the shape \(batch, channels, length\)"),
        (
            clnn.Conv2D(4, 9),
            r"conv2d_1: a window of 9 does not fit along axis 2 of an input of shape \(1, 3, 8, 8\): \(8 \+ 0",
        ),
        (clnn.Conv2D(4, 3, groups=2), "conv2d_1: 3 input channels are not divisible by 2 groups"),
        (clnn.Conv2D(4, 3, groups=3), "conv2d_1: 4 output channels are not divisible by 3 groups"),
        (clnn.Conv1D(4, 3), r"conv1d_1: an input has the shape \(batch, channels, length\)"),
        (clnn.Conv2DTranspose(4, 3, padding=9), r"conv2d_transpose_1: .* gives no output: \(8 - 1\) \* 1 .* = -8"),
    ],
)
def test_inputs_that_do_not_fit(device, layer, message):
    with pytest.raises(clnn.ShapeError, match=message):
        clnn.Sequential([layer], input_shape=(3, 8, 8))


def test_another_number_of_channels_later(device):
    model = clnn.Sequential([clnn.Conv2D(4, 3)], input_shape=(3, 8, 8))
    with pytest.raises(clnn.ShapeError, match=r"conv2d_1: an input of shape \(1, 2, 8, 8\) does not fit weights"):
        model(np.ones((1, 2, 8, 8), np.float32))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: clnn.Conv2D(0, 3), "Conv2D's channels should be an integer of 1 or more, 0 was"),
        (lambda: clnn.Conv2D(4, (3, 3, 3)), r"Conv2D's kernel should be a whole number of 1 or more, or 2 of them; \(3, 3, 3\)"),
        (lambda: clnn.Conv2D(4, 3, stride=0), "Conv2D's stride should be"),
        (lambda: clnn.Conv2D(4, 3, padding=-1), 'Conv2D\'s padding should be "valid", "same"'),
        (lambda: clnn.Conv1D(4, 3, padding=-1), 'Conv1D\'s padding should be "valid", "same", "causal", a whole number'),
        (lambda: clnn.Conv2D(4, 3, padding="causal"), 'Conv2D\'s padding cannot be "causal": only Conv1D'),
        (lambda: clnn.Conv3D(4, 3, padding="causal"), 'Conv3D\'s padding cannot be "causal"'),
        (lambda: clnn.Conv1DTranspose(4, 3, padding="causal"), 'Conv1DTranspose\'s padding cannot be "causal"'),
        (lambda: clnn.MaxPool1D(3, padding="causal"), 'MaxPool1D\'s padding cannot be "causal"'),
        (lambda: clnn.Conv2D(4, 3, "gulp"), "there is no activation 'gulp'"),
        (lambda: clnn.Conv1DTranspose(4, 3, output_padding=1), "output_padding 1 should be smaller than the stride 1"),
        (
            lambda: clnn.Conv2DTranspose(4, 3, stride=2, padding="same", output_padding=1),
            "Conv2DTranspose's padding \"same\" says how large outputs are",
        ),
        (lambda: clnn.DepthwiseConv2D(3, groups=2), "as many groups as its input has channels"),
    ],
)  # fmt: skip
def test_arguments_that_make_no_layer(make, message):
    with pytest.raises(clnn.ConfigurationError, match=message):
        make()


def test_arguments_per_axis():
    assert per_axis("n", 2, 3) == (2, 2, 2) and per_axis("n", [1, 2], 2) == (1, 2)
    assert paddings("n", "valid", 2) == ((0, 0), (0, 0)) and paddings("n", [1, (2, 3)][:1], 1) == ((1, 1),)
    assert paddings("n", "causal", 1, causal=True) == "causal"
    assert paddings("n", ((1, 2), (0, 3)), 2) == ((1, 2), (0, 3)) and paddings("n", "same", 1) == "same"


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: clnn.Conv2D(3, 3, padding=2), (2, 2, 0, 6)),
        (lambda: clnn.Conv2D(3, 3, padding=2, stride=2), (2, 2, 6, 0)),
        (lambda: clnn.Conv1D(3, 3, padding=2), (2, 2, 0)),
        (lambda: clnn.Conv3D(3, 3, padding=2), (2, 2, 4, 0, 4)),
        (lambda: clnn.Conv2DTranspose(3, 3), (2, 2, 0, 6)),
        (lambda: clnn.DepthwiseConv2D(3, padding=2), (2, 2, 0, 6)),
    ],
)
def test_a_side_of_nothing_is_refused(device, layer, shape):
    """As pooling does; kernels would divide by it."""
    with pytest.raises(clnn.ShapeError, match=r"over no elements: the input's shape is \(2, 2, .*0"):
        layer()(clnn.tensor(np.zeros(shape), np.float32))
