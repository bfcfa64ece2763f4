"""Linear classifiers on frozen features: 52 trained together, or one that is given.

`linear` trains on augmented pictures, as the reference does (FB dinov2/eval/linear.py), and
`linear_cached` on stored features of whole pictures. With `config.head` either one evaluates that
classifier (ours, a released dinov2_*_linear_head.pth, or one of transformers) without training.
"""

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dinov2_jax.config.files import ConfigError
from dinov2_jax.eval.protocols.knn import check_one_class
from dinov2_jax.eval.published import with_paper
from dinov2_jax.eval.task import Context, Curve, Finding, Metric, Task, Work
from dinov2_jax.features.cache import Labelled
from dinov2_jax.heads.grid import RATES, Grid, Heads, best
from dinov2_jax.heads.linear import LinearHead, load_head
from dinov2_jax.heads.probe import STATE_FILE, ProbeSettings, train_cached
from dinov2_jax.heads.probe_data import check_classes
from dinov2_jax.heads.probe_images import train_images
from dinov2_jax.metrics.classification import mean_per_class_accuracy, top_accuracy
from dinov2_jax.parallel.processes import is_main, main_first

HEAD_FILE = "head.safetensors"


def open(context: Context, *, on_pictures: bool = True) -> list[Task]:
    """Trains on augmented pictures, or on stored features; judges a given head.

    Raises:
      ConfigError, EvaluationError: several classes a picture, a class without pictures, or a given
        head that does not fit.
    """
    return [_given(context) if context.config.head else _trained(context, on_pictures)]


def check_classifiers(context: Context) -> None:
    """Raises ConfigError or EvaluationError: several classes a picture, or one without pictures."""
    check_one_class(context.data, "a linear classifier")
    check_grid(context)
    labels = context.data.splits["train"].labels
    assert labels is not None
    check_classes(labels, len(context.data.class_names))


def check_grid(context: Context) -> None:
    """Raises ConfigError where `config.linear` leaves no classifier to train."""
    for field in ("blocks", "avgpool"):
        if not context.config.linear[field]:
            raise ConfigError(
                f"config.linear.{field} is (), so there is nothing to train; give one value or "
                "more, such as (1,) blocks with avgpool (False,)"
            )


# --------------------------------------------------------------------------------- trained here
def _trained(context: Context, on_pictures: bool) -> Task:
    check_classifiers(context)
    data, wanted = context.data, context.probe_features
    train = context.need("train", None if on_pictures else wanted)
    val, test = (context.need(split, wanted) for split in (data.chosen_on, "test"))
    identity = context.identity(data.splits["train"])

    def run(work: Work) -> Iterator[Finding]:
        probe, classes = probe_settings(context), len(data.class_names)
        if on_pictures:
            heads = _train_on_pictures(context, probe, work.folder)
        else:
            features = work.features(train)
            columns = columns_of(features)
            heads = train_cached(columns, features.labels, classes, probe, folder=work.folder)
        head = choose(heads, work.features(val), data.class_names, identity, work.folder)
        metrics = judge(head, work.features(test), data.chosen_on)
        how = {"on_pictures": on_pictures}
        learned = len(data.splits["train"])
        yield from with_paper(context, metrics, "linear", data.published, how, train=learned)
        trained_on = "random resized crops and flips" if on_pictures else "whole pictures, stored"
        yield {"chosen_on": data.chosen_on, "trained_on": trained_on}
        yield from rivals(head, probe.grid, "Linear classifiers")

    settings = context.settings("linear", **data.splits)
    return Task(data.name, (train, val, test), settings, run)


def _train_on_pictures(context: Context, probe: ProbeSettings, folder: Path) -> Heads:
    backbone, source = context.backbone, context.data.splits["train"]
    assert source.labels is not None
    return train_images(
        backbone.model,
        backbone.params,
        backbone.preprocessing,
        source,
        source.labels,
        len(context.data.class_names),
        probe,
        folder=folder,
        identity=context.identity(source),
        **context.reading,
    )


def probe_settings(context: Context) -> ProbeSettings:
    """`config.linear`, for a backbone of at least as many blocks."""
    given, depth = context.config.linear, context.backbone.model.depth
    blocks = tuple(sorted({min(blocks, depth) for blocks in given.blocks}))
    grid = Grid(RATES[given.rates], blocks, tuple(sorted(set(given.avgpool))))
    how = {name: given[name] for name in ("batch_size", "iterations", "seed", "save_every")}
    return ProbeSettings(grid, **how)


