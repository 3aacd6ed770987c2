"""Data sets to learn on, a reader for the IDX format, and checks for features and labels."""

from clnn.data import augment
from clnn.data.datasets import digits, fashion_mnist, mnist
from clnn.data.idx import read_idx
from clnn.data.validate import check_features, check_labels

__all__ = ["augment", "check_features", "check_labels", "digits", "fashion_mnist", "mnist", "read_idx"]
