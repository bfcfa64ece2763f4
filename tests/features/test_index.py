"""Search by an index of faiss: it finds what exact search finds, or says that it does not."""

import builtins

import numpy as np
import pytest

from dinov2_jax.errors import EvaluationError
from dinov2_jax.features import index
from dinov2_jax.features.index import faiss_search
from dinov2_jax.features.search import search


def features(rows: int, seed: int, dim: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)


def test_a_flat_index_finds_the_same() -> None:
    pytest.importorskip("faiss")
    database, queries = features(300, 5), features(20, 6)
    ours, numbers = search(database, queries, 10)
    found = faiss_search(database, queries, 10)
    np.testing.assert_array_equal(found.rows, numbers)
    np.testing.assert_allclose(found.similarities, ours, atol=1e-6)
    assert found.recall == 1 and found.searched == {}
    assert faiss_search(database, queries, 999).rows.shape == (20, 300)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("factory", ["IVF32,Flat", "RR12,IVF32,Flat", "HNSW16"])
def test_an_index_searches_until_it_finds_the_neighbours(factory: str) -> None:
    pytest.importorskip("faiss")
    database, queries = features(2000, 1), features(300, 2)
    exact = search(database, queries, 20)[1]
    found = faiss_search(database, queries, 20, factory=factory)
    shares = [len(np.intersect1d(*pair)) / 20 for pair in zip(found.rows, exact, strict=True)]
    assert np.mean(shares) > 0.98 and found.recall >= 0.99
    assert max(found.searched.values()) > 1  # of one cell, or one node


def test_copies_in_the_database_may_stand_for_each_other() -> None:
    pytest.importorskip("faiss")
    database = np.repeat(features(40, 1), 10, axis=0)
    found = faiss_search(database, database[::10], 5, factory="IVF4,Flat")
    assert found.recall == 1 and found.searched["nprobe"] == 1


def test_all_queries_have_all_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(index, "SAMPLE", 1)  # which alone would be content with one cell
    database = np.concatenate([features(200, 1) + 9, features(5, 2) - 9])
    queries = np.concatenate([features(5, 3) + 9, features(1, 4) - 9])
    found = faiss_search(database, queries, 9, factory="IVF2,Flat", least_recall=0.5)
    assert (found.rows >= 0).all() and found.searched["nprobe"] == 2


def test_an_index_that_cannot_find_them_is_refused() -> None:
    pytest.importorskip("faiss")
    database, queries = features(2000, 1), features(20, 2)
    with pytest.raises(EvaluationError, match=r"'PQ2x4' finds \d+\.\d % of the 10 nearest of 20"):
        faiss_search(database, queries, 10, factory="PQ2x4")
    found = faiss_search(database, queries, 10, factory="PQ2x4", least_recall=0)
    assert 0 < found.recall < 0.9


@pytest.mark.parametrize("factory", ["IVF99,Flat", "IFV4,Flat", "IVF4,PQ5", "IDMap,Flat", "IMI2x4"])
def test_what_faiss_refuses_is_one_sentence(factory: str) -> None:
    pytest.importorskip("faiss")
    with pytest.raises(EvaluationError, match=f"faiss makes no index '{factory}'.*use another"):
        faiss_search(features(50, 1), features(5, 2), 3, factory=factory)


def test_without_faiss_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = builtins.__import__

    def no_faiss(name, *args, **kwargs):
        if name == "faiss":
            raise ImportError("no faiss")
        return plain(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_faiss)
    with pytest.raises(ImportError, match="pip install faiss-cpu"):
        faiss_search(features(3, 0), features(1, 1), 1)
