"""The optimizers: what all share is in base.py, the rules in rules.py and lamb.py, and their names here."""

from __future__ import annotations

import re
from typing import Any

from .. import registry
from ..errors import ConfigurationError
from ..foreign import tell, unknown
from . import rules
from .base import Optimizer
from .base import Taking as Taking
from .base import stepping as stepping
from .lamb import LAMB
from .rates import ROWS as ROWS
from .rules import *  # noqa: F403

__all__ = ["LAMB", "Optimizer"]
__all__ += rules.__all__

OPTIMIZERS: dict[str, Any] = {name.lower(): getattr(rules, name) for name in rules.__all__} | {"lamb": LAMB}
tell(Optimizer, ("step", "zero_grad", "state_dict", "load_state_dict", "averaged"))  # what users call


def describe(optimizer: Optimizer) -> dict[str, Any] | None:
    """What `find_optimizer` makes an optimizer like this one of, as JSON; None for one of your own that is not registered."""
    name = next((name for name, kind in OPTIMIZERS.items() if kind is type(optimizer)), None)
    if name is not None:
        return {"name": name, "config": optimizer.config()}
    return registry.describe(optimizer, optimizer.config()) if registry.is_registered(optimizer) else None


def find_optimizer(which: str | Optimizer | dict[str, Any]) -> Optimizer:
    """An optimizer by name with its defaults, as it is, or of what `describe` gave."""
    if isinstance(which, Optimizer):
        if type(which).step is not Optimizer.step:
            raise ConfigurationError(
                f"{type(which).__name__}.step is a method of your own, which fit does not call, as it updates weights while "
                "gradients come: override numbers() or sink(), or write a loop of your own with @clnn.step"
            )
        return which
    if isinstance(which, dict) and "class" in which:
        return registry.construct(which, "optimizer", Optimizer)
    if isinstance(which, dict) and which["name"] in OPTIMIZERS:
        return OPTIMIZERS[which["name"]](**which["config"])
    asked: Any = which if isinstance(which, (str, type)) else type(which)
    asked = re.sub("[-_]", "", getattr(asked, "__name__", asked)).lower()
    if whole := next((one for one in ("LBFGS", "HessianFree") if one.lower() == asked), None):
        raise ConfigurationError(
            f"{whole} takes steps by the loss of all data at once, which fit's mini-batches are not: call "
            f"clnn.{whole}().minimize(lambda: loss(net(x), y), net.parameters(), steps=50), where x and y are tensors, and loss "
            "is one of clnn.losses, such as clnn.losses.cross_entropy"
        )
    name = which.lower() if isinstance(which, str) else which
    if not isinstance(name, str) or name not in OPTIMIZERS:
        raise ConfigurationError(unknown("optimizer", which, OPTIMIZERS))
    return OPTIMIZERS[name]()
