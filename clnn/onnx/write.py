"""Writing ONNX files: a model is traced at several sizes, and what its passes have in common becomes a graph."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..checks import whole
from ..errors import CheckpointError, ClnnError, ConfigurationError
from ..files import as_path, write_atomically
from ..foreign import by_names
from ..layers.base import Layer, called
from ..tape import no_grad
from .graph import FLOATS
from .model import OnnxModel
from .read import library
from .writers.graph import Graph, NoNodes
from .writers.trace import Differs, Dim, Fails, Program, Trace, joined

OLDEST = 15  # operator sets that are written
BATCH, BATCHES = 2, (3, 5)  # samples, with which the size of the batch is found
LARGE = 256  # a size that is tried, or if that is more, twice what a model was built with
INSIDE = 2**31 - 2**24  # bytes of weights that one file holds: a protobuf has less than 2 GiB


class Free(NamedTuple):
    """A size that is free: its name, where inputs have it as (input, axis), and what it is in traces: as built, and others."""

    name: str
    at: tuple[tuple[int, int], ...]
    size: int
    others: tuple[int, ...]


@by_names
def save(model: Layer, path: str | Path, opset: int = 18, *, example: Any = None) -> None:
    """Write a model, as it is at inference, to an ONNX file, whole or not at all. Weights above 2 GB go to a file beside it,
    `<name>.<digest>.data`.

    Any layer or model that is built, graphs and classes of one's own too: `forward` runs, without a launch, and each function of
    clnn's that it calls becomes nodes; Python's own numbers and branches are frozen. The batch is free, and so is each other
    axis of an input along which the model takes another size. Initializers have the parameters' names.

    opset: the version of ONNX' operators, 15 up to the newest that the library `onnx` has.
    example: an input, or a tuple of several, as arrays with a batch: for a layer that has not been called, or that is no Model.

    ConfigurationError, which names the layer and the op, for what has no nodes, as random numbers and branches on values have
    none; for a node that the opset lacks; and without the library `onnx`. CheckpointError where parameters are not finite or
    the file cannot be written.

        clnn.onnx.save(net, "net.onnx")
    """
    onnx = library()
    newest = onnx.defs.onnx_opset_version()
    if (number := whole(opset)) is None or not OLDEST <= number <= newest:
        raise ConfigurationError(f"opset is a whole number from {OLDEST} to {newest}, {opset!r} was provided instead")
    if not isinstance(model, Layer):
        raise ConfigurationError(f"clnn.onnx.save takes a layer or a model of clnn's, not {model!r}")
    if stateful := model.stateful_layers():
        raise ConfigurationError(
            f"{called(stateful[0])} is stateful, and a run of an ONNX file begins anew: save one "
            "of the same weights with return_state=True, which takes states"
        )
    with model.device.lock, no_grad():
        forms = _forms(model, example)
        kept: dict[str, np.ndarray] = {}

        def arrays(name: str) -> np.ndarray:
            if name not in kept:
                kept[name] = parameters[name].numpy()
                if not np.isfinite(kept[name]).all():
                    raise CheckpointError(f"{name} holds values that are not finite; nothing was written")
            return kept[name]

        parameters = dict(model.named_parameters())
        graph, free = _graph(model, forms, arrays, number)
    _write(as_path(path), graph, free, forms, [name for name in kept if not parameters[name].learns])


def _forms(model: Layer, example: Any) -> list[tuple[tuple[int, ...], Any]]:
    """The shape without the batch, and the type, of each input."""
    if example is not None:
        inputs = [
            model._as_input(x, i) for i, x in enumerate(example if isinstance(example, (tuple, list)) else [example])
        ]
        if not all(layer.built for layer in model.layers_inside()):
            model(*inputs)
        return [(x.shape[1:], x.dtype) for x in inputs]
    if isinstance(model, OnnxModel) and not any(
        v.shape is None or not all(isinstance(size, int) for size in v.shape[1:]) for v in model.inputs
    ):
        return [(tuple(v.shape[1:]), model.dtype if v.type in FLOATS else np.dtype(np.int32)) for v in model.inputs]  # type: ignore
    if isinstance(model, OnnxModel) and (last := model.__dict__.get("_output_shape")):
        return list(last[0][2])  # its shapes are free: those of the last fit, predict or evaluate
    shapes = getattr(model, "_input_shapes", None)
    if not model.built or not shapes:
        free = f": {', '.join(map(str, model.inputs))} of its file" if isinstance(model, OnnxModel) else ""
        raise ConfigurationError(
            f"the shapes of {type(model).__name__}'s inputs are not known yet{free}: give one, clnn.onnx.save(model, path, "
            "example=x), x an array with a batch, or a tuple of arrays where it takes several"
        )
    types = getattr(model, "_input_types", None) or [model.dtype] * len(shapes)
    return [(tuple(shape), np.dtype(kind)) for shape, kind in zip(shapes, types)]


def _input_names(model: Layer, count: int) -> list[str]:
    names = [*(model.input_names() or ())][:count]
    if len(names) == count:
        return names
    return ["input"] if count == 1 else [f"input_{i + 1}" for i in range(count)]


# -- sizes that are free ----------------------------------------------------------------------------------------------
def _graph(
    model: Layer, forms: Sequence[tuple[tuple[int, ...], Any]], arrays: Callable[[str], np.ndarray], opset: int
) -> tuple[Graph, list[Free]]:
    """The graph with as many free sizes as there are, and these."""
    names = _input_names(model, len(forms))
    traces: dict[Any, Program] = {}

    def traced(others: dict[Free, int]) -> Program:
        shapes = [[BATCH, *shape] for shape, _ in forms]
        for one, size in others.items():
            for i, axis in one.at:
                shapes[i][axis] = size
        key = tuple(map(tuple, shapes))
        if key not in traces:
            form = [(tuple(shape), kind) for shape, (_, kind) in zip(shapes, forms)]
            traces[key] = Trace(model, form, trial=bool(others)).program()
        return traces[key]

    def attempt(free: list[Free]) -> Graph:
        changes: list[dict[Free, int]] = [{}, *({one: other} for one in free for other in one.others)]
        if len(free) > 1:
            changes.append({one: one.others[0] for one in free})
        programs = [traced(change) for change in changes]
        with contextlib.suppress(Fails):  # a single sample may be an error, but must not be something else
            programs.append(traced({free[0]: 1}))
            changes.append({free[0]: 1})
        program = joined(programs)
        sizes = {at: Dim(tuple(change.get(one, one.size) for change in changes)) for one in free for at in one.at}
        outputs: list[tuple[str, int]] = []
        if isinstance(model, OnnxModel) and len(program.outputs) == 1:
            program = program._replace(outputs=[(model.outputs[0].name, program.outputs[0][1])])
        for name, value in program.outputs:
            while name in names or name in [other for other, _ in outputs]:
                name += "_out"
            outputs.append((name, value))
        graph = Graph(program._replace(outputs=outputs), names, arrays, sizes, opset)
        graph.write()
        return graph

    free = [Free("batch", tuple((i, 0) for i in range(len(forms))), BATCH, BATCHES)]
    try:
        graph = attempt(free)
    except (Differs, NoNodes) as error:
        raise ConfigurationError(
            f"{type(model).__name__}: passes over 1, {BATCH} and {BATCHES[0]} samples differ in more than sizes, so that no ONNX "
            f"file holds them all: {error}"
        ) from None
    for at in _candidates([shape for shape, _ in forms]):
        if any(set(at) & set(one.at) for one in free):
            continue
        i, axis = at[0]
        size = forms[i][0][axis - 1]
        one = Free(f"{names[i]}_axis_{axis}", at, size, ())
        with contextlib.suppress(Differs, NoNodes, ClnnError):
            if others := _others(size, lambda other, one=one: traced({one: other})):  # type: ignore[misc]
                more = [*free, one._replace(others=others)]
                graph, free = attempt(more), more
    return graph, free


def _others(size: int, run: Callable[[int], Any]) -> tuple[int, ...]:
    """Sizes at which a model shows what depends on one that it was built with as `size`; none where it takes neither twice nor
    half of it. The least and the largest that it takes are among them: what is the same at both is the same between, since sizes
    that follow from it, such as those behind a stride, grow with it."""

    def runs(other: int) -> bool:
        try:
            run(other)
        except Fails:
            return False
        return True

    def furthest(near: int, far: int) -> int:
        """The size closest to `far` that it takes, from `near`, which it takes, on."""
        if runs(far):
            return far
        while abs(far - near) > 1:
            middle = (near + far) // 2
            near, far = (middle, far) if runs(middle) else (near, middle)
        return near

    far = 2 * size + 1
    first = next((other for other in (far, (size + 1) // 2) if 2 <= other != size and runs(other)), 0)
    if size < 2 or not first:
        return ()
    most, least = furthest(max(size, first), max(far + 1, LARGE)), furthest(min(size, first), 2)
    beside = most - 1 if most - 1 > size else least + 1  # of another parity
    return tuple(dict.fromkeys(other for other in (first, most, least, beside) if other != size and runs(other)))


def _candidates(shapes: Sequence[tuple[int, ...]]) -> Iterator[tuple[tuple[int, int], ...]]:
    """Axes that may be free: each by itself, then those of several inputs in one place that have one size, then all of a size."""
    axes = [(i, axis) for i, shape in enumerate(shapes) for axis in range(1, len(shape) + 1)]
    yield from ((one,) for one in axes)
    for place in (True, False):
        groups: dict[Any, list[tuple[int, int]]] = {}
        for i, axis in axes:
            groups.setdefault((axis * place, shapes[i][axis - 1]), []).append((i, axis))
        yield from (tuple(group) for group in groups.values() if len(group) > 1)


# -- the file ---------------------------------------------------------------------------------------------------------
def _write(
    path: Path, graph: Graph, free: Sequence[Free], forms: Sequence[tuple[tuple[int, ...], Any]], statistics: list[str]
) -> None:
    from .. import __version__

    onnx, helper = graph.onnx, graph.onnx.helper
    at = {where: one.name for one in free for where in one.at}
    dims = {dim: at[where] for where, dim in graph.free.items()}

    def info(name: str, dtype: Any, shape: Sequence[Any]) -> Any:
        told = [dims.get(size) if isinstance(size, Dim) else int(size) for size in shape]
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), told)

    inputs = [
        info(name, kind, [graph.free.get((i, axis), size) for axis, size in enumerate([0, *shape])])
        for i, (name, (shape, kind)) in enumerate(zip(graph.inputs, forms))
    ]
    values = graph.program.values
    outputs = [info(name, values[n].dtype, values[n].shape) for name, n in graph.program.outputs]
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in graph.initializers.items()]
    data = b""
    if sum(len(t.raw_data) for t in tensors) > INSIDE:
        data = b"".join(t.raw_data for t in tensors)
        beside = f"{path.name}.{hashlib.sha256(data).hexdigest()[:16]}.data"
        start = 0
        for one in tensors:
            size = len(one.raw_data)
            one.ClearField("raw_data")
            one.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", beside), ("offset", start), ("length", size)):
                one.external_data.add(key=key, value=str(value))
            start += size
    proto = helper.make_graph(graph.nodes, "clnn", inputs, outputs, initializer=tensors)
    opsets = [helper.make_opsetid("", graph.opset)]
    written = helper.make_model(
        proto,
        opset_imports=opsets,
        producer_name="clnn",
        producer_version=__version__,
        ir_version=helper.find_min_ir_version_for(opsets),
    )
    if statistics:
        helper.set_model_props(written, {"statistics": "\n".join(statistics)})
    try:
        if data:  # under a name of its own, so that an older model that is there stays whole
            write_atomically(path.with_name(beside), data)
        write_atomically(path, written.SerializeToString())
        old = re.compile(re.escape(path.name) + r"\.[0-9a-f]{16}\.data")
        for other in path.parent.iterdir():
            if old.fullmatch(other.name) and not (data and other.name == beside):
                other.unlink()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be written: {error}") from error
