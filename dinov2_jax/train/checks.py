"""Refuses a training configuration that cannot run, before anything is compiled."""

import math

import ml_collections

from dinov2_jax.config.checks import (
    COUNT,
    COUNT_OR_NONE,
    DISTRIBUTED,
    POSITIVE,
    SHARE,
    Range,
    Rules,
    check_values,
)
from dinov2_jax.config.files import ConfigError, leaves
from dinov2_jax.data.sources.open import KINDS, LABELS
from dinov2_jax.models.block import REMAT
from dinov2_jax.models.vit import VARIANTS
from dinov2_jax.ops.attention import BACKENDS

_HEAD: dict[str, Range] = {
    "loss_weight": Range(0),
    "head_prototypes": Range(2),
    "head_bottleneck_dim": COUNT,
    "head_layers": COUNT,
    "head_hidden_dim": COUNT,
}
RULES: Rules = (
    DISTRIBUTED
    | {f"{head}.{name}": rule for head in ("dino", "ibot") for name, rule in _HEAD.items()}
    | {
        "seed": COUNT_OR_NONE,
        "total_steps": COUNT,
        "batch_size": COUNT,
        "group_size": COUNT,
        "log_every_steps": COUNT,
        "compute_dtype": ("auto", "float32", "bfloat16"),
        "micro_batches": COUNT,
        "prototype_block": COUNT_OR_NONE,
        "mesh.data": Range(-1),
        "mesh.fsdp": COUNT,
        "mesh.tensor": COUNT,
        "model.variant": tuple(VARIANTS),
        "model.dim": COUNT_OR_NONE,
        "model.depth": COUNT_OR_NONE,
        "model.heads": COUNT_OR_NONE,
        "model.patch_size": COUNT,
        "model.in_channels": COUNT,
        "model.ffn": ("mlp", "swiglu"),
        "model.registers": COUNT_OR_NONE,
        "model.layerscale": Range(0),
        "model.drop_path_rate": Range(0, 0.99),
        "model.interpolate_offset": Range(0, 1),
        "model.attention": BACKENDS,
        "model.remat": tuple(REMAT),
        "centering": ("centering", "sinkhorn_knopp"),
        "dino.koleo_loss_weight": Range(0),
        "ibot.mask_probability": SHARE,
        "ibot.mask_ratio": Range(0, 1, ordered=True),
        "teacher.momentum": SHARE,
        "teacher.final_momentum": SHARE,
        "teacher.warmup_temp": Range(1e-3),
        "teacher.temp": Range(1e-3),
        "teacher.temp_warmup_steps": COUNT_OR_NONE,
        "optimizer.base_lr": Range(0),
        "optimizer.lr_scaling": ("sqrt_wrt_1024", "none"),
        "optimizer.min_lr": Range(0),
        "optimizer.warmup_steps": COUNT_OR_NONE,
        "optimizer.weight_decay": Range(0),
        "optimizer.weight_decay_end": Range(0),
        "optimizer.clip_norm": POSITIVE,
        "optimizer.freeze_last_layer_steps": COUNT_OR_NONE,
        "optimizer.freeze_backbone_steps": COUNT_OR_NONE,
        "optimizer.patch_embed_lr_multiplier": Range(0),
        "optimizer.layerwise_decay": Range(1e-3, 1),
        "optimizer.beta1": Range(0, 1),
        "optimizer.beta2": Range(0, 1),
        "crops.global_size": COUNT,
        "crops.global_scale": Range(0, 1, ordered=True),
        "crops.local_size": COUNT,
        "crops.local_scale": Range(0, 1, ordered=True),
        "crops.local_number": COUNT_OR_NONE,
        "colour.jitter_probability": SHARE,
        "colour.brightness": Range(0),
        "colour.contrast": Range(0),
        "colour.saturation": Range(0),
        "colour.hue": Range(0, 0.5),
        "colour.grayscale_probability": SHARE,
        "colour.blur_probabilities": SHARE,
        "colour.blur_kernel": COUNT,
        "colour.blur_sigma": Range(1e-3, ordered=True),
        "colour.solarize_probability": SHARE,
        "colour.solarize_threshold": Range(0, 256),
        "colour.mean": SHARE,
        "colour.std": Range(1e-6),
        "data.source": KINDS,
        "data.workers": COUNT_OR_NONE,
        "data.max_bad_fraction": SHARE,
        "data.max_pixels": COUNT,
        "eval.every_steps": COUNT_OR_NONE,
        "eval.labels": LABELS,
        "eval.max_pictures": COUNT_OR_NONE,
        "eval.k": COUNT,
        "eval.temperature": Range(1e-3),
        "eval.linear_iterations": COUNT_OR_NONE,
        "eval.batch_size": COUNT,
        "eval.resize_size": COUNT,
        "eval.image_size": COUNT,
        "checkpoint.every_steps": COUNT,
        "checkpoint.keep_last": COUNT,
        "checkpoint.keep_every_steps": COUNT_OR_NONE,
        "plan.mfu": Range(0.01, 1),
        "plan.trials": COUNT_OR_NONE,
    }
)