def columns_of(split: Labelled) -> list[np.ndarray]:
    """Columns as linear classifiers read them."""
    assert split.mean_patch is not None
    return [*split.cls, split.mean_patch]


def choose(
    heads: Heads, val: Labelled, class_names: tuple[str, ...], identity: str, folder: Path
) -> LinearHead:
    """The best head of a split, stored in the folder; the state of training goes."""
    head = best(heads, columns_of(val), val.labels, class_names, identity)
    with main_first():
        if is_main():
            head.save(folder / HEAD_FILE)
            folder.joinpath(STATE_FILE).unlink(missing_ok=True)
    return head


def judge(head: LinearHead, test: Labelled, chosen_on: str = "") -> Iterator[Metric]:
    """Accuracies of a head on features."""
    return accuracies(head.logits(columns_of(test)), test.labels, chosen_on)


def accuracies(logits: np.ndarray, labels: np.ndarray, chosen_on: str = "") -> Iterator[Metric]:
    """top-1, top-5 and the mean per class of logits [n, K]."""
    values = {f"top-{top}": top_accuracy(logits, labels, top) for top in (1, 5)}
    values["mean per class"] = mean_per_class_accuracy(logits, labels)
    for name, value in values.items():
        yield Metric(name, value, n=len(labels), chosen_on=chosen_on)


def rivals(head: LinearHead, grid: Grid, title: str) -> Iterator[Finding]:
    """Accuracy of all classifiers where the head was chosen: a curve by rate, a line an input."""
    accuracy, rates = head.metadata["accuracy"], grid.rates
    values = np.reshape(list(accuracy.values()), (len(grid.kinds), len(rates))).tolist()
    lines = {
        _input(*kind): list(zip(rates, row, strict=True))
        for kind, row in zip(grid.kinds, values, strict=True)
    }
    chosen = _input(head.blocks, head.avgpool), head.metadata["rate"]
    yield Curve(f"{title}, top-1", "learning rate for 256 pictures", lines, chosen, log_x=True)
    yield {"classifier": head.name, "accuracy_by_classifier": accuracy}


def _input(blocks: int, avgpool: bool) -> str:
    return f"{blocks} block{'s' * (blocks > 1)}{' and mean patch' * avgpool}"


# --------------------------------------------------------------------------------------- given
def _given(context: Context) -> Task:
    """Evaluates `config.head`; the train split only tells the classes."""
    data, head = context.data, given_head(context, context.config.head)
    check_one_class(data, "a linear classifier")
    wanted = dataclasses.replace(context.probe_features, cls_blocks=head.blocks)
    test = context.need("test", wanted)

    def run(work: Work) -> Iterator[Finding]:
        yield from judge(head, work.features(test))
        yield {"classifier": head.name or str(context.config.head), "trained_here": False}

    settings = context.settings(test=data.splits["test"]) | head_settings(context.config.head)
    return Task(data.name, (test,), settings, run)


def given_head(context: Context, path: str) -> LinearHead:
    """Reads a classifier, and compares it with the weights and the classes of the data.

    Raises:
      ConfigError: it is of other weights or sizes, or has other classes.
    """
    head, classes = load_head(path, context.backbone.model.dim), context.data.class_names
    if head.identity and not head.identity.startswith(context.weights):
        raise ConfigError(
            f"the linear classifier {path} was trained on other weights or sizes; name one of "
            "these, or train one with --config.protocols=linear"
        )
    if len(head.bias) != len(classes):
        raise ConfigError(
            f"the linear classifier {path} has {len(head.bias)} classes and the data "
            f"{len(classes)}; evaluate it on data with the classes it was trained on"
        )
    # Published heads for ImageNet name its classes in words, and the set has WordNet ids.
    words = context.data.published == "imagenet" and not {*classes} & {*head.class_names}
    odd = [(ours, own) for ours, own in zip(classes, head.class_names, strict=False) if ours != own]
    if odd and not words:
        raise ConfigError(
            f"the linear classifier {path} has the class {odd[0][1]!r} where the data has "
            f"{odd[0][0]!r}; evaluate it on data with the classes it was trained on"
        )
    return head


def head_settings(path: str) -> dict[str, str]:
    """The content of a given head, which tells one from another wherever they lie."""
    content = Path(path).expanduser().read_bytes()
    return {"head": hashlib.blake2b(content, digest_size=8).hexdigest()}


def given_or_earlier(context: Context, path: str, work: Work) -> LinearHead:
    """The named head, or that of the linear protocol that ran before."""
    if path:
        return given_head(context, path)
    return load_head(next(iter(work.before.values())) / HEAD_FILE)
