"""Pictures of a finished folder of features that were unreadable and now can be read."""

import hashlib
import json
from pathlib import Path

import numpy as np

from dinov2_jax.data.decode import DecodeSpec, why_unreadable
from dinov2_jax.data.sources.source import Source
from dinov2_jax.features.extractor import Extractor
from dinov2_jax.features.store import read_unreadable, write_unreadable
from dinov2_jax.run.files import write_json

# What was in each unreadable record when it was last decoded: {row: digest}.
_CHECKED = "unreadable.json"
_MOST = 1000  # records that are looked at


def find_repaired(folder: Path, source: Source, decoding: DecodeSpec) -> np.ndarray:
    """Rows that were unreadable and now can be read.

    A record is decoded only if its bytes have changed since it was last decoded.
    """
    checked = folder / _CHECKED
    known = json.loads(checked.read_text(encoding="utf-8")) if checked.exists() else {}
    repaired, seen = [], {}
    for row in map(int, np.flatnonzero(~np.load(folder / "readable.npy"))[:_MOST]):
        digest = _digest(source, row)
        if known.get(str(row)) != digest and why_unreadable(source, row, decoding) is None:
            repaired.append(row)
        else:
            seen[str(row)] = digest
    if seen != known:
        write_json(checked, seen)
    return np.array(repaired, int)


def repair(
    folder: Path, source: Source, rows: np.ndarray, extractor: Extractor, decoding: DecodeSpec
) -> None:
    """Computes some rows and writes them in place; the caller holds the folder's lock."""
    columns, readable = extractor.read(source, rows, max_pixels=decoding.max_pixels)
    done = rows[readable]
    for name, values in columns.items():
        _write_rows(folder / f"{name}.npy", done, values[readable])
    _write_rows(folder / "readable.npy", done, np.ones(len(done), bool))  # after the features
    left = {row: why for row, why in read_unreadable(folder).items() if row not in set(done)}
    write_unreadable(folder, source, left)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    write_json(folder / "manifest.json", manifest | {"unreadable": len(left)})


def _digest(source: Source, row: int) -> str:
    """Changes with the bytes of a record; "" where there are none."""
    try:
        record = source[row]
    except OSError:
        return ""
    content = record if isinstance(record, bytes) else np.ascontiguousarray(record)
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _write_rows(path: Path, rows: np.ndarray, values: np.ndarray) -> None:
    column = np.load(path, mmap_mode="r+")
    column[rows] = values
    column.flush()
