"""What fit says of samples and targets as people bring them: labels of every type, frames, bytes, images with channels last."""

import numpy as np
import pytest

import clnn

Y = np.arange(40) % 3
X = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
NAMES = np.array(["cat", "dog", "owl"])


def fit(x, y, outputs=3, loss="cross_entropy", activation=None, **options):
    net = clnn.Sequential([clnn.Dense(outputs, activation)], input_shape=6, seed=0)
    return net.fit(x, y, loss=loss, optimizer="sgd", progress=False, seed=0, **options)


@pytest.mark.parametrize(
    ("y", "said"),
    [
        (NAMES[Y], r"not of <U3: names of classes become numbers with names, y = numpy.unique\(y, return_inverse=True\)"),
        (NAMES[Y].tolist(), "not of <U3: names of classes"),
        (NAMES[Y].astype(object), "not of str: names of classes"),
        (NAMES[Y][:, None], "not of <U3: names of classes"),
        (NAMES[Y].astype(bytes), r"not of \|S3: names of classes"),
        (Y > 0, r"y is bool: for class numbers give y.astype\('int32'\)"),
        (Y.astype(float), r"y is float64: for class numbers give y.astype\('int32'\)"),
        (Y + 0.5, "y holds float64 that are no whole numbers"),
        (Y[:, None], r"y is a column of int64: for class numbers give y.ravel\(\)$"),
        (Y[:, None].astype("float32"), r"y is a column of float32: for class numbers give y.ravel\(\).astype"),
        (Y[:, None] > 0, r"y is a column of bool: for class numbers give y.ravel\(\).astype"),
        (Y.astype(complex), "not of complex128: make columns"),
        (Y.astype("datetime64[D]"), "not of datetime64.D.: convert it"),
    ],
    ids=["str", "list", "object", "column of str", "bytes", "bool", "float", "halves", "column", "column of float",
         "column of bool", "complex", "dates"],
)  # fmt: skip
def test_labels_that_are_no_class_numbers_are_told_by_their_type(y, said):
    with pytest.raises((clnn.DataError, clnn.ShapeError), match=said):
        fit(X, y)


def test_a_wrong_shape_of_values_is_no_matter_of_type():
    with pytest.raises(clnn.ShapeError, match=r"mse: targets of shape \(40,\) do not fit outputs of shape \(40, 3\)$"):
        fit(X, Y.astype(float), loss="mse")


@pytest.mark.parametrize("y", [Y > 0, (Y > 0).astype(int), (Y > 0).astype("float32"), (Y > 0)[:, None], (Y > 0)[:, None] * 1.0],
                         ids=["bool", "int", "float", "column of bool", "column of float"])  # fmt: skip
@pytest.mark.parametrize("activation", ["sigmoid", None])
def test_yes_and_no_have_an_accuracy(y, activation, device):
    stop = clnn.EarlyStopping("val_accuracy", patience=9)
    history = fit(X, y, 1, "binary_cross_entropy", activation, epochs=2, validation=(X, y), callbacks=[stop])
    net = clnn.Sequential([clnn.Dense(1, activation)], input_shape=6, seed=0)
    no_yes = (Y > 0).astype("int32")
    want = fit(X, no_yes, 1, "binary_cross_entropy", activation, epochs=2, validation=(X, no_yes))
    for name in ("accuracy", "val_accuracy"):
        assert history[name] == pytest.approx(want[name])
    net.fit(X, y, loss="binary_cross_entropy", optimizer="sgd", progress=False)
    found = net.evaluate(X, y)["accuracy"]
    assert found == pytest.approx((net.predict_classes(X) == (Y > 0)).mean())


def test_probabilities_have_no_accuracy():
    assert "accuracy" not in fit(X, np.full((40, 1), 0.3), 1, "binary_cross_entropy", "sigmoid").history


