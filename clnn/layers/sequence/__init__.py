"""The wing of the layers for sequences: embeddings, positions, attention and transformers, recurrence."""

from . import attention, embedding, recurrent
from .attention import *  # noqa: F403
from .embedding import *  # noqa: F403
from .recurrent import *  # noqa: F403

__all__ = [name for room in (embedding, attention, recurrent) for name in room.__all__]
