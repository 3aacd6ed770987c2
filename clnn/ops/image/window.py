"""Windows that slide over an array (batch, channels, *space): what convolution and pooling share, for 1 to 3 spatial axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from ...checks import whole
from ...errors import ConfigurationError, ShapeError

CHANNELS_FIRST = {
    3: "; clnn takes images as (channels, height, width): give x.transpose(0, 3, 1, 2)",
    4: "; clnn takes volumes as (channels, depth, height, width): give x.transpose(0, 4, 1, 2, 3)",
}


def channels_last(shape: Sequence[int]) -> str:
    """What to say of a sample whose shape looks like (height, width, channels), or (depth, height, width, channels)."""
    likely = len(shape) in CHANNELS_FIRST and shape[-1] in (1, 3) and min(shape[:-1]) >= 8
    return CHANNELS_FIRST[len(shape)] if likely else ""


class Window(NamedTuple):
    """Windows over `space`, per spatial axis; `out` is how many there are. Padding is `before` and `after`. `rule` is "same"
    where the padding follows from the space, "ceil" where the number of windows is rounded up."""

    space: tuple[int, ...]
    size: tuple[int, ...]
    stride: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    dilation: tuple[int, ...]
    out: tuple[int, ...]
    rule: str = ""

    def in_3d(self) -> Window:
        """The same over three axes: those that are missing have size 1 and stand in front."""
        missing = 3 - len(self.space)
        fills, parts = (1, 1, 1, 0, 0, 1, 1), self[:7]
        return Window(*((fill,) * missing + part for fill, part in zip(fills, parts)))  # type: ignore[arg-type]


def per_axis(name: str, value: Any, axes: int, least: int = 1) -> tuple[int, ...]:
    """`value`, a whole number or one for each spatial axis, as a tuple of `axes` numbers of at least `least`."""
    one = whole(value)
    given = value if isinstance(value, (tuple, list)) else ()
    values = [whole(v) for v in given] if one is None else [one] * axes
    if len(values) != axes or any(v is None or v < least for v in values):
        several = f", or {axes} of them" if axes > 1 else ""
        raise ConfigurationError(
            f"{name} should be a whole number of {least} or more{several}; {value!r} was provided instead"
        )
    return tuple(values)  # type: ignore[arg-type]


Paddings = Literal["same", "causal"] | tuple[tuple[int, int], ...]


def paddings(name: str, value: Any, axes: int, causal: bool = False) -> Paddings:
    """Padding as "same" or as (before, after) for each axis; given as those, as a number, one a spatial axis, or "valid".

    With `causal` it may be "causal", too.
    """
    if isinstance(value, str) and value in ("same", "causal")[: 1 + causal]:
        return value  # type: ignore[return-value]
    if value == "causal":
        raise ConfigurationError(
            f'{name} cannot be "causal": only Conv1D has one axis that can be time; give numbers, or a pair (before, after) '
            "for each spatial axis"
        )
    if value == "valid":
        value = 0
    if isinstance(value, (tuple, list)) and len(value) == axes and all(isinstance(v, (tuple, list)) for v in value):
        return tuple((before, after) for before, after in (per_axis(name, v, 2, 0) for v in value))
    words = '"valid", "same", "causal"' if causal else '"valid", "same"'
    try:
        return tuple((v, v) for v in per_axis(name, value, axes, 0))
    except ConfigurationError:
        raise ConfigurationError(
            f"{name} should be {words}, a whole number of 0 or more, or one, or a pair (before, after), for each of "
            f"{axes} spatial {'axis' if axes == 1 else 'axes'}; {value!r} was provided instead"
        ) from None


def short(values: Sequence[Any]) -> Any:
    """What `per_axis` takes for these: one number where all are equal."""
    return values[0] if len(set(values)) == 1 else list(values)


def short_paddings(value: Paddings) -> Any:
    """What `paddings` takes for these, as short as it can be said."""
    if isinstance(value, str):
        return value
    return short([a for a, _ in value]) if all(a == b for a, b in value) else [list(pair) for pair in value]


def check_axes(what: str, shape: Sequence[int], axes: int) -> None:
    """An input has a batch, channels and `axes` spatial axes."""
    if len(shape) != 2 + axes:
        names = ", ".join(("depth", "height", "width")[-axes:]) if axes > 1 else "length"
        hint = ": x[:, None] gives it one channel" if len(shape) == 1 + axes else ""
        raise ShapeError(f"{what}: an input has the shape (batch, channels, {names}), not {tuple(shape)}{hint}")


def slide(
    what: str,
    shape: Sequence[int],
    size: Sequence[int],
    stride: Sequence[int],
    padding: Paddings = "same",
    dilation: Sequence[int] | None = None,
    ceil: bool = False,
) -> Window:
    """The windows of `size` over an input of `shape` (batch, channels, *space).

    There are floor((in + before + after - dilation (size - 1) - 1) / stride) + 1 along each axis; with `ceil` rounded up, as
    long as the last one starts within the input or the padding before it. "same" pads so that there are ceil(in / stride),
    the odd one at the end (as TensorFlow does). "causal" pads before the axis only: output t sees inputs up to t stride. A
    ShapeError where there is none, with the arithmetic.
    """
    axes = len(size)
    check_axes(what, shape, axes)
    space = tuple(shape[2:])
    spread = tuple(dilation or (1,) * axes)
    pads, out = [], []
    for axis in range(axes):
        n, k, s, d = space[axis], size[axis], stride[axis], spread[axis]
        reach = d * (k - 1) + 1
        if padding == "same":
            total = max(0, (-(-n // s) - 1) * s + reach - n)
            before, after = total // 2, total - total // 2
        elif padding == "causal":
            before, after = reach - 1, 0
        else:
            before, after = padding[axis]
        free = n + before + after - reach
        count = (-(-free // s) if ceil else free // s) + 1
        if ceil and count > 1 and (count - 1) * s >= n + before:
            count -= 1
        if count < 1:
            raise ShapeError(
                f"{what}: a window of {k}{f' with dilation {d}' if d > 1 else ''} does not fit along axis {axis + 2} of an "
                f"input of shape {tuple(shape)}: ({n} + {before} + {after} - {d} * ({k} - 1) - 1) // {s} + 1 = {free // s + 1} "
                f"outputs; use a smaller window, more padding, or larger inputs{channels_last(shape[1:])}"
            )
        pads.append((int(before), int(after)))
        out.append(int(count))
    before_all, after_all = zip(*pads) if pads else ((), ())
    rule = "same" if padding == "same" else "ceil" if ceil else ""
    return Window(space, tuple(size), tuple(stride), before_all, after_all, spread, tuple(out), rule)
