"""One training step, pure: (state, batch, hyper) -> (state, metrics).

`train_step` is that of pretraining, and of one student of a frozen teacher; `family_step` is that
of several students, who share the crops and the teacher's pass.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from dinov2_jax.ssl.forward import Batch
from dinov2_jax.train.optimizer import AdamW, ema, module_norms
from dinov2_jax.train.state import AnyObjective, TrainState

# (key, batch with uint8 crops) -> batch with normalised float crops.
Photometric = Callable[[Array, Batch], Batch]
Metrics = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Update:
    """How one student learns.

    Attributes:
      shardings: of the student's weights, for its gradients too. XLA may place a gradient
        otherwise, update weights, moments and teacher there, and gather all four.
    """

    objective: AnyObjective
    optimizer: AdamW
    shardings: Any = None


def train_step(
    state: TrainState,
    batch: Batch,
    hyper: Mapping[str, Array],
    frozen: Any = None,
    *,
    objective: AnyObjective,
    optimizer: AdamW,
    photometric: Photometric | None = None,
    shardings: Any = None,
) -> tuple[TrainState, Metrics]:
    """Targets, student gradient, AdamW, EMA.

    Args:
      batch: see ssl/objective.py; crops are uint8 when `photometric` is given, else normalised.
      hyper: fp32 scalars of train/schedules.py `Schedules.at(step)`.
      frozen: parameters of the teacher of a distillation. None: the EMA is the teacher.
      objective, optimizer, shardings: see `Update`.

    Returns:
      The next state and scalar metrics. A non-finite loss or gradient leaves weights, moments,
      centres and teacher unchanged, and the state counts the step.
    """
    update = Update(objective, optimizer, shardings)
    one = {"": state}, batch, {"": hyper}, frozen
    states, metrics = family_step(*one, updates={"": update}, photometric=photometric)
    return states[""], metrics[""]


def family_step(
    states: Mapping[str, TrainState],
    batch: Batch,
    hypers: Mapping[str, Mapping[str, Array]],
    frozen: Any = None,
    *,
    updates: Mapping[str, Update],
    photometric: Photometric | None = None,
) -> tuple[dict[str, TrainState], dict[str, Metrics]]:
    """As `train_step`, for one network or for several students of one frozen teacher, by name.

    Each student takes the step that it would take alone. The crops and the teacher's targets are
    computed once, with the key, the temperature and the patches of the first student, which all
    share (train/students.py).
    """
    first = next(iter(states))
    own: list[Any] = [update.objective for update in updates.values()]  # all of one kind
    objective = own[0].serving(own)
    batch = _prepared(states[first], batch, objective, photometric)
    teacher = states[first].teacher if frozen is None else frozen
    targets, centers = objective.targets(
        teacher, states[first].centers, batch, hypers[first]["teacher_temp"]
    )
    taken = {
        name: _updated(state, batch, hypers[name], targets, centers, updates[name])
        for name, state in states.items()
    }
    return {name: x[0] for name, x in taken.items()}, {name: x[1] for name, x in taken.items()}


def _step_keys(state: TrainState) -> tuple[Array, Array]:
    """Keys of the colours and of stochastic depth."""
    color_key, drop_key = jax.random.split(jax.random.fold_in(state.rng, state.step))
    return color_key, drop_key


def _prepared(
    state: TrainState, batch: Batch, objective: AnyObjective, photometric: Photometric | None
) -> Batch:
    """The batch with normalised crops, and with the patches that the objective learns."""
    if photometric is not None:
        # Without the barrier XLA may compute the augmentation three times: for the teacher, the
        # student and the student's backward pass. On a GPU the patches are what it stores.
        batch = jax.lax.platform_dependent(
            photometric(_step_keys(state)[0], batch),
            cuda=lambda x: x,
            default=jax.lax.optimization_barrier,
        )
    return objective.prepared(batch)


def _updated(
    state: TrainState,
    batch: Batch,
    hyper: Mapping[str, Array],
    targets: Any,
    centers: Mapping[str, Array],
    update: Update,
) -> tuple[TrainState, Metrics]:
    """The student's part of a step."""
    objective = update.objective
    drop_keys = jax.random.split(_step_keys(state)[1], batch["mask_indices"].shape[0])
    (loss, parts), grads = _student_gradients(objective, state.student, targets, batch, drop_keys)
    if update.shardings is not None:
        grads = jax.lax.with_sharding_constraint(grads, update.shardings)
    norms = module_norms(grads)
    finite = jnp.isfinite(loss + sum(norms.values()))
    # DINOv2: a skipped step changes nothing here; the reference still runs the EMA and updates the
    # centres with the bad batch.
    student, opt_state = update.optimizer.update(
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
    health = objective.health(targets, parts, batch)
    norms = {f"grad_norm/{name}": norm for name, norm in norms.items()}
    return state, {"loss": loss} | parts | health | norms | dict(hyper) | counters


def _student_gradients(
    objective: AnyObjective, student: Any, targets: Any, batch: Batch, keys: Array
) -> tuple[tuple[Array, dict[str, Array]], Any]:
    """((loss, its parts), gradients), averaged over micro-batches."""
    gradients = jax.value_and_grad(objective.loss, has_aux=True)
    if objective.micro_batches == 1:
        return gradients(student, targets, batch, keys)

    def one(index: Array) -> Any:
        return gradients(student, *objective.part(targets, batch, keys, index))

    def add(total: Any, index: Array) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, one(index)), None

    shapes = jax.eval_shape(one, 0)
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(add, start, jnp.arange(objective.micro_batches))
    return jax.tree.map(lambda x: x / objective.micro_batches, total)
