"""A folder of features: its manifest, its progress, and rows as Parquet or `.npy` files.

manifest.json    settings, fingerprints, columns, files; "complete" when all rows are there
names.txt        line i + 1 names the picture of row i
unreadable.txt   row, name and reason of each unreadable picture
.progress/       one file for each finished shard, until all are finished

A shard is a run of rows. The folder is written by one job at a time, under its lock.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dinov2_jax import __version__
from dinov2_jax.config.files import diff_configs
from dinov2_jax.data.sources.source import Source
from dinov2_jax.errors import UserError, printable
from dinov2_jax.run.files import naming, replacing
from dinov2_jax.weights.bundle import architecture_fields
from dinov2_jax.weights.load import Backbone

# Raise it when the same pictures, weights and settings give other features, such as after a change
# of decoding. Folders without a number have version 1.
FEATURES_VERSION = 1

Columns = dict[str, np.ndarray]
# Shape of one row and dtype, by column.
Layout = Mapping[str, tuple[tuple[int, ...], np.dtype]]

_MOST_BYTES = 1 << 28
_PARTIAL = ".npy.partial"


class ShardsError(UserError):
    """Features that cannot be written or continued."""


def rows_of_shards(rows: int, layout: Layout) -> int:
    """Rows of a shard, a power of two: about 64 shards of at most 256 MB and 64 to 8192 rows."""
    bytes_per_row = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in layout.values())
    count = 64
    while count < 8192 and count * 64 < rows:
        count *= 2
    while count > 1 and count * bytes_per_row > _MOST_BYTES:
        count //= 2
    return count


class NpyWriter:
    """Writes `<column>.npy` of all rows, named `<column>.npy.partial` until all are written."""

    def __init__(self, folder: Path, rows: int, layout: Layout) -> None:
        self._folder, self._rows, self._layout = folder, rows, layout

    def prepare(self, done: set[int]) -> set[int]:
        """Makes what must exist before the first shard; returns which of the `done` are lost."""
        for name, (shape, dtype) in self._layout.items():
            path = self._folder / f"{name}{_PARTIAL}"
            if path.exists() or (self._folder / f"{name}.npy").exists():
                continue
            if done:
                raise ShardsError(
                    f"{path} has gone, and with it the rows of an earlier start; remove "
                    f"{self._folder}, or name another --workdir"
                )
            with replacing(path) as new:
                np.lib.format.open_memmap(new, "w+", dtype, (self._rows, *shape)).flush()
        return set()

    def write(self, number: int, first_row: int, names: Sequence[str], columns: Columns) -> None:
        """Stores a shard, or replaces it; it is on disk when this returns."""
        for name, values in columns.items():
            path = self._folder / f"{name}{_PARTIAL}"
            whole = np.lib.format.open_memmap(path, "r")
            # Not through the map, where a full disk is a signal; here it is an error.
            with naming(path), open(path, "r+b") as file:
                file.seek(whole.offset + first_row * whole.strides[0])
                file.write(np.ascontiguousarray(values).tobytes())
                file.flush()
                os.fsync(file.fileno())

    def finish(self) -> list[str]:
        """Names the files, once all shards are written."""
        for name in self._layout:
            partial = self._folder / f"{name}{_PARTIAL}"
            if partial.exists():
                os.replace(partial, self._folder / f"{name}.npy")
        return [f"{name}.npy" for name in self._layout]


class ParquetWriter:
    """Writes `features-00003-of-00040.parquet`: row, name and a flat column for each feature.

    The shapes of the features are JSON under "shapes" in the metadata of the schema.
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

    def prepare(self, done: set[int]) -> set[int]:
        return {number for number in done if not (self._folder / self._name(number)).exists()}

    def write(self, number: int, first_row: int, names: Sequence[str], columns: Columns) -> None:
        pa, rows = self._pyarrow, np.arange(first_row, first_row + len(names))
        arrays = {"row": pa.array(rows), "name": pa.array(list(names))}
        arrays |= {name: self._column(values) for name, values in columns.items()}
        shapes = {name: list(shape) for name, (shape, _) in self._layout.items()}
        table = pa.table(arrays).replace_schema_metadata({"shapes": json.dumps(shapes)})
        how = {"compression": "zstd", "use_dictionary": ["name"]}
        with replacing(self._folder / self._name(number)) as new:
            group = max(1, min(1024, len(names)))
            pa.parquet.write_table(table, new, row_group_size=group, **how)

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


Writer = NpyWriter | ParquetWriter


def weights_fingerprint(backbone: Backbone) -> str:
    """Changes with any weight and with the architecture, not with the path; computed once."""
    known = vars(backbone).get("_fingerprint")
    if known is not None:
        return known
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(architecture_fields(backbone.model), sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(backbone.params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).view(np.uint8).reshape(-1))
    vars(backbone)["_fingerprint"] = digest.hexdigest()
    return digest.hexdigest()


