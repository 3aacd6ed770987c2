"""The examples run as they stand, with MNIST (where the tests can have it) and, without it, on the digits."""

import ast
import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import clnn

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
ACCURACY = r"test (?:set: |accuracy )([\d.]+)%"


def limit():
    """Seconds that an example may take: llvmpipe is slow."""
    return 1800 if clnn.device().platform == "rusticl" else 300


def run(name, *arguments, **variables):
    """What an example prints."""
    command = [sys.executable, "-W", "error::UserWarning", EXAMPLES / f"{name}.py", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", timeout=limit(), env={**os.environ, **variables}
    )
    if refused := re.search(r"clnn.errors.DeviceError: (.* ends loops after .*)", done.stderr):
        pytest.skip(refused[1])
    assert done.returncode == 0, done.stderr
    return done.stdout


def with_data(name):
    """Variables with which a data set is there, from a folder that the tests were given."""
    folder = os.environ.get("CLNN_DATA_DIR", "")
    if not Path(folder, name).is_dir() or not folder:
        pytest.skip(f"CLNN_DATA_DIR names no folder with {name}")
    return {"CLNN_DATA_DIR": folder}


@pytest.fixture
def without_mnist(tmp_path):
    """Variables with which MNIST is not there and cannot be downloaded."""
    nobody = "http://127.0.0.1:9"
    return {"CLNN_DATA_DIR": "", "CLNN_CACHE_DIR": str(tmp_path), "http_proxy": nobody, "https_proxy": nobody}


@pytest.fixture
def with_mnist():
    """Variables with which MNIST is there."""
    return with_data("mnist")


def test_quickstart(without_mnist):
    assert float(re.search(r"'accuracy': ([\d.]+)", run("quickstart", **without_mnist)).group(1)) > 0.96


def test_quickstart_is_what_the_package_says_of_itself():
    lines = [line.strip() for line in (EXAMPLES / "quickstart.py").read_text().splitlines()[1:] if line]
    assert lines == [line.strip() for line in clnn.__doc__.splitlines()[1:] if line.strip()]


def test_mnist_mlp_without_mnist(without_mnist):
    out = run("mnist_mlp", "4", **without_mnist)
    assert "MNIST is not there" in out and "epoch 3: validation loss" in out
    assert float(re.search(ACCURACY, out).group(1)) > 85


def test_mnist_mlp_with_mnist(with_mnist):
    out = run("mnist_mlp", "1", **with_mnist)
    assert "MNIST is not there" not in out
    assert float(re.search(ACCURACY, out).group(1)) > 93


def test_mnist_cnn_without_mnist(without_mnist):
    out = run("mnist_cnn", "8", **without_mnist)
    assert "MNIST is not there" in out and "epoch 7: validation loss" in out
    assert float(re.search(ACCURACY, out).group(1)) > 90


@pytest.mark.slow
def test_mnist_cnn_with_mnist(with_mnist):
    out = run("mnist_cnn", "1", **with_mnist)
    assert float(re.search(ACCURACY, out).group(1)) > 97.5


def test_cifar10_without_it(without_mnist, tmp_path):
    command = [sys.executable, EXAMPLES / "cifar10.py"]
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", timeout=limit(), env=os.environ | without_mnist
    )
    assert done.returncode == 1 and done.stderr.startswith("CIFAR-10 is not there; set CLNN_DATA_DIR")


