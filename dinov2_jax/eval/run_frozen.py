"""k-NN, few-shot and linear classifiers on frozen features: configuration to functions."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from dinov2_jax.config.files import ConfigError
from dinov2_jax.eval.protocols import Inputs, Outcome
from dinov2_jax.features.cache import Labelled
from dinov2_jax.heads.few_shot import few_shot
from dinov2_jax.heads.grid import RATES, Grid, Heads, best
from dinov2_jax.heads.knn import few_shot_knn, knn_accuracy, leave_one_out
from dinov2_jax.heads.linear import LinearHead
from dinov2_jax.heads.probe import STATE_FILE, ProbeSettings, train_cached
from dinov2_jax.heads.probe_data import check_classes
from dinov2_jax.heads.probe_images import train_images
from dinov2_jax.metrics.classification import mean_per_class_accuracy, top_accuracy
from dinov2_jax.parallel.mesh import make_mesh, own_mesh
from dinov2_jax.parallel.processes import is_main, main_first

HEAD_FILE = "head.safetensors"


def check_one_class(inputs: Inputs, protocol: str) -> None:
    """Raises ConfigError for pictures that have several classes."""
    assert inputs.data is not None
    if any(source.labels is None for source in inputs.data.splits.values()):
        raise ConfigError(
            f"{protocol} needs one class a picture, and these have several; use "
            "--config.protocols=logreg"
        )


def check_knn(inputs: Inputs, others: Sequence[str]) -> None:
    """Raises ConfigError for pictures of several classes, or no k."""
    check_one_class(inputs, "k-NN")
    ks = inputs.config.knn.ks
    if not ks or min(ks) < 1:
        raise ConfigError(f"config.knn.ks is {ks}, but needs one number or more, each at least 1")


def check_classifiers(inputs: Inputs, others: Sequence[str]) -> None:
    """Raises ConfigError or EvaluationError: several classes a picture, or one without any."""
    check_one_class(inputs, "a linear classifier")
    assert inputs.data is not None
    labels = inputs.data.splits["train"].labels
    assert labels is not None
    check_classes(labels, len(inputs.data.class_names))


def check_few_shot(inputs: Inputs, others: Sequence[str]) -> None:
    """Raises ConfigError or EvaluationError: as the others, or numbers of examples below 1."""
    check_knn(inputs, others)
    check_classifiers(inputs, others)
    few = inputs.config.few_shot.per_class
    if not few or min(few) < 1:
        raise ConfigError(f"config.few_shot.per_class is {few}, but needs numbers of at least 1")


# --------------------------------------------------------------------------------------- k-NN
def run_knn(inputs: Inputs) -> Outcome:
    """Weighted k-NN (reference-facts 8.2)."""
    train, settings = inputs.features("train"), inputs.config.knn
    how = {"ks": settings.ks, "temperature": settings.temperature}
    if settings.leave_one_out:  # every process the whole set on its own devices
        with jax.set_mesh(own_mesh(make_mesh())):
            found = leave_one_out(train.cls[-1], train.labels, **how)
    else:  # every process a part of the bank
        test, rows = inputs.features("test"), len(train.labels)
        own = slice(*(rows * end // jax.process_count() for end in _ends()))
        with jax.set_mesh(make_mesh()):
            found = knn_accuracy(
                train.cls[-1][own], train.labels[own], test.cls[-1], test.labels, **how
            )
    top1 = {k: value["top1"] for k, value in found.items()}
    headline = {f"top-1, k={k}": value for k, value in top1.items()}
    beyond = [k for k in settings.ks if k > len(train.labels)]
    protocol = {
        "temperature": settings.temperature,
        "ks_beyond_bank": beyond,
        "queries": "train without the asking picture" if settings.leave_one_out else "test",
    }
    curves = {"k-NN, top-1 by k": sorted(top1.items())}
    same = not settings.leave_one_out
    return Outcome(headline, {"k": found}, protocol, curves, comparable=same)


def _ends() -> tuple[int, int]:
    return jax.process_index(), jax.process_index() + 1


def run_few_shot(inputs: Inputs) -> Outcome:
    """k-NN and linear classifiers with few examples of each class, means over tries.

    Of each number of examples the best k, and of each try the best classifier of the grid.
    """
    train, test = inputs.features("train"), inputs.features("test")
    settings, labels = inputs.config.few_shot, train.labels
    probe = dataclasses.replace(
        linear_settings(inputs), batch_size=256, iterations=settings.linear_iterations
    )
    columns, classes = (columns_of(train), columns_of(test)), len(class_names(inputs))
    neighbours, linear = {}, {}
    for count in settings.per_class:
        neighbours[count] = few_shot_knn(
            *(train.cls[-1], labels, test.cls[-1], test.labels),
            n_per_class=count,
            n_tries=settings.tries,
            ks=inputs.config.knn.ks,
            temperature=inputs.config.knn.temperature,
        )
        linear[count] = few_shot(
            *(columns[0], labels, columns[1], test.labels, classes, probe),
            n_per_class=count,
            n_tries=settings.tries,
        )
    nearest = {n: max(v["top1"] for v in ks.values()) for n, ks in neighbours.items()}
    best_heads = {n: found["best"] for n, found in linear.items()}
    curves = {
        "Few-shot k-NN, top-1 by examples of a class": sorted(nearest.items()),
        "Few-shot linear, top-1 by examples of a class": sorted(best_heads.items()),
    }
    headline = {f"k-NN, {n} per class": value for n, value in nearest.items()}
    headline |= {f"linear, {n} per class": value for n, value in best_heads.items()}
    numbers = {"knn": neighbours, "linear": linear}
    protocol = {"tries": settings.tries, "linear_iterations": settings.linear_iterations}
    return Outcome(headline, numbers, protocol, curves)


# -------------------------------------------------------------------------- linear classifiers
def run_linear_cached(inputs: Inputs) -> Outcome:
    """52 linear classifiers on features without augmentation."""
    train = inputs.features("train")
    settings, classes = linear_settings(inputs), len(class_names(inputs))
    heads = train_cached(columns_of(train), train.labels, classes, settings, folder=inputs.folder)
    found = _judge(inputs, heads, settings, "features of whole pictures, no augmentation")
    return dataclasses.replace(found, comparable=False)


def run_linear(inputs: Inputs) -> Outcome:
    """52 linear classifiers on augmented pictures (reference-facts 8.3)."""
    assert inputs.data is not None
    backbone, source, data = inputs.backbone, inputs.data.splits["train"], inputs.config.data
    assert source.labels is not None
    settings = linear_settings(inputs)
    heads = train_images(
        backbone.model,
        backbone.params,
        backbone.preprocessing,
        source,
        source.labels,
        len(class_names(inputs)),
        settings,
        workers=data.workers,
        max_pixels=data.max_pixels,
        folder=inputs.folder,
        identity=inputs.identity,
    )
    return _judge(inputs, heads, settings, "random resized crops and flips")


def columns_of(split: Labelled) -> list[np.ndarray]:
    """Columns as linear classifiers read them."""
    assert split.mean_patch is not None
    return [*split.cls, split.mean_patch]


def class_names(inputs: Inputs) -> tuple[str, ...]:
    """Of the evaluation's data."""
    assert inputs.data is not None
    return inputs.data.class_names


