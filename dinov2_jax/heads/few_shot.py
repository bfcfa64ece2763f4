"""The examples of a few-shot evaluation."""

import numpy as np


def draw_examples(labels: np.ndarray, n_per_class: int, seed: int) -> np.ndarray:
    """Rows of `n_per_class` random examples of every class, or all of a rarer one.

    Args:
      labels [n]: class numbers; the classes are those that occur.
    """
    # DINOv2: numpy draws the examples of a try, the reference torch, so single tries differ.
    rng = np.random.default_rng(seed)
    order = np.argsort(labels, kind="stable")
    ends = np.flatnonzero(np.diff(labels[order])) + 1
    rows = [rng.permutation(part)[:n_per_class] for part in np.split(order, ends)]
    return np.concatenate(rows)
