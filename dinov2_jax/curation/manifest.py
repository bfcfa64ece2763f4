"""Writes what a curation kept: the folder that `data.source=manifest` trains on."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinov2_jax.data.sources.manifest_file import (
    FILE,
    FORMAT,
    TYPES,
    Rows,
    parquet,
    rows_fingerprint,
)
from dinov2_jax.data.sources.source import Source
from dinov2_jax.errors import UserError
from dinov2_jax.run.files import replacing, write_json

KEPT = "kept.txt"


class ManifestError(UserError):
    """A manifest that would list nothing, or rows that no source has."""


def write_manifest(
    folder: str | Path,
    sources: Sequence[Mapping[str, Any]],
    rows: Rows,
    made_by: Mapping[str, Any],
    kept: Iterable[str] | None = None,
    *,
    part_rows: int = 10_000_000,
) -> str:
    """Writes manifest.json, the Parquet files and kept.txt; what was there is replaced.

    manifest.json says that it is not complete until all other files are whole on disk.

    Args:
      folder: made if it is missing.
      sources: what `entry_of` says about each source.
      rows: in the order in which they will be read.
      made_by: the fingerprints of the stages, for the provenance of runs.
      kept: one line a row, see `kept_lines`; None: no kept.txt.
      part_rows: the most rows of a Parquet file; ten million take about 60 MB.

    Returns:
      The fingerprint of the rows.

    Raises:
      ManifestError: no row, or a row that its source does not have.
      ImportError: pyarrow is missing.
    """
    folder = Path(folder)
    rows = _checked(rows, sources)
    arrow = parquet("a manifest", "curation")
    count = len(rows.record)
    starts = range(0, count, part_rows)
    files = [f"part-{n:05}-of-{len(starts):05}.parquet" for n in range(len(starts))]
    manifest = {
        "format": FORMAT,
        "complete": False,
        "fingerprint": rows_fingerprint(sources, rows),
        "rows": count,
        "pictures": int(rows.repeat.sum(dtype=np.int64)),
        "sources": list(map(dict, sources)),
        "files": files,
        "made_by": dict(made_by),
    }
    write_json(folder / FILE, manifest)  # readers refuse a folder that is half old and half new
    for old in {*folder.glob("part-*.parquet")} - {folder / name for name in files}:
        old.unlink()
    for name, start in zip(files, starts, strict=True):
        part = Rows(*(column[start : start + part_rows] for column in rows))
        with replacing(folder / name) as new:
            _write_part(arrow, new, part)
    manifest["not_in_kept"] = _write_kept(folder / KEPT, kept)
    write_json(folder / FILE, manifest | {"complete": True})
    return manifest["fingerprint"]


def kept_lines(
    sources: Sequence[Source | None], rows: Rows, root: str | os.PathLike[str] = ""
) -> Iterator[str]:
    """What stands for each row in kept.txt.

    That is the path of a file, relative to `root` where it lies below it, and the name of a record
    that is no file. A list of files trains by itself (`data.source=folder`) where it lies in `root`
    or all its paths are absolute.

    Args:
      sources: as opened, in the order of the manifest; None where no row is of this source.
      root: the folder of the pool; "": paths are absolute.
    """
    above = os.path.join(os.path.abspath(root), "") if root else "\0"
    for number, record in zip(rows.source.tolist(), rows.record.tolist(), strict=True):
        source = sources[number]
        assert source is not None
        path_of = getattr(source, "path", None)
        name = source.name(record) if path_of is None else os.path.abspath(path_of(record))
        yield name.removeprefix(above)


def _checked(rows: Rows, sources: Sequence[Mapping[str, Any]]) -> Rows:
    """The rows in the types of the columns."""
    if len({len(column) for column in rows}) > 1:
        raise ValueError(f"columns of {[len(column) for column in rows]} rows")
    if not len(rows.record):
        raise ManifestError(
            "the curation keeps no picture, so there is nothing to train on; loosen its thresholds "
            "or give it more pictures"
        )
    if not 0 <= rows.source.min() <= rows.source.max() < len(sources):
        raise ManifestError(
            f"rows are of the sources {rows.source.min()} to {rows.source.max()}, but the manifest "
            f"has {len(sources)}; run the stages before it again"
        )
    if not 1 <= rows.repeat.min() <= rows.repeat.max() <= np.iinfo(np.int32).max:
        raise ManifestError(
            f"rows are repeated {rows.repeat.min()} to {rows.repeat.max():,} times, but must be "
            "once or more; leave out what is not to be shown"
        )
    lengths = np.array([entry["records"] for entry in sources], np.int64)
    beyond = np.flatnonzero((rows.record < 0) | (rows.record >= lengths[rows.source]))
    if len(beyond):
        row = int(beyond[0])
        entry = sources[int(rows.source[row])]
        raise ManifestError(
            f"row {row:,} is record {rows.record[row]:,} of {entry['kind']} {entry['path']}, which "
            f"has {entry['records']:,} records; run the stages before it again"
        )
    return Rows(*(np.asarray(c).astype(t, copy=False) for c, t in zip(rows, TYPES, strict=True)))


def _write_part(arrow: Any, path: Path, rows: Rows) -> None:
    import pyarrow as pa

    table = pa.table({name: pa.array(values) for name, values in rows._asdict().items()})
    arrow.write_table(table, path, compression="zstd", use_dictionary=["source", "repeat"])


def _write_kept(path: Path, lines: Iterable[str] | None) -> int:
    """Writes one line a row; how many names hold a line end and so cannot be listed."""
    if lines is None:
        path.unlink(missing_ok=True)
        return 0
    left_out = 0
    with replacing(path) as new, open(new, "wb") as file:
        for line in lines:
            if "\n" in line or "\r" in line:
                left_out += 1
            else:
                file.write(os.fsencode(line) + b"\n")
    return left_out
