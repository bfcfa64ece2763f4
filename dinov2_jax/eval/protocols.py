"""The protocols of one evaluation: what each reads, and its configuration turned into arguments."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from dinov2_jax.configuration import ConfigError, nearest
from dinov2_jax.data.preprocess import Preprocessing
from dinov2_jax.eval.feature_cache import Labelled, Wanted
from dinov2_jax.eval.knn import few_shot_knn, knn_accuracy

Splits = Mapping[str, Labelled]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a protocol found.

    Attributes:
      headline: name of the figure that the paper reports -> value, one or more.
      numbers: all figures, JSON values.
      protocol: how they came about, JSON values.
      curves: "title by x" -> points (x ascending, percent), for results.html.
    """

    headline: Mapping[str, float]
    numbers: Mapping[str, Any]
    protocol: Mapping[str, Any]
    curves: Mapping[str, Sequence[tuple[float, float]]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Which features it reads, and what it makes of them.

    Attributes:
      wanted: of the weights' preprocessing.
      run: (splits, configuration, folder for what a kill must not lose) -> outcome.
    """

    wanted: Callable[[Preprocessing], Wanted]
    run: Callable[[Splits, ConfigDict, Path], Outcome]


def _as_evaluated(preprocessing: Preprocessing) -> Wanted:
    return Wanted(preprocessing.resize_px, preprocessing.image_px)


def _whole_square(preprocessing: Preprocessing) -> Wanted:
    """The shorter side becomes that of the crop (reference-facts 8.4: Resize 224, crop 224)."""
    return Wanted(preprocessing.image_px, preprocessing.image_px)


def _run_knn(splits: Splits, config: ConfigDict, folder: Path) -> Outcome:
    train, test = splits["train"], splits["test"]
    found = knn_accuracy(
        *(train.cls[-1], train.labels, test.cls[-1], test.labels),
        ks=config.knn.ks,
        temperature=config.knn.temperature,
    )
    protocol = {
        "temperature": config.knn.temperature,
        "ks_beyond_bank": [k for k in config.knn.ks if k > len(train.labels)],
    }
    top1 = {k: value["top1"] for k, value in found.items()}
    headline = {f"top-1, k={k}": value for k, value in top1.items()}
    curves = {"k-NN, top-1 by k": sorted(top1.items())}
    return Outcome(headline, {"k": found}, protocol, curves)


def _run_few_shot(splits: Splits, config: ConfigDict, folder: Path) -> Outcome:
    train, test = splits["train"], splits["test"]
    settings = config.few_shot
    found = {
        count: few_shot_knn(
            *(train.cls[-1], train.labels, test.cls[-1], test.labels),
            n_per_class=count,
            n_tries=settings.tries,
            ks=config.knn.ks,
            temperature=config.knn.temperature,
        )
        for count in settings.per_class
    }
    best = {n: max(ks.values(), key=lambda value: value["top1"])["top1"] for n, ks in found.items()}
    headline = {f"top-1, {n} per class": value for n, value in best.items()}
    curves = {"Few-shot k-NN, top-1 by examples of a class": sorted(best.items())}
    return Outcome(headline, {"per_class": found}, {"tries": settings.tries}, curves)


PROTOCOLS = {
    "knn": Protocol(_as_evaluated, _run_knn),
    "few_shot": Protocol(_as_evaluated, _run_few_shot),
}


def chosen(names: Any) -> dict[str, Protocol]:
    """The protocols of `config.protocols`, in order.

    Raises:
      ConfigError: none, or one that is not known.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    for name in names or ("",):
        if name not in PROTOCOLS:
            raise ConfigError(
                f"config.protocols has {name!r}; did you mean "
                f"{nearest(name, tuple(PROTOCOLS))!r}? (of {', '.join(PROTOCOLS)})"
            )
    return {name: PROTOCOLS[name] for name in names}


def require_finite(splits: Splits, source: str) -> None:
    """Raises ConfigError where a backbone gives NaN or infinity."""
    for name, split in splits.items():
        if not np.isfinite(split.cls[-1][: 1 << 14]).all():
            raise ConfigError(f"{source} gives features that are not finite on {name}")
