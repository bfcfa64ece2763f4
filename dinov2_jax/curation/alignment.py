"""Candidates looked at twice: are the edges of two thumbnails the same once they are laid over?

A descriptor forgives shifts by blurring, so it takes two similar pictures for copies: ships on the
sea, a breed of dogs. Here one thumbnail is shifted and scaled over the other, and edges are
compared cell by cell. And a picture that resembles many is held to more: its score is lowered by
how well its mirror, which has no copy, is found in the pool.
"""

import cv2
import numpy as np

CANDIDATE = 0.6  # cosine from which a pair is worth the second look
SHIFT = 2  # cells
_SCALES = (1.0, 0.87, 1.15)
# Gradients are compared by their root, so that one strong edge does not decide; below 4 grey
# levels they are taken for noise.
_FLOOR = 4.0
_LUMA = np.asarray([0.299, 0.587, 0.114], np.float32)
# Shares of the agreement and of the mirror's level; chosen on photos of 32 x 32 pixels.
_AGREEMENT, _LEVEL = 0.35, 0.25
_BLOCK = 1024  # pairs


def agreement(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """How well thumbnails uint8 [P, 16, 16, 3] fit, pair by pair: float32 [P], 1 for equal ones.

    It is the highest correlation of the gradients where the two overlap, over shifts of at most 2
    cells and scales 0.87, 1 and 1.15 of `theirs`. 0 where either has no edges.
    """
    found = np.zeros(len(ours), np.float32)
    for start in range(0, len(ours), _BLOCK):
        rows = slice(start, start + _BLOCK)
        plain, best = _gradients(ours[rows]), found[rows]
        for scale in _SCALES:
            other = _gradients(_scaled(theirs[rows], scale))
            np.maximum(best, _correlation(plain, other), out=best)
    return found


def score(cosine: np.ndarray, agreed: np.ndarray, level: np.ndarray) -> np.ndarray:
    """The evidence [P] that pairs are copies: 0.65 cosine + 0.35 agreement - 0.25 level.

    level [P]: the mean of the 4 highest cosines of a picture's mirror with the pool, without the
    picture itself; for two pictures of one pool, the mean of both.
    """
    return (1 - _AGREEMENT) * cosine + _AGREEMENT * agreed - _LEVEL * level


def _scaled(thumbs: np.ndarray, scale: float) -> np.ndarray:
    """About the middle; what lies outside repeats the border."""
    if scale == 1:
        return thumbs
    side = thumbs.shape[1]
    middle = (side - 1) / 2
    turn = cv2.getRotationMatrix2D((middle, middle), 0, scale)
    border = cv2.BORDER_REPLICATE
    return np.stack([cv2.warpAffine(t, turn, (side, side), borderMode=border) for t in thumbs])


def _gradients(thumbs: np.ndarray) -> np.ndarray:
    """uint8 [P, S, S, 3] -> float32 [P, 2, S, S]: directions kept, lengths nearly their roots."""
    grey = thumbs.astype(np.float32) @ _LUMA
    across, down = np.zeros_like(grey), np.zeros_like(grey)
    across[:, :, 1:-1] = grey[:, :, 2:] - grey[:, :, :-2]
    down[:, 1:-1] = grey[:, 2:] - grey[:, :-2]
    weight = 1 / np.sqrt(np.hypot(across, down) + _FLOOR)
    return np.stack([across * weight, down * weight], axis=1)


def _correlation(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """The highest over shifts of the fields [P, 2, S, S]: [P]; lengths are of the overlap alone."""
    side = ours.shape[-1]
    best = np.zeros(len(ours), np.float32)
    for down in range(-SHIFT, SHIFT + 1):
        for right in range(-SHIFT, SHIFT + 1):
            mine = ours[:, :, _part(side, down), _part(side, right)]
            yours = theirs[:, :, _part(side, -down), _part(side, -right)]
            dot = np.einsum("pcyx,pcyx->p", mine, yours)
            square = np.einsum("pcyx,pcyx->p", mine, mine)
            square *= np.einsum("pcyx,pcyx->p", yours, yours)
            np.maximum(best, dot / np.sqrt(np.maximum(square, 1e-3)), out=best)
    return best


def _part(side: int, shift: int) -> slice:
    """Where a row still lies over one that is moved by `shift` cells."""
    return slice(max(0, shift), side + min(0, shift))
