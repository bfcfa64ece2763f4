"""What a curation kept: records of other sources, some of them several times."""

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dinov2_jax.data.fingerprint import records_fingerprint
from dinov2_jax.data.sources.manifest_file import Rows, read_manifest, rows_fingerprint
from dinov2_jax.data.sources.mapped import Mapped
from dinov2_jax.data.sources.source import Source, SourceError
from dinov2_jax.data.sources.splits import split_folders
from dinov2_jax.data.sources.views import View

# Rows whose records are compared with the length of their source at once.
_BATCH_ROWS = 1 << 20
# (kind, path, split, labels) -> source: `open_source`, which itself opens manifests.
Opener = Callable[[str, str, str, str], Source]


class _Classes(NamedTuple):
    """The classes of several sources in one numbering."""

    names: tuple[str, ...]
    # By source: own number -> ours, int64 [classes + 1]. The last is -1, the unknown class.
    numbers: dict[int, np.ndarray]


class Manifest:
    """The records that a manifest lists, in its order; repeats follow one another.

    A record that is repeated r times has r indices, so that a pass over the pictures shows it r
    times, each time with other crops. Files are opened where they are read, as by the sources
    themselves. With one source, records have its names; with several, files have their whole paths.

    Attributes:
      class_names: those of the sources, if all have the same classes; else None.
      provenance: {"curation": path, fingerprint, rows, pictures and what made the manifest}.

    Args:
      path: the folder of the manifest, or its manifest.json.
      labels: as in `open_source`; a folder that the curation read without labels gets those of its
        class folders.
      open_one: opens the sources.

    Raises:
      FileNotFoundError: `path` does not exist.
      SourceError: the manifest is unfinished, damaged or empty, or a source is gone or has changed.
      ImportError: pyarrow is missing.
    """

    def __init__(self, path: str, labels: str, open_one: Opener) -> None:
        manifest, rows, where = read_manifest(path)
        entries = manifest["sources"]
        used = np.flatnonzero(np.bincount(rows.source, minlength=len(entries))).tolist()
        self._sources = {number: _open(entries[number], labels, open_one, where) for number in used}
        _check_records(rows, self._sources, where)
        self.notes: tuple[str, ...] = ()
        self._classes = _common_classes(self._sources)
        if self._classes is None and labels != "none":
            self._tell_lost_classes(labels, where)
        self.class_names = None if self._classes is None else self._classes.names
        self._source = Mapped(rows.source) if len(used) > 1 else None
        self._record = Mapped(rows.record)
        repeated = bool((rows.repeat > 1).any())
        self._ends = Mapped(np.cumsum(rows.repeat, dtype=np.int64)) if repeated else None
        origin = {
            "path": os.path.dirname(os.path.abspath(where)),
            "fingerprint": rows_fingerprint(entries, rows),
            "rows": len(rows.record),
            "pictures": len(self),
            "made_by": manifest.get("made_by", {}),
        }
        self.provenance = {"curation": origin}
        many = f"{len(used)} sources" if len(used) > 1 else "one source"
        self.notes += (
            f"{where}: {origin['rows']:,} records of {many}, {origin['pictures']:,} with repeats; "
            f"curation {origin['fingerprint']}",
        )

    def __len__(self) -> int:
        return len(self._record.array) if self._ends is None else int(self._ends.array[-1])

    def __getitem__(self, index: int) -> bytes | np.ndarray:
        source, record = self._place(index)
        return source[record]

    def __getstate__(self) -> dict[str, Any]:
        """For workers, which read no labels."""
        return {name: value for name, value in self.__dict__.items() if name != "labels"}

    def name(self, index: int) -> str:
        """The source's name of this record; its whole path if it is a file of several sources."""
        source, record = self._place(index)
        path = getattr(source, "path", None)
        return source.name(record) if len(self._sources) == 1 or path is None else path(record)

    def records_digest(self) -> str:
        """Changes with the records, not with where they lie; stands for all names, at no cost."""
        return self.provenance["curation"]["fingerprint"]

    @functools.cached_property
    def labels(self) -> np.ndarray | None:
        """Class numbers, int64 [len(self)], -1 where unknown; None without common classes."""
        return None if self._classes is None else self.labels_of(np.arange(len(self)))

    def labels_of(self, rows: np.ndarray) -> np.ndarray:
        """Class numbers of some pictures, int64; TFDS reads these records for them."""
        found = np.full(len(rows), -1, np.int64)
        if self._classes is None:
            return found
        places = self._rows(rows)
        sources, records = self._source_of(places), self._record.array[places]
        for number, source in self._sources.items():
            own = np.flatnonzero(sources == number)
            found[own] = self._classes.numbers[number][_labels(source, records[own])]
        return found

    def _place(self, index: int) -> tuple[Source, int]:
        row = self._rows(np.array([index]))
        return self._sources[int(self._source_of(row)[0])], int(self._record.array[row[0]])

    def _rows(self, indices: np.ndarray) -> np.ndarray:
        """The rows of the manifest that pictures stand for."""
        if self._ends is None:
            return indices
        return np.searchsorted(self._ends.array, indices, side="right")

    def _source_of(self, rows: np.ndarray) -> np.ndarray:
        if self._source is None:
            return np.full(len(rows), next(iter(self._sources)))
        return self._source.array[rows]

    def _tell_lost_classes(self, labels: str, where: str) -> None:
        without = [s for s in self._sources.values() if s.class_names is None]
        if len(without) == len(self._sources) and labels == "auto":
            return
        reason = (
            f"{len(without)} of {len(self._sources)} sources have no labels"
            if without
            else "the sources have different classes"
        )
        if labels == "folders":
            raise SourceError(
                f"labels='folders' needs the same class folders in every source of {where}, but "
                f"{reason}; use labels='none' or another data set"
            )
        self.notes += (f"{where}: {reason}, so these pictures have none",)


