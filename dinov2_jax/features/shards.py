"""Rows of features on disk: Parquet files, or one `.npy` a column. A shard is a run of rows."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dinov2_jax.errors import UserError
from dinov2_jax.run.files import replacing

Columns = dict[str, np.ndarray]
# Shape of one row and dtype, by column.
Layout = Mapping[str, tuple[tuple[int, ...], np.dtype]]

_MOST_BYTES = 1 << 28
_PARTIAL = ".npy.partial"


class ShardsError(UserError):
    """Features that cannot be written or continued; the message is one sentence."""


class Writer(Protocol):
    """Where shards go. Writing one again replaces it by the same."""

    def prepare(self, started: bool) -> None:
        """Makes what must be there before the first shard; once, by one process."""

    def write(self, number: int, first_row: int, names: Sequence[str], columns: Columns) -> None:
        """Stores a shard; it is on disk when this returns."""

    def has(self, number: int) -> bool:
        """Whether what `write` made is still there."""

    def finish(self) -> list[str]:
        """Names of the files, when all shards are written."""


def rows_of_shards(rows: int, layout: Layout) -> int:
    """A power of two: about 64 shards, none over 256 MB or 8192 rows, if possible none under 64."""
    bytes_per_row = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in layout.values())
    count = 64
    while count < 8192 and count * 64 < rows:
        count *= 2
    while count > 1 and count * bytes_per_row > _MOST_BYTES:
        count //= 2
    return count


class NpyWriter:
    """`<column>.npy` of all rows; `<column>.npy.partial` until the last shard is written."""

    def __init__(self, folder: Path, rows: int, layout: Layout) -> None:
        self._folder, self._rows, self._layout = folder, rows, layout

    def prepare(self, started: bool) -> None:
        for name, (shape, dtype) in self._layout.items():
            path = self._folder / f"{name}{_PARTIAL}"
            if path.exists() or (self._folder / f"{name}.npy").exists():
                continue
            if started:
                raise ShardsError(
                    f"{path} has gone, and with it the rows of an earlier start; remove "
                    f"{self._folder}, or name another --workdir"
                )
            with replacing(path) as new:
                np.lib.format.open_memmap(new, "w+", dtype, (self._rows, *shape)).flush()

    def write(self, number: int, first_row: int, names: Sequence[str], columns: Columns) -> None:
        for name, values in columns.items():
            path = self._folder / f"{name}{_PARTIAL}"
            whole = np.lib.format.open_memmap(path, "r")
            start = whole.offset + first_row * int(np.prod(whole.shape[1:])) * whole.itemsize
            # Not through the map: a full disk would be a signal there, and is an error here.
            with open(path, "r+b") as file:
                file.seek(start)
                file.write(np.ascontiguousarray(values).tobytes())
                file.flush()
                os.fsync(file.fileno())

    def has(self, number: int) -> bool:
        return True

    def finish(self) -> list[str]:
        for name in self._layout:
            partial = self._folder / f"{name}{_PARTIAL}"
            if partial.exists():
                os.replace(partial, self._folder / f"{name}.npy")
        return [f"{name}.npy" for name in self._layout]


class ParquetWriter:
    """`features-00003-of-00040.parquet`: row, name and one column a feature, flattened.

    The shape of a feature is in the metadata of the schema, as JSON under "shapes".
    """

    def __init__(self, folder: Path, shards: int, layout: Layout) -> None:
        try:
            import pyarrow.parquet
        except ImportError as error:
            raise ImportError(
                "config.store.format='parquet' needs a package: pip install "
                '"dinov2_jax[parquet]"; or add --config.store.format=npy'
            ) from error
        self._pyarrow: Any = pyarrow
        self._folder, self._shards, self._layout = folder, shards, layout

    def prepare(self, started: bool) -> None:
        pass

    def write(self, number: int, first_row: int, names: Sequence[str], columns: Columns) -> None:
        pa, path = self._pyarrow, self._folder / self._name(number)
        table = {
            "row": pa.array(np.arange(first_row, first_row + len(names))),
            "name": pa.array(list(names)),
        }
        table |= {name: self._column(values) for name, values in columns.items()}
        shapes = {name: list(shape) for name, (shape, _) in self._layout.items()}
        metadata = {"shapes": json.dumps(shapes)}
        with replacing(path) as new:
            pa.parquet.write_table(
                pa.table(table).replace_schema_metadata(metadata),
                new,
                compression="zstd",
                use_dictionary=["name"],
                row_group_size=max(1, min(1024, len(names))),
            )

    def has(self, number: int) -> bool:
        return (self._folder / self._name(number)).exists()

    def finish(self) -> list[str]:
        return [self._name(number) for number in range(self._shards)]

    def _name(self, number: int) -> str:
        return f"features-{number:05}-of-{self._shards:05}.parquet"

    def _column(self, values: np.ndarray) -> Any:
        pa = self._pyarrow
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        if values.ndim == 1:
            return flat
        return pa.FixedSizeListArray.from_arrays(flat, int(np.prod(values.shape[1:])))
