"""CONTRIBUTING's recipes, followed to the letter: each in a copy of clnn, what comes of it used, and the lines counted."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RECIPE = re.compile(r"^## Add (?:a|an) ([^\n]*)\n(.*?)(?=^## )", re.MULTILINE | re.DOTALL)
# A numbered sentence with the file, the place in it if it is not new, and the block that goes there
ITEM = re.compile(
    r"^\d\. (?P<text>.*?`(?P<file>(?:kernels|clnn)/[\w/]+\.\w+)`"
    r"(?:, (?P<side>below|above) `(?P<place>[^`]+)`)?.*?)\n\n(?P<block>```\w+\n.*?^```\n|(?: {7}[^\n]*\n)+)",
    re.MULTILINE | re.DOTALL,
)
# What they may cost: lines beside a class, and classes; the op is not counted, being made of two new files.
COST = {
    "activation": (2, 0),
    "function of two variables": (2, 0),
    "loss": (1, 1),
    "optimizer": (2, 1),
    "layer": (0, 1),
    "op": None,
}


def recipes():
    """By name: (file, side, place, block) of each of its blocks."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = {}
    for name, body in RECIPE.findall(text):
        items = [m for m in ITEM.finditer(body) if "new file" in m["text"] or m["place"]]
        if items:
            found[name] = [(m["file"], m["side"], m["place"], block(m["block"])) for m in items]
    return found


def block(text):
    if text.startswith("```"):
        return text.split("\n", 1)[1].rsplit("```", 1)[0]
    return "".join(line[7:] + "\n" for line in text.splitlines())


def follow(home, file, side, place, text):
    """Put a block where its sentence says."""
    path = home / file
    if place is None:
        assert not path.exists()
        path.write_text(text, encoding="utf-8")
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    start = re.compile(rf"{re.escape(place)}\b")
    at = [i for i, line in enumerate(lines) if start.match(line)]
    assert at, f"{file} has no line that starts with {place}"
    at = at[0] + (side == "below")
    if side == "above":
        while lines[at - 1].startswith("@"):
            at -= 1
        text += "\n\n"
    lines.insert(at, text)
    path.write_text("".join(lines), encoding="utf-8")


def cost(blocks):
    classes = sum("\nclass " in "\n" + text for *_, text in blocks)
    lines = sum(len(text.splitlines()) for *_, text in blocks if "\nclass " not in "\n" + text)
    return lines, classes


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A copy of clnn in which every recipe was followed."""
    home = tmp_path_factory.mktemp("recipes")
    for folder in ("clnn", "kernels"):
        shutil.copytree(ROOT / folder, home / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (home / "pyproject.toml").write_text("")  # a checkout: its kernels lie beside the package
    for blocks in recipes().values():
        for one in blocks:
            follow(home, *one)
    return home


COMMON = """
import sys
import numpy as np
import clnn
assert clnn.__file__.startswith(sys.argv[1]), clnn.__file__
rng = np.random.default_rng(1)
close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)

def gradients(f, *arrays):
    # f of tensors, by each of these arrays
    class Net(clnn.Layer):
        def build(self, *shapes):
            for i, a in enumerate(arrays):
                setattr(self, f"p{i}", self.parameter(a.shape))
        def forward(self, x):
            return f(*(getattr(self, f"p{i}") for i in range(len(arrays))))
    net = Net()
    net.ensure_built((1,))
    net.load_state_dict({f"p{i}": a for i, a in enumerate(arrays)})
    net(np.ones((1, 1), np.float32)).sum().backward()
    return [p.grad.numpy() for p in net.parameters()]

def trains(net, loss="mse", optimizer="adam", x=None, y=None):
    # a fit makes it better, and a file gives the same network back
    x = rng.normal(size=(64, 6)).astype(np.float32) if x is None else x
    y = (x[:, :1] + 0.5 * x[:, 1:2]).astype(np.float32) if y is None else y
    history = net.fit(x, y, loss=loss, optimizer=optimizer, epochs=8, batch_size=16, seed=1, progress=False)
    assert history["loss"][-1] < history["loss"][0], history["loss"]
    net.save(sys.argv[2])
    same = clnn.load(sys.argv[2])
    np.testing.assert_array_equal(net.predict(x), same.predict(x))
    return net, same, x, y
"""
USES = {
    "activation": """
x = rng.normal(size=50).astype(np.float32) * 3
close(clnn.squareplus(x).numpy(), (x + np.sqrt(x * x + 4)) / 2)
close(gradients(clnn.squareplus, x)[0], (1 + x / np.sqrt(x * x + 4)) / 2)
net = clnn.Sequential([clnn.Dense(8, "squareplus"), clnn.Activation("squareplus"), clnn.Dense(1)], input_shape=6, seed=1)
_, same, *_ = trains(net)
assert same.layers[0].activation == "squareplus"
""",
    "function of two variables": """
a, b = rng.normal(size=(2, 4, 5)).astype(np.float32)
close(clnn.hypot(a, b).numpy(), np.hypot(a, b))
close(clnn.hypot(a, 1.0).numpy(), np.hypot(a, 1.0))
assert isinstance(np.hypot(clnn.tensor(a), b[:1]), clnn.Tensor)
da, db = gradients(clnn.hypot, a, b[:1])
close(da, a / np.hypot(a, b[:1]))
close(db, (b[:1] / np.hypot(a, b[:1])).sum(0, keepdims=True))

