"""The twelve transfer sets from miniature copies in their official layouts.

Every picture's red says which class it was drawn for, so that labels are judged by pixels.
"""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinov2_jax.data.decode import decode
from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.datasets.transfer import (
    TRANSFER_SETS,
    VOC_CLASSES,
    caltech101,
    transfer_folders,
    transfer_set,
    voc2007,
)


def save(path: Path, label: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (label, 0, 0)).save(path, "PNG")


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def pixels(source, row: int) -> np.ndarray:
    record = source[row]
    return record if isinstance(record, np.ndarray) else decode(record)


def check(source, names: list[str], class_names: tuple[str, ...]) -> None:
    """The names, in order, with labels equal to what was drawn."""
    assert [source.name(row) for row in range(len(source))] == names
    assert source.class_names == class_names
    assert source.labels.dtype == np.int64
    drawn = [int(pixels(source, row)[0, 0, 0]) for row in range(len(source))]
    assert drawn == source.labels.tolist()
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(pixels(again, 0), pixels(source, 0))


# --- builders ---------------------------------------------------------------------------------


def build_food101(root: Path) -> None:
    classes = ["apple_pie", "baby_back_ribs", "baklava"]
    write(root / "meta/classes.txt", *classes)
    for split, numbers in (("train", (1005649, 7)), ("test", (12,))):
        rows = [f"{name}/{number}" for name in classes for number in numbers]
        write(root / f"meta/{split}.txt", *rows)
        for row in rows:
            save(root / f"images/{row}.jpg", classes.index(row.split("/")[0]))


def check_food101(found) -> None:
    names = ("apple_pie", "baby_back_ribs", "baklava")
    check(found.test, [f"{name}/12.jpg" for name in names], names)
    assert len(found.train) == 6
    assert found.train.name(1) == "apple_pie/7.jpg"


def cifar_batch(labels: list[int], label_key: bytes, seed: int) -> dict[bytes, object]:
    """Rows of 1024 red, 1024 green, 1024 blue; red is the label, green the column, blue the row."""
    red = np.repeat(np.array(labels, np.uint8)[:, None], 1024, axis=1)
    green = np.tile(np.arange(32, dtype=np.uint8), 32)[None].repeat(len(labels), 0)
    blue = np.repeat(np.arange(32, dtype=np.uint8), 32)[None].repeat(len(labels), 0)
    return {
        b"data": np.concatenate([red, green, blue], axis=1),
        label_key: labels,
        b"batch_label": b"training batch",
        b"filenames": [b"a.png"] * len(labels),
    }


def dump(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value, protocol=2))


def build_cifar10(root: Path) -> None:
    folder = root / "cifar-10-batches-py"
    for number in range(1, 6):
        dump(folder / f"data_batch_{number}", cifar_batch([0, 1, number % 3], b"labels", number))
    dump(folder / "test_batch", cifar_batch([2, 1, 0], b"labels", 9))
    dump(folder / "batches.meta", {b"label_names": [b"airplane", b"automobile", b"bird"]})


def check_cifar10(found) -> None:
    names = ("airplane", "automobile", "bird")
    check(found.test, [f"test_batch[{row}]" for row in range(3)], names)
    check(found.train, [f"data_batch_1[{row}]" for row in range(15)], names)
    assert found.train.labels[2::3].tolist() == [1, 2, 0, 1, 2]
    picture = found.train[3]
    assert picture.shape == (32, 32, 3)
    assert picture.dtype == np.uint8
    assert picture[5, 17].tolist() == [0, 17, 5]
    assert len(pickle.dumps(found.train)) < 2000  # no pixels go to the workers


def build_cifar100(root: Path) -> None:
    folder = root / "cifar-100-python"
    for split, labels in (("train", [1, 0, 1, 0]), ("test", [0, 1])):
        batch = cifar_batch(labels, b"fine_labels", 0) | {b"coarse_labels": [0] * len(labels)}
        dump(folder / split, batch)
    names = {b"fine_label_names": [b"apple", b"aquarium_fish"], b"coarse_label_names": [b"food"]}
    dump(folder / "meta", names)


