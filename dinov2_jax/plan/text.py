"""The words and numbers of a plan."""

import math
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from dinov2_jax.plan.estimate import Estimate, estimate
from dinov2_jax.plan.search import images_that_fit
from dinov2_jax.plan.topology import GIB, Target
from dinov2_jax.plan.trial import Trial

ROWS = {
    "student": "student",
    "teacher": "teacher",
    "optimizer": "optimizer (two moments)",
    "other_state": "centres, counters, key",
    "batch": "batch (uint8 crops, masks)",
    "layout": "layout and metrics",
    "temporaries": "activations and temporaries",
    "code": "program",
}
Flops = dict[str, float]  # an image, see plan/flops.py


class Rate(NamedTuple):
    """What a run takes at the configured MFU; chip-hours include chips that the mesh leaves out."""

    images_per_s: float
    step_s: float
    days: float
    chip_hours: float


def rate(config: ConfigDict, target: Target, trial: Trial, flops: Flops) -> Rate | None:
    """None where the chip's peak is not known."""
    if target.chip is None:
        return None
    images_per_s = config.plan.mfu * target.chip.peak_flops * trial.devices / flops["model"]
    step_s = trial.batch_size / images_per_s
    seconds = step_s * config.total_steps
    return Rate(images_per_s, step_s, seconds / 86400, seconds / 3600 * len(target.devices))


def at_best(target: Target, trial: Trial, flops: Flops) -> Estimate | None:
    """None where the chip or the program is not known."""
    if target.chip is None or trial.traffic is None:
        return None
    images = trial.batch_size / trial.devices
    work = images * flops["model"], images * flops["executed"]
    return estimate(target.chip, trial.traffic, *work)


def describe(config: ConfigDict, target: Target, trial: Trial, flops: Flops) -> list[str]:
    """The whole plan of one setting."""
    work = f"work: {flops['model'] / 1e9:,.1f} GFLOP an image (matrix products of one step)"
    if flops["executed"] != flops["model"]:
        work += f"; {flops['executed'] / 1e9:,.1f} with recomputation"
    memory, speed = memory_lines(target, trial), rate_line(config, target, trial, flops)
    best = best_lines(target, trial, flops)
    return [setting_line(config, trial), *memory, work, *best, speed]


def setting_line(config: ConfigDict, trial: Trial) -> str:
    data, fsdp, tensor = trial.mesh
    model, images = config.model, trial.batch_size / trial.shards
    own = f" of width {model.dim}, {model.depth} blocks," if model.dim or model.depth else ""
    return (
        f"{model.variant}/{model.patch_size}{own} in {config.compute_dtype}, "
        f"mesh data {data} x fsdp {fsdp} x tensor {tensor}, batch {trial.batch_size:,} = "
        f"{images:g} images a shard, micro_batches {trial.micro_batches}, "
        f"prototype_block {trial.prototype_block}, remat {model.remat}; "
        f"compiled in {trial.compile_s:.0f} s"
    )


