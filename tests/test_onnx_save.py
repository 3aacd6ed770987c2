"""clnn.onnx.save: what onnxruntime makes of the files is what the models make, for every layer, several batches and free axes."""

import importlib
import math

import numpy as np
import pytest

import clnn
import clnn.distributed
import clnn.onnx
from clnn.layers.base import REGISTRY, Layer
from clnn.ops.activation import FUNCTIONS
from clnn.ops.elementwise import BINARY

onnx = pytest.importorskip("onnx")
evaluator = pytest.importorskip("onnx.reference")
runtime = pytest.importorskip("onnxruntime")
from onnx.reference.op_run import OpRun  # noqa: E402


def seq(*layers, shape, **how):
    return clnn.Sequential([*layers], input_shape=shape, **how)


def graph(make, *shapes, dtypes=()):
    kinds = dtypes or ["float32"] * len(shapes)
    inputs = [clnn.Input(shape, dtype=kind) for shape, kind in zip(shapes, kinds)]
    return clnn.Model(tuple(inputs), make(*inputs))


def shuffled(net, rng):
    """Parameters that tell gates, channels and statistics apart."""
    for _, p in net.named_parameters():
        low = 0.5 if "variance" in p.name else -0.6
        p.device.upload(np.ascontiguousarray(rng.uniform(low, 1.2, p.shape), p.dtype), p.block)
    return net


def write(net, path, opset=18, **how):
    """The file's graph, after ONNX's own checker has passed it, and its shapes are those that inference finds."""
    clnn.onnx.save(net, path, opset, **how)
    onnx.checker.check_model(str(path), full_check=True)
    told = onnx.load(str(path))
    inferred = onnx.shape_inference.infer_shapes(told, check_type=True, strict_mode=True, data_prop=True)
    for one, other in zip(told.graph.output, inferred.graph.output):
        dims = [
            [
                dim.dim_value or dim.dim_param
                for dim in v.type.tensor_type.shape.dim
                if not dim.dim_param.startswith("unk__")
            ]
            for v in (one, other)
        ]
        assert [dim for dim in dims[0] if dim] == dims[1]
        assert one.type.tensor_type.elem_type == other.type.tensor_type.elem_type
    return told


def answers(path, inputs):
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {one.name: x for one, x in zip(session.get_inputs(), inputs)})


def flat(y):
    if isinstance(y, dict):
        y = [*y.values()]
    return [t for one in y for t in flat(one)] if isinstance(y, (tuple, list)) else [np.asarray(y)]


def compare(net, path, inputs, tolerance=3e-6, run=answers):
    with clnn.no_grad():
        expected = flat(net(*inputs))
    found = run(path, inputs)
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, np.abs(b[np.isfinite(b)]).max(initial=0)))


def free_axes(told):
    return {
        (i, axis): dim.dim_param
        for i, one in enumerate(told.graph.input)
        for axis, dim in enumerate(one.type.tensor_type.shape.dim)
        if dim.dim_param
    }


def arrays(told, rng, batch, grow, low=0, high=5):
    """Inputs of this batch, the other free axes `grow` longer than the model was built with."""
    found = []
    for one in told.graph.input:
        shape = [dim.dim_value for dim in one.type.tensor_type.shape.dim]
        built = iter(grow.get(one.name, ()))
        shape = [n or (batch if axis == 0 else next(built)) for axis, n in enumerate(shape)]
        if one.type.tensor_type.elem_type == onnx.TensorProto.INT32:
            found.append(rng.integers(low, high, shape).astype(np.int32))
        else:
            found.append(
                rng.normal(size=shape).astype(onnx.helper.tensor_dtype_to_np_dtype(one.type.tensor_type.elem_type))
            )
    return found


