"""How alike unrelated pictures of a pool are, told by mirrored pictures.

A mirrored picture has no copy in the pool, but resembles unrelated pictures as much as the picture
does. So copies that are not known yet raise no threshold.
"""

import dataclasses

import numpy as np

from dinov2_jax.curation import evidence
from dinov2_jax.curation.hashes import HashBasis, cross_pairs, hash_rows
from dinov2_jax.curation.pixels import mirror
from dinov2_jax.features.search import Bank

_NEIGHBOURS = 50
_OWN_BITS = 12  # pictures whose hashes are as near as this to the unmirrored one do not count


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Pictures of a pool that nothing was fitted on.

    Attributes:
      places: int [T], their rows among those that have descriptors.
      mirrored: float32 [T, width], whitened descriptors of their mirrors.
      whitened: [n, width], those of the pool.
      thumbs: uint8 [n, 16, 16, 3], of the pool.
      basis, hashes: of the pool.
    """

    places: np.ndarray
    mirrored: np.ndarray
    whitened: np.ndarray
    thumbs: np.ndarray
    basis: HashBasis
    hashes: np.ndarray

    def own(self) -> set[tuple[int, int]]:
        """(place in `places`, row) of each picture itself and of what its hash knows as a copy."""
        a, b, _ = cross_pairs(self.hashes[self.places], self.hashes, _OWN_BITS)
        return set(zip(a.tolist(), b.tolist(), strict=True))

    def neighbours(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows and cosines [T, k] of what is nearest to each mirror; -1 where it is its own."""
        k, own = min(_NEIGHBOURS, len(self.whitened)), self.own()
        bank = Bank(self.whitened, np.zeros(len(self.whitened), np.int32))
        found = bank.search(self.mirrored, k)
        cosines = found.similarities.copy()
        for query, rows in enumerate(found.rows.tolist()):
            for at, row in enumerate(rows):
                if (query, row) in own:
                    cosines[query, at] = -1
        return found.rows, cosines

    def best_cosine(self) -> np.ndarray:
        """The best cosine of each mirror with an unrelated picture: float32 [T]."""
        return self.neighbours()[1].max(axis=1)

    def best_score(self) -> np.ndarray:
        """The best evidence of each mirror with an unrelated picture, as in `evidence.scores`."""
        rows, cosines = self.neighbours()
        ours = mirror(self.thumbs[self.places])
        # What the mirror's own mirror finds: the picture as it is.
        queries = np.asarray(self.whitened[self.places], np.float32)
        level = evidence.mean_of_best(self.whitened, queries, self.places)
        k = rows.shape[1]
        found = evidence.scores(
            np.repeat(ours, k, axis=0),
            self.thumbs[rows.ravel()],
            cosines.ravel(),
            np.repeat(level, k),
        )
        return found.reshape(rows.shape).max(axis=1)

    def hash_bits(self, most: int, false_share: float) -> int:
        """The most bits, up to `most`, within which few mirrors are linked; -1: none will do."""
        if most < 0:
            return most
        own = self.own()
        hashes = hash_rows(self.basis, mirror(self.thumbs[self.places]))
        a, b, bits = cross_pairs(hashes, self.hashes, most)
        nearest = np.full(len(self.places), most + 1)
        for query, row, apart in zip(a.tolist(), b.tolist(), bits.tolist(), strict=True):
            if (query, row) not in own:
                nearest[query] = min(nearest[query], apart)
        linked = [(nearest <= bits).mean() for bits in range(most + 1)]
        return int(np.searchsorted(linked, false_share, side="right")) - 1
