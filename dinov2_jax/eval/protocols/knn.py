"""Weighted k-NN on frozen features (FB dinov2/eval/knn.py)."""

from collections.abc import Iterator

import jax

from dinov2_jax.config.files import ConfigError
from dinov2_jax.eval.data import Data
from dinov2_jax.eval.published import paper_value
from dinov2_jax.eval.task import Context, Curve, Finding, Metric, Task, Work
from dinov2_jax.features.cache import Labelled
from dinov2_jax.heads.knn import Accuracies, knn_accuracy, leave_one_out
from dinov2_jax.parallel.mesh import make_mesh, own_mesh

NAMES = {"top1": "top-1", "top5": "top-5", "mean_per_class": "mean per class"}


def open(context: Context) -> list[Task]:
    """k-NN from train to test, or within train (`knn.leave_one_out`).

    Raises:
      ConfigError: pictures of several classes, or no k.
    """
    check_one_class(context.data, "k-NN")
    check_ks(context)
    data = context.data
    splits = ("train",) if context.config.knn.leave_one_out else ("train", "test")
    needs = {split: context.need(split, context.cls_as_evaluated) for split in splits}

    def run(work: Work) -> Iterator[Finding]:
        features = [work.features(need) for need in needs.values()]
        train, test = features[0], features[-1]
        found = _judge(context, train, test)
        for name, read_as in NAMES.items():
            for k, measured in found.items():
                yield Metric(f"{read_as}, k={k}", measured[name], n=len(test.labels))
        top1 = [(float(k), values["top1"]) for k, values in sorted(found.items())]
        yield Curve("k-NN, top-1", "k", {"": top1}, log_x=True)
        yield _notes(context, len(train.labels), len(test.labels))

    sources = {split: data.splits[split] for split in splits}
    return [Task(data.name, tuple(needs.values()), context.settings("knn", **sources), run)]


def check_one_class(data: Data, protocol: str) -> None:
    """Raises ConfigError for pictures that have several classes."""
    if any(source.labels is None for source in data.splits.values()):
        raise ConfigError(
            f"{protocol} needs one class a picture, and these have several; use "
            "--config.protocols=logreg"
        )


def check_ks(context: Context) -> None:
    """Raises ConfigError for no k, or one below 1."""
    ks = context.config.knn.ks
    if not ks or min(ks) < 1:
        raise ConfigError(f"config.knn.ks is {ks}, but needs one number or more, each at least 1")


def _judge(context: Context, train: Labelled, test: Labelled) -> Accuracies:
    """Accuracies of each k on test, or within train (then test is not read)."""
    settings, rows = context.config.knn, len(train.labels)
    how = {"ks": settings.ks, "temperature": settings.temperature}
    if settings.leave_one_out:  # every process searches the whole set on its own devices
        with jax.set_mesh(own_mesh(make_mesh())):
            return leave_one_out(train.cls[-1], train.labels, **how)
    # Every process holds its share of the bank.
    ends = (jax.process_index(), jax.process_index() + 1)
    own = slice(*(rows * end // jax.process_count() for end in ends))
    with jax.set_mesh(make_mesh()):
        bank = train.cls[-1][own], train.labels[own]
        return knn_accuracy(*bank, test.cls[-1], test.labels, **how)


def _notes(context: Context, bank: int, queries: int) -> dict[str, object]:
    settings = context.config.knn
    notes: dict[str, object] = {
        "temperature": settings.temperature,
        "ks_beyond_bank": [k for k in settings.ks if k > bank],
        "queries": "train, each without itself" if settings.leave_one_out else "test",
    }
    name, counts = context.data.published, {"train": bank, "test": queries}
    paper = paper_value(context, "knn", name, "top-1", **counts)
    # The paper names no k, so its figure stands beside none of ours.
    return notes if paper is None else notes | {"paper's top-1, which names no k": paper}
