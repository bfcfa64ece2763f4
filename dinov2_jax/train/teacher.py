"""The frozen teacher of a distillation: `config.distill.teacher`, read and checked against the run.

Its network is told by its weights, whatever its size, and never by `config.model`, which is the
student's. Both need the same patches, and with `config.distill.kind=prototypes` the same
prototypes.
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
from dinov2_jax.ssl.feature_matching import FeatureNetworks
from dinov2_jax.ssl.objective import Networks
from dinov2_jax.train.setup import make_networks
from dinov2_jax.train.state import AnyNetworks
from dinov2_jax.weights.adapt import with_image_size
from dinov2_jax.weights.architecture import HEADS_REMEDY, in_channels
from dinov2_jax.weights.files import WeightsError
from dinov2_jax.weights.load import Backbone, load


class Teacher(NamedTuple):
    """A frozen teacher on the host.

    Attributes:
      params: fp32, {"backbone", "dino_head"[, "ibot_head"]}; {"backbone"} where a student learns
        its features.
      digest: of all of its weights; a run that continues must have the same.
      notes: sentences for the user.
    """

    networks: AnyNetworks
    params: Any
    digest: str
    notes: list[str]


def open_teacher(
    config: ConfigDict, students: Mapping[str, ConfigDict], weights: Backbone | None = None
) -> Teacher | None:
    """Reads `config.distill.teacher`; None in pretraining.

    Args:
      students: configurations by name, each of which must fit the teacher.
      weights: from `read_teacher`, where they were read before.

    Raises:
      As `read_teacher`.
      ConfigError: it has no heads and the student learns prototypes, or it has other patches,
        channels or prototypes than a student.
    """
    name = config.distill.teacher
    if not name:
        return None
    weights = weights or read_teacher(config)
    if not _by_features(config):
        _require_heads(weights, name)
    networks = _networks(config, weights)
    _require_fit(networks, students, name)
    backbone = with_image_size(weights.params, weights.model, config.crops.global_size)
    params = {"backbone": backbone} | {field: weights.heads[field] for field in _heads_of(networks)}
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
    notes = [f"distilling from {weights.report[0]}", *weights.report[1:]]
    notes += _colour_notes(config, weights) + student_notes(networks, students)
    return Teacher(networks, params, _digest(params), notes)


def read_teacher(config: ConfigDict) -> Backbone:
    """The weights of `config.distill.teacher`.

    Raises:
      WeightsError, CheckpointError: they cannot be read, or do not tell their attention heads.
      ConfigError: this is a recipe, or has another number of attention heads than configured.
    """
    name, heads = config.distill.teacher, config.distill.attention_heads
    local_path(name, "config.distill.teacher")
    _refuse_recipe(name)
    try:
        with main_first():  # it downloads weights that are given by name
            weights = load(name, heads=heads or None, allow=config.allow.split(","))
    except WeightsError as error:
        own = "give it: --config.distill.attention_heads=N"
        raise WeightsError(str(error).replace(HEADS_REMEDY, own)) from error
    if heads and weights.model.heads != heads:
        raise ConfigError(
            f"config.distill.attention_heads is {heads}, but config.distill.teacher {name} says "
            f"that it has {weights.model.heads}; leave it out"
        )
    return weights


def planned_teacher(config: ConfigDict, students: Mapping[str, ConfigDict]) -> AnyNetworks | None:
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


def described_teacher(config: ConfigDict, teacher: ConfigDict) -> AnyNetworks:
    """The networks that a training configuration makes, as a teacher in `config`."""
    own = teacher.copy_and_resolve_references().unlock()
    own.crops.global_size = config.crops.global_size
    own.compute_dtype, own.prototype_block = config.compute_dtype, config.prototype_block
    own.model.blocks, own.model.attention = config.model.blocks, config.model.attention
    networks = make_networks(own, drop_path=False)
    if _by_features(config):
        return FeatureNetworks(networks.backbone, in_channels=networks.in_channels)
    return networks


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


def _by_features(config: ConfigDict) -> bool:
    return config.distill.kind == "features"


def _heads_of(networks: AnyNetworks) -> list[str]:
    """Names of the projection heads that a student learns from."""
    names = ("dino_head", "ibot_head")
    return [name for name in names if getattr(networks, name, None) is not None]


def _refuse_recipe(name: str) -> None:
    if not local_path(name).exists() and _is_recipe(name):
        raise ConfigError(
            f"config.distill.teacher {name} is a recipe, which has no weights and is for "
            "config.task=plan; give the run that it made, such as "
            f"--config.distill.teacher=runs/{name}"
        )


def _require_heads(weights: Backbone, name: str) -> None:
    if "dino_head" not in weights.heads:
        raise ConfigError(
            f"config.distill.teacher {name} comes without projection heads, so it has no "
            "prototypes to learn from; add --config.distill.kind=features to learn its features, "
            "or --config.distill.teacher_heads=train to train heads on it first"
        )


def _networks(config: ConfigDict, weights: Backbone) -> AnyNetworks:
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
    channels = in_channels(weights.params, weights.model.patch_size)
    if _by_features(config):
        return FeatureNetworks(backbone, in_channels=channels)
    ibot = weights.heads.get("ibot_head")
    return Networks(
        backbone=backbone,
        dino_head=_head(weights.heads["dino_head"], dtype),
        ibot_head=None if ibot is None else _head(ibot, dtype),
        in_channels=channels,
        prototype_block=config.prototype_block,
    )


def _head(params: Mapping[str, Any], dtype: Any) -> DINOHead:
    prototypes, bottleneck = params["last_layer"]["weight_v"].shape
    layers = sum(name.startswith("mlp_") for name in params)
    hidden = params["mlp_0"]["kernel"].shape[1]
    return DINOHead(prototypes, hidden, bottleneck, layers, dtype)


def _fields_to_share(teacher: AnyNetworks) -> dict[str, Any]:
    """The fields that a student must have like its teacher, and their values."""
    patches = {
        "model.patch_size": teacher.backbone.patch_size,
        "model.in_channels": teacher.in_channels,
    }
    if isinstance(teacher, FeatureNetworks):
        return patches
    ibot = teacher.ibot_head
    heads = {
        "ibot.separate_head": ibot is not None,
        "dino.head_prototypes": teacher.dino_head.prototypes,
    }
    return patches | heads | ({} if ibot is None else {"ibot.head_prototypes": ibot.prototypes})


def _require_fit(teacher: AnyNetworks, students: Mapping[str, ConfigDict], name: str) -> None:
    """Refuses a student whose patches, channels or prototypes are not the teacher's."""
    wanted = _fields_to_share(teacher)
    what = "patches" if isinstance(teacher, FeatureNetworks) else "patches and prototypes"
    for student, config in students.items():
        own = {field: _field(config, field) for field in wanted}
        if own == wanted:
            continue
        whose = f"the student {student}" if student else "the student"
        different = [field for field in wanted if own[field] != wanted[field]]
        said = ", ".join(f"config.{field} {own[field]}" for field in different)
        flags = " ".join(f"--config.{field}={str(wanted[field]).lower()}" for field in different)
        raise ConfigError(
            f"{whose} has {said}, but has to have the {what} of its teacher {name}: {flags}"
        )


def _field(config: ConfigDict, name: str) -> Any:
    group, _, field = name.partition(".")
    return config[group][field]


def student_notes(teacher: AnyNetworks, students: Mapping[str, ConfigDict]) -> list[str]:
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


def _weights_of(networks: AnyNetworks) -> int:
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
