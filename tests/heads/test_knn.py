"""k-NN against a plain numpy computation and scikit-learn, and the few-shot averaging by hand."""

import tracemalloc

import jax
import numpy as np
import pytest
from sklearn import metrics

from dinov2_jax.features.search import GROUP, Bank, top_columns
from dinov2_jax.heads.knn import knn_accuracy, leave_one_out, vote_by_class
from dinov2_jax.heads.probe_data import draw_examples
from dinov2_jax.parallel.mesh import make_mesh


def make_set(count: int, seed: int, classes: int = 7, dim: int = 12):
    """Overlapping clusters, so that accuracies lie far from 0 and 100 %."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, dim))
    labels = rng.integers(0, classes, count)
    return (centres[labels] + 1.5 * rng.normal(size=(count, dim))).astype(np.float32), labels


def unit(features):
    features = features.astype(np.float64)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def nearest_labels(bank, labels, queries, k, bank_block, query_block=1024):
    found = Bank(bank, labels, block=bank_block).search(queries, k, query_block=query_block)
    return found.similarities, found.labels


def plain_scores(train, train_labels, test, ks, temperature, classes):
    """Class scores for each k, one query and one neighbour at a time, in float64."""
    max_k = min(max(ks), len(train))
    scores = {k: np.zeros((len(test), classes)) for k in ks}
    for row, similarities in enumerate(unit(test) @ unit(train).T):
        nearest = np.argsort(-similarities, kind="stable")[:max_k]
        weights = np.exp(similarities[nearest] / temperature)
        weights /= weights.sum()
        for rank, (neighbour, weight) in enumerate(zip(nearest, weights, strict=True)):
            for k in ks:
                if rank < k:
                    scores[k][row, train_labels[neighbour]] += weight
    return scores


def plain_accuracy(scores, labels, top):
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return 100 * np.mean([label in row for label, row in zip(labels, best, strict=True)])


@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize(
    ("bank_block", "query_block"), [(1000, 1000), (64, 32), (37, 29), (7, 100)]
)
def test_equals_plain_numpy(temperature, bank_block, query_block):
    (train, train_labels), (test, test_labels) = make_set(301, 0), make_set(83, 1)
    ks = (1, 5, 20, 50)
    ours = knn_accuracy(
        train,
        train_labels,
        test,
        test_labels,
        ks=ks,
        temperature=temperature,
        bank_block=bank_block,
        query_block=query_block,
    )
    scores = plain_scores(train, train_labels, test, ks, temperature, 7)
    for k in ks:
        for top in (1, 5):
            expected = plain_accuracy(scores[k], test_labels, top)
            assert ours[k][f"top{top}"] == pytest.approx(expected, abs=1e-9)
        assert 20 < ours[k]["top1"] < 95


@pytest.mark.parametrize("bank_block", [5, 37, 1000])
def test_neighbours_equal_a_full_sort(bank_block):
    (train, labels), (test, _) = make_set(301, 0), make_set(83, 1)
    train, test = unit(train).astype(np.float32), unit(test).astype(np.float32)
    similarities, nearest = nearest_labels(
        train, labels, test, 20, bank_block=bank_block, query_block=17
    )
    full = test.astype(np.float64) @ train.T
    order = np.argsort(-full, axis=1)[:, :20]
    np.testing.assert_allclose(similarities, np.take_along_axis(full, order, 1), atol=1e-6)
    np.testing.assert_array_equal(nearest, labels[order])


def test_ties_go_to_the_earlier_record_in_any_block_size():
    # Four copies of one vector with different labels: with k=2 the first two of them must vote.
    vector = np.asarray([[0.6, 0.8]], np.float32)
    bank = np.concatenate([[[-1.0, 0.0]], np.repeat(vector, 4, axis=0)]).astype(np.float32)
    labels = np.asarray([0, 3, 1, 2, 4])
    for bank_block in (1, 2, 3, 5):
        _, nearest = nearest_labels(bank, labels, vector, 2, bank_block=bank_block)
        np.testing.assert_array_equal(nearest, [[3, 1]])


def test_padding_of_the_last_block_never_votes():
    # Every real neighbour points away from the query; a padding row of zeros would be nearer.
    rng = np.random.default_rng(14)
    bank = np.concatenate([-np.ones((10, 1)), 0.1 * rng.normal(size=(10, 3))], 1)
    bank, query = unit(bank).astype(np.float32), np.asarray([[1, 0, 0, 0]], np.float32)
    labels = np.full(10, 5)  # padding is labelled 0
    similarities, nearest = nearest_labels(bank, labels, query, 10, bank_block=7)
    np.testing.assert_array_equal(nearest, np.full((1, 10), 5))
    np.testing.assert_allclose(similarities[0], np.sort(query @ bank.T)[0, ::-1], atol=1e-6)


def test_scores_are_one_softmax_over_the_largest_k():
    similarities = np.asarray([[0.9, 0.5, 0.1]], np.float32)
    scores = vote_by_class(similarities, np.asarray([[1, 0, 1]]), (1, 2, 3), 0.5, 2)
    weights = np.exp(np.asarray([0.9, 0.5, 0.1]) / 0.5)
    weights /= weights.sum()  # over all three, also for k=1 and k=2
    np.testing.assert_allclose(scores[1], [[0, weights[0]]], rtol=1e-6)
    np.testing.assert_allclose(scores[2], [[weights[1], weights[0]]], rtol=1e-6)
    np.testing.assert_allclose(scores[3], [[weights[1], weights[0] + weights[2]]], rtol=1e-6)


def test_magnitude_of_features_does_not_matter():
    (train, train_labels), (test, test_labels) = make_set(120, 2), make_set(40, 3)
    scale = np.random.default_rng(4).uniform(0.01, 100, (120, 1)).astype(np.float32)
    labels = (train_labels, test, test_labels)
    assert knn_accuracy(train, *labels, ks=(5,)) == knn_accuracy(train * scale, *labels, ks=(5,))


@pytest.mark.parametrize("k", [1, 5, 20])
def test_equals_scikit_learn(k):
    neighbors = pytest.importorskip("sklearn.neighbors")
    (train, train_labels), (test, test_labels) = make_set(301, 5), make_set(83, 6)
    # Squared distance of unit vectors is 2 - 2 similarity; exp cancels the common factor.
    judge = neighbors.KNeighborsClassifier(
        k, weights=lambda distance: np.exp((1 - distance**2 / 2) / 0.07), algorithm="brute"
    )
    judge.fit(unit(train), train_labels)
    expected = 100 * judge.score(unit(test), test_labels)
    ours = knn_accuracy(train, train_labels, test, test_labels, ks=(k,), temperature=0.07)
    assert ours[k]["top1"] == pytest.approx(expected, abs=1e-9)


def test_k_beyond_the_bank_uses_the_whole_bank():
    (train, train_labels), (test, test_labels) = make_set(12, 7), make_set(30, 8)
    found = knn_accuracy(train, train_labels, test, test_labels, ks=(5, 12, 200))
    assert found[200] == found[12]
    assert set(found) == {5, 12, 200}


def test_top5_of_few_classes_is_everything():
    (train, train_labels), (test, test_labels) = make_set(50, 9, classes=4), make_set(20, 10, 4)
    assert knn_accuracy(train, train_labels, test, test_labels, ks=(10,))[10]["top5"] == 100


def test_empty_sides_are_refused():
    train, labels = make_set(5, 0)
    with pytest.raises(ValueError, match="the test set 0"):
        knn_accuracy(train, labels, train[:0], labels[:0])
    with pytest.raises(ValueError, match="bank has 0"):
        knn_accuracy(train[:0], labels[:0], train, labels)


def test_votes_of_few_shots():
    (train, train_labels), (test, test_labels) = make_set(301, 11), make_set(83, 12)
    by_try = []
    for seed in range(3):
        rows, ks = draw_examples(train_labels, 6, seed), (1, 5, 6)
        found = knn_accuracy(train[rows], train_labels[rows], test, test_labels, ks=ks)
        rng = np.random.default_rng(seed)
        chosen = []
        for label in range(7):
            records = rng.permutation(np.flatnonzero(train_labels == label))
            chosen += records[:6].tolist()
        assert np.bincount(train_labels[chosen]).tolist() == [6] * 7
        scores = plain_scores(train[chosen], train_labels[chosen], test, ks, 0.07, 7)
        by_try.append(tuple(plain_accuracy(scores[k], test_labels, 1) for k in ks))
        assert [found[k]["top1"] for k in ks] == pytest.approx(by_try[-1], abs=1e-9)
    assert len(set(by_try)) > 1  # the tries differ


def test_few_shots_are_all_of_a_rare_class():
    _, labels = make_set(60, 13, classes=3)
    keep = np.concatenate([np.flatnonzero(labels != 2), np.flatnonzero(labels == 2)[:2]])
    rows = draw_examples(labels[keep], 5, 0)
    assert np.bincount(labels[keep][rows]).tolist() == [5, 5, 2]


# ------------------------------------------------------------------------------------------- search
@pytest.mark.parametrize("columns", [GROUP * 12, GROUP * 12 + 1, GROUP * 13 - 1, 2003])
@pytest.mark.parametrize("k", [1, 3, 6])
@pytest.mark.parametrize("levels", [0, 3, 1])
def test_best_columns_by_groups_are_those_of_a_full_sort(columns, k, levels):
    values = np.random.default_rng(k).normal(size=(40, columns)).astype(np.float32)
    if levels:  # few values, so that nearly all of the best are equal
        values = np.round(values * levels / 3)
    best, where = jax.jit(top_columns, static_argnums=1)(values, k)
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(where, order)
    np.testing.assert_array_equal(best, np.take_along_axis(values, order, axis=1))


@pytest.mark.parametrize("shape", [None, (2, 1), (4, 2)])
@pytest.mark.parametrize(("rows", "block"), [(1203, 10000), (1203, 57), (13, 10000), (8, 3)])
def test_search_does_not_depend_on_devices_or_blocks(shape, rows, block):
    # Small whole numbers: products are exact, and nearly every similarity occurs many times.
    rng = np.random.default_rng(rows)
    bank, queries = rng.integers(-2, 3, (rows, 4)), rng.integers(-2, 3, (21, 4))
    labels = rng.integers(0, 9, rows)
    k = min(10, rows)
    order = np.argsort(-(queries @ bank.T), axis=1, kind="stable")[:, :k]
    mesh = jax.sharding.get_mesh()
    if shape:
        mesh = make_mesh(*shape, devices=jax.devices()[: shape[0] * shape[1]])
    with jax.set_mesh(mesh):
        held = Bank(bank, labels, block=block)
        found = held.search(queries, k, query_block=8)
        every = held.search(queries[:3], rows)
    np.testing.assert_array_equal(found.rows, order)
    np.testing.assert_array_equal(found.labels, labels[order])
    expected = np.take_along_axis(queries @ bank.T, order, axis=1)
    np.testing.assert_array_equal(found.similarities, expected)
    np.testing.assert_array_equal(np.sort(every.rows), np.tile(np.arange(rows), (3, 1)))


def test_bank_refuses_what_it_cannot_answer():
    bank = Bank(np.ones((3, 2)), np.arange(3))
    with pytest.raises(ValueError, match="k = 4 neighbours of a bank of 3 rows"):
        bank.search(np.ones((1, 2)), 4)
    with pytest.raises(ValueError, match="3 features has 2 labels"):
        Bank(np.ones((3, 2)), np.arange(2))
    with pytest.raises(ValueError, match="bank has 0 rows"):
        Bank(np.ones((0, 2)), np.arange(0))


# --------------------------------------------------------------------------- macro, leave-one-out
def test_mean_per_class_is_balanced_accuracy():
    (train, train_labels), (test, test_labels) = make_set(301, 15), make_set(83, 16)
    keep = (test_labels != 3) & ((test_labels != 2) | (np.arange(83) % 4 == 0))
    test, test_labels = test[keep], test_labels[keep]  # class 3 has no queries, class 2 few
    scores = plain_scores(train, train_labels, test, (20,), 0.07, 7)[20]
    known = scores.argmax(axis=1)
    expected = np.mean([np.mean(known[test_labels == c] == c) for c in np.unique(test_labels)])
    found = knn_accuracy(train, train_labels, test, test_labels, ks=(20,))[20]
    assert found["mean_per_class"] == pytest.approx(100 * expected, abs=1e-9)
    recalls = metrics.recall_score(
        test_labels, known, average="macro", labels=np.unique(test_labels)
    )
    assert found["mean_per_class"] == pytest.approx(100 * recalls)
    assert abs(found["mean_per_class"] - found["top1"]) > 0.1


@pytest.mark.parametrize("bank_block", [10000, 37])
def test_leave_one_out_equals_a_bank_without_the_record(bank_block):
    features, labels = make_set(120, 17)
    found = leave_one_out(features, labels, ks=(1, 5, 20), bank_block=bank_block)
    scores = {k: np.zeros((120, 7)) for k in (1, 5, 20)}
    for i in range(120):
        others = np.arange(120) != i
        one = plain_scores(
            features[others], labels[others], features[i : i + 1], (1, 5, 20), 0.07, 7
        )
        for k in scores:
            scores[k][i] = one[k][0]
    for k, expected in scores.items():
        assert found[k]["top1"] == pytest.approx(plain_accuracy(expected, labels, 1), abs=1e-9)
        assert found[k]["top5"] == pytest.approx(plain_accuracy(expected, labels, 5), abs=1e-9)


def test_leave_one_out_is_by_number_not_by_similarity():
    # Every record has exact copies: 3 of another label than its own. If those were left out, or
    # the record itself were not, nearest labels would differ.
    vectors = np.repeat(np.eye(4, dtype=np.float32), 4, axis=0)
    labels = np.tile([0, 1, 1, 1], 4)
    # Record 0 of each four sees 1, 1, 1; the others see 0 first, of three equal ones.
    found = leave_one_out(vectors, labels, ks=(1, 3))
    assert found[1]["top1"] == 0
    # k = 3: the first sees 1 three times (wrong); others see 0, 1, 1 (right).
    assert found[3]["top1"] == 75
    assert leave_one_out(vectors, labels, ks=(15,)) == {
        15: leave_one_out(vectors, labels, ks=(200,))[200]
    }
    with pytest.raises(ValueError, match="bank has 0"):
        leave_one_out(vectors[:1], labels[:1])


@pytest.mark.parametrize("devices", [2, 8])
def test_accuracies_do_not_depend_on_devices(devices):
    (train, train_labels), (test, test_labels) = make_set(301, 18), make_set(83, 19)
    sets = train, train_labels, test, test_labels
    alone, own = knn_accuracy(*sets, ks=(1, 20)), leave_one_out(train, train_labels, ks=(1, 20))
    with jax.set_mesh(make_mesh(devices=jax.devices()[:devices])):
        assert knn_accuracy(*sets, ks=(1, 20)) == alone
        assert leave_one_out(train, train_labels, ks=(1, 20)) == own


def test_votes_of_many_classes_take_little_memory():
    features, _ = make_set(4000, 20, dim=4)
    labels = np.random.default_rng(21).integers(0, 3000, 4000)
    ks = (1, 5, 10, 20)  # votes of all queries and k: 192 MB
    few = {k: leave_one_out(features[:40], labels[:40], ks=(k,)) for k in ks}  # compiles
    tracemalloc.start()
    for judge in (
        lambda: knn_accuracy(features, labels, features, labels, ks=ks),
        lambda: leave_one_out(features, labels, ks=ks, query_block=512),
    ):
        tracemalloc.reset_peak()
        found = judge()
        assert tracemalloc.get_traced_memory()[1] < 100e6
        assert set(found) == set(few)
    tracemalloc.stop()
    assert found[20] == leave_one_out(features, labels, ks=(20,), query_block=4000)[20]


def test_blocks_of_queries_do_not_matter():
    (train, train_labels), (test, test_labels) = make_set(301, 22), make_set(83, 23)
    sets = train, train_labels, test, test_labels
    whole, own = knn_accuracy(*sets, ks=(1, 20)), leave_one_out(train, train_labels, ks=(1, 20))
    for block in (1, 7, 83):
        assert knn_accuracy(*sets, ks=(1, 20), query_block=block) == whole
        assert leave_one_out(train, train_labels, ks=(1, 20), query_block=block) == own
