"""`@clnn.step`: a function of tensors, recorded at its second and third call and replayed from then on."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import numpy as np

from .errors import ConfigurationError
from .ops.array import Array, empty
from .runtime.device import Device, check_not_forked, device
from .runtime.recording import (
    MOST_RECORDINGS,
    AuditEnded,
    Recorder,
    RecordingWarning,
    Replays,
    StepContext,
    structure_version,
)
from .runtime.watch import Watch
from .tensor import Tensor, grad_enabled, host_array

MOST_RESTARTS = 4  # before a recording is made, because what the step reads on the host had changed


class Step:
    """A step that is run over and over on arrays of the same shapes. See `step`."""

    def __init__(
        self,
        function: Callable[..., Any],
        record: bool = True,
        optimizers: Any = (),
        uses: Any = None,
        moves_counters: bool = False,  # the function moves the optimizers' counters itself, with a launch of its own
        reads: Iterable[Any] = (),  # what it reads besides what its own code names
    ) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        name = getattr(function, "__name__", type(function).__name__)
        self.replays = Replays(name, record)
        self.moves_counters = moves_counters
        self.reads = dict.fromkeys(map(_Same, (*optimizers, *reads)))
        self._watch: Watch | None = None  # of what its Python reads
        self._moves = 0  # how often that has changed
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
                value.refuse_history("an argument of a step, which is a copy,")
                where = where or value.device
                arrays.append(value)
            elif isinstance(value, np.ndarray):
                arrays.append(host_array(value))
            else:
                shape.append((name, value))
                if len(self.reads) < 64:
                    self.reads.setdefault(_Same(value))
                continue
            shape.append((name, arrays[-1].shape, arrays[-1].dtype.str))
        where = where or device()
        if where.step is not None:  # a step within a step is part of it
            return self.function(*args, **kwargs)
        with where.lock:  # until the result lies where no other call writes
            return self._on_copies(where, arrays, tuple(shape), args, kwargs)

    def _on_copies(
        self, where: Device, arrays: list[Any], shape: Hashable, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """One call, whose arrays are copied to where recordings read them."""
        key = self.key(where, shape)
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

        def function(_: StepContext) -> Any:
            return self.function(*place, **named)

        self.verify(where, key, function)
        result, fixed_result = self.run(where, key, function)
        return copied(result, None if fixed_result else {x.block for x in inputs})

    def key(self, where: Device, shape: Hashable) -> Hashable:
        """What must be the same for a recording to be replayed."""
        waiting = tuple(p for p in self._received if p.uses)  # those with gradients from earlier calls
        chosen = [os.environ.get(name, "") for name in ("CLNN_GEMM", "CLNN_WINOGRAD")]
        key = (where, shape, grad_enabled(), *chosen, waiting)
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

    # -- whether a recording is still what the Python does --------------------------------------------------------------
    @property
    def _version(self) -> Hashable:
        return structure_version(), self._moves

    @property
    def foreign(self) -> bool:
        """Whether code takes part that is not clnn's, as far as the last call told."""
        return self._watch is not None and self._watch.foreign

    def _watched(self) -> Watch:
        if self._watch is None:
            self._watch = Watch([self.function, *(same.value for same in self.reads)])
        return self._watch

    def verify(self, where: Device, key: Hashable, function: Callable[[StepContext], Any], audit: bool = False) -> None:
        """Before `run`: forget a recording of what `function` no longer does.

        Where something has changed that its Python reads, and at every 2^k-th replay (or if `audit` says so), the Python
        runs once more with its launches only noted, and these are compared with the recording's.
        """
        if self._watch is not None and self._watch.changed():
            self._watch, self._moves = None, self._moves + 1
        entry = self.replays.entry(key)
        if entry is None or not self.replays.record:
            return
        for optimizer in self._known.get(key, self._given)[0]:
            optimizer.fuse()
        moved = entry.version != self._version
        if entry.recording is None:
            if entry.eager:  # it changes containers itself at every call, so these say nothing
                moved = entry.version is not None and entry.version[0] != structure_version()
            if moved and entry.called and entry.restarts < MOST_RESTARTS:
                self._forget(key)
            return
        entry.replays += 1
        if not (moved or audit or entry.replays & (entry.replays - 1) == 0):
            return
        difference = self._audit(where, key, function, entry.recorder)
        if difference is None:
            entry.version, entry.checked = self._version, entry.replays
            entry.restarts = 0
            return
        since = entry.replays - entry.checked - 1
        self._forget(key, eager=not moved and not audit)
        if not moved:
            warnings.warn(
                f"the step {self.replays.name!r} no longer does what was recorded: {difference}. What it depends on is "
                "nothing that clnn sees change (attributes, containers, closures and globals it does)"
                + (f", and the last {since} replays, unchecked, may have been out of date" if since else "")
                + f"; it {'is recorded anew' if audit else 'runs eagerly from here on'}. Pass what changes as an argument.",
                RecordingWarning,
                stacklevel=4,
            )

    def expect(self, uses: dict[Any, int]) -> None:
        """How often each parameter is used, for calls under a key of which nothing is known."""
        self._given = self._given[0], dict(uses), {}

    def _forget(self, key: Hashable, eager: bool = False) -> None:
        self.replays.restart(key, eager)
        self._known.pop(key, None)
        self.expect({})  # how often parameters are used may be what has changed

    def _audit(self, where: Device, key: Hashable, function: Callable[[StepContext], Any], recorded: Any) -> str | None:
        """What `function` would now do otherwise than was recorded, in words. Nothing is launched, and what it changes on
        the host is put back."""
        optimizers, uses, _ = self._known.get(key, self._given)
        recorder = Recorder(audit=True)
        restore = self._watched().saved()
        where.step = context = StepContext(where)
        where.recorder = recorder
        try:
            recorder.result = self._python(context, function, optimizers, uses)
            context.finish()
        except AuditEnded:
            pass
        except Exception as error:
            recorder.abort(f"it raised {error!r}")
        finally:
            where.step = where.recorder = None
            restore()
        return recorder.reason or recorded.first_difference(recorder)

    def _python(self, context: StepContext, function: Callable[[StepContext], Any], optimizers: Any, uses: Any) -> Any:
        context.optimizers = list(optimizers)
        for optimizer in optimizers:
            optimizer.enter(uses)
            optimizer.advance(context)
        if not self.moves_counters:
            context.finish()
        try:
            return function(context)
        finally:
            for optimizer in context.optimizers:
                optimizer.leave()

    def run(
        self, where: Device, key: Hashable, function: Callable[[StepContext], Any], times: int = 1
    ) -> tuple[Any, bool]:
        """Run or replay `function` under `key`, which was verified: its result, and whether a later replay overwrites it.
        `times` is 1, or what `ahead` allowed. The caller holds the device's lock, as for `verify`."""
        optimizers, uses, left = self._known.get(key, self._given)
        for optimizer in optimizers:
            optimizer.fuse()
            optimizer.prepare(times)
        touched: list[StepContext] = []

        def call(context: StepContext) -> Any:
            touched.append(context)
            recorder = where.recorder
            drawn = self._watched().random_state() if recorder is not None else None
            result = self._python(context, function, optimizers, uses)
            if recorder is not None and self._watched().random_state() != drawn:
                recorder.abort(
                    "Python's or NumPy's random numbers were drawn inside the step, and a replay draws none: draw them "
                    "outside and pass them as arguments, or draw on the device (clnn.Dropout)"
                )
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
        elif self.replays.record:
            entry = self.replays.entry(key)
            if entry is not None and not entry.eager:
                self._watch = None  # what the call itself has changed is no news
                self._watched()
            if entry is not None:
                entry.version = self._version
        return result

    def clear(self) -> None:
        """Forget all recordings; the next calls make new ones."""
        self.replays.clear()
        self._inputs.clear()
        self._known.clear()


class _Same:
    """A value as a key that is equal to itself alone."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value


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
