"""The chosen linear classifier on ImageNet's variants, without training again."""

from collections.abc import Callable

import numpy as np

from dinov2_jax.configuration import ConfigError
from dinov2_jax.data.sources import Source
from dinov2_jax.eval.datasets.imagenet_variants import (
    CORRUPTIONS,
    SEVERITIES,
    imagenet_c,
    imagenet_sketch,
    imagenet_subset,
    imagenet_v2,
    real_labels,
)
from dinov2_jax.eval.heads import Chosen, load_chosen
from dinov2_jax.eval.metrics import corruption_errors, real_accuracy, top_accuracy
from dinov2_jax.eval.protocols import Inputs, Outcome
from dinov2_jax.eval.run_frozen import HEAD_FILE, columns_of


def run_robustness(inputs: Inputs) -> Outcome:
    """Every variant whose path is given in `config.robustness`.

    Raises:
      ConfigError: no variant, or no linear classifier to judge.
    """
    paths = {name: path for name, path in inputs.config.robustness.items() if path}
    head_path = paths.pop("head", "")
    if not paths:
        raise ConfigError(
            "robustness needs at least one set, such as --config.robustness.imagenet_v2=/imagenetv2"
        )
    head = _head(inputs, head_path)
    measured = {name: _MEASURES[name](inputs, head, path) for name, path in paths.items()}
    headline = {f"{name}, {m}": v[m] for name, v in measured.items() for m in list(v)[:1]}
    published = {figure: ("linear", figure.partition(",")[0]) for figure in headline}
    return Outcome(headline, measured, {"classifier": head.name}, published=published)


def _head(inputs: Inputs, path: str) -> Chosen:
    places = [inputs.workdir / name / HEAD_FILE for name in ("linear", "linear_cached")]
    for place in [path] if path else places:
        try:
            return load_chosen(place)
        except FileNotFoundError:
            continue
    raise ConfigError(
        f"no linear classifier at {path or places[0]}; evaluate linear before, as in "
        "--config.protocols=linear,robustness, or name one with --config.robustness.head"
    )


def _top1(
    inputs: Inputs, head: Chosen, source: Source, title: str, classes: np.ndarray | None = None
) -> float:
    features = inputs.features_of(source, title)
    logits = head.logits(columns_of(features), None if classes is None else classes.tolist())
    return top_accuracy(logits, features.labels, 1)


def _wnids(inputs: Inputs) -> tuple[str, ...]:
    assert inputs.data is not None
    return inputs.data.class_names


def _v2(inputs: Inputs, head: Chosen, path: str) -> dict[str, float]:
    source = imagenet_v2(path, _wnids(inputs))
    return {"top-1": _top1(inputs, head, source, "imagenet_v2")}


def _sketch(inputs: Inputs, head: Chosen, path: str) -> dict[str, float]:
    source = imagenet_sketch(path, _wnids(inputs))
    return {"top-1": _top1(inputs, head, source, "imagenet_sketch")}


def _subset(name: str) -> Callable[[Inputs, Chosen, str], dict[str, float]]:
    def measure(inputs: Inputs, head: Chosen, path: str) -> dict[str, float]:
        count = min(200, len(_wnids(inputs)))
        source, classes = imagenet_subset(path, _wnids(inputs), count)
        return {"top-1": _top1(inputs, head, source, name, classes)}

    return measure


def _real(inputs: Inputs, head: Chosen, path: str) -> dict[str, float]:
    """On the test split, which must be ImageNet's validation set."""
    assert inputs.data is not None
    source = inputs.data.splits["test"]
    features = inputs.features_of(source, "test", keep_unreadable=True)
    readable = np.isfinite(features.cls[-1]).all(axis=1)
    logits = head.logits([column[readable] for column in columns_of(features)])
    return {"accuracy": real_accuracy(logits, real_labels(path, source)[readable])}


def _corrupted(inputs: Inputs, head: Chosen, path: str) -> dict[str, float]:
    errors = {}
    for corruption in CORRUPTIONS:
        found = []
        for severity in SEVERITIES:
            source = imagenet_c(path, corruption, severity, _wnids(inputs))
            title = f"imagenet_c-{corruption}-{severity}"
            found.append(100 - _top1(inputs, head, source, title))
        errors[corruption] = np.array(found)
    return corruption_errors(errors)


_MEASURES: dict[str, Callable[[Inputs, Chosen, str], dict[str, float]]] = {
    "imagenet_v2": _v2,
    "imagenet_real": _real,
    "imagenet_a": _subset("imagenet_a"),
    "imagenet_r": _subset("imagenet_r"),
    "imagenet_sketch": _sketch,
    "imagenet_c": _corrupted,
}
