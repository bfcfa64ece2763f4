"""Depth from frozen patches: a linear head, or DPT (paper section 7.4, table 11).

A head is trained on the set's train pictures and judged on its test pictures; with `config.head` a
given one is judged as it is, as for SUN RGB-D, which has no pictures to train on.
"""

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
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
from dinov2_jax.eval.published import dense_value
from dinov2_jax.eval.task import Context, Curve, Finding, Metric, Need, Task, Work
from dinov2_jax.heads.dense import DenseSettings, train_dense
from dinov2_jax.heads.dense_forward import SPREAD, Form, Trained, read_blocks
from dinov2_jax.heads.dense_head import DenseHead, load_dense
from dinov2_jax.heads.depth_judge import DepthReader, Judged, judge
from dinov2_jax.heads.depth_recipes import RECIPES, DepthRecipe, depth_loss, first_params
from dinov2_jax.metrics.depth import NAMES
from dinov2_jax.parallel.processes import from_main, is_main
from dinov2_jax.run.resume import StateFile
from dinov2_jax.viz.depth import depth_sheet
from dinov2_jax.viz.gallery import Figure
from dinov2_jax.weights.architecture import in_channels

HEAD_FILE = "head.safetensors"
STATE_FILE = "depth_state.safetensors"
_KINDS = {"depth": "depth_linear", "depth_dpt": "depth_dpt"}
_UNITS = {"rmse": "m", "sq_rel": "m"}
_HIGHER = ("a1", "a2", "a3")
_NYU_SIZE = 480, 640  # of whose pixels the crop "nyu_eigen" is a part
_RELEASED = re.compile(r"dinov2_vit\w14_nyu_(linear|linear4|dpt)_head")
_LEAD = (
    "Test pictures, evenly spread over the set: predicted and true depth in the same colours, and "
    "the relative error. Grey pixels have no true depth."
)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What one protocol does."""

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


def open_linear(context: Context) -> list[Task]:
    """The protocol "depth": a linear classifier of depth bins; see `open_task`."""
    return open_task(context, "depth")


def open_dpt(context: Context) -> list[Task]:
    """The protocol "depth_dpt"; see `open_task`."""
    return open_task(context, "depth_dpt")


def open_task(context: Context, protocol: str) -> list[Task]:
    """Trains a head on train and judges it on test; judges a given head.

    Raises:
      ConfigError, SourceError, EvaluationError, WeightsError: no such data, missing files, a head
        or settings that do not fit.
    """
    plan = _plan(context, protocol)
    files = {
        name: source
        for split, pairs in plan.splits.items()
        for name, source in ((split, pairs.pictures), (f"{split}_depths", _targets(pairs)))
    }
    settings = context.settings("depth", **files) | {"set": context.config.data.set}
    if plan.given is not None:
        settings["head"] = _digest(plan.given)

    def run(work: Work) -> Iterator[Finding]:
        notes = _check(plan)
        if notes:
            yield {"warning": " ".join(notes)}
        head = plan.given
        if head is None:
            head, found = _train(plan, work.folder)
            yield from found
        yield from _judge(plan, head)

    needs = tuple(Need(name, split.pictures, None) for name, split in plan.splits.items())
    return [Task(plan.data.name, needs, settings, run)]


# ----------------------------------------------------------------------------------------- opening
def _plan(context: Context, protocol: str) -> _Plan:
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
    return _Plan(protocol, context, opened, recipe, form, blocks, _settings(config, recipe), given)


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


def _targets(split: DenseSplit) -> NamedFiles:
    """The files of the depths as a source, for fingerprints; where they lie does not count."""
    root = os.path.commonpath([os.path.dirname(path) for path in split.targets])
    return NamedFiles(root, [os.fsencode(os.path.relpath(p, root)) for p in split.targets])


def _digest(head: DenseHead) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for value in jax.tree.leaves(head.params):
        digest.update(np.ascontiguousarray(value).tobytes())
    digest.update(repr((head.kind, head.low, head.high, head.blocks)).encode())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------- checking
def _check(plan: _Plan) -> list[str]:
    """Looks at pictures and depths before long work; process 0 reads for all.

    Returns what is odd but no reason to stop, and prints it.

    Raises:
      SourceError: too many unreadable pictures, or see `check_depths`.
    """
    error, notes = from_main(_look(plan) if is_main() else None)
    if error:
        raise SourceError(error)
    return notes


def _look(plan: _Plan) -> tuple[str, list[str]]:
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


# ---------------------------------------------------------------------------------------- training
def _train(plan: _Plan, folder: Path) -> tuple[DenseHead, list[Finding]]:
    """Trains a head and stores it in the folder; the state of training goes."""
    context, config = plan.context, plan.context.config.depth
    backbone, train, settings = context.backbone, plan.data.splits["train"], plan.settings
    params = first_params(
        plan.form, backbone.model.dim, len(plan.blocks), config.seed, config.channels
    )
    identity = context.identity(train.pictures)
    about = {
        **dataclasses.asdict(settings),
        **{"identity": identity, "depths": context.describe(_targets(train))["fingerprint"]},
        **{"form": list(plan.form), "blocks": list(plan.blocks), "crops": repr(plan.recipe.crops)},
        **{"channels": config.channels, "gradient": config.gradient},
    }
    del about["save_every"]
    heads, losses, replaced = train_dense(
        backbone.model,
        backbone.params,
        backbone.preprocessing,
        plan.blocks,
        False,
        depth_loss(plan.form, config.gradient),
        {"params": params, "statistics": None},
        train,
        plan.recipe.crops,
        plan.recipe.crop,
        settings,
        file=StateFile(folder / STATE_FILE, about),
        **context.reading,
    )
    head = DenseHead(
        plan.form.kind,
        heads[0]["params"],
        blocks=plan.blocks,
        low=plan.form.low,
        high=plan.form.high,
        name=f"{plan.protocol} of {plan.data.name}",
        identity=identity,
    )
    if is_main():
        head.save(folder / HEAD_FILE)
        folder.joinpath(STATE_FILE).unlink(missing_ok=True)
    return head, [_loss_curve(losses[:, 0], settings), {"replaced_in_training": replaced}]


def _loss_curve(losses: np.ndarray, settings: DenseSettings) -> Curve:
    edges = np.linspace(0, settings.iterations, len(losses) + 1)[1:]
    known = np.isfinite(losses)
    points = list(zip(edges[known].tolist(), losses[known].tolist(), strict=True))
    return Curve("Training loss", "iteration", {"loss": points}, unit="")


# ----------------------------------------------------------------------------------------- judging
def _judge(plan: _Plan, head: DenseHead) -> Iterator[Finding]:
    backbone, test = plan.context.backbone, plan.data.splits["test"]
    reader = DepthReader(
        backbone.model,
        backbone.params,
        backbone.preprocessing,
        head.form,
        Trained(head.params),
        plan.blocks,
        flip=plan.context.config.depth.flip,
    )
    found = judge(
        reader,
        test,
        plan.recipe,
        batch_size=min(plan.recipe.batch_size, len(test)),
        decoding=plan.decoding,
        show=plan.context.config.depth.pictures,
        description="test picture" if is_main() else "",
    )
    yield from _metrics(plan, head, found)
    yield from _figures(plan, found)


def _metrics(plan: _Plan, head: DenseHead, found: Judged) -> Iterator[Finding]:
    counted = found.readable & ~np.isnan(found.metrics).all(axis=1)
    if not counted.any():
        raise SourceError(
            f"no test picture has a pixel between {plan.recipe.low:g} and {plan.recipe.high:g} m "
            f"within the crop {plan.recipe.judged}; check config.depth.crop and units_per_metre"
        )
    means, n = found.metrics[counted].mean(axis=0), int(counted.sum())
    for name in ("rmse", "abs_rel", *NAMES):
        value = float(means[NAMES.index(name)])
        paper = _paper(plan, head, name, n)
        better = name in _HIGHER
        yield Metric(name, value, _UNITS.get(name, ""), better, n=n, published=paper)
    yield {
        "head": head.name,
        "trained_here": plan.given is None,
        "blocks": list(plan.blocks),
        "range_m": [plan.recipe.low, plan.recipe.high],
        "crop": plan.recipe.judged,
        "unreadable": int((~found.readable).sum()),
        "without_depth": int((found.readable & ~counted).sum()),
    }


def _paper(plan: _Plan, head: DenseHead, metric: str, test: int) -> float | None:
    """The paper's value: of a head trained here by the set's recipe, or of a released one."""
    config, name = plan.context.config, plan.context.config.data.set
    count = "dpt" if plan.protocol == "depth_dpt" else len(plan.blocks)
    usual = plan.recipe == RECIPES[name] and config.depth.flip and not config.data.max_bad
    if plan.given is not None:
        usual = usual and name == "sunrgbd" and bool(_RELEASED.fullmatch(head.name))
        train = None
    else:
        defaults = {"weight_decay": 0.01, "gradient": 0.0, "channels": 256}
        usual = usual and all(config.depth[field] == value for field, value in defaults.items())
        usual = usual and plan.settings.warmup_iterations == plan.recipe.warmup_iterations
        train = len(plan.data.splits["train"])
    if not usual:
        return None
    return dense_value(plan.context, f"depth_{count}", name, metric, train=train, test=test)


def _figures(plan: _Plan, found: Judged) -> Iterator[Figure]:
    """Test pictures beside their truth."""
    test = plan.data.splits["test"]
    for place, (row, image, depth, true) in enumerate(found.shown):
        if image.shape[-1] == 3:
            rmse = found.metrics[row, NAMES.index("rmse")]
            caption = f"{test.pictures.name(row)}: RMSE {rmse:.3g} m"
            sheet = depth_sheet(image, depth, true)
            yield Figure("Depth", _LEAD, f"depth_{place}.png", sheet, caption)
