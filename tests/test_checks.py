"""What users give: NumPy's integers wherever Python's are taken, and arrays that hold no numbers refused."""

import numpy as np
import pytest

import clnn
from clnn.checks import check_count, in_range, numbers, whole, whole_numbers

same_bits = np.testing.assert_array_equal
INTS = [int, np.int64, np.int32, np.uint8, lambda v: np.array(v)]


@pytest.mark.parametrize("kind", INTS, ids=["int", "int64", "int32", "uint8", "0-d array"])
def test_whole_numbers_of_every_kind(kind):
    assert whole(kind(3)) == 3 and type(whole(kind(3))) is int
    assert whole_numbers("x", kind(3)) == (3,) and whole_numbers("x", (kind(3), 4)) == (3, 4)
    assert type(check_count("x", kind(3))) is int
    with pytest.raises(clnn.ConfigurationError, match="x should be an integer of 4 or more"):
        check_count("x", kind(3), 4)


@pytest.mark.parametrize("bad", [True, np.True_, 2.0, np.float32(2), "2", None, [1.5], (1, None), np.array([1.0])])
def test_what_is_no_whole_number(bad):
    assert whole(bad) is None
    with pytest.raises(clnn.ShapeError, match="sizes takes whole numbers, and .* was given"):
        whole_numbers("sizes", bad)


@pytest.mark.parametrize("kind", [float, np.float32, np.longdouble, np.array, clnn.tensor])
def test_numbers_of_every_kind_lie_in_a_range(device, kind):
    assert in_range("x", kind(0.5), 0.0, 1.0) == 0.5 and type(in_range("x", kind(0.5), 0.0, 1.0)) is float
    with pytest.raises(clnn.ConfigurationError, match=r"x should be in \[0, 1\)"):
        in_range("x", kind(1.0), 0.0, 1.0)
    net = clnn.Sequential([clnn.Dense(2)], input_shape=3)
    rates = clnn.SGD(lambda step: kind(0.25) if step < 2 else kind(0.5))  # np.where, say, gives an array without axes
    history = net.fit(np.ones((2, 3)), np.zeros((2, 2)), loss="mse", optimizer=rates, epochs=3, progress=False)
    assert history["lr"] == [0.25, 0.25, 0.5]


@pytest.mark.parametrize(
    "bad", [True, np.array(True), np.complex64(0), np.array([0.5]), np.array("0"), "0", None, np.array(None)]
)
def test_what_is_no_number_lies_in_no_range(bad):
    with pytest.raises(clnn.ConfigurationError, match=r"x should be in \[0, 1\)"):
        in_range("x", bad, 0.0, 1.0)


@pytest.mark.parametrize("kind", INTS[1:], ids=["int64", "int32", "uint8", "0-d array"])
@pytest.mark.parametrize(
    "call",
    [
        lambda t, i: t.reshape(i(20), i(8)),
        lambda t, i: t.reshape(i(160)),
        lambda t, i: t.reshape([i(4), 40]),
        lambda t, i: t.transpose(i(1), i(0)),
        lambda t, i: t.sum(i(0)),
        lambda t, i: t.max((i(0), i(1)), keepdims=True),
        lambda t, i: t.argmax(i(0)),
        lambda t, i: t.broadcast_to((i(2), 20, 8)),
        lambda t, i: t[i(1)],
        lambda t, i: t[i(1) : i(5), i(2)],
        lambda t, i: clnn.split(t, i(2), i(1))[1],
        lambda t, i: clnn.split(t, [i(5), i(15)])[0],
        lambda t, i: clnn.concatenate([t, t], i(1)),
        lambda t, i: clnn.zeros((i(2), i(3))),
        lambda t, i: clnn.ones(i(3)),
        lambda t, i: clnn.tensor(np.ones((2, 3, 8, 8), "f4")) + clnn.zeros(i(1)),
        lambda t, i: clnn.max_pool(t.reshape(1, 1, 20, 8), i(2), i(1)),
        lambda t, i: clnn.upsample(t.reshape(1, 1, 20, 8), i(2)),
        lambda t, i: clnn.pad(t.reshape(1, 1, 20, 8), [i(2), (i(1), i(0))]),
        lambda t, i: t * i(3) - i(1),
        lambda t, i: clnn.take_rows(t, [i(3), i(1)]),
        lambda t, i: clnn.metrics.top_k(i(2))(t, np.zeros(20, int)),
    ],
)
def test_numpy_integers_where_python_ones_are_taken(device, kind, call):
    t = clnn.tensor(np.arange(160, dtype=np.float32).reshape(20, 8))
    got, want = call(t, kind), call(t, int)
    assert all(type(size) is int for size in got.shape)
    same_bits(got, want)


