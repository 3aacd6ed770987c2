"""Fetches a file from the first mirror that has a good copy."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from clnn.errors import DataError
from clnn.files import write_atomically

TIMEOUT = 20.0  # seconds of silence before the next mirror is tried
MAX_BYTES = 256 * 2**20  # no data set here comes near; a server that never stops must not fill the memory


def download(urls: Iterable[str], check: Callable[[bytes, str], object]) -> tuple[bytes, str]:
    """Returns the bytes of the first URL that answers with what `check(data, url)` accepts, and that URL.

    `check` raises DataError for data it does not accept. If no URL is left, DataError says what was wrong with each.
    """
    from http.client import HTTPException

    problems = []
    for url in urls:
        try:
            data = _read(url)
            check(data, url)
        except DataError as error:
            problems.append(str(error))
        except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors
            problems.append(f"{url}: {error or type(error).__name__}")
        else:
            return data, url
    raise DataError("\n".join(problems))


def keep(path: Path, data: bytes) -> Path:
    """Writes what was downloaded to the cache."""
    try:
        write_atomically(path, data)
    except OSError as error:
        raise DataError(f"cannot write {path} ({error}); set CLNN_CACHE_DIR to a folder that can be written") from error
    return path


def _read(url: str) -> bytes:
    from urllib.request import Request, build_opener

    from tqdm import tqdm

    data = bytearray()
    request, title = Request(url, headers={"User-Agent": "clnn"}), url.rsplit("/", 1)[-1]
    with (
        build_opener().open(request, timeout=TIMEOUT) as response,  # urlopen keeps the proxies that it saw first
        # disable=None: no bar where the output is not a terminal
        tqdm(desc=title, total=response.length, unit="B", unit_scale=True, disable=None if sys.stderr else True) as bar,
    ):
        while chunk := response.read(1 << 16):
            data += chunk
            bar.update(len(chunk))
            if len(data) > MAX_BYTES:
                raise DataError(f"{url}: expected at most {MAX_BYTES} bytes, found more")
    return bytes(data)
