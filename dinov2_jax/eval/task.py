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
from typing import Any, Protocol

from ml_collections import ConfigDict

from dinov2_jax.config.files import to_dict
from dinov2_jax.data.fingerprint import describe
from dinov2_jax.data.sources.source import Source
from dinov2_jax.eval.data import Data, open_data, stored_settings
from dinov2_jax.features.cache import FeatureCache, Labelled, Wanted
from dinov2_jax.parallel.processes import main_first
from dinov2_jax.weights.load import Backbone


@dataclasses.dataclass(frozen=True)
class Need:
    """One pass over pictures.

    Attributes:
      title: names the pictures on the console and in the feature cache, such as "train".
      source: the pictures.
      wanted: the features; None if the task reads the pictures themselves.
      stored: whether the features are kept on disk. Dense features are streamed instead.
      keep_unreadable: gives rows of NaN for unreadable pictures, where rows belong together.
    """

    title: str
    source: Source
    wanted: Wanted | None
    stored: bool = True
    keep_unreadable: bool = False


@dataclasses.dataclass(frozen=True)
class Metric:
    """One figure of a result.

    Attributes:
      name: of the metric, such as "top-1".
      value: in `unit`.
      unit: "%" by default; "" for a plain number.
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
      title: what is shown.
      x_name: of the horizontal axis.
      lines: name of each line -> points (x, y), x ascending.
      chosen: line and x of the point to mark, whose value stands beside the title.
      log_x: draws x on a logarithmic axis.
      unit: of y.
    """

    title: str
    x_name: str
    lines: Mapping[str, list[tuple[float, float]]]
    chosen: tuple[str, float] | None = None
    log_x: bool = False
    unit: str = "%"


# A dict holds notes: how the figures came about, as JSON values.
Finding = Metric | Curve | dict[str, Any]


class Work(Protocol):
    """What a running task may use.

    Attributes:
      folder: of the task, for what a kill must not lose.
      before: folder of each finished protocol that `Task.after` names, in that order.
      earlier: first metric of each other data set of the same protocol.
    """

    folder: Path
    before: Mapping[str, Path]
    earlier: Mapping[str, float]

    def features(self, need: Need) -> Labelled:
        """Computes the stored features of a need, or reads them."""
        ...

    def stream(self, need: Need) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Computes features batch by batch: (rows, {column: array}); nothing is stored."""
        ...


@dataclasses.dataclass(frozen=True)
class Task:
    """One protocol on one data set.

    Attributes:
      data: name of the data set; results are kept by protocol and this name.
      needs: all passes over pictures; the runner plans those of all tasks together.
      settings: everything that the figures depend on beside the weights: the section of the
        configuration and fingerprints of the data, never a path. A finished result with the same
        settings is not computed again.
      run: yields metrics, curves and notes.
      after: protocols of which one must be finished before. The task is given their folders.
    """

    data: str
    needs: tuple[Need, ...]
    settings: Mapping[str, Any]
    run: Callable[[Work], Iterator[Finding]]
    after: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Context:
    """What a protocol may read when it opens.

    Attributes:
      backbone: the weights.
      config: configs/eval/default.py.
      cache: features on disk.
    """

    backbone: Backbone
    config: ConfigDict
    cache: FeatureCache
    _described: dict[int, tuple[Source, dict[str, Any]]] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def data(self) -> Data:
        """The labelled splits of `config.data`, opened when a protocol first reads them."""
        with main_first():
            return open_data(self.config.data, stored_settings(self.backbone))

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
        whole, data = to_dict(self.config), self.config.data
        fields = {section: whole[section] for section in sections}
        limits = {"max_bad": data.max_bad, "max_pixels": data.max_pixels}
        return fields | {"splits": self.describe_all(sources)} | limits

    def describe_all(self, sources: Mapping[str, Source]) -> dict[str, Any]:
        """`describe` of each."""
        return {name: self.describe(source) for name, source in sources.items()}

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
        how = self.backbone.preprocessing
        return Wanted(how.resize_px, how.image_px)

    @property
    def cls_of_whole_square(self) -> Wanted:
        """The same, with the shorter side as long as the crop (reference-facts 8.4)."""
        size = self.backbone.preprocessing.image_px
        return Wanted(size, size)

    @property
    def probe_features(self) -> Wanted:
        """What linear classifiers read: cls of the last blocks (`linear.blocks`), mean patch."""
        how, blocks = self.backbone.preprocessing, max(self.config.linear.blocks)
        return Wanted(how.resize_px, how.image_px, cls_blocks=blocks, mean_patch=True)


def _digest(*parts: Any) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()
