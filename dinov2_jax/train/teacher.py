"""The frozen teacher of a distillation: `config.distill.teacher`, read and checked against the run.

Its network is told by its weights, whatever its size, and never by `config.model`, which is the
student's. Both need the same patches and the same prototypes.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from dinov2_jax.config.files import ConfigError, find_config, load_config, local_path
from dinov2_jax.models.head import DINOHead
from dinov2_jax.models.layers import compute_dtype
from dinov2_jax.models.vit import blocks_and_remat
from dinov2_jax.parallel.placement import place
from dinov2_jax.parallel.processes import main_first
from dinov2_jax.ssl.objective import Networks
from dinov2_jax.train.setup import make_networks
from dinov2_jax.weights.adapt import with_image_size
from dinov2_jax.weights.architecture import in_channels
from dinov2_jax.weights.load import Backbone, load


class Teacher(NamedTuple):
    """A frozen teacher on the host.

    Attributes:
      params: fp32, {"backbone", "dino_head"[, "ibot_head"]}.
      digest: of all of its weights; a run that continues must have the same.
      notes: sentences for the user.
    """

    networks: Networks
    params: Any
    digest: str
    notes: list[str]


def open_teacher(config: ConfigDict, students: Mapping[str, ConfigDict]) -> Teacher | None:
    """Reads `config.distill.teacher`; None in pretraining.

    Args:
      students: configurations by name, each of which must fit the teacher.

    Raises:
      WeightsError, CheckpointError: it cannot be read.
      ConfigError: it has no heads, or other patches, channels or prototypes than a student.
    """
    name = config.distill.teacher
    if not name:
        return None
    local_path(name, "config.distill.teacher")
    with main_first():  # it downloads weights that are given by name
        weights = _load(config, name)
    _require_heads(weights, name)
    networks = _networks(config, weights)
    _require_fit(networks, students, name)
    backbone = with_image_size(weights.params, weights.model, config.crops.global_size)
    heads = [field for field in ("dino_head", "ibot_head") if getattr(networks, field) is not None]
    params = {"backbone": backbone} | {field: weights.heads[field] for field in heads}
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
    notes = [f"distilling from {weights.report[0]}", *weights.report[1:]]
    notes += _colour_notes(config, weights) + student_notes(networks, students)
    return Teacher(networks, params, _digest(params), notes)


def planned_teacher(config: ConfigDict, students: Mapping[str, ConfigDict]) -> Networks | None:
    """The teacher's networks for a plan, which needs no weights: a recipe's name tells them, too.

    Raises:
      As `open_teacher`.
    """
    name = config.distill.teacher
    if not name:
        return None
    if local_path(name).exists() or not _is_recipe(name):
        found = open_teacher(config, students)
        return None if found is None else found.networks
    networks = described_teacher(config, load_config(name))
    _require_fit(networks, students, name)
    return networks


def described_teacher(config: ConfigDict, teacher: ConfigDict) -> Networks:
    """The networks that a training configuration makes, as a teacher in `config`."""
    own = teacher.copy_and_resolve_references().unlock()
    own.crops.global_size = config.crops.global_size
    own.compute_dtype, own.prototype_block = config.compute_dtype, config.prototype_block
    own.model.blocks, own.model.attention = config.model.blocks, config.model.attention
    return make_networks(own, drop_path=False)


def place_teacher(teacher: Teacher | None, abstract: tuple[Any, ...]) -> tuple[Any, ...]:
    """The parameters on the devices, as `Run.frozen` describes them; () in pretraining."""
    if teacher is None:
        return ()
    return (jax.tree.map(place, teacher.params, abstract[0]),)


def _is_recipe(name: str) -> bool:
    try:
        return bool(find_config(name.partition(":")[0]))
    except ConfigError:
        return False


def _load(config: ConfigDict, name: str) -> Backbone:
    if not local_path(name).exists() and _is_recipe(name):
        raise ConfigError(
            f"config.distill.teacher {name} is a recipe, which has no weights and is for "
            "config.task=plan; give the run that it made, such as "
            f"--config.distill.teacher=runs/{name}"
        )
    return load(name, allow=config.allow.split(","))


def _require_heads(weights: Backbone, name: str) -> None:
    if "dino_head" not in weights.heads:
        raise ConfigError(
            f"config.distill.teacher {name} comes without projection heads, so it has no "
            "prototypes to learn from; add --config.distill.teacher_heads=train to train heads on "
            "it first"
        )


def _networks(config: ConfigDict, weights: Backbone) -> Networks:
    """The modules of the weights, for crops of the configured size."""
    dtype = compute_dtype(config.compute_dtype)
    blocks, _ = blocks_and_remat(config.model, jax.default_backend())
    backbone = weights.model.clone(
        image_size=config.crops.global_size,
        dtype=dtype,
        attention=config.model.attention,
        scan_blocks=blocks == "scan",
        remat="none",
        drop_path_rate=0.0,
    )
    ibot = weights.heads.get("ibot_head")
    return Networks(
        backbone=backbone,
        dino_head=_head(weights.heads["dino_head"], dtype),
        ibot_head=None if ibot is None else _head(ibot, dtype),
        in_channels=in_channels(weights.params, weights.model.patch_size),
        prototype_block=config.prototype_block,
    )


def _head(params: Mapping[str, Any], dtype: Any) -> DINOHead:
    prototypes, bottleneck = params["last_layer"]["weight_v"].shape
    layers = sum(name.startswith("mlp_") for name in params)
    hidden = params["mlp_0"]["kernel"].shape[1]
    return DINOHead(prototypes, hidden, bottleneck, layers, dtype)


def _require_fit(teacher: Networks, students: Mapping[str, ConfigDict], name: str) -> None:
    """Refuses a student whose patches, channels or prototypes are not the teacher's."""
    ibot = teacher.ibot_head
    wanted = {
        "model.patch_size": teacher.backbone.patch_size,
        "model.in_channels": teacher.in_channels,
        "ibot.separate_head": ibot is not None,
        "dino.head_prototypes": teacher.dino_head.prototypes,
    } | ({} if ibot is None else {"ibot.head_prototypes": ibot.prototypes})
    for student, config in students.items():
        own = {field: _field(config, field) for field in wanted}
        if own == wanted:
            continue
        whose = f"the student {student}" if student else "the student"
        different = [field for field in wanted if own[field] != wanted[field]]
        said = ", ".join(f"config.{field} {own[field]}" for field in different)
        flags = " ".join(f"--config.{field}={str(wanted[field]).lower()}" for field in different)
        raise ConfigError(
            f"{whose} has {said}, but has to have the patches and prototypes of its teacher "
            f"{name}: {flags}"
        )


