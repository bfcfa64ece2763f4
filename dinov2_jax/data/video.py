"""Frames of videos as pictures, and their features as one row a video (paper section 7.2).

Eight evenly spaced frames of every video go through the backbone like any pictures; a linear probe
then sees their mean (UCF-101, Kinetics-400) or all of them side by side (Something-Something v2).
"""

from __future__ import annotations

import threading
from typing import Any, Protocol

import numpy as np

from dinov2_jax.errors import EvaluationError

FRAMES = 8
POOLINGS = ("mean", "concat")


class Videos(Protocol):
    """Video files with their classes; `dinov2_jax.datasets.video` gives them."""

    class_names: tuple[str, ...] | None
    labels: np.ndarray | None

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def path(self, index: int) -> str: ...


class VideoFrames:
    """A source whose record v * frames + i is frame i of video v: uint8 [H, W, 3].

    A video is decoded once if its frames are asked for one after another by one thread, as
    `dinov2_jax.data.stream` does. Frames are as stored: a mark to turn them is not followed.

    Attributes:
      labels: of the videos, repeated for every frame; or None.

    Args:
      videos: see `dinov2_jax.datasets.video`.
      frames: a video.

    Raises:
      ImportError: without PyAV.
    """

    def __init__(self, videos: Videos, frames: int = FRAMES) -> None:
        _av()
        self.frames = frames
        self.class_names = videos.class_names
        self.labels = None if videos.labels is None else np.repeat(videos.labels, frames)
        self._videos = videos
        self._last = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_last"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._last = threading.local()

    def __len__(self) -> int:
        return len(self._videos) * self.frames

    def __getitem__(self, index: int) -> np.ndarray:
        video, frame = divmod(index, self.frames)
        if getattr(self._last, "video", None) != video:
            self._last.video, self._last.found = video, self._decode(video)
        if isinstance(self._last.found, str):
            raise OSError(self._last.found)
        return self._last.found[frame]

    def name(self, index: int) -> str:
        """`path of the video[frame]`."""
        video, frame = divmod(index, self.frames)
        return f"{self._videos.name(video)}[{frame}]"

    def _decode(self, video: int) -> list[np.ndarray] | str:
        """The frames, or why there are none: kept too, so that it is tried once, not 8 times."""
        try:
            return read_frames(self._videos.path(video), self.frames)
        except OSError as error:
            return str(error)


def read_frames(path: str, frames: int = FRAMES) -> list[np.ndarray]:
    """Evenly spaced frames: the middle ones of as many equal parts of the video.

    The video is decoded from its start, because seeking lands beside the wanted frame in many
    files, and the number of frames in the header is often missing or wrong.

    Args:
      path: of the video.
      frames: how many; a shorter video repeats some.

    Returns:
      uint8 [H, W, 3] each, in order.

    Raises:
      OSError: no video, or damaged before its first frame.
      ImportError: without PyAV.
    """
    length = _count(path)
    found, decoded = _pick(path, middles(length, frames))
    if decoded <= middles(length, frames)[-1]:  # fewer frames than packets: the end is damaged
        found, _ = _pick(path, middles(decoded, frames)) if decoded else ({}, 0)
        length = decoded
    if not found:
        raise OSError(f"{path} holds no frame that can be decoded")
    return [found[place] for place in middles(length, frames)]


def middles(length: int, parts: int) -> list[int]:
    """The middle of each of `parts` equal parts of 0 ... length - 1."""
    # DINOv2: the paper says "evenly spaced" only; where the first and the last lie is not known.
    return [(2 * part + 1) * length // (2 * parts) for part in range(parts)]


def pool_frames(features: np.ndarray, frames: int = FRAMES, pooling: str = "mean") -> np.ndarray:
    """Features of frames -> features of videos.

    Args:
      features: [videos * frames, D] in the order of `VideoFrames`.
      frames: a video.
      pooling: "mean" or "concat".

    Returns:
      [videos, D], or [videos, frames * D] with frame 0 first; nan where one of its frames is nan
      (or, of "concat", in the place of that frame).

    Raises:
      EvaluationError: another pooling, or rows that are no whole videos.
    """
    if pooling not in POOLINGS:
        raise EvaluationError(f"pooling={pooling!r} is none of {', '.join(map(repr, POOLINGS))}")
    if len(features) % frames:
        raise EvaluationError(
            f"{len(features)} rows are no whole videos of {frames} frames; give all rows of a "
            "VideoFrames of as many frames"
        )
    videos = features.reshape(-1, frames, features.shape[1])
    return videos.mean(axis=1) if pooling == "mean" else videos.reshape(len(videos), -1)


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError(
            "videos need a package that decodes them; pip install av (or dinov2_jax[video])"
        ) from error
    return av


def _count(path: str) -> int:
    """The packets of the first video stream, each of which holds a frame; nothing is decoded."""
    av = _av()
    try:
        with av.open(path) as container:
            stream = _stream(container, path)
            return sum(packet.size > 0 for packet in container.demux(stream))
    except av.FFmpegError as error:
        raise OSError(f"{path} is no readable video: {error.strerror or error}") from error


def _stream(container: Any, path: str) -> Any:
    if not container.streams.video:
        raise OSError(f"{path} holds no video stream")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    return stream


def _pick(path: str, wanted: list[int]) -> tuple[dict[int, np.ndarray], int]:
    """The frames at some places, and how many were decoded up to the last of them."""
    av = _av()
    found, decoded = {}, 0
    try:
        with av.open(path) as container:
            for frame in container.decode(_stream(container, path)):
                if decoded in wanted:
                    found[decoded] = frame.to_ndarray(format="rgb24")
                decoded += 1
                if decoded > wanted[-1]:
                    break
    except av.FFmpegError as error:
        if not decoded:
            raise OSError(f"{path} is no readable video: {error.strerror or error}") from error
    return found, decoded
