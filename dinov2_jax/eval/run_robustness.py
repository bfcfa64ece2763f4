"""The chosen linear classifier on ImageNet's variants, without training again."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dinov2_jax.config.files import ConfigError
from dinov2_jax.data.sources.source import Source
from dinov2_jax.data.sources.views import View
from dinov2_jax.datasets.imagenet_variants import (
    CORRUPTIONS,
    SEVERITIES,
    imagenet_c,
    imagenet_sketch,
    imagenet_subset,
    imagenet_v2,
    real_labels,
)
from dinov2_jax.eval.protocols import Inputs, Outcome
from dinov2_jax.eval.run_frozen import HEAD_FILE, columns_of
from dinov2_jax.heads.linear import LinearHead, load_head
from dinov2_jax.metrics.classification import corruption_errors, real_accuracy, top_accuracy


def open_robustness(inputs: Inputs, others: Sequence[str]) -> "dict[str, list[_Part]]":
    """Every variant whose path is given in `config.robustness`.

    Args:
      others: protocols of this evaluation; linear and linear_cached give a classifier.

    Raises:
      ConfigError, SourceError: no variant, no classifier, or a variant that is not whole.
    """
    paths = _paths(inputs)
    if not {"linear", "linear_cached"} & set(others):
        _head(inputs)
    return {name: _OPENED[name](inputs, path) for name, path in paths.items()}


def run_robustness(inputs: Inputs) -> Outcome:
    """The chosen linear classifier on every variant."""
    head = _head(inputs)
    measured = {name: _measure(inputs, head, name, parts) for name, parts in inputs.opened.items()}
    headline = {f"{name}, {m}": v[m] for name, v in measured.items() for m in list(v)[:1]}
    published = {figure: ("linear", figure.partition(",")[0]) for figure in headline}
    return Outcome(headline, measured, {"classifier": head.name}, published=published)


def _paths(inputs: Inputs) -> dict[str, str]:
    given = inputs.config.robustness
    paths = {name: given[name] for name in _OPENED if given[name]}
    if not paths:
        raise ConfigError(
            "robustness needs at least one set, such as --config.robustness.imagenet_v2=/imagenetv2"
        )
    return paths


def _head(inputs: Inputs) -> LinearHead:
    """The classifier to judge, which must be of these weights and data.

    Raises:
      ConfigError: none, or of others.
    """
    given = inputs.config.robustness.head
    places = [inputs.workdir / name / HEAD_FILE for name in ("linear", "linear_cached")]
    for place in [Path(given).expanduser()] if given else places:
        if not place.is_file():
            continue
        head = load_head(place)
        if head.identity == inputs.identity:
            return head
        if given:
            raise ConfigError(
                f"the linear classifier {place} was trained on other weights, data or sizes; "
                "name one of these, or evaluate linear again"
            )
    raise ConfigError(
        f"no linear classifier of these weights and data at {given or places[0]}; evaluate linear "
        "before, as in --config.protocols=linear,robustness, or name one with "
        "--config.robustness.head"
    )


# ------------------------------------------------------------------------------------- variants
class _Part(NamedTuple):
    """Pictures of a variant; `classes` as in `Subset`, None for all 1000 in order."""

    title: str
    pictures: Source
    classes: np.ndarray | None = None


def _wnids(inputs: Inputs) -> tuple[str, ...]:
    assert inputs.data is not None
    return inputs.data.class_names


def _v2(inputs: Inputs, path: str) -> list[_Part]:
    return [_Part("imagenet_v2", imagenet_v2(path, _wnids(inputs)))]


def _sketch(inputs: Inputs, path: str) -> list[_Part]:
    return [_Part("imagenet_sketch", imagenet_sketch(path, _wnids(inputs)))]


def _subset(name: str) -> Callable[[Inputs, str], list[_Part]]:
    def opened(inputs: Inputs, path: str) -> list[_Part]:
        count = min(200, len(_wnids(inputs)))
        return [_Part(name, *imagenet_subset(path, _wnids(inputs), count))]

    return opened


def _corrupted(inputs: Inputs, path: str) -> list[_Part]:
    return [
        _Part(f"imagenet_c-{name}-{severity}", imagenet_c(path, name, severity, _wnids(inputs)))
        for name in CORRUPTIONS
        for severity in SEVERITIES
    ]


def _real(inputs: Inputs, path: str) -> list[_Part]:
    assert inputs.data is not None
    source = inputs.data.splits["test"]  # which must be ImageNet's validation set
    real = View(source, source.labels, source.class_names, targets=real_labels(path, source))
    return [_Part("test", real)]


_OPENED: dict[str, Callable[[Inputs, str], list[_Part]]] = {
    "imagenet_v2": _v2,
    "imagenet_real": _real,
    "imagenet_a": _subset("imagenet_a"),
    "imagenet_r": _subset("imagenet_r"),
    "imagenet_sketch": _sketch,
    "imagenet_c": _corrupted,
}


def _measure(inputs: Inputs, head: LinearHead, name: str, parts: list[_Part]) -> dict[str, float]:
    if name == "imagenet_c":
        errors = np.array([100 - _top1(inputs, head, part) for part in parts])
        by_corruption = errors.reshape(len(CORRUPTIONS), len(SEVERITIES))
        return corruption_errors(dict(zip(CORRUPTIONS, by_corruption, strict=True)))
    if name == "imagenet_real":
        features = inputs.features_of(parts[0].pictures, parts[0].title)
        return {"accuracy": real_accuracy(head.logits(columns_of(features)), features.labels)}
    return {"top-1": _top1(inputs, head, parts[0])}


def _top1(inputs: Inputs, head: LinearHead, part: _Part) -> float:
    features = inputs.features_of(part.pictures, part.title)
    classes = None if part.classes is None else part.classes.tolist()
    return top_accuracy(head.logits(columns_of(features), classes), features.labels, 1)
