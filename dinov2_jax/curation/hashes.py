"""Digests that find equal pictures, and 64-bit hashes that find nearly equal ones.

The hash: 16 x 16 grey cells, the 64 main directions in which the pool's pictures differ, and of
each only the sign. Two copies differ in a few of the 64 bits, two unrelated pictures in about 32.
All sums are of whole multiples of powers of two that float64 holds exactly, so the same basis gives
the same bits on every machine and in blocks of any size.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from dinov2_jax.curation.area import shrink
from dinov2_jax.curation.balance import keys

SIDE = 16  # cells
BITS = 64
BLANK_STD = 4.0  # grey levels
_LUMA = np.array([77, 150, 29], np.int32)  # of 256
_PRIOR = 64  # pictures for which the spectrum of photos counts beside the pool's own
_BLOCK = 1 << 14  # rows
_TILE = 1 << 16  # pairs compared at once: 0.5 MiB, which stays in a core's cache
_PLAIN = 1 << 28  # pairs up to which all are compared
_BANDS = 4
_ROWS = 64


def byte_digest(data: bytes) -> bytes:
    """BLAKE2b of a file's bytes: 16 bytes."""
    return hashlib.blake2b(data, digest_size=16).digest()


def pixel_digest(image: np.ndarray) -> bytes:
    """BLAKE2b of size and pixels of uint8 [H, W, C]: 16 bytes.

    `data.decode` lays alpha on white, so files of any format that show the same get the same.
    """
    found = hashlib.blake2b(np.asarray(image.shape, "<i8").tobytes(), digest_size=16)
    found.update(np.ascontiguousarray(image))
    return found.digest()


def thumbnail(image: np.ndarray) -> np.ndarray:
    """uint8 RGB [H, W, 3] -> uint8 RGB [16, 16, 3], averaged over equal areas."""
    return shrink(image, SIDE)


def thumbnails(images: Iterable[np.ndarray]) -> np.ndarray:
    """`thumbnail` of each of N pictures: uint8 [N, 16, 16, 3]."""
    rows = [thumbnail(image) for image in images]
    return np.stack(rows) if rows else np.zeros((0, SIDE, SIDE, 3), np.uint8)


def grey(thumbs: np.ndarray) -> np.ndarray:
    """Thumbnails uint8 [N, 16, 16, 3] -> float32 [N, 256]: whole grey levels (ITU-R 601)."""
    luma = thumbs.reshape(len(thumbs), SIDE**2, 3).astype(np.int32) @ _LUMA
    return ((luma + 128) >> 8).astype(np.float32)


def is_blank(thumbs: np.ndarray) -> np.ndarray:
    """Thumbnails uint8 [N, 16, 16, 3] -> bool [N]: the grey cells' std is below 4 levels.

    To every descriptor such pictures are copies of one another.
    """
    counts = grey(thumbs).astype(np.int64)
    cells = counts.shape[1]
    variance = cells * (counts * counts).sum(1) - counts.sum(1) ** 2  # times cells**2: exact
    return variance < BLANK_STD**2 * cells**2


@dataclass(frozen=True)
class HashBasis:
    """Where the signs are taken: mean [256] in grey levels, components [256, 64], columns of 1."""

    mean: np.ndarray
    components: np.ndarray


def fit_basis(thumbs: np.ndarray) -> HashBasis:
    """PCA of the grey of thumbnails uint8 [N, 16, 16, 3]; any N, also 0.

    The spectrum of photos counts as 64 further pictures: a pool of few pictures, or of like ones,
    does not determine 64 directions. Signs are settled by a fixed vector of chance: many entries
    of a wave are as large as one another, so rounding would decide which is the largest.
    """
    count = len(thumbs) + _PRIOR
    total, square = np.zeros(SIDE**2), np.zeros((SIDE**2, SIDE**2))
    for start in range(0, len(thumbs), _BLOCK):
        rows = grey(thumbs[start : start + _BLOCK]).astype(np.float64) - 128
        total += rows.sum(0)
        square += rows.T @ rows  # whole numbers: exact, in whatever order
    mean = total / count
    covariance = (square + _PRIOR * _photo_covariance()) / count - np.outer(mean, mean)
    _, vectors = np.linalg.eigh(covariance)
    components = vectors[:, ::-1][:, :BITS]
    components = components * np.where(_settling() @ components < 0, -1, 1)
    return HashBasis(np.rint(mean * 2**8) / 2**8 + 128, np.rint(components * 2**20) / 2**20)


