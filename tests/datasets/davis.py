"""A miniature copy of DAVIS 2017 in its official layout: shapes that move over a texture."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
_COLOURS = np.array([[0, 0, 0], [220, 40, 40], [40, 60, 220], [240, 220, 30]], np.uint8)


def build_davis(
    root: Path, frames: int = 5, size: tuple[int, int] = (40, 64), objects: int = 2
) -> Path:
    """Two videos of val, one of train; object i moves right, down or both."""
    for split, names in (("val", ("bike", "cow")), ("train", ("dog",))):
        listed = root / "ImageSets/2017" / f"{split}.txt"
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text("\n".join(names) + "\n")
        for seed, name in enumerate(names):
            write_video(root, name, frames, size, objects, seed)
    return root


def write_video(root: Path, name: str, frames: int, size: tuple[int, int], objects: int, seed: int):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 200, (size[0] // 8 + 2, size[1] // 8 + 2, 3)).astype(np.uint8)
    ground = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)
    ground = np.clip(ground + rng.normal(0, 8, ground.shape), 0, 255).astype(np.uint8)
    for frame in range(frames):
        picture, mask = draw(ground, frame, frames, objects)
        for kind, ending in (("JPEGImages", "jpg"), ("Annotations", "png")):
            place = root / kind / "480p" / name / f"{frame:05}.{ending}"
            place.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(picture if ending == "jpg" else mask)
            if ending == "png":
                image.putpalette(PALETTE)
            image.save(place)


def draw(ground: np.ndarray, frame: int, frames: int, objects: int):
    """The picture and its mask; object 1 is a disk, the others are boxes."""
    picture, mask = ground.copy(), np.zeros(ground.shape[:2], np.uint8)
    height, width = mask.shape
    share = frame / max(frames - 1, 1)
    for number in range(1, objects + 1):
        row = int(height * (0.2 + 0.6 * (number - 1) / max(objects - 1, 1)))
        column = int(width * (0.25 + 0.4 * (share if number % 2 else 1 - share)))
        radius = max(3, height // (3 * max(objects, 2)))
        if number == 1:
            cv2.circle(mask, (column, row), radius, 1, -1)
        else:
            corner = (column - radius, row - radius)
            cv2.rectangle(mask, corner, (column + radius, row + radius), number, -1)
    painted = (0.75 * _COLOURS[mask] + 0.25 * picture).astype(np.uint8)
    return np.where(mask[..., None] > 0, painted, picture), mask
