"""Segmentation from frozen patches: a linear head on one block, or on four ("+ms").

Paper section 7.4, table 10. Heads are trained on the set's train pictures, one for each learning
rate; val (or test, where there is none) chooses among several, and test judges. With `config.head`
a given head is judged as it is.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.eval.published import dense_value
from dinov2_jax.eval.segmentation_plan import (
    Plan,
    check_data,
    head_digest,
    make_plan,
    mask_files,
)
from dinov2_jax.eval.task import Context, Curve, Finding, Metric, Need, Task, Work
from dinov2_jax.heads.dense import DenseSettings, train_dense
from dinov2_jax.heads.dense_forward import Trained
from dinov2_jax.heads.dense_head import DenseHead
from dinov2_jax.heads.segmentation_judge import Judged, Segmenter, judge
from dinov2_jax.heads.segmentation_recipes import RECIPES, first_trained, segmentation_loss
from dinov2_jax.metrics.segmentation import class_iou, summary
from dinov2_jax.parallel.processes import is_main
from dinov2_jax.run.resume import StateFile
from dinov2_jax.viz.gallery import Figure
from dinov2_jax.viz.masks import mask_sheet, right_share

HEAD_FILE = "head.safetensors"
STATE_FILE = "segmentation_state.safetensors"
_RELEASED = re.compile(r"dinov2_vit\w14_(ade20k|voc2012)_(linear|ms)_head")
_LEAD = (
    "Test pictures, evenly spread over the set: predicted and true classes, and where they agree. "
    "Pixels without a true class keep the picture's colours; in the last column they are grey."
)


def open(context: Context, protocol: str = "segmentation") -> list[Task]:
    """Trains heads on train and judges the best one on test; judges a given head.

    Raises:
      ConfigError, SourceError, EvaluationError, WeightsError: no such data, missing files, a head
        or settings that do not fit.
    """
    plan = make_plan(context, protocol)
    files = {
        name: source
        for split, pairs in plan.splits.items()
        for name, source in ((split, pairs.pictures), (f"{split}_masks", mask_files(pairs)))
    }
    settings = context.settings("segmentation", **files) | {"set": context.config.data.set}
    settings["classes"] = list(plan.data.class_names)
    if plan.given is not None:
        settings["head"] = head_digest(plan.given)

    def run(work: Work) -> Iterator[Finding]:
        notes = check_data(plan)
        if notes:
            yield {"warning": " ".join(notes)}
        heads = [plan.given] if plan.given else []
        if not heads:
            heads, found = _train(plan, work.folder)
            yield from found
        place, chosen_on = 0, ""
        if len(heads) > 1:
            place, chosen_on, curve = _choose(plan, heads)
            yield curve
            yield {"rate": plan.settings.rates[place]}
        if plan.given is None and is_main():
            heads[place].save(work.folder / HEAD_FILE)
            work.folder.joinpath(STATE_FILE).unlink(missing_ok=True)
        yield from _judge(plan, heads[place], chosen_on)

    needs = tuple(Need(name, split.pictures, None) for name, split in plan.splits.items())
    return [Task(plan.data.name, needs, settings, run)]


open_ms = functools.partial(open, protocol="segmentation_ms")


# ---------------------------------------------------------------------------------------- training
def _train(plan: Plan, folder: Path) -> tuple[list[DenseHead], list[Finding]]:
    """Trains a head for each rate; the state of training stays in the folder."""
    context, names = plan.context, plan.data.class_names
    backbone, train, settings = context.backbone, plan.data.splits["train"], plan.settings
    width = backbone.model.dim * len(plan.blocks)
    identity = context.identity(train.pictures)
    about = {
        **dataclasses.asdict(settings),
        **{"identity": identity, "masks": context.describe(mask_files(train))["fingerprint"]},
        **{"blocks": list(plan.blocks), "crops": repr(plan.recipe.crops(backbone.preprocessing))},
        **{"classes": list(names)},
    }
    del about["save_every"]
    trained, losses, replaced = train_dense(
        backbone.model,
        backbone.params,
        backbone.preprocessing,
        plan.blocks,
        True,
        segmentation_loss(len(names)),
        first_trained(width, len(names), settings.seed),
        train,
        plan.recipe.crops(backbone.preprocessing),
        (plan.recipe.crop,) * 2,
        settings,
        file=StateFile(folder / STATE_FILE, about),
        **context.reading,
    )
    heads = [
        DenseHead(
            "segmentation",
            one["params"],
            one["statistics"],
            blocks=plan.blocks,
            class_names=names,
            colours=plan.data.colours,
            name=f"{plan.protocol} of {plan.data.name}",
            identity=identity,
            metadata={"short_side": plan.recipe.short_side, "window": plan.recipe.crop},
        )
        for one in trained
    ]
    return heads, [_loss_curves(losses, settings), {"replaced_in_training": replaced}]


def _loss_curves(losses: np.ndarray, settings: DenseSettings) -> Curve:
    edges = np.linspace(0, settings.iterations, len(losses) + 1)[1:]
    lines = {}
    for rate, values in zip(settings.rates, losses.T, strict=True):
        known = np.isfinite(values)
        points = list(zip(edges[known].tolist(), values[known].tolist(), strict=True))
        lines[f"rate {rate:g}" if len(settings.rates) > 1 else "loss"] = points
    return Curve("Training loss", "iteration", lines, unit="")


# ----------------------------------------------------------------------------------------- judging
def _choose(plan: Plan, heads: list[DenseHead]) -> tuple[int, str, Curve]:
    """The head with the best mIoU on val, or on test where there is no val."""
    name = "val" if "val" in plan.splits else "test"
    values = [
        summary(_judged(plan, head, name, f"{name} picture, head {i + 1} of {len(heads)}").areas)
        for i, head in enumerate(heads)
    ]
    mious = [value["miou"] for value in values]
    place = int(np.argmax(np.nan_to_num(mious, nan=-1.0)))
    points = sorted(zip(plan.settings.rates, mious, strict=True))
    best = plan.settings.rates[place]
    curve = Curve(f"mIoU on {name}", "learning rate", {"": points}, ("", best), log_x=True)
    return place, name, curve


def _judged(plan: Plan, head: DenseHead, split: str, unit: str, show: int = 0) -> Judged:
    backbone = plan.context.backbone
    trained = Trained(head.params, head.statistics)
    segmenter = Segmenter(*backbone, backbone.preprocessing, trained, plan.blocks, plan.recipe)
    description = unit if is_main() else ""
    classes, pairs = len(plan.data.class_names), plan.data.splits[split]
    return judge(segmenter, pairs, classes, plan.decoding, show=show, description=description)


def _judge(plan: Plan, head: DenseHead, chosen_on: str) -> Iterator[Finding]:
    show = plan.context.config.segmentation.pictures
    found = _judged(plan, head, "test", "test picture", show)
    if not found.areas.true.any():
        raise SourceError(
            f"no pixel of {plan.data.name}'s test pictures has a class, so nothing can be judged; "
            "check the values of the masks against classes.txt"
        )
    for name, value in summary(found.areas).items():
        paper = _paper(plan, head, name, found.readable)
        yield Metric(name, value, n=found.readable, chosen_on=chosen_on, published=paper)
    for name, value in zip(plan.data.class_names, class_iou(found.areas), strict=True):
        yield Metric(f"iou {name}", float(value), n=found.readable, chosen_on=chosen_on)
    test = plan.data.splits["test"]
    yield {
        "head": head.name,
        "trained_here": plan.given is None,
        "blocks": list(plan.blocks),
        "unreadable": len(test) - found.readable,
    }
    for place, (row, image, classes, true) in enumerate(found.shown):
        if image.shape[-1] == 3:
            sheet = mask_sheet(image, classes, plan.data.class_names, plan.data.colours, true)
            caption = f"{test.pictures.name(row)}: {right_share(classes, true):.0f} % right"
            yield Figure("Segmentation", _LEAD, f"segmentation_{place}.png", sheet, caption)


def _paper(plan: Plan, head: DenseHead, metric: str, test: int) -> float | None:
    """The paper's value: of a head trained here by the set's recipe, or of a released one."""
    name = plan.context.config.data.set
    if plan.recipe != RECIPES[plan.protocol][name]:
        return None
    train = None
    if plan.given is None:
        train = len(plan.data.splits["train"])
    elif not _RELEASED.fullmatch(head.name):
        return None
    return dense_value(plan.context, plan.protocol, name, metric, train=train, test=test)
