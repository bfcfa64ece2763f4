"""Components against scipy, on graphs that hook in many ways."""

import numpy as np
import pytest

from dinov2_jax.curation.components import labels, labels_in_batches

sparse = pytest.importorskip("scipy.sparse")
csgraph = pytest.importorskip("scipy.sparse.csgraph")


def by_scipy(nodes: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    graph = sparse.coo_matrix((np.ones(len(a), np.int8), (a, b)), (nodes, nodes))
    _, component = csgraph.connected_components(graph, directed=False)
    lowest = np.full(component.max() + 1, nodes)
    np.minimum.at(lowest, component, np.arange(nodes))
    return lowest[component]


def random_edges(nodes: int, edges: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(nodes)
    return rng.integers(0, nodes, edges), rng.integers(0, nodes, edges)


def chain(nodes: int, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return order[:-1], order[1:]


SHUFFLED = np.random.default_rng(0).permutation(20_000)
GRAPHS = {
    "sparse": (5000, *random_edges(5000, 2000)),
    "critical": (5000, *random_edges(5000, 2600)),
    "dense": (500, *random_edges(500, 5000)),
    "million": (1_000_000, *random_edges(1_000_000, 1_000_000)),
    "chain": (20_000, *chain(20_000, np.arange(20_000))),
    "chain_back": (20_000, *chain(20_000, np.arange(20_000)[::-1])),
    "chain_shuffled": (20_000, *chain(20_000, SHUFFLED)),
    "star": (20_000, np.full(19_999, 19_999), np.arange(19_999)),
    "loops_and_repeats": (6, np.array([1, 1, 4, 4, 5]), np.array([1, 4, 1, 1, 5])),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_labels_equal_scipy(name: str) -> None:
    nodes, a, b = GRAPHS[name]
    expected = by_scipy(nodes, a, b)
    found = labels(nodes, a, b)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(labels(nodes, b[::-1], a[::-1]), expected)


@pytest.mark.parametrize("name", GRAPHS)
def test_batches_give_the_same(name: str) -> None:
    nodes, a, b = GRAPHS[name]
    cut = len(a) // 3
    found = labels_in_batches(nodes, [(a[cut:], b[cut:]), (a[:0], b[:0]), (a[:cut], b[:cut])])
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, by_scipy(nodes, a, b))


def test_without_edges_each_row_is_its_own() -> None:
    none = np.zeros(0, np.int64)
    np.testing.assert_array_equal(labels(4, none, none), np.arange(4))
    assert labels(0, none, none).shape == (0,)
    np.testing.assert_array_equal(labels_in_batches(3, []), np.arange(3))
