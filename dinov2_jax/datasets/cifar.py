"""CIFAR in its Python pickles: pictures as arrays, which each worker reads itself."""

import os
from collections.abc import Sequence

import numpy as np

from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.datasets.files import check_present
from dinov2_jax.datasets.stored import read_pickle


class Cifar:
    """Pictures uint8 [32, 32, 3] of some pickles; each process reads them once, at first use."""

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
            self._pixels = np.concatenate([_planes(read_pickle(p), p) for p in self._paths])
        return self._pixels[index].reshape(3, 32, 32).transpose(1, 2, 0)

    def name(self, index: int) -> str:
        """`<first file>[index]`, such as `test_batch[7]`."""
        return f"{os.path.basename(self._paths[0])}[{index}]"


def cifar(meta: str, files: Sequence[str], label_key: str, name_key: str, title: str) -> Cifar:
    """Opens the pickles `files` of one split, which lie beside `meta`, the file of class names.

    `label_key` is the key of the labels in the pickles, `name_key` that of the names in `meta`.
    Raises SourceError where a file is missing or damaged, lists disagree, or a class has no
    picture.
    """
    paths = [os.path.join(os.path.dirname(meta), file) for file in files]
    check_present(os.path.dirname(meta), files, title)
    names = read_pickle(meta).get(name_key.encode())
    if not names:
        raise SourceError(f"{title}: {meta} holds no {name_key}; unpack the archive again")
    class_names = tuple(name.decode() for name in names)
    labels = np.concatenate([_labels(path, label_key, title) for path in paths])
    empty = np.setdiff1d(np.arange(len(class_names)), labels)
    if empty.size or labels.max() >= len(class_names) or labels.min() < 0:
        raise SourceError(
            f"{title}: the labels of {', '.join(files)} are not the {len(class_names)} classes of "
            f"{meta}; unpack the archive again"
        )
    return Cifar(paths, labels, class_names)


def _labels(path: str, key: str, title: str) -> np.ndarray:
    batch = read_pickle(path)
    labels = batch.get(key.encode())
    if labels is None:
        raise SourceError(f"{title}: {path} holds no {key}; unpack the archive again")
    pictures = len(_planes(batch, path))
    if len(labels) != pictures:
        counts = f"{len(labels):,} labels for {pictures:,} pictures"
        raise SourceError(f"{title}: {path} has {counts}; unpack the archive again")
    return np.asarray(labels, np.int64)


def _planes(batch: dict[bytes, np.ndarray], path: str) -> np.ndarray:
    """Rows of 1024 red, 1024 green and 1024 blue values."""
    data = batch.get(b"data")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3072,):
        raise SourceError(
            f"{path} holds no pictures of 32 x 32 x 3 bytes; unpack the archive again"
        )
    return data