# Each layer: a model with it, and per input the sizes, besides the batch, that have to be free, in two versions
SPACE = {"input": [(9, 12), (14, 7)]}
TIME = {"input": [(7,), (12,)]}
ALL = {"input": [(6, 9, 12), (4, 14, 7)]}
CASES = {
    "Dense": (lambda: seq(clnn.Dense(7, "gelu"), clnn.Dense(3, "softmax"), clnn.Dense(2, bias=False), shape=5), {}),
    "Dense of steps": (lambda: seq(clnn.Dense(7, "swish"), clnn.Dense(3, "log_softmax"), shape=(4, 5)), {"input": [(4,), (7,)]}),
    "Activation": (
        lambda: seq(clnn.Activation("leaky_relu", slope=0.2), clnn.Activation("softmax"), shape=5),
        {"input": [(5,), (8,)]},
    ),
    "ELU with alpha": (lambda: seq(clnn.Activation("elu", alpha=0.5), shape=5), {"input": [(5,), (8,)]}),
    "PReLU": (lambda: seq(clnn.PReLU(), clnn.PReLU(axis=None), shape=(3, 4, 5)), {"input": [(4, 5), (6, 3)]}),
    "Flatten": (lambda: seq(clnn.Flatten(), clnn.Dense(3), shape=(3, 4, 5)), {}),
    "Reshape": (lambda: seq(clnn.Reshape((4, -1)), clnn.Dense(3), shape=(3, 8)), {}),
    "Dropout": (
        lambda: seq(clnn.Dropout(0.5), clnn.SpatialDropout(0.5), clnn.GaussianDropout(0.5), clnn.Conv1D(2, 1), shape=(3, 8)),
        {"input": [(8,), (5,)]},
    ),
    "merge": (
        lambda: graph(
            lambda a, b: (
                clnn.Add()(a, b, a), clnn.Subtract()(a, b), clnn.Multiply()(a, b), clnn.Maximum()(a, b),
                clnn.Average()(a, b), clnn.Concatenate()(a, clnn.Dense(2)(b)), clnn.Concatenate(1)(a, b),
            ), (3, 4), (3, 4),
        ),  {"input_1": [(3,), (5,)], "input_2": [(3,), (5,)]},
    ),
    "Split": (lambda: graph(lambda x: clnn.Split([1, 3])(x), (3, 4)), {"input_1": [(3,), (5,)]}),
    "BatchNorm": (
        lambda: seq(clnn.BatchNorm("relu"), clnn.Conv2D(4, 3, bias=False), clnn.BatchNorm(affine=False), clnn.Conv2D(2, 1),
                    clnn.BatchNorm("tanh"), shape=(3, 9, 12)),
        SPACE,
    ),
    "BatchNorm of features": (lambda: seq(clnn.Dense(4), clnn.BatchNorm(), clnn.distributed.SyncBatchNorm("relu"), shape=3), {}),
    "LayerNorm": (
        lambda: seq(clnn.LayerNorm(), clnn.Dense(4), clnn.LayerNorm((-2, -1), affine=False), shape=(3, 4)), {},
    ),
    "RMSNorm": (lambda: seq(clnn.RMSNorm(), clnn.Dense(4), clnn.RMSNorm(affine=False), shape=(7, 4)), TIME),
    "GroupNorm": (lambda: seq(clnn.GroupNorm(2, "relu"), clnn.Conv2D(6, 1), clnn.GroupNorm(3, affine=False),
                    shape=(4, 9, 12)), SPACE),
    "InstanceNorm": (
        lambda: seq(clnn.InstanceNorm("relu"), clnn.Conv2D(6, 1), clnn.InstanceNorm(affine=False), shape=(4, 9, 12)), SPACE,
    ),
    "LocalResponseNorm": (
        lambda: seq(clnn.LocalResponseNorm(5, alpha=0.5), clnn.Conv2D(5, 1), clnn.LocalResponseNorm(4, alpha=0.5, k=2.0),
                    shape=(4, 9, 12)),
        SPACE,
    ),
    "Residual": (
        lambda: seq(clnn.Residual([clnn.Conv2D(4, 3, padding="same"), clnn.BatchNorm()], clnn.Conv2D(4, 1), "relu"),
                    clnn.Residual(clnn.Conv2D(4, 1), activation="gelu"), shape=(3, 9, 12)),
        SPACE,
    ),
    "Conv1D": (
        lambda: seq(clnn.Conv1D(4, 3, "relu", padding="causal", dilation=2), clnn.Conv1D(2, 3, stride=2, padding=[[1, 2]]),
                    shape=(3, 9)),
        {"input": [(9,), (14,)]},
    ),
    "Conv2D": (
        lambda: seq(clnn.Conv2D(4, (3, 2), "relu", stride=(2, 1), padding="same", groups=2), clnn.Conv2D(6, 3, dilation=2,
                    padding=[[2, 1], [0, 3]], bias=False), shape=(4, 9, 12)),
        SPACE,
    ),
    "Conv3D": (lambda: seq(clnn.Conv3D(2, (1, 2, 3), "hard_swish", padding="same"), shape=(3, 6, 9, 12)), ALL),
    "Conv1DTranspose": (lambda: seq(clnn.Conv1DTranspose(4, 3, stride=2, padding="same"),
                    shape=(3, 9)), {"input": [(9,), (14,)]}),
    "Conv2DTranspose": (
        lambda: seq(clnn.Conv2DTranspose(4, (3, 2), "relu", stride=2, groups=2, padding=1, output_padding=(1, 0)),
                    clnn.Conv2DTranspose(3, 2, stride=3, padding="same"), clnn.BatchNorm(), shape=(4, 9, 12)),
        SPACE,
    ),
    "Conv3DTranspose": (lambda: seq(clnn.Conv3DTranspose(2, 2, stride=(1, 2, 1), dilation=2), shape=(3, 6, 9, 12)), ALL),
    "DepthwiseConv2D": (lambda: seq(clnn.DepthwiseConv2D(3, "relu", multiplier=2), shape=(3, 9, 12)), SPACE),
    "MaxPool1D": (lambda: seq(clnn.Conv1D(2, 1), clnn.MaxPool1D(3, 2, 1), clnn.AvgPool1D(2, 1),
                    shape=(3, 9)), {"input": [(9,), (14,)]}),
    "MaxPool2D": (lambda: seq(clnn.MaxPool2D(3, 2, "same"), clnn.MaxPool2D((2, 1)), clnn.Conv2D(2, 1), shape=(3, 9, 12)), SPACE),
    "MaxPool3D": (lambda: seq(clnn.MaxPool3D(2, 1), clnn.AvgPool3D((1, 2, 2)), clnn.Conv3D(2, 1), shape=(3, 6, 9, 12)), ALL),
    "ceil_mode": (
        lambda: seq(clnn.Conv2D(3, 1), clnn.MaxPool2D(2, ceil_mode=True), clnn.AvgPool2D(3, 2, 1, ceil_mode=True),
                    clnn.AvgPool2D(2, 2, [[0, 1], [1, 0]], ceil_mode=True, count_include_pad=False), shape=(3, 19, 22)),
        {},
    ),
    "AvgPool2D": (
        lambda: seq(clnn.AvgPool2D(3, 2, 1), clnn.AvgPool2D(3, 1, 1, count_include_pad=False), clnn.Conv2D(2, 1),
                    shape=(3, 9, 12)),
        SPACE,
    ),
    "AdaptiveMaxPool": (lambda: seq(clnn.Conv2D(3, 1), clnn.AdaptiveMaxPool((3, 5)), shape=(3, 9, 12)), {}),
    "AdaptiveAvgPool": (lambda: seq(clnn.Conv2D(3, 1), clnn.AdaptiveAvgPool(3), clnn.AdaptiveAvgPool(2), shape=(3, 9, 12)), {}),
    "GlobalMaxPool": (lambda: seq(clnn.Conv2D(2, 1), clnn.GlobalMaxPool(), shape=(3, 9, 12)), SPACE),
    "GlobalAvgPool": (lambda: seq(clnn.Conv2D(2, 1), clnn.GlobalAvgPool(), clnn.Dense(2), shape=(3, 9, 12)), SPACE),
    "UpSampling": (lambda: seq(clnn.UpSampling([2, 3]), clnn.UpSampling(2, "bilinear"), clnn.Conv2D(2, 1),
                    shape=(3, 9, 12)), SPACE),
    "UpSampling of lines": (lambda: seq(clnn.UpSampling(3, "linear"), clnn.Conv1D(2, 1), shape=(3, 9)), {"input": [(9,), (14,)]}),
    "Padding": (
        lambda: seq(clnn.Padding(1, value=2.5), clnn.Padding([[1, 2], 3], "reflect"), clnn.Padding(2, "replicate"),
                    clnn.Conv2D(2, 1), shape=(3, 9, 12)),
        SPACE,
    ),
    "MultiHeadAttention": (
        lambda: graph(lambda x, y: clnn.MultiHeadAttention(4, key_heads=2, rotary=True)(x, clnn.Dense(6)(y)), (7, 8), (5, 3)),
        {"input_1": [(7,), (4,)], "input_2": [(5,), (9,)]},
    ),
    "TransformerEncoderLayer": (
        lambda: graph(lambda x, m: clnn.TransformerEncoderLayer(2, 12, norm="rms")(x, m), (7, 8), (1, 1, 7),
                        dtypes=("float32", "int32")),
        {"input_1": [(7,), (4,)], "input_2": [(7,), (4,)]},
    ),
    "TransformerDecoderLayer": (
        lambda: graph(lambda x, y: clnn.TransformerDecoderLayer(2, 12, norm_first=False)(x, y), (7, 8), (5, 3)),
        {"input_1": [(7,), (4,)], "input_2": [(5,), (9,)]},
    ),
    "Embedding": (lambda: seq(clnn.Embedding(9, 4, padding=2), clnn.SinusoidalPositions(), clnn.Dense(3), shape=7), TIME),
    "PositionalEmbedding": (lambda: seq(clnn.Embedding(9, 4), clnn.PositionalEmbedding(7), shape=7), {"input": [(7,), (4,)]}),
    "mask_zero": (lambda: seq(clnn.Embedding(5, 4, mask_zero=True), clnn.MultiHeadAttention(2), clnn.LSTM(3), shape=7), TIME),
    "SimpleRNN": (
        lambda: seq(clnn.SimpleRNN(4, "relu", return_sequences=True), clnn.SimpleRNN(3, go_backwards=True), shape=(7, 3)), TIME,
    ),
    "LSTM": (
        lambda: seq(clnn.LSTM(4, return_sequences=True), clnn.LSTM(3, return_sequences=True, go_backwards=True),
                    clnn.LSTM(3, "softsign", "hard_sigmoid", use_bias=False), shape=(7, 3)),
        TIME,
    ),
    "GRU": (
        lambda: seq(clnn.GRU(4, return_sequences=True), clnn.GRU(3, use_bias=False, return_sequences=True), clnn.GRU(2, "swish"),
                    shape=(7, 3)),
        TIME,
    ),
    "GRU, reset before": (
        lambda: seq(clnn.GRU(4, return_sequences=True, reset_after=False),
                    clnn.GRU(3, use_bias=False, reset_after=False, return_sequences=True, go_backwards=True),
                    clnn.GRU(2, "swish", reset_after=False), shape=(7, 3)),
        TIME,
    ),
    "states": (
        lambda: graph(lambda x, h, c: clnn.LSTM(4, return_sequences=True, return_state=True)(x, h, c), (7, 3), (4,), (4,)),
        {"input_1": [(7,), (4,)]},
    ),
    "cells": (
        lambda: graph(
            lambda x, h, c: (
                *clnn.LSTMCell(4)(x, h, c), clnn.GRUCell(4)(x, h), clnn.GRUCell(4, reset_after=False)(x, h),
                clnn.SimpleRNNCell(3)(x),
            ), (3,), (4,), (4,)
        ), {},
    ),
    "Bidirectional": (
        lambda: seq(clnn.Bidirectional(clnn.LSTM(3, return_sequences=True), "ave"), clnn.Bidirectional(clnn.GRU(2)),
                    shape=(7, 3)),
        TIME,
    ),
    "TimeDistributed": (
        lambda: seq(clnn.TimeDistributed(clnn.Sequential([clnn.Conv1D(2, 3), clnn.GlobalMaxPool(), clnn.Dense(3)])), clnn.GRU(2),
                    shape=(7, 3, 5)),
        {"input": [(7, 5), (12, 8)]},
    ),
    "Masking": (
        lambda: seq(clnn.Masking(), clnn.LSTM(4, return_sequences=True), clnn.Bidirectional(clnn.GRU(3, return_sequences=True)),
                    clnn.SimpleRNN(2), shape=(7, 3)),
        TIME,
    ),
    "lengths": (
        lambda: graph(lambda x, n: clnn.Bidirectional(clnn.GRU(3, return_sequences=True))(x, n), (7, 3), (),
                        dtypes=("float32", "int32")),
        {"input_1": [(7,), (5,)]},
    ),
    "TemporalBlock": (lambda: seq(clnn.TemporalBlock(4, 3, dilation=2, dropout=0.5), shape=(3, 9)), {"input": [(9,), (14,)]}),
}  # fmt: skip


