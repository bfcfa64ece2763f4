"""The files of a manifest: manifest.json, and Parquet files with a row for each record kept."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dinov2_jax.data.sources.source import SourceError, not_found, short_message

FILE = "manifest.json"
FORMAT = 1
_AGAIN = "copy the folder again, or run the curation again"
# Rows that are decoded at once.
_BATCH_ROWS = 1 << 20
_NEEDED = {"sources": list, "rows": int, "files": list}
_OF_SOURCE = ("kind", "path", "split", "fingerprint")


class Rows(NamedTuple):
    """The columns of the Parquet files."""

    source: np.ndarray  # int32 [n], number of the source in manifest.json
    record: np.ndarray  # int64 [n], index in that source
    repeat: np.ndarray  # int32 [n], how often a pass shows the record, 1 or more


TYPES = (np.int32, np.int64, np.int32)  # of the columns


def read_manifest(path: str) -> tuple[dict[str, Any], Rows, str]:
    """The content of manifest.json, the rows, and where manifest.json lies.

    Args:
      path: the folder of the manifest, or its manifest.json.

    Raises:
      FileNotFoundError: `path` does not exist.
      SourceError: no manifest, or one that is unfinished, damaged or empty.
      ImportError: pyarrow is missing.
    """
    where = Path(path) if os.path.isfile(path) else Path(path, FILE)
    manifest = _read_json(path, where)
    rows = _read_rows(manifest, where)
    given = manifest.get("fingerprint")
    if given is not None and given != rows_fingerprint(manifest["sources"], rows):
        raise SourceError(f"the rows beside {where} are not those that it was made with; {_AGAIN}")
    return manifest, rows, str(where)


def rows_fingerprint(sources: Sequence[Mapping[str, Any]], rows: Rows) -> str:
    """Hash of the rows and of the sources' records; where the sources lie does not count."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([entry["fingerprint"] for entry in sources]).encode())
    for column, kind in zip(rows, TYPES, strict=True):
        digest.update(np.ascontiguousarray(column, kind).data)
    return digest.hexdigest()


def parquet(needed_by: str, extra: str) -> Any:
    """The module pyarrow.parquet. Raises ImportError with what to install."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            f'{needed_by} needs a package: pip install "dinov2_jax[{extra}]"'
        ) from error
    return pyarrow.parquet


def _read_json(path: str, where: Path) -> dict[str, Any]:
    if not where.is_file():
        if not os.path.exists(path):
            raise not_found(path)
        inner = where.parent / "manifest"
        hint = inner if (inner / FILE).is_file() else "the folder manifest/ of a finished curation"
        raise SourceError(f"data.path={path} holds no {FILE}; name {hint}")
    try:
        manifest = json.loads(where.read_bytes())
    except ValueError as error:  # neither JSON nor UTF-8
        raise SourceError(f"{where} is damaged ({short_message(error)}); {_AGAIN}") from error
    known = isinstance(manifest, dict) and all(
        isinstance(manifest.get(name), kind) for name, kind in _NEEDED.items()
    )
    if not known or not all(map(_is_source, manifest["sources"])):
        raise SourceError(
            f"{where} is no manifest of a curation, which has {', '.join(_NEEDED)}, and for each "
            f"source {', '.join(_OF_SOURCE)}; name the folder manifest/ of a finished curation"
        )
    if manifest.get("format", FORMAT) != FORMAT:
        raise SourceError(
            f"{where} has format {manifest['format']}, and this version reads {FORMAT}; update "
            "dinov2_jax, or run the curation again"
        )
    if not manifest.get("complete", True):
        raise SourceError(
            f"{where} is not finished; repeat the command of the curation, which completes it"
        )
    if manifest["rows"] < 1:
        raise SourceError(f"{where} lists no picture; run a curation that keeps some")
    return manifest


def _is_source(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(n), str) for n in _OF_SOURCE)


def _read_rows(manifest: Mapping[str, Any], where: Path) -> Rows:
    arrow = parquet("data.source='manifest'", "parquet")
    try:
        files = [arrow.ParquetFile(where.parent / name) for name in manifest["files"]]
    except (OSError, TypeError, ValueError) as error:  # Arrow's own errors are ValueErrors
        raise SourceError(
            f"a file that {where} lists cannot be read ({short_message(error)}); {_AGAIN}"
        ) from error
    found = sum(file.metadata.num_rows for file in files)
    if found != manifest["rows"]:
        raise SourceError(
            f"{where} has {manifest['rows']:,} rows, and its files {found:,}; {_AGAIN}"
        )
    rows, start = Rows(*(np.empty(found, kind) for kind in TYPES)), 0
    for name, file in zip(manifest["files"], files, strict=True):
        for batch in _batches(file, len(manifest["sources"]), where.parent / name):
            end = start + len(batch.record)
            for column, values in zip(rows, batch, strict=True):
                column[start:end] = values
            start = end
        file.close()
    return rows


def _batches(file: Any, sources: int, path: Path) -> Iterator[Rows]:
    """The rows of a Parquet file, checked."""
    lost = [name for name in Rows._fields if name not in file.schema_arrow.names]
    if lost:
        raise SourceError(f"{path} has no column {lost[0]!r}; {_AGAIN}")
    try:
        for batch in file.iter_batches(_BATCH_ROWS, columns=list(Rows._fields)):
            columns = Rows(*(batch.column(name) for name in Rows._fields))
            yield Rows(
                _whole(columns.source, "source", 0, sources - 1, path),
                _whole(columns.record, "record", 0, np.iinfo(np.int64).max, path),
                _whole(columns.repeat, "repeat", 1, np.iinfo(np.int32).max, path),
            )
    except SourceError:
        raise
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} is damaged ({short_message(error)}); {_AGAIN}") from error


def _whole(column: Any, name: str, least: int, most: int, path: Path) -> np.ndarray:
    """The values of a column without gaps, all of them from `least` to `most`."""
    if column.null_count or not str(column.type).startswith(("int", "uint")):
        raise SourceError(
            f"the column {name!r} of {path} is {column.type} with {column.null_count:,} gaps, but "
            f"must be whole numbers; {_AGAIN}"
        )
    values = column.to_numpy(zero_copy_only=False)
    for value in (values.min(), values.max()) if len(values) else ():
        if not least <= value <= most:
            raise SourceError(
                f"the column {name!r} of {path} has {value}, but must be {least} to {most}; run "
                "the curation again"
            )
    return values
