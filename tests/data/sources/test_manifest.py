"""Manifests: records of several sources by index, and sentences about those that cannot be read."""

import io
import json
import pickle
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from dinov2_jax.curation.manifest import write_manifest
from dinov2_jax.data.fingerprint import names_fingerprint
from dinov2_jax.data.sources.manifest import entry_of
from dinov2_jax.data.sources.manifest_file import Rows
from dinov2_jax.data.sources.open import open_source
from dinov2_jax.data.sources.source import NoSplitError, SourceError, notes_of, provenance_of
from dinov2_jax.data.sources.views import View
from tests.data.sources.tiny_tfds import prepare_tfds


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (9, 7), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write_folder(folder: Path, names: list[str], first: int = 0) -> dict[str, bytes]:
    contents = {name: png(first + number) for number, name in enumerate(names)}
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return contents


def write_tar(path: Path, names: list[str], first: int = 100) -> dict[str, bytes]:
    contents = {name: png(first + number) for number, name in enumerate(names)}
    with tarfile.open(path, "w") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return contents


def entry(kind: str, path: Path | str, split: str = "all", labels: str = "none") -> dict[str, Any]:
    return entry_of(kind, str(path), split, open_source(kind, str(path), split, labels), labels)


def rows_of(*rows: tuple[int, int, int]) -> Rows:
    return Rows(*np.array(rows).T)


def manifest_of(folder: Path, entries: list[dict], *rows: tuple[int, int, int], **more: Any) -> str:
    write_manifest(folder, entries, rows_of(*rows), {"sample": "5a"}, **more)
    return str(folder)


def change(folder: Path, **values: Any) -> None:
    """Other values in manifest.json."""
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, list[bytes]]:
    """A manifest over a folder and a tar file with repeats, and the pictures it stands for."""
    files = write_folder(tmp_path / "pool", ["a/0.png", "a/1.png", "b/2.png"])
    members = write_tar(tmp_path / "more.tar", ["x.png", "y.png"])
    entries = [entry("folder", tmp_path / "pool"), entry("tar", tmp_path / "more.tar")]
    manifest_of(tmp_path / "kept", entries, (1, 1, 2), (0, 2, 1), (0, 0, 3), part_rows=2)
    shown = [members["y.png"]] * 2 + [files["b/2.png"]] + [files["a/0.png"]] * 3
    return tmp_path / "kept", shown


def test_records_of_several_sources_with_repeats(two: tuple[Path, list[bytes]]) -> None:
    folder, shown = two
    for path in (folder, folder / "manifest.json"):
        source = open_source("manifest", str(path))
        assert [source[index] for index in range(len(source))] == shown
    assert sorted(file.name for file in folder.glob("part*")) == [
        "part-00000-of-00002.parquet",
        "part-00001-of-00002.parquet",
    ]
    again = pickle.loads(pickle.dumps(source))
    assert [again[index] for index in (5, 0, 2)] == [shown[index] for index in (5, 0, 2)]
    with pytest.raises(IndexError):
        source[len(source)]


def test_names_tell_files_of_several_sources_apart(two: tuple[Path, list[bytes]]) -> None:
    folder, _ = two
    source = open_source("manifest", str(folder))
    names = ["more.tar:y.png"] * 2 + [str(folder.parent / "pool/b/2.png")]
    assert [source.name(index) for index in range(3)] == names
    one = manifest_of(folder, [entry("folder", folder.parent / "pool")], (0, 2, 1), (0, 0, 1))
    assert [open_source("manifest", one).name(index) for index in (0, 1)] == ["b/2.png", "a/0.png"]


def test_large_arrays_are_mapped_by_workers(tmp_path: Path) -> None:
    write_folder(tmp_path / "pool", ["0.png", "1.png", "2.png"])
    records = np.random.default_rng(0).integers(0, 3, 200_000)
    rows = Rows(np.zeros_like(records), records, 1 + records % 2)
    write_manifest(tmp_path / "kept", [entry("folder", tmp_path / "pool")], rows, {})
    source = open_source("manifest", str(tmp_path / "kept"))
    expected = np.repeat(records, 1 + records % 2)
    pickled = pickle.dumps(source)
    assert len(pickled) < 10_000
    again = pickle.loads(pickled)
    picked = np.linspace(0, len(expected) - 1, 50).astype(int).tolist()
    assert [again.name(index) for index in picked] == [f"{expected[i]}.png" for i in picked]
    assert len(source) == len(expected)


