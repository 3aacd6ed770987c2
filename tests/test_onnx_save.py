"""clnn.onnx.save: what onnxruntime makes of the files is what the models make, for every layer, several batches and free axes."""

import numpy as np
import pytest

import clnn
from clnn.layers.base import REGISTRY, Layer

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")


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
        lambda: seq(clnn.Activation("leaky_relu", slope=0.2), clnn.Activation("elu", alpha=0.5), clnn.Activation("softmax"),
                    shape=5),
        {"input": [(5,), (8,)]},
    ),
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
    "BatchNorm of features": (lambda: seq(clnn.Dense(4), clnn.BatchNorm(), shape=3), {}),
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
    "states": (
        lambda: graph(lambda x, h, c: clnn.LSTM(4, return_sequences=True, return_state=True)(x, h, c), (7, 3), (4,), (4,)),
        {"input_1": [(7,), (4,)]},
    ),
    "cells": (
        lambda: graph(
            lambda x, h, c: (*clnn.LSTMCell(4)(x, h, c), clnn.GRUCell(4)(x, h), clnn.SimpleRNNCell(3)(x)), (3,), (4,), (4,)
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
    assert {kind.__name__ for kind in layers if kind.__module__.startswith("clnn.")} - {
        k.__name__ for k in seen
    } == set()


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
