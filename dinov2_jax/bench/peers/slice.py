"""PyTorch's jobs of the short GPU run (bench/slice.py): the training step and features."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from dinov2_jax.bench.harness import Settings, compare
from dinov2_jax.bench.jobs import Entries, measured
from dinov2_jax.bench.peers.features import timm as timm_features
from dinov2_jax.bench.peers.runtime import import_torchvision, side_of
from dinov2_jax.bench.peers.step import Step


def _started() -> Entries:
    """Imports what is slow to import."""
    import_torchvision()
    import timm

    return {"versions": {"torch": torch.__version__, "timm": timm.__version__}}


def step(settings: Settings) -> Iterator[Entries]:
    """The peer "torch" of bench/step.py: SDPA with cuDNN first, bf16, fused AdamW.

    settings: as peers/step.py, and "budget_s". "compile": by torch.compile's "backend" as it is;
    all its autotuning would take longer than the whole run.
    """
    start = _started()
    step = Step({**settings, "compile": False}, "torch")
    if settings["compile"]:
        step.objective = torch.compile(step.loss, backend=settings["backend"])
    yield start
    side = side_of(dict, step, step.device)
    yield from measured(side, settings["config"]["batch_size"], settings["budget_s"])
    finite = all(bool(p.isfinite().all()) for p in step.student.parameters())
    yield {"ok": finite}


def features(settings: Settings) -> Iterator[Entries]:
    """timm's forward pass. settings: as peers/features.py, "budget_s", "file": our cls features.

    Raises:
      BenchError: its features differ from ours.
    """
    start = _started()
    side = timm_features(settings)
    yield start
    cls = side.check()["cls"]
    if Path(settings["file"]).exists():
        ours = {"cls": np.load(settings["file"])}
        yield {"one_minus_cosine": compare(ours, {"cls": cls}, min_cosine=0.999)["cls"]}
    else:
        yield {"one_minus_cosine": None}  # ours has not run
    yield from measured(side, settings["batch"], settings["budget_s"])
