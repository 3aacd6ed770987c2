"""`ImageFolder`: images in folders that name their classes, by Pillow, read when they are asked for; and `read_image`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clnn.checks import check_count
from clnn.data.digit import upright
from clnn.errors import ConfigurationError, DataError
from clnn.files import as_path
from clnn.foreign import Called

SKIPPED = ("thumbs.db", "desktop.ini")  # what Windows leaves in folders of images


class ImageFolder(Called):
    """The images in the folders of `path`, each of which is a class: `path/cat/1.jpg`, `path/dog/old/2.png`.

        photos = clnn.data.ImageFolder("photos", size=64)
        batches = clnn.data.Batches(photos, photos.y, batch_size=32, workers=4)
        net.fit(batches, loss="cross_entropy", optimizer="adam", epochs=10)
        test = clnn.data.ImageFolder("test", size=64, classes=photos.classes)

    It stands for an array (n, channels, height, width) of float32 in [0, 1], of which `photos[rows]` reads those rows alone, so
    `Batches` stream what does not fit into memory; `numpy.asarray(photos)` is all of it. `y` has their class numbers, int32,
    `classes` the names of these, by default those of all folders in sorted order, and `paths` the files, in the order of
    class and name. `size`: (height, width), or one number for both, to which images are resized, by which proportions may change;
    without it all have to be as large as the first one. `channels`: 3 for red, green and blue, 1 for grey. Each is what
    `read_image` makes of it.

    DataError for a folder without images, files of which the name is no image's, images that cannot be read and, when they
    are, for images of another size.
    """

    def __init__(
        self, path: str | os.PathLike[str], size: int | Sequence[int] | None = None, *, channels: int = 3,
        classes: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        known = set(_pillow().registered_extensions())
        root = Path(path)
        wanted = _checked(size, channels)
        if not os.path.isdir(root):
            raise DataError(f"{root} is no folder: give the one in which each class has its folder of images")
        there = sorted(one.name for one in root.iterdir() if one.is_dir() and not one.name.startswith("."))
        self.classes = there if classes is None else list(classes)
        if len({*self.classes}) < len(self.classes):
            raise ConfigurationError(f"classes names one class twice: {', '.join(map(repr, self.classes))}")
        if unknown := sorted({*there} - {*self.classes}):
            raise DataError(f"{root}: the folders {', '.join(unknown)} are none of classes {', '.join(self.classes)}")
        self.paths: list[Path] = []
        numbers: list[int] = []
        for name in there:
            every = {one.relative_to(root): one for one in (root / name).rglob("*") if _counts(one)}
            shown = [one for one in every if not any(part.startswith(".") for part in one.parts)]
            found = [every[one] for one in sorted(shown, key=Path.as_posix)]
            if wrong := [one for one in found if one.suffix.lower() not in known]:
                raise DataError(f"{wrong[0]} is no image that Pillow knows, by its name: move it away or rename it")
            if not found:
                raise DataError(f"{root / name} has no images: put some there, or remove the folder")
            self.paths += found
            numbers += [self.classes.index(name)] * len(found)
        if not self.paths:
            raise DataError(f"{root} has no folders: put the images of each class into a folder of the class's name")
        if loose := [one for one in root.iterdir() if _counts(one) and one.suffix.lower() in known]:
            raise DataError(f"{loose[0]} lies in no class's folder: move it into one")
        self.y = np.array(numbers, np.int32)
        self.channels, self.resized, self.dtype, self.ndim = channels, wanted, np.dtype(np.float32), 4
        self.size = wanted or _opened(self.paths[0], lambda image: image.size[::-1])

    @property
    def shape(self) -> tuple[int, ...]:
        """(images, channels, height, width)."""
        return len(self.paths), self.channels, *self.size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """The image of a row, or those of rows by a slice or by their numbers, read now."""
        which = np.arange(len(self))[rows]
        x = np.empty((which.size, *self.shape[1:]), np.float32)
        for image, row in zip(x, which.flat):
            found = read_image(self.paths[row], self.resized, self.channels)
            if found.shape != image.shape:
                own, first = (" x ".join(map(str, one.shape[1:])) for one in (found, image))
                told = f"it has {own} pixels (height x width), and the first image {first}: give size=(height, width)"
                raise DataError(f"{self.paths[row]}: {told}, to which all are resized")
            image[:] = found
        return x.reshape(*which.shape, *self.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or np.float32, copy=False)

    def __repr__(self) -> str:
        return f"<ImageFolder: {len(self)} images of {len(self.classes)} classes as {self.shape[1:]}>"


def read_image(path: str | os.PathLike[str], size: int | Sequence[int] | None = None, channels: int = 3) -> np.ndarray:
    """An image file as `ImageFolder` reads it, (channels, height, width) of float32 in [0, 1], for a model that it trained:

        net.predict(clnn.data.read_image("new.jpg", size=64)[None])

    Transparent parts are white, and a photo is turned as it says. It needs Pillow. DataError for what cannot be read.
    """
    size, pillow = _checked(size, channels), _pillow()

    def pixels(image: Any) -> np.ndarray:
        if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = pillow.alpha_composite(pillow.new("RGBA", image.size, "white"), image)
        image = image.convert("L" if channels == 1 else "RGB")
        image = image if size is None else image.resize(size[::-1], pillow.Resampling.BILINEAR)
        return np.asarray(image, np.float32).reshape(*image.size[::-1], channels).transpose(2, 0, 1) / np.float32(255)

    return np.asarray(_opened(as_path(path), pixels))


def _checked(size: Any, channels: Any) -> tuple[int, ...] | None:
    """(height, width) of a size; ConfigurationError where that or the channels are none."""
    if channels not in (1, 3):
        raise ConfigurationError(f"channels is 1 (grey) or 3 (red, green and blue), {channels!r} was provided instead")
    given = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(given) != 2:
        raise ConfigurationError(f"size is (height, width) or one number for both, {size!r} was provided instead")
    return None if size is None else tuple(check_count("size", one) for one in given)


def _counts(path: Path) -> bool:
    """Whether a path is a file that somebody put there."""
    return path.is_file() and not path.name.startswith(".") and path.name.lower() not in SKIPPED


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise ConfigurationError("reading images needs Pillow: pip install pillow") from None
    return Image


def _opened(path: Path, function: Any) -> Any:
    """What `function` makes of an image that is open and turned as it says. DataError where it cannot be read."""
    pillow = _pillow()
    try:
        with pillow.open(path) as image:
            return function(upright(image))
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except (OSError, ValueError, SyntaxError, EOFError, pillow.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image: {error}; replace or remove it") from error
