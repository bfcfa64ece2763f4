"""What an evaluation of depth does: data, recipe, head, and what is refused before long work."""

import dataclasses
import hashlib
import os
from typing import Any

import jax
import numpy as np

from dinov2_jax.config.files import ConfigError
from dinov2_jax.data.decode import DecodeSpec
from dinov2_jax.data.sources.files import NamedFiles
from dinov2_jax.data.sources.source import SourceError, notes_of
from dinov2_jax.datasets.dense import DenseData, DenseSplit
from dinov2_jax.datasets.depth import DEPTH_SETS, open_depth
from dinov2_jax.datasets.depth_checks import check_depths
from dinov2_jax.datasets.depth_files import MILLIMETRES, stored_size
from dinov2_jax.errors import EvaluationError
from dinov2_jax.eval.pictures import unreadable
from dinov2_jax.eval.task import Context
from dinov2_jax.heads.dense import DenseSettings
from dinov2_jax.heads.dense_forward import SPREAD, Form, read_blocks
from dinov2_jax.heads.dense_head import DenseHead, load_dense
from dinov2_jax.heads.depth_recipes import RECIPES, DepthRecipe
from dinov2_jax.parallel.processes import from_main, is_main
from dinov2_jax.weights.architecture import in_channels

_KINDS = {"depth": "depth_linear", "depth_dpt": "depth_dpt"}
_NYU_SIZE = 480, 640  # of whose pixels the crop "nyu_eigen" is a part


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one protocol does.

    Attributes:
      form, blocks: of the head.
      settings: of the training.
      given: the head of `config.head`, which is judged without training; or None.
    """

    protocol: str
    context: Context
    data: DenseData
    recipe: DepthRecipe
    form: Form
    blocks: tuple[int, ...]
    settings: DenseSettings
    given: DenseHead | None

    @property
    def decoding(self) -> DecodeSpec:
        backbone = self.context.backbone
        channels = in_channels(backbone.params, backbone.model.patch_size)
        return DecodeSpec(self.context.config.data.max_pixels, channels)

    @property
    def splits(self) -> dict[str, DenseSplit]:
        """Those that are read."""
        wanted = ("test",) if self.given else ("train", "test")
        return {name: self.data.splits[name] for name in wanted}


def plan_of(context: Context, protocol: str) -> Plan:
    """Opens the data and the head of "depth" or "depth_dpt".

    Raises:
      ConfigError, SourceError, EvaluationError, WeightsError: no such data, missing files, a head
        or settings that do not fit.
    """
    config, data = context.config.depth, context.config.data
    if data.set not in DEPTH_SETS or not data.path:
        raise ConfigError(
            f"{protocol} needs --config.data.set={' | '.join(DEPTH_SETS)} and --config.data.path="
            "<its folder>"
        )
    given = _given(context, protocol)
    if given is None and data.set == "sunrgbd":
        raise ConfigError(
            "SUN RGB-D has no pictures to train on; add --config.head=<a head that was trained on "
            "NYU>, such as <workdir>/depth/nyu/head.safetensors"
        )
    units = config.units_per_metre
    opened = open_depth(data.set, data.path, units, train=given is None)
    recipe = _recipe(context, given)
    kind, model = _KINDS[protocol], context.backbone.model
    if given is None:
        form = Form(kind, recipe.low, recipe.high)
        count = SPREAD if kind == "depth_dpt" else config.blocks
        if count not in (1, SPREAD):
            raise ConfigError(
                f"config.depth.blocks={count}, but the linear head reads 1 or {SPREAD} blocks"
            )
        if model.depth < count:
            raise EvaluationError(
                f"{protocol} reads {count} blocks, but the backbone has {model.depth}; use "
                "--config.protocols=depth with --config.depth.blocks=1"
            )
        blocks = read_blocks(kind, count, model.depth)
    else:
        form, blocks = given.form, given.blocks_of(model)
    _check_crop(opened.splits["test"], recipe)
    return Plan(protocol, context, opened, recipe, form, blocks, _settings(config, recipe), given)


def _given(context: Context, protocol: str) -> DenseHead | None:
    """`config.head`, if there is one; it must be of the protocol's kind."""
    if not context.config.head:
        return None
    head = load_dense(context.config.head, "depth")
    if head.kind != _KINDS[protocol]:
        other = next(name for name, kind in _KINDS.items() if kind == head.kind)
        raise EvaluationError(
            f"{context.config.head} is a head of kind {head.kind}, not of {_KINDS[protocol]}; "
            f"evaluate it with --config.protocols={other}"
        )
    if head.identity and not head.identity.startswith(context.weights):
        raise EvaluationError(
            f"the depth head {context.config.head} was trained on features of other weights or "
            "preprocessing; evaluate it with those, or train one by leaving out --config.head"
        )
    return head


