"""Batches and statistical groups on the mesh: which process loads which, and on which devices."""

import functools
import math
from collections.abc import Callable

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dinov2_jax.parallel.mesh import BATCH, MeshError


def batch_sharding(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Splits the first axis over the devices where it divides; copies other arrays."""
    return NamedSharding(mesh, BATCH if shape and shape[0] % _shards(mesh) == 0 else P())


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, Array]:
    """Host arrays to the devices: the first axis is split where it divides, else copied.

    With several processes, each passes only the images of its own groups (`local_groups`), in their
    order.
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


def place(x: np.ndarray, like: jax.ShapeDtypeStruct) -> Array:
    """Puts the shards of a whole host array on the devices of this process."""
    x = np.asarray(x, like.dtype)
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: x[index])


def local_groups(mesh: Mesh, groups: int) -> list[int]:
    """The statistical groups of a batch that this process loads: those on its devices.

    Raises:
      MeshError: a group would be split between processes.
    """
    return _groups_of(mesh, groups, jax.process_index())


def _groups_of(mesh: Mesh, groups: int, process: int) -> list[int]:
    shards = _shards(mesh)
    # Cells so small that both a shard and a group are a whole number of them.
    cells = math.lcm(shards, groups)
    held = np.repeat(np.isin(range(shards), _shards_of(mesh, process)), cells // shards)
    held = held.reshape(groups, -1)
    if (held.any(axis=1) & ~held.all(axis=1)).any():
        raise MeshError(
            f"{groups} statistical groups do not divide over the {jax.process_count()} processes: "
            f"process {process} would load a part of one; change config.batch_size or "
            "config.group_size so that their quotient is a multiple of the number of processes"
        )
    return np.flatnonzero(held.all(axis=1)).tolist()


def _shards(mesh: Mesh) -> int:
    return mesh.shape["data"] * mesh.shape["fsdp"]


@functools.cache
def _shards_of(mesh: Mesh, process: int) -> list[int]:
    """The shards of a batch that the devices of one process hold."""
    rows = mesh.devices.reshape(_shards(mesh), -1)
    return [s for s, row in enumerate(rows) if any(d.process_index == process for d in row)]


def gather(x: np.ndarray, mesh: Mesh) -> Array:
    """Gathers one array of every process: [n] on each -> [devices, n] on every device.

    Row d is the array of the process that owns device d. Asynchronous. Every process must call it,
    with the same shape.
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
    """Reorders the result of `gather`: [devices, groups of a process, ...] -> [groups, ...]."""
    owners = [device.process_index for device in mesh.devices.flat]
    device, place = np.zeros(groups, int), np.zeros(groups, int)
    for process in set(owners):
        mine = _groups_of(mesh, groups, process)
        device[mine], place[mine] = owners.index(process), range(len(mine))
    return jax.jit(lambda x: x[device, place], out_shardings=NamedSharding(mesh, P()))
