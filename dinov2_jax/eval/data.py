"""What an evaluation reads: the labelled splits of one data set."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from dinov2_jax.config.files import ConfigError
from dinov2_jax.data.fingerprint import describe
from dinov2_jax.data.sources.open import open_source
from dinov2_jax.data.sources.source import NoSplitError, Source, SourceError, notes_of
from dinov2_jax.data.sources.splits import split_folders
from dinov2_jax.data.sources.tfds import UNREAD
from dinov2_jax.data.sources.views import labelled_records, renumbered, with_label_file
from dinov2_jax.datasets.imagenet import imagenet, imagenet_tfds
from dinov2_jax.datasets.large import LARGE_SETS
from dinov2_jax.datasets.transfer import transfer_set
from dinov2_jax.parallel.processes import is_main
from dinov2_jax.run.checkpoint import read_config
from dinov2_jax.run.labels import keep_labels, recall_labels
from dinov2_jax.weights.load import Backbone

_SPLITS = ("train", "val", "test")
# Fields of config.data that a published set has; all others are of sources.
_OF_SETS = {"set", "path", "cache_dir", "workers", "max_pixels", "max_bad"}


@dataclasses.dataclass(frozen=True)
class Data:
    """The labelled records of each split; classes mean the same in all.

    Attributes:
      splits: "train", "test", and "val" where there is one.
      class_names: of the labels.
      name: of the data set, for tables: the published set, or the last folder of its path.
      published: name of the published set, "" for other data.
      metric: "top1", "mean_per_class" or "map11", what the set is reported in.
    """

    splits: Mapping[str, Source]
    class_names: tuple[str, ...]
    name: str
    published: str = ""
    metric: str = "top1"

    @property
    def chosen_on(self) -> str:
        """The split that chooses hyper-parameters; without val it is test, and results say so."""
        return "val" if "val" in self.splits else "test"


def stored_settings(backbone: Backbone) -> dict[str, Any]:
    """Data and split names of one of our runs; other weights have none."""
    if backbone.layout != "run":
        return {}
    stored, _ = read_config(Path(backbone.source))
    return {**stored["data"], **stored["eval"]}


def open_data(config: ConfigDict, stored: Mapping[str, Any], folder: Path) -> Data:
    """Opens all splits and checks labels and classes.

    Args:
      config: `config.data` of configs/eval/default.py.
      stored: what fills its empty fields, see `stored_settings`.
      folder: keeps labels that cost the read of a record, for later evaluations.

    Raises:
      ConfigError: no data, or no labels.
      SourceError, FileNotFoundError: in one sentence, before anything is computed.
    """
    if not config.set:
        return _open_source(_settings(config, stored), folder)
    data = _open_set(config)
    for source in data.splits.values():
        _read_labels(source, folder)
    return data


def _read_labels(source: Source, folder: Path) -> None:
    """Reads labels that cost the read of a record, once for all evaluations of this folder."""
    known = getattr(source, "known_labels", None)
    if known is None:
        return
    recall_labels(source, folder)
    unread = int((source.known_labels == UNREAD).sum())
    if not unread:
        return
    if is_main():
        where = source.name(0).removesuffix("[0]")
        print(f"reading the labels of {unread:,} records of {where}, once", flush=True)
    lost = 0 if source.labels is None else int((source.labels < 0).sum())
    if is_main():
        if lost:
            print(f"note: {lost:,} records are damaged and left out", flush=True)
        keep_labels(source, folder)


def _open_set(config: ConfigDict) -> Data:
    """A published set in its official layout."""
    name, path = config.set, config.path
    if not path:
        raise ConfigError(f"config.data.set={name!r} needs --config.data.path=<where it lies>")
    check_fields_of_set(config, *(["test_labels"] if name == "imagenet" else []))
    return open_published(name, path, config.test_labels)


def check_fields_of_set(config: ConfigDict, *more: str) -> None:
    """Raises ConfigError for a field of `config.data` that a published set would not follow.

    `more` are fields that this set has beside those of all sets.
    """
    known = _OF_SETS | set(more)
    ignored = [field for field, value in config.items() if value and field not in known]
    if ignored:
        raise ConfigError(
            f"config.data.{ignored[0]} means nothing for the set {config.set!r}, whose splits and "
            "labels are its own; leave it out"
        )


def open_published(name: str, path: str, test_labels: str = "") -> Data:
    """A published set; `test_labels` is the list of ImageNet's labels if it lies elsewhere."""
    val, metric = None, "top1"
    if name == "imagenet":
        train, test = imagenet(path, "train"), imagenet(path, "val", val_labels=test_labels)
    elif name == "imagenet_tfds":
        train, test = imagenet_tfds(path, "train"), imagenet_tfds(path, "val")
    elif name in LARGE_SETS:
        train, test = (LARGE_SETS[name](path, split) for split in ("train", "val"))
    else:
        train, val, test, metric = transfer_set(name, path)
    splits = {"train": train} | ({"val": val} if val is not None else {}) | {"test": test}
    _tell_notes(splits)
    name, class_names = name.removesuffix("_tfds"), tuple(train.class_names or ())
    return Data(splits, class_names, name, published=name, metric=metric)


