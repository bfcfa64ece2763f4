"""The parts of the short GPU run (bench/slice.py) with their sizes, the most worth first."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dinov2_jax.bench.draws import VARIANTS, ViTShape
from dinov2_jax.bench.jobs import Job

# Blocks and recomputation of the step: our default on a GPU first.
STEPS = (("unroll", "none"), ("unroll", "pointwise"), ("scan", "pointwise"), ("scan", "none"))
# Seconds that must be left when a part's turn begins. Not measured on a GPU; estimates.
NEEDS_S = {
    "attention": 20,
    "golden": 5,
    "step_unroll_none": 20,
    "step_torch": 25,
    "step_unroll_pointwise": 20,
    "step_scan_pointwise": 20,
    "step_scan_none": 20,
    "features": 15,
    "features_torch": 15,
    "step_s16": 20,
    "step_torch_compiled": 90,
    "features_torch_compiled": 60,
}
NAMES = tuple(NEEDS_S)
# Where a part's FLOPs are counted, if not in the part itself.
FLOPS_OF = {"step_torch": "step_unroll_none", "step_torch_compiled": "step_unroll_none"}
TOKENS = [37, 50, 197, 257, 261, 1370]  # see bench/attention.py


def jobs(names: Sequence[str], dry_run: bool, threads: int, folder: Path) -> list[Job]:
    """The jobs of the parts `names`, in order of worth.

    Args:
      dry_run: toy sizes for a CPU, and seconds of measuring to match.
      folder: where our features are left for the peers to compare.
    """
    settings = dict(_settings(dry_run, folder))
    more = {
        "seed": 0,
        "threads": threads,
        "device": "cpu" if dry_run else "gpu",
        "backend": "aot_eager" if dry_run else "inductor",  # of torch.compile
        "budget_s": 0.5 if dry_run else 6.0,
    }
    return [
        Job(
            name,
            f"dinov2_jax.bench.{settings[name][0]}",
            more | settings[name][1],
            0.0 if dry_run else NEEDS_S[name],
            after="features" if name.startswith("features_") else "",  # to be compared with it
        )
        for name in NAMES
        if name in names
    ]


def _settings(dry_run: bool, folder: Path) -> Iterator[tuple[str, tuple[str, dict[str, Any]]]]:
    """(part, (function below dinov2_jax.bench, its settings))."""
    sizes = (
        {"tokens": TOKENS[:2], "batch": 2, "heads": 2}
        if dry_run
        else {"tokens": TOKENS, "batch": 8, "heads": 16}
    )
    yield "attention", ("ours.slice:attention_errors", sizes | {"head_dim": 64})
    yield "golden", ("ours.slice:golden", {})
    for blocks, remat in STEPS:
        config = recipe("vit_large", 64, dry_run, blocks, remat)
        yield f"step_{blocks}_{remat}", ("ours.slice:step", {"config": config})
    config = recipe("vit_small", 256, dry_run, "auto", "auto")
    yield "step_s16", ("ours.slice:step", {"config": config})
    config = recipe("vit_large", 64, dry_run, "auto", "auto")
    for name, compiles in (("step_torch", False), ("step_torch_compiled", True)):
        settings = {"config": config, "hyper": HYPER, "compile": compiles}
        yield name, ("peers.slice:step", settings)
    features = features_settings(dry_run) | {"file": str(folder / "cls.npy")}
    yield "features", ("ours.slice:features", features | {"unroll": True})
    for name, compiles in (("features_torch", False), ("features_torch_compiled", True)):
        yield name, ("peers.slice:features", features | {"compile": compiles})


# A step in the middle of a run.
HYPER = {"lr": 1e-3, "last_layer_lr": 1e-3, "weight_decay": 0.04, "momentum": 0.994,
         "teacher_temp": 0.07}  # fmt: skip


def recipe(variant: str, batch: int, dry_run: bool, blocks: str, remat: str) -> dict[str, Any]:
    """configs/vitl16_short.py with these sizes, one group, in bf16."""
    from dinov2_jax.bench import step  # needs what stand_ins.install() provides

    small = {"depth": 2, "global_size": 32, "local_size": 16, "prototypes": 64}
    sizes = small if dry_run else dict.fromkeys(small, 0)
    config = step.recipe(
        argparse.Namespace(
            config="vitl16_short",
            batch=4 if dry_run else batch,
            dtype="bfloat16",
            variant="vit_small" if dry_run else variant,
            patch_size=0,
            centering="",
            remat=remat,
            blocks=blocks,
            **sizes,
        )
    )
    if dry_run:
        config["crops"]["local_number"] = 2
        config["model"] |= {"dim": 64, "heads": 1}
        config["dino"] |= {"head_hidden_dim": 32, "head_bottleneck_dim": 16}
    return config


def features_settings(dry_run: bool) -> dict[str, Any]:
    """ViT-L/14 at 224 px, 256 images; see bench/features.py."""
    dim, depth, heads, ffn = VARIANTS["vit_large"]
    shape = (
        ViTShape(64, 2, 1, 14, 28, ffn) if dry_run else ViTShape(dim, depth, heads, 14, 224, ffn)
    )
    return {"shape": tuple(shape), "batch": 2 if dry_run else 256, "dtype": "bfloat16"}