def check_cifar100(found) -> None:
    check(found.train, [f"train[{row}]" for row in range(4)], ("apple", "aquarium_fish"))
    check(found.test, ["test[0]", "test[1]"], ("apple", "aquarium_fish"))


def build_sun397(root: Path) -> None:
    classes = ["/a/abbey", "/a/airplane_cabin", "/a/apartment_building/outdoor"]
    write(root / "Partitions/ClassName.txt", *classes)
    for split, mark in (("Training", "x"), ("Testing", "y")):
        rows = [f"{name}/sun_{mark}.jpg" for name in classes]
        write(root / f"Partitions/{split}_01.txt", *rows)
        for label, row in enumerate(rows):
            save(root / row[1:], label)


def check_sun397(found) -> None:
    names = ("a/abbey", "a/airplane_cabin", "a/apartment_building/outdoor")
    check(found.train, [f"{name}/sun_x.jpg" for name in names], names)
    check(found.test, [f"{name}/sun_y.jpg" for name in names], names)


def savemat(path: Path, values: dict[str, object]) -> None:
    scipy = pytest.importorskip("scipy.io")
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.savemat(path, values)


CARS = ("AM General Hummer SUV 2000", "Acura RL Sedan 2012")


def build_cars(root: Path) -> None:
    fields = [f"bbox_{side}" for side in ("x1", "y1", "x2", "y2")] + ["class", "fname"]
    lists = {
        "train": ("devkit/cars_train_annos.mat", [2, 1, 2]),
        "test": ("cars_test_annos_withlabels.mat", [1, 2]),
    }
    savemat(root / "devkit/cars_meta.mat", {"class_names": np.array([CARS], object)})
    for split, (path, labels) in lists.items():
        rows = [(1, 2, 3, 4, c, f"{n:05d}.jpg") for n, c in enumerate(labels, 1)]
        savemat(root / path, {"annotations": np.array([rows], [(f, object) for f in fields])})
        for number, label in enumerate(labels, 1):
            save(root / f"cars_{split}/{number:05d}.jpg", label - 1)


def check_cars(found) -> None:
    check(found.train, [f"cars_train/{n:05d}.jpg" for n in (1, 2, 3)], CARS)
    check(found.test, [f"cars_test/{n:05d}.jpg" for n in (1, 2)], CARS)


def build_aircraft(root: Path) -> None:
    variants = ["707-320", "F/A-18", "Model B200"]  # with a slash and with a blank
    write(root / "data/variants.txt", *variants)
    for place, split in enumerate(("train", "val", "test")):
        rows = [f"{100 * place + n:07d} {variant}" for n, variant in enumerate(variants)]
        write(root / f"data/images_variant_{split}.txt", *rows)
        for label in range(3):
            save(root / f"data/images/{100 * place + label:07d}.jpg", label)


def check_aircraft(found) -> None:
    names = ("707-320", "F/A-18", "Model B200")
    for place, source in enumerate((found.train, found.val, found.test)):
        check(source, [f"{100 * place + n:07d}.jpg" for n in range(3)], names)


def annotation(*objects: tuple[str, int]) -> str:
    inside = "".join(
        f"<object><name>{name}</name><pose>Left</pose><difficult>{difficult}</difficult>"
        "<part><name>head</name></part></object>"
        for name, difficult in objects
    )
    return f"<annotation><folder>VOC2007</folder>{inside}</annotation>"


def build_voc2007(root: Path) -> None:
    home = root / "VOCdevkit/VOC2007"
    for place, split in enumerate(("train", "val", "test")):
        numbers = [f"{place}{n:05d}" for n in range(2)]
        write(home / f"ImageSets/Main/{split}.txt", *numbers)
        (home / "Annotations").mkdir(exist_ok=True)
        every = annotation(*((name, 0) for name in VOC_CLASSES))
        (home / f"Annotations/{numbers[0]}.xml").write_text(every)
        objects = [("dog", 1), ("cat", 1), ("cat", 0), ("sheep", 0), ("sheep", 1), ("dog", 1)]
        (home / f"Annotations/{numbers[1]}.xml").write_text(annotation(*objects))
        for number in numbers:
            save(home / f"JPEGImages/{number}.jpg", place)


