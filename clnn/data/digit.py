"""A drawn digit in the form of a data set's: from an array or an image file to MNIST's 28 x 28 pixels."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from clnn.checks import check_count
from clnn.data.validate import check_features
from clnn.errors import ConfigurationError, DataError
from clnn.files import refuse_device

PAPER = 0.3  # of the darkest stroke: what is fainter is paper, shadow and noise
MOST = 1 << 24  # pixels of an image file: more is no drawing of a digit, and would fill the memory
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a PNG's pixel, by its type of colour
BITS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # of a channel


def as_digit(gray: Any, size: int = 28, box: int | None = None) -> np.ndarray:
    """The digit in `gray`, an array (height, width) of any size and scale, as MNIST has it: float32 (28, 28), ink 1 on paper 0.

    It does what LeCun, Bottou, Bengio and Haffner 1998 did: the digit is cut out, fitted into a box of 20 x 20 pixels with its
    proportions kept, and its centre of mass put into the middle. Where the border is bright, the digit is dark, and the image
    is inverted. `size=8, box=8` is the form of `digits()`. There has to be a digit alone: a DataError says where none is.
    """
    size = check_count("size", size)
    box = check_count("box", -(-size * 20 // 28) if box is None else box)
    if box > size:
        raise ConfigurationError(f"box should be at most size, {box} and {size} were provided instead")
    image = np.asarray(gray)
    if image.ndim != 2 or image.size == 0:
        raise DataError(f"an image of a digit has the shape (height, width), {image.shape} was provided instead")
    check_features(image, "the image")
    image = image.astype(np.float64)
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    paper = np.median(border)  # a stroke that touches the border does not change it
    ink = np.maximum(paper - image if paper > (image.max() + image.min()) / 2 else image - paper, 0)
    if not ink.max() > 0:
        raise DataError(f"the image, {image.shape[1]} x {image.shape[0]} pixels, is empty: there is no digit on it")
    ink = np.where(ink < PAPER * ink.max(), 0, ink)
    rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]

    scale = box / max(ink.shape)
    height, width = (max(1, round(n * scale)) for n in ink.shape)
    ink = _resampling(ink.shape[0], height) @ ink @ _resampling(ink.shape[1], width).T
    ink /= ink.max()  # thin strokes grow faint when they shrink
    digit = np.zeros((size, size), np.float32)
    middle = size // 2 + 0.5 if box < size else size / 2  # MNIST's is in pixel 14 of 0 to 27
    top, left = (_start(ink.sum(axis=axis), middle, size) for axis in (1, 0))
    digit[top : top + height, left : left + width] = ink
    return digit


def _resampling(old: int, new: int) -> np.ndarray:
    """The matrix (new, old) that resamples by a triangle as wide as a new pixel, or as an old one where pixels grow."""
    step = old / new
    distance = np.abs((np.arange(old) + 0.5) - (np.arange(new)[:, None] + 0.5) * step)
    weights = np.maximum(1 - distance / max(step, 1), 0)
    return weights / weights.sum(axis=1, keepdims=True)


def _start(mass: np.ndarray, middle: float, size: int) -> int:
    """Where this profile begins in an axis of `size`, with its centre of mass at `middle` and all of it inside."""
    centre = (mass * (np.arange(len(mass)) + 0.5)).sum() / mass.sum()
    return min(max(round(middle - centre), 0), size - len(mass))


def read_digit(path: str | os.PathLike[str], size: int = 28, box: int | None = None) -> np.ndarray:
    """The digit in an image file, ready for a network that learned `mnist()`: float32 (1, 784). See `as_digit`.

        net.predict_classes(clnn.data.read_digit("mine.png"))

    Transparent parts are white. PNG is read without any package, other formats by Pillow where it is installed.
    """
    try:
        refuse_device(path)
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{os.fspath(path)} cannot be read: {error.strerror or error}") from error
    try:
        return as_digit(_gray(data), size, box).reshape(1, -1)
    except DataError as error:
        raise DataError(f"{os.fspath(path)}: {error}") from error


def _gray(data: bytes) -> np.ndarray:
    """The grey values (height, width) of an image file's bytes, in [0, 1], over white where it is transparent."""
    pixels = _decode_png(data) if data.startswith(b"\x89PNG\r\n\x1a\n") else _by_pillow(data)
    colours = pixels.shape[2]
    gray = pixels[..., : colours - 1 if colours in (2, 4) else colours]
    gray = gray @ (0.299, 0.587, 0.114) if gray.shape[2] == 3 else gray[..., 0]  # ITU-R BT.601
    return gray if colours in (1, 3) else gray * pixels[..., -1] + 1 - pixels[..., -1]