def test_layers_of_numpy_integers_train_and_are_saved(device, tmp_path):
    i = np.int64
    net = clnn.Sequential(
        [
            clnn.Conv2D(i(2), i(3), stride=(i(1), i(1)), padding=i(1), dilation=i(1), groups=i(1)),
            clnn.BatchNorm(),
            clnn.AdaptiveAvgPool(i(2)),
            clnn.Reshape((i(2), i(-1))),
            clnn.LayerNorm(i(-1)),
            clnn.Flatten(),
            clnn.Dropout(np.float32(0.25)),
            clnn.Dense(np.prod((1, 2))),
        ],
        input_shape=(1, *np.array([8, 8])),
        seed=i(1),
    )
    x, y = np.random.default_rng(0).random((10, 1, 8, 8)), np.arange(10) % 2
    net.fit(x, y, loss="cross_entropy", optimizer=clnn.SGD(0.1), epochs=i(1),
            batch_size=i(5), seed=i(3), progress=False)  # fmt: skip
    net.save(tmp_path / "net")
    same_bits(clnn.load(tmp_path / "net").predict(x, batch_size=i(4)), net.predict(x))


def test_a_kernel_learns_nothing_from_its_first_call(device):
    """Two calls of one kernel, with NumPy's types and with Python's, in either order."""
    for kinds in ((np.int64, int), (int, np.int64), (np.uint16, int), (np.float64, float)):
        y = clnn.tensor(np.zeros(3, np.float32))
        device.programs._kernels.clear()
        for kind in kinds:
            number = 3 if kind in (np.float64, float) else kind(3)
            value = kind(1.5) if kind in (np.float64, float) else np.float32(1.5)
            device.launch("elementwise", "fill", (3,), number, y.block, value)
            same_bits(y, np.full(3, 1.5, np.float32))
    with pytest.raises(clnn.DeviceError, match="the size 4,294,967,296"):
        device.launch("elementwise", "fill", (3,), np.int64(1 << 32), y.block, 1.0)
    with pytest.raises(clnn.DeviceError, match="takes buffers, numbers and short vectors of int32"):
        device.launch("elementwise", "fill", (3,), 3, y.block, "1")


MASKED = np.ma.array([1.0, 2.0, 3.0], mask=[0, 1, 0])


@pytest.mark.parametrize(
    "bad",
    [
        MASKED,
        [MASKED, MASKED],
        np.ones(3, complex),
        np.array([1, None, 3], object),
        np.array(["1", "2", "3"]),
        ["1", "2", "3"],
        np.zeros(3, [("a", "f4")]),
        np.zeros(3, "M8[s]"),
        [[1.0], [1.0, 2.0]],
        [{}, {}, {}],
    ],
    ids=str,
)
def test_arrays_that_hold_no_numbers(bad):
    with pytest.raises(clnn.DataError, match="the weights"):
        numbers(bad, "the weights")
    assert numbers(np.ma.array([1.0, 2.0]), "x").tolist() == [1.0, 2.0]  # nothing is masked
    if getattr(bad, "dtype", np.dtype(float)).kind in "Vc":  # of which .astype("float32") makes no columns
        with pytest.raises(clnn.DataError, match="make columns, of fields .* of parts"):
            numbers(bad, "x")


@pytest.mark.parametrize("make", [lambda: clnn.Input((None, 3)), lambda: clnn.Sequential([clnn.LSTM(2)], (None, 3))])
def test_an_axis_of_any_size_is_given_one_that_occurs(make):
    with pytest.raises(
        clnn.ShapeError, match=r"and \(None, 3\) was given; for None give one that occurs, others go too"
    ):
        make()


