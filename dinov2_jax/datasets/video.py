"""UCF-101, Kinetics-400 and Something-Something v2 by their official lists: files of videos."""

import csv
import logging
import os
from collections.abc import Sequence

from dinov2_jax.data.sources.source import SourceError, check_name
from dinov2_jax.datasets import files

log = logging.getLogger("dinov2_jax")


def ucf101(root: str, split: str, fold: int = 1) -> files.Files:
    """UCF-101: UCF-101/<class>/*.avi, ucfTrainTestlist/{classInd,trainlist01,testlist01}.txt.

    Videos may also lie in `root` directly. `split` is "train" or "test", `fold` 1, 2 or 3, of the
    official ways to split. Raises SourceError where a list, class or video is missing.
    """
    check_name("split", split, ("train", "test"))
    title = f"UCF-101 {split}" + f" of fold {fold}" * (fold > 1)
    path = files.find(root, "ucfTrainTestlist/classInd.txt", "classInd.txt", title=title)
    numbers = {name: files.as_number(number, path) for number, name in files.read_rows(path, 2)}
    classes = sorted(numbers, key=lambda name: numbers[name])
    path = files.require(os.path.dirname(path), f"{split}list{fold:02d}.txt", title=title)
    # Lists for training add the number of the class.
    names = [line.split()[0] for line in files.read_lines(path)]
    labels = files.class_numbers([name.partition("/")[0] for name in names], classes, path)
    first = os.path.dirname(names[0])
    folder = os.path.dirname(files.find(root, f"UCF-101/{first}", first, title=title))
    return files.Files(folder, names, labels, classes, title=title)


def kinetics(root: str, split: str, *, allow_missing: bool = False) -> files.Files:
    """Kinetics: <split>.csv with label, youtube_id, time_start, time_end, split.

    Videos are called <youtube_id>_<start in 6 digits>_<end in 6 digits>.mp4. They lie in the folder
    of the split, or there in class folders, whose blanks may be "_". `root` is the folder of the
    splits' folders; the csv lies in it or in annotations/. `split` is "train", "val" or "test";
    "val" may also be called "validate" or "validation".

    `allow_missing` leaves out missing videos, such as those withdrawn from YouTube; results on such
    a copy cannot be compared closely. Each class must keep at least one video. Raises SourceError
    where a list, class or video is missing.
    """
    check_name("split", split, ("train", "val", "test"))
    title, root = f"Kinetics {split}", os.path.expanduser(root)
    spellings = [split, "validate", "validation"] if split == "val" else [split]
    lists = [f"{folder}{name}.csv" for name in spellings for folder in ("", "annotations/")]
    path = files.find(root, *lists, title=title)
    rows = _kinetics_rows(path)
    classes = sorted({label for label, _ in rows})
    folder = files.find(root, *spellings, title=title)
    names = _in_folders(folder, rows)
    lost = set(files.absent(folder, names)) if allow_missing else set()
    kept = [place for place in range(len(rows)) if place not in lost]
    if lost:
        log.warning("%s: %d of %d videos are missing and left out", title, len(lost), len(rows))
    labels = files.class_numbers([rows[place][0] for place in kept], classes, path)
    return files.Files(folder, [names[place] for place in kept], labels, classes, title=title)


def _kinetics_rows(path: str) -> list[tuple[str, str]]:
    """(label, file name) of every line."""
    reader = csv.DictReader(files.read_lines(path))
    wanted = {"label", "youtube_id", "time_start", "time_end"}
    if not wanted <= set(reader.fieldnames or ()):
        raise SourceError(
            f"{path} has the columns {', '.join(reader.fieldnames or ())}, but needs "
            f"{', '.join(sorted(wanted))}; take the official list with labels"
        )
    rows = []
    for row in reader:
        start, end = (files.as_number(row[name], path) for name in ("time_start", "time_end"))
        rows.append((row["label"], f"{row['youtube_id']}_{start:06d}_{end:06d}.mp4"))
    if not rows:
        raise SourceError(f"{path} lists no video; download it again")
    return rows


def _in_folders(folder: str, rows: Sequence[tuple[str, str]]) -> list[str]:
    """Names, prefixed with the folder of their class where there is one."""
    prefixes = {}
    for label in {label for label, _ in rows}:
        spellings = (label, label.replace(" ", "_"))
        present = [name for name in spellings if os.path.isdir(os.path.join(folder, name))]
        prefixes[label] = f"{present[0]}/" if present else ""
    return [prefixes[label] + name for label, name in rows]


def ssv2(root: str, split: str) -> files.Files:
    """Something-Something v2: labels.json, train.json, validation.json and <id>.webm.

    The lists may be called something-something-v2-<name>.json and lie in labels/; videos lie in
    20bn-something-something-v2/, in videos/ or beside the lists. The class is the template of an
    entry without its brackets. The test list has no labels. Raises SourceError where a list, class
    or video is missing.
    """
    check_name("split", split, ("train", "validation"))
    title = f"SSv2 {split}"

    def listed(name: str) -> str:
        names = [f"{name}.json", f"something-something-v2-{name}.json"]
        return files.find(root, *names, *(f"labels/{n}" for n in names), title=title)

    path = listed("labels")
    given = files.read_json(path)
    if not isinstance(given, dict):
        raise SourceError(f"{path} is no list of classes with numbers; download it again")
    numbers = {name: files.as_number(number, path) for name, number in given.items()}
    classes = sorted(numbers, key=lambda name: numbers[name])
    if sorted(numbers.values()) != list(range(len(numbers))):
        raise SourceError(f"{path} does not number its classes from 0 on; download it again")
    path = listed(split)
    entries = files.read_json(path)
    if not isinstance(entries, list) or not all(
        isinstance(e, dict) and {"id", "template"} <= e.keys() for e in entries
    ):
        raise SourceError(f"{path} has an entry without id or template; download it again")
    templates = [str(entry["template"]).replace("[", "").replace("]", "") for entry in entries]
    labels = files.class_numbers(templates, classes, path)
    names = [f"{entry['id']}.webm" for entry in entries]
    folders = "20bn-something-something-v2", "videos"
    folder = files.seek(root, *folders, title=title) or files.home(root, *names[:99], title=title)
    return files.Files(folder, names, labels, classes, title=title)
