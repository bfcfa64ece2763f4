"""The mesh and the rules that place each parameter on it.

Auto mesh axes ("data", "fsdp", "tensor"); a mesh of 1 x 1 x 1 is the single-device case.
Student, teacher and both moments follow the same path rules, so they have the same shardings.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dinov2_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH = P(("data", "fsdp"))

# Tensor parallelism: the dimension (from the end) of a weight that is split over "tensor".
TENSOR_RULES = (
    (r"attn/qkv/kernel$", -2),
    (r"attn/proj/kernel$", -2),
    (r"mlp/fc1/(kernel|bias)$", -1),
    (r"mlp/w12/kernel$", -2),
    (r"mlp/(fc2|w3)/kernel$", -2),
    (r"last_layer/weight_v$", -2),  # prototypes, and with them logits, targets and centres
    (r"last_layer/weight_g$", -1),
)
# Several projections in one kernel, [q; k; v] or gate and value. A contiguous share of their
# columns is no share of each, so their rows are stored split over both axes, and a product takes
# the columns it needs (`constraints.split_parts`): an all-to-all of the kernel's share over
# "tensor", then FSDP's all-gather. In bf16, ViT-L's qkv with tensor=2 sends 1.5 MB a block and
# pass by the former, while an all-reduce of 8,000 tokens sends 16 MB.
PACKED = re.compile(r"(attn/qkv|mlp/w12)/kernel$")
# Smaller weights stay whole under FSDP. A gather of 1 MB is 2 us of wire on NVLink, several times
# less than it takes to start; and they are few: 61 KB of a block of ViT-L, whose matrices have at
# least 4 MB.
MIN_SHARD_BYTES = 2**20


class MeshError(UserError):
    """The devices or the batch do not fit the mesh; the message is one sentence."""


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh over the devices; `data` -1 uses all devices that the other two axes leave.

    Args:
      devices: by default all of this run; `plan` passes those of a described topology.

    Raises:
      MeshError: a process would have no device, or the torus of a TPU does not divide into these
        axes. The task's checks refuse axes that do not fit the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if data == -1:
        data = count // (fsdp * tensor)
    used = data * fsdp * tensor
    if used < count and jax.process_count() > 1:
        raise MeshError(
            f"config.mesh data={data} x fsdp={fsdp} x tensor={tensor} leaves out {count - used} of "
            f"{count} devices, which only one process alone can do; use --config.mesh.data=-1"
        )
    shape, axis_types = (data, fsdp, tensor), (AxisType.Auto,) * 3
    try:
        return jax.make_mesh(shape, AXES, axis_types=axis_types, devices=devices[:used])
    except NotImplementedError as error:
        raise MeshError(
            f"config.mesh data={data} x fsdp={fsdp} x tensor={tensor} is not made of whole axes of "
            "this TPU's torus; make each a product of some axes (of 4x4x8: 4, 8, 16, 32, 128)"
        ) from error


def own_mesh(mesh: Mesh) -> Mesh:
    """A mesh for work of this process alone: its first device, or `mesh` if it owns all of it."""
    if all(d.process_index == jax.process_index() for d in mesh.devices.flat):
        return mesh
    return make_mesh(devices=jax.local_devices()[:1])


def path_name(path: tuple[Any, ...]) -> str:
    """A tree path as "student/backbone/norm/scale"."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def _rule(path: str, shape: tuple[int, ...], mesh: Mesh, least: int) -> P:
    """Applies the tensor rules, then FSDP to the largest free dimension that divides.

    least: elements of a weight, of a single block, from which on FSDP splits it.
    """
    spec: list[str | tuple[str, ...] | None] = [None] * len(shape)
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    for pattern, dim in TENSOR_RULES:
        if tensor > 1 and re.search(pattern, path) and shape[dim] % tensor == 0:
            spec[dim] = "tensor"
    # The depth axis of stacked blocks stays whole, because the scan runs along it.
    first = 1 if re.search(r"/blocks/(?!\d)", path) and len(shape) > 1 else 0
    if tensor > 1 and PACKED.search(path) and shape[-2] % (fsdp * tensor) == 0:
        spec[-2] = "fsdp", "tensor"
        return P(*spec)
    if fsdp == 1 or math.prod(shape[first:]) < least:
        return P(*spec)
    free = [d for d in range(first, len(shape)) if spec[d] is None and shape[d] % fsdp == 0]
    if free:
        spec[max(free, key=lambda d: shape[d])] = "fsdp"
    return P(*spec)


def state_shardings(state_shapes: Any, mesh: Mesh, min_bytes: int = MIN_SHARD_BYTES) -> Any:
    """Shardings for a whole train state, from its shapes (`jax.eval_shape`).

    Args:
      min_bytes: the smallest weight of a block or head that FSDP splits.
    """

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return NamedSharding(mesh, P())
        least = -(-min_bytes // jax.numpy.dtype(leaf.dtype).itemsize)
        return NamedSharding(mesh, _rule(path_name(path), leaf.shape, mesh, least))

    return jax.tree_util.tree_map_with_path(place, state_shapes)
