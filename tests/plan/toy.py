"""A configuration to plan, a chip of 1,000 bytes, and trials that nobody compiled."""

from typing import Any

from ml_collections import ConfigDict

from dinov2_jax.plan.memory import Memory
from dinov2_jax.plan.topology import Chip
from dinov2_jax.plan.trial import ScoreBytes, Trial
from tests.train.tiny import tiny_config

CHIP = Chip("toy", "toy", 1000.0, 1e12, 1e9)


def plan_config(**changes) -> ConfigDict:
    """40 images in 8 groups, FSDP over 8 devices."""
    changes = {"task": "plan", "batch_size": 40, "group_size": 5, "model.remat": "none"} | changes
    return tiny_config(**{"mesh.data": 1, "mesh.fsdp": 8} | changes)


def toy_trial(
    total: float | None,
    *,
    state: int = 200,
    batch: int = 64,
    mesh: tuple[int, int, int] = (8, 1, 1),
    scores: tuple[int, int] = (0, 0),
    fits: bool = False,
    **changes: Any,
) -> Trial:
    """`total` bytes a device of which the student takes `state`; None: not known."""
    memory = None if total is None else Memory(student=state, temporaries=int(total) - state)
    return Trial(
        changes=changes,
        batch_size=batch,
        micro_batches=changes.get("micro_batches", 1),
        prototype_block=changes.get("prototype_block", 0),
        mesh=mesh,
        memory=memory,
        scores=ScoreBytes(*scores),
        fits=fits,
        compile_s=1.0,
    )
