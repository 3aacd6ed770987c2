"""The test cases that come with the onnx library, as test_onnx_backend.py runs them: clnn's answers beside those expected."""

import os

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

import clnn

ROOT = os.path.dirname(onnx.__file__)
# The ImageNet networks that come with it, with constant weights
LIGHT = (
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
    "zfnet512",
)


def node_tests():
    """The cases of single operators, but for those whose operator is written out as others (expanded)."""
    return [one for one in load_model_tests(kind="node") if "_expanded" not in one.name]


def arrays_of(kind, folder, types):
    """The values in the files of a folder, input_0.pb and so on."""
    found = []
    for i, of in enumerate(types):
        path = os.path.join(folder, f"{kind}_{i}.pb")
        if not os.path.exists(path):
            break
        with open(path, "rb") as file:
            data = file.read()
        if of.type.HasField("sequence_type"):
            found.append(numpy_helper.to_list(onnx.SequenceProto.FromString(data)))
        elif of.type.HasField("optional_type"):
            found.append(numpy_helper.to_optional(onnx.OptionalProto.FromString(data)))
        else:
            found.append(numpy_helper.to_array(onnx.TensorProto.FromString(data)))
    return found


def compare(found, expected, rtol, atol, what="output"):
    """AssertionError where what was found is not what is expected."""
    if isinstance(expected, (list, tuple)):
        assert isinstance(found, (list, tuple)) and len(found) == len(expected), (
            f"{what} is {found!r}, not {expected!r}"
        )
        for i, (a, b) in enumerate(zip(found, expected)):
            compare(a, b, rtol, atol, f"{what}[{i}]")
        return
    if isinstance(expected, dict) or expected is None:
        assert found == expected, f"{what} is {found!r}, not {expected!r}"
        return
    expected = numpy_helper.to_array(expected) if isinstance(expected, onnx.TensorProto) else np.asarray(expected)
    found = np.asarray(found)
    assert found.shape == expected.shape, f"{what} has the shape {found.shape}, not {expected.shape}"
    if expected.dtype == object or expected.dtype.kind in "US":
        np.testing.assert_array_equal(found.astype(str), expected.astype(str))
        return
    name = expected.dtype.name
    if name == "bfloat16":
        found, expected, rtol = found.astype(np.float32), expected.astype(np.float32), max(rtol, 2**-6)
    else:
        assert found.dtype == expected.dtype, f"{what} is of {found.dtype}, not {expected.dtype}"
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol, err_msg=what)


def run(model, sets, rtol, atol):
    """Load a model and compare its answers."""
    net = clnn.onnx.load(model)
    for inputs, expected in sets:
        inputs = [numpy_helper.to_array(one) if isinstance(one, onnx.TensorProto) else one for one in inputs]
        found = net(*inputs)
        compare(
            list(found.values()) if isinstance(found, dict) and len(net.outputs) > 1 else [found],
            list(expected),
            rtol,
            atol,
        )


def result_of(case):
    """ "passed", or with the reason "unsupported", "failed" or, on a device without it, "float64"."""
    try:
        run(*case)
    except clnn.DeviceError as error:
        return "float64" if "has no float64" in str(error) else "failed", f"{type(error).__name__}: {error}"
    except clnn.CheckpointError as error:
        if "not supported" in str(error) or "not known here" in str(error):
            return "unsupported", str(error)
        return "failed", f"{type(error).__name__}: {error}"
    except Exception as error:  # noqa: BLE001 - whatever it raises is a failure
        return "failed", f"{type(error).__name__}: {error}"
    return "passed", ""


def node_case(one):
    """What `run` takes, of a case of an operator."""
    return one.model.SerializeToString(), one.data_sets, one.rtol, one.atol


def folder_case(one):
    """What `run` takes, of a case that lies in a folder."""
    path = os.path.join(one.model_dir, "model.onnx")
    proto = onnx.load(path)
    given = {t.name for t in proto.graph.initializer}
    inputs = [v for v in proto.graph.input if v.name not in given]
    sets = []
    for name in sorted(os.listdir(one.model_dir)):
        if name.startswith("test_data_set"):
            folder = os.path.join(one.model_dir, name)
            sets.append((arrays_of("input", folder, inputs), arrays_of("output", folder, proto.graph.output)))
    return path, sets, one.rtol, one.atol


def light_case(name):
    """What `run` takes, of one of the ImageNet networks with constant weights."""
    path = os.path.join(ROOT, "backend", "test", "data", "light", f"light_{name}.onnx")
    proto = onnx.load(path)
    given = {t.name for t in proto.graph.initializer}
    inputs = []
    for one in proto.graph.input:
        if one.name not in given:
            shape = tuple(d.dim_value or 1 for d in one.type.tensor_type.shape.dim)
            n = int(np.prod(shape))
            inputs.append((np.arange(n).reshape(shape) / n).astype(np.float32))
    with open(path.replace(".onnx", "_output_0.pb"), "rb") as file:
        expected = numpy_helper.to_array(onnx.TensorProto.FromString(file.read()))
    return path, [(inputs, [expected])], 1e-3, 1e-7
