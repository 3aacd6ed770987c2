"""clnn.onnx.load: what a model from a file answers, what it refuses, and that it trains, moves and is saved as others are."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import clnn

onnx = pytest.importorskip("onnx")
from onnx import numpy_helper, parser  # noqa: E402
from onnx_backend import LIGHT  # noqa: E402

CONV = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3, H, W] x) => (float[N, 5] y)
{
  z = Conv<pads = [1, 1, 1, 1]>(x, w, b)
  normal = BatchNormalization(z, gamma, beta, mean, variance)
  positive = Relu(normal)
  pooled = GlobalAveragePool(positive)
  shape = Shape(pooled)
  first = Constant<value = int64 {0}>()
  n = Gather(shape, first)
  rest = Constant<value = int64[1] {-1}>()
  axes = Constant<value = int64[1] {0}>()
  wide = Unsqueeze(n, axes)
  wanted = Concat<axis = 0>(wide, rest)
  flat = Reshape(pooled, wanted)
  y = Gemm<transB = 1>(flat, w2, b2)
}
"""
SHAPES = {
    "w": (4, 3, 3, 3),
    "b": (4,),
    "gamma": (4,),
    "beta": (4,),
    "mean": (4,),
    "variance": (4,),
    "w2": (5, 4),
    "b2": (5,),
}


def proto(text, **constants):
    """A model from ONNX's own text, with these initializers."""
    model = parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items())
    return model


def conv_net():
    """A small convolutional network, the same each time."""
    rng = np.random.default_rng(5)
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    arrays["variance"] = np.abs(arrays["variance"]) + 0.5
    return proto(CONV, **arrays)


def reference(model, **inputs):
    """What the onnx library's own evaluator answers."""
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(model).run(None, inputs)


def test_import_clnn_does_not_import_onnx():
    code = "import sys, clnn; assert 'onnx' not in sys.modules and 'clnn.onnx' not in sys.modules; clnn.onnx.load"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_the_library_an_error_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(clnn.ConfigurationError, match="pip install onnx"):
        clnn.onnx.load(tmp_path / "model.onnx")


def test_shapes_are_free_and_replays_equal_the_first_run(device, rng):
    model = conv_net()
    net = clnn.onnx.load(model.SerializeToString())
    for shape in ((2, 3, 8, 8), (1, 3, 5, 9), (2, 3, 8, 8)):
        for _ in range(5):
            x = rng.standard_normal(shape).astype(np.float32)
            np.testing.assert_allclose(net(x), reference(model, x=x)[0], rtol=1e-4, atol=1e-5)
        first = clnn.onnx.load(model.SerializeToString())(x=x)
        np.testing.assert_array_equal(net({"x": x}), first)
    assert len(net.session().step.replays.launches()) == 2  # one recording for each form


def test_it_trains_moves_and_is_saved(device, rng, tmp_path):
    net = clnn.onnx.load(conv_net().SerializeToString())
    x = rng.standard_normal((64, 3, 6, 6)).astype(np.float32)
    y = (x.mean((1, 2, 3)) > 0).astype(np.int32)
    before, kept = net(x), net.state_dict()
    np.testing.assert_allclose(net.predict(x), before, rtol=1e-5, atol=1e-6)
    net.weights["w"].trainable = False
    losses = net.fit(x, y, loss="cross_entropy", optimizer=clnn.Adam(0.01), epochs=4, progress=False).history["loss"]
    assert losses[-1] < losses[0]
    changed = {name for name, array in net.state_dict().items() if not np.array_equal(array, kept[name])}
    assert changed == {"b", "gamma", "beta", "w2", "b2"}  # neither what is frozen nor the statistics
    after = net(x)
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(net.predict(x), after, rtol=1e-5, atol=1e-6)
    net.save(tmp_path / "net.clnn")
    again = clnn.load(tmp_path / "net.clnn")
    np.testing.assert_array_equal(again(x), after)
    assert "153 parameters" in again.summary()
    np.testing.assert_array_equal(again.to(device)(x), after)


def test_gradients_reach_through_it(device, rng):
    net = clnn.onnx.load(conv_net().SerializeToString())
    x = clnn.tensor(rng.standard_normal((2, 3, 6, 6)).astype(np.float32), requires_grad=True)
    (net(x) ** 2).sum().backward()
    base, at, h = x.numpy(), (1, 2, 3, 4), 1e-2
    values = []
    for step in (-h, 0, h):
        moved = base.copy()
        moved[at] += step
        values.append((net(moved).astype(np.float64) ** 2).sum())
    slopes = [
        *np.diff(values) / h,
        (values[2] - values[0]) / (2 * h),
    ]  # of either side, since there are kinks, and of both
    assert np.isclose(slopes, x.grad.numpy()[at], rtol=0.02, atol=1e-3).any(), slopes


# -- whole numbers ----------------------------------------------------------------------------------------------------
def test_values_that_shapes_are_made_of_belong_to_the_recording(device, rng):
    model = proto(
        '<ir_version: 8, opset_import: ["" : 17]>\n'
        "net (float[N] x, int64[2] shape, int64[N] ids) => (float[a, b] y, int64[N] more)\n"
        "{ double = Add(x, x)\n y = Reshape(double, shape)\n more = Add(ids, ids) }"
    )
    net = clnn.onnx.load(model.SerializeToString())
    x = rng.standard_normal(6).astype(np.float32)
    ids = np.array([2**40, -(2**33), 0, 1, 2, 3])
    for shape in ((2, 3), (3, 2), (6, -1), (2, 3)) * 2:
        found = net(x, np.array(shape), ids)
        np.testing.assert_array_equal(found["y"], (x + x).reshape(shape))
        np.testing.assert_array_equal(found["more"], ids + ids)
    assert "ids, shape" in net.summary()


def test_tokens_stay_on_the_device(device, rng):
    table = rng.standard_normal((10, 4)).astype(np.float32)
    model = proto(
        '<ir_version: 8, opset_import: ["" : 17]>\nnet (int64[N, T] ids) => (float[N, T, 4] y)\n{ y = Gather(table, ids) }',
        table=table,
    )
    net = clnn.onnx.load(model.SerializeToString())
    for _ in range(6):
        ids = rng.integers(0, 10, (3, 5))
        np.testing.assert_array_equal(net(ids), table[ids])
    assert len(net.session().step.replays.launches()) == 1


# -- errors -----------------------------------------------------------------------------------------------------------
def test_unsupported_operators_are_all_named_at_once():
    model = proto(
        '<ir_version: 8, opset_import: ["" : 17, "com.example" : 1]>\nnet (float[N] x) => (float[N] y)\n'
        "{ a = com.example.Magic(x)\n b = Det(a)\n c = com.example.Magic(b)\n y = Relu(c) }"
    )
    with pytest.raises(clnn.CheckpointError, match="not supported") as error:
        clnn.onnx.load(model.SerializeToString())
    for name in ("com.example.Magic", "2 nodes, 'a', 'c'", "'b'"):
        assert name in str(error.value)
    assert "Relu" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({}, clnn.ConfigurationError, "missing is x"),
        ({"x": 1, "z": 2}, clnn.ConfigurationError, "unknown or twice is z"),
        ({"x": np.zeros((2, 3, 8), np.float32)}, clnn.ShapeError, r"\(2, 3, 8\)"),
        ({"x": np.zeros((2, 4, 8, 8), np.float32)}, clnn.ShapeError, "x: float32"),
        ({"x": np.array(["a"])}, clnn.DataError, "float32"),
        ({"x": np.zeros((2, 3, 8, 8), complex)}, clnn.DataError, "complex"),
    ],
    ids=["none", "unknown", "axes", "channels", "texts", "complex"],
)
def test_inputs_that_do_not_fit(given, error, says):
    net = clnn.onnx.load(conv_net().SerializeToString())
    with pytest.raises(error, match=says):
        net(**given)


def changed(change):
    """The bytes of the small network after a change of its protobuf."""
    model = conv_net()
    change(model)
    return model.SerializeToString()


