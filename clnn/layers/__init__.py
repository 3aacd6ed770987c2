"""The layers: compositions of ops, each a small class; none writes a backward pass."""

from . import core, merge, norm, residual
from .base import REGISTRY as REGISTRY
from .base import Layer, register
from .core import *  # noqa: F403
from .image import conv, pool, resize
from .image.conv import *  # noqa: F403 - each file by itself: type checkers do not follow two stars in a row
from .image.pool import *  # noqa: F403
from .image.resize import *  # noqa: F403
from .merge import *  # noqa: F403
from .norm import *  # noqa: F403
from .residual import *  # noqa: F403
from .sequence.attention import *  # noqa: F403
from .sequence.embedding import *  # noqa: F403
from .sequence.recurrent import *  # noqa: F403
from .sequence.temporal import *  # noqa: F403

__all__ = ["Layer", "register"]
__all__ += core.__all__
__all__ += conv.__all__
__all__ += pool.__all__
__all__ += resize.__all__
__all__ += merge.__all__
__all__ += norm.__all__
__all__ += residual.__all__
_more = {name: one for name, one in REGISTRY.items() if one.__module__.startswith(__name__) and name not in __all__}
globals().update(_more)  # what a file registers without a word in its __all__, which serves those that read types
__all__ += _more
