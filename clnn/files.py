"""Files of clnn's own: where they are kept, and writing them whole or not at all."""

import contextlib
import os
import re
import secrets
import stat
from pathlib import Path
from typing import Any, BinaryIO

from .errors import ArgumentError, ConfigurationError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def cache_folder() -> Path:
    """`$CLNN_CACHE_DIR`, by default the user's own cache folder; data sets, tuning and self-tests lie there.

    A user without a home, as in containers, has / for one, which seldom can be written. ConfigurationError for what is no path.
    """
    if folder := os.environ.get("CLNN_CACHE_DIR", "").strip():
        try:
            return Path(folder).expanduser()
        except RuntimeError:
            raise ConfigurationError(
                f"CLNN_CACHE_DIR={folder!r} names the home of a user who is not known here"
            ) from None
    from platformdirs import user_cache_dir

    with contextlib.suppress(RuntimeError):
        folder = user_cache_dir("clnn")
    return Path(folder) if os.path.isabs(folder) else Path("/.cache/clnn")


def as_path(path: str | bytes | os.PathLike[Any]) -> Path:
    """A path as users give it; ~ is their home. ArgumentError for what is none, such as an array."""
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise ArgumentError(f"a file or a folder is given by its path, text or a pathlib.Path, and not by {path!r:.80}")
    try:
        if b"\0" in os.fsencode(path):
            raise ArgumentError(f"the path {path!r:.80} holds a zero byte, which no name of a file has")
        return Path(os.fsdecode(path)).expanduser()
    except UnicodeEncodeError as error:
        raise ArgumentError(f"the path {path!r:.80} is none that this system can have: {error}") from None
    except RuntimeError:
        raise ArgumentError(f"the path {path!r:.80} names the home of a user who is not known here") from None


def why_no_file(path: Path) -> str:
    """Why this is no file that can be read, "" where it is one. (Path.is_file() raises where a folder may not be searched.)"""
    try:
        return "" if stat.S_ISREG(os.stat(path).st_mode) else f"{path} is no file, but a folder or a device"
    except (FileNotFoundError, NotADirectoryError):
        return f"there is no file {path}"
    except OSError as error:
        return f"{path} cannot be read: {error}"


def refuse_device(path: Any) -> None:
    """PermissionError for a device, such as /dev/zero, of which a read never ends; a pipe is none."""
    there = isinstance(path, (str, os.PathLike)) and os.path.exists(path)
    if there and stat.S_IFMT(os.stat(path).st_mode) in (stat.S_IFCHR, stat.S_IFBLK):
        raise PermissionError("it is a device, which may never end: give a file")


def check_place(path: Path) -> None:
    """OSError where `write_atomically` could not write, as far as that is seen before: nothing is left behind."""
    part, file = _new_part(_place(path))
    file.close()
    part.unlink(missing_ok=True)


def _place(path: Path) -> Path:
    """Where a file is written, in a folder that is there and swept."""
    path = Path(os.path.realpath(path))
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(path).st_mode):  # of links, the realpath is one where they go in a circle
            raise OSError(f"{path} is there, and is no regular file")
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
    return path


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file so that others see all of it or nothing, even if the machine stops half-way.

    A symbolic link stays one, and what it points to is written; a file that is there keeps its mode and owner. What a
    killed process left half-written in the folder goes. OSError for what is no regular file.
    """
    path = _place(path)
    part, file = _new_part(path)
    try:
        with file:
            file.write(data)
            file.flush()
            if path.exists():
                before = path.stat()
                with contextlib.suppress(OSError, AttributeError):  # another's file, or Windows
                    os.chown(part, before.st_uid, before.st_gid)
                os.chmod(part, stat.S_IMODE(before.st_mode))
            os.fsync(file.fileno())
            if fcntl is not None:
                os.replace(part, path)
        if fcntl is None:  # Windows renames no open file
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


PART = re.compile(r"\.clnn-[0-9a-f]{8}\.part$")  # how the names of half-written files end


def _new_part(path: Path) -> tuple[Path, BinaryIO]:
    """A file beside `path`, open and locked for as long as it is being written: nobody else takes it for left behind."""
    while True:
        part = path.with_name(f"{path.name[:50]}.clnn-{secrets.token_hex(4)}.part")  # a name has 255 bytes at most
        file = open(part, "xb")  # noqa: SIM115
        if fcntl is None:
            return part, file
        with contextlib.suppress(OSError):  # a file system without locks, on which nobody sweeps either
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return part, file
        file.close()  # swept between being made and being locked


def _sweep(folder: Path) -> None:
    """Removes half-written files that nobody holds a lock on: whoever wrote them was killed."""
    if fcntl is None:
        return
    for name in os.listdir(folder):
        if PART.search(name):
            with contextlib.suppress(OSError), open(folder / name, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(folder / name)
