"""Weighted k-NN on frozen features (paper section 7.1; FB dinov2/eval/knn.py).

Similarities are dot products of L2-normalised features; the max(k) nearest vote with weights
softmax(similarity / T), taken once over all max(k), and each k sums the first k of them. The search
(features/search.py) is exact, in blocks, and split over the devices and processes of a mesh.
"""

# DINOv2: similarities are fp32; the reference multiplies within fp16 autocast. Expect accuracies
# that differ by about 0.1 point.

from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np

from dinov2_jax.errors import EvaluationError
from dinov2_jax.features.search import Bank, Found, unit
from dinov2_jax.metrics.classification import label_ranks, mean_of_known, shares_by_class

Accuracies = dict[int, dict[str, float]]

# Votes of all k that are held at once: 32 MiB, whatever the number of queries and classes.
_MOST_VOTES = 2**23


def vote_by_class(
    similarities: np.ndarray,
    nearest: np.ndarray,
    ks: Sequence[int],
    temperature: float,
    classes: int,
) -> dict[int, np.ndarray]:
    """Sums the votes of neighbours [m, max_k], nearest first, to scores [m, classes] for each k."""
    weights = np.exp((similarities - similarities[:, :1]) / temperature)
    weights /= weights.sum(axis=1, keepdims=True)
    scores = {}
    for k in ks:
        total = np.zeros((len(nearest), classes), np.float32)
        rows = np.repeat(np.arange(len(nearest)), min(k, nearest.shape[1]))
        np.add.at(total, (rows, nearest[:, :k].ravel()), weights[:, :k].ravel())
        scores[k] = total
    return scores


def knn_accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    bank_block: int = 65536,
    query_block: int = 1024,
) -> Accuracies:
    """Computes top-1, top-5 and mean per-class accuracy in percent, for each k.

    A k beyond the bank uses the whole bank. Under a mesh (`jax.set_mesh`) the bank is split over
    its devices; with several processes, each passes its own rows of it, and all the same queries.
    `train_features` [n, D] and `train_labels` [n] are the bank, `test_features` [m, D] and
    `test_labels` [m] the queries; the blocks are rows compared at once. Raises EvaluationError when
    bank or queries are empty.
    """
    bank = Bank(unit(train_features), train_labels, block=bank_block)
    _check_sides(bank.size, len(test_features))
    max_k = min(max(ks), bank.size)
    found = bank.search_blocks(unit(test_features), max_k, query_block=query_block)
    near = ((block.similarities, block.labels) for block in found)
    return _accuracies(near, test_labels, ks, temperature)


def leave_one_out(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    bank_block: int = 65536,
    query_block: int = 1024,
) -> Accuracies:
    """As `knn_accuracy`, where the set [n, D] is bank and queries, and no record votes for itself.

    Only the record itself is excluded; duplicates of it still vote. Raises EvaluationError for
    fewer than two records, and under a mesh of several processes.
    """
    _check_sides(len(features) - 1, len(features))
    if jax.process_count() > 1 and not jax.sharding.get_mesh().empty:
        raise EvaluationError(
            "leave-one-out needs the whole set on each process; run it without a mesh, or on a "
            "process's own devices"
        )
    queries = unit(features)
    max_k = min(max(ks), len(features) - 1)
    bank = Bank(queries, labels, block=bank_block)
    found = bank.search_blocks(queries, max_k + 1, query_block=query_block)
    return _accuracies(_without_own(found), labels, ks, temperature)


def _without_own(found: Iterable[Found]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Similarities and labels [m, k] without the query itself; the blocks are of the whole bank."""
    start = 0
    for block in found:
        own = block.rows == np.arange(start, start + len(block.rows))[:, None]
        own[:, -1] |= ~own.any(axis=1)  # so many duplicates that the record itself is not found
        shape = len(own), own.shape[1] - 1
        yield block.similarities[~own].reshape(shape), block.labels[~own].reshape(shape)
        start += len(own)


def _check_sides(bank: int, queries: int) -> None:
    if bank < 1 or not queries:
        raise EvaluationError(
            f"k-NN needs labelled pictures on both sides, but the bank has {max(bank, 0)} "
            f"and the test set {queries}; check the splits and labels"
        )


def _accuracies(
    near: Iterable[tuple[np.ndarray, np.ndarray]],
    labels: np.ndarray,
    ks: Sequence[int],
    temperature: float,
) -> Accuracies:
    """Accuracies from similarities and labels [m, max_k] of one block of queries after another."""
    parts: dict[int, list[np.ndarray]] = {k: [] for k in ks}
    start, most = 0, int(labels.max())
    for similarities, nearest in near:
        classes = int(max(nearest.max(), most)) + 1
        rows = max(1, _MOST_VOTES // (classes * len(parts)))
        for i in range(0, len(nearest), rows):
            block = similarities[i : i + rows], nearest[i : i + rows]
            own = labels[start + i : start + i + len(block[0])]
            for k, scores in vote_by_class(*block, list(parts), temperature, classes).items():
                parts[k].append(label_ranks(scores, own))
        start += len(nearest)
    ranks = {k: np.concatenate(part) for k, part in parts.items()}
    return {
        k: {
            "top1": float(100 * np.mean(rank < 1)),
            "top5": float(100 * np.mean(rank < 5)),
            "mean_per_class": mean_of_known(shares_by_class(rank < 1, labels, most + 1)),
        }
        for k, rank in ranks.items()
    }