def _by_pillow(data: bytes) -> np.ndarray:
    """The pixels (height, width, 4) of any other image."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise DataError("it is no PNG, and to read other images pillow is needed: pip install pillow") from None
    import io

    try:
        image: Any = Image.open(io.BytesIO(data))
        if image.width * image.height > MOST:
            raise DataError(f"it has {image.width} x {image.height} pixels, and at most {MOST:,} are read")
        return np.asarray(upright(image).convert("RGBA"), np.float64) / 255
    except UnidentifiedImageError:
        raise DataError("it is no image of a format that Pillow knows") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise error if isinstance(error, DataError) else DataError(f"it is no image: {error}") from error


def upright(image: Any) -> Any:
    """Pillow's image, turned as it says, in 8 bits for each channel: of others Pillow would cut values off at 255."""
    from PIL import Image, ImageOps

    turned: Any = ImageOps.exif_transpose(image)
    if not turned.mode.startswith("I;16") and (turned.mode != "I" or image.format not in ("PPM", "PNG")):
        if turned.mode in ("I", "F"):
            raise DataError(
                f"its pixels are of Pillow's mode {turned.mode}, of any range: save it with 8 or 16 bits each"
            )
        return turned
    return Image.fromarray((np.asarray(turned) / 257).round().astype(np.uint8))


def _decode_png(data: bytes) -> np.ndarray:
    """The pixels (height, width, channels) of a PNG (ISO 15948), in [0, 1]; a palette becomes red, green, blue and alpha."""
    palette, transparent, packed, place = np.zeros((0, 3)), b"", b"", 8
    width = height = bits = kind = interlaced = 0
    try:
        while True:
            length, name = struct.unpack(">I4s", data[place : place + 8])
            content = data[place + 8 : place + 8 + length]
            (checksum,) = struct.unpack(">I", data[place + 8 + length : place + 12 + length])
            if checksum != zlib.crc32(name + content):
                raise DataError("it is a damaged PNG: a checksum is wrong")
            place += 12 + length
            if name == b"IHDR":
                width, height, bits, kind, _, _, interlaced = struct.unpack(">IIBBBBB", content)
            elif name == b"PLTE":
                palette = np.frombuffer(content, np.uint8).reshape(-1, 3) / 255
            elif name == b"tRNS":
                transparent = content
            elif name == b"IDAT":
                packed += content
            elif name == b"IEND":
                break
        if not 0 < width * height <= MOST or bits not in BITS.get(kind, ()):
            form = f"{width} x {height} pixels, colour type {kind}, {bits} bits"
            raise DataError(f"it is a PNG of {form}, which is not read")
        if interlaced:
            raise DataError("it is an interlaced PNG, which is not read: save it without interlacing")
        row = -(-width * CHANNELS[kind] * bits // 8)
        rows = zlib.decompressobj().decompress(packed, height * (row + 1))
        lines = np.frombuffer(rows, np.uint8).reshape(height, row + 1)
    except (struct.error, zlib.error, ValueError) as error:
        raise error if isinstance(error, DataError) else DataError(f"it is a damaged PNG: {error}") from error
    values = _unfiltered(lines, max(1, CHANNELS[kind] * bits // 8))
    if bits == 16:
        values = values.view(">u2").astype(np.int64)
    elif bits < 8:
        parts = np.unpackbits(values, axis=1).reshape(height, -1, bits)
        values = parts @ (1 << np.arange(bits)[::-1])
    pixels = values.reshape(height, -1)[:, : width * CHANNELS[kind]].reshape(height, width, CHANNELS[kind])
    if kind != 3:
        solid = pixels / float((1 << bits) - 1)
        if len(transparent) != 2 * CHANNELS[kind] or kind not in (0, 2):
            return solid
        clear = (pixels == np.frombuffer(transparent, ">u2")).all(axis=2, keepdims=True)  # one colour is transparent
        return np.concatenate([solid, 1.0 - clear], axis=2)
    if pixels.max() >= len(palette):
        raise DataError(f"it is a damaged PNG: colour {pixels.max()} of a palette of {len(palette)}")
    alpha = np.ones(len(palette))
    alpha[: len(transparent)] = np.frombuffer(transparent[: len(palette)], np.uint8) / 255
    return np.column_stack([palette, alpha])[pixels[..., 0]]


def _unfiltered(lines: np.ndarray, step: int) -> np.ndarray:
    """A PNG's bytes without its filters: the first byte of a row says from which neighbours, left and above, it is predicted."""
    above = bytearray(step + lines.shape[1] - 1)
    out = np.empty((len(lines), lines.shape[1] - 1), np.uint8)
    for row, line in zip(out, lines):
        kind, now = line[0], bytearray(step) + line[1:].tobytes()
        if kind > 4:
            raise DataError(f"it is a damaged PNG: there is no filter {kind}")
        for i in range(step, len(now) if kind else 0):
            a, b, c = now[i - step], above[i], above[i - step]  # left, above, and above on the left
            if kind == 4:  # Paeth: the one that is nearest to a + b - c
                near = min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2]
            else:
                near = (a, b, (a + b) // 2)[kind - 1]
            now[i] = (now[i] + near) & 255
        row[:] = now[step:]
        above = now
    return out
