"""JPEG bytes to crops: the host's part, and everything with the colours of the device."""

import itertools
from typing import Any

import jax
import numpy as np

from dinov2_jax import __version__
from dinov2_jax.bench.harness import Arrays, Settings, Side
from dinov2_jax.bench.ours.runtime import side_of
from dinov2_jax.bench.photos import read_jpeg
from dinov2_jax.data.crops import Box, resize_crop, sample_crops
from dinov2_jax.data.decode import DecodeSpec, decode
from dinov2_jax.data.loader import CropSpec
from dinov2_jax.data.photometric import ColourSpec, augment_batch

SPEC = CropSpec(224, (0.32, 1.0), 96, (0.05, 0.32), 8)


class _Host:
    """The work of a loader process, one photo after the other."""

    def __init__(self, settings: Settings) -> None:
        self.raw = [read_jpeg(path) for path in settings["photos"]]
        self.order = itertools.cycle(range(len(self.raw)))
        self.rng = np.random.default_rng(settings["seed"])

    def next_crops(self) -> tuple[np.ndarray, np.ndarray]:
        image = decode(self.raw[next(self.order)], DecodeSpec(min_side_px=SPEC.decode_px))
        return (
            sample_crops(self.rng, image, 2, SPEC.global_size, SPEC.global_scale),
            sample_crops(self.rng, image, SPEC.local_number, SPEC.local_size, SPEC.local_scale),
        )

    def next_batch(self, images: int) -> tuple[np.ndarray, np.ndarray]:
        parts = [self.next_crops() for _ in range(images)]
        return np.stack([p[0] for p in parts]), np.stack([p[1] for p in parts])


def fixed_crop(raw: bytes, box: Settings) -> np.ndarray:
    """One crop of a given box, uint8."""
    where = Box(box["top"], box["left"], box["height"], box["width"])
    return resize_crop(decode(raw), where, SPEC.global_size)


def host(settings: Settings) -> Side:
    """The host's part: decode, 2 + 8 crops, flips; uint8. settings: "photos", "batch", "seed"."""
    source = _Host(settings)

    def run(repetitions: int) -> None:
        for _ in range(repetitions):
            source.next_batch(settings["batch"])

    def check() -> Arrays:
        crops = [fixed_crop(raw, settings["box"]) for raw in source.raw]
        return {f"photo {i}": crop for i, crop in enumerate(crops)}

    return Side(check=check, run=run, versions={"dinov2_jax": __version__})


def everything(settings: Settings) -> Side:
    """The host's part, then colours and normalisation, jitted for the CPU."""
    source, spec = _Host(settings), ColourSpec()
    colours = jax.jit(lambda key, a, b: augment_batch(key, a, b, spec))
    keys = (jax.random.key(n) for n in itertools.count(settings["seed"]))

    def batch(images: int) -> Any:
        return jax.block_until_ready(colours(next(keys), *source.next_batch(images)))

    def run(repetitions: int) -> None:
        for _ in range(repetitions):
            batch(settings["batch"])

    def check() -> Arrays:
        return statistics_of([batch(settings["batch"]) for _ in range(settings["check_batches"])])

    return side_of(check, run)


def statistics_of(batches: list[Any]) -> Arrays:
    """Mean and spread of global crop 1, global crop 2 and the local crops, after normalisation."""
    first = np.concatenate([np.asarray(g)[:, 0] for g, _ in batches])
    second = np.concatenate([np.asarray(g)[:, 1] for g, _ in batches])
    local = np.concatenate([np.asarray(v) for _, v in batches])
    sets = {"global 1": first, "global 2": second, "local": local}
    return {name: np.array([x.mean(), x.std()]) for name, x in sets.items()}