def check_voc2007(found) -> None:
    for place, source in enumerate((found.train, found.val, found.test)):
        assert source.labels is None
        assert source.class_names == VOC_CLASSES
        assert [source.name(row) for row in (0, 1)] == [f"{place}00000.jpg", f"{place}00001.jpg"]
        assert source.targets.dtype == np.int8
        assert (source.targets[0] == 1).all()
        second = dict(zip(VOC_CLASSES, source.targets[1].tolist(), strict=True))
        # A class is difficult only where none of its objects is easy.
        assert {name: value for name, value in second.items() if value} == {
            "cat": 1,
            "dog": -1,
            "sheep": 1,
        }


def build_dtd(root: Path) -> None:
    classes = ["banded", "blotchy"]
    for split in ("train", "val", "test"):
        rows = [f"{name}/{name}_{split}.jpg" for name in classes]
        write(root / f"labels/{split}1.txt", *rows)
        for label, row in enumerate(rows):
            save(root / "images" / row, label)


def check_dtd(found) -> None:
    for split in ("train", "val", "test"):
        names = [f"{name}/{name}_{split}.jpg" for name in ("banded", "blotchy")]
        check(getattr(found, split), names, ("banded", "blotchy"))


def build_pets(root: Path) -> None:
    names = ["Abyssinian", "american_bulldog"]
    for split, number in (("trainval", 100), ("test", 1)):
        rows = [f"{name}_{number} {label} {2 - label} 1" for label, name in enumerate(names, 1)]
        write(root / f"annotations/{split}.txt", *rows[::-1])
        for label, name in enumerate(names):
            save(root / f"images/{name}_{number}.jpg", label)


def check_pets(found) -> None:
    names = ("Abyssinian", "american_bulldog")
    check(found.train, ["american_bulldog_100.jpg", "Abyssinian_100.jpg"], names)
    check(found.test, ["american_bulldog_1.jpg", "Abyssinian_1.jpg"], names)


def build_caltech101(root: Path) -> None:
    for label, name in enumerate(["Faces", "accordion"]):
        for number in range(1, 34 + label):
            save(root / f"101_ObjectCategories/{name}/image_{number:04d}.jpg", label)
    for number in range(1, 40):
        save(root / f"101_ObjectCategories/BACKGROUND_Google/image_{number:04d}.jpg", 77)


def check_caltech101(found) -> None:
    names = ("Faces", "accordion")
    parts = {"train": found.train, "test": found.test}
    rows = {part: [s.name(row) for row in range(len(s))] for part, s in parts.items()}
    check(found.train, rows["train"], names)
    check(found.test, rows["test"], names)
    assert np.bincount(found.train.labels).tolist() == [30, 30]
    assert np.bincount(found.test.labels).tolist() == [3, 4]
    assert len({*rows["train"], *rows["test"]}) == 67


def build_flowers102(root: Path) -> None:
    labels = np.array([[2, 1, 2, 1, 1, 2, 2]], np.uint8)  # of pictures 1 ... 7
    savemat(root / "imagelabels.mat", {"labels": labels})
    ids = {"trnid": [[3, 2]], "valid": [[1, 4]], "tstid": [[7, 6, 5]]}
    savemat(root / "setid.mat", {name: np.array(value, np.uint16) for name, value in ids.items()})
    for number, label in enumerate(labels[0], 1):
        save(root / f"jpg/image_{number:05d}.jpg", int(label) - 1)


def check_flowers102(found) -> None:
    for source, numbers in ((found.train, (3, 2)), (found.val, (1, 4)), (found.test, (7, 6, 5))):
        check(source, [f"jpg/image_{number:05d}.jpg" for number in numbers], ("1", "2"))


