"""Where pictures come from: folders, tar and ArrayRecord files, TFDS, the embedded drawings.

A source is a random-access list. A record is either encoded bytes or uint8 [H, W, 3]; sources
are pickled once into every worker process and open their files there.
"""

from __future__ import annotations

import difflib
import glob
import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from dinov2_jax.data import samples

KINDS = ("folder", "tar", "array_record", "tfds", "openmoji")
LABELS = ("auto", "folders", "none")


class SourceError(ValueError):
    """A source that cannot be opened or holds nothing; the message is one sentence."""


class Source(Protocol):
    """Random access to pictures; picklable."""

    class_names: tuple[str, ...] | None

    @property
    def labels(self) -> np.ndarray | None:
        """Class numbers, int64 [len(self)], or None."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> bytes | np.ndarray:
        """Encoded bytes or uint8 [H, W, 3]. Raises OSError where it cannot be read."""

    def name(self, index: int) -> str:
        """What a user can find the record by, for instance its path."""


def open_source(
    kind: str,
    path: str,
    split: str = "train",
    labels: str = "none",
    cache_dir: str | None = None,
) -> Source:
    """Opens a source by its config values.

    Args:
      kind: "folder", "tar", "array_record", "tfds" or "openmoji".
      path: a folder or a text file with one path a line; tar or ArrayRecord file, glob or folder;
        TFDS name, name@data_dir or folder of a prepared data set; unused for openmoji.
      split: "train", "test" or "all"; any TFDS split expression for tfds.
      labels: where a folder gets its classes from: "folders" (the first directory under `path`),
        "auto" (so, if every picture lies in one of two or more directories) or "none". openmoji
        and TFDS bring their labels.
      cache_dir: where openmoji is drawn to.

    Raises:
      ValueError: unknown kind, labels or split, or nothing found.
      FileNotFoundError: `path` does not exist.
    """
    check_name("data.source", kind, KINDS)
    check_name("labels", labels, LABELS)
    path = os.path.expanduser(path)  # a shell leaves the ~ of --config.data.path=~/pictures
    if kind == "openmoji":
        check_name("split", split, samples.SPLITS)
        return samples.Openmoji(split, cache_dir)
    if not path:
        raise SourceError(f"data.source={kind!r} needs data.path; set --config.data.path=...")
    if kind == "folder":
        from dinov2_jax.data.folder import Folder  # which builds on this module

        return Folder(path, split, labels)
    if kind == "tar":
        from dinov2_jax.data.tar import Tar

        return Tar(path)
    if kind == "array_record":
        return ArrayRecord(path)
    return Tfds(path, split)


def check_name(field: str, value: str, valid: Sequence[str]) -> None:
    """Raises SourceError with the nearest of `valid` unless `value` is one of them."""
    if value not in valid:
        near = difflib.get_close_matches(value, valid, n=1, cutoff=0.3)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise SourceError(f"{field}={value!r} is none of {', '.join(map(repr, valid))}{hint}")


def check_same_classes(bank: Source, query: Source) -> None:
    """Raises SourceError where the class numbers of two sources mean different classes."""
    ours, theirs = set(bank.class_names or ()), set(query.class_names or ())
    if ours != theirs:
        odd = sorted(ours ^ theirs)
        raise SourceError(
            f"the bank has {len(ours)} classes and the queries {len(theirs)}, {len(odd)} of them "
            f"on one side only, such as {odd[0]!r}; k-NN needs the same class folders in both"
        )


def missing(path: str) -> FileNotFoundError:
    """The error for a path that does not exist, naming its nearest neighbour."""
    parent, name = os.path.split(os.path.abspath(path))
    siblings = os.listdir(parent) if os.path.isdir(parent) else []
    near = difflib.get_close_matches(name, siblings, n=1)
    hint = f"; did you mean {os.path.join(parent, near[0])}?" if near else ""
    return FileNotFoundError(f"data.path={path} does not exist{hint}")


class ArrayRecord:
    """ArrayRecord files whose records are encoded pictures (the bytes of a JPEG, PNG, ... file).

    `path` is a file, a glob or a folder of *.array_record* files; there are no labels or splits.
    """

    labels: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None

    def __init__(self, path: str) -> None:
        files = [path] if os.path.isfile(path) else sorted(glob.glob(path))
        if os.path.isdir(path):
            files = sorted(glob.glob(os.path.join(glob.escape(path), "*.array_record*")))
            if not files:
                raise SourceError(f"data.path={path} holds no *.array_record file")
        if not files:
            raise missing(path)
        try:
            from array_record.python import array_record_data_source
        except ImportError as error:
            raise ImportError(
                "data.source='array_record' needs a package; pip install array-record"
            ) from error
        try:
            self._records = array_record_data_source.ArrayRecordDataSource(files)
        except RuntimeError as error:
            raise SourceError(
                f"data.path={path} cannot be read as ArrayRecord: {_first_line(error)}"
            ) from error
        self._path = path
        if not len(self._records):
            raise SourceError(f"data.path={path} holds no record")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> bytes:
        return _read(self._records, index)

    def name(self, index: int) -> str:
        """`path[index]`."""
        return f"{self._path}[{index}]"


class Tfds:
    """A prepared TFDS data set in a random-access format, read without TensorFlow.

    `path` is a name, `name@data_dir`, or the folder of a prepared version (where its
    dataset_info.json lies). Pictures come undecoded from the feature "image", or from the first
    feature that is an image; labels from "label", or the first class label.
    """

    def __init__(self, path: str, split: str = "train") -> None:
        import tensorflow_datasets as tfds

        builder = _tfds_builder(path)
        features = builder.info.features
        image = _feature(features, "image", tfds.features.Image)
        if image is None:
            raise SourceError(f"data.path={path} has no image among {', '.join(features)}")
        self._image = image
        self._label = _feature(features, "label", tfds.features.ClassLabel)
        self.class_names: tuple[str, ...] | None = None
        if self._label is not None:
            self.class_names = tuple(features[self._label].names)
        decoders = {image: tfds.decode.SkipDecoding()}
        try:
            self._records = builder.as_data_source(split=split, decoders=decoders)
        except Exception as error:  # TFDS has many types for a missing split or folder
            raise SourceError(f"data.path={path}, split={split!r}: {_first_line(error)}") from error
        self._title = f"{path}/{split}"
        self._labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> bytes | np.ndarray:
        return _read(self._records, index)[self._image]

    @property
    def labels(self) -> np.ndarray | None:
        """Class numbers, int64; the first use reads every record once."""
        if self._label is not None and self._labels is None:
            found = (self._records[row][self._label] for row in range(len(self)))
            self._labels = np.fromiter(found, np.int64, len(self))
        return self._labels

    def name(self, index: int) -> str:
        """`name/split[index]`."""
        return f"{self._title}[{index}]"


def _read(records: Any, index: int) -> Any:
    try:
        return records[index]
    except RuntimeError as error:  # what array_record raises for a damaged chunk; others are whole
        raise OSError(_first_line(error)) from error


def _tfds_builder(path: str) -> Any:
    import tensorflow_datasets as tfds

    if os.path.isfile(os.path.join(path, "dataset_info.json")):
        return tfds.builder_from_directory(path)
    name, _, data_dir = path.partition("@")
    try:
        return tfds.builder(name, data_dir=data_dir or None)
    except tfds.core.registered.DatasetNotFoundError as error:
        near = difflib.get_close_matches(
            name, tfds.list_builders(with_community_datasets=False), n=1
        )
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise SourceError(f"data.path={path} names no TFDS data set{hint}") from error


def _feature(features: Any, preferred: str, kind: type) -> str | None:
    found = [name for name, feature in features.items() if isinstance(feature, kind)]
    return preferred if preferred in found else next(iter(found), None)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
