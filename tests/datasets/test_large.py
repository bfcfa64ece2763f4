"""iNaturalist and Places205 from miniature copies in their official layouts."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from dinov2_jax.data.decode import decode
from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.datasets.large import LARGE_SETS, inaturalist2018, inaturalist2021, places205


def save(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (value, 0, 0)).save(path, "PNG")


def check(source, class_names: tuple[str, ...], pictures: int) -> None:
    """Labels equal to what was drawn."""
    assert source.class_names == class_names and len(source) == pictures
    drawn = [int(decode(source[row])[0, 0, 0]) for row in range(len(source))]
    assert drawn == source.labels.tolist()


# --- iNaturalist 2018 ---------------------------------------------------------------------------


def build_inaturalist2018(root: Path) -> None:
    number = 0
    for split, count in (("train", 2), ("val", 1)):
        images, labels = [], []
        for label in (2, 0, 1):
            for _ in range(count):
                number += 1
                name = f"train_val2018/Aves/{label}/{number:04x}.jpg"
                save(root / name, label)
                images.append({"id": 100 + number, "file_name": name, "width": 6, "height": 4})
                labels.append({"id": number, "image_id": 100 + number, "category_id": label})
        categories = [
            {"id": n, "name": f"obfuscated {n}", "supercategory": "Aves"} for n in (1, 0, 2)
        ]
        listed = {"images": images, "annotations": labels[::-1], "categories": categories}
        (root / f"{split}2018.json").write_text(json.dumps(listed))


def check_inaturalist2018(root: Path, names: tuple[str, ...] = ("0", "1", "2")) -> None:
    check(inaturalist2018(str(root), "train"), names, 6)
    check(inaturalist2018(str(root), "val"), names, 3)


def test_names_of_species(tmp_path: Path) -> None:
    build_inaturalist2018(tmp_path)
    names = ("Anas acuta", "Buteo buteo", "Corvus corax")
    listed = [{"id": n, "name": name, "kingdom": "Animalia"} for n, name in enumerate(names)]
    (tmp_path / "categories.json").write_text(json.dumps(listed[::-1]))
    check_inaturalist2018(tmp_path, names)


def test_what_a_list_of_inaturalist_2018_lacks_is_told(tmp_path: Path) -> None:
    build_inaturalist2018(tmp_path)
    path = tmp_path / "val2018.json"
    listed = json.loads(path.read_text())
    os.remove(tmp_path / listed["images"][1]["file_name"])
    with pytest.raises(SourceError, match="2018 val: 1 of 3 files are missing"):
        inaturalist2018(str(tmp_path), "val")
    path.write_text(json.dumps(listed | {"annotations": listed["annotations"][1:]}))
    with pytest.raises(SourceError, match="has 3 pictures and 2 labels"):
        inaturalist2018(str(tmp_path), "val")
    path.write_text(json.dumps({"images": []}))
    with pytest.raises(SourceError, match=r"no list of this set \('annotations'\)"):
        inaturalist2018(str(tmp_path), "val")


# --- iNaturalist 2021 ---------------------------------------------------------------------------

SPECIES = tuple(f"{n:05d}_Animalia_Annelida_Polychaeta_{n}" for n in range(3))


def build_inaturalist2021(root: Path) -> None:
    for split, count in (("train", 2), ("val", 1)):
        for label, name in enumerate(SPECIES):
            for number in range(count):
                save(root / split / name / f"{label}{number}.jpg", label)


def check_inaturalist2021(root: Path) -> None:
    check(inaturalist2021(str(root), "train"), SPECIES, 6)
    check(inaturalist2021(str(root), "val"), SPECIES, 3)


def test_a_missing_species_and_strays_are_named(tmp_path: Path) -> None:
    build_inaturalist2021(tmp_path)
    (tmp_path / "val/thumbnails").mkdir()
    save(tmp_path / "val/montage.jpg", 0)
    source = inaturalist2021(str(tmp_path), "val")
    assert len(source) == 3 and "thumbnails and 1 more" in source.notes[0]
    (tmp_path / "val" / SPECIES[1]).rename(tmp_path / "lost")
    with pytest.raises(SourceError, match=r"no folder of class 00001_\.\.\.; unpack val\.tar\.gz"):
        inaturalist2021(str(tmp_path), "val")


# --- Places205 ----------------------------------------------------------------------------------

SCENES = ("a/abbey", "a/airport_terminal", "b/basement/indoor")


def build_places205(root: Path, below: str = "data/vision/torralba/deeplearning/images256") -> None:
    (root / "trainvalsplit_places205").mkdir(parents=True)
    for split, count in (("train", 2), ("val", 1)):
        rows = []
        for label, name in enumerate(SCENES):
            for number in range(count):
                rows.append(f"{name}/gsun_{split}{number}.jpg {label}")
                save(root / below / rows[-1].split()[0], label)
        listed = root / f"trainvalsplit_places205/{split}_places205.csv"
        listed.write_text("\n".join(rows[::-1]) + "\n")


def check_places205(root: Path) -> None:
    check(places205(str(root), "train"), SCENES, 6)
    check(places205(str(root), "val"), SCENES, 3)


@pytest.mark.parametrize("below", ["images256", "."])
def test_pictures_of_places_may_lie_anywhere_below(tmp_path: Path, below: str) -> None:
    build_places205(tmp_path, below)
    check_places205(tmp_path)


def test_what_is_wrong_with_places_is_told(tmp_path: Path) -> None:
    build_places205(tmp_path)
    path = tmp_path / "trainvalsplit_places205/val_places205.csv"
    path.write_text("a/abbey/x.jpg 0\nb/bar/y.jpg 0\n")
    with pytest.raises(SourceError, match="calls class 0 both a/abbey and b/bar"):
        places205(str(tmp_path), "val")
    path.write_text("a/abbey/x.jpg 1\n")
    with pytest.raises(SourceError, match="does not number its classes from 0 on"):
        places205(str(tmp_path), "val")


# --- all ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LARGE_SETS)
def test_the_official_layout_from_the_folders_above_and_within(name: str, tmp_path: Path) -> None:
    home = tmp_path / "sets/archive/archive"
    globals()[f"build_{name}"](home)
    globals()[f"build_{name}"](home / "__MACOSX")
    for root in (tmp_path / "sets", home.parent, home, *filter(Path.is_dir, home.iterdir())):
        if root.name != "__MACOSX":
            globals()[f"check_{name}"](root)


@pytest.mark.parametrize("name", LARGE_SETS)
def test_another_folder_is_one_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "not_there"):
        with pytest.raises(SourceError, match="name the folder into which the set was unpacked"):
            LARGE_SETS[name](str(tmp_path / folder), "val")
