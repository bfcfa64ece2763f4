"""Thumbnails against exact fractions; hashes that move little; near pairs against all pairs."""

from fractions import Fraction

import numpy as np
import pytest

from dinov2_jax.curation import hashes
from dinov2_jax.curation.area import shrink
from dinov2_jax.curation.hashes import (
    byte_digest,
    cross_pairs,
    fit_basis,
    grey,
    hash_rows,
    is_blank,
    near_pairs,
    pixel_digest,
    thumbnail,
    thumbnails,
)


def photos(count: int, seed: int = 0, side: int = 64) -> np.ndarray:
    """Random pictures with a spectrum as of photos: uint8 [N, side, side, 3]."""
    rng = np.random.default_rng(seed)
    wave = np.fft.rfft2(rng.normal(size=(count, 3, side, side)))
    across, down = np.fft.rfftfreq(side), np.fft.fftfreq(side)
    wave /= np.hypot(across[None, :], down[:, None]) + 1 / side
    shown = np.fft.irfft2(wave, (side, side))
    shown = 128 + 50 * shown / shown.std((1, 2, 3), keepdims=True)
    return np.clip(shown, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


# --- thumbnails -------------------------------------------------------------------------------


def by_fractions(image: np.ndarray, side: int) -> np.ndarray:
    """Every pixel cut at the borders of the cells."""
    height, width = image.shape
    out = np.zeros((side, side), int)
    for row, column in np.ndindex(side, side):
        total = Fraction(0)
        for y, x in np.ndindex(height, width):
            high = min(Fraction((row + 1) * height, side), y + 1)
            high -= max(Fraction(row * height, side), y)
            wide = min(Fraction((column + 1) * width, side), x + 1)
            wide -= max(Fraction(column * width, side), x)
            if high > 0 and wide > 0:
                total += high * wide * int(image[y, x])
        mean = total * side * side / (height * width)
        out[row, column] = int(mean + Fraction(1, 2))
    return out


@pytest.mark.parametrize("size", [(7, 5), (4, 4), (3, 9), (1, 2), (8, 12)])
def test_shrink_is_the_exact_mean_of_areas(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 2), dtype=np.uint8)
    found = shrink(image, 4)
    assert found.dtype == np.uint8
    for channel in range(2):
        np.testing.assert_array_equal(found[:, :, channel], by_fractions(image[:, :, channel], 4))


