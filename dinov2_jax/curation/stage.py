"""A stage of curation: a folder with stage.json, done once for the same settings and inputs.

stage.json   complete, settings, inputs (fingerprints of the stages that it reads), rows, counts
part-*       Parquet or .npy files; each is whole or not there

A folder is continued only with the settings and inputs that it was begun with.
"""

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinov2_jax.config.files import diff_configs
from dinov2_jax.curation.blocks import CurationError
from dinov2_jax.curation.pool import Pool
from dinov2_jax.errors import UserError
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
      run: (pool, folder) -> counts, among them "rows"; leaves whole files only.
      goes_on: whether it continues from the files of an earlier start, or begins again.
    """

    name: str
    reads: tuple[str, ...]
    settings: Callable[[Pool], Mapping[str, Any]]
    run: Callable[[Pool, Path], Mapping[str, int]]
    goes_on: bool = False


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


def check_unchanged(stage: Stage, pool: Pool, later: Sequence[str] = ()) -> dict[str, Any]:
    """What stage.json is to say; refuses a folder that was made otherwise.

    Args:
      later: the stages after it, whose folders are to go with it.

    Raises:
      CurationError: naming the changed settings and inputs.
    """
    wanted, folder = describe(stage, pool), pool.folder / stage.name
    found = read_stage(folder)
    names = ("version", "settings", "inputs")
    if not found or not (found["complete"] or stage.goes_on):
        return wanted
    changed = diff_configs(*({n: record[n] for n in names} for record in (found, wanted)))
    if changed:
        made = [name for name in (stage.name, *later) if (pool.folder / name).exists()]
        raise CurationError(
            f"{folder} was made otherwise ({', '.join(changed)}); go back to these settings, "
            f"remove {', '.join(made)} from {pool.folder} to make them again, or name another "
            "--workdir"
        )
    return wanted


def run_stage(stage: Stage, pool: Pool, later: Sequence[str] = ()) -> dict[str, Any]:
    """Runs what is left of a stage; returns its record.

    What refuses leaves no folder behind, so that the same command with other settings works; only
    files that the next start goes on from stay.

    Raises:
      CurationError: the folder was made with other settings or inputs, or what the stage refuses.
    """
    folder, wanted = pool.folder / stage.name, check_unchanged(stage, pool, later)
    found = read_stage(folder)
    if found.get("complete"):
        return found
    if not stage.goes_on:
        shutil.rmtree(folder, ignore_errors=True)
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink()
    write_json(folder / FILE, wanted)
    began = time.monotonic()
    try:
        counts = dict(stage.run(pool, folder))
    except UserError:
        if not stage.goes_on or {path.name for path in folder.iterdir()} == {FILE}:
            shutil.rmtree(folder)
        raise
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
