"""Agreement against a plain loop; what shifts, brightness and other pictures do to it."""

import math

import numpy as np

from dinov2_jax.curation import alignment
from dinov2_jax.curation.alignment import agreement, score


def soft(count: int, seed: int, side: int = 24) -> np.ndarray:
    """Random soft pictures: uint8 [N, side, side, 3]."""
    noise = np.random.default_rng(seed).normal(size=(count, side + 6, side + 6, 3))
    for axis in (1, 2):
        total = np.cumsum(noise, axis)
        noise = np.take(total, range(4, total.shape[axis]), axis)
        noise = noise - np.take(total, range(total.shape[axis] - 4), axis)
    noise = noise[:, :side, :side]
    return np.clip(128 + 12 * noise, 0, 255).astype(np.uint8)


def by_loops(one: np.ndarray, other: np.ndarray) -> float:
    """The best correlation over shifts, without scales, in plain Python."""

    def field(thumb: np.ndarray) -> list[list[tuple[float, float]]]:
        grey = [[0.299 * r + 0.587 * g + 0.114 * b for r, g, b in line] for line in thumb.tolist()]
        rows = []
        for y in range(16):
            row = []
            for x in range(16):
                right = grey[y][x + 1] - grey[y][x - 1] if 0 < x < 15 else 0.0
                down = grey[y + 1][x] - grey[y - 1][x] if 0 < y < 15 else 0.0
                weight = 1 / math.sqrt(math.hypot(right, down) + 4)
                row.append((right * weight, down * weight))
            rows.append(row)
        return rows

    first, second, best = field(one), field(other), 0.0
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            dot = mine = yours = 0.0
            for y in range(max(0, dy), 16 + min(0, dy)):
                for x in range(max(0, dx), 16 + min(0, dx)):
                    a, b = first[y][x], second[y - dy][x - dx]
                    dot += a[0] * b[0] + a[1] * b[1]
                    mine += a[0] ** 2 + a[1] ** 2
                    yours += b[0] ** 2 + b[1] ** 2
            best = max(best, dot / math.sqrt(mine * yours))
    return best


def test_agreement_is_the_best_correlation_over_shifts(monkeypatch) -> None:
    monkeypatch.setattr(alignment, "_SCALES", (1.0,))
    ours, theirs = soft(4, 0)[:, :16, :16], soft(4, 0)[:, 1:17, 2:18]
    theirs[3] = soft(1, 9)[0, :16, :16]
    wanted = [by_loops(a, b) for a, b in zip(ours, theirs, strict=True)]
    np.testing.assert_allclose(agreement(ours, theirs), wanted, atol=1e-5)


def test_copies_agree_and_others_do_not() -> None:
    wide = soft(60, 1)
    plain = wide[:, 4:20, 4:20]
    np.testing.assert_allclose(agreement(plain, plain), 1, atol=1e-5)
    # Shifted by (2, 1): a seventh of the overlap lies on a border, where no gradient is taken.
    assert agreement(plain, wide[:, 2:18, 5:21]).min() > 0.85
    assert agreement(plain, plain // 2 + 90).min() > 0.9  # half the contrast
    assert np.quantile(agreement(plain, np.roll(plain, 1, 0)), 0.95) < 0.5
    zoomed = alignment._scaled(wide, 0.87)[:, 4:20, 4:20]
    assert np.median(agreement(zoomed, plain)) > 0.8


def test_without_edges_nothing_agrees() -> None:
    flat = np.full((2, 16, 16, 3), 200, np.uint8)
    np.testing.assert_array_equal(agreement(flat, soft(2, 3)[:, :16, :16]), 0)
    assert agreement(flat[:0], flat[:0]).shape == (0,)


def test_blocks_change_nothing(monkeypatch) -> None:
    ours, theirs = soft(10, 4)[:, :16, :16], soft(10, 5)[:, :16, :16]
    whole = agreement(ours, theirs)
    monkeypatch.setattr(alignment, "_BLOCK", 3)
    np.testing.assert_allclose(agreement(ours, theirs), whole, atol=1e-6)


def test_a_picture_that_resembles_many_is_held_to_more() -> None:
    found = score(np.array([0.8, 0.8]), np.array([0.6, 0.6]), np.array([0.4, 0.8]))
    np.testing.assert_allclose(found, [0.63, 0.53])
