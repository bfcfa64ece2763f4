"""How far the stages of a recipe are, by the files of their runs.

<workdir>/<stage>/stage.json holds the configuration that the stage was trained with, which
checkpoints it was made from, the seconds that it took, and its finished evaluations.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dinov2_jax.config.files import ConfigError, diff_configs, to_dict
from dinov2_jax.run.checkpoint import CheckpointError, read_config, read_provenance
from dinov2_jax.run.files import write_json
from dinov2_jax.stages.recipe import Stage
from dinov2_jax.viz.report import REPORT_FILE

RECORD = "stage.json"
# Fields that change where and how fast a stage runs, or what it prints and keeps.
_HARMLESS = (
    "mesh.", "plan.", "checkpoint.", "min_shard_bytes", "micro_batches", "prototype_block",
    "log_every_steps", "data.workers", "data.cache_dir", "model.blocks", "model.remat",
    "model.attention",
)  # fmt: skip


def read_record(stage: Stage) -> dict[str, Any]:
    """What stage.json holds; {} before the stage has begun."""
    path = stage.folder / RECORD
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise ConfigError(
            f"{path} is cut or no record of a stage ({error}); remove it, and the stage is taken "
            "as it is"
        ) from error


def begin_record(stage: Stage, workdir: Path) -> dict[str, Any]:
    """The record of a stage that begins or continues, with what an earlier start has left."""
    return read_record(stage) | {
        "start": stage.start,
        "teacher": stage.teacher,
        "runs": stage.runs,
        "made_from": made_from(stage, workdir),
        "config": to_dict(stage.config),
    }


def write_record(stage: Stage, record: Mapping[str, Any]) -> None:
    write_json(stage.folder / RECORD, record)


def newest_step(run: Path) -> int:
    """The newest whole checkpoint of a run; -1 if there is none."""
    try:
        return int(read_config(run)[1].name)
    except CheckpointError:
        return -1


def is_trained(stage: Stage, workdir: Path) -> bool:
    """Whether all runs of a stage have their last step, and their report, which is written last."""
    return all(
        newest_step(workdir / run) >= stage.config.total_steps
        and (workdir / run / REPORT_FILE).exists()
        for run in stage.runs
    )


def is_evaluated(stage: Stage, settings: Mapping[str, Any], workdir: Path) -> bool:
    """Whether all runs of a stage were evaluated with these settings, and the results are there."""
    if not stage.evaluate:
        return True
    found = read_record(stage).get("evaluations", {})
    same = json.loads(json.dumps(settings))
    return all(
        found.get(run, {}).get("settings") == same
        and all((workdir / run / file).exists() for file in found[run]["results"])
        for run in stage.runs
    )


def made_from(stage: Stage, workdir: Path) -> dict[str, str]:
    """By run that the stage reads: the step and the time of its newest checkpoint."""
    return {run: _stamp(workdir / run) for run in stage.sources}


def _stamp(run: Path) -> str:
    try:
        return f"step {newest_step(run)}, {read_provenance(run)['time']}"
    except CheckpointError:
        return "none"


def check_unchanged(stages: Sequence[Stage], workdir: Path) -> None:
    """Refuses to build on stages that are finished with another configuration, or other weights.

    Raises:
      ConfigError: naming the fields and what to remove.
    """
    for stage in stages:
        record = read_record(stage)
        later = ", ".join(str(one.folder) for one in _built_on(stage, stages))
        changed = changes(record, stage) if _was_finished(record, workdir) else []
        if changed:
            raise ConfigError(
                f"stage {stage.name} is finished with another configuration ({', '.join(changed)});"
                f" use another --workdir, or remove {later} to train again"
            )
        then, now = record.get("made_from", {}), made_from(stage, workdir)
        for run in then.keys() & now.keys():
            if then[run] != now[run]:
                raise ConfigError(
                    f"stage {stage.name} was made from another {run} ({then[run]}) than the one "
                    f"that is there now ({now[run]}); remove {later} to train again"
                )


def _was_finished(record: Mapping[str, Any], workdir: Path) -> bool:
    """Whether a stage reached the last step of the configuration that it was begun with."""
    if not record:
        return False
    steps = record["config"]["total_steps"]
    return all(newest_step(workdir / run) >= steps for run in record["runs"])


def changes(record: Mapping[str, Any], stage: Stage) -> list[str]:
    """`field: old -> new` for each field that makes another model."""
    lines = diff_configs(record["config"], to_dict(stage.config))
    # Paths of other stages change with the workdir; which stages they are is compared below.
    paths = ("init_from:",) * bool(stage.start) + ("distill.teacher:",) * bool(stage.teacher)
    lines = [line for line in lines if not line.startswith(_HARMLESS + paths)]
    for name in ("start", "teacher"):
        if record[name] != getattr(stage, name):
            lines.append(f"{name}: {record[name] or 'none'} -> {getattr(stage, name) or 'none'}")
    return lines


def _built_on(stage: Stage, stages: Sequence[Stage]) -> list[Stage]:
    """The stage and all that read it, directly or through others."""
    found = [stage]
    for other in stages:
        if any(set(other.sources) & set(one.runs) for one in found) and other not in found:
            found.append(other)
    return found