def size(count: float) -> str:
    """Bytes for the eye: 12.34 GiB, 5.6 MiB, 7.8 KiB."""
    for unit, name in ((GIB, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:.2f} {name}"
    return f"{count:.0f} B"


def memory_lines(target: Target, trial: Trial) -> list[str]:
    if trial.memory is None:
        return ["the compiler ran out of memory and does not say what it needs: does not fit"]
    rows = [f"  {ROWS[name]:<28}{size(x):>12}" for name, x in trial.memory._asdict().items()]
    last = f"  {'together':<28}{size(trial.memory.total):>12}  {fit_words(target, trial)}"
    return ["memory of each device", *rows, last]


def fit_words(target: Target, trial: Trial) -> str:
    """Whether a trial fits, in words."""
    if target.chip is None or trial.memory is None:
        return "(the memory of this kind of device is not known)"
    usable = target.chip.usable_bytes
    share = trial.memory.total / usable
    if not trial.fits:
        return f"of {size(usable)}: does NOT fit, {share:.1f} times too much"
    return f"of {size(usable)}: fits ({share:.0%})"


def rate_line(config: ConfigDict, target: Target, trial: Trial, flops: Flops) -> str:
    speed = rate(config, target, trial, flops)
    if speed is None:
        return "rate: not known for this kind of device"
    return (
        f"at {config.plan.mfu:.0%} of the peak (an assumption: --config.plan.mfu): "
        f"{speed.images_per_s:,.0f} images/s, {speed.step_s:.2f} s a step; {config.total_steps:,} "
        f"steps take {speed.days:.2f} days = {speed.chip_hours:,.0f} chip-hours"
    )


def best_lines(target: Target, trial: Trial, flops: Flops) -> list[str]:
    best = at_best(target, trial, flops)
    if best is None or trial.traffic is None:
        return []
    return [
        f"at best, by FLOPs and by {sum(trial.traffic) / 1e9:,.0f} GB that a device moves: "
        f"{best.step_s:.2f} s a step ({best.products_s:.2f} s of it matrix products), MFU "
        f"{best.mfu:.0%}; a model without messages between devices"
    ]


def flags(changes: dict[str, Any]) -> str:
    return " ".join(f"--config.{name}={value}" for name, value in changes.items())


def tried_line(target: Target, trial: Trial) -> str:
    """One line about a setting that was compiled because the configured one does not fit."""
    if trial.memory is None:
        return f"tried {flags(trial.changes)}: more than there is"
    total = size(trial.memory.total)
    return f"tried {flags(trial.changes)}: {total} {fit_words(target, trial)}"


# What a changed field costs, in the order of the advice.
_COSTS = {
    "pointwise": "remat computes norms, activations and attention logits of the student twice",
    "blocks": "remat computes the student's blocks twice: about a quarter more time",
    "micro_batches": "micro-batches, one after the other, make the same update; with fsdp each of "
    "them gathers the weights",
    "prototype_block": "in blocks of prototypes the losses are the same, scores computed again",
    "batch_size": "a smaller batch is another recipe: base_lr scales by optimizer.lr_scaling, "
    "total_steps does not",
}


def outcome(config: ConfigDict, target: Target, trials: list[Trial], flops: Flops) -> list[str]:
    """What to do after the search."""
    last = trials[-1]
    if last.fits:
        changed = {*last.changes, last.changes.get("model.remat")}
        costs = [f"({cost})" for name, cost in _COSTS.items() if name in changed]
        speed = [*best_lines(target, last, flops), rate_line(config, target, last, flops)]
        return [f"fits with {flags(last.changes)}", *costs, *speed]
    if not config.plan.trials:
        return ["no other setting was tried: --config.plan.trials is 0"]
    assert target.chip is not None
    images = images_that_fit(last, target.chip.usable_bytes)
    if images < 1:
        return ["none of these fits; by its bytes an image, not one image a chip would fit"]
    groups = int(images // config.group_size) * config.group_size
    chips = math.ceil(config.batch_size / (groups or images))
    return [
        f"none of these fits; by the bytes an image of the last one, {images:.1f} images a chip "
        f"would fit (an estimate, not compiled): use {chips:,} chips for a batch of "
        f"{config.batch_size:,}, or groups smaller than --config.group_size={config.group_size}"
    ]


def summary(config: ConfigDict, target: Target, trial: Trial, flops: Flops) -> dict[str, Any]:
    """One setting as plain values, for plan.json."""
    speed, best = rate(config, target, trial, flops), at_best(target, trial, flops)
    same = ("changes", "batch_size", "micro_batches", "prototype_block", "fits", "compile_s")
    return {name: getattr(trial, name) for name in same} | {
        "topology": target.name,
        "device_kind": target.devices[0].device_kind,
        "mesh": dict(zip(("data", "fsdp", "tensor"), trial.mesh, strict=True)),
        "memory_bytes": trial.memory and trial.memory._asdict() | {"total": trial.memory.total},
        "usable_bytes": target.chip and target.chip.usable_bytes,
        "flops_per_image": flops,
        "traffic_bytes": trial.traffic and trial.traffic._asdict(),
        "at_best": best and best._asdict(),
        "at_mfu": speed and {"mfu": config.plan.mfu} | speed._asdict(),
    }
