"""A recipe as a list of stages, each with its whole training configuration, in their order."""

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
from ml_collections import ConfigDict

from dinov2_jax.config.files import ConfigError, leaves, load_config, nearest
from dinov2_jax.config.overrides import override
from dinov2_jax.errors import UserError, sentence
from dinov2_jax.models.vit import from_config
from dinov2_jax.train.checks import check_training

_NAME = re.compile(r"[A-Za-z0-9][\w-]*")
# What a network must share with the one that it starts from.
_SAME = (
    "dim", "depth", "heads", "patch_size", "ffn", "registers", "interpolate_offset",
    "interpolate_antialias", "qkv_bias", "proj_bias", "ffn_bias",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training of a recipe.

    Attributes:
      start, teacher: the run whose weights it starts from, and that of its teacher, both below the
        workdir, such as pretrain or distil/vits14; "": none.
      config: the resolved training configuration; `init_from` and `distill.teacher` are paths.
      evaluate: protocols that judge it; () leaves it out.
      folder: <workdir>/<name>.
      notes: sentences of the check of its configuration.
    """

    name: str
    start: str
    teacher: str
    config: ConfigDict
    evaluate: tuple[str, ...]
    folder: Path
    notes: tuple[str, ...] = ()

    @property
    def students(self) -> tuple[str, ...]:
        """The students of a distillation that has several, which share one teacher pass."""
        distill = self.config.get("distill", {})
        return tuple(filter(None, distill.get("students", ())))

    @property
    def runs(self) -> tuple[str, ...]:
        """The runs it leaves, below the workdir: its own folder, or one for each student."""
        return tuple(f"{self.name}/{student}" for student in self.students) or (self.name,)

    @property
    def sources(self) -> tuple[str, ...]:
        """The runs that it reads."""
        return tuple(filter(None, (self.start, self.teacher)))


def in_stage(stage: str, text: str) -> str:
    """A sentence about the configuration of a stage, whose flags are those of this stage."""
    text = text.replace("--config=", "--config.config=")
    return f"stage {stage}: {text.replace('--config.', f'--config.stages.{stage}.')}"


@contextlib.contextmanager
def naming(stage: str) -> Iterator[None]:
    """Inside, a refusal names the stage."""
    try:
        yield
    except (UserError, FileNotFoundError) as error:
        raise ConfigError(in_stage(stage, sentence(error))) from error


def read_recipe(recipe: ConfigDict, workdir: Path) -> list[Stage]:
    """All stages of a recipe, each behind those that it reads.

    Raises:
      ConfigError: no stages, a configuration that is not found or cannot be trained, a stage that
        does not exist, or stages that wait for each other in a circle.
    """
    if not recipe.stages:
        raise ConfigError(
            "the recipe has no stages; config.stages of configs/recipes/default.py shows the form"
        )
    stages = {name: _read(recipe, name, workdir) for name in recipe.stages}
    for stage in stages.values():
        for field in ("start", "teacher"):
            _check_source(stage, field, stages)
    checked = [_checked(stage) for stage in _ordered(stages)]
    for stage in checked:
        if stage.start in stages:
            _check_same_model(stage, stages[stage.start])
    return checked


def _read(recipe: ConfigDict, name: str, workdir: Path) -> Stage:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"config.stages.{name} cannot be a folder's name; use letters, digits, _ and -"
        )
    given = recipe.stages[name]
    with naming(name):
        config = load_config(given.config)
        if config.get("task") != "train":
            raise ConfigError(
                f"{given.config} is a configuration of the task {config.get('task')!r}, but a stage"
                " trains; name one such as --config=quickstart"
            )
        fields = leaves(recipe.set) | leaves(given.set)
        if given.start:
            fields["init_from"] = str(workdir / given.start)
        if given.teacher:
            fields["distill.teacher"] = str(workdir / given.teacher)
        override(config, fields)
    config.distributed = recipe.distributed
    protocols = tuple(dict.fromkeys(given.evaluate))
    protocols = () if protocols == ("none",) else protocols
    config = config.copy_and_resolve_references().lock()
    return Stage(name, given.start, given.teacher, config, protocols, workdir / name)


def _check_source(stage: Stage, field: str, stages: Mapping[str, Stage]) -> None:
    """Refuses a start or a teacher that no stage leaves."""
    source = getattr(stage, field)
    runs = [run for other in stages.values() if other is not stage for run in other.runs]
    if not source or source in runs or source == stage.name:
        return
    if source in stages:
        students = ", ".join(stages[source].runs)
        raise ConfigError(
            f"config.stages.{stage.name}.{field} is {source!r}, which leaves several runs "
            f"({students}); name one: --config.stages.{stage.name}.{field}={stages[source].runs[0]}"
        )
    near = f"; did you mean {nearest(source, runs)!r}?" if runs else ""
    raise ConfigError(
        f"config.stages.{stage.name}.{field} is {source!r}, which is no stage of this recipe{near}"
    )


def _ordered(stages: Mapping[str, Stage]) -> list[Stage]:
    """As in the recipe, but each stage behind those that it reads."""
    waits = {n: {run.partition("/")[0] for run in stage.sources} for n, stage in stages.items()}
    done: list[str] = []
    while len(done) < len(stages):
        ready = (name for name in stages if name not in done and waits[name] <= set(done))
        name = next(ready, None)
        if name is None:
            circle = _circle({n: w for n, w in waits.items() if n not in done})
            raise ConfigError(
                f"the stages {' -> '.join(circle)} wait for each other in a circle; one of them "
                "must start from no other: --config.stages.<stage>.start="
            )
        done.append(name)
    return [stages[name] for name in done]


def _circle(waits: Mapping[str, set[str]]) -> list[str]:
    """Names from one of the stages back to itself; each stage waits for the next."""
    path = [next(iter(waits))]
    while path[-1] not in path[:-1]:
        path.append(next(name for name in sorted(waits[path[-1]]) if name in waits))
    return path[path.index(path[-1]) :]


def _check_same_model(stage: Stage, start: Stage) -> None:
    """Refuses a start of another model; its weights would be refused only when they are there."""
    old, new = (from_config(one.config.model, 0) for one in (start, stage))
    different = [name for name in _SAME if getattr(old, name) != getattr(new, name)]
    if different:
        name = different[0]
        raise ConfigError(
            f"stage {stage.name} starts from {start.name}, which is of another model: {name} is "
            f"{getattr(old, name)} there and {getattr(new, name)} here; "
            f"add --config.stages.{stage.name}.model.{name}={getattr(old, name)}"
        )


def _checked(stage: Stage) -> Stage:
    with naming(stage.name):
        notes = check_training(stage.config, jax.device_count())
    return dataclasses.replace(stage, notes=tuple(notes))
