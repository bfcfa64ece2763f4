"""Refuses configurations that cannot run, before anything is compiled, in a sentence each."""

import math
from collections.abc import Mapping
from typing import Any

import ml_collections

from dinov2_jax.config.files import CHOICES, ConfigError, leaves, nearest

# Least and greatest value of fields that would otherwise fail late or train nonsense in silence.
RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, math.inf),
    "total_steps": (1, math.inf),
    "batch_size": (1, math.inf),
    "group_size": (1, math.inf),
    "log_every_steps": (1, math.inf),
    "micro_batches": (1, math.inf),
    "prototype_block": (0, math.inf),
    "checkpoint.every_steps": (1, math.inf),
    "checkpoint.keep_last": (1, math.inf),
    "eval.every_steps": (0, math.inf),
    "eval.max_pictures": (0, math.inf),
    "eval.k": (1, math.inf),
    "eval.linear_iterations": (0, math.inf),
    "eval.batch_size": (1, math.inf),
    "eval.temperature": (1e-3, math.inf),
    "colour.hue": (0, 0.5),
    "colour.blur_kernel": (1, math.inf),
    "data.workers": (0, math.inf),
    "data.max_bad_fraction": (0, 1),
    "model.patch_size": (1, math.inf),
    "model.in_channels": (1, math.inf),
    "model.registers": (0, math.inf),
    "model.drop_path_rate": (0, 0.99),
    "crops.local_number": (0, math.inf),
    "ibot.mask_probability": (0, 1),
    "dino.head_prototypes": (2, math.inf),
    "ibot.head_prototypes": (2, math.inf),
    "teacher.momentum": (0, 1),
    "teacher.final_momentum": (0, 1),
    "teacher.warmup_temp": (1e-3, math.inf),
    "teacher.temp": (1e-3, math.inf),
    "optimizer.clip_norm": (1e-9, math.inf),
    "optimizer.freeze_last_layer_steps": (0, math.inf),
    "optimizer.freeze_backbone_steps": (0, math.inf),
    "store.shard_rows": (0, math.inf),
    "data.max_bad": (0, math.inf),
    "knn.temperature": (1e-3, math.inf),
    "few_shot.tries": (1, math.inf),
    "few_shot.linear_iterations": (1, math.inf),
    "logreg.count": (1, math.inf),
    "logreg.max_iterations": (1, math.inf),
    "linear.iterations": (1, math.inf),
    "linear.batch_size": (1, math.inf),
    "linear.save_every": (1, math.inf),
    "image_size": (0, math.inf),
    "resize_size": (0, math.inf),
    "finetune.iterations": (1, math.inf),
    "finetune.batch_size": (1, math.inf),
    "finetune.group_size": (1, math.inf),
    "finetune.warmup_iterations": (0, math.inf),
    "finetune.layerwise_decay": (1e-3, 1),
    "finetune.drop_path": (0, 0.99),
    "finetune.smoothing": (0, 0.99),
    "finetune.mixup": (0, math.inf),
    "finetune.cutmix": (0, math.inf),
    "finetune.ema": (0, 1),
    "finetune.lora_rank": (0, math.inf),
    "finetune.save_every": (1, math.inf),
    "plan.mfu": (0.01, 1),
    "plan.trials": (0, math.inf),
}


def check_config(config: ml_collections.ConfigDict, device_count: int) -> list[str]:
    """Refuses what cannot run; returns notes on what can run but is probably unwanted.

    Raises:
        ConfigError: naming the field, the reason and a value that works.
    """
    for name, value in leaves(config).items():
        empty_means_stored = config.task == "eval" and value == ""
        if name in CHOICES and value not in CHOICES[name] and not empty_means_stored:
            options = ", ".join(CHOICES[name])
            raise ConfigError(
                f"config.{name} is {value!r}; did you mean "
                f"{nearest(str(value), CHOICES[name])!r}? (one of {options})"
            )
    _check_ranges(config)
    if config.task not in ("train", "plan"):
        return []
    if config.task == "train":
        _check_source(config)
    _check_batch(config)
    _check_prototypes(config)
    _check_images(config)
    _check_colours(config)
    return _late_schedules(config) + _frozen_noise(config) + _check_mesh(config, device_count)


def check_distributed(settings: Mapping[str, Any]) -> None:
    """Refuses `config.distributed` that contradicts itself; called before JAX looks for devices.

    Raises:
        ConfigError: naming the field and a value that works.
    """
    coordinator, processes = settings["coordinator"], settings["processes"]
    process_id = settings["process_id"]
    if settings["heartbeat_s"] < 1:
        raise ConfigError(
            f"config.distributed.heartbeat_s is {settings['heartbeat_s']}, but must be at least 1"
        )
    if coordinator in ("auto", "none"):
        if processes != -1 or process_id != -1:
            raise ConfigError(
                f"config.distributed.processes {processes} and process_id {process_id} need a "
                "coordinator; add --config.distributed.coordinator=<host of process 0>:<port>"
            )
        return
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(
            f"config.distributed.coordinator is {coordinator!r}, but must be auto, none or "
            "host:port, such as 10.0.0.1:8476"
        )
    if processes < 1 or not 0 <= process_id < processes:
        raise ConfigError(
            f"config.distributed.process_id is {process_id} of {processes} processes; with a "
            "coordinator both are needed: config.distributed.processes=N, and process_id from 0 "
            "to N - 1"
        )


def _check_ranges(config: ml_collections.ConfigDict) -> None:
    fields = leaves(config)
    for name, (low, high) in RANGES.items():
        if name in fields and not low <= fields[name] <= high:
            reason = f"at least {low}" if high == math.inf else f"from {low} to {high}"
            raise ConfigError(f"config.{name} is {fields[name]}, but must be {reason}")
    for name in {"crops.global_scale", "crops.local_scale", "ibot.mask_ratio"} & fields.keys():
        low, high = fields[name]
        if not 0 <= low <= high <= 1:
            raise ConfigError(
                f"config.{name} is {fields[name]}, but needs 0 <= low <= high <= 1, such as "
                "(0.1, 0.5)"
            )


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
