"""Search against a float64 sort; scores against formulas worked by hand and slow plain Python."""

import numpy as np
import pytest

from dinov2_jax.features.search import multi_scale_features, rank_all, search
from dinov2_jax.metrics.ranking import map_at_k, revisited_map, trapezoid_precision

NONE = np.zeros(0, np.int64)


def features(rows: int, seed: int, dim: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)


def plain_similarities(database: np.ndarray, queries: np.ndarray) -> np.ndarray:
    database, queries = database.astype(np.float64), queries.astype(np.float64)
    out = np.zeros((len(queries), len(database)))
    for q, query in enumerate(queries):
        for row, other in enumerate(database):
            out[q, row] = query @ other / np.sqrt((query @ query) * (other @ other))
    return out


# --- search -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("database_block", "query_block"), [(1000, 1000), (64, 16), (37, 5)])
def test_search_and_ranking_equal_a_full_sort(database_block: int, query_block: int) -> None:
    database, queries = 7 * features(203, 0), features(31, 1)
    expected = plain_similarities(database, queries)
    order = np.argsort(-expected, axis=1, kind="stable")
    blocks = {"database_block": database_block, "query_block": query_block}
    similarities, numbers = search(database, queries, 20, **blocks)
    np.testing.assert_array_equal(numbers, order[:, :20])
    np.testing.assert_allclose(
        similarities, np.take_along_axis(expected, order[:, :20], 1), atol=2e-7
    )
    ranking = rank_all(database, queries, **blocks)
    np.testing.assert_array_equal(ranking, order)
    assert ranking.dtype == numbers.dtype == np.int32


def test_k_beyond_the_database_is_the_whole_database() -> None:
    database, queries = features(9, 2), features(4, 3)
    similarities, numbers = search(database, queries, 50, database_block=4)
    np.testing.assert_array_equal(numbers, rank_all(database, queries))
    assert similarities.shape == (4, 9)


@pytest.mark.parametrize("block", [1, 2, 3, 8])
def test_equal_similarities_come_by_number(block: int) -> None:
    # One-hot rows: products are exact, so pictures 0, 3, 5 and all the others are true ties.
    database = np.eye(4, dtype=np.float32)[[1, 0, 2, 1, 3, 1]]
    queries = np.array([[0, 2, 0, 0], [0, 3, 0, 0]], np.float32)
    for ranking in (
        rank_all(database, queries, database_block=block, query_block=1),
        search(database, queries, 6, database_block=block, query_block=1)[1],
    ):
        np.testing.assert_array_equal(ranking, [[0, 3, 5, 1, 2, 4]] * 2)


def test_zeros_of_either_sign_are_ties() -> None:
    # With one feature nothing is added up, and 0 * -1 stays -0.0, which top_k puts behind 0.0.
    database, query = np.array([[0.0], [-0.0], [0.0]]), np.array([[-1.0]])
    np.testing.assert_array_equal(search(database, query, 3)[1], [[0, 1, 2]])
    np.testing.assert_array_equal(rank_all(database, query), [[0, 1, 2]])


def test_padding_of_the_last_block_is_never_found() -> None:
    database = -np.ones((5, 3), np.float32)  # a padding row of zeros would be nearer
    for ranking in (
        rank_all(database, -database[:1], database_block=4),
        search(database, -database[:1], 9, database_block=4)[1],
    ):
        np.testing.assert_array_equal(ranking, [[0, 1, 2, 3, 4]])


def test_a_row_of_zeros_is_similar_to_nothing() -> None:
    similarities, numbers = search(np.zeros((1, 3)), np.ones((1, 3)), 1)
    assert similarities.item() == 0
    assert numbers.item() == 0


@pytest.mark.parametrize("find", [rank_all, lambda d, q: search(d, q, 3)])
def test_refuses_what_cannot_be_ranked(find) -> None:
    good = features(5, 4)
    with pytest.raises(ValueError, match="the queries of a retrieval is empty"):
        find(good, good[:0])
    with pytest.raises(ValueError, match="database has 12 features a picture, the queries 3"):
        find(good, good[:, :3])
    lost = good.copy()
    lost[[2, 4]] = np.nan
    with pytest.raises(ValueError, match=r"row 2 of the database is not finite \(2 such rows\)"):
        find(lost, good)
    with pytest.raises(ValueError, match="k=0"):
        search(good, good, 0)


