"""Prepared TFDS data sets, read without TensorFlow."""

import difflib
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from dinov2_jax.data.sources.source import SourceError, not_found, read_record, short_message

# A label that has not been read.
UNREAD = -2
# Records that are read at once for their labels.
_BATCH = 256


class Tfds:
    """A prepared TFDS data set in a random-access format, read without TensorFlow.

    `path` is a name, `name@data_dir`, or the folder of a prepared version (where its
    dataset_info.json lies) or one above it that holds no other. Pictures come undecoded from the
    feature "image", or from the first feature that is an image; labels from "label", or the first
    class label.

    Raises:
      FileNotFoundError: the folder does not exist.
      SourceError: whatever else TFDS refuses, in one sentence: not prepared, or in another format.
    """

    def __init__(self, path: str, split: str = "train") -> None:
        import tensorflow_datasets as tfds

        builder = _open_builder(path)
        features = builder.info.features
        image = self._image = _feature(features, "image", tfds.features.Image)
        if image is None:
            raise SourceError(f"data.path={path} has no image among {', '.join(features)}")
        label = self._label = _feature(features, "label", tfds.features.ClassLabel)
        self.class_names = None if label is None else tuple(features[label].names)
        decoders = {image: tfds.decode.SkipDecoding()}
        try:
            self._records = builder.as_data_source(split=split, decoders=decoders)
            files = [one.filename for one in builder.info.splits[split].file_instructions]
        except NotImplementedError as error:
            raise SourceError(_other_format(path, builder)) from error
        except Exception as error:  # TFDS has many types for a missing split or folder
            message = f"data.path={path}, split={split!r}: {short_message(error)}"
            raise SourceError(message) from error
        lost = [file for file in files if not os.path.exists(file)]
        if lost:
            raise SourceError(
                f"data.path={path} lacks {len(lost)} of {len(files)} files of split {split!r}, "
                f"such as {lost[0]}; copy them there, or delete the folder and prepare it again"
            )
        self._title = f"{path}/{split}"
        # Labels that have been read, UNREAD for the others; int64 [n].
        self.known_labels: np.ndarray | None = np.full(len(self._records), UNREAD)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> bytes | np.ndarray:
        return read_record(self._records, index)[self._image]

    def __getstate__(self) -> dict[str, Any]:
        """For workers, which read no labels."""
        return {**self.__dict__, "known_labels": None}

    @property
    def labels(self) -> np.ndarray | None:
        """Class numbers, int64, -1 where a record is damaged.

        The first use reads every record whose label is not in `known_labels`.
        """
        return None if self._label is None else self.labels_of(np.arange(len(self)))

    def labels_of(self, rows: np.ndarray) -> np.ndarray:
        """Class numbers of some records, int64, -1 where damaged; reads those not known yet."""
        if self._label is None:
            return np.full(len(rows), -1, np.int64)
        if self.known_labels is None:
            self.known_labels = np.full(len(self), UNREAD)
        unread = rows[self.known_labels[rows] == UNREAD]
        self.known_labels[unread] = self._read_labels(unread)
        return self.known_labels[rows]

    def _read_labels(self, rows: np.ndarray) -> np.ndarray:
        parts = (rows[start : start + _BATCH].tolist() for start in range(0, len(rows), _BATCH))
        return np.fromiter((x for part in parts for x in self._labels(part)), np.int64, len(rows))

    def _labels(self, rows: list[int]) -> Iterator[int]:
        try:
            yield from [record[self._label] for record in self._records.__getitems__(rows)]
        except RuntimeError:  # a damaged chunk; the other ones can be read
            if len(rows) == 1:
                yield -1
                return
            for row in rows:
                yield from self._labels([row])

    def name(self, index: int) -> str:
        """`name/split[index]`."""
        return f"{self._title}[{index}]"

    def names_digest(self) -> str:
        """The records have no names of their own."""
        return ""