def _settling() -> np.ndarray:
    """A fixed vector [256] of chance between -1 and 1, at right angles to no wave."""
    return keys(np.arange(SIDE**2), seed=0) / 2.0**63 - 1


def _photo_covariance() -> np.ndarray:
    """Covariance of 16 x 16 cells whose cosines have power 1/f**2, with std 60 grey levels.

    A vertical wave counts for 2 % more than a horizontal one, so that no two directions tie.
    """
    cell = np.arange(SIDE)
    waves = np.cos(np.pi * np.outer(cell, cell + 0.5) / SIDE)  # [frequency, cell]
    waves /= np.linalg.norm(waves, axis=1, keepdims=True)
    power = 1 / (1 + cell[:, None] ** 2 + 1.02 * cell[None, :] ** 2)
    power *= 60.0**2 * SIDE**2 / power.sum()
    basis = np.einsum("ux,vy->uvxy", waves, waves).reshape(SIDE**2, SIDE**2)
    return (basis.T * power.reshape(-1)) @ basis


def hash_rows(basis: HashBasis, thumbs: np.ndarray) -> np.ndarray:
    """Thumbnails uint8 [N, 16, 16, 3] -> uint64 [N]; bit 0 is the sign along the main direction."""
    bits = np.zeros((len(thumbs), BITS), np.uint8)
    for start in range(0, len(thumbs), _BLOCK):
        rows = grey(thumbs[start : start + _BLOCK]) - basis.mean
        bits[start : start + _BLOCK] = rows @ basis.components > 0
    return _packed(bits)


def near_pairs(hashes: np.ndarray, within_bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of rows whose hashes [N] differ in at most `within_bits`: (a, b, bits) [P].

    Exact; a < b in int64, sorted, bits uint8. Up to 16k rows all pairs are compared; beyond, four
    bands of 16 bits: hashes that differ in few bits nearly agree in one of them. A million rows
    within 12 bits take about a minute of one core and 0.3 GB. P grows as the square of the rows
    that share a hash, so give distinct hashes and link equal ones yourself.
    """
    hashes = np.asarray(hashes, np.uint64)
    found = list(_near(hashes, hashes, within_bits, own=True))
    return _sorted(found)


def cross_pairs(
    hashes: np.ndarray, others: np.ndarray, within_bits: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same between two sets, hashes [N] and others [M]: (hashes' row, others' row, bits)."""
    hashes, others = np.asarray(hashes, np.uint64), np.asarray(others, np.uint64)
    return _sorted(list(_near(hashes, others, within_bits, own=False)))


Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]


def _sorted(found: list[Pairs]) -> Pairs:
    empty = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.uint8))
    a, b, bits = (np.concatenate(parts) for parts in zip(empty, *found, strict=True))
    order = np.lexsort((b, a))
    return a[order], b[order], bits[order]


