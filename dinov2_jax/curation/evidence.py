"""How sure two pictures of a pool are copies, where pixels describe them: cosine, edges, level."""

import numpy as np

from dinov2_jax.curation import pixels, whitening
from dinov2_jax.curation.alignment import agreement, score
from dinov2_jax.features.search import Bank

CANDIDATE = 0.6  # cosine from which a pair is looked at again
_LEVEL_NEIGHBOURS = 4


def levels(
    known: whitening.Whitening, whitened: np.ndarray, thumbs: np.ndarray, places: np.ndarray
) -> np.ndarray:
    """How much each mirrored picture resembles the pool: float32 [P].

    Args:
      known: the whitening of the pool.
      whitened: [n, width], the pool.
      thumbs: uint8 [P, 16, 16, 3], pictures whose level is wanted.
      places: int [P], their rows of the pool, which do not count; -1: not of the pool.
    """
    mirrored = whitening.apply(known, pixels.describe(pixels.mirror(thumbs)))
    return mean_of_best(whitened, mirrored, places)


def mean_of_best(whitened: np.ndarray, queries: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The mean of the 4 highest cosines of each query with the pool, its own row left out."""
    k = min(_LEVEL_NEIGHBOURS + 1, len(whitened))
    found = Bank(whitened, np.zeros(len(whitened), np.int32)).search(queries, k)
    values = np.where(found.rows == places[:, None], -np.inf, found.similarities)
    best = -np.sort(-values, axis=1)[:, : max(1, k - 1)]
    return np.where(np.isfinite(best), best, 0).mean(axis=1).astype(np.float32)


def scores(
    ours: np.ndarray, theirs: np.ndarray, cosine: np.ndarray, level: np.ndarray
) -> np.ndarray:
    """Evidence [P] that pairs of thumbnails uint8 [P, 16, 16, 3] are copies; see `alignment`.

    Pairs below `CANDIDATE` are not looked at again and get -1.
    """
    found = np.full(len(cosine), -1.0, np.float32)
    near = np.flatnonzero(cosine >= CANDIDATE)
    if len(near):
        found[near] = score(cosine[near], agreement(ours[near], theirs[near]), level[near])
    return found
