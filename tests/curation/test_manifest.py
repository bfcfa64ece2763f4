"""What a curation writes for training: whole or refused, and a list of files."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from dinov2_jax.curation import manifest as manifest_module
from dinov2_jax.curation.manifest import ManifestError, kept_lines, write_manifest
from dinov2_jax.data.sources.manifest import entry_of
from dinov2_jax.data.sources.manifest_file import Rows
from dinov2_jax.data.sources.open import open_source
from dinov2_jax.data.sources.source import SourceError


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    (tmp_path / "pool").mkdir()
    for number in range(5):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"pool/{number}.png")
    return tmp_path / "pool"


def entry(path: Path) -> dict:
    return entry_of("folder", str(path), "all", open_source("folder", str(path)))


def rows(records: list[int], repeat: int = 1, source: int = 0) -> Rows:
    count = len(records)
    return Rows(np.full(count, source), np.array(records, int), np.full(count, repeat))


def test_columns_files_and_facts(pool: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    records = [4, 1, 3]
    given = write_manifest(folder, [entry(pool)], rows(records, 2), {"a": "1"}, part_rows=2)
    stored = json.loads((folder / "manifest.json").read_text())
    assert stored["files"] == [f"part-0000{n}-of-00002.parquet" for n in (0, 1)]
    assert (stored["rows"], stored["pictures"], stored["made_by"]) == (3, 6, {"a": "1"})
    assert stored["complete"] and stored["fingerprint"] == given
    assert stored["sources"][0].items() >= {"kind": "folder", "path": str(pool)}.items()
    tables = [parquet.read_table(folder / name) for name in stored["files"]]
    assert [str(kind) for kind in tables[0].schema.types] == ["int32", "int64", "int32"]
    assert [x for table in tables for x in table["record"].to_pylist()] == records
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", *stored["files"]]


def test_a_second_manifest_replaces_the_first(pool: Path, tmp_path: Path) -> None:
    folder, sources = tmp_path / "kept", [entry(pool)]
    first = write_manifest(folder, sources, rows([0, 1, 2, 3]), {}, ["a"] * 4, part_rows=1)
    second = write_manifest(folder, sources, rows([4, 3]), {})
    assert first != second
    assert sorted(p.name for p in folder.iterdir()) == [
        "manifest.json",
        "part-00000-of-00001.parquet",
    ]
    source = open_source("manifest", str(folder))
    assert [source.name(0), source.name(1)] == ["4.png", "3.png"]


def test_a_killed_writer_leaves_what_readers_refuse(
    pool: Path, tmp_path: Path, monkeypatch
) -> None:
    folder, sources = tmp_path / "kept", [entry(pool)]
    write_manifest(folder, sources, rows([0, 1, 2]), {})
    real = manifest_module._write_part

    def killed(arrow, path, part):
        real(arrow, path, part)
        if part.record[0] == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(manifest_module, "_write_part", killed)
    with pytest.raises(KeyboardInterrupt):
        write_manifest(folder, sources, rows([3, 4]), {}, part_rows=1)
    with pytest.raises(SourceError, match="is not finished"):
        open_source("manifest", str(folder))
    monkeypatch.undo()
    write_manifest(folder, sources, rows([3, 4]), {}, part_rows=1)
    assert len(open_source("manifest", str(folder))) == 2


def test_the_fingerprint_is_of_records_and_not_of_places(pool: Path, tmp_path: Path) -> None:
    other = tmp_path / "copy"
    other.mkdir()
    for file in pool.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    given = [
        write_manifest(tmp_path / "kept", [entry(path)], rows(records, repeat), {})
        for path, records, repeat in [
            (pool, [0, 1], 1),
            (other, [0, 1], 1),
            (pool, [1, 0], 1),
            (pool, [0, 1], 2),
        ]
    ]
    assert given[0] == given[1]
    assert len(set(given)) == 3


def test_kept_files_train_as_a_list(pool: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x.png").write_bytes((pool / "0.png").read_bytes())
    opened = [open_source("folder", str(path)) for path in (pool, outside)]
    kept = Rows(np.array([0, 1, 0]), np.array([4, 0, 2]), np.ones(3, int))
    lines = list(kept_lines(opened, kept, root=pool))
    assert lines == ["4.png", str(outside / "x.png"), "2.png"]
    assert next(kept_lines(opened, kept)) == str(pool / "4.png")
    folder = tmp_path / "kept"
    write_manifest(folder, [entry(pool), entry(outside)], kept, {}, kept_lines(opened, kept))
    listed = open_source("folder", str(folder / "kept.txt"))
    source = open_source("manifest", str(folder))
    assert [listed[i] for i in range(3)] == [source[i] for i in range(3)]


def test_names_with_a_line_end_are_counted(pool: Path, tmp_path: Path) -> None:
    write_manifest(tmp_path / "kept", [entry(pool)], rows([0, 1]), {}, ["a\nb", "\udcff.png"])
    assert (tmp_path / "kept/kept.txt").read_bytes() == b"\xff.png\n"
    assert json.loads((tmp_path / "kept/manifest.json").read_text())["not_in_kept"] == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (rows([]), "keeps no picture.*loosen"),
        (rows([5]), "row 0 is record 5 of folder .*pool, which has 5 records"),
        (rows([0, -1]), "row 1 is record -1 of"),
        (rows([0], source=1), "of the sources 1 to 1, but the manifest has 1"),
        (rows([0], repeat=0), "repeated 0 to 0 times"),
    ],
)
def test_wrong_rows_are_refused_before_anything_is_written(
    pool: Path, tmp_path: Path, wrong: Rows, message: str
) -> None:
    with pytest.raises(ManifestError, match=message):
        write_manifest(tmp_path / "kept", [entry(pool)], wrong, {})
    assert not (tmp_path / "kept").exists()


def test_moved_homes_and_relative_paths_become_absolute(pool: Path, monkeypatch) -> None:
    monkeypatch.chdir(pool.parent)
    source = open_source("folder", "pool")
    assert entry_of("folder", "pool", "all", source)["path"] == str(pool)
    assert entry_of("tfds", "mnist@pool", "all", source)["path"] == f"mnist@{pool}"
    assert entry_of("tfds", "mnist", "all", source)["path"] == "mnist"
    assert entry_of("openmoji", "", "all", source)["path"] == ""