def test_every_layer_has_a_case():
    """A layer that is registered later needs one, too."""
    seen = set()
    for make, _ in CASES.values():
        seen |= {type(layer) for layer in make().layers_inside()}
    layers = {kind for kind in REGISTRY.values() if isinstance(kind, type) and issubclass(kind, Layer)}
    elsewhere = ("clnn.onnx.model", "clnn.tools.reproduce")  # what files become, and the book's own dropout
    ours = {kind for kind in layers if kind.__module__.startswith("clnn.") and kind.__module__ not in elsewhere}
    assert {kind.__name__ for kind in ours - seen} == set()


@pytest.mark.parametrize("name", CASES)
def test_a_layer_answers_the_same(name, device, rng, tmp_path):
    make, sizes = CASES[name]
    net, path = shuffled(make(), rng), tmp_path / "net.onnx"
    told = write(net, path)
    axes = free_axes(told)
    assert {at for at in axes if at[1] == 0} == {(i, 0) for i in range(len(told.graph.input))}
    assert {told.graph.input[i].name for i, axis in axes if axis} == set(sizes)
    names = {name for name, _ in net.named_parameters()}
    stored = {one.name for one in told.graph.initializer if not one.name.startswith("constant_")}
    assert stored <= names and all(one.endswith("recurrent_b") for one in names - stored)  # which is in the other bias
    for batch, version in ((1, 0), (4, 1)):
        grow = {key: versions[version] for key, versions in sizes.items()}
        inputs = arrays(told, rng, batch, grow)
        if name == "Masking":
            inputs[0][0, 2:4] = 0
            inputs[0][-1, -2:] = 0
        compare(net, path, inputs, 1e-5)


