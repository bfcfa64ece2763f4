"""ImageNet and its variants from miniature copies in the published layouts."""

import csv
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinov2_jax.data.decode import decode
from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.datasets.imagenet import imagenet, imagenet_tfds, known_wnids
from dinov2_jax.datasets.imagenet_variants import (
    CORRUPTIONS,
    imagenet_c,
    imagenet_sketch,
    imagenet_subset,
    imagenet_v2,
    real_labels,
)

WNIDS = ["n01440764", "n01443537", "n02119789", "n02123045"]
# The devkit counts in its own order: id 1 is the third of the sorted ones.
DEVKIT = ["n02119789", "n01440764", "n02123045", "n01443537"]
VAL = ["n02123045", "n01440764", "n02119789", "n02123045", "n01443537"]  # of pictures 1 ... 5


def save(path: Path, value: int) -> None:
    """A picture whose red is `value`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (value, 0, 0)).save(path, "PNG")


def red(source, row: int) -> int:
    return int(decode(source[row])[0, 0, 0])


def val_name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """train/<wnid>/ with two pictures a class, and val/ flat; red is 10 * class + picture."""
    root = tmp_path / "imagenet"
    for label, wnid in enumerate(WNIDS):
        for number in range(2):
            save(root / "train" / wnid / f"{wnid}_{number}.JPEG", 10 * label + number)
    for number, wnid in enumerate(VAL, start=1):
        save(root / "val" / val_name(number), 100 + 10 * WNIDS.index(wnid) + number)
    return root


def write_devkit(folder: Path, ids: list[int] | None = None) -> None:
    io = pytest.importorskip("scipy.io")
    folder.mkdir(parents=True)
    fields = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children"]
    rows = [(number, wnid, "words", "gloss", 0, []) for number, wnid in enumerate(DEVKIT, 1)]
    rows.append((len(rows) + 1, "n00001740", "entity", "a group", 2, [1, 2]))
    synsets = np.array(rows, [(field, object) for field in fields])
    io.savemat(folder / "meta.mat", {"synsets": synsets[:, None]})
    ids = [DEVKIT.index(wnid) + 1 for wnid in VAL] if ids is None else ids
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("\n".join(map(str, ids)) + "\n")


def write_synset_labels(root: Path) -> None:
    (root / "imagenet_2012_validation_synset_labels.txt").write_text("\n".join(VAL) + "\n")


def write_kaggle(root: Path) -> None:
    rows = [(val_name(n).removesuffix(".JPEG"), wnid) for n, wnid in enumerate(VAL, 1)]
    with open(root / "LOC_val_solution.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ImageId", "PredictionString"])
        for name, wnid in reversed(rows):  # which is in no order
            writer.writerow([name, f"{wnid} 85 1 499 272 {wnid} 1 2 3 4 "])


def write_caffe(root: Path) -> None:
    rows = [f"{val_name(n)} {WNIDS.index(wnid)}" for n, wnid in enumerate(VAL, 1)]
    (root / "val.txt").write_text("\n".join(rows))


def check_val(source) -> None:
    assert source.class_names == tuple(WNIDS)
    assert source.labels.dtype == np.int64
    for row in range(len(source)):
        number = int(source.name(row)[-13:-5])
        assert source.labels[row] == WNIDS.index(VAL[number - 1])
        assert red(source, row) == 100 + 10 * source.labels[row] + number
    assert len(source) == len(VAL)


def test_train_folders(root: Path) -> None:
    source = imagenet(str(root), "train")
    assert source.class_names == tuple(WNIDS)
    assert [red(source, row) for row in range(len(source))] == [0, 1, 10, 11, 20, 21, 30, 31]
    np.testing.assert_array_equal(source.labels, [0, 0, 1, 1, 2, 2, 3, 3])
    again = pickle.loads(pickle.dumps(source))
    assert again.name(5) == "n02119789/n02119789_1.JPEG"
    assert again[5] == source[5]


def test_val_with_the_devkit_is_brought_to_the_sorted_order(root: Path) -> None:
    write_devkit(root / "ILSVRC2012_devkit_t12/data")
    check_val(imagenet(str(root), "val"))


@pytest.mark.parametrize("write", [write_synset_labels, write_kaggle, write_caffe])
def test_val_with_text_lists(root: Path, write) -> None:
    write(root)
    check_val(imagenet(str(root), "val"))


def test_lists_are_found_above_the_pictures_and_where_they_are_named(
    root: Path, tmp_path: Path
) -> None:
    write_caffe(root.parent)
    check_val(imagenet(str(root), "val"))
    os.rename(root.parent / "val.txt", tmp_path / "labels.txt")
    check_val(imagenet(str(root), "val", val_labels=str(tmp_path / "labels.txt")))


def test_the_layout_of_kaggle(root: Path, tmp_path: Path) -> None:
    home = tmp_path / "kaggle"
    (home / "ILSVRC/Data").mkdir(parents=True)
    os.rename(root, home / "ILSVRC/Data/CLS-LOC")
    write_kaggle(home)
    (home / "LOC_synset_mapping.txt").write_text("".join(f"{wnid} a, b\n" for wnid in WNIDS))
    check_val(imagenet(str(home / "ILSVRC/Data/CLS-LOC"), "val"))


def test_val_in_class_folders_without_training_set(root: Path, tmp_path: Path) -> None:
    home = tmp_path / "sorted"
    for number, wnid in enumerate(VAL, 1):
        (home / "val" / wnid).mkdir(parents=True, exist_ok=True)
        os.rename(root / "val" / val_name(number), home / "val" / wnid / val_name(number))
    check_val(imagenet(str(home), "val"))


def test_a_missing_class_is_told(root: Path) -> None:
    (root / "synset_words.txt").write_text("".join(f"{wnid} a, b\n" for wnid in WNIDS))
    imagenet(str(root), "train")
    for file in (root / "train" / WNIDS[2]).iterdir():
        file.unlink()
    with pytest.raises(SourceError, match="1 of 4 classes have no file, such as 'n02119789'"):
        imagenet(str(root), "train")
    (root / "train" / WNIDS[2]).rmdir()
    with pytest.raises(SourceError, match="1 of 4 class folders are missing"):
        imagenet(str(root), "train")


def test_lists_of_another_length_are_told(root: Path) -> None:
    write_synset_labels(root)
    with open(root / "imagenet_2012_validation_synset_labels.txt", "a") as file:
        file.write(WNIDS[0] + "\n")
    with pytest.raises(SourceError, match="has 6 labels, but there are 5 pictures"):
        imagenet(str(root), "val")
    (root / "imagenet_2012_validation_synset_labels.txt").unlink()
    write_caffe(root)
    (root / "val" / val_name(3)).unlink()
    with pytest.raises(SourceError, match="has 5 labels, but there are 4 pictures"):
        imagenet(str(root), "val")
    save(root / "val" / val_name(9), 0)
    with pytest.raises(SourceError, match=r"no label for 1 of 5 pictures, such as .*00000009"):
        imagenet(str(root), "val")


def test_ids_that_the_devkit_does_not_know_are_told(root: Path) -> None:
    write_devkit(root / "ILSVRC2012_devkit_t12/data", [1, 2, 3, 4, 5])  # 5 is a group of classes
    with pytest.raises(SourceError, match=r"an id beyond 1 \.\.\. 4"):
        imagenet(str(root), "val")


def test_a_devkit_of_other_classes_is_refused(root: Path) -> None:
    write_devkit(root / "ILSVRC2012_devkit_t12/data")
    save(root / "train/n09999999/a.JPEG", 0)
    with pytest.raises(SourceError, match="is of 4 classes, but 5 others are listed"):
        imagenet(str(root), "val")


def test_val_without_labels_and_unsorted_lists_are_told(root: Path) -> None:
    with pytest.raises(SourceError, match=r"need labels; put one of LOC_val_solution\.csv"):
        imagenet(str(root), "val")
    (root / "synset_words.txt").write_text("\n".join(DEVKIT))
    with pytest.raises(SourceError, match="does not list each WordNet id once in sorted order"):
        known_wnids(str(root))
    with pytest.raises(SourceError, match="split='test' is none of 'train', 'val'"):
        imagenet(str(root), "test")


def test_tfds_of_other_classes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Source:
        class_names = ("tench", "goldfish")

    def opened(kind: str, path: str, split: str) -> Source:
        assert (kind, path, split) == ("tfds", "imagenet2012", "validation")
        return Source()

    monkeypatch.setattr("dinov2_jax.datasets.imagenet.open_source", opened)
    with pytest.raises(SourceError, match="no classes in the order of sorted WordNet ids"):
        imagenet_tfds("imagenet2012", "val")
    Source.class_names = tuple(WNIDS)
    assert imagenet_tfds("imagenet2012", "val").class_names == tuple(WNIDS)


# --- variants ---------------------------------------------------------------------------------


def test_v2_folders_are_numbers_not_words(tmp_path: Path) -> None:
    wnids = [f"n{number:08d}" for number in range(12)]
    for number in range(12):
        save(tmp_path / str(number) / "a.jpeg", number)
    source = imagenet_v2(str(tmp_path), wnids)
    assert source.class_names == tuple(wnids)
    # Sorted as words, folder "10" would be class 2.
    assert [red(source, row) for row in range(12)] == source.labels.tolist() == list(range(12))
    os.rename(tmp_path / "10", tmp_path / "99")
    with pytest.raises(SourceError, match=r"1 of 12 class folders are missing, such as .*/10;"):
        imagenet_v2(str(tmp_path), wnids)


def test_subsets_say_which_classes_they_have(tmp_path: Path) -> None:
    for wnid in (WNIDS[3], WNIDS[1]):
        save(tmp_path / "imagenet-a" / wnid / "x.jpg", WNIDS.index(wnid))
    (tmp_path / "imagenet-a/README.txt").write_text("of the authors")
    found = imagenet_subset(str(tmp_path / "imagenet-a"), WNIDS, classes=2)
    np.testing.assert_array_equal(found.classes, [1, 3])
    np.testing.assert_array_equal(found.pictures.labels, [0, 1])
    for row, label in enumerate(found.pictures.labels):
        assert red(found.pictures, row) == found.classes[label]
    with pytest.raises(SourceError, match="holds 2 class folders, but the set has 200"):
        imagenet_subset(str(tmp_path / "imagenet-a"), WNIDS)
    with pytest.raises(SourceError, match="names the class 'n02123045', which is none of the 2"):
        imagenet_subset(str(tmp_path / "imagenet-a"), WNIDS[:2], classes=2)


def test_sketch_and_corruptions(tmp_path: Path) -> None:
    for label, wnid in enumerate(WNIDS):
        save(tmp_path / "sketch" / wnid / "sketch_0.JPEG", label)
        save(tmp_path / "c/fog/3" / wnid / "a.JPEG", 10 + label)
        save(tmp_path / "c/noise/shot_noise/5" / wnid / "a.JPEG", 20 + label)
    assert [red(imagenet_sketch(str(tmp_path), WNIDS), row) for row in range(4)] == [0, 1, 2, 3]
    fog = imagenet_c(str(tmp_path / "c"), "fog", 3, WNIDS)
    noise = imagenet_c(str(tmp_path / "c"), "shot_noise", 5, WNIDS)
    assert [red(fog, row) for row in range(4)] == [10, 11, 12, 13]
    assert [red(noise, row) for row in range(4)] == [20, 21, 22, 23]
    with pytest.raises(SourceError, match=r"ImageNet-C fog 4: .* has no fog/4"):
        imagenet_c(str(tmp_path / "c"), "fog", 4, WNIDS)
    assert len(set(CORRUPTIONS)) == 15


def test_real_labels_follow_the_pictures_in_any_order(root: Path, tmp_path: Path) -> None:
    lists = [[3], [], [2, 0], [3, 1, 2], [1]]
    path = tmp_path / "real.json"
    path.write_text(json.dumps(lists))
    write_caffe(root)
    flat = imagenet(str(root), "val")
    np.testing.assert_array_equal(
        real_labels(str(path), flat),
        [[3, -1, -1], [-1, -1, -1], [2, 0, -1], [3, 1, 2], [1, -1, -1]],
    )
    for number, wnid in enumerate(VAL, 1):  # class folders change the order of pictures
        (root / "val" / wnid).mkdir(exist_ok=True)
        os.rename(root / "val" / val_name(number), root / "val" / wnid / val_name(number))
    sorted_by_class = imagenet(str(root), "val")
    found = real_labels(str(path), sorted_by_class)
    for row in range(5):
        number = int(sorted_by_class.name(row)[-13:-5])
        assert [n for n in found[row] if n >= 0] == lists[number - 1]
    assert [len([n for n in row if n >= 0]) for row in found] != [len(row) for row in lists]


def test_real_labels_of_another_set_are_refused(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "real.json"
    path.write_text(json.dumps([[1]] * 4))
    write_caffe(root)
    with pytest.raises(SourceError, match="has 4 labels, but there are 5 pictures"):
        real_labels(str(path), imagenet(str(root), "val"))
    path.write_text(json.dumps([[1]] * 8))
    with pytest.raises(SourceError, match=r"but one is called n01440764/n01440764_0\.JPEG"):
        real_labels(str(path), imagenet(str(root), "train"))
    path.write_text("{")
    with pytest.raises(SourceError, match="is no JSON"):
        real_labels(str(path), imagenet(str(root), "val"))
    path.write_text("[1, 2]")
    with pytest.raises(SourceError, match="no list of lists"):
        real_labels(str(path), imagenet(str(root), "val"))


# --- strays, and folders above the set ----------------------------------------------------------


def sort_val(root: Path) -> None:
    """Moves the pictures of val/ into class folders."""
    for number, wnid in enumerate(VAL, 1):
        (root / "val" / wnid).mkdir(exist_ok=True)
        os.rename(root / "val" / val_name(number), root / "val" / wnid / val_name(number))


@pytest.mark.parametrize("stray", ["wget-log", "README", "montage.jpeg", "valprep.sh", "n.tar"])
def test_strays_beside_class_folders_are_left_out_and_named(root: Path, stray: str) -> None:
    sort_val(root)
    save(root / "val" / stray, 0)
    save(root / "train" / stray, 0)
    save(root / "val/.cache/x.jpeg", 0)
    for split in ("train", "val"):
        save(root / split / "__MACOSX/x.jpeg", 0)
        save(root / split / "thumbnails/x.jpeg", 0)
        source = imagenet(str(root), split)
        assert len(source) == {"train": 8, "val": len(VAL)}[split]
        assert source.class_names == tuple(WNIDS)
        (note,) = source.notes
        assert ("montage.jpeg and 1 more" if stray == "montage.jpeg" else "thumbnails") in note


@pytest.mark.parametrize("write", [write_synset_labels, write_kaggle, write_caffe])
def test_strays_beside_flat_pictures_are_left_out_and_named(root: Path, write) -> None:
    write(root)
    for stray in ("wget-log", "montage.jpeg", "thumbnails/x.jpeg"):
        save(root / "val" / stray, 0)
    source = imagenet(str(root), "val")
    check_val(source)
    assert "montage.jpeg and 1 more, left out" in source.notes[0]


def test_a_set_that_is_sorted_in_part_is_refused(root: Path) -> None:
    write_kaggle(root)
    sort_val(root)
    os.rename(root / "val" / VAL[1] / val_name(2), root / "val" / val_name(2))
    save(root / "val" / VAL[1] / "other.JPEG", 0)
    with pytest.raises(SourceError, match=r"1 pictures lie beside .*00000002\.JPEG; move them"):
        imagenet(str(root), "val")


def test_class_folders_that_train_lacks_are_named(root: Path) -> None:
    sort_val(root)
    save(root / "val/n09999999/x.JPEG", 0)
    with pytest.raises(SourceError, match="names the class 'n09999999', which is none of the 4"):
        imagenet(str(root), "val")


def test_class_archives_that_are_not_unpacked_are_named(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for wnid in WNIDS:
        (tmp_path / f"train/{wnid}.tar").touch()
    with pytest.raises(SourceError, match=r"class folder; unpack /.*n01440764\.tar and its like"):
        imagenet(str(tmp_path), "train")


@pytest.mark.parametrize(
    "named", ["", "kaggle", "kaggle/ILSVRC", "kaggle/ILSVRC/Data", "kaggle/ILSVRC/Data/CLS-LOC/val"]
)
def test_kaggles_archive_as_it_unpacks(root: Path, tmp_path: Path, named: str) -> None:
    home = tmp_path / "above/kaggle"
    (home / "ILSVRC/Data").mkdir(parents=True)
    os.rename(root, home / "ILSVRC/Data/CLS-LOC")
    for split in ("train", "val"):  # boxes, in folders of the same names
        (home / "ILSVRC/Annotations/CLS-LOC" / split).mkdir(parents=True)
    write_kaggle(home)
    (home / "LOC_synset_mapping.txt").write_text("".join(f"{wnid} a, b\n" for wnid in WNIDS))
    check_val(imagenet(str(tmp_path / "above" / named), "val"))


def test_variants_are_found_one_folder_deeper_and_strays_ignored(tmp_path: Path) -> None:
    for label, wnid in enumerate(WNIDS):
        save(tmp_path / f"v2/imagenetv2-matched-frequency-format-val/{label}/a.jpeg", label)
        save(tmp_path / f"sketch/sketch/{wnid}/a.JPEG", label)
        save(tmp_path / f"r/imagenet-r/{wnid}/a.jpg", label)
        save(tmp_path / f"c/blur/defocus_blur/3/{wnid}/a.JPEG", label)
    for folder in list(tmp_path.rglob("*")):
        if folder.is_dir():
            (folder / "README").touch()
            save(folder / "__MACOSX/a.jpeg", 0)
    assert red(imagenet_v2(str(tmp_path / "v2"), WNIDS), 2) == 2
    assert red(imagenet_sketch(str(tmp_path / "sketch"), WNIDS), 2) == 2
    assert imagenet_subset(str(tmp_path / "r"), WNIDS, 4).classes.tolist() == [0, 1, 2, 3]
    assert red(imagenet_c(str(tmp_path / "c"), "defocus_blur", 3, WNIDS), 3) == 3


def test_doubled_class_folders(root: Path) -> None:
    for wnid in WNIDS[:2]:
        os.rename(root / "train" / wnid, root / "train/x")
        (root / "train" / wnid).mkdir()
        os.rename(root / "train/x", root / "train" / wnid / wnid)
    source = imagenet(str(root), "train")
    assert [red(source, row) for row in range(len(source))] == [0, 1, 10, 11, 20, 21, 30, 31]


@pytest.mark.parametrize("sign", [" ", ",", "\t"])
@pytest.mark.parametrize("heading", ["", "image{}label\n"])
@pytest.mark.parametrize("before", ["", "val/"])
@pytest.mark.parametrize("ids", [True, False])
def test_lists_of_names_with_ids_or_numbers(
    root: Path, tmp_path: Path, sign: str, heading: str, before: str, ids: bool
) -> None:
    labels = [wnid if ids else str(WNIDS.index(wnid)) for wnid in VAL]
    rows = [f"{before}{val_name(n)}{sign}{label}" for n, label in enumerate(labels, 1)]
    path = tmp_path / "labels.txt"
    path.write_text(heading.format(sign) + "\n".join(rows[::-1]))
    check_val(imagenet(str(root), "val", val_labels=str(path)))
    path.write_text("\n".join([*rows[:-1], f"{val_name(5)}{sign}4"]))
    with pytest.raises(SourceError, match="has the class '4', which is neither one of the 4"):
        imagenet(str(root), "val", val_labels=str(path))
    path.write_text("\n".join([*rows[:-1], val_name(5)]))
    with pytest.raises(SourceError, match=r"line 5 is .*, but needs a name and a class"):
        imagenet(str(root), "val", val_labels=str(path))
