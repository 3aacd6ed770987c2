"""Comparisons of a device's results with float64: the child's side of `clnn verify`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...layers.base import Layer
from ...ops.array import Array
from ...runtime.device import Device
from ...tensor import Parameter, Tensor, tensor

SEED = 20_141_215
MOST = 5  # wrong results of a family that are told one by one


class Checks:
    """What one family computes, compared with what it should be: `say` takes what happens, as it happens."""

    def __init__(self, device: Device, say: Callable[..., None], dtype: Any = np.float32) -> None:
        self.device, self.say, self.dtype = device, say, np.dtype(dtype)
        self.rng = np.random.default_rng(SEED)
        self.eps = float(np.finfo(dtype).eps)
        self.name, self.count, self.wrong, self.share = "", 0, 0, 0.0

    def case(self, name: str) -> None:
        """What comes next: a crash is told by it."""
        self.name = name
        self.say(case=name)

    def normal(self, *shape: int) -> np.ndarray:
        """Normal values of the type under test, as float64: device and reference start from the same numbers."""
        return self.rng.standard_normal(shape).astype(self.dtype).astype(np.float64)

    def tensor(self, array: np.ndarray) -> Tensor:
        """The array's values on the device."""
        return tensor(array.astype(self.dtype), dtype=self.dtype, device=self.device)

    def parameter(self, array: np.ndarray) -> Parameter:
        """A trainable tensor with the array's values."""
        p = tensor(array.astype(self.dtype), dtype=self.dtype, device=self.device, requires_grad=True)
        assert isinstance(p, Parameter)
        return p

    # -- comparing ----------------------------------------------------------------------------------------------------
    def close(self, what: str, got: Any, want: Any, rounding: float = 32.0, scale: Any = None) -> None:
        """|got - want| <= rounding eps scale everywhere; `scale`, a number or an array, is the largest of `want` and 1
        where it is not given. NaN and infinities only where they are expected."""
        got, want = _host(got), np.asarray(want, np.float64)
        if got.shape != want.shape:
            self._wrong(what, f"the shape {got.shape} instead of {want.shape}", math.inf)
            return
        finite = np.isfinite(want)
        if scale is None:
            scale = max(1.0, float(np.abs(want[finite]).max(initial=0.0)))
        allowed = np.broadcast_to(rounding * self.eps * np.asarray(scale, np.float64), want.shape)
        with np.errstate(all="ignore"):
            off = np.where((got == want) | (np.isnan(got) & np.isnan(want)), 0.0, np.abs(got - want))
            off = np.where(np.isnan(off), np.inf, off)
            share = np.where(off == 0, 0.0, off / allowed)
        self._judge(what, got, want, off, allowed, share)

    def same(self, what: str, got: Any, want: Any) -> None:
        """The same values exactly."""
        self.close(what, got, want, scale=0.0)

    def true(self, what: str, fulfilled: bool, said: str) -> None:
        """A statement; `said` is what was found instead."""
        self.count += 1
        if not fulfilled:
            self._wrong(what, said, math.inf)

    def _judge(
        self, what: str, got: np.ndarray, want: np.ndarray, off: np.ndarray, allowed: np.ndarray, share: np.ndarray
    ) -> None:
        self.count += want.size
        if not want.size:
            return
        at = np.unravel_index(int(share.argmax()), share.shape)
        self.share = max(self.share, float(share[at]))
        if share[at] > 1:
            place = tuple(map(int, at))
            bad = int((share > 1).sum())
            text = (
                f"wrong by {off[at]:.3g} where {allowed[at]:.3g} is allowed, worst at {place}: {got[at]:.6g} instead of "
                f"{want[at]:.6g} ({bad:,} of {want.size:,} elements)"
            )
            self._wrong(what, text, float(off[at]), place=place, elements=bad, of=want.size)

    def _wrong(self, what: str, text: str, off: float, **more: Any) -> None:
        self.wrong += 1
        if self.wrong <= MOST:
            self.say(wrong=f"{what} of {self.name}: {text}", off=off if math.isfinite(off) else str(off), **more)

    # -- ops and layers, there and back -------------------------------------------------------------------------------
    def op(
        self, case: str, op: Callable[..., Tensor], reference: Callable[..., Any], *arrays: np.ndarray, rounding: float = 32.0
    ) -> None:  # fmt: skip
        """`op` of tensors against `reference` of arrays, which gives its result and the closure of its gradients."""
        self.case(case)
        inputs = [self.parameter(a) for a in arrays]
        y = op(*inputs)
        with np.errstate(all="ignore"):
            want, backward = reference(*arrays)
        self.close("y", y, want, rounding)
        dy = self.normal(*want.shape)
        y.backward(dy.astype(self.dtype))
        for i, (x, dx) in enumerate(zip(inputs, backward(dy))):
            self.close(f"gradient {i}" if len(inputs) > 1 else "dx", _gradient(x), dx, 2 * rounding)

    def layer(
        self, case: str, layer: Layer, reference: Callable[..., Any], x: np.ndarray, rounding: float = 32.0
    ) -> None:
        """A layer as its users call it, with weights of our own, against `reference` of x and its parameters."""
        self.case(case)
        layer.place(self.device, self.dtype)
        layer.ensure_built(x.shape[1:])
        state = {
            name: self.normal(*p.shape) / math.sqrt(max(1, math.prod(p.shape[1:]))) for name, p in _learning(layer)
        }
        state = {name: value.astype(self.dtype).astype(np.float64) for name, value in state.items()}
        layer.load_state_dict({**layer.state_dict(), **state})
        given = self.parameter(x)
        y = layer(given)
        want, backward = reference(x, *state.values())
        self.close("y", y, want, rounding)
        dy = self.normal(*want.shape)
        y.backward(dy.astype(self.dtype))
        found = {"dx": given, **{f"d{name}": p for name, p in _learning(layer)}}
        for (name, p), gradient in zip(found.items(), backward(dy)):
            self.close(name, _gradient(p), gradient, 2 * rounding)

    def finish(self) -> dict[str, Any]:
        """The family in numbers."""
        programs = sorted({key[0] for key in self.device.programs._programs})
        return {"comparisons": self.count, "wrong_results": self.wrong, "share": self.share, "files": programs}


def _learning(layer: Layer) -> Sequence[tuple[str, Parameter]]:
    return [(name, p) for name, p in layer.named_parameters() if p.learns]


def _gradient(p: Parameter) -> np.ndarray:
    return np.full(p.shape, np.nan) if p.grad is None else p.grad.numpy()


def _host(x: Any) -> np.ndarray:
    if isinstance(x, Array):  # a tensor too
        x = x.device.read(x.block, np.empty(x.shape, x.dtype))
    return np.asarray(x).astype(np.float64)