@pytest.mark.slow
def test_cifar10(tmp_path):
    """With made-up images, the class in their colour, 60 a file in place of 10,000."""
    rng = np.random.default_rng(1)
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        labels = rng.integers(0, 10, 60).astype(np.uint8)
        images = rng.integers(0, 120, (60, 3, 32, 32)).astype(np.uint8)
        images += 25 * np.stack([labels % 2, labels // 2, labels // 4], 1)[:, :, None, None].astype(np.uint8)
        (tmp_path / "cifar10").mkdir(exist_ok=True)
        (tmp_path / "cifar10" / name).write_bytes(np.hstack([labels[:, None], images.reshape(60, -1)]).tobytes())
    small = "from clnn.data import datasets as d; d.CIFAR10 = d.CIFAR10._replace(records=60)"
    code = f"import runpy, sys; {small}; sys.argv[:] = ['cifar10.py', '6']; runpy.run_path({str(EXAMPLES / 'cifar10.py')!r})"
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    variables = os.environ | {"CLNN_DATA_DIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=limit(), env=variables)
    assert done.returncode == 0, done.stderr
    assert "Residual" in done.stdout and float(re.search(r"test accuracy ([\d.]+)%", done.stdout).group(1)) > 25


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("saliency", "ten digits"),
        pytest.param("book/feature_maps", "filters and feature maps", marks=pytest.mark.slow),
    ],
)
def test_pictures_of_what_is_learned(name, said, without_mnist, tmp_path):
    pytest.importorskip("matplotlib")
    out = run(name, str(tmp_path / "new.png"), "10", **without_mnist)
    assert said in out and float(re.search(ACCURACY, out).group(1)) > 85
    assert (tmp_path / "new.png").stat().st_size > 5000


@pytest.mark.slow
def test_squeeze_excitation(without_mnist):
    out = run("squeeze_excitation", "6", **without_mnist)
    assert float(re.search(ACCURACY, out).group(1)) > 90
    low, high = (float(n) for n in re.search(r"from ([\d.]+) to ([\d.]+)", out).groups())
    assert 0 <= low < high <= 1


# -- the series -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", sorted(file.stem for file in (EXAMPLES / "series").glob("part_*.py")))
def test_series(name, without_mnist, tmp_path):
    picture = [tmp_path / "curves.png"] if "[curves.png]" in (EXAMPLES / "series" / f"{name}.py").read_text() else []
    if picture:
        pytest.importorskip("matplotlib")
    assert run(f"series/{name}", *picture, **without_mnist)  # each asserts what it claims
    assert all(path.stat().st_size > 5000 for path in picture)


def test_six_lines(with_mnist):
    assert float(re.search(r"'accuracy': ([\d.]+)", run("series/six_lines", **with_mnist)).group(1)) > 0.96


# -- the book ---------------------------------------------------------------------------------------------------------
def test_network_without_mnist(without_mnist):
    out = run("book/network", "4", **without_mnist)
    assert "MNIST is not there" in out
    assert re.findall(r"^Epoch (\d): \d+ / 360$", out, re.M) == list("0123")


def test_network_with_mnist(with_mnist):
    out = run("book/network", "2", **with_mnist)
    first, second = (int(n) for n in re.findall(r"^Epoch \d: (\d+) / 10000$", out, re.M))
    assert first > 8800 and second > 9000  # the book's own run: 9129 and 9295


def test_network2(without_mnist):
    out = run("book/network2", "12", **without_mnist)
    assert len(re.findall(r"^Cost on training data: [\d.]+$", out, re.M)) == 12
    assert int(re.search(r"Accuracy on test data: (\d+) / 360", out).group(1)) > 300


def test_network2_saves_loads_and_stops(monkeypatch, tmp_path, without_mnist, capsys):
    for name, value in without_mnist.items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(EXAMPLES / "book")
    import network2

    train, validation, _ = network2.load_data()
    net = network2.Network([64, 20, 10], cost=network2.QuadraticCost)
    found = net.SGD(train, 50, 10, 0.0, evaluation_data=validation, early_stopping_n=3)
    assert len(found[1]) == 4  # nothing moves at a rate of 0, so nothing improves after the first epoch
    net.save(tmp_path / "net.safetensors")
    again = network2.load(tmp_path / "net.safetensors", network2.QuadraticCost)
    assert again.sizes == [64, 20, 10] and again.accuracy(validation) == net.accuracy(validation)


@pytest.mark.parametrize(
    ("epochs", "layers"), [(40, []), pytest.param(8, ["fc"], marks=pytest.mark.slow)], ids=["convolution", "fc"]
)
def test_network3(epochs, layers, without_mnist):
    out = run("book/network3", epochs, *layers, **without_mnist)
    assert len(re.findall(r"^Epoch \d+: validation accuracy [\d.]+%$", out, re.M)) == epochs
    assert float(re.search(r"^Corresponding test accuracy of ([\d.]+)%", out, re.M).group(1)) > 80


def test_network3_drops_out_as_the_book_does(monkeypatch, device):
    monkeypatch.syspath_prepend(EXAMPLES / "book")
    import network3

    layers = [
        network3.ConvPoolLayer((6, 1, 5, 5), (10, 1, 12, 12), activation_fn=network3.ReLU),
        network3.ConvPoolLayer((4, 6, 3, 3), (10, 6, 4, 4), (1, 2)),
        network3.FullyConnectedLayer(4 * 2, 30, network3.tanh, p_dropout=0.5),
        network3.SoftmaxLayer(30, 10, p_dropout=0.5),
    ]
    net = network3.Network(layers, 10)
    assert net.model.predict(np.ones((7, 144))).shape == (7, 10)
    drop, x = network3.DropoutLayer(0.5), np.ones((40, 50), np.float32)
    assert set(np.unique(drop(x).numpy())) == {0.0, 1.0}
    with clnn.no_grad():
        assert (drop(x).numpy() == 0.5).all()


QUICK = ("chapter_4_universality", "chapter_5_vanishing_gradient")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(file.stem, marks=() if file.stem in QUICK else pytest.mark.slow)
        for file in sorted((EXAMPLES / "book").glob("chapter_*.py"))
    ],
)
def test_chapters(name, without_mnist):
    text = (EXAMPLES / "book" / f"{name}.py").read_text()
    out = run(f"book/{name}", *["1"] * ("[epochs" in text), **without_mnist)
    assert re.search(r"\d", out)


