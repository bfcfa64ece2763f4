"""The size and normalisation that a backbone expects of a picture."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Size and normalisation of pictures; stored with the weights.

    Attributes:
      resize_px: the shorter side before the crop.
      image_px: the side of the square.
      mean, std: for RGB values in 0..1.
    """

    resize_px: int = 256
    image_px: int = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    @classmethod
    def from_huggingface(cls, path: Path) -> Preprocessing:
        """From preprocessor_config.json next to the weights, else the reference's evaluation."""
        file = path / "preprocessor_config.json" if path.is_dir() else None
        if file is None or not file.is_file():
            return cls()
        stored = json.loads(file.read_text(encoding="utf-8"))
        size, crop = stored.get("size", {}), stored.get("crop_size", {})
        return cls(
            size.get("shortest_edge", cls.resize_px),
            crop.get("height", cls.image_px),
            tuple(stored.get("image_mean", cls.mean)),
            tuple(stored.get("image_std", cls.std)),
        )

    def to_huggingface(self) -> dict[str, object]:
        """The content of preprocessor_config.json, as transformers reads it."""
        return {
            "crop_size": {"height": self.image_px, "width": self.image_px},
            "do_center_crop": True,
            "do_convert_rgb": True,
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
