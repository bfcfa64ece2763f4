"""Large arrays that worker processes map instead of copying."""

import contextlib
import os
import tempfile
import weakref
from typing import Any

import numpy as np

# Smaller ones are pickled: a worker that imports JAX takes a hundred times as much.
_SMALL_BYTES = 1 << 20


class Mapped:
    """An array, which pickles as the place of an unnamed file if it is large.

    Every process that unpickles it maps this one file, so any number of loader workers hold the
    array once. The file vanishes with the array that it was made of. Where the system has no /proc,
    or no room for the file, the array itself is pickled.

    Attributes:
      array: read only where it is mapped.
    """

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self._file: Any = None

    def __getstate__(self) -> dict[str, Any]:
        if self.array.nbytes > _SMALL_BYTES and os.path.isdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                return {"path": self._place()}
        return {"array": self.array}

    def __setstate__(self, state: dict[str, Any]) -> None:
        given = state.get("array")
        self.array = np.load(state["path"], mmap_mode="r") if given is None else given
        self._file = None

    def _place(self) -> str:
        if self._file is None:
            file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the array
            weakref.finalize(self, file.close)
            np.save(file, self.array)
            file.flush()
            self._file = file
        return f"/proc/{os.getpid()}/fd/{self._file.fileno()}"
