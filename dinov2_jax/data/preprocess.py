"""The size and normalisation that a backbone expects of a picture."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Size and normalisation of pictures; stored with the weights.

    Raises ValueError for sizes that are no px, and statistics that normalise nothing.
    """

    resize_px: int = 256  # the shorter side before the crop
    image_px: int = 224  # the side of the square
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # as std, for RGB values in 0..1
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        for side in (self.resize_px, self.image_px):
            if not isinstance(side, int) or not 0 < side < 1 << 16:
                raise ValueError(f"a picture has no side of {side!r} px")
        numbers = (*self.mean, *self.std)
        known = all(isinstance(x, int | float) and math.isfinite(x) for x in numbers)
        if not known or len(self.mean) != len(self.std) or min(self.std, default=0) <= 0:
            raise ValueError(f"mean={self.mean} and std={self.std} do not normalise a picture")

    def to_huggingface(self) -> dict[str, object]:
        """The content of preprocessor_config.json, as transformers reads it."""
        return {
            "crop_size": {"height": self.image_px, "width": self.image_px},
            "do_center_crop": True,
            "do_convert_rgb": len(self.mean) == 3,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": list(self.mean),
            "image_processor_type": "BitImageProcessor",
            "image_std": list(self.std),
            "resample": 3,  # bicubic
            "rescale_factor": 1 / 255,
            "size": {"shortest_edge": self.resize_px},
        }
