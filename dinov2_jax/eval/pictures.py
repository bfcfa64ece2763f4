"""Checks of an evaluation's pictures before the first feature: readable, and not in both splits."""

import hashlib
import io

import numpy as np
from PIL import Image

from dinov2_jax.data.decode import FORMATS, guards_off
from dinov2_jax.data.sources.source import Source
from dinov2_jax.run.progress import Progress

# Headers that are read of a split, 0.1 ms each.
MOST_HEADERS = 20_000
# Splits of so many pictures together are compared byte by byte, larger ones by name.
MOST_COMPARED = 4_000
# Pictures of one name that are compared to see whether the name means the same picture.
_SAME_NAMES_READ = 64


def unreadable(source: Source, max_pixels: int, max_bad: int, name: str) -> str:
    """Why a split cannot be used: more than `max_bad` of its records are no pictures; else "".

    Reads the headers of all pictures, or of MOST_HEADERS spread over all.
    """
    rows = np.linspace(0, len(source) - 1, min(len(source), MOST_HEADERS)).astype(int).tolist()
    bad, progress = [], Progress(len(rows), unit=f"header of {name}")
    for done, row in enumerate(rows, start=1):
        if why := _header_error(source, row, max_pixels):
            bad.append((row, why))
        progress.update(done, unreadable=len(bad))
    progress.close()
    if len(bad) <= max_bad:
        return ""
    row, why = bad[0]
    about = round(len(bad) * len(source) / len(rows))
    looked = "" if len(rows) == len(source) else f" (of {len(source):,}, so about {about:,})"
    return (
        f"{len(bad)} of {len(rows):,} pictures of {name}{looked} cannot be read, such as "
        f"{source.name(row)} ({why}); remove them, or add --config.data.max_bad={about} or more "
        "to leave them out of the figures"
    )


def _header_error(source: Source, row: int, max_pixels: int) -> str:
    """Why a record cannot be a picture, judged by its first bytes; "" if it can."""
    try:
        record = source[row]
    except OSError as error:
        return error.strerror or str(error)
    if isinstance(record, np.ndarray) or record.startswith(b"\x93NUMPY"):
        return ""
    try:
        with guards_off(), Image.open(io.BytesIO(record), formats=FORMATS) as image:
            width, height = image.size
    except Exception:  # Pillow's plugins raise nearly any type on broken files
        return "not a picture in a known format" if record else "the file is empty"
    return f"{width} x {height} px" if width * height > 64 * max_pixels else ""


def overlap_warning(train: Source, test: Source) -> str:
    """Says how many pictures of test are also in train, "" if none is known to be.

    Small sets are compared by content. In larger ones pictures of one name count, if those of them
    that are read have the same content.
    """
    if len(train) + len(test) <= MOST_COMPARED:
        known = {_content(train, row) for row in range(len(train))} - {b""}
        common = sum(_content(test, row) in known for row in range(len(test)))
        about = ""
    else:
        common, about = _common_names(train, test), "about "
    if not common:
        return ""
    return (
        f"{about}{common:,} of {len(test):,} pictures of test ({100 * common / len(test):.1f} %) "
        "are also in train, so the figures are too good; take them out of one of the two"
    )


def _common_names(train: Source, test: Source) -> int:
    """Pictures of test whose name and content train has, estimated from a few of them."""
    places = {train.name(row): row for row in range(len(train))}
    pairs = [(places[name], row) for row in range(len(test)) if (name := test.name(row)) in places]
    read = pairs[:: max(1, len(pairs) // _SAME_NAMES_READ)]
    same = sum(_content(train, a) == _content(test, b) != b"" for a, b in read)
    return round(same / len(read) * len(pairs)) if read else 0


def _content(source: Source, row: int) -> bytes:
    """A hash of the record; b"" if it cannot be read."""
    try:
        record = source[row]
    except OSError:
        return b""
    data = record if isinstance(record, bytes) else np.ascontiguousarray(record).tobytes()
    return hashlib.blake2b(data, digest_size=16).digest()
