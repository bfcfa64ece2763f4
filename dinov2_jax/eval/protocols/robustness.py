"""The chosen linear classifier on ImageNet's variants, without training again."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from dinov2_jax.config.files import ConfigError
from dinov2_jax.data.sources.source import Source
from dinov2_jax.data.sources.views import View
from dinov2_jax.datasets import imagenet_variants as variants
from dinov2_jax.eval.data import Data
from dinov2_jax.eval.protocols.linear import (
    check_classifiers,
    columns_of,
    given_head,
    given_or_earlier,
    head_settings,
)
from dinov2_jax.eval.published import with_paper
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
    names = [name for name in _MEASURES if given[name]]
    if not names:
        raise ConfigError(
            "robustness needs at least one set, such as --config.robustness.imagenet_v2=/imagenetv2"
        )
    check_classifiers(context)
    head = given.head or context.config.head
    wanted = context.probe_features
    if head:
        wanted = dataclasses.replace(wanted, cls_blocks=given_head(context, head).blocks)
    return [_task(context, name, given[name], wanted, head) for name in names]


class _Part(NamedTuple):
    """Pictures of a variant; `classes` as in `Subset`, None for all 1000 in order."""

    title: str
    pictures: Source
    classes: np.ndarray | None = None


def _task(context: Context, name: str, path: str, wanted: Wanted, given: str) -> Task:
    parts = _parts(name, path, context.data)
    needs = [Need(part.title, part.pictures, wanted) for part in parts]

    def run(work: Work) -> Iterator[Finding]:
        head, trained_by = given_or_earlier(context, given, work), next(iter(work.before), given)
        judged = ((work.features(n), p.classes) for n, p in zip(needs, parts, strict=True))
        findings = _MEASURES[name](head, judged)
        # The paper's figure stands beside a classifier that was trained as the paper's.
        data = name if context.data.published == "imagenet" else ""
        how = {"on_pictures": next(iter(work.before), "") == "linear"}
        learned = len(context.data.splits["train"])
        yield from with_paper(context, findings, "linear", data, how, train=learned)
        yield {"classifier": head.name, "trained_by": trained_by}

    settings = context.settings(**{part.title: part.pictures for part in parts})
    settings |= head_settings(given) if given else {}
    return Task(name, tuple(needs), settings, run, after=() if given else AFTER)


def _parts(name: str, path: str, data: Data) -> list[_Part]:
    """The pictures of a variant."""
    wnids = data.class_names
    match name:
        case "imagenet_v2":
            return [_Part(name, variants.imagenet_v2(path, wnids))]
        case "imagenet_sketch":
            return [_Part(name, variants.imagenet_sketch(path, wnids))]
        case "imagenet_real":
            source = data.splits["test"]  # which must be ImageNet's validation set
            targets = variants.real_labels(path, source)
            return [_Part("test", View(source, source.labels, source.class_names, targets=targets))]
        case "imagenet_c":
            return [
                _Part(f"{name}-{kind}-{severity}", variants.imagenet_c(path, kind, severity, wnids))
                for kind in variants.CORRUPTIONS
                for severity in variants.SEVERITIES
            ]
        case _:  # A and R
            return [_Part(name, *variants.imagenet_subset(path, wnids, min(200, len(wnids))))]


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
    by_corruption = np.reshape(errors, (len(variants.CORRUPTIONS), len(variants.SEVERITIES)))
    found = corruption_errors(dict(zip(variants.CORRUPTIONS, by_corruption, strict=True)))
    for name in ("mCE", "mean error"):
        yield Metric(name, found[name], higher_is_better=False, n=n)
    yield {"errors": found}


_MEASURES: dict[str, Callable[[LinearHead, Judged], Iterator[Finding]]] = {
    "imagenet_v2": _top1,
    "imagenet_real": _real_accuracy,
    "imagenet_a": _top1,
    "imagenet_r": _top1,
    "imagenet_sketch": _top1,
    "imagenet_c": _mce,
}
