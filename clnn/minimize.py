"""Second-order optimizers for a loss over all data at once: L-BFGS and Hessian-free, each with a `minimize` of its own.

Both see all parameters as one vector on the device, made of the flat stores' bytes (the zeros between parameters
included, which stay zero in every sum of such vectors). Only dot products come to the host.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .checks import check_count, in_range
from .errors import ConfigurationError, Diverged, OutOfDeviceMemory
from .foreign import Called, by_names
from .ops.array import FLOATS
from .parameters import consolidate, runs
from .step import copied
from .tensor import Parameter, Tensor, concat, refuse_averaged, tensor

DECREASE = (
    1e-4  # c1: the share of the promised decrease that a step has to bring (Nocedal and Wright 2006, section 3.1)
)
CURVATURE = 0.9  # c2: the share of the slope that a step of L-BFGS may leave (the same)
TRIALS = 25  # of a line search, as in PyTorch's


def dot(a: Tensor, b: Tensor) -> float:
    """The inner product of two vectors, on the host."""
    return float((a * b).sum())


class Minimum(NamedTuple):
    """What `minimize` reached. `why` it stopped: "gradient" (its norm is within tolerance_gradient), "change" (the last
    step changed the loss, or every weight, by no more than tolerance_change), "steps" (all were taken), or "precision"
    (no step lowers the loss any more, in numbers of this type)."""

    loss: float
    gradient_norm: float
    steps: int
    evaluations: int  # of the closure, each with its backward pass
    why: str


class Point(NamedTuple):
    """The loss and its gradient at the weights w; the loss is NaN or infinite where the gradient's norm is."""

    w: Tensor
    loss: float
    gradient: Tensor
    norm: float