def book_modules(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES / "book")
    return importlib.import_module("network"), importlib.import_module("network2")


def test_the_book_s_lists_of_pairs(monkeypatch, device, capsys):
    """The book's loader gives pairs of columns: lists in its first edition, zips in later ones."""
    network, network2 = book_modules(monkeypatch)
    (x, y), (x_test, y_test) = clnn.data.digits()
    pairs = [(image[:, None], np.eye(10)[digit][:, None]) for image, digit in zip(x, y)]
    tests = [(image[:, None], digit) for image, digit in zip(x_test, y_test)]
    clnn.seed(5)
    net = network.Network([64, 30, 10])
    net.SGD(pairs, 4, 10, 3.0, test_data=tests)
    said = re.findall(r"^Epoch \d: (\d+) / 360$", capsys.readouterr().out, re.M)
    assert (
        len(said) == 4
        and int(said[-1]) > 250
        and net.evaluate(tests) == net.evaluate((x_test, y_test)) == int(said[-1])
    )
    net.SGD(zip(x[..., None], y), 1, 10, 3.0, test_data=zip(x_test[..., None], y_test))
    other = network2.Network([64, 30, 10])
    _, found, costs, _ = other.SGD(pairs, 4, 10, 0.5, evaluation_data=tests, monitor_evaluation_accuracy=True,
                                   monitor_training_cost=True, every=2)  # fmt: skip
    assert len(found) == len(costs) == 4 and found[-1] > 250 and other.accuracy(tests) == found[-1]
    assert capsys.readouterr().out.count("training complete") == 2