def test_the_fingerprint_of_names_reads_none_of_them(two, monkeypatch) -> None:
    """It is that of the records, and a view of some of them still has one of its own."""
    source = open_source("manifest", str(two[0]))
    some = View(source, None, None, rows=np.array([0]))
    of_some = names_fingerprint(some)
    monkeypatch.setattr(source, "name", None)
    stored = json.loads((two[0] / "manifest.json").read_text())
    assert names_fingerprint(source) == stored["fingerprint"] != of_some


def test_provenance_and_notes_name_the_curation(two: tuple[Path, list[bytes]]) -> None:
    folder, _ = two
    source = open_source("manifest", str(folder))
    stored = json.loads((folder / "manifest.json").read_text())
    found = provenance_of(View(source, None, None))["curation"]
    assert found == {
        "path": str(folder),
        "fingerprint": stored["fingerprint"],
        "rows": 3,
        "pictures": 6,
        "made_by": {"sample": "5a"},
    }
    assert stored["fingerprint"] in notes_of(source)[0]
    assert provenance_of(open_source("folder", str(folder.parent / "pool"))) == {}


def test_a_manifest_may_move_and_a_source_too(two: tuple[Path, list[bytes]]) -> None:
    folder, shown = two
    moved, pool = folder.parent / "elsewhere", folder.parent / "pool2"
    shutil.move(folder, moved)
    shutil.move(folder.parent / "pool", pool)
    with pytest.raises(SourceError, match=r"pool, which cannot be opened .* its \"path\" in that"):
        open_source("manifest", str(moved))
    sources = json.loads((moved / "manifest.json").read_text())["sources"]
    change(moved, sources=[sources[0] | {"path": str(pool)}, sources[1]])
    source = open_source("manifest", str(moved))
    assert [source[index] for index in range(len(source))] == shown


def test_array_records_move_without_a_change(tmp_path: Path) -> None:
    module = pytest.importorskip("array_record.python.array_record_module")
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        writer = module.ArrayRecordWriter(str(tmp_path / folder / "a.array_record"), "group_size:1")
        for number in range(3):
            writer.write(png(number))
        writer.close()
    here, there = (entry("array_record", tmp_path / folder) for folder in ("here", "there"))
    assert here["fingerprint"] == there["fingerprint"]
    source = open_source("manifest", manifest_of(tmp_path / "kept", [there], (0, 2, 2)))
    assert [source[0], source[1]] == [png(2)] * 2


@pytest.mark.parametrize("what", ["renamed", "added", "replaced", "tar"])
def test_a_changed_source_is_an_error(two: tuple[Path, list[bytes]], what: str) -> None:
    folder, _ = two
    pool = folder.parent / "pool"
    if what == "renamed":
        (pool / "b/2.png").rename(pool / "b/3.png")
    elif what == "added":
        (pool / "b/1.png").write_bytes(png(9))
    elif what == "replaced":
        (pool / "b/2.png").write_bytes(png(9))
    else:
        write_tar(folder.parent / "more.tar", ["x.png", "y.png"], first=50)
    name = "tar .*more.tar" if what == "tar" else "folder .*pool"
    with pytest.raises(SourceError, match=f"^{name} is not what it was .* run the curation again"):
        open_source("manifest", str(folder))


def test_a_source_without_rows_is_not_opened(tmp_path: Path) -> None:
    write_folder(tmp_path / "pool", ["a.png"])
    gone = {"kind": "folder", "path": "/gone", "split": "all", "fingerprint": "0", "records": 4}
    kept = manifest_of(tmp_path / "kept", [gone, entry("folder", tmp_path / "pool")], (1, 0, 1))
    assert open_source("manifest", kept)[0] == png(0)


# Labels


