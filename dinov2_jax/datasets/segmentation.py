"""Sets with masks: a class for every pixel."""

import os

from dinov2_jax.datasets.dense import DenseData
from dinov2_jax.datasets.masks import distinct_colours, read_class_names, reader
from dinov2_jax.datasets.pairs import open_pairs

SEGMENTATION_SETS = ("ade20k", "voc2012", "cityscapes", "camvid", "folder")
# The 11 classes of the usual version (Badrinarayanan et al. 2017); 11 is void.
_CAMVID = (
    *("Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car"),
    *("Pedestrian", "Bicyclist"),
)


def open_segmentation(name: str, path: str) -> DenseData:
    """Opens a set with masks.

    Args:
      name: one of SEGMENTATION_SETS.
      path: the root in the official layout. "camvid" and "folder": see `pairs.open_pairs`, with
        classes.txt at the root, a class a line; the values 255 and K of a mask are ignored.

    Raises:
      SourceError: files are missing, in one sentence.
    """
    root = os.path.expanduser(path)
    return _pairs(name, root)


def _pairs(name: str, root: str) -> DenseData:
    listed = os.path.join(root, "classes.txt")
    if name == "camvid" and os.path.isdir(root) and not os.path.exists(listed):
        names, colours = _CAMVID, distinct_colours(len(_CAMVID))
    else:
        names, colours = read_class_names(listed)
    title = name if name != "folder" else os.path.basename(os.path.abspath(root))
    return DenseData(title, open_pairs(root, "masks", reader(len(names)), title), names, colours)
