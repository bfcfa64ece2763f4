"""Fits pictures of any size to whole patches, in few sizes, because each size is compiled."""

import dataclasses

import numpy as np
from PIL import Image

from dinov2_jax.data.crops import center_crop

POLICIES = ("center_crop", "resize", "pad")


@dataclasses.dataclass(frozen=True)
class Fit:
    """Resizes a picture of any size for the backbone, bicubically, by one of four policies.

    "center_crop": shorter side to `resize_px`, then the central square; the evaluation transform of
    the reference; one size. "resize" with two sides: exactly these, the aspect ratio changes; one
    size. "resize" with one side S: shorter side to S, longer side in proportion, rounded to whole
    patches; a picture longer than 2:1 is cut to its middle; at most 2 S / patch + 1 sizes. "pad":
    longer side to S, shorter side in proportion, then filled at the right or bottom up to a whole
    patch; at most 2 S / patch - 1 sizes.
    """

    policy: str  # one of POLICIES
    size: tuple[int, ...]  # px, multiples of the patch size: (S,), or (H, W) for "resize"
    resize_px: int  # for "center_crop"
    patch_size: int
    fill: tuple[int, ...] = (0, 0, 0)  # colour of the padding, one value a channel

    @property
    def one_size(self) -> bool:
        """Whether all results have the same size."""
        return self.policy == "center_crop" or len(self.size) == 2

    @property
    def grid(self) -> tuple[int, int]:
        """The greatest possible number of rows and columns of patches."""
        first, last = self.size[0], self.size[-1]
        height, width = (2 * first, 2 * first) if self._keeps_aspect else (first, last)
        return height // self.patch_size, width // self.patch_size

    @property
    def most_pixels(self) -> int:
        """Pixels of the largest result."""
        return self.size[0] * (2 * self.size[0] if self._keeps_aspect else self.size[-1])

    @property
    def decode_px(self) -> int:
        """The shorter side that a JPEG must keep when it is decoded smaller."""
        return 2 * max(self.resize_px if self.policy == "center_crop" else 0, *self.size)

    @property
    def _keeps_aspect(self) -> bool:
        return self.policy == "resize" and len(self.size) == 1

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """uint8 [H, W, C] -> uint8 [h, w, C], h and w multiples of the patch size."""
        if self.policy == "center_crop":
            return center_crop(image, self.resize_px, self.size[0])
        if self.policy == "pad":
            return self._pad(image)
        return self._resize_shorter(image) if self._keeps_aspect else _resize(image, *self.size)

    def _pad(self, image: np.ndarray) -> np.ndarray:
        scale = self.size[0] / max(image.shape[:2])
        height, width = (max(1, round(side * scale)) for side in image.shape[:2])
        rows, cols = -(-height // self.patch_size), -(-width // self.patch_size)
        shape = rows * self.patch_size, cols * self.patch_size, image.shape[2]
        padded = np.broadcast_to(np.array(self.fill, np.uint8), shape).copy()
        padded[:height, :width] = _resize(image, height, width)
        return padded

    def _resize_shorter(self, image: np.ndarray) -> np.ndarray:
        shorter = min(image.shape[:2])
        height, width = (min(side, 2 * shorter) for side in image.shape[:2])
        top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
        image = image[top : top + height, left : left + width]
        patches = self.size[0] / self.patch_size / shorter
        rows, cols = (round(side * patches) for side in (height, width))
        return _resize(image, rows * self.patch_size, cols * self.patch_size)


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    # Plane by plane where Pillow has no mode for the number of channels.
    planes = [image] if image.shape[2] == 3 else np.moveaxis(image, 2, 0)
    pictures = (Image.fromarray(np.ascontiguousarray(plane)) for plane in planes)
    return np.dstack([p.resize((width, height), Image.Resampling.BICUBIC) for p in pictures])