def test_labels_of_sources_with_the_same_classes(tmp_path: Path) -> None:
    write_folder(tmp_path / "1", ["cat/0.png", "dog/1.png"])
    write_folder(tmp_path / "2", ["dog/2.png", "cat/3.png", "dog/4.png"])
    entries = [entry("folder", tmp_path / "1"), entry("folder", tmp_path / "2")]
    path = manifest_of(tmp_path / "kept", entries, (1, 2, 2), (0, 0, 1), (1, 0, 1), (0, 1, 1))
    source = open_source("manifest", path, labels="folders")
    assert source.class_names == ("cat", "dog")
    # The second folder's order is cat/3, dog/2, dog/4.
    assert source.labels.tolist() == [1, 1, 0, 0, 1]
    assert source.labels_of(np.array([4, 0])).tolist() == [1, 1]
    assert [source.name(0), source.name(3)] == [
        str(tmp_path / f) for f in ("2/dog/4.png", "2/cat/3.png")
    ]
    plain = open_source("manifest", path)
    assert (plain.labels, plain.class_names) == (None, None)


def test_other_classes_or_none_carry_no_labels(tmp_path: Path) -> None:
    write_folder(tmp_path / "1", ["cat/0.png", "dog/1.png"])
    write_folder(tmp_path / "2", ["cow/2.png", "cat/3.png"])
    entries = [entry("folder", tmp_path / "1"), entry("folder", tmp_path / "2")]
    path = manifest_of(tmp_path / "kept", entries, (0, 1, 1), (1, 1, 1))
    source = open_source("manifest", path, labels="auto")
    assert source.labels is None
    assert source.labels_of(np.array([0])).tolist() == [-1]
    assert "different classes" in notes_of(source)[0]
    with pytest.raises(SourceError, match=r"same class folders .* different classes; use labels="):
        open_source("manifest", path, labels="folders")


def test_files_beside_class_folders_have_no_label(tmp_path: Path) -> None:
    """They are records without labels, and no records with them: the numbers must not move."""
    write_folder(tmp_path / "1", ["0_checksums", "cat/0.png", "dog/1.png"])
    path = manifest_of(
        tmp_path / "kept", [entry("folder", tmp_path / "1")], (0, 2, 1), (0, 0, 1), (0, 1, 1)
    )
    source = open_source("manifest", path, labels="folders")
    assert [source.name(i) for i in range(3)] == ["dog/1.png", "0_checksums", "cat/0.png"]
    assert source.labels.tolist() == [1, -1, 0]


def test_classes_that_the_curation_saw_are_kept_with_its_split(tmp_path: Path) -> None:
    """Opened with labels, a folder without train/ is divided by a hash of the names."""
    write_folder(tmp_path / "1", [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(20)])
    known = entry("folder", tmp_path / "1", "train", "folders")
    pool = open_source("folder", str(tmp_path / "1"), "train", "folders")
    assert len(pool) < 40
    path = manifest_of(tmp_path / "kept", [known], (0, len(pool) - 1, 1), (0, 0, 2))
    source = open_source("manifest", path)
    assert [source.name(0), source.name(1)] == [pool.name(len(pool) - 1), pool.name(0)]
    assert source.labels.tolist() == [1, 0, 0]


def test_tfds_has_its_own_labels_and_may_move(tmp_path: Path) -> None:
    prepared = prepare_tfds(tmp_path / "a")
    path = manifest_of(
        tmp_path / "kept", [entry("tfds", prepared, "train")], (0, 5, 1), (0, 0, 2), (0, 3, 1)
    )
    moved = prepared.rename(tmp_path / "1.0.0")
    with pytest.raises(SourceError, match=r"names tfds .*1\.0\.0"):
        open_source("manifest", path)
    change(tmp_path / "kept", sources=[entry("tfds", moved, "train")])
    source, original = open_source("manifest", path), open_source("tfds", str(moved), "train")
    own = original.labels_of(np.array([5, 0, 0, 3]))
    assert source.class_names == ("low", "high")
    assert source.labels_of(np.array([3, 1])).tolist() == own[[3, 1]].tolist()
    assert source.labels.tolist() == own.tolist()
    assert source[0] == original[5]
    assert pickle.loads(pickle.dumps(source)).labels.tolist() == own.tolist()


def test_a_manifest_of_a_manifest(two: tuple[Path, list[bytes]], tmp_path: Path) -> None:
    folder, shown = two
    path = manifest_of(tmp_path / "second", [entry("manifest", folder)], (0, 5, 1), (0, 0, 2))
    source = open_source("manifest", path)
    assert [source[index] for index in range(3)] == [shown[5], shown[0], shown[0]]


