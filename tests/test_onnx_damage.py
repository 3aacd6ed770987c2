"""Damaged ONNX files: whatever a file says, clnn answers or raises an error of its own, and memory does not grow."""

import gc
import sys

import numpy as np
import pytest

import clnn

onnx = pytest.importorskip("onnx")
from test_onnx import conv_net, proto  # noqa: E402

RECURRENT = """
<ir_version: 8, opset_import: ["" : 17]>
words (int64[N, T] ids, float[N, 5] start) => (float[N, T, 3] y, float[N, 5] last, int64 steps)
<int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, bool on = {1}>
{
  x = Gather(table, ids)
  turned = Transpose<perm = [1, 0, 2]>(x)
  h = Unsqueeze(start, zero)
  all, hn, cn = LSTM<hidden_size = 5, direction = "forward">(turned, w, r, b, , h, h)
  flat = Squeeze(all, one)
  back = Transpose<perm = [1, 0, 2]>(flat)
  products = MatMul(back, w2)
  shape = Shape(ids)
  n = Slice(shape, zero, one, zero)
  t = Slice(shape, one, two, zero)
  three = Constant<value = int64[1] {3}>()
  wanted = Concat<axis = 0>(n, t, three)
  moved = Reshape(products, wanted)
  gated, copies = Scan<num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1],
    body = body (float[A, 3] s, float[A, 3] e) =>
    (float[A, 3] s2, float[A, 3] o) { s2 = Add(s, e) o = Tanh(s2) }>(nothing, moved)
  y = Softmax<axis = 2>(copies)
  last = Squeeze(hn, zero)
  count = Squeeze(t, zero)
  steps, summed = Loop<body = more (int64 i, bool c, int64 v) => (bool c2, int64 v2, int64 s3) { c2 = Identity(c) v2 = Add(v, i)
    s3 = Identity(v) }>(count, on, count)
}
"""
SHAPED = """
<ir_version: 8, opset_import: ["" : 18]>
shaped (float[N, 2, H, W] x, int64[2] size, bool flag)
  => (float[N, 2, A, B] y, float[N, 4] best, int64[N, 4] where, float[K] ramp)
<int64[1] zero = {0}, int64[1] one = {1}, int64[1] four = {4}, int64[8] pads = {0, 0, 1, 1, 0, 0, 1, 1},
 int64 start = {0}, int64 by = {1},
 int64[4] twice = {1, 1, 2, 2}, float[4] scales = {1.0, 1.0, 1.5, 1.5},
 int64[4] order = {0, 0, -1, 0}>
{
  padded = Pad<mode = "reflect">(x, pads)
  small = AveragePool<kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1>(padded)
  tiled = Tile(small, twice)
  grown = Resize<mode = "linear", coordinate_transformation_mode = "half_pixel">(tiled, , scales)
  up = ConvTranspose<strides = [2, 2]>(grown, k)
  shape = Shape<start = 0, end = 2>(up)
  target = Concat<axis = 0>(shape, size)
  y = Resize<mode = "nearest">(up, , , target)
  flat = Reshape(y, order)
  parts, others = Split<axis = 1, num_outputs = 2>(x)
  chosen = If<then_branch = yes () => (float[N, 1, H, W] c) { c = Relu(parts) }, else_branch = no () => (float[N, 1, H, W] d)
    { d = Neg(others) }>(flag)
  width = Shape<start = 1>(chosen)
  volume = ReduceProd<keepdims = 1>(width)
  lead = Shape<start = 0, end = 1>(x)
  both2 = Concat<axis = 0>(lead, volume)
  line = Reshape(chosen, both2)
  best, where = TopK<axis = 1>(line, four)
  n = Squeeze(volume)
  numbers = Range(start, n, by)
  ramp = Cast<to = 1>(numbers)
}
"""

HUGE = (2**62, 2**40, 2**31, 2**31 - 1, -(2**63), -1, 0, 1, 3)
STRANGE = (np.nan, np.inf, -np.inf, 1e30, -1.0, 0.0)


def models():
    """Three models and their inputs: convolutions, recurrence with graphs in graphs, and shapes that are computed."""
    rng = np.random.default_rng(5)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    gates = {"w": normal(1, 20, 4), "r": normal(1, 20, 5), "b": normal(1, 40)}
    words = proto(RECURRENT, table=normal(10, 4), w2=normal(5, 3), nothing=np.zeros((2, 3), np.float32), **gates)
    shaped = proto(SHAPED, k=normal(2, 2, 2, 2))
    return [
        (conv_net(), {"x": normal(1, 3, 4, 4)}),
        (words, {"ids": rng.integers(0, 10, (2, 4)), "start": normal(2, 5)}),
        (shaped, {"x": normal(2, 2, 5, 6), "size": np.array([7, 9]), "flag": np.array(True)}),
    ]


