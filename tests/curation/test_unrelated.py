"""Mirrored pictures tell how alike unrelated ones are; copies in the pool do not disturb them."""

import numpy as np
import pytest

from dinov2_jax.curation import evidence, pixels, whitening
from dinov2_jax.curation.hashes import fit_basis, hash_rows, thumbnails
from dinov2_jax.curation.unrelated import HeldOut
from tests.curation.conftest import draw

COUNT = 40


@pytest.fixture(scope="module")
def thumbs() -> np.ndarray:
    return thumbnails(np.asarray(draw(number)) for number in range(COUNT))


def held_out(thumbs: np.ndarray, places: np.ndarray) -> HeldOut:
    described = pixels.describe(thumbs)
    width = described.shape[1]
    plain = whitening.Whitening(described.mean(axis=0), np.eye(width, dtype=np.float32))
    mirrored = whitening.apply(plain, pixels.describe(pixels.mirror(thumbs[places])))
    basis = fit_basis(thumbs)
    return HeldOut(
        places, mirrored, whitening.apply(plain, described), thumbs, basis, hash_rows(basis, thumbs)
    )


def test_the_mean_of_the_best_is_numpys_and_leaves_the_picture_out() -> None:
    rng = np.random.default_rng(0)
    pool = rng.standard_normal((60, 8)).astype(np.float32)
    pool /= np.linalg.norm(pool, axis=1, keepdims=True)
    places = np.array([3, 7, -1])
    queries = np.concatenate([pool[[3, 7]], pool[:1] * 0.5 + pool[1:2] * 0.5])
    cosines = queries @ pool.T
    cosines[0, 3] = cosines[1, 7] = -np.inf
    expected = -np.sort(-cosines, axis=1)[:, :4].mean(axis=1)
    np.testing.assert_allclose(
        evidence.mean_of_best(pool, queries, places)[:2], expected[:2], atol=1e-6
    )
    np.testing.assert_allclose(
        evidence.mean_of_best(pool, queries, places)[2], expected[2], atol=1e-6
    )


def test_only_candidates_are_looked_at_again(thumbs: np.ndarray) -> None:
    cosine = np.array([0.59, 0.61, 0.9], np.float32)
    found = evidence.scores(thumbs[:3], thumbs[:3], cosine, np.zeros(3, np.float32))
    assert found[0] == -1
    np.testing.assert_allclose(found[1:], 0.65 * cosine[1:] + 0.35, atol=1e-5)


def test_copies_in_the_pool_do_not_count_as_unrelated(thumbs: np.ndarray) -> None:
    places = np.arange(COUNT)
    alone = held_out(thumbs, places).best_cosine()
    doubled = held_out(np.concatenate([thumbs, thumbs]), places).best_cosine()
    np.testing.assert_allclose(doubled, alone, atol=2e-6)
    assert alone.max() < 0.9  # the pictures themselves would give 1


def test_fewer_bits_are_taken_where_more_would_link_pictures(thumbs: np.ndarray) -> None:
    plain = held_out(thumbs, np.arange(COUNT))
    all_bits = plain.hash_bits(31, 1.0)
    assert all_bits == 31
    few = plain.hash_bits(31, 0.0)
    assert -1 <= few < plain.hash_bits(31, 0.5) <= 31
    assert plain.hash_bits(-1, 1.0) == -1
    # The mirror of each picture is in the pool: no number of bits keeps them apart.
    both = np.concatenate([thumbs, pixels.mirror(thumbs)])
    assert held_out(both, np.arange(COUNT)).hash_bits(12, 0.01) == -1
