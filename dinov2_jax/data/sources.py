"""Where pictures come from: folders, ArrayRecord files, TFDS and the embedded drawings.

A source is a random-access list. A record is either encoded bytes or uint8 [H, W, 3]; sources
are pickled once into every worker process and open their files there.
"""

from __future__ import annotations

import difflib
import glob
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from dinov2_jax.data import samples

KINDS = ("folder", "array_record", "tfds", "openmoji")
LABELS = ("auto", "folders", "none")

# Files are judged by their content when they are read, not by their names. Only what certainly is
# no picture is left out here, so that it does not count as a bad record.
_NOT_PICTURES = frozenset(
    "." + ending
    for ending in (
        *("txt", "md", "rst", "json", "jsonl", "csv", "tsv", "html", "htm", "xml", "yaml", "yml"),
        *("toml", "ini", "cfg", "log", "pdf", "doc", "docx", "xls", "xlsx", "ppt", "pptx", "py"),
        *("sh", "js", "css", "svg", "ico", "zip", "tar", "gz", "tgz", "bz2", "xz", "zst", "7z"),
        *("rar", "db", "sqlite", "mp4", "m4v", "mov", "avi", "mkv", "webm", "mp3", "wav", "flac"),
        *("npy", "npz", "pt", "pth", "mat", "pkl", "h5", "hdf5", "parquet", "array_record"),
        *("tfrecord", "xmp", "thm", "aae", "part", "tmp"),
    )
)
# A camera's largest picture has 0.5 GB; anything above is a disk image or an archive.
_MAX_FILE_BYTES = 1 << 29


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
      kind: "folder", "array_record", "tfds" or "openmoji".
      path: a folder or a text file with one path a line; ArrayRecord file, glob or folder; TFDS
        name, name@data_dir or folder of a prepared data set; unused for openmoji.
      split: "train", "test" or "all"; any TFDS split expression for tfds.
      labels: where a folder gets its classes from: "folders" (the first directory under `path`),
        "auto" (so, if every picture lies in one of two or more directories) or "none". openmoji
        and TFDS bring their labels.
      cache_dir: where openmoji is drawn to.

    Raises:
      ValueError: unknown kind, labels or split, or nothing found.
      FileNotFoundError: `path` does not exist.
    """
    _check_name("data.source", kind, KINDS)
    _check_name("labels", labels, LABELS)
    if kind == "openmoji":
        _check_name("split", split, samples.SPLITS)
        return samples.Openmoji(split, cache_dir)
    if not path:
        raise SourceError(f"data.source={kind!r} needs data.path; set --config.data.path=...")
    if kind == "folder":
        return Folder(path, split, labels)
    if kind == "array_record":
        return ArrayRecord(path)
    return Tfds(path, split)


def _check_name(field: str, value: str, valid: Sequence[str]) -> None:
    if value not in valid:
        near = difflib.get_close_matches(value, valid, n=1, cutoff=0.3)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise SourceError(f"{field}={value!r} is none of {', '.join(map(repr, valid))}{hint}")


def _missing(path: str) -> FileNotFoundError:
    parent, name = os.path.split(os.path.abspath(path))
    siblings = os.listdir(parent) if os.path.isdir(parent) else []
    near = difflib.get_close_matches(name, siblings, n=1)
    hint = f"; did you mean {os.path.join(parent, near[0])}?" if near else ""
    return FileNotFoundError(f"data.path={path} does not exist{hint}")


class _Names:
    """Many strings in one block of bytes: 14 million paths cost their characters, not objects."""

    def __init__(self, names: Sequence[bytes]) -> None:
        self._ends = np.cumsum([len(name) for name in names], dtype=np.int64)
        self._text = b"".join(names)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._text[start : self._ends[index]])


class Folder:
    """All pictures under a folder, or those that a text file lists, in the order of their names.

    The splits "train" and "test" exist with labels only: four fifths and a fifth, by a hash of the
    relative name, so that a new file never moves another. Without labels a split is everything.
    """

    def __init__(self, path: str, split: str = "all", labels: str = "none") -> None:
        if not os.path.exists(path):
            raise _missing(path)
        listed = not os.path.isdir(path)
        self._root = os.path.dirname(os.path.abspath(path)) if listed else os.path.abspath(path)
        names = _read_list(path) if listed else sorted(_walk(self._root))
        if not names:
            raise SourceError(f"data.path={path} holds no picture; name a folder with image files")
        self.class_names: tuple[str, ...] | None = None
        self.labels: np.ndarray | None = None
        folders = _class_folders(names, labels, path)
        if folders is not None:
            split = "test" if split == "validation" else split  # what other data sets call it
            _check_name("split", split, samples.SPLITS)
            names, folders = _take_split(names, folders, split, path)
            self.class_names, self.labels = folders
        self._names = _Names(names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> bytes:
        with open(os.path.join(self._root, self._names[index]), "rb") as file:
            if os.fstat(file.fileno()).st_size > _MAX_FILE_BYTES:
                raise OSError(f"more than {_MAX_FILE_BYTES} bytes, too large for a picture")
            return file.read()

    def name(self, index: int) -> str:
        """The path relative to the folder or to the list."""
        return self._names[index]


def _walk(root: str) -> Iterator[bytes]:
    """Relative names of all regular, not hidden files; a directory is entered once."""
    top = os.fsencode(root)
    pending, entered = [b""], set()
    while pending:
        prefix = pending.pop()
        info = os.stat(os.path.join(top, prefix))
        if (info.st_dev, info.st_ino) in entered:  # a loop of symbolic links
            continue
        entered.add((info.st_dev, info.st_ino))
        try:
            entries = sorted(os.scandir(os.path.join(top, prefix)), key=lambda entry: entry.name)
        except PermissionError:
            shown = os.path.join(top, prefix).decode("utf-8", "backslashreplace")
            print(f"cannot read the folder {shown}, left out")
            continue
        for entry in entries:
            name = os.path.join(prefix, entry.name)
            if entry.name.startswith(b"."):
                continue
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except OSError:  # a link to itself, or to where we may not look
                continue
            if is_folder:
                pending.append(name)
            elif is_file and _may_be_picture(entry.name):
                yield name


def _may_be_picture(name: bytes) -> bool:
    return os.path.splitext(os.fsdecode(name))[1].lower() not in _NOT_PICTURES


def _read_list(path: str) -> list[bytes]:
    with open(path, "rb") as file:
        lines = [
            line.strip(b"\r\n") for line in file.read().removeprefix(b"\xef\xbb\xbf").split(b"\n")
        ]
    return [line for line in lines if line.strip()]


def _class_folders(names: list[bytes], labels: str, path: str) -> list[bytes] | None:
    """The class folder of every name, or None without labels."""
    if labels == "none":
        return None
    folders = [name.partition(b"/")[0] if b"/" in name else b"" for name in names]
    if labels == "auto":
        return folders if b"" not in folders and len(set(folders)) > 1 else None
    if b"" in folders:
        lost = os.fsdecode(names[folders.index(b"")])
        raise SourceError(
            f"labels='folders' needs every picture in a class folder, but {lost} lies directly in "
            f"{path}; move it or set labels='none'"
        )
    return folders


def _take_split(
    names: list[bytes], folders: list[bytes], split: str, path: str
) -> tuple[list[bytes], tuple[tuple[str, ...], np.ndarray]]:
    classes, numbers = np.unique(np.array(folders, object), return_inverse=True)
    keep: Callable[[bytes], bool] = {
        "train": lambda name: not _is_test(name),
        "test": _is_test,
        "all": lambda name: True,
    }[split]
    chosen = [row for row, name in enumerate(names) if keep(name)]
    if not chosen:
        raise SourceError(f"the split {split!r} of {path} is empty; it needs more pictures")
    class_names = tuple(os.fsdecode(name) for name in classes)
    return [names[row] for row in chosen], (class_names, numbers[chosen].astype(np.int64))


def _is_test(name: bytes) -> bool:
    return hashlib.blake2b(name, digest_size=8).digest()[0] % 5 == 0


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
            raise _missing(path)
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
