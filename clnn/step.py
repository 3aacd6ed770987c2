"""`@clnn.step`: a function of tensors, recorded at its second and third call and replayed from then on."""

from __future__ import annotations

import dataclasses
import functools
import time
import types
import weakref
from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple

import numpy as np

from .errors import ConfigurationError, warn
from .ops.array import Array, empty
from .ops.index import check_rows
from .optim import Taking
from .runtime.device import Device, check_not_forked
from .runtime.devices.choice import device
from .runtime.memory import View
from .runtime.recorder import AuditEnded, Recorder, StepContext
from .runtime.recording import MOST_RECORDINGS, Entry, RecordingWarning, Replays
from .runtime.watching.effects import Effects, saved
from .runtime.watching.watch import KNOWN, MOST, Watch, chosen, structure_version
from .tape import grad_enabled
from .tensor import Tensor, host_array, origin

IN_A_ROW = 8  # replays for which the device's lock is held, if they are shorter than the pacer's markers are apart
# After so many calls in a row that saw a change, two are recorded anyway: launches may not depend on it
MOST_RESTARTS = 4


class _Call(NamedTuple):
    """What the host has to do for a replay, as a call of the function did it."""

    steps: dict[Any, tuple[Any, int]]  # by optimizer: its parameters, and how many steps it takes
    left: list[tuple[Any, int, str]]  # parameters, their gradients received by the end, and where the last one went
    stores: list[Any]  # where those gradients are
    checks: dict[int, Callable[[Any, str], None]]  # by an argument's place among arrays: of its whole numbers

    @staticmethod
    def told_by(context: StepContext, inputs: Iterable[Tensor]) -> _Call:
        steps: dict[Any, tuple[Any, int]] = {}
        for optimizer, parameters in context.stepped:
            steps[optimizer] = parameters, steps.get(optimizer, (None, 0))[1] + 1
        stores = dict.fromkeys(p.store for p in context.received if p.store is not None)
        checks = {place: context.checks[x.block] for place, x in enumerate(inputs) if x.block in context.checks}
        return _Call(steps, [(p, p.uses, p._last) for p in context.received], list(stores), checks)


NOTHING = _Call({}, [], [], {})


