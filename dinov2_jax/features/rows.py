"""Some rows of a column on disk, without a copy of the column."""

from typing import Any

import numpy as np


class RowView:
    """The rows `rows` of a column; only what is indexed is read from disk.

    Args:
      whole: [n, ...], usually a memory map.
      rows: int [m], the rows that this view has.
    """

    def __init__(self, whole: np.ndarray, rows: np.ndarray) -> None:
        self._whole, self._rows = whole, rows
        self.shape, self.dtype, self.ndim = (len(rows), *whole.shape[1:]), whole.dtype, whole.ndim

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Rows by number, slice, numbers or mask, as of an array; a tuple indexes further axes."""
        first, *rest = index if isinstance(index, tuple) else (index,)
        rows = self._rows[first]
        axis = (slice(None),) if np.ndim(rows) else ()
        return self._whole[rows][(*axis, *rest)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All rows, in memory."""
        if copy is False:
            raise ValueError("rows on disk become an array only by a copy")
        return np.asarray(self._whole[self._rows], dtype)


Column = np.ndarray | RowView
