"""`Tensor`: an array on a device that remembers how it was made, so that `backward()` can take gradients back (tape.py)."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from numbers import Number
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike

from . import foreign, notebook
from .checks import leaves, numbers, several, shape_of, sizes, spread
from .errors import ClnnError, ShapeError
from .gemm import Scale, constant_block
from .ops.activation import FUNCTIONS, SOFTMAX, unary
from .ops.aggregate import reduce
from .ops.array import FLOATS, MASK, Array, Backward, Sink, empty, fill
from .ops.elementwise import BINARY, binary, convert
from .ops.index import arange, check_rows, gather, is_basic, take, take_items
from .ops.linear import linear, matmul
from .ops.reduce import Axis, argmax
from .ops.shape import broadcast_to, concatenate, reshape, take_slice, transpose
from .ops.softmax import softmax
from .runtime.device import Device, DType
from .runtime.devices.choice import resolve
from .runtime.memory import Block
from .runtime.shared import lend
from .runtime.watching.watch import Restored, structure_changed
from .tape import Node, backpropagate, grad_enabled, moment

# Where a parameter's gradient is written: into a buffer of its own, into the velocity, or straight into the weights
Place = Literal["plain", "velocity", "straight"]
Operand = Array | np.ndarray | np.generic | Sequence[Any] | float | Decimal | Fraction  # of + and the like


class _Made(threading.local):
    """The tensors that a thread makes in a dry pass (nothing is launched), where somebody wants to know them."""

    here: list[weakref.ref[Tensor]] | None = None


_made = _Made()


@contextlib.contextmanager
def tensors_made() -> Iterator[list[weakref.ref[Tensor]]]:
    """Weak references to the tensors that this thread makes within it in a dry pass, without values."""
    before, _made.here = _made.here, []
    try:
        yield _made.here
    finally:
        made, _made.here = _made.here, before
        if before is not None:
            before += made


def _operator(name: str, swapped: bool = False) -> Callable[[Any, Operand], Tensor]:
    """A method of two operands by the function's name in BINARY; `swapped`: the tensor is the second."""
    if swapped:
        return lambda self, other: elementwise(name, other, self)
    return lambda self, other: elementwise(name, self, other)


def _logic(name: str) -> Callable[..., Tensor]:
    """A method of masks; of anything else it is an error, since elsewhere its bits would count."""

    def of_masks(*masks: Any) -> Tensor:
        if all(map(_of_truths, masks)):
            return elementwise(name, *(x != 0 if getattr(x, "dtype", None) == np.int32 else x for x in masks))
        raise ShapeError(f"& | ^ ~ are of masks: compare first, x != 0, or take clnn.{name}; bits are np.bitwise_and's")

    return of_masks


BITS = {f"bitwise_{name}": _logic(f"logical_{name}") for name in ("and", "or", "xor")}


def _in_place(self: Any, *_: Any) -> Any:
    """What would change values in place is an error, and so is `p -= x` of a parameter, which would only name another tensor."""
    raise ClnnError(
        "a tensor's values are not changed in place: make another one, y = x + 1; parameters take an optimizer's step, such as "
        'clnn.SGD(0.1).step(net.parameters()), or other values by net.load_state_dict({**net.state_dict(), "0.w": array})'
    )


