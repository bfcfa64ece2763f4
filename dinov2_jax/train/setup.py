"""Builds the parts of a run from its configuration: networks, objective, optimizer, schedules."""

import contextlib
import ctypes
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from dinov2_jax.data.masking import slots_of, upperbound
from dinov2_jax.data.photometric import ColourSpec, augment_batch
from dinov2_jax.models.head import DINOHead
from dinov2_jax.models.layers import compute_dtype
from dinov2_jax.models.vit import VisionTransformer, from_config
from dinov2_jax.ops.seeds import seed_key
from dinov2_jax.parallel import runtime
from dinov2_jax.parallel.mesh import state_shardings
from dinov2_jax.parallel.placement import batch_sharding
from dinov2_jax.ssl.feature_matching import FeatureNetworks, FeatureObjective
from dinov2_jax.ssl.forward import Batch
from dinov2_jax.ssl.objective import Networks, Objective
from dinov2_jax.train.optimizer import AdamW, parameter_multipliers
from dinov2_jax.train.schedules import Schedules
from dinov2_jax.train.state import AnyNetworks, AnyObjective, init_state
from dinov2_jax.train.step import Update, family_step, train_step


class Run(NamedTuple):
    """The parts of the training of one network.

    Attributes:
      model: of the average of the student's weights (the teacher's place in a state), which is
        evaluated.
      abstract_state: TrainState of ShapeDtypeStruct with shardings.
      init: (modules of the student, other parts of the state; both on the mesh, to start with
        instead of fresh ones) -> TrainState.
      step: (state, batch, hyper) -> (state, metrics), jitted, state donated; with a frozen teacher
        its parameters follow.
      frozen: these parameters as ShapeDtypeStruct with shardings; () in pretraining, else (tree,).
    """

    objective: AnyObjective
    model: VisionTransformer
    schedules: Schedules
    abstract_state: Any
    init: Callable[..., Any]
    step: Callable[..., Any]
    update: Update
    frozen: tuple[Any, ...] = ()


def make_networks(config: ConfigDict, *, drop_path: bool) -> Networks:
    """Backbone and heads: of the student with `drop_path`, of the teacher without."""
    dtype = compute_dtype(config.compute_dtype)

    def head(settings: ConfigDict) -> DINOHead:
        sizes = ("prototypes", "hidden_dim", "bottleneck_dim", "layers")
        return DINOHead(**{name: settings[f"head_{name}"] for name in sizes}, dtype=dtype)

    backbone = from_config(config.model, config.crops.global_size, dtype=dtype, drop_path=drop_path)
    return Networks(
        backbone=backbone,
        dino_head=head(config.dino),
        ibot_head=head(config.ibot) if config.ibot.separate_head else None,
        in_channels=config.model.in_channels,
        prototype_block=config.prototype_block,
    )


def make_objective(config: ConfigDict, teacher: AnyNetworks | None = None) -> AnyObjective:
    """The networks and losses that `config` describes.

    Args:
      teacher: the frozen one of a distillation, which has no stochastic depth and no masks, and
        whose targets are Sinkhorn-Knopp's (paper section 5), or its features.
    """
    if isinstance(teacher, FeatureNetworks):
        return _feature_objective(config, teacher)
    patches = "masked" if teacher is None else config.distill.patches
    # Without a patch to learn nothing of iBOT is computed, as with weight 0.
    learns = patches == "all" or _most_masked(config)
    return Objective(
        student=make_networks(config, drop_path=teacher is None),
        teacher=teacher or make_networks(config, drop_path=False),
        micro_batches=config.micro_batches,
        masked_student=teacher is None,
        patches=patches,
        train_backbone=config.optimizer.freeze_backbone_steps < config.total_steps,
        centering=config.centering if teacher is None else "sinkhorn_knopp",
        dino_weight=config.dino.loss_weight,
        koleo_weight=config.dino.koleo_loss_weight,
        ibot_weight=config.ibot.loss_weight if learns else 0.0,
    )


def _feature_objective(config: ConfigDict, teacher: FeatureNetworks) -> FeatureObjective:
    backbone = from_config(
        config.model, config.crops.global_size, dtype=compute_dtype(config.compute_dtype)
    )
    return FeatureObjective(
        student=FeatureNetworks(backbone, teacher.backbone.dim, config.model.in_channels),
        teacher=teacher,
        micro_batches=config.micro_batches,
        train_backbone=config.optimizer.freeze_backbone_steps < config.total_steps,
        cls_weight=config.dino.loss_weight,
        koleo_weight=config.dino.koleo_loss_weight,
        patch_weight=config.ibot.loss_weight,
    )


