"""The chosen linear classifier on ImageNet's variants, without training again."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
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
from dinov2_jax.eval.protocols.linear import (
    check_classifiers,
    columns_of,
    given_head,
    given_or_earlier,
    head_settings,
)
from dinov2_jax.eval.published import paper_value
from dinov2_jax.eval.task import Context, Finding, Metric, Need, Task, Work
from dinov2_jax.features.cache import Labelled, Wanted
from dinov2_jax.heads.linear import LinearHead
from dinov2_jax.metrics.classification import corruption_errors, real_accuracy, top_accuracy

# Whose classifier is judged: the first one that this evaluation has, else a finished one.
AFTER = ("linear", "linear_cached")


def open(context: Context) -> list[Task]:
    """One task for every variant whose path is given in `config.robustness`.

    Raises:
      ConfigError, SourceError: no variant, a classifier that does not fit, or a variant that is
        not whole.
    """
    given = context.config.robustness
    names = [name for name in _VARIANTS if given[name]]
    if not names:
        raise ConfigError(
            "robustness needs at least one set, such as --config.robustness.imagenet_v2=/imagenetv2"
        )
    check_classifiers(context)
    head = given.head or context.config.head
    wanted = context.probe_features
    if head:
        wanted = dataclasses.replace(wanted, cls_blocks=given_head(context, head).blocks)
    return [
        _task(context, name, _VARIANTS[name](context, given[name]), wanted, head) for name in names
    ]


class _Part(NamedTuple):
    """Pictures of a variant; `classes` as in `Subset`, None for all 1000 in order."""

    title: str
    pictures: Source
    classes: np.ndarray | None = None


def _task(context: Context, name: str, parts: list[_Part], wanted: Wanted, path: str) -> Task:
    needs = [Need(p.title, p.pictures, wanted) for p in parts]

    def run(work: Work) -> Iterator[Finding]:
        head = given_or_earlier(context, path, work)
        judged = ((work.features(n), p.classes) for n, p in zip(needs, parts, strict=True))
        for found in _MEASURES.get(name, _top1)(head, judged):
            yield found if isinstance(found, dict) else _with_paper(context, name, found, work)
        yield {"classifier": head.name, "trained_by": next(iter(work.before), path)}

    settings = context.settings(**{part.title: part.pictures for part in parts})
    settings |= head_settings(path) if path else {}
    return Task(name, tuple(needs), settings, run, after=() if path else AFTER)


def _with_paper(context: Context, name: str, metric: Metric, work: Work) -> Metric:
    """With the paper's figure, if the classifier was trained as the paper's."""
    how = {"on_pictures": next(iter(work.before), "") == "linear"}
    of_imagenet = context.data.published == "imagenet"
    paper = paper_value(context, "linear", name if of_imagenet else "", metric.name, how)
    return dataclasses.replace(metric, published=paper)


# ------------------------------------------------------------------------------------- variants
def _v2(context: Context, path: str) -> list[_Part]:
    return [_Part("imagenet_v2", imagenet_v2(path, context.data.class_names))]


def _sketch(context: Context, path: str) -> list[_Part]:
    return [_Part("imagenet_sketch", imagenet_sketch(path, context.data.class_names))]


def _subset(name: str, context: Context, path: str) -> list[_Part]:
    wnids = context.data.class_names
    return [_Part(name, *imagenet_subset(path, wnids, min(200, len(wnids))))]


def _corrupted(context: Context, path: str) -> list[_Part]:
    wnids = context.data.class_names
    return [
        _Part(f"imagenet_c-{name}-{severity}", imagenet_c(path, name, severity, wnids))
        for name in CORRUPTIONS
        for severity in SEVERITIES
    ]


def _real(context: Context, path: str) -> list[_Part]:
    source = context.data.splits["test"]  # which must be ImageNet's validation set
    real = View(source, source.labels, source.class_names, targets=real_labels(path, source))
    return [_Part("test", real)]


_VARIANTS: dict[str, Callable[[Context, str], list[_Part]]] = {
    "imagenet_v2": _v2,
    "imagenet_real": _real,
    "imagenet_a": functools.partial(_subset, "imagenet_a"),
    "imagenet_r": functools.partial(_subset, "imagenet_r"),
    "imagenet_sketch": _sketch,
    "imagenet_c": _corrupted,
}


# ------------------------------------------------------------------------------------- measures
Judged = Iterator[tuple[Labelled, np.ndarray | None]]


def _accuracy(head: LinearHead, features: Labelled, classes: np.ndarray | None) -> float:
    logits = head.logits(columns_of(features), None if classes is None else classes.tolist())
    return top_accuracy(logits, features.labels, 1)


def _top1(head: LinearHead, judged: Judged) -> Iterator[Metric]:
    for features, classes in judged:
        yield Metric("top-1", _accuracy(head, features, classes), n=len(features.labels))


def _real_accuracy(head: LinearHead, judged: Judged) -> Iterator[Metric]:
    for features, _ in judged:
        value = real_accuracy(head.logits(columns_of(features)), features.labels)
        yield Metric("accuracy", value, n=len(features.labels))


def _mce(head: LinearHead, judged: Judged) -> Iterator[Finding]:
    """Mean corruption error: errors in percent of AlexNet's, so it may exceed 100."""
    errors, n = [], 0
    for features, classes in judged:
        errors.append(100 - _accuracy(head, features, classes))
        n += len(features.labels)
    by_corruption = np.array(errors).reshape(len(CORRUPTIONS), len(SEVERITIES))
    found = corruption_errors(dict(zip(CORRUPTIONS, by_corruption, strict=True)))
    for name in ("mCE", "mean error"):
        yield Metric(name, found[name], higher_is_better=False, n=n)
    yield {"errors": found}


_MEASURES = {"imagenet_real": _real_accuracy, "imagenet_c": _mce}
