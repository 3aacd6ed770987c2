"""`clnn serve`: a model behind a page on this machine, where a digit is drawn and answered, and programs ask by HTTP."""

from __future__ import annotations

from .server import Server

__all__ = ["Server"]
