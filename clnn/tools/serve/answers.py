"""What a served model is asked and answers: arrays of any model, and drawings where it takes pictures of one digit."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...data.digit import as_digit
from ...errors import ClnnError, ConfigurationError, DataError
from ...looking.calls import activations, forms_of
from ...losses import YES_ABOVE_0
from ...model import Model

SIDES = {784: 28, 64: 8}  # pixels of MNIST's and of scikit-learn's digits, and of a side
# The most of a layer's maps, pixels, units, and of layers that a page shows
MAPS, SIDE, UNITS, LAYERS = 32, 64, 512, 48


def load(path: str) -> Model:
    """The model in a file of `net.save` or of ONNX. CheckpointError where it is neither."""
    if Path(path).suffix.lower() == ".onnx":
        from ... import onnx

        return onnx.load(path)
    from ...model import load as read

    model: Model = read(path)
    return model


def from_json(body: bytes) -> Any:
    """The x of a request: a list of numbers, or {"x": such a list, or one for each input by its name}. DataError for others."""

    def refuse(word: str) -> None:
        raise DataError(f"{word} is no number in JSON")

    try:
        found = json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the body is no JSON: {error}") from None
    if isinstance(found, dict):
        if set(found) != {"x"}:
            raise DataError(f'the body is {{"x": [...]}}, and its keys are {", ".join(map(repr, found)) or "none"}')
        found = found["x"]
    each = found if isinstance(found, dict) else {"x": found}
    wrong = [name for name, value in each.items() if not isinstance(value, list)]
    if wrong or not each:
        raise DataError(f"{(wrong or ['x'])[0]} should be a list of numbers, or of lists of them")
    return found


def from_npy(body: bytes) -> np.ndarray:
    """The array in a .npy file; nothing is unpickled, and no memory taken beyond the body's. DataError for what is none."""
    file = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(file)
        if dtype.kind not in "fiub":  # objects are pickles
            raise ValueError(f"it holds {dtype}, and numbers are wanted")
        if math.prod(shape) * dtype.itemsize != len(body) - file.tell():
            raise ValueError(f"{dtype} of shape {shape} would be another number of bytes than there are")
        return np.frombuffer(body, dtype, offset=file.tell()).reshape(shape, order="F" if fortran else "C")
    except Exception as error:  # NumPy parses the header as Python's text, which fails in many ways
        raise DataError(f"the body is no .npy file of numbers: {error}") from None


