"""Fingerprints of a set of pictures: its names, labels and a sample of the content."""

import contextlib
import hashlib
import weakref
from typing import Any

import numpy as np

from dinov2_jax.data.sources.source import Source
from dinov2_jax.errors import printable

# The names of a source never change, and hashing millions of them takes seconds.
_NAMES: weakref.WeakKeyDictionary[Source, str] = weakref.WeakKeyDictionary()


def names_fingerprint(source: Source) -> str:
    """Hash of the names of the pictures in their order; the content of the files does not count.

    Computed once for each source. A manifest has a hash of its records, which stands for names.
    """
    known = getattr(source, "records_digest", None)
    if known is not None:
        return known()
    try:
        known = _NAMES.get(source)
        if known is None:
            known = _NAMES[source] = _hash_names(source)
        return known
    except TypeError:  # a source of the user's that cannot be a key
        return _hash_names(source)


def _hash_names(source: Source) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for row in range(len(source)):
        digest.update(printable(source.name(row)).encode() + b"\n")
    return digest.hexdigest()


def describe(source: Source) -> dict[str, Any]:
    """The number of pictures, and a hash of their names, order, labels and 64 of the files."""
    digest = hashlib.blake2b(digest_size=8)
    digest.update(names_fingerprint(source).encode())
    digest.update(np.ascontiguousarray(truth_of(source)).tobytes())
    digest.update(content_fingerprint(source).encode())
    return {"pictures": len(source), "fingerprint": digest.hexdigest()}


def records_fingerprint(source: Source) -> str:
    """Hash of the number of records, their names and 64 of them; labels and places do not count.

    It is the same wherever the files lie, except for list files, whose paths are their names.
    """
    digest = hashlib.blake2b(digest_size=16)
    own = getattr(source, "names_digest", None)
    names = names_fingerprint(source) if own is None else own()
    digest.update(f"{len(source)} {names} {content_fingerprint(source)}".encode())
    return digest.hexdigest()


def content_fingerprint(source: Source) -> str:
    """Hash of 64 records spread over the source, or of all if there are fewer."""
    digest = hashlib.blake2b(digest_size=8)
    for row in np.unique(np.linspace(0, len(source) - 1, 64).astype(int)):
        with contextlib.suppress(OSError):
            record = source[int(row)]
            digest.update(record if isinstance(record, bytes) else np.ascontiguousarray(record))
    return digest.hexdigest()


def truth_of(source: Source) -> np.ndarray:
    """Labels [n], -1 where unknown; [n, classes] where a picture has several classes."""
    truth = getattr(source, "targets", None)
    truth = source.labels if truth is None else truth
    return np.full(len(source), -1, np.int64) if truth is None else truth
