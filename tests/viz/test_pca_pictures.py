"""PCA of several pictures: joint colours, foreground, and signs that stay."""

import numpy as np
import pytest

from dinov2_jax.viz.pca import DARKEST, foreground_masks, pca_pictures

GRIDS = [(8, 8), (6, 10), (9, 7)]


def scenes(seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Maps of three grids: a block of two parts in the middle of a ground, with noise."""
    rng = np.random.default_rng(seed)
    ground, body, head = rng.normal(size=(3, 12)) * 3
    maps, masks = [], []
    for rows, columns in GRIDS:
        features = np.tile(ground, (rows, columns, 1))
        inside = np.zeros((rows, columns), bool)
        inside[2:-2, 2:-2] = True
        features[inside] = body
        features[2, 2:-2] = head
        maps.append((features + 0.1 * rng.normal(size=features.shape)).astype(np.float32))
        masks.append(inside)
    return maps, masks


@pytest.mark.parametrize("seed", range(4))
def test_the_middle_is_foreground_and_the_rest_black(seed: int) -> None:
    maps, inside = scenes(seed)
    found = pca_pictures(maps)
    for mask, want, colours in zip(found.foreground, inside, found.foreground_colours, strict=True):
        np.testing.assert_array_equal(mask, want)
        assert colours.dtype == np.uint8 and (colours[~want] == 0).all()
        assert colours[want].min() >= DARKEST


def test_parts_are_alike_across_pictures_and_apart_within() -> None:
    maps, _ = scenes()
    heads, bodies = [], []
    for colours in pca_pictures(maps).foreground_colours:
        heads.append(colours[2, 2:-2, 0].astype(float).mean())
        bodies.append(colours[3:-2, 2:-2, 0].astype(float).mean())
    assert np.ptp(heads) < 25 and np.ptp(bodies) < 25
    assert abs(np.mean(heads) - np.mean(bodies)) > 150


def test_signs_and_scales_do_not_depend_on_order_or_run() -> None:
    maps, _ = scenes()
    once, again = pca_pictures(maps), pca_pictures([m.copy() for m in maps])
    turned = pca_pictures(maps[::-1])
    for kind in range(3):
        for a, b, c in zip(once[kind], again[kind], turned[kind][::-1], strict=True):
            np.testing.assert_array_equal(a, b)
            assert np.abs(a.astype(int) - c.astype(int)).max() <= 1  # sums in another order
    nearly = pca_pictures([m * 1.0001 for m in maps])
    for a, b in zip(once.colours, nearly.colours, strict=True):
        assert np.abs(a.astype(int) - b.astype(int)).max() <= 2


def test_equal_features_have_equal_colours() -> None:
    maps, _ = scenes()
    twice = pca_pictures([maps[0], maps[1], maps[0]])
    np.testing.assert_array_equal(twice.colours[0], twice.colours[2])
    np.testing.assert_array_equal(twice.foreground_colours[0], twice.foreground_colours[2])


def test_threshold_and_side() -> None:
    maps, _ = scenes()
    low, high = foreground_masks(maps, side="low"), foreground_masks(maps, side="high")
    assert all((a ^ b).all() for a, b in zip(low, high, strict=True))
    assert not any(mask.any() for mask in foreground_masks(maps, threshold=10))
    assert all(mask.all() for mask in foreground_masks(maps, threshold=-10))
    nothing = pca_pictures(maps, threshold=10).foreground_colours
    assert not any(colours.any() for colours in nothing)


def test_constant_features_have_no_foreground() -> None:
    flat = pca_pictures([np.full((4, 5, 3), 2.5, np.float32)])
    assert not flat.foreground[0].any() and (flat.colours[0] == 128).all()


def test_one_row_of_patches_and_odd_values() -> None:
    rng = np.random.default_rng(0)
    strip = rng.normal(size=(1, 9, 4))
    strip[0, 3] = np.nan
    assert pca_pictures([strip]).colours[0].shape == (1, 9, 3)


@pytest.mark.parametrize(
    ("maps", "side", "message"),
    [
        ([], "auto", "one or more pictures, but got no pictures"),
        ([np.zeros((4, 3))], "auto", r"maps \[h, w, D\].*\(4, 3\)"),
        ([np.zeros((2, 2, 3)), np.zeros((2, 2, 4))], "auto", r"widths \[3, 4\] cannot share"),
        ([np.ones((2, 2, 3))], "left", "side 'left' is unknown; choose one of auto, high, low"),
    ],
)
def test_wrong_inputs_are_refused(maps: list[np.ndarray], side: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pca_pictures(maps, side=side)