def check_training(config: ml_collections.ConfigDict, device_count: int) -> list[str]:
    """Refuses what cannot run; returns notes on what can run but is probably not wanted.

    Raises:
      ConfigError: naming the field, the reason and a value that works.
    """
    check_values(config, RULES)
    if config.task == "train":
        _check_source(config)
    _check_batch(config)
    _check_prototypes(config)
    _check_images(config)
    _check_colours(config)
    return _late_schedules(config) + _frozen_noise(config) + _check_mesh(config, device_count)


def _check_source(config: ml_collections.ConfigDict) -> None:
    if config.data.source != "openmoji" and not config.data.path:
        raise ConfigError(
            f"config.data.path is empty, but source {config.data.source!r} needs it; add "
            "--config.data.path=/your/pictures"
        )


def _check_batch(config: ml_collections.ConfigDict) -> None:
    batch_size, group_size = config.batch_size, config.group_size
    if batch_size % group_size:
        divisors = [n for n in range(1, batch_size + 1) if batch_size % n == 0]
        group = min(divisors, key=lambda n: abs(n - group_size))
        raise ConfigError(
            f"config.batch_size {batch_size} is no multiple of config.group_size {group_size}; "
            "nearest valid: "
            f"--config.batch_size={_nearest_multiple(batch_size, group_size)} or "
            f"--config.group_size={group}"
        )
    if config.dino.koleo_loss_weight > 0 and group_size < 2:
        raise ConfigError(
            "config.group_size is 1, but KoLeo needs a neighbour in the group; use "
            "--config.group_size=2 or more, or "
            "--config.dino.koleo_loss_weight=0"
        )


def _check_prototypes(config: ml_collections.ConfigDict) -> None:
    block = config.prototype_block
    heads = {"dino": config.dino} | ({"ibot": config.ibot} if config.ibot.separate_head else {})
    for name, head in heads.items():
        prototypes = head.head_prototypes
        if block and prototypes % block:
            divisor = max(n for n in range(1, min(block, prototypes) + 1) if prototypes % n == 0)
            raise ConfigError(
                f"config.prototype_block {block} does not divide config.{name}.head_prototypes "
                f"{prototypes}; the next smaller divisor is --config.prototype_block={divisor}"
            )


def _check_images(config: ml_collections.ConfigDict) -> None:
    patch_size, fields = config.model.patch_size, leaves(config)
    names = ["crops.global_size"]
    names += ["crops.local_size"] if config.crops.local_number else []
    if config.eval.every_steps and config.eval.labels != "none":
        names.append("eval.image_size")
    for name in names:
        if fields[name] % patch_size or fields[name] < patch_size:
            raise ConfigError(
                f"config.{name} {fields[name]} px is no multiple of config.model.patch_size "
                f"{patch_size}; nearest valid: "
                f"--config.{name}={_nearest_multiple(fields[name], patch_size)}"
            )
    if config.model.interpolate_antialias and config.model.interpolate_offset:
        raise ConfigError(
            "config.model.interpolate_antialias is for register models, whose "
            "interpolate_offset is 0; add --config.model.interpolate_offset=0.0"
        )
    dim, heads = config.model.dim, config.model.heads
    if dim and heads and dim % heads:
        raise ConfigError(
            f"config.model.dim {dim} is no multiple of config.model.heads {heads}; nearest valid: "
            f"--config.model.dim={_nearest_multiple(dim, heads)}"
        )


