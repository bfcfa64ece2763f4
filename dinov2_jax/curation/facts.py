"""What loader workers find out about pictures: sizes, digests, thumbnails. No JAX here."""

import contextlib
import functools
from collections.abc import Iterator

import grain
import numpy as np

from dinov2_jax.curation.hashes import SIDE, byte_digest, is_blank, pixel_digest, thumbnail
from dinov2_jax.data.decode import BadImage, DecodeSpec, decode, to_channels
from dinov2_jax.data.reader import Batch, Reader, join
from dinov2_jax.data.sources.source import Source
from dinov2_jax.run.progress import Progress

# Pictures that a worker hands over at a time.
CHUNK = 16
DIGEST = 16  # bytes
REASON = 200  # bytes of UTF-8, filled up with spaces

# Shape and dtype of each fact of a picture.
FACTS = {
    "row": ((), np.dtype(np.int64)),
    "width": ((), np.dtype(np.int32)),
    "height": ((), np.dtype(np.int32)),
    "bytes": ((), np.dtype(np.int64)),
    "byte_digest": ((DIGEST,), np.dtype(np.uint8)),
    "pixel_digest": ((DIGEST,), np.dtype(np.uint8)),
    "thumbnail": ((SIDE, SIDE, 3), np.dtype(np.uint8)),
    "blank": ((), np.dtype(bool)),
    "readable": ((), np.dtype(bool)),
    "reason": ((REASON,), np.dtype(np.uint8)),
}


def stream_facts(
    source: Source, rows: np.ndarray, decoding: DecodeSpec, workers: int
) -> Iterator[Batch]:
    """Yields the facts of the records `rows` in their order, at most 16 pictures at a time."""
    looking = functools.partial(_look, source, decoding)
    dataset = grain.MapDataset.source(rows).batch(CHUNK).map(looking)
    size = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in FACTS.values())
    with contextlib.closing(Reader(dataset, workers, CHUNK * size)) as reader:
        yield from map(lambda chunk: join([chunk]), reader)


def collect_facts(source: Source, decoding: DecodeSpec, workers: int, unit: str) -> Batch:
    """The facts of a whole source that fits into memory; `unit` is what the progress counts."""
    progress, parts, done = Progress(len(source), unit=unit), [], 0
    for chunk in stream_facts(source, np.arange(len(source)), decoding, workers):
        parts.append(chunk)
        done += len(chunk["row"])
        progress.update(done)
    progress.close()
    return join(parts)


def _look(source: Source, decoding: DecodeSpec, rows: np.ndarray) -> Batch:
    found = [facts_of(source, int(row), decoding) for row in rows]
    return {
        name: np.stack([np.asarray(one[name], dtype) for one in found])
        for name, (_, dtype) in FACTS.items()
    }


def facts_of(source: Source, row: int, decoding: DecodeSpec) -> dict[str, object]:
    """The facts of one picture; an unreadable one has zeros, its file's digest and a reason."""
    found = {name: np.zeros(shape, dtype) for name, (shape, dtype) in FACTS.items()}
    found["row"] = np.int64(row)
    try:
        record = source[row]
        if isinstance(record, bytes):
            found |= {"bytes": len(record), "byte_digest": _array(byte_digest(record))}
            image = decode(record, decoding)
        else:
            image = to_channels(record, decoding.channels)
            found |= {"bytes": image.nbytes, "byte_digest": _array(pixel_digest(image))}
    except (BadImage, OSError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).encode()[:REASON].ljust(REASON)
        return found | {"reason": np.frombuffer(reason, np.uint8)}
    small = thumbnail(image)
    return found | {
        "width": image.shape[1],
        "height": image.shape[0],
        "pixel_digest": _array(pixel_digest(image)),
        "thumbnail": small,
        "blank": is_blank(small[None])[0],
        "readable": True,
    }


def _array(digest: bytes) -> np.ndarray:
    return np.frombuffer(digest, np.uint8)
