"""k-NN and linear classifiers with few shots of each class, means over tries.

The k and the linear head are chosen by their mean over all tries, on val where there is one;
otherwise on test, and results say so.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping

import numpy as np

from dinov2_jax.config.files import ConfigError
from dinov2_jax.eval.protocols.knn import check_ks
from dinov2_jax.eval.protocols.linear import check_classifiers, columns_of, probe_settings
from dinov2_jax.eval.task import Context, Curve, Finding, Metric, Task, Work
from dinov2_jax.eval.trials import Trials
from dinov2_jax.features.cache import Labelled
from dinov2_jax.heads.grid import accuracies
from dinov2_jax.heads.knn import knn_accuracy
from dinov2_jax.heads.probe import train_cached
from dinov2_jax.heads.probe_data import draw_examples
from dinov2_jax.parallel.processes import is_main
from dinov2_jax.run.progress import Progress

BATCH_SIZE = 256  # of the linear classifiers
# Top-1 in percent of each classifier: {"knn": {k: ...}, "linear": {name: ...}} of each split.
Try = dict[str, dict[str, dict[str, float]]]


def open(context: Context) -> list[Task]:
    """All numbers of shots in `config.few_shot.per_class`.

    Raises:
      ConfigError, EvaluationError: as k-NN and linear classifiers; numbers of shots below 1.
    """
    check_ks(context)
    check_classifiers(context)
    settings, data = context.config.few_shot, context.data
    if not settings.per_class or min(settings.per_class) < 1:
        raise ConfigError(
            f"config.few_shot.per_class is {settings.per_class}, but needs numbers of at least 1"
        )
    needs = {split: context.need(split, context.probe_features) for split in data.splits}
    keys = context.settings("few_shot", "knn", "linear", **data.splits)

    def run(work: Work) -> Iterator[Finding]:
        splits = {split: work.features(need) for split, need in needs.items()}
        lines: dict[str, list[tuple[float, float]]] = {"k-NN": [], "linear": []}
        chosen, n = {}, len(splits["test"].labels)
        for shots, tries in _all_tries(context, splits, work, keys):
            for line, kind in (("k-NN", "knn"), ("linear", "linear")):
                name, value = _choose(tries, kind, data.chosen_on)
                chosen[f"{line}, {shots} per class"] = name
                lines[line].append((shots, value))
                yield Metric(f"{line}, {shots} per class", value, n=n, chosen_on=data.chosen_on)
        yield Curve("Few shots, top-1", "shots of a class", lines, log_x=True)
        yield {"tries": settings.tries, "chosen_on": data.chosen_on, "chosen": chosen}

    return [Task(data.name, tuple(needs.values()), keys, run)]


def _all_tries(
    context: Context, splits: Mapping[str, Labelled], work: Work, keys: Mapping[str, object]
) -> Iterator[tuple[int, list[Try]]]:
    """The tries of each number of shots; those that a killed evaluation finished are read."""
    settings = context.config.few_shot
    trials = Trials(work.folder / "trials.json", keys)
    progress = Progress(len(settings.per_class) * settings.tries, unit="try") if is_main() else None
    for place, shots in enumerate(settings.per_class):
        tries: list[Try] = []
        for seed in range(settings.tries):
            compute = functools.partial(_try, context, splits, shots, seed)
            tries.append(trials.get(f"{shots} per class, try {seed}", compute))
            if progress:
                best = max(tries[-1]["test"]["linear"].values())
                done = place * settings.tries + len(tries)
                progress.update(done, shots=shots, best_linear=best)
        yield shots, tries
    if progress:
        progress.close()
    trials.close()


def _try(context: Context, splits: Mapping[str, Labelled], shots: int, seed: int) -> Try:
    """Draws shots, and judges every k up to their number and every linear head on val and test."""
    train, config = splits["train"], context.config
    rows = np.sort(draw_examples(train.labels, shots, seed))
    columns = [np.asarray(column[rows], np.float32) for column in columns_of(train)]
    cls, labels = train.cls[-1][rows], train.labels[rows]
    steps = {"batch_size": BATCH_SIZE, "iterations": config.few_shot.linear_iterations}
    probe = dataclasses.replace(probe_settings(context), **steps)
    heads = train_cached(columns, labels, len(context.data.class_names), probe, quiet=True)
    ks = sorted(k for k in {*config.knn.ks, shots} if k <= shots)
    how = {"ks": ks, "temperature": config.knn.temperature}
    found: Try = {}
    for split, judged in splits.items():
        if split != "train":
            by_k = knn_accuracy(cls, labels, judged.cls[-1], judged.labels, **how)
            top1 = {str(k): values["top1"] for k, values in by_k.items()}
            linear = accuracies(heads, columns_of(judged), judged.labels)
            found[split] = {"knn": top1, "linear": linear}
    return found


def _choose(tries: list[Try], kind: str, chosen_on: str) -> tuple[str, float]:
    """The classifier of the best mean on one split, and its mean on test."""

    def mean(split: str, name: str) -> float:
        return float(np.mean([found[split][kind][name] for found in tries]))

    best = max(tries[0][chosen_on][kind], key=functools.partial(mean, chosen_on))
    return best, mean("test", best)
