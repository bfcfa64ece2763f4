"""Labels that cost the read of a record each, kept in a file for later starts.

Only sources with `known_labels` (TFDS) are concerned; for the others these functions do nothing.
"""

import contextlib
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from dinov2_jax.data.fingerprint import content_fingerprint
from dinov2_jax.data.sources.tfds import UNREAD
from dinov2_jax.run.files import replacing


def recall_labels(source: Any, folder: Path) -> None:
    """Gives a source the labels that an earlier start kept in `folder`."""
    path = _path(source, folder)
    if path is None or not path.is_file():
        return
    with contextlib.suppress(ValueError, EOFError):  # a damaged file: the labels are read again
        kept = np.load(path)
        if kept.shape == (len(source),) and kept.dtype == np.int64:
            source.known_labels = kept


def keep_labels(source: Any, folder: Path) -> None:
    """Keeps the labels that a source has read; to be called by one process."""
    path = _path(source, folder)
    if path is None or (source.known_labels == UNREAD).all():
        return
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, source.known_labels)


def _path(source: Any, folder: Path) -> Path | None:
    """The file for these records, wherever they lie; None where labels cost nothing."""
    if getattr(source, "known_labels", None) is None:
        return None
    parts = len(source), source.class_names, content_fingerprint(source)
    key = hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()
    return folder / f"labels-{key}.npy"
