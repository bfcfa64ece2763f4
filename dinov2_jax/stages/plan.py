"""What a recipe takes, told before anything runs."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from dinov2_jax.models.vit import from_config
from dinov2_jax.plan.flops import step_flops
from dinov2_jax.plan.topology import Chip, chip_named
from dinov2_jax.stages.recipe import Stage, in_stage
from dinov2_jax.train.student_configs import student_configs
from dinov2_jax.train.teacher import described_teacher

HEAD = ("stage", "reads", "leaves", "model", "parameters", "steps", "images", "crops", "FLOP")
_NUMBERS = ("parameters", "steps", "images", "FLOP", "chip-hours")


class Cost(NamedTuple):
    """What a stage takes: images seen, FLOPs of its matrix products, hours of one chip."""

    images: int
    flops: float
    chip_hours: float | None  # None where the peak of the chip is not known


def cost(stage: Stage, stages: Sequence[Stage], chip: Chip | None, mfu: float) -> Cost:
    """The cost of a whole stage; see `plan.flops.step_flops` for what counts as a FLOP.

    The teacher of a distillation is that of its stage, whose weights need not be there yet.
    """
    images, teacher = stage.config.total_steps * stage.config.batch_size, None
    for other in stages:
        if stage.teacher and other.name == stage.teacher.partition("/")[0]:
            own = student_configs(other.config)
            whose = stage.teacher.partition("/")[2]
            teacher = described_teacher(stage.config, own[whose])
    flops = images * step_flops(stage.config, teacher)["model"]
    hours = None if chip is None else flops / (mfu * chip.peak_flops) / 3600
    return Cost(images, flops, hours)


def describe(stages: Sequence[Stage], recipe: ConfigDict) -> list[str]:
    """The plan as lines: a table with a row a stage, the total, and notes.

    Raises:
      ConfigError: `plan.topology` names no chip.
    """
    chip, mfu = chip_named(recipe.plan.topology), recipe.plan.mfu
    costs = [cost(stage, stages, chip, mfu) for stage in stages]
    head = (*HEAD, "chip-hours") if chip else HEAD
    pairs = zip(stages, costs, strict=True)
    rows = [_row(stage, one)[: len(head)] for stage, one in pairs]
    total = dict.fromkeys(head, "") | {
        "stage": "together",
        "steps": f"{sum(stage.config.total_steps for stage in stages):,}",
        "images": f"{sum(one.images for one in costs):,}",
        "FLOP": _short(sum(one.flops for one in costs)),
        "chip-hours": _short(sum(one.chip_hours or 0 for one in costs)),
    }
    rows.append(tuple(total[name] for name in head))
    notes = [in_stage(stage.name, note) for stage in stages for note in stage.notes]
    return [*aligned([head, *rows], _NUMBERS), _about_time(chip, mfu), *notes]


def _about_time(chip: Chip | None, mfu: float) -> str:
    if chip is not None:
        return (
            f"chip-hours of {chip.name} at {mfu:.0%} of its peak, an assumption "
            "(--config.plan.mfu), without evaluations"
        )
    kind = jax.devices()[0].device_kind
    return (
        f"hours are not estimated: the peak of this device ({kind}) is not known; "
        "--config.plan.topology=h100:8 estimates them for these chips"
    )


def _row(stage: Stage, one: Cost) -> tuple[str, ...]:
    config = stage.config
    reads = [stage.start or "random weights", *([f"teacher {stage.teacher}"] * bool(stage.teacher))]
    return (
        stage.name,
        ", ".join(reads),
        ", ".join(stage.runs),
        "its students" if stage.students else model_name(config.model),
        "" if stage.students else _short(parameters(config)),
        f"{config.total_steps:,}",
        f"{one.images:,}",
        crops(config.crops),
        _short(one.flops),
        "" if one.chip_hours is None else _short(one.chip_hours),
    )


def model_name(model: Any) -> str:
    """Such as vit_small/14, or vit_tiny/16 (64 wide, 4 blocks)."""
    own = model["dim"] or model["depth"]
    built = from_config(model, model["patch_size"])
    sizes = f" ({built.dim} wide, {built.depth} blocks)" if own else ""
    return f"{model['variant']}/{model['patch_size']}{sizes}"


def parameters(config: Any) -> int:
    """Parameters of the backbone, without heads; `config` may come from a config.json."""
    side, channels = config["crops"]["global_size"], config["model"]["in_channels"]
    model = from_config(config["model"], side)
    pixels = jax.ShapeDtypeStruct((1, side, side, channels), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), pixels)
    return sum(x.size for x in jax.tree.leaves(shapes))


def crops(settings: Any) -> str:
    """Such as 2x224 + 8x98 px."""
    local = settings["local_number"]
    more = f" + {local}x{settings['local_size']}" if local else ""
    return f"2x{settings['global_size']}{more} px"


def _short(count: float) -> str:
    """Three digits: 86.6M, 1.14G, 0.012."""
    for unit, name in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if count >= unit:
            count = count / (1e3 if name == "k" else unit)
            return f"{count:,.0f}{name}" if count >= 1000 else f"{count:.3g}{name}"
    return f"{count:,.0f}" if count >= 100 else f"{count:.3g}"


def aligned(rows: Sequence[Sequence[str]], numbers: Sequence[str]) -> list[str]:
    """Lines of a table; the first row names the columns, and those of `numbers` end flush."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = [name in numbers for name in rows[0]]
    return [
        "  ".join(
            text.rjust(width) if flush else text.ljust(width)
            for text, width, flush in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    ]
