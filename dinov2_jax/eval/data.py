"""What an evaluation reads: labelled splits of one data set, all checked before any extraction."""

import dataclasses
import functools
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from dinov2_jax.config.files import ConfigError
from dinov2_jax.data.decode import FORMATS
from dinov2_jax.data.fingerprint import describe
from dinov2_jax.data.sources.open import open_source
from dinov2_jax.data.sources.source import Source, SourceError
from dinov2_jax.data.sources.views import labelled_records, renumbered, with_label_file
from dinov2_jax.datasets.imagenet import imagenet, imagenet_tfds
from dinov2_jax.datasets.transfer import transfer_set
from dinov2_jax.run.checkpoint import read_config
from dinov2_jax.weights.load import Backbone

_SPLITS = ("train", "val", "test")
# Fields of config.data that a published set does not have.
_OF_SOURCES = (
    *("source", "train_split", "val_split", "test_split", "labels"),
    *("train_path", "val_path", "test_path", "train_labels", "val_labels"),
)
# Pictures a split whose headers are read before the start: a tenth of a millisecond each.
MOST_HEADERS = 20_000


@dataclasses.dataclass(frozen=True)
class Data:
    """The labelled records of each split; classes mean the same in all.

    Attributes:
      splits: "train", "test", and "val" where there is one.
      class_names: of the labels.
      title: set or source, and path.
      metric: "top1", "mean_per_class" or "map11", what the set is reported in.
    """

    splits: Mapping[str, Source]
    class_names: tuple[str, ...]
    title: str
    metric: str = "top1"

    @functools.cached_property
    def description(self) -> dict[str, Any]:
        """For results.json: sizes and fingerprints."""
        splits = {name: describe(source) for name, source in self.splits.items()}
        return {"data": self.title, "classes": len(self.class_names), "splits": splits}


def stored_settings(backbone: Backbone) -> dict[str, Any]:
    """Data and split names of one of our runs; of other weights nothing."""
    if backbone.layout != "run":
        return {}
    stored, _ = read_config(Path(backbone.source))
    return {**stored["data"], **stored["eval"]}


def open_data(config: ConfigDict, stored: Mapping[str, Any]) -> Data:
    """Opens all splits and checks labels, classes and the pictures' headers.

    Args:
      config: `config.data` of configs/eval/default.py.
      stored: what fills its empty fields, see `stored_settings`.

    Raises:
      ConfigError: no data, or no labels.
      SourceError, FileNotFoundError: in one sentence, before anything is computed.
    """
    data = _open_set(config) if config.set else _open_source(_settings(config, stored))
    for name, source in data.splits.items():
        require_readable(source, config.max_pixels, config.max_bad, name)
    return data


def _open_set(config: ConfigDict) -> Data:
    """A published set in its official layout."""
    name, path = config.set, config.path
    if not path:
        raise ConfigError(f"config.data.set={name!r} needs --config.data.path=<where it lies>")
    ignored = [field for field in _OF_SOURCES if config[field]]
    if config.test_labels and name != "imagenet":
        ignored.append("test_labels")
    if ignored:
        raise ConfigError(
            f"config.data.{ignored[0]} means nothing for the set {name!r}, whose splits and labels "
            "are its own; leave it out, or use --config.data.source"
        )
    metric = "top1"
    if name == "imagenet":
        test = imagenet(path, "val", val_labels=config.test_labels)
        splits: dict[str, Source] = {"train": imagenet(path, "train"), "test": test}
    elif name == "imagenet_tfds":
        splits = {"train": imagenet_tfds(path, "train"), "test": imagenet_tfds(path, "val")}
    else:
        train, val, test, metric = transfer_set(name, path)
        splits = {"train": train} | ({"val": val} if val is not None else {}) | {"test": test}
    class_names = tuple(splits["train"].class_names or ())
    return Data(splits, class_names, f"{name.removesuffix('_tfds')} {path}", metric)


def _open_source(data: Mapping[str, Any]) -> Data:
    splits: dict[str, Source] = {}
    class_names: tuple[str, ...] | None = None
    for name in _SPLITS:
        if name == "val" and not (data["val_split"] or data["val_path"] or data["val_labels"]):
            continue
        source = _labelled(data, name, class_names)
        class_names = class_names or source.class_names
        splits[name] = _in_classes_of(splits["train"], source, name) if splits else source
    title = f"{data['source']} {data['path'] or data['train_path']}".strip()
    found = Data(splits, tuple(class_names or ()), title)
    _require_different(found)
    return found


