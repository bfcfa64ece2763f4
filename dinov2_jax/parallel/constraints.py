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


def constrain_columns(x: Array) -> Array:
    """x [G, ..., F]: each device has its own rows, and with a tensor axis its own share of F.

    For scores by prototype, and for what lies between the two products of a branch of a block.
    Without this constraint XLA splits some of them otherwise under FSDP, and moves rows between
    devices.
    """
    shards, ways = _shards("data", "fsdp"), tensor_shards()
    if shards * ways == 1 or (x.shape[0] % shards and ways == 1):
        return x
    rows = P.UNCONSTRAINED if x.shape[0] % shards else BATCH[0]
    split = "tensor" if ways > 1 and x.shape[-1] % ways == 0 else None
    return jax.lax.with_sharding_constraint(x, P(rows, *[None] * (x.ndim - 2), split))


def split_parts(weights: Array, parts: int) -> Array:
    """The weights of a packed projection, [..., parts F] -> [..., parts, F], F over "tensor".

    Half of the packed axis would be q and half of k, not half of each, and every product of
    the attention would first have to gather it. Instead the kernel changes hands: from its stored
    rows (see `PACKED` in mesh.py) to a share of each part, which is whole heads.
    """
    whole = weights.reshape(*weights.shape[:-1], parts, -1)
    split = "tensor" if whole.shape[-1] % tensor_shards() == 0 else None
    if whole.ndim == 3:
        # In two moves: in one, XLA would gather the kernel over both axes.
        rows = "fsdp" if len(whole) % _shards("fsdp") == 0 else None
        whole = jax.lax.with_sharding_constraint(whole, P(rows, None, split))
    return jax.lax.with_sharding_constraint(whole, P(*[None] * (whole.ndim - 1), split))


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
