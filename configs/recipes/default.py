"""All fields of a recipe, with a single stage; the other files of this folder list several.

Command:   python -m dinov2_jax.main --config=configs/recipes/default.py --workdir=runs/recipe
           without --workdir the plan is printed, and nothing is run
Hardware:  as configs/quickstart.py
Time:      a minute on 2 CPU cores
Expected:  <workdir>/pretrain, a run directory with its evaluation, and <workdir>/stages.html
Fields:    --config.<training field>=... sets it in every stage,
           --config.stages.<stage>.<training field>=... in one of them,
           --config.evaluation.<field of configs/eval/default.py>=... in their evaluations
Resume:    the same command; finished stages are not trained again
"""

from collections.abc import Mapping
from typing import Any

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = "stages"  # what `python -m dinov2_jax.main` does with this configuration
    # Training fields that every stage takes instead of its configuration's, such as data.path.
    # A stage's own `set` comes after them.
    config.set = ml_collections.ConfigDict()
    config.set.seed = 0  # as configs/default.py has it
    config.evaluation = _evaluation()
    config.plan = _plan()
    config.distributed = default.distributed()  # all stages run in the same processes
    config.stages = ml_collections.ConfigDict(sort_keys=False)  # by name, see `stage`
    config.stages.pretrain = stage("quickstart")
    # Training fields of this stage alone; any field of configs/default.py can stand here.
    config.stages.pretrain.set.total_steps = 300
    return config


def stage(
    config: str,
    settings: Mapping[str, Any] | None = None,
    *,
    start: str = "",
    teacher: str = "",
    evaluate: tuple[str, ...] = ("knn",),
) -> ml_collections.ConfigDict:
    """One stage; `settings` gives training fields by dotted name."""
    one = ml_collections.ConfigDict(sort_keys=False)
    # The stage's training configuration: a recipe's name or path, with :argument if it takes one
    one.config = config
    # The stage whose newest weights this one starts from, or a student of it, as in distil/vits14;
    # "": random weights. It fills the field init_from.
    one.start = start
    # The stage that is the frozen teacher; "": no distillation. It fills distill.teacher.
    one.teacher = teacher
    # Protocols of configs/eval/default.py that judge the stage; none: it is not evaluated
    one.evaluate = evaluate
    one.set = nested(settings or {})
    return one


def nested(settings: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """{"model.dim": 64} as a ConfigDict with groups."""
    group = ml_collections.ConfigDict()
    for name, value in settings.items():
        *parents, last = name.split(".")
        place = group
        for parent in parents:
            if parent not in place:
                place[parent] = ml_collections.ConfigDict()
            place = place[parent]
        place[last] = value
    return group


def _evaluation() -> ml_collections.ConfigDict:
    """Fields of configs/eval/default.py; pictures, labels and colours are those of the stage."""
    evaluation = ml_collections.ConfigDict()
    evaluation.data = ml_collections.ConfigDict()
    evaluation.data.workers = 0  # loader processes of evaluations; 0: in the main process
    return evaluation


def _plan() -> ml_collections.ConfigDict:
    plan = ml_collections.ConfigDict()
    # Chips for the chip-hours of the plan, such as h100:8 or v5p:4x4x8; "": those of this machine
    plan.topology = ""
    plan.mfu = 0.4  # assumed fraction of the chips' bf16 peak
    return plan