def build_cub200(root: Path) -> None:
    home = root / "CUB_200_2011"
    names = ["001.Black_footed_Albatross", "002.Laysan_Albatross"]
    write(home / "classes.txt", *(f"{n} {name}" for n, name in enumerate(names, 1)))
    files = [f"{name}/{name[4:]}_{n}.jpg" for name in names for n in range(2)]
    write(home / "images.txt", *(f"{n} {file}" for n, file in enumerate(files, 1)))
    write(home / "image_class_labels.txt", "1 1", "2 1", "3 2", "4 2")
    write(home / "train_test_split.txt", "4 1", "3 0", "2 0", "1 1")  # in another order
    for place, file in enumerate(files):
        save(home / "images" / file, place // 2)


def check_cub200(found) -> None:
    names = ("001.Black_footed_Albatross", "002.Laysan_Albatross")
    for source, number in ((found.train, (0, 1)), (found.test, (1, 0))):
        files = [f"{name}/{name[4:]}_{n}.jpg" for name, n in zip(names, number, strict=True)]
        check(source, files, names)


METRICS = {name: "top1" for name in TRANSFER_SETS}
METRICS |= dict.fromkeys(("aircraft", "pets", "caltech101", "flowers102"), "mean_per_class")
METRICS["voc2007"] = "map11"
WITH_VAL = {"aircraft", "voc2007", "dtd", "flowers102"}


@pytest.mark.parametrize("name", TRANSFER_SETS)
def test_reads_the_official_layout(name: str, tmp_path: Path) -> None:
    globals()[f"build_{name}"](tmp_path)
    found = transfer_set(name, str(tmp_path))
    globals()[f"check_{name}"](found)
    assert found.metric == METRICS[name]
    assert (found.val is not None) == (name in WITH_VAL)


@pytest.mark.parametrize("name", sorted(TRANSFER_SETS.keys() - {"cifar10", "cifar100"}))
def test_a_missing_picture_is_told_before_anything_is_read(name: str, tmp_path: Path) -> None:
    globals()[f"build_{name}"](tmp_path)
    found = transfer_set(name, str(tmp_path))
    os.remove(found.test.path(0))
    if name == "caltech101":  # which has no list: the others are then drawn anew
        for row in range(1, 3):
            os.remove(found.test.path(row))
        with pytest.raises(SourceError, match="has 30 pictures, but 30 are for training"):
            transfer_set(name, str(tmp_path))
        return
    with pytest.raises(SourceError, match=r"1 of \d files are missing, such as /"):
        transfer_set(name, str(tmp_path))


@pytest.mark.parametrize("name", TRANSFER_SETS)
def test_another_folder_is_one_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "not_there"):
        with pytest.raises(SourceError) as error:
            transfer_set(name, str(tmp_path / folder))
        assert "name the folder into which the set was unpacked" in str(error.value)
        assert "\n" not in str(error.value)


def test_an_unknown_set_is_told() -> None:
    with pytest.raises(SourceError, match="did you mean 'food101'"):
        transfer_set("food", "/")


def test_a_class_without_pictures_is_told(tmp_path: Path) -> None:
    build_food101(tmp_path)
    write(tmp_path / "meta/classes.txt", "apple_pie", "baby_back_ribs", "baklava", "waffles")
    with pytest.raises(SourceError, match="1 of 4 classes have no file, such as 'waffles'"):
        transfer_set("food101", str(tmp_path))
    write(tmp_path / "meta/classes.txt", "apple_pie", "baklava")
    with pytest.raises(SourceError, match="'baby_back_ribs', which is none of the 2 classes"):
        transfer_set("food101", str(tmp_path))


def test_lists_of_other_lengths_are_told(tmp_path: Path) -> None:
    build_cub200(tmp_path / "cub")
    write(tmp_path / "cub/CUB_200_2011/image_class_labels.txt", "1 1", "2 1", "3 2")
    with pytest.raises(SourceError, match=r"labels.txt has 3 pictures and images\.txt 4"):
        transfer_set("cub200", str(tmp_path / "cub"))
    build_flowers102(tmp_path / "flowers")
    labels = {"labels": np.array([[1, 2, 1, 2, 1, 2]], np.uint8)}
    savemat(tmp_path / "flowers/imagelabels.mat", labels)
    with pytest.raises(SourceError, match=r"names picture 7, but imagelabels\.mat has 6 labels"):
        transfer_set("flowers102", str(tmp_path / "flowers"))
    build_cifar10(tmp_path / "cifar")
    batch = cifar_batch([0, 1, 2], b"labels", 0)
    batch[b"labels"] = [0, 1]
    dump(tmp_path / "cifar/cifar-10-batches-py/data_batch_3", batch)
    with pytest.raises(SourceError, match="has 2 labels for 3 pictures"):
        transfer_set("cifar10", str(tmp_path / "cifar"))


