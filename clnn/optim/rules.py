"""The rules: nine small classes, each with its formula, the buffers that it keeps and the numbers that its kernel reads."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..checks import in_range
from ..errors import ConfigurationError
from ..gemm import Scale
from ..tensor import Parameter, Place
from .base import Optimizer
from .rates import ROWS, Rate

__all__ = [
    "SGD", "Adam", "AdamW", "AMSGrad", "Nadam", "RMSprop", "Adagrad", "Adadelta", "Lion",
]  # fmt: skip


class SGD(Optimizer):
    """Stochastic gradient descent: w -= lr g, with momentum v = momentum v + g, w -= lr v.

    `nesterov` looks ahead: w -= lr (g + momentum v). `weight_decay` adds weight_decay w to the gradient (L2), or with
    `decoupled=True` shrinks weights by 1 - lr weight_decay apart from it; `l1` adds l1 sign(w). The book's lambda is
    weight_decay = lambda / n for n training samples. (Sutskever et al. 2013; Nielsen chapter 3; the series 15 and 16)
    `options` of this and of the other rules: those of `Optimizer`.
    """

    def __init__(
        self, lr: Rate = 0.01, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0, decoupled: bool = False,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(lr, weight_decay, **options)
        self.momentum = in_range("momentum", momentum, 0.0, 1.0)
        if nesterov and not momentum:
            raise ConfigurationError("nesterov=True needs a momentum above 0, such as 0.9")
        self.nesterov, self.decoupled = bool(nesterov), bool(decoupled)

    @property
    def rule(self) -> str:  # type: ignore[override]
        return "nesterov" if self.nesterov else "momentum" if self.momentum else "sgd"

    @property
    def states(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("velocity",) if self.momentum else ()

    @property
    def shares(self) -> bool:  # type: ignore[override]
        return bool(self.momentum) and not self.nesterov and not self.plain and type(self).numbers is SGD.numbers

    def numbers(self, lr: np.ndarray, t: np.ndarray) -> tuple[Any, ...]:
        return lr, self.momentum

    def sink(self, p: Parameter, single: bool) -> tuple[Scale, Place] | None:
        if self.nesterov or type(self).numbers is not SGD.numbers:  # others are read by the rule alone
            return None
        if self.momentum:
            return Scale.constant(p.device, p.dtype, 1.0, self.momentum), "velocity"
        if single and not self.l1 and self.ema is None and p.rate_factor == 1.0:
            return self._rates.scale(p, 0 if p.decays else 1), "straight"
        return None


class Adam(Optimizer):
    """Adam with bias correction (Kingma and Ba 2015, algorithm 1); `weight_decay` is L2, in the gradient."""

    rule = "adam"
    states: tuple[str, ...] = ("mean", "square")

    def __init__(
        self, lr: Rate = 0.001, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8, weight_decay: float = 0.0,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(lr, weight_decay, **options)
        kind = type(self).__name__
        self.beta1 = in_range(f"{kind} beta1", beta1, 0.0, 1.0)
        self.beta2 = in_range(f"{kind} beta2", beta2, 0.0, 1.0)
        self.epsilon = in_range(f"{kind} epsilon", epsilon, 0.0, math.inf)

    def numbers(self, lr: np.ndarray, t: np.ndarray) -> tuple[Any, ...]:
        # m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon), with the corrections moved into lr and epsilon
        root = np.sqrt(1.0 - self.beta2**t)
        return lr * root / (1.0 - self.beta1**t), self.beta1, self.beta2, self.epsilon * root


class AdamW(Adam):
    """Adam with decoupled weight decay: w *= 1 - lr weight_decay (Loshchilov and Hutter 2019)."""

    decoupled = True

    def __init__(self, lr: Rate = 0.001, weight_decay: float = 0.01, **options: Any) -> None:
        super().__init__(lr, weight_decay=weight_decay, **options)


class AMSGrad(Adam):
    """Adam that divides by the largest second moment so far, so that steps never grow again (Reddi et al. 2018).

    The largest of the uncorrected moments is kept and then corrected, as in PyTorch's Adam(amsgrad=True).
    """

    rule, states = "amsgrad", ("mean", "square", "largest")


class Nadam(Adam):
    """Adam with Nesterov's momentum (Dozat 2016), in PyTorch's form:

    mu(t) = beta1 (1 - 0.96^(t momentum_decay) / 2), P(t) = mu(1) ... mu(t),
    w -= lr (mu(t+1) m / (1 - P(t+1)) + (1 - mu(t)) g / (1 - P(t))) / (sqrt(v / (1 - beta2^t)) + epsilon).
    """

    rule = "nadam"

    def __init__(
        self, lr: Rate = 0.002, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8, momentum_decay: float = 0.004,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(lr, beta1, beta2, epsilon, **options)
        self.momentum_decay = in_range("Nadam momentum_decay", momentum_decay, 0.0, math.inf)

    def _mu(self, t: np.ndarray) -> np.ndarray:
        return self.beta1 * (1.0 - 0.5 * 0.96 ** (t * self.momentum_decay))

    def _products(self, t: np.ndarray) -> np.ndarray:
        """P at steps t, which follow each other: one multiplication after the other, so that a resumed run gets the same
        bits; those before t[0] go in blocks, and only until nothing is left of the product."""
        product, first = 1.0, 1
        while first < t[0] and product > 0.0:
            last = min(int(t[0]), first + ROWS)
            product = float(np.cumprod(np.append(product, self._mu(np.arange(first, last))))[-1])
            first = last
        return np.cumprod(np.append(product, self._mu(t)))[1:]

    def numbers(self, lr: np.ndarray, t: np.ndarray) -> tuple[Any, ...]:
        root = np.sqrt(1.0 - self.beta2**t)
        products = self._products(np.append(t, t[-1] + 1))
        of_gradient = (1.0 - self._mu(t)) / (1.0 - products[:-1])
        of_moment = self._mu(t + 1) / (1.0 - products[1:])
        return lr * root * of_gradient, self.beta1, self.beta2, self.epsilon * root, of_moment / of_gradient


class RMSprop(Optimizer):
    """v = alpha v + (1 - alpha) g^2, w -= lr g / (sqrt(v) + epsilon) (Tieleman and Hinton 2012, lecture 6.5).

    `centered` subtracts the square of the mean gradient from v under the root; `momentum` gathers the steps before lr
    (Graves 2013, equations 38 to 45, in PyTorch's form, epsilon outside of the root).
    """

    def __init__(
        self, lr: Rate = 0.01, alpha: float = 0.99, epsilon: float = 1e-8, momentum: float = 0.0, centered: bool = False,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(lr, **options)
        self.alpha = in_range("RMSprop alpha", alpha, 0.0, 1.0)
        self.epsilon = in_range("RMSprop epsilon", epsilon, 0.0, math.inf, "()")
        self.momentum, self.centered = in_range("momentum", momentum, 0.0, 1.0), bool(centered)

    @property
    def rule(self) -> str:  # type: ignore[override]
        return f"rmsprop{'_centered' * self.centered}{'_momentum' * bool(self.momentum)}"

    @property
    def states(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("square", *(["mean"] if self.centered else []), *(["velocity"] if self.momentum else []))

    def numbers(self, lr: np.ndarray, t: np.ndarray) -> tuple[Any, ...]:
        return lr, self.alpha, self.momentum, self.epsilon


class Adagrad(Optimizer):
    """s += g^2, w -= lr g / (sqrt(s) + epsilon) (Duchi et al. 2011); lr is divided by 1 + lr_decay t, t = 0, 1, ..."""

    rule, states = "adagrad", ("square",)

    def __init__(self, lr: Rate = 0.01, lr_decay: float = 0.0, epsilon: float = 1e-10, **options: Any) -> None:
        super().__init__(lr, **options)
        self.lr_decay = in_range("Adagrad lr_decay", lr_decay, 0.0, math.inf)
        self.epsilon = in_range("Adagrad epsilon", epsilon, 0.0, math.inf, "()")

    def numbers(self, lr: np.ndarray, t: np.ndarray) -> tuple[Any, ...]:
        return lr / (1.0 + (t - 1) * self.lr_decay), 0.0, 0.0, self.epsilon


class Adadelta(Optimizer):
    """v = rho v + (1 - rho) g^2, u = sqrt(d + epsilon) / sqrt(v + epsilon) g, d = rho d + (1 - rho) u^2, w -= lr u
    (Zeiler 2012, algorithm 1)."""

    rule, states = "adadelta", ("square", "change")

    def __init__(self, lr: Rate = 1.0, rho: float = 0.9, epsilon: float = 1e-6, **options: Any) -> None:
        super().__init__(lr, **options)
        self.rho = in_range("Adadelta rho", rho, 0.0, 1.0)
        self.epsilon = in_range("Adadelta epsilon", epsilon, 0.0, math.inf, "()")

    def numbers(self, lr: np.ndarray, t: np.ndarray) -> tuple[Any, ...]:
        return lr, self.rho, 0.0, self.epsilon


class Lion(Optimizer):
    """w -= lr sign(beta1 m + (1 - beta1) g), m = beta2 m + (1 - beta2) g; decay is decoupled (Chen et al. 2023,
    algorithm 2). Its rates are 3 to 10 times smaller than Adam's, and its decay as many times larger."""

    rule, states, decoupled = "lion", ("mean",), True

    def __init__(
        self, lr: Rate = 0.0001, beta1: float = 0.9, beta2: float = 0.99, weight_decay: float = 0.0, **options: Any
    ) -> None:
        super().__init__(lr, weight_decay, **options)
        self.beta1, self.beta2 = in_range("Lion beta1", beta1, 0.0, 1.0), in_range("Lion beta2", beta2, 0.0, 1.0)

    def numbers(self, lr: np.ndarray, t: np.ndarray) -> tuple[Any, ...]:
        return lr, self.beta1, self.beta2
