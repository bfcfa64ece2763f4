"""The evaluation interface: what a protocol is given, and what it returns.

A protocol is one module of eval/protocols. Its `open(context)` returns one `Task` a data set. It
reads lists and labels, refuses what cannot run, and computes nothing. The runner then calls `run`
of every task that is not finished, and writes each metric the moment it is known.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dinov2_jax.config.files import to_dict
from dinov2_jax.data.fingerprint import describe
from dinov2_jax.data.sources.source import Source
from dinov2_jax.eval.data import Data, open_data, stored_settings
from dinov2_jax.features.cache import FeatureCache, Labelled, Wanted
from dinov2_jax.parallel.processes import main_first
from dinov2_jax.viz.gallery import Figure
from dinov2_jax.weights.load import Backbone

# Title, resize_px and image_px: needs with the same ones share a pass over the pictures.
Pass = tuple[str, int, int]


@dataclasses.dataclass(frozen=True)
class Need:
    """One pass over pictures.

    Attributes:
      title: names the pictures on the console and in the feature cache, such as "train".
      wanted: the features; None if the task reads the pictures themselves.
      stored: whether the features are kept on disk. Dense features are streamed instead.
      keep_unreadable: gives rows of NaN for unreadable pictures, where rows belong together.
    """

    title: str
    source: Source
    wanted: Wanted | None
    stored: bool = True
    keep_unreadable: bool = False

    @property
    def key(self) -> Pass:
        assert self.wanted is not None
        return self.title, self.wanted.resize_px, self.wanted.image_px


@dataclasses.dataclass(frozen=True)
class Metric:
    """One figure of a result.

    Attributes:
      name: such as "top-1".
      unit: "" for a plain number.
      higher_is_better: False for errors.
      data: the data set that was judged; "" for that of the task.
      n: how many pictures (or queries, or videos) were judged; 0 if unknown.
      chosen_on: the split that chose hyper-parameters; "" if nothing was chosen.
      published: the paper's value, only where model, data, sizes and settings are the paper's.
    """

    name: str
    value: float
    unit: str = "%"
    higher_is_better: bool = True
    data: str = ""
    n: int = 0
    chosen_on: str = ""
    published: float | None = None


@dataclasses.dataclass(frozen=True)
class Curve:
    """A figure for results.html.

    Attributes:
      lines: name of each line -> points (x, y), x ascending.
      chosen: line and x of the point to mark, whose value stands beside the title.
      unit: of y.
    """

    title: str
    x_name: str
    lines: Mapping[str, list[tuple[float, float]]]
    chosen: tuple[str, float] | None = None
    log_x: bool = False
    unit: str = "%"


# A dict holds notes: how the figures came about, as JSON values. A `Figure` is a picture: its PNG
# goes into the task's folder, and results.html shows it.
Finding = Metric | Curve | Figure | dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Work:
    """What a running task may use.

    Attributes:
      folder: of the task, for what a kill must not lose.
      before: folder of each finished protocol that `Task.after` names, in that order.
      earlier: first metric of each other data set of the same protocol.
      cache: features on disk.
      widest: by pass, the features that any of its tasks reads.
    """

    folder: Path
    before: Mapping[str, Path]
    earlier: Mapping[str, float]
    cache: FeatureCache
    widest: Mapping[Pass, Wanted]

    def features(self, need: Need) -> Labelled:
        """Computes the stored features of a need, or reads them."""
        assert need.wanted is not None
        wanted, keep = self.widest[need.key], need.keep_unreadable
        found = self.cache.features(need.source, need.title, wanted, keep_unreadable=keep)
        mean_patch = found.mean_patch if need.wanted.mean_patch else None
        cls = found.cls[-need.wanted.cls_blocks :]
        return dataclasses.replace(found, cls=cls, mean_patch=mean_patch)

    def stream(self, need: Need) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Computes features batch by batch: (rows, {column: array}); nothing is stored."""
        assert need.wanted is not None
        return self.cache.stream(need.source, need.wanted)


@dataclasses.dataclass(frozen=True)
class Task:
    """One protocol on one data set.

    Attributes:
      data: name of the data set; results are kept by protocol and this name.
      needs: all passes over pictures; the runner plans those of all tasks together.
      settings: everything that the figures depend on beside the weights: the section of the
        configuration and fingerprints of the data, never a path. A finished result with the same
        settings is not computed again.
      run: yields metrics, curves, pictures and notes.
      after: protocols of which one must be finished before. The task is given their folders.
    """

    data: str
    needs: tuple[Need, ...]
    settings: Mapping[str, Any]
    run: Callable[[Work], Iterator[Finding]]
    after: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Context:
    """What a protocol may read when it opens; `config` is configs/eval/default.py."""

    backbone: Backbone
    config: ConfigDict
    cache: FeatureCache
    _described: dict[int, tuple[Source, dict[str, Any]]] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def data(self) -> Data:
        """The labelled splits of `config.data`, opened when a protocol first reads them."""
        with main_first():
            stored = stored_settings(self.backbone)
            return open_data(self.config.data, stored, self.cache.folder)

    def need(self, split: str, wanted: Wanted | None) -> Need:
        """The pictures of one split of `data`."""
        return Need(split, self.data.splits[split], wanted)

    def describe(self, source: Source) -> dict[str, Any]:
        """Size and fingerprint of pictures and labels, computed once."""
        if id(source) not in self._described:
            self._described[id(source)] = source, describe(source)
        return self._described[id(source)][1]

    def settings(self, *sections: str, **sources: Source) -> dict[str, Any]:
        """Sections of the configuration, and fingerprints of the data that a task reads."""
        fields = {section: to_dict(self.config[section]) for section in sections}
        fields["splits"] = {name: self.describe(source) for name, source in sources.items()}
        return fields | {name: self.config.data[name] for name in ("max_bad", "max_pixels")}

    @property
    def reading(self) -> dict[str, int]:
        """How heads that train on pictures read them: `workers` and `max_pixels`."""
        return {name: self.config.data[name] for name in ("workers", "max_pixels")}

    @functools.cached_property
    def weights(self) -> str:
        """What a head must share with the backbone: weights and preprocessing."""
        return _digest(self.cache.weights, self.backbone.preprocessing)

    def identity(self, train: Source) -> str:
        """What a trained head belongs to: `<weights>:<pictures and labels of train>`."""
        limits = self.config.compute_dtype, self.config.data.max_pixels
        return f"{self.weights}:{_digest(self.describe(train), limits)}"

    # ------------------------------------------------------------------- features to ask for
    @property
    def cls_as_evaluated(self) -> Wanted:
        """cls of the last block, of pictures as the weights expect them."""
        return Wanted(self.backbone.preprocessing.resize_px, self.backbone.preprocessing.image_px)

    @property
    def cls_of_whole_square(self) -> Wanted:
        """The same, with a shorter side as long as the crop (FB eval/log_regression.py)."""
        size = self.backbone.preprocessing.image_px
        return Wanted(size, size)

    @property
    def probe_features(self) -> Wanted:
        """What linear classifiers read: cls of the last blocks (`linear.blocks`), mean patch."""
        blocks = max(self.config.linear.blocks)
        return dataclasses.replace(self.cls_as_evaluated, cls_blocks=blocks, mean_patch=True)


def _digest(*parts: Any) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()
