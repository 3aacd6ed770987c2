"""Looking into networks: what layers compute, drawings of networks, pictures by Matplotlib, and what notebooks show."""

import builtins
import re
import threading
import xml.etree.ElementTree as ET

import numpy as np
import pytest

import clnn
from clnn import looking


class Own(clnn.Model):
    """A model with layers in a model in it, one that is used twice, and sums between layers."""

    def __init__(self):
        self.encoder = clnn.Sequential([clnn.Dense(6, "relu"), clnn.Dropout(0.5)])
        self.mix, self.out = clnn.Dense(6, "tanh"), clnn.Dense(3)

    def forward(self, x):
        h = self.encoder(x)
        return self.out(self.mix(self.mix(h)) + h)


@pytest.fixture
def x(rng):
    return rng.normal(size=(9, 5)).astype(np.float32)


def sequential():
    layers = [clnn.Dense(6, "relu"), clnn.BatchNorm(), clnn.Dropout(0.5), clnn.Dense(3)]
    return clnn.Sequential(layers, input_shape=5, seed=1)


def graph():
    a = clnn.Input(5)
    shared = clnn.Dense(5, "tanh")
    b = shared(shared(a))
    return clnn.Model(a, {"sum": clnn.Dense(2)(b + a), "same": b})


# -- what layers compute -----------------------------------------------------------------------------------------------
def test_activations_are_what_layers_make_of_each_other_s(device, x):
    net = sequential()
    found = looking.activations(net, x, batch_size=4)
    assert list(found) == ["dense_1", "batch_norm_1", "dropout_1", "dense_2"]
    with clnn.no_grad():
        y = clnn.tensor(x)
        for layer in net.layers:
            y = layer(y)
            assert np.allclose(found[layer.name], y.numpy(), atol=1e-6)
    assert np.array_equal(found["dropout_1"], found["batch_norm_1"])

    net = Own()
    found = looking.activations(net, x)
    assert list(found) == ["dense_1", "dropout_1", "mix", "mix (2)", "out"]
    assert np.allclose(found["out"], net.predict(x), atol=1e-6)
    with clnn.no_grad():
        assert np.allclose(found["mix (2)"], net.mix(found["mix"]).numpy(), atol=1e-6)

    net = graph()
    found = looking.activations(net, x)
    assert [*found] == ["dense_1", "dense_1 (2)", "add_1", "dense_2"]
    assert np.allclose(found["dense_1 (2)"], net.predict(x)["same"], atol=1e-6)


def test_convolutions_that_inference_joins_with_pooling_are_seen_apart(device, rng):
    net = clnn.Sequential(
        [clnn.Conv2D(3, 3, "relu"), clnn.MaxPool2D(2), clnn.Flatten(), clnn.Dense(2)], input_shape=(2, 8, 8)
    )
    x = rng.normal(size=(4, 2, 8, 8)).astype(np.float32)
    found = looking.activations(net, x)
    assert found["conv2d_1"].shape == (4, 3, 6, 6)
    assert np.array_equal(found["max_pool2d_1"], found["conv2d_1"].reshape(4, 3, 3, 2, 3, 2).max((3, 5)))
    assert np.allclose(found["dense_1"], net.predict(x), atol=1e-5)


def test_looking_changes_nothing(device, x):
    """Weights, statistics, modes and what is trainable stay; recordings go on; no layer keeps what noted it."""
    y = np.arange(9) % 3

    def run(looks):
        net = sequential()
        net.layers[0].trainable = False
        options = {"loss": "cross_entropy", "epochs": 2, "batch_size": 3, "progress": False, "seed": 1}
        net.fit(x, y, optimizer="adam", **options)
        if looks:
            looking.activations(net, x), looking.gradient_of_inputs(net, x), net.plot(), net._repr_html_()
            assert not any("forward" in vars(one) or "with_next" in vars(one) for one in net.layers_inside())
            assert [one.trainable for one in net.layers] == [False, True, True, True]
            assert all(one.training for one in net.layers_inside())
        net.fit(x, y, optimizer="adam", **options)
        return net.state_dict()

    with_, without = run(True), run(False)
    assert all(np.array_equal(with_[name], without[name]) for name in without)


def test_a_layer_that_fails_leaves_nothing_behind(device, x):
    net = Own()
    net(x)
    net.out.forward = lambda y: 1 / 0
    with pytest.raises(ZeroDivisionError):
        looking.activations(net, x)
    assert "forward" not in vars(net.mix)


def test_another_thread_that_computes_is_not_noted(device, x):
    net, other = sequential(), sequential()
    end = threading.Event()

    def spin():
        while not end.is_set():
            with clnn.no_grad():
                net(x), other.predict(x)

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        for _ in range(10):
            assert list(looking.activations(net, x)) == ["dense_1", "batch_norm_1", "dropout_1", "dense_2"]
    finally:
        end.set()
        thread.join(60)


