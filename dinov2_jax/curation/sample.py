"""Stage "sample": which pictures are trained on, how often, and why.

part-*.parquet   row, repeat, reason: kept, sample:<query set>, cluster:<query set> or balanced
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dinov2_jax.curation.balance import pick, quotas
from dinov2_jax.curation.blocks import CurationError
from dinov2_jax.curation.hierarchy import leaf_shares
from dinov2_jax.curation.levels import read_levels
from dinov2_jax.curation.pool import Pool
from dinov2_jax.curation.stage import Stage
from dinov2_jax.curation.tables import read_arrays


def stage(used: tuple[str, ...]) -> Stage:
    """The stage for a run that uses these stages."""
    reads = tuple(name for name in ("dedup", "exclude", "cluster", "retrieve") if name in used)

    def settings(pool: Pool) -> Mapping[str, Any]:
        return {"target": pool.config.curate.target, "seed": pool.config.seed}

    def run(pool: Pool, folder: Path) -> Mapping[str, int]:
        if "retrieve" in reads:
            table = _retrieved(pool)
        elif pool.config.curate.target and "cluster" in reads:
            table = _balanced(pool)
        else:
            table = _kept(pool, reads)
        tables = pool.tables
        tables.write(table.select("row", "repeat", "reason"), folder, ["row"])
        repeat = read_arrays(folder, ("repeat",))["repeat"]
        if not len(repeat):
            raise CurationError(
                "no picture is left to train on; look at the counts in the stages' stage.json, and "
                "loosen the thresholds or the queries"
            )
        return {"rows": len(repeat), "with_repeats": int(repeat.sum())}

    return Stage("sample", reads, settings, run)


def kept_rows(pool: Pool, reads: tuple[str, ...]) -> np.ndarray:
    """Rows that dedup keeps and no reference excludes, int64 ascending."""
    tables = pool.tables
    dedup = tables.read(pool.folder / "dedup")
    kept = dedup.where(dedup["kept"]).select("row", "component")
    if "exclude" in reads:
        dropped = tables.read(pool.folder / "exclude").select("component").distinct()
        kept = tables.join(kept, dropped, "component", "anti")
    return tables.arrays(kept.select("row"), ["row"])["row"]


def _kept(pool: Pool, reads: tuple[str, ...]) -> Any:
    rows = _at_most_target(pool, kept_rows(pool, reads))
    return _table(pool, rows, np.full(len(rows), "kept", object))


def _at_most_target(pool: Pool, rows: np.ndarray) -> np.ndarray:
    """`config.curate.target` of the rows, or all of them without a target.

    Raises:
      CurationError: there are fewer.
    """
    target = pool.config.curate.target
    if target > len(rows):
        raise CurationError(
            f"config.curate.target={target:,} is {target - len(rows):,} more than the "
            f"{len(rows):,} pictures that are left; lower it, or add pictures"
        )
    return pick(rows, target, pool.config.seed) if target else rows


def _balanced(pool: Pool) -> Any:
    """The same number of pictures from every cluster of every level, as far as they reach."""
    tables, folder, target = pool.tables, pool.folder / "cluster", pool.config.curate.target
    found = read_arrays(folder, ("row", "cluster"))
    levels = read_levels(folder)
    _at_most_target(pool, found["row"])
    given = leaf_shares(levels, target, quotas)
    clusters = len(given)
    quota = tables.of({"cluster": np.arange(clusters, dtype=np.int32), "quota": given})
    chosen = tables.sample(tables.of(found), "cluster", quota, pool.config.seed)
    rows = tables.arrays(chosen.select("row"), ["row"])["row"]
    return _table(pool, rows, np.full(len(rows), "balanced", object))


def _retrieved(pool: Pool) -> Any:
    """Every retrieved picture once, with the first way in which it was found."""
    tables = pool.tables
    found = tables.read(pool.folder / "retrieve")
    arrays = tables.arrays(found.select("row", "query_set", "how"), ["row", "query_set", "how"])
    rows, first = np.unique(arrays["row"], return_index=True)
    reason = np.empty(len(rows), object)
    reason[:] = [f"{arrays['how'][at]}:{arrays['query_set'][at]}" for at in first]
    chosen = np.isin(rows, _at_most_target(pool, rows))
    return _table(pool, rows[chosen], reason[chosen])


def _table(pool: Pool, rows: np.ndarray, reason: np.ndarray) -> Any:
    repeat = np.ones(len(rows), np.int32)
    return pool.tables.of({"row": rows, "repeat": repeat, "reason": reason})
