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

SPEC = {
    "global_size": 224,
    "global_scale": (0.32, 1.0),
    "local_size": 96,
    "local_scale": (0.05, 0.32),
}
LOCAL_VIEWS = 8
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _transforms(kind: str) -> Any:
    import_torchvision()
    from torchvision import transforms
    from torchvision.transforms import v2

    return transforms if kind == "v1" else v2


def view_transforms(kind: str, spec: Settings) -> list[Any]:
    """Transforms of global crop 1, global crop 2 and a local crop: image -> normalised tensor.

    Args:
      kind: "v1" or "v2" on PIL images, "v2-tensor" on uint8 tensors, as torchvision advises.
      spec: sides in px and scales, named as in the configuration's `crops`.

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
    large, small = (crop(spec[f"{v}_size"], spec[f"{v}_scale"]) for v in ("global", "local"))
    solarize = [t.RandomSolarize(threshold=128, p=0.2)]
    return [
        t.Compose([*large, *colour, *end]),
        t.Compose([*large, *colour, *blur(0.9), *solarize, *end]),
        t.Compose([*small, *colour, *blur(0.5), *end]),
    ]


def decode(raw: bytes, kind: str) -> Any:
    """The picture as the transforms of this kind take it: uint8 [3, H, W], or PIL's."""
    image = Image.open(BytesIO(raw)).convert("RGB")
    if kind != "v2-tensor":
        return image
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def statistics_of(batches: list[tuple[torch.Tensor, torch.Tensor]]) -> Arrays:
    """Mean and spread of global crop 1, global crop 2 and the local crops, after normalisation.

    batches: global crops [B, 2, 3, S, S] and local crops [B, V, 3, s, s] of each.
    """
    sets = {
        "global 1": torch.cat([g[:, 0] for g, _ in batches]),
        "global 2": torch.cat([g[:, 1] for g, _ in batches]),
        "local": torch.cat([v for _, v in batches]),
    }
    return {name: np.array([float(x.mean()), float(x.std())]) for name, x in sets.items()}


def multi_crop(settings: Settings) -> Side:
    """settings: "photos", "batch", "seed", "threads", "kind" (see `view_transforms`)."""
    device = configure(settings | {"device": "cpu"})
    raw = [read_jpeg(path) for path in settings["photos"]]
    order = itertools.cycle(range(len(raw)))
    first, second, local = view_transforms(settings["kind"], SPEC)

    def next_crops() -> tuple[list[Any], list[Any]]:
        image = decode(raw[next(order)], settings["kind"])
        return [first(image), second(image)], [local(image) for _ in range(LOCAL_VIEWS)]

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        parts = [next_crops() for _ in range(settings["batch"])]
        globals_ = torch.stack([torch.stack(p[0]) for p in parts])
        return globals_, torch.stack([torch.stack(p[1]) for p in parts])

    def check() -> Arrays:
        if settings["check"] == "crops":
            crops = [_fixed_crop(r, settings["box"]) for r in raw]
            return {f"photo {i}": crop for i, crop in enumerate(crops)}
        return statistics_of([batch() for _ in range(settings["check_batches"])])

    return side_of(check, batch, device)


def _fixed_crop(raw: bytes, box: Settings) -> np.ndarray:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as tf

    size = [SPEC["global_size"]] * 2
    crop = tf.resized_crop(
        decode(raw, "v1"), **box, size=size, interpolation=InterpolationMode.BICUBIC
    )
    return np.asarray(crop)
