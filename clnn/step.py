"""`@clnn.step`: a function of tensors, recorded at its second and third call and replayed from then on."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from .errors import ConfigurationError
from .ops.array import Array, empty
from .runtime.device import Device, check_not_forked, device
from .runtime.recording import MOST_RECORDINGS, Replays, StepContext, structure_version
from .tensor import Tensor, grad_enabled, host_array


class Step:
    """A step that is run over and over on arrays of the same shapes. See `step`."""

    def __init__(
        self,
        function: Callable[..., Any],
        record: bool = True,
        optimizers: Any = (),
        uses: Any = None,
        moves_counters: bool = False,  # the function moves the optimizers' counters itself, with a launch of its own
    ) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        name = getattr(function, "__name__", type(function).__name__)
        self.replays = Replays(name, record)
        self.moves_counters = moves_counters
        # what is known before the first call
        self._given: tuple[list[Any], dict[Any, int], dict[Any, int]] = (list(optimizers), dict(uses or {}), {})
        self._received: dict[Any, None] = {}  # the parameters that ever received gradients in it
        self._inputs: dict[Hashable, list[Tensor]] = {}
        # by key: optimizers stepped, uses of parameters, and where the number of gradients they have received changed
        self._known: dict[Hashable, tuple[list[Any], dict[Any, int], dict[Any, int]]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        check_not_forked()
        arrays: list[Any] = []
        where: Device | None = None
        shape: list[Any] = []
        for name, value in [*enumerate(args), *kwargs.items()]:
            if isinstance(value, Tensor):
                where = where or value.device
                arrays.append(value)
            elif isinstance(value, np.ndarray):
                arrays.append(host_array(value))
            else:
                shape.append((name, value))
                continue
            shape.append((name, arrays[-1].shape, arrays[-1].dtype.str))
        where = where or device()
        if where.step is not None:  # a step within a step is part of it
            return self.function(*args, **kwargs)
        key = self.key(where, tuple(shape))
        inputs = self._inputs.get(key)
        if inputs is None:
            if len(self._inputs) >= 2 * MOST_RECORDINGS:  # recordings read their inputs, so both go together
                self.clear()
            inputs = self._inputs[key] = [_tensor(empty(where, a.shape, a.dtype)) for a in arrays]
        for array, fixed in zip(arrays, inputs):
            if isinstance(array, Tensor):
                if array.device is not where:
                    raise ConfigurationError(
                        f"the arguments of one step lie on two devices, {where!r} and {array.device!r}"
                    )
                where.copy(array.block, fixed.block, array.nbytes)
            else:
                where.upload_soon(array, fixed.block)
        given = iter(inputs)
        place = [next(given) if isinstance(v, (Tensor, np.ndarray)) else v for v in args]
        named = {k: next(given) if isinstance(v, (Tensor, np.ndarray)) else v for k, v in kwargs.items()}
        result, fixed_result = self.run(where, key, lambda context: self.function(*place, **named))
        return copied(result, None if fixed_result else {x.block for x in inputs})

    def key(self, where: Device, shape: Hashable) -> Hashable:
        """What must be the same for a recording to be replayed."""
        waiting = tuple(p for p in self._received if p.uses)  # those with gradients from earlier calls
        chosen = [os.environ.get(name, "") for name in ("CLNN_GEMM", "CLNN_WINOGRAD")]
        key = (where, shape, grad_enabled(), *chosen, structure_version(), waiting)
        try:
            hash(key)
        except TypeError as error:
            raise ConfigurationError(
                f"the arguments of a step are tensors, arrays, and values that can be hashed: {error}"
            ) from error
        return key

    def ahead(self, key: Hashable, wanted: int, to_come: int) -> int:
        """How many of `wanted` steps the next `run` can do at once, between which the host decides nothing. `to_come`:
        how many more there will be in all, which decides whether fusing them pays."""
        recording = self.replays.recording(key)
        if recording is None:
            return 1
        recording.steps_to_come = to_come
        return min([wanted, recording.most(), *(o.rows_left() for o in self._known.get(key, self._given)[0])])

    def run(
        self, where: Device, key: Hashable, function: Callable[[StepContext], Any], times: int = 1
    ) -> tuple[Any, bool]:
        """Run or replay `function` under `key`: its result, and whether a later replay overwrites it. `times` is 1, or
        what `ahead` allowed."""
        optimizers, uses, left = self._known.get(key, self._given)
        for optimizer in optimizers:
            optimizer.fuse()
            optimizer.prepare(times)
        touched: list[StepContext] = []

        def call(context: StepContext) -> Any:
            touched.append(context)
            context.optimizers = list(optimizers)
            for optimizer in optimizers:
                optimizer.enter(uses)
                optimizer.advance(context)
            if not self.moves_counters:
                context.finish()
            try:
                result = function(context)
            finally:
                for optimizer in context.optimizers:
                    optimizer.leave()
            if len(self._known) > 64:
                self._known.clear()
            self._received |= dict.fromkeys(context.received)
            changed = {p: p.uses for p, before in context.received.items() if p.uses != before}
            self._known[key] = context.optimizers, context.uses, changed
            return result

        try:
            result = self.replays.run(where, key, call, times)
        except BaseException:
            for p in touched[0].received if touched else ():
                p.discard_gradient()
            for optimizer in touched[0].optimizers if touched else optimizers:
                optimizer.abandon()
            raise
        if not touched:  # it was replayed
            for p, count in left.items():
                p.uses, p.forward_uses, p._last = count, 0, p._last or "plain"
        return result

    def clear(self) -> None:
        """Forget all recordings; the next calls make new ones."""
        self.replays.clear()
        self._inputs.clear()
        self._known.clear()


def _tensor(x: Array) -> Tensor:
    return Tensor(x.block, x.shape, x.dtype, x.device)


def copied(result: Any, blocks: set[Any] | None = None) -> Any:
    """Results in memory of their own, so that no later call writes into them: all, or those that lie in `blocks`."""
    if isinstance(result, Tensor):
        if blocks is not None and result.block not in blocks:
            return result
        fresh = _tensor(empty(result.device, result.shape, result.dtype))
        result.device.copy(result.block, fresh.block, result.nbytes)
        return fresh
    if isinstance(result, (tuple, list)):
        items = [copied(value, blocks) for value in result]
        return type(result)(*items) if hasattr(result, "_fields") else type(result)(items)
    if isinstance(result, dict):
        return {key: copied(value, blocks) for key, value in result.items()}
    return result


def step(function: Callable[..., Any] | None = None, *, record: bool = True) -> Any:
    """Make a function of tensors fast: its launches are noted and replayed.

    The first call runs as written, the second and third are recorded and compared, later ones replay the launches with
    new inputs: Python inside the function no longer runs. So its control flow is frozen, as are numbers that are no
    tensors. Arrays and tensors are passed as arguments; results come back as tensors. A result read inside the function,
    or a call that does something else than the last one, leaves it eager, with a warning. `record=False` never records.

        @clnn.step
        def train(x, y):
            loss = clnn.losses.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step(net.parameters())
            return loss
    """
    if function is None:
        return functools.partial(step, record=record)
    return Step(function, record)
