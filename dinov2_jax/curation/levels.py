"""Levels of clusters on disk: three arrays each, the finest level first."""

from pathlib import Path

import numpy as np

from dinov2_jax.curation.hierarchy import Level
from dinov2_jax.curation.stage import load_array, save_array


def read_levels(folder: Path) -> list[Level]:
    """The levels that are whole on disk, from the finest."""
    found: list[Level] = []
    while (folder / f"distance-{len(found)}.npy").exists():  # the last file of a level
        names = ("centroids", "label", "distance")
        arrays = (np.asarray(load_array(folder / f"{n}-{len(found)}.npy")) for n in names)
        found.append(Level(*arrays))
    return found


def save_level(folder: Path, number: int, level: Level) -> None:
    for name, values in level._asdict().items():
        save_array(folder / f"{name}-{number - 1}.npy", values)
    print(f"level {number}: {len(level.centroids):,} clusters", flush=True)
