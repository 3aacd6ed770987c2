"""Floor 5, the layers: compositions of ops, each a small class; none writes a backward pass."""

from . import core, image, norm, residual
from .base import REGISTRY as REGISTRY
from .base import Layer, register
from .core import *  # noqa: F403
from .image.conv import *  # noqa: F403 - each file by itself: type checkers do not follow two stars in a row
from .image.pool import *  # noqa: F403
from .image.resize import *  # noqa: F403
from .norm import *  # noqa: F403
from .residual import *  # noqa: F403

__all__ = ["Layer", "register"]
__all__ += [name for room in (core, image, norm, residual) for name in room.__all__]
