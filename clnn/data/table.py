"""A CSV file by pandas: columns of numbers as features, one as targets, the names of both, and errors that name the sample."""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clnn.errors import ConfigurationError, DataError
from clnn.files import refuse_device

# of pandas.read_csv's options those that say how a file is written
FORM = ["sep", "delimiter", "skipinitialspace", "skiprows", "skip_blank_lines", "compression", "lineterminator", "quotechar",
        "quoting", "doublequote", "escapechar", "comment", "encoding", "encoding_errors", "dialect", "engine",
        "storage_options"]  # fmt: skip


class Table(NamedTuple):
    """What `read_csv` read: x float32 (n, features); y int32 or float32 (n,), or None; the names of the features, in the order
    of x's columns; and the names of the classes that the numbers in y stand for, none where y is as it was in the file."""

    x: np.ndarray
    y: np.ndarray | None
    features: list[Any]
    classes: list[Any]


def read_csv(
    path: Any, target: Any = None, *, features: Sequence[Any] | None = None, classes: Sequence[Any] | None = None,
    **options: Any,
) -> Table:  # fmt: skip
    """The samples in a CSV file, a line each, in the order of the file, by pandas, which has to be installed.

        table = clnn.data.read_csv("iris.csv", target="species")
        net.fit(table.x, table.y, loss="cross_entropy", optimizer="adam", epochs=50)
        test = clnn.data.read_csv("test.csv", target="species", features=table.features, classes=table.classes)

    `target`: the column that is to be learnt, by its name (its number with header=None). Texts and bools in it become class
    numbers, by `classes` or else in sorted order; whole numbers stay what they are, as int32, and others become float32.
    `features`: the columns that are read, by default all others. `path` and `options` are those of `pandas.read_csv`: sep,
    decimal, na_values, ... DataError for values that are missing, columns that hold no numbers, labels that `classes` has not,
    lines that are too long, and files that are empty or cannot be read.
    """
    name = os.fspath(path) if isinstance(path, (str, os.PathLike)) else "the file"
    if isinstance(path, (str, os.PathLike)) and os.path.exists(path) and stat.S_ISFIFO(os.stat(path).st_mode):
        path = io.BytesIO(Path(path).read_bytes())  # a pipe gives it once
    at = path.tell() if hasattr(path, "seekable") and path.seekable() else None
    frame = _read(path, options)
    there, features = list(frame.columns), [features] if isinstance(features, str) else features
    chosen = [column for column in there if column != target] if features is None else list(features)
    if unknown := [column for column in [*chosen, *([] if target is None else [target])] if column not in there]:
        raise DataError(f"{name} has no column {_told(unknown)}; its columns are {_told(there)}")
    if len({*chosen}) < len(chosen):
        raise ConfigurationError(f"features names one column twice: {_told(chosen)}")
    if twice := [column for column in _twice(path, at, options, there) if column in (*chosen, target)]:
        raise DataError(
            f"{name} has several columns called {_told(twice)}: give them other names in the file, or by names= and header=0"
        )
    if target is not None and target in chosen:
        raise ConfigurationError(f"features: {target!r} is the target, which would be known to the model")
    if not chosen or not len(frame):
        raise DataError(f"{name} has {len(frame)} lines of {len(chosen)} features: there is nothing to learn from")
    _check(frame[chosen], name)
    x = np.ascontiguousarray(frame[chosen].to_numpy(np.float32))
    if not np.isfinite(x).all():
        i, j = np.argwhere(~np.isfinite(x))[0]
        value = frame[chosen[j]].iloc[i]
        raise DataError(f"{name}, sample {i}: {chosen[j]!r} is {value}, which is not finite in float32")
    if target is None:
        return Table(x, None, chosen, [])
    y, found = _targets(frame[target], classes, f"{name}, column {target!r}")
    return Table(x, y, chosen, found)