class Tensor(Array, foreign.Read):
    """An array of float32, or float64 where that was asked for (or int32, for labels), on a device.

    Made by `clnn.tensor(array)`; `numpy()`, `float(t)` and `np.asarray(t)` bring it back, and wait for the device.
    `mask` is None, or (batch, steps) with 0 for each step that does not count, as `Masking` and `Embedding(mask_zero=True)` say
    it. It goes on from layer to layer; the result of an operation has none.
    """

    # `lent_by`: the parameter whose memory this is, as of a reshaped one
    __slots__ = ("node", "lent_by", "mask")
    __array_priority__ = 1000  # array + tensor calls Tensor.__radd__

    def __init__(self, block: Block, shape: Sequence[int], dtype: DType, device: Device) -> None:
        super().__init__(block, shape, dtype, device)
        self.node: Node | None = None
        self.mask: Tensor | None = None
        self.lent_by: Parameter | None = None
        if _made.here is not None and device.dry_now:
            _made.here.append(weakref.ref(self))

    # -- in and out ---------------------------------------------------------------------------------------------------
    def numpy(self) -> np.ndarray:
        """A copy on the host."""
        return self.device.read(self.block, np.empty(self.shape, self.dtype))

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("a tensor's values on the host are always a copy, and copy=False was asked for")
        array = self.numpy()
        return array if dtype is None else array.astype(dtype, copy=False)

    def to_pyopencl(self, queue: Any = None, *, copy: bool = False) -> Any:
        """A `pyopencl.array.Array` over the same memory, in clnn's queue or in another `queue` of the device's context. What is
        written into the array, the tensor holds.

        What clnn has enqueued before comes first. In another queue each side waits for the other from then on, by
        `queue.finish()` and `clnn.device().finish()`, also before it drops the array. With `copy` the memory is the array's own.
        Without, ClnnError for what clnn writes again (a parameter, its gradient, a layer's state), and for what depends on a
        parameter. ClnnError within a step.
        """
        self.device.check_outside("to_pyopencl()", "return the tensor, and call it on that")
        block = self.block
        if copy:
            block = self.device.allocate(self.nbytes)
            self.device.copy(self.block, block, self.nbytes)
        elif block.written_once:
            self.refuse_history("to_pyopencl()")
        return lend(self.device, block, self.shape, self.dtype, queue)

    def __dlpack__(
        self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: bool | None = None
    ) -> Any:
        if copy is False or stream is not None or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError(f"a tensor gives a copy in host memory; {copy=}, {stream=}, {dl_device=} was asked for")
        array = self.numpy()
        try:
            return array.__dlpack__(max_version=max_version)  # type: ignore[call-arg, unused-ignore]
        except TypeError:  # NumPy before 2.1
            return array.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)  # a copy in the host's memory

    def item(self) -> float:
        """The one element as a Python number."""
        if self.size != 1:
            raise ShapeError(f"only a tensor of one element is a number, and this one has the shape {self.shape}")
        value: float = self.numpy().reshape(()).item()
        if value != value:
            check_rows(self.device)
        return value

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a tensor without axes has no length, and no rows to go through")
        return self.shape[0]

    def __bool__(self) -> bool:
        if self.size != 1:
            why = f"a tensor of shape {self.shape} is neither true nor false"
            raise ShapeError(f"{why}: take its .max() or .min(), or compare tensors by `is`")
        return bool(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.numpy(), spec) if spec else str(self)  # of a tensor without axes, as of NumPy's arrays

    def __repr__(self) -> str:
        with np.printoptions(threshold=20, precision=4):
            inside = np.array2string(self.numpy(), separator=", ") if self.device.recorder is None else "..."
        return f"{type(self).__name__}({inside}, {self.dtype}, {self.device.name})"

    _repr_html_ = notebook.of_tensor

    def to(self, device: str | Device) -> Tensor:
        """A copy on another device. ClnnError where it has a history, which would not come along."""
        self.refuse_history("to()")
        return truths(tensor(self.numpy(), device=device, dtype=self.dtype), self)

    def astype(self, dtype: DTypeLike) -> Tensor:
        """A copy of another type. To int32 by way of the host, towards 0, and a ClnnError where it has a history, which would not
        come along; to float32 and float64 on the device, with a gradient."""
        if np.dtype(dtype) in FLOATS:
            self.device.real(np.dtype(dtype))  # an error where it has none
            return apply(convert, self, dtype=np.dtype(dtype))
        self.refuse_history("astype()")
        return tensor(self.numpy(), device=self.device, dtype=dtype)

    def detach(self) -> Tensor:
        """The same memory without its history."""
        y = Tensor(self.block, self.shape, self.dtype, self.device)
        y.made_by, y.lent_by, y.mask = self.made_by, _lender(self), self.mask
        return y

    def __reduce__(self) -> Any:
        self.refuse_history("a copy or a pickle")
        return tensor, (self.numpy(), self.dtype, self.device), (None, {"made_by": self.made_by})

    def refuse_history(self, what: str, instead: str = "give it ") -> None:
        """An error if `what`, which takes no gradient back, would silently cut this tensor off from what it depends on."""
        if self.requires_grad and grad_enabled():
            why = f"{what} takes no gradient back, and this tensor of shape {self.shape} depends on a parameter"
            raise ClnnError(f"{why}: {instead}.detach() to cut it off there")

    # -- gradients ----------------------------------------------------------------------------------------------------
    @property
    def requires_grad(self) -> bool:
        """Whether `backward()` from here reaches a parameter."""
        return self.node is not None

    def backward(self, gradient: Any = None) -> None:
        """Take the gradient of this tensor back to every parameter it depends on.

        Without `gradient` this must be a single number, such as a mean loss. The tape is used up: a second call needs a
        new forward pass. Until the optimizer has stepped, another loss's gradients are added.
        """
        # a parameter has none
        node = self.reshape(self.shape).node if self.node is None and self.requires_grad else self.node
        if node is None:
            why = "made under no_grad(), or it" if not grad_enabled() else "it"
            why += " depends on no trainable parameter, or a step returned it: call backward() within the step"
            raise ClnnError(f"backward(): this tensor has no history: {why}")
        if gradient is None:
            if self.size != 1:
                raise ShapeError(f"backward() without a gradient starts from one number, not from shape {self.shape}")
        else:
            gradient = tensor(gradient, device=self.device, dtype=self.dtype)
            if gradient.shape != self.shape:
                raise ShapeError(f"backward(): the gradient's shape {gradient.shape} is not the tensor's, {self.shape}")
        backpropagate(node, gradient)

    # -- arithmetic ---------------------------------------------------------------------------------------------------
    __add__ = __radd__ = _operator("add")
    __sub__, __rsub__ = _operator("subtract"), _operator("subtract", swapped=True)
    __mul__ = __rmul__ = _operator("multiply")
    __truediv__, __rtruediv__ = _operator("divide"), _operator("divide", swapped=True)
    __mod__, __rmod__ = _operator("remainder"), _operator("remainder", swapped=True)
    __floordiv__, __rfloordiv__ = _operator("floor_divide"), _operator("floor_divide", swapped=True)
    __rpow__ = _operator("power", swapped=True)
    __lt__, __le__ = _operator("less"), _operator("less_equal")
    __gt__, __ge__ = _operator("greater"), _operator("greater_equal")
    __and__ = __rand__ = BITS["bitwise_and"]  # (t > 0) & (t < 1)
    __or__ = __ror__ = BITS["bitwise_or"]
    __xor__ = __rxor__ = BITS["bitwise_xor"]
    __matmul__, __rmatmul__ = (lambda self, other: _matmul(self, other)), (lambda self, other: _matmul(other, self))

    def __pow__(self, other: Operand) -> Tensor:
        if isinstance(other, (int, float)) and other == 2 and self.dtype != np.int32:
            return apply(unary, self, name="square")
        return elementwise("power", self, other)

    def __neg__(self) -> Tensor:
        return elementwise("subtract", 0, self) if self.dtype == np.int32 else apply(unary, self, name="negative")

    def __abs__(self) -> Tensor:
        return apply(unary, self, name="abs")

    def __eq__(self, other: Any) -> Any:
        return elementwise("equal", self, other) if _is_number(other) else NotImplemented

    def __ne__(self, other: Any) -> Any:
        return elementwise("not_equal", self, other) if _is_number(other) else NotImplemented

    def __invert__(self) -> Tensor:
        return self ^ True

    __hash__ = object.__hash__  # dicts and sets hold tensors by identity

    # -- as NumPy and Python know arrays ------------------------------------------------------------------------------
    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """`array + tensor` is the tensor's own; other functions of NumPy get the values of tensors without a history."""
        name = UFUNCS.get(ufunc.__name__)
        if name and method == "__call__" and not options:
            return _matmul(*inputs) if name == "matmul" else elementwise(name, *inputs)
        if ufunc.__name__ in BITS and method == "__call__" and not options and all(map(_of_truths, inputs)):
            return BITS[ufunc.__name__](*inputs)  # mask & tensor
        return _by_numpy(ufunc.__name__, getattr(ufunc, method), inputs, options)

    def __array_function__(self, function: Any, types: Any, inputs: Any, options: Any) -> Any:
        return _by_numpy(function.__name__, function, inputs, options)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __contains__(self, value: Any) -> bool:
        """Whether an element equals `value`."""
        equal = self == value
        return bool(equal.size and equal.max()) if isinstance(equal, Tensor) else False

    # -- reductions and shapes ----------------------------------------------------------------------------------------
    def sum(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """The sum over an axis, several, or all of them (None); `keepdims` leaves them with length 1. ShapeError for an axis
        that there is not. The error grows with log n (kernels/common.cl).

        >>> clnn.tensor([[1.0, 2.0], [3.0, 4.0]]).sum(axis=0).numpy()
        array([4., 6.], dtype=float32)
        """
        return apply(reduce, self, kind="sum", axis=axis, keepdims=keepdims)

    def mean(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """The mean over an axis, several, or all of them, as `sum` takes them. ShapeError over no elements.

        >>> float(clnn.tensor([[1.0, 2.0], [3.0, 4.0]]).mean())
        2.5
        """
        return apply(reduce, self, kind="mean", axis=axis, keepdims=keepdims)

    def max(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """The largest over an axis, several, or all of them, as `sum` takes them; NaN where one is. Those that
        are equal share the gradient. ShapeError over no elements.

        >>> clnn.tensor([[1.0, 2.0], [3.0, 4.0]]).max(axis=1, keepdims=True).shape
        (2, 1)
        """
        return apply(reduce, self, kind="max", axis=axis, keepdims=keepdims)

    def min(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """The smallest over an axis, several, or all of them; otherwise as `max`.

        >>> float(clnn.tensor([[1.0, 2.0], [3.0, 4.0]]).min())
        1.0
        """
        return apply(reduce, self, kind="min", axis=axis, keepdims=keepdims)

    def argmax(self, axis: int | None = -1) -> Tensor:
        """Where along an axis, or with None among all elements, the largest is, as int32: the first of those that are equal, the
        first NaN where there is one. It has no gradient.

        >>> clnn.tensor([[1.0, 2.0], [4.0, 3.0]]).argmax().numpy()
        array([1, 0], dtype=int32)
        """
        return _wrap(argmax(self, axis))

    def reshape(self, *shape: Any) -> Tensor:
        """The same elements in the same order, in another shape, with one -1 for what is left over. Nothing is copied. ShapeError
        where the number of elements differs.

        >>> clnn.tensor([[1, 2, 3], [4, 5, 6]]).reshape(3, -1).shape
        (3, 2)
        """
        return apply(reshape, self, shape=spread("reshape", shape))

    def transpose(self, *axes: Any) -> Tensor:
        """The axes in another order: axis i of the result is axis axes[i]; without axes, all in reverse. ShapeError unless each
        axis is named once.

        >>> clnn.zeros((2, 3, 4)).transpose(0, 2, 1).shape
        (2, 4, 3)
        """
        return apply(transpose, self, axes=spread("transpose", axes) if axes and axes != (None,) else None)

    @property
    def T(self) -> Tensor:
        """`transpose()`: all axes in reverse."""
        return self.transpose()

    def broadcast_to(self, shape: Sequence[int]) -> Tensor:
        """Repeated along new axes in front and along axes of length 1, as NumPy has it; the gradient is summed over them.
        ShapeError where an axis has another length.

        >>> clnn.tensor([1.0, 2.0]).broadcast_to((3, 2)).numpy()
        array([[1., 2.],
               [1., 2.],
               [1., 2.]], dtype=float32)
        """
        return apply(broadcast_to, self, shape=sizes("broadcast_to", shape))

    def __getitem__(self, key: Any) -> Tensor:
        return apply(take_slice if is_basic(key) else take_items, self, key=key)

    __setitem__ = _in_place


def _told(slot: str, doc: str) -> Any:
    """An attribute kept in `slot` whose change recordings hear of."""

    def write(self: Any, value: Any) -> None:
        if getattr(self, slot, value) != value:
            structure_changed()
        setattr(self, slot, value)

    return property(lambda self: getattr(self, slot), write, doc=doc)


class Parameter(Tensor, foreign.Called, Restored):
    """A tensor that learns, or with `learns=False` one that is kept with those that do: statistics, which no optimizer
    touches, and which are saved, loaded and moved as all parameters are.

    `sink` = (scale, kind) says how its gradient is written: None for plainly into the gradient's buffer; else, within
    `Optimizer.descend`, "velocity" (into the gradient's buffer, which is the velocity) or "straight" (into the parameter
    itself). `uses` counts the gradients received since the last step: a later one is added to the first. `since` says when
    the first of them came, as `tape.moment()` counts. `forward_uses` counts what has read it since then, and `version`
    how often its values have changed.
    """

    __slots__ = (
        "name", "learns", "_trainable", "_decays", "_rate_factor", "_max_norm", "sink", "uses", "since", "forward_uses",
        "version", "store", "position", "_grad", "_last",
    )  # fmt: skip

    def __init__(
        self, block: Block, shape: Sequence[int], dtype: DType, device: Device, name: str = "", learns: bool = True
    ) -> None:
        super().__init__(block, shape, dtype, device)
        self.name, self.learns, self._trainable = name, learns, True
        self.decays = len(self.shape) > 1  # weight decay is for weights, not for biases
        self.rate_factor = 1.0  # of the optimizer's learning rate
        self.max_norm = None  # of a column, or a number, which each step ends with
        self.sink: tuple[Scale, Place] | None = None
        self.uses = self.since = self.forward_uses = self.version = 0
        self.store: Any = None  # the flat store that it is a view of, see parameters.py
        self.position = 0
        self._grad: Block | None = None
        self._last = ""

    @property
    def trainable(self) -> bool:
        """Whether it gets gradients and updates; False freezes it. Never so for one that does not learn."""
        return self._trainable and self.learns

    @trainable.setter
    def trainable(self, value: bool) -> None:
        if self._trainable != bool(value):
            structure_changed()
        self._trainable = bool(value)

    decays = _told("_decays", "Whether weight decay and L1 apply to it, as they do to weights and not to biases.")
    rate_factor = _told("_rate_factor", "What the learning rate is multiplied by for it: 1.0 unless set.")
    max_norm = _told("_max_norm", "The length that the weights into a unit are cut to after each step; None for any.")

    @property
    def requires_grad(self) -> bool:
        return self.trainable

    __iadd__ = __isub__ = __imul__ = __itruediv__ = __ifloordiv__ = __imod__ = __ipow__ = __imatmul__ = _in_place

    def gradient_block(self) -> Block:
        """Where gradients (or, under momentum, velocities) are; made at first need."""
        if self._grad is None:
            if self.store:
                self._grad = self.store.gradients().view(self.position, self.nbytes)
            else:
                self._grad = self.device.memory.allocate(self.nbytes)
        return self._grad

    @property
    def grad(self) -> Tensor | None:
        """The gradient that the last `backward()` left, or None."""
        if self._last in ("straight", "velocity"):
            into = "the weights" if self._last == "straight" else "the velocity"
            why = f"{self.name or 'this parameter'} has no gradient of its own: its last step wrote it straight into {into}"
            raise ClnnError(f"{why}. Give the optimizer keep_gradients=True to read gradients.")
        if not self._last:
            return None
        return Tensor(self.gradient_block(), self.shape, self.dtype, self.device)

    @grad.setter
    def grad(self, value: Any) -> None:
        """What the next step takes for the gradient instead: None for none, a tensor or an array of its shape for another."""
        if value is None:
            self.zero_grad()
            return
        value = tensor(value, self.dtype, self.device)
        value.refuse_history("a gradient")
        if value.shape != self.shape:
            raise ShapeError(f"the gradient of a parameter of shape {self.shape} has that shape too, not {value.shape}")
        if self.store is not None:
            self.store.reclaim()
        block = self.gradient_block()
        if value.block is not block:
            self.device.copy(value.block, block, self.nbytes)
        self._note()
        self.received(max(1, self.uses), "plain")

    def detach(self) -> Tensor:
        self.forward_uses += 1  # whoever gets it may read it later than any gradient tells
        return super().detach()

    def zero_grad(self) -> None:
        """Forget the gradients received so far: the next one is assigned, not added."""
        self._note()
        self.spent()
        self._last = ""

    def spent(self) -> None:
        """A step has used the gradients received so far up: the next one is assigned, and until then they can be read."""
        self.uses = self.forward_uses = 0

    def received(self, uses: int, kind: str) -> None:
        """Its gradients are `uses` by now, and the last one went where `kind` says."""
        if uses and not self.uses:
            self.since = moment()
        self.uses, self._last = uses, kind

    def _note(self) -> None:
        """Before `uses` changes within a step: a replay has to leave it as this call does."""
        if self.device.step is not None:
            self.device.step.received.setdefault(self, self.uses)

    def discard_gradient(self) -> None:
        """A backward pass broke off half-way: what it wrote is zeroed."""
        if self._grad is not None:
            self.device.fill_zero(self._grad)
        self.zero_grad()

    def __reduce__(self) -> Any:
        """A copy learns as this one does; gradients and where they go stay behind."""
        settings = ("name", "learns", "_trainable", "decays", "rate_factor", "max_norm")
        state = None, {name: getattr(self, name) for name in settings}
        return tensor, (self.numpy(), self.dtype, self.device, True), state

    def next_sink(self) -> Sink:
        """Where the next gradient goes."""
        if self.sink is None:
            if self.store is not None:
                self.store.reclaim()
            block, scale, kind = self.gradient_block(), Scale.constant(self.device, self.dtype, 1, 0), "plain"
        else:
            scale, kind = self.sink
            block = self.block if kind == "straight" else self.gradient_block()
        if self.uses:
            scale = Scale.constant(self.device, self.dtype, 1, 1)
        self._note()
        self.received(self.uses + 1, kind)
        return Sink(block, scale)


AVERAGED: set[Parameter] = set()  # those that have their averages now, within `Optimizer.averaged`


def refuse_averaged(parameters: Iterable[Parameter], what: str) -> None:
    """ClnnError where averages stand in the place of some weights, which come back: what `what` does would be lost."""
    if AVERAGED and not AVERAGED.isdisjoint(parameters):
        why = "the averages are in place already, and the weights come back when it ends"
        raise ClnnError(f"{what} within optimizer.averaged(): {why}; leave the with block first")


# -- making tensors ---------------------------------------------------------------------------------------------------
def tensor(
    value: Any, dtype: DTypeLike | None = None, device: str | Device | None = None, requires_grad: bool = False
) -> Tensor:
    """A tensor from an array, a number or nested lists.

    Floats of any width become float32, NumPy's too (whose default is float64), and integers and bools int32, unless `dtype`
    says otherwise: the same on every device. As an index, `x[t]`, what was bools is a mask. `dtype="float64"` keeps float64,
    and is a `DeviceError` where the device has none. A tensor that is already there comes back as it is. With `requires_grad`
    it is a copy that learns, a `Parameter`: `backward()` leaves its gradient in `.grad`.
    """
    if requires_grad:
        if isinstance(value, Tensor) and value.node is not None:
            value.refuse_history("a copy that learns")
        array, where = _host_array_for(value, dtype, device)
        if array.dtype not in FLOATS:
            raise ShapeError(f"what learns are floats, not {array.dtype}: give dtype='float32'")
        p = Parameter(where.memory.allocate(array.nbytes), array.shape, array.dtype, where)
        where.upload(array, p.block)
        return p
    if isinstance(value, Tensor):
        if (dtype is None or np.dtype(dtype) == value.dtype) and (device is None or value.device is resolve(device)):
            return value
        value.refuse_history(f"a conversion of {value.dtype} on {value.device.name} to another type or device")
    array, where = _host_array_for(value, dtype, device)
    y = _wrap(empty(where, array.shape, array.dtype))
    where.upload(array, y.block)
    y.mask = value.mask if isinstance(value, Tensor) else None
    y.made_by = origin(value, array)
    return y


def origin(value: Any, array: np.ndarray) -> str:
    """What a tensor of `array`, which was made of `value`, is made by."""
    return MASK if array.dtype == np.int32 and _of_truths(value) else ""


def _of_truths(value: Any) -> bool:
    if isinstance(value, (list, tuple)):  # of which one number makes numbers of all
        return bool(value) and all(map(_of_truths, value))
    value = value if isinstance(value, (Array, Number)) else np.asarray(value)  # of other libraries, too
    return getattr(value, "made_by", "") == MASK or getattr(value, "dtype", type(value)) in (bool, np.dtype(bool))


def host_array(value: Any, dtype: DTypeLike | None = None) -> np.ndarray:
    """A contiguous NumPy array of a type that tensors have; without `dtype` that of a tensor, else float32 or int32."""
    for one in leaves(value) if isinstance(value, (list, tuple)) else ():
        if isinstance(one, Tensor):
            one.refuse_history("an array made of tensors", "clnn.concatenate does, or give it ")
    array = numbers(value)
    if dtype is None:
        dtype = value.dtype if isinstance(value, Array) else np.int32 if array.dtype.kind in "iub" else np.float32
    dtype = np.dtype(dtype)
    if dtype not in FLOATS and dtype != np.int32:
        raise ShapeError(f"a tensor holds float32, float64 or int32, and {array.dtype} as {dtype} was given")
    if dtype == np.int32 and array.dtype.kind in "iuf" and array.size:
        low, high = -(2**31) - 1, 2**31
        if not low < array.min().item() <= array.max().item() < high:  # Python's numbers round no bound; NaN is not
            bad = array[~((low < (wide := array.astype(np.float64))) & (wide < high))].flat[0]
            raise ShapeError(f"integers become int32 here, and {bad} does not fit")
    return np.ascontiguousarray(array, dtype).reshape(array.shape)


def _host_array_for(value: Any, dtype: DTypeLike | None, device: str | Device | None) -> tuple[np.ndarray, Device]:
    array, where = host_array(value, dtype), resolve(device)
    where.real(array.dtype)  # an error where it has none
    return array, where


def constant(value: Any, dtype: DTypeLike | None = None, device: str | Device | None = None) -> Tensor:
    """A tensor that a recorded step may upload: made at the first call, the same at every replay. Types as for `tensor`."""
    if isinstance(value, Tensor):
        value.refuse_history("constant()")
    array, where = _host_array_for(value, dtype, device)
    y = Tensor(constant_block(where, array), array.shape, array.dtype, where)
    y.made_by = origin(value, array)
    return y


def zeros(shape: int | Sequence[int], dtype: DTypeLike = np.float32, device: str | Device | None = None) -> Tensor:
    """A tensor of zeros. Types as for `tensor`."""
    return _filled("zeros", shape, 0, dtype, device)


def ones(shape: int | Sequence[int], dtype: DTypeLike = np.float32, device: str | Device | None = None) -> Tensor:
    """A tensor of ones. Types as for `tensor`."""
    return _filled("ones", shape, 1, dtype, device)


def _filled(what: str, shape: Any, value: int, dtype: DTypeLike | None, device: str | Device | None) -> Tensor:
    shape, kind = sizes(what, shape), host_array(value, np.float32 if dtype is None else dtype).dtype
    if kind == np.int32:  # not uploaded, as a step could not be recorded then
        return _wrap(arange(resolve(device), int(np.prod(shape)), value, 0, kind)).reshape(shape)
    return _wrap(fill(empty(resolve(device), shape, kind), value))


def _wrap(y: Array) -> Tensor:
    t = Tensor(y.block, y.shape, y.dtype, y.device)
    t.made_by, t.activation, t.logits = y.made_by, y.activation, y.logits
    return t


def apply(op: Callable[..., tuple[Array, Backward]], *inputs: Any, **options: Any) -> Tensor:
    """Run an op, and take it on tape if one of its inputs leads to a trainable parameter."""
    y, backward = op(*inputs, **options)
    t = on_tape(y, inputs, backward, () if op in LINEAR else inputs)
    return truths(t, *inputs, means=op in MEANS) if op in (*MOVES, *MEANS) else t


def truths(y: Tensor, *of: Any, means: bool = False) -> Tensor:
    """`y`, whose numbers are some of these, or `means` of them: a mask of masks (means are none), and probabilities of such,
    alone or with masks and with numbers on the host from 0 to 1. That they add up to more than 1 nobody looks here."""
    made = {MASK if _of_truths(x) else x.made_by if isinstance(x, Array) else "number" for x in of}
    sure, known = made & {"sigmoid", "softmax"}, [np.asarray(x) for x in of if not isinstance(x, Array)]
    if made == {MASK} and not means:
        y.made_by = MASK
    elif sure and made <= {*sure, MASK, "number"} and all(((x >= 0) & (x <= 1)).all() for x in known):
        y.made_by = max(sure)
    return y


LINEAR = (reshape, transpose, broadcast_to, take_slice, take_items)  # whose gradients depend on no values
MOVES, MEANS = (*LINEAR, take, gather), (convert, reduce)


def on_tape(
    y: Array, inputs: Sequence[Any], backward: Backward, reads: Sequence[Any] = (), of_loss: bool = False
) -> Tensor:
    """`y` as a tensor whose history is `backward` from `inputs`. `reads`: those inputs whose values the closure reads; if such a
    parameter changes before backward(), that is an error. `of_loss`: see `Node`."""
    t = _wrap(y)
    wanted = [isinstance(x, Tensor) and x.requires_grad for x in inputs]
    for i, x in enumerate(inputs):
        if (lender := _lender(x)) is not None and x.block is y.block:
            t.lent_by = lender
        if isinstance(x, Parameter):  # off the tape too: the result may be its memory
            # 2: `descend` does not write x's gradient straight into x, which the other inputs' gradients still read
            x.forward_uses += 2 if i == 0 and any(wanted[1:]) else 1
    if grad_enabled() and any(wanted):
        single = len(inputs) == 1 or sum(wanted) > 1  # else the only gradient reads the other inputs alone
        needed = [p for x in reads if (p := _lender(x)) is not None and (single or not x.requires_grad)]
        t.node = Node(y, backward, needed, of_loss)
    else:
        t.activation = None  # no gradient will come by
    return t


def _lender(x: Any) -> Parameter | None:
    """The parameter whose memory `x` is: itself, the one that it was reshaped or detached from, or none."""
    return x if isinstance(x, Parameter) else x.lent_by if isinstance(x, Tensor) else None


# What NumPy calls our functions of two tensors.
UFUNCS = {**{name: name for name in BINARY}, "true_divide": "divide", "matmul": "matmul"}
# What clnn has by NumPy's names, beside functions of one variable.
NAMESAKES = ("clip", "concatenate", "cumsum", "einsum", "expand_dims", "flip", "pad", "prod", "repeat", "roll", "sort", "split",
             "squeeze", "stack", "std", "take", "tile", "tril", "triu", "var", "where")  # fmt: skip
WRITERS = ("at", "copyto", "fill_diagonal", "place", "put", "put_along_axis", "putmask")  # change their first argument
# Functions of NumPy through which nobody expects a gradient to go.
READERS = ("array_equal", "array_equiv", "allclose", "isclose", "array2string", "array_repr", "array_str", "argmax", "argmin",
           "argsort", "count_nonzero", "iscomplexobj", "isrealobj", "result_type", "save", "savez", "savetxt")  # fmt: skip


def _by_numpy(name: str, function: Any, inputs: Sequence[Any], options: dict[str, Any]) -> Any:
    """What NumPy makes of tensors' values. ClnnError where that would cut off a history, or be written into a copy."""
    changed = inputs[0] if function.__name__ in WRITERS else options.get("out")
    if any(isinstance(x, Tensor) for x in (changed if isinstance(changed, tuple) else (changed,))):
        _in_place(changed)
    ours = {"negative": "-t", "absolute": "abs(t)"}.get(name, f"clnn.{name}(t)" if name in FUNCTIONS else "")
    ours = ours or (f"t.{name}()" if hasattr(Tensor, name) else f"clnn.{name}" if name in NAMESAKES else "")
    instead = f"{ours} does, or give it " if ours else "give it "

    def value(x: Any) -> Any:
        if isinstance(x, Tensor):
            if name in ("shape", "ndim", "size"):
                return np.broadcast_to(np.empty((), x.dtype), x.shape)
            if name not in READERS:
                x.refuse_history(f"np.{name}", instead)
            return x.numpy()
        return type(x)(map(value, x)) if type(x) in (list, tuple) else x

    return function(*map(value, inputs), **{key: value(item) for key, item in options.items()})


def _is_number(value: Any) -> bool:
    """Whether a value can be compared with a tensor's elements."""
    return isinstance(value, (Number, list, tuple)) or hasattr(value, "__array__")


def _operand(value: Any, like: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value
    value = float(value) if isinstance(value, (Decimal, Fraction)) else value
    if isinstance(value, (int, float)) or not shape_of(value):
        number = value if isinstance(value, (int, float)) else numbers(value, "an operand").item()
        return number if like.dtype == np.int32 else float(number)
    return tensor_like(value, like)


def tensor_like(value: Any, like: Tensor) -> Tensor:
    """What goes together with a tensor: a tensor as it is, and an array as one of that type and device. ShapeError where this
    would cut fractions off."""
    if isinstance(value, Tensor):
        return value
    array = numbers(value) if like.dtype == np.int32 else np.zeros(0)
    if (cut := array[array != np.trunc(array)]).size:
        raise ShapeError(f"int32 goes with int32, and {cut[0]:g} is none; convert with .astype('float32')")
    return tensor(value, dtype=like.dtype, device=like.device)


def elementwise(name: str, a: Any, b: Any) -> Tensor:
    """A function of BINARY of two tensors, arrays or numbers, with broadcasting."""
    like = a if isinstance(a, Tensor) else b if isinstance(b, Tensor) else (a := tensor(a))
    y, backward = binary(name, p := _operand(a, like), q := _operand(b, like))
    if BINARY[name].gradient:
        t = on_tape(y, (p, q), backward, () if name in ("add", "subtract") else (p, q))
        rest = name == "subtract" and not isinstance(a, Array) and np.all(np.equal(a, 1))  # 1 - p
        looked_at = (b,) if rest else (a, b)[: BINARY[name].keeps]
        return truths(t, *looked_at, means=name not in ("multiply", "maximum", "minimum"))
    y.made_by = MASK  # of a comparison, which has no gradient, and so no history
    return _wrap(y)


def _matmul(a: Any, b: Any) -> Tensor:
    given, like = (a, b), a if isinstance(a, Tensor) else b
    a, b = _operand(a, like), _operand(b, like)
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or not a.shape or not b.shape:
        raise ShapeError("matmul takes arrays with at least one axis")
    row, column = a.ndim == 1, b.ndim == 1
    a = a.reshape(1, -1) if row else a
    b = b.reshape(-1, 1) if column else b
    y = truths(apply(matmul, a, b), *given, means=True)
    rows, columns = () if row else y.shape[-2:-1], () if column else y.shape[-1:]
    return y.reshape(*y.shape[:-2], *rows, *columns) if row or column else y


# -- functions of tensors ---------------------------------------------------------------------------------------------
def function(x: Any, name: str) -> Tensor:
    """A function by its name in clnn/ops/activation.py: of one variable, or of the last axis (SOFTMAX)."""
    x = tensor(x)
    if name in SOFTMAX:
        return apply(softmax, x, log=name == "log_softmax")
    return x if name == "linear" else apply(unary, x, name=name)


def linear_layer(x: Tensor, w: Tensor, b: Tensor | None, activation: str, transposed: bool = False) -> Tensor:
    """f(x w + b), or with `transposed` f(x w^T), fused; see clnn/ops/linear.py."""
    y, backward = linear(x, w, b, activation, keep=grad_enabled(), transposed=transposed)
    return on_tape(y, (x, w) if b is None else (x, w, b), backward, (w,) if x.requires_grad else ())


@foreign.by_names
def concat(tensors: Iterable[Any], axis: int = 0) -> Tensor:
    """Tensors joined along an axis; arrays among them become tensors of the first one's type."""
    given = several("concatenate", tensors)
    like = next((t for t in given if isinstance(t, Tensor)), None)
    tensors = [tensor(t) if like is None else tensor_like(t, like) for t in given]
    y, backward = concatenate(tensors, axis)
    return truths(on_tape(y, tensors, backward), *given)