def test_activations_of_onnx(device, x, tmp_path):
    pytest.importorskip("onnx")
    net = clnn.Sequential([clnn.Dense(6, "relu"), clnn.Dense(3)], input_shape=5, seed=1)
    clnn.onnx.save(net, tmp_path / "net.onnx")
    model = clnn.onnx.load(tmp_path / "net.onnx")
    mine, theirs = looking.activations(net, x), looking.activations(model, x)
    assert np.allclose([*theirs.values()][-1], mine["dense_2"], atol=1e-5)
    assert any(y.shape == mine["dense_1"].shape and np.allclose(y, mine["dense_1"], atol=1e-5) for y in theirs.values())
    assert np.allclose(model(x), net.predict(x), atol=1e-5)
    assert np.allclose(looking.gradient_of_inputs(model, x), looking.gradient_of_inputs(net, x), atol=1e-5)
    svg = model.plot().svg
    assert svg.count("<g ") == 2 + len(model.graph.nodes)
    assert "Gemm" in svg or "MatMul" in svg
    assert "&lt;" not in model._repr_html_() and "nodes" in model._repr_html_()


def test_what_cannot_be_looked_at(device, x):
    for wrong in (3, None, clnn.History()):
        with pytest.raises(clnn.ConfigurationError, match="a model is looked at"):
            looking.activations(wrong, x)
    with pytest.raises(clnn.DataError, match="no samples"):
        looking.activations(sequential(), x[:0])
    with pytest.raises(clnn.ConfigurationError, match="not built"):
        clnn.Sequential([clnn.Dense(2)]).plot()
    with pytest.raises(clnn.ShapeError):
        looking.activations(sequential(), x[:, :3])


def test_the_gradient_of_inputs_is_that_of_differences(device, rng):
    """At inference: dropout drops nothing, and statistics are the running ones."""
    net = sequential()
    x = rng.normal(size=(70, 5)).astype(np.float32)
    net.fit(x, np.arange(70) % 3, loss="cross_entropy", optimizer="adam", epochs=2, progress=False)
    labels = rng.integers(0, 3, 70)
    found = looking.gradient_of_inputs(net, x, labels)
    assert found.shape == x.shape
    score = lambda x: net.predict(x)[np.arange(70), labels].astype(np.float64)  # noqa: E731
    for i in range(5):
        step = np.zeros(5, np.float32)
        step[i] = 1e-2
        expected = np.abs(score(x + step) - score(x - step)) / 2e-2
        assert np.median(np.abs(found[:, i] - expected)) < 1e-3
    best = looking.gradient_of_inputs(net, x)
    assert np.array_equal(best, looking.gradient_of_inputs(net, x, net.predict_classes(x)))
    with pytest.raises(clnn.ShapeError, match="y has the shape"):
        looking.gradient_of_inputs(net, x, labels[:3])
    with pytest.raises(clnn.DataError, match="outside 0 to 2"):
        looking.gradient_of_inputs(net, x, labels + 3)


# -- drawings ----------------------------------------------------------------------------------------------------------
def boxes(svg):
    """The titles of boxes, and how many lines and dashed ones there are."""
    root = ET.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    titles = [one.text for one in root.iter(f"{space}title")]
    lines = list(root.iter(f"{space}path"))
    return titles, len(lines), sum("stroke-dasharray" in one.attrib for one in lines)


def test_drawings_have_all_layers_and_lines(device, x, tmp_path):
    titles, lines, dashed = boxes(sequential().plot().svg)
    assert [re.match(r"[\w.]+", one)[0] for one in titles] == [
        "x",
        "dense_1",
        "batch_norm_1",
        "dropout_1",
        "dense_2",
        "output",
    ]
    assert (lines, dashed) == (5, 0) and "36 parameters" in titles[1]

    titles, lines, dashed = boxes(graph().plot().svg)
    assert len(titles) == 1 + 4 + 2 and (lines, dashed) == (1 + 1 + 2 + 1 + 2, 0)
    assert "the same" in titles[2]

    net = Own()
    net(x)
    titles, lines, dashed = boxes(net.plot(tmp_path / "net.svg").svg)
    assert len(titles) == 7 and dashed == 1  # what out is given is a sum
    assert (tmp_path / "net.svg").read_text(encoding="utf-8") == net.plot()._repr_svg_()
    with pytest.raises(clnn.ConfigurationError, match="ends in .svg"):
        net.plot("net.png")
    with pytest.raises(clnn.DataError, match="cannot be written"):
        net.plot(tmp_path / "net.svg" / "x.svg")


