"""Optimizers: one launch over the flat store of parameters; the gradient's own GEMM does part of it where it can.

Everything that moves from step to step (learning rates, Adam's corrections) is computed on the host for many steps at a
time, in float64, and lies in a table on the device whose row a counter selects. So a schedule costs nothing in a
recorded step, and changing `lr` never makes a new recording.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .errors import ClnnError, ConfigurationError
from .gemm import SCALE_PAIRS, Scale
from .ops.array import Array, empty_like, fill
from .ops.elementwise import scale_add
from .parameters import Run, Store, consolidate, runs
from .runtime.memory import Block
from .runtime.recording import StepContext, advance_cells, structure_changed
from .tensor import Parameter

ROWS = 1024  # steps in a table of rates


def _check(name: str, value: float, low: float, high: float, closed: str = "[)") -> float:
    """`value` as a float, if it lies in the range."""
    fits = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    fits = (
        fits
        and (low <= value if closed[0] == "[" else low < value)
        and (value <= high if closed[1] == "]" else value < high)
    )
    if not fits:
        raise ConfigurationError(
            f"{name} should be in {closed[0]}{low:g}, {high:g}{closed[1]}, {value!r} was provided instead"
        )
    return float(value)


class _Clock:
    """Where an optimizer is: steps prepared so far, its row in the table of rates, and rows left there."""

    __slots__ = ("steps", "row", "left")

    def __init__(self) -> None:
        self.steps = self.row = self.left = 0


class Optimizer:
    """What all optimizers share: the table of rates, where gradients go, and the launch.

    `lr` is a number, or a function of the step's number (from 0). `weight_decay` and `l1` reach weights only, not
    biases. `keep_gradients=True` leaves gradients readable as `parameter.grad` also in recorded steps.
    """

    rule = ""  # the function in kernels/optimizer.cl
    states = 0  # buffers of the parameters' size that it keeps
    decoupled = False
    fuses = False  # whether velocities may lie in the gradients' buffer

    def __init__(
        self,
        lr: float | Callable[[int], float],
        weight_decay: float = 0.0,
        l1: float = 0.0,
        keep_gradients: bool = False,
    ) -> None:
        self._ready = False
        self._clock = _Clock()
        self.lr = lr
        self.weight_decay = _check("weight_decay", weight_decay, 0.0, math.inf)
        self.l1 = _check("l1", l1, 0.0, math.inf)
        self.keep_gradients = keep_gradients
        self.epochs = 0  # trained so far by fit, which orders its samples by this number
        self.parameters: list[Parameter] = []
        self._stores: list[Store] = []
        self._state: dict[Store, list[Block]] = {}
        self._fused: set[Store] = set()  # stores whose gradients' buffer holds the velocities
        self._runs: list[Run] | None = None
        self._tables: dict[Any, tuple[Block, Block]] = {}  # (device, dtype): rates, the counter of rows
        self._rows = np.zeros((0, 2 * SCALE_PAIRS))
        self._pending: dict[str, Any] = {}
        self._ready = True

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "lr":
            if not callable(value):
                value = _check("lr", value, 0.0, math.inf)
            self._clock.left = 0  # the table is made anew before the next step
        elif not name.startswith("_") and name not in ("epochs", "parameters") and getattr(self, "_ready", False):
            structure_changed()
            object.__setattr__(self, "_runs", None)
            self._clock.left = 0  # momentum and betas stand in the table as well
        object.__setattr__(self, name, value)

    @property
    def steps(self) -> int:
        """Steps taken so far."""
        return self._clock.steps

    # -- to be given by each optimizer --------------------------------------------------------------------------------
    def numbers(self, lr: np.ndarray, t: np.ndarray) -> tuple[Any, Any, Any, Any]:
        """(lr, a, b, c) as the rule reads them, for steps t = 1, 2, ... (arrays, or numbers for all of them)."""
        return lr, 0.0, 0.0, 0.0

    def sink(self, p: Parameter, single: bool) -> tuple[Scale, str] | None:
        """Where p's gradient may go in a recorded step other than into its own buffer; `single`: it is used once."""
        return None

    def config(self) -> dict[str, Any]:
        """The arguments that make an optimizer like this one."""
        lr = self.lr if not callable(self.lr) else self.rate(self.steps)
        return {"lr": lr, "weight_decay": self.weight_decay, "l1": self.l1, "keep_gradients": self.keep_gradients}

    # -- rates --------------------------------------------------------------------------------------------------------
    def rate(self, step: int) -> float:
        """The learning rate of step 0, 1, ..."""
        return _check("the schedule's lr", self.lr(step), 0.0, math.inf) if callable(self.lr) else self.lr

    def _fill_table(self) -> None:
        """The next rows of the table: pairs for sinks of weights and of biases, and what the rule reads."""
        steps = np.arange(self.steps, self.steps + ROWS)
        lr = np.array([self.rate(int(i)) for i in steps]) if callable(self.lr) else np.full(ROWS, self.lr)
        rows = np.empty((ROWS, 2 * SCALE_PAIRS))
        for column, values in enumerate((-lr, 1.0 - lr * self.weight_decay, -lr, 1.0, *self.numbers(lr, steps + 1))):
            rows[:, column] = values
        self._rows = rows
        for (device, dtype), (table, cell) in self._tables.items():
            device.upload(np.ascontiguousarray(rows, dtype), table)
            device.upload(np.full(1, -1, np.int32), cell)  # it moves on before it is read

    def rows_left(self) -> int:
        """Steps until the table runs out."""
        return self._clock.left or ROWS

    def prepare(self, times: int = 1) -> None:
        """On the host, before `times` steps, at most `rows_left()`: move on in the table, and fill it where it ran out."""
        clock = self._clock
        if not clock.left:
            self._fill_table()
            clock.row, clock.left = -1, ROWS
        clock.row += times
        clock.left -= times
        clock.steps += times

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
        wanted = [p for p in parameters if p.trainable]
        if not wanted:
            raise ConfigurationError("there is no trainable parameter to optimize; is the model built, and not frozen?")
        if (
            self._runs is not None
            and len(wanted) == len(self.parameters)
            and all(a is b for a, b in zip(wanted, self.parameters))
        ):
            return
        consolidate(wanted)
        self.parameters = wanted
        self._stores = list(dict.fromkeys(p.store for p in wanted))
        self._runs = None
        for p in wanted:
            self.table(p)
        if self._pending:
            self._restore()

    def state(self, store: Store) -> list[Block]:
        """The buffers that the rule keeps for a store, zero at first."""
        if store not in self._state:
            blocks = [store.device.memory.allocate(store.nbytes, pooled=False) for _ in range(self.states)]
            for block in blocks:
                store.device.fill_zero(block)
            self._state[store] = blocks
        return self._state[store]

    def fuse(self) -> None:
        """Before a step that is or will be recorded: velocities move to where such steps expect them."""
        if self.fuses:
            for store in self._stores:
                if store not in self._fused:
                    self._fuse(store)

    def enter(self, uses: dict[Parameter, int]) -> None:
        """A step begins whose launches may be recorded: choose where gradients go. `uses`: how often each parameter is
        used in this step, where that is known."""
        for p in self.parameters:
            p.sink = None if self.keep_gradients else self.sink(p, uses.get(p) == 1)

    def advance(self, context: StepContext) -> None:
        """Have the counters of this step's rates moved on, before anything reads them."""
        for _, cell in self._tables.values():
            context.advance(cell)

    def leave(self) -> None:
        """The step is over: outside of it gradients are plain."""
        for p in self.parameters:
            p.sink = None

    def abandon(self) -> None:
        """A step broke off half-way: its number is taken back, and velocities that it may have half written are zeroed."""
        self._clock.left = 0
        self._clock.steps = max(0, self.steps - 1)
        for store in self._fused:
            store.device.fill_zero(store.gradients())
        for p in self.parameters:
            p.zero_grad()

    def _fuse(self, store: Store) -> None:
        """Velocities move into the gradients' buffer."""
        if store.velocity_of is not None:
            store.velocity_of.separate(store)
        (velocity,) = self._state.pop(store, [None])
        if velocity is None:
            store.device.fill_zero(store.gradients())
        else:
            store.device.copy(velocity, store.gradients(), store.nbytes)
        store.velocity_of = self
        self._fused.add(store)

    def separate(self, store: Store) -> None:
        """Velocities move out of the gradients' buffer, because gradients are wanted there."""
        (velocity,) = self.state(store)
        store.device.copy(store.gradients(), velocity, store.nbytes)
        store.velocity_of = None
        self._fused.discard(store)

    # -- the step -----------------------------------------------------------------------------------------------------
    def step(self, parameters: Sequence[Parameter] | None = None) -> None:
        """Update the parameters by the gradients that `backward()` left.

        Give the parameters at the first call (`net.parameters()`); later it may be left out.
        """
        if parameters is not None:
            self.attach(list(parameters))
        if not self.parameters:
            raise ConfigurationError("step() needs the parameters at its first call: optimizer.step(net.parameters())")
        if not any(p.uses for p in self.parameters):
            raise ClnnError("optimizer.step() without a gradient: call loss.backward() first")
        device = self.parameters[0].device
        context = device.step
        if context is None or self not in context.optimizers:
            self.prepare()
            for _, cell in self._tables.values():
                advance_cells(device, [(cell, 1)])
            if context is not None:
                context.optimizers.append(self)
        self._settle_unused()
        for run in self._plan():
            self._update(run)
        for p in self.parameters:
            if context is not None:
                context.uses[p] = p.forward_uses
                context.received.setdefault(p, p.uses)
            p.uses = p.forward_uses = 0

    def zero_grad(self) -> None:
        """Forget gradients received so far. Never needed after `step()`, which does so itself."""
        for p in self.parameters:
            p.zero_grad()

    def _settle_unused(self) -> None:
        """A parameter that this loss did not reach has the gradient 0."""
        for p in self.parameters:
            if p.uses:
                continue
            kind = p.sink[1] if p.sink else "plain"
            if p.sink and kind == "straight":  # w = -lr 0 + (1 - lr decay) w
                scale_add(fill(empty_like(p), 0.0), p.block, p.sink[0])
                continue
            if kind == "plain" and p.store is not None:
                p.store.reclaim()
            block = p.gradient_block()
            factor = p.sink[0].value()[1] if p.sink else 0.0
            scale = Scale.constant(p.device, p.dtype, factor, 0.0)
            scale_add(Array(block, p.shape, p.dtype, p.device), block, scale)

    def _plan(self) -> list[Run]:
        loose = [p for p in self.parameters if not (p.sink and p.sink[1] == "straight")]
        if len(loose) < len(self.parameters):
            return runs(loose)
        if self._runs is None:
            self._runs = runs(self.parameters)
        return self._runs

    def _update(self, run: Run) -> None:
        store = run.store
        device, size = store.device, store.dtype.itemsize
        fused = store in self._fused
        defines: dict[str, Any] = {
            "RULE": "fused_momentum" if fused else self.rule,
            "STATES": 0 if fused else self.states,
        }
        decay, l1 = 0.0, self.l1
        if self.weight_decay and self.decoupled:
            defines["DECOUPLED"] = 1
        elif self.weight_decay:
            decay = self.weight_decay
        if decay or l1:
            defines["L2"] = 1
            if fused:
                defines["FUSED"] = 1
        if run.rate_factor != 1.0:
            defines["FACTOR"] = f"((real){run.rate_factor!r})"
        table, cell = self.table(store)

        def part(block: Block) -> Block:
            return block if run.stop - run.start == store.nbytes else block.view(run.start, run.stop - run.start)

        kept = [] if fused else [part(block) for block in self.state(store)]
        n = (run.stop - run.start) // size
        device.launch(
            "optimizer", "update", (n,), n, run.decays // size, part(store.gradients()), part(store.block),
            *(kept + [None] * (2 - len(kept))), table, cell, float(decay), float(l1),
            real=device.real(store.dtype), **defines,
        )  # fmt: skip

    # -- saving -------------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Step and epoch counts, and the kept buffers as arrays by parameter's index: what an exact resume needs."""
        arrays: dict[str, np.ndarray] = {}
        for index, p in enumerate(self.parameters):
            blocks = [p.store.gradients()] if p.store in self._fused else self._state.get(p.store, [])
            for number, block in enumerate(blocks):
                view = block.view(p.position, p.nbytes)
                arrays[f"{index}.{number}"] = p.device.read(view, np.empty(p.shape, p.dtype))
        return {"steps": self.steps, "epochs": self.epochs, "arrays": arrays}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`'s counts and buffers; they are taken up when parameters are attached."""
        self._clock.steps, self._clock.left, self.epochs = int(state["steps"]), 0, int(state["epochs"])
        self._pending = dict(state["arrays"])
        if self.parameters:
            self._restore()

    def _restore(self) -> None:
        arrays, self._pending = self._pending, {}
        for store in list(self._fused):
            self.separate(store)
        for key, array in arrays.items():
            index, number = (int(part) for part in key.split("."))
            p = self.parameters[index]
            if p.shape != array.shape:
                raise ConfigurationError(
                    f"the optimizer's state {key} has the shape {array.shape}, its parameter {p.shape}"
                )
            view = self.state(p.store)[number].view(p.position, p.nbytes)
            p.device.upload(np.ascontiguousarray(array, p.dtype), view)


class SGD(Optimizer):
    """Stochastic gradient descent: w -= lr g, with momentum v = momentum v + g, w -= lr v.

    `nesterov` looks ahead: w -= lr (g + momentum v). `weight_decay` adds weight_decay w to the gradient (L2), or with
    `decoupled=True` shrinks weights by 1 - lr weight_decay apart from it; `l1` adds l1 sign(w). The book's lambda is
    weight_decay = lambda / n for n training samples. (Sutskever et al. 2013; Nielsen chapter 3; the series 15 and 16)
    """

    def __init__(
        self,
        lr: float | Callable[[int], float] = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        l1: float = 0.0,
        keep_gradients: bool = False,
    ) -> None:
        super().__init__(lr, weight_decay, l1, keep_gradients)
        self.momentum = _check("momentum", momentum, 0.0, 1.0)
        if nesterov and not momentum:
            raise ConfigurationError("nesterov=True needs a momentum above 0, such as 0.9")
        self.nesterov, self.decoupled = bool(nesterov), bool(decoupled)

    @property
    def rule(self) -> str:  # type: ignore[override]
        return "nesterov" if self.nesterov else "momentum" if self.momentum else "sgd"

    @property
    def states(self) -> int:  # type: ignore[override]
        return 1 if self.momentum else 0

    @property
    def fuses(self) -> bool:  # type: ignore[override]
        return bool(self.momentum) and not self.nesterov and not self.keep_gradients

    def numbers(self, lr: np.ndarray, t: np.ndarray) -> tuple[Any, Any, Any, Any]:
        return lr, self.momentum, 0.0, 0.0

    def sink(self, p: Parameter, single: bool) -> tuple[Scale, str] | None:
        if self.nesterov:
            return None
        if self.momentum:
            return Scale.constant(p.device, p.dtype, 1.0, self.momentum), "velocity"
        if single and not self.l1 and p.rate_factor == 1.0:
            return self.scale(p, 0 if p.decays else 1), "straight"
        return None

    def config(self) -> dict[str, Any]:
        own = {"momentum": self.momentum, "nesterov": self.nesterov, "decoupled": self.decoupled}
        return {**super().config(), **own}


class Adam(Optimizer):
    """Adam with bias correction (Kingma and Ba 2015, algorithm 1); `weight_decay` is L2, in the gradient."""

    rule, states = "adam", 2

    def __init__(
        self,
        lr: float | Callable[[int], float] = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        l1: float = 0.0,
        keep_gradients: bool = False,
    ) -> None:
        super().__init__(lr, weight_decay, l1, keep_gradients)
        self.beta1 = _check("Adam beta1", beta1, 0.0, 1.0)
        self.beta2 = _check("Adam beta2", beta2, 0.0, 1.0)
        self.epsilon = _check("Adam epsilon", epsilon, 0.0, math.inf)

    def numbers(self, lr: np.ndarray, t: np.ndarray) -> tuple[Any, Any, Any, Any]:
        # m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon), with the corrections moved into lr and epsilon
        root = np.sqrt(1.0 - self.beta2**t)
        return lr * root / (1.0 - self.beta1**t), self.beta1, self.beta2, self.epsilon * root

    def config(self) -> dict[str, Any]:
        return {**super().config(), "beta1": self.beta1, "beta2": self.beta2, "epsilon": self.epsilon}


class AdamW(Adam):
    """Adam with decoupled weight decay: w *= 1 - lr weight_decay (Loshchilov and Hutter 2019)."""

    decoupled = True

    def __init__(self, lr: float | Callable[[int], float] = 0.001, weight_decay: float = 0.01, **options: Any) -> None:
        super().__init__(lr, weight_decay=weight_decay, **options)


OPTIMIZERS: dict[str, Any] = {"sgd": SGD, "adam": Adam, "adamw": AdamW}


def find_optimizer(which: str | Optimizer) -> Optimizer:
    """An optimizer by name with its defaults, or as it is."""
    if isinstance(which, Optimizer):
        return which
    name = which.lower() if isinstance(which, str) else which
    if name not in OPTIMIZERS:
        raise ConfigurationError(f"there is no optimizer {which!r}; the known ones are {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name]()
