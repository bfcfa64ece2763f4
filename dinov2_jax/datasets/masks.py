"""Mask files: a class number for every pixel; and colours for classes."""

import colorsys
import functools
import os
from collections.abc import Iterable, Mapping

import numpy as np
from PIL import Image

from dinov2_jax.data.decode import guards_off
from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.datasets.dense import IGNORED

MOST_CLASSES = 255  # uint8, without IGNORED
_MODES = ("1", "L", "P", "I;16", "I;16B", "I;16L", "I")  # one number a pixel


def read_values(path: str) -> np.ndarray:
    """The numbers of a mask as they are stored, [H, W]: palette indices, 8 or 16 bits.

    Raises SourceError for a file that cannot be read, or has colours in place of numbers.
    """
    try:
        with guards_off(), Image.open(path) as image:
            image.load()
            mode, values = image.mode, np.asarray(image)
    except Exception as error:  # Pillow's plugins raise nearly any type on broken files
        raise SourceError(f"the mask {path} cannot be read ({error})") from error
    if mode not in _MODES:
        raise SourceError(
            f"the mask {path} has colours ({mode}), but one number a pixel is needed, the class; "
            "save it as a PNG with a palette or as gray"
        )
    return values


def read_mask(path: str, table: tuple[int, ...], classes: int) -> np.ndarray:
    """A mask as classes, uint8 [H, W].

    Args:
      table: class of each stored value, `IGNORED` for none. Values beyond it are ignored, too.
      classes: K; the values K and beyond of `table` are never used.

    Raises SourceError as `read_values`.
    """
    values = read_values(path)
    known = np.full(max(len(table), int(values.max(initial=0))) + 1, IGNORED, np.uint8)
    known[: len(table)] = table
    known[known >= classes] = IGNORED
    return known[values]


def reader(classes: int, *, zero_is_none: bool = False) -> functools.partial[np.ndarray]:
    """`read_mask` for masks whose values are 0 .. K - 1, or 1 .. K where 0 means no class."""
    table = (IGNORED, *range(classes)) if zero_is_none else tuple(range(classes))
    return functools.partial(read_mask, table=table, classes=classes)


def mapped_reader(classes: Mapping[int, int]) -> functools.partial[np.ndarray]:
    """`read_mask` for masks whose values stand for other classes: {value: class}."""
    table = tuple(classes.get(value, IGNORED) for value in range(max(classes) + 1))
    return functools.partial(read_mask, table=table, classes=max(classes.values()) + 1)


def read_class_names(path: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Names and colours of classes from a text file: a line `name` or `name R G B` each.

    Raises SourceError for no names, equal ones, more than 255, or a colour that is none.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"the class names {path} cannot be read ({error})") from error
    found = list(map(_split_colour, filter(None, lines)))
    names, colours = (tuple(part) for part in zip(*found, strict=True)) if found else ((), ())
    if not 1 <= len(set(names)) == len(names) <= MOST_CLASSES:
        raise SourceError(
            f"{path} names {len(names)} classes, {len(set(names))} of them different; give 1 to "
            f"{MOST_CLASSES} different names, one a line"
        )
    drawn = distinct_colours(len(names))
    given = [drawn[i] if colour is None else colour for i, colour in enumerate(colours)]
    return names, np.array(given, np.uint8)


def _split_colour(line: str) -> tuple[str, tuple[int, ...] | None]:
    parts = line.replace(",", " ").replace("\t", " ").rsplit(maxsplit=3)
    if len(parts) == 4 and all(part.isdigit() and int(part) < 256 for part in parts[1:]):
        return parts[0], tuple(map(int, parts[1:]))
    return line, None


def distinct_colours(count: int) -> np.ndarray:
    """RGB of `count` classes, uint8 [K, 3]: hues by the golden ratio, so neighbours differ."""
    hues = (np.arange(count) * 0.61803398875) % 1
    values = (0.95, 0.7, 0.85)
    colours = [
        colorsys.hsv_to_rgb(hue, (0.85, 0.6)[i // 3 % 2], values[i % 3])
        for i, hue in enumerate(hues)
    ]
    return np.round(255 * np.array(colours).reshape(-1, 3)).astype(np.uint8)


def stems(names: Iterable[str]) -> dict[str, str]:
    """{name without folder and ending: name}; SourceError for two of the same stem."""
    found: dict[str, str] = {}
    for name in names:
        stem = os.path.splitext(os.path.basename(name))[0]
        if stem in found:
            raise SourceError(
                f"{found[stem]} and {name} have the same name but for the ending, so a mask or "
                "depth could belong to either; rename one"
            )
        found[stem] = name
    return found
