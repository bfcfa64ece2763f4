"""Weighted k-NN on frozen features (paper section 7.1; FB dinov2/eval/knn.py, reference-facts 8.2).

Similarities are dot products of L2-normalised features; the max(k) nearest vote with weights
softmax(similarity / T), taken once over all max(k), and each k sums the first k of them. The search
(features/search.py) is exact, in blocks, and split over the devices and processes of a mesh.
"""

# DINOv2: similarities are fp32; the reference multiplies within fp16 autocast. Expect accuracies
# that differ by about 0.1 point.

from collections.abc import Sequence

import jax
import numpy as np

from dinov2_jax.errors import EvaluationError
from dinov2_jax.features.search import Bank, unit
from dinov2_jax.metrics.classification import mean_per_class_accuracy, top_accuracy

Accuracies = dict[int, dict[str, float]]


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
    found = bank.search(unit(test_features), max_k, query_block=query_block)
    return _accuracies(found.similarities, found.labels, test_labels, ks, temperature)


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
    found = bank.search(queries, max_k + 1, query_block=query_block)
    own = found.rows == np.arange(len(features))[:, None]
    own[:, -1] |= ~own.any(axis=1)  # so many duplicates that the record itself is not found
    similarities = found.similarities[~own].reshape(-1, max_k)
    nearest = found.labels[~own].reshape(-1, max_k)
    return _accuracies(similarities, nearest, labels, ks, temperature)


def _check_sides(bank: int, queries: int) -> None:
    if bank < 1 or not queries:
        raise EvaluationError(
            f"k-NN needs labelled pictures on both sides, but the bank has {max(bank, 0)} "
            f"and the test set {queries}; check the splits and labels"
        )


def _accuracies(
    similarities: np.ndarray,
    nearest: np.ndarray,
    labels: np.ndarray,
    ks: Sequence[int],
    temperature: float,
) -> Accuracies:
    classes = int(max(nearest.max(), labels.max())) + 1
    return {
        k: {
            "top1": top_accuracy(score, labels, 1),
            "top5": top_accuracy(score, labels, 5),
            "mean_per_class": mean_per_class_accuracy(score, labels),
        }
        for k, score in vote_by_class(similarities, nearest, ks, temperature, classes).items()
    }
