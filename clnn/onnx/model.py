"""`load`: an ONNX file as a `Model`, called with arrays, that is looked at, trained, moved and saved as others are."""

from __future__ import annotations

from typing import Any


def load(path: Any) -> Any:
    """The model in an ONNX file, given by its path or as its bytes."""
    raise NotImplementedError("clnn.onnx.load comes in the next commits")


def operators() -> dict[str, Any]:
    """The operators that are supported."""
    return {}
