"""`clnn predict`: a model in a file reads digits in image files, drawn, scanned or photographed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from .. import model
from ..data import read_digit
from ..errors import ConfigurationError

FORMS = {28 * 28: (28, 20), 8 * 8: (8, 8)}  # by pixels: MNIST's side and box, and those of digits()
SHOWN = 3  # classes of each picture


def predict(file: str, pictures: Sequence[str]) -> list[str]:
    """A line for each picture: what it is read as, and the most likely classes with their probabilities."""
    if Path(file).suffix == ".onnx":
        raise ConfigurationError(
            f"{file} is an ONNX file, which clnn run answers arrays by: clnn run {file} --input x.npy"
        )
    net = model.load(file)
    shapes = net._input_shapes
    pixels = math.prod(shapes[0]) if len(shapes) == 1 else 0
    if pixels not in FORMS:
        raise ConfigurationError(
            f"{file} takes inputs of shape {', '.join(map(str, map(tuple, shapes)))}, and digits have 28 x 28 pixels, as in "
            "mnist(), or 8 x 8, as in digits()"
        )
    lines = []
    for picture in pictures:
        x = read_digit(picture, *FORMS[pixels]).reshape(1, *shapes[0])
        found = net.predict_proba(x)[0]
        best = found.argsort()[::-1][:SHOWN]
        lines.append(f"{picture}: {best[0]}  ({', '.join(f'{i} {found[i]:.1%}' for i in best)})")
    return lines
