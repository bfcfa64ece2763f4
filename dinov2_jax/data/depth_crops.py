"""Training crops for depth, in the order and by the laws of the Monocular-Depth-Estimation-Toolbox.

Draws come from one generator a record, so values differ from the reference's, but not their
distributions.
"""

from dataclasses import dataclass

import cv2
import numpy as np

Box = tuple[slice, slice]

NYU_BOX: Box = (slice(45, 472), slice(43, 608))  # within the white frame of 480 x 640 px
_MEAN_COLOUR = (124, 116, 104)  # of ImageNet; what normalisation turns into zeros
_KITTI_SIZE = 352, 1216


# ------------------------------------------------------------------------------------------- boxes
def kitti_box(height: int, width: int) -> Box:
    """The 352 x 1216 px at the bottom centre of a KITTI picture, which the laser reaches."""
    top, left = height - _KITTI_SIZE[0], int((width - _KITTI_SIZE[1]) / 2)
    return slice(top, top + _KITTI_SIZE[0]), slice(left, left + _KITTI_SIZE[1])


def fixed_box(frame: str, height: int, width: int) -> Box:
    """What is kept of every picture before anything is drawn.

    Args:
      frame: "nyu", "kitti", or "" for the whole picture, which smaller pictures stay in any case.
    """
    if frame == "nyu" and (height, width) == (480, 640):
        return NYU_BOX
    if frame == "kitti" and height >= _KITTI_SIZE[0] and width >= _KITTI_SIZE[1]:
        return kitti_box(height, width)
    return slice(0, height), slice(0, width)


def padded(
    image: np.ndarray, depth: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Adds mean colour without depth to the right and below, up to at least h x w px."""
    rows, cols = (max(0, side - old) for side, old in zip(size, depth.shape, strict=True))
    if not rows and not cols:
        return image, depth
    height, width = depth.shape
    colour = np.resize(np.array(_MEAN_COLOUR, np.uint8), image.shape[2])
    larger = np.tile(colour, (height + rows, width + cols, 1))
    larger[:height, :width] = image
    return larger, np.pad(depth, ((0, rows), (0, cols)))


# ----------------------------------------------------------------------------------------- changes
def rotate(image: np.ndarray, depth: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Turns both clockwise about the centre; the size stays, and the rim is black without depth.

    The picture is resampled bilinearly, the depth from the nearest pixel.
    """
    height, width = depth.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -degrees, 1.0)
    turned = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)
    return turned, cv2.warpAffine(depth, matrix, (width, height), flags=cv2.INTER_NEAREST)


def change_colour(
    image: np.ndarray, gamma: float, brightness: float, factors: np.ndarray
) -> np.ndarray:
    """min(image^gamma * brightness * factors, 255), on the scale 0..255; uint8 [H, W, C].

    On that scale, gamma changes the brightness as well: by a factor of up to 1.7.
    """
    # DINOv2: the reference keeps floats. Rounding changes at most half a grey level, and only
    # uint8 is copied to the device.
    levels = np.arange(256, dtype=np.float64)[:, None] ** gamma * brightness * factors
    table = np.rint(np.clip(levels, 0, 255)).astype(np.uint8)
    return table[image, np.arange(len(factors))]


# ------------------------------------------------------------------------------------------- whole
@dataclass(frozen=True)
class DepthCrops:
    """A picture and its depth -> a training crop of fixed size.

    Attributes:
      height_px, width_px: of the crop; smaller pictures are padded.
      frame: see `fixed_box`.
      degrees: most rotation either way, for half of the pictures.
      brightness: least and greatest factor.
    """

    height_px: int
    width_px: int
    frame: str = ""
    degrees: float = 2.5
    brightness: tuple[float, float] = (0.75, 1.25)
    gamma: tuple[float, float] = (0.9, 1.1)
    colour: tuple[float, float] = (0.9, 1.1)

    def __call__(
        self, rng: np.random.Generator, image: np.ndarray, target: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [H, W, 3] and metres [H, W] -> uint8 [h, w, 3] and metres [h, w].

        Frame, rotation, mirror, crop and colours, in this order.
        """
        box = fixed_box(self.frame, *target.shape)
        image, target = np.ascontiguousarray(image[box]), np.ascontiguousarray(target[box])
        turns, degrees = rng.random() < 0.5, rng.uniform(-self.degrees, self.degrees)
        if turns:
            image, target = rotate(image, target, degrees)
        if rng.random() < 0.5:
            image, target = image[:, ::-1], target[:, ::-1]
        image, target = self._crop(rng, np.ascontiguousarray(image), target)
        if rng.random() < 0.5:
            ranges = self.gamma, self.brightness, *(self.colour,) * image.shape[2]
            gamma, brightness, *factors = (rng.uniform(*between) for between in ranges)
            image = change_colour(image, gamma, brightness, np.array(factors))
        return np.ascontiguousarray(image), np.ascontiguousarray(target)

    def _crop(
        self, rng: np.random.Generator, image: np.ndarray, target: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        size = self.height_px, self.width_px
        image, target = padded(image, target, size)
        top, left = (
            int(rng.integers(side - new + 1)) for side, new in zip(target.shape, size, strict=True)
        )
        box = slice(top, top + size[0]), slice(left, left + size[1])
        return image[box], target[box]
