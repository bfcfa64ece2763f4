"""R-Oxford, R-Paris, Met and AmsterTime in their official layouts."""

import os
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dinov2_jax.data.decode import BadImage, decode
from dinov2_jax.data.sources.source import SourceError, Unlabelled, check_name
from dinov2_jax.datasets.files import (
    Files,
    as_number,
    find,
    home,
    pictures_in,
    read_json,
    require,
    seek,
)
from dinov2_jax.datasets.stored import read_pickle

REVISITED = ("roxford5k", "rparis6k")
_KINDS = ("easy", "hard", "junk")


class Cropped(Unlabelled):
    """The queries of the revisited sets: uint8 [h, w, 3] within the box of the landmark.

    The box refers to the displayed picture, after EXIF rotation. The published code does not
    rotate; pictures without an EXIF orientation are the same in both. `boxes` are px [n, 4] left,
    top, right, bottom; rounded, black outside of the picture.
    """

    def __init__(self, files: Files, boxes: np.ndarray) -> None:
        self._files, self._boxes = files, boxes

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> np.ndarray:
        try:
            image = decode(self._files[index])
        except BadImage as error:  # a source may raise only OSError
            raise OSError(str(error)) from error
        left, top, right, bottom = self._boxes[index].tolist()
        return np.asarray(Image.fromarray(image).crop((left, top, right, bottom)))

    def name(self, index: int) -> str:
        """The path of the whole picture."""
        return self._files.name(index)


class RevisitedSet(NamedTuple):
    """R-Oxford or R-Paris."""

    database: Files
    queries: Cropped
    # For every query {"easy", "hard", "junk"}: rows of the database, int64, for `revisited_map`.
    ground_truth: list[dict[str, np.ndarray]]


def revisited_set(name: str, root: str) -> RevisitedSet:
    """R-Oxford or R-Paris (Radenovic et al. 2018): jpg/*.jpg and gnd_<name>.pkl.

    `name` is one of REVISITED. Pictures may also lie beside the ground truth, as the archive of
    Oxford unpacks, or in paris/<landmark>/, as those of Paris do. Raises SourceError where a
    file is missing, or the ground truth has another form.
    """
    check_name("revisited set", name, REVISITED)
    path = find(root, f"gnd_{name}.pkl", title=name)
    stored = read_pickle(path, encoding="latin1")
    if not isinstance(stored, dict) or not {"imlist", "qimlist", "gnd"} <= stored.keys():
        raise SourceError(f"{path} holds no imlist, qimlist and gnd; download it again")
    images, queries, truth = (list(stored[key]) for key in ("imlist", "qimlist", "gnd"))
    if len(queries) != len(truth):
        counts = f"{len(queries)} queries and {len(truth)} ground truths"
        raise SourceError(f"{path} has {counts}; download it again")
    ground_truth = [{kind: _numbers(entry, kind, path) for kind in _KINDS} for entry in truth]
    greatest = max((n.max(initial=0) for entry in ground_truth for n in entry.values()), default=0)
    if greatest >= len(images):
        raise SourceError(
            f"{path} names picture {greatest}, but lists {len(images):,}; download it again"
        )
    boxes = [np.asarray(entry.get("bbx", ()), np.float64) for entry in truth]
    if any(box.shape != (4,) for box in boxes):
        raise SourceError(f"{path} has a query without its box bbx; download it again")
    beside = os.path.dirname(path)
    folder = seek(beside, "jpg", "paris", title=name) or beside
    database = Files(folder, _pictures(folder, images), title=f"{name} database")
    asked = Files(folder, _pictures(folder, queries), title=f"{name} queries")
    return RevisitedSet(database, Cropped(asked, np.stack(boxes)), ground_truth)


def _pictures(folder: str, images: list[str]) -> list[str]:
    """Names of the files; "paris_louvre_000123" may lie in louvre/."""
    landmarks = {image: image.rpartition("_")[0].partition("_")[2] for image in images}
    sorted_by = {name for name in set(landmarks.values()) if os.path.isdir(f"{folder}/{name}/")}
    sorted_by.discard("")
    return [
        os.path.join(landmarks[image] * (landmarks[image] in sorted_by), f"{image}.jpg")
        for image in images
    ]


def _numbers(entry: dict[str, Any], kind: str, path: str) -> np.ndarray:
    if kind not in entry:
        raise SourceError(
            f"{path} has a query without {kind!r}; take the revisited ground truth, not the "
            "original one"
        )
    return np.asarray(entry[kind], np.int64).reshape(-1)


class MetSet(NamedTuple):
    """Met: labels are the museum's numbers of exhibits, -1 for queries that show none."""

    database: Files  # training pictures
    validation: Files  # queries that choose k and temperature
    test: Files
    classes: int  # number of exhibits in the database


def met_set(root: str, mini: bool = False) -> MetSet:
    """Met (Ypsilantis et al. 2021): images/ and ground_truth/*.json.

    `mini` takes the smaller database of the same release, mini_MET_database.json.

    MET_database.json lists {"id", "path"}; testset.json and valset.json list {"path"} and, if the
    query shows an exhibit, "MET_id". Paths begin at images/, or where the archives were unpacked.
    The lists may also lie in `root`.
    Raises SourceError where a file is missing, or a list has another form.
    """
    train = _met_files(root, f"{'mini_' * mini}MET_database.json", "id", required=True)
    validation = _met_files(root, "valset.json", "MET_id")
    test = _met_files(root, "testset.json", "MET_id")
    return MetSet(train, validation, test, len(np.unique(train.labels)))


def _met_files(root: str, name: str, key: str, required: bool = False) -> Files:
    path = find(root, f"ground_truth/{name}", name, title="Met")
    entries = read_json(path)
    good = (
        entries
        and isinstance(entries, list)
        and all(isinstance(e, dict) and isinstance(e.get("path"), str) for e in entries)
    )
    if not good or (required and not all(key in entry for entry in entries)):
        fields = f"path and {key}" if required else "path"
        raise SourceError(f"{path} is no list of entries with {fields}; download it again")
    labels = [as_number(entry.get(key, -1), path) for entry in entries]
    first = entries[0]["path"].partition("/")[0]
    folder = os.path.dirname(find(root, f"images/{first}", first, title="Met"))
    return Files(folder, [entry["path"] for entry in entries], labels, title=f"Met {name}")


class Pairs(NamedTuple):
    """AmsterTime: picture i of `new` and picture i of `old` show one place."""

    new: Files
    old: Files


def amstertime(root: str) -> Pairs:
    """AmsterTime (Yildiz et al. 2022): new/0000.png ..., old/0000.jpg ..., paired by their names.

    Its evaluation ranks the new pictures for each old one and the old ones for each new one, and
    takes the mean of both. Raises SourceError where a folder is missing, or a picture has no pair.
    """
    title = "AmsterTime"
    root, by_stem = home(root, "new", title=title), {}
    for side in ("new", "old"):
        names = pictures_in(require(root, side, title=title))
        by_stem[side] = {os.path.splitext(name)[0]: name for name in names}
    odd = sorted(by_stem["new"].keys() ^ by_stem["old"].keys())
    if odd:
        raise SourceError(
            f"{title}: {len(odd)} pictures have no pair, such as {odd[0]!r}; new/ and old/ must "
            "hold the same names"
        )
    stems = sorted(by_stem["new"])
    sides = (
        Files(os.path.join(root, side), [names[stem] for stem in stems], title=f"{title} {side}")
        for side, names in by_stem.items()
    )
    return Pairs(*sides)
