"""Floor 5, the layers: compositions of ops, each a small class; none writes a backward pass."""

from . import conv, core, norm, pool, residual, resize
from .base import REGISTRY as REGISTRY
from .base import Layer, register
from .conv import *  # noqa: F403
from .core import *  # noqa: F403
from .norm import *  # noqa: F403
from .pool import *  # noqa: F403
from .residual import *  # noqa: F403
from .resize import *  # noqa: F403

__all__ = ["Layer", "register"]
__all__ += [name for room in (conv, core, norm, pool, residual, resize) for name in room.__all__]
