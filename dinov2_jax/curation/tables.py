"""Tables on Daft: six verbs, in this process or on a Ray cluster, with the same rows.

A `Table` is a lazy Daft table. Rows have no order until `write` or `arrays` sorts them by their
keys, so the engine's own order never enters a result. Every verb has a plain numpy counterpart in
tests/curation/plain_tables.py.
"""

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dinov2_jax.curation.balance import keys
from dinov2_jax.curation.blocks import CurationError
from dinov2_jax.run.files import replacing

Table = Any  # daft.DataFrame; Daft is imported when the first table is needed
Arrays = Mapping[str, np.ndarray]
Aggregate = Literal["min", "max", "sum", "count"]
PART_ROWS = 1 << 20


class Tables:
    """The engine.

    Args:
      engine: "local" runs in this process, "ray" on a Ray cluster.
      cluster: for "ray": "auto" (the cluster of RAY_ADDRESS, or a new one on this machine) or
        ray://host:port.

    Raises:
      ImportError: Daft is missing, or Ray for "ray".
      CurationError: the cluster cannot be reached.
    """

    def __init__(self, engine: str = "local", cluster: str = "auto") -> None:
        os.environ.setdefault("DAFT_ANALYTICS_ENABLED", "0")
        os.environ.setdefault("DAFT_PROGRESS_BAR", "0")
        os.environ.setdefault("DO_NOT_TRACK", "1")
        import daft

        self._daft = daft
        if engine == "ray":
            importlib.import_module("ray")  # its absence is told before the first stage

            try:
                daft.set_runner_ray(
                    None if cluster == "auto" else cluster, noop_if_initialized=True
                )
            except (ConnectionError, RuntimeError) as error:
                raise CurationError(
                    f"config.curate.cluster={cluster} cannot be reached ({error}); start Ray "
                    "there, or use --config.curate.engine=local"
                ) from error

    def read(self, folder: Path, pattern: str = "part-*.parquet") -> Table:
        """All Parquet files of a folder that match a pattern."""
        return self._daft.read_parquet(os.fspath(folder / pattern))

    def of(self, columns: Arrays) -> Table:
        """Columns in memory."""
        return self._daft.from_arrow(_arrow(columns))

    def best_of_group(
        self, table: Table, by: str, order: Sequence[tuple[str, bool]], n: int
    ) -> Table:
        """The first `n` rows of each group, and their place in it as column `rank`, from 0.

        Args:
          order: (column, descending); the last column must tell all rows apart.
        """
        ranked = self._ranked(table, by, order)
        return ranked.where(self._daft.col("rank") < n)

    def join(
        self, left: Table, right: Table, on: str, how: Literal["inner", "left", "anti", "semi"]
    ) -> Table:
        """Rows of `left` with the columns of `right`; "anti" and "semi" only choose rows."""
        return left.join(right, on=on, how=how)

    def group(self, table: Table, by: str, **columns: tuple[str, Aggregate]) -> Table:
        """One row a group: new column = (column, aggregate)."""
        col = self._daft.col
        wanted = [getattr(col(old), how)().alias(new) for new, (old, how) in columns.items()]
        return table.groupby(by).agg(*wanted)

    def sample(self, table: Table, by: str, quotas: Table, seed: int) -> Table:
        """`quota` rows of each group, chosen by a hash of (seed, row), never by their order.

        Args:
          table: has the columns `by` and "row".
          quotas: columns `by` and "quota"; groups that it lacks give nothing.
        """
        daft = self._daft

        @daft.func.batch(return_dtype=daft.DataType.uint64())
        def key(rows: Any) -> Any:
            import pyarrow as pa

            return pa.array(keys(rows.to_arrow().to_numpy(zero_copy_only=False), seed))

        keyed = table.with_column("key", key(daft.col("row")))
        ranked = self._ranked(keyed, by, [("key", False), ("row", False)])
        chosen = ranked.join(quotas, on=by).where(daft.col("rank") < daft.col("quota"))
        return chosen.exclude("key", "rank", "quota")

    def arrays(self, table: Table, order: Sequence[str]) -> dict[str, np.ndarray]:
        """The whole table in memory, sorted by the columns `order`."""
        found = table.sort(list(order)).to_arrow()
        return {n: found.column(n).to_numpy(zero_copy_only=False) for n in found.column_names}

    def write(
        self, table: Table, folder: Path, order: Sequence[str], part_rows: int = PART_ROWS
    ) -> int:
        """Writes `part-*.parquet`, sorted by `order`; returns the number of rows.

        All parts are written beside their names first and renamed last, and old ones go.
        """
        import pyarrow as pa

        ordered = table.sort(list(order)).collect()
        # The engine's pieces depend on its threads; the files must not.
        batches = list(ordered.to_arrow_iter())
        whole = pa.Table.from_batches(batches) if batches else ordered.to_arrow()
        return write_parts(whole, folder, part_rows)

    def _ranked(self, table: Table, by: str, order: Sequence[tuple[str, bool]]) -> Table:
        from daft import Window
        from daft.functions import row_number

        names, descending = [name for name, _ in order], [down for _, down in order]
        window = Window().partition_by(by).order_by(*names, desc=descending)
        # Daft counts from 1.
        place = row_number().over(window).cast(self._daft.DataType.int64()) - 1
        return table.with_column("rank", place)


def write_parts(whole: Any, folder: Path, part_rows: int = PART_ROWS) -> int:
    """Writes a pyarrow table as `part-*.parquet` of `part_rows` rows; old parts go."""
    import pyarrow.parquet as pq

    starts = range(0, max(1, whole.num_rows), part_rows)
    names = [f"part-{n:05}-of-{len(starts):05}.parquet" for n in range(len(starts))]
    for name, start in zip(names, starts, strict=True):
        with replacing(folder / name) as new:
            part = whole.slice(start, part_rows).combine_chunks()
            pq.write_table(part, new, compression="zstd")
    for old in {*folder.glob("part-*.parquet")} - {folder / name for name in names}:
        old.unlink()
    return whole.num_rows


def write_arrays(columns: Arrays, folder: Path, part_rows: int = PART_ROWS) -> int:
    """Writes columns in memory as `part-*.parquet`, in their order."""
    return write_parts(_arrow(columns), folder, part_rows)


def _arrow(columns: Arrays) -> Any:
    """A pyarrow table; objects are texts, or bytes of one length, also where there is no row."""
    import pyarrow as pa

    def column(values: np.ndarray) -> Any:
        if values.dtype != object:
            return pa.array(values)
        is_bytes = len(values) > 0 and isinstance(values[0], bytes)
        return pa.array(values, pa.binary(len(values[0])) if is_bytes else pa.string())

    return pa.table({name: column(values) for name, values in columns.items()})


def read_arrays(folder: Path, columns: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """All parts of a folder in memory, in the order in which they were written."""
    import pyarrow.parquet as pq

    parts = sorted(folder.glob("part-*.parquet"))
    tables = [pq.read_table(path, columns=list(columns) if columns else None) for path in parts]
    return {
        name: np.concatenate([t.column(name).to_numpy(zero_copy_only=False) for t in tables])
        for name in tables[0].column_names
    }
