"""Depth from frozen patches: a linear head, or DPT (paper section 7.4, table 11).

A head is trained on the set's train pictures and judged on its test pictures; with `config.head` a
given one is judged as it is, as for SUN RGB-D, which has no pictures to train on.
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.eval.depth_plan import Plan, check, digest_of, plan_of, targets_of
from dinov2_jax.eval.published import dense_value
from dinov2_jax.eval.task import Context, Curve, Finding, Metric, Need, Task, Work
from dinov2_jax.heads.dense import DenseSettings, train_dense
from dinov2_jax.heads.dense_forward import Trained
from dinov2_jax.heads.dense_head import DenseHead
from dinov2_jax.heads.depth_judge import DepthReader, Judged, judge
from dinov2_jax.heads.depth_recipes import RECIPES, depth_loss, first_params
from dinov2_jax.metrics.depth import NAMES
from dinov2_jax.parallel.processes import is_main
from dinov2_jax.run.resume import StateFile
from dinov2_jax.viz.depth import depth_sheet
from dinov2_jax.viz.gallery import Figure

HEAD_FILE = "head.safetensors"
STATE_FILE = "depth_state.safetensors"
_UNITS = {"rmse": "m", "sq_rel": "m"}
_HIGHER = ("a1", "a2", "a3")
_RELEASED = re.compile(r"dinov2_vit\w14_nyu_(linear|linear4|dpt)_head")
_LEAD = (
    "Test pictures, evenly spread over the set: predicted and true depth in the same colours, and "
    "the relative error. Grey pixels have no true depth."
)


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
    plan = plan_of(context, protocol)
    files = {
        name: source
        for split, pairs in plan.splits.items()
        for name, source in ((split, pairs.pictures), (f"{split}_depths", targets_of(pairs)))
    }
    settings = context.settings("depth", **files) | {"set": context.config.data.set}
    if plan.given is not None:
        settings["head"] = digest_of(plan.given)

    def run(work: Work) -> Iterator[Finding]:
        notes = check(plan)
        if notes:
            yield {"warning": " ".join(notes)}
        head = plan.given
        if head is None:
            head, found = _train(plan, work.folder)
            yield from found
        yield from _judge(plan, head)

    needs = tuple(Need(name, split.pictures, None) for name, split in plan.splits.items())
    return [Task(plan.data.name, needs, settings, run)]


# ---------------------------------------------------------------------------------------- training
def _train(plan: Plan, folder: Path) -> tuple[DenseHead, list[Finding]]:
    """Trains a head and stores it in the folder; the state of training goes."""
    context, config = plan.context, plan.context.config.depth
    backbone, train, settings = context.backbone, plan.data.splits["train"], plan.settings
    params = first_params(
        plan.form, backbone.model.dim, len(plan.blocks), config.seed, config.channels
    )
    identity = context.identity(train.pictures)
    about = {
        **dataclasses.asdict(settings),
        **{"identity": identity, "depths": context.describe(targets_of(train))["fingerprint"]},
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
def _judge(plan: Plan, head: DenseHead) -> Iterator[Finding]:
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


def _metrics(plan: Plan, head: DenseHead, found: Judged) -> Iterator[Finding]:
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


def _paper(plan: Plan, head: DenseHead, metric: str, test: int) -> float | None:
    """The paper's value: of a head trained here by the set's recipe, or of a released one."""
    name = plan.context.config.data.set
    if plan.recipe != RECIPES[name]:
        return None
    train = None
    if plan.given is None:
        train = len(plan.data.splits["train"])
    elif name != "sunrgbd" or not _RELEASED.fullmatch(head.name):
        return None
    count = "dpt" if plan.protocol == "depth_dpt" else len(plan.blocks)
    return dense_value(plan.context, f"depth_{count}", name, metric, train=train, test=test)


def _figures(plan: Plan, found: Judged) -> Iterator[Figure]:
    """Test pictures beside their truth."""
    test = plan.data.splits["test"]
    for place, (row, image, depth, true) in enumerate(found.shown):
        if image.shape[-1] == 3:
            rmse = found.metrics[row, NAMES.index("rmse")]
            caption = f"{test.pictures.name(row)}: RMSE {rmse:.3g} m"
            sheet = depth_sheet(image, depth, true)
            yield Figure("Depth", _LEAD, f"depth_{place}.png", sheet, caption)
