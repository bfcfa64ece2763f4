"""What features and labels must satisfy before classifiers are trained on them."""

import zlib
from collections.abc import Sequence

import numpy as np

from dinov2_jax.errors import EvaluationError
from dinov2_jax.heads.grid import Columns, Grid, check_rows


def check_training(columns: Columns, labels: np.ndarray, classes: int, grid: Grid) -> None:
    """Rows, columns and classes fit together.

    Raises:
      EvaluationError: in one sentence.
    """
    check_rows(columns, labels, grid)
    check_classes(labels, classes)


def check_classes(labels: np.ndarray, classes: int) -> None:
    """Every one of the classes has a picture, and there are no others.

    Raises:
      EvaluationError: naming one that is wrong.
    """
    present = np.unique(labels)
    outside = present[(present < 0) | (present >= classes)]
    if len(outside):
        raise EvaluationError(
            f"label {outside[0]} is not one of {classes} classes, 0 to {classes - 1}; check the "
            "label file, or give the right number of classes"
        )
    missing = np.setdiff1d(np.arange(classes), present)
    if len(missing):
        raise EvaluationError(
            f"class {missing[0]} has no picture in the training set ({len(missing)} of {classes} "
            "have none); number the classes without gaps or use a complete training set"
        )


def check_finite(columns: Columns, rows: int = 65536) -> None:
    """No NaN or infinity, which one picture would spread to all classifiers.

    Raises:
      EvaluationError: naming the first row that has one.
    """
    for place, column in enumerate(columns):
        for start in range(0, len(column), rows):
            good = np.isfinite(np.asarray(column[start : start + rows])).all(axis=1)
            if not good.all():
                row = start + int(np.argmin(good))
                raise EvaluationError(
                    f"row {row} in column {place} of the features is not finite; leave out "
                    "pictures that could not be read, or extract the features again"
                )


def fingerprint(arrays: Sequence[np.ndarray]) -> str:
    """Of shapes and of some of the values: 1024 rows spread over each array."""
    found = 0
    for array in arrays:
        step = max(1, len(array) // 1024)
        found = zlib.crc32(np.ascontiguousarray(array[::step]).tobytes(), found)
        found = zlib.crc32(repr((array.shape, str(array.dtype))).encode(), found)
    return f"{found:08x}"