def _check_colours(config: ml_collections.ConfigDict) -> None:
    channels = config.model.in_channels
    for name in ("mean", "std"):
        if len(config.colour[name]) != channels:
            likely = "for gray" if channels == 1 else "for example"
            value = {"mean": 0.449, "std": 0.226}[name]  # ImageNet's, its three channels averaged
            numbers = ",".join([str(value)] * channels) + ("," if channels == 1 else "")
            raise ConfigError(
                f"config.colour.{name} has {len(config.colour[name])} numbers, but "
                f"config.model.in_channels is {channels}; {likely}: "
                f'--config.colour.{name}="({numbers})"'
            )
    taps, crops = config.colour.blur_kernel, config.crops
    if taps % 2 == 0:
        raise ConfigError(
            f"config.colour.blur_kernel {taps} is even, but a blur has a middle tap; nearest valid:"
            f" --config.colour.blur_kernel={taps + 1}"
        )
    shortest = min(crops.global_size, crops.local_size if crops.local_number else math.inf)
    if taps // 2 >= shortest:
        raise ConfigError(
            f"config.colour.blur_kernel {taps} reaches beyond a crop of {shortest} px, whose edge "
            f"it reflects; use --config.colour.blur_kernel={2 * shortest - 1} or less"
        )


def _late_schedules(config: ml_collections.ConfigDict) -> list[str]:
    """Notes on schedules that a shortened run never completes."""
    total = config.total_steps
    fields = tuple(
        f"optimizer.{name}_steps" for name in ("warmup", "freeze_last_layer", "freeze_backbone")
    )
    return [
        f"config.{name} {leaves(config)[name]:,} is not less than config.total_steps {total:,}: "
        f"the run ends before; a tenth would be --config.{name}={max(1, total // 10)}"
        for name in fields
        if leaves(config)[name] >= total
    ]


def _frozen_noise(config: ml_collections.ConfigDict) -> list[str]:
    steps = config.optimizer.freeze_backbone_steps
    if not steps or config.init_from:
        return []
    return [
        f"config.optimizer.freeze_backbone_steps {steps:,} keeps random weights for so long, as "
        "there is no config.init_from"
    ]


def _check_mesh(config: ml_collections.ConfigDict, device_count: int) -> list[str]:
    data, fsdp, tensor = config.mesh.data, config.mesh.fsdp, config.mesh.tensor
    if fsdp < 1 or tensor < 1 or (data < 1 and data != -1):
        raise ConfigError(
            f"config.mesh is {data} x {fsdp} x {tensor}; every axis is at least 1, or -1 for data "
            "(the rest)"
        )
    if data == -1:
        if device_count % (fsdp * tensor):
            raise ConfigError(
                f"config.mesh.fsdp {fsdp} x config.mesh.tensor {tensor} does not divide the "
                f"{device_count} devices; use "
                f"--config.mesh.fsdp={math.gcd(device_count, fsdp)} --config.mesh.tensor=1"
            )
        data = device_count // (fsdp * tensor)
    used, shards = data * fsdp * tensor, data * fsdp
    if used > device_count:
        raise ConfigError(
            f"config.mesh {data} x {fsdp} x {tensor} asks for {used} devices, but there are "
            f"{device_count}; use "
            f"--config.mesh.data=-1 and a smaller fsdp"
        )
    if config.batch_size % shards:
        valid = _nearest_multiple(config.batch_size, math.lcm(shards, config.group_size))
        raise ConfigError(
            f"config.batch_size {config.batch_size} is not divisible by the {shards} shards of "
            "the mesh (data x fsdp); "
            f"nearest valid: --config.batch_size={valid}"
        )
    groups, parts = config.batch_size // config.group_size, config.micro_batches
    if parts > 1 and groups % (shards * parts):
        raise ConfigError(
            f"config.micro_batches {parts} does not divide the {groups} statistical groups of a "
            f"batch over {shards} shards of the mesh; nearest valid: "
            f"--config.micro_batches={math.gcd(max(groups // shards, 1), parts)}"
        )
    notes = []
    if used < device_count:
        notes.append(
            f"the mesh uses {used} of {device_count} devices; --config.mesh.data=-1 uses all of "
            "them"
        )
    if groups % shards:
        notes.append(
            f"{groups} statistical groups of {config.group_size} do not divide over {shards} "
            "shards of the mesh, so groups span devices: results are the same, but activations "
            f"cross the network; --config.group_size={config.batch_size // shards} would divide"
        )
    return notes


def _nearest_multiple(value: int, of: int) -> int:
    return max(of, of * round(value / of))
