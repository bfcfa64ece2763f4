"""Exact ranking of a database by cosine similarity, in blocks on the devices."""

# DINOv2: no code for retrieval was published, and the paper states neither resolution nor scales.

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dinov2_jax.errors import EvaluationError
from dinov2_jax.features.search import Bank


def search(
    database: np.ndarray,
    queries: np.ndarray,
    k: int,
    *,
    database_block: int = 65536,
    query_block: int = 1024,
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of every query by cosine similarity, nearest first, equal ones by number.

    Args:
      database [n, D], queries [m, D]: features of any length (norm).
      k: a k beyond n gives all n.
      database_block, query_block: rows held on the device at once.

    Returns:
      similarities fp32 [m, min(k, n)] and numbers int32 [m, min(k, n)].

    Raises:
      EvaluationError: for an empty side, another width, values that are not finite, or k below 1.
    """
    if k < 1:
        raise EvaluationError(f"k={k} finds nothing; the least is 1")
    database, queries = _unit_rows(database, queries)
    bank = Bank(database, np.arange(len(database)), block=database_block)
    found = bank.search(queries, min(k, len(database)), query_block=query_block)
    return found.similarities, found.rows


def rank_all(
    database: np.ndarray,
    queries: np.ndarray,
    *,
    database_block: int = 65536,
    query_block: int = 64,
) -> np.ndarray:
    """The whole database sorted for every query, int32 [m, n]; equal ones by number.

    One block of queries with its n similarities is on the device at once, beside one block of the
    database: 64 queries of a million distractors take 0.25 GB, and as much for their numbers.

    Args, Raises: as `search`.
    """
    database, queries = _unit_rows(database, queries)
    found = []
    for rows in _blocks(queries, query_block):
        parts = [_similarity(rows, block) for block in _blocks(database, database_block)]
        similarity = jnp.concatenate(parts, axis=1)[:, : len(database)]
        found.append(np.asarray(_sort(similarity)))
    return np.concatenate(found)[: len(queries)]


def faiss_search(
    database: np.ndarray, queries: np.ndarray, k: int, *, factory: str = "Flat"
) -> tuple[np.ndarray, np.ndarray]:
    """`search` by an index of faiss, on the host: "Flat" is exact, "IVF1024,Flat" is not.

    Args:
      factory: the description that faiss.index_factory takes; trained on the database.

    Returns:
      As `search`; number -1 where an inexact index found fewer than k.

    Raises:
      ImportError: without faiss.
    """
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "a search by an index of faiss needs a package; pip install faiss-cpu"
        ) from error
    database, queries = _unit_rows(database, queries)
    index = faiss.index_factory(database.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    index.train(database)
    index.add(database)
    similarities, numbers = index.search(queries, min(k, len(database)))
    return similarities, numbers.astype(np.int32)


def _unit_rows(database: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sides = {
        "database": np.asarray(database, np.float32),
        "queries": np.asarray(queries, np.float32),
    }
    for name, rows in sides.items():
        if not len(rows):
            raise EvaluationError(f"the {name} of a retrieval is empty; check its list of pictures")
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(bad):
            raise EvaluationError(
                f"row {bad[0]} of the {name} is not finite ({len(bad)} such rows), as of a picture "
                "that could not be read; repair or leave out these pictures"
            )
    widths = [rows.shape[1] for rows in sides.values()]
    if widths[0] != widths[1]:
        raise EvaluationError(
            f"the database has {widths[0]} features a picture, the queries {widths[1]}"
        )
    database, queries = (
        rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        for rows in sides.values()
    )
    return database, queries


def _blocks(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Blocks of one length, so that one program serves all; the last is filled with zeros."""
    size = min(size, len(rows))
    for start in range(0, len(rows), size):
        block = rows[start : start + size]
        yield np.pad(block, [(0, size - len(block)), (0, 0)])


@jax.jit
def _similarity(queries: Array, block: Array) -> Array:
    similarity = jnp.einsum("qd,bd->qb", queries, block, precision="highest")
    return jnp.where(similarity == 0, 0.0, similarity)  # -0.0 would sort behind 0.0


@jax.jit
def _sort(similarity: Array) -> Array:
    return jnp.argsort(-similarity, axis=1, stable=True).astype(jnp.int32)


def multi_scale_features(by_scale: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of L2-normalised features [n, D] of several scales, L2-normalised again."""
    return _unit(np.mean([_unit(features) for features in by_scale], axis=0))


def _unit(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
