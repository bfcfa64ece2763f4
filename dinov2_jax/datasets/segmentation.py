"""Sets with masks: a class for every pixel."""

import functools
import os
from collections.abc import Callable, Sequence

import numpy as np

from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.datasets.dense import DenseData, DenseSplit
from dinov2_jax.datasets.files import Files, check_present, find, home, read_lines, seek
from dinov2_jax.datasets.masks import distinct_colours, mapped_reader, read_class_names, reader
from dinov2_jax.datasets.pairs import open_pair, open_pairs
from dinov2_jax.datasets.pixel_classes import (
    ADE20K,
    CITYSCAPES,
    CITYSCAPES_COLOURS,
    CITYSCAPES_IDS,
    VOC2012,
    voc_colours,
)

SEGMENTATION_SETS = ("ade20k", "voc2012", "cityscapes", "camvid", "folder")
# The 11 classes of the usual version (Badrinarayanan et al. 2017); 11 is void.
_CAMVID = (
    *("Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car"),
    *("Pedestrian", "Bicyclist"),
)
_AUGMENTED = "trainaug.txt", "train_aug.txt"  # names that the list of 10,582 has in copies


def open_segmentation(name: str, path: str) -> DenseData:
    """Opens a set with masks.

    Args:
      name: one of SEGMENTATION_SETS.
      path: the root in the official layout, or a folder above: ADEChallengeData2016/ of "ade20k";
        VOC2012/ of "voc2012", with the 10,582 training pictures where it has
        SegmentationClassAug/ or SBD's benchmark_RELEASE/ lies beside it; leftImg8bit/ and gtFine/
        of "cityscapes". "camvid" and "folder": see `pairs.open_pairs`, with classes.txt at the
        root, a class a line; the values 255 and K of a mask are ignored.

    Raises:
      SourceError: files are missing, in one sentence.
    """
    root = os.path.expanduser(path)
    opened = {"ade20k": _ade20k, "voc2012": _voc2012, "cityscapes": _cityscapes}
    return opened[name](root) if name in opened else _pairs(name, root)


def _pairs(name: str, root: str) -> DenseData:
    listed = os.path.join(root, "classes.txt")
    if name == "camvid" and os.path.isdir(root) and not os.path.exists(listed):
        names, colours = _CAMVID, distinct_colours(len(_CAMVID))
    else:
        names, colours = read_class_names(listed)
    title = name if name != "folder" else os.path.basename(os.path.abspath(root))
    return DenseData(title, open_pairs(root, "masks", reader(len(names)), title), names, colours)


def _ade20k(root: str) -> DenseData:
    base = home(root, "annotations/training", title="ADE20K")
    read = reader(len(ADE20K), zero_is_none=True)
    splits = {
        name: open_pair(
            os.path.join(base, "images", folder),
            os.path.join(base, "annotations", folder),
            read,
            f"ADE20K, {name}",
        )
        for name, folder in (("train", "training"), ("test", "validation"))
    }
    return DenseData("ade20k", splits, ADE20K, distinct_colours(len(ADE20K)))


# ------------------------------------------------------------------------------------------- VOC
def _voc2012(root: str) -> DenseData:
    base = home(root, "ImageSets/Segmentation/val.txt", title="VOC 2012")
    own = os.path.join(base, "SegmentationClass")
    judged = _listed(base, "val.txt")
    train, masks, notes = _voc_train(root, base, own, set(judged))
    title, read = "VOC 2012", functools.partial(_read_voc, classes=len(VOC2012))
    splits = {
        "train": _voc_split(base, train, masks, read, f"{title}, train", notes),
        "test": _voc_split(base, judged, _pngs(own, judged), read, f"{title}, val", ()),
    }
    return DenseData("voc2012", splits, VOC2012, voc_colours(len(VOC2012)))


