"""The form of a device, its kind and sizes, and how it says that it is of another.

`CLNN_DEVICE_AS` has every device say that it is of another form, so that clnn runs there what it would run on such a one: any
of `kind=gpu` (or cpu, accelerator), `units=36` (compute units), `group=64` (the largest work-group), `lanes=8` (floats in a
vector, twice as many as doubles), `piece=12M` (the largest single allocation), `align=1024` (bytes to which sub-buffers
align), `fp64=0` (no float64) and `turns=20000` (after which it ends the loops of a work-item), with commas between.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pyopencl as cl

from ...errors import ConfigurationError
from ..memory import parse_size

KINDS = {"gpu": cl.device_type.GPU, "accelerator": cl.device_type.ACCELERATOR, "cpu": cl.device_type.CPU}
# What CLNN_DEVICE_AS may say: its name there, the attribute, the values (a pattern, and in words), and how one is read
FORMS: dict[str, tuple[str, str, str, Callable[[str], Any]]] = {
    "kind": ("kind", "|".join(KINDS), "one of " + ", ".join(KINDS), str),
    "units": ("compute_units", "[1-9][0-9]*", "a number above 0", int),
    "group": ("max_group", "[1-9][0-9]*", "a number above 0", int),
    "lanes": ("lanes", "1|2|4|8|16", "1, 2, 4, 8 or 16", int),
    "piece": ("max_piece", r"[1-9][0-9]*(\.[0-9]+)?[kKmMgG]?", "a size such as 12M", parse_size),
    "align": ("alignment", "128|256|512|1024|2048|4096|8192", "a power of 2 from 128 to 8192", int),
    "fp64": ("has_fp64", "0", "0", lambda text: text != "0"),
    "turns": ("said_turns", "[1-9][0-9]*", "a number above 0", int),
}


def take(device: Any, text: str) -> str:
    """Set on `device` what CLNN_DEVICE_AS says, though no more of a group or a piece than there is, and no less of an
    alignment; the same text in order."""
    form = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (side.strip() for side in part.partition("="))
        if name not in FORMS:
            raise ConfigurationError(f"CLNN_DEVICE_AS={text!r} names {name!r}; there are {', '.join(FORMS)}")
        if name in form:
            raise ConfigurationError(f"CLNN_DEVICE_AS={text!r} says {name} twice")
        attribute, pattern, words, read = FORMS[name]
        if not re.fullmatch(pattern, value):
            raise ConfigurationError(f"CLNN_DEVICE_AS={text!r} says {part!r}, and {name} should be {words}")
        form[name] = value
        real, said = getattr(device, attribute), read(value)
        limited = (
            min(real, said) if name in ("group", "piece", "fp64") else max(real, said) if name == "align" else said
        )
        setattr(device, attribute, limited)
    return ",".join(f"{name}={value}" for name, value in sorted(form.items()))
