"""Stage "manifest": the folder that `data.source=manifest` trains on, and kept.txt."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dinov2_jax.curation.manifest import kept_lines, write_manifest
from dinov2_jax.curation.pool import Pool
from dinov2_jax.curation.stage import Stage, fingerprint, read_stage
from dinov2_jax.curation.tables import read_arrays
from dinov2_jax.data.sources.manifest import entry_of
from dinov2_jax.data.sources.manifest_file import Rows


def stage(used: tuple[str, ...]) -> Stage:
    """The stage for a run that uses these stages, whose fingerprints it records."""

    def settings(pool: Pool) -> Mapping[str, Any]:
        data = pool.config.data
        return {"source": data.source, "path": data.path, "split": data.split}

    def run(pool: Pool, folder: Path) -> Mapping[str, int]:
        data = pool.config.data
        found = read_arrays(pool.folder / "sample", ("row", "repeat"))
        count = len(found["row"])
        rows = Rows(np.zeros(count, np.int32), found["row"], found["repeat"].astype(np.int32))
        entry = entry_of(data.source, data.path, data.split, pool.source)
        records = {name: read_stage(pool.folder / name) for name in used}
        made_by = {name: fingerprint(record) for name, record in records.items() if record}
        root = data.path if data.source == "folder" else ""
        lines = kept_lines([pool.source], rows, root)
        write_manifest(folder, [entry], rows, made_by, lines)
        return {"rows": count, "pictures": int(found["repeat"].sum())}

    return Stage("manifest", ("sample",), settings, run)
