"""Optimizers: one launch over the flat store of parameters; the gradient's own GEMM does part of it where it can.

A rule is one expression in kernels/optimizer.cl and one small class here. Everything that moves from step to step
(learning rates, Adam's corrections) is computed on the host for many steps at a time, in float64, and lies in a table on
the device whose row a counter selects. So a schedule costs nothing in a recorded step, and changing `lr` never makes a
new recording.
"""

from __future__ import annotations

import contextlib
import functools
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..checks import arguments, as_argument, in_range
from ..errors import CheckpointError, ClnnError, ConfigurationError
from ..gemm import SCALE_PAIRS, Scale
from ..ops.array import empty_like, fill
from ..ops.elementwise import scale_add
from ..parameters import Run, Store, consolidate, runs
from ..runtime.choice import devices
from ..runtime.device import Device
from ..runtime.memory import Block
from ..runtime.watch import Restored, Watch, Watched, rebinds, structure_changed, structure_version
from ..schedules import Schedule, find_rate, is_known
from ..schedules import describe as describe_rate
from ..tape import Node, backpropagate, moment
from ..tensor import Parameter, Place

ROWS = 1024  # steps in a table of rates
STRIP, ACROSS = 64, 16  # columns that max-norm passes over at a time: a CPU thread, and a group on other devices
ITEM = 1 << 15  # elements that a CPU thread updates at once: fewer are not worth waking another, and can be fused


Rate = float | Callable[[int], float] | Sequence[Sequence[float]]


class _Clock(Restored):
    """Where an optimizer is: steps prepared so far, its row in the table of rates, and rows left there."""

    __slots__ = ("steps", "row", "left")

    def __init__(self) -> None:
        self.steps = self.row = self.left = 0


