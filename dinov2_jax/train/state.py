"""The train state: everything a checkpoint must hold."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from dinov2_jax.ssl.feature_matching import FeatureNetworks, FeatureObjective
from dinov2_jax.ssl.objective import Networks, Objective
from dinov2_jax.train.optimizer import AdamW

# By `config.distill.kind`: prototypes, as in pretraining, or features.
AnyObjective = Objective | FeatureObjective
AnyNetworks = Networks | FeatureNetworks


@struct.dataclass
class TrainState:
    """Student, teacher, optimizer and counters; all leaves are arrays.

    Attributes:
      step: int32, number of updates attempted.
      student, teacher: {"backbone", "dino_head"[, "ibot_head"]}, or with features
        {"backbone", "cls_projection", "patch_projection"}.
      opt_state: AdamW's moments, see train/optimizer.py.
      centers: loss centres {"dino" [K], "ibot" [K]}; {} with features.
      rng: typed key of the run; every step folds its number in.
      nonfinite_steps: int32, number of updates skipped.
      nonfinite_streak: int32, number of updates skipped in a row up to now.
    """

    step: Array
    student: Any
    teacher: Any
    opt_state: Any
    centers: dict[str, Array]
    rng: Array
    nonfinite_steps: Array
    nonfinite_streak: Array


def init_state(
    key: Array,
    objective: AnyObjective,
    optimizer: AdamW,
    image_size: int,
    given: Mapping[str, Any] | None = None,
    parts: Mapping[str, Any] | None = None,
) -> TrainState:
    """A fresh state; the teacher starts as an exact copy of the student.

    Args:
      given: modules of the student to use instead of random ones, such as {"backbone": ...}.
      parts: further fields of the state to use instead of fresh ones, such as {"teacher": ...}.
    """
    init_key, run_key = jax.random.split(key)
    student = objective.student.init(init_key, image_size) | jax.tree.map(jnp.copy, given or {})
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        student=student,
        teacher=jax.tree.map(jnp.copy, student),
        opt_state=optimizer.init(student),
        centers=objective.init_centers(),
        rng=run_key,
        nonfinite_steps=jnp.zeros((), jnp.int32),
        nonfinite_streak=jnp.zeros((), jnp.int32),
    )
    return state.replace(**jax.tree.map(jnp.copy, dict(parts or {})))
