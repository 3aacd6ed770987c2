"""`Compiled`: a model's outputs for batches of one size, with nothing but the launches between two NumPy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..checks import check_count
from ..errors import ConfigurationError, DataError, ShapeError
from ..layers.base import Layer
from ..ops.array import block_of
from ..ops.half import HalfWeights, reading
from ..ops.index import check_rows
from ..runtime.recorder import StepContext
from ..runtime.recording import Recording
from ..step import Step
from ..storage import storage_named
from ..tape import no_grad
from ..tensor import Tensor
from .direct import Direct, Unchanged, shared
from .inputs import as_inputs, build_for
from .outputs import Outputs


class Compiled:
    """A model that was compiled for batches of one size: `f = net.compiled(1)`, then `y = f(x)`. See `Model.compiled`."""

    def __init__(self, model: Layer, batch_size: int = 1, weights: str = "float32") -> None:
        self.model, self.batch_size = model, check_count("batch_size", batch_size)
        self.weights = storage_named(weights, model.dtype, "weights")
        shapes = getattr(model, "_input_shapes", None)
        if not model.built or shapes is None:
            raise ConfigurationError(
                "compiled() needs a model that is built: give it an input_shape, or call it once, before"
            )
        types = getattr(model, "_input_types", None) or [model.dtype] * len(shapes)
        self.forms = [((self.batch_size, *shape), np.dtype(kind)) for shape, kind in zip(shapes, types)]
        with model.device.lock:
            self._prepare()

    def __call__(self, *given: Any) -> Any:
        """The outputs for these inputs, an array for each, as `predict` gives them. ShapeError where one has another shape."""
        xs: Sequence[Any] = given
        if len(xs) != len(self.forms):
            raise ShapeError(f"the model takes {len(self.forms)} inputs one by one, f(*x), and {len(xs)} were given")
        for x, (shape, dtype) in zip(xs, self.forms):
            if type(x) is not np.ndarray or x.shape != shape or x.dtype != dtype:
                xs = self._as_given(xs)
                break
        for i in self.whole:
            self.model.check_whole(i, xs[i], f"input {i}")
        with self.device.lock:
            if not self.unchanged.holds():
                self._prepare()
            if self.halves is not None:
                self.halves.renew()
            return self._run(xs)

    def __reduce__(self) -> Any:
        """A copy, here or in another process, is compiled there for the copy of its model."""
        return type(self), (self.model, self.batch_size, self.weights)

    def _as_given(self, xs: Sequence[Any]) -> list[np.ndarray]:
        """The inputs as arrays of the model's types."""
        arrays = as_inputs(tuple(xs), self.model)
        if not all(isinstance(array, np.ndarray) for array in arrays):
            raise DataError("a compiled model takes arrays; predict takes sparse matrices")
        for array, (shape, _) in zip(arrays, self.forms):
            if array.shape != shape:
                raise ShapeError(
                    f"this model was compiled for inputs of shape {shape}, and {array.shape} was given: x[None] is a batch of "
                    "one sample, compiled(batch_size=...) is for more, and predict takes any shape that the layers take"
                )
        return arrays

    def _prepare(self) -> None:
        """Record the launches, and make one kernel of them where that can be."""
        model = self.model
        self.device = model.device
        kinds = [np.broadcast_to(np.zeros((), dtype), shape) for shape, dtype in self.forms]
        self.outputs: Outputs = build_for(model, kinds)
        self.whole = [i for i in range(len(kinds)) if model.takes_whole(i)]
        self.inputs = [Tensor(self.device.memory.allocate(a.nbytes), a.shape, a.dtype, self.device) for a in kinds]
        for x in self.inputs:
            shared(x)
            self.device.fill_zero(x.block)
        self.step = Step(self._forward, reads=[model])
        self.halves = HalfWeights(model.parameters()) if self.weights == "float16" else None
        states = {one: one._copied_states() for one in model.stateful_layers()}
        for _ in range(3):
            result = self._call()
        if self.halves is not None:
            self.halves.renew()
        with no_grad():
            entry = self.step.replays.entry(self._key())
        self.recording: Recording | None = None
        if entry is not None and entry.recording is not None and not self.step.foreign:
            self.recording = entry.recording
            self.direct = Direct(self.recording, self.inputs, self.outputs.tensors(result))
            self.recording.fuse_now()
        for one, before in states.items():  # none of this was a call
            one._take_states(before)
        self.unchanged = Unchanged(model, self.step)

    def _key(self) -> Any:
        return self.step.key(self.device, self.batch_size)

    def _call(self) -> Any:
        """The step as every step runs: recorded, replayed and looked at."""
        with no_grad():
            key = self._key()
            self.step.verify(self.device, key, self._forward)
            return self.step.run(self.device, key, self._forward)[0]

    def _forward(self, _: StepContext) -> Any:
        with reading(self.halves):
            outs = self.outputs.tensors(self.model(*self.inputs))
        for out in outs:
            block_of(out)
        return self.outputs.together(outs)

    def _run(self, xs: Sequence[np.ndarray]) -> Any:
        device, recording = self.device, self.recording
        if recording is None or device.recorder is not None or device.dry_now:
            for x, array in zip(self.inputs, xs):
                device.upload(np.ascontiguousarray(array), x.block)
            found = [t.numpy() for t in self.outputs.tensors(self._call())]
            check_rows(device)
            return self.outputs.together(found)
        self.direct.put(xs)
        recording.replay()
        found = self.direct.take()
        check_rows(device)
        return self.outputs.together(found)
