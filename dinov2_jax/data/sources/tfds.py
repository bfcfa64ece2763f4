"""Prepared TFDS data sets, read without TensorFlow."""

import difflib
import functools
import os
from typing import Any

import numpy as np

from dinov2_jax.data.sources.source import SourceError, read_record, short_message


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
        image = self._image = _feature(features, "image", tfds.features.Image)
        if image is None:
            raise SourceError(f"data.path={path} has no image among {', '.join(features)}")
        label = self._label = _feature(features, "label", tfds.features.ClassLabel)
        self.class_names = None if label is None else tuple(features[label].names)
        decoders = {image: tfds.decode.SkipDecoding()}
        try:
            self._records = builder.as_data_source(split=split, decoders=decoders)
        except Exception as error:  # TFDS has many types for a missing split or folder
            message = f"data.path={path}, split={split!r}: {short_message(error)}"
            raise SourceError(message) from error
        self._title = f"{path}/{split}"

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> bytes | np.ndarray:
        return read_record(self._records, index)[self._image]

    @functools.cached_property
    def labels(self) -> np.ndarray | None:
        """Class numbers, int64; the first use reads every record once."""
        return None if self._label is None else self.labels_of(np.arange(len(self)))

    def labels_of(self, rows: np.ndarray) -> np.ndarray:
        """Class numbers of some records, int64; reads just these records."""
        if self._label is None:
            return np.full(len(rows), -1, np.int64)
        labels = (self._records[int(row)][self._label] for row in rows)
        return np.fromiter(labels, np.int64, len(rows))

    def name(self, index: int) -> str:
        """`name/split[index]`."""
        return f"{self._title}[{index}]"


def _tfds_builder(path: str) -> Any:
    import tensorflow_datasets as tfds

    if os.path.isfile(os.path.join(path, "dataset_info.json")):
        return tfds.builder_from_directory(path)
    name, _, data_dir = path.partition("@")
    try:
        return tfds.builder(name, data_dir=data_dir or None)
    except tfds.core.registered.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise SourceError(f"data.path={path} names no TFDS data set{hint}") from error


def _feature(features: Any, preferred: str, kind: type) -> str | None:
    names = [name for name, feature in features.items() if isinstance(feature, kind)]
    return preferred if preferred in names else next(iter(names), None)
