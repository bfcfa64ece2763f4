"""A stage of curation: a folder with stage.json, done once for the same settings and inputs.

stage.json   complete, settings, inputs (fingerprints of the stages that it reads), rows, counts
part-*       Parquet or .npy files; each is whole or not there

A folder is continued only with the settings and inputs that it was begun with.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dinov2_jax.config.files import diff_configs
from dinov2_jax.curation.blocks import CurationError
from dinov2_jax.curation.pool import Pool
from dinov2_jax.run.files import replacing, write_json

FILE = "stage.json"
# Raise it when the same pictures and settings give other rows.
VERSION = 1


@dataclasses.dataclass(frozen=True)
class Stage:
    """A step of curation.

    Attributes:
      name: of its folder.
      reads: the stages whose files it needs, in this order.
      settings: what its rows depend on, as JSON values.
      run: (pool, folder) -> counts, among them "rows"; leaves whole files only, and continues from
        those that an earlier start left.
    """

    name: str
    reads: tuple[str, ...]
    settings: Callable[[Pool], Mapping[str, Any]]
    run: Callable[[Pool, Path], Mapping[str, int]]


def read_stage(folder: Path) -> dict[str, Any]:
    """stage.json of a folder; {} before its first start."""
    try:
        return json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


def is_complete(folder: Path) -> bool:
    """Whether nothing is left to do in a stage's folder."""
    return read_stage(folder).get("complete", False)


def fingerprint(record: Mapping[str, Any]) -> str:
    """Changes with whatever the rows of a stage depend on."""
    known = {name: record[name] for name in ("stage", "version", "settings", "inputs")}
    text = json.dumps(known, sort_keys=True).encode()
    return hashlib.blake2b(text, digest_size=8).hexdigest()


def describe(stage: Stage, pool: Pool) -> dict[str, Any]:
    """What stage.json says before the stage begins."""
    inputs = {name: fingerprint(read_stage(pool.folder / name)) for name in stage.reads}
    # JSON has no tuples: what is written and what is compared must read alike.
    settings = json.loads(json.dumps(stage.settings(pool)))
    record = {"stage": stage.name, "version": VERSION, "complete": False}
    return {**record, "settings": settings, "inputs": inputs, "rows": 0}


def check_unchanged(stage: Stage, wanted: Mapping[str, Any], folder: Path) -> None:
    """Refuses a folder that was made otherwise, by a CurationError that names what changed."""
    found = read_stage(folder)
    if not found:
        return
    names = ("version", "settings", "inputs")
    changed = diff_configs(*({n: record[n] for n in names} for record in (found, wanted)))
    if changed:
        raise CurationError(
            f"{folder} was made otherwise ({', '.join(changed)}); go back to these settings, "
            f"remove {folder} to make it again, or name another --workdir"
        )


def run_stage(stage: Stage, pool: Pool) -> dict[str, Any]:
    """Runs what is left of a stage; returns its record.

    Raises:
      CurationError: the folder was made with other settings or inputs, or what the stage refuses.
    """
    folder = pool.folder / stage.name
    wanted = describe(stage, pool)
    check_unchanged(stage, wanted, folder)
    found = read_stage(folder)
    if found.get("complete"):
        return found
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink()
    write_json(folder / FILE, wanted)
    began = time.monotonic()
    counts = dict(stage.run(pool, folder))
    seconds = round(time.monotonic() - began, 1)
    done = {"complete": True, "rows": int(counts.pop("rows")), "counts": counts, "seconds": seconds}
    write_json(folder / FILE, wanted | done)
    return wanted | done


def save_array(path: Path, values: np.ndarray) -> None:
    """Writes a whole .npy file, or none."""
    with replacing(path) as new, open(new, "wb") as file:
        np.save(file, values)


def load_array(path: Path) -> np.ndarray:
    """A memory map of a .npy file."""
    return np.load(path, mmap_mode="r")


def part_name(number: int, parts: int, suffix: str = "parquet") -> str:
    """`part-00003-of-00064.parquet`."""
    return f"part-{number:05}-of-{parts:05}.{suffix}"
