"""Refuses a training configuration that cannot run, before anything is compiled."""

import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from dinov2_jax.config import checks
from dinov2_jax.config.checks import (
    BATCH,
    COUNT,
    COUNT_OR_NONE,
    DECAY,
    MOST,
    PROCESSES,
    RATE,
    SEED,
    SHARE,
    SIDE,
    TEMPERATURE,
    Names,
    Range,
    Rules,
)
from dinov2_jax.config.files import ConfigError, leaves
from dinov2_jax.data.sources.open import KINDS, LABELS
from dinov2_jax.models.block import REMAT
from dinov2_jax.models.positions import CONVENTIONS
from dinov2_jax.models.vit import BLOCKS, VARIANTS
from dinov2_jax.ops.attention import BACKENDS
from dinov2_jax.ssl.objective import PATCHES
from dinov2_jax.train.distill_checks import check_distillation
from dinov2_jax.train.mesh_checks import check_mesh, divisors, nearest_divisor, nearest_multiple

_SCALE = Range(1e-3, 1, ordered=True)
# A rule, and the fields that follow it.
_TABLE: tuple[tuple[Range | Names | tuple[str, ...], str], ...] = (
    (COUNT, "total_steps log_every_steps"),
    (BATCH, "batch_size group_size micro_batches"),
    (SEED, "seed"),
    (Range(0, 2**24), "prototype_block"),
    (("teacher", "both", "optimizer"), "init_state"),
    (("model", *CONVENTIONS), "init_positions"),
    (("auto", "float32", "bfloat16"), "compute_dtype"),
    (COUNT, "mesh.fsdp mesh.tensor"),
    (Range(-1, MOST), "mesh.data"),
    (Range(0, MOST), "min_shard_bytes"),
    (tuple(VARIANTS), "model.variant"),
    (Range(1, 1024), "model.patch_size model.in_channels"),
    (Range(0, 2**16), "model.dim model.heads"),
    (Range(0, 1024), "model.depth model.registers"),
    (("mlp", "swiglu"), "model.ffn"),
    (Range(0, 10), "model.layerscale"),
    (Range(0, 0.99), "model.drop_path_rate"),
    (SHARE, "model.interpolate_offset"),
    (BACKENDS, "model.attention"),
    (BLOCKS, "model.blocks"),
    (("auto", *REMAT), "model.remat"),
    (("centering", "sinkhorn_knopp"), "centering"),
    (Range(0, 1e6), "dino.loss_weight dino.koleo_loss_weight ibot.loss_weight"),
    (Range(2, 2**24), "dino.head_prototypes ibot.head_prototypes"),
    (Range(1, 2**16), "dino.head_bottleneck_dim dino.head_hidden_dim"),
    (Range(1, 2**16), "ibot.head_bottleneck_dim ibot.head_hidden_dim"),
    (Range(1, 100), "dino.head_layers ibot.head_layers"),
    (SHARE, "ibot.mask_probability"),
    (Range(0, 1, ordered=True), "ibot.mask_ratio"),
    (SHARE, "teacher.momentum teacher.final_momentum"),
    (TEMPERATURE, "teacher.warmup_temp teacher.temp"),
    (COUNT_OR_NONE, "teacher.temp_warmup_steps"),
    (RATE, "optimizer.base_lr optimizer.min_lr"),
    (Range(0, 100), "optimizer.patch_embed_lr_multiplier"),
    (DECAY, "optimizer.weight_decay optimizer.weight_decay_end"),
    (("sqrt_wrt_1024", "none"), "optimizer.lr_scaling"),
    (COUNT_OR_NONE, "optimizer.warmup_steps"),
    (COUNT_OR_NONE, "optimizer.freeze_last_layer_steps optimizer.freeze_backbone_steps"),
    (Range(1e-6, 1e30), "optimizer.clip_norm"),
    (Range(1e-3, 1), "optimizer.layerwise_decay"),
    (Range(0, 0.99999), "optimizer.beta1 optimizer.beta2"),
    (SIDE, "crops.global_size crops.local_size"),
    (Range(0, 1024), "crops.local_number"),
    (_SCALE, "crops.global_scale crops.local_scale"),
    (SHARE, "colour.jitter_probability colour.grayscale_probability colour.blur_probabilities"),
    (SHARE, "colour.solarize_probability colour.mean"),
    (SHARE, "colour.brightness colour.contrast colour.saturation"),
    (Range(0, 0.5), "colour.hue"),
    (Range(1, 1023), "colour.blur_kernel"),
    (Range(1e-3, 100, ordered=True), "colour.blur_sigma"),
    (Range(0, 256), "colour.solarize_threshold"),
    (Range(0.01, 1), "colour.std"),
    (KINDS, "data.source"),
    (COUNT, "data.max_pixels"),
    (PROCESSES, "data.workers"),
    (SHARE, "data.max_bad_fraction"),
    (LABELS, "eval.labels"),
    (COUNT, "eval.k"),
    (BATCH, "eval.batch_size"),
    (SIDE, "eval.resize_size eval.image_size"),
    (COUNT_OR_NONE, "eval.every_steps eval.max_pictures eval.linear_iterations"),
    (TEMPERATURE, "eval.temperature"),
    (COUNT, "checkpoint.every_steps checkpoint.keep_last"),
    (COUNT_OR_NONE, "checkpoint.keep_every_steps"),
    (("prototypes", "features"), "distill.kind"),
    (Range(0, 2**16), "distill.attention_heads"),
    (PATCHES, "distill.patches"),
    (Names(), "distill.students"),
    (("", "train"), "distill.teacher_heads"),
    (COUNT, "distill.head_steps"),
    (Range(0, 1000), "plan.trials"),
    (Range(0.01, 1), "plan.mfu"),
)
RULES: Rules = checks.DISTRIBUTED | {name: rule for rule, names in _TABLE for name in names.split()}