# --- several scales ---------------------------------------------------------------------------


def test_scales_are_averaged_as_unit_vectors() -> None:
    by_scale = [np.array([[3.0, 4.0], [0.0, 2.0]]), np.array([[10.0, 0.0], [0.0, 0.5]])]
    mean = np.array([0.6 + 1.0, 0.8]) / 2
    expected = [mean / np.hypot(*mean), [0.0, 1.0]]
    np.testing.assert_allclose(multi_scale_features(by_scale), expected, rtol=1e-6)


# --- the revisited protocol -------------------------------------------------------------------


def plain_ap(ranking, positives, junk):
    """Walks down the ranking once; the area under precision over recall by trapezoids."""
    area, seen, place = 0.0, 0, 0
    for number in ranking:
        if number in junk and number not in positives:
            continue
        if number in positives:
            before = seen / place if place else 1.0
            area += (before + (seen + 1) / (place + 1)) / 2 / len(positives)
            seen += 1
        place += 1
    return area


def test_average_precision_by_hand() -> None:
    # Positives at places 0 and 3 of what remains without junk (numbers 8 and 9):
    # ((1 + 1) / 2 + (1/3 + 2/4) / 2) / 2 = (1 + 5/12) / 2 = 17/24.
    area, precisions = trapezoid_precision(
        np.array([4, 8, 1, 9, 2, 5, 0]), np.array([5, 4]), np.array([9, 8, 7]), ks=(1, 2, 4, 100)
    )
    assert area == pytest.approx(17 / 24, abs=1e-15)
    # mP@100 looks at 4 places only, those up to the last positive.
    np.testing.assert_allclose(precisions, [1, 1 / 2, 2 / 4, 2 / 4])


def test_first_place_counts_whole_and_the_second_less_by_trapezoid() -> None:
    ranking = np.arange(10)
    assert trapezoid_precision(ranking, np.array([0]))[0] == 1
    assert trapezoid_precision(ranking, np.array([1]))[0] == 0.25  # (0 + 1/2) / 2, not 1/2
    assert trapezoid_precision(ranking, np.array([1]), np.array([0]))[0] == 1  # behind junk only
    assert trapezoid_precision(ranking, np.array([1]), np.array([2]))[0] == 0.25


def test_a_positive_that_is_junk_too_does_not_remove_itself() -> None:
    # As published: junk counts for what lies behind it only.
    assert trapezoid_precision(np.arange(4), np.array([1]), np.array([0, 1]))[0] == 1


def test_positives_that_are_not_ranked_add_nothing() -> None:
    area, precisions = trapezoid_precision(np.arange(4), np.array([0, 77]), ks=(1, 5))
    assert area == 0.5
    np.testing.assert_array_equal(precisions, [1, 1])
    area, precisions = trapezoid_precision(np.arange(4), np.array([77]), ks=(1, 5))
    assert area == 0
    np.testing.assert_array_equal(precisions, [0, 0])


def test_a_query_without_positives_has_no_precision() -> None:
    area, precisions = trapezoid_precision(np.arange(4), NONE, np.arange(4), ks=(1, 5))
    assert np.isnan(area)
    assert np.isnan(precisions).all()


