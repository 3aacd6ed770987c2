"""Looking into a network: what its layers compute, and pictures of it."""

from __future__ import annotations

from .calls import activations

__all__ = ["activations"]
