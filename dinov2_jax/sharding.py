"""Mesh, batch placement and the rules that say which parameter lives where.

Auto mesh axes ("data", "fsdp", "tensor"); a mesh of 1 x 1 x 1 is the single-device case.
Parameters, teacher and both moments follow the same path rules, so they are sharded alike.
"""

import functools
import math
import re
from collections.abc import Callable, Sequence
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
    (r"last_layer/weight_v$", -2),  # prototypes, and with them logits, targets and centres
    (r"last_layer/weight_g$", -1),
)
# Weights smaller than this stay replicated under FSDP: gathering them costs more than they weigh.
MIN_SHARDED_ELEMENTS = 2**10


class MeshError(ValueError):
    """A mesh that the devices or the batch do not fit; the message is one sentence."""


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh over the devices; `data` -1 takes what the other two leave.

    Args:
      devices: all of this run by default; or those of a topology that is only compiled for.

    Raises:
      MeshError: when there are not enough devices, some process would have none of them, or a TPU's
        torus does not divide so.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if data == -1:
        data = count // (fsdp * tensor)
    used = data * fsdp * tensor
    if not 1 <= used <= count:
        raise MeshError(
            f"config.mesh data={data} x fsdp={fsdp} x tensor={tensor} does not fit {count} "
            "devices; set data to -1 and the product of fsdp and tensor to a divisor of the count"
        )
    if used < count and jax.process_count() > 1:
        raise MeshError(
            f"config.mesh data={data} x fsdp={fsdp} x tensor={tensor} leaves out {count - used} of "
            f"{count} devices, which only one process alone can do; use --config.mesh.data=-1"
        )
    axis_types = (AxisType.Auto,) * 3
    shape = data, fsdp, tensor
    try:
        return jax.make_mesh(shape, AXES, axis_types=axis_types, devices=devices[:used])
    except NotImplementedError as error:
        raise MeshError(
            f"config.mesh data={data} x fsdp={fsdp} x tensor={tensor} is not made of whole axes of "
            f"this TPU's torus; give each a product of some of its axes (of 4x4x8: 4, 8, 16, 32, "
            "128)"
        ) from error


def constrain_batch(x: Array) -> Array:
    """Keeps the leading axis split over the devices; a no-op without a mesh or a fit.

    Without it XLA silently turns FSDP into tensor parallelism (activations gathered, not weights).
    """
    shape = jax.sharding.get_abstract_mesh().shape
    shards = shape.get("data", 1) * shape.get("fsdp", 1)
    if shards == 1 or x.shape[0] % shards:
        return x
    return jax.lax.with_sharding_constraint(x, BATCH)


