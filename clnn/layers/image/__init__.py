"""The image wing of the layers: convolution, pooling and resizing over 1 to 3 spatial axes."""

from . import conv, pool, resize
from .conv import *  # noqa: F403
from .pool import *  # noqa: F403
from .resize import *  # noqa: F403

__all__ = [name for room in (conv, pool, resize) for name in room.__all__]