class Objective:
    """A closure's loss as a function of one vector: all trainable parameters, in the order in which they lie."""

    def __init__(self, closure: Callable[[], Tensor], parameters: Sequence[Parameter]) -> None:
        given = list(dict.fromkeys(parameters))
        if not all(isinstance(p, Parameter) for p in given):
            raise ConfigurationError("minimize() needs parameters as net.parameters() gives them: a list of Parameter")
        self.closure, self.parameters = closure, [p for p in given if p.trainable]
        if not self.parameters:
            raise ConfigurationError("no trainable parameter: not built, frozen, or in no attribute of a layer")
        self.device, self.dtype = self.parameters[0].device, self.parameters[0].dtype
        for p in self.parameters:
            if p.max_norm is not None:
                raise ConfigurationError(
                    f"minimize() goes along lines on which the loss falls, and {p.name or 'one'} has max_norm={p.max_norm}, "
                    "which cuts weights off: train it by fit, or leave max_norm out"
                )
            if (p.device, p.dtype) != (self.device, self.dtype):
                raise ConfigurationError(
                    f"minimize() needs all parameters on one device and in one type, and {p.name or 'one'} is {p.dtype} on "
                    f"{p.device!r} beside {self.dtype} on {self.device!r}: build the model with one device= and dtype=, or "
                    "minimize over the parameters of one at a time"
                )
        refuse_averaged(self.parameters, "minimize()")
        consolidate(self.parameters)
        self.evaluations = self.size = 0
        self._weights: list[Tensor] = []  # a run each, of the stores themselves
        self._gradients: list[Tensor] = []
        self.places: dict[Parameter, int] = {}  # where each begins in the vector
        for run in runs(self.parameters):
            inside = (p for p in self.parameters if p.store is run.store and run.start <= p.position < run.stop)
            self.places |= {p: self.size + (p.position - run.start) // self.dtype.itemsize for p in inside}
            for parts, block in ((self._weights, run.store.block), (self._gradients, run.store.gradients())):
                parts.append(Tensor(run.part(block), (run.elements,), self.dtype, self.device))
            self.size += run.elements

    def weights(self) -> Tensor:
        """A copy of the parameters."""
        try:
            return _gathered(self._weights)
        except OutOfDeviceMemory as error:
            error.inside("minimize(), which has all parameters in one array")
            raise

    def put(self, w: Tensor, gradient: Tensor | None = None) -> None:
        """Give the parameters the values w, and leave that gradient as their `grad`, which the next one replaces."""
        _scatter(w, self._weights)
        for p in self.parameters:
            p.zero_grad()
            p.version += 1
        if gradient is not None:
            _scatter(gradient, self._gradients)
            for p in self.parameters:
                p._last = "plain"

    def evaluate(self, w: Tensor) -> tuple[float, Tensor]:
        """The loss at w, and its gradient: one call of the closure and one backward pass."""
        self.put(w)
        self.evaluations += 1
        loss: Any = self.closure()
        if not isinstance(loss, Tensor) or loss.size != 1 or loss.dtype not in FLOATS:
            what = f"a tensor of shape {loss.shape}" if isinstance(loss, Tensor) else repr(loss)
            raise ConfigurationError(
                f"the closure should return the loss, a tensor of one number such as a mean, {what} was returned instead"
            )
        if loss.requires_grad and not any(p.uses for p in self.parameters):
            loss.backward()
        if not any(p.uses for p in self.parameters):
            raise ConfigurationError(
                "the closure's loss depends on none of the trainable parameters that minimize() was given: compute it from "
                "the model in every call, not under no_grad(); a closure that is a @clnn.step calls loss.backward() itself"
            )
        for p in self.parameters:
            if not p.uses:
                p.store.reclaim()
                p.device.fill_zero(p.gradient_block())
        return float(loss), _gathered(self._gradients)

    def point(self, w: Tensor) -> Point:
        """What is at w."""
        loss, gradient = self.evaluate(w)
        norm = math.sqrt(max(square, 0.0)) if math.isfinite(square := dot(gradient, gradient)) else math.nan
        return Point(w, loss if math.isfinite(norm) else math.nan, gradient, norm)

    def hessian_vector(self, w: Tensor, v: Tensor) -> Tensor:
        """H v by a central difference of gradients, (g(w + h v) - g(w - h v)) / (2 h), h = cbrt(eps) (1 + |w|) / |v|.

        Its truncation error is h^2 / 6 times the third derivative of g along v, its rounding error about eps |g| / h: for
        derivatives of order 1 both are eps^(2/3) |v|, 2e-5 |v| in float32 and 4e-11 |v| in float64. Two evaluations.
        (Nocedal and Wright 2006, sections 7.1 and 8.1)
        """
        length = math.sqrt(dot(v, v))
        if not length:
            return v
        h = float(np.cbrt(np.finfo(self.dtype).eps)) * (1.0 + math.sqrt(dot(w, w))) / length
        ahead, behind = self.evaluate(w + h * v)[1], self.evaluate(w - h * v)[1]
        return (ahead - behind) * (0.5 / h)

    def read(self, vector: Tensor) -> list[np.ndarray]:
        """A vector as an array for each parameter."""
        host = vector.numpy()
        return [host[at : at + p.size].reshape(p.shape) for p, at in ((p, self.places[p]) for p in self.parameters)]

    def vector(self, arrays: dict[str, np.ndarray], name: str) -> Tensor:
        """The vector whose parts `arrays` holds under "<parameter's index>.<name>"."""
        host = np.zeros(self.size, self.dtype)
        for index, p in enumerate(self.parameters):
            array = arrays.get(f"{index}.{name}")
            if array is None or array.shape != p.shape:
                found = "is missing" if array is None else f"has the shape {array.shape}"
                raise ConfigurationError(
                    f"the state's {index}.{name} {found}, and its parameter has the shape {p.shape}: minimize the model that "
                    "the state was taken of"
                )
            host[self.places[p] : self.places[p] + p.size] = array.ravel()
        return tensor(host, self.dtype, self.device)


def _gathered(parts: Sequence[Tensor]) -> Tensor:
    return copied(parts[0]) if len(parts) == 1 else concat(parts)


def _scatter(vector: Tensor, parts: Sequence[Tensor]) -> None:
    start = 0
    for part in parts:
        piece = vector if len(parts) == 1 else vector[start : start + part.size]
        part.device.copy(piece.block, part.block, part.nbytes)
        start += part.size


class Minimizer(Called):
    """What L-BFGS and Hessian-free share: the loop, when it stops, and the state.

    `tolerance_gradient`: stop where the gradient's Euclidean norm is no larger. `tolerance_change`: stop where a step
    lowered the loss, or moved every weight, by no more. (PyTorch's defaults)
    """

    def __init__(self, tolerance_gradient: float = 1e-7, tolerance_change: float = 1e-9) -> None:
        self.tolerance_gradient = in_range("tolerance_gradient", tolerance_gradient, 0.0, math.inf)
        self.tolerance_change = in_range("tolerance_change", tolerance_change, 0.0, math.inf)
        self.steps = self.evaluations = 0  # in all calls of minimize
        self._objective: Objective | None = None  # the last one
        self._pending: dict[str, np.ndarray] | None = None

    # -- to be given by each --------------------------------------------------------------------------------------------
    def _advance(self, objective: Objective, here: Point) -> Point | None:
        """A step from `here` to a lower loss, or None where there is none."""
        raise NotImplementedError

    def _vectors(self) -> dict[str, Tensor]:
        """What is kept from step to step, by name."""
        return {}

    def _take(self, vectors: dict[str, Tensor]) -> None:
        """Go on from such vectors; from none: forget what was kept."""

    # -- the loop -------------------------------------------------------------------------------------------------------
    @by_names
    def minimize(self, closure: Callable[[], Tensor], parameters: Sequence[Parameter], steps: int) -> Minimum:
        """Take up to `steps` steps that each lower the loss, which `closure()` computes from the parameters.

            x, y = clnn.tensor(x), clnn.tensor(y)  # all data, once on the device
            loss = clnn.losses.cross_entropy
            reached = clnn.LBFGS().minimize(lambda: loss(net(x), y), net.parameters(), steps=50)
            print(reached.loss, reached.evaluations, reached.why)

        The closure returns a tensor of one number, the same one for the same weights: no new batch, no dropout; a penalty
        on weights is part of the loss. `minimize` calls backward(). A closure that calls it itself may be a `@clnn.step`,
        and is then replayed, which is faster. Afterwards `parameter.grad` is the gradient at the new weights. Parameters
        with trainable=False stay as they are.

        Raises Diverged where the loss is not finite at the first weights, or after however small a step. After any
        exception, also the closure's own, the weights are those of the last finished step. Raises ConfigurationError
        where parameters lie on several devices or are of several types, where none is trainable, and where the closure's
        result is something else or depends on none of them.
        """
        steps = check_count("steps", steps, 1)
        objective = Objective(closure, parameters)
        self._attach(objective)
        start, taken, why = objective.weights(), 0, ""
        here: Point | None = None
        try:
            here = objective.point(start)
            if not math.isfinite(here.loss):
                raise self._diverged(here, None)
            small = False
            while not why:
                if here.norm <= self.tolerance_gradient:
                    why = "gradient"
                elif small:
                    why = "change"
                elif taken == steps:
                    why = "steps"
                else:
                    there = self._advance(objective, here)
                    if there is None:
                        why = "precision"
                        continue
                    moved = float(abs(there.w - here.w).max())
                    small = min(here.loss - there.loss, moved) <= self.tolerance_change
                    here, taken = there, taken + 1
                    self.steps += 1
        finally:
            self.evaluations += objective.evaluations
            del objective.closure  # and the data that it holds
            objective.put(*((here.w, here.gradient) if here else (start,)))
        return Minimum(here.loss, here.norm, taken, objective.evaluations, why)

    def _diverged(self, trial: Point, last: Point | None) -> Diverged:
        before = "no loss was finite before"
        if last is not None:
            before = f"the last finite loss was {last.loss:.6g}, and its weights are in place again"
        return Diverged(
            f"{type(self).__name__}: the loss or its gradient stopped being finite at step {self.steps + 1}: the loss was "
            f"{trial.loss}; {before}. Look for a logarithm or a division in the loss, or scale the inputs."
        )

    # -- saving ---------------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Counts, and the kept vectors as arrays by parameter's index: what an exact resume needs besides the weights."""
        arrays: dict[str, np.ndarray] = dict(self._pending or {})
        if self._objective and self._pending is None:
            for name, vector in self._vectors().items():
                arrays |= {f"{index}.{name}": part for index, part in enumerate(self._objective.read(vector))}
        return {"steps": self.steps, "evaluations": self.evaluations, "arrays": arrays}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`; its arrays are taken up by the next `minimize`."""
        self.steps, self.evaluations = int(state["steps"]), int(state["evaluations"])
        self._pending = dict(state["arrays"])

    def _attach(self, objective: Objective) -> None:
        """What is kept belongs to the parameters of before: with others it is forgotten, or comes from a loaded state."""
        before, self._objective = self._objective, objective
        if self._pending is not None:
            names = dict.fromkeys(key.partition(".")[2] for key in self._pending)
            self._take({name: objective.vector(self._pending, name) for name in names})
            self._pending = None
        elif before is None or before.places != objective.places:
            self._take({})


class _Trial(NamedTuple):
    """A point on the line of a search: how far it is, and the loss's slope there."""

    step: float
    slope: float
    point: Point

    @property
    def loss(self) -> float:
        return self.point.loss


def _cubic(a: _Trial, b: _Trial, least: float, most: float) -> float:
    """Where the cubic through the losses and slopes of two trials is smallest (Nocedal and Wright 2006, eq. 3.59), kept
    within bounds; their middle where there is none."""
    first = a.slope + b.slope - 3.0 * (a.loss - b.loss) / (a.step - b.step)
    square = first * first - a.slope * b.slope
    if 0.0 <= square < math.inf:
        second = math.copysign(math.sqrt(square), b.step - a.step)
        below = b.slope - a.slope + 2.0 * second
        if below:
            return min(max(b.step - (b.step - a.step) * (b.slope + second - first) / below, least), most)
    return (least + most) / 2.0


class LBFGS(Minimizer):
    """L-BFGS: w += a p, p = -H g, where H approximates the inverse Hessian by the last `history` pairs of changes,
    s of the weights and y of the gradient (Nocedal 1980; Nocedal and Wright 2006, algorithms 7.4 and 7.5).

    The two loops start from H = (s . y / y . y) I (eq. 7.20); a pair with s . y <= eps |s| |y| is left out. The step a
    meets the strong Wolfe conditions with c1 = 1e-4 and c2 = 0.9 (algorithms 3.5 and 3.6, cubic interpolation). Its
    first trial is `lr`, and before there is a pair lr min(1, 1 / sum |g|), as in PyTorch. Memory: 2 history vectors.
    See `minimize`; Nielsen's book mentions it in chapter 3, "Other approaches to learning".
    """

    def __init__(
        self,
        lr: float = 1.0,
        history: int = 10,
        tolerance_gradient: float = 1e-7,
        tolerance_change: float = 1e-9,
    ) -> None:
        super().__init__(tolerance_gradient, tolerance_change)
        self.lr = in_range("LBFGS lr", lr, 0.0, math.inf, "()")
        self.history = check_count("LBFGS history", history, 1)
        self._pairs: deque[tuple[Tensor, Tensor, float]] = deque(maxlen=self.history)  # s, y, s . y

    def _vectors(self) -> dict[str, Tensor]:
        return {f"{name}{i}": v for i, (s, y, _) in enumerate(self._pairs) for name, v in (("s", s), ("y", y))}

    def _take(self, vectors: dict[str, Tensor]) -> None:
        self._pairs.clear()
        for i in range(len(vectors) // 2):
            s, y = vectors[f"s{i}"], vectors[f"y{i}"]
            self._pairs.append((s, y, dot(s, y)))

    def _direction(self, gradient: Tensor) -> Tensor:
        """-H g by two loops over the pairs (algorithm 7.4)."""
        p, shares = -gradient, []
        for s, y, sy in reversed(self._pairs):
            shares.append(dot(s, p) / sy)
            p = p - shares[-1] * y
        if self._pairs:
            _, y, sy = self._pairs[-1]
            p = p * (sy / dot(y, y))
        for (s, y, sy), share in zip(self._pairs, reversed(shares)):
            p = p + (share - dot(y, p) / sy) * s
        return p

    def _advance(self, objective: Objective, here: Point) -> Point | None:
        p = self._direction(here.gradient)
        slope = dot(p, here.gradient)
        first = self.lr if self._pairs else self.lr * min(1.0, 1.0 / float(abs(here.gradient).sum()))
        there = self._search(objective, here, p, slope, first) if slope < 0.0 else here
        if there is here:
            if not self._pairs:
                return None
            self._pairs.clear()  # what they say of the curvature is wrong here: along the gradient
            return self._advance(objective, here)
        s, y = there.w - here.w, there.gradient - here.gradient
        sy = dot(s, y)
        if sy > np.finfo(objective.dtype).eps * math.sqrt(dot(s, s) * dot(y, y)):
            self._pairs.append((s, y, sy))
        return there

    def _search(self, objective: Objective, here: Point, p: Tensor, slope: float, first: float) -> Point:
        """Along p, a point with the strong Wolfe conditions; else the lowest one found, which may be `here`.

        Algorithms 3.5 (while `high` is None, steps grow) and 3.6 (it lies between `low`, the lowest so far, and `high`).
        """
        low, high, step = _Trial(0.0, slope, here), None, first
        resolved = np.finfo(objective.dtype).eps * abs(here.loss)
        for _ in range(TRIALS):
            point = objective.point(here.w + step * p)
            trial = _Trial(step, dot(point.gradient, p), point)
            if not (trial.loss <= here.loss + DECREASE * step * slope and trial.loss < low.loss):
                high = trial
            elif abs(trial.slope) <= -CURVATURE * slope:
                return point
            else:
                before, rises = low, trial.slope * (high.step - low.step if high else 1.0) >= 0.0
                low, high = trial, low if rises else high
                if high is None:
                    step = _cubic(before, low, step + 0.01 * (step - before.step), 10.0 * step)
            if high is not None:
                width = high.step - low.step
                if abs(width * slope) <= resolved:  # losses in between cannot be told apart
                    break
                near, far = sorted((low.step + 0.1 * width, high.step - 0.1 * width))
                step = _cubic(low, high, near, far) if math.isfinite(high.loss) else low.step + 0.1 * width
        if low.point is here and not math.isfinite(point.loss):
            raise self._diverged(point, here)
        return low.point


class HessianFree(Minimizer):
    """Truncated Newton: w += a p, where conjugate gradients solve (H + damping I) p = -g with products H v alone.

    H v is a central difference of gradients, exact to about eps^(2/3), see `Objective.hessian_vector`: each of up to
    `iterations` iterations costs two evaluations. They stop where the residual's norm is no more than
    min(0.5, sqrt(|g|)) |g|, and at negative curvature, with what they have, or -g if that is nothing (Nocedal and Wright
    2006, algorithm 7.1). The ratio of the loss's change to the quadratic model's moves the damping (Levenberg and
    Marquardt): below 1/4, or at negative curvature, it grows by 3/2, above 3/4 it shrinks to 2/3 (Martens 2010, section
    4.1); 0 stays 0. a is halved from 1 until the loss falls by 1e-4 of what the slope promises, so the loss never rises. See
    `minimize`; Nielsen's book describes the Hessian technique in chapter 3, "Other approaches to learning".
    """

    def __init__(
        self,
        damping: float = 0.1,
        iterations: int = 50,
        tolerance_gradient: float = 1e-7,
        tolerance_change: float = 1e-9,
    ) -> None:
        super().__init__(tolerance_gradient, tolerance_change)
        self.damping = in_range("HessianFree damping", damping, 0.0, math.inf)
        self.iterations = check_count("HessianFree iterations", iterations, 1)

    def _solve(self, objective: Objective, here: Point) -> tuple[Tensor, float, bool]:
        """p, the change of the loss that the model without damping promises, and whether all curvature was positive."""
        enough = min(0.5, math.sqrt(here.norm)) * here.norm
        p, r, convex = 0.0 * here.gradient, -here.gradient, True  # r = -g - (H + damping) p
        d, rr = r, here.norm**2
        for iteration in range(self.iterations):
            ad = objective.hessian_vector(here.w, d) + self.damping * d
            curvature = dot(d, ad)
            if not curvature > 0.0:
                p, convex = p if iteration else r, False
                break
            p, r = p + rr / curvature * d, r - rr / curvature * ad
            before, rr = rr, dot(r, r)
            if math.sqrt(rr) <= enough:
                break
            d = r + rr / before * d
        return p, 0.5 * (dot(here.gradient, p) - dot(r, p) - self.damping * dot(p, p)), convex

    def _advance(self, objective: Objective, here: Point) -> Point | None:
        p, promised, convex = self._solve(objective, here)
        slope = dot(here.gradient, p)
        for trial in range(TRIALS):
            share = 0.5**trial
            there = objective.point(here.w + share * p)
            if not trial:
                ratio = (there.loss - here.loss) / promised if convex and promised < 0.0 else 0.0
                self.damping *= 2.0 / 3.0 if ratio > 0.75 else 1.0 if ratio >= 0.25 else 1.5  # NaN is not above 1/4
            if there.loss <= here.loss + DECREASE * share * slope and there.loss < here.loss:
                return there
        if not math.isfinite(there.loss):
            raise self._diverged(there, here)
        return None

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "damping": self.damping}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.damping = in_range("the damping in the state", state["damping"], 0.0, math.inf)
        super().load_state_dict(state)
