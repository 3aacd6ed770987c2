"""What each layer of a model is called with, and what comes of it, noted while the model computes."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..checks import check_count
from ..errors import ConfigurationError, DataError
from ..layers.base import Layer
from ..tape import no_grad
from ..tensor import Tensor, tensor
from ..train.inputs import as_inputs, build_for


class Call(NamedTuple):
    """A call: what it is named, the layer, or the operator of an ONNX file in words, its inputs, and its outputs."""

    name: str
    of: Any
    given: list[Any]
    found: list[Any]


def flat(y: Any) -> list[Any]:
    """The tensors in what a layer takes or returns, in order."""
    if isinstance(y, dict):
        y = [*y.values()]
    return [t for one in y for t in flat(one)] if isinstance(y, (tuple, list)) else [y]


@contextlib.contextmanager
def noting(model: Layer) -> Iterator[list[Call]]:
    """Within it each call of a layer in `model` is added to the list that comes back. Of layers in layers those of models are
    noted, in place of the model, and of others the outer one. It holds the device's lock: another thread's training waits."""
    found: list[Call] = []
    me, closed, times = threading.get_ident(), [0], Counter[str]()

    def note(name: str, of: Any, given: list[Any], y: list[Any]) -> None:
        times[name] += 1
        found.append(Call(f"{name} ({times[name]})" if times[name] > 1 else name, of, given, y))

    if (nodes := getattr(model, "note_nodes", None)) is not None:  # of an ONNX file, whose operators are no layers
        with model.device.lock, nodes(note):
            yield found
        return
    names: dict[Layer, str] = {}
    for path, one in model._walk(""):
        if isinstance(one, Layer):
            names[one] = one.name if one.name and one.name not in names.values() else path

    def noted(layer: Layer, forward: Any) -> Any:
        opens = hasattr(layer, "fit")  # a model, whose layers say more

        @functools.wraps(forward)
        def called(*given: Any, **options: Any) -> Any:
            if opens or closed[0] or threading.get_ident() != me:
                return forward(*given, **options)
            closed[0] += 1
            try:
                y = forward(*given, **options)
            finally:
                closed[0] -= 1
            if any(y is t for t in given):  # as dropout does at inference: whose output is used has to be seen
                y = y.detach()
            note(names[layer], layer, flat(given), flat(y))
            return y

        return called

    with model.device.lock:
        try:
            for layer in names:  # straight into __dict__, so that recordings of steps need no check
                layer.__dict__["forward"] = noted(layer, layer.forward)
                layer.__dict__["with_next"] = lambda *_: None  # else one launch would compute two layers
            yield found
        finally:
            for layer in names:
                for name in ("forward", "with_next"):
                    layer.__dict__.pop(name, None)


def forms_of(model: Any) -> list[tuple[str, str, Any]]:
    """The name, the type and the shape without the batch of each input; None for a shape that an ONNX file leaves open.
    ConfigurationError where the model is not built."""
    if hasattr(model, "note_nodes"):
        return [(v.name, v.type, None if v.shape is None else v.shape[1:]) for v in model.inputs]
    shapes = getattr(model, "_input_shapes", None)
    if not shapes or not model.built:
        raise ConfigurationError(
            "the model is not built: give input_shape, fit it, or call it once, before it is looked at or served"
        )
    names = [*(model.input_names() or {})] or ["x"]
    types = model._input_types or [model.dtype.name] * len(shapes)
    return [(name, str(kind), tuple(shape)) for name, kind, shape in zip(names, types, shapes)]


def inputs_of(model: Any, x: Any) -> list[np.ndarray]:
    """What `predict` takes, checked, as arrays; the model is built."""
    if not isinstance(model, Layer):
        raise ConfigurationError(f"a model is looked at, and {model!r} was given")
    arrays = as_inputs(x, model)
    build_for(model, arrays)
    if any(not isinstance(a, np.ndarray) for a in arrays):
        raise ConfigurationError("a sparse matrix is looked at as an array of a few rows: x[:100].toarray()")
    if not len(arrays[0]):
        raise DataError(f"x has no samples: its shape is {arrays[0].shape}")
    return arrays


def activations(model: Layer, x: Any, batch_size: int = 512) -> dict[str, np.ndarray]:
    """What each layer makes of x, as arrays by the layers' names, in the order in which they compute: at inference, as in
    `predict`. Of a layer that is called again the name has " (2)" behind it, of one with several outputs ".0", ".1", ....
    Of an ONNX model they are those of its nodes.

    Works for every model: Sequential, graphs, classes of your own, files of ONNX. Errors are those of `predict`.

    >>> net = clnn.Sequential([clnn.Dense(3, "relu"), clnn.Dense(2)], input_shape=4)
    >>> {name: y.shape for name, y in clnn.looking.activations(net, np.ones((5, 4))).items()}
    {'dense_1': (5, 3), 'dense_2': (5, 2)}
    """
    batch_size = check_count("batch_size", batch_size)
    arrays = inputs_of(model, x)
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(arrays[0]), batch_size):
        with noting(model) as calls, no_grad():
            model(*[tensor(a[start : start + batch_size], a.dtype, model.device) for a in arrays])
            for name, y in values_of(calls):
                parts.setdefault(name, []).append(y)
    return {name: np.concatenate(found) for name, found in parts.items()}


def values_of(calls: Sequence[Call]) -> Iterator[tuple[str, np.ndarray]]:
    """The outputs of calls as arrays, by names."""
    for call in calls:
        for i, y in enumerate(call.found):
            if isinstance(y, Tensor):
                yield call.name if len(call.found) == 1 else f"{call.name}.{i}", y.numpy()
