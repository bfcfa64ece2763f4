"""Masks, depths and tracks as pictures: colours stand where the values are."""

import numpy as np
import pytest

from dinov2_jax.viz import depth, masks
from dinov2_jax.viz.canvas import TEXT_PX
from dinov2_jax.viz.tracks import track_sheet

COLOURS = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250]], np.uint8)


def halves(left: int, right: int, size: tuple[int, int] = (40, 60)) -> np.ndarray:
    mask = np.full(size, left, np.uint8)
    mask[:, size[1] // 2 :] = right
    return mask


def test_overlay_mixes_known_classes_and_keeps_ignored_pixels() -> None:
    image = np.full((40, 60, 3), 100, np.uint8)
    shown = masks.overlay(image, halves(1, 255), COLOURS, opacity=0.5)
    np.testing.assert_array_equal(shown[20, 10], [50, 175, 50])
    np.testing.assert_array_equal(shown[20, 50], [100, 100, 100])
    np.testing.assert_array_equal(shown[20, 29], COLOURS[1])  # the line between both
    edge = masks.overlay(image, halves(0, 2), COLOURS)
    np.testing.assert_array_equal(edge[0, 29], COLOURS[0])


def test_legend_names_the_largest_class_first_and_counts_the_rest() -> None:
    mask = halves(2, 0)
    mask[:, -1] = 2  # 2 is now larger
    shown = masks.legend([mask], ("sky", "tree", "road"), COLOURS, 300)
    assert shown.shape == (TEXT_PX + 7, 300, 3)
    middle = 3 + TEXT_PX // 2
    np.testing.assert_array_equal(shown[middle, 2], COLOURS[2])
    lefts = [x for x in range(300) if (shown[middle, x] == COLOURS[0]).all()]
    assert len(lefts) == TEXT_PX and not (shown == COLOURS[1]).all(-1).any()
    many = np.arange(200, dtype=np.uint8).reshape(10, 20)
    colours = np.full((200, 3), (9, 9, 200), np.uint8)
    crowded = masks.legend([many], (), colours, 300)
    assert crowded.shape == (4 * (TEXT_PX + 7), 300, 3)
    assert (crowded == masks._OTHERS).all(-1).sum() >= TEXT_PX**2


def test_error_map_and_share() -> None:
    image = np.full((40, 60, 3), 100, np.uint8)
    truth = halves(0, 1)
    truth[:10] = 255
    shown = masks.error_map(image, halves(0, 0), truth)
    right, wrong = (np.rint(0.6 * np.array(c) + 40) for c in (masks.RIGHT, masks.WRONG))
    np.testing.assert_array_equal(shown[20, 10], right)
    np.testing.assert_array_equal(shown[20, 50], wrong)
    np.testing.assert_array_equal(shown[5, 50], [100] * 3)
    assert masks.right_share(halves(0, 0), truth) == 50
    assert np.isnan(masks.right_share(truth, np.full_like(truth, 255)))


def test_nearest_never_mixes_classes() -> None:
    found = masks.nearest(halves(0, 200), (13, 90))
    assert found.shape == (13, 90) and set(np.unique(found)) == {0, 200}
    assert (found[:, :45] == 0).all() and (found[:, 45:] == 200).all()


def test_mask_sheet_grows_with_the_truth() -> None:
    image, mask = np.full((40, 60, 3), 100, np.uint8), halves(0, 1)
    alone = masks.mask_sheet(image, mask, (), COLOURS, cell_px=120)
    both = masks.mask_sheet(image, mask, (), COLOURS, mask, cell_px=120)
    assert alone.shape[1] == 2 * 120 + 8 and both.shape[1] == 4 * 120 + 3 * 8
    assert alone.dtype == both.dtype == np.uint8


def test_near_is_bright_and_missing_is_grey() -> None:
    metres = np.geomspace(1, 10, 50)[None].repeat(4, axis=0)
    metres[0, 10], metres[0, 11] = 0, np.nan
    shown = depth.depth_colours(metres, 1, 10).astype(int)
    brightness = shown[1].sum(-1)
    assert (np.diff(brightness) <= 0).mean() > 0.95 and brightness[0] > 600 > 100 > brightness[-1]
    np.testing.assert_array_equal(shown[0, 10:12], [depth.MISSING] * 2)
    np.testing.assert_array_equal(
        depth.depth_colours(np.full((1, 1), 99.0), 1, 10), shown[1:2, -1:]
    )


def test_errors_are_relative_and_saturate() -> None:
    truth = np.array([[1.0, 4.0, 2.0, 0.0]])
    shown = depth.error_colours(np.array([[1.0, 6.0, 9.0, 5.0]]), truth, most=0.5)
    np.testing.assert_array_equal(shown[0, 1], shown[0, 2])
    assert shown[0, 0].sum() < 10 and shown[0, 1].astype(int).sum() > 500
    np.testing.assert_array_equal(shown[0, 3], depth.MISSING)
    assert depth.relative_error(np.array([[1.5, 3.0]]), np.array([[1.0, 0.0]])) == 0.5


def test_range_withstands_outliers_and_emptiness() -> None:
    values = np.r_[np.linspace(1, 2, 1000), 1e6, 0, np.nan]
    low, high = depth.seen_range(values)
    assert 1 <= low < 1.02 and 1.9 < high < 3
    assert depth.seen_range(np.zeros(4)) == (1.0, 10.0)
    low, high = depth.seen_range(np.full(4, 3.0))
    assert low < 3 < high


@pytest.mark.parametrize("width", [90, 120, 400])
def test_scale_bar_has_both_ends(width: int) -> None:
    bar = depth.scale_bar(0.5, 20, width)
    ends = depth.depth_colours(np.array([[0.5, 20]]), 0.5, 20)[0]
    np.testing.assert_array_equal(bar[0, [0, -1]], ends)
    dark = bar[12:].sum(-1) < 500
    third = width // 3
    assert bar.shape[1] == width and dark[:, :third].any() and dark[:, -third:].any()


def test_depth_sheet_has_a_cell_for_each_picture() -> None:
    image, metres = np.full((40, 60, 3), 100, np.uint8), np.full((40, 60), 2.0)
    metres[:, 30:] = 4
    alone = depth.depth_sheet(image, metres, cell_px=120)
    both = depth.depth_sheet(image, metres, np.zeros_like(metres), cell_px=120)
    assert alone.shape[1] == 2 * 120 + 8 and both.shape[1] == 4 * 120 + 3 * 8


def test_tracks_show_first_and_last_frame_and_objects_alone() -> None:
    frames = [np.full((30, 40, 3), 10 * i, np.uint8) for i in range(9)]
    found = [halves(0, 2, (30, 40)) for _ in frames]
    found[8] = halves(1, 0, (30, 40))
    shown = track_sheet(frames, found, COLOURS[:2], found, count=3, cell_px=80)
    row, height = TEXT_PX + 7, 60
    assert shown.shape == (2 * (row + height) + 8, 3 * 80 + 2 * 8, 3)
    np.testing.assert_array_equal(shown[row + 30, 10], [0, 0, 0])
    np.testing.assert_array_equal(shown[row + 30, 70], np.rint(0.6 * COLOURS[1]))
    last = 2 * 88
    np.testing.assert_array_equal(shown[row + 30, last + 10], np.rint(0.6 * COLOURS[0] + 32))
    np.testing.assert_array_equal(shown[row + 30, last + 70], [80, 80, 80])
