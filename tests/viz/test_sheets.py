"""Heat, neighbours and the plane."""

import numpy as np
import pytest

from dinov2_jax.viz.canvas import beside, fit, text_line, under
from dinov2_jax.viz.figures import alike
from dinov2_jax.viz.heat import head_sheet, heat_overlay, scale
from dinov2_jax.viz.neighbours import (
    THUMB_PX,
    Plane,
    nearest,
    neighbour_sheet,
    plane,
    scatter_sheet,
)


def plain(*colours: int) -> list[np.ndarray]:
    return [np.full((50, 40, 3), colour, np.uint8) for colour in colours]


def test_heat_is_brightest_where_it_is_greatest() -> None:
    heat = np.zeros((4, 5))
    heat[1, 3] = 0.02
    shown = heat_overlay(np.full((80, 100, 3), 128, np.uint8), heat).astype(int).sum(axis=-1)
    assert shown.shape == (80, 100)
    row, column = np.unravel_index(shown.argmax(), shown.shape)
    assert 20 <= row < 40 and 60 <= column < 80


def test_heat_has_its_own_scale_and_withstands_an_outlier() -> None:
    rng = np.random.default_rng(0)
    heat = rng.random((40, 40))
    np.testing.assert_allclose(scale(3 * heat + 1), scale(heat))
    heat[0, 0] = 1e6
    assert 0.4 < np.median(scale(heat)) < 0.6
    assert (scale(np.full((3, 3), 0.2)) == 0).all()
    assert np.isfinite(scale(np.array([[np.nan, 1.0], [0.0, 2.0]]))).all()


def test_head_sheet_holds_picture_mean_and_heads() -> None:
    heads = np.random.default_rng(0).random((5, 3, 4)) / 20
    picture = np.full((90, 120, 3), (200, 30, 30), np.uint8)
    sheet = head_sheet(picture, heads)
    assert sheet.shape[1] == 6 * 220 + 5 * 8  # seven cells in rows of six
    assert sheet.shape[0] == 2 * (165 + 22) + 8
    np.testing.assert_array_equal(sheet[100, 100], (200, 30, 30))


def test_nearest_are_ordered_and_leave_the_query_out() -> None:
    bank = np.array([[1.0, 0.0], [0.6, 0.8], [10.0, 1.0], [-1.0, 0.0]])
    found = nearest(bank[:2], bank, 9, own=[0, 1])
    assert found.rows.tolist() == [[2, 1, 3], [2, 0, 3]]
    np.testing.assert_allclose(found.similarity[0], [10 / 101**0.5, 0.6, -1])
    assert nearest(bank[:1], bank, 2).rows.tolist() == [[0, 2]]


def test_sheet_follows_the_order() -> None:
    bank = plain(10, 60, 110, 160)
    found = nearest(np.eye(4)[:2] + 0.1, np.eye(4) + 0.1, 2, own=[0, 1])
    found = found._replace(rows=np.array([[3, 1], [2, 0]]))
    sheet = neighbour_sheet(bank[:2], ["a", "b"], bank, found)
    middle = [16 + 22 + THUMB_PX // 2 + row * (THUMB_PX + 22 + 8) for row in range(2)]
    columns = [16 + THUMB_PX // 2 + shift for shift in (0, THUMB_PX + 28, 2 * THUMB_PX + 36)]
    seen = [[int(sheet[y, x, 0]) for x in columns] for y in middle]
    assert seen == [[10, 160, 60], [60, 110, 10]]


def test_plane_is_ordered_by_variance_and_signed() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(50, 6)) * [5, 3, 1, 0.1, 0.1, 0.1]
    found = plane(features)
    assert found.places.shape == (50, 2) and found.places.min() == 0 and found.places.max() == 1
    assert 1 > found.explained[0] > found.explained[1] > 0
    order = rng.permutation(50)
    np.testing.assert_allclose(plane(features[order]).places, found.places[order], atol=1e-9)


def test_thumbnails_lie_at_their_places() -> None:
    places = np.array([[0.0, 0.0], [1.0, 1.0], [0.5, 0.5]])
    thumbs = [np.full((40, 40, 3), colour, np.uint8) for colour in (20, 90, 160)]
    sheet = scatter_sheet(thumbs, Plane(places, np.array([0.5, 0.25])), (300, 400))
    spots = [(16 + 300 - 20, 16 + 20), (16 + 20, 16 + 400 - 20), (16 + 150, 16 + 200)]
    assert [int(sheet[spot][0]) for spot in spots] == [20, 90, 160]


def test_pairs_are_the_most_alike_and_take_turns() -> None:
    angles = np.array([0.0, 0.1, 0.12, 2.0])
    features = list(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    assert alike(features, 1) == [(1, 2)]
    assert alike(features, 3) == [(1, 2), (0, 3), (0, 1)]
    assert len(alike(features, 99)) == 6
    assert alike(features[:1], 3) == []


def test_pieces_keep_their_pixels() -> None:
    small, tall = np.full((10, 20, 3), 50, np.uint8), np.full((30, 10, 3), 90, np.uint8)
    assert beside([small, tall], 5).shape == (30, 35, 3)
    assert under([small, tall], 5).shape == (45, 20, 3)
    square = fit(tall, 60)
    assert (
        square.shape == (60, 60, 3) and (square[:, 25] == 90).all() and (square[:, 0] == 255).all()
    )


def test_text_is_cut_to_its_width() -> None:
    for text in ("", "a", "word " * 50):
        line = text_line(text, 60)
        assert line.shape == (22, 60, 3)
    assert (text_line("word", 60) < 128).any() and (text_line("word", 1) == 255).all()


@pytest.mark.parametrize("k", [0, 3])
def test_wrong_neighbours_are_refused(k: int) -> None:
    with pytest.raises(ValueError, match="cannot be found; pass k of 1 or more"):
        nearest(np.zeros((2, 3)), np.zeros((4, 3 if k == 0 else 5)), k)
