"""Depth files: metres for every pixel, from the units in which cameras and sets store them."""

import functools
import os

import numpy as np
from PIL import Image

from dinov2_jax.data.decode import guards_off
from dinov2_jax.data.sources.source import SourceError

MILLIMETRES = 1000.0  # per metre
ENDINGS = (".png", ".tif", ".tiff", ".npy", ".pgm")
_MODES = ("L", "I;16", "I;16B", "I;16L", "I", "F")  # one number a pixel


def read_depth(
    path: str, units_per_metre: float, turned_bits: bool = False, most_m: float = 0.0
) -> np.ndarray:
    """Reads depths, float32 [H, W] in metres; 0 where there is none.

    Args:
      path: a PNG, TIFF or PGM of 8 or 16 bits or floats; or .npy [H, W]. Values of 0 and less,
        and those that are not finite, mean that there is no depth.
      units_per_metre: what the file has for a metre.
      turned_bits: 16-bit values of which the upper 13 bits come first, as SUN RGB-D stores them.
      most_m: greater depths become this one; 0: none do.

    Raises:
      SourceError: the file cannot be read, or has no single number a pixel.
    """
    values = _read_npy(path) if path.lower().endswith(".npy") else _read_picture(path)
    if turned_bits:
        values = values.astype(np.uint16)
        values = (values >> 3) | (values << 13)
    metres = values.astype(np.float32) / np.float32(units_per_metre)
    metres = np.where(np.isfinite(metres) & (metres > 0), metres, 0)
    return np.minimum(metres, most_m) if most_m else metres


def reader(
    units_per_metre: float, *, turned_bits: bool = False, most_m: float = 0.0
) -> functools.partial[np.ndarray]:
    """`read_depth` of one set."""
    settings = {"units_per_metre": units_per_metre, "turned_bits": turned_bits, "most_m": most_m}
    return functools.partial(read_depth, **settings)


def _read_picture(path: str) -> np.ndarray:
    try:
        with guards_off(), Image.open(path) as image:
            image.load()
            mode, values = image.mode, np.asarray(image)
    except Exception as error:  # Pillow's plugins raise nearly any type on broken files
        raise SourceError(f"the depth {path} cannot be read ({error}); write it again") from error
    if mode not in _MODES:
        raise SourceError(
            f"the depth {path} has colours ({mode}), but one number a pixel is needed; save it as "
            "a PNG of 16 bits"
        )
    return values


def _read_npy(path: str) -> np.ndarray:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SourceError(f"the depth {path} cannot be read ({error}); write it again") from error
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "uif":
        shape = getattr(values, "shape", "several arrays")
        raise SourceError(f"the depth {path} holds {shape}, but numbers [H, W] are needed")
    return values


def stored_size(path: str) -> tuple[int, int]:
    """Height and width of a depth file, from its header. Raises SourceError as `read_depth`."""
    if path.lower().endswith(".npy"):
        return _read_npy(path).shape
    try:
        with guards_off(), Image.open(path) as image:
            return image.size[1], image.size[0]
    except Exception as error:
        empty = os.path.exists(path) and not os.path.getsize(path)
        why = "it is empty" if empty else str(error)
        raise SourceError(f"the depth {path} cannot be read ({why}); write it again") from error
