"""Schedules: the learning rate as a function of the step's number, one expression each.

Durations are in epochs, fractions included. `fit` says how many steps an epoch has and how many epochs there will be,
so a schedule without `epochs` spans all of them. Elsewhere give `steps_per_epoch`; with `steps_per_epoch=1` durations
are in steps. Any function of the step's number serves as well.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

from . import registry
from .checks import check_count, in_range
from .errors import ConfigurationError
from .foreign import bind
from .runtime.watching.watch import Watched


def _between(first: float, last: float, share: float) -> float:
    """From `first` to `last` along half a cosine."""
    return last + (first - last) * (1.0 + math.cos(math.pi * share)) / 2.0


class Schedule(Watched):
    """A learning rate that moves: derive from it, keep the arguments as attributes, and write `rate(t)`.

    `self.steps(epochs)` says how many steps that is, `self.length()` how many steps the schedule spans.
    """

    epochs: float | None = None  # that it spans; None: all of fit's
    steps_per_epoch: int | None = None
    _per: int | None = None
    _total: int | None = None  # steps in all, where fit has said so
    _moved = 0  # what its own clock is ahead of the optimizer's steps

    def __init__(self, epochs: float | None = None, steps_per_epoch: int | None = None) -> None:
        self.epochs = None if epochs is None else in_range("epochs", epochs, 0.0, math.inf, "()")
        per = None if steps_per_epoch is None else check_count("steps_per_epoch", steps_per_epoch, 1)
        self.steps_per_epoch = self._per = per

    def rate(self, t: int) -> float:
        """The learning rate of step t = 0, 1, ..."""
        raise NotImplementedError

    def __call__(self, step: int) -> float:
        return self.rate(step + self._moved)

    def __repr__(self) -> str:
        given = ", ".join(f"{key}={value!r}" for key, value in self.config().items() if value is not None)
        return f"{type(self).__name__}({given})"

    def bind(self, steps_per_epoch: int, epochs: int, step: int = 0, epoch: int = 0) -> None:
        """What fit knows: the steps of an epoch, how many epochs there will be in all, and that `step` begins `epoch`.

        A `steps_per_epoch` that was given holds. Where an epoch's length changes from one fit to the next, the epochs
        that are over count as they were.
        """
        if self.steps_per_epoch is None:
            self._per, self._moved = steps_per_epoch, epoch * steps_per_epoch - step
        self._total = step + self._moved + (epochs - epoch) * steps_per_epoch

    def observe(self, value: float) -> bool:
        """An epoch is over, and this is its loss: whether that changes the rate."""
        return False

    def steps(self, epochs: float) -> int:
        """That many epochs in steps, at least 1."""
        if self._per is None:
            raise ConfigurationError(
                f"{type(self).__name__} counts in epochs: fit knows how many steps an epoch has; elsewhere give it "
                "steps_per_epoch= (with 1, its numbers are steps)"
            )
        return max(1, round(epochs * self._per))

    def length(self) -> int:
        """The steps that it spans: those of `epochs`, or else of the fit that it runs in."""
        if self.epochs is not None:
            return self.steps(self.epochs)
        if self._total is None:
            raise ConfigurationError(
                f"{type(self).__name__} spans the whole of a fit; elsewhere give it epochs= and steps_per_epoch= "
                "(with 1, its numbers are steps)"
            )
        return max(1, self._total)

    def config(self) -> dict[str, Any]:
        """The arguments that make a schedule like this one."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def state_dict(self) -> dict[str, Any]:
        """Where it is, in numbers: what an exact resume needs besides `config()`."""
        return {"clock": [self._per, self._total, self._moved]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict()` was taken."""
        per, total, moved = state["clock"]
        if self.steps_per_epoch is None:
            self._per = None if per is None else check_count("steps per epoch in the state", per, 1)
        self._total = None if total is None else check_count("the length in the state", total, 0)
        self._moved = int(moved)


class Constant(Schedule):
    """lr, always; what `WarmUp` makes of a number."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr = in_range("lr", lr, 0.0, math.inf)

    def rate(self, t: int) -> float:
        return self.lr


class StepDecay(Schedule):
    """lr factor^(epoch // every): multiplied by `factor` after every `every` epochs."""

    def __init__(self, lr: float, every: float, factor: float = 0.1, steps_per_epoch: int | None = None) -> None:
        super().__init__(None, steps_per_epoch)
        self.lr = in_range("lr", lr, 0.0, math.inf)
        self.every = in_range("every", every, 0.0, math.inf, "()")
        self.factor = in_range("factor", factor, 0.0, 1.0, "(]")

    def rate(self, t: int) -> float:
        return self.lr * self.factor ** int((t + 0.5) / (self.every * self.steps(1)))  # 0.5: of whole steps exactly


class Exponential(Schedule):
    """lr factor^epoch, in every step a little."""

    def __init__(self, lr: float, factor: float = 0.95, steps_per_epoch: int | None = None) -> None:
        super().__init__(None, steps_per_epoch)
        self.lr = in_range("lr", lr, 0.0, math.inf)
        self.factor = in_range("factor", factor, 0.0, 1.0, "(]")

    def rate(self, t: int) -> float:
        return self.lr * self.factor ** (t / self.steps(1))


class _Towards(Schedule):
    """From lr to `final` in `epochs`, by default in the whole fit, then `final`."""

    def __init__(
        self, lr: float, epochs: float | None = None, final: float = 0.0, steps_per_epoch: int | None = None
    ) -> None:
        super().__init__(epochs, steps_per_epoch)
        self.lr, self.final = in_range("lr", lr, 0.0, math.inf), in_range("final", final, 0.0, math.inf)


class Cosine(_Towards):
    """From lr to `final` along half a cosine, then `final` (Loshchilov and Hutter 2017, eq. 5, without restarts)."""

    def rate(self, t: int) -> float:
        return _between(self.lr, self.final, min(1.0, t / self.length()))


class Linear(_Towards):
    """From lr to `final` along a line, then `final`."""

    def rate(self, t: int) -> float:
        return self.lr + (self.final - self.lr) * min(1.0, t / self.length())


class OneCycle(Schedule):
    """Up to `max_lr` in the first `pct_start` of all steps, from max_lr / div_factor, then down to that / final_div_factor.

    Both along half a cosine, step by step as PyTorch's OneCycleLR. (Smith and Topin 2018)
    """

    def __init__(
        self, max_lr: float, epochs: float | None = None, pct_start: float = 0.3, div_factor: float = 25.0,
        final_div_factor: float = 1e4, steps_per_epoch: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(epochs, steps_per_epoch)
        self.max_lr = in_range("max_lr", max_lr, 0.0, math.inf)
        self.pct_start = in_range("pct_start", pct_start, 0.0, 1.0)
        self.div_factor = in_range("div_factor", div_factor, 0.0, math.inf, "()")
        self.final_div_factor = in_range("final_div_factor", final_div_factor, 0.0, math.inf, "()")

    def rate(self, t: int) -> float:
        peak, end = self.pct_start * self.length() - 1.0, self.length() - 1.0
        first = self.max_lr / self.div_factor
        if t < peak:
            return _between(first, self.max_lr, t / peak)
        return _between(self.max_lr, first / self.final_div_factor, min(1.0, (t - peak) / (end - peak)))


class Piecewise(Schedule):
    """The series' list: `[(epochs, rate), ...]` one after the other; the last rate stays (the series, part 16).

    A plain list given as an optimizer's `lr` is one of these.
    """

    def __init__(self, pairs: Sequence[Sequence[float]], steps_per_epoch: int | None = None) -> None:
        super().__init__(None, steps_per_epoch)
        if not isinstance(pairs, (list, tuple)) or not pairs or not all(_is_pair(pair) for pair in pairs):
            raise ConfigurationError(
                f"a list of rates holds pairs (epochs, rate), such as [(10, 0.1), (5, 0.01)]; {pairs!r} was provided instead"
            )
        self.pairs = [
            [in_range("epochs", epochs, 0.0, math.inf, "()"), in_range("rate", rate, 0.0, math.inf)]
            for epochs, rate in pairs
        ]

    def rate(self, t: int) -> float:
        end = 0.0
        for epochs, rate in self.pairs:
            end += epochs
            if t < self.steps(end):
                return rate
        return self.pairs[-1][1]


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2


class ReduceOnPlateau(Schedule):
    """lr, multiplied by `factor` when the loss has not fallen for more than `patience` epochs.

    fit gives it the validation's loss after each epoch, or the training's where there is no validation; elsewhere call
    `optimizer.observe(loss)`. Falling means below (1 - threshold) of the best so far. After a reduction `cooldown`
    epochs are not counted. The rate stops at `min_lr`. (as PyTorch's ReduceLROnPlateau)
    """

    def __init__(
        self, lr: float, factor: float = 0.1, patience: int = 10, threshold: float = 1e-4, cooldown: int = 0, min_lr: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.lr, self.min_lr = in_range("lr", lr, 0.0, math.inf), in_range("min_lr", min_lr, 0.0, math.inf)
        self.factor = in_range("factor", factor, 0.0, 1.0)
        self.threshold = in_range("threshold", threshold, 0.0, 1.0)
        self.patience = check_count("patience", patience, 0)
        self.cooldown = check_count("cooldown", cooldown, 0)
        self._rate, self._best, self._waited, self._cooling = self.lr, math.inf, 0, 0

    def rate(self, t: int) -> float:
        return self._rate

    def observe(self, value: float) -> bool:
        best = self._best
        if value < (best if best == math.inf else best - self.threshold * abs(best)):
            self._best, self._waited = float(value), 0
        else:
            self._waited += 1
        if self._cooling:
            self._cooling, self._waited = self._cooling - 1, 0
        if self._waited <= self.patience:
            return False
        self._waited, self._cooling = 0, self.cooldown
        before, self._rate = self._rate, min(self._rate, max(self.min_lr, self._rate * self.factor))
        return self._rate != before

    def state_dict(self) -> dict[str, Any]:
        best = self._best if math.isfinite(self._best) else None
        own = {"rate": self._rate, "best": best, "waited": self._waited, "cooling": self._cooling}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._rate = in_range("the rate in the state", state["rate"], 0.0, math.inf)
        self._best = math.inf if state["best"] is None else float(state["best"])
        self._waited, self._cooling = int(state["waited"]), int(state["cooling"])


class WarmUp(Schedule):
    """Another schedule (or a number, or a list of pairs), times a factor that rises from `start` to 1 in `epochs` epochs.

    The other schedule's clock runs from the beginning. The first step has a rate above 0, the last of the warm-up the
    whole. (Goyal et al. 2017, section 2.2)
    """

    def __init__(
        self, schedule: Schedule | float | Sequence[Sequence[float]], epochs: float, start: float = 0.0,
        steps_per_epoch: int | None = None,
    ) -> None:  # fmt: skip
        found = find_rate(schedule)
        if not isinstance(found, Schedule) and callable(found):
            raise ConfigurationError(
                f"WarmUp takes a number, a list of pairs or one of clnn's schedules, {schedule!r} was provided instead; "
                "a function of your own can warm up by itself"
            )
        self.schedule = found if isinstance(found, Schedule) else Constant(found)
        super().__init__(epochs, steps_per_epoch or self.schedule.steps_per_epoch)
        if self.schedule.steps_per_epoch is None and steps_per_epoch is not None:
            self.schedule.steps_per_epoch = self.schedule._per = steps_per_epoch
        self.start = in_range("start", start, 0.0, 1.0)

    def rate(self, t: int) -> float:
        share = min(1.0, (t + 1) / self.length())
        return (self.start + (1.0 - self.start) * share) * self.schedule(t - self._moved)

    def bind(self, steps_per_epoch: int, epochs: int, step: int = 0, epoch: int = 0) -> None:
        super().bind(steps_per_epoch, epochs, step, epoch)
        self.schedule.bind(steps_per_epoch, epochs, step, epoch)

    def observe(self, value: float) -> bool:
        return self.schedule.observe(value)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "schedule": describe(self.schedule)}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "schedule": self.schedule.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.schedule.load_state_dict(state["schedule"])


SCHEDULES: dict[str, type[Schedule]] = {
    kind.__name__: registry.register(kind)
    for kind in (Constant, StepDecay, Exponential, Cosine, Linear, OneCycle, Piecewise, ReduceOnPlateau, WarmUp)
}


def describe(schedule: Any) -> dict[str, Any]:
    """A schedule as JSON: its class's name and its arguments."""
    return registry.describe(schedule, registry.config_of(schedule))


def is_known(rate: Any) -> bool:
    """Whether `describe` can tell what this is: one of clnn's, or registered."""
    known = callable(rate) and registry.is_registered(rate)
    return known and all(is_known(one) for one in getattr(rate, "__dict__", {}).values() if isinstance(one, Schedule))


def find_rate(lr: Any) -> float | Callable[[int], float]:
    """A number or a function of the step's number, from what an optimizer was given as `lr`: a number, a schedule or
    function, the series' list of pairs, or what `describe` made."""
    if callable(lr):
        bind("a function as lr is called with the number of the step", lr, (0,), {})
        return lr
    if isinstance(lr, dict):
        kind, config = lr.get("class"), lr.get("config")
        if kind in registry.REGISTRY and kind not in SCHEDULES:
            return registry.construct(lr, "schedule", Callable)
        if kind not in SCHEDULES or not isinstance(config, dict):
            raise ConfigurationError(f"there is no schedule {kind!r}; the known ones are {', '.join(SCHEDULES)}")
        return SCHEDULES[kind](**config)
    if isinstance(lr, (list, tuple)):
        return Piecewise(lr)
    return in_range("lr", lr, 0.0, math.inf)
