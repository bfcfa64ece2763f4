"""DAVIS 2017: videos with a mask of every object on each frame (Pont-Tuset et al. 2017)."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from dinov2_jax.data.decode import BadImage, DecodeSpec, load_record
from dinov2_jax.data.sources.source import Source, SourceError, Unlabelled, check_name
from dinov2_jax.datasets import files

SPLITS = ("train", "val")
_RESOLUTION = "480p"
_LEAST_FRAMES = 3  # the first and the last are not judged
_VOID = 255


class Video(NamedTuple):
    """One video.

    Attributes:
      name: of its folder.
      frames: JPEG pictures, in order.
      masks: a palette PNG of objects for each frame, see `read_mask`.
      size: H, W in px of all frames and masks.
    """

    name: str
    frames: files.Files
    masks: files.Files
    size: tuple[int, int]

    def mask(self, frame: int) -> np.ndarray:
        """The objects of one frame, see `read_mask`."""
        return read_mask(self.masks.path(frame))


def davis2017(root: str, split: str) -> list[Video]:
    """DAVIS 2017 at 480p: JPEGImages/480p/<video>/00000.jpg, Annotations/480p/<video>/00000.png.

    ImageSets/2017/<split>.txt lists the videos of "train" or "val"; test sets have no masks but the
    first. `root` may be a folder above or within. The headers of all files are read.

    Raises:
      SourceError: a list, video, frame or mask is missing, or masks do not fit their frames.
    """
    check_name("split", split, SPLITS)
    title = f"DAVIS 2017 {split}"
    home = files.home(root, f"ImageSets/2017/{split}.txt", title=title)
    names = files.read_lines(files.require(home, f"ImageSets/2017/{split}.txt", title=title))
    parts = ("JPEGImages", ".jpg"), ("Annotations", ".png")
    folders = [files.require(home, f"{part}/{_RESOLUTION}", title=title) for part, _ in parts]
    for folder in folders:
        files.check_present(folder, names, title, "videos")
    return [_video(name, folders, title) for name in names]


def _video(name: str, folders: Sequence[str], title: str) -> Video:
    frames, masks = (
        [f for f in files.pictures_in(os.path.join(folder, name)) if f.lower().endswith(ending)]
        for folder, ending in zip(folders, (".jpg", ".png"), strict=True)
    )
    stems = [{os.path.splitext(f)[0] for f in found} for found in (frames, masks)]
    odd = sorted(stems[0] ^ stems[1])
    if odd:
        lacks = "mask" if odd[0] in stems[0] else "frame"
        raise SourceError(
            f"{title}: frame {odd[0]} of the video {name} has no {lacks} ({len(odd)} such files); "
            "unpack the archives again"
        )
    if len(frames) < _LEAST_FRAMES:
        raise SourceError(
            f"{title}: the video {name} has {len(frames)} frames, but needs {_LEAST_FRAMES}, "
            "because the first and the last are not judged; unpack the archives again"
        )
    found = [
        files.Files(folder, [f"{name}/{f}" for f in sorted(held)], title=title)
        for folder, held in zip(folders, (frames, masks), strict=True)
    ]
    video = Video(name, *found, _size(found, title))
    if not (read_mask(video.masks.path(0)) > 0).any():
        raise SourceError(
            f"{title}: the first mask of the video {name} shows no object to follow; unpack the "
            "archives again"
        )
    return video


def _size(found: Sequence[files.Files], title: str) -> tuple[int, int]:
    """H, W of all frames and masks of a video; masks hold one value a pixel."""
    sizes = {}
    for source, is_mask in zip(found, (False, True), strict=True):
        for row in range(len(source)):
            try:
                with Image.open(source.path(row)) as image:
                    size, mode = image.size, image.mode
            except OSError as error:
                raise SourceError(
                    f"{title}: {source.path(row)} is no picture; unpack the archives again"
                ) from error
            sizes.setdefault(size, source.path(row))
            if is_mask and mode not in ("P", "L", "1"):
                raise SourceError(
                    f"{title}: {source.path(row)} has {mode} colours, where the numbers of objects "
                    "belong; unpack the original annotations, which are palette PNGs"
                )
    if len(sizes) > 1:
        (one, first), (other, second) = list(sizes.items())[:2]
        raise SourceError(
            f"{title}: {first} has {one[0]} x {one[1]} px and {second} {other[0]} x {other[1]}, "
            "but frames and masks of a video have one size; unpack both archives of 480p again"
        )
    width, height = next(iter(sizes))
    return height, width


def read_mask(path: str) -> np.ndarray:
    """Numbers of objects, uint8 [H, W]; 0 is the background, and so is void (255).

    Raises:
      SourceError: the file cannot be read.
    """
    try:
        with Image.open(path) as image:
            mask = np.asarray(image, np.uint8)
    except Exception as error:  # Pillow's plugins raise nearly any type on broken files
        raise SourceError(f"{path} cannot be read ({error}); unpack the archives again") from error
    return np.where(mask == _VOID, 0, mask)


def read_palette(path: str) -> np.ndarray:
    """The colours of a mask, uint8 [256, 3]; greys where the file has none."""
    with Image.open(path) as image:
        held = (image.getpalette() if image.mode == "P" else None) or []
    colours = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    known = np.array(held, np.uint8).reshape(-1, 3)
    colours[: len(known)] = known
    return colours


def frame_size(size: tuple[int, int], short_side: int, patch_size: int) -> tuple[int, int]:
    """H, W of the frames that a backbone is given: whole patches, proportions nearly kept.

    The shorter side has `short_side` px, the longer one as many multiples of 64 px as fit; both are
    cut to whole patches where the patch size does not divide 64 (14 px: 476 x 854).
    """
    short, long = sorted(size)
    # DINOv2: DINO has patches of 8 and 16 px only; for others both sides are whole patches.
    step = 64 if 64 % patch_size == 0 else patch_size
    wanted = short_side, int(short_side * long / short) // step * step
    low, high = (max(patch_size, side // patch_size * patch_size) for side in wanted)
    return (low, high) if size[0] <= size[1] else (high, low)


class Resized(Unlabelled):
    """Frames at one size, uint8 [H, W, 3], bilinear without antialias as OpenCV does; picklable.

    `size` None keeps their own.
    """

    def __init__(self, frames: Source, size: tuple[int, int] | None, max_pixels: int) -> None:
        self._frames, self._size, self._max_pixels = frames, size, max_pixels

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> np.ndarray:
        """Raises OSError where the frame cannot be read."""
        try:
            frame = load_record(self._frames, index, DecodeSpec(self._max_pixels))
        except BadImage as error:
            raise OSError(str(error)) from error
        if self._size is None or frame.shape[:2] == self._size:
            return frame
        return cv2.resize(frame, self._size[::-1], interpolation=cv2.INTER_LINEAR)

    def name(self, index: int) -> str:
        return self._frames.name(index)
