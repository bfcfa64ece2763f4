"""Frames of tiny videos by their colours, through the reader of pictures and a backbone."""

import builtins
import pickle
from pathlib import Path

import jax
import numpy as np
import pytest

from dinov2_jax.data.decode import DecodeSpec
from dinov2_jax.data.fit import Fit
from dinov2_jax.data.stream import stream_pictures
from dinov2_jax.data.video import VideoFrames, middles, pool_frames, read_frames
from dinov2_jax.datasets.files import Files
from dinov2_jax.features.extract import extract
from tests.features.tiny import backbone

CODECS = {
    "lossless.mkv": ("ffv1", "bgr0", {}),  # whose header gives no number of frames
    "reordered.mp4": ("libx264", "yuv420p", {"bf": "3"}),
    "google.webm": ("libvpx-vp9", "yuv420p", {"cpu-used": "8", "deadline": "realtime"}),
    "old.avi": ("mpeg4", "yuv420p", {}),
}


def write_video(path: Path, colours: list[tuple[int, int, int]], name: str = "") -> Path:
    """32 x 48 px of one colour a frame."""
    av = pytest.importorskip("av")
    codec, pixels, options = CODECS[name or "lossless.mkv"]
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 48, 32, pixels
        for colour in colours:
            image = np.full((32, 48, 3), colour, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def ramp(length: int, blue: int = 0, step: int = 2) -> list[tuple[int, int, int]]:
    return [(step * number, 250 - step * number, blue) for number in range(length)]


def files(folder: Path, labels=None) -> Files:
    return Files(str(folder), sorted(p.name for p in folder.iterdir()), labels, title="videos")


def test_frames_are_the_middles_of_equal_parts_by_hand() -> None:
    assert middles(80, 8) == [5, 15, 25, 35, 45, 55, 65, 75]
    assert middles(8, 8) == list(range(8))
    assert middles(3, 8) == [0, 0, 0, 1, 1, 2, 2, 2]
    assert middles(1, 8) == [0] * 8
    for length in range(1, 200):
        places = middles(length, 8)
        assert places == sorted(places)
        assert 0 <= places[0] <= places[-1] < length
        # as far from the start as from the end, up to one frame
        assert abs(places[0] - (length - 1 - places[-1])) <= 1


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("length", [1, 5, 20])
def test_frames_have_the_colours_that_were_written(tmp_path: Path, name: str, length: int) -> None:
    colours = ramp(length, step=12)  # what codecs lose is less than half a step
    found = read_frames(str(write_video(tmp_path / name, colours, name)))
    assert len(found) == 8
    for frame, place in zip(found, middles(length, 8), strict=True):
        assert frame.shape == (32, 48, 3)
        assert frame.dtype == np.uint8
        difference = np.abs(frame.astype(int) - colours[place]).max()
        assert difference == 0 if name == "lossless.mkv" else difference < 6


def test_a_damaged_end_gives_frames_of_what_is_whole(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.avi", ramp(100), "old.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) // 2])
    found = read_frames(str(tmp_path / "cut.avi"))
    reds = [frame[..., 0].mean() for frame in found]
    assert len(found) == 8
    assert reds == sorted(reds)
    assert reds[-1] < 150  # of 200


def test_a_header_that_counts_too_many_frames_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(write_video(tmp_path / "a.mkv", ramp(20)))
    monkeypatch.setattr("dinov2_jax.data.video._count", lambda path: 50)
    reds = [int(frame[0, 0, 0]) for frame in read_frames(path)]
    assert reds == [2 * place for place in middles(20, 8)]


def test_what_is_no_video_is_an_os_error(tmp_path: Path) -> None:
    pytest.importorskip("av")
    (tmp_path / "text.mp4").write_text("no video" * 100)
    for name in ("text.mp4", "not_there.mp4"):
        with pytest.raises(OSError, match=f"{name} is no readable video: "):
            read_frames(str(tmp_path / name))
    sound = tmp_path / "sound.wav"
    import wave

    with wave.open(str(sound), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(16000))
    with pytest.raises(OSError, match=r"sound\.wav holds no video stream"):
        read_frames(str(sound))


def test_frames_are_a_source_of_pictures(tmp_path: Path) -> None:
    for video in range(3):
        write_video(tmp_path / f"{video}.mkv", ramp(20, blue=100 * video))
    source = VideoFrames(files(tmp_path, [1, 0, 1]), frames=4)
    assert len(source) == 12
    assert source.labels.tolist() == [1] * 4 + [0] * 4 + [1] * 4
    assert source.name(6) == "1.mkv[2]"
    again = pickle.loads(pickle.dumps(source))
    for row in (7, 0, 11, 4, 5):
        red = 2 * middles(20, 4)[row % 4]
        for each in (source, again):
            np.testing.assert_array_equal(each[row][0, 0], [red, 250 - red, 100 * (row // 4)])


def test_a_video_is_decoded_once_and_a_bad_one_tried_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for video in (0, 2):
        write_video(tmp_path / f"{video}.mkv", ramp(20))
    (tmp_path / "1.mkv").write_text("no video")
    calls = []

    def counted(path: str, frames: int) -> list[np.ndarray]:
        calls.append(Path(path).name)
        return read_frames(path, frames)

    monkeypatch.setattr("dinov2_jax.data.video.read_frames", counted)
    source = VideoFrames(files(tmp_path))
    fit = Fit("center_crop", (16,), 16, 4)
    stream = stream_pictures(source, np.arange(24), fit, decoding=DecodeSpec(), workers=0)
    found = dict(stream)
    assert [row for row, image in found.items() if image is None] == list(range(8, 16))
    assert found[0].shape == (16, 16, 3)
    # Chunks of the stream may share a video: at most two threads meet there.
    assert sorted(set(calls)) == ["0.mkv", "1.mkv", "2.mkv"]
    assert len(calls) <= 4


def test_features_of_frames_become_features_of_videos(tmp_path: Path) -> None:
    for video in range(3):
        write_video(tmp_path / f"{video}.mkv", ramp(20, blue=100 * video))
    (tmp_path / "3.mkv").write_text("no video")
    frames = VideoFrames(files(tmp_path), frames=2)
    one = {"batch_size": 4, "devices": jax.devices()[:1]}
    found = extract(backbone(), frames, on_error="nan", **one)
    pictures = [frames[row] for row in range(6)]
    expected = extract(backbone(), pictures, **one)["cls"].reshape(3, 2, -1)
    mean, both = (pool_frames(found["cls"], 2, pooling) for pooling in ("mean", "concat"))
    np.testing.assert_allclose(mean[:3], (expected[:, 0] + expected[:, 1]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(both[:3], np.concatenate([expected[:, 0], expected[:, 1]], 1))
    assert np.isnan(mean[3]).all()
    assert np.isnan(both[3]).all()
    assert "no readable video" in found.unreadable[6]
    assert np.abs(mean[0] - mean[1]).max() > 1e-3


def test_pooling_refuses_what_is_no_whole_video() -> None:
    with pytest.raises(ValueError, match="7 rows are no whole number of videos of 8 frames"):
        pool_frames(np.zeros((7, 3)))
    with pytest.raises(ValueError, match="pooling='max' is none of 'mean', 'concat'"):
        pool_frames(np.zeros((8, 3)), pooling="max")


def test_without_pyav_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.mkv").write_text("")
    plain = builtins.__import__

    def no_av(name, *args, **kwargs):
        if name == "av":
            raise ImportError("no av")
        return plain(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_av)
    with pytest.raises(ImportError, match=r"pip install av \(or dinov2_jax\[video\]\)"):
        VideoFrames(files(tmp_path))
