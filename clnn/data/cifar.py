"""Reads CIFAR's binary version: records of 3,073 bytes, a label and 32 x 32 pixels, first all red, then green, then blue.

Its files are read inside their archive: nothing is unpacked, so no name in an archive leads anywhere.
"""

import io
import math
import tarfile
import zlib
from collections.abc import Sequence

import numpy as np

from clnn.data.validate import check_labels
from clnn.errors import DataError

SHAPE = (3, 32, 32)
RECORD = 1 + math.prod(SHAPE)


def decode_records(data: bytes, name: str, records: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images (records, 3, 32, 32) and the labels in the bytes of a file; `name` stands for it in errors."""
    if len(data) != records * RECORD:
        raise DataError(
            f"{name}: expected {records * RECORD} bytes, {records} records of {RECORD}, found {len(data)}; "
            "replace the file by an undamaged copy of the binary version"
        )
    table = np.frombuffer(data, np.uint8).reshape(records, RECORD)
    check_labels(table[:, 0], classes, f"labels of {name}")
    return table[:, 1:].reshape(records, *SHAPE), table[:, 0]


def read_archive(data: bytes, name: str, files: Sequence[str], records: int) -> list[bytes]:
    """Returns the contents of these files of a .tar.gz, whose bytes are given, none read further than it should be long."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
            for member in archive:
                if member.name in files and (file := archive.extractfile(member)) is not None:
                    found[member.name] = file.read(records * RECORD + 1)
    except (EOFError, OSError, tarfile.TarError, zlib.error) as error:
        raise DataError(f"{name}: expected a whole .tar.gz, found a truncated or altered one ({error})") from error
    if missing := [file for file in files if file not in found]:
        raise DataError(f"{name}: expected the files {', '.join(files)}; it lacks {', '.join(missing)}")
    return [found[file] for file in files]