def test_the_book_s_backprop_is_that_of_numpy(monkeypatch, device):
    network, network2 = book_modules(monkeypatch)
    x, y = np.linspace(-1, 1, 12)[:, None], np.eye(4)[1][:, None]
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    for net in (network.Network([12, 7, 5, 4]), network2.Network([12, 7, 5, 4])):
        weights, activations = [w.astype(float) for w in net.weights], [x]
        for w, b in zip(weights, net.biases):
            activations.append(sigmoid(w @ activations[-1] + b))
        assert net.num_layers == 4 and net.feedforward(np.hstack([x, x]).T).shape == (2, 4)
        np.testing.assert_allclose(net.feedforward(x), activations[-1], rtol=1e-5)  # a column, as in the book
        delta = activations[-1] - y
        delta = delta * activations[-1] * (1 - activations[-1]) if net.loss == "quadratic" else delta
        nabla_b, nabla_w = net.backprop(x, y)
        for i in (2, 1, 0):
            np.testing.assert_allclose(nabla_b[i], delta, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(nabla_w[i], delta @ activations[i].T, rtol=1e-4, atol=1e-6)
            delta = weights[i].T @ delta * activations[i] * (1 - activations[i])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "lines"), [("chapter_1_networks", 20), ("chapter_3_overfitting", 20)])
def test_chapters_draw_and_say_little(name, lines, without_mnist, tmp_path):
    pytest.importorskip("matplotlib")
    out = run(f"book/{name}", "2", str(tmp_path / "new.png"), **without_mnist)
    assert len(out.splitlines()) < lines and (tmp_path / "new.png").stat().st_size > 5000


def test_custom_layer(without_mnist):
    out = run("custom_layer", "5", **without_mnist)
    assert "epoch 4: loss" in out
    assert float(re.search(ACCURACY, out).group(1)) > 90


def test_second_order(without_mnist):
    out = run("second_order", "90", **without_mnist)
    last = {name: float(loss) for name, loss in re.findall(r"^([\w-]+) +\d+ evaluations: loss ([\d.]+)", out, re.M)}
    assert last.keys() == {"SGD", "L-BFGS", "Hessian-free"} and last["L-BFGS"] < last["SGD"] < 1


def test_from_torch(without_mnist):
    pytest.importorskip("torch")
    out = run("from_torch", "4", **without_mnist)
    before, same, tuned, back = (float(found) for found in re.findall(ACCURACY, out))
    assert 35 < before == same < 52 and tuned == back > 90
    assert "conv2d_1 Conv2D(16, 3" in out and re.search(r"^6.w +8.weight +\(10, 512\) +transposed$", out, re.M)


def test_from_torch_without_torch(tmp_path):
    code = "import sys, runpy; sys.modules['torch'] = None; runpy.run_path(sys.argv[1])"
    command = [sys.executable, "-c", code, EXAMPLES / "from_torch.py"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=limit())
    assert done.returncode == 1 and "pip install torch" in done.stderr and "Traceback" not in done.stderr


# -- models of others: what they read, how much of it, and the packages that hold them ---------------------------------------
ONNX = {
    "file_types": ("magika", r"^\S+ +(python|markdown|json|onnx) [\d.]+%, or ", 4),
    "voice_activity": ("silero_vad", r"^ +(1\.[01]\d s: speech begins|3\.[01]\d s: it is quiet again) ", 2),
    "object_detector": ("ddddocr", r"^\d+% from .*, overlap [89]\d%$", 3),
    "read_text": ("rapidocr_onnxruntime", r"^(Read once,|replay 1000 times) \((9\d|100)%\)$", 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ONNX)
def test_models_of_others(name):
    package, line, lines = ONNX[name]
    for one in ("onnx", package, "PIL"):
        if importlib.util.find_spec(one) is None:
            pytest.skip(f"the package {one} is not installed")
    out = run(f"onnx/{name}")
    assert len(re.findall(line, out, re.M)) == lines, out


@pytest.mark.parametrize("name", ONNX)
def test_models_of_others_without_their_package(name):
    pytest.importorskip("onnx")
    code = "import sys, runpy; sys.modules[sys.argv[2]] = None; runpy.run_path(sys.argv[1])"
    command = [sys.executable, "-c", code, EXAMPLES / "onnx" / f"{name}.py", ONNX[name][0]]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=limit())
    assert done.returncode == 1 and "pip install --no-deps" in done.stderr and "Traceback" not in done.stderr