def test_lines_without_a_label_are_told(tmp_path: Path) -> None:
    build_aircraft(tmp_path)
    write(tmp_path / "data/images_variant_val.txt", "0000100 707-320", "0000101")
    with pytest.raises(SourceError, match="line 2 is '0000101', but needs 2 columns"):
        transfer_set("aircraft", str(tmp_path))


def test_words_in_place_of_numbers_are_told(tmp_path: Path) -> None:
    build_pets(tmp_path)
    write(tmp_path / "annotations/test.txt", "Abyssinian_1 one 1 1")
    with pytest.raises(SourceError, match=r"test\.txt has 'one' where a number belongs"):
        transfer_set("pets", str(tmp_path))


def test_voc_tells_what_is_wrong_with_annotations(tmp_path: Path) -> None:
    build_voc2007(tmp_path)
    file = tmp_path / "VOCdevkit/VOC2007/Annotations/000001.xml"
    file.write_text(annotation(("unicorn", 0)))
    with pytest.raises(SourceError, match="shows 'unicorn', which is none of the 20"):
        voc2007(str(tmp_path), "train")
    file.write_text("<annotation>")
    with pytest.raises(SourceError, match="is no XML"):
        voc2007(str(tmp_path), "train")
    file.unlink()
    with pytest.raises(SourceError, match="1 of 2 annotations are missing"):
        voc2007(str(tmp_path), "train")
    every = annotation(*((name, int(name == "sofa")) for name in VOC_CLASSES))
    for number in range(2):
        (file.parent / f"00000{number}.xml").write_text(every)
    with pytest.raises(SourceError, match="no picture shows 'sofa'"):
        voc2007(str(tmp_path), "train")


def test_caltech_draws_the_same_pictures_each_time(tmp_path: Path) -> None:
    build_caltech101(tmp_path)
    one, other = (caltech101(str(tmp_path)).train for _ in range(2))
    names = [one.name(row) for row in range(len(one))]
    assert names == [other.name(row) for row in range(len(other))]
    assert one.class_names == ("Faces", "accordion") and len(one) == 60


def test_damaged_files_are_one_sentence(tmp_path: Path) -> None:
    build_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py/test_batch"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(SourceError, match="test_batch is no readable pickle"):
        transfer_set("cifar10", str(tmp_path))
    build_flowers102(tmp_path)
    (tmp_path / "setid.mat").write_bytes(b"no MATLAB file" * 20)
    with pytest.raises(SourceError, match=r"setid\.mat is no readable MATLAB file"):
        transfer_set("flowers102", str(tmp_path))


def test_without_scipy_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_flowers102(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "scipy.io", None)
    with pytest.raises(ImportError, match="pip install scipy"):
        transfer_set("flowers102", str(tmp_path))


# --- wherever an archive was unpacked -----------------------------------------------------------


def double(folder: Path) -> None:
    """folder/x -> folder/folder/x"""
    inner = folder.with_name(folder.name + "~")
    folder.rename(inner)
    folder.mkdir()
    inner.rename(folder / folder.name)


@pytest.mark.parametrize("name", TRANSFER_SETS)
def test_a_set_is_found_from_the_folders_above_and_within(name: str, tmp_path: Path) -> None:
    home = tmp_path / "sets/archive/archive"
    globals()[f"build_{name}"](home)
    for root in (tmp_path / "sets", home.parent, home, *filter(Path.is_dir, home.iterdir())):
        globals()[f"check_{name}"](transfer_set(name, str(root)))
        if name == "sun397" and root == home:
            break  # a class folder is none of the set's own


@pytest.mark.parametrize("name", TRANSFER_SETS)
def test_doubled_folders_of_a_set_are_read(name: str, tmp_path: Path) -> None:
    globals()[f"build_{name}"](tmp_path / "set")
    for folder in list(filter(Path.is_dir, (tmp_path / "set").iterdir())):
        if name != "sun397" or folder.name == "Partitions":
            double(folder)
    globals()[f"check_{name}"](transfer_set(name, str(tmp_path / "set")))


