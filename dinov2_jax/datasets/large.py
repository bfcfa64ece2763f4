"""iNaturalist 2018 and 2021 and Places205 in their official layouts; the test split is "val"."""

import os
import re
from collections.abc import Callable

from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.datasets import files

_SPECIES = re.compile(r"\d{5}_.+")


def inaturalist2018(root: str, split: str) -> files.Files:
    """iNaturalist 2018: train_val2018/<group>/<species>/*.jpg, train2018.json and val2018.json.

    With categories.json of the release classes have the names of species, otherwise numbers.
    `split` is "train" or "val". Raises SourceError where a list, class or picture is missing.
    """
    title = f"iNaturalist 2018 {split}"
    path = files.find(root, f"{split}2018.json", title=title)
    listed = files.read_json(path)
    try:
        names = {image["id"]: str(image["file_name"]) for image in listed["images"]}
        class_of = {entry["image_id"]: entry["category_id"] for entry in listed["annotations"]}
        numbers = [category["id"] for category in listed["categories"]]
    except (TypeError, KeyError) as error:
        raise SourceError(f"{path} is no list of this set ({error}); download it again") from error
    if names.keys() != class_of.keys():
        raise SourceError(
            f"{path} has {len(names):,} pictures and {len(class_of):,} labels; download it again"
        )
    if sorted(numbers) != list(range(len(numbers))):
        raise SourceError(f"{path} does not number its classes from 0 on; download it again")
    labels = [class_of[number] for number in names]
    pictures = files.home(root, "train_val2018", title=title)
    classes = _species(root, len(numbers), title)
    return files.Files(pictures, list(names.values()), labels, classes, title=title)


def _species(root: str, classes: int, title: str) -> list[str]:
    """Names of the classes; their numbers where there is no list of names."""
    path = files.seek(root, "categories.json", title=title)
    listed = files.read_json(path) if path else []
    names = {entry.get("id"): str(entry.get("name")) for entry in listed if isinstance(entry, dict)}
    whole = sorted(set(names.values())) if names.keys() == set(range(classes)) else []
    return [names[n] if len(whole) == classes else str(n) for n in range(classes)]


def inaturalist2021(root: str, split: str) -> files.Files:
    """iNaturalist 2021: train/<5 digits>_<taxonomy>/*.jpg and val/ alike.

    Reads the folders, not the lists, which take many GB of memory. `split` is "train" or "val".
    Raises SourceError where a class is missing or has no picture.
    """
    title = f"iNaturalist 2021 {split}"
    folder = files.find(root, split, title=title)
    visible = files.folders_in(folder, title)
    classes = [name for name in visible if _SPECIES.fullmatch(name)]
    numbers = [int(name[:5]) for name in classes]
    if numbers != list(range(len(classes))) or not classes:
        lost = next(n for n in range(len(classes) + 1) if n >= len(numbers) or numbers[n] != n)
        raise SourceError(
            f"{title}: {folder} has no folder of class {lost:05d}_...; unpack {split}.tar.gz again"
        )
    odd = sorted(set(visible) - set(classes)) + files.pictures_in(folder)
    notes = files.strays_note(title, folder, odd)
    return files.class_files(folder, classes, classes, title, notes)


def places205(root: str, split: str) -> files.Files:
    """Places205: {train,val}_places205.csv with "picture number" a line, and the pictures.

    The archives unpack into trainvalsplit_places205/ and data/vision/torralba/deeplearning/
    images256/<letter>/<scene>/*.jpg; the latter may lie anywhere below `root` under its last name.
    `split` is "train" or "val". Raises SourceError where a list, class or picture is missing.
    """
    title = f"Places205 {split}"
    path = files.find(
        root,
        f"{split}_places205.csv",
        f"trainvalsplit_places205/{split}_places205.csv",
        title=title,
    )
    rows = files.read_rows(path, 2)
    labels = [files.as_number(number, path) for _, number in rows]
    scenes: dict[int, str] = {}
    for (name, _), label in zip(rows, labels, strict=True):
        scene = os.path.dirname(name)
        if scenes.setdefault(label, scene) != scene:
            raise SourceError(
                f"{path} calls class {label} both {scenes[label]} and {scene}; download it again"
            )
    if sorted(scenes) != list(range(len(scenes))):
        raise SourceError(f"{path} does not number its classes from 0 on; download it again")
    first = scenes[0]
    inside = f"data/vision/torralba/deeplearning/images256/{first}"
    folder = files.find(root, inside, f"images256/{first}", first, title=title)
    pictures = folder.removesuffix(f"/{first}")
    classes = [scenes[number] for number in range(len(scenes))]
    return files.Files(pictures, [name for name, _ in rows], labels, classes, title=title)


LARGE_SETS: dict[str, Callable[[str, str], files.Files]] = {
    "inaturalist2018": inaturalist2018,
    "inaturalist2021": inaturalist2021,
    "places205": places205,
}