# -- functions of tensors, in a model of one's own --------------------------------------------------------------------
class Own(clnn.Model):
    """A model whose forward() is a function."""

    def __init__(self, function, whole=False):
        super().__init__()
        self.function, self.whole_inputs = function, whole

    def build(self, *shapes):
        self.scale = self.parameter((), "ones")

    def forward(self, *inputs):
        return self.function(*inputs)


def own(function, *inputs, whole=False):
    net = Own(function, whole)
    with clnn.no_grad():
        net(*inputs)
    return net


def test_every_function_of_one_variable(device, rng, tmp_path):
    names = [name for name in FUNCTIONS if name not in ("linear", "step", "negative")]
    x = np.concatenate([rng.normal(size=60), [0, 1e-4, -1e-4, -8, 8, 2.5, -3.5]]).astype(np.float32).reshape(1, -1)

    def every(x):
        small = {name: getattr(clnn, name)(x) for name in names if name not in ("log", "log1p", "sqrt")}
        return small | {name: getattr(clnn, name)(clnn.abs(x)) for name in ("log", "log1p", "sqrt")} | {"negative": -x}

    net, path = own(every, x), tmp_path / "net.onnx"
    write(net, path)
    compare(net, path, [x])
    relative = answers(path, [x])[list(every(clnn.tensor(x))).index("log1p")]
    np.testing.assert_allclose(relative, np.log1p(np.abs(x).astype(np.float64)), rtol=3e-7)


def test_every_function_of_two_variables(device, rng, tmp_path):
    names = [name for name in BINARY if name != "arctan2"]
    a, b = (np.round(4 * rng.normal(size=(5, 7))).astype(np.float32) for _ in "ab")

    def every(a, b):
        found = {name: getattr(clnn, name)(a, b) for name in names if name != "power"}
        found |= {f"{name} number": getattr(clnn, name)(a, 2.0) for name in names if not name.startswith("logical")}
        return found | {"first": 3.0 - b, "power": clnn.abs(a) ** b, "not": (a > b) == 0, "row": a + b[:1]}

    net, path = own(every, a, b), tmp_path / "net.onnx"
    write(net, path)
    compare(net, path, [a, b])
    compare(net, path, [a[:1], b[:1]])


def test_whole_numbers(device, rng, tmp_path):
    i = rng.integers(-9, 9, (4, 6)).astype(np.int32)

    def every(i):
        return (
            i + 1, i * i - 3, i % 4, i // 4, -i, i > 2, i == i[:, :1], clnn.maximum(i, 0), i.astype("float32") / 2,
            clnn.where(i > 0, i, -1), i.reshape(-1, 3, 2), clnn.one_hot(i % 3, 3), (i > 0) & (i < 5),
        )  # fmt: skip

    net, path = own(every, i, whole=True), tmp_path / "net.onnx"
    told = write(net, path)
    assert told.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.INT32
    compare(net, path, [i])