def ground_truth(queries: int, pictures: int, seed: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    kinds = [rng.integers(0, 5, pictures) for _ in range(queries)]
    return [
        {name: np.flatnonzero(kind == i) for i, name in enumerate(("easy", "hard", "junk"))}
        for kind in kinds
    ]


def test_revisited_protocol_equals_plain_python() -> None:
    truth = ground_truth(12, 60, 0)
    truth[3] = truth[3] | {"easy": NONE}  # has no easy positive
    truth[5] = {"easy": NONE, "hard": NONE, "junk": np.arange(60)}  # junk only
    truth[7] = truth[7] | {"hard": NONE, "easy": NONE}
    ranking = rank_all(features(60, 1), features(12, 2))
    found = revisited_map(ranking, truth)
    counted = {}
    for protocol, wanted, removed in (
        ("easy", ("easy",), ("hard", "junk")),
        ("medium", ("easy", "hard"), ("junk",)),
        ("hard", ("hard",), ("easy", "junk")),
    ):
        areas, precisions = [], {1: [], 5: [], 10: []}
        for order, kinds in zip(ranking, truth, strict=True):
            positives = {int(n) for name in wanted for n in kinds[name]}
            junk = {int(n) for name in removed for n in kinds[name]}
            if not positives:
                continue
            areas.append(plain_ap(order, positives, junk))
            kept = [int(n) in positives for n in order if int(n) not in junk]
            last = max(place for place, hit in enumerate(kept) if hit) + 1
            for k, values in precisions.items():
                values.append(sum(kept[: min(k, last)]) / min(k, last))
        counted[protocol] = len(areas)
        assert found[protocol]["mAP"] == pytest.approx(100 * np.mean(areas), abs=1e-9)
        for k, values in precisions.items():
            assert found[protocol][f"mP@{k}"] == pytest.approx(100 * np.mean(values), abs=1e-9)
        assert 10 < found[protocol]["mAP"] < 90
    assert counted == {"easy": 9, "medium": 10, "hard": 10}


def test_revisited_protocol_without_any_positive_is_nan() -> None:
    truth = [{"easy": NONE, "hard": NONE, "junk": np.array([0])}] * 2
    found = revisited_map(np.array([[0, 1], [1, 0]]), truth)
    assert all(np.isnan(value) for scores in found.values() for value in scores.values())


def test_a_ground_truth_of_another_database_is_refused() -> None:
    truth = [{"easy": np.array([2]), "hard": NONE, "junk": NONE}]
    with pytest.raises(ValueError, match="names picture 2, but 2 are ranked"):
        revisited_map(np.array([[0, 1]]), truth)
    with pytest.raises(ValueError, match="of 1 queries, the ground truth of 2"):
        revisited_map(np.array([[0, 1, 2]]), truth * 2)
    with pytest.raises(ValueError, match="query 0 names picture -1"):
        revisited_map(np.array([[0, 1, 2]]), [truth[0] | {"junk": np.array([-1])}])


# --- mAP@k ------------------------------------------------------------------------------------


def test_map_at_k_by_hand() -> None:
    ranking = np.array([[3, 1, 0, 2], [0, 1, 2, 3], [2, 0, 3, 1], [1, 0, 2, 3]])
    positives = [np.array([1]), np.array([3]), NONE, np.array([1, 2, 3])]
    # 1/2; behind k; left out; (1/1 + 2/3) / 3.
    assert map_at_k(ranking, positives, 3) == pytest.approx(100 * (1 / 2 + 0 + 5 / 9) / 3)
    # The divisor is min(k, positives): (1/1) / 2.
    assert map_at_k(ranking, positives, 2) == pytest.approx(100 * (1 / 2 + 0 + 1 / 2) / 3)
    # k beyond the database: 1/2; 1/4; (1 + 2/3 + 3/4) / 3.
    assert map_at_k(ranking, positives, 99) == pytest.approx(100 * (3 / 4 + 29 / 36) / 3)
    assert np.isnan(map_at_k(ranking[:1], [NONE], 3))


def test_map_at_k_of_pairs_equals_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    database, queries = features(40, 7), features(40, 7) + 1.5 * features(40, 8)
    ranking = rank_all(database, queries)
    similarity = plain_similarities(database, queries)
    expected = [
        metrics.average_precision_score(np.eye(40, dtype=int)[row], similarity[row])
        for row in range(40)
    ]
    found = map_at_k(ranking, [np.array([row]) for row in range(40)], 40)
    assert found == pytest.approx(100 * np.mean(expected), abs=1e-9)
    assert 20 < found < 95