def linear_settings(inputs: Inputs) -> ProbeSettings:
    """`config.linear`, for a backbone of at least as many blocks."""
    given, depth = inputs.config.linear, inputs.backbone.model.depth
    blocks = tuple(sorted({1, min(4, depth)}))  # fewer than 4 only in toys
    return ProbeSettings(
        grid=Grid(RATES[given.rates], blocks),
        batch_size=given.batch_size,
        iterations=given.iterations,
        seed=given.seed,
        save_every=given.save_every,
    )


def _judge(inputs: Inputs, heads: Heads, settings: ProbeSettings, trained_on: str) -> Outcome:
    """The best classifier of the validation set (or, as the reference, of the test set) on test."""
    assert inputs.data is not None
    where = "val" if "val" in inputs.data.splits else "test"
    val, test = inputs.features(where), inputs.features("test")
    winner = best(heads, columns_of(val), val.labels, class_names(inputs), inputs.identity)
    keep_head(inputs, winner)
    logits = winner.logits(columns_of(test))
    numbers = {
        "top1": top_accuracy(logits, test.labels, 1),
        "top5": top_accuracy(logits, test.labels, 5),
        "mean_per_class": mean_per_class_accuracy(logits, test.labels),
        "accuracy_by_classifier": winner.metadata["accuracy"],
    }
    protocol = {
        "classifier": winner.name,
        "chosen_on": where,
        "trained_on": trained_on,
        "iterations": settings.iterations,
        "batch_size": settings.batch_size,
        "rates": inputs.config.linear.rates,
    }
    curves = accuracy_by_rate(settings.grid, winner)
    same = settings.iterations == 12_500 and settings.batch_size == 1024
    return Outcome({"top-1": numbers["top1"]}, numbers, protocol, curves, comparable=same)


def keep_head(inputs: Inputs, winner: LinearHead) -> None:
    """Stores the chosen classifier with whose features it reads; the state of training goes."""
    with main_first():
        if is_main():
            winner.save(inputs.folder / HEAD_FILE)
            inputs.folder.joinpath(STATE_FILE).unlink(missing_ok=True)


def accuracy_by_rate(grid: Grid, winner: LinearHead) -> dict[str, list[tuple[float, float]]]:
    """Accuracy on validation of each kind of input, by the place of the rate in its list."""
    values, rates = list(winner.metadata["accuracy"].values()), len(grid.rates)
    return {
        f"Linear, {kind.blocks} block{'s' * (kind.blocks > 1)}"
        f"{' and mean patch' if kind.avgpool else ''}, top-1 by number of the learning rate": [
            (place + 1, value)
            for place, value in enumerate(values[rates * number : rates * (number + 1)])
        ]
        for number, kind in enumerate(grid.kinds)
    }