WRONG = {
    "cycle": (lambda m: m.graph.node[0].input.__setitem__(0, "y"), "cycle"),
    "unknown name": (lambda m: m.graph.node[0].input.__setitem__(0, "nothing"), "'nothing', which nothing gives"),
    "no such output": (lambda m: setattr(m.graph.output[0], "name", "other"), "'other' is given by no node"),
    "two of one name": (lambda m: m.graph.node[1].output.__setitem__(0, "z"), "there already"),
    "newer operators": (lambda m: setattr(m.opset_import[0], "version", 99), "operator set 99"),
    "no outputs": (lambda m: m.graph.ClearField("output"), "no graph with outputs"),
    "too few values": (
        lambda m: setattr(m.graph.initializer[0], "raw_data", b"1234"),
        "takes 432 bytes, and 4 are there",
    ),
    "a huge shape": (lambda m: m.graph.initializer[0].dims.append(2**40), "are there"),
    "another type": (lambda m: setattr(m.graph.initializer[0], "data_type", 17), "type, 17"),
    "an attribute": (lambda m: setattr(m.graph.node[0].attribute[0], "name", "pad"), "Conv with pad"),
    "a text": (lambda m: setattr(m.graph.node[0].attribute[0], "type", 3), "'pads' is of kind 3"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files(name):
    change, says = WRONG[name]
    with pytest.raises(clnn.ClnnError, match=says):
        clnn.onnx.load(changed(change))(np.zeros((1, 3, 4, 4), np.float32))


def test_external_data_lies_in_the_model_s_folder_alone(tmp_path, rng):
    model, folder = conv_net(), tmp_path / "model"
    folder.mkdir()
    x = rng.standard_normal((1, 3, 4, 4)).astype(np.float32)
    expected = clnn.onnx.load(model.SerializeToString())(x)
    onnx.save(model, folder / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    np.testing.assert_array_equal(clnn.onnx.load(folder / "m.onnx")(x), expected)
    (folder / "weights.bin").rename(tmp_path / "weights.bin")
    with pytest.raises(clnn.CheckpointError, match="no such file"):
        clnn.onnx.load(folder / "m.onnx")
    outside = onnx.load(folder / "m.onnx", load_external_data=False)
    for tensor in outside.graph.initializer:
        tensor.external_data[0].value = "../weights.bin"
    with pytest.raises(clnn.CheckpointError, match="outside the model's folder"):
        (folder / "m.onnx").write_bytes(outside.SerializeToString())
        clnn.onnx.load(folder / "m.onnx")


# -- what becomes one launch ------------------------------------------------------------------------------------------
WRITTEN_OUT = {
    "swish": "s = Sigmoid(x)\n y = Mul(s, x)",
    "hard_swish": "a = Add(x, three)\n b = Clip(a, zero, six)\n d = Mul(x, b)\n y = Div(d, six)",
    "hard_swish_paddle": "a = HardSigmoid<alpha = 0.16666667>(x)\n y = Mul(x, a)",
    "gelu": "a = Div(x, root2)\n b = Erf(a)\n d = Add(b, one)\n e = Mul(x, d)\n y = Mul(e, half)",
    "gelu_tanh": "a = Mul(x, x)\n b = Mul(a, x)\n d = Mul(b, k)\n e = Add(x, d)\n f = Mul(e, rate)\n g = Tanh(f)\n"
    " h = Add(g, one)\n i = Mul(half, h)\n y = Mul(x, i)",
    "mish": "a = Softplus(x)\n b = Tanh(a)\n y = Mul(x, b)",
    "not a function that is known": "a = Sigmoid(x)\n b = Mul(a, x)\n y = Mul(b, three)",
    "read twice": "s = Sigmoid(x)\n m = Mul(s, x)\n y = Add(m, s)",
    "two roots": "s = Sigmoid(x)\n r = Relu(x)\n y = Mul(s, r)",
}
NUMBERS = {
    "one": 1.0,
    "zero": 0.0,
    "three": 3.0,
    "six": 6.0,
    "half": 0.5,
    "root2": 2**0.5,
    "k": 0.044715,
    "rate": (2 / np.pi) ** 0.5,
}


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_activations_that_are_written_out(name, device, rng):
    constants = {key: np.array(value, np.float32) for key, value in NUMBERS.items() if key in WRITTEN_OUT[name]}
    text = '<ir_version: 8, opset_import: ["" : 17]>\nnet (float[N] x) => (float[N] y)\n{ ' + WRITTEN_OUT[name] + " }"
    model = proto(text, **constants)
    net = clnn.onnx.load(model.SerializeToString())
    x = (5 * rng.standard_normal(500)).astype(np.float32)
    np.testing.assert_allclose(net(x), reference(model, x=x)[0], rtol=1e-5, atol=2e-6)
    one = name not in ("not a function that is known", "read twice", "two roots")
    assert (len(net.session().plan.nodes) == 1) == one


EPILOGUES = {
    "batch norm": ("z = Conv(x, w)\n n = BatchNormalization(z, v1, v2, v3, v4)\n y = HardSwish(n)", 1),
    "factor and bias": ("z = Conv(x, w)\n m = Mul(z, wide)\n a = Add(m, wide)\n y = Sigmoid(a)", 1),
    "hard sigmoid": ("z = Conv(x, w, v1)\n y = HardSigmoid<alpha = 0.3, beta = 0.4>(z)", 1),
    "read twice": ("z = Conv(x, w, v1)\n r = Relu(z)\n y = Add(z, r)", 3),
    "residual": ("z = Conv<pads = [1, 1, 1, 1]>(x, w2)\n a = Add(z, x)\n y = Relu(a)", 2),
    "along the last axis": ("z = Conv(x, w)\n y = Add(z, row)", 2),
    "linear": ("z = MatMul(x, square)\n a = Add(z, row)\n y = Tanh(a)", 1),
    "narrow": ("z = Slice(x, starts, ends, axes)\n y = Conv<pads = [1, 0, 1, 0]>(z, tall)", 2),
}


@pytest.mark.parametrize("name", EPILOGUES)
def test_what_becomes_one_launch_answers_the_same(name, device, rng):
    text, nodes = EPILOGUES[name]
    shapes = {
        "w": (4, 3, 3, 3), "w2": (3, 3, 3, 3), "v1": (4,), "v2": (4,), "v3": (4,), "v4": (4,), "wide": (4, 1, 1), "row": (6,),
        "square": (6, 6), "tall": (2, 3, 3, 1),
    }  # fmt: skip
    arrays = {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items() if key in text}
    if "v4" in arrays:
        arrays["v4"] = np.abs(arrays["v4"]) + 0.1
    if name == "along the last axis":
        arrays["row"] = arrays["row"][:4]
    if name == "narrow":
        arrays |= {"starts": np.array([2]), "ends": np.array([3]), "axes": np.array([3])}
    model = proto(
        '<ir_version: 8, opset_import: ["" : 17]>\nnet (float[N, 3, 6, 6] x) => (float y)\n{ ' + text + " }", **arrays
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    net = clnn.onnx.load(model.SerializeToString())
    x = rng.standard_normal((2, 3, 6, 6)).astype(np.float32)
    for _ in range(4):
        np.testing.assert_allclose(net(x), reference(model, x=x)[0], rtol=1e-4, atol=1e-4)
    assert len(net.session().plan.nodes) == nodes
    np.testing.assert_allclose(net.predict(x), net(x), rtol=1e-4, atol=1e-4)  # as the file has them


def test_layer_norm_that_is_written_out(device, rng):
    text = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[N, 5, 8] x) => (float[N, 5, 8] y)
    { m = ReduceMean<axes = [-1]>(x)
      d = Sub(x, m)
      p = Pow(d, two)
      v = ReduceMean<axes = [-1]>(p)
      e = Add(v, eps)
      s = Sqrt(e)
      r = Div(d, s)
      g = Mul(r, gamma)
      y = Add(g, beta) }"""
    vectors = {name: rng.standard_normal(8).astype(np.float32) for name in ("gamma", "beta")}
    model = proto(text, two=np.float32(2), eps=np.float32(1e-5), **vectors)
    net = clnn.onnx.load(model.SerializeToString())
    x = rng.standard_normal((3, 5, 8)).astype(np.float32)
    np.testing.assert_allclose(net(x), reference(model, x=x)[0], rtol=1e-4, atol=1e-5)
    assert [node.op for node in net.session().plan.nodes] == ["layer_norm"]


BROADCAST = (
    "m = ReduceMean<axes = [-1]>(x) d = Sub(x, m) s = Pow(d, two) u = ReduceMean<axes = [-1]>(s) e = Add(u, eps) "
)
BROADCAST += "r = Sqrt(e)"
NORMAL = "p = BatchNormalization(x, gamma, beta, mean, variance)"
BATCH_NORM = "y = BatchNormalization(z, gamma, beta, mean, variance)"
NOT_QUITE = {  # inputs' shapes, nodes, and constants' shapes: almost what one launch does
    "own bias, then batch normalisation": ({"x": (2, 3, 5, 5), "b": (4,)}, f"z = Conv(x, w, b) {BATCH_NORM}", (4, 3, 3, 3)),
    "own bias, then a factor": ({"x": (2, 3, 5), "b": (4,)}, "z = Conv(x, w, b) y = Mul(z, v)", (4, 3, 2), (4, 1)),
    "own bias, then a hard sigmoid": ({"x": (2, 3, 5), "b": (4,)}, "z = Conv(x, w, b) y = HardSigmoid(z)", (4, 3, 2)),
    "channels that are no last axis": ({"x": (2, 4, 3)}, f"z = MatMul(x, w) {BATCH_NORM}", (3, 4)),
    "a vector, and a row is added": ({"x": (3,)}, "z = MatMul(x, w) y = Add(z, v)", (3, 4), (1, 4)),
    "a vector, and a factor of two axes": ({"x": (3,)}, "z = MatMul(x, w) a = Mul(z, v) y = Relu(a)", (3, 4), (1, 1)),
    "a column is added": ({"x": (1, 3)}, "z = MatMul(x, w) y = Add(z, v)", (3, 1), (5, 1)),
    "columns are added": ({"x": (1, 3, 5, 5)}, "z = Conv(x, w) y = Add(z, v)", (4, 3, 2, 2), (4,)),
    "one channel becomes several": ({"x": (1, 3, 5, 5)}, "z = Conv(x, w) y = Add(z, v)", (1, 3, 2, 2), (3, 1, 1)),
    "layer normalisation that is spread": ({"x": (2, 1)}, f"{BROADCAST} q = Div(d, r) t = Mul(q, gamma) y = Add(t, beta)", (1,)),
    "layer normalisation with one factor": ({"x": (2, 4)}, f"{BROADCAST} q = Div(d, r) t = Mul(q, v) y = Add(t, v)", (1,), (1,)),
    "batch normalisation, a factor, an addition": ({"x": (2, 4, 5, 5)}, f"{NORMAL} q = Mul(p, w) r = Add(q, v) y = Relu(r)",
                                                   (4, 1, 1), (1, 4, 1, 1)),
    "batch normalisation, a factor by sample": ({"x": (4, 4, 1)}, f"{NORMAL} y = Mul(p, w)", (4, 1, 1)),
    "batch normalisation, more axes": ({"x": (3, 4)}, f"{NORMAL} y = Add(p, w)", (1, 1, 1)),
    "batch normalisation, a hard sigmoid": ({"x": (3, 4, 2)}, f"{NORMAL} y = HardSigmoid(p)", (1,)),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_QUITE)
def test_what_is_almost_one_launch_answers_the_same(name, device, rng):
    inputs, nodes, w, *v = NOT_QUITE[name]
    given = {key: rng.standard_normal(shape).astype(np.float32) for key, shape in inputs.items()}
    heads = ", ".join(
        f"float[{', '.join(f'{key}{i}' for i in range(len(shape)))}] {key}" for key, shape in inputs.items()
    )
    constants = {key: rng.standard_normal(4).astype(np.float32) for key in ("gamma", "beta", "mean")}
    constants |= {"variance": np.float32([1, 2, 3, 4]), "two": np.float32(2), "eps": np.float32(1e-5)}
    constants |= {key: rng.standard_normal(shape).astype(np.float32) for key, shape in zip("wv", (w, *v))}
    used = {key: array for key, array in constants.items() if re.search(rf"\b{key}\b", nodes)}
    model = proto(f'<ir_version: 8, opset_import: ["" : 17]>\nnet ({heads}) => (y) {{ {nodes} }}', **used)
    expected = reference(model, **given)[0]
    found = clnn.onnx.load(model.SerializeToString())(given)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    if name == "batch normalisation, a factor, an addition":
        ops = [node.op for node in clnn.onnx.load(model.SerializeToString()).session().plan.nodes]
        assert ops == ["affine"]


def test_weights_are_packed_once_and_anew_when_they_change(device, rng):
    """What kernels make of weights alone is no launch of a recording, and is made of the weights that a call finds."""
    model, x = conv_net(), rng.standard_normal((2, 3, 8, 8)).astype(np.float32)
    net = clnn.onnx.load(model.SerializeToString())
    for _ in range(4):
        np.testing.assert_allclose(net(x), reference(model, x=x)[0], rtol=1e-4, atol=1e-5)
    assert net.session().step.replays.launches()
    assert not any("PACK" in label for one in net.session().step.replays.launches() for label in one)
    weights = model.graph.initializer[0]
    weights.CopyFrom(numpy_helper.from_array(rng.standard_normal((4, 3, 3, 3)).astype(np.float32), weights.name))
    net.load_state_dict({**net.state_dict(), "w": numpy_helper.to_array(weights)})
    for _ in range(4):
        np.testing.assert_allclose(net(x), reference(model, x=x)[0], rtol=1e-4, atol=1e-5)


INSIDE = """<ir_version: 8, opset_import: ["" : 17]>
inside (float[T, N, 3] x, int64 which) => (float[T, D, N, 4] y)
<int64[1] a = {0}, int64[1] b = {32}, int64[1] axis = {1}, int64 one = {1}>
{
  first = Equal(which, one)
  y = If<then_branch = yes () => (float[T, D, N, 4] y1) { part = Slice(gates, a, b, axis)
      y1, h1 = LSTM<hidden_size = 4>(x, w, r, part) },
    else_branch = no () => (float[T, D, N, 4] y2)
      { other = Neg(w3) moved = Add(x, zeros)
        y2, h2 = GRU<hidden_size = 4, linear_before_reset = 1>(moved, other, r3, b3) }>(first)
}"""


def test_packed_weights_follow_averages_and_what_early_stopping_puts_back(device, rng, tmp_path):
    layers = [clnn.Conv2D(16, 3, padding="same"), clnn.Conv2D(16, 3, padding="same"), clnn.Flatten(), clnn.Dense(3)]
    with clnn.use(device):
        clnn.onnx.save(clnn.Sequential(layers, input_shape=(3, 12, 12), seed=1), tmp_path / "net.onnx")
        net = clnn.onnx.load(tmp_path / "net.onnx")
        x, y, asked = rng.standard_normal((8, 3, 12, 12)).astype(np.float32), np.arange(8) % 3, []

        def ask(*_):
            asked.append(np.abs(net(x) - net.predict(x)).max())

        sgd = clnn.SGD(0.05, ema=0.5)
        callbacks = [clnn.Lambda(on_epoch_end=ask), clnn.EarlyStopping("loss", patience=2, min_delta=10.0)]
        net.fit(x, y, loss="cross_entropy", optimizer=sgd, epochs=6, progress=False, callbacks=callbacks)
        ask()
        with sgd.averaged():
            ask()
        ask()
    assert len(asked) == 6 and max(asked) < 1e-5


def test_constants_inside_a_graph_inside_are_worked_out_once(device, rng):
    """Also those that a branch makes of others; the recordings of two branches and of several shapes keep apart."""
    shapes = {
        "gates": (1, 40),
        "w": (1, 16, 3),
        "r": (1, 16, 4),
        "w3": (1, 12, 3),
        "r3": (1, 12, 4),
        "b3": (1, 24),
        "zeros": (3,),
    }
    model = proto(INSIDE, **{name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()})
    net = clnn.onnx.load(model.SerializeToString())
    for which, steps in ((1, 3), (0, 3), (1, 2), (0, 3), (1, 3)) * 4:
        x = rng.standard_normal((steps, 2, 3)).astype(np.float32)
        given = {"x": x, "which": np.array(which)}
        np.testing.assert_allclose(net(given), reference(model, **given)[0], rtol=1e-4, atol=1e-5)
    assert max(map(len, net.session().step.replays.launches())) < 12  # of one branch
    net.load_state_dict({name: -array for name, array in net.state_dict().items()})
    assert np.abs(net(given) - reference(model, **given)[0]).max() > 1e-3


ANOTHER = {  # names that stand for one constant, and in the next turn or call for another: nodes, constants
    "a Loop's state that begins as one": (
        """last, each = Loop<body = turn (int64 i, bool c, float[2, 2] s) => (bool c2, float[2, 2] s2, float[2, 2] e)
             { c2 = Identity(c) s2 = Add(s, w) e = Neg(s) }>(n, on, w)
           y = MatMul(x, last)""",
        (2, 2),
    ),
    "a Scan's": (
        """k = Min(n, three) size = Reshape(k, flat) rows = Expand(one, size)
           y, each = Scan<num_scan_inputs = 1, body = turn (float[2, 2] s, float e) => (float[2, 2] s2, float e2)
             { s2 = MatMul(s, w) e2 = Identity(e) }>(w, rows)""",
        (2, 2),
    ),
    "weights that each turn changes": (
        """y, last = Loop<body = turn (int64 i, bool c, float[2, 2] h, float[2, 2] s) => (bool c2, float[2, 2] h2, float[2, 2] s2)
             { c2 = Identity(c) h2 = Gemm<transB = 1>(h, s) s2 = Add(s, h2) }>(n, on, x, w)""",
        (2, 2),
    ),
    "weights of a branch": (
        """more = Greater(n, two)
           v = If<then_branch = yes () => (float[2, 2] v1) { v1 = Neg(w) }, else_branch = no () => (float[2, 2] v2)
             { v2 = Exp(w) }>(more)
           y = Gemm<transB = 1>(x, v)""",
        (2, 2),
    ),
    "a branch in a turn": (
        """y = Loop<body = turn (int64 i, bool c, float[2, 2] h) => (bool c2, float[2, 2] h2)
             { c2 = Identity(c) first = Less(i, two)
             v = If<then_branch = yes () => (float[2, 2] v1) { v1 = Neg(w) }, else_branch = no () => (float[2, 2] v2)
               { v2 = Exp(w) }>(first)
             u = Tanh(v) h2 = Add(h, u) }>(n, on, x)""",
        (2, 2),
    ),
}


@pytest.mark.parametrize("name", ANOTHER)
def test_what_is_made_of_constants_inside_is_that_of_this_turn(name, device, rng):
    nodes, shape = ANOTHER[name]
    w = (rng.standard_normal(shape) / 2).astype(np.float32)
    constants = {"three": np.int64(3), "two": np.int64(2), "on": np.array(True), "one": np.float32(1)}
    constants["flat"] = np.int64([1])
    used = {key: array for key, array in {"w": w, **constants}.items() if re.search(rf"\b{key}\b", nodes)}
    model = proto(
        f'<ir_version: 8, opset_import: ["" : 17]>\nturns (float[2, 2] x, int64 n) => (float[2, 2] y) {{ {nodes} }}',
        **used,
    )
    net = clnn.onnx.load(model.SerializeToString())
    for n in (1, 2, 3, 3, 1, 3, 3, 2):
        given = {"x": rng.standard_normal((2, 2)).astype(np.float32), "n": np.array(n)}
        np.testing.assert_allclose(net(given), reference(model, **given)[0], rtol=1e-4, atol=1e-5)


GUARDS = {  # chains that are almost an activation, and keep away from 0 on purpose
    "sigmoid, clipped": "s = Sigmoid(x) k = Clip(s, small, one) y = Log(k)",
    "sigmoid, at least": "s = Sigmoid(x) k = Max(s, least) y = Log(k)",
    "sigmoid, written out": "n = Neg(x) e = Exp(n) d = Add(e, one) s = Div(one, d) k = Add(s, small) y = Log(k)",
    "softplus": "s = Softplus(x) k = Add(s, small) y = Reciprocal(k)",
    "hard sigmoid": "s = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x) k = Max(s, small) y = Log(k)",
    "swish": "s = Sigmoid(x) m = Mul(x, s) k = Sub(m, small) y = Reciprocal(k)",
    "gelu": "d = Div(x, root) e = Erf(d) p = Add(e, one) m = Mul(x, p) h = Mul(m, half) y = Sub(h, small)",
}


@pytest.mark.parametrize("name", GUARDS)
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid:RuntimeWarning")  # of onnx's evaluator
def test_what_keeps_a_chain_away_from_zero_stays(name, device):
    numbers = {"small": 1e-7, "least": 1e-12, "one": 1, "root": 2**0.5, "half": 0.5}
    used = {key: np.float32(v) for key, v in numbers.items() if re.search(rf"\b{key}\b", GUARDS[name])}
    model = proto(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[N] x) => (float[N] y) {{ {GUARDS[name]} }}', **used
    )
    x = np.float32([-200, -60, -30, -17, -8, -1, 0.5, 3, 20])
    np.testing.assert_allclose(
        clnn.onnx.load(model.SerializeToString())(x), reference(model, x=x)[0], rtol=1e-4, atol=1e-9
    )


# Whole numbers where the device's 32 bits, or its floats, would give something else: nodes, the type, x, y
WHOLE = {
    "Div of the least": ("y = Div(x, two)", "int32", [-(2**31), -7, 7], [-(2**30), -3, 3]),
    "Mod of the least": ("y = Mod<fmod = 1>(x, three)", "int32", [-(2**31), -7, 7], [-2, -1, 1]),
    "Scatter": ('y = ScatterElements<reduction = "add">(x, at, x)', "int64", [2**30, 2**31 - 1], [2**30, 2**32 + 2**30 - 2]),
    "ScatterND": ('y = ScatterND<reduction = "mul">(x, rows, x)', "int64", [2**20, 2**20], [2**20, 2**60]),
    "8 bits": ('a = ScatterElements<reduction = "add">(x, at, x) y = Relu(a)', "int8", [100, 101], [100, 46]),
    "PRelu": ("y = PRelu(x, many)", "int64", [-100_000, 3], [-(10**10), 3]),
    "ReduceMean": ("y = ReduceMean(x)", "int32", [1, 2, 2, 2], [1]),
    "ReduceMean below 0": ("y = ReduceMean(x)", "int64", [-1, -2, -2, -2], [-1]),
    "ReduceL2": ("y = ReduceL2(x)", "int32", [1, 2, 2, 2], [3]),
    "ReduceL2 of many": ("y = ReduceL2(x)", "int32", [3 * 10**8, 4 * 10**8], [5 * 10**8]),
    "Scan of a vector": (
        "y = Scan<num_scan_inputs = 1, body = turn (int64 e) => (int64 o) { o = Mul(e, many) }>(x)",
        "int64", [3, 10**6], [300_000, 10**11],
    ),
    "ReduceLogSum": ("y = ReduceLogSum(x)", "int32", [1, 2, 2, 20], [3]),
    "ReduceLogSumExp": ("y = ReduceLogSumExp(x)", "int32", [1, 2, 2, 20], [20]),
    "Slice": ("y = Slice(x, before, before, zero, back)", "int32", [4, 5, 6], [4]),  # as onnx's schema says
    "Resize": (
        'w = Reshape(x, wide) r = Resize<mode = "linear">(w, , sizes) y = Reshape(r, back)',
        "uint8", [0, 16], [0, 0, 5, 10, 16, 16],
    ),
}  # fmt: skip
CONSTANTS = {"two": 2, "three": 3, "many": 100_000, "at": [1, 1], "rows": [[1], [1]], "before": [-9], "zero": [0], "back": [-1],
             "wide": [1, 1, 1, 2]}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers_that_the_device_would_change(name, device):
    """As an output, and as what a Cast to float makes of them."""
    nodes, kind, x, y = WHOLE[name]
    used = {key: v for key, v in CONSTANTS.items() if re.search(rf"\b{key}\b", nodes)}
    index = ("at", "rows", "before", "zero", "back", "wide")
    arrays = {key: np.array(v, np.int64 if key in index else kind) for key, v in used.items()}
    if "sizes" in nodes:
        arrays["sizes"] = np.float32([1, 1, 1, 3])
    real, number = ("double", 11) if device.has_fp64 else ("float", 1)
    text = f"whole ({kind}[N] x) => ({kind}[M] y, {real}[M] z) {{ {nodes} z = Cast<to = {number}>(y) }}"
    net = clnn.onnx.load(proto(f'<ir_version: 8, opset_import: ["" : 18]> {text}', **arrays).SerializeToString())
    for _ in range(4):  # eagerly, recorded, and replayed
        found = net(np.array(x, kind))
        np.testing.assert_array_equal(found["y"], np.array(y, kind), strict=True)
        np.testing.assert_array_equal(found["z"], np.array(y, np.float64 if number == 11 else np.float32), strict=True)


def test_floats_that_become_whole_numbers_of_more_than_32_bits_are_an_error(device):
    text = "long (float[N] x) => (int64[N] i, float[N] y) { i = Cast<to = 7>(x) y = Cast<to = 1>(i) }"
    net = clnn.onnx.load(proto(f'<ir_version: 8, opset_import: ["" : 18]> {text}').SerializeToString())
    for _ in range(4):
        assert net([1.5, -2.0e9])["i"].tolist() == [1, -2_000_000_000]
        with pytest.raises(clnn.OutOfRangeError, match=r"\(Cast\): whole numbers have 32 bits"):
            net([1.5, -3.0e9])


@pytest.mark.parametrize("op, kind", [("Gather", "float"), ("Gather", "int32"), ("GatherElements", "float")])
def test_an_index_out_of_range_is_an_error_in_a_replay_too(op, kind, device):
    text = f"g ({kind}[3] x, int32[N] i) => ({kind}[N] y) {{ y = {op}(x, i) }}"
    net = clnn.onnx.load(proto(f'<ir_version: 8, opset_import: ["" : 17]> {text}').SerializeToString())
    x = np.array([5, 6, 7], "float32" if kind == "float" else kind)
    for i in ([0, 2], [-3, -1], [1, 1], [2, -2], [-3, 2]):
        np.testing.assert_array_equal(net(x, np.int32(i)), x[i], strict=True)
    for i in ([0, 3], [-4, 0]):
        with pytest.raises(clnn.OutOfRangeError, match=op):
            net(x, np.int32(i))


@pytest.mark.parametrize(
    "nodes", ["s = Sigmoid(x) m = Mul(x, s) y = Mul(m, one)", "n = Neg(x) e = Exp(n) p = Add(e, one) y = Div(one, p)"]
)
def test_numbers_with_an_axis_give_a_scalar_one(nodes, device):
    model = proto(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float x) => (float[N] y) {{ {nodes} }}', one=np.float32([1])
    )
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    net = clnn.onnx.load(model.SerializeToString())
    np.testing.assert_allclose(net(np.float32(2)), reference(model, x=np.float32(2))[0], rtol=1e-5, strict=True)


# -- models of others, where the packages that hold them are installed ------------------------------------------------
REAL = {  # package, file, and the inputs' shapes, twice where sizes are free
    "rapidocr detection": (
        "rapidocr_onnxruntime",
        "models/ch_PP-OCRv4_det_infer.onnx",
        [(1, 3, 96, 160), (1, 3, 64, 64)],
    ),
    "rapidocr recognition": (
        "rapidocr_onnxruntime",
        "models/ch_PP-OCRv4_rec_infer.onnx",
        [(1, 3, 48, 96), (2, 3, 48, 64)],
    ),
    "rapidocr direction": (
        "rapidocr_onnxruntime",
        "models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        [(1, 3, 48, 192), (2, 3, 48, 96)],
    ),
    "silero 18": ("silero_vad", "data/silero_vad_op18_ifless.onnx", [((1, 576), (2, 1, 128)), ((3, 576), (2, 3, 128))]),
    "silero 15": ("silero_vad", "data/silero_vad_16k_op15.onnx", [((1, 576), (2, 1, 128)), ((3, 576), (2, 3, 128))]),
    "nudenet": ("nudenet", "320n.onnx", [(1, 3, 320, 320), (2, 3, 320, 320)]),
    "magika": ("magika", "models/standard_v3_3/model.onnx", [(1, 2048), (3, 2048)]),
    "ddddocr": ("ddddocr", "common_det.onnx", [(1, 3, 416, 416)]),
}
for one in LIGHT:
    REAL[one] = "onnx", f"backend/test/data/light/light_{one}.onnx", [(1, 3, 224, 224)]


def strokes(size, rng):
    """Images of dark strokes like those of letters, on a bright ground, with noise: detection of nothing ends with a sigmoid
    that onnxruntime flushes to 0."""
    x = np.full(size, 2.0, np.float32)
    for i in range(int(rng.integers(8, 16)), size[3] - 16, 14):
        middle = size[2] // 2 + int(rng.integers(-6, 7))
        for left, right, half in ((i, i + 3, 12), (i + 7, i + 10, 12), (i, i + 10, 2)):
            x[:, :, middle - half : middle + half, left:right] = -2
    return x + 0.3 * rng.standard_normal(size).astype(np.float32)


def real_picture(name, size):
    """A photograph, or for OCR words, in the numbers that the model was trained with: (batch, 3, height, width)."""
    batch, _, height, width = size
    if "rapidocr" in name:
        image, draw, font = (pytest.importorskip(f"PIL.{part}") for part in ("Image", "ImageDraw", "ImageFont"))
        picture = image.new("RGB", (width, height), "white")
        draw.Draw(picture).text((4, height // 2 - 16), "Read 1000", fill="black", font=font.load_default(24))
        x = np.array(picture)[:, :, ::-1] / 127.5 - 1
    else:
        pytest.importorskip("PIL")
        photo = pytest.importorskip("sklearn.datasets").load_sample_image("china.jpg")
        rows, columns = (np.linspace(0, n - 1, m).astype(int) for n, m in zip(photo.shape, (height, width)))
        x = photo[rows][:, columns] / (255 if name == "nudenet" else 1)
    return np.repeat(x.transpose(2, 0, 1)[None], batch, 0).astype(np.float32)


def real_input(name, value, size, rng):
    """What a model is for: a picture, the bytes of a file, a sound of several harmonics."""
    if name == "magika":
        data = np.frombuffer(Path(__file__).read_bytes(), np.uint8)
        return data[: np.prod(size)].reshape(size).astype(np.int32)
    if "silero" in name:
        t = np.arange(np.prod(size)) / 16000
        sound = sum(np.sin(2 * np.pi * 140 * k * t) / k for k in range(1, 20))
        return (0.1 * sound).reshape(size).astype(np.float32) if value.name == "input" else np.zeros(size, np.float32)
    return real_picture(name, size)


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_models_answer_as_onnxruntime_does(name, device, rng):
    """To 1e-4 of each output's largest number, for five random inputs and a real one of each shape."""
    runtime = pytest.importorskip("onnxruntime")
    package, file, shapes = REAL[name]
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"the package {package} is not installed")
    path = Path(next(iter(spec.submodule_search_locations))) / file
    net, session = clnn.onnx.load(path), runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for shape in shapes:
        for kind in ("random",) * 5 + ("real",):
            given = {}
            for value in net.inputs:
                size = shape if not isinstance(shape[0], tuple) else shape[0] if value.name == "input" else shape[1]
                if value.type == "int64":  # the sampling rate
                    given[value.name] = np.array(16000)
                elif kind == "real":
                    given[value.name] = real_input(name, value, size, rng)
                elif value.type == "int32":
                    given[value.name] = rng.integers(0, 256, size).astype(np.int32)
                else:
                    normal = rng.standard_normal(size).astype(np.float32)
                    given[value.name] = strokes(size, rng) if "detection" in name else normal
            found = net(given)
            found = list(found.values()) if isinstance(found, dict) else [found]
            wanted = session.run(None, given)
            largest = max(np.abs(b).max() for b in wanted)
            for a, b in zip(found, wanted, strict=True):
                assert a.dtype == b.dtype and a.shape == b.shape
                off = np.abs(a - b).max() / max(
                    np.abs(b).max(), largest / 100
                )  # silero's probability of silence is small
                assert off <= 1e-4, f"{name}, {kind} input of shape {shape}: {off:.1e} of the largest output"


def test_a_fresh_process_loads_what_was_saved(tmp_path):
    """The class registers itself once it is needed."""
    net = clnn.Sequential([clnn.Dense(8, "relu"), clnn.Dense(3)], input_shape=4, seed=1)
    clnn.onnx.save(net, tmp_path / "net.onnx")
    model, x = clnn.onnx.load(tmp_path / "net.onnx"), np.ones((2, 4), np.float32)
    model.save(tmp_path / "net.safetensors")
    code = f"import clnn; print(clnn.load({str(tmp_path / 'net.safetensors')!r})([[1.0] * 4] * 2).tolist())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str(model(x).tolist())


# -- what learns ------------------------------------------------------------------------------------------------------
def learn(text, **constants):
    """The names that learn, and those that are kept with them."""
    net = clnn.onnx.load(proto('<ir_version: 8, opset_import: ["" : 18]>\n' + text, **constants).SerializeToString())
    every = dict(net.named_parameters())
    return {name for name, p in every.items() if p.trainable}, {name for name, p in every.items() if not p.trainable}


def f(*shape):
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


ONE = {
    "Gemm": ("(float[N, 3] x) => (float[N, 1] y) { y = Gemm(x, w, b) }", {"w": f(3, 1), "b": f(1)}, "wb"),
    "Gemm, all of one": ("(float[N, 1] x) => (float[N, 1] y) { y = Gemm(x, w, b) }", {"w": f(1, 1), "b": f(1)}, "wb"),
    "MatMul": ("(float[N, 3] x) => (float[N, 1] y) { z = MatMul(x, w) y = Add(z, b) }", {"w": f(3, 1), "b": f(1)}, "wb"),
    "bias before": ("(float[N, 3] x) => (float[N, 1] y) { z = MatMul(x, w) y = Add(b, z) }", {"w": f(3, 1), "b": f(1, 1)}, "wb"),
    "transposed": ("(float[N, 3] x) => (float[N, 1] y) { v = Transpose<perm = [1, 0]>(w) z = MatMul(x, v) y = Add(z, b) }",
                   {"w": f(1, 3), "b": f(1)}, "wb"),
    "transposed without perm": ("(float[N, 3] x) => (float[N, 1] y) { v = Transpose(w) z = MatMul(x, v) y = Add(z, b) }",
                                {"w": f(1, 3), "b": f(1)}, "wb"),
    "Gemm, transB, Add": ("(float[N, 3] x) => (float[N, 1] y) { z = Gemm<transB = 1>(x, w) y = Add(z, b) }",
                          {"w": f(1, 3), "b": f(1)}, "wb"),
    "Conv": ("(float[N, 1, 4] x) => (float[N, 1, 4] y) { y = Conv(x, w, b) }", {"w": f(1, 1, 1), "b": f(1)}, "wb"),
    "Conv, Add": ("(float[N, 2, 4] x) => (float[N, 1, 4] y) { z = Conv(x, w) y = Add(z, b) }",
                  {"w": f(1, 2, 1), "b": f(1, 1, 1)}, "wb"),
    "ConvTranspose": ("(float[N, 1, 4] x) => (float[N, 1, 4] y) { y = ConvTranspose(x, w, b) }",
                      {"w": f(1, 1, 1), "b": f(1)}, "wb"),
    "InstanceNormalization": ("(float[N, 1, 4] x) => (float[N, 1, 4] y) { y = InstanceNormalization(x, w, b) }",
                              {"w": f(1), "b": f(1)}, "wb"),
    "LayerNormalization": ("(float[N, 3, 1] x) => (float[N, 3, 1] y) { y = LayerNormalization(x, w, b) }",
                           {"w": f(1), "b": f(1)}, "wb"),
    "GroupNormalization": ("(float[N, 1, 4] x) => (float[N, 1, 4] y) { y = GroupNormalization<num_groups = 1>(x, w, b) }",
                           {"w": f(1), "b": f(1)}, "wb"),
    "PRelu": ("(float[N, 3] x) => (float[N, 3] y) { y = PRelu(x, w) }", {"w": f(1)}, "w"),
    "PRelu, a number": ("(float[N, 3] x) => (float[N, 3] y) { y = PRelu(x, w) }", {"w": f()}, "w"),
    "bias by Unsqueeze": ("(float[N, 3] x) => (float[N, 1] y) { z = MatMul(x, w) b = Unsqueeze(s, at) y = Add(z, b) }",
                          {"w": f(3, 1), "s": f(1), "at": np.array([0])}, "ws"),
    "factor": ("(float[N, 3] x) => (float[N, 3] y) { y = Mul(x, w) }", {"w": f(1)}, ""),
    "factor, a number": ("(float[N, 3] x) => (float[N, 3] y) { y = Mul(x, w) }", {"w": f()}, ""),
    "sum": ("(float[N, 3] x) => (float[N, 3] y) { y = Add(x, w) }", {"w": f(1)}, ""),
    "product, then a factor": ("(float[N, 3] x) => (float[N, 1] y) { z = MatMul(x, w) y = Mul(z, b) }",
                               {"w": f(3, 1), "b": f(1)}, "w"),
    "product, then a number": ("(float[N, 3] x) => (float[N, 1] y) { z = MatMul(x, w) y = Add(z, b) }",
                               {"w": f(3, 1), "b": f()}, "w"),
    "product of two columns": ("(float[N, 3] x) => (float[N, 2] y) { z = MatMul(x, w) y = Add(z, b) }",
                               {"w": f(3, 2), "b": f(1)}, "w"),
    "one row of weights": ("(float[N, 1] x) => (float[N, 2] y) { z = MatMul(x, w) y = Add(z, b) }",
                           {"w": f(1, 2), "b": f(1)}, "w"),
    "Gemm with a bias, then a number": ("(float[N, 3] x) => (float[N, 1] y) { z = Gemm(x, w, b) y = Add(z, c) }",
                                        {"w": f(3, 1), "b": f(1), "c": f(1)}, "wb"),
    "a column beside the inputs": ("(float[1, 2] x) => (float[1, 2] y) { z = Concat<axis = 1>(x, c) y = MatMul(z, w) }",
                                   {"w": f(3, 2), "c": f(1, 1)}, "w"),
}  # fmt: skip


@pytest.mark.parametrize("name", ONE)
def test_weights_of_one_element_learn_and_numbers_of_arithmetic_do_not(device, name):
    text, constants, wanted = ONE[name]
    text = "net " + text
    assert learn(text, **constants) == ({*wanted}, set())
    net = clnn.onnx.load(proto('<ir_version: 8, opset_import: ["" : 18]>\n' + text, **constants).SerializeToString())
    shape = [size if isinstance(size, int) else 8 for size in net.inputs[0].shape]
    x = f(*shape) + 1
    before, y = net.state_dict(), net(x)
    if wanted:
        net.fit(x, y + 1, loss="mse", optimizer=clnn.SGD(0.01), batch_size=len(x), epochs=2, progress=False)
    after = net.state_dict()
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved >= ({*wanted} - {"w"} if "Normalization" in name else {*wanted})  # a norm over one number is 0
    np.testing.assert_allclose(net(x), net.predict(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        "(float[N, 4, 1, 1] x) => (float[N, 4, 1, 1] y) { y = InstanceNormalization(x, w, b) }",
        "(float[N, 4, 1] x) => (float[N, 4, 1] y) { y = InstanceNormalization(x, w, b) }",
        "(float[N, 4] x) => (float[N, 4] y) { y = GroupNormalization<num_groups = 4>(x, w, b) }",
    ],
)
def test_one_value_is_its_own_mean(device, rng, text):
    """As in other runtimes; here it was refused, as in layers that train so."""
    model = proto('<ir_version: 8, opset_import: ["" : 21]>\nnet ' + text, w=f(4), b=f(4)).SerializeToString()
    net = clnn.onnx.load(model)
    x = f(3, *net.inputs[0].shape[1:])
    np.testing.assert_array_equal(net.predict(x), np.broadcast_to(net.state_dict()["b"].reshape(x.shape[1:]), x.shape))


def test_statistics_of_one_channel_stay(device, rng):
    text = "net (float[N, 1, 4] x) => (float[N, 1, 4] y) { m = Identity(mean) y = BatchNormalization(x, w, b, m, v) }"
    constants = {"w": f(1), "b": f(1), "mean": f(1), "v": np.abs(f(1)) + 1}
    assert learn(text, **constants) == ({"w", "b"}, {"mean", "v"})


def test_compiled_says_what_to_do_in_its_place(device):
    text = "net (float[N, 3] x) => (float[N, 2] y) { y = MatMul(x, w) }"
    net = clnn.onnx.load(proto('<ir_version: 8, opset_import: ["" : 18]>\n' + text, w=f(3, 2)).SerializeToString())
    with pytest.raises(clnn.ConfigurationError, match=r"call the model with arrays, net\(x\)"):
        net.compiled(2)


@pytest.mark.parametrize("op", ["Resize", "Upsample"])
@pytest.mark.parametrize(
    "size, scale, wanted", [(5, 2.6, 13), (5, 1.4, 7), (10, 0.7, 7), (125, 2.6, 325), (7, 1.1, 7), (6, 0.5, 3)]
)
def test_sizes_by_scales_are_those_of_other_runtimes(device, op, size, scale, wanted):
    """A file has 2.5999999 for 2.6, and onnxruntime and PyTorch make 13 of 5, as onnx infers the shape."""
    operator_set, roi = (18, ", ") if op == "Resize" else (9, "")
    text = f'net (float[N, 1, {size}] x) => (float[N, 1, M] y) {{ y = {op}<mode = "nearest">(x, {roi}s) }}'
    scales = np.array([1, 1, scale], np.float32)
    net = clnn.onnx.load(
        proto(f'<ir_version: 8, opset_import: ["" : {operator_set}]>\n{text}', s=scales).SerializeToString()
    )
    assert net(f(2, 1, size)).shape == net.predict(f(2, 1, size)).shape == (2, 1, wanted)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_an_axis_that_is_scaled_to_nothing_has_no_elements(device, mode):
    text = f'net (float[N, 1, 1] x) => (float[N, 1, M] y) {{ y = Resize<mode = "{mode}">(x, , s) }}'
    scales = np.array([1, 1, 0.6], np.float32)
    net = clnn.onnx.load(proto(f'<ir_version: 8, opset_import: ["" : 18]>\n{text}', s=scales).SerializeToString())
    assert net(f(2, 1, 1)).shape == (2, 1, 0)


@pytest.mark.parametrize("kind", ["float", "double"])
def test_inverses_of_hyperbolic_functions_of_large_and_of_small_numbers(device, kind):
    if kind == "double" and not device.has_fp64:
        pytest.skip("no float64")
    text = f"net ({kind}[N] x) => ({kind}[N] c, {kind}[N] s) {{ c = Acosh(x) s = Asinh(x) }}"
    net = clnn.onnx.load(proto(f'<ir_version: 8, opset_import: ["" : 18]>\n{text}').SerializeToString())
    x = np.array([1, 1.001, 3, 9e3, 2e4, 1e8, 3e8, 1e20, 1e30, np.inf, 0.5, 0, -1, -3e4, -1e30, -np.inf])
    x = x.astype("float32" if kind == "float" else "float64")
    with np.errstate(invalid="ignore"):
        wanted = {"c": np.arccosh(x.astype(np.float64)), "s": np.arcsinh(x.astype(np.float64))}
    for name, y in net(x).items():
        np.testing.assert_allclose(y, wanted[name], rtol=3e-6 if kind == "float" else 1e-14, err_msg=name)


@pytest.mark.parametrize("units", [1, 3])
@pytest.mark.parametrize("kind", ["SimpleRNN", "GRU", "LSTM"])
def test_one_unit_learns_as_more_do(device, rng, tmp_path, kind, units):
    layers = [clnn.PositionalEmbedding(4), getattr(clnn, kind)(units), clnn.Dense(1)]
    net = clnn.Sequential(layers, input_shape=(4, units), seed=1)
    clnn.onnx.save(net, tmp_path / "net.onnx")
    back = clnn.onnx.load(tmp_path / "net.onnx")
    x, gradients = f(16, 4, units), []
    for one in (net, back):
        ((one(clnn.tensor(x)) - 2.0) ** 2).mean().backward()
        gradients.append({name: p.grad.numpy() for name, p in one.named_parameters()})
    assert {*gradients[0]} == {*gradients[1]}
    for name, of_file in gradients[1].items():  # gates may stand in another order
        np.testing.assert_allclose(np.sort(of_file, None), np.sort(gradients[0][name], None), rtol=1e-3, atol=1e-5)


RECURRENT = {
    "LSTM": lambda: clnn.LSTM(4),
    "SimpleRNN": lambda: clnn.SimpleRNN(4),
    "GRU": lambda: clnn.GRU(4),
    "GRU, reset before": lambda: clnn.GRU(4, reset_after=False),
    "without a bias": lambda: clnn.LSTM(4, use_bias=False),
    "both ways": lambda: clnn.Bidirectional(clnn.LSTM(3)),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_layer_from_a_file_is_written_again(device, rng, tmp_path, name):
    net = clnn.Sequential([RECURRENT[name](), clnn.Dense(1)], input_shape=(5, 3), seed=1)
    clnn.onnx.save(net, tmp_path / "net.onnx")
    clnn.onnx.save(clnn.onnx.load(tmp_path / "net.onnx"), tmp_path / "again.onnx", example=f(2, 5, 3))
    again = clnn.onnx.load(tmp_path / "again.onnx")
    for n in (1, 2, 4):
        np.testing.assert_allclose(again(f(n, 5, 3)), net.predict(f(n, 5, 3)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_layer_learns_from_a_file_as_it_did(device, rng, tmp_path, name, recwarn):
    """ONNX has two biases, and LSTM and RNN one here: the file's second one is zeros, which do not learn."""
    net = clnn.Sequential([RECURRENT[name](), clnn.Dense(1)], input_shape=(5, 3), seed=1)
    clnn.onnx.save(net, tmp_path / "net.onnx")
    back = clnn.onnx.load(tmp_path / "net.onnx")
    back.save(tmp_path / "net.clnn")
    assert {name for name, _ in back.named_parameters()} == {name for name, _ in net.named_parameters()}
    x, losses = f(12, 5, 3), []
    for one in (net, back, clnn.load(tmp_path / "net.clnn")):
        how = {"loss": "mse", "optimizer": clnn.SGD(0.1, momentum=0.9), "seed": 1, "progress": False}
        losses.append(one.fit(x, f(12, 1), epochs=4, batch_size=5, **how)["loss"])
    np.testing.assert_allclose(losses[1:], [losses[0]] * 2, rtol=1e-5)
    assert not [w for w in recwarn if "do not learn" in str(w.message)]


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("norm", ["BatchNorm", "LayerNorm", "RMSNorm", "InstanceNorm"])
def test_one_channel_learns_as_more_do(device, rng, tmp_path, norm, width):
    layers = [clnn.Conv2D(width, 3), getattr(clnn, norm)(), clnn.PReLU(), clnn.GlobalAvgPool(), clnn.Dense(1)]
    net = clnn.Sequential(layers, input_shape=(1, 5, 5), seed=1)
    net.eval()
    trained_twice(net, f(16, 1, 5, 5), tmp_path)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_that_is_written_as_another_learns_as_it_did(device, rng, tmp_path, affine, groups):
    """A GroupNorm is an InstanceNormalization of its groups in the file, whose ones and zeros are nobody's weights."""
    layers = [
        clnn.Conv2D(4, 3),
        clnn.GroupNorm(groups, affine=affine),
        clnn.PReLU(),
        clnn.GlobalAvgPool(),
        clnn.Dense(1),
    ]
    trained_twice(clnn.Sequential(layers, input_shape=(1, 5, 5), seed=1), f(16, 1, 5, 5), tmp_path)


NORMS = {"BatchNormalization": ", m, v", "InstanceNormalization": "", "LayerNormalization": ""}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("ones, learns", [("1, 1, 1", False), ("1, 2, 3", True)])
def test_ones_and_zeros_of_nodes_do_not_learn(device, norm, ones, learns):
    """PyTorch writes them for norms without weights; other exporters have weights in nodes, too."""
    text = f"""net (float[N, 3, 3] x) => (float[N, 3, 3] y) {{ w = Constant<value = float[3] {{{ones}}}>()
    b = Constant<value = float[3] {{0, 0, 0}}>() z = Mul(x, k) y = {norm}(z, w, b{NORMS[norm]}) }}"""
    constants = {"k": np.ones(3, np.float32)} | ({"m": f(3), "v": f(3) ** 2 + 1} if NORMS[norm] else {})
    assert learn(text, **constants) == ({"k"} | ({"w"} if learns else set()), {*constants} - {"k"})


def trained_twice(net, x, folder):
    clnn.onnx.save(net, folder / "net.onnx")
    back = clnn.onnx.load(folder / "net.onnx")
    names = {name: p.trainable for name, p in net.named_parameters()}
    assert {name: p.trainable for name, p in back.named_parameters()} == names
    losses = []
    for one in (net, back):
        optimizer, found = clnn.SGD(0.1), []
        for _ in range(4):
            loss = ((one(clnn.tensor(x)) - 2.0) ** 2).mean()
            loss.backward()
            optimizer.step(one.parameters())
            found.append(loss.item())
        losses.append(found)
    np.testing.assert_allclose(*losses, rtol=1e-4)
    for name, p in net.named_parameters():
        np.testing.assert_allclose(
            dict(back.named_parameters())[name].numpy(), p.numpy(), rtol=1e-3, atol=1e-5, err_msg=name
        )


@pytest.mark.parametrize("channels", [1, 3])
def test_initial_values_that_are_stored_once_are_not_tied(device, channels):
    """As PyTorch writes them. Weights that are stored once and differ within are tied."""
    c = channels
    text = f"""net (float[N, {c}, 4] x) => (float[N, {c}, 4] y) {{
      mean = Identity(b) v = Identity(w) b2 = Identity(b) w2 = Identity(w) mean2 = Identity(b) v2 = Identity(w) k2 = Identity(k)
      z = BatchNormalization(x, w, b, mean, v) u = Conv(z, k) n = BatchNormalization(u, w2, b2, mean2, v2) y = Conv(n, k2) }}"""
    ones, zeros = np.ones(c, np.float32), np.zeros(c, np.float32)
    kernel = f(c, c, 2)[..., :1] if c > 1 else f(1, 1, 3)
    text = text.replace("Conv(", 'Conv<auto_pad = "SAME_UPPER">(')
    model = proto('<ir_version: 8, opset_import: ["" : 18]>\n' + text, w=ones, b=zeros, k=kernel)
    net = clnn.onnx.load(model.SerializeToString())
    learning = {name for name, p in net.named_parameters() if p.trainable}
    assert learning == {"w", "b", "w2", "b2", "k"}
    assert {*dict(net.named_parameters())} - learning == {"mean", "v", "mean2", "v2"}
    x = f(6, c, 4)
    before = net(x)
    np.testing.assert_allclose(before, reference(model, x=x)[0], rtol=1e-4, atol=1e-5)
    net.fit(x, before + f(6, c, 4), loss="mse", optimizer=clnn.SGD(0.05), epochs=2, progress=False)
    after = net.state_dict()
    assert np.abs(after["b"]).max() > 0 and np.abs(after["b"] - after["b2"]).max() > 0
    assert not after["mean"].any() and (after["v2"] == 1).all()


class Centred(clnn.Layer):
    """Numbers that learn and that do not, in arithmetic."""

    def build(self, shape):
        self.mean = self.parameter(shape, "zeros", learns=False)
        self.shift = self.parameter(shape, "ones")
        self.factor = self.parameter((1,), "ones")

    def forward(self, x):
        return (x - self.mean) / (self.shift + 1.0) * self.factor * 0.5


@pytest.mark.parametrize("width", [1, 4])
def test_what_learns_in_arithmetic_learns_from_a_file_of_clnns_too(device, tmp_path, width):
    trained_twice(clnn.Sequential([Centred(), clnn.Dense(1)], input_shape=(3, width), seed=1), f(8, 3, width), tmp_path)


SLICED = """net (float[T, N, 2] x) => (float[T, D, N, 1] y)
{
  i = Slice(w, zero, one, zero)  o = Slice(w, one, two, zero)  rest = Slice(w, two, four, zero)
  both = Concat<axis = 0>(i, o, rest)  kernel = Unsqueeze(both, zero)  loop = Unsqueeze(r, zero)
  p, q = Split<axis = 0, num_outputs = 2>(b)  biases = Concat<axis = 0>(p, q)  bias = Unsqueeze(biases, zero)
  h = Identity(start)
  y = LSTM<hidden_size = 1>(x, kernel, loop, bias)
}"""


def test_weights_that_are_sliced_split_and_put_together_learn(device, rng):
    ints = {name: np.array([value]) for name, value in {"zero": 0, "one": 1, "two": 2, "four": 4}.items()}
    floats = {"w": f(4, 2), "r": f(4, 1), "b": f(8), "start": f(1)}
    assert learn(SLICED, **floats, **ints) == ({"w", "r", "b"}, set())
    net = clnn.onnx.load(
        proto('<ir_version: 8, opset_import: ["" : 18]>\n' + SLICED, **floats, **ints).SerializeToString()
    )
    x, before = clnn.tensor(f(3, 2, 2)), net.state_dict()
    (net(x) ** 2).sum().backward()
    h = 1e-2
    for name, at in (("w", (1, 1)), ("w", (3, 0)), ("r", (2, 0)), ("b", (5,))):
        slopes = []
        for step in (-h, h):
            moved = {key: np.array(array, np.float64) for key, array in before.items()}
            moved[name][at] += step
            net.load_state_dict({key: array.astype(np.float32) for key, array in moved.items()})
            slopes.append(float((net(x.numpy()).astype(np.float64) ** 2).sum()))
        grad = net.weights[name].grad.numpy()[at]
        assert (slopes[1] - slopes[0]) / (2 * h) == pytest.approx(grad, rel=0.02, abs=1e-3)


def test_factors_and_biases_that_are_reshaped_learn(device, rng):
    text = """net (float[N, 3, 2, 2] x) => (float[N, 3, 2, 2] y)
    { u = Unsqueeze(w, axes) v = Unsqueeze(b, axes) z = Mul(x, u) y = Add(z, v) }"""
    assert learn(text, w=f(3), b=f(3), axes=np.array([1, 2])) == ({"w", "b"}, set())


TABLES = {
    "added": ("y = Add(h, p)", {"p": f(1, 5, 4)}, "wp"),
    "added before": ("y = Add(p, h)", {"p": f(5, 4)}, "wp"),
    "of zeros": ("y = Add(h, p)", {"p": np.zeros((1, 5, 4), np.float32)}, "wp"),
    "sliced by the length": ("s = Shape<start = 1, end = 2>(x) q = Slice(p, a0, s, a1) y = Add(h, q)", {"p": f(1, 9, 4)}, "wp"),
    "unsqueezed": ("q = Unsqueeze(p, a0) y = Add(h, q)", {"p": f(5, 4)}, "wp"),
    "a mask": ("y = Add(h, p)", {"p": np.where(f(5, 4) > 0, 0, -np.inf).astype(np.float32)}, "w"),
    "another mask": ("y = Add(h, p)", {"p": np.where(f(5, 4) > 0, 0, -100).astype(np.float32)}, "w"),
    "a table of factors": ("y = Mul(h, p)", {"p": f(5, 4)}, "w"),
    "a token": ("s = Shape<start = 0, end = 1>(x) k = Concat<axis = 0>(s, ones) t = Expand(p, k) y = Concat<axis = 1>(t, h)",
                {"p": f(1, 1, 4)}, "wp"),
    "a token that is tiled": ("s = Shape<start = 0, end = 1>(x) k = Concat<axis = 0>(s, ones) t = Tile(p, k) "
                              "y = Concat<axis = 1>(h, t)", {"p": f(1, 1, 4)}, "wp"),
    "a token and positions": ("s = Shape<start = 0, end = 1>(x) k = Concat<axis = 0>(s, ones) t = Expand(p, k) "
                              "z = Concat<axis = 1>(t, h) y = Add(z, q)", {"p": f(1, 1, 4), "q": f(1, 6, 4)}, "wpq"),
    "nothing": ("y = Concat<axis = 1>(h, p)", {"p": np.zeros((1, 0, 4), np.float32)}, "w"),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_position_embeddings_and_class_tokens_learn(device, rng, name):
    text, constants, wanted = TABLES[name]
    text = f"net (float[N, T, 3] x) => (float[N, U, 4] y) {{ h = MatMul(x, w) {text} }}"
    ints = {"a0": np.array([0]), "a1": np.array([1]), "ones": np.array([1, 1])}
    constants = {"w": f(3, 4), **constants, **{key: value for key, value in ints.items() if key in text}}
    assert learn(text, **constants)[0] == {*wanted}
    net = clnn.onnx.load(proto(f'<ir_version: 8, opset_import: ["" : 18]>\n{text}', **constants).SerializeToString())
    x, before = f(1 if name == "nothing" else 2, 5, 3), net.state_dict()
    y = net.predict(x)
    if np.isfinite(y).all():
        net.fit(x, y + f(1), loss="mse", optimizer="sgd", epochs=1, progress=False)
        assert all(not np.array_equal(p.numpy(), before[key]) for key, p in net.named_parameters())


def test_tables_that_are_computed_are_named_when_the_model_trains(device, rng):
    text = "net (float[N, 5, 4] x) => (float[N, 5, 4] y) { q = Tanh(p) z = Add(x, q) n = Tanh(m) u = Add(z, n) y = Mul(u, w) }"
    constants = {"p": f(5, 4), "m": np.where(f(5, 4) > 0, 0, 1).astype(np.float32), "w": f(4)}
    net = clnn.onnx.load(proto(f'<ir_version: 8, opset_import: ["" : 18]>\n{text}', **constants).SerializeToString())
    with pytest.warns(UserWarning, match="weights that nodes make of p do not learn"):
        net.fit(f(2, 5, 4), f(2, 5, 4), loss="mse", optimizer="sgd", epochs=1, progress=False)


def test_weights_that_are_computed_are_named_when_the_model_trains(device, rng, tmp_path):
    text = "net (float[N, 3] x) => (float[N, 2] y) { v = Mul(w, g) n = Tanh(v) z = MatMul(x, n) y = Add(z, b) }"
    net = clnn.onnx.load(
        proto(f'<ir_version: 8, opset_import: ["" : 18]>\n{text}', w=f(3, 2), g=f(3, 2), b=f(2)).SerializeToString()
    )
    x = f(8, 3)
    y = net.predict(x)  # without a word
    net.save(tmp_path / "net.clnn")
    for one in (net, clnn.load(tmp_path / "net.clnn")):
        with pytest.warns(UserWarning, match="weights that nodes make of g, w do not learn"):
            one.fit(x, y, loss="mse", optimizer="sgd", epochs=1, progress=False)
        one.fit(x, y, loss="mse", optimizer="sgd", epochs=1, progress=False)  # once


def test_weights_made_of_a_factor_that_learns_are_named_too(device, rng):
    text = """net (float[N, 3] x) => (float[N, 2] y) { l = ReduceL2<axes = [1]>(w) d = Div(w, l) h = Mul(d, half) v = Mul(h, g)
    y = Gemm<transB = 1>(x, v, b) }"""
    net = clnn.onnx.load(
        proto(
            f'<ir_version: 8, opset_import: ["" : 17]>\n{text}', w=f(2, 3), g=f(2, 1), b=f(2), half=f(1)
        ).SerializeToString()
    )
    with pytest.warns(UserWarning, match="weights that nodes make of w do not learn"):
        net.fit(f(8, 3), f(8, 2), loss="mse", optimizer="sgd", epochs=1, progress=False)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("units", [1, 3])
def test_a_first_layer_of_transposed_weights_without_a_bias_learns_from_its_own_batch(device, units, shuffle):
    """Its weights' gradient reads the batch as the product's other side, which nothing reads in the data set."""
    text = f"net (float[N, 5] x) => (float[N, {units}] y) {{ y = Gemm<transB = 1>(x, w) }}"
    net = clnn.onnx.load(proto(f'<ir_version: 8, opset_import: ["" : 18]>\n{text}', w=f(units, 5)).SerializeToString())
    same = clnn.Sequential([clnn.Dense(units, bias=False)], input_shape=5, seed=0)
    same.load_state_dict({"0.w": f(units, 5).T})
    x, y = f(24, 5), f(24, units) * 3
    for one in (net, same):
        one.fit(
            x, y, loss="mse", optimizer=clnn.SGD(0.05), batch_size=8, epochs=5, shuffle=shuffle, seed=4, progress=False
        )
    np.testing.assert_allclose(net.weights["w"].numpy(), same.layers[0].w.numpy().T, rtol=1e-4, atol=1e-5)


# -- files for batches of one size ------------------------------------------------------------------------------------
FIXED = {
    "reshaped": ("(float[4, 6] x) => (float[4, 2] y) { a = Reshape(x, shape) z = MatMul(a, w) y = Reshape(z, back) }",
                 {"shape": np.array([8, 3]), "w": f(3, 1), "back": np.array([4, 2])}),
    "mixed in other batches": ("(float[4, 6] x) => (float[4, 1] y) { a = Reshape(x, shape) y = ReduceMean(a, one) }",
                               {"shape": np.array([4, -1]), "one": np.array([1])}),
    "with a state": ("(float[4, 3, 2] x) => (float[4, 1] y) "
                     "{ t = Transpose<perm = [1, 0, 2]>(x) all, h = RNN<hidden_size = 1>(t, w, r, b, , s) y = Squeeze(h, zero) }",
                     {"w": f(1, 1, 2), "r": f(1, 1, 1), "b": f(1, 2), "s": f(1, 1, 1).repeat(4, 1), "zero": np.array([0])}),
    "any size does": ("(float[4, 3] x) => (float[4, 2] y) { z = MatMul(x, w) y = Softmax(z) }", {"w": f(3, 2)}),
    "two outputs": ("(float[4, 6] x) => (float[4, 3, 2] y, float[4, 6] z) { y = Reshape(x, shape) z = Tanh(x) }",
                    {"shape": np.array([4, 3, 2])}),
}  # fmt: skip


@pytest.mark.parametrize("name", FIXED)
def test_predict_takes_any_number_of_samples_where_a_file_is_for_batches_of_one_size(device, name):
    text, constants = FIXED[name]
    model = proto('<ir_version: 8, opset_import: ["" : 18]>\nnet ' + text, **constants)
    net = clnn.onnx.load(model.SerializeToString())
    for count in (4, 8, 1, 3, 11, 0):
        x = f(count, *net.inputs[0].shape[1:])
        whole = np.concatenate([x, np.zeros((-count % 4, *x.shape[1:]), np.float32)])
        wanted = [reference(model, x=whole[i : i + 4]) for i in range(0, len(whole), 4)]
        found = net.predict(x)
        for i, one in enumerate(found.values() if isinstance(found, dict) else [found]):
            assert len(one) == count
            if count:
                np.testing.assert_allclose(
                    one, np.concatenate([each[i] for each in wanted])[:count], rtol=1e-5, atol=1e-6
                )


def test_a_file_for_one_size_of_batches_says_so(device):
    text, constants = FIXED["reshaped"]
    net = clnn.onnx.load(
        proto('<ir_version: 8, opset_import: ["" : 18]>\nnet ' + text, **constants).SerializeToString()
    )
    x, y = f(16, 6), f(16, 2)
    with pytest.raises(clnn.ShapeError, match="exported for batches of 4, and 8 samples were given: give batch_size=4"):
        net.fit(x, y, loss="mse", optimizer="sgd", batch_size=8, epochs=1, progress=False)
    losses = net.fit(x, y, loss="mse", optimizer="sgd", batch_size=4, epochs=3, progress=False).history["loss"]
    assert losses[-1] < losses[0]
    assert net.evaluate(x, y, loss="mse")["loss"] == pytest.approx(((net.predict(x) - y) ** 2).mean(), rel=1e-5)
    text, constants = "(float[4, 3] x) => (float[4, 2] y) { z = MatMul(x, w) y = Softmax(z) }", {"w": f(3, 2)}
    net = clnn.onnx.load(
        proto('<ir_version: 8, opset_import: ["" : 18]>\nnet ' + text, **constants).SerializeToString()
    )
    np.testing.assert_allclose(net.predict_proba(f(5, 3)).sum(1), 1, rtol=1e-6)
