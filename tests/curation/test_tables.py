"""Every verb on Daft gives the rows of its numpy counterpart."""

from pathlib import Path

import numpy as np
import pytest

from dinov2_jax.curation.tables import Tables, read_arrays, write_arrays
from tests.curation import plain_tables

ROWS = 500


@pytest.fixture(scope="module")
def tables() -> Tables:
    return Tables()


@pytest.fixture(scope="module")
def columns() -> plain_tables.Columns:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 40, ROWS).astype(np.float32) / 8  # many are equal
    return {"row": rng.permutation(ROWS), "group": rng.integers(0, 30, ROWS), "score": scores}


def same(found: plain_tables.Columns, expected: plain_tables.Columns, order: list[str]) -> None:
    place = np.lexsort([expected[name] for name in reversed(order)])
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values[place], err_msg=name)


def test_best_of_group(tables: Tables, columns: plain_tables.Columns) -> None:
    order = [("score", True), ("row", False)]
    best = tables.best_of_group(tables.of(columns), "group", order, 3)
    expected = plain_tables.best_of_group(columns, "group", order, 3)
    same(tables.arrays(best, ["group", "rank"]), expected, ["group", "rank"])


@pytest.mark.parametrize("how", ["inner", "semi", "anti"])
def test_join(tables: Tables, columns: plain_tables.Columns, how: str) -> None:
    right = {"group": np.arange(0, 30, 3), "weight": np.arange(10) / 4}
    joined = tables.join(tables.of(columns), tables.of(right), "group", how)  # type: ignore[arg-type]
    same(tables.arrays(joined, ["row"]), plain_tables.join(columns, right, "group", how), ["row"])


def test_group(tables: Tables, columns: plain_tables.Columns) -> None:
    found = tables.group(
        tables.of(columns),
        "group",
        least=("row", "min"),
        greatest=("row", "max"),
        total=("row", "sum"),
        n=("row", "count"),
    )
    same(tables.arrays(found, ["group"]), plain_tables.group(columns, "group", "row"), ["group"])


def test_samples_depend_on_seed_and_rows_alone(
    tables: Tables, columns: plain_tables.Columns
) -> None:
    quotas = {2: 4, 5: 0, 7: 1000}
    quota = {"group": np.array([*quotas]), "quota": np.array([*quotas.values()])}
    turned = {name: values[::-1].copy() for name, values in columns.items()}
    for given in (columns, turned):
        chosen = tables.sample(tables.of(given), "group", tables.of(quota), seed=3)
        expected = plain_tables.sample(columns, "group", quotas, seed=3)
        np.testing.assert_array_equal(tables.arrays(chosen, ["row"])["row"], expected)


def test_files_are_sorted_cut_and_replaced(
    tables: Tables, columns: plain_tables.Columns, tmp_path: Path
) -> None:
    assert tables.write(tables.of(columns), tmp_path, ["row"], part_rows=100) == ROWS
    assert len(list(tmp_path.glob("part-*.parquet"))) == 5
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    place = np.argsort(columns["row"])
    ordered = {name: values[place] for name, values in columns.items()}
    other = tmp_path / "other"
    write_arrays(ordered, other, part_rows=100)
    assert first == {path.name: path.read_bytes() for path in other.iterdir()}
    tables.write(tables.of(columns), tmp_path, ["row"], part_rows=ROWS)
    assert [path.name for path in tmp_path.glob("*.parquet")] == ["part-00000-of-00001.parquet"]
    same(read_arrays(tmp_path), columns, ["row"])


def test_a_table_without_rows_is_written_and_read(tables: Tables, tmp_path: Path) -> None:
    empty = {"row": np.zeros(0, np.int64), "score": np.zeros(0, np.float32)}
    assert tables.write(tables.of(empty), tmp_path, ["row"]) == 0
    assert len(read_arrays(tmp_path)["row"]) == 0