def _read(path: Any, options: dict[str, Any]) -> Any:
    try:
        import pandas
    except ImportError:
        raise ConfigurationError("read_csv needs pandas: pip install pandas") from None
    if wrong := {"chunksize", "iterator", "index_col"} & {*options}:
        raise ConfigurationError(
            f"read_csv reads a file whole, in columns of features: leave {_told(sorted(wrong))} out, or give fit batches (x, y) "
            "of what pandas.read_csv yields"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)  # fields are lost
            refuse_device(path)
            return pandas.read_csv(path, **{"index_col": False, "low_memory": False, **options})
    except TypeError as error:
        raise ConfigurationError(f"read_csv: {error}; options are those of pandas.read_csv") from error
    except (OSError, ValueError, pandas.errors.ParserWarning) as error:  # pandas' own are ValueErrors
        how = "" if isinstance(error, OSError) else "; sep=, encoding=, header= and the like say how it is written"
        raise DataError(f"{path} cannot be read as CSV: {error}{how}") from error


def _twice(path: Any, at: int | None, options: dict[str, Any], there: Sequence[Any]) -> list[str]:
    """The names that several columns have in the file: pandas calls the second c.1, which may be a name of its own, too."""
    import pandas

    parts = [column.rpartition(".") for column in there if isinstance(column, str)]
    renamed = any(stem in there and number.isdigit() for stem, _, number in parts)
    if not (renamed or "usecols" in options) or "names" in options or (hasattr(path, "read") and at is None):
        return []
    if at is not None:
        path.seek(at)
    row = options["header"] if isinstance(options.get("header"), int) else 0
    form = {key: value for key, value in options.items() if key in FORM}
    told = {"header": None, "nrows": row + 1, "dtype": str, "keep_default_na": False, "index_col": False}
    try:
        first = pandas.read_csv(path, **form, **told).iloc[row]
    except (ValueError, IndexError):  # the lines before it are shorter
        return []
    return [column for column in dict.fromkeys(first) if list(first).count(column) > 1]


def _check(frame: Any, name: str) -> None:
    """DataError for columns of other things than numbers, and for missing values."""
    if wrong := [column for column in frame if frame[column].dtype.kind not in "fiub"]:
        first = frame[wrong[0]]
        texts = first[[isinstance(value, str) and not _is_number(value) for value in first]]
        example = f", such as {texts.iloc[0]!r} in sample {texts.index[0]}" if len(texts) else ""
        raise DataError(
            f"{name}: the columns {_told(wrong)} hold other things than numbers{example}: say what stands for a missing value by "
            "na_values=, and how numbers are written by decimal= or thousands=; give features= without these columns, or make "
            "numbers of them by pandas.read_csv and pandas.get_dummies"
        )
    missing = frame.isna()
    if missing.to_numpy().any():
        column = next(one for one in frame if missing[one].any())
        raise DataError(
            f"{name}: {int(missing.to_numpy().sum())} values are missing, the first of {column!r} in sample "
            f"{int(missing[column].to_numpy().argmax())}: fill them in, as frame.fillna(frame.median()) does with what "
            "pandas.read_csv gives, or leave their lines or columns out"
        )


def _targets(column: Any, classes: Sequence[Any] | None, name: str) -> tuple[np.ndarray, list[Any]]:
    """The targets, and the names of their classes."""
    if column.isna().any():
        raise DataError(
            f"{name}: the target of sample {int(column.isna().to_numpy().argmax())} is missing: leave its line out, or give "
            "keep_default_na=False where it is a name such as NA or None"
        )
    kind = column.dtype.kind
    if classes is None and kind in "iu":
        if not -(2**31) <= column.min() <= column.max() < 2**31:
            raise DataError(f"{name}: targets from {column.min()} to {column.max()} do not fit int32")
        return column.to_numpy(np.int32), []
    if classes is None and kind == "f":
        y = column.to_numpy(np.float32)
        if not np.isfinite(y).all():
            raise DataError(f"{name}: the target of sample {int(np.isfinite(y).argmin())} is not finite in float32")
        return y, []
    texts = kind not in "biuf" or any(isinstance(label, str) for label in classes or ())
    labels = [str(value) for value in column] if texts else column.tolist()
    found = sorted(set(labels)) if classes is None else list(classes)
    number = {label: i for i, label in enumerate(found)}
    if len(number) != len(found):
        raise ConfigurationError(f"classes names one class twice: {_told(found)}")
    for sample, label in enumerate(labels):
        if label not in number:
            raise DataError(f"{name}: {label!r} in sample {sample} is none of classes {_told(found)}")
    return np.array([number[label] for label in labels], np.int32), found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _told(names: Sequence[Any]) -> str:
    return ", ".join(map(repr, names[:9])) + (", ..." if len(names) > 9 else "")
