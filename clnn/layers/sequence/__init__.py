"""The wing of the layers for sequences: embeddings, positions, attention and transformers."""

from . import attention, embedding
from .attention import *  # noqa: F403
from .embedding import *  # noqa: F403

__all__ = [name for room in (embedding, attention) for name in room.__all__]