def _open_source(data: Mapping[str, Any], folder: Path) -> Data:
    splits: dict[str, Source] = {}
    class_names: tuple[str, ...] | None = None
    data = {**data, "val_split": data["val_split"] or _val_folder(data)}
    for split in _SPLITS:
        if split == "val" and not (data["val_split"] or data["val_path"] or data["val_labels"]):
            continue
        source = _labelled(data, split, class_names, folder)
        class_names = class_names or source.class_names
        splits[split] = _in_classes_of(splits["train"], source, split) if splits else source
    path = data["path"] or data["train_path"]
    name = Path(path.partition("@")[0]).expanduser().absolute().name if path else data["source"]
    _require_different(splits)
    _tell_notes(splits)
    _tell_single_pictures(splits["train"])
    return Data(splits, tuple(class_names or ()), name)


def _tell_single_pictures(train: Source) -> None:
    """Says where every picture is a class of its own, as with labels that are names or values."""
    assert train.labels is not None
    rows = len(train.labels)
    if rows > 2 and len(np.unique(train.labels)) == rows and is_main():
        print(f"note: each of the {rows:,} pictures of train is a class of its own", flush=True)


def _tell_notes(splits: Mapping[str, Source]) -> None:
    """Prints once what the sources left out or took for a split."""
    if is_main():
        for note in dict.fromkeys(note for source in splits.values() for note in notes_of(source)):
            print(f"note: {note}", flush=True)


def _val_folder(data: Mapping[str, Any]) -> str:
    """The split "validation" of a folder that has train/, val/ and test/; else ""."""
    given = any(data[f"{split}_{field}"] for split in _SPLITS for field in ("path", "labels"))
    if given or data["source"] != "folder" or data["test_split"] != "test":
        return ""
    path = os.path.expanduser(data["path"])
    has_all = os.path.isdir(path) and len(split_folders(path)) == len(_SPLITS)
    return "validation" if has_all else ""


def _settings(config: ConfigDict, stored: Mapping[str, Any]) -> dict[str, Any]:
    """The data of the configuration; the run's settings fill empty fields."""
    given = {name: value for name, value in config.items() if value not in ("", None)}
    own = bool(config.source or config.path or config.train_path)
    if not own and not stored:
        raise ConfigError(
            "these weights do not say which pictures to evaluate on; add --config.data.source=... "
            "and --config.data.path=..."
        )
    defaults = {name: "" for name in config}
    defaults |= {"labels": "auto", "train_split": "train", "test_split": "test"}
    # A path of one split is that whole split.
    own_paths = (name for name in _SPLITS if config[f"{name}_path"] and config.source != "tfds")
    defaults |= {f"{name}_split": "all" for name in own_paths}
    run = {"source": "folder"} if own else {k: v for k, v in stored.items() if k in config}
    return defaults | run | given


def _labelled(
    data: Mapping[str, Any], name: str, class_names: tuple[str, ...] | None, folder: Path
) -> Source:
    file = data[f"{name}_labels"]
    try:
        source = open_source(
            data["source"],
            data[f"{name}_path"] or data["path"],
            split=data[f"{name}_split"],
            labels="none" if file else data["labels"],
            cache_dir=data["cache_dir"] or None,
        )
    except NoSplitError as error:
        raise SourceError(f"{error}: --config.data.{name}_path=...") from error
    if not file:
        _read_labels(source, folder)
    else:
        source = with_label_file(source, file, class_names)
    if source.labels is None:
        raise ConfigError(
            f"data source {data['source']!r} has no labels for {name}; use "
            "--config.data.labels=folders if the folders' names are the classes, or name a label "
            f"file with --config.data.{name}_labels, or another data set with "
            "--config.data.source and --config.data.path"
            + "".join(f" ({note})" for note in notes_of(source))
        )
    if not (source.labels >= 0).any():
        raise SourceError(f"no picture of the split {name} has a label; check its label file")
    return labelled_records(source)


def _require_different(splits: Mapping[str, Source]) -> None:
    """Raises SourceError if two splits are the same pictures, as with a list or a flat folder."""
    seen: dict[str, str] = {}
    for name, source in splits.items():
        first = seen.setdefault(describe(source)["fingerprint"], name)
        if first != name:
            raise SourceError(
                f"{first} and {name} are the same {len(source):,} pictures, because this "
                f"source has no splits; name another with --config.data.{name}_path"
            )


def _in_classes_of(train: Source, source: Source, name: str) -> Source:
    """Gives a split the class numbers of the training set.

    Raises:
      SourceError: a class that train does not have, or that has no picture there.
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
