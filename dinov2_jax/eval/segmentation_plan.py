"""What an evaluation of segmentation does: data, recipe, head, and what is refused early."""

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
from dinov2_jax.datasets.mask_checks import check_masks
from dinov2_jax.datasets.segmentation import SEGMENTATION_SETS, open_segmentation
from dinov2_jax.errors import EvaluationError
from dinov2_jax.eval.pictures import unreadable
from dinov2_jax.eval.task import Context
from dinov2_jax.heads.dense import DenseSettings
from dinov2_jax.heads.dense_forward import read_blocks
from dinov2_jax.heads.dense_head import DenseHead, load_dense
from dinov2_jax.heads.segmentation_recipes import RECIPES, SegmentationRecipe
from dinov2_jax.parallel.processes import from_main, is_main
from dinov2_jax.weights.architecture import in_channels


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one protocol does.

    Attributes:
      blocks: that the head reads.
      settings: of the training.
      given: the head of `config.head`, which is judged without training; or None.
    """

    protocol: str
    context: Context
    data: DenseData
    recipe: SegmentationRecipe
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
        wanted = ["test"] if self.given else ["train", "test"]
        wanted += ["val"] * (not self.given and len(self.settings.rates) > 1)
        return {name: self.data.splits[name] for name in wanted if name in self.data.splits}


def make_plan(context: Context, protocol: str) -> Plan:
    """Opens the data and fixes recipe and head; errors as `protocols.segmentation.open`."""
    config, data = context.config.segmentation, context.config.data
    if data.set not in SEGMENTATION_SETS or not data.path:
        raise ConfigError(
            f"{protocol} needs --config.data.set={' | '.join(SEGMENTATION_SETS)} and "
            "--config.data.path=<its folder>"
        )
    model, opened = context.backbone.model, open_segmentation(data.set, data.path)
    recipe, given = _recipe(config, protocol, data.set), None
    if context.config.head:
        given = _given(context, opened)
        blocks = given.blocks_of(model)
    else:
        if model.depth < recipe.blocks:
            raise EvaluationError(
                f"{protocol} reads {recipe.blocks} blocks, but the backbone has {model.depth}; use "
                "--config.protocols=segmentation"
            )
        blocks = read_blocks("segmentation", recipe.blocks, model.depth)
    return Plan(protocol, context, opened, recipe, blocks, _settings(config, recipe), given)


def _given(context: Context, data: DenseData) -> DenseHead:
    """`config.head`, which must have the classes of the set."""
    head = load_dense(context.config.head, "segmentation")
    if head.classes != len(data.class_names):
        raise EvaluationError(
            f"the head {context.config.head} has {head.classes} classes, and {data.name} has "
            f"{len(data.class_names)}; evaluate it on the set that it was trained on"
        )
    if head.class_names and head.class_names != data.class_names:
        pairs = zip(head.class_names, data.class_names, strict=True)
        ours, theirs = next(pair for pair in pairs if pair[0] != pair[1])
        raise EvaluationError(
            f"the head {context.config.head} has the class {ours!r} where {data.name} has "
            f"{theirs!r}; evaluate it on the set that it was trained on"
        )
    if head.identity and not head.identity.startswith(context.weights):
        raise EvaluationError(
            f"the head {context.config.head} was trained on features of other weights or "
            "preprocessing; evaluate it with those, or train one by leaving out --config.head"
        )
    return head


def _recipe(config: Any, protocol: str, name: str) -> SegmentationRecipe:
    """The set's recipe with what the configuration changes."""
    usual = RECIPES[protocol][name]
    fields = {"iterations": "iterations", "batch_size": "batch_size", "short_side": "short_side"}
    fields |= {"crop_size": "crop", "stride": "stride", "scales": "scales"}
    changes: dict[str, Any] = {ours: config[field] for field, ours in fields.items()}
    changes = {field: value for field, value in changes.items() if value}
    if "crop" in changes and "stride" not in changes:
        changes["stride"] = max(1, usual.stride * changes["crop"] // usual.crop)
    if config.flip != "auto":
        changes["flip"] = config.flip == "true"
    recipe = dataclasses.replace(usual, **changes)
    if recipe.stride > recipe.crop:
        raise ConfigError(
            f"config.segmentation.stride={recipe.stride} px is more than the window of "
            f"{recipe.crop} px, so pixels between windows would have no class; use at most that"
        )
    return recipe


def _settings(config: Any, recipe: SegmentationRecipe) -> DenseSettings:
    warmup = config.warmup_iterations
    if warmup < 0:
        warmup = min(1500, recipe.iterations // 8)
    if warmup > recipe.iterations:
        raise ConfigError(
            f"config.segmentation.warmup_iterations={warmup} are more than the "
            f"{recipe.iterations} iterations; -1 takes an eighth of them"
        )
    if not config.rates:
        raise ConfigError("config.segmentation.rates is empty; give a learning rate, such as 1e-3")
    return DenseSettings(
        iterations=recipe.iterations,
        batch_size=recipe.batch_size,
        rates=tuple(config.rates),
        weight_decay=config.weight_decay,
        warmup_iterations=warmup,
        seed=config.seed,
        save_every=config.save_every,
    )


def mask_files(split: DenseSplit) -> NamedFiles:
    """The files of the masks as a source, for fingerprints; where they lie does not count."""
    root = os.path.commonpath([os.path.dirname(path) for path in split.targets])
    return NamedFiles(root, [os.fsencode(os.path.relpath(p, root)) for p in split.targets])


def head_digest(head: DenseHead) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for value in jax.tree.leaves(head.trained):
        digest.update(np.ascontiguousarray(value).tobytes())
    digest.update(repr((head.kind, head.blocks)).encode())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------- checking
def check_data(plan: Plan) -> list[str]:
    """Looks at pictures and masks before long work; process 0 reads for all, and prints notes.

    Raises:
      SourceError: too many unreadable pictures, or see `check_masks`.
    """
    error, notes = from_main(_look(plan) if is_main() else None)
    if error:
        raise SourceError(error)
    return notes


def _look(plan: Plan) -> tuple[str, list[str]]:
    """Why the data cannot be used, or ""; and notes."""
    limits, notes = plan.context.config.data, list[str]()
    for name, split in plan.splits.items():
        notes += notes_of(split.pictures)
        error = unreadable(split.pictures, limits.max_pixels, limits.max_bad, name)
        if error:
            return error, []
        own = len(plan.data.class_names) if limits.set in ("camvid", "folder") else None
        try:
            notes += check_masks(split, f"{plan.data.name}, {name}", limits.max_bad, own)
        except SourceError as error:
            return str(error), []
    for note in notes:
        print(f"warning: {note}", flush=True)
    return "", notes
