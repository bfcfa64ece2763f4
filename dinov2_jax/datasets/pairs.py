"""Folders of pictures with a target file each, of the same name but for the ending."""

import os
from collections.abc import Callable

import numpy as np

from dinov2_jax.data.sources.files import NamedFiles, is_called_picture
from dinov2_jax.data.sources.source import SourceError, not_found
from dinov2_jax.datasets.dense import DenseSplit
from dinov2_jax.datasets.masks import stems

_SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test",)}
_PICTURES = ("images", "image", "rgb")
_ENDINGS = (".png", ".tif", ".tiff", ".bmp", ".gif", ".npy", ".pgm", ".jpg", ".jpeg")


def open_pairs(
    root: str, kind: str, read: Callable[[str], np.ndarray], title: str
) -> dict[str, DenseSplit]:
    """The splits of a folder; without test/, val/ is judged.

    Layouts: `train/NAME.jpg` beside `train_masks/NAME.png`; `train/images/` beside `train/masks/`;
    `images/train/` beside `masks/train/`. For depth, "depth" or "depths" takes the place of
    "masks".

    Args:
      kind: "masks" or "depth".
      read: of the targets, see `DenseSplit`.
      title: of the set, for messages.

    Raises:
      SourceError: no train, nothing to judge, or a picture without its target.
    """
    if not os.path.isdir(root):
        raise not_found(root)
    targets = ("masks", "mask", "labels", "annotations") if kind == "masks" else ("depth", "depths")
    found = {name: _folders(root, names, targets) for name, names in _SPLITS.items()}
    splits = {
        name: open_pair(*folders, read, f"{title}, {name}")
        for name, folders in found.items()
        if folders is not None
    }
    if "test" not in splits and "val" in splits:
        splits["test"] = splits.pop("val")
    if not {"train", "test"} <= splits.keys():
        raise SourceError(
            f"{root} has {', '.join(splits) or 'no split'}, but train and test (or val) are "
            f"needed: train/NAME.jpg with train_{kind}/NAME.png, and test/ with test_{kind}/"
        )
    return splits


def _folders(root: str, names: tuple[str, ...], targets: tuple[str, ...]) -> tuple[str, str] | None:
    """The folders of pictures and of targets of a split, or None."""
    choices = [(name, f"{name}_{t}") for name in names for t in targets]
    nested = [(f"{name}/{p}", f"{name}/{t}") for name in names for p in _PICTURES for t in targets]
    outside = [(f"{p}/{name}", f"{t}/{name}") for name in names for p in _PICTURES for t in targets]
    for choice in (*nested, *outside, *choices):
        pictures, masks = (os.path.join(root, part) for part in choice)
        if os.path.isdir(pictures) and os.path.isdir(masks):
            return pictures, masks
    return None


def open_pair(
    pictures: str, targets: str, read: Callable[[str], np.ndarray], title: str
) -> DenseSplit:
    """One split: every picture in a folder, with its target in another one.

    Raises SourceError for no picture, one without a target, or two of the same stem.
    """
    names = stems(name for name in sorted(os.listdir(pictures)) if is_called_picture(name))
    if not names:
        raise SourceError(f"{title}: {pictures} holds no picture")
    files = stems(n for n in sorted(os.listdir(targets)) if n.lower().endswith(_ENDINGS))
    lost = [name for stem, name in names.items() if stem not in files]
    if lost:
        raise SourceError(
            f"{title}: {len(lost)} of {len(names)} pictures have no file in {targets}, such as "
            f"{lost[0]}; add them, or move these pictures away"
        )
    source = NamedFiles(pictures, [os.fsencode(name) for name in names.values()])
    return DenseSplit(source, tuple(os.path.join(targets, files[stem]) for stem in names), read)
