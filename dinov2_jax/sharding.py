"""Mesh, batch placement and the rules that say which parameter lives where.

Auto mesh axes ("data", "fsdp", "tensor"); a mesh of 1 x 1 x 1 is the single-device case.
Parameters, teacher and both moments follow the same path rules, so they are sharded alike.
"""

import math
import re
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "tensor")
BATCH = P(("data", "fsdp"))

# Tensor parallelism: the dimension (from the end) of a weight that is split over "tensor".
TENSOR_RULES = (
    (r"attn/qkv/(kernel|bias)$", -1),
    (r"attn/proj/kernel$", -2),
    (r"mlp/(fc1|w12)/(kernel|bias)$", -1),
    (r"mlp/(fc2|w3)/kernel$", -2),
)
# Weights smaller than this stay replicated under FSDP: gathering them costs more than they weigh.
MIN_SHARDED_ELEMENTS = 2**10


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh over the devices; `data` -1 takes what the other two leave.

    Raises:
      ValueError: when there are not enough devices.
    """
    count = jax.device_count()
    if data == -1:
        data = count // (fsdp * tensor)
    used = data * fsdp * tensor
    if not 1 <= used <= count:
        raise ValueError(
            f"config.mesh data={data} x fsdp={fsdp} x tensor={tensor} does not fit {count} "
            "devices; set data to -1 and the product of fsdp and tensor to a divisor of the count"
        )
    devices = jax.devices()[:used]
    axis_types = (AxisType.Auto,) * 3
    return jax.make_mesh((data, fsdp, tensor), AXES, axis_types=axis_types, devices=devices)


def constrain_batch(x: Array) -> Array:
    """Keeps the leading axis split over the devices; a no-op without a mesh or a fit.

    Without it XLA silently turns FSDP into tensor parallelism (activations gathered, not weights).
    """
    shape = jax.sharding.get_abstract_mesh().shape
    shards = shape.get("data", 1) * shape.get("fsdp", 1)
    if shards == 1 or x.shape[0] % shards:
        return x
    return jax.lax.with_sharding_constraint(x, BATCH)


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, Array]:
    """Host arrays to the devices: image axes (and group axes that divide) split, others copied."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]

    def put(x: np.ndarray) -> Array:
        spec = BATCH if x.ndim and x.shape[0] % shards == 0 else P()
        return jax.device_put(x, NamedSharding(mesh, spec))

    return {name: put(x) for name, x in batch.items()}


def path_name(path: tuple[Any, ...]) -> str:
    """A tree path as "student/backbone/norm/scale"."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def _rule(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """Tensor rules first, then FSDP on the largest free dimension that divides."""
    spec: list[str | None] = [None] * len(shape)
    for pattern, dim in TENSOR_RULES:
        if re.search(pattern, path) and shape[dim] % mesh.shape["tensor"] == 0:
            spec[dim] = "tensor" if mesh.shape["tensor"] > 1 else None
    # The depth axis of stacked blocks stays whole: the scan walks along it.
    first = 1 if "/blocks/" in path and len(shape) > 1 else 0
    free = [
        d
        for d in range(first, len(shape))
        if spec[d] is None and shape[d] % mesh.shape["fsdp"] == 0
    ]
    if mesh.shape["fsdp"] > 1 and free and math.prod(shape) >= MIN_SHARDED_ELEMENTS:
        spec[max(free, key=lambda d: shape[d])] = "fsdp"
    return P(*spec)


def state_shardings(state_shapes: Any, mesh: Mesh) -> Any:
    """Shardings for a whole train state, from its shapes (`jax.eval_shape`)."""

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return NamedSharding(mesh, P())
        return NamedSharding(mesh, _rule(path_name(path), leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(place, state_shapes)