def test_functions_of_arrays(device, rng, tmp_path):
    x = rng.normal(size=(3, 4, 6)).astype(np.float32)
    at = np.array([2, 0, -1, 1])

    def every(x):
        n = x.shape[0]
        return {
            "sum": x.sum(1), "mean": x.mean((0, 2), keepdims=True), "max": x.max(), "prod": clnn.prod(x, -1),
            "var": clnn.var(x, 0), "std": clnn.std(x, (1, 2), ddof=1), "argmax": x.argmax(1), "argmin": clnn.argmin(x),
            "any argmax": x.argmax(None), "logsumexp": clnn.logsumexp(x, 1), "cumsum": clnn.cumsum(x, 1),
            "softmax": clnn.softmax(x, 1), "T": x.T, "transpose": x.transpose(0, 2, 1), "flip": clnn.flip(x, 1),
            "roll": clnn.roll(x, 2, 1), "tile": clnn.tile(x, (2, 1, 3)), "repeat": clnn.repeat(x, 3, 0),
            "stack": clnn.stack([x, x * 2], 1), "concat": clnn.concatenate([x, x[:, 1:]], 1), "last": x[-1],
            "slice": x[:, 1:3, ::2], "back": x[::-1, None, 3, -4:], "one": x[0, :, 2], "pick": x[:, at],
            "ones": clnn.ones((n, 2)) + x[:, 0, :2],
            "take": clnn.take(x, at, 1), "gather": clnn.gather(x, x.argmax(1).reshape(n, 1, 6), 1),
            "scatter": clnn.scatter_add(x, at, x * 0.5, 1), "sort": clnn.sort(x, 1), "argsort": clnn.argsort(x, descending=True),
            "topk": clnn.topk(x, 2, 1)[0], "where": clnn.where(x > 0, x, 0.5), "clip": clnn.clip(x, -0.5, 0.5),
            "tril": clnn.tril(x), "triu": clnn.triu(x, 1), "einsum": clnn.einsum("bij,bkj->bik", x, x),
            "squeeze": clnn.squeeze(x[:, :1], 1),
            "split": clnn.split(x, 2, 2)[1], "matmul": x @ x.transpose(0, 2, 1), "matrix": x @ np.ones((6, 2), np.float32),
            "vector": x @ np.ones(6, np.float32), "pool": clnn.max_pool(x, 2), "pad": clnn.pad(x, 1), "up": clnn.upsample(x),
            "broadcast": x[:, :1].broadcast_to((n, 5, 6)), "rows": clnn.arange(n) * 2, "zeros": clnn.zeros((n, 1)),
            "flat": x.reshape(-1),
            "attend": clnn.scaled_dot_product_attention(*[x.reshape(n, 2, 2, 6)] * 3, np.array([[1, 0], [1, 1]])),
            "nothing": clnn.scaled_dot_product_attention(*[x.reshape(n, 2, 2, 6)] * 3, np.array([[0, 0], [1, 1]])),
            "past": clnn.scaled_dot_product_attention(x.reshape(n, 2, 2, 6)[:, :, :1], *[x.reshape(n, 2, 2, 6)] * 2,
            causal=True, past=0),
        }  # fmt: skip

    net, path = own(every, x), tmp_path / "net.onnx"
    told = write(net, path)
    assert free_axes(told)[0, 0] == "batch"
    for batch in (3, 1, 7):
        compare(net, path, [rng.normal(size=(batch, 4, 6)).astype(np.float32)], 1e-5)


