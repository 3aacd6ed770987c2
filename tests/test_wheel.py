"""The wheel: it holds all kernels and the type marker, and works from a folder of its own."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import clnn

ROOT = Path(__file__).resolve().parent.parent
TRAIN = """
import sys
import clnn
from clnn.runtime.program import kernel_folder

home = sys.argv[1]
assert clnn.__file__.startswith(home), clnn.__file__
assert str(kernel_folder()).startswith(home), kernel_folder()
sys.modules["sklearn"] = None  # the quick start needs nothing but clnn
(x, y), (x_test, y_test) = clnn.data.digits()
net = clnn.Sequential([clnn.Dense(100, "sigmoid"), clnn.Dense(10)], input_shape=64)
net.fit(x, y, loss="cross_entropy", optimizer=clnn.SGD(0.05, momentum=0.9), epochs=30, batch_size=10, progress=False)
assert net.evaluate(x_test, y_test)["accuracy"] > 0.95
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The path of a wheel that was built from this checkout."""
    pytest.importorskip("hatchling", reason="building the wheel needs hatchling: pip install hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("*.whl")
    return found


def test_it_holds_the_package_and_every_kernel_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    kernels = {f"clnn/kernels/{file.name}" for file in (ROOT / "kernels").glob("*.cl")}
    modules = {str(file.relative_to(ROOT).as_posix()) for file in (ROOT / "clnn").rglob("*.py")}
    modules = {name for name in modules if not name.startswith("clnn/tools/bench/libraries/")}  # for a checkout
    info = {name for name in names if ".dist-info/" in name}
    page = {f"clnn/tools/serve/page.{kind}" for kind in ("html", "css", "js")}
    data = {"clnn/py.typed", "clnn/named.pyi", "clnn/gemm/tuned.json", "clnn/data/digits.idx.gz"}
    assert names - info == kernels | modules | page | data
    assert any(name.endswith("licenses/LICENSE") for name in info)
    assert wheel.name == f"clnn-{clnn.__version__}-py3-none-any.whl"


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder in which the wheel is installed."""
    home = tmp_path_factory.mktemp("home") / "a folder with spaces"  # some drivers do not like them
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(home), str(wheel)]
    done = subprocess.run(pip, capture_output=True, encoding="utf-8", timeout=120)
    if "No module named pip" in done.stderr:
        zipfile.ZipFile(wheel).extractall(home)  # what --target amounts to, for pure Python
    else:
        assert done.returncode == 0, done.stderr
    return home


def run(home, *arguments):
    environ = {**os.environ, "PYTHONPATH": str(home)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=home.parent, capture_output=True, encoding="utf-8", timeout=300, env=environ)


def test_it_trains_from_a_folder_of_its_own(installed):
    done = run(installed, "-c", TRAIN, str(installed))
    assert done.returncode == 0, done.stderr


def test_it_says_where_the_code_is_that_measures_other_libraries(installed):
    done = run(installed, "-m", "clnn", "bench", "gemm", "--quick", "--against", "numpy,torch")
    assert done.returncode == 1 and "in a clone of clnn's repository" in done.stderr and "torch" in done.stderr
    done = run(installed, "-m", "clnn", "bench", "gemm", "--quick", "--against", "chess")
    assert done.returncode == 1 and "there is no peer 'chess'; the known ones are numpy, sklearn, torch" in done.stderr
    assert (
        run(installed, "-c", "from clnn.tools.bench.peers import PEERS; assert list(PEERS) == ['numpy']").returncode
        == 0
    )