def _settings(config: ConfigDict, stored: Mapping[str, Any]) -> dict[str, Any]:
    """The data of the configuration, each empty field filled from the run's."""
    given = {name: value for name, value in config.items() if value not in ("", None)}
    own = bool(config.source or config.path or config.train_path)
    if not own and not stored:
        raise ConfigError(
            "these weights do not say which pictures to evaluate on; add --config.data.source=... "
            "and --config.data.path=..."
        )
    defaults = {name: "" for name in config}
    defaults |= {"labels": "auto", "train_split": "train", "test_split": "test"}
    # A path of one split is all of it.
    own_paths = (name for name in _SPLITS if config[f"{name}_path"] and config.source != "tfds")
    defaults |= {f"{name}_split": "all" for name in own_paths}
    if own:
        defaults |= {"source": "folder"}
        return defaults | given
    return defaults | {k: v for k, v in stored.items() if k in config} | given


def _labelled(data: Mapping[str, Any], name: str, class_names: tuple[str, ...] | None) -> Source:
    file = data[f"{name}_labels"]
    source = open_source(
        data["source"],
        data[f"{name}_path"] or data["path"],
        split=data[f"{name}_split"],
        labels="none" if file else data["labels"],
        cache_dir=data["cache_dir"] or None,
    )
    if file:
        source = with_label_file(source, file, class_names)
    if source.labels is None:
        raise ConfigError(
            f"data source {data['source']!r} has no labels for {name}; use "
            "--config.data.labels=folders if the folders' names are the classes, or name a label "
            f"file with --config.data.{name}_labels, or another data set with "
            "--config.data.source and --config.data.path"
        )
    if not (source.labels >= 0).any():
        raise SourceError(f"no picture of the split {name} has a label; check its label file")
    return labelled_records(source)


def _require_different(data: Data) -> None:
    """Raises SourceError where two splits are the same pictures, as of a list or a flat folder."""
    seen: dict[str, str] = {}
    for name, about in data.description["splits"].items():
        first = seen.setdefault(about["fingerprint"], name)
        if first != name:
            raise SourceError(
                f"{first} and {name} are the same {about['pictures']:,} pictures, because this "
                f"source has no splits; name another with --config.data.{name}_path"
            )


def _in_classes_of(train: Source, source: Source, name: str) -> Source:
    """With the class numbers of the training set, which must show all that is asked for.

    Raises:
      SourceError: a class that train does not have, or of which it has no picture.
    """
    if source.class_names != train.class_names and train.class_names and source.class_names:
        try:
            source = renumbered(source, train.class_names)
        except SourceError as error:
            raise SourceError(f"the split {name}: {error}") from error
    assert train.labels is not None and source.labels is not None
    lost = np.setdiff1d(source.labels, train.labels)
    if len(lost):
        which = train.class_names[lost[0]] if train.class_names else lost[0]
        raise SourceError(
            f"{name} has pictures of class {which!r}, of which train has none ({len(lost)} such "
            "classes); add some, or leave the class out"
        )
    return source


def require_readable(source: Source, max_pixels: int, most_bad: int, name: str) -> None:
    """Reads the headers of all pictures, or of MOST_HEADERS spread over all.

    Raises:
      SourceError: more than `most_bad` of them are no pictures.
    """
    rows = np.linspace(0, len(source) - 1, min(len(source), MOST_HEADERS)).astype(int)
    bad = []
    for row in tqdm(rows, f"headers of {name}", unit="picture", delay=3):
        if why := _header_error(source, int(row), max_pixels):
            bad.append((row, why))
    if len(bad) > most_bad:
        row, why = bad[0]
        about = round(len(bad) * len(source) / len(rows))
        looked = "" if len(rows) == len(source) else f" (of {len(source):,}, so about {about:,})"
        raise SourceError(
            f"{len(bad)} of {len(rows):,} pictures of {name}{looked} cannot be read, such as "
            f"{source.name(int(row))} ({why}); remove them, or add --config.data.max_bad="
            f"{about} or more to leave them out of the figures"
        )


def _header_error(source: Source, row: int, max_pixels: int) -> str:
    """Why a record cannot be a picture, judged by its first bytes; "" if it can."""
    try:
        record = source[row]
    except OSError as error:
        return error.strerror or str(error)
    if isinstance(record, np.ndarray) or record.startswith(b"\x93NUMPY"):
        return ""
    try:
        with Image.open(io.BytesIO(record), formats=FORMATS) as image:
            width, height = image.size
    except Exception:  # Pillow's plugins raise nearly any type on broken files
        return "not a picture in a known format" if record else "the file is empty"
    return f"{width} x {height} px" if width * height > 64 * max_pixels else ""
