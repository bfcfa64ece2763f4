"""Training on what a curation kept: workers, resume, and what the run remembers."""

import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest

from dinov2_jax.curation.manifest import write_manifest
from dinov2_jax.data.sources.manifest import entry_of
from dinov2_jax.data.sources.manifest_file import Rows
from dinov2_jax.data.sources.open import open_source
from dinov2_jax.run.checkpoint import read_provenance
from tests.train.test_resume import ROOT, command, environment, metrics, run
from tests.train.test_resume import pictures as pictures  # the fixture

MANIFEST = {"data.source": "manifest"}


def write(folder: Path, sources: dict[str, tuple[str, Path]], rows: list[tuple]) -> str:
    entries = [
        entry_of(kind, str(path), "all", open_source(kind, str(path), "all"))
        for kind, path in sources.values()
    ]
    return write_manifest(folder, entries, Rows(*np.array(rows).T), {"dedup": "d1", "sample": "5a"})


@pytest.fixture(scope="module")
def mixed(pictures, tmp_path_factory) -> tuple[Path, str]:
    """12 files and 8 members of a tar file, some of them twice: 26 pictures."""
    folder = tmp_path_factory.mktemp("mixed")
    with tarfile.open(folder / "more.tar", "w") as archive:
        for number in range(12, 20):
            archive.add(pictures / f"{number}.png", f"{number}.png")
    rows = [(0, n, 1) for n in range(12)] + [(1, n, 1 + (n > 1)) for n in range(8)]
    sources = {"pool": ("folder", pictures), "more": ("tar", folder / "more.tar")}
    return folder / "kept", write(folder / "kept", sources, rows)


def test_all_records_of_a_folder_train_as_the_folder_does(pictures, tmp_path):
    write(tmp_path / "kept", {"pool": ("folder", pictures)}, [(0, n, 1) for n in range(20)])
    run(pictures, tmp_path / "pool", total_steps=2)
    run(tmp_path / "kept", tmp_path / "manifest", total_steps=2, **MANIFEST)
    assert metrics(tmp_path / "manifest") == metrics(tmp_path / "pool")


def test_repeats_and_two_sources_train_and_the_run_names_the_curation(mixed, tmp_path):
    """Resumed in the middle, by worker processes, it takes the same steps to the bit."""
    kept, fingerprint = mixed
    changes = MANIFEST | {"total_steps": 4, "checkpoint.every_steps": 2}
    said = run(kept, tmp_path / "a", **changes)
    assert f"26 pictures from manifest {kept}" in said
    assert f"20 records of 2 sources, 26 with repeats; curation {fingerprint}" in said
    found = read_provenance(tmp_path / "a")["curation"]
    assert found["made_by"] == {"dedup": "d1", "sample": "5a"}
    assert (found["fingerprint"], found["path"]) == (fingerprint, str(kept))
    assert fingerprint in (tmp_path / "a/report.html").read_text(encoding="utf-8")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b/checkpoints/4")
    again = run(kept, tmp_path / "b", **changes | {"data.workers": 2})
    assert "continuing from step 2" in again
    losses = [
        [row["loss"] for row in metrics(tmp_path / name) if "loss" in row] for name in ("a", "b")
    ]
    assert len(losses[0]) == 4 and losses[0] == losses[1]


def test_a_changed_source_ends_the_command_with_a_sentence(mixed, pictures, tmp_path):
    pool = tmp_path / "pool"
    shutil.copytree(pictures, pool)
    write(tmp_path / "kept", {"pool": ("folder", pool)}, [(0, 3, 1)])
    (pool / "00.png").unlink()
    done = subprocess.run(
        command(tmp_path / "kept", tmp_path / "run", **MANIFEST),
        env=environment(1), cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "pool is not what it was when" in done.stderr
    assert "run the curation again" in done.stderr and "Traceback" not in done.stderr
    assert json.loads((tmp_path / "kept/manifest.json").read_text())["complete"]
