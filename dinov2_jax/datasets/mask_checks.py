"""Looks at masks before long work: readable, of their picture's size, with classes at all."""

import io

import numpy as np
from PIL import Image

from dinov2_jax.data.decode import FORMATS, guards_off
from dinov2_jax.data.sources.source import Source, SourceError
from dinov2_jax.datasets.dense import IGNORED, DenseSplit
from dinov2_jax.datasets.masks import read_values

MOST_READ = 64  # masks of a split, evenly spread


def check_masks(
    split: DenseSplit, title: str, max_bad: int = 0, classes: int | None = None
) -> list[str]:
    """Reads some masks of a split.

    Args:
      title: of the split, for messages.
      max_bad: how many of them may be unreadable or of another size than their picture.
      classes: K, where masks hold the values 0 .. K - 1, with K or 255 for none; None: published
        sets, which hold others.

    Returns:
      Notes on what is odd but no reason to stop: pictures without a class, values beyond.

    Raises:
      SourceError: more than `max_bad` masks that cannot be used, or no class in any.
    """
    rows = np.unique(np.linspace(0, len(split) - 1, min(len(split), MOST_READ)).astype(int))
    bad, empty, beyond, seen = [], 0, set[int](), False
    for row in rows.tolist():
        try:
            mask = split.target(row)
            size = _size(split.pictures, row)
            if size is not None and size != mask.shape:
                raise SourceError(
                    f"{split.targets[row]} has {mask.shape[1]} x {mask.shape[0]} px, but its "
                    f"picture {size[1]} x {size[0]}"
                )
        except SourceError as error:
            bad.append(str(error))
            continue
        known = bool((mask != IGNORED).any())
        empty, seen = empty + (not known), seen or known
        beyond |= _beyond(split.targets[row], classes)
    if len(bad) > max_bad:
        raise SourceError(
            f"{title}: {len(bad)} of {len(rows)} masks cannot be used, such as: {bad[0]}; mend "
            "them, or add --config.data.max_bad to leave some out"
        )
    if not seen:
        raise SourceError(
            f"{title}: none of {len(rows)} masks has a pixel with a class; the values must be the "
            "numbers of classes.txt, from 0"
        )
    return _notes(title, len(rows), empty, beyond)


def _notes(title: str, count: int, empty: int, beyond: set[int]) -> list[str]:
    notes = []
    if empty:
        notes.append(f"{title}: {empty} of {count} masks have no pixel with a class")
    if beyond:
        shown = ", ".join(map(str, sorted(beyond)[:5]))
        notes.append(f"{title}: masks have values that are no class ({shown}); they are ignored")
    return notes


def _beyond(path: str, classes: int | None) -> set[int]:
    """Stored values that are no class, without those that usually mean none."""
    found = set() if classes is None else set(np.unique(read_values(path)).tolist())
    return {value for value in found if not 0 <= value <= (classes or 0)} - {IGNORED}


def _size(pictures: Source, row: int) -> tuple[int, int] | None:
    """Height and width by the header; None where it cannot be read or has another turn."""
    try:
        with guards_off(), Image.open(io.BytesIO(pictures[row]), formats=FORMATS) as image:
            turned = image.getexif().get(0x0112, 1) > 4
            return image.size if turned else image.size[::-1]
    except Exception:  # the decoder says why, later
        return None
