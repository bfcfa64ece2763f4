"""Sharding constraints that models call inside jit; without a mesh they do nothing."""

import math
from collections.abc import Callable

import jax
from jax import Array
from jax.sharding import PartitionSpec as P

from dinov2_jax.parallel.mesh import BATCH


def constrain_batch(x: Array) -> Array:
    """Keeps the leading axis split over the devices, if there is a mesh and it divides.

    Without this constraint XLA silently turns FSDP into tensor parallelism: it gathers activations
    instead of weights.
    """
    shards = _shards("data", "fsdp")
    if shards == 1 or x.shape[0] % shards:
        return x
    return jax.lax.with_sharding_constraint(x, BATCH)


def constrain_prototypes(x: Array, axis: int = 0) -> Array:
    """Prototypes whole on every device, or split over "tensor" along `axis` if that divides.

    Constrain once, after the cast; otherwise every scan over blocks gathers the prototypes again.
    """
    if jax.sharding.get_abstract_mesh().size <= 1:
        return x
    spec: list[str | None] = [None] * x.ndim
    spec[axis] = "tensor" if x.shape[axis] % tensor_shards() == 0 else None
    return jax.lax.with_sharding_constraint(x, P(*spec))


def constrain_scores(x: Array) -> Array:
    """Scores [G, ..., K]: each device has its own rows, and with a tensor axis its own prototypes.

    Without this constraint XLA splits some scores by prototypes or features under FSDP and moves
    rows between devices.
    """
    shards = _shards("data", "fsdp")
    if shards * tensor_shards() == 1 or x.shape[0] % shards:
        return x
    split = "tensor" if x.shape[-1] % tensor_shards() == 0 else None
    return jax.lax.with_sharding_constraint(x, P(*BATCH, *[None] * (x.ndim - 2), split))


def on_each_device(function: Callable[[Array], Array], x: Array) -> Array:
    """Applies a function that XLA cannot split to each device's groups of x [G, ...].

    Elsewhere XLA would gather x on every device. Where the groups do not divide over the devices,
    or these split more than groups, x is returned as it is.
    """
    shards = _shards("data", "fsdp")
    if shards * tensor_shards() == 1:
        return function(x)
    if tensor_shards() > 1 or x.shape[0] % shards:
        return x
    return jax.shard_map(
        function, in_specs=BATCH, out_specs=BATCH, axis_names=set(BATCH[0]), check_vma=False
    )(x)


def tensor_shards() -> int:
    """The number of devices over which `TENSOR_RULES` split weights; 1 without a mesh."""
    return _shards("tensor")


def _shards(*axes: str) -> int:
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape.get(axis, 1) for axis in axes)


def replicate(x: Array) -> Array:
    """Copies `x` to every device, so that every process can read it; a no-op without a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, P())