def garbled(data, rng):
    """The bytes of a file with some changed, left out or put in, or cut off."""
    copy = bytearray(data)
    way = rng.integers(4)
    if way == 0:
        copy = copy[: rng.integers(0, len(copy))]
    for _ in range(1 if way == 0 else rng.integers(1, 9)):
        at = int(rng.integers(0, len(copy))) if copy else 0
        kind = rng.integers(0, 3) if way == 1 else 0
        if kind == 0 and copy:
            copy[at] = rng.integers(0, 256)
        elif kind == 1:
            copy[at : at + 1] = b""
        else:
            copy[at:at] = bytes([rng.integers(0, 256)])
    return bytes(copy)


def messages(message):
    """A message of a protobuf and all those inside it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in value if field.is_repeated else (value,):
                yield from messages(one)


def put(message, field, value, rng):
    """Set a field, or one place of a field that has several."""
    many = getattr(message, field.name)
    if field.message_type is not None:
        (many[int(rng.integers(len(many)))] if field.is_repeated else many).CopyFrom(value)
    elif field.is_repeated:
        many[int(rng.integers(len(many)))] = value
    else:
        setattr(message, field.name, value)


def values_of(every, alike):
    """What the fields that are alike hold, copied."""
    for message, field in every:
        if alike(field):
            value = getattr(message, field.name)
            for one in value if field.is_repeated else (value,):
                yield type(one).FromString(one.SerializeToString()) if field.message_type is not None else one


def rewired(data, rng):
    """A file after one to three changes that its format allows: a field holds what another one does (cycles come of that), or a
    huge number; it is lost; or of several values two change places, some are lost, or one is there twice."""
    copy = onnx.ModelProto.FromString(data)
    for _ in range(rng.integers(1, 4)):
        every = [(m, f) for m in messages(copy) for f, _ in m.ListFields()]
        if not every:
            break
        message, field = every[rng.integers(len(every))]
        if rng.random() < 0.1:
            message.ClearField(field.name)
        elif field.is_repeated and rng.random() < 0.4:
            items = [*values_of([(message, field)], lambda _: True)]
            a, b = (int(i) for i in rng.integers(0, len(items), 2))
            items[a], items[b] = items[b], items[a]
            way = rng.integers(4)
            items = items[:a] if way == 0 else [*items, *items[a : a + 1]] if way == 1 else items
            message.ClearField(field.name)
            getattr(message, field.name).extend(items)
        elif field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_INT64, field.CPPTYPE_ENUM, field.CPPTYPE_UINT64):
            number = int(rng.choice(HUGE)) if rng.random() < 0.6 else int(rng.integers(-3, 30))
            try:
                put(message, field, number, rng)
            except (ValueError, TypeError):  # a number that the field does not hold
                continue
        elif field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE) and rng.random() < 0.5:
            put(message, field, float(rng.choice(STRANGE)), rng)
        else:  # names take the place of names, whatever they name
            texts = field.type == field.TYPE_STRING
            pool = [*values_of(every, lambda f: f.type == field.type if texts else f.full_name == field.full_name)]  # noqa: B023
            put(message, field, pool[rng.integers(len(pool))], rng)
    return copy.SerializeToString()


def called(data, inputs):
    """Whether a file answers; it is called by its own names, or in order."""
    net = clnn.onnx.load(data)
    given = dict(zip([value.name for value in net.inputs], inputs.values()))
    net(**{**given, **{name: array for name, array in inputs.items() if name in given}})


def test_the_models_answer():
    for model, inputs in models():
        called(model.SerializeToString(), inputs)


@pytest.mark.parametrize("n", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_damaged_files_raise_clnn_s_errors_alone(n, device, rng):
    """Memory: of the device none is left, and at no time more than a hundred times what the models take; of the host less than
    the compilers of drivers keep."""
    resource = pytest.importorskip("resource")  # not on Windows
    originals, answered, refused = models(), 0, 0
    for model, inputs in originals:
        called(model.SerializeToString(), inputs)
    gc.collect()
    before, most = device.memory.in_use, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    device.memory.peak = before
    for i in range(n):
        model, inputs = originals[i % 3]
        data = (rewired if i % 2 else garbled)(model.SerializeToString(), rng)
        try:
            called(data, inputs)
            answered += 1
        except clnn.ClnnError:
            refused += 1
    gc.collect()
    assert answered and refused and answered + refused == n
    assert device.memory.in_use <= before + 2**20
    assert device.memory.peak <= before + 64 * 2**20
    kib = 2**10 if sys.platform == "darwin" else 1  # macOS tells bytes
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss <= most + 400 * 2**10 * kib
