"""CIFAR as Python pickles or in the binary version: arrays, which each worker reads itself."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.datasets import files
from dinov2_jax.datasets.stored import read_pickle

_PIXELS = 32 * 32 * 3


class Cifar:
    """Pictures uint8 [32, 32, 3] of some files; each process reads them once, at first use."""

    def __init__(
        self, paths: Sequence[str], labels: np.ndarray, class_names: tuple[str, ...]
    ) -> None:
        self.labels, self.class_names = labels, class_names
        self._paths = list(paths)
        self._pixels: np.ndarray | None = None

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_pixels": None}  # 150 MB that a worker reads itself

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> np.ndarray:
        if self._pixels is None:
            self._pixels = np.concatenate([_read(path)[0] for path in self._paths])
        return self._pixels[index].reshape(3, 32, 32).transpose(1, 2, 0)

    def name(self, index: int) -> str:
        """`<first file>[index]`, such as `test_batch[7]`."""
        return f"{os.path.basename(self._paths[0])}[{index}]"


def cifar10(root: str) -> tuple[Cifar, None, Cifar]:
    """Train and test of cifar-10-batches-py or cifar-10-batches-bin.

    Raises SourceError where a file is missing or damaged, lists disagree, or a class has no
    picture.
    """
    title, train = "CIFAR-10", [f"data_batch_{number}" for number in range(1, 6)]
    _refuse_matlab(root, "batches.meta.mat", title)
    meta = files.find(root, "batches.meta", "batches.meta.txt", title=title)
    return _open(meta, train, "test_batch", title)


def cifar100(root: str) -> tuple[Cifar, None, Cifar]:
    """Train and test of cifar-100-python or cifar-100-binary; the 100 fine classes.

    Raises SourceError as `cifar10`.
    """
    title, names = "CIFAR-100", "fine_label_names.txt"
    _refuse_matlab(root, "meta.mat", title)
    whole = ("cifar-100-python/meta", f"cifar-100-binary/{names}")
    meta = files.find(root, *whole, names, "meta", title=title)
    return _open(meta, ["train"], "test", title)


def _refuse_matlab(root: str, meta: str, title: str) -> None:
    path = files.seek(root, meta, title=title)
    others = ("batches.meta", "batches.meta.txt", "cifar-100-python", "cifar-100-binary")
    if path and not files.seek(root, *others, title=title):
        raise SourceError(
            f"{title}: {path} is of the MATLAB version; download the Python or the binary version"
        )


def _open(meta: str, train: Sequence[str], test: str, title: str) -> tuple[Cifar, None, Cifar]:
    """The splits whose files lie beside `meta`, the file of class names."""
    if meta.endswith(".txt"):
        class_names = tuple(files.read_lines(meta))
        train, test = [f"{name}.bin" for name in train], f"{test}.bin"
    else:
        class_names = _class_names(meta, title)
    fit, rated = (_split(meta, names, class_names, title) for names in (train, [test]))
    return fit, None, rated


def _class_names(meta: str, title: str) -> tuple[str, ...]:
    stored = _batch(meta)
    names = stored.get("fine_label_names") or stored.get("label_names")
    if not names or not isinstance(names, list):
        raise SourceError(f"{title}: {meta} holds no names of classes; unpack the archive again")
    return tuple(_text(name) for name in names)


def _batch(path: str) -> dict[str, Any]:
    """A pickle of Python 2 or 3, which have keys of bytes or strings."""
    stored = read_pickle(path)
    if not isinstance(stored, dict):
        raise SourceError(f"{path} holds no fields by name; unpack the archive again")
    return {_text(key): value for key, value in stored.items()}


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _split(meta: str, names: Sequence[str], class_names: tuple[str, ...], title: str) -> Cifar:
    folder = os.path.dirname(meta)
    files.check_present(folder, names, title)
    paths = [os.path.join(folder, name) for name in names]
    labels = np.concatenate([_read(path)[1] for path in paths])
    empty = np.setdiff1d(np.arange(len(class_names)), labels)
    if empty.size or labels.max() >= len(class_names) or labels.min() < 0:
        raise SourceError(
            f"{title}: the labels of {', '.join(names)} are not the {len(class_names)} classes of "
            f"{meta}; unpack the archive again"
        )
    return Cifar(paths, labels, class_names)


def _read(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows of 1024 red, 1024 green and 1024 blue values, uint8 [n, 3072], and labels int64 [n]."""
    data, labels = _read_binary(path) if path.endswith(".bin") else _read_batch(path)
    if data.dtype != np.uint8 or data.shape[1:] != (_PIXELS,):
        raise SourceError(
            f"{path} holds no pictures of 32 x 32 x 3 bytes; unpack the archive again"
        )
    if len(labels) != len(data):
        counts = f"{len(labels):,} labels for {len(data):,} pictures"
        raise SourceError(f"{path} has {counts}; unpack the archive again")
    return data, np.asarray(labels, np.int64)


def _read_batch(path: str) -> tuple[np.ndarray, np.ndarray]:
    batch = _batch(path)
    labels = np.asarray(batch.get("fine_labels", batch.get("labels")))
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise SourceError(f"{path} holds no labels; unpack the archive again")
    return np.asarray(batch.get("data", ())), labels


def _read_binary(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Records of a label, or of a coarse and a fine label, and the pixels."""
    bytes_of = np.fromfile(path, np.uint8)
    labels = 1 if "_batch" in os.path.basename(path) else 2
    if not len(bytes_of) or len(bytes_of) % (labels + _PIXELS):
        raise SourceError(f"{path} holds no whole number of pictures; unpack the archive again")
    rows = bytes_of.reshape(-1, labels + _PIXELS)
    return rows[:, labels:], rows[:, labels - 1]