class Ledger:
    """The manifest and the progress of a folder.

    Args:
      folder: the run directory.
      settings: everything that the rows depend on; a nested dict of JSON values.
      origin: where weights and pictures came from; for the reader only.
      source: names the rows.
      shard_rows: rows of a shard; the last one has the rest.
      layout: columns of a row.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        origin: Mapping[str, str],
        source: Source,
        shard_rows: int,
        layout: Layout,
    ) -> None:
        self.folder, self.source, self.layout = folder, source, layout
        self.shards, self._shard_rows = -(-len(source) // shard_rows), shard_rows
        self._progress = folder / ".progress"
        columns = {
            name: {"shape": list(shape), "dtype": dtype.name}
            for name, (shape, dtype) in layout.items()
        }
        self._manifest = {
            "dinov2_jax": __version__,
            "complete": False,
            "rows": len(source),
            "shard_rows": shard_rows,
            "columns": columns,
            "names": "names.txt",
            "settings": {"features_version": FEATURES_VERSION, **settings},
            "origin": dict(origin),
        }

    def is_complete(self) -> bool:
        """Whether nothing is left to do.

        Raises:
          ShardsError: the folder's features were made otherwise.
        """
        path = self.folder / "manifest.json"
        if not path.exists():
            return False
        stored = json.loads(path.read_text(encoding="utf-8"))
        if "settings" not in stored:
            raise ShardsError(f"{path} is not of features; name another --workdir")
        settings = {"features_version": 1, **stored["settings"]}
        changed = diff_configs(settings, self._manifest["settings"])
        if changed:
            raise ShardsError(
                f"{self.folder} holds features made otherwise ({', '.join(changed)}); go back to "
                "these settings, or name another --workdir"
            )
        return stored["complete"]

    def open(self, writer: Writer) -> None:
        """Starts or continues the folder; called once, by the process that holds its lock."""
        self._progress.mkdir(parents=True, exist_ok=True)
        for leftover in [*self.folder.glob(".*.tmp"), *self._progress.glob(".*.tmp")]:
            leftover.unlink()
        for lost in writer.prepare(self.done()):
            self._mark(lost).unlink()
        if not (self.folder / "manifest.json").exists():
            lines = (f"{name}\n" for name in self.names(range(len(self.source))))
            write_lines(self.folder / "names.txt", lines)
            self._write_manifest()

    def names(self, rows: range) -> Iterator[str]:
        """Names of the pictures of these rows."""
        return (printable(self.source.name(row)) for row in rows)

    def rows(self, shard: int) -> range:
        """The rows of a shard."""
        start = shard * self._shard_rows
        return range(len(self.source))[start : start + self._shard_rows]

    def done(self) -> set[int]:
        """Numbers of the shards that any process has finished."""
        try:
            return {int(path.stem) for path in self._progress.glob("[0-9]*.json")}
        except FileNotFoundError:  # process 0 removes the folder at the end
            return set()

    def mark_done(self, shard: int, unreadable: Mapping[int, str]) -> None:
        """Records that a shard is on disk."""
        write_lines(self._mark(shard), [json.dumps({"unreadable": dict(unreadable)})])

    def finish(self, files: list[str]) -> int:
        """Completes the manifest; returns how many pictures were unreadable."""
        unreadable: dict[int, str] = {}
        for shard in range(self.shards):
            stored = json.loads(self._mark(shard).read_text(encoding="utf-8"))
            unreadable |= {int(row): reason for row, reason in stored["unreadable"].items()}
        write_unreadable(self.folder, self.source, unreadable)
        self._manifest |= {"complete": True, "unreadable": len(unreadable), "files": files}
        self._write_manifest()
        shutil.rmtree(self._progress)
        return len(unreadable)

    def _mark(self, shard: int) -> Path:
        return self._progress / f"{shard:06}.json"

    def _write_manifest(self) -> None:
        text = json.dumps(self._manifest, indent=2)
        write_lines(self.folder / "manifest.json", [text, "\n"])


def write_unreadable(folder: Path, source: Source, unreadable: Mapping[int, str]) -> None:
    """Writes unreadable.txt: row, name and reason of each picture; removes it if there is none."""
    path = folder / "unreadable.txt"
    if unreadable:
        parts = ((row, printable(source.name(row)), unreadable[row]) for row in sorted(unreadable))
        write_lines(path, (f"{row}\t{name}\t{reason}\n" for row, name, reason in parts))
    else:
        path.unlink(missing_ok=True)


def read_unreadable(folder: Path) -> dict[int, str]:
    """{row: reason} of unreadable.txt."""
    path = folder / "unreadable.txt"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    entries = (line.split("\t", 2) for line in text.split("\n") if line)
    return {int(row): reason for row, _, reason in entries}


def write_lines(path: Path, parts: Iterable[str]) -> None:
    """Writes a text file that is on disk, whole, when this returns."""
    with replacing(path) as new, open(new, "w", encoding="utf-8", errors="backslashreplace") as f:
        f.writelines(parts)