def entry_of(kind: str, path: str, split: str, source: Source, labels: str = "none") -> dict:
    """What manifest.json says about a source, which was opened with these values.

    Paths become absolute; a TFDS name stays one.
    """
    path = os.path.expanduser(path)
    name, at, data_dir = path.partition("@") if kind == "tfds" else (path, "", "")
    if kind == "tfds" and at:
        path = f"{name}@{os.path.abspath(os.path.expanduser(data_dir))}"
    elif path and (kind != "tfds" or os.path.exists(path)):
        path = os.path.abspath(path)
    known = {"kind": kind, "path": path, "split": split, "labels": labels}
    return {**known, "records": len(source), "fingerprint": records_fingerprint(source)}


def _open(entry: Mapping[str, Any], labels: str, open_one: Opener, where: str) -> Source:
    kind, path, split = entry["kind"], entry["path"], entry["split"]
    mode = entry.get("labels", "none")  # it decides which files of a folder are records
    try:
        source = open_one(kind, path, split, mode)
        if records_fingerprint(source) != entry["fingerprint"]:
            raise SourceError(
                f"{kind} {path} is not what it was when {where} was made, so its records may be "
                "others now; run the curation again, or bring its old files back"
            )
        if kind == "folder" and mode == "none" != labels:
            return _with_class_folders(source, path, split, labels, open_one)
    except OSError as error:
        raise SourceError(
            f"{where} names {kind} {path}, which cannot be opened ({error}); bring it back, or "
            'write where it lies now as its "path" in that file'
        ) from error
    return source


def _with_class_folders(
    source: Source, path: str, split: str, labels: str, open_one: Opener
) -> Source:
    """A folder with the labels of its class folders, by name; -1 for files beside these folders."""
    divided = os.path.isdir(path) and split_folders(path)
    classes = open_one("folder", path, split if divided else "all", labels)
    if classes.labels is None:
        return source
    number = {classes.name(row): int(label) for row, label in enumerate(classes.labels)}
    found = np.fromiter((number.get(source.name(row), -1) for row in range(len(source))), np.int64)
    return _Files(source, found, classes.class_names)


class _Files(View):
    """A view that still knows the paths of its files."""

    def path(self, index: int) -> str:
        """The whole path."""
        return self.source.path(index)  # type: ignore[attr-defined]


def _check_records(rows: Rows, sources: Mapping[int, Source], where: str) -> None:
    lengths = np.zeros(max(sources) + 1, np.int64)
    for number, source in sources.items():
        lengths[number] = len(source)
    for start in range(0, len(rows.record), _BATCH_ROWS):
        part = slice(start, start + _BATCH_ROWS)
        beyond = np.flatnonzero(rows.record[part] >= lengths[rows.source[part]])
        if len(beyond):
            row = start + int(beyond[0])
            source = int(rows.source[row])
            raise SourceError(
                f"row {row:,} of {where} is record {rows.record[row]:,} of source {source}, which "
                f"has {lengths[source]:,} records; run the curation again"
            )


def _common_classes(sources: Mapping[int, Source]) -> _Classes | None:
    given = {number: source.class_names for number, source in sources.items()}
    names = next(iter(given.values()))
    if names is None or any(set(other or ()) != set(names) for other in given.values()):
        return None
    place = {name: number for number, name in enumerate(names)}
    numbers = {
        number: np.array([place[name] for name in own or ()] + [-1], np.int64)
        for number, own in given.items()
    }
    return _Classes(names, numbers)


def _labels(source: Source, records: np.ndarray) -> np.ndarray:
    labels_of = getattr(source, "labels_of", None)
    if labels_of is not None:
        return labels_of(records)
    assert source.labels is not None
    return source.labels[records]
