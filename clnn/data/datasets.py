"""The data sets: UCI's small digits, MNIST, Fashion-MNIST and CIFAR-10, as NumPy arrays.

Each function returns `(x, y), (x_test, y_test)`, and with `validation=k` a third pair between the two, the last k
samples of the training part. `x` is float32 of shape (n, features), CIFAR-10's (n, 3, 32, 32), with values in [0, 1], `y`
int32 of shape (n,).

The files of MNIST are looked for, gzip or plain, in `$CLNN_DATA_DIR/mnist`, then in the cache folder
(`$CLNN_CACHE_DIR/mnist`, by default the user's own cache); what is nowhere is downloaded to the cache folder. Likewise
`fashion_mnist` and, as .bin files or as the archive of its binary version, `cifar10`.
"""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clnn.checks import whole
from clnn.data.cifar import decode_records, read_archive
from clnn.data.download import download, keep
from clnn.data.idx import decode_idx, read_idx
from clnn.data.validate import check_labels
from clnn.errors import ConfigurationError, DataError
from clnn.files import cache_folder

Pair = tuple[np.ndarray, np.ndarray]

DIGITS = Path(__file__).with_name("digits.idx.gz")
DIGITS_SHA256 = "4af6f3417d7865cd8b5dbd03a9e4f16e8ef14c0f4c336c712afa1421a4f382a9"


class IdxFile(NamedTuple):
    """One file of a data set and the marks it is known by."""

    name: str
    shape: tuple[int, ...]
    sha256: str = ""  # of the uncompressed bytes: gzip files differ by who packed them
    md5: str = ""  # of the gzip file as published, where no sum of the uncompressed bytes is known


class Source(NamedTuple):
    """A data set of four IDX files (training images and labels, test images and labels) and its mirrors."""

    title: str
    folder: str
    mirrors: tuple[str, ...]
    files: tuple[IdxFile, ...]


