"""R-Oxford, R-Paris, Met and AmsterTime from miniature copies in their official layouts."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinov2_jax.data.decode import decode
from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.datasets.retrieval import amstertime, met_set, revisited_set
from dinov2_jax.metrics.ranking import revisited_map


def save(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (value, 0, 0)).save(path, "PNG")


def red(source, row: int) -> int:
    return int(decode(source[row])[0, 0, 0])


# --- R-Oxford and R-Paris ---------------------------------------------------------------------


def truth_of(images: int = 4) -> dict[str, object]:
    """As in gnd_roxford5k.pkl: numbers as arrays or lists, boxes as lists of floats."""
    return {
        "imlist": [f"all_souls_{number:06d}" for number in range(images)],
        "qimlist": ["query_0", "query_1"],
        "gnd": [
            {"bbx": [2.4, 1.0, 7.6, 5.0], "easy": [1], "hard": np.array([2]), "junk": [0]},
            {"bbx": [8.0, 4.0, 12.0, 9.0], "easy": np.array([], int), "hard": [3], "junk": []},
        ],
    }


def build_revisited(root: Path, truth: dict[str, object], protocol: int = 2) -> Path:
    """Queries are 10 x 6 px whose red is the column and whose green is the row."""
    for number in range(4):
        save(root / f"jpg/all_souls_{number:06d}.jpg", number)
    columns, rows = np.meshgrid(np.arange(10), np.arange(6))
    pixels = np.stack([columns, rows, 7 + 0 * rows], -1).astype(np.uint8)
    for query in range(2):
        Image.fromarray(pixels).save(root / f"jpg/query_{query}.jpg", "PNG")
    path = root / "gnd_roxford5k.pkl"
    path.write_bytes(pickle.dumps(truth, protocol))
    return path


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_revisited_set(tmp_path: Path, protocol: int) -> None:
    build_revisited(tmp_path, truth_of(), protocol)
    found = revisited_set("roxford5k", str(tmp_path))
    assert [red(found.database, row) for row in range(4)] == [0, 1, 2, 3]
    assert found.database.name(3) == "all_souls_000003.jpg"
    assert len(found.queries) == len(found.ground_truth) == 2
    # Pillow rounds the box to 2 ... 8 and 1 ... 5.
    queries = pickle.loads(pickle.dumps(found.queries))
    assert queries[0].shape == (4, 6, 3)
    assert queries[0].dtype == np.uint8
    assert queries[0][0, 0].tolist() == [2, 1, 7]
    assert queries[0][-1, -1].tolist() == [7, 4, 7]
    # Beyond the picture it is black, as with Image.crop.
    assert queries[1].shape == (5, 4, 3)
    assert queries[1][1, 1].tolist() == [9, 5, 7]
    assert not queries[1][2:].any()
    assert not queries[1][:, 2:].any()
    assert queries.name(1) == "query_1.jpg"
    assert [{k: v.tolist() for k, v in g.items()} for g in found.ground_truth] == [
        {"easy": [1], "hard": [2], "junk": [0]},
        {"easy": [], "hard": [3], "junk": []},
    ]
    scores = revisited_map(np.array([[0, 1, 2, 3], [3, 0, 1, 2]]), found.ground_truth)
    assert scores["easy"]["mAP"] == scores["medium"]["mAP"] == scores["hard"]["mAP"] == 100


def test_an_unreadable_query_is_an_os_error(tmp_path: Path) -> None:
    build_revisited(tmp_path, truth_of())
    (tmp_path / "jpg/query_1.jpg").write_bytes(b"no picture")
    queries = revisited_set("roxford5k", str(tmp_path)).queries
    with pytest.raises(OSError):
        queries[1]


def broken(change) -> dict[str, object]:
    truth = truth_of()
    change(truth)
    return truth


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ([1, 2], "holds no imlist, qimlist and gnd"),
        (broken(lambda t: t.pop("gnd")), "holds no imlist, qimlist and gnd"),
        (broken(lambda t: t["gnd"].pop()), "has 2 queries and 1 ground truths"),
        (broken(lambda t: t["gnd"][0].pop("hard")), "has a query without 'hard'"),
        (broken(lambda t: t["gnd"][1].pop("bbx")), "without its box bbx"),
        (broken(lambda t: t["gnd"][1].update(junk=[4])), "names picture 4, but lists 4"),
    ],
)
def test_a_ground_truth_of_another_form_is_told(tmp_path: Path, truth, message: str) -> None:
    build_revisited(tmp_path, truth)
    with pytest.raises(SourceError, match=message):
        revisited_set("roxford5k", str(tmp_path))


def test_missing_pictures_of_revisited_sets_are_told(tmp_path: Path) -> None:
    build_revisited(tmp_path, truth_of())
    os.remove(tmp_path / "jpg/all_souls_000002.jpg")
    with pytest.raises(SourceError, match=r"1 of 4 files are missing, such as .*souls_000002\.jpg"):
        revisited_set("roxford5k", str(tmp_path))
    with pytest.raises(SourceError, match=r"has no gnd_rparis6k\.pkl"):
        revisited_set("rparis6k", str(tmp_path))
    with pytest.raises(SourceError, match="did you mean 'roxford5k'"):
        revisited_set("oxford5k", str(tmp_path))


# --- Met --------------------------------------------------------------------------------------


def build_met(root: Path) -> Path:
    lists = root / "ground_truth"
    lists.mkdir()
    exhibits = [436535, 7, 436535, 90000]
    files = {
        "MET_database": [
            {"id": exhibit, "path": f"MET/{exhibit}/{n}.jpg"} for n, exhibit in enumerate(exhibits)
        ],
        "mini_MET_database": [{"id": 7, "path": "MET/7/1.jpg"}],
        "valset": [{"path": "test_met/1.jpg", "MET_id": 7}, {"path": "test_other/1.jpg"}],
        "testset": [
            {"path": "test_noart/9.jpg"},
            {"path": "test_met/2.jpg", "MET_id": 90000},
            {"path": "test_met/3.jpg", "MET_id": 436535},
        ],
    }
    for name, entries in files.items():
        (lists / f"{name}.json").write_text(json.dumps(entries))
        for place, entry in enumerate(entries):
            save(root / "images" / entry["path"], place + 10 * len(name))
    return lists


def test_met_set(tmp_path: Path) -> None:
    build_met(tmp_path)
    found = met_set(str(tmp_path))
    assert found.classes == 3
    assert found.database.labels.tolist() == [436535, 7, 436535, 90000]
    assert found.validation.labels.tolist() == [7, -1]
    assert found.test.labels.tolist() == [-1, 90000, 436535]
    assert [red(found.test, row) for row in range(3)] == [70, 71, 72]
    assert found.test.name(0) == "test_noart/9.jpg"


def test_met_tells_what_is_missing(tmp_path: Path) -> None:
    lists = build_met(tmp_path)
    os.remove(tmp_path / "images/test_met/2.jpg")
    with pytest.raises(SourceError, match=r"Met testset\.json: 1 of 3 files are missing"):
        met_set(str(tmp_path))
    (lists / "MET_database.json").write_text('[{"path": "MET/7/1.jpg"}]')
    with pytest.raises(SourceError, match="no list of entries with path and id"):
        met_set(str(tmp_path))
    (lists / "MET_database.json").unlink()
    with pytest.raises(SourceError, match=r"has no ground_truth/MET_database\.json or"):
        met_set(str(tmp_path))


# --- AmsterTime -------------------------------------------------------------------------------


def test_amstertime_pairs_by_name(tmp_path: Path) -> None:
    for number in (3, 0, 10):
        save(tmp_path / f"new/{number:04d}.png", number)
        save(tmp_path / f"old/{number:04d}.jpg", 100 + number)
    (tmp_path / "image_pairs.csv").write_text("id,url\n")
    found = amstertime(str(tmp_path))
    assert [red(found.new, row) for row in range(3)] == [0, 3, 10]
    assert [red(found.old, row) for row in range(3)] == [100, 103, 110]
    os.remove(tmp_path / "old/0003.jpg")
    with pytest.raises(SourceError, match="1 pictures have no pair, such as '0003'"):
        amstertime(str(tmp_path))
    with pytest.raises(SourceError, match=r"AmsterTime: .*elsewhere is no folder"):
        amstertime(str(tmp_path / "elsewhere"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/AmsterTime.zip").touch()
    os.rename(tmp_path / "new", tmp_path / "later")
    with pytest.raises(SourceError, match=r"has no new; unpack /.*AmsterTime\.zip, or"):
        amstertime(str(tmp_path / "empty"))


# --- wherever the archives were unpacked --------------------------------------------------------


def test_pictures_of_oxford_beside_the_ground_truth(tmp_path: Path) -> None:
    build_revisited(tmp_path / "sets/roxford5k", truth_of())
    for path in (tmp_path / "sets/roxford5k/jpg").iterdir():
        path.rename(path.parents[1] / path.name)
    os.rmdir(tmp_path / "sets/roxford5k/jpg")
    for root in (tmp_path, tmp_path / "sets", tmp_path / "sets/roxford5k"):
        found = revisited_set("roxford5k", str(root))
        assert [red(found.database, row) for row in range(4)] == [0, 1, 2, 3]


@pytest.mark.parametrize("folder", ["paris", "jpg"])
def test_pictures_of_paris_in_folders_of_landmarks(tmp_path: Path, folder: str) -> None:
    truth = truth_of(2)
    truth["imlist"] = ["paris_louvre_000123", "paris_museedorsay_000007"]
    truth["qimlist"] = ["paris_louvre_000005", "paris_general_000001"]
    for entry in truth["gnd"]:
        entry |= {"easy": [1], "hard": [], "junk": []}
    for number, name in enumerate((*truth["imlist"], *truth["qimlist"])):
        save(tmp_path / folder / name.split("_")[1] / f"{name}.jpg", number)
    (tmp_path / "gnd_rparis6k.pkl").write_bytes(pickle.dumps(truth))
    found = revisited_set("rparis6k", str(tmp_path))
    assert [red(found.database, row) for row in range(2)] == [0, 1]
    assert len(found.queries) == 2 and found.queries[0].shape == (4, 6, 3)


@pytest.mark.parametrize("images", ["images", "."])
def test_met_and_its_small_database_from_the_folders_above(tmp_path: Path, images: str) -> None:
    home = tmp_path / "sets/met"
    home.mkdir(parents=True)
    build_met(home)
    for path in list((home / "images").iterdir()):
        path.rename(home / images / path.name)
    for root in (tmp_path, home, home / "ground_truth"):
        assert len(met_set(str(root)).database) == 4
        small = met_set(str(root), mini=True)
        assert (small.classes, small.database.labels.tolist()) == (1, [7])
        assert len(small.test) == 3


def test_amstertime_from_the_folder_above(tmp_path: Path) -> None:
    for side in ("new", "old"):
        save(tmp_path / f"AmsterTime-1.0/AmsterTime-1.0/{side}/0001.jpg", 5)
        (tmp_path / f"AmsterTime-1.0/AmsterTime-1.0/{side}/checksums").touch()
    assert len(amstertime(str(tmp_path)).new) == 1