class Answers:
    """The answers of one model, from any number of threads; `name` is what the page calls it."""

    def __init__(self, model: Any, name: str = "model") -> None:
        if not isinstance(model, Model):
            raise ConfigurationError(f"a clnn model is served, and {type(model).__name__} was given")
        self.model, self.name = model, name
        self.inputs = forms_of(model)
        shape = self.inputs[0][2] or () if len(self.inputs) == 1 else ()
        self.shape: tuple[int, ...] = shape if all(isinstance(size, int) for size in shape) else ()
        side = SIDES.get(math.prod(self.shape), 0)
        self.side = side if self.shape in ((side * side,), (side, side), (1, side, side)) else 0
        self.classes = 0  # that a drawing is told from
        if self.side:  # compiles all that a first drawing needs, and tells whether its answer is one row of classes
            blank = np.zeros((1, *self.shape), np.float32)
            try:
                outputs = self._outputs(blank)
                self.classes = outputs.shape[1] if np.ndim(outputs) == 2 else 0
                activations(model, blank)
            except ClnnError:
                self.classes = 0
        self.side *= self.classes > 1

    def described(self) -> dict[str, Any]:
        """What the page says of the model."""
        try:
            summary = self.model.summary()
        except ClnnError:  # of a class of one's own
            summary = repr(self.model)
        inputs = [
            {"name": name, "type": kind, "shape": None if shape is None else list(shape)}
            for name, kind, shape in self.inputs
        ]
        return {
            "name": self.name,
            "summary": summary,
            "inputs": inputs,
            "draws": bool(self.side),
            "classes": self.classes,
        }

    def predict(self, x: Any) -> dict[str, Any]:
        """For arrays in the form of `from_json`: the outputs and, where the model has them, classes and probabilities."""
        with self.model.device.lock:  # outputs and probabilities of the same weights
            x = self._batch(x)
            outputs = self._outputs(x)
            found: dict[str, Any] = {"outputs": _listed(outputs)}
            if isinstance(outputs, np.ndarray) and outputs.ndim == 2:
                scores, what = self._scores(x, outputs)
                if what:
                    found["probabilities"] = _listed(scores)
                loss = self.model.loss
                if what or getattr(loss, "takes", "") == "classes" or getattr(loss, "name", "") in YES_ABOVE_0:
                    several = outputs.shape[1] > 1
                    found["classes"] = (outputs.argmax(1) if several else self.model.predict_classes(x)).tolist()
        return found

    def outputs(self, x: Any) -> np.ndarray:
        """For arrays the output. DataError where a model has several."""
        with self.model.device.lock:
            found = self._outputs(self._batch(x))
        if not isinstance(found, np.ndarray) or found.dtype.hasobject:
            raise DataError("this model has several outputs, or one of texts: ask for application/json")
        return found

    def draw(self, body: bytes) -> dict[str, Any]:
        """For a drawing, a square of bytes with 0 for paper: the answer, its scores, the picture, and each layer's output."""
        if not self.side:
            raise DataError("this model takes no pictures of one digit: POST arrays to /predict")
        side = math.isqrt(len(body))
        if side * side != len(body) or not side:
            raise DataError(f"a drawing is a square of bytes, and {len(body)} were given")
        gray = np.frombuffer(body, np.uint8).reshape(side, side)
        if not gray.any():
            return {"answer": None}
        picture = as_digit(gray) if self.side == 28 else as_digit(gray, 8, box=8)
        x = picture.reshape(1, *self.shape)
        with self.model.device.lock:
            outputs = self._outputs(x)
            scores, what = self._scores(x, outputs)
            found = activations(self.model, x)
        layers, before = [], picture
        for name, y in found.items():
            if y.size and not np.array_equal(y.ravel(), before.ravel()):  # else only the shape has changed
                layers.append({"name": name, "shape": list(y.shape[1:]), **_maps(y)})
            before = y
        return {
            "answer": int(outputs[0].argmax()),
            "scores": _listed(scores[0]),
            "what": what or "output",
            "picture": _maps(picture[None, None]),
            "layers": layers[:LAYERS],
            "more": max(0, len(layers) - LAYERS),
        }

    def _batch(self, x: Any) -> Any:
        """x with an axis for samples, also where it is one sample."""
        if isinstance(x, Mapping) and len(self.inputs) == 1:
            if set(x) != {self.inputs[0][0]}:
                raise DataError(f"the model's input is {self.inputs[0][0]!r}, and {', '.join(map(repr, x))} was given")
            x = x[self.inputs[0][0]]
        if isinstance(x, Mapping):
            return x
        try:
            array = np.asarray(x)
        except ValueError as error:
            raise DataError(f"x is no array of numbers: {error}") from None
        return array[None] if self.shape and array.shape == self.shape else array

    def _outputs(self, x: Any) -> Any:
        """What the model makes of arrays. Of a file of ONNX as it is called with arrays, of any type and any fixed batch."""
        with np.errstate(over="ignore"):  # what becomes infinite in the model's type is refused as that
            if hasattr(self.model, "session"):
                return self.model(**x) if isinstance(x, Mapping) else self.model(x)
            return self.model.predict(dict(x) if isinstance(x, Mapping) else x)

    def _scores(self, x: np.ndarray, outputs: np.ndarray) -> tuple[np.ndarray, str]:
        """The probabilities, or the outputs as they are, and "probability" or nothing."""
        if hasattr(self.model, "session"):
            graph: Any = self.model.graph
            last = next((n for n in reversed(graph.nodes) if graph.outputs[0].name in n.outputs), None)
            return outputs, "probability" if last is not None and last.op in ("Softmax", "Sigmoid") else ""
        try:
            return self.model.predict_proba(x), "probability"
        except ConfigurationError:  # outputs of such a model are none
            return outputs, ""


def _listed(y: Any) -> Any:
    """Arrays, or a dict or tuple of them, as JSON has them. DataError for what it has not."""
    if isinstance(y, Mapping):
        return {name: _listed(one) for name, one in y.items()}
    if isinstance(y, (list, tuple)):
        return [_listed(one) for one in y]
    array = np.asarray(y)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError("an output is not finite, which JSON has no word for: ask for application/x-npy")
    return array.tolist()


def _maps(y: np.ndarray) -> dict[str, Any]:
    """One sample's output as pictures of whole numbers from -127 to 127: what a page shows of it."""
    y = np.asarray(y[0], np.float32)
    if y.ndim < 2:
        shown = y.reshape(-1)[:UNITS]
    else:
        every = y.reshape(-1, *y.shape[-2:])[:MAPS]
        shown = every[:, :: -(-every.shape[1] // SIDE), :: -(-every.shape[2] // SIDE)]
    largest = float(np.abs(shown).max(initial=0.0))
    if not math.isfinite(largest):
        raise DataError("an activation is not finite: the model's weights or the input are too large")
    scaled = np.round(shown * (127 / largest) if largest else shown).astype(np.int8)
    data = base64.b64encode(scaled.tobytes()).decode()
    return {"maps": list(shown.shape), "largest": largest, "data": data}