# Wrong input


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_source("manifest", str(tmp_path / "gone"))
    with pytest.raises(SourceError, match=r"holds no manifest\.json; name the folder manifest/"):
        open_source("manifest", str(tmp_path))
    write_folder(tmp_path / "pool", ["a.png"])
    inner = manifest_of(tmp_path / "manifest", [entry("folder", tmp_path / "pool")], (0, 0, 1))
    with pytest.raises(SourceError, match=f"holds no manifest.json; name {inner}$"):
        open_source("manifest", str(tmp_path))
    with pytest.raises(NoSplitError, match="no splits"):
        open_source("manifest", inner, "validation")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"complete": False}, "is not finished; repeat the command"),
        ({"rows": 0}, "lists no picture"),
        ({"rows": 7}, r"has 7 rows, and its files 3; copy"),
        ({"files": ["gone.parquet"]}, "a file that .* lists cannot be read"),
        ({"files": [3]}, "a file that .* lists cannot be read"),
        ({"format": 9}, "has format 9, and this version reads 1"),
        ({"sources": "all"}, "is no manifest of a curation"),
        ({"sources": [{"kind": "tar"}]}, "is no manifest of a curation"),
        ({"fingerprint": "other"}, "not those that it was made with"),
    ],
)
def test_wrong_manifests(two: tuple[Path, list[bytes]], values: dict, message: str) -> None:
    folder, _ = two
    change(folder, **values)
    with pytest.raises(SourceError, match=message):
        open_source("manifest", str(folder))


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe{", b'{"pictures": 3}'])
def test_files_that_are_no_manifest(tmp_path: Path, content: bytes) -> None:
    """A folder of features, for example, has a manifest.json of another kind."""
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(SourceError, match=r"is damaged|is no manifest of a curation"):
        open_source("manifest", str(tmp_path))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"record": [0, 3, 0]}, "row 1 of .* is record 3 of source 0, which has 3 records"),
        ({"record": [0, -1, 0]}, "column 'record' .* has -1, but must be 0 to"),
        ({"source": [0, 2, 0]}, "column 'source' .* has 2, but must be 0 to 1"),
        ({"repeat": [1, 0, 1]}, "column 'repeat' .* has 0, but must be 1 to"),
        ({"repeat": [1, 2**40, 1]}, f"column 'repeat' .* has {2**40}, but"),
        ({"record": [0.5, 1.5, 2.5]}, "column 'record' .* double with 0 gaps, but must be whole"),
        ({"record": [0, None, 1]}, "column 'record' .* int64 with 1 gaps, but must be whole"),
        ({"repeat": None}, "has no column 'repeat'"),
    ],
)
def test_wrong_rows(two: tuple[Path, list[bytes]], columns: dict, message: str) -> None:
    folder, _ = two
    columns = {"source": [0, 0, 0], "record": [0, 1, 2], "repeat": [1, 1, 1]} | columns
    table = pyarrow.table({name: values for name, values in columns.items() if values})
    pyarrow.parquet.write_table(table, folder / "own.parquet")
    change(folder, files=["own.parquet"], fingerprint=None)
    with pytest.raises(SourceError, match=message):
        open_source("manifest", str(folder))


def test_a_damaged_part(two: tuple[Path, list[bytes]]) -> None:
    folder, _ = two
    part = folder / "part-00000-of-00002.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(SourceError, match=r"cannot be read .* copy the folder again"):
        open_source("manifest", str(folder))


def test_hand_made_rows_need_no_fingerprint(two: tuple[Path, list[bytes]]) -> None:
    folder, shown = two
    table = pyarrow.table({"record": [0, 0], "repeat": [1, 1], "source": [0, 0], "why": ["", ""]})
    pyarrow.parquet.write_table(table, folder / "own.parquet")
    change(folder, files=["own.parquet"], rows=2, fingerprint=None)
    source = open_source("manifest", str(folder))
    assert [source[0], source[1]] == [shown[5]] * 2
    assert len(provenance_of(source)["curation"]["fingerprint"]) == 32


def test_without_pyarrow_says_what_to_install(two: tuple[Path, list[bytes]], monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"manifest.*pip install \"dinov2_jax\[parquet\]\""):
        open_source("manifest", str(two[0]))
