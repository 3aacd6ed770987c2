"""Reads IDX, the format of MNIST's files: a magic number, the dimensions, then the numbers, all big-endian.

- bytes 0, 1: zero
- byte 2: the type of the numbers, a key of DTYPES
- byte 3: how many dimensions follow, each an unsigned 32-bit integer
"""

import gzip
import hashlib
import io
import math
import os
import zlib
from pathlib import Path

import numpy as np

from clnn.errors import DataError
from clnn.files import refuse_device

DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
MAX_RANK = 32  # the most dimensions that every NumPy can hold
MAX_RATIO = 1032  # DEFLATE never expands a byte to more than this many


def read_idx(path: str | os.PathLike[str], shape: tuple[int, ...] | None = None, sha256: str = "") -> np.ndarray:
    """Returns the array in an IDX file, gzip or plain, whatever its name ends in.

    `shape` and `sha256` (of the uncompressed bytes) are what the file must have, where they are known. A file that is
    truncated, too long, altered, or not IDX at all raises DataError.
    """
    try:
        refuse_device(path)
        return decode_idx(Path(path).read_bytes(), os.fspath(path), shape, sha256)
    except PermissionError as error:
        raise DataError(f"{os.fspath(path)} cannot be read: {error}") from error
    except DataError as error:
        raise DataError(f"{error}; replace the file by an undamaged copy") from error


def decode_idx(data: bytes, name: str, shape: tuple[int, ...] | None = None, sha256: str = "") -> np.ndarray:
    """Returns the array in the bytes of an IDX file; `name` stands for the file in errors."""

    def fail(expected: str, found: str) -> DataError:
        return DataError(f"{name}: expected {expected}, found {found}")

    zipped = data[:2] == b"\x1f\x8b"
    stream: io.BufferedIOBase = gzip.GzipFile(fileobj=io.BytesIO(data)) if zipped else io.BytesIO(data)
    try:
        magic = stream.read(4)
        if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in DTYPES or not 1 <= magic[3] <= MAX_RANK:
            raise fail("an IDX magic number (00 00, a type from 08 to 0e, a rank)", magic.hex(" ") or "an empty file")
        dtype, rank = np.dtype(DTYPES[magic[2]]), magic[3]

        header = stream.read(4 * rank)
        if len(header) < 4 * rank:
            raise fail(f"{rank} dimensions in {4 * rank} bytes", f"{len(header)} bytes")
        found_shape = tuple(np.frombuffer(header, ">u4").tolist())
        if shape is not None and found_shape != shape:
            raise fail(f"shape {shape}", f"shape {found_shape}")

        # One byte more than wanted tells a file that is too long, and makes gzip check its own sum. The bound keeps a
        # header that lies from claiming memory the file could never fill.
        size = math.prod(found_shape) * dtype.itemsize
        body = stream.read(min(size, MAX_RATIO * len(data)) + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise fail("a whole gzip file", f"a truncated or altered one ({error})") from error

    if len(body) != size:
        raise fail(f"{size} bytes of data for shape {found_shape}", "more" if len(body) > size else f"{len(body)}")
    if sha256:
        content = hashlib.sha256(magic + header)
        content.update(body)
        if content.hexdigest() != sha256:
            raise fail(f"content with sha256 {sha256}", content.hexdigest())
    try:
        return np.frombuffer(body, dtype).reshape(found_shape).astype(dtype.newbyteorder("="))
    except ValueError as error:  # no data, but the other dimensions too large for NumPy
        raise fail("dimensions that NumPy can hold", f"{found_shape}") from error
