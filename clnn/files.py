"""Files of clnn's own: where they are kept, and writing them whole or not at all."""

import os
import secrets
from pathlib import Path


def cache_folder() -> Path:
    """`$CLNN_CACHE_DIR`, by default the user's own cache folder; data sets, tuning and self-tests lie there."""
    if folder := os.environ.get("CLNN_CACHE_DIR", "").strip():
        return Path(folder).expanduser()
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("clnn"))


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file so that others see all of it or nothing, even if the machine stops half-way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