@pytest.mark.parametrize(
    "call",
    [lambda: clnn.zeros(-3), lambda: clnn.ones((2, -1)), lambda: clnn.ones((2, 1)).broadcast_to((2, -1)),
     lambda: clnn.zeros(2.0)],
)  # fmt: skip
def test_sizes_are_whole_and_not_negative(device, call):
    with pytest.raises(clnn.ShapeError, match="takes (sizes of 0 or more|whole numbers), and .* was given"):
        call()


def test_numpys_bools_and_floats_in_layers(device, tmp_path):
    layers = [
        clnn.Conv2D(2, 3, bias=np.False_, weight_init=np.float32(0.5)),
        clnn.BatchNorm(momentum=np.float32(0.5), affine=np.True_),
        clnn.Dense(2, bias=np.True_, bias_init=np.float64(2)),
    ]
    net = clnn.Sequential(layers, input_shape=(1, 4, 4))
    net.save(tmp_path / "net")
    same_bits(clnn.load(tmp_path / "net").layers[0].w, np.full((2, 1, 3, 3), 0.5, np.float32))
    same_bits(net.layers[2].b, [2, 2])


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_one_class_alone_is_refused(name):
    with pytest.raises(clnn.ConfigurationError, match='is always 1, so that nothing is learned; take "sigmoid"'):
        clnn.Dense(1, name)


def _reads(tmp_path):
    @clnn.step
    def reads(x):
        return x * float(x.sum())

    for _ in range(3):
        reads(np.ones(3))


def _saves(tmp_path):
    net = clnn.Sequential([clnn.Dense(2)], input_shape=3, seed=0)
    net.fit(
        np.ones((4, 3)),
        np.ones((4, 2)),
        loss=lambda y, t: ((y - t) ** 2).mean(),
        optimizer="sgd",
        epochs=1,
        progress=False,
    )
    net.save(tmp_path / "net")


def _takes_bytes(tmp_path):
    net = clnn.Sequential([clnn.Dense(2)], input_shape=64, seed=0)
    net.predict(np.full((2, 64), 200, np.uint8))


def _fits_bytes(tmp_path):
    net = clnn.Sequential([clnn.Dense(2)], input_shape=64, seed=0)
    net.fit(np.full((2, 64), 200, np.uint8), [0, 1], loss="cross_entropy", optimizer="sgd", epochs=1, progress=False)


def _has_channels_last(tmp_path):
    clnn.Sequential([clnn.Conv2D(4, 3)], input_shape=(32, 32, 3))


@pytest.mark.parametrize("do", [_reads, _saves, _takes_bytes, _fits_bytes, _has_channels_last])
def test_warnings_show_the_line_that_called_clnn(do, tmp_path, device):
    """Not one of clnn's, through whose locks, contexts and steps the calls went."""
    with pytest.warns(UserWarning) as said:
        do(tmp_path)
    first = do.__code__.co_firstlineno
    assert {one.filename for one in said} == {__file__}
    assert all(first < one.lineno <= max(line for *_, line in do.__code__.co_lines() if line) for one in said)


@pytest.mark.parametrize(
    "x, told",
    [
        ([[1, 2, 3], [4, 5]], "x is no array of numbers: its rows differ in length; sequences .* are padded to one"),
        ([np.ones((2, 5)), np.ones((2, 3))], "x is no array of numbers: its rows differ in length"),
        (np.array([[1, 2, 3], [4, 5]], object), "not of list: numpy.stack makes .*; sequences .* are padded to one"),
        ([np.array([1, 2]), np.array([3])], "its rows differ in length.* Masking or Embedding"),
        (np.array([*map(np.ones, (2, 3)), None], object)[:2], "not of ndarray: numpy.stack"),
    ],
)
def test_sequences_of_different_lengths_are_told_to_be_padded(device, x, told):
    """The error was NumPy's own, or advised .astype('float32'), which fails."""
    with pytest.raises(clnn.DataError, match=told):
        clnn.Sequential([clnn.Embedding(9, 4), clnn.LSTM(5)]).predict(x)
