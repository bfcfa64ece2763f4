"""Frames of videos as pictures, and one row of features a video (paper section 7.2).

Eight evenly spaced frames of every video go through the backbone like pictures. A linear probe then
uses their mean (UCF-101, Kinetics-400) or their concatenation (Something-Something v2).
"""

import threading
from typing import Any

import numpy as np

from dinov2_jax.data.sources.files import NamedFiles
from dinov2_jax.errors import EvaluationError

FRAMES = 8
POOLINGS = ("mean", "concat")


class VideoFrames:
    """A source whose record v * frames + i is frame i of video v: uint8 [H, W, 3].

    A video is decoded once if one thread reads its frames in order, as `dinov2_jax.data.stream`
    does. Frames are as stored: a rotation mark is ignored.

    `labels` are those of the videos, repeated for every frame; or None. Raises ImportError without
    PyAV.
    """

    def __init__(self, videos: NamedFiles, frames: int = FRAMES) -> None:
        _av()
        self.frames = frames
        self.class_names = videos.class_names
        self.labels = None if videos.labels is None else np.repeat(videos.labels, frames)
        self._videos = videos
        self._last = threading.local()

    def __reduce__(self) -> tuple[Any, ...]:
        return VideoFrames, (self._videos, self.frames)  # without the frames at hand

    def __len__(self) -> int:
        return len(self._videos) * self.frames

    def __getitem__(self, index: int) -> np.ndarray:
        video, frame = divmod(index, self.frames)
        if getattr(self._last, "video", None) != video:
            self._last.video, self._last.frames = video, self._decode(video)
        if isinstance(self._last.frames, str):
            raise OSError(self._last.frames)
        return self._last.frames[frame]

    def name(self, index: int) -> str:
        """`path of the video[frame]`."""
        return f"{self._videos.name(index // self.frames)}[{index % self.frames}]"

    def _decode(self, video: int) -> list[np.ndarray] | str:
        """The frames, or why there are none; both are kept, so that decoding is tried once."""
        try:
            return read_frames(self._videos.path(video), self.frames)
        except OSError as error:
            return str(error)


def read_frames(path: str, frames: int = FRAMES) -> list[np.ndarray]:
    """Evenly spaced frames: the middle frame of each of `frames` equal parts of the video.

    The video is decoded from its start: in many files seeking misses the wanted frame, and the
    number of frames in the header is often missing or wrong. A shorter video repeats some frames.
    Each frame is uint8 [H, W, 3]. Raises OSError where the file is no video, or damaged before its
    first frame, and ImportError without PyAV.
    """
    length = _count(path)
    images, decoded = _pick(path, middles(length, frames))
    if decoded <= middles(length, frames)[-1]:  # fewer frames than packets: the end is damaged
        images, _ = _pick(path, middles(decoded, frames)) if decoded else ({}, 0)
        length = decoded
    if not images:
        raise OSError(f"{path} holds no frame that can be decoded")
    return [images[place] for place in middles(length, frames)]


def middles(length: int, parts: int) -> list[int]:
    """The middle of each of `parts` equal parts of 0 ... length - 1."""
    # DINOv2: the paper only says "evenly spaced"; the places of first and last frame are unknown.
    return [(2 * part + 1) * length // (2 * parts) for part in range(parts)]


def pool_frames(features: np.ndarray, frames: int = FRAMES, pooling: str = "mean") -> np.ndarray:
    """Features [videos * frames, D] in the order of `VideoFrames` -> features of videos.

    For "mean" [videos, D], for "concat" [videos, frames * D] with frame 0 first. A frame of nan
    makes the mean of its video nan; with "concat" only its own columns. Raises EvaluationError for
    another pooling, or rows that are no whole number of videos.
    """
    if pooling not in POOLINGS:
        raise EvaluationError(f"pooling={pooling!r} is none of {', '.join(map(repr, POOLINGS))}")
    if len(features) % frames:
        raise EvaluationError(
            f"{len(features)} rows are no whole number of videos of {frames} frames; give all rows "
            f"of a VideoFrames with frames={frames}"
        )
    videos = features.reshape(-1, frames, features.shape[1])
    return videos.mean(axis=1) if pooling == "mean" else videos.reshape(len(videos), -1)


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError("videos need PyAV; pip install av (or dinov2_jax[video])") from error
    return av


def _count(path: str) -> int:
    """The number of packets of the first video stream, one a frame; nothing is decoded."""
    av = _av()
    try:
        with av.open(path) as container:
            return sum(packet.size > 0 for packet in container.demux(_stream(container, path)))
    except av.FFmpegError as error:
        raise OSError(f"{path} is no readable video: {error.strerror or error}") from error


def _stream(container: Any, path: str) -> Any:
    if not container.streams.video:
        raise OSError(f"{path} holds no video stream")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    return stream


def _pick(path: str, wanted: list[int]) -> tuple[dict[int, np.ndarray], int]:
    """The frames at the wanted places, and the number decoded up to the last of them."""
    av = _av()
    images, decoded = {}, 0
    try:
        with av.open(path) as container:
            for frame in container.decode(_stream(container, path)):
                if decoded in wanted:
                    images[decoded] = frame.to_ndarray(format="rgb24")
                decoded += 1
                if decoded > wanted[-1]:
                    break
    except av.FFmpegError as error:
        if not decoded:
            raise OSError(f"{path} is no readable video: {error.strerror or error}") from error
    return images, decoded