def _open_builder(path: str) -> Any:
    """The builder of a prepared data set, by its folder or its name."""
    import tensorflow_datasets as tfds

    folder = _version_folder(path)
    name, _, data_dir = ("", "", "") if folder else path.partition("@")
    data_dir = os.path.expanduser(data_dir)
    if data_dir and not os.path.isdir(data_dir):
        raise not_found(data_dir)
    try:
        if folder:
            return tfds.builder_from_directory(folder)
        builder = tfds.builder(name, data_dir=data_dir or None)
        prepared = builder.is_prepared()
    except tfds.core.registered.DatasetNotFoundError as error:
        raise SourceError(
            f"data.path={path} names no TFDS data set; {_near(name, data_dir)}"
        ) from error
    except Exception as error:  # of any type: damaged files, odd names and versions, no network
        package = re.search(r"No module named '([\w.]+)'", str(error))
        if package:
            remedy = f"pip install {package[1]}, or name the folder of its prepared version"
        elif folder:
            remedy = f"copy {folder} again, or delete it and prepare it again"
        else:
            remedy = _near(name, data_dir)
        message = f"data.path={path} cannot be opened as a TFDS data set"
        raise SourceError(f"{message}: {short_message(error)}; {remedy}") from error
    if not prepared:
        where = f", data_dir={data_dir!r}" if data_dir else ""
        raise SourceError(
            f"data.path={path} is not prepared: there is no {builder.data_path}; prepare it once "
            'with: python -c "import tensorflow_datasets as tfds; '
            f"tfds.builder({name!r}{where}, file_format='array_record').download_and_prepare()\""
        )
    return builder


def _near(name: str, data_dir: str) -> str:
    """What to write instead of an unknown name: a prepared version, or a similar name."""
    import tensorflow_datasets as tfds

    home = os.path.join(data_dir, re.split("[:/]", name)[0])
    found = list(_versions(home)) if data_dir and os.path.isdir(home) else []
    if found:
        return f"did you mean {found[-1]}?"
    near = difflib.get_close_matches(name, tfds.list_builders(with_community_datasets=False), n=1)
    if near and near[0] != name:
        return f"did you mean {near[0]!r}?"
    return "name one as in mnist, mnist:3.0.1 or mnist@<data_dir>, or the folder of a version"


def _version_folder(path: str) -> str:
    """The folder of a prepared version that a path means; "" for the name of a data set.

    Raises:
      FileNotFoundError: there is nothing.
      SourceError: a folder without a prepared version, or with several.
    """
    is_path = os.path.isabs(path) or path.startswith(".") or path.endswith(os.sep)
    if os.path.basename(path) == "dataset_info.json":
        path = os.path.dirname(path)
    if not os.path.isdir(path):
        if not is_path:
            return ""
        if not os.path.exists(path):
            raise not_found(path)
        raise SourceError(
            f"data.path={path} is a file; name the folder of a TFDS data set, where its "
            "dataset_info.json lies"
        )
    found = list(_versions(path))
    if len(found) > 1:
        raise SourceError(
            f"data.path={path} holds {len(found)} prepared TFDS data sets; name one of "
            f"{', '.join(found[:5])}{', ...' if len(found) > 5 else ''}"
        )
    if not found and is_path:
        raise SourceError(
            f"data.path={path} holds no prepared TFDS data set, which is a folder with "
            "dataset_info.json; name that folder, or for pictures use --config.data.source=folder"
        )
    return found[0] if found else ""


def _versions(folder: str, above: int = 3) -> Iterator[str]:
    """The folders of prepared versions: <data_dir>/<name>/<config>/<version>, or some of these."""
    if os.path.isfile(os.path.join(folder, "dataset_info.json")):
        yield folder
    elif above:
        with os.scandir(folder) as entries:
            inner = sorted(entry.path for entry in entries if entry.is_dir())
        for one in inner:
            # The last level is a version, so that folders of pictures are not searched to the end.
            if above > 1 or re.fullmatch(r"\d+\.\d+\.\d+", os.path.basename(one)):
                yield from _versions(one, above - 1)


def _other_format(path: str, builder: Any) -> str:
    kept = getattr(builder.info.file_format, "value", "an unknown format")
    return (
        f"data.path={path} is prepared as {kept}, which has no random access; add ArrayRecord "
        "files to it, where TensorFlow is installed, with: tfds convert_format "
        f"--dataset_version_dir={builder.data_path} --out_file_format=array_record"
    )


def _feature(features: Any, preferred: str, kind: type) -> str | None:
    names = [name for name, feature in features.items() if isinstance(feature, kind)]
    return preferred if preferred in names else next(iter(names), None)