class Step:
    """A step that is run over and over on arrays of the same shapes. See `step`."""

    def __init__(
        self, function: Callable[..., Any], record: bool = True, descending: Any = (), reads: Iterable[Any] = ()
    ) -> None:
        """`descending`: optimizers that each `descend` once in every call. `reads`: what the function reads besides what its
        own code names."""
        functools.update_wrapper(self, function)
        self.function = function
        self.replays = Replays(getattr(function, "__name__", type(function).__name__), record)
        self.descending = list(descending)
        self.given: Any = None  # the parameters that these train in it, where whoever runs it says so
        self.reads = dict.fromkeys(map(_Same, (*descending, *reads)))
        self._watch: Watch | None = None  # of what its Python reads
        self._moves = 0  # how often that has changed
        self._kinds: tuple[Hashable, np.dtype] | None = None  # `_floats` of a version
        self._told = False  # that there is more than can be watched
        self._told_of = False  # what it changes on the host
        self.audited = 0.0  # seconds that audits took
        self.lends = False  # whether results stay where the next call overwrites them: its caller reads them before
        self._received: dict[Any, None] = {}  # the parameters that ever received gradients in it
        self._inputs: dict[Hashable, list[Tensor]] = {}
        # arguments that were looked at, by themselves, their step's key and their place
        self._looked = weakref.WeakValueDictionary[Any, Tensor]()

    def __get__(self, owner: Any, _: Any = None) -> Any:
        """As a method: each object gets a step of its own, which goes with it."""
        if owner is None:
            return self
        space = getattr(owner, "__dict__", None)
        if space is None:  # it has slots alone
            return Step(types.MethodType(self.function, owner), self.replays.record)
        methods = space.get(_METHODS)
        if methods is None or methods.owner is not owner:
            methods = _Methods(owner)
            type.__setattr__(owner, _METHODS, methods) if isinstance(owner, type) else space.update({_METHODS: methods})
        if self not in methods.steps:
            methods.steps.setdefault(self, Step(types.MethodType(self.function, owner), self.replays.record))
        return methods.steps[self]

    def __reduce__(self) -> Any:
        """A copy has no recordings yet. Its function, as Python's functions are, is the same one."""
        return Step, (self.function, self.replays.record)

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
                arrays.append(host_array(value, self._floats() if value.dtype.kind == "f" else None))
            else:
                shape.append((name, _as_key(value)))
                if len(self.reads) < 64:
                    self.reads.setdefault(_Same(value))
                continue
            made_by = value.made_by if isinstance(value, Tensor) else origin(value, arrays[-1])
            shape.append((name, arrays[-1].shape, arrays[-1].dtype.str, made_by))
        if where is None:
            where = device()
            where.recorder  # noqa: B018 - a step that another device records hears of this one
        if where.step is not None:  # a step within a step is part of it
            return self.function(*args, **kwargs)
        with where.lock:  # until the result is where no other call writes
            return self._on_copies(where, arrays, tuple(shape), args, kwargs)

    def _on_copies(
        self, where: Device, arrays: list[Any], shape: tuple[Any, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """One call, whose arrays are copied to where recordings read them."""
        key = self.key(where, shape)
        inputs, entry = self._inputs.get(key), self.replays.entry(key)
        if inputs is None or entry is None or entry.recording is None:  # the last call's may have been kept
            if inputs is None and len(self._inputs) >= 2 * MOST_RECORDINGS:  # recordings read them, so both go together
                self.clear()
            made_by = [one[-1] for one in shape if len(one) > 2]  # not those of other arguments
            inputs = [_tensor(empty(where, a.shape, a.dtype), by) for a, by in zip(arrays, made_by)]
            for one in inputs:
                one.block.written_once = False
            self._inputs[key] = inputs
        checks = ((entry and entry.known) or NOTHING).checks
        for place, (array, fixed) in enumerate(zip(arrays, inputs)):
            if place in checks and self._looked.get((id(array), key, place)) is not array:
                # a replay would only make its loss NaN; a tensor's numbers are waited for, once
                checks[place](array.numpy() if isinstance(array, Tensor) else array, "an argument of the step")
                if isinstance(array, Tensor):
                    self._looked[id(array), key, place] = array
            if isinstance(array, Tensor):
                array.refuse_history("an argument of a step, which is a copy,")
                if array.mask is not None:
                    raise ConfigurationError(
                        "an argument of a step is a copy, without the mask of steps that this tensor has: make the mask inside "
                        "(Masking, Embedding's mask_zero), or give it as an argument of its own, and there x.mask = mask"
                    )
                if array.device is not where:
                    raise ConfigurationError(
                        f"the arguments of one step lie on two devices, {where!r} and {array.device!r}"
                    )
                where.copy(array.block, fixed.block, array.nbytes)
            else:
                where.upload_soon(array, fixed.block)
        given = iter(inputs)
        unnamed = [next(given) if isinstance(v, (Tensor, np.ndarray)) else v for v in args]
        named = {k: next(given) if isinstance(v, (Tensor, np.ndarray)) else v for k, v in kwargs.items()}

        def function(_: StepContext) -> Any:
            if where.recorder is not None:
                where.recorder.given = {x.block: f"argument {place}" for place, x in enumerate(inputs)}
            return self.function(*unnamed, **named)

        self.verify(where, key, function)
        result, fixed_result = self.run(where, key, function)
        if fixed_result:
            return result if self.lends else copied(result)
        return copied(result, {x.block for x in inputs}.union(*((p.block, p._grad) for p in self._received)))

    def key(self, where: Device, shape: Hashable) -> Hashable:
        """What must be the same for a recording to be replayed."""
        waiting = tuple(p for p in self._received if p.uses)  # those with gradients from earlier calls
        key = (where, shape, grad_enabled(), *chosen(), waiting)
        try:
            hash(key)
        except TypeError as error:
            raise ConfigurationError(
                f"a step takes tensors, arrays, each by itself (step(*arrays) of a list), and values that can be hashed: {error}"
            ) from error
        return key

    # -- whether a recording is still what the Python does --------------------------------------------------------------
    @property
    def _version(self) -> Hashable:
        return structure_version(), self._moves

    def _floats(self) -> np.dtype:
        """What NumPy's floats become: float64 where all layers that it reads are of float64, else float32."""
        if self._kinds is None or self._kinds[0] != self._version:
            found = {np.dtype(one.dtype) for one in self.watched().objects if hasattr(one, "dtype")}
            self._kinds = self._version, np.dtype(np.float64 if found == {np.dtype(np.float64)} else np.float32)
        return self._kinds[1]

    @property
    def foreign(self) -> bool:
        """Whether code takes part that is not clnn's, as far as the last call told."""
        return self._watch is not None and self._watch.foreign

    def watched(self) -> Watch:
        """What its Python reads."""
        if self._watch is None:
            self._watch = Watch([self.function, *(same.value for same in self.reads)])
            if self._watch.cut and not self._told:
                self._told = True
                warn(
                    f"from what the step {self.replays.name!r} reads more than {MOST:,} objects can be reached, and changes of "
                    "the others are seen late: pass what changes as an argument",
                    RecordingWarning,
                )
        return self._watch

    def verify(self, where: Device, key: Hashable, function: Callable[[StepContext], Any], audit: bool = False) -> None:
        """Before `run`: forget a recording of what `function` no longer does.

        Where something has changed that its Python reads, and at replays 1, 2, 4, 8, ... (or if `audit` says so), the Python
        runs once more with its launches only noted, and these are compared with the recording's.
        """
        entry = self.replays.entry(key)
        if entry is None or not self.replays.record:
            return
        if self._watch is not None and self._watch.changed():
            self._watch, self._moves = None, self._moves + 1
        self.claim()
        moved = entry.version != (structure_version(), self._moves)
        if entry.recording is None:
            if entry.eager:  # it changes containers itself at every call, so these say nothing
                moved = entry.version is not None and entry.version[0] != structure_version()
            if moved and entry.called:
                entry.restarts += 1
                n = entry.restarts
                again = n & (n - 1) == 0 if entry.eager else (n - 1) % (MOST_RESTARTS + 2) < MOST_RESTARTS
                entry.moving = not (again or entry.eager)
                if again:
                    self.replays.restart(key)
            return
        entry.replays += 1
        if not (moved or audit or entry.replays & (entry.replays - 1) == 0):
            return
        check_rows(where)
        self._ready(entry)
        began = time.perf_counter()
        difference = self._audit(where, key, function, entry.recorder)
        self.audited += time.perf_counter() - began
        if difference is None:
            entry.version, entry.checked = self._version, entry.replays
            entry.restarts = 0
            return
        since = entry.replays - entry.checked - 1
        self.replays.restart(key, eager=not moved and not audit)
        if not moved:
            warn(
                f"the step {self.replays.name!r} no longer does what was recorded: {difference}. What it depends on is "
                "nothing that clnn sees change (attributes, containers, closures and globals it does)"
                + (f", and the last {since} replays, unchecked, may have been out of date" if since else "")
                + f"; it {'is recorded anew' if audit else 'runs eagerly from here on'}. Pass what changes as an argument.",
                RecordingWarning,
            )

    def _audit(self, where: Device, key: Hashable, function: Callable[[StepContext], Any], recorded: Any) -> str | None:
        """What `function` would now do otherwise than was recorded, in words. Nothing is launched, and what it changes on
        the host is put back."""
        recorder = Recorder(audit=True)
        watch = self.watched()
        restore, effects = saved(watch), Effects(watch)
        context = StepContext()
        try:
            where._now.step, where.recorder = context, recorder
            recorder.result = self._python(context, function)
            where.advance(context.take_cells())
            if effect := effects.found():
                recorder.abort(effect)
        except AuditEnded:
            pass
        except Exception as error:
            recorder.abort(f"it raised {error!r}")
        finally:  # without a call, with which Ctrl-C comes
            where._now.step = where._now.recorder = None
            restore()
        return recorder.reason or recorded.first_difference(recorder)

    def _python(self, context: StepContext, function: Callable[[StepContext], Any]) -> Any:
        context.prepared = self.descending
        for cell in (cell for optimizer in self.descending for cell in optimizer.cells()):
            context.advance(cell)
        return function(context)

    def claim(self) -> None:
        """Have `descending` in charge of this step's parameters, whatever else they trained since the last call."""
        for optimizer in self.descending:
            optimizer.claim(self.given, descends=True)

    def _ready(self, entry: Entry | None) -> _Call:
        """Before a call: have the optimizers and the gradients' buffers as the recordings of `entry` expect them."""
        known: _Call = (entry and entry.known) or NOTHING
        self.claim()
        for optimizer, (parameters, steps) in known.steps.items():
            if not any(p.trainable for p in parameters):  # whether the step still has part in it, its Python says
                continue
            optimizer.claim(parameters)
            optimizer.reserve(steps)
        if not self.descending:  # its gradients are plain
            for store in known.stores:
                store.reclaim()
        return known

    def run(self, where: Device, key: Hashable, function: Callable[[StepContext], Any]) -> tuple[Any, bool]:
        """Run or replay `function` under `key`, which was verified: its result, and whether a later replay overwrites it.
        The caller holds the device's lock, as for `verify`."""
        if where.step is not None:  # a step within a step is part of it
            return function(where.step), False
        entry = self.replays.entry(key)
        if entry is not None and entry.recording is not None:
            self._replay(where, entry, 1)
            return entry.result, True
        return self._call(where, key, entry, function)

    def run_some(
        self, where: Device, key: Hashable, function: Callable[[StepContext], Any], wanted: int, to_come: int
    ) -> int:
        """Like `run`, as many of `wanted` steps as can be done at once, between which the host decides nothing: how many
        that were. `to_come`: how many more there will be in all, which decides whether fusing them pays."""
        entry = self.replays.entry(key)
        if entry is None or entry.recording is None or where.step is not None:
            self.run(where, key, function)
            return 1
        recording = entry.recording
        recording.steps_to_come = to_come
        # short ones go in a row: what is looked at before them costs as much as some launches
        row = 1 if self.foreign else min(IN_A_ROW, where.pacer.every)
        times = min(wanted, row if recording.fused is None else recording.most())
        for optimizer in self.descending:
            times = min(times, optimizer.rows_left())
        self._replay(where, entry, times)
        return times

    def _replay(self, where: Device, entry: Entry, times: int) -> None:
        """Enqueue `times` steps, with what the host has to do for them."""
        known = self._ready(entry)
        assert entry.recording is not None
        recording = entry.recording
        for given in [*(one.parameters for one in self.descending), *(given for given, _ in known.steps.values())]:
            for p in given:
                p.version += 1
        with Taking(self.descending, times, known.steps):
            if recording.fused is not None:
                recording.replay(times)
                where.pacer.step()
            else:
                for _ in range(times):
                    recording.replay()
                    where.pacer.step()
        if not self.descending:
            for p, uses, kind in known.left:
                p.received(uses, kind)
                p.forward_uses = 0

    def _call(
        self, where: Device, key: Hashable, entry: Entry | None, function: Callable[[StepContext], Any]
    ) -> tuple[Any, bool]:
        """Run `function`, which may be recorded meanwhile."""
        self._ready(entry)
        touched: list[StepContext] = []

        def call(context: StepContext) -> Any:
            taking.context = context
            touched.append(context)
            recorder = where.recorder
            effects = Effects(self.watched()) if recorder is not None else None
            result = self._python(context, function)
            if recorder is not None and effects is not None:
                if effect := effects.found():
                    recorder.abort(effect)
                if recorder.reason is None and effects.unread and not self._told_of:  # said once
                    self._told_of = True
                    changes = f"changes {' and '.join(effects.unread)}, and replays do not: change it outside"
                    warn(f"the step {self.replays.name!r} {changes}", RecordingWarning)
            self._received |= dict.fromkeys(context.received)
            return result

        with Taking(self.descending) as taking:
            try:
                result = self.replays.run(where, key, call)
            except BaseException:
                for p in touched[0].received if touched and not touched[0].whole else ():
                    p.discard_gradient()
                raise
        entry = self.replays.entry(key)
        if entry is not None:
            entry.known = _Call.told_by(touched[0], self._inputs.get(key, ()))
            if self.replays.record:
                if not entry.eager:
                    self._watch = None  # what the call itself has changed is no news
                    self.watched()
                entry.version = self._version
        return result

    def clear(self) -> None:
        """Forget all recordings; the next calls make new ones."""
        self.replays.clear()
        self._inputs.clear()
        self._looked.clear()


_METHODS = "__clnn_steps__"  # where an object has its `_Methods`


class _Methods:
    """The steps that are methods of an object, by those of its classes. A copy of the object gets others."""

    def __init__(self, owner: Any = None) -> None:
        self.owner, self.steps = owner, dict[Step, Step]()

    def __reduce__(self) -> Any:
        return _Methods, ()


class _Same:
    """A value as a key that is equal to itself alone."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value


def _as_key(value: Any) -> Hashable:
    """An argument as part of a key. Two that Python takes for equal may be told apart by the step: True, 1 and 1.0, 0.0 and
    -0.0, objects of a class with an __eq__ of its own. So numbers, texts and constants of the standard library are equal by
    type and value, everything else by identity."""
    if isinstance(value, (tuple, frozenset)):
        return type(value), tuple(map(_as_key, value))
    if dataclasses.is_dataclass(value) and type(value).__dataclass_params__.frozen:  # type: ignore[union-attr]
        return type(value), tuple(_as_key(getattr(value, field.name)) for field in dataclasses.fields(value))
    if isinstance(value, (float, complex, np.generic)):
        return type(value), repr(value)
    if type(value).__module__.partition(".")[0] in KNOWN and not isinstance(value, Tensor):
        return type(value), value
    return _Same(value) if type(value).__hash__ is not None else value  # the latter is refused


def _tensor(x: Array, made_by: str = "") -> Tensor:
    y = Tensor(x.block, x.shape, x.dtype, x.device)
    y.made_by = made_by
    return y


def copied(result: Any, blocks: set[Any] | None = None) -> Any:
    """Results without a history, in memory of their own, so that no later call writes into them: all, or those that are in
    `blocks` or in a store of parameters."""
    if isinstance(result, Tensor):
        if blocks is not None and result.block not in blocks and not isinstance(result.block, View):
            return result.detach() if result.requires_grad else result
        fresh = _tensor(empty(result.device, result.shape, result.dtype), result.made_by)
        result.device.copy(result.block, fresh.block, result.nbytes)
        fresh.mask = copied(result.mask, blocks)
        return fresh
    if isinstance(result, (tuple, list)):
        items = [copied(value, blocks) for value in result]
        return type(result)(*items) if hasattr(result, "_fields") else type(result)(items)
    if isinstance(result, dict):
        return {key: copied(value, blocks) for key, value in result.items()}
    return result


def step(function: Callable[..., Any] | None = None, *, record: bool = True) -> Any:
    """Make a function of tensors fast: its launches are noted and replayed.

    The first call runs as written, the second and third are recorded and compared, later ones replay the launches with new
    inputs: Python inside the function no longer runs. Arrays and tensors are passed as arguments; results come back as
    tensors without a history: `backward()` belongs inside. A result read inside the function, random numbers drawn by
    Python or NumPy, an iterator that it takes from, a number or a list that it changes and reads, work on another device,
    or a call that does something else than the last one, leaves it eager, with a warning. `record=False` never records.

    What the Python reads may change between calls: attributes of layers, losses, optimizers and other objects, lists, dicts
    and sets, closures, globals. The next call then does what the Python says, and is recorded anew if that is something
    else. To see that, the Python runs once more without launching anything, as it does at the replays 1, 2, 4, 8, ...,
    which finds what cannot be watched (a file, the time), late and with a warning. What it changes on the host meanwhile in
    these objects is put back; what it prints, it prints.

        @clnn.step
        def train(x, y):
            loss = clnn.losses.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step(net.parameters())
            return loss
    """
    return functools.partial(step, record=record) if function is None else Step(function, record)
