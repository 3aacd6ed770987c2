"""`clnn run`: a model in a file answers arrays in files; what it prints and writes, its exit codes, what it refuses."""

import json

import numpy as np
import pytest

import clnn
from clnn.tools import cli

onnx = pytest.importorskip("onnx")
from onnx import parser  # noqa: E402

TWO = """<ir_version: 8, opset_import: ["" : 17]>
two (float[N, 4] x, int32[N] n) => (float[N, 4] "a/../b:0", int32[N] more)
{ f = Cast<to = 1>(n) axes = Constant<value = int64[1] {1}>() wide = Unsqueeze(f, axes) "a/../b:0" = Mul(x, wide)
  more = Add(n, n) }"""
LABELS = """<ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 3]>
labels (float[N, 3] x) => (string[N] label)
{ best = ArgMax<axis = 1, keepdims = 0>(x)
  label = ai.onnx.ml.LabelEncoder<keys_int64s = [0, 1, 2], values_strings = ["ant", "bee", "cat"]>(best) }"""


def parsed(text, path):
    """A model from ONNX's own text, in a file."""
    try:
        proto = parser.parse_model(text)
    except Exception:  # older parsers take no names in quotes
        proto = parser.parse_model(text.replace('"a/../b:0"', "first"))
        proto.graph.node[-2].output[0] = proto.graph.output[0].name = "a/../b:0"
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.fixture
def two(tmp_path):
    return parsed(TWO, tmp_path / "two.onnx")


def run(capsys, *arguments):
    """(exit code, stdout, stderr) of `clnn run`."""
    code = cli.main(["run", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("archive", [False, True])
def test_arrays_go_in_and_come_out(archive, two, tmp_path, capsys, device, rng, monkeypatch):
    x, n = rng.standard_normal((3, 4)).astype(np.float32), np.arange(3, dtype=np.int64)
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", x), np.save("n=1.npy", n), np.savez("both.npz", x=x, n=n)
    inputs = ["--input", "both.npz"] if archive else ["--input", "x=x.npy", "--input", "n=n=1.npy"]
    code, out, err = run(capsys, two, *inputs, "--output", "out")
    assert (code, err) == (0, "")
    assert device.name in out and "x: float32 (N, 4): (3, 4), " in out and "random" not in out
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["a_.._b_0.npy", "more.npy"]
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "a_.._b_0.npy"), x * n[:, None])
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "more.npy"), 2 * n)


def test_what_is_not_given_is_made_up_and_said(two, tmp_path, capsys, device):
    np.save(tmp_path / "n.npy", np.arange(5, dtype=np.int32))
    code, out, _ = run(capsys, two, "--input", f"n={tmp_path / 'n.npy'}")
    assert code == 0 and "x: float32 (N, 4): (5, 4), random" in out and "a/../b:0: float32 (5, 4)" in out
    code, out, _ = run(capsys, two, "--shape", "x=2,4", "--output", tmp_path / "first")
    assert code == 0 and "n: int32 (N): (2,), random" in out
    run(capsys, two, "--shape", "x=2,4", "--output", tmp_path / "again")
    run(capsys, two, "--shape", "x=2,4", "--seed", 1, "--output", tmp_path / "other")
    first, again, other = (np.load(tmp_path / name / "a_.._b_0.npy") for name in ("first", "again", "other"))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert "x: float32 (N, 4): (1, 4), random" in run(capsys, two)[1]


def test_texts_are_written_without_objects(tmp_path, capsys, device):
    path = parsed(LABELS, tmp_path / "labels.onnx")
    np.save(tmp_path / "x.npy", np.eye(3, dtype=np.float32)[[2, 0]])
    assert run(capsys, path, "--input", tmp_path / "x.npy", "--output", tmp_path)[0] == 0
    assert np.load(tmp_path / "label.npy", allow_pickle=False).tolist() == ["cat", "ant"]


def test_what_is_no_array_is_written_as_json(tmp_path):
    from clnn.tools.run import described, write

    maps = [{"ant": np.float32(0.25), "bee": 0.75}]
    assert described(maps) == "list of 1"
    written = write(tmp_path, {"..": np.zeros(2), "_": np.ones(1), "é/": maps})
    assert [path.name for path in written.values()] == ["output.npy", "_.npy", "__.json"]
    assert json.loads((tmp_path / "__.json").read_text()) == [{"ant": 0.25, "bee": 0.75}]


