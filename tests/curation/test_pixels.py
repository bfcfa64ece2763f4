"""The descriptor against plain loops; what shifts and mirrors do to it."""

import math

import numpy as np

from dinov2_jax.curation import pixels
from dinov2_jax.curation.edits import EDITS_14, copies
from dinov2_jax.curation.hashes import thumbnails
from dinov2_jax.curation.pixels import describe, mirror
from dinov2_jax.curation.whitening import apply, fit


def by_loops(thumb: np.ndarray) -> np.ndarray:
    """Colours, then edges, in plain Python."""
    colours = []
    for row in range(0, 16, 2):
        for column in range(0, 16, 2):
            for channel in range(3):
                cell = [int(v) for v in thumb[row : row + 2, column : column + 2, channel].flat]
                colours.append(sum(cell) / 4 / 255 - 0.5)
    grey = [[0.299 * r + 0.587 * g + 0.114 * b for r, g, b in line] for line in thumb.tolist()]
    edges = []
    for direction in range(8):
        angle = math.pi * direction / 4
        for high in range(4):
            for wide in range(4):
                total = norm_y = norm_x = 0.0
                for y in range(16):
                    weight_y = max(0.0, 1 - abs(y - 1.5 - 4 * high) / 4)
                    norm_y += weight_y
                    norm_x += max(0.0, 1 - abs(y - 1.5 - 4 * wide) / 4)
                    for x in range(16):
                        weight = weight_y * max(0.0, 1 - abs(x - 1.5 - 4 * wide) / 4)
                        right = grey[y][min(x + 1, 15)] - grey[y][max(x - 1, 0)]
                        down = grey[min(y + 1, 15)][x] - grey[max(y - 1, 0)][x]
                        part = math.cos(angle) * right + math.sin(angle) * down
                        total += weight * max(part, 0.0)
                edges.append(math.sqrt(total / norm_y / norm_x))
    length = math.sqrt(sum(edge * edge for edge in edges))
    return np.array(colours + [3 * edge / length for edge in edges])


def test_the_descriptor_is_that_of_plain_loops() -> None:
    thumbs = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    found = describe(thumbs)
    assert found.shape == (3, pixels.WIDTH)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [by_loops(thumb) for thumb in thumbs], atol=2e-6)


def test_blocks_change_nothing(monkeypatch) -> None:
    thumbs = np.random.default_rng(1).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    whole = describe(thumbs)
    monkeypatch.setattr(pixels, "_BLOCK", 7)
    np.testing.assert_allclose(describe(thumbs), whole, atol=1e-6)
    assert describe(thumbs[:0]).shape == (0, pixels.WIDTH)


def test_a_plain_picture_has_no_edges() -> None:
    found = describe(np.full((1, 16, 16, 3), 255, np.uint8))
    np.testing.assert_allclose(found[0, :192], 0.5)
    assert not found[0, 192:].any()


def test_a_mirror_is_the_thumbnail_of_the_mirrored_picture() -> None:
    images = np.random.default_rng(2).integers(0, 256, (4, 40, 33, 3), dtype=np.uint8)
    np.testing.assert_array_equal(mirror(thumbnails(images)), thumbnails(images[:, :, ::-1]))


def shapes(count: int, seed: int) -> list[np.ndarray]:
    """Pictures of three coloured discs on a soft ground: uint8 [64, 64, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:64, :64]
    out = []
    for _ in range(count):
        image = np.full((64, 64, 3), rng.uniform(0, 255, 3)) + (x * rng.uniform(-1, 1))[..., None]
        for _ in range(3):
            inside = np.hypot(y - rng.uniform(0, 64), x - rng.uniform(0, 64)) < rng.uniform(6, 24)
            image[inside] = rng.uniform(0, 255, 3)
        out.append(np.clip(image, 0, 255).astype(np.uint8))
    return out


def test_whitened_it_finds_copies_of_pictures_it_never_saw() -> None:
    """Fitted on 60 pictures and judged on 60 others, it misses half as many as raw."""
    images = shapes(120, 0)
    thumbs = thumbnails(images)
    made = [thumbnails(copies(image, row, 0, EDITS_14)) for row, image in enumerate(images)]
    plain, copied = describe(thumbs), np.stack([describe(copy) for copy in made])
    whitening = fit(plain[:60], copied[:60], plain[:60], width=64)

    def recall(bank: np.ndarray, queries: np.ndarray) -> float:
        """Share of copies above all but 1 % of the best scores of different pictures."""
        score = np.einsum("nd,ned->ne", bank, queries)
        other = bank @ bank.T
        np.fill_diagonal(other, -1)
        return float((score > np.quantile(other.max(1), 0.99)).mean())

    def raw(rows: np.ndarray) -> np.ndarray:
        moved = rows - plain[:60].mean(0)
        return moved / np.linalg.norm(moved, axis=-1, keepdims=True)

    held = apply(whitening, plain[60:])
    held_copies = apply(whitening, copied[60:].reshape(-1, pixels.WIDTH)).reshape(60, 14, -1)
    whitened = recall(held, held_copies)
    assert whitened > 0.9
    assert 1 - whitened < 0.6 * (1 - recall(raw(plain[60:]), raw(copied[60:])))