MNIST = Source(
    "MNIST",
    "mnist",
    (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "http://yann.lecun.com/exdb/mnist/",
    ),
    (
        IdxFile(
            "train-images-idx3-ubyte",
            (60000, 28, 28),
            sha256="ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        IdxFile(
            "train-labels-idx1-ubyte",
            (60000,),
            sha256="65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
        IdxFile(
            "t10k-images-idx3-ubyte",
            (10000, 28, 28),
            sha256="0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        IdxFile(
            "t10k-labels-idx1-ubyte",
            (10000,),
            sha256="ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
)

FASHION_MNIST = Source(
    "Fashion-MNIST",
    "fashion_mnist",
    (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    ),
    (
        IdxFile("train-images-idx3-ubyte", (60000, 28, 28), md5="8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        IdxFile("train-labels-idx1-ubyte", (60000,), md5="25c81989df183df01b3e8a0aad5dffbe"),
        IdxFile("t10k-images-idx3-ubyte", (10000, 28, 28), md5="bef4ecab320f06d8554ea6380940ec79"),
        IdxFile("t10k-labels-idx1-ubyte", (10000,), md5="bb300cfdad3c16e7a12a480ee83cd310"),
    ),
)


class RecordFiles(NamedTuple):
    """A data set of files of records, and the archive that they are published in."""

    title: str
    folder: str
    mirrors: tuple[str, ...]
    archive: str
    sha256: str
    inside: str  # the folder in the archive
    train: tuple[str, ...]
    test: tuple[str, ...]
    records: int  # of each file
    classes: int


CIFAR10 = RecordFiles(
    "CIFAR-10",
    "cifar10",
    (
        "https://www.cs.toronto.edu/~kriz/",
        "https://cave.cs.toronto.edu/kriz/",
        "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/",
    ),
    "cifar-10-binary.tar.gz",  # its md5 as published: c32a1d4ab5d03f1284b67883e8d87530
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    "cifar-10-batches-bin",
    tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    ("test_batch.bin",),
    10000,
    10,
)


def digits(validation: int = 0, raw: bool = False) -> tuple[Pair, ...]:
    """The 1,797 handwritten digits of 8 x 8 pixels that scikit-learn has too: 1,437 to train on, 360 to test, 64 features.

    They come with clnn. The split is always the same. `raw=True` gives the images as uint8, (n, 8, 8), values 0 to 16.
    Each pixel counts the inked ones of a block of 4 x 4 in a bitmap of 32 x 32 by NIST. Source: E. Alpaydin and C. Kaynak,
    Optical Recognition of Handwritten Digits, its test set, UCI Machine Learning Repository 1998, doi 10.24432/C50P49, CC BY 4.0.

        (x, y), (x_test, y_test) = clnn.data.digits()
    """
    table = read_idx(DIGITS, (1797, 65), DIGITS_SHA256)  # a row an image: its pixels, then its label
    images, labels = table[:, :64].reshape(-1, 8, 8), table[:, 64]
    order = np.random.RandomState(0).permutation(1797)  # RandomState's stream is frozen; default_rng's may change
    images, labels = images[order], labels[order]
    train, test = (images[:1437], labels[:1437]), (images[1437:], labels[1437:])
    return _prepare(train, test, validation, raw, scale=16)


def mnist(validation: int = 0, raw: bool = False, scale: float = 255) -> tuple[Pair, ...]:
    """MNIST (LeCun, Cortes and Burges 1998): 60,000 handwritten digits to train on, 10,000 to test, 784 features.

    `validation=10000, scale=256` is the split and scaling of Nielsen's book (50,000, 10,000 and 10,000 images, pixels
    divided by 256). `raw=True` gives the images as uint8, (n, 28, 28), not scaled.

        (x, y), (x_test, y_test) = clnn.data.mnist()
    """
    train, test = _load(MNIST)
    return _prepare(train, test, validation, raw, scale)


def fashion_mnist(validation: int = 0, raw: bool = False, scale: float = 255) -> tuple[Pair, ...]:
    """Fashion-MNIST (Xiao, Rasul and Vollgraf 2017): MNIST's shapes, but ten kinds of clothing, which are harder.

    The classes: T-shirt/top, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot.
    """
    train, test = _load(FASHION_MNIST)
    return _prepare(train, test, validation, raw, scale)


def cifar10(validation: int = 0, raw: bool = False) -> tuple[Pair, ...]:
    """CIFAR-10 (Krizhevsky 2009): 50,000 colour images to train on, 10,000 to test, (n, 3, 32, 32): red, green, blue.

    The classes: airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck. `raw=True` gives the images as
    uint8, not scaled.

        (x, y), (x_test, y_test) = clnn.data.cifar10()
    """
    train, test = _load_records(CIFAR10)
    return _prepare(train, test, validation, raw, 255, flat=False)


def _prepare(train: Pair, test: Pair, validation: int, raw: bool, scale: float, flat: bool = True) -> tuple[Pair, ...]:
    """Cuts the validation part off the training part, and makes features of the images."""
    n = len(train[0])
    k = whole(validation)
    if k is None or not 0 <= k < n:
        raise ConfigurationError(
            f"validation should be a whole number in [0, {n}), {validation!r} was provided instead"
        )
    if not scale > 0:
        raise ConfigurationError(f"scale should be greater than 0, {scale!r} was provided instead")

    (x, y), cut = train, n - k
    parts = [(x[:cut], y[:cut]), (x[cut:], y[cut:]), test] if k else [train, test]
    if not raw:
        parts = [(np.divide(x.reshape(len(x), -1) if flat else x, scale, dtype=np.float32), y) for x, y in parts]
    return tuple((x, y.astype(np.int32)) for x, y in parts)


def _load(source: Source) -> tuple[Pair, Pair]:
    """Returns the training and the test part as they stand in the files."""
    x, y, x_test, y_test = (
        read_idx(path, file.shape, file.sha256) for path, file in zip(_locate(source), source.files, strict=True)
    )
    check_labels(y, 10, f"training labels of {source.title}")
    check_labels(y_test, 10, f"test labels of {source.title}")
    return (x, y), (x_test, y_test)


def data_folder(name: str) -> Path | None:
    """Returns the folder of a data set under CLNN_DATA_DIR, if that is set; it may not be there."""
    data_dir = os.environ.get("CLNN_DATA_DIR")
    if not data_dir:
        return None
    if not os.path.isdir(data_dir):
        raise DataError(f"CLNN_DATA_DIR is {data_dir!r}, which is not a folder; correct it or unset it")
    return Path(data_dir) / name


def _locate(source: Source) -> list[Path]:
    """Returns where the files are, after downloading them if need be."""
    if folder := data_folder(source.folder):
        found = {file.name: path for file in source.files if (path := _find(folder, file))}
        if found and len(found) < len(source.files):
            missing = ", ".join(file.name for file in source.files if file.name not in found)
            raise DataError(f"{folder} lacks {missing}; add what is missing, plain or with .gz, or remove the folder")
        if found:
            return list(found.values())
    cache = cache_folder() / source.folder
    mirrors = list(source.mirrors)
    return [_find(cache, file) or _fetch(source, file, cache, mirrors) for file in source.files]


def _find(folder: Path, file: IdxFile) -> Path | None:
    """Returns the path of the file under any of its names: plain or gzip, with the historical dot or without."""
    names = (file.name + end for end in ("", ".gz"))
    candidates = (folder / spelt for name in names for spelt in (name, name.replace("-idx", ".idx")))
    return next((path for path in candidates if os.path.isfile(path)), None)


def _fetch(source: Source, file: IdxFile, cache: Path, mirrors: list[str]) -> Path:
    """Downloads one file to the cache; the mirror that had it moves to the front of `mirrors`."""

    def check(data: bytes, url: str) -> None:
        found = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if file.md5 and found != file.md5:
            raise DataError(f"{url}: expected md5 {file.md5}, found {found}")
        decode_idx(data, url, file.shape, file.sha256)

    try:
        data, url = download([f"{mirror}{file.name}.gz" for mirror in mirrors], check)
    except DataError as error:
        missing = [f"{other.name}.gz" for other in source.files if not _find(cache, other)]
        raise DataError(
            f"{source.title} is not on this machine and could not be downloaded:\n{error}\n"
            f"Put these files, as they are or unpacked, into {cache}:\n"
            + "\n".join(missing)
            + f"\nor set CLNN_DATA_DIR to the folder that holds a folder {source.folder!r} with all four."
        ) from error
    mirrors.sort(key=lambda mirror: not url.startswith(mirror))
    return keep(cache / f"{file.name}.gz", data)


def _load_records(source: RecordFiles) -> tuple[Pair, Pair]:
    """Returns the training and the test part as they stand in the files or in the archive, downloaded if need be."""
    names = (*source.train, *source.test)
    where, contents = _read_records(source, names)
    pairs = [
        decode_records(data, f"{where / name}", source.records, source.classes)
        for name, data in zip(names, contents, strict=True)
    ]
    cut = len(source.train)
    train, test = (tuple(np.concatenate(part) for part in zip(*half)) for half in (pairs[:cut], pairs[cut:]))
    return train, test  # type: ignore[return-value]


def _read_records(source: RecordFiles, names: tuple[str, ...]) -> tuple[Path, list[bytes]]:
    """Returns the bytes of the files, and the folder or the archive that they are in."""
    folder, cache = data_folder(source.folder), cache_folder() / source.folder
    for place in (folder, folder and folder / source.inside):
        if place and (found := [name for name in names if os.path.isfile(place / name)]):
            if missing := set(names) - set(found):
                raise DataError(
                    f"{place} lacks {', '.join(sorted(missing))}; add what is missing, or remove the folder"
                )
            return place, [(place / name).read_bytes() for name in names]

    def check(data: bytes, name: str) -> None:
        if (content := hashlib.sha256(data).hexdigest()) != source.sha256:
            raise DataError(f"{name}: expected content with sha256 {source.sha256}, found {content}")

    places = [place / source.archive for place in (folder, cache) if place]
    path = next((path for path in places if os.path.isfile(path)), None)
    if path is not None:
        data = path.read_bytes()
        try:
            check(data, f"{path}")
        except DataError as error:
            raise DataError(f"{error}; replace the file by an undamaged copy") from error
    else:
        try:
            data, _ = download([f"{mirror}{source.archive}" for mirror in source.mirrors], check)
        except DataError as error:
            raise DataError(
                f"{source.title} is not on this machine and could not be downloaded:\n{error}\n"
                f"Put {source.archive} into {cache},\nor set CLNN_DATA_DIR to the folder that holds a folder "
                f"{source.folder!r} with it or with {', '.join(names)}."
            ) from error
        path = keep(cache / source.archive, data)
    inside = [f"{source.inside}/{name}" for name in names]
    return path / source.inside, read_archive(data, f"{path}", inside, source.records)
