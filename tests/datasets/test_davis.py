"""DAVIS 2017 from a miniature copy of its official layout."""

import os
import pickle

import cv2
import numpy as np
import pytest
from PIL import Image

from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.datasets.davis import Resized, davis2017, frame_size, read_mask, read_palette
from tests.datasets.davis import PALETTE, build_davis


@pytest.mark.parametrize("named", ["", "DAVIS", "DAVIS/JPEGImages"])
def test_videos_of_a_split(tmp_path, named):
    build_davis(tmp_path / "DAVIS")
    videos = davis2017(str(tmp_path / named), "val")
    assert [video.name for video in videos] == ["bike", "cow"]
    bike = videos[0]
    assert len(bike.frames) == len(bike.masks) == 5 and bike.size == (40, 64)
    assert [bike.frames.name(i) for i in (0, 4)] == ["bike/00000.jpg", "bike/00004.jpg"]
    assert set(np.unique(bike.mask(0))) == {0, 1, 2}
    assert read_palette(bike.masks.path(0))[:4].ravel().tolist() == PALETTE
    assert [video.name for video in davis2017(str(tmp_path), "train")] == ["dog"]


def test_void_is_background(tmp_path):
    Image.fromarray(np.array([[0, 1, 255]], np.uint8)).save(tmp_path / "m.png")
    assert read_mask(str(tmp_path / "m.png")).tolist() == [[0, 1, 0]]
    assert read_palette(str(tmp_path / "m.png"))[9].tolist() == [9, 9, 9]


def break_mask(root, make):
    place = root / "Annotations/480p/cow/00002.png"
    make(place)


def repaint(change):
    def write(place):
        mask = np.asarray(Image.open(place))
        Image.fromarray(change(mask)).save(place)

    return write


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (os.remove, "frame 00002 of the video cow has no mask"),
        (lambda place: place.write_bytes(b"no"), "00002.png is no picture"),
        (repaint(lambda m: np.repeat(m[..., None], 3, axis=2)), "has RGB colours"),
        (repaint(lambda m: m[:20]), "64 x 40 px and .*64 x 20"),
        (lambda place: os.remove(place.parents[3] / "JPEGImages/480p/cow/00004.jpg"), "no frame"),
        (lambda place: os.rename(place.parent, place.parents[1] / "x"), "1 of 2 videos are"),
        (lambda place: repaint(np.zeros_like)(place.with_stem("00000")), "no object to follow"),
        (lambda place: os.rename(place.parents[1], place.parents[2] / "Full"), "no Annotations/4"),
    ],
)  # fmt: skip
def test_a_damaged_copy_is_told_in_one_sentence(tmp_path, make, told):
    break_mask(build_davis(tmp_path), make)
    with pytest.raises(SourceError, match=told) as raised:
        davis2017(str(tmp_path), "val")
    assert "\n" not in str(raised.value)


def test_too_few_frames_and_unknown_splits(tmp_path):
    build_davis(tmp_path, frames=2)
    with pytest.raises(SourceError, match="has 2 frames, but needs 3"):
        davis2017(str(tmp_path), "val")
    with pytest.raises(SourceError, match="split='test-dev' is none of"):
        davis2017(str(tmp_path), "test-dev")


@pytest.mark.parametrize(
    ("size", "patch", "expected"),
    [
        ((480, 854), 8, (480, 832)),  # the reference's own example
        ((480, 854), 16, (480, 832)),
        ((480, 910), 8, (480, 896)),
        ((854, 480), 8, (832, 480)),
        ((480, 854), 14, (476, 854)),
        ((10, 12), 14, (476, 574)),
    ],
)
def test_frames_become_whole_patches(size, patch, expected):
    assert frame_size(size, 480, patch) == expected


def test_resized_frames_are_opencvs(tmp_path):
    build_davis(tmp_path)
    video = davis2017(str(tmp_path), "val")[0]
    own = Resized(video.frames, None, 10**8)[1]
    small = pickle.loads(pickle.dumps(Resized(video.frames, (32, 56), 10**8)))[1]
    np.testing.assert_array_equal(small, cv2.resize(own, (56, 32), interpolation=cv2.INTER_LINEAR))
    with open(video.frames.path(1), "r+b") as file:
        file.truncate(60)
    with pytest.raises(OSError, match=r"."):
        Resized(video.frames, (32, 56), 10**8)[1]