def test_search(without_mnist):
    out = run("search", "3", **without_mnist)
    assert [line.split()[:2] for line in out.splitlines()].count(["trial", "lr"]) == 2
    assert max(float(found) for found in re.findall(r"on the test set: ([\d.]+)%", out)) > 80


@pytest.mark.parametrize("shakespeare", [True, False])
@pytest.mark.parametrize(
    ("name", "steps", "gain", "size"), [("char_gpt", 12, 0.3, 3_000_000), ("char_lstm", 25, 0.7, 1_000_000)]
)
def test_characters(name, steps, gain, size, shakespeare, without_mnist, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = run(name, str(steps), **(with_data("shakespeare") if shakespeare else without_mnist))
    assert ("Python's manual" in out) != shakespeare
    losses = [float(loss) for loss in re.findall(r"held out ([\d.]+)", out)]
    assert len(losses) == 2 and losses[1] < losses[0] - gain
    assert len(out.rpartition("held out")[2]) > 290 and (tmp_path / f"{name}.clnn").stat().st_size > size


def test_adding_problem():
    out = run("adding_problem", "15000", "10")
    errors = [float(error) for error in re.findall(r"mean squared error of ([\d.]+)", out)]
    assert errors and errors[-1] < 0.05 < 0.167


def test_copy_memory():
    out = run("copy_memory", "1600", "10")
    baseline, *losses = (float(loss) for loss in re.findall(r"a loss of ([\d.]+)", out))
    assert abs(baseline - 10 * np.log(8) / 30) < 1e-3 and losses[-1] < baseline / 3


def test_adding_problem_with_another_seed():
    assert "5,000 sequences of 5 steps" in run("adding_problem", "5000", "5", "3")


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_mnist_rows(kind, without_mnist):
    out = run("mnist_rows", kind, "6", **without_mnist)
    assert "MNIST is not there" in out and f"{kind}_1" in out
    assert float(re.search(ACCURACY, out).group(1)) > 85


def test_sentiment():
    out = run("sentiment", "3000")
    assert float(re.search(r"test accuracy ([\d.]+)%", out).group(1)) > 95
    found = {text: float(p) for p, text in re.findall(r"^([\d.]+) (.+)$", out, re.M)}
    assert found["it was not good"] < 0.5 < found["not bad"] and found["a very good film"] > 0.9


# -- Deep Diamond's ----------------------------------------------------------------------------------------------------------
def test_boston():
    out = run("deep_diamond/boston", "2", **with_data("boston"))
    errors = [float(e) for e in re.findall(r"^seed \d: a mean absolute error of ([\d.]+) on 102 test rows$", out, re.M)]
    assert len(errors) == 2 and max(errors) <= 3


def test_share_price():
    out = run("deep_diamond/share_price", "1")
    assert float(re.search(r"residuals over 904 test windows: ([\d.]+)", out).group(1)) < 4


@pytest.mark.slow
def test_california():
    pytest.importorskip("sklearn")
    out = run("deep_diamond/california", "2", "10", **with_data("california"))
    found = [float(r2) for r2 in re.findall(r"mean R2 ([\d.]+)", out)]
    assert len(found) == 2 and min(found) > 0.7


@pytest.mark.slow
def test_deep_diamonds_mnist(with_mnist, tmp_path):
    arguments = []
    if importlib.util.find_spec("matplotlib"):
        arguments = [str(tmp_path / "confusion.png")]
    out = run("deep_diamond/mnist", *arguments, **with_mnist, MPLBACKEND="Agg")
    assert re.search(r"^class +precision +sensitivity +specificity +f1 +support$", out, re.M)
    assert float(re.search(r"^accuracy ([\d.]+)$", out, re.M).group(1)) >= 0.97
    assert [file.name for file in tmp_path.iterdir()] == ["confusion.png"] * len(arguments)


@pytest.mark.parametrize("name", ["boston", "california", "mnist"])
def test_deep_diamonds_without_data(name, without_mnist, tmp_path):
    command = [sys.executable, EXAMPLES / "deep_diamond" / f"{name}.py"]
    done = subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        timeout=limit(),
        env={**os.environ, **without_mnist},
        cwd=tmp_path,
    )
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "set CLNN_DATA_DIR" in done.stderr


