"""One setting compiled for one topology."""

import dataclasses
import math
import time
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dinov2_jax.parallel.mesh import make_mesh
from dinov2_jax.plan.estimate import Traffic, read_traffic
from dinov2_jax.plan.memory import Memory, argument_memory, compiled_memory, missing_memory
from dinov2_jax.plan.topology import Target, for_described
from dinov2_jax.train.setup import Family, Run, abstract_batch, compiled_step, make_family
from dinov2_jax.train.student_configs import student_configs
from dinov2_jax.train.teacher import planned_teacher

Changes = dict[str, Any]


class ScoreBytes(NamedTuple):
    """Bytes on each device of scores over all prototypes; 0 where they are computed in blocks."""

    targets: int  # the teacher's scores of the whole batch
    logits: int  # the student's scores of a micro-batch, and their gradients


@dataclasses.dataclass(frozen=True)
class Trial:
    """The result of compiling one setting."""

    changes: Changes  # dotted field -> value, against the configured setting
    batch_size: int
    micro_batches: int
    prototype_block: int
    mesh: tuple[int, int, int]  # (data, fsdp, tensor)
    memory: Memory | None  # None: the compiler ran out of memory without saying what it needs
    scores: ScoreBytes  # what `prototype_block` would save
    fits: bool | None  # None where the chip's memory is not known
    compile_s: float  # seconds
    traffic: Traffic | None = None  # None where it does not compile or the chip is not known

    @property
    def devices(self) -> int:
        return math.prod(self.mesh)

    @property
    def shards(self) -> int:
        """Ways in which the batch is split."""
        return self.mesh[0] * self.mesh[1]


def try_setting(config: ConfigDict, target: Target, changes: Changes | None = None) -> Trial:
    """Compiles the step of `config` with `changes` for `target`; nothing is allocated or run."""
    config = changed(config, changes or {})
    mesh = make_mesh(**config.mesh, devices=target.devices)
    run, batch = planned_run(config, mesh), abstract_batch(config, mesh)
    arguments = argument_memory(run, batch)
    chip, began, traffic = target.chip, time.monotonic(), None
    try:
        compiled = compile_step(run, batch, mesh)
        memory = compiled_memory(arguments, compiled)
        traffic = None if chip is None else read_traffic(compiled.as_text())
        fits = None if chip is None else memory.total <= chip.usable_bytes
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        memory = missing_memory(arguments, error)
        fits = None if chip is None else False
    return Trial(
        changes=changes or {},
        batch_size=config.batch_size,
        micro_batches=config.micro_batches,
        prototype_block=config.prototype_block,
        mesh=(mesh.shape["data"], mesh.shape["fsdp"], mesh.shape["tensor"]),
        memory=memory,
        scores=score_bytes(config, batch, mesh),
        fits=fits,
        compile_s=time.monotonic() - began,
        traffic=traffic,
    )


def planned_run(config: ConfigDict, mesh: Mesh) -> Family:
    """What `config` trains: one network, or the students of a frozen teacher."""
    configs = student_configs(config)
    return make_family(configs, mesh, planned_teacher(config, configs))


def changed(config: ConfigDict, changes: Changes) -> ConfigDict:
    """A copy with `changes`."""
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    return config


def compile_step(run: Run | Family, batch: Any, mesh: Mesh) -> jax.stages.Compiled:
    """The training step of `run`, compiled for the devices of `mesh` and an abstract batch.

    Raises:
      JaxRuntimeError: RESOURCE_EXHAUSTED when the compiler finds too little memory.
    """
    # Triton finds its tiles by trying them on the GPU, which is not there; cuBLAS needs no trial.
    platform = mesh.devices.flat[0].platform
    options: dict[str, Any] | None = (
        {"xla_gpu_enable_triton_gemm": False} if platform == "gpu" else None
    )
    with for_described(platform):
        return compiled_step(run, batch, mesh, options)


def uses_prototypes(config: ConfigDict) -> bool:
    """Whether the losses need scores, which `prototype_block` can split."""
    return config.distill.kind == "prototypes"


def prototypes(config: ConfigDict) -> tuple[int, int]:
    """Numbers of prototypes of the DINO head and of the head for the patches."""
    patch_head = config.ibot if config.ibot.separate_head else config.dino
    return config.dino.head_prototypes, patch_head.head_prototypes


def score_bytes(config: ConfigDict, batch: Any, mesh: Mesh) -> ScoreBytes:
    """fp32 scores of cls tokens (two crops and all views) and of masked patches."""
    if config.prototype_block or not uses_prototypes(config):
        return ScoreBytes(0, 0)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    images, slots = config.batch_size // shards, batch["mask_indices"].size // shards
    if config.distill.teacher and config.distill.patches == "all":
        slots = batch["masks"].size // shards
    cls, patch = prototypes(config)
    views = 2 + config.crops.local_number
    targets = 4 * (2 * images * cls + slots * patch)
    logits = 4 * (views * images * cls + slots * patch)
    return ScoreBytes(targets, 2 * logits // config.micro_batches)
