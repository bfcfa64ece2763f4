"""Stage "embed": descriptors of every picture that is readable, not blank and not yet described.

rows.npy          int64 [m], ascending: the pictures that have a descriptor
features/copy.npy, features/subject.npy   float16 [m, D]
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dinov2_jax.curation.blocks import CurationError
from dinov2_jax.curation.descriptor import COPY, Descriptor
from dinov2_jax.curation.pool import Pool
from dinov2_jax.curation.stage import Stage, load_array, save_array
from dinov2_jax.curation.tables import read_arrays


def stage(descriptor: Descriptor) -> Stage:
    """The stage for a descriptor."""

    def settings(pool: Pool) -> Mapping[str, Any]:
        return descriptor.settings()

    def run(pool: Pool, folder: Path) -> Mapping[str, int]:
        before = pool.folder / "pictures"
        facts = read_arrays(before, ("readable", "blank"))
        own = load_array(before / "first.npy") == np.arange(pool.rows)
        rows = np.flatnonzero(facts["readable"] & ~facts["blank"] & own)
        if not len(rows):
            raise CurationError(
                f"all {int(facts['readable'].sum()):,} readable pictures are blank, so there is "
                "nothing to compare; check config.data.path"
            )
        save_array(folder / "rows.npy", rows)
        descriptor.store(pool, folder / "features", rows)
        _require_finite(pool, folder, rows)
        return {"rows": len(rows)}

    return Stage("embed", ("pictures",), settings, run, goes_on=True)


def _require_finite(pool: Pool, folder: Path, rows: np.ndarray) -> None:
    """A picture that has become unreadable would win every search with its NaN."""
    features = load_array(folder / "features" / f"{COPY}.npy")
    for start in range(0, len(rows), 1 << 16):
        bad = np.flatnonzero(~np.isfinite(features[start : start + (1 << 16)]).all(axis=1))
        if len(bad):
            name = pool.source.name(int(rows[start + bad[0]]))
            raise CurationError(
                f"{name} could be read before but has no features now; remove "
                f"{pool.folder / 'pictures'} and {folder}, and run the same command again"
            )
