"""k-NN and linear classifiers with few shots of each class, means over tries.

The k and the linear head are chosen by their mean over all tries, on val where there is one;
otherwise on test, and results say so.
"""

import dataclasses
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
from dinov2_jax.heads.probe import ProbeSettings, train_cached
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
    done = 0
    for shots in settings.per_class:
        tries: list[Try] = []
        for seed in range(settings.tries):
            name = f"{shots} per class, try {seed}"
            tries.append(trials.get(name, lambda s=shots, t=seed: _try(context, splits, s, t)))
            done += 1
            if progress:
                best = max(tries[-1]["test"]["linear"].values())
                progress.update(done, shots=shots, best_linear=best)
        yield shots, tries
    if progress:
        progress.close()
    trials.close()


def _try(context: Context, splits: Mapping[str, Labelled], shots: int, seed: int) -> Try:
    """Draws shots, and judges every k and every linear classifier on val and test."""
    train = splits["train"]
    rows = np.sort(draw_examples(train.labels, shots, seed))
    columns = [np.asarray(column[rows], np.float32) for column in columns_of(train)]
    classes = len(context.data.class_names)
    heads = train_cached(columns, train.labels[rows], classes, _probe(context), quiet=True)
    judged = {split: found for split, found in splits.items() if split != "train"}
    return {
        split: {
            "knn": _knn(context, train, rows, found, shots),
            "linear": accuracies(heads, columns_of(found), found.labels),
        }
        for split, found in judged.items()
    }


def _probe(context: Context) -> ProbeSettings:
    iterations = context.config.few_shot.linear_iterations
    probe = probe_settings(context)
    return dataclasses.replace(probe, batch_size=BATCH_SIZE, iterations=iterations)


def _knn(
    context: Context, train: Labelled, rows: np.ndarray, judged: Labelled, shots: int
) -> dict[str, float]:
    """Top-1 by k, for each k up to the number of shots, and that number itself."""
    settings = context.config.knn
    found = knn_accuracy(
        train.cls[-1][rows],
        train.labels[rows],
        judged.cls[-1],
        judged.labels,
        ks=sorted(k for k in {*settings.ks, shots} if k <= shots),
        temperature=settings.temperature,
    )
    return {str(k): values["top1"] for k, values in found.items()}


def _choose(tries: list[Try], kind: str, chosen_on: str) -> tuple[str, float]:
    """The classifier of the best mean on one split, and its mean on test."""
    means = {
        split: {
            name: np.mean([t[split][kind][name] for t in tries]) for name in tries[0][split][kind]
        }
        for split in (chosen_on, "test")
    }
    name = max(means[chosen_on], key=lambda name: means[chosen_on][name])
    return name, float(means["test"][name])