class Grid(NamedTuple):
    """How a kernel passes over a store: `width` work-items a group, `each` vectors of `vector` elements a work-item."""

    vector: int
    each: int
    width: int

    @staticmethod
    def over(device: Device, dtype: Any, sums: bool = False) -> Grid:
        """The grid for a device; for `sums` a group has several vectors a work-item, so that there are fewer groups."""
        vector = device.vector_width(dtype)
        if device.long_loops:
            return Grid(vector, ITEM // vector, 1)
        return Grid(vector, 8 if sums else 1, device.group_width)

    def fitting(self, device: Device, kernel: str, dtype: Any, **defines: Any) -> Grid:
        """The same with the groups that a kernel takes as it is compiled."""
        return self._replace(
            width=device.fitting(
                self.width, "optimizer", kernel, device.real(dtype), VW=self.vector, EACH=self.each, **defines
            )
        )

    def groups(self, elements: int) -> int:
        return -(-elements // (self.vector * self.each * self.width))

    def defines(self) -> dict[str, Any]:
        return {"VW": self.vector, "EACH": self.each, "WIDTH": self.width}


def _strips(device: Device, rows: int) -> tuple[int, int, int]:
    """How max-norm cuts a matrix up: work-items in a group, columns that it passes over at a time, and columns in all."""
    if device.long_loops:
        return 1, STRIP, max(STRIP, ITEM // max(1, rows) // STRIP * STRIP)
    across = min(ACROSS, device.group_width)
    return device.group_width, across, across


class Optimizer(Watched):
    """What all optimizers share: the table of rates, where gradients go, and the launch.

    `lr` is a number, a schedule (clnn.schedules), a list of pairs (epochs, rate), or a function of the step's number from
    0; of one of your own that is not registered (`clnn.register`) a file keeps only the rate that it had. `weight_decay` and
    `l1` reach weights only, not biases. `clip_value` limits each element of the gradient to [-clip_value, clip_value];
    `clip_norm` then scales all gradients together by min(1, clip_norm / (norm + 1e-6)) (Pascanu et al. 2013); neither hides
    NaN or infinity.
    `ema` keeps a moving average of the weights, average = ema average + (1 - ema) w after each step, that starts at the
    first weights; see `averaged`. `keep_gradients=True` leaves gradients readable as `parameter.grad` also after fit, which
    else may spend them as they come (as they were before clipping).
    """

    tells = True
    unwatched = frozenset(("epochs", "parameters", "lr"))  # rates are no part of a recording
    rule = ""  # the function in kernels/optimizer.cl
    states: tuple[str, ...] = ()  # the names of the buffers of the parameters' size that it keeps
    decoupled = False
    fuses = False  # whether velocities may lie in the gradients' buffer

    def __init__(
        self,
        lr: Rate,
        weight_decay: float = 0.0,
        l1: float = 0.0,
        keep_gradients: bool = False,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        ema: float | None = None,
    ) -> None:
        self._ready = False
        self._clock = _Clock()
        self._fit: tuple[int, int, int, int] | None = None  # what the last fit told schedules
        self.lr = lr
        self.weight_decay = in_range("weight_decay", weight_decay, 0.0, math.inf)
        self.l1 = in_range("l1", l1, 0.0, math.inf)
        self.keep_gradients = keep_gradients
        self.clip_norm = None if clip_norm is None else in_range("clip_norm", clip_norm, 0.0, math.inf, "()")
        self.clip_value = None if clip_value is None else in_range("clip_value", clip_value, 0.0, math.inf, "()")
        self.ema = None if ema is None else in_range("ema", ema, 0.0, 1.0)
        self.epochs = 0  # trained so far by fit, which orders its samples by this number
        self.parameters: list[Parameter] = []
        self._given: tuple[Parameter, ...] = ()  # those, and the frozen ones
        self._seen = -1  # the structure under which they were chosen
        self._rates_of: Watch | None = None  # what the function lr read when the table was filled
        self._stores: list[Store] = []
        self._places: dict[Parameter, tuple[Store, int]] = {}  # where what is kept of each parameter lies
        # Of other models' parameters likewise, by id, with a weak reference: they may be moved before they come back
        self._elsewhere: dict[int, tuple[weakref.ref[Parameter], Store, int]] = {}
        # By store, so that it goes with the model: what is kept, by name, and where the optimizer was with other models
        self._kept: weakref.WeakKeyDictionary[Store, dict[str, Block]] = weakref.WeakKeyDictionary()
        self._left: weakref.WeakKeyDictionary[Store, Any] = weakref.WeakKeyDictionary()
        self._chunks: weakref.WeakKeyDictionary[Store, dict[Any, Any]] = weakref.WeakKeyDictionary()  # of LAMB
        self._put_aside: list[tuple[Device, Block, Block]] | None = (
            None  # in `averaged`: weights, and where they belong
        )
        self._runs: list[Run] | None = None
        self._tables: dict[Any, tuple[Block, Block]] = {}  # (device, dtype): rates, the counter of rows
        self._rows = np.zeros((0, 2 * SCALE_PAIRS))
        self._loaded: dict[str, Any] | None = None  # a state that the next parameters take up
        self._waiting: dict[
            tuple[str, str], np.ndarray
        ] = {}  # of parameters that are frozen since before it was loaded
        self._dropped = 0  # when zero_grad was last called, in the order of the tape
        self._ready = True

    def __setattr__(self, name: str, value: Any) -> None:
        if (
            not name.startswith("_")
            and name not in ("lr", "epochs", "parameters")
            and type(self).__module__.startswith(__package__)  # of your own may have any
        ):
            kind: Any = type(self)
            if name in vars(self):
                value = as_argument(self, name, value)
            elif name not in arguments(kind) and not hasattr(kind, name):
                known = ", ".join(sorted(arguments(kind)))
                raise ConfigurationError(f"{kind.__name__} has no setting {name!r}; there are {known}")
        if name == "lr":
            value = find_rate(value)
            if isinstance(value, Schedule):
                self._first_rate = value.state_dict()
                if self._fit:
                    value.bind(*self._fit)
            self._set_within_step(name, value)
            self._clock.left = 0  # the table is made anew before the next step
        elif not name.startswith("_") and name not in ("epochs", "parameters") and getattr(self, "_ready", False):
            if rebinds(self, name, value):
                structure_changed()
            self._set_within_step(name, value)
            object.__setattr__(self, "_runs", None)
            self._clock.left = 0  # momentum and betas stand in the table as well
        object.__setattr__(self, name, value)

    def _set_within_step(self, name: str, value: Any) -> None:
        """What the table of rates is made of changes where launches are recorded, which do not show it."""
        for device in {store.device for store in self._stores} if self._ready and rebinds(self, name, value) else ():
            if device.recorder is not None:
                device.recorder.abort(
                    f"the optimizer's {name} is set inside the step, and a replay sets nothing: set it outside, such as in a "
                    "callback, or give lr a schedule"
                )

    @property
    def steps(self) -> int:
        """Steps taken so far."""
        self._read_within_step("steps")
        return self._clock.steps

    def _read_within_step(self, what: str) -> None:
        """This is read, also by Python that is recorded, and no launch shows it."""
        for recorder in (store.device.recorder for store in self._stores):
            if recorder is not None:
                recorder.abort(
                    f"the optimizer's {what} are read inside the step, and a replay reads nothing: pass them as an argument"
                )

    # -- to be given by each optimizer --------------------------------------------------------------------------------
    def numbers(self, lr: np.ndarray, t: np.ndarray) -> tuple[Any, ...]:
        """lr, a, b, c, d as the rule reads them, for steps t = 1, 2, ... (arrays, or numbers for all of them)."""
        return (lr,)

    def sink(self, p: Parameter, single: bool) -> tuple[Scale, Place] | None:
        """Where p's gradient may go in `descend` other than into its own buffer; `single`: it is used once."""
        return None

    def config(self) -> dict[str, Any]:
        """The arguments that make an optimizer like this one."""
        lr: Any = self.lr
        lr = describe_rate(lr) if is_known(lr) else self._rate(self._clock.steps)
        same = ("weight_decay", "l1", "keep_gradients", "clip_norm", "clip_value", "ema")
        return {"lr": lr, **{name: getattr(self, name) for name in same}}

    # -- rates --------------------------------------------------------------------------------------------------------
    def rate(self, step: int) -> float:
        """The learning rate of step 0, 1, ..."""
        self._read_within_step("rates")
        return self._rate(step)

    def _rate(self, step: int) -> float:
        lr: Any = self.lr
        return in_range("the schedule's lr", lr(step), 0.0, math.inf) if callable(lr) else lr

    def begin_fit(self, steps_per_epoch: int, epochs: int) -> None:
        """A fit begins that goes on for `epochs` epochs of so many steps: schedules count in those."""
        self._fit = (steps_per_epoch, self.epochs + epochs, self.steps, self.epochs)
        if isinstance(self.lr, Schedule):
            self.lr.bind(*self._fit)
            self._clock.left = 0

    def observe(self, loss: float) -> None:
        """An epoch is over, with this loss: what `ReduceOnPlateau` waits for. fit says it by itself."""
        if callable(self.lr) and (not isinstance(self.lr, Schedule) or self.lr.observe(loss)):
            self._clock.left = 0  # a function of one's own may read what nobody sees change

    def _fill_table(self) -> None:
        """The next rows of the table: pairs for sinks of weights and of biases, and what the rule reads."""
        steps = np.arange(self._clock.steps, self._clock.steps + ROWS)
        lr = np.array([self._rate(int(i)) for i in steps]) if callable(self.lr) else np.full(ROWS, self.lr)
        self._rates_of = Watch([self.lr]) if callable(self.lr) else None
        rows = np.zeros((ROWS, 2 * SCALE_PAIRS))
        for column, values in enumerate((-lr, 1.0 - lr * self.weight_decay, -lr, 1.0, *self.numbers(lr, steps + 1))):
            rows[:, column] = values
        rows[:, -1] = 0.0 if self.ema is None else 1.0 - self.ema
        self._rows = rows
        for (device, dtype), (table, cell) in self._tables.items():
            device.upload(np.ascontiguousarray(rows, dtype), table)
            device.upload(np.full(1, -1, np.int32), cell)  # it moves on before it is read

    def rows_left(self) -> int:
        """Steps until the table runs out."""
        return self._clock.left or ROWS

    def reserve(self, times: int) -> None:
        """On the host, before something is recorded that takes so many steps: have as many rows left in the table."""
        if self._rates_of is not None and self._rates_of.changed():
            self._clock.left = 0
        if self._clock.left < times:
            if times > ROWS:
                raise ConfigurationError(f"{times} steps of one optimizer in one recorded step; there may be {ROWS}")
            self._fill_table()
            self._clock.row, self._clock.left = -1, ROWS

    def prepare(self, times: int = 1) -> None:
        """On the host, before `times` steps: move on in the table, and fill it where it runs out."""
        if self._put_aside is not None:
            raise ClnnError("a step within optimizer.averaged() would train the averages: leave the with block first")
        self.reserve(times)
        clock = self._clock
        clock.row += times
        clock.left -= times
        clock.steps += times

    def cells(self) -> list[Block]:
        """The counters of rows that the parameters' rates are read by."""
        return list(dict.fromkeys(self.table(store)[1] for store in self._stores))

    def table(self, p: Parameter | Store) -> tuple[Block, Block]:
        """The rates and the counter on a parameter's device."""
        key = (p.device, p.dtype)
        if key not in self._tables:
            table = p.device.memory.allocate(ROWS * 2 * SCALE_PAIRS * p.dtype.itemsize)
            self._tables[key] = (table, p.device.memory.allocate(4))
            self._clock.left = 0
        return self._tables[key]

    def scale(self, p: Parameter, pair: int) -> Scale:
        """The pair number `pair` of this step's row, on the device and on the host."""
        table, cell = self.table(p)
        return Scale(table, cell, pair, lambda: tuple(self._rows[self._clock.row, 2 * pair : 2 * pair + 2]))

    # -- parameters and what is kept of them --------------------------------------------------------------------------
    def attach(self, parameters: Sequence[Parameter]) -> None:
        """Take charge of `parameters`: they move into a flat store where they have none."""
        given = tuple(parameters)  # the same tuple, where it is one: steps know it by its identity
        if len(set(map(id, given))) < len(given):
            given = tuple(dict.fromkeys(given))  # a layer that two models share is stepped once
        if wrong := [p for p in given if not isinstance(p, Parameter)]:
            raise ConfigurationError(
                f"an optimizer takes a list of parameters, such as net.parameters(), and not {wrong[0]!r}"
            )
        wanted = [p for p in given if p.trainable]
        if not wanted:
            raise ConfigurationError("there is no trainable parameter to optimize; is the model built, and not frozen?")
        before, self._given = self._given, given
        if (
            self._runs is not None
            and self._loaded is None
            and len(wanted) == len(self.parameters)
            and all(a is b for a, b in zip(wanted, self.parameters))
            and all(self._places[p][0] is p.store for p in wanted)
        ):
            return
        known = set(map(id, self.parameters))
        for p in wanted:
            if p.uses and p.since < self._dropped and id(p) not in known:
                raise ClnnError(
                    f"optimizer.zero_grad() came when the optimizer did not know {p.name or 'a parameter'} yet, which still has "
                    "a gradient from before: call optimizer.zero_grad(net.parameters()) or net.zero_grad()"
                )
        loaded = self._fitting(self._loaded) if self._loaded is not None else None
        consolidate(wanted)
        stores = list(dict.fromkeys(p.store for p in wanted))
        if set(self._given).isdisjoint((*before, *self._places)) and set(stores).isdisjoint(self._stores):
            self._change_model(self._given)
        self.parameters, self._runs = wanted, None
        if stores != self._stores:  # of other devices and types the counters may be elsewhere
            self._stores, self._clock.left = stores, 0
        for store in stores:
            self.table(store)
        for p in wanted:
            place, self._places[p] = self._place(p), (p.store, p.position)
            self._elsewhere.pop(id(p), None)
            if place is not None and place[0] is not p.store:
                self._follow(p, *place)
        if loaded is not None:
            self._loaded, self._waiting = None, loaded
            self._clear()
        self._take_up()

    def _change_model(self, parameters: Sequence[Parameter]) -> None:
        """Another model begins, or goes on where it was left; that of the one before is kept as long as that model."""
        for p, place in self._places.items():
            forget = functools.partial(self._elsewhere.pop, id(p))
            self._elsewhere[id(p)] = weakref.ref(p, forget), *place
        if self._loaded is None:
            now = self.lr.state_dict() if isinstance(self.lr, Schedule) else None
            for store in (*self._stores, *(store for store, _ in self._places.values())):
                self._left[store] = self._clock.steps, self.epochs, self.lr, now, self._waiting
            if self._stores:
                self._clock.steps, self.epochs, schedule, self._waiting = self._left_with(parameters)
                if isinstance(self.lr, Schedule):
                    self.lr.load_state_dict(schedule)
        else:
            self._waiting = {}
        self._clock.left = 0
        self._places = {}

    def _place(self, p: Parameter) -> tuple[Store, int] | None:
        """Where what is kept of a parameter lies, be it of this model or of one before."""
        found = self._elsewhere.get(id(p))
        return found[1:] if found is not None and found[0]() is p else self._places.get(p)

    def _left_with(self, parameters: Sequence[Parameter]) -> tuple[int, int, Any, dict[Any, Any]]:
        """Where the optimizer was with another model: steps, epochs, its schedule's state, and what waits for what is frozen."""
        stores = [store for p in parameters for store in (p.store, (self._place(p) or (None,))[0]) if store is not None]
        unknown: Any = (0, 0, None, None, {})
        steps, epochs, lr, state, waiting = next(
            (self._left[store] for store in stores if store in self._left), unknown
        )
        return steps, epochs, state if lr is self.lr else getattr(self, "_first_rate", None), waiting

    def _follow(self, p: Parameter, store: Store, position: int) -> None:
        """What is kept of a parameter goes where that has moved, by way of the host."""
        if store.velocity_of is self:
            self.separate(store)
        for name, block in self._kept.get(store, {}).items():
            array = store.device.read(block.view(position, p.nbytes), np.empty(p.shape, p.dtype))
            p.device.upload(array, self.kept(p.store, name).view(p.position, p.nbytes))

    @property
    def given(self) -> tuple[Parameter, ...]:
        """The parameters in its charge, those that are frozen for now as well."""
        return self._given

    @property
    def plain(self) -> bool:
        """Whether all gradients are wanted in their own buffer: to be read, or clipped."""
        return self.keep_gradients or self.clip_norm is not None or self.clip_value is not None

    def kept(self, store: Store, name: str) -> Block:
        """What is kept of a store by that name, one of `states`, zero at first, or "average", which begins as the weights."""
        kept = self._kept.setdefault(store, {})
        if name not in kept:
            store.device.ends_audit("an optimizer began to keep something of the parameters")
            kept[name] = store.device.memory.allocate(store.nbytes, pooled=False)
            self._reset(store, name)
        return kept[name]

    def _reset(self, store: Store, name: str) -> None:
        if name == "average":
            store.device.copy(store.block, self._kept[store][name], store.nbytes)
        else:
            store.device.fill_zero(self._kept[store][name])

    def state(self, store: Store) -> list[Block]:
        """The buffers that the rule keeps for a store."""
        return [self.kept(store, name) for name in self.states]

    def average(self, store: Store) -> Block:
        """The moving average of a store's weights."""
        return self.kept(store, "average")

    @contextlib.contextmanager
    def averaged(self, parameters: Sequence[Parameter] | None = None) -> Iterator[None]:
        """`with optimizer.averaged():` puts the averages of the weights (`ema=`) in their place: to evaluate, or to save.

        Afterwards, also after an exception, the weights are back. Give the parameters where no step was taken yet, as
        after `clnn.load`: `net.optimizer.averaged(net.parameters())`.
        """
        if self.ema is None:
            raise ConfigurationError(
                "averaged() needs an optimizer that keeps averages: give it ema=, such as ema=0.999"
            )
        if parameters is not None or self._given:
            self.attach(self._given if parameters is None else list(parameters))
        if not self.parameters:
            raise ConfigurationError(
                "averaged() needs the parameters where no step was taken: averaged(net.parameters())"
            )
        if self._put_aside is not None:
            raise ClnnError("averaged() within averaged(): the averages are in place already")
        swaps = []
        for run in runs(self.parameters):
            w, average = run.part(run.store.block), run.part(self.average(run.store))
            swaps.append((run.store.device, w.memory.allocate(w.nbytes, pooled=False), w, average))
        with self._alone():
            for device, aside, w, average in swaps:
                device.copy(w, aside, w.nbytes)
                device.copy(average, w, w.nbytes)
        self._put_aside = [(device, aside, w) for device, aside, w, _ in swaps]
        try:
            yield
        finally:
            with self._alone():
                for device, aside, w in self._put_aside:
                    device.copy(aside, w, w.nbytes)
            self._put_aside = None

    def fuse(self) -> None:
        """Before `descend`: velocities move to where it expects them."""
        self.look()
        if self.fuses:
            for store in self._stores:
                if store.velocity_of is not self:
                    self._fuse(store)

    def look(self) -> None:
        """Take charge of the parameters that are trainable now, with their factors of the rate as they are now."""
        if self._seen != structure_version() or self._loaded is not None:
            self._runs = None
            if self._given:
                self.attach(self._given)
            self._seen = structure_version()

    def take_back(self, times: int = 1, done: bool = False) -> None:
        """`times` steps that were prepared broke off, and do not count. `done`: but for those by which the device has moved
        on in the table."""
        clock, taken = self._clock, 0
        if done and self._stores:
            with contextlib.suppress(ClnnError):  # the device may be what failed
                at = self._stores[0].device.read(self.cells()[0], np.empty(1, np.int32))
                taken = min(max(0, int(at[0]) - (clock.row - times)), times)
        clock.left = 0
        clock.steps -= times - taken

    def abandon(self) -> None:
        """`descend` broke off half-way: velocities that may be half written are zeroed."""
        for store in self._stores:
            if store.velocity_of is self:
                store.device.fill_zero(store.gradients())
        for p in self.parameters:
            p.zero_grad()

    def _fuse(self, store: Store) -> None:
        """Velocities move into the gradients' buffer, where no gradient is left."""
        if store.velocity_of is not None:
            store.velocity_of.separate(store)
        self._not_recorded(store)
        velocity = self._kept.get(store, {}).get("velocity")  # it stays: recordings may have it
        if velocity is not None:
            store.device.copy(velocity, store.gradients(), store.nbytes)
        else:
            store.device.fill_zero(store.gradients())
        for p in self.parameters:
            if p.store is store and p._last:
                p.received(0, "velocity")
        store.velocity_of = self

    def separate(self, store: Store) -> None:
        """Velocities move out of the gradients' buffer, because gradients are wanted there."""
        self._not_recorded(store)
        store.device.copy(store.gradients(), self.kept(store, "velocity"), store.nbytes)
        store.velocity_of = None

    def _not_recorded(self, store: Store) -> None:
        if store.device.recorder is not None:
            store.device.recorder.abort("gradients were wanted where an optimizer has its velocities, or the reverse")

    # -- the step -----------------------------------------------------------------------------------------------------
    def step(self, parameters: Sequence[Parameter] | None = None) -> None:
        """Update the parameters by the gradients that `backward()` left.

        Give the parameters at the first call (`net.parameters()`); later it may be left out.
        """
        if parameters is not None:
            self.attach(list(parameters))
        elif self._given and not self.parameters:  # it is a copy
            self.attach(self._given)
        self.look()
        if not self.parameters:
            raise ConfigurationError("step() needs the parameters at its first call: optimizer.step(net.parameters())")
        if not any(p.uses for p in self.parameters):
            raise ClnnError("optimizer.step() without a gradient: call loss.backward() first")
        with self._counted():
            self._apply()

    def descend(self, start: Node) -> None:
        """`backward()` from a loss and `step()`, with nothing between them: gradients are spent as they come. Only here do
        they go anywhere else than into their buffer, since whoever may still drop or read them comes too late."""
        with self._counted():
            if not self.plain and not any(p.uses for p in self.parameters):
                for p in self.parameters:
                    p.sink = self.sink(p, p.forward_uses == 1)
            try:
                backpropagate(start, None)
                self._apply()
            finally:
                for p in self.parameters:
                    p.sink = None

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """A step, with the table's next row as its rates; who runs it may have seen to that already."""
        context = self._stores[0].device.step
        recorded = next((d for d in devices() if d.step is not None), None)
        if recorded is not None and any(store.device.step is None for store in self._stores):
            raise ConfigurationError(
                f"the @clnn.step that runs is one on {recorded!r}, and parameters of this optimizer are on "
                f"{' and '.join(repr(d) for d in dict.fromkeys(s.device for s in self._stores))}, whose work it would not "
                "record: give the parameters of each device an optimizer and a step of their own, with tensors on it as arguments"
            )
        if context is not None and self in context.prepared:
            self._stores[0].device.advance(context.take_cells())  # fit's loss has done that, along with its own work
            yield
            return
        self.prepare()
        try:
            for device, cell in dict.fromkeys((store.device, self.table(store)[1]) for store in self._stores):
                device.advance([(cell, 1)])
            if context is not None:
                context.stepped.append((self, self.given))
            yield
        except BaseException:
            self.take_back()
            raise

    def _apply(self) -> None:
        """Update the parameters by the gradients that are there."""
        self._settle_unused()
        clip = self._clip_factor() if self.clip_norm is not None else None
        for run in self._plan():
            self._update(run, clip)
        for p in self.parameters:
            if p.max_norm is not None:
                self._limit(p, p.max_norm)
            p._note()
            p.spent()
            p.version += 1

    def zero_grad(self, parameters: Sequence[Parameter] | None = None) -> None:
        """Forget gradients received so far. Never needed after `step()`, which does so itself.

        Before the first step an optimizer knows no parameters: give them, `zero_grad(net.parameters())`.
        """
        for p in self.parameters if parameters is None else parameters:
            p.zero_grad()
        if parameters is None:
            self._dropped = moment()

    def _settle_unused(self) -> None:
        """A parameter that this loss did not reach has the gradient 0."""
        for p in self.parameters:
            if p.uses:
                continue
            scale, kind = p.sink or (None, "plain")
            if scale is None and p.store is not None:
                p.store.reclaim()
            if scale is None:
                p.device.fill_zero(p.gradient_block())
            else:  # w = -lr 0 + (1 - lr decay) w, or v = 0 + momentum v
                scale_add(fill(empty_like(p), 0.0), p.block if kind == "straight" else p.gradient_block(), scale)

    def _plan(self) -> list[Run]:
        loose = [p for p in self.parameters if not (p.sink and p.sink[1] == "straight")]
        if len(loose) < len(self.parameters):
            return runs(loose)
        if self._runs is None:
            self._runs = runs(self.parameters)
        return self._runs

    def _clip_factor(self) -> Block:
        """Where min(1, clip_norm / norm of all gradients) lies: sums of squares by group, then one group adds them up."""
        plan = self._plan()
        first = plan[0].store
        device, dtype = first.device, first.dtype
        if any((run.store.device, run.store.dtype) != (device, dtype) for run in plan):
            raise ConfigurationError(
                "clip_norm needs all parameters on one device and in one type; give each device an optimizer of its own, "
                "or use clip_value"
            )
        clipped = {} if self.clip_value is None else {"CLIP_VALUE": 1}
        values, real = () if self.clip_value is None else (self.clip_value,), device.real(dtype)
        whole = Grid.over(device, dtype, sums=True)
        grid = whole.fitting(device, "squares", dtype, SQUARES=1, **clipped)
        counts = [grid.groups(run.elements) for run in plan]
        partial, factor = device.allocate(2 * sum(counts) * dtype.itemsize), device.allocate(dtype.itemsize)
        for index, run in enumerate(plan):
            device.launch(
                "optimizer", "squares", (counts[index] * grid.width,), run.elements // grid.vector, sum(counts[:index]),
                run.part(run.store.gradients()), partial, *values, local=(grid.width,), real=real, SQUARES=1, **grid.defines(),
                **clipped,
            )  # fmt: skip
        grid = whole.fitting(device, "clip_factor", dtype, SCALING=1)
        device.launch(
            "optimizer", "clip_factor", (grid.width,), sum(counts), partial, factor, float(self.clip_norm or 0.0),
            local=(grid.width,), real=real, SCALING=1, **grid.defines(),
        )  # fmt: skip
        return factor

    def _gradient(self, run: Run, clip: Block | None) -> tuple[dict[str, Any], list[Any]]:
        """What a kernel of this run needs to know of penalties and clipping: defines, and arguments in their order."""
        defines: dict[str, Any] = {}
        arguments: list[Any] = []
        decay = 0.0 if self.decoupled else self.weight_decay
        if decay or self.l1:
            defines["PENALTY"] = 1
            arguments += [float(decay), float(self.l1)]
        if self.clip_value is not None:
            defines["CLIP_VALUE"] = 1
            arguments.append(self.clip_value)
        if clip is not None:
            defines["CLIP_NORM"] = 1
            arguments.append(clip)
        return defines, arguments

    def _common(self, run: Run) -> dict[str, Any]:
        """Defines of every kernel that changes the weights of this run."""
        factor = {} if run.rate_factor == 1.0 else {"FACTOR": f"((real){run.rate_factor!r})"}
        return {**factor, **({} if self.ema is None else {"EMA": 1})}

    def _update(self, run: Run, clip: Block | None = None) -> None:
        """Launch the rule over a run."""
        store = run.store
        device = store.device
        fused = store.velocity_of is self
        defines, arguments = self._gradient(run, clip)
        states = () if fused else self.states
        defines |= {"RULE": "fused_momentum" if fused else self.rule, "STATES": len(states), **self._common(run)}
        if self.weight_decay and self.decoupled:
            defines["DECOUPLED"] = 1
        if fused and "PENALTY" in defines:
            defines["FUSED"] = 1
        grid = Grid.over(device, store.dtype).fitting(device, "update", store.dtype, **defines)
        kept = [run.part(block) for block in self.state(store)] if states else []
        average = [] if self.ema is None else [run.part(self.average(store))]
        per = grid.vector * store.dtype.itemsize  # bytes of a vector
        device.launch(
            "optimizer", "update", (grid.groups(run.elements) * grid.width,), run.elements // grid.vector, run.decays // per,
            run.part(store.gradients()), run.part(store.block), *self.table(store), *kept, *arguments, *average,
            local=(grid.width,), real=device.real(store.dtype), **grid.defines(), **defines,
        )  # fmt: skip

    def _limit(self, p: Parameter, most: float) -> None:
        """Launch max-norm: each column of p, the weights into one unit, is scaled to length `most` if it is longer."""
        device, rows, columns = p.device, math.prod(p.shape[:-1]), p.shape[-1]
        device.check_turns(2 * rows, f"max_norm over {rows:,} rows")
        defines: dict[str, Any] = {"MAX_NORM": 1, **({} if self.ema is None else {"EMA": 1})}
        width, across, share = _strips(device, rows)
        width = device.fitting(width, "optimizer", "max_norm", device.real(p.dtype), ACROSS=across, **defines)
        if not device.long_loops:
            share = across = min(across, width)
        average = () if self.ema is None else (*self.table(p), self.average(p.store).view(p.position, p.nbytes))
        device.launch(
            "optimizer", "max_norm", (-(-columns // share) * width,), rows, columns, share, p.block, most, *average,
            local=(width,), real=device.real(p.dtype), WIDTH=width, ACROSS=across, **defines,
        )  # fmt: skip

    # -- saving -------------------------------------------------------------------------------------------------------
    def state_dict(self, named: Iterable[tuple[str, Parameter]] | None = None) -> dict[str, Any]:
        """Step and epoch counts, and what is kept of the parameters: what an exact resume needs.

        "arrays" are "<i>.<k>" for parameter number i of "names" and buffer number k of "states", or "<i>.average". `named`:
        the parameters with the names to use, as `net.named_parameters()` gives them; by default those that it trains now.
        """
        with self._alone():
            return self._state_dict(named)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Within it no other thread works on the devices of the parameters."""
        with contextlib.ExitStack() as stack:
            for one in sorted({s.device for s in self._stores}, key=lambda d: (d.platform_index, d.device_index)):
                stack.enter_context(one.lock)
            yield

    def _state_dict(self, named: Iterable[tuple[str, Parameter]] | None) -> dict[str, Any]:
        theirs = {p: name for name, p in named or ()}
        given, listed = self._given, list(dict.fromkeys((*self.parameters, *self._given)))
        steps, epochs, waiting = self._clock.steps, self.epochs, self._waiting
        schedule = self.lr.state_dict() if isinstance(self.lr, Schedule) else None
        if theirs and given and not any(p in theirs for p in given):  # another model than that of the last step
            given = tuple(theirs)
            listed, (steps, epochs, left, waiting) = list(theirs), self._left_with(given)
            schedule = schedule and left
        elif self._loaded is not None:  # no parameters were attached since
            found = {**self._loaded, **({"schedule": schedule} if schedule else {})}
            return _renamed(found, _names(given or tuple(theirs)), theirs) if theirs and "names" in found else found
        elif theirs:  # without those of layers that are gone
            listed = [p for p in listed if p in theirs]
        own = _names(given)
        called = own | theirs
        arrays: dict[str, np.ndarray] = {}
        for index, p in enumerate(listed):
            store, position = self._place(p) or (None, 0)
            kept: dict[str, Block] = dict(self._kept.get(store, {})) if store is not None else {}
            if store is not None and store.velocity_of is self:
                kept["velocity"] = store.gradients()
            for name in self._wanted():
                key = f"{index}.{self.states.index(name) if name in self.states else name}"
                if (own[p], name) in waiting:
                    arrays[key] = waiting[own[p], name]
                elif name in kept:
                    view = kept[name].view(position, p.nbytes)
                    arrays[key] = p.device.read(view, np.empty(p.shape, p.dtype))
        names = {"names": [called[p] for p in listed], "states": list(self.states), "rule": type(self).__name__}
        found = {"steps": steps, "epochs": epochs, **names, "arrays": arrays}
        return found | ({"schedule": schedule} if schedule else {})

    def _wanted(self) -> tuple[str, ...]:
        """The names of all that is kept of a parameter."""
        return self.states if self.ema is None else (*self.states, "average")

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle holds: settings, counts, and buffers as arrays; the rest is made again where it is needed."""
        made_again = {name for name in vars(Optimizer(0.0)) if name.startswith("_") and name != "_fit"} | {"parameters"}
        settings = {name: value for name, value in vars(self).items() if name not in made_again}
        return {"settings": settings, "given": self._given, "state": self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(vars(Optimizer(0.0)) | state["settings"] | {"_given": tuple(state["given"])})
        self.load_state_dict(state["state"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`'s counts and buffers; the next parameters to be attached take these up, by name.

        CheckpointError then if they are others, or the state is another rule's.
        """
        if state.get("rule", type(self).__name__) != type(self).__name__:
            raise CheckpointError(f"this is the state of an optimizer {state['rule']}, not of {type(self).__name__}")
        for store in self._stores:
            self._left[store] = self.steps, self.epochs, None, None, {}
        self._clock.steps, self._clock.left, self.epochs = int(state["steps"]), 0, int(state["epochs"])
        if isinstance(self.lr, Schedule) and "schedule" in state:
            self.lr.load_state_dict(state["schedule"])
        known = ("steps", "epochs", "names", "states", "rule", "arrays", "schedule")
        self._loaded = {"states": list(self.states), **{key: state[key] for key in known if key in state}}

    def _fitting(self, state: dict[str, Any]) -> dict[tuple[str, str], np.ndarray]:
        """The arrays of a state by names of parameters and of buffers, if it is one of the parameters that were given."""
        arrays, names = state["arrays"], _names(self._given)
        saved = state.get("names")
        if saved is None:  # of an earlier version, which kept what was trainable, in order
            saved = [name for p, name in names.items() if p.trainable]
            count = len({key.partition(".")[0] for key in arrays})
            if count not in (0, len(saved)):
                raise CheckpointError(
                    f"the optimizer's state is that of {count} parameters, and {len(saved)} were given"
                )
        elif saved and set(saved) != set(names.values()):  # without parameters it has counts, and nothing else
            there, here = set(saved), set(names.values())
            missing, extra = (", ".join(sorted(some)[:9]) or "none" for some in (there - here, here - there))
            raise CheckpointError(
                f"the optimizer's state is that of {len(saved)} parameters, and {len(names)} were given: only the state has "
                f"{missing}; only the parameters have {extra}. Give net.parameters(), those that are frozen as well, or a new "
                "optimizer"
            )
        shapes = {name: p.shape for p, name in names.items()}
        found = {}
        for key, array in arrays.items():
            index, _, which = key.partition(".")
            name = saved[int(index)]
            if shapes[name] != array.shape:
                raise ConfigurationError(
                    f"the optimizer's state {key} has the shape {array.shape}, its parameter {name} {shapes[name]}"
                )
            found[name, state["states"][int(which)] if which.isdigit() else which] = array
        return found

    def _clear(self) -> None:
        """Nothing is kept of the parameters but what is loaded next; buffers stay, since recordings have them."""
        for store in self._stores:
            if store.velocity_of is self:
                self.separate(store)
            for name in self._kept.get(store, {}):
                self._reset(store, name)

    def _take_up(self) -> None:
        """Bring what was loaded to the parameters that are trained now."""
        names = _names(self._given)
        for p in self.parameters:
            for name in self._wanted():
                array = self._waiting.pop((names[p], name), None)
                if array is not None:
                    if p.store.velocity_of is self:
                        self.separate(p.store)
                    view = self.kept(p.store, name).view(p.position, p.nbytes)
                    p.device.upload(np.ascontiguousarray(array, p.dtype), view)


def _renamed(state: dict[str, Any], own: dict[Parameter, str], theirs: dict[Parameter, str]) -> dict[str, Any]:
    """A state that is by the parameters' `own` names by `their` names, without those that are not among them."""
    new = {name: theirs[p] for p, name in own.items() if p in theirs}
    stays = [index for index, name in enumerate(state["names"]) if name in new]
    at = {str(index): str(i) for i, index in enumerate(stays)}
    parts = [(key.partition("."), array) for key, array in state["arrays"].items()]
    arrays = {f"{at[index]}.{which}": array for (index, _, which), array in parts if index in at}
    return {**state, "names": [new[state["names"][index]] for index in stays], "arrays": arrays}


def _names(parameters: Sequence[Parameter]) -> dict[Parameter, str]:
    """The parameters' names, or their numbers where these are not unique."""
    names = [p.name for p in parameters]
    unique = len(set(names)) == len(names) and "" not in names
    return {p: p.name if unique else str(i) for i, p in enumerate(parameters)}
