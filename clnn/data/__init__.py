"""Data sets to learn on, readers for CSV, folders of images, IDX and drawn digits, checks of what is given, and augmentation."""

import importlib
from typing import TYPE_CHECKING, Any

from clnn.data.datasets import cifar10, digits, fashion_mnist, mnist
from clnn.data.digit import as_digit, read_digit
from clnn.data.folder import ImageFolder, read_image
from clnn.data.idx import read_idx
from clnn.data.table import Table, read_csv
from clnn.data.text import shakespeare
from clnn.data.validate import check_features, check_labels
from clnn.foreign import missing

if TYPE_CHECKING:
    from clnn.data import augment
    from clnn.data.batches import Batches

__all__ = [
    "Batches", "ImageFolder", "Table", "as_digit", "augment", "check_features", "check_labels", "cifar10", "digits",
    "fashion_mnist", "mnist", "read_csv", "read_digit", "read_idx", "read_image", "shakespeare",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "augment":  # these need OpenCL, which the data sets do without: at first use
        return importlib.import_module("clnn.data.augment")
    if name == "Batches":
        return importlib.import_module("clnn.data.batches").Batches
    return missing(__name__, __all__, (), None, name)
