"""UCF-101, Kinetics and Something-Something v2 from miniature copies of their official lists."""

import csv
import json
import os
from pathlib import Path

import pytest

from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.datasets.video import kinetics, ssv2, ucf101


def touch(path: Path) -> None:
    """A file whose bytes are its own name: the lists never look into videos."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(path.name.encode())


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def contents(source) -> list[str]:
    return [source[row].decode() for row in range(len(source))]


# --- UCF-101 ----------------------------------------------------------------------------------


def build_ucf(root: Path, videos: str = "UCF-101") -> None:
    lists = root / "ucfTrainTestlist"
    # Class 10 must not come before class 2.
    names = ["ApplyEyeMakeup", "Archery", *(f"Class{n}" for n in range(3, 11))]
    write(lists / "classInd.txt", *(f"{n} {name}" for n, name in enumerate(names, 1)))
    train = [f"{name}/v_{name}_g08_c01.avi" for name in names]
    test = [f"{name}/v_{name}_g01_c01.avi" for name in reversed(names)]
    write(lists / "trainlist01.txt", *(f"{v} {n}" for n, v in enumerate(train, 1)))
    write(lists / "testlist01.txt", *test)
    for video in (*train, *test):
        touch(root / videos / video)


@pytest.mark.parametrize("videos", ["UCF-101", "."])
def test_ucf101(tmp_path: Path, videos: str) -> None:
    build_ucf(tmp_path, videos)
    train, test = (ucf101(str(tmp_path), split) for split in ("train", "test"))
    assert train.class_names[:2] == ("ApplyEyeMakeup", "Archery")
    assert train.class_names[9] == "Class10"
    assert train.labels.tolist() == list(range(10))
    assert test.labels.tolist() == list(range(10))[::-1]
    assert contents(test)[0] == "v_Class10_g01_c01.avi"
    assert Path(test.path(0)).is_file()
    os.remove(test.path(3))
    with pytest.raises(SourceError, match="UCF-101 test: 1 of 10 files are missing"):
        ucf101(str(tmp_path), "test")


def test_ucf101_of_other_classes_is_told(tmp_path: Path) -> None:
    build_ucf(tmp_path)
    write(tmp_path / "ucfTrainTestlist/classInd.txt", "1 ApplyEyeMakeup")
    with pytest.raises(SourceError, match="names the class 'Archery', which is none of the 1"):
        ucf101(str(tmp_path), "train")
    os.remove(tmp_path / "ucfTrainTestlist/trainlist01.txt")
    with pytest.raises(SourceError, match=r"has no trainlist01\.txt"):
        ucf101(str(tmp_path), "train")


def test_the_other_folds_of_ucf101(tmp_path: Path) -> None:
    build_ucf(tmp_path)
    lists = tmp_path / "ucfTrainTestlist"
    for fold in (2, 3):
        write(lists / f"trainlist0{fold}.txt", *(lists / "testlist01.txt").read_text().split())
        write(lists / f"testlist0{fold}.txt", *(lists / "testlist01.txt").read_text().split()[:-1])
        with pytest.raises(SourceError, match=f"of fold {fold}: 1 of 10 classes have no file"):
            ucf101(str(tmp_path), "test", fold=fold)
        names = (lists / "trainlist01.txt").read_text().split()[::2]
        write(lists / f"testlist0{fold}.txt", *names)
        train, test = (ucf101(str(tmp_path), split, fold=fold) for split in ("train", "test"))
        assert train.labels.tolist() == list(range(10))[::-1]
        assert test.labels.tolist() == list(range(10))


@pytest.mark.parametrize("named", ["sets", "sets/UCF101", "sets/UCF101/ucfTrainTestlist"])
@pytest.mark.parametrize("videos", ["UCF-101", "UCF-101/UCF-101"])
def test_ucf101_from_the_folders_above_and_within(tmp_path: Path, named: str, videos: str) -> None:
    build_ucf(tmp_path / "sets/UCF101", videos)
    assert len(ucf101(str(tmp_path / named), "train")) == 10


# --- Kinetics ---------------------------------------------------------------------------------

VIDEOS = [("abseiling", "-3B32lodo2M", 59), ("air drumming", "a_b", 1), ("abseiling", "x1", 120)]


def build_kinetics(root: Path, folders: str, split: str = "train") -> None:
    root.mkdir(parents=True, exist_ok=True)
    with open(root / "train.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "youtube_id", "time_start", "time_end", "split"])
        writer.writerows([label, name, start, start + 10, "train"] for label, name, start in VIDEOS)
    for label, name, start in VIDEOS:
        below = {"flat": "", "blanks": label, "lines": label.replace(" ", "_")}[folders]
        touch(root / split / below / f"{name}_{start:06d}_{start + 10:06d}.mp4")


@pytest.mark.parametrize("folders", ["flat", "blanks", "lines"])
def test_kinetics(tmp_path: Path, folders: str) -> None:
    build_kinetics(tmp_path, folders)
    source = kinetics(str(tmp_path), "train")
    assert source.class_names == ("abseiling", "air drumming")
    assert source.labels.tolist() == [0, 1, 0]
    assert contents(source) == [
        "-3B32lodo2M_000059_000069.mp4",
        "a_b_000001_000011.mp4",
        "x1_000120_000130.mp4",
    ]


def test_kinetics_finds_lists_and_folders_under_their_other_names(tmp_path: Path) -> None:
    build_kinetics(tmp_path, "flat", split="validate")
    (tmp_path / "annotations").mkdir()
    os.rename(tmp_path / "train.csv", tmp_path / "annotations/validate.csv")
    assert len(kinetics(str(tmp_path), "val")) == 3


def test_kinetics_with_withdrawn_videos(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build_kinetics(tmp_path, "flat")
    os.remove(tmp_path / "train/x1_000120_000130.mp4")
    with pytest.raises(SourceError, match="1 of 3 files are missing"):
        kinetics(str(tmp_path), "train")
    source = kinetics(str(tmp_path), "train", allow_missing=True)
    assert source.labels.tolist() == [0, 1]
    assert "1 of 3 videos are missing and left out" in caplog.text
    os.remove(tmp_path / "train/a_b_000001_000011.mp4")
    with pytest.raises(SourceError, match="1 of 2 classes have no file, such as 'air drumming'"):
        kinetics(str(tmp_path), "train", allow_missing=True)


def test_kinetics_lists_of_another_form_are_told(tmp_path: Path) -> None:
    build_kinetics(tmp_path, "flat")
    write(tmp_path / "train.csv", "youtube_id,time_start,time_end,split", "x1,1,11,test")
    with pytest.raises(SourceError, match="but needs label, time_end, time_start, youtube_id"):
        kinetics(str(tmp_path), "train")
    write(tmp_path / "train.csv", "label,youtube_id,time_start,time_end,split", "a,x1,1")
    with pytest.raises(SourceError, match="has None where a number belongs"):
        kinetics(str(tmp_path), "train")
    write(tmp_path / "train.csv", "label,youtube_id,time_start,time_end,split")
    with pytest.raises(SourceError, match="lists no video"):
        kinetics(str(tmp_path), "train")


# --- Something-Something v2 -------------------------------------------------------------------


def build_ssv2(root: Path, prefix: str, lists: str, videos: str) -> None:
    labels = {"Holding something": "1", "Approaching something with your camera": "0"}
    entries = [
        {
            "id": "78687",
            "label": "holding potato",
            "template": "Holding [something]",
            "placeholders": ["potato"],
        },
        {
            "id": "12",
            "label": "approaching a cup with your camera",
            "template": "Approaching [something] with your camera",
            "placeholders": ["a cup"],
        },
    ]
    (root / lists).mkdir(exist_ok=True)
    for name, value in (("labels", labels), ("train", entries), ("validation", entries[::-1])):
        (root / lists / f"{prefix}{name}.json").write_text(json.dumps(value))
    for number in ("78687", "12"):
        touch(root / videos / f"{number}.webm")


@pytest.mark.parametrize(
    ("prefix", "lists", "videos"),
    [
        ("", ".", "."),
        ("something-something-v2-", "labels", "20bn-something-something-v2"),
        ("something-something-v2-", ".", "videos"),
    ],
)
def test_ssv2(tmp_path: Path, prefix: str, lists: str, videos: str) -> None:
    build_ssv2(tmp_path, prefix, lists, videos)
    train, val = ssv2(str(tmp_path), "train"), ssv2(str(tmp_path), "validation")
    names = ("Approaching something with your camera", "Holding something")
    assert train.class_names == val.class_names == names
    assert (train.labels.tolist(), val.labels.tolist()) == ([1, 0], [0, 1])
    assert contents(train) == contents(val)[::-1] == ["78687.webm", "12.webm"]


def test_ssv2_tells_what_is_wrong(tmp_path: Path) -> None:
    build_ssv2(tmp_path, "", ".", ".")
    os.remove(tmp_path / "12.webm")
    with pytest.raises(SourceError, match=r"1 of 2 files are missing, such as .*12\.webm"):
        ssv2(str(tmp_path), "train")
    (tmp_path / "train.json").write_text('[{"id": "78687"}]')
    with pytest.raises(SourceError, match="an entry without id or template"):
        ssv2(str(tmp_path), "train")
    (tmp_path / "train.json").write_text('[{"id": "78687", "template": "Moving [part] of it"}]')
    with pytest.raises(SourceError, match="names the class 'Moving part of it'"):
        ssv2(str(tmp_path), "train")
    (tmp_path / "labels.json").write_text('{"Holding something": "1"}')
    with pytest.raises(SourceError, match="does not number its classes from 0 on"):
        ssv2(str(tmp_path), "train")
    with pytest.raises(SourceError, match="split='test' is none of"):
        ssv2(str(tmp_path), "test")


@pytest.mark.parametrize("named", ["", "sets", "sets/k400", "sets/k400/annotations"])
def test_kinetics_from_the_folders_above_and_within(tmp_path: Path, named: str) -> None:
    build_kinetics(tmp_path / "sets/k400", "blanks")
    (tmp_path / "sets/k400/annotations").mkdir()
    os.rename(tmp_path / "sets/k400/train.csv", tmp_path / "sets/k400/annotations/train.csv")
    assert len(kinetics(str(tmp_path / named), "train")) == 3


@pytest.mark.parametrize("named", ["", "sets", "sets/ssv2", "sets/ssv2/labels"])
@pytest.mark.parametrize("videos", ["20bn-something-something-v2", "."])
def test_ssv2_from_the_folders_above_and_within(tmp_path: Path, named: str, videos: str) -> None:
    (tmp_path / "sets/ssv2").mkdir(parents=True)
    build_ssv2(tmp_path / "sets/ssv2", "", "labels", videos)
    assert len(ssv2(str(tmp_path / named), "train")) == 2