@pytest.mark.parametrize("name", TRANSFER_SETS)
def test_strays_are_never_read(name: str, tmp_path: Path) -> None:
    globals()[f"build_{name}"](tmp_path / "set")
    globals()[f"build_{name}"](tmp_path / "__MACOSX/set")
    globals()[f"build_{name}"](tmp_path / ".cache/set")
    folders = [Path(folder) for folder, _, _ in os.walk(tmp_path / "set")]
    for folder in folders:
        for stray in ("wget-log", ".DS_Store", "Thumbs.db", "README", "index.html", "SHA256SUMS"):
            (folder / stray).touch()
        (folder / "__MACOSX").mkdir()
        (folder / "@eaDir").mkdir()
    globals()[f"check_{name}"](transfer_set(name, str(tmp_path)))


def test_two_copies_are_named(tmp_path: Path) -> None:
    build_food101(tmp_path / "old")
    build_food101(tmp_path / "new")
    with pytest.raises(SourceError, match=r"both .*/(old|new) and .*/(old|new) hold meta/classes"):
        transfer_set("food101", str(tmp_path))


def test_an_archive_that_is_not_unpacked_is_named(tmp_path: Path) -> None:
    (tmp_path / "food-101.tar.gz").touch()
    with pytest.raises(SourceError, match=r"has no meta/classes\.txt; unpack /.*food-101\.tar\.gz"):
        transfer_set("food101", str(tmp_path))
    with pytest.raises(SourceError, match=r"is no folder; unpack /.*food-101\.tar\.gz"):
        transfer_set("food101", str(tmp_path / "food-101.tar.gz"))
    (tmp_path / "caltech-101").mkdir()
    (tmp_path / "caltech-101/101_ObjectCategories.tar.gz").touch()
    os.remove(tmp_path / "food-101.tar.gz")
    with pytest.raises(SourceError, match=r"unpack /.*/caltech-101/101_ObjectCategories\.tar"):
        transfer_set("caltech101", str(tmp_path))


@pytest.mark.parametrize("lists", ["", "Partitions/", "SUN397/", "SUN397/Partitions/"])
@pytest.mark.parametrize("named", ["", "SUN397"])
def test_lists_of_sun_may_lie_beside_its_pictures(tmp_path: Path, lists: str, named: str) -> None:
    build_sun397(tmp_path / "SUN397")
    (tmp_path / "SUN397/Partitions").rename(tmp_path / "lists")
    (tmp_path / lists).mkdir(exist_ok=True)
    for path in (tmp_path / "lists").iterdir():
        path.rename(tmp_path / lists / path.name)
    check_sun397(transfer_set("sun397", str(tmp_path / named)))


def test_archives_of_voc_may_be_unpacked_apart(tmp_path: Path) -> None:
    for archive, split in (("VOCtrainval_06-Nov-2007", "test"), ("VOCtest_06-Nov-2007", "train")):
        build_voc2007(tmp_path / archive)
        lists = tmp_path / archive / "VOCdevkit/VOC2007/ImageSets/Main"
        os.remove(lists / f"{split}.txt")
        if split == "train":
            os.remove(lists / "val.txt")
    check_voc2007(transfer_set("voc2007", str(tmp_path)))


def test_archives_of_cars_may_be_unpacked_apart(tmp_path: Path) -> None:
    build_cars(tmp_path)
    for name in ("devkit", "cars_train", "cars_test"):
        (tmp_path / f"archive_{name}").mkdir()
        (tmp_path / name).rename(tmp_path / f"archive_{name}" / name)
    check_cars(transfer_set("cars", str(tmp_path)))


def as_binary(batch: dict[bytes, object], *keys: bytes) -> bytes:
    columns = [np.array(batch[key], np.uint8)[:, None] for key in keys]
    return np.concatenate([*columns, batch[b"data"]], axis=1).tobytes()


