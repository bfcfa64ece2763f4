"""Weighted k-NN on frozen features (paper section 7.1; FB dinov2/eval/knn.py, reference-facts 8.2).

Similarities are dot products of L2-normalised features; the max(k) nearest vote with weights
softmax(similarity / T), taken once over all max(k), and each k sums the first k of them. Bank and
queries are walked in blocks, so neither the bank nor all similarities must fit on the device.
"""

# DINOv2: similarities are fp32; the reference multiplies within fp16 autocast. Expect accuracies
# that differ by about 0.1 point.

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dinov2_jax.eval.few_shot import draw_examples
from dinov2_jax.eval.metrics import top_accuracy

Accuracies = dict[int, dict[str, float]]


def _normalize(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, np.float32)
    norm = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(norm, 1e-12)


@functools.partial(jax.jit, static_argnames="k")
def _merge_block(
    best: tuple[Array, Array], queries: Array, block: Array, labels: Array, count: Array, k: int
) -> tuple[Array, Array]:
    """The k nearest of those so far and of a block, whose rows from `count` on are padding."""
    similarity = jnp.einsum("qd,bd->qb", queries, block, precision="highest")
    similarity = jnp.where(jnp.arange(block.shape[0]) < count, similarity, -jnp.inf)
    every = jnp.concatenate([best[0], similarity], axis=1)
    owner = jnp.concatenate(
        [best[1], jnp.broadcast_to(labels, (queries.shape[0], block.shape[0]))], axis=1
    )
    values, where = jax.lax.top_k(every, k)
    return values, jnp.take_along_axis(owner, where, axis=1)


def nearest_labels(
    bank: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    k: int,
    *,
    bank_block: int = 65536,
    query_block: int = 2048,
) -> tuple[np.ndarray, np.ndarray]:
    """Similarities and labels of each query's k nearest, nearest first.

    Args:
      bank [n, D], labels [n], queries [m, D]: features already L2-normalised.

    Returns:
      [m, k] fp32 and [m, k] int32.
    """
    bank_block, query_block = min(bank_block, len(bank)), min(query_block, len(queries))
    found = []
    for start in range(0, len(queries), query_block):
        rows = _pad(queries[start : start + query_block], query_block)
        best = (jnp.full((query_block, k), -jnp.inf), jnp.zeros((query_block, k), jnp.int32))
        for first in range(0, len(bank), bank_block):
            block, owner = bank[first : first + bank_block], labels[first : first + bank_block]
            count = np.int32(len(block))
            padded = _pad(block, bank_block), _pad(owner.astype(np.int32), bank_block)
            best = _merge_block(best, rows, *padded, count, k)
        found.append(jax.device_get(best))
    similarities, nearest = (
        np.concatenate(part)[: len(queries)] for part in zip(*found, strict=True)
    )
    return similarities, nearest


def _pad(rows: np.ndarray, length: int) -> np.ndarray:
    return np.pad(rows, [(0, length - len(rows))] + [(0, 0)] * (rows.ndim - 1))


def vote(
    similarities: np.ndarray,
    nearest: np.ndarray,
    ks: Sequence[int],
    temperature: float,
    classes: int,
) -> dict[int, np.ndarray]:
    """Class scores [m, classes] for each k, from neighbours sorted by similarity [m, max_k]."""
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
    query_block: int = 2048,
) -> Accuracies:
    """Top-1 and top-5 in percent for each k; a k beyond the bank uses the whole bank.

    Args:
      train_features [n, D], train_labels [n]: the bank; test_features [m, D], test_labels [m].
      bank_block, query_block: rows held on the device at once.

    Raises:
      ValueError: when bank or queries are empty.
    """
    if not len(train_features) or not len(test_features):
        raise ValueError(
            f"k-NN needs labelled pictures on both sides, but the bank has {len(train_features)} "
            f"and the test set {len(test_features)}; check the splits and labels"
        )
    max_k = min(max(ks), len(train_features))
    similarities, nearest = nearest_labels(
        _normalize(train_features),
        train_labels,
        _normalize(test_features),
        max_k,
        bank_block=bank_block,
        query_block=query_block,
    )
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    scores = vote(similarities, nearest, ks, temperature, classes)
    return {
        k: {f"top{top}": top_accuracy(score, test_labels, top) for top in (1, 5)}
        for k, score in scores.items()
    }


def few_shot_knn(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    n_per_class: int,
    n_tries: int = 1,
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
) -> Accuracies:
    """k-NN with `n_per_class` random examples of every class, averaged over tries.

    The values of k are those of `ks` and `n_per_class` itself that do not exceed `n_per_class`.
    Try t draws its examples from seed t.
    """
    used_ks = sorted(k for k in {*ks, n_per_class} if k <= n_per_class)
    tries = []
    for seed in range(n_tries):
        chosen = draw_examples(train_labels, n_per_class, seed)
        tries.append(
            knn_accuracy(
                train_features[chosen],
                train_labels[chosen],
                test_features,
                test_labels,
                ks=used_ks,
                temperature=temperature,
            )
        )
    return {
        k: {name: float(np.mean([t[k][name] for t in tries])) for name in ("top1", "top5")}
        for k in used_ks
    }


def knn_table(results: dict[str, Accuracies]) -> str:
    """A plain-text table of all settings."""
    lines = [f"{'bank':>14} {'k':>5} {'top-1 %':>8} {'top-5 %':>8}"]
    for setting, accuracies in results.items():
        for k, value in accuracies.items():
            lines.append(f"{setting:>14} {k:>5} {value['top1']:>8.2f} {value['top5']:>8.2f}")
    return "\n".join(lines)


def all_settings(
    bank: tuple[np.ndarray, np.ndarray], query: tuple[np.ndarray, np.ndarray], config: Any
) -> dict[str, Accuracies]:
    """Every entry of `config.n_per_class`: -1 is the full bank."""
    results = {}
    for count in config.n_per_class:
        if count <= 0:
            results["full"] = knn_accuracy(
                *bank, *query, ks=config.ks, temperature=config.temperature
            )
        else:
            results[f"{count} per class"] = few_shot_knn(
                *bank,
                *query,
                n_per_class=count,
                n_tries=config.n_tries,
                ks=config.ks,
                temperature=config.temperature,
            )
    return results
