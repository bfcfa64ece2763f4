"""The words and numbers of a plan."""

import math
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from dinov2_jax.plan.chips import GIB, GPU_DEFAULT_USABLE, GPU_USABLE
from dinov2_jax.plan.search import images_that_fit
from dinov2_jax.plan.topology import Target
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


class Rate(NamedTuple):
    """What a run takes at the configured MFU; chip-hours include chips that the mesh leaves out."""

    images_per_s: float
    step_s: float
    days: float
    chip_hours: float


def rate(config: ConfigDict, target: Target, trial: Trial, flops: dict[str, float]) -> Rate | None:
    """None where the chip's peak is not known."""
    if target.chip is None:
        return None
    images_per_s = config.plan.mfu * target.chip.peak_flops * trial.devices / flops["model"]
    step_s = trial.batch_size / images_per_s
    seconds = step_s * config.total_steps
    return Rate(images_per_s, step_s, seconds / 86400, seconds / 3600 * len(target.devices))


def describe(
    config: ConfigDict, target: Target, trial: Trial, flops: dict[str, float]
) -> list[str]:
    """The whole plan of one setting."""
    lines = [setting_line(config, trial)]
    lines += memory_lines(target, trial)
    lines += flops_lines(flops)
    return lines + rate_lines(config, target, trial, flops)


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


# --------------------------------------------------------------------------------- memory
def memory_lines(target: Target, trial: Trial) -> list[str]:
    if trial.memory is None:
        return ["the compiler ran out of memory and does not say what it needs: does not fit"]
    parts = trial.memory._asdict()
    lines = ["memory of each device"]
    lines += [f"  {ROWS[name]:<28}{size(parts[name]):>12}" for name in ROWS]
    lines.append(f"  {'together':<28}{size(trial.memory.total):>12}  {fit_words(target, trial)}")
    return lines


def fit_words(target: Target, trial: Trial) -> str:
    """Whether a trial fits, in words."""
    if target.chip is None or trial.memory is None:
        return "(the memory of this kind of device is not known)"
    usable = target.chip.usable_bytes
    share = trial.memory.total / usable
    if not trial.fits:
        return f"of {size(usable)}: does NOT fit, {share:.1f} times too much"
    words = f"of {size(usable)}: fits ({share:.0%})"
    if target.devices[0].platform == "gpu" and share * GPU_USABLE > GPU_DEFAULT_USABLE:
        words += f"; set XLA_PYTHON_CLIENT_MEM_FRACTION={GPU_USABLE}, JAX takes 75 % by default"
    return words


# ------------------------------------------------------------------------------------ work
def flops_lines(flops: dict[str, float]) -> list[str]:
    line = f"work: {flops['model'] / 1e9:,.1f} GFLOP an image (matrix products of one step)"
    if flops["executed"] != flops["model"]:
        line += f"; {flops['executed'] / 1e9:,.1f} with what is computed again"
    return [line]


def rate_lines(
    config: ConfigDict, target: Target, trial: Trial, flops: dict[str, float]
) -> list[str]:
    found = rate(config, target, trial, flops)
    if found is None:
        return ["rate: not known for this kind of device"]
    return [
        f"at {config.plan.mfu:.0%} of the peak (an assumption: --config.plan.mfu): "
        f"{found.images_per_s:,.0f} images/s, {found.step_s:.2f} s a step; {config.total_steps:,} "
        f"steps take {found.days:.2f} days = {found.chip_hours:,.0f} chip-hours"
    ]


# ---------------------------------------------------------------------------------- search
def flags(changes: dict[str, Any]) -> str:
    return " ".join(f"--config.{name}={value}" for name, value in changes.items())


def describe_search(target: Target, trial: Trial) -> list[str]:
    """One line a setting that was compiled because the configured one does not fit."""
    total = "more than there is" if trial.memory is None else size(trial.memory.total)
    return [f"tried {flags(trial.changes)}: {total} {fit_words(target, trial)}"]


_REPEATED = {
    "pointwise": "remat computes norms, activations and attention logits of the student twice",
    "blocks": "remat computes the student's blocks twice: about a quarter more time",
}


def outcome(
    config: ConfigDict, target: Target, trials: list[Trial], flops: dict[str, float]
) -> list[str]:
    """What to do after the search."""
    last = trials[-1]
    if last.fits:
        lines = [f"fits with {flags(last.changes)}"]
        if "model.remat" in last.changes:
            lines.append(f"({_REPEATED[last.changes['model.remat']]})")
        if "micro_batches" in last.changes:
            lines.append(
                f"({last.micro_batches} micro-batches, one after the other, make the same update; "
                "with fsdp each of them gathers the weights)"
            )
        if "prototype_block" in last.changes:
            lines.append("(in blocks of prototypes the losses are the same, scores computed again)")
        if "batch_size" in last.changes:
            lines.append(
                "(a smaller batch is another recipe: base_lr scales by "
                f"{config.optimizer.lr_scaling}, total_steps does not)"
            )
        return lines + rate_lines(config, target, last, flops)
    if not config.plan.trials:
        return ["no other setting was tried: --config.plan.trials is 0"]
    assert target.chip is not None
    images = images_that_fit(last, target.chip.usable_bytes)
    if images < 1:
        return ["none of these fits, and by their bytes an image not one image a chip would"]
    groups = max(int(images // config.group_size) * config.group_size, 0)
    chips = math.ceil(config.batch_size / (groups or images))
    return [
        f"none of these fits; by the bytes an image of the last, {images:.1f} images a chip would "
        f"(an estimate, not compiled): {chips:,} chips for a batch of {config.batch_size:,}, or "
        f"groups smaller than --config.group_size={config.group_size}"
    ]


# ------------------------------------------------------------------------------------ JSON
def summary(
    config: ConfigDict, target: Target, trial: Trial, flops: dict[str, float]
) -> dict[str, Any]:
    """One setting as plain values, for plan.json."""
    found = rate(config, target, trial, flops)
    return {
        "topology": target.name,
        "device_kind": target.devices[0].device_kind,
        "changes": trial.changes,
        "batch_size": trial.batch_size,
        "micro_batches": trial.micro_batches,
        "prototype_block": trial.prototype_block,
        "mesh": dict(zip(("data", "fsdp", "tensor"), trial.mesh, strict=True)),
        "memory_bytes": trial.memory and trial.memory._asdict() | {"total": trial.memory.total},
        "usable_bytes": target.chip and target.chip.usable_bytes,
        "fits": trial.fits,
        "at_mfu": found and {"mfu": config.plan.mfu} | found._asdict(),
        "compile_s": trial.compile_s,
    }
