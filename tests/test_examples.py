"""The examples run as they stand, with MNIST (where the tests can have it) and, without it, on the digits."""

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


def run(name, *arguments, **variables):
    """What an example prints."""
    command = [sys.executable, "-W", "error::UserWarning", EXAMPLES / f"{name}.py", *arguments]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300, env={**os.environ, **variables})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def without_mnist(tmp_path):
    """Variables with which MNIST is not there and cannot be downloaded."""
    pytest.importorskip("sklearn", reason="digits needs scikit-learn")
    nobody = "http://127.0.0.1:9"
    return {"CLNN_DATA_DIR": "", "CLNN_CACHE_DIR": str(tmp_path), "http_proxy": nobody, "https_proxy": nobody}


@pytest.fixture
def with_mnist():
    """Variables with which MNIST is there, from a folder that the tests were given."""
    folder = os.environ.get("CLNN_DATA_DIR", "")
    if not Path(folder, "mnist").is_dir() or not folder:
        pytest.skip("CLNN_DATA_DIR names no folder with MNIST")
    return {"CLNN_DATA_DIR": folder}


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


def test_nielsen_network_without_mnist(without_mnist):
    out = run("nielsen_network", "4", **without_mnist)
    assert "MNIST is not there" in out
    assert re.findall(r"^Epoch (\d): \d+ / 360$", out, re.M) == list("0123")


def test_nielsen_network_with_mnist(with_mnist):
    out = run("nielsen_network", "2", **with_mnist)
    first, second = (int(n) for n in re.findall(r"^Epoch \d: (\d+) / 10000$", out, re.M))
    assert first > 8800 and second > 9000  # the book's own run: 9129 and 9295


def test_custom_layer(without_mnist):
    out = run("custom_layer", "5", **without_mnist)
    assert "epoch 4: loss" in out
    assert float(re.search(ACCURACY, out).group(1)) > 90


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
    wrong = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300)
    assert wrong.returncode and "blur: no such distortion; there are rotation, skew, elastic" in wrong.stderr


@pytest.mark.slow
def test_expand_mnist_with_mnist(with_mnist, tmp_path):
    out = run("book/expand_mnist", str(tmp_path), **with_mnist)
    assert "50,000 images became 250,000" in out and "MNIST is not there" not in out


def test_distortions(without_mnist, tmp_path):
    pytest.importorskip("matplotlib")
    assert "10 rows of digits" in run("book/distortions", str(tmp_path / "new.png"), **without_mnist)
    assert (tmp_path / "new.png").stat().st_size > 10_000


FILES = sorted([*EXAMPLES.glob("*.py"), *EXAMPLES.glob("book/*.py")])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_examples_are_short_say_what_they_are_and_stay_on_the_public_side(file):
    text = file.read_text(encoding="utf-8")
    assert text.startswith('"""') and f"python examples/{file.relative_to(EXAMPLES).as_posix()}" in text
    assert len(text.splitlines()) < 60
    assert not re.search(r"from clnn|import clnn\.|\._\w", text), "an example uses `import clnn` and public names only"