@clnn.register
class Soft(clnn.Layer):
    def forward(self, x):
        return clnn.hypot(x, 1.0)

trains(clnn.Sequential([clnn.Dense(8), Soft(), clnn.Dense(1)], input_shape=6, seed=1))
""",
    "loss": """
y, t = rng.normal(size=(2, 7, 3)).astype(np.float32) * 2
close(float(clnn.losses.log_cosh(y, t)), np.log(np.cosh(y - t)).mean())
close(gradients(lambda y: clnn.losses.log_cosh(y, t), y)[0], np.tanh(y - t) / y.size)
close(float(clnn.losses.LogCosh()(y, t)), np.log(np.cosh(y - t)).mean())
net = clnn.Sequential([clnn.Dense(8, "relu"), clnn.Dense(1)], input_shape=6, seed=1)
_, same, x, y = trains(net, loss="log_cosh")
assert same.evaluate(x, y) == net.evaluate(x, y)  # by the loss that the file names
""",
    "optimizer": """
def adamax(w, g, steps, lr=0.001, beta1=0.9, beta2=0.999, epsilon=1e-8):
    m = u = np.zeros_like(w)
    for t in range(1, steps + 1):
        m, u = beta1 * m + (1 - beta1) * g, np.maximum(beta2 * u, abs(g))
        w = w - lr / (1 - beta1**t) * m / (u + epsilon)
    return w

class Net(clnn.Layer):
    def build(self, shape):
        self.w = self.parameter(shape)
    def forward(self, x):
        return (x * self.w).sum()

w, x = rng.normal(size=(2, 40))
net, optimizer = Net(), clnn.AdaMax(0.01)
net.ensure_built((40,))
net.load_state_dict({"w": w.astype(np.float32)})

@clnn.step
def step(x):
    net(x).backward()
    optimizer.step(net.parameters())

for _ in range(5):
    step(x[None].astype(np.float32))
close(net.w.numpy(), adamax(w, x, 5, 0.01))
net = clnn.Sequential([clnn.Dense(8, "relu"), clnn.Dense(1)], input_shape=6, seed=1)
_, same, x, y = trains(net, optimizer=clnn.AdaMax(0.02, beta1=0.8))
assert type(same.optimizer) is clnn.AdaMax and same.optimizer.beta1 == 0.8
options = {"loss": "mse", "epochs": 2, "batch_size": 16, "seed": 2, "progress": False}
for one in (net, same):  # it goes on where it was
    one.fit(x, y, optimizer=one.optimizer, **options)
np.testing.assert_array_equal(net.predict(x), same.predict(x))
clnn.Sequential([clnn.Dense(1)], input_shape=6).fit(x, y, optimizer="adamax", **options)
""",
    "layer": """
layer = clnn.LayerScale(0.5)
x = rng.normal(size=(3, 6)).astype(np.float32)
close(layer(x).numpy(), 0.5 * x)
layer(x).sum().backward()
close(layer.w.grad.numpy(), x.sum(0))
net = clnn.Sequential([clnn.Dense(8, "relu"), clnn.LayerScale(), clnn.Dense(1)], input_shape=6, seed=1)
_, same, *_ = trains(net)
assert same.layers[1].start == 0.1 and "LayerScale" in clnn.layers.__all__
""",
    "op": """
from clnn.ops.reverse import reverse
from clnn.tensor import apply

for shape in ((3, 7), (1,), (0, 4), (129,)):
    x = rng.normal(size=shape).astype(np.float32)
    close(apply(reverse, clnn.tensor(x)).numpy(), x.ravel()[::-1].reshape(shape))
x = rng.normal(size=(3, 7)).astype(np.float32)
close(gradients(lambda p: apply(reverse, p) * x, x)[0], x.ravel()[::-1].reshape(x.shape))

@clnn.register
class Reverse(clnn.Layer):
    def forward(self, x):
        return apply(reverse, x)

trains(clnn.Sequential([clnn.Dense(8, "relu"), Reverse(), clnn.Dense(1)], input_shape=6, seed=1), y=np.ones((64, 1), np.float32))
""",
}


def test_there_is_one_of_each():
    assert {*recipes()} == {*COST} == {*USES}


@pytest.mark.parametrize("name", [name for name in COST if COST[name]])
def test_it_takes_no_more_than_that(name):
    blocks = recipes()[name]
    assert cost(blocks) == COST[name]
    for _, _, _, text in blocks:  # and says what exists nowhere yet
        assert text.strip()


@pytest.mark.parametrize("name", USES)
def test_what_comes_of_it_works(name, home, device, tmp_path):
    place = f"{device.platform_index}:{device.device_index}"
    environ = {**os.environ, "PYTHONPATH": str(home), "CLNN_DEVICE": place}
    script = tmp_path / "use.py"
    script.write_text(COMMON + textwrap.dedent(USES[name]), encoding="utf-8")
    command = [sys.executable, "-W", "error", str(script), str(home), str(tmp_path / "net.safetensors")]
    done = subprocess.run(command, cwd=home, env=environ, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
