"""Refuses a mesh, a batch or a model that do not fit each other and the devices."""

import math

from ml_collections import ConfigDict

from dinov2_jax.config.files import ConfigError
from dinov2_jax.models.layers import swiglu_hidden_dim
from dinov2_jax.models.vit import VARIANTS


def check_mesh(config: ConfigDict, device_count: int) -> list[str]:
    data, fsdp, tensor = _check_axes(config, device_count), config.mesh.fsdp, config.mesh.tensor
    used, shards = data * fsdp * tensor, data * fsdp
    if config.batch_size % shards:
        valid = nearest_multiple(config.batch_size, math.lcm(shards, config.group_size))
        raise ConfigError(
            f"config.batch_size {config.batch_size} does not divide over the {shards} shards of "
            f"the mesh (data x fsdp); nearest valid: --config.batch_size={valid}"
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
            f"the mesh uses {used} of {device_count} devices; --config.mesh.data=-1 uses all"
        )
    if groups % shards:
        notes.append(
            f"{groups} statistical groups of {config.group_size} do not divide over {shards} "
            "shards of the mesh, so some groups span devices: results are the same, but "
            "activations cross the network; "
            f"--config.group_size={config.batch_size // shards} would divide"
        )
    return notes


def _check_axes(config: ConfigDict, device_count: int) -> int:
    """Refuses axes that do not fit the devices or the model; returns the size of "data"."""
    data, fsdp, tensor = config.mesh.data, config.mesh.fsdp, config.mesh.tensor
    if data == 0:
        raise ConfigError(
            "config.mesh.data is 0, but must be at least 1, or -1 for all devices that the other "
            "axes leave; use --config.mesh.data=-1"
        )
    _check_tensor(config)
    if data == -1 and device_count % (fsdp * tensor):
        raise ConfigError(
            f"config.mesh.fsdp {fsdp} x config.mesh.tensor {tensor} does not divide the "
            f"{device_count} devices; use {_fitting_axes(fsdp, tensor, device_count)}"
        )
    data = device_count // (fsdp * tensor) if data == -1 else data
    used = data * fsdp * tensor
    if used > device_count:
        fits = device_count % (fsdp * tensor) == 0
        rest = "" if fits else f" {_fitting_axes(fsdp, tensor, device_count)}"
        raise ConfigError(
            f"config.mesh {data} x {fsdp} x {tensor} asks for {used} devices, but there are "
            f"{device_count}; use --config.mesh.data=-1{rest}"
        )
    return data


def _fitting_axes(fsdp: int, tensor: int, device_count: int) -> str:
    """Flags near to the given axes that fit; says so where they change config.mesh.tensor."""
    fit = math.gcd(device_count, tensor)
    instead = f" --config.mesh.tensor={fit}, instead of your {tensor}" if fit != tensor else ""
    return f"--config.mesh.fsdp={math.gcd(device_count // fit, fsdp)}{instead}"


def _check_tensor(config: ConfigDict) -> None:
    """A tensor axis splits the heads, and the hidden width, so it must divide both."""
    model, tensor = config.model, config.mesh.tensor
    variant = VARIANTS[model.variant]
    dim, heads = model.dim or variant.dim, model.heads or variant.heads
    sizes = {"heads": heads}
    if model.ffn == "swiglu":  # that of "mlp" is a multiple of dim, and so of the heads
        sizes["hidden units"] = swiglu_hidden_dim(dim)
    if any(size % tensor for size in sizes.values()):
        said = " and ".join(f"{size} {name}" for name, size in sizes.items())
        raise ConfigError(
            f"config.mesh.tensor {tensor} does not divide the {said} of the model; use "
            f"--config.mesh.tensor={math.gcd(tensor, *sizes.values())}"
        )


def nearest_multiple(value: int, of: int) -> int:
    return max(of, of * round(value / of))


def nearest_divisor(of: int, to: int) -> int:
    return min(divisors(of), key=lambda n: abs(n - to))


def divisors(of: int) -> set[int]:
    small = [n for n in range(1, math.isqrt(of) + 1) if of % n == 0]
    return {*small, *(of // n for n in small)}
