"""`config.distill.students`: the configuration of each student, from its recipe and the run's."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dinov2_jax.config.files import ConfigError, load_config

# What a student's recipe gives.
_OWN = ("model", "optimizer", "dino", "ibot")
_OWN_FIELDS = ("teacher.momentum", "teacher.final_momentum", "init_from")
# But what has to fit the teacher is the same for all students.
_SHARED_FIELDS = (
    "model.patch_size",
    "model.in_channels",
    "dino.head_prototypes",
    "ibot.separate_head",
    "ibot.head_prototypes",
)


def student_configs(config: ConfigDict) -> dict[str, ConfigDict]:
    """The configuration of each student by name; {"": config} where there is one alone.

    Raises:
      ConfigError: students without a teacher, of one name, of no recipe, or with fields of theirs
        in `config`.
    """
    recipes = config.distill.students
    if not recipes:
        return {"": config}
    if not config.distill.teacher:
        raise ConfigError(
            f"config.distill.students {recipes} need a teacher; add --config.distill.teacher=RUN"
        )
    if config.init_from:
        raise ConfigError(
            f"config.init_from {config.init_from} is for one network; with config.distill.students "
            "each recipe has its own init_from"
        )
    found: dict[str, ConfigDict] = {}
    for recipe in recipes:
        name = _name(recipe)
        if name in found:
            raise ConfigError(
                f"config.distill.students {recipes} has two students {name}, which would share a "
                "directory; copy the recipe under another name"
            )
        found[name] = _student(config, load_config(recipe), recipe)
    return found


def _name(recipe: str) -> str:
    """The directory of a student: configs/vits14.py -> vits14, highres:vits14 -> highres-vits14."""
    base, _, argument = recipe.partition(":")
    return "-".join(Path(part).stem for part in (base, argument) if part)


def _student(config: ConfigDict, own: ConfigDict, recipe: str) -> ConfigDict:
    if own.get("task") != "train":
        raise ConfigError(
            f"config.distill.students names {recipe}, which is a recipe of task {own.get('task')} "
            "and describes no network; name one of task train"
        )
    student = config.copy_and_resolve_references().unlock()
    for group in _OWN:
        student[group] = own[group]
    for field in _OWN_FIELDS:
        student.update_from_flattened_dict({field: _leaf(own, field)})
    for field in _SHARED_FIELDS:
        student.update_from_flattened_dict({field: _leaf(config, field)})
    student.distill.students = ()
    return student.lock()


def _leaf(config: ConfigDict, name: str) -> Any:
    *groups, field = name.split(".")
    for group in groups:
        config = config[group]
    return config[field]