SIZES = {
    "number": lambda x: x / len(x) * (x.shape[1] * x.shape[2]), "half": lambda x: x[:, : x.shape[1] // 2],
    "other half": lambda x: x[:, x.shape[1] // 2 :], "middle": lambda x: x[:, 1 : x.shape[1] - 1],
    "last": lambda x: x[:, x.shape[1] - 1],
    "wide": lambda x: x.broadcast_to((5, *x.shape)), "like": lambda x: clnn.zeros(x.shape) + 1,
    "tile": lambda x: clnn.tile(x, (2, 1, 3)),
    "count": lambda x: clnn.arange(x.shape[0] * x.shape[1] * 2), "odd": lambda x: clnn.arange(0, x.shape[1], 2),
    "all pairs": lambda x: x.reshape(-1, 1) * x.reshape(1, -1), "joined": lambda x: x.reshape(x.shape[0] * x.shape[1], -1),
    "mean": lambda x: x.mean((0, 1)), "var": lambda x: clnn.var(x, 1), "shift": lambda x: clnn.roll(x, 1, 1) - x,
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_sizes_that_follow_from_free_ones(name, device, rng, tmp_path):
    net, path = own(SIZES[name], rng.normal(size=(4, 6, 3)).astype(np.float32)), tmp_path / "net.onnx"
    assert {(0, 0), (0, 1)} <= set(free_axes(write(net, path)))
    for batch, size in ((1, 6), (3, 11), (7, 4), (2, 300)):
        compare(net, path, [rng.normal(size=(batch, size, 3)).astype(np.float32)], 1e-5)


def test_parameters_of_an_own_model_have_its_names(device, rng, tmp_path):
    class Net(clnn.Model):
        def __init__(self):
            super().__init__()
            self.body = [clnn.Conv2D(3, 3, "relu"), clnn.BatchNorm()]
            self.heads = {"a": clnn.Dense(2), "b": clnn.Dense(3, "softmax")}

        def build(self, *_):
            self.factor = self.parameter((3, 1, 1), "ones")

        def forward(self, x, weight):
            for layer in self.body:
                x = layer(x)
            y = (x * self.factor).mean((2, 3)) + weight.reshape(-1, 1)
            return {key: head(y) for key, head in self.heads.items()}

    net, path = Net(), tmp_path / "net.onnx"
    x, weight = rng.normal(size=(2, 1, 8, 9)).astype(np.float32), rng.normal(size=2).astype(np.float32)
    net(x, weight)
    told = write(shuffled(net, rng), path)
    assert [one.name for one in told.graph.input] == ["x", "weight"]
    assert [one.name for one in told.graph.output] == ["a", "b"]
    assert {name for name, _ in net.named_parameters()} <= {one.name for one in told.graph.initializer}
    assert set(free_axes(told)) == {(0, 0), (0, 2), (0, 3), (1, 0)}
    compare(net, path, [rng.normal(size=(5, 1, 12, 7)).astype(np.float32), rng.normal(size=5).astype(np.float32)], 1e-5)


# -- what cannot be written -------------------------------------------------------------------------------------------
REFUSALS = {
    "random numbers": (lambda x: clnn.Dropout.op(x, 0.5, clnn.random.generator(x.device))[0], "dropout draws random numbers"),
    "a value": (lambda x: x * 2 if float(x.max()) > 0 else x, "reads a tensor's values on the host"),
    "a mask as an index": (lambda x: x[x > 0], "reads a tensor's values on the host"),
    "no node": (lambda x: clnn.arctan2(x, x), "arctan2 cannot be written as ONNX: ONNX has no node for it"),
    "the host's sizes": (lambda x: x + np.arange(len(x), dtype=np.float32)[:, None], "depends on the size of an input"),
    "one batch": (lambda x: x.reshape(2, -1, 4) * 2, "passes over 1, 2 and 3 samples differ"),
    "branches on sizes": (lambda x: clnn.exp(x) if len(x) > 1 else clnn.sin(x), "differ in more than sizes"),
    "another loss": (lambda x: clnn.losses.find_loss("cross_entropy")(x, np.zeros(len(x), np.int32)),
    "cross_entropy|losses|rows|nodes"),
    "no tensor": (lambda x: (x, 3), "outputs are tensors"),
}  # fmt: skip


@pytest.mark.parametrize("why", REFUSALS)
def test_what_cannot_be_written_is_an_error_that_says_why(why, device, rng, tmp_path):
    function, words = REFUSALS[why]
    net, path = own(function, rng.normal(size=(2, 4)).astype(np.float32)), tmp_path / "net.onnx"
    with pytest.raises(clnn.ClnnError, match=words) as caught:
        clnn.onnx.save(net, path)
    assert "Own" in str(caught.value) or why == "no tensor"
    assert not [*tmp_path.iterdir()]


def test_bad_arguments(device, tmp_path, monkeypatch):
    net, path = clnn.Sequential([clnn.LayerNorm(), clnn.Dense(2)]), tmp_path / "net.onnx"
    with pytest.raises(clnn.ConfigurationError, match="shapes of Sequential's inputs are not known yet"):
        clnn.onnx.save(net, path)
    net = seq(clnn.LayerNorm(), clnn.Dense(2), shape=3)
    for opset in (14, 99, 18.5, "18", True):
        with pytest.raises(clnn.ConfigurationError, match="opset is a whole number from 15 to"):
            clnn.onnx.save(net, path, opset)
    with pytest.raises(
        clnn.ConfigurationError,
        match=r"layer_norm_1 \(LayerNorm\) takes ONNX's LayerNormalization, which opset 16 .* give opset=17",
    ):
        clnn.onnx.save(net, path, 16)
    with pytest.raises(clnn.ConfigurationError, match="takes a layer or a model"):
        clnn.onnx.save([net], path)
    with pytest.raises(clnn.CheckpointError, match="cannot be written"):
        clnn.onnx.save(net, tmp_path)
    net.load_state_dict({**net.state_dict(), "1.b": np.ones(2)})
    device.upload(np.array([1, np.nan], np.float32), net.layers[1].b.block)
    with pytest.raises(clnn.CheckpointError, match="1.b holds values that are not finite"):
        clnn.onnx.save(net, path)
    loads = importlib.import_module

    def missing(name, *rest):
        if name == "onnx":
            raise ImportError(name)
        return loads(name, *rest)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(clnn.ConfigurationError, match="pip install onnx"):
        clnn.onnx.save(net, path)
    assert not [*tmp_path.iterdir()]


# -- files ------------------------------------------------------------------------------------------------------------
def test_a_layer_by_itself_with_an_example(device, rng, tmp_path):
    layer, path = clnn.LSTM(3, return_state=True), tmp_path / "deep" / "net.onnx"
    x = rng.normal(size=(2, 5, 4)).astype(np.float32)
    told = write(layer, path, example=x)
    assert len(told.graph.output) == 3 and set(free_axes(told)) == {(0, 0), (0, 1)}
    compare(layer, path, [x])


def test_weights_beside_the_file(device, rng, tmp_path, monkeypatch):
    """What one file does not hold lies in another one, of a name of its own; older ones go."""
    net, path = seq(clnn.Dense(4, "relu"), clnn.Dense(3), shape=5), tmp_path / "net.onnx"
    writer = importlib.import_module("clnn.onnx.write")
    monkeypatch.setattr(writer, "INSIDE", 16)
    for _ in range(2):
        write(shuffled(net, rng), path)
        model, data = sorted(tmp_path.iterdir())
        assert model == path and data.name.startswith("net.onnx.") and data.suffix == ".data"
        assert data.stat().st_size == sum(p.nbytes for p in net.parameters())
        compare(net, path, [rng.normal(size=(2, 5)).astype(np.float32)])
    monkeypatch.undo()
    write(net, path)
    assert [*tmp_path.iterdir()] == [path]


def test_a_file_is_written_whole_or_not_at_all(device, tmp_path, monkeypatch):
    net, path = seq(clnn.Dense(2), shape=3), tmp_path / "net.onnx"
    write(net, path)
    before = path.read_bytes()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(clnn.CheckpointError, match="no space left"):
        clnn.onnx.save(shuffled(net, np.random.default_rng(0)), path)
    assert path.read_bytes() == before and [*tmp_path.iterdir()] == [path]


OPSETS = sorted({15, 17, 18, 20, 23, onnx.defs.onnx_opset_version()})


@pytest.mark.parametrize("opset", OPSETS)
def test_opsets(opset, device, rng, tmp_path):
    norm = [clnn.LayerNorm(), clnn.RMSNorm()] if opset > 16 else [clnn.RMSNorm()]
    net = seq(
        clnn.Conv1D(4, 3, "gelu"), clnn.GroupNorm(2, "mish"), clnn.AvgPool1D(2), clnn.Activation("gelu_tanh"), *norm,
        clnn.MultiHeadAttention(2, causal=True), clnn.GRU(3, "swish", return_sequences=True), clnn.LSTM(3),
        clnn.BatchNorm(), shape=(6, 10),
    )  # fmt: skip
    path = tmp_path / "net.onnx"
    told = write(shuffled(net, rng), path, opset)
    assert told.opset_import[0].version == opset
    x = rng.normal(size=(3, 6, 10)).astype(np.float32)
    if opset <= 25:  # that onnxruntime knows
        compare(net, path, [x], 1e-5)


def test_float64_is_written_as_float64(device, rng, tmp_path):
    if not device.has_fp64:
        pytest.skip(f"{device!r} has no float64")
    small = 2.0**-17  # an epsilon is a float32 in the file
    net = seq(clnn.Conv2D(3, 3, "gelu"), clnn.BatchNorm(epsilon=small), clnn.Reshape((3, -1)),
              clnn.LSTM(4, return_sequences=True), clnn.LayerNorm(epsilon=small),
              clnn.MultiHeadAttention(2), clnn.GRU(2), clnn.Dense(3, "softmax"), shape=(2, 6, 5), dtype="float64")  # fmt: skip
    path = tmp_path / "net.onnx"
    told = write(shuffled(net, rng), path)
    assert {one.data_type for one in told.graph.initializer} == {onnx.TensorProto.DOUBLE, onnx.TensorProto.INT64}
    compare(net, path, [rng.normal(size=(4, 2, 6, 5))], 1e-12, run=reference)


class Erf(OpRun):
    """In float64: onnx's own goes over float32."""

    op_domain = ""

    def _run(self, x):
        return (np.vectorize(math.erf, otypes=[x.dtype])(x),)


def reference(path, inputs):
    """onnx's own evaluator: onnxruntime convolves float32 only."""
    session = evaluator.ReferenceEvaluator(str(path), new_ops=[Erf])
    return session.run(None, dict(zip(session.input_names, inputs)))


def test_saving_changes_nothing(device, rng, tmp_path):
    """Neither the model, nor what a step draws; nothing is compiled, and training goes on."""
    net = seq(clnn.Dense(4), clnn.BatchNorm(), clnn.Dropout(0.5), clnn.Dense(2), shape=3)
    x, y = rng.normal(size=(8, 3)).astype(np.float32), np.arange(8) % 2
    net.fit(x, y, loss="cross_entropy", optimizer="sgd", epochs=1, batch_size=4, seed=1, progress=False)
    before, launches = {name: p.numpy() for name, p in net.named_parameters()}, device.launches
    write(net, tmp_path / "net.onnx")
    assert device.launches == launches
    for name, p in net.named_parameters():
        np.testing.assert_array_equal(p.numpy(), before[name])
    net.fit(x, y, loss="cross_entropy", optimizer=net.optimizer, epochs=1, batch_size=4, seed=1, progress=False)
    write(net, tmp_path / "net.onnx")
    compare(net, tmp_path / "net.onnx", [x])


# -- whole nets -------------------------------------------------------------------------------------------------------
class GPT(clnn.Model):
    whole_inputs = True

    def __init__(self, **how):
        super().__init__()
        self.letters, self.places = clnn.Embedding(11, 16, weight_init="normal"), clnn.PositionalEmbedding(9)
        self.blocks = [clnn.TransformerEncoderLayer(4, 24, causal=True, **how) for _ in range(2)]
        self.norm = clnn.LayerNorm()

    def forward(self, x):
        x = self.places(self.letters(x))
        for block in self.blocks:
            x = block(x)
        return self.letters.tied(self.norm(x))


class Translator(clnn.Model):
    whole_inputs = (True, False)

    def __init__(self):
        super().__init__()
        self.letters, self.places = clnn.Embedding(11, 16, weight_init="normal"), clnn.SinusoidalPositions()
        self.block = clnn.TransformerDecoderLayer(4, 24)

    def forward(self, x, sentence):
        return clnn.log_softmax(self.letters.tied(self.block(self.places(self.letters(x)), sentence)))


class Excited(clnn.Layer):
    """Channels that are weighed by what the whole image holds (Hu et al. 2018)."""

    def build(self, shape):
        self.squeeze, self.a, self.b = clnn.GlobalAvgPool(), clnn.Dense(2, "relu"), clnn.Dense(shape[0], "sigmoid")

    def forward(self, x):
        return x * self.b(self.a(self.squeeze(x))).reshape(*x.shape[:2], 1, 1)


def conv_norm(channels, stride=1):
    return [clnn.Conv2D(channels, 3, stride=stride, padding="same", bias=False), clnn.BatchNorm("relu")]


def resnet():
    return seq(
        *conv_norm(4), clnn.Residual(conv_norm(4), activation="relu"), Excited(),
        clnn.Residual([*conv_norm(8, 2), *conv_norm(8)[:1], clnn.BatchNorm()], clnn.Conv2D(8, 1, stride=2), "relu"),
        clnn.GlobalAvgPool(), clnn.Dense(10), shape=(3, 16, 12),
    )  # fmt: skip


NETS = {
    "part 11 of the series": lambda: seq(clnn.Dense(16, "tanh"), clnn.Dense(8, "sigmoid"), clnn.Dense(1), shape=4),
    "network.py": lambda: seq(clnn.Dense(30, "sigmoid"), clnn.Dense(10, "sigmoid"), shape=784),
    "network3.py": lambda: seq(
        clnn.Reshape((1, 28, 28)), clnn.Conv2D(4, 5, "relu"), clnn.MaxPool2D(2), clnn.Conv2D(6, 5, "relu"), clnn.MaxPool2D(2),
        clnn.Flatten(), clnn.Dropout(0.5), clnn.Dense(20, "relu"), clnn.Dense(10, "softmax"), shape=784,
    ),
    "sentiment": lambda: seq(
        clnn.Embedding(9, 4, mask_zero=True), clnn.Bidirectional(clnn.LSTM(3)), clnn.Dense(1, "sigmoid"), shape=7
    ),
    "time": lambda: seq(*[clnn.TemporalBlock(4, 3, dilation=2**i) for i in range(3)], clnn.Conv1D(2, 1), shape=(2, 20)),
    "resnet": resnet,
    "GPT": GPT,
    "LLaMA": lambda: GPT(rotary=True, key_heads=2, norm="rms"),
    "translator": Translator,
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_a_net_answers_the_same(name, device, rng, tmp_path):
    net, path = NETS[name](), tmp_path / "net.onnx"
    tokens, sentence = rng.integers(0, 9, (2, 7)).astype(np.int32), rng.normal(size=(2, 5, 6)).astype(np.float32)
    example = {"GPT": (tokens,), "LLaMA": (tokens,), "translator": (tokens, sentence)}.get(name)
    if example:
        net(*example)
    told = write(shuffled(net, rng), path)
    axes = free_axes(told)
    lengths = {
        (i, axis): n for (i, axis), n in {(0, 1): 4, (0, 2): 24, (0, 3): 20, (1, 1): 9}.items() if (i, axis) in axes
    }
    assert len(lengths) == {"sentiment": 1, "time": 1, "resnet": 2, "GPT": 1, "LLaMA": 1, "translator": 2}.get(name, 0)
    for batch in (1, 4):
        grow = {one.name: [n for (j, _), n in lengths.items() if j == i] for i, one in enumerate(told.graph.input)}
        compare(net, path, arrays(told, rng, batch, grow), 2e-5)


# -- and back ---------------------------------------------------------------------------------------------------------
def test_a_trained_net_comes_back_to_the_bit(device, rng, tmp_path):
    """Trained, saved, the same in onnxruntime; loaded again, the same to the bit; trained on, and saved again."""
    net, path = (
        seq(
            clnn.Conv2D(4, 3, "relu"),
            clnn.MaxPool2D(2),
            clnn.Flatten(),
            clnn.Dense(8, "tanh"),
            clnn.Dense(3),
            shape=(1, 8, 8),
        ),
        tmp_path / "net.onnx",
    )
    x, y = rng.normal(size=(24, 1, 8, 8)).astype(np.float32), np.arange(24) % 3
    how = {"loss": "cross_entropy", "optimizer": "adam", "batch_size": 8, "progress": False}
    net.fit(x, y, epochs=2, **how)
    write(net, path)
    compare(net, path, [x])
    back = clnn.onnx.load(path)
    np.testing.assert_array_equal(back(x), net.predict(x))
    assert {name for name, _ in back.named_parameters()} == {name for name, _ in net.named_parameters()}
    back.fit(x, y, epochs=1, **how)
    again = tmp_path / "again.onnx"
    told = write(back, again)
    assert {name for name, _ in net.named_parameters()} <= {one.name for one in told.graph.initializer}
    assert free_axes(told) == {(0, 0): "batch"} and told.graph.output[0].name == "output"
    np.testing.assert_allclose(answers(again, [x])[0], back(x), atol=1e-5)


# What ONNX spells as several nodes, or as one that clnn does by another kernel: sums go in another order. All others come back
# to the bit.
ROUNDED = {
    *("BatchNorm of features", "RMSNorm", "LocalResponseNorm", "Conv2DTranspose", "AdaptiveAvgPool", "GlobalAvgPool"),
    *("UpSampling of lines", "MultiHeadAttention", "TransformerEncoderLayer", "TransformerDecoderLayer", "mask_zero"),
    *("ELU with alpha", "LSTM", "GRU", "GRU, reset before", "Masking", "lengths"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_layer_comes_back(name, device, rng, tmp_path):
    make, sizes = CASES[name]
    net, path = shuffled(make(), rng), tmp_path / "net.onnx"
    told = write(net, path)
    inputs = arrays(told, rng, 3, {key: versions[0] for key, versions in sizes.items()})
    with clnn.no_grad():
        expected = flat(net(*inputs))
    for a, b in zip(flat(clnn.onnx.load(path)(*inputs)), expected):
        if name in ROUNDED:
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * max(1, np.abs(b).max()))
        else:
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("use", ["predict", "fit", "evaluate"])
def test_a_loaded_file_with_free_axes_is_saved_by_the_shapes_that_it_was_used_with(device, rng, tmp_path, use):
    """Else an example is asked for, with the axes that are free."""
    text = (
        "small (float[n, t, 4] x) => (float[n, t, 2] y) <float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}> { y = MatMul(x, w) }"
    )
    file = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}').SerializeToString()
    net, path, x = clnn.onnx.load(file), tmp_path / "again.onnx", rng.normal(size=(2, 5, 4)).astype(np.float32)
    with pytest.raises(
        clnn.ConfigurationError, match=r"not known yet: x: float32 \(n, t, 4\) of its file: give one, .*example=x"
    ):
        clnn.onnx.save(net, path)
    if use == "predict":
        net.predict(x)
    elif use == "fit":
        net.fit(x, np.zeros((2, 5, 2)), loss="mse", optimizer="sgd", progress=False)
    else:
        net.evaluate(x, np.zeros((2, 5, 2)), loss="mse")
    clnn.onnx.save(net, path)
    longer = rng.normal(size=(3, 7, 4)).astype(np.float32)
    np.testing.assert_allclose(clnn.onnx.load(path)(longer), net(longer), rtol=1e-6)
