"""The protocols of an evaluation, what each reads and gives."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dinov2_jax.config.files import ConfigError, nearest
from dinov2_jax.data.fingerprint import describe
from dinov2_jax.data.sources.source import Source
from dinov2_jax.eval.data import Data
from dinov2_jax.features.cache import FeatureCache, Labelled, Wanted
from dinov2_jax.weights.load import Backbone


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a protocol found.

    Attributes:
      headline: name of the figure that the paper reports -> percent, one or more.
      numbers: all figures, JSON values.
      protocol: how they came about, JSON values.
      curves: "title by x" -> points (x ascending, percent), for results.html.
      published: protocol and data set of each headline figure in `published`, where they are not
        the evaluation's.
      comparable: whether the settings are those of the paper, so that its figure may stand beside.
    """

    headline: Mapping[str, float]
    numbers: Mapping[str, Any]
    protocol: Mapping[str, Any]
    curves: Mapping[str, Sequence[tuple[float, float]]] = dataclasses.field(default_factory=dict)
    published: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    comparable: bool = True


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a protocol may read.

    Attributes:
      backbone: the weights.
      data: the labelled splits; None for protocols that bring their own data.
      config: configs/eval/default.py.
      cache: features on disk.
      wanted: which of them, for all protocols of the same preprocessing.
      folder: where a protocol keeps what a kill must not lose.
      workdir: of the whole evaluation.
      opened: what the protocol's `open` gave.
      seen: filled with sizes and fingerprints of the other pictures that were read.
    """

    backbone: Backbone
    data: Data | None
    config: ConfigDict
    cache: FeatureCache
    wanted: Wanted
    folder: Path
    workdir: Path
    opened: Any = None
    seen: dict[str, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def identity(self) -> str:
        """Of weights, data and whatever else trained classifiers depend on."""
        data = self.data.description if self.data else {}
        parts = self.cache.weights, data, self.config.compute_dtype
        text = repr((*parts, self.config.data.max_pixels, self.backbone.preprocessing))
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def features(self, split: str) -> Labelled:
        """Of a split of the data."""
        assert self.data is not None
        return self.cache.features(self.data.splits[split], split, self.wanted)

    def features_of(self, source: Source, title: str, *, keep_unreadable: bool = False) -> Labelled:
        """Of other pictures."""
        self.seen[title] = describe(source)
        return self.cache.features(source, title, self.wanted, keep_unreadable=keep_unreadable)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One way to judge frozen or fine-tuned weights.

    Attributes:
      wanted: the features it reads.
      run: gives the outcome.
      sections: fields of the configuration that it depends on.
      open: refuses what cannot run, before anything is computed, and gives the protocol's own data.
      needs_data: whether it reads `config.data`.
      always: runs again although its result is there, as that depends on more than `sections`
        (pictures of its own, a classifier); its features are not computed again.
    """

    wanted: Callable[[Backbone], Wanted]
    run: Callable[[Inputs], Outcome]
    sections: tuple[str, ...]
    open: Callable[[Inputs, Sequence[str]], Any]
    needs_data: bool = True
    always: bool = False


def cls_as_evaluated(backbone: Backbone) -> Wanted:
    """The cls token of the last block, of pictures as the weights expect them."""
    how = backbone.preprocessing
    return Wanted(how.resize_px, how.image_px)


def cls_of_whole_square(backbone: Backbone) -> Wanted:
    """The same, where the shorter side becomes that of the crop (reference-facts 8.4)."""
    size = backbone.preprocessing.image_px
    return Wanted(size, size)


def probe_features(backbone: Backbone) -> Wanted:
    """What linear classifiers read: cls of the last 4 blocks, mean patch (reference-facts 8.3)."""
    how = backbone.preprocessing
    return Wanted(how.resize_px, how.image_px, cls_blocks=4, mean_patch=True)


def chosen(names: Any, known: Mapping[str, Protocol]) -> dict[str, Protocol]:
    """The protocols of `config.protocols`, in order.

    Raises:
      ConfigError: none, or one that is not known.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    for name in names or ("",):
        if name not in known:
            raise ConfigError(
                f"config.protocols has {name!r}; did you mean {nearest(name, tuple(known))!r}? "
                f"(of {', '.join(known)})"
            )
    return {name: known[name] for name in names}
