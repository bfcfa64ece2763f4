"""The size and normalisation that a backbone expects of a picture."""

import dataclasses
import json
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Size and normalisation of pictures; stored with the weights."""

    resize_px: int = 256  # the shorter side before the crop
    image_px: int = 224  # the side of the square
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # as std, for RGB values in 0..1
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    @classmethod
    def from_huggingface(cls, path: Path) -> "Preprocessing":
        """From preprocessor_config.json next to the weights, else the reference's evaluation."""
        file = path / "preprocessor_config.json"
        if not file.is_file():
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
