"""Text to learn to write: the plays of Shakespeare that character models are measured on."""

import hashlib
import os

from clnn.data.datasets import data_folder
from clnn.data.download import download, keep
from clnn.errors import DataError
from clnn.files import cache_folder

MIRROR = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


def _check(data: bytes, where: str) -> None:
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise DataError(
            f"{where}: these are not the 1,115,394 characters of tiny Shakespeare; delete it, or put the right file there"
        )


def shakespeare() -> str:
    """Tiny Shakespeare (Karpathy 2015): 1,115,394 characters of his plays, 65 different ones.

    It is looked for in `$CLNN_DATA_DIR/shakespeare/input.txt`, then in the cache folder, and downloaded to that where it is
    nowhere. Nets on it train on the first 90% and are measured on the rest. DataError where it can neither be found nor
    downloaded, and for another file in its place.
    """
    cached = cache_folder() / "shakespeare" / "input.txt"
    folder = data_folder("shakespeare")
    for path in ([folder / "input.txt"] if folder else []) + [cached]:
        if os.path.isfile(path):
            try:
                data = path.read_bytes()
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error}") from error
            _check(data, str(path))
            return data.decode("ascii")
    data, _ = download([MIRROR], _check)
    keep(cached, data)
    return data.decode("ascii")