def test_names_are_escaped_in_drawings_and_tables(device):
    layer = clnn.Dense(2)
    layer.name = '<script>alert("1")</script>&'
    net = clnn.Sequential([layer], input_shape=3)
    for text in (net.plot().svg, net._repr_html_()):
        assert "<script" not in text and "&lt;script&gt;" in text
        ET.fromstring(text)
    history = clnn.History()
    history.add({"<b>": 1.0})
    history.add({"<b>": float("nan")})
    assert "<b>" not in history._repr_html_()
    ET.fromstring(history._repr_html_())


def test_deep_and_wide_networks_are_drawn(device):
    a = clnn.Input(3)
    ends = [clnn.Dense(2, name)(a) for name in ("relu", "tanh", "sigmoid", "gelu")]
    y = ends[0]
    for one in (*ends[1:], *ends):
        y = clnn.Activation("tanh")(y) + one
    titles, lines, dashed = boxes(clnn.Model(a, y).plot().svg)
    assert len(titles) == 1 + 4 + 14 + 1 and lines == 4 + 7 + 14 + 1 and not dashed


# -- notebooks ---------------------------------------------------------------------------------------------------------
def test_what_notebooks_show(device, x):
    net = sequential()
    shown = net._repr_html_()
    assert all(word in shown for word in ("batch_norm_1", "36", "trainable", "(None, 3)"))
    assert "Own" in Own()._repr_html_() and "Dense" in clnn.Sequential([clnn.Dense(2)])._repr_html_()
    history = net.fit(x, np.arange(9) % 3, loss="cross_entropy", optimizer="adam", epochs=3, progress=False)
    assert f"{history['loss'][-1]:.4g}" in history._repr_html_() and "3 epochs" in history._repr_html_()
    t = clnn.tensor(np.arange(5000).reshape(50, 100))
    assert "(50, 100)" in t._repr_html_() and len(t._repr_html_()) < 5000
    assert device.name.replace("&", "&amp;") in device._repr_html_()
    for one in (net, history, t, device, clnn.History(), clnn.tensor(1.0), clnn.zeros((0, 3))):
        ET.fromstring(one._repr_html_())