def test_cifar_in_its_binary_version(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    write(folder / "batches.meta.txt", "airplane", "automobile", "bird", "")
    for number in range(1, 6):
        batch = cifar_batch([0, 1, number % 3], b"labels", number)
        (folder / f"data_batch_{number}.bin").write_bytes(as_binary(batch, b"labels"))
    batch = cifar_batch([2, 1, 0], b"labels", 9)
    (folder / "test_batch.bin").write_bytes(as_binary(batch, b"labels"))
    found = transfer_set("cifar10", str(tmp_path))
    names = ("airplane", "automobile", "bird")
    check(found.test, [f"test_batch.bin[{row}]" for row in range(3)], names)
    check(found.train, [f"data_batch_1.bin[{row}]" for row in range(15)], names)
    assert found.train[3][5, 17].tolist() == [0, 17, 5]
    (folder / "test_batch.bin").write_bytes(as_binary(batch, b"labels")[:-1])
    with pytest.raises(SourceError, match=r"test_batch\.bin holds no whole number of pictures"):
        transfer_set("cifar10", str(tmp_path))
    folder = tmp_path / "cifar-100-binary"
    write(folder / "fine_label_names.txt", "apple", "aquarium_fish")
    for split, labels in (("train", [1, 0, 1, 0]), ("test", [0, 1])):
        batch = cifar_batch(labels, b"fine", 0) | {b"coarse": [7] * len(labels)}
        (folder / f"{split}.bin").write_bytes(as_binary(batch, b"coarse", b"fine"))
    found = transfer_set("cifar100", str(tmp_path))
    check(found.test, ["test.bin[0]", "test.bin[1]"], ("apple", "aquarium_fish"))
    assert found.train.labels.tolist() == [1, 0, 1, 0]


def test_an_empty_class_folder_of_caltech_is_named(tmp_path: Path) -> None:
    build_caltech101(tmp_path)
    (tmp_path / "101_ObjectCategories/tmp").mkdir()
    with pytest.raises(SourceError, match=r"/tmp holds no picture; remove it if it is no class"):
        transfer_set("caltech101", str(tmp_path))


def test_folders_of_transfer_sets_have_the_names_of_archives(tmp_path: Path) -> None:
    called = {
        "food101": "food-101", "cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-binary",
        "sun397": "SUN397", "cars": "stanford_cars", "aircraft": "fgvc-aircraft-2013b",
        "voc2007": "VOCdevkit", "dtd": "DTD", "pets": "oxford-iiit-pet", "cub200": "CUB_200_2011",
        "caltech101": "caltech-101", "flowers102": "Flowers-102",
    }  # fmt: skip
    for folder in (*called.values(), "coco"):
        (tmp_path / folder).mkdir()
    found = transfer_folders(str(tmp_path))
    assert found == {name: str(tmp_path / folder) for name, folder in called.items()}


def test_cars_of_one_archive(tmp_path: Path) -> None:
    fields = ["relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test"]
    rows = [(f"car_ims/{n:06d}.jpg", 1, 2, 3, 4, n % 2 + 1, n // 4) for n in range(1, 7)]
    values = {
        "annotations": np.array([rows], [(field, object) for field in fields]),
        "class_names": np.array([CARS], object),
    }
    savemat(tmp_path / "cars_annos.mat", values)
    for name, *_, number, _ in rows:
        save(tmp_path / "archive" / name, number - 1)
    found = transfer_set("cars", str(tmp_path))
    check(found.train, [row[0] for row in rows[:3]], CARS)
    check(found.test, [row[0] for row in rows[3:]], CARS)


@pytest.mark.parametrize(
    ("name", "meta"),
    [
        ("cifar10", "cifar-10-batches-mat/batches.meta.mat"),
        ("cifar100", "cifar-100-matlab/meta.mat"),
    ],
)
def test_the_matlab_version_of_cifar_is_told(tmp_path: Path, name: str, meta: str) -> None:
    write(tmp_path / meta, "")
    with pytest.raises(SourceError, match="MATLAB version; download the Python or the binary"):
        transfer_set(name, str(tmp_path))
    globals()[f"build_{name}"](tmp_path)
    globals()[f"check_{name}"](transfer_set(name, str(tmp_path)))


def test_voc_of_2012_beside_that_of_2007(tmp_path: Path) -> None:
    build_voc2007(tmp_path)
    write(tmp_path / "VOCdevkit/VOC2012/ImageSets/Main/train.txt", "2008_000002")
    for root in (tmp_path, tmp_path / "VOCdevkit", tmp_path / "VOCdevkit/VOC2007"):
        check_voc2007(transfer_set("voc2007", str(root)))