def check_training(config: ConfigDict, device_count: int) -> list[str]:
    """Refuses what cannot run; returns notes on what can run but is probably not wanted.

    Raises:
      ConfigError: naming the field, the reason and a value that works.
    """
    checks.require_fields(config, RULES)
    _check_levels(config)
    checks.check_values(config, RULES)
    if config.task == "train" and config.data.source != "openmoji" and not config.data.path:
        raise ConfigError(
            f"config.data.path is empty, but source {config.data.source!r} needs it; add "
            "--config.data.path=/your/pictures"
        )
    _check_batch(config)
    _check_losses(config)
    check_distillation(config)
    _check_prototypes(config)
    _check_images(config)
    _check_colours(config)
    return _late_schedules(config) + _frozen_noise(config) + check_mesh(config, device_count)


def _check_batch(config: ConfigDict) -> None:
    batch_size, group_size = config.batch_size, config.group_size
    if batch_size % group_size:
        group = nearest_divisor(batch_size, group_size)
        raise ConfigError(
            f"config.batch_size {batch_size} is not a multiple of config.group_size {group_size}; "
            f"nearest valid: --config.batch_size={nearest_multiple(batch_size, group_size)} or "
            f"--config.group_size={group}"
        )
    if config.dino.koleo_loss_weight > 0 and group_size < 2:
        raise ConfigError(
            "config.group_size is 1, but KoLeo needs a neighbour in the group; use "
            "--config.group_size=2 or more, or --config.dino.koleo_loss_weight=0"
        )


def _check_prototypes(config: ConfigDict) -> None:
    block = config.prototype_block
    for name in ("dino", "ibot") if config.ibot.separate_head else ("dino",):
        prototypes = config[name].head_prototypes
        if block and prototypes % block:
            divisor = max(n for n in divisors(prototypes) if n <= block)
            raise ConfigError(
                f"config.prototype_block {block} does not divide config.{name}.head_prototypes "
                f"{prototypes}; the next smaller divisor is --config.prototype_block={divisor}"
            )


def _check_images(config: ConfigDict) -> None:
    fields, model = leaves(config), config.model
    sizes = ["crops.global_size"]
    if config.crops.local_number:
        sizes.append("crops.local_size")
    if config.eval.every_steps and config.eval.labels != "none":
        sizes.append("eval.image_size")
    for name in sizes:
        _require_multiple(fields, name, "model.patch_size", " px")
    if model.interpolate_antialias and model.interpolate_offset:
        raise ConfigError(
            "config.model.interpolate_antialias is for register models, whose "
            "interpolate_offset is 0; add --config.model.interpolate_offset=0.0"
        )
    variant = VARIANTS[model.variant]
    dim, heads = model.dim or variant.dim, model.heads or variant.heads
    if dim % heads:
        inherited = " (0 stands for the variant's)" if dim != model.dim or not model.heads else ""
        raise ConfigError(
            f"config.model.dim {dim} is not a multiple of config.model.heads {heads}{inherited}; "
            f"nearest valid: --config.model.dim={nearest_multiple(dim, heads)} or "
            f"--config.model.heads={nearest_divisor(dim, heads)}"
        )


def _require_multiple(fields: Mapping[str, Any], name: str, of: str, unit: str = "") -> None:
    value, factor = fields[name], fields[of]
    if value % factor:
        raise ConfigError(
            f"config.{name} {value}{unit} is not a multiple of config.{of} {factor}{unit}; nearest "
            f"valid: --config.{name}={nearest_multiple(value, factor)}"
        )


def _check_levels(config: ConfigDict) -> None:
    """Refuses statistics of pixels from 0 to 255; divided by 255 they would be right."""
    for name in ("mean", "std"):
        values = config.colour[name]
        if 1 < max(values) <= 255 and min(values) > 0:
            numbers = ",".join(f"{value / 255:.3f}" for value in values)
            raise ConfigError(
                f"config.colour.{name} is {values}, but is for pixels from 0 to 1; divided by 255 "
                f'it is --config.colour.{name}="({numbers})"'
            )


def _check_losses(config: ConfigDict) -> None:
    if not (config.dino.loss_weight or config.dino.koleo_loss_weight or config.ibot.loss_weight):
        raise ConfigError(
            "config.dino.loss_weight, config.dino.koleo_loss_weight and config.ibot.loss_weight "
            "are 0, so nothing is learned; use --config.dino.loss_weight=1.0"
        )


def _check_colours(config: ConfigDict) -> None:
    channels = config.model.in_channels
    for name, value in {"mean": 0.449, "std": 0.226}.items():  # averages of ImageNet's channels
        if len(config.colour[name]) != channels:
            likely = "for gray" if channels == 1 else "for example"
            numbers = f"{value}," if channels == 1 else ",".join([str(value)] * channels)
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


def _late_schedules(config: ConfigDict) -> list[str]:
    """Notes on schedules that a shortened run never completes."""
    total, optimizer = config.total_steps, config.optimizer
    names = ("warmup_steps", "freeze_last_layer_steps", "freeze_backbone_steps")
    return [
        f"config.optimizer.{name} {optimizer[name]:,} is not less than config.total_steps "
        f"{total:,}, so the run ends before they are over; a tenth would be "
        f"--config.optimizer.{name}={max(1, total // 10)}"
        for name in names
        if optimizer[name] >= total
    ]


def _frozen_noise(config: ConfigDict) -> list[str]:
    steps = config.optimizer.freeze_backbone_steps
    if not steps or config.init_from:
        return []
    return [
        f"config.optimizer.freeze_backbone_steps {steps:,} keeps random weights for so many steps, "
        "because config.init_from is empty"
    ]