def _recipe(context: Context, given: DenseHead | None) -> DepthRecipe:
    """The set's recipe with what the configuration changes."""
    config, name = context.config.depth, context.config.data.set
    recipe = RECIPES[name]
    if name == "folder" and given is not None:  # its range is what it can predict
        recipe = dataclasses.replace(recipe, low=given.low, high=given.high)
    changes: dict[str, Any] = {
        field: config[field] for field in ("low", "high", "iterations", "batch_size", "lr")
    }
    changes = {field: value for field, value in changes.items() if value}
    if config.crop != "auto":
        changes["judged"] = config.crop
    if config.train_px:
        changes["crop"] = tuple(config.train_px)
    recipe = dataclasses.replace(recipe, **changes)
    if recipe.low >= recipe.high:
        raise ConfigError(
            f"config.depth.low={recipe.low:g} m is not below config.depth.high={recipe.high:g} m; "
            "0 stands for the set's own"
        )
    if len(recipe.crop) != 2 or min(recipe.crop) < 1:
        raise ConfigError(
            f"config.depth.train_px={config.train_px} is not a height and a width; give two "
            "numbers, such as --config.depth.train_px=416,544"
        )
    return recipe


def _settings(config: Any, recipe: DepthRecipe) -> DenseSettings:
    warmup = config.warmup_iterations
    if warmup < 0:
        warmup = min(recipe.warmup_iterations, recipe.iterations // 3)
    if warmup > recipe.iterations:
        raise ConfigError(
            f"config.depth.warmup_iterations={warmup} are more than the {recipe.iterations} "
            "iterations; -1 takes a third of them"
        )
    return DenseSettings(
        iterations=recipe.iterations,
        batch_size=recipe.batch_size,
        rates=(recipe.lr,),
        weight_decay=config.weight_decay,
        warmup_iterations=warmup,
        schedule="cosine",
        warmup_ratio=1e-3,
        cycle=True,
        clip=35.0,
        seed=config.seed,
        save_every=config.save_every,
    )


def _check_crop(test: DenseSplit, recipe: DepthRecipe) -> None:
    size = stored_size(test.targets[0])
    if recipe.judged == "nyu_eigen" and size != _NYU_SIZE:
        raise ConfigError(
            f"the crop nyu_eigen has places in {_NYU_SIZE[1]} x {_NYU_SIZE[0]} px, but the depth "
            f"{test.targets[0]} has {size[1]} x {size[0]}; add --config.depth.crop=none"
        )


def targets_of(split: DenseSplit) -> NamedFiles:
    """The files of the depths as a source, for fingerprints; where they lie does not count."""
    root = os.path.commonpath([os.path.dirname(path) for path in split.targets])
    return NamedFiles(root, [os.fsencode(os.path.relpath(p, root)) for p in split.targets])


def digest_of(head: DenseHead) -> str:
    """Hash of what a head predicts with."""
    digest = hashlib.blake2b(digest_size=8)
    for value in jax.tree.leaves(head.params):
        digest.update(np.ascontiguousarray(value).tobytes())
    digest.update(repr((head.kind, head.low, head.high, head.blocks)).encode())
    return digest.hexdigest()


def check(plan: Plan) -> list[str]:
    """Looks at pictures and depths before long work; process 0 reads for all.

    Returns what is odd but no reason to stop, and prints it.

    Raises:
      SourceError: too many unreadable pictures, or see `check_depths`.
    """
    error, notes = from_main(_look(plan) if is_main() else None)
    if error:
        raise SourceError(error)
    return notes


def _look(plan: Plan) -> tuple[str, list[str]]:
    """Why the data cannot be used, or ""; and notes."""
    limits, notes = plan.context.config.data, list[str]()
    set_units = {"kitti": 256.0}.get(limits.set, MILLIMETRES)
    units = plan.context.config.depth.units_per_metre or set_units
    for name, split in plan.splits.items():
        notes += notes_of(split.pictures)
        error = unreadable(split.pictures, limits.max_pixels, limits.max_bad, name)
        if error:
            return error, []
        title = f"{plan.data.name}, {name}"
        try:
            notes += check_depths(split, title, plan.recipe.low, plan.recipe.high, units)
        except SourceError as error:
            return str(error), []
    for note in notes:
        print(f"warning: {note}", flush=True)
    return "", notes
