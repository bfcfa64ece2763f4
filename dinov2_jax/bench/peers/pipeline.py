"""DINOv2's multi-crop made of torchvision's transforms, all of it on the host."""

import itertools
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image

from dinov2_jax.bench.harness import Arrays, Settings, Side
from dinov2_jax.bench.peers.runtime import configure, import_torchvision, side_of
from dinov2_jax.bench.photos import read_jpeg

GLOBAL_PX, LOCAL_PX, LOCAL_VIEWS = 224, 96, 8
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _transforms(kind: str) -> Any:
    import_torchvision()
    from torchvision import transforms
    from torchvision.transforms import v2

    return transforms if kind == "v1" else v2


def _multi_crop(kind: str) -> list[Any]:
    """Transforms of global crop 1, global crop 2 and a local crop: image -> normalised tensor.

    kind: "v1" or "v2" on PIL images, "v2-tensor" on uint8 tensors, torchvision's advice for speed.
    Probabilities are those that DINOv2's code has in effect (see data/photometric.py).
    """
    t = _transforms(kind)
    cubic = t.InterpolationMode.BICUBIC

    def crop(size: int, scale: tuple[float, float]) -> list[Any]:
        more = {"antialias": True} if kind == "v2-tensor" else {}
        resized = t.RandomResizedCrop(size, scale=scale, interpolation=cubic, **more)
        return [resized, t.RandomHorizontalFlip(0.5)]

    def blur(probability: float) -> list[Any]:
        return [t.RandomApply([t.GaussianBlur(9, sigma=(0.1, 2.0))], p=probability)]

    jitter = t.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
    colour = [t.RandomApply([jitter], p=0.8), t.RandomGrayscale(p=0.2)]
    if kind == "v1":
        end = [t.ToTensor(), t.Normalize(MEAN, STD)]
    else:
        to_image = [] if kind == "v2-tensor" else [t.ToImage()]
        end = [*to_image, t.ToDtype(torch.float32, scale=True), t.Normalize(MEAN, STD)]
    large, small = crop(GLOBAL_PX, (0.32, 1.0)), crop(LOCAL_PX, (0.05, 0.32))
    solarize = [t.RandomSolarize(threshold=128, p=0.2)]
    return [
        t.Compose([*large, *colour, *end]),
        t.Compose([*large, *colour, *blur(0.9), *solarize, *end]),
        t.Compose([*small, *colour, *blur(0.5), *end]),
    ]


def _decode(raw: bytes) -> Image.Image:
    return Image.open(BytesIO(raw)).convert("RGB")


def multi_crop(settings: Settings) -> Side:
    """settings: "photos", "batch", "seed", "threads", "kind" (see `_multi_crop`)."""
    device = configure(settings | {"device": "cpu"})
    raw = [read_jpeg(path) for path in settings["photos"]]
    order = itertools.cycle(range(len(raw)))
    first, second, local = _multi_crop(settings["kind"])

    def next_crops() -> tuple[list[Any], list[Any]]:
        image: Any = _decode(raw[next(order)])
        if settings["kind"] == "v2-tensor":
            image = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return [first(image), second(image)], [local(image) for _ in range(LOCAL_VIEWS)]

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        parts = [next_crops() for _ in range(settings["batch"])]
        globals_ = torch.stack([torch.stack(p[0]) for p in parts])
        return globals_, torch.stack([torch.stack(p[1]) for p in parts])

    def check() -> Arrays:
        if settings["check"] == "crops":
            crops = [_fixed_crop(r, settings["box"]) for r in raw]
            return {f"photo {i}": crop for i, crop in enumerate(crops)}
        drawn = [batch() for _ in range(settings["check_batches"])]
        sets = {
            "global 1": torch.cat([g[:, 0] for g, _ in drawn]),
            "global 2": torch.cat([g[:, 1] for g, _ in drawn]),
            "local": torch.cat([v for _, v in drawn]),
        }
        return {name: np.array([float(x.mean()), float(x.std())]) for name, x in sets.items()}

    return side_of(check, batch, device)


def _fixed_crop(raw: bytes, box: Settings) -> np.ndarray:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as tf

    crop = tf.resized_crop(
        _decode(raw), **box, size=[GLOBAL_PX, GLOBAL_PX], interpolation=InterpolationMode.BICUBIC
    )
    return np.asarray(crop)