def _field(config: ConfigDict, name: str) -> Any:
    group, _, field = name.partition(".")
    return config[group][field]


def student_notes(teacher: Networks, students: Mapping[str, ConfigDict]) -> list[str]:
    """What is worth knowing of a student that is larger than its teacher."""
    notes, size = [], _weights_of(teacher)
    for name, config in students.items():
        own = _weights_of(make_networks(config, drop_path=False))
        if own > size:
            notes.append(
                f"the student{' ' * bool(name)}{name} has {own:,} weights, more than its teacher's "
                f"{size:,}: it can hardly become better than a smaller one"
            )
    return notes


def _weights_of(networks: Networks) -> int:
    size = networks.backbone.table_grid()[0] * networks.backbone.patch_size
    shapes = jax.eval_shape(lambda: networks.init(jax.random.key(0), size)["backbone"])
    return sum(x.size for x in jax.tree.leaves(shapes))


def _colour_notes(config: ConfigDict, weights: Backbone) -> list[str]:
    wanted, own = weights.preprocessing, (tuple(config.colour.mean), tuple(config.colour.std))
    if (tuple(wanted.mean), tuple(wanted.std)) == own:
        return []
    return [
        f"the teacher was made with colour.mean {tuple(wanted.mean)} and colour.std "
        f"{tuple(wanted.std)}, which are {own[0]} and {own[1]} here"
    ]


def _digest(params: Any) -> str:
    """A short hash of all weights, in the order of their names."""
    found = hashlib.blake2b(digest_size=8)
    for path, x in jax.tree_util.tree_flatten_with_path(params)[0]:
        found.update(jax.tree_util.keystr(path).encode())
        found.update(np.ascontiguousarray(x))
    return found.hexdigest()