def _voc_train(
    root: str, base: str, own: str, judged: set[str]
) -> tuple[list[str], list[str], Sequence[str]]:
    """Names and masks of the training pictures, and a note where these are the few of VOC."""
    folder = os.path.join(base, "SegmentationClassAug")
    listed = seek(root, *_AUGMENTED, *(f"ImageSets/Segmentation/{x}" for x in _AUGMENTED), title="")
    if os.path.isdir(folder) and listed:
        names = read_lines(listed)
        return names, _pngs(folder, names), ()
    train = _listed(base, "train.txt")
    sbd = seek(root, "dataset/cls", "benchmark_RELEASE/dataset/cls", "sbd/cls", title="SBD")
    if not sbd:
        note = (
            f"VOC 2012, train: only its own {len(train):,} pictures; the usual 10,582 need "
            "SegmentationClassAug/ with trainaug.txt, or SBD's benchmark_RELEASE/ beside it"
        )
        return train, _pngs(own, train), (note,)
    lists = [os.path.join(os.path.dirname(sbd), name) for name in ("train.txt", "val.txt")]
    more = {name for path in lists for name in read_lines(path)} - judged - set(train)
    masks = _pngs(own, train) + [os.path.join(sbd, f"{name}.mat") for name in sorted(more)]
    return train + sorted(more), masks, ()


def _listed(base: str, file: str) -> list[str]:
    return read_lines(os.path.join(base, "ImageSets/Segmentation", file))


def _pngs(folder: str, names: Sequence[str]) -> list[str]:
    return [os.path.join(folder, f"{name}.png") for name in names]


def _voc_split(
    base: str,
    names: Sequence[str],
    masks: Sequence[str],
    read: Callable[[str], np.ndarray],
    title: str,
    notes: Sequence[str],
) -> DenseSplit:
    _check_masks_exist(masks, title)
    pictures = [f"JPEGImages/{name}.jpg" for name in names]
    return DenseSplit(Files(base, pictures, title=title, notes=notes), tuple(masks), read)


def _check_masks_exist(masks: Sequence[str], title: str) -> None:
    for folder in dict.fromkeys(map(os.path.dirname, masks)):
        names = [os.path.basename(path) for path in masks if os.path.dirname(path) == folder]
        check_present(folder, names, title, "masks")


def _read_voc(path: str, classes: int) -> np.ndarray:
    """VOC's own masks are PNG files, those of SBD are Matlab's."""
    if not path.endswith(".mat"):
        return reader(classes)(path)
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise SourceError(
            f'{path} is read by scipy: pip install "dinov2_jax[eval]"; or give '
            "SegmentationClassAug/ with trainaug.txt"
        ) from error
    try:
        return np.asarray(loadmat(path)["GTcls"]["Segmentation"][0, 0], np.uint8)
    except Exception as error:  # a damaged file raises nearly any type
        raise SourceError(f"the mask {path} cannot be read ({error})") from error


# ------------------------------------------------------------------------------------- Cityscapes
def _cityscapes(root: str) -> DenseData:
    read = mapped_reader({value: place for place, value in enumerate(CITYSCAPES_IDS)})
    splits = {
        name: _cityscapes_split(root, folder, read)
        for name, folder in (("train", "train"), ("test", "val"))
    }
    return DenseData("cityscapes", splits, CITYSCAPES, CITYSCAPES_COLOURS)


def _cityscapes_split(root: str, split: str, read: Callable[[str], np.ndarray]) -> DenseSplit:
    title, ending = f"Cityscapes, {split}", "_leftImg8bit.png"
    base = find(root, f"leftImg8bit/{split}", title=title)
    masks = find(root, f"gtFine/{split}", title=title)
    names = [
        f"{city}/{name}"
        for city in sorted(os.listdir(base))
        if os.path.isdir(os.path.join(base, city))
        for name in sorted(os.listdir(os.path.join(base, city)))
        if name.endswith(ending)
    ]
    files = [name.removesuffix(ending) + "_gtFine_labelIds.png" for name in names]
    check_present(masks, files, title, "masks")
    targets = tuple(os.path.join(masks, name) for name in files)
    return DenseSplit(Files(base, names, title=title), targets, read)
