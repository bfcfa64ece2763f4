"""Each verb of `curation.tables` in plain numpy, slow and obvious, for the tests."""

from collections.abc import Sequence

import numpy as np

from dinov2_jax.curation.balance import keys

Columns = dict[str, np.ndarray]


def best_of_group(table: Columns, by: str, order: Sequence[tuple[str, bool]], n: int) -> Columns:
    """The first n rows of each group, with their rank."""
    found: list[tuple[int, int]] = []
    for group in np.unique(table[by]):
        rows = np.flatnonzero(table[by] == group).tolist()
        for name, descending in reversed(order):
            rows.sort(key=lambda row: table[name][row], reverse=descending)
        found += [(row, rank) for rank, row in enumerate(rows[:n])]
    rows = np.array([row for row, _ in found], int)
    rank = np.array([rank for _, rank in found], np.int64)
    return {name: values[rows] for name, values in table.items()} | {"rank": rank}


def join(left: Columns, right: Columns, on: str, how: str) -> Columns:
    """Rows of `left` with those of `right`, or only chosen by them."""
    place = {key: row for row, key in enumerate(right[on].tolist())}
    has = np.array([key in place for key in left[on].tolist()], bool)
    rows = np.flatnonzero(~has if how == "anti" else has)
    found = {name: values[rows] for name, values in left.items()}
    if how == "inner":
        others = [place[key] for key in found[on].tolist()]
        found |= {name: values[others] for name, values in right.items() if name != on}
    return found


def group(table: Columns, by: str, column: str) -> Columns:
    """Least, greatest, sum and count of a column in each group."""
    names = np.unique(table[by])
    parts = [table[column][table[by] == name] for name in names]
    how = {"least": np.min, "greatest": np.max, "total": np.sum, "n": len}
    return {by: names, **{new: np.array([f(part) for part in parts]) for new, f in how.items()}}


def sample(table: Columns, by: str, quotas: dict[int, int], seed: int) -> np.ndarray:
    """Rows of each group with the least keys, ascending."""
    found: list[int] = []
    for name, quota in quotas.items():
        rows = table["row"][table[by] == name]
        found += rows[np.argsort(keys(rows, seed))][:quota].tolist()
    return np.sort(np.array(found, np.int64))
