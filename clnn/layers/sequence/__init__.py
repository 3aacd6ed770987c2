"""The wing of the layers for sequences: embeddings, positions, attention and transformers, recurrence."""

from . import attention, embedding, recurrent, temporal
from .attention import *  # noqa: F403
from .embedding import *  # noqa: F403
from .recurrent import *  # noqa: F403
from .temporal import *  # noqa: F403

__all__ = [name for room in (embedding, attention, recurrent, temporal) for name in room.__all__]
