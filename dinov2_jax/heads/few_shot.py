"""Few-shot evaluation: the examples of each try, and linear classifiers trained on them."""

import numpy as np
from jax.sharding import Mesh

from dinov2_jax.heads.grid import accuracies
from dinov2_jax.heads.linear import HeadColumns
from dinov2_jax.heads.probe import ProbeSettings, train_cached
from dinov2_jax.heads.probe_data import check_training


def draw_examples(labels: np.ndarray, n_per_class: int, seed: int) -> np.ndarray:
    """Draws the rows of `n_per_class` random examples of every class, or all of a rarer one.

    Args:
      labels [n]: class numbers; the classes are those that occur.
    """
    # DINOv2: numpy draws the examples of a try, the reference torch, so single tries differ.
    rng = np.random.default_rng(seed)
    order = np.argsort(labels, kind="stable")
    ends = np.flatnonzero(np.diff(labels[order])) + 1
    rows = [rng.permutation(part)[:n_per_class] for part in np.split(order, ends)]
    return np.concatenate(rows)


def few_shot(
    columns: HeadColumns,
    labels: np.ndarray,
    val_columns: HeadColumns,
    val_labels: np.ndarray,
    classes: int,
    settings: ProbeSettings,
    *,
    n_per_class: int,
    n_tries: int = 1,
    mesh: Mesh | None = None,
) -> dict[str, float]:
    """Trains the probe on `n_per_class` random pictures of every class; averages over tries.

    Try t draws its pictures from seed t, as few-shot k-NN does. A class with fewer gives all.

    Returns:
      Top-1 on `val_columns`, in percent: the mean over tries of every head, by its name, and
      "best": the mean of the best head of each try.
    """
    check_training(columns, labels, classes, settings.grid)
    tries: list[dict[str, float]] = []
    for seed in range(n_tries):
        rows = np.sort(draw_examples(labels, n_per_class, seed))
        shots = [np.asarray(column[rows], np.float32) for column in columns]
        heads = train_cached(shots, labels[rows], classes, settings, mesh=mesh, quiet=True)
        found = accuracies(heads, val_columns, val_labels)
        tries.append(found | {"best": max(found.values())})
    return {name: float(np.mean([found[name] for found in tries])) for name in tries[0]}
