"""Folders and lists of paths."""

import os
import pickle
from pathlib import Path

import pytest
from PIL import Image

from dinov2_jax.data.decode import decode
from dinov2_jax.data.sources.folder import Folder
from dinov2_jax.data.sources.open import open_source
from dinov2_jax.data.sources.source import SourceError, check_same_classes


def save(path: Path, value: int = 0) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 8), (value, 0, 0)).save(path, "PNG")
    return path.read_bytes()


def names(source: Folder) -> list[str]:
    return [source.name(row) for row in range(len(source))]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    root = tmp_path / "pictures"
    for number, name in enumerate(
        ["b.png", "a/z.jpg", "a/deep/er/y.PNG", "c/no_extension", "c/ünïcødé 図.jpeg", "c/odd.xyz"]
    ):
        save(root / name, number)
    for name in (".hidden.png", ".git/x.png", "notes.txt", "a/Thumbs.db", "a/read.ME.md"):
        save(root / name)
    return root


def test_folder_is_recursive_and_sorted(pictures: Path) -> None:
    source = Folder(str(pictures))
    assert names(source) == sorted(names(source), key=os.fsencode)
    assert set(names(source)) == {
        *("b.png", "a/z.jpg", "a/deep/er/y.PNG", "c/no_extension", "c/ünïcødé 図.jpeg"),
        "c/odd.xyz",
    }
    for row in range(len(source)):
        assert decode(source[row]).shape == (8, 12, 3)
    assert source[0] == (pictures / names(source)[0]).read_bytes()


def test_folder_pickles_with_its_names(pictures: Path) -> None:
    source = Folder(str(pictures))
    again = pickle.loads(pickle.dumps(source))
    assert names(again) == names(source)
    assert again[2] == source[2]


def test_loops_are_read_once_and_dead_links_are_unreadable_pictures(pictures: Path) -> None:
    """DataLad and DVC leave links to nothing for files that were not fetched."""
    expected = names(Folder(str(pictures)))
    (pictures / "a" / "loop").symlink_to(pictures)
    (pictures / "dead.png").symlink_to(pictures / "nowhere.png")
    (pictures / "dead.txt").symlink_to(pictures / "nowhere.txt")
    (pictures / "itself.png").symlink_to(pictures / "itself.png")
    (pictures / "unmounted").symlink_to(pictures / "nowhere")
    source = Folder(str(pictures))
    lost = {"dead.png", "itself.png", "unmounted"}
    assert set(names(source)) == {*expected, *lost}
    for name in lost:
        with pytest.raises(OSError):
            source[names(source).index(name)]
    (note,) = source.notes
    assert "a/loop leads to the same folder as ." in note


def test_two_links_to_one_folder_are_told(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "set").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).symlink_to(tmp_path / "elsewhere")
    source = Folder(str(tmp_path / "set"))
    assert len(source) == 1
    (note,) = source.notes
    assert "cat leads to the same folder as dog" in note


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    name = os.path.join(os.fsencode(tmp_path), b"caf\xe9.png")
    try:
        Path(os.fsdecode(name)).write_bytes(save(tmp_path / "plain.png"))
    except OSError:
        pytest.skip("this file system demands UTF-8")
    source = Folder(str(tmp_path))
    assert len(source) == 2
    assert source[0] == source[1]


