"""One setting compiled for one topology, and the search for a setting that fits."""

import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dinov2_jax.plan.collectives import Collective, read_collectives, squeeze
from dinov2_jax.plan.memory import Memory, argument_memory, compiled_memory, missing_memory
from dinov2_jax.plan.topology import Target
from dinov2_jax.sharding import make_mesh
from dinov2_jax.train.setup import Run, abstract_batch, make_run

Changes = dict[str, Any]

# Triton's tiles are found by trying them on the GPU, which is not there; cuBLAS needs no trial.
_OPTIONS: dict[str, dict[str, Any]] = {"gpu": {"xla_gpu_enable_triton_gemm": False}}


@dataclasses.dataclass(frozen=True)
class Trial:
    """What came of compiling one setting.

    Attributes:
      changes: dotted field -> value, against the configured setting.
      mesh: (data, fsdp, tensor).
      memory: None when the compiler ran out of memory without saying what it needs.
      collectives: None when the program did not compile, for want of memory.
      weights: `squeeze`d shapes of the weights, whole and in shares.
      fits: None where the chip's memory is not known.
      compile_s: seconds.
    """

    changes: Changes
    batch_size: int
    mesh: tuple[int, int, int]
    memory: Memory | None
    collectives: list[Collective] | None
    weights: frozenset[tuple[int, ...]]
    fits: bool | None
    compile_s: float

    @property
    def devices(self) -> int:
        return math.prod(self.mesh)


def try_setting(config: ConfigDict, target: Target, changes: Changes | None = None) -> Trial:
    """Compiles the step of `config` with `changes` for `target`; nothing is allocated or run."""
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(changes or {})
    mesh = make_mesh(**config.mesh, devices=target.devices)
    run, batch = make_run(config, mesh), abstract_batch(config, mesh)
    arguments = argument_memory(run.abstract_state, batch)
    began = time.monotonic()
    memory, collectives = _compile(run, batch, mesh, arguments)
    fits = None
    if target.chip is not None:
        total = math.inf if memory is None else memory.total
        fits = collectives is not None and total <= target.chip.usable_bytes
    return Trial(
        changes=changes or {},
        batch_size=config.batch_size,
        mesh=(mesh.shape["data"], mesh.shape["fsdp"], mesh.shape["tensor"]),
        memory=memory,
        collectives=collectives,
        weights=weight_shapes(run, config),
        fits=fits,
        compile_s=time.monotonic() - began,
    )


def _compile(
    run: Run, batch: Any, mesh: Mesh, arguments: Memory
) -> tuple[Memory | None, list[Collective] | None]:
    hyper = dict.fromkeys(run.schedules.at(0), jax.ShapeDtypeStruct((), jnp.float32))
    platform = mesh.devices.flat[0].platform
    with jax.set_mesh(mesh):
        lowered = run.step.lower(run.abstract_state, batch, hyper)
        try:
            compiled = lowered.compile(compiler_options=_OPTIONS.get(platform))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return missing_memory(arguments, error), None
    return compiled_memory(arguments, compiled), read_collectives(compiled.as_text())


def weight_shapes(run: Run, config: ConfigDict) -> frozenset[tuple[int, ...]]:
    """The shapes in which weights and their gradients travel, `squeeze`d.

    Whole, one block of a stack, and a device's share of either; and the position table without
    cls, on both crops' grids, whose gradient is summed before it is resampled back.
    """
    dim, patch, crops = run.objective.student.backbone.dim, config.model.patch_size, config.crops
    shapes = {(dim, (side // patch) ** 2) for side in (crops.global_size, crops.local_size)}
    for leaf in jax.tree.leaves(run.abstract_state.student):
        for shape in (leaf.shape, leaf.sharding.shard_shape(leaf.shape)):
            shapes |= {shape, shape[1:]}
    return frozenset(squeeze(shape) for shape in shapes)


# -------------------------------------------------------------------------------- search
def search(config: ConfigDict, target: Target, first: Trial, most: int) -> Iterator[Trial]:
    """Compiles other settings until one fits, those that cost least first; at most `most`.

    Full sharding where the arithmetic says that it can be enough, then recomputation, then both,
    then smaller batches: of each, as many images as the last trial's bytes an image let expect.
    """
    assert target.chip is not None
    limit, last = target.chip.usable_bytes, first
    for _ in range(most):
        changes = next_changes(config, last, limit, len(target.devices))
        if changes is None:
            return
        last = try_setting(config, target, changes)
        yield last
        if last.fits:
            return


def next_changes(config: ConfigDict, last: Trial, limit: float, devices: int) -> Changes | None:
    """The setting to try after `last` did not fit in `limit` bytes; None if none is left."""
    tensor, fsdp = last.mesh[2], last.mesh[1]
    sharded = {"mesh.data": 1, "mesh.fsdp": devices // tensor}
    remat = last.changes.get("model.remat", config.model.remat)
    can_shard = fsdp < devices // tensor
    if remat != "blocks":
        enough = can_shard and _sharded_total(last, devices // tensor) <= limit
        return last.changes | (sharded if enough else {"model.remat": "blocks"})
    if can_shard and last.memory is not None:
        return last.changes | sharded
    batch = smaller_batch(config, last, limit)
    return None if batch is None else last.changes | {"batch_size": batch}


def _sharded_total(last: Trial, ways: int) -> float:
    """Bytes a device if the state were split `ways` ways and nothing else changed."""
    if last.memory is None:
        return math.inf
    return last.memory.total - last.memory.state * (1 - last.mesh[1] / ways)


def images_that_fit(last: Trial, limit: float) -> float:
    """Images a device by the last trial's bytes an image, the state being what it is."""
    memory, images = last.memory, last.batch_size / (last.mesh[0] * last.mesh[1])
    if memory is None:
        return images / 2
    return images * max(limit - memory.state, 0) / (memory.total - memory.state)


def smaller_batch(config: ConfigDict, last: Trial, limit: float) -> int | None:
    """The largest smaller batch, of whole groups on every device, that is expected to fit.

    One group a device and micro-batch is tried even if it is not expected to fit; below that there
    is none.
    """
    unit = config.group_size * config.micro_batches * last.mesh[0] * last.mesh[1]
    expected = images_that_fit(last, limit) * last.mesh[0] * last.mesh[1]
    steps = max(min(int(expected // unit), last.batch_size // unit - 1), 1)
    return steps * unit if steps * unit < last.batch_size else None
