"""Copy whitening against scipy's generalized eigenvectors; what few or constant features give."""

import numpy as np
import pytest

from dinov2_jax.curation.whitening import apply, fit
from dinov2_jax.errors import UserError

DIM = 24


def world(pictures: int, edits: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Originals and copies: edits move them most along the directions in which pictures differ."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(DIM, DIM)))
    between = np.geomspace(10, 1, DIM)
    within = np.geomspace(25, 0.05, DIM)
    originals = rng.normal(size=(pictures, DIM)) * between
    moved = rng.normal(size=(pictures, edits, DIM)) * within
    return originals @ turn + 3, (originals[:, None] + moved) @ turn + 3


def found_first(queries: np.ndarray, bank: np.ndarray) -> float:
    best = (queries @ bank.T).argmax(1)
    return float((best == np.arange(len(bank)).repeat(len(queries) // len(bank))).mean())


def test_the_subspace_is_that_of_the_generalized_eigenproblem() -> None:
    """With many copies nothing is shrunk: C_pool v = l C_change v, by scipy."""
    linalg = pytest.importorskip("scipy.linalg")
    originals, copies = world(3000, 5)
    whitening = fit(originals, copies, originals, width=6)
    changes = (copies - originals[:, None]).reshape(-1, DIM)
    inner = changes.T @ changes / len(changes)
    weight = 1e-3  # the least shrinkage
    inner = (1 - weight) * inner + weight * np.trace(inner) / DIM * np.eye(DIM)
    _, vectors = linalg.eigh(np.cov(originals, rowvar=False, bias=True), inner)
    wanted, found = (np.linalg.qr(v)[0] for v in (vectors[:, ::-1][:, :6], whitening.matrix))
    np.testing.assert_allclose(np.linalg.svd(wanted.T @ found)[1], 1, atol=1e-4)
    turned = whitening.matrix.T @ inner @ whitening.matrix
    np.testing.assert_allclose(turned, np.eye(6), atol=1e-3)


def test_whitened_copies_are_found_where_raw_ones_are_not() -> None:
    originals, copies = world(300, 4)
    held, held_copies = world(300, 4)
    whitening = fit(originals, copies, originals, width=12)
    raw = found_first(
        (held_copies - held.mean(0)).reshape(-1, DIM)
        / np.linalg.norm(held_copies - held.mean(0), axis=2).reshape(-1, 1),
        (held - held.mean(0)) / np.linalg.norm(held - held.mean(0), axis=1, keepdims=True),
    )
    turned = apply(whitening, held_copies.reshape(-1, DIM))
    better = found_first(turned, apply(whitening, held))
    assert better > raw + 0.15
    assert better > 0.95


def test_rows_have_length_one_and_the_width() -> None:
    originals, copies = world(50, 3)
    whitening = fit(originals, copies, originals)
    assert whitening.matrix.shape == (DIM, DIM)  # no more than there are
    turned = apply(whitening, originals)
    assert turned.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(turned, axis=1), 1, atol=1e-6)
    assert not apply(whitening, whitening.mean[None]).any()
    assert apply(whitening, originals[:0]).shape == (0, DIM)


def test_few_copies_and_constant_dimensions_do_not_blow_up() -> None:
    originals, copies = world(4, 2)
    pool, _ = world(200, 1, seed=1)
    pad = [
        np.concatenate([x, np.full((*x.shape[:-1], 8), 5.0)], -1) for x in (originals, copies, pool)
    ]
    whitening = fit(*pad, width=16)
    assert np.isfinite(whitening.matrix).all()
    turned = apply(whitening, pad[2])
    assert np.isfinite(turned).all()
    # What never varies counts nothing, and no pair of different pictures is a copy.
    np.testing.assert_allclose(whitening.matrix[DIM:], 0, atol=1e-5)
    np.fill_diagonal(same := turned @ turned.T, 0)
    assert same.max() < 0.99


def test_features_that_cannot_be_whitened_are_refused() -> None:
    originals, copies = world(5, 2)
    with pytest.raises(UserError, match="no copy differs"):
        fit(originals, np.repeat(originals[:, None], 2, 1), originals)
    copies[0, 0, 0] = np.nan
    with pytest.raises(UserError, match="NaN"):
        fit(originals, copies, originals)
