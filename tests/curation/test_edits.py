"""Made copies: the same on every call, true to their names, of any size of picture."""

import numpy as np
import pytest

from dinov2_jax.curation.edits import EDITS_14, EDITS_19, PLAIN, copies, indices
from dinov2_jax.curation.hashes import thumbnail


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """Soft shapes in colour: uint8 [96, 128, 3]."""
    y, x = np.mgrid[:96, :128]
    planes = [
        128 + 100 * np.sin(x / a + y / b) for a, b in ((9.0, 17.0), (23.0, 7.0), (11.0, 31.0))
    ]
    return np.stack(planes, 2).astype(np.uint8)


def made(picture: np.ndarray, row: int = 0, seed: int = 0) -> dict[str, np.ndarray]:
    return dict(zip(EDITS_19, copies(picture, row, seed, EDITS_19), strict=True))


def test_names_are_those_of_the_two_lists() -> None:
    assert len(EDITS_14) == 14
    assert len(EDITS_19) == 19
    assert list(EDITS_19)[:14] == list(EDITS_14)
    assert [list(EDITS_14)[place] for place in indices(EDITS_14, PLAIN)] == list(PLAIN)


def test_copies_depend_on_seed_row_and_edit_alone(picture: np.ndarray) -> None:
    before = picture.copy()
    first, again = made(picture, 7, 1), made(picture, 7, 1)
    np.testing.assert_array_equal(picture, before)  # never changed in place
    for name in EDITS_19:
        np.testing.assert_array_equal(first[name], again[name])
    few = {name: EDITS_19[name] for name in ("noise_20", "crop_50")}
    for name, copy in zip(few, copies(picture, 7, 1, few), strict=True):
        np.testing.assert_array_equal(copy, first[name])
    for other in (made(picture, 8, 1), made(picture, 7, 2)):
        for name in ("noise_20", "text_band", "collage_quarter"):
            assert not np.array_equal(other[name], first[name])


def test_colour_edits_do_what_they_say(picture: np.ndarray) -> None:
    found = made(picture)
    wide = picture.astype(np.float64)
    brighter = np.clip(np.rint(wide * 1.4), 0, 255)
    assert np.abs(found["brightness_1.4"] - brighter).max() <= 1
    assert np.abs(found["contrast_0.6"] - (128 + 0.6 * (wide - 128))).max() <= 1
    assert (found["grey"] == found["grey"][:, :, :1]).all()
    assert np.abs(found["grey"][:, :, 0] - wide @ [0.299, 0.587, 0.114]).max() <= 1
    noise = found["noise_20"].astype(np.float64) - wide
    inside = (picture > 80) & (picture < 176)
    assert abs(noise[inside].std() - 20) < 1
    red = np.full((4, 4, 3), [255, 0, 0], np.uint8)
    assert (
        made(red)["hue_30"][0, 0].tolist() == [255, 127, 0] or made(red)["hue_30"][0, 0, 1] == 128
    )


def test_shape_edits_do_what_they_say(picture: np.ndarray) -> None:
    found = made(picture)
    for name, share in (("crop_90", 0.9), ("crop_70", 0.7), ("crop_50", 0.5), ("crop_25", 0.25)):
        crop = found[name]
        assert crop.shape == (round(96 * share), round(128 * share), 3)
        windows = np.lib.stride_tricks.sliding_window_view(picture, crop.shape)
        assert (windows == crop).all((-3, -2, -1)).any(), name
    np.testing.assert_array_equal(found["flip"][:, ::-1], picture)
    np.testing.assert_array_equal(np.rot90(found["rotate_90"], -1), picture)
    border = found["white_border"]
    np.testing.assert_array_equal(border[9:-9, 12:-12], picture)
    assert (border[:9] == 255).all()
    assert (border[:, -12:] == 255).all()
    np.testing.assert_array_equal(found["text_band"][:80], picture[:80])
    assert (found["text_band"][80:] > 200).any()
    assert found["rotate_5"].shape == picture.shape
    assert (found["rotate_5"][[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all(1).any()


def test_what_the_eye_takes_for_the_same_is_near_it(picture: np.ndarray) -> None:
    """The plainest edits keep a thumbnail's cells; every edit changes pixels."""
    found, plain = made(picture), thumbnail(picture).astype(np.float64)
    for name in (*PLAIN, "noise_20"):
        assert np.abs(thumbnail(found[name]) - plain).mean() < 12, name
    for name, copy in found.items():
        assert copy.shape != picture.shape or not np.array_equal(copy, picture), name


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 200), (33, 31)])
def test_any_size_can_be_edited(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    for name, copy in made(image).items():
        assert copy.dtype == np.uint8, name
        assert copy.ndim == 3, name
        assert copy.shape[2] == 3, name
        assert min(copy.shape) >= 1, name
        assert copy.flags.c_contiguous, name
