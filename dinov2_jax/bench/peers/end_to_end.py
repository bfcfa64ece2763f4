"""Training from files in PyTorch: DataLoader, torchvision's multi-crop v2, the step of step.py."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dinov2_jax.bench.harness import Arrays, Part, Settings, Side
from dinov2_jax.bench.peers.pipeline import decode, statistics_of, view_transforms
from dinov2_jax.bench.peers.runtime import side_of
from dinov2_jax.bench.peers.step import Step, masked_rows, two_steps
from dinov2_jax.data.masking import sample_masks

KIND = "v2-tensor"  # the fastest of torchvision's in bench.pipeline


class _Photos(Dataset):
    """Crops of a file: two global ones, then the local ones, each normalised [3, S, S]."""

    def __init__(self, paths: list[str], crops: Settings) -> None:
        self.paths, self.local_views = paths, crops["local_number"]
        self.transforms = view_transforms(KIND, crops)

    def __getitem__(self, index: int) -> list[Tensor]:
        image = decode(Path(self.paths[index]).read_bytes(), KIND)
        first, second, local = self.transforms
        return [first(image), second(image), *(local(image) for _ in range(self.local_views))]


class _Passes(Sampler):
    """All files in a new order, again and again."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        while True:
            yield from torch.randperm(self.count).tolist()


class _Collate:
    """Crops of a batch -> what `Step` takes; the worker draws the masks, as in DINOv2."""

    def __init__(self, config: Settings) -> None:
        side = config["crops"]["global_size"] // config["model"]["patch_size"]
        ibot = config["ibot"]
        self.masks = ((side, side), ibot["mask_probability"], tuple(ibot["mask_ratio"]))

    def __call__(self, samples: list[list[Tensor]]) -> dict[str, Tensor]:
        rng = np.random.default_rng(int(torch.randint(2**31, ())))
        masks, _, _ = sample_masks(rng, len(samples), *self.masks)
        views = list(zip(*samples, strict=True))
        crops = {"global_crops": views[:2], "local_crops": views[2:]}
        return masked_rows(masks) | {
            name: torch.stack([crop for view in some for crop in view])
            for name, some in crops.items()
        }


class _Files:
    """A DataLoader whose workers live for one turn."""

    def __init__(self, settings: Settings, device: torch.device) -> None:
        config = settings["config"]
        paths = Path(settings["photos"]).read_text(encoding="utf-8").splitlines()
        self.device, self.workers = device, config["data"]["workers"]
        self.loader = DataLoader(
            _Photos(paths, config["crops"]),
            batch_size=config["batch_size"],
            sampler=_Passes(len(paths)),
            num_workers=self.workers,
            # torch's own choice on Linux; this process was spawned, which would be inherited.
            multiprocessing_context="fork" if self.workers else None,
            collate_fn=_Collate(config),
            pin_memory=device.type == "cuda",
        )
        self.batches: Any = None

    @contextlib.contextmanager
    def flowing(self, consume: Callable[[], None]) -> Iterator[None]:
        """Opens the loader and consumes two batches per worker."""
        self.batches = iter(self.loader)
        try:
            for _ in range(2 * max(1, self.workers)):
                consume()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            yield
        finally:
            self.batches = None  # which ends the workers

    def next(self) -> dict[str, Tensor]:
        """A batch on the device."""
        batch = next(self.batches)
        return {name: x.to(self.device, non_blocking=True) for name, x in batch.items()}

    def drop(self) -> None:
        """Loads without training."""
        next(self.batches)


def _check(step: Step, files: _Files, batches: int) -> Arrays:
    """Two steps as in bench.step, and statistics of augmented crops from the files."""
    numbers, drawn = two_steps(step), []

    def image_major(crops: Tensor) -> Tensor:
        return crops.unflatten(0, (-1, step.config["batch_size"])).transpose(0, 1)

    with files.flowing(lambda: None):
        for _ in range(batches):
            batch = next(files.batches)
            drawn.append(tuple(image_major(batch[k]) for k in ("global_crops", "local_crops")))
    return numbers | statistics_of(drawn)


def _side(settings: Settings, library: str) -> Side:
    step = Step(settings, library)
    files = _Files(settings, step.device)

    def check() -> Arrays:
        return _check(step, files, settings["check_batches"])

    def train() -> None:
        step(files.next())

    def part(call: Callable[[], None]) -> Part:
        return Part(side_of(check, call, step.device).run)

    if settings["check"]:
        return side_of(check, lambda: None, step.device)
    loader = part(files.drop)
    return dataclasses.replace(
        side_of(check, train, step.device),
        around=lambda: files.flowing(train),
        multiple=4 * max(1, files.workers),
        parts={
            "synthetic": part(step),
            "loader": dataclasses.replace(loader, around=lambda: files.flowing(files.drop)),
        },
    )


def lightly(settings: Settings) -> Side:
    """timm and lightly as shipped. settings: as ours/end_to_end.py and peers/step.py."""
    return _side(settings, "lightly")


def plain(settings: Settings) -> Side:
    """As `lightly`, with losses written here and stochastic depth that skips."""
    return _side(settings, "torch")