def test_a_folder_that_may_not_be_read_is_a_bad_record(pictures, monkeypatch) -> None:
    scan = os.scandir

    def refuse(path):
        if os.fsdecode(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    source = open_source("folder", str(pictures))
    assert "a/deep" in names(source) and "a/deep/er/y.PNG" not in names(source)
    with pytest.raises(OSError):
        source[names(source).index("a/deep")]


def test_list_of_paths(pictures: Path, tmp_path: Path) -> None:
    listing = tmp_path / "list.txt"
    absolute = pictures / "b.png"
    listing.write_text(f"pictures/c/ünïcødé 図.jpeg\r\n\n{absolute}\npictures/a/z.jpg", "utf-8")
    source = open_source("folder", str(listing))
    assert names(source) == ["pictures/c/ünïcødé 図.jpeg", str(absolute), "pictures/a/z.jpg"]
    assert source[2] == (pictures / "a/z.jpg").read_bytes()


def test_class_folders(tmp_path: Path) -> None:
    for label in ("cat", "dog", "emu"):
        for number in range(20):
            save(tmp_path / label / "more" / f"{number}.png", number)
    parts = {
        split: open_source("folder", str(tmp_path), split, labels="folders")
        for split in ("train", "test", "all")
    }
    found = {split: names(part) for split, part in parts.items()}
    assert sorted(found["train"] + found["test"]) == sorted(found["all"])
    assert 0.1 < len(found["test"]) / 60 < 0.3
    for part in parts.values():
        assert part.class_names == ("cat", "dog", "emu")
        for row in range(len(part)):
            assert part.name(row).startswith(part.class_names[part.labels[row]])
    save(tmp_path / "cat" / "new.png")
    again = names(open_source("folder", str(tmp_path), "test", labels="folders"))
    assert set(found["test"]) <= set(again)  # a new file moves no other
    assert open_source("folder", str(tmp_path), labels="auto").labels is not None
    unlabelled = open_source("folder", str(tmp_path))
    assert unlabelled.labels is None
    assert len(unlabelled) == 61  # without labels a split is everything


def test_folders_of_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layout of torchvision's ImageNet, reached by a path that the shell left as it was."""
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            save(tmp_path / "sets" / split / label / "0.png")
    save(tmp_path / "sets" / "train" / "dog" / "1.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    train, validation = (
        open_source("folder", "~/sets", split, labels="folders")
        for split in ("train", "validation")
    )
    assert names(train) == ["cat/0.png", "dog/0.png", "dog/1.png"]
    assert train.labels.tolist() == [0, 1, 1]
    assert names(validation) == names(open_source("folder", "~/sets", "test"))
    assert validation.class_names == ("cat", "dog")
    check_same_classes(train, validation)
    assert len(open_source("folder", "~/sets", "train")) == 3  # pretraining leaves val/ alone
    assert len(open_source("folder", "~/sets", "all")) == 5
    save(tmp_path / "sets" / "val" / "eel" / "0.png")
    more = open_source("folder", "~/sets", "validation", labels="folders")
    with pytest.raises(SourceError, match="1 of them on one side only, such as 'eel'"):
        check_same_classes(train, more)


@pytest.mark.parametrize(
    "train, held_out",
    [
        ("train", "val"), ("Train", "Test"), ("TRAIN", "VALIDATION"), ("training", "testing"),
        ("train", "eval"), ("train", "dev"), ("train", "test_set"), ("Training Set", "Test Set"),
        ("train2017", "val2017"), ("images_train", "images_test"), ("train_images", "valid"),
        ("trainval", "test"),
    ],
)  # fmt: skip
def test_folders_of_splits_in_any_spelling(tmp_path: Path, train: str, held_out: str) -> None:
    for folder, count in ((train, 2), (held_out, 3), ("other", 1)):
        for label in ("cat", "dog"):
            for number in range(count):
                save(tmp_path / folder / label / f"{number}.png")
    source = open_source("folder", str(tmp_path), "train", labels="auto")
    assert len(source) == 4 and source.class_names == ("cat", "dog")
    assert f"{train}/ is train" in source.notes[0] and "other" in source.notes[0]
    for split in ("validation", "test", "val", "dev"):
        assert len(open_source("folder", str(tmp_path), split)) == 6
    whole = open_source("folder", str(tmp_path), "all")
    assert len(whole) == 12 and "held-out ones too" in whole.notes[0]


def test_class_folders_of_all_splits_are_the_classes(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            save(tmp_path / split / label / "0.png")
    source = open_source("folder", str(tmp_path), "all", labels="folders")
    assert source.class_names == ("cat", "dog") and source.labels.tolist() == [0, 1, 0, 1]


def test_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    for name in ("train2014", "train2017", "val2017"):
        save(tmp_path / name / "0.png")
    with pytest.raises(SourceError, match=r"train2014/ and train2017/, and both look like .*train"):
        open_source("folder", str(tmp_path), "train")
    assert len(open_source("folder", str(tmp_path), "val")) == 1


@pytest.mark.parametrize("kind", ["folder", "list"])
def test_an_unknown_split_is_never_everything(tmp_path: Path, kind: str) -> None:
    save(tmp_path / "pictures" / "0.png")
    (tmp_path / "list").write_text("pictures/0.png\n")
    path = str(tmp_path / ("pictures" if kind == "folder" else "list"))
    for split in ("trian", "", "tests"):
        with pytest.raises(SourceError, match="is none of"):
            open_source("folder", path, split)
    for split in ("test", "val"):
        with pytest.raises(SourceError, match="has no folder for the split"):
            open_source("folder", path, split)
    assert len(open_source("folder", path, "train")) == len(open_source("folder", path, "all")) == 1


@pytest.mark.parametrize("content", [Image.new("L", (9, 9)).tobytes(), "a.png\n".encode("utf-16")])
def test_what_is_no_list(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "list").write_bytes(content)
    with pytest.raises(SourceError, match="neither a folder nor a list of paths in UTF-8"):
        open_source("folder", str(tmp_path / "list"))


def test_auto_labels_need_class_folders(pictures: Path) -> None:
    assert open_source("folder", str(pictures), labels="auto").labels is None
    with pytest.raises(SourceError, match=r"b\.png lies directly in"):
        open_source("folder", str(pictures), labels="folders")


def test_absolute_paths_of_a_list_have_no_class_folders(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{pictures}/b.png\n{pictures}/a/z.jpg\n")
    with pytest.raises(SourceError, match="lists absolute paths; list paths relative to it"):
        open_source("folder", str(tmp_path / "list.txt"), labels="folders")
    assert open_source("folder", str(tmp_path / "list.txt"), labels="auto").labels is None


@pytest.mark.parametrize("labels", ["auto", "folders"])
@pytest.mark.parametrize("inside", ["", "train/"])
def test_strays_beside_class_folders_hide_no_class(tmp_path: Path, labels: str, inside: str):
    for name in ("cat/1.jpg", "cat/no_ending", "dog/2.jpg"):
        for split in {inside, inside.replace("train", "val")}:
            (tmp_path / split / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / split / name).touch()
    for stray in ("wget-log", "README", "@eaDir/1.jpg", "lost+found/x", "cat/@eaDir/1.jpg"):
        (tmp_path / inside / stray).parent.mkdir(exist_ok=True)
        (tmp_path / inside / stray).touch()
    source = open_source("folder", str(tmp_path), "train" if inside else "all", labels=labels)
    assert source.class_names == ("cat", "dog")
    assert [source.name(row) for row in range(3)] == ["cat/1.jpg", "cat/no_ending", "dog/2.jpg"]
    assert any("also holds README and 1 more, left out" in note for note in source.notes)


def test_a_picture_beside_class_folders_is_told(tmp_path: Path) -> None:
    for name in ("cat/1.jpg", "dog/2.jpg", "3.jpg", "README"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    source = open_source("folder", str(tmp_path), labels="auto")
    assert source.labels is None and len(source) == 4
    (note,) = source.notes
    assert note.startswith("3.jpg lies in ") and note.endswith("so these are no classes")
    with pytest.raises(SourceError, match=r"3\.jpg lies directly in"):
        open_source("folder", str(tmp_path), labels="folders")