@pytest.mark.parametrize("form", [lambda y: y, lambda y: np.eye(3)[y]], ids=["numbers", "one-hot"])
def test_balanced_classes(form):
    """As scikit-learn's compute_class_weight: n / (classes n_c), of the classes that are there."""
    y = np.minimum(np.arange(40) // 10, 2) % 3  # 10, 10, 20
    weights = {0: 40 / 30, 1: 40 / 30, 2: 40 / 60}
    found, want = (fit(X, form(y), class_weight=w, shuffle=False)["loss"] for w in ("balanced", weights))
    assert found == pytest.approx(want, rel=1e-6)
    two = np.where(y == 1, 0, y)
    found, want = (fit(X, form(two), class_weight=w, shuffle=False)["loss"] for w in ("balanced", {0: 1.0, 2: 1.0}))
    assert found == pytest.approx(want, rel=1e-6)
    with pytest.raises(clnn.ConfigurationError, match="or is \"balanced\"; 'balance' was given"):
        fit(X, form(y), class_weight="balance")


def test_balanced_classes_leave_out_what_the_loss_ignores():
    y = np.where(np.arange(40) < 8, -1, np.minimum(Y, 1))
    loss = clnn.losses.CrossEntropy(ignore_index=-1)
    n = np.bincount(y[y >= 0])
    weights = dict(enumerate(n.sum() / (2 * n)))
    found, want = (fit(X, y, loss=loss, class_weight=w, shuffle=False)["loss"] for w in ("balanced", weights))
    assert found == pytest.approx(want, rel=1e-6)


def test_a_frame_s_error_names_its_columns():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"age": X[:, 0], "job": NAMES[Y], "born": pandas.Timestamp("2020-01-01"), "pay": 1.0})
    with pytest.raises(
        clnn.DataError,
        match=r"its columns 'job' \((object, such as '\w+'|str, no numbers)\), 'born' \(datetime64\[\w+\], no numbers\) hold",
    ):
        fit(frame, Y)
    frame = pandas.DataFrame(X, columns=list("abcdef"))
    frame.loc[3, "e"] = np.nan
    with pytest.raises(clnn.DataError, match=r"x\[3, 4\] is nan.* the columns with such values are 'e'"):
        fit(frame, Y)
    frame["e"] = pandas.array([1, None] * 20, dtype="Int64")
    with pytest.raises(clnn.DataError, match="the columns with such values are 'e'"):
        fit(frame, Y)
    frame["e"] = pandas.array([1, 2] * 20, dtype="Int64")
    frame["f"] = [True, False] * 20
    want = fit(np.column_stack([X[:, :4], [1, 2] * 20, [1, 0] * 20]), Y)["loss"]
    assert fit(frame, Y)["loss"] == pytest.approx(want, rel=1e-5)


def test_bytes_above_one_warn():
    given, said = (
        {"loss": "cross_entropy", "optimizer": "sgd", "progress": False},
        r"x holds bytes up to 200.*give x / 255",
    )
    for shape in ((64,), (1, 4, 4)):
        net = clnn.Sequential([clnn.Flatten(), clnn.Dense(3)], input_shape=shape)
        images = np.full((40, *shape), 200, np.uint8)
        with pytest.warns(UserWarning, match=said):
            net.fit(images, Y, **given)
        with pytest.warns(UserWarning, match=said):
            net.predict(images)
        net.fit(images // 200, Y, **given), net.fit(images.astype(np.int32), Y, **given)
    fit(np.full((40, 6), 200, np.uint8), Y)  # a table of counts


def convolution(shape, **options):
    return clnn.Sequential([clnn.Conv2D(2, 3, **options), clnn.Flatten(), clnn.Dense(2)], input_shape=shape)


def test_channels_last_is_told():
    with pytest.warns(
        UserWarning, match=r"inputs of shape \(32, 32, 3\) have 32 channels; clnn takes images as \(channels, h"
    ):
        convolution((32, 32, 3), padding="same")
    with (
        pytest.warns(UserWarning, match="have 28 channels"),
        pytest.raises(
            clnn.ShapeError, match=r"larger inputs; clnn takes images as \(channels, height, width\): give x.trans"
        ),
    ):
        convolution((28, 28, 1))
    net = convolution((1, 28, 28))
    with pytest.raises(clnn.ShapeError, match=r"\(1, 28, 28, 1\).*clnn takes images as \(channels, height, width\)"):
        net.predict(np.zeros((2, 28, 28, 1), np.float32))
    with pytest.raises(clnn.ShapeError, match=r"\(1, 28, 28, 1\).*clnn takes images as \(channels, height, width\)"):
        convolution((1, 28, 28), padding="same").predict(np.zeros((2, 28, 28, 1), np.float32))
    convolution((3, 32, 32)), convolution((64, 5, 1), padding="same"), convolution((16, 8, 8))
    volumes = clnn.Conv3D(2, 3, padding="same")
    with pytest.warns(
        UserWarning, match=r"have 8 channels; clnn takes volumes as .*: give x.transpose\(0, 4, 1, 2, 3\)"
    ):
        volumes(np.zeros((1, 8, 9, 8, 1), np.float32))


def test_columns_of_objects_say_what_is_in_them():
    """It was advised to encode numbers in them as categories."""
    pandas = pytest.importorskip("pandas")
    net, frame = clnn.Sequential([clnn.Dense(2)], input_shape=2), pandas.DataFrame({"a": [1.0, 2.0], "b": [3, 4]})
    mixed = frame.assign(b=frame["b"].astype(object))
    with pytest.raises(
        clnn.DataError, match=r"numbers as objects in its columns 'b' \(object\): .*astype\('float32'\)"
    ):
        net.predict(mixed)
    assert net.predict(mixed.astype("float32")).tolist() == net.predict(frame).tolist()
    for wrong in (None, "x"):
        with pytest.raises(clnn.DataError, match=rf"its columns 'b' \(object, such as {wrong!r}\) hold others"):
            net.predict(mixed.assign(b=pandas.Series([3, wrong], dtype=object), a=frame["a"].astype(object)))
