"""How a stage is evaluated: as task "eval" does with its run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dinov2_jax.config.checks import check_values
from dinov2_jax.config.files import ConfigError, leaves, load_config, nearest, to_dict
from dinov2_jax.config.overrides import override
from dinov2_jax.eval.data import open_data
from dinov2_jax.eval.rules import RULES
from dinov2_jax.eval.runner import PROTOCOLS, evaluate
from dinov2_jax.stages.recipe import Stage, naming

# Sources whose labels may cost the read of every record.
_SLOW = ("tfds",)


def evaluation_of(stage: Stage, recipe: ConfigDict) -> ConfigDict:
    """The configuration of the stage's evaluation, without a checkpoint.

    Data, sizes and colours come from the run, unless the recipe's `evaluation` names others.

    Raises:
      ConfigError: an unknown protocol or field, or pictures without labels.
    """
    config = load_config("eval/default")
    override(config, leaves(recipe.evaluation))
    config.protocols = stage.evaluate
    config.distributed = recipe.distributed
    for name in stage.evaluate:
        if name not in PROTOCOLS:
            raise ConfigError(
                f"config.stages.{stage.name}.evaluate has {name!r}; did you mean "
                f"{nearest(name, tuple(PROTOCOLS))!r}? (none, or of {', '.join(PROTOCOLS)})"
            )
    check_values(config, RULES)
    if stage.config.eval.labels == "none" and not _has_own_data(config):
        raise ConfigError(
            f"stage {stage.name} is evaluated by {', '.join(stage.evaluate)}, but its pictures "
            "have no labels (config.eval.labels is none); add --config.eval.labels=folders, name "
            "other pictures with --config.evaluation.data.path, or leave it out with "
            f"--config.stages.{stage.name}.evaluate=none"
        )
    return config


def _has_own_data(config: ConfigDict) -> bool:
    return any(config.data[name] for name in ("set", "source", "path", "train_path"))


def check_pictures(
    stages: Sequence[Stage], configs: Mapping[str, ConfigDict], folder: Path
) -> None:
    """Opens the labelled pictures, so that a missing label ends no recipe after days of training.

    Published sets and sources that are slow to open are checked when they are read.

    Args:
      configs: by name of a stage, from `evaluation_of`.
      folder: keeps labels that cost the read of a record.

    Raises:
      ConfigError, SourceError: there are none, or their labels do not fit.
    """
    seen = set()
    for stage in stages:
        if not stage.evaluate:
            continue
        given, run = configs[stage.name].data, {**stage.config.data, **stage.config.eval}
        source = given.source or ("folder" if _has_own_data(configs[stage.name]) else run["source"])
        key = repr((sorted(given.items()), [(k, v) for k, v in run.items() if k in given]))
        if given.set or source in _SLOW or key in seen:
            continue
        seen.add(key)
        with naming(stage.name):
            open_data(given, run, folder)


def evaluate_run(config: ConfigDict, run: Path) -> list[str]:
    """Evaluates the newest step of a run; returns its files of results, below the run."""
    config = config.copy_and_resolve_references()
    config.checkpoint = str(run)
    evaluate(config)
    return sorted(str(path.relative_to(run)) for path in run.glob("eval/*/*/results.json"))


def settings_of(config: ConfigDict) -> dict[str, Any]:
    """What makes a finished evaluation count: all fields but how its processes were started."""
    return {name: x for name, x in leaves(to_dict(config)).items() if not name.startswith("distr")}
