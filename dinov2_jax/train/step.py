"""One training step, pure: (state, batch, hyper) -> (state, metrics)."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from dinov2_jax.ssl.diagnostics import representation_health
from dinov2_jax.ssl.dino import dino_terms
from dinov2_jax.ssl.objective import (
    Batch,
    Objective,
    TeacherOutput,
    part_of_batch,
    student_loss,
    teacher_targets,
)
from dinov2_jax.train.optimizer import AdamW, ema, module_norms
from dinov2_jax.train.state import TrainState

# (key, batch with uint8 crops) -> batch with normalised float crops.
Photometric = Callable[[Array, Batch], Batch]


def train_step(
    state: TrainState,
    batch: Batch,
    hyper: Mapping[str, Array],
    *,
    objective: Objective,
    optimizer: AdamW,
    photometric: Photometric | None = None,
    shardings: Any = None,
) -> tuple[TrainState, dict[str, Array]]:
    """Targets, student gradient, AdamW, EMA.

    Args:
      batch: see ssl/objective.py; crops are uint8 when `photometric` is given, else normalised.
      hyper: fp32 scalars of train/schedules.py `Schedules.at(step)`.
      shardings: of the student's weights, for its gradients too. XLA may place a gradient
        otherwise, update weights, moments and teacher there, and gather all four.

    Returns:
      The next state and scalar metrics. A non-finite loss or gradient leaves weights, moments,
      centres and teacher unchanged, and the state counts the step.
    """
    color_key, drop_key = jax.random.split(jax.random.fold_in(state.rng, state.step))
    if photometric is not None:
        # Without the barrier XLA may compute the augmentation three times: for the teacher, the
        # student and the student's backward pass. On a GPU the patches are what it stores.
        batch = jax.lax.platform_dependent(
            photometric(color_key, batch), cuda=lambda x: x, default=jax.lax.optimization_barrier
        )
    targets, centers = teacher_targets(
        objective, state.teacher, state.centers, batch, hyper["teacher_temp"]
    )
    drop_keys = jax.random.split(drop_key, batch["mask_indices"].shape[0])
    (loss, parts), grads = _student_gradients(objective, state.student, targets, batch, drop_keys)
    if shardings is not None:
        grads = jax.lax.with_sharding_constraint(grads, shardings)
    norms = module_norms(grads)
    finite = jnp.isfinite(loss + sum(norms.values()))
    # DINOv2: a skipped step changes nothing here; the reference still runs the EMA and updates the
    # centres with the bad batch.
    student, opt_state = optimizer.update(
        grads, norms, state.opt_state, state.student, hyper, finite
    )
    teacher = ema(state.teacher, student, jnp.where(finite, hyper["momentum"], 1.0))
    centers = {name: jnp.where(finite, new, state.centers[name]) for name, new in centers.items()}
    state = state.replace(
        step=state.step + 1,
        student=student,
        teacher=teacher,
        opt_state=opt_state,
        centers=centers,
        nonfinite_steps=state.nonfinite_steps + ~finite,
        nonfinite_streak=jnp.where(finite, 0, state.nonfinite_streak + 1),
    )
    counters = {name: getattr(state, name) for name in ("nonfinite_steps", "nonfinite_streak")}
    crossed = parts["loss/dino_global"] * dino_terms(batch["local_crops"].shape[1]) / 2
    health = representation_health(
        targets.dino, targets.cls, crossed, objective.student.dino_head.prototypes
    )
    norms = {f"grad_norm/{name}": norm for name, norm in norms.items()}
    return state, {"loss": loss} | parts | health | norms | dict(hyper) | counters


def _student_gradients(
    objective: Objective, student: Any, targets: TeacherOutput, batch: Batch, keys: Array
) -> tuple[tuple[Array, dict[str, Array]], Any]:
    """((loss, its parts), gradients), averaged over micro-batches."""
    gradients = jax.value_and_grad(student_loss, has_aux=True)
    if objective.micro_batches == 1:
        return gradients(student, objective, targets, batch, keys)

    def one(index: Array) -> Any:
        return gradients(student, objective, *part_of_batch(objective, targets, batch, keys, index))

    def add(total: Any, index: Array) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, one(index)), None

    shapes = jax.eval_shape(one, 0)
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(add, start, jnp.arange(objective.micro_batches))
    return jax.tree.map(lambda x: x / objective.micro_batches, total)
