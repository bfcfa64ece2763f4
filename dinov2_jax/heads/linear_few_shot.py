"""Linear probe on a few pictures of every class, from cached features."""

import numpy as np
from jax.sharding import Mesh

from dinov2_jax.heads.few_shot import draw_examples
from dinov2_jax.heads.grid import Columns, accuracies
from dinov2_jax.heads.probe import Settings, train_cached
from dinov2_jax.heads.training_set import check_training


def few_shot(
    columns: Columns,
    labels: np.ndarray,
    val_columns: Columns,
    val_labels: np.ndarray,
    classes: int,
    settings: Settings,
    *,
    n_per_class: int,
    n_tries: int = 1,
    mesh: Mesh | None = None,
) -> dict[str, float]:
    """The probe on `n_per_class` random pictures of every class, averaged over tries.

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
