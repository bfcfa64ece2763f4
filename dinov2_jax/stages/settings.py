"""The fields of a recipe, and the overrides of the command line that reach its stages.

A recipe holds training fields in `set`, those of one stage in `stages.<name>.set`, and fields of
evaluations in `evaluation`. Each of these groups holds the fields that differ, no others.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from dinov2_jax.config.files import leaves, load_config
from dinov2_jax.config.overrides import override, unknown_field

STAGE_FIELDS = ("config", "start", "teacher", "evaluate")


def override_recipe(recipe: ConfigDict, values: Mapping[str, Any]) -> None:
    """Sets fields of a recipe by dotted name, each to a value of the field's type.

    A training field, such as `total_steps`, is set in every stage; `stages.<name>.total_steps` is
    set in one stage and counts more.

    Raises:
      ConfigError: naming the nearest field, or the type that the field expects.
    """
    training, evaluation = (load_config(name) for name in ("default", "eval/default"))
    own = {n: v for n, v in leaves(recipe).items() if _is_own(n)}
    fields = [*own, *leaves(training), *(f"evaluation.{name}" for name in leaves(evaluation))]
    fields += [f"stages.{stage}.{name}" for stage in recipe.stages for name in leaves(training)]
    # Fields of all stages come first, so that those of one stage replace them.
    for name in sorted(values, key=lambda name: name.startswith("stages.")):
        value, plain = values[name], _without_set(name)
        if name in own:
            override(recipe, {name: value})
        elif plain not in fields:
            raise unknown_field(name, fields)
        elif plain.startswith("evaluation."):
            _put(recipe.evaluation, plain.removeprefix("evaluation."), value, evaluation)
        elif plain.startswith("stages."):
            _, stage, field = plain.split(".", 2)
            _put(recipe.stages[stage].set, field, value, training)
        else:
            _put_everywhere(recipe, plain, value, training)


def _is_own(name: str) -> bool:
    """Whether a leaf of a recipe is a field of its own, not of training or of evaluations."""
    first, *rest = name.split(".")
    if first == "stages":
        return len(rest) == 2 and rest[1] in STAGE_FIELDS
    return first not in ("set", "evaluation")


def _without_set(name: str) -> str:
    """`stages.a.set.seed` means `stages.a.seed`, and `set.seed` means `seed`."""
    parts = name.split(".")
    place = 2 if parts[0] == "stages" else 0
    if len(parts) > place + 1 and parts[place] == "set":
        del parts[place]
    return ".".join(parts)


def _put_everywhere(recipe: ConfigDict, field: str, value: Any, form: ConfigDict) -> None:
    """In every stage, also where the recipe gives one of them a value of its own."""
    _put(recipe.set, field, value, form)
    for stage in recipe.stages.values():
        if field in leaves(stage.set):
            _put(stage.set, field, value, form)


def _put(group: ConfigDict, field: str, value: Any, form: ConfigDict) -> None:
    """Sets a field that the group may not have yet, with the type that it has in `form`."""
    override(form, {field: value})
    *parents, last = field.split(".")
    for parent in parents:
        if parent not in group:
            group[parent] = ConfigDict()
        group = group[parent]
    with group.ignore_type():  # a recipe may say 1 for 1.0
        group[last] = leaves(form)[field]