def _near(left: np.ndarray, right: np.ndarray, within: int, own: bool) -> Iterator[Pairs]:
    """Pairs of rows in blocks, in no order; each once, and with `own` a < b."""
    width = int(np.clip(np.log2(max(len(right), 1)) - 4, 4, 16))
    # Were a pair further apart in every band, it would differ in more than `within` bits.
    radii = [(within + 1 + band) // _BANDS - 1 for band in range(_BANDS)]
    share = sum(_masks(width, radius).size for radius in radii) / 2**width
    if len(left) * len(right) <= _PLAIN or share > 0.5:
        yield from _plain(left, right, within, own)
        return
    left, right = _interleave(left), _interleave(right)
    for band, radius in enumerate(radii):
        for a, b, bits in _band(left, right, (band, width, radius), within, own):
            apart = left[a] ^ right[b]
            new = np.ones(len(a), bool)
            for earlier in range(band):
                new &= np.bitwise_count(_prefix(apart, earlier, width)) > radii[earlier]
            if own:  # inside one bucket a pair comes in both orders, else in one of the two
                new &= (_prefix(apart, band, width) != 0) | (a < b)
                a, b = np.minimum(a, b), np.maximum(a, b)
            yield a[new], b[new], bits[new]


def _plain(left: np.ndarray, right: np.ndarray, within: int, own: bool) -> Iterator[Pairs]:
    rows = np.arange(len(right))
    for start in range(0, len(left), _ROWS):
        block = np.arange(start, min(start + _ROWS, len(left)))
        for a, b, bits in _compare(left, right, block, rows[start:] if own else rows, within):
            keep = (a < b) | (not own)
            yield a[keep], b[keep], bits[keep]


def _band(
    left: np.ndarray, right: np.ndarray, place: tuple[int, int, int], within: int, own: bool
) -> Iterator[Pairs]:
    """Near pairs that differ in at most `radius` of the first `width` bits of a band."""
    band, width, radius = place
    masks = _masks(width, radius)
    mine, my_starts = _buckets(_prefix(left, band, width), width)
    theirs, starts = _buckets(_prefix(right, band, width), width)
    for bucket in np.flatnonzero(np.diff(my_starts) if len(masks) else []):
        near = bucket ^ masks
        near = near[near >= bucket] if own else near
        first, size = starts[near], starts[near + 1] - starts[near]
        ends = np.cumsum(size)
        places = np.arange(ends[-1]) + np.repeat(first - ends + size, size)
        rows = mine[my_starts[bucket] : my_starts[bucket + 1]]
        for start in range(0, len(rows), _ROWS):
            yield from _compare(left, right, rows[start : start + _ROWS], theirs[places], within)


def _compare(
    left: np.ndarray, right: np.ndarray, a: np.ndarray, b: np.ndarray, within: int
) -> Iterator[Pairs]:
    """The near ones among rows a x b."""
    mine, theirs = left[a][:, None], right[b]
    step = max(1, _TILE // len(a))
    for start in range(0, len(b), step):
        bits = np.bitwise_count(mine ^ theirs[start : start + step])
        one, two = np.nonzero(bits <= within)
        if len(one):
            yield a[one], b[start + two], bits[one, two]


def _masks(width: int, radius: int) -> np.ndarray:
    """All numbers of `width` bits with at most `radius` ones."""
    every = np.arange(2**width)
    return every[np.bitwise_count(every) <= radius] if radius >= 0 else every[:0]


def _interleave(hashes: np.ndarray) -> np.ndarray:
    """Deals the bits to the bands in turn: each gets directions of large and of small variance."""
    dealt = np.empty_like(hashes)
    order = np.arange(BITS).reshape(-1, _BANDS).T.reshape(-1)
    for start in range(0, len(hashes), _BLOCK):
        block = hashes[start : start + _BLOCK].astype("<u8")[:, None].view(np.uint8)
        bits = np.unpackbits(block, axis=1, bitorder="little")[:, order]
        dealt[start : start + _BLOCK] = _packed(bits)
    return dealt


def _packed(bits: np.ndarray) -> np.ndarray:
    """0 and 1 [N, 64] -> uint64 [N], the lowest bit first."""
    packed = np.ascontiguousarray(np.packbits(bits, axis=1, bitorder="little"))
    return packed.view("<u8")[:, 0].astype(np.uint64)


def _prefix(hashes: np.ndarray, band: int, width: int) -> np.ndarray:
    """The first `width` bits of a band as whole numbers."""
    shifted = hashes >> np.uint64(band * BITS // _BANDS)
    return (shifted & np.uint64(2**width - 1)).astype(np.int64)


def _buckets(keys: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows sorted by key, and where each key's rows begin."""
    counts = np.bincount(keys, minlength=2**width)
    return np.argsort(keys, kind="stable"), np.concatenate([[0], np.cumsum(counts)])