# -- augmentation -------------------------------------------------------------------------------------------------------
def test_expand_mnist_without_mnist(without_mnist, tmp_path):
    out = run("book/expand_mnist", str(tmp_path / "new"), "rotation", "skew", "elastic", **without_mnist)
    assert "MNIST is not there" in out and "1,437 images became 11,496" in out
    (images, labels), _ = clnn.data.digits(raw=True)
    with np.load(tmp_path / "new" / "expanded.npz") as file:
        x, y = file["x"].reshape(8, *images.shape), file["y"].reshape(8, -1)
    assert x.dtype == np.uint8 and x.max() == 16 and (y == labels).all()
    assert (x[0] == images).all() and (x[1, :, :, 1:] == images[:, :, :-1]).all() and not x[1, :, :, 0].any()
    assert all(0.6 < part.mean() / images.mean() < 1.1 and (part != images).any() for part in x[1:])
    command = [sys.executable, EXAMPLES / "book/expand_mnist.py", tmp_path, "blur"]
    wrong = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=limit())
    assert wrong.returncode and "blur: no such distortion; there are rotation, skew, elastic" in wrong.stderr


@pytest.mark.slow
def test_expand_mnist_with_mnist(with_mnist, tmp_path):
    out = run("book/expand_mnist", str(tmp_path), **with_mnist)
    assert "50,000 images became 250,000" in out and "MNIST is not there" not in out


def test_distortions(without_mnist, tmp_path):
    pytest.importorskip("matplotlib")
    assert "10 rows of digits" in run("book/distortions", str(tmp_path / "new.png"), **without_mnist)
    assert (tmp_path / "new.png").stat().st_size > 10_000


@pytest.mark.parametrize("file", sorted(EXAMPLES.rglob("*.py")), ids=lambda file: file.stem)
def test_examples_are_short_say_what_they_are_and_stay_on_the_public_side(file):
    text = file.read_text(encoding="utf-8")
    assert text.startswith('"""') and f"python {file.relative_to(EXAMPLES.parent)}" in text
    assert len(text.splitlines()) < (140 if file.name in ("network.py", "network2.py", "network3.py") else 70)
    assert not re.search(r"from clnn|import clnn\.|\._\w", text), "an example uses `import clnn` and public names only"


@pytest.mark.parametrize("file", sorted(EXAMPLES.rglob("*.py")), ids=lambda file: str(file.relative_to(EXAMPLES)))
def test_help_says_what_it_is(file, tmp_path):
    """Of an example that takes arguments: its docstring, and nothing is run."""
    text = file.read_text(encoding="utf-8")
    if "sys.argv" not in text:
        assert "[" not in (ast.get_docstring(ast.parse(text)) or "").partition("python examples")[2]
        return
    packages = re.findall(r"^\s*import (torch|sklearn|matplotlib|onnx\w*|magika)|from (sklearn|mpi4py)", text, re.M)
    if any(importlib.util.find_spec(one) is None for pair in packages for one in pair if one):
        pytest.skip("a package is missing")
    done = subprocess.run(
        [sys.executable, file, "--help"], capture_output=True, encoding="utf-8", timeout=limit(), cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.strip() == ast.get_docstring(
        ast.parse(text)
    ).strip()
    assert not list(tmp_path.iterdir())
