"""What all optimizers share: one launch over the flat store of parameters; the gradient's own GEMM does part of it where it can.

A rule is one expression in kernels/optimizer.cl and one small class in rules.py. Everything that moves from step to step
(learning rates, Adam's corrections) stands in a table on the device (rates.py), so a schedule costs nothing in a recorded
step, and changing `lr` never makes a new recording. What is kept of parameters is in kept.py, clipping and max-norm in limits.py.

The life of an optimizer, in the order in which `fit` (train/loop.py) and recorded steps (step.py) call it:

    attach(parameters)       they get a flat store, what is kept of them follows, and their device a table of rates
    begin_fit(...)           schedules hear how long the fit is
    claim(parameters)        before a step, run or replayed: those that are trainable now; velocities where `descend` wants them
    reserve(times)           rows of the table for a step that is recorded
    with Taking(...):        the host prepares some steps; what breaks off does not count
        descend(loss)        in fit: the backward pass, which may spend gradients as they come, and the update
        step()               or in a step of one's own, after backward()
    observe(loss)            an epoch is over: schedules that wait for that
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..checks import arguments, as_argument, in_range
from ..errors import CheckpointError, ClnnError, ConfigurationError
from ..gemm import SCALE_PAIRS, Scale
from ..ops.array import empty_like, fill
from ..ops.elementwise import scale_add
from ..parameters import Run, Store, consolidate, runs
from ..registry import config_from
from ..runtime.devices.choice import devices
from ..runtime.memory import Block
from ..runtime.watching.watch import Watched, rebinds, structure_changed, structure_version
from ..schedules import Schedule, find_rate, is_known
from ..schedules import describe as describe_rate
from ..tape import Node, backpropagate, moment
from ..tensor import AVERAGED, Parameter, Place, refuse_averaged
from .kept import Kept, fitting, names_of, renamed
from .limits import Grid, clip_factor, limit_columns
from .rates import ROWS, Rate, Rates

SETTABLE = ("lr", "epochs", "passed", "parameters")  # public attributes that no recording froze


class _Left(NamedTuple):
    """Where an optimizer was with a model when it went on to another."""

    steps: int = 0
    epochs: int = 0
    lr: Any = None
    schedule: dict[str, Any] | None = None  # the state of its schedule
    waiting: dict[Any, np.ndarray] = {}  # what was loaded for parameters that are frozen
    passed: tuple[int, ...] | None = None


class Taking:
    """Takes `times` rows of rates on entry for each optimizer in `descending`, and as many as `others` says for those there. On
    an error, rows of steps that did not run are given back, and velocities that may be half written are zeroed."""

    __slots__ = ("descending", "steps", "context")

    def __init__(
        self, descending: Sequence[Optimizer], times: int = 1, others: Mapping[Optimizer, tuple[Any, int]] | None = None
    ) -> None:
        self.descending, self.steps = descending, dict.fromkeys(descending, times)
        for optimizer, (_, steps) in (others or {}).items():
            self.steps[optimizer] = steps
        self.context: Any = None  # of Python that runs; of a replay the counter on the device says how many were taken

    def __enter__(self) -> Taking:
        for optimizer, steps in self.steps.items():
            optimizer.prepare(steps)
        return self

    def __exit__(self, error: Any, *_: Any) -> None:
        if error is None or (self.context is not None and self.context.whole):
            return
        for optimizer, steps in self.steps.items():
            optimizer.take_back(steps, self.context is None)
        if self.context is None or self.context.received:  # else it broke off in the forward pass
            for optimizer in self.descending:
                optimizer.abandon()


_stepped: weakref.WeakKeyDictionary[Store, weakref.ref[Optimizer]] = weakref.WeakKeyDictionary()


def stepping(parameters: Sequence[Parameter]) -> list[Optimizer]:
    """The optimizers that stepped these parameters last, in loops of a user's own, as far as they still exist."""
    found = (_stepped[p.store]() for p in parameters if p.store in _stepped)
    return list(dict.fromkeys(one for one in found if one is not None))