def _most_masked(config: ConfigDict) -> int:
    """Patches of a group that are masked at most."""
    patches = (config.crops.global_size // config.model.patch_size) ** 2
    ibot = config.ibot
    return upperbound(config.group_size, patches, ibot.mask_probability, ibot.mask_ratio)


def optimizer_of(config: ConfigDict, objective: AnyObjective, student: Any) -> AdamW:
    """The configured optimizer for the student's parameters, or their shapes."""
    settings = config.optimizer
    depth = objective.student.backbone.depth
    multipliers = parameter_multipliers(
        student, depth, settings.layerwise_decay, settings.patch_embed_lr_multiplier
    )
    return AdamW(multipliers, settings.clip_norm, settings.beta1, settings.beta2)


def make_photometric(config: ConfigDict) -> Callable[[Array, Batch], Batch]:
    """A function for the step that augments colours of uint8 crops and normalises them."""
    spec = ColourSpec.from_config(config.colour)

    def photometric(key: Array, batch: Batch) -> Batch:
        crops = augment_batch(key, batch["global_crops"], batch["local_crops"], spec)
        return {**batch, "global_crops": crops[0], "local_crops": crops[1]}

    return photometric


def abstract_batch(config: ConfigDict, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and shardings of the batch that a step takes (see ssl/objective.py)."""
    crops, images = config.crops, config.batch_size
    channels = config.model.in_channels
    patches = (crops.global_size // config.model.patch_size) ** 2
    slots = slots_of(_most_masked(config))
    local = images, crops.local_number, crops.local_size, crops.local_size, channels
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "global_crops": ((images, 2, crops.global_size, crops.global_size, channels), jnp.uint8),
        "local_crops": (local, jnp.uint8),
        "masks": ((images, 2, patches), jnp.bool_),
        "mask_indices": ((images // config.group_size, slots), jnp.int32),
        "mask_weights": ((images // config.group_size, slots), jnp.float32),
    }
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(shape, mesh))
        for name, (shape, dtype) in shapes.items()
    }


def make_run(config: ConfigDict, mesh: Mesh, teacher: AnyNetworks | None = None) -> Run:
    """The training of one network of `config` on `mesh`; compiles nothing yet.

    Args:
      teacher: see `make_objective`.
    """
    objective = make_objective(config, teacher)
    size = config.crops.global_size
    key = seed_key(config.seed)
    student_shapes = jax.eval_shape(lambda k: objective.student.init(k, size), key)
    optimizer = optimizer_of(config, objective, student_shapes)
    init = functools.partial(init_state, objective=objective, optimizer=optimizer, image_size=size)
    shapes = jax.eval_shape(init, key)
    shardings = state_shardings(shapes, mesh, config.min_shard_bytes)
    grads = shardings.student if mesh.size > 1 else None
    step = functools.partial(
        train_step,
        objective=objective,
        optimizer=optimizer,
        photometric=make_photometric(config),
        shardings=grads,
    )
    return Run(
        objective=objective,
        model=objective.student.backbone.clone(drop_path_rate=0.0),
        schedules=Schedules(config),
        abstract_state=_placed(shapes, shardings),
        init=lambda given=None, parts=None: jax.jit(init, out_shardings=shardings)(
            key, given=given or {}, parts=parts or {}
        ),
        step=jax.jit(step, donate_argnums=0, out_shardings=(shardings, NamedSharding(mesh, P()))),
        update=Update(objective, optimizer, grads),
        frozen=() if teacher is None else (abstract_teacher(config, mesh, teacher),),
    )


class Family(NamedTuple):
    """The training of one network or of several students, who share crops and a teacher.

    Attributes:
      runs: by name of the student; "" is the name of one alone.
      step: as `Run.step`, with states, schedules and metrics by name.
    """

    runs: dict[str, Run]
    schedules: "FamilySchedules"
    abstract_state: dict[str, Any]
    step: Callable[..., Any]
    frozen: tuple[Any, ...]


class FamilySchedules(NamedTuple):
    """The schedules of several students."""

    runs: dict[str, Run]

    def at(self, step: int) -> dict[str, dict[str, Any]]:
        """The scalars for update number `step` (0-based), by name of the student."""
        return {name: run.schedules.at(step) for name, run in self.runs.items()}


def make_family(
    configs: Mapping[str, ConfigDict], mesh: Mesh, teacher: AnyNetworks | None = None
) -> Family:
    """The training of all students on `mesh`, of their configurations by name.

    They share all but what belongs to a student (train/students.py).
    """
    runs = {name: make_run(config, mesh, teacher) for name, config in configs.items()}
    states = {name: run.abstract_state for name, run in runs.items()}
    shardings = jax.tree.map(lambda x: x.sharding, states)
    step = functools.partial(
        family_step,
        updates={name: run.update for name, run in runs.items()},
        photometric=make_photometric(next(iter(configs.values()))),
    )
    return Family(
        runs=runs,
        schedules=FamilySchedules(runs),
        abstract_state=states,
        step=jax.jit(step, donate_argnums=0, out_shardings=(shardings, NamedSharding(mesh, P()))),
        frozen=next(iter(runs.values())).frozen,
    )


def abstract_teacher(config: ConfigDict, mesh: Mesh, teacher: AnyNetworks) -> Any:
    """Shapes and shardings of a frozen teacher's parameters."""
    size = config.crops.global_size
    shapes = jax.eval_shape(lambda: teacher.init(jax.random.key(0), size))
    return _placed(shapes, state_shardings(shapes, mesh, config.min_shard_bytes))


def _placed(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )


def compiled_step(
    run: "Run | Family", batch: Any, mesh: Mesh, options: dict[str, Any] | None = None
) -> jax.stages.Compiled:
    """`run.step` compiled for `mesh` before there is a batch; it takes what `run.step` takes.

    Args:
      batch: from `abstract_batch`.
      options: for XLA, beside those of the platform (parallel/runtime.py).
    """
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    hyper = jax.tree.map(lambda _: scalar, run.schedules.at(0))
    with jax.set_mesh(mesh):
        lowered = run.step.lower(run.abstract_state, batch, hyper, *run.frozen)
        return runtime.compile_step(lowered, mesh.devices.flat[0].platform, options or {})


def return_free_memory() -> None:
    """Returns freed memory to the system, if the C library can (glibc).

    After compiling a step of ViT-S, malloc would otherwise keep about 0.5 GB for good.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