# -- Matplotlib --------------------------------------------------------------------------------------------------------
@pytest.fixture
def plt(monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


@pytest.fixture(scope="module")
def digits():
    (x, y), (x_test, y_test) = clnn.data.digits()
    layers = [clnn.Reshape((1, 8, 8)), clnn.Conv2D(5, 3, "relu"), clnn.Flatten(), clnn.Dropout(0.2), clnn.Dense(10)]
    net = clnn.Sequential(layers, input_shape=64, seed=1)
    over = looking.OverTime()
    net.fit(x, y, loss="cross_entropy", optimizer="adam", epochs=2, callbacks=[over], progress=False, seed=1)
    return net, x_test, y_test, over


def test_pictures_of_a_classifier(device, digits, plt, tmp_path):
    net, x, y, over = digits
    predicted = net.predict_classes(x)
    wrong = np.flatnonzero(predicted != y)
    assert 0 < len(wrong) < 200

    figure = looking.confusion(net, x, y)
    numbers = [int(one.get_text()) for one in figure.axes[0].texts]
    assert np.array_equal(np.reshape(numbers, (10, 10)), clnn.metrics.confusion_matrix(predicted, y, 10))

    figure = looking.mistakes(net, x, y, most=4)
    assert figure.get_suptitle().startswith(f"{len(wrong)} of {len(y)} samples")
    shown = [int(axis.get_xlabel().split()[1]) for axis in figure.axes if axis.get_xlabel()]
    sure = net.predict_proba(x).max(1)
    assert shown == list(wrong[np.argsort(-sure[wrong], kind="stable")][:4])
    first = figure.axes[0]
    assert first.get_title() == f"{y[shown[0]]}, not {predicted[shown[0]]}"
    assert np.array_equal(first.images[0].get_array(), x[shown[0]].reshape(8, 8))
    with pytest.raises(clnn.DataError, match="no mistake to show"):
        looking.mistakes(net, x, predicted)
    with pytest.raises(clnn.ShapeError, match="classes predicted"):
        looking.mistakes(net, x, y[:-1])

    figure = looking.filters(net)
    assert np.array_equal(figure.axes[4].images[0].get_array(), dict(net.named_parameters())["1.w"].numpy()[4, 0])
    with pytest.raises(clnn.ConfigurationError, match="'dense_1' is none; there are conv2d_1.w"):
        looking.filters(net, "dense_1")
    dense = clnn.Sequential([clnn.Dense(3)], input_shape=64)
    figure = looking.filters(dense, "dense_1")
    assert np.array_equal(figure.axes[2].images[0].get_array(), dense.layers[0].w.numpy()[:, 2].reshape(8, 8))
    with pytest.raises(clnn.ConfigurationError, match="this model has none"):
        looking.filters(sequential())

    figure = looking.histograms(net, x[:50])
    named = {axis.get_title().split("\n")[0]: sum(bar.get_height() for bar in axis.patches) for axis in figure.axes}
    assert {name: y.size for name, y in looking.activations(net, x[:50]).items()} == {
        n: c for n, c in named.items() if n
    }

    figure = looking.saliency(net, x, y, most=3)
    assert len(figure.axes) == 6
    expected = looking.gradient_of_inputs(net, x[:3], y[:3])
    assert np.array_equal(figure.axes[4].images[0].get_array(), expected[1].reshape(8, 8))

    assert over.spread["conv2d_1.w"][-1][2] == pytest.approx(np.median(net.layers[1].w.numpy()))
    assert all(len(rows) == 3 for rows in over.spread.values()) and len(over.history["dense_1"]) == 3
    figure = over.plot()
    assert [axis.get_title() for axis in figure.axes][:2] == ["conv2d_1.w", "conv2d_1.b"]
    with pytest.raises(clnn.ConfigurationError, match="nothing was followed yet"):
        looking.OverTime().plot()

    for name, draw in {"a": looking.confusion, "b": looking.mistakes, "c": looking.saliency}.items():
        draw(net, x, y, path=tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_regions_of_decision(device, rng, plt):
    x = rng.normal(size=(60, 2)).astype(np.float32)
    y = (x[:, 0] > 0).astype(int)
    net = clnn.Sequential([clnn.Dense(2)], input_shape=2, seed=1)
    net.load_state_dict({"0.w": [[-9, 9], [0, 0]], "0.b": [0, 0]})
    figure = looking.regions(net, x, y, steps=51)
    image = figure.axes[0].images[0]
    found, (left, right, *_) = np.asarray(image.get_array()), image.get_extent()
    across = np.linspace(left, right, 51)
    assert found.shape == (51, 51) and np.array_equal(found, np.tile(across > 0, (51, 1)))
    one = clnn.Sequential([clnn.Dense(1, "sigmoid")], input_shape=2, seed=1)
    assert looking.regions(one, x, y, steps=9)
    for a, b in ((x[:, :1], y), (x, y[:3]), (x[0], y)):
        with pytest.raises(clnn.ShapeError, match="two features"):
            looking.regions(net, a, b)
    with pytest.raises(clnn.DataError):
        looking.regions(net, x, y + 2)


def test_pictures_in_colours_and_what_is_no_picture(device, rng, plt):
    net = clnn.Sequential([clnn.Conv2D(4, 3), clnn.Flatten(), clnn.Dense(2)], input_shape=(3, 6, 6), seed=1)
    x = rng.random((5, 3, 6, 6)).astype(np.float32)
    assert looking.filters(net).axes[0].images[0].get_array().shape == (3, 3, 3)
    assert looking.saliency(net, x).axes[0].images[0].get_array().shape == (6, 6, 3)
    assert looking.mistakes(net, x, 1 - net.predict_classes(x))
    flat = clnn.Sequential([clnn.Dense(2)], input_shape=5, seed=1)
    with pytest.raises(clnn.DataError, match="pictures have the shape"):
        looking.mistakes(flat, x[:, 0, 0, :5], [0, 0, 0, 1, 1])


def test_a_history_is_drawn_with_every_metric(device, plt):
    history = clnn.History()
    with pytest.raises(clnn.ConfigurationError, match="nothing was measured"):
        history.plot()
    for i in range(3):
        history.add(
            {"loss": 1 / (i + 1), "val_loss": 1.0, "accuracy": 0.5, "f1": 0.1, "val_f1": 0.2, "lr": 0.1, "seconds": 1.0}
        )
    names = [[line.get_label() for line in axis.lines] for axis in history.plot().axes]
    assert names == [["loss", "val_loss"], ["accuracy"], ["f1", "val_f1"]]


def test_without_matplotlib_the_error_says_what_to_install(device, digits, monkeypatch):
    net, x, y, over = digits
    real = builtins.__import__

    def without(name, *args, **options):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **options)

    history = clnn.History()
    history.add({"loss": 1.0})
    monkeypatch.setattr(builtins, "__import__", without)
    for draw in (
        lambda: looking.confusion(net, x, y),
        lambda: looking.mistakes(net, x, y),
        lambda: looking.filters(net),
        lambda: looking.histograms(net, x),
        lambda: looking.regions(net, x, y),
        lambda: looking.saliency(net, x),
        over.plot,
        history.plot,
        clnn.metrics.report([0], [0]).plot,
    ):
        with pytest.raises(clnn.ConfigurationError, match=r"\(\) needs matplotlib: pip install matplotlib"):
            draw()
    assert net.plot() and net._repr_html_()