class Optimizer(Watched):
    """What all optimizers share: the table of rates, where gradients go, and the launch.

    `lr` is a number, a schedule (clnn.schedules), a list of pairs (epochs, rate), or a function of the step's number from
    0; of one of your own that is not registered (`clnn.register`) a file keeps only the rate that it had. `weight_decay` and
    `l1` reach weights only, not biases. `clip_value` limits each element of the gradient to [-clip_value, clip_value];
    `clip_norm` then scales all gradients together by min(1, clip_norm / (norm + 1e-6)) (Pascanu et al. 2013); neither hides
    NaN or infinity.
    `ema` keeps a moving average of the weights, average = ema average + (1 - ema) w after each step, that starts at the
    first weights; see `averaged`. What a rule does by the number of the step, such as Adam's corrections, goes by the steps that
    each parameter has taken. `keep_gradients=True` leaves gradients readable as `parameter.grad` also after fit, which else may
    spend them as they come (as they were before clipping). Where `optimizer.world` is set (clnn.distributed.init()), `step` first
    takes the mean of the gradients over all ranks, whose losses are means over as many samples; see `World.mean`.
    """

    tells = True
    unwatched = frozenset(SETTABLE)  # rates are no part of a recording
    rule = ""  # the function in kernels/optimizer.cl
    states: tuple[str, ...] = ()  # the names of the buffers of the parameters' size that it keeps
    decoupled = False
    shares = False  # whether velocities may be in the gradients' buffer
    world: Any = None  # of clnn.distributed: each step averages gradients over its ranks

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
        self._begin()
        self._fit: tuple[int, int, int, int] | None = None  # what the last fit told schedules
        self.lr = lr
        self.weight_decay = in_range("weight_decay", weight_decay, 0.0, math.inf)
        self.l1 = in_range("l1", l1, 0.0, math.inf)
        self.keep_gradients = keep_gradients
        self.clip_norm = None if clip_norm is None else in_range("clip_norm", clip_norm, 0.0, math.inf, "()")
        self.clip_value = None if clip_value is None else in_range("clip_value", clip_value, 0.0, math.inf, "()")
        self.ema = None if ema is None else in_range("ema", ema, 0.0, 1.0)
        self.epochs = 0  # trained so far by fit, which orders its samples by this number
        self.passed: tuple[int, ...] | None = None  # where `Batches` are; None: a pass for each epoch
        self._ready = True

    def _begin(self) -> None:
        """What an optimizer has besides its settings and counts, as it is before the first step; a copy has its own."""
        self._rates, self._kept = Rates(), Kept()
        self.parameters: list[Parameter] = []
        self._given: tuple[Parameter, ...] = ()  # those, and the frozen ones
        self._seen = -1  # the structure under which they were chosen
        self._runs: list[Run] | None = None
        self._left: weakref.WeakKeyDictionary[Store, _Left] = weakref.WeakKeyDictionary()  # with other models
        self._loaded: dict[str, Any] | None = None  # a state that the next parameters take up
        self._since: dict[Parameter, int] = {}  # how many steps each of the parameters has missed
        self._slots: dict[Parameter, int] = {}  # of the tables of rates
        self._dropped = 0  # when zero_grad was last called, in the order of the tape

    def __setattr__(self, name: str, value: Any) -> None:
        kind: Any = type(self)  # one of your own may have any settings
        if not name.startswith("_") and name not in SETTABLE and kind.__module__.startswith(__package__):
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
            self._rates.left = 0  # the table is made anew before the next step
        elif not name.startswith("_") and name not in SETTABLE and getattr(self, "_ready", False):
            if rebinds(self, name, value):
                structure_changed()
            self._set_within_step(name, value)
            object.__setattr__(self, "_runs", None)
            self._rates.left = 0  # momentum and betas stand in the table as well
        object.__setattr__(self, name, value)

    def _set_within_step(self, name: str, value: Any) -> None:
        """What the table of rates is made of changes where launches are recorded, which do not show it."""
        stores = self._kept.stores if self._ready and rebinds(self, name, value) else ()
        for device in {store.device for store in stores}:
            if device.recorder is not None:
                device.recorder.abort(
                    f"the optimizer's {name} is set inside the step, and a replay sets nothing: set it outside, such as in a "
                    "callback, or give lr a schedule"
                )

    @property
    def steps(self) -> int:
        """Steps taken so far."""
        self._read_within_step("steps")
        return self._rates.steps

    def _read_within_step(self, what: str) -> None:
        """This is read, also by Python that is recorded, and no launch shows it."""
        for recorder in (store.device.recorder for store in self._kept.stores):
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
        return config_from(self) | {"lr": describe_rate(lr) if is_known(lr) else self._rate(self._rates.steps)}

    # -- rates --------------------------------------------------------------------------------------------------------
    def rate(self, step: int) -> float:
        """The learning rate of step 0, 1, ...; a class of your own may have another."""
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
            self._rates.left = 0

    def end_epoch(self, passed: tuple[int, ...] | None = None) -> None:
        """fit has trained an epoch; `passed`: how many batches of `Batches` are over, how many a pass has, and their seed."""
        self.epochs, self.passed = self.epochs + 1, passed

    def observe(self, loss: float) -> None:
        """An epoch is over, with this loss: what `ReduceOnPlateau` waits for. fit says it by itself."""
        moves = isinstance(self.lr, Schedule) and self.lr.observe(loss)
        if moves or any(not isinstance(one, Schedule) for one in self._moving()):
            self._rates.left = 0  # a function of one's own may read what nobody sees change

    def _moving(self) -> list[Any]:
        """What the table of rates is made by, besides clnn's own functions: a schedule or function, methods of a user's class."""
        own = [one for one in (type(self).rate, type(self).numbers) if not one.__module__.startswith("clnn.")]
        return [self.lr, *own] if callable(self.lr) else own

    def _columns(self, steps: np.ndarray, since: int) -> Sequence[Any]:
        """The numbers of these steps: pairs for sinks of weights and of biases, what the rule reads, and last the average's; for
        parameters that have missed so many steps."""
        if (own := type(self).rate is not Optimizer.rate) or callable(self.lr):
            rate = self.rate if own else self._rate
            lr = np.array([in_range("rate(step)", rate(int(i)), 0.0, math.inf) for i in steps])
        else:
            lr = np.full(len(steps), self.lr)
        found = [-lr, 1.0 - lr * self.weight_decay, -lr, 1.0, *self.numbers(lr, np.maximum(1, steps + 1 - since))]
        return [*found, *[0.0] * (2 * SCALE_PAIRS - 1 - len(found)), 0.0 if self.ema is None else 1.0 - self.ema]

    def rows_left(self) -> int:
        """Steps until the table of rates runs out."""
        return self._rates.left or self._rates.rows_left()

    def reserve(self, times: int) -> None:
        """On the host, before something is recorded that takes so many steps: have as many rows left in the table."""
        self._rates.reserve(times, self._moving(), self._columns)

    def prepare(self, times: int = 1) -> None:
        """On the host, before `times` steps: move on in the table, and fill it where it runs out."""
        refuse_averaged(self.parameters, "a step")
        rates = self._rates
        # only where needed: a call is dear beside a replay of a few us
        if rates.left < times or rates.read is not None:
            self.reserve(times)
        rates.row += times
        rates.left -= times
        rates.steps += times

    def take_back(self, times: int = 1, replayed: bool = False) -> None:
        """`times` steps that were prepared broke off, and do not count; of a replay those do that the device has taken."""
        self._rates.take_back(times, self.cells()[0] if replayed and self._kept.stores else None)

    def cells(self) -> list[Block]:
        """The counters of rows that the parameters' rates are read by."""
        return list(dict.fromkeys(self._rates.on(store)[1] for store in self._kept.stores))

    # -- parameters ---------------------------------------------------------------------------------------------------
    @property
    def given(self) -> tuple[Parameter, ...]:
        """The parameters in its charge, those that are frozen for now as well."""
        return self._given

    @property
    def plain(self) -> bool:
        """Whether all gradients are wanted in their own buffer: to be read, or clipped."""
        return (
            self.keep_gradients or self.clip_norm is not None or self.clip_value is not None or self._ranks is not None
        )

    @property
    def _ranks(self) -> Any:
        """The world, if others are in it."""
        return self.world if self.world is not None and self.world.size > 1 else None

    def attach(self, parameters: Sequence[Parameter]) -> None:
        """Take charge of `parameters`: they move into a flat store where they have none."""
        if not self.__dict__.get("_ready"):
            raise ConfigurationError(f"{type(self).__name__}.__init__ does not call super().__init__(lr), and has to")
        given = tuple(parameters)  # the same tuple, where it is one: steps know it by its identity
        if len(set(map(id, given))) < len(given):
            given = tuple(dict.fromkeys(given))  # a layer that two models share is stepped once
        if wrong := [p for p in given if not isinstance(p, Parameter)]:
            raise ConfigurationError(
                f"an optimizer takes a list of parameters, such as net.parameters(), and not {wrong[0]!r}"
            )
        wanted = [p for p in given if p.trainable]
        if not wanted:
            raise ConfigurationError("no trainable parameter: not built, frozen, or in no attribute of a layer")
        loaded = None if self._loaded is None else fitting(self._loaded, given, self._given)
        before, self._given = self._given, given
        if (
            self._runs is not None
            and self._loaded is None
            and [*map(id, wanted)] == [*map(id, self.parameters)]
            and all(self._kept.places[p][0] is p.store for p in wanted)
        ):
            return
        known = set(map(id, self.parameters))
        for p in wanted:
            if p.uses and p.since < self._dropped and id(p) not in known:
                raise ClnnError(
                    f"optimizer.zero_grad() came when the optimizer did not know {p.name or 'a parameter'} yet, which still has "
                    "a gradient from before: call optimizer.zero_grad(net.parameters()) or net.zero_grad()"
                )
        consolidate(wanted)
        self._pause()
        kept, stores = self._kept, list(dict.fromkeys(p.store for p in wanted))
        if set(given).isdisjoint((*before, *kept.places)) and set(stores).isdisjoint(kept.stores):
            self._change_model()
        self.parameters, self._runs = wanted, None
        if stores != kept.stores:  # of other devices and types the counters may be elsewhere
            kept.stores, self._rates.left = stores, 0
        for store in stores:
            _stepped.pop(store, None)
        kept.follow(wanted)
        if loaded is not None:
            self._loaded, kept.waiting = None, loaded
            kept.clear()
        kept.take_up(wanted, self._wanted())
        self._since = {p: self._rates.steps - kept.waiting.pop((weakref.ref(p), "taken"), 0) for p in wanted}
        numbers = self.numbers(np.ones(ROWS), np.arange(1, ROWS + 1)) if any(self._since.values()) else ()
        since = sorted({*self._since.values()}) if any(map(np.ptp, numbers)) else [0]  # else it is all the same
        self._slots = {p: since.index(missed) for p, missed in self._since.items() if len(since) > 1}
        if since != self._rates.since:
            self._rates.since, self._rates.left = since, 0
        for store, slot in itertools.product(stores, range(len(since))):
            self._rates.on(store, slot)

    def _pause(self) -> None:
        """Note how many steps each parameter has taken: some may be frozen now, or those of another model."""
        for p, since in self._since.items():
            self._kept.waiting[weakref.ref(p), "taken"] = self._rates.steps - since
        self._since = {}

    def has_met(self, parameters: Sequence[Parameter]) -> bool:
        """Whether it has stepped, or was loaded with, a model of these parameters."""
        mine = set(map(id, self._given))
        return self._loaded is not None or any(id(p) in mine or p.store in self._left for p in parameters)

    def _change_model(self) -> None:
        """Another model begins, or goes on where it was left; that of the one before is kept as long as that model."""
        kept, rates = self._kept, self._rates
        first, stores = not kept.stores, kept.leave()
        if self._loaded is None:
            schedule = self.lr.state_dict() if isinstance(self.lr, Schedule) else None
            for store in stores:
                self._left[store] = _Left(rates.steps, self.epochs, self.lr, schedule, kept.waiting, self.passed)
            if not first:
                left = self._left_with(self._given)
                rates.steps, self.epochs, kept.waiting, self.passed = left.steps, left.epochs, left.waiting, left.passed
                if isinstance(self.lr, Schedule):
                    assert left.schedule is not None  # one that it has not met begins with its first state
                    self.lr.load_state_dict(left.schedule)
        else:
            kept.waiting = {}
        rates.left = 0

    def _left_with(self, parameters: Sequence[Parameter]) -> _Left:
        """Where the optimizer was with the model of these parameters; at its beginning where it has not met them."""
        stores = [one for p in parameters for one in (p.store, (self._kept.place(p) or (None,))[0]) if one is not None]
        left = next((self._left[store] for store in stores if store in self._left), _Left(waiting={}))
        return left if left.lr is self.lr else left._replace(schedule=getattr(self, "_first_rate", None))

    def claim(self, parameters: tuple[Parameter, ...] | None = None, descends: bool = False) -> None:
        """Before a step: have these parameters in its charge (by default those that are), as far as they are trainable now,
        with their factors of the rate as they are now; and velocities where `descend` wants them, if that follows."""
        if parameters is not None and parameters is not self._given:
            self.attach(parameters)
        if self._seen != structure_version() or self._loaded is not None:
            self._runs = None
            if self._given:
                self.attach(self._given)
            self._seen = structure_version()
        if descends and self.shares:
            for store in self._kept.stores:
                if store.velocity_of is not self._kept:
                    self._kept.share(store, self.parameters)

    def abandon(self) -> None:
        """`descend` broke off half-way: velocities that may be half written are zeroed."""
        for store in self._kept.stores:
            if store.velocity_of is self._kept:
                store.device.fill_zero(store.gradients())
        for p in self.parameters:
            p.zero_grad()

    def _wanted(self) -> tuple[str, ...]:
        """The names of all that is kept of a parameter."""
        return self.states if self.ema is None else (*self.states, "average")

    @contextlib.contextmanager
    def averaged(self, parameters: Sequence[Parameter] | None = None) -> Iterator[None]:
        """`with optimizer.averaged():` puts the averages of the weights (`ema=`) in their place: to evaluate, or to save.

        Afterwards, also after an exception, the weights are back; ClnnError for what would change them within. Give the
        parameters where no step was taken yet, as after `clnn.load`: `net.optimizer.averaged(net.parameters())`.
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
        mine = self.parameters
        refuse_averaged(mine, "averaged()")
        swaps = []
        for run in runs(mine):
            w, average = run.part(run.store.block), run.part(self._kept.block(run.store, "average"))
            swaps.append((run.store.device.memory.allocate(w.nbytes, pooled=False), w, average))
        with self._alone():
            for aside, w, average in swaps:
                w.device.copy(w, aside, w.nbytes)
                w.device.copy(average, w, w.nbytes)
            for p in mine:
                p.version += 1
        AVERAGED.update(mine)
        try:
            yield
        finally:
            with self._alone():
                for aside, w, _ in swaps:
                    w.device.copy(aside, w, w.nbytes)
                for p in mine:
                    p.version += 1
            AVERAGED.difference_update(mine)

    # -- the step -----------------------------------------------------------------------------------------------------
    def step(self, parameters: Sequence[Parameter] | None = None) -> None:
        """Update the parameters by the gradients that `backward()` left.

        Give the parameters at the first call (`net.parameters()`); later it may be left out.
        """
        if parameters is not None:
            self.attach(list(parameters))
        elif self._given and not self.parameters:  # it is a copy
            self.attach(self._given)
        self.claim()
        if not self.parameters:
            raise ConfigurationError("step() needs the parameters at its first call: optimizer.step(net.parameters())")
        if not any(p.uses for p in self.parameters):
            raise ClnnError("optimizer.step() without a gradient: call loss.backward() first")
        _stepped.update(dict.fromkeys(self._kept.stores, weakref.ref(self)))
        with self._counted():
            self._apply(mean=True)

    def descend(self, start: Node) -> None:
        """`backward()` from a loss and `step()`, with nothing between them: gradients are spent as they come. Only here do
        they go anywhere else than into their buffer, since whoever may still drop or read them comes too late. The loss is
        this rank's share of that of all ranks: their gradients are added."""
        with self._counted():
            if not self.plain and not any(p.uses for p in self.parameters):
                for p in self.parameters:
                    p.sink = self.sink(p, p.forward_uses == 1)
            try:
                backpropagate(start, None)
                self._apply(mean=False)
            finally:
                for p in self.parameters:  # also where it broke off, some may have changed
                    p.sink, p.version = None, p.version + 1

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """A step, with the table's next row as its rates, unless the caller has prepared it."""
        context = self._kept.stores[0].device.step
        recorded = next((d for d in devices() if d.step is not None), None)
        if recorded is not None and any(store.device.step is None for store in self._kept.stores):
            raise ConfigurationError(
                f"the @clnn.step that runs is one on {recorded!r}, and parameters of this optimizer are on "
                f"{' and '.join(repr(d) for d in dict.fromkeys(s.device for s in self._kept.stores))}, whose work it would not "
                "record: give the parameters of each device an optimizer and a step of their own, with tensors on it as arguments"
            )
        if context is not None:
            self._kept.stores[0].device.advance(context.take_cells())  # the counters that fit's loss has not moved on
            if self in context.prepared:
                yield
                return
        self.prepare()
        try:
            for device, cell in {(s.device, self._rates.on(s)[1]): None for s in self._kept.stores}:
                device.advance([(cell, 1)])
            if context is not None:
                context.stepped.append((self, self.given))
            yield
        except BaseException:
            self.take_back()
            raise

    def _apply(self, mean: bool) -> None:
        """Update the parameters by the gradients that are there, of several ranks by their `mean` or their sum."""
        self._settle_unused()
        if self._ranks is not None:
            self._ranks.combine(self.parameters, mean)
        plan = self._plan()
        clip = None if self.clip_norm is None else clip_factor(plan, self.clip_norm, self.clip_value)
        for update in [self._update(run, clip) for run in plan]:  # all memory is there before the first weight changes
            update()
        for p in self.parameters:
            if p.max_norm is not None:
                limit_columns(p, () if self.ema is None else (*self._rates.on(p), self._kept.part(p, "average")))
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
            return runs(loose, self._slots)
        self._runs = self._runs or runs(self.parameters, self._slots)
        return self._runs

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

    def _update(self, run: Run, clip: Block | None = None) -> Callable[[], None]:
        """What launches the rule over a run."""
        if not self.rule:
            raise ConfigurationError(
                f"{type(self).__name__} has no rule: derive it from one that has, such as clnn.SGD"
            )
        store = run.store
        device = store.device
        shared = store.velocity_of is self._kept
        defines, arguments = self._gradient(run, clip)
        states = () if shared else self.states
        defines |= {"RULE": "shared_momentum" if shared else self.rule, "STATES": len(states), **self._common(run)}
        if self.weight_decay and self.decoupled:
            defines["DECOUPLED"] = 1
        if shared and "PENALTY" in defines:
            defines["SHARED_BUFFER"] = 1
        grid = Grid.over(device, store.dtype).fitting(device, "update", store.dtype, **defines)
        kept = [run.part(self._kept.block(store, name)) for name in states]
        average = [] if self.ema is None else [run.part(self._kept.block(store, "average"))]
        per = grid.vector * store.dtype.itemsize  # bytes of a vector
        return functools.partial(
            device.launch,
            "optimizer", "update", (grid.groups(run.elements) * grid.width,), run.elements // grid.vector, run.decays // per,
            run.part(store.gradients()), run.part(store.block), *self._rates.on(store, run.slot), *kept, *arguments, *average,
            local=(grid.width,), real=device.real(store.dtype), **grid.defines(), **defines,
        )  # fmt: skip

    # -- saving -------------------------------------------------------------------------------------------------------
    def state_dict(self, named: Iterable[tuple[str, Parameter]] | None = None) -> dict[str, Any]:
        """Step and epoch counts, and what is kept of the parameters: what an exact resume needs.

        "arrays" are "<i>.<k>" for parameter number i of "names" and buffer number k of "states", or "<i>.average". `named`:
        the parameters with the names to use, as `net.named_parameters()` gives them; by default those that it trains now.
        """
        named = None if named is None else list(named)
        while True:
            with self._alone() as stores:
                found = self._state_dict(named)
                if stores == self._kept.stores:  # else its first step has begun meanwhile, in another thread
                    return found

    @contextlib.contextmanager
    def _alone(self) -> Iterator[list[Store]]:
        """Within it no other thread works on the devices of the stores that it gives, those of the parameters."""
        with contextlib.ExitStack() as stack:
            stores = [*self._kept.stores]
            for one in sorted({s.device for s in stores}, key=lambda d: (d.platform_index, d.device_index)):
                stack.enter_context(one.lock)
            yield stores

    def _state_dict(self, named: Iterable[tuple[str, Parameter]] | None) -> dict[str, Any]:
        theirs = {p: name for name, p in named or ()}
        given, listed, passed = self._given, list(dict.fromkeys((*self.parameters, *self._given))), self.passed
        steps, epochs, waiting = self._rates.steps, self.epochs, self._kept.waiting
        schedule = self.lr.state_dict() if isinstance(self.lr, Schedule) else None
        apart = not any(p in theirs for p in given)
        left = self._left_with([*theirs]) if theirs and given and apart else None
        if left is not None and (self._loaded is None or left.steps):  # another model than that of the last step
            listed, steps, epochs, waiting, passed = list(theirs), left.steps, left.epochs, left.waiting, left.passed
            schedule = schedule and left.schedule
        elif self._loaded is not None:  # no parameters were attached since
            found = {**self._loaded, **({"schedule": schedule} if schedule else {})}
            own = names_of([*theirs] if apart else given)
            return renamed(found, own, theirs) if theirs and "names" in found else found
        elif theirs:  # without those of layers that are gone
            listed = [p for p in listed if p in theirs]
        called, states, wanted = theirs or names_of(given), list(self.states), self._wanted()
        arrays: dict[str, np.ndarray] = {}
        for index, p in enumerate(listed):
            held = {name: waiting[weakref.ref(p), name] for name in wanted if (weakref.ref(p), name) in waiting}
            held = self._kept.read(p, [name for name in wanted if name not in held]) | held
            keys = {name: f"{index}.{states.index(name) if name in states else name}" for name in wanted}
            arrays |= {keys[name]: held[name] for name in wanted if name in held}
        missed = [self._since.get(p, steps - waiting.get((weakref.ref(p), "taken"), 0)) for p in listed]
        found = {"steps": steps, "epochs": epochs, "names": [called[p] for p in listed], "states": states}
        found |= {"taken": [steps - one for one in missed]} if any(missed) else {}
        found |= {"rule": type(self).__name__, "arrays": arrays} | ({"passed": [*passed]} if passed else {})
        return found | ({"schedule": schedule} if schedule else {})

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle holds: settings, counts, and buffers as arrays; the rest is made again where it is needed."""
        fresh = object.__new__(type(self))
        fresh._begin()
        settings = {name: value for name, value in vars(self).items() if name not in vars(fresh)}
        return {"settings": settings, "given": self._given, "state": self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._begin()
        vars(self).update(state["settings"] | {"_given": tuple(state["given"])})
        self.load_state_dict(state["state"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`'s counts and buffers; the next parameters to be attached take these up, by name.

        CheckpointError then if they are others, or the state is another rule's.
        """
        if state.get("rule", type(self).__name__) != type(self).__name__:
            raise CheckpointError(f"this is the state of an optimizer {state['rule']}, not of {type(self).__name__}")
        self._pause()
        for store in self._kept.stores:
            self._left[store] = _Left(self.steps, self.epochs, waiting=self._kept.waiting, passed=self.passed)
        self._rates.steps, self._rates.left, self.epochs = int(state["steps"]), 0, int(state["epochs"])
        self.passed = tuple(map(int, state["passed"])) if "passed" in state else None
        if isinstance(self.lr, Schedule) and "schedule" in state:
            self.lr.load_state_dict(state["schedule"])
        known = ("steps", "epochs", "names", "states", "rule", "arrays", "schedule", "passed", "taken")
        self._loaded = {"states": list(self.states), **{key: state[key] for key in known if key in state}}
