"""Pascal VOC 2007 as classification; a picture may show several classes."""

import os
from xml.etree import ElementTree

import numpy as np

from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.datasets.files import Files, check_present, read_lines, require

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip


def voc2007(root: str, split: str) -> Files:
    """One split: JPEGImages/*.jpg, ImageSets/Main/<split>.txt, Annotations/*.xml.

    `root` is VOC2007, or the folder above it (VOCdevkit); the annotations of "test" are a separate
    download. `targets` int8 [n, 20] are 1 if the picture shows the class, 0 if it does not, -1 if
    all its objects are marked difficult; the metric of this class leaves such pictures out. Raises
    SourceError where a list, picture or annotation is missing, or a class has no picture.
    """
    title = f"VOC2007 {split}"
    folders = ("", "VOC2007/", "VOCdevkit/VOC2007/")
    main = require(root, *(f"{folder}ImageSets/Main" for folder in folders), title=title)
    root = os.path.dirname(os.path.dirname(main))
    numbers = [line.split()[0] for line in read_lines(require(main, f"{split}.txt", title=title))]
    annotations = [f"{number}.xml" for number in numbers]
    folder = require(root, "Annotations", title=title)
    check_present(folder, annotations, title, "annotations")
    targets = np.stack([_targets(os.path.join(folder, name)) for name in annotations])
    empty = np.flatnonzero(~(targets == 1).any(axis=0))
    if empty.size:
        raise SourceError(
            f"{title}: no picture shows {VOC_CLASSES[empty[0]]!r} ({empty.size} such classes); the "
            "copy is incomplete"
        )
    pictures = require(root, "JPEGImages", title=title)
    files = [f"{number}.jpg" for number in numbers]
    return Files(pictures, files, None, VOC_CLASSES, targets=targets, title=title)


def _targets(path: str) -> np.ndarray:
    targets = np.zeros(len(VOC_CLASSES), np.int8)
    try:
        objects = ElementTree.parse(path).getroot().findall("object")
        marked = [(o.findtext("name", ""), o.findtext("difficult", "0").strip()) for o in objects]
    except ElementTree.ParseError as error:
        raise SourceError(f"{path} is no XML ({error}); unpack it again") from error
    for name, difficult in marked:
        if name not in VOC_CLASSES:
            raise SourceError(f"{path} shows {name!r}, which is none of the 20 classes of VOC")
        place = VOC_CLASSES.index(name)
        targets[place] = 1 if difficult != "1" else targets[place] or -1
    return targets