def test_a_large_picture_is_as_exact_as_its_parts() -> None:
    image = np.random.default_rng(0).integers(0, 256, (4096, 80, 3), dtype=np.uint8)
    sums = image.reshape(16, 256, 16, 5, 3).astype(np.int64).sum((1, 3))
    np.testing.assert_array_equal(thumbnail(image), (2 * sums + 1280) // 2560)


def test_grey_and_blank() -> None:
    colours = np.zeros((3, 16, 16, 3), np.uint8)
    colours[0] = [255, 0, 0]
    colours[1] = 200
    colours[2, ::2] = 9
    levels = grey(colours)
    assert levels.shape == (3, 256)
    assert levels.dtype == np.float32
    assert (levels[0] == 77).all()  # 0.299 * 255 = 76.2, in 256ths 76.7
    assert (levels[1] == 200).all()
    np.testing.assert_array_equal(is_blank(colours), [True, True, False])  # std 4.5
    colours[2, ::2] = 8
    np.testing.assert_array_equal(is_blank(colours), [True, True, False])  # std 4 is not less
    colours[2, ::2] = 7
    assert is_blank(colours).all()
    assert thumbnails([]).shape == (0, 16, 16, 3)
    assert not len(is_blank(thumbnails([])))


# --- hashes -----------------------------------------------------------------------------------


def test_the_basis_is_the_pca_of_a_large_pool() -> None:
    thumbs = np.random.default_rng(1).integers(0, 256, (8000, 16, 16, 3), dtype=np.uint8)
    ramp = np.linspace(0.1, 1, 256).reshape(16, 16, 1)  # variances that differ
    thumbs = (128 + (thumbs - 128.0) * ramp).astype(np.uint8)
    basis = fit_basis(thumbs)
    np.testing.assert_allclose(basis.mean, grey(thumbs).mean(0), atol=1.0)
    covariance = np.cov(grey(thumbs), rowvar=False)
    kept = np.trace(basis.components.T @ covariance @ basis.components)
    best = np.linalg.eigvalsh(covariance)[::-1][:64].sum()
    assert 0.9 * best < kept <= 1.00001 * best
    np.testing.assert_allclose(basis.components.T @ basis.components, np.eye(64), atol=1e-4)


@pytest.mark.parametrize("count", [0, 1, 3, 70])
def test_few_or_equal_pictures_still_give_64_directions(count: int) -> None:
    for thumbs in (thumbnails(photos(count)), np.full((count, 16, 16, 3), 7, np.uint8)):
        basis = fit_basis(thumbs)
        np.testing.assert_allclose(basis.components.T @ basis.components, np.eye(64), atol=1e-4)
        again = fit_basis(thumbs[::-1])
        np.testing.assert_array_equal(again.components, basis.components)
        assert hash_rows(basis, thumbs).shape == (count,)


def test_bits_do_not_depend_on_blocks_or_order(monkeypatch: pytest.MonkeyPatch) -> None:
    thumbs = thumbnails(photos(200))
    basis, found = fit_basis(thumbs), hash_rows(fit_basis(thumbs), thumbs)
    monkeypatch.setattr(hashes, "_BLOCK", 7)
    again = fit_basis(thumbs[::-1])
    np.testing.assert_array_equal(again.components, basis.components)
    np.testing.assert_array_equal(again.mean, basis.mean)
    np.testing.assert_array_equal(hash_rows(again, thumbs), found)
    projected = (grey(thumbs).astype(np.float64) - basis.mean) @ basis.components
    signs = (found[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    np.testing.assert_array_equal(signs, projected > 0)


def test_copies_differ_in_few_bits_and_others_in_half() -> None:
    pictures = photos(300)
    noisy = np.clip(pictures + np.random.default_rng(0).normal(0, 20, pictures.shape), 0, 255)
    brighter = pictures // 2 + 64
    thumbs = thumbnails(pictures)
    basis = fit_basis(thumbs)
    plain = hash_rows(basis, thumbs)
    for changed in (noisy.astype(np.uint8), brighter):
        bits = np.bitwise_count(plain ^ hash_rows(basis, thumbnails(changed)))
        assert np.quantile(bits, 0.95) <= 12
    others = np.bitwise_count(plain ^ np.roll(plain, 1))
    assert 29 < others.mean() < 35
    assert others.min() > 12


# --- pairs ------------------------------------------------------------------------------------


def planted(count: int, seed: int) -> np.ndarray:
    """Random hashes; each tenth is another one with up to 14 bits turned, or equal to it."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 2**64, count, dtype=np.uint64)
    copies = rng.permutation(count)[: count // 10]
    turned = np.zeros(len(copies), np.uint64)
    for place in range(14):
        bit = np.uint64(1) << rng.integers(0, 64, len(copies)).astype(np.uint64)
        turned |= np.where(np.arange(len(copies)) % 15 > place, bit, np.uint64(0))
    rows[copies] = rows[rng.integers(0, count, len(copies))] ^ turned
    return rows


@pytest.mark.parametrize("plain", [1 << 28, 0], ids=["all_pairs", "bands"])
@pytest.mark.parametrize("within", [0, 1, 2, 3, 5, 12, 15, 64])
def test_near_pairs_are_all_near_pairs(
    plain: int, within: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "_PLAIN", plain)
    count = 60 if within == 64 else 2500
    rows, others = planted(count, 0), planted(count // 2, 1)
    others[:20] = rows[:20]
    distance = np.bitwise_count(rows[:, None] ^ rows)
    one, two = np.nonzero(np.triu(distance <= within, 1))
    a, b, bits = near_pairs(rows, within)
    np.testing.assert_array_equal(a, one)
    np.testing.assert_array_equal(b, two)
    np.testing.assert_array_equal(bits, distance[one, two])
    assert len(a) > 5 * (1 + min(within, 12))
    distance = np.bitwise_count(rows[:, None] ^ others)
    one, two = np.nonzero(distance <= within)
    a, b, bits = cross_pairs(rows, others, within)
    np.testing.assert_array_equal(a, one)
    np.testing.assert_array_equal(b, two)
    np.testing.assert_array_equal(bits, distance[one, two])


def test_no_hashes_give_no_pairs() -> None:
    none, one = np.zeros(0, np.uint64), np.zeros(1, np.uint64)
    for found in (near_pairs(none, 12), near_pairs(one, 12), cross_pairs(none, one, 12)):
        assert [part.shape for part in found] == [(0,)] * 3


# --- digests ----------------------------------------------------------------------------------


def test_digests_see_bytes_pixels_and_size() -> None:
    # RFC 7693's BLAKE2b with 16 bytes of output, as b2sum -l 128 prints it.
    assert byte_digest(b"abc").hex() == "cf4ab791c62b8d2b2109c90275287816"
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert len(pixel_digest(image)) == 16
    assert pixel_digest(image) == pixel_digest(image[:, ::-1][:, ::-1])  # strides do not count
    assert pixel_digest(image) != pixel_digest(image.reshape(2, 8, 3))
    assert pixel_digest(image) != pixel_digest(image ^ 1)