def batch_sharding(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Image axes (and group axes that divide) are split, other arrays are copied."""
    return NamedSharding(mesh, BATCH if shape and shape[0] % _shards(mesh) == 0 else P())


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, Array]:
    """Host arrays to the devices: image axes (and group axes that divide) split, others copied.

    Of several processes, each gives the images of its own groups (`local_groups`), in their order.
    """
    shards, here = _shards(mesh), len(_shards_of(mesh, jax.process_index()))

    def put(x: np.ndarray) -> Array:
        rows = x.shape[0] * shards // here
        if rows % shards == 0:
            shape = rows, *x.shape[1:]
            return jax.make_array_from_process_local_data(batch_sharding(shape, mesh), x, shape)
        if here < shards:
            return _join_groups(mesh, rows)(gather(x, mesh))
        return jax.device_put(x, NamedSharding(mesh, P()))

    return {name: put(x) for name, x in batch.items()}


def local_groups(mesh: Mesh, groups: int) -> list[int]:
    """Which of a batch's statistical groups this process has to load: those on its devices.

    Raises:
      MeshError: when a group would be split between processes.
    """
    return _groups_of(mesh, groups, jax.process_index())


def _groups_of(mesh: Mesh, groups: int, process: int) -> list[int]:
    # The batch in cells so small that shards and groups both are whole numbers of them.
    shards = _shards(mesh)
    cells = math.lcm(shards, groups)
    of_shard, of_group = cells // shards, cells // groups
    held = [s * of_shard + i for s in _shards_of(mesh, process) for i in range(of_shard)]
    found = sorted({cell // of_group for cell in held})
    if len(found) * of_group != len(held):
        raise MeshError(
            f"{groups} statistical groups do not divide over the {jax.process_count()} processes: "
            f"process {process} would load a part of one; change config.batch_size or "
            "config.group_size so that their quotient is a multiple of the number of processes"
        )
    return found


def _shards(mesh: Mesh) -> int:
    return mesh.shape["data"] * mesh.shape["fsdp"]


@functools.cache
def _shards_of(mesh: Mesh, process: int) -> list[int]:
    """Which shards of a batch the devices of one process hold."""
    rows = mesh.devices.reshape(_shards(mesh), -1)
    return [s for s, row in enumerate(rows) if any(d.process_index == process for d in row)]


def gather(x: np.ndarray, mesh: Mesh) -> Array:
    """One array of every process to all: [n] on each -> [devices, n], its owner's on each device.

    It is dispatched, not waited for. Every process must call it, with the same shape.
    """
    flat = Mesh(mesh.devices.reshape(-1), ("device",))
    here = sum(d.process_index == jax.process_index() for d in mesh.devices.flat)
    copies = np.broadcast_to(x, (here, *x.shape))
    stacked = jax.make_array_from_process_local_data(NamedSharding(flat, P("device")), copies)
    return _copy_to_all(mesh)(stacked)


@functools.cache
def _copy_to_all(mesh: Mesh) -> Callable[[Array], Array]:
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))


@functools.cache
def _join_groups(mesh: Mesh, groups: int) -> Callable[[Array], Array]:
    """What `gather` brought, [devices, groups of a process, ...] -> [groups, ...]."""
    owners = [device.process_index for device in mesh.devices.flat]
    device, place = np.zeros(groups, int), np.zeros(groups, int)
    for process in set(owners):
        mine = _groups_of(mesh, groups, process)
        device[mine], place[mine] = owners.index(process), range(len(mine))
    return jax.jit(lambda x: x[device, place], out_shardings=NamedSharding(mesh, P()))


def constrain_prototypes(x: Array, axis: int = 0) -> Array:
    """Prototypes whole on every device, or split over "tensor" along `axis` if that divides.

    Said once, in the compute dtype: otherwise each walk over their blocks gathers them anew.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1:
        return x
    spec: list[str | None] = [None] * x.ndim
    spec[axis] = "tensor" if x.shape[axis] % tensor_shards() == 0 else None
    return jax.lax.with_sharding_constraint(x, P(*spec))


def constrain_scores(x: Array) -> Array:
    """Scores [G, ..., K]: each device has its own rows, and with a tensor axis its own prototypes.

    Left alone, XLA splits some of them by prototypes or features under FSDP and sends rows around.
    """
    shape = jax.sharding.get_abstract_mesh().shape
    shards = shape.get("data", 1) * shape.get("fsdp", 1)
    if shards * tensor_shards() == 1 or x.shape[0] % shards:
        return x
    split = "tensor" if x.shape[-1] % tensor_shards() == 0 else None
    middle = (None,) * (x.ndim - 2)
    return jax.lax.with_sharding_constraint(x, P(("data", "fsdp"), *middle, split))


def tensor_shards() -> int:
    """Over how many devices weights are split by `TENSOR_RULES`; 1 without a mesh."""
    return jax.sharding.get_abstract_mesh().shape.get("tensor", 1)


def replicate(x: Array) -> Array:
    """Copies `x` to every device, so that every process can read it; a no-op without a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, P())


def own_mesh(mesh: Mesh) -> Mesh:
    """For work that this process does alone: its first device, or `mesh` if all are its own."""
    if all(d.process_index == jax.process_index() for d in mesh.devices.flat):
        return mesh
    axis_types = (AxisType.Auto,) * 3
    return jax.make_mesh((1, 1, 1), AXES, axis_types=axis_types, devices=jax.local_devices()[:1])


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