def test_it_is_compared_with_onnxruntime(two, tmp_path, capsys, device, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("clnn.tools.run.TURN", 0.01)
    code, out, _ = run(capsys, two, "--against", "onnxruntime", "--bench", "--rounds", 1)
    assert code == 0 and "largest difference 0, 0 of" in out and "more: the same" in out
    assert out.count("ms at best") == 2 and " of the time of onnxruntime" in out and "in 1 round\n" in out
    net = clnn.Sequential([clnn.Dense(5, "tanh"), clnn.Dense(3)], input_shape=4, seed=1)
    net.save(tmp_path / "net.safetensors")
    code, out, _ = run(capsys, tmp_path / "net.safetensors", "--against", "onnxruntime")
    assert code == 0 and "input: float32 (batch, 4): (1, 4)" in out and "output: largest difference" in out
    monkeypatch.setattr("clnn.tools.run.difference", lambda a, b: (1.0, "all of it"))
    code, out, _ = run(capsys, two, "--against", "onnxruntime")
    assert code == 1 and out.count("all of it: NOT THE SAME") == 2


def test_differences():
    from clnn.tools.run import difference

    a = np.array([1.0, -2.0, np.inf, np.nan], np.float32)
    assert difference(a, a)[0] == 0
    assert difference(a + np.float32([0, 0.5, 0, 0]), a)[0] == 0.25
    for other in (a[:3], a.astype(int), np.float32([1, -2, -np.inf, np.nan]), np.float32([1, np.nan, np.inf, np.nan])):
        with np.errstate(all="ignore"):
            assert difference(a, other)[0] == np.inf and difference(other, a)[0] == np.inf
    assert difference(np.array([1, 200]), np.array([2, 200])) == (0.005, "1 of 2 whole numbers differ")
    assert difference(np.zeros(2), np.array([0, 1e-9]))[0] == 1
    assert difference(np.array(["a"], object), np.array(["b"], object))[0] == np.inf
    assert difference([{"a": 1}], [{"a": 1}])[0] == 0 and difference([1], np.ones(1))[0] == np.inf


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--input", "y=n.npy"], "'y' is no input: the model takes x: float32 (N, 4); n: int32 (N)"),
        (["--input", "n.npy"], "is no input"),
        (["--input", "x=none.npy"], "there is no file none.npy"),
        (["--input", "x=pickled.npy"], "holds Python's objects"),
        (["--input", "x=cut.npy"], "cannot be read as a file of arrays"),
        (["--input", "x=cut.npz"], "cannot be read as a file of arrays"),
        (["--input", "x=text.npy"], "cannot be read as a file of arrays"),
        (["--input", "x=."], "cannot be read as a file of arrays"),
        (["--input", "x=other.npz"], "holds 'y', 'z', and none of it is 'x'"),
        (["--input", "x=n.npy"], "input x: float32 (N, 4) has the shape (5,)"),
        (["--input", "x=wide.npy", "--input", "n=n.npy"], "'N' is"),
        (["--input", "n=floats.npy"], "input 'n' is an array of int32, and float64 was given"),
        (["--input", "n=large.npy"], "input 'n' is an array of int32, and 0 to 4294967296 were given"),
        (["--input", "x=complex.npy"], "array of numbers"),
        (["--input", "x=1"], "has the shape ()"),
        (["--input", "n=n.npy", "--input", "n=n.npy"], "is given twice"),
        (["--input", "n=n.npy", "--shape", "n=5"], "a file, and a shape besides"),
        (["--shape", "x=2"], "does not fit the input x: float32 (N, 4)"),
        (["--shape", "x=2,b"], "should be NAME=N,N,..."),
        (["--shape", "x=-2,4"], "should be NAME=N,N,..."),
        (["--shape", "x=99999999999,4"], "more than 2^30 elements"),
        (["--shape", "4,4"], "is no input"),
        (["--against", "torch"], "--against knows onnxruntime alone"),
        (["--rounds", "0"], "--rounds should be 1 or more"),
        (["--seed", "-1"], "--seed should be 0 or more"),
        (["--output", "text.npy"], "cannot be written"),
    ],
)
def test_what_is_refused(arguments, says, two, tmp_path, capsys, device, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("n.npy", np.arange(5)), np.save("floats.npy", np.ones(5)), np.save("large.npy", np.array([0, 2**32]))
    np.save("wide.npy", np.ones((3, 4))), np.save("complex.npy", np.ones((3, 4), complex))
    np.save("pickled.npy", np.array([{}], object), allow_pickle=True), np.savez("other.npz", y=1, z=2)
    for name, whole in (("cut.npy", "wide.npy"), ("cut.npz", "other.npz")):
        (tmp_path / name).write_bytes((tmp_path / whole).read_bytes()[:-40])
    (tmp_path / "text.npy").write_text("1 2 3")
    code, _, err = run(capsys, two, *arguments)
    assert code == 1 and says in err and err.startswith("clnn: ")


@pytest.mark.parametrize("name", ["none.onnx", "model.pt", "damaged.onnx", "damaged.safetensors"])
def test_models_that_are_none(name, tmp_path, capsys):
    if name != "none.onnx":
        (tmp_path / name).write_bytes(b"\x80\x02 no model")
    code, out, err = run(capsys, tmp_path / name)
    assert (code, out) == (1, "") and err.startswith("clnn: ") and name in err


def test_without_onnxruntime(two, capsys, device, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, _, err = run(capsys, two, "--against", "onnxruntime")
    assert code == 1 and "pip install onnxruntime" in err
