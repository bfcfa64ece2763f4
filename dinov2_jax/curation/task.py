"""Task "curate": opens the pictures, and runs the stages that are not finished, in their order."""

from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from dinov2_jax.config.files import ConfigError, local_path, nearest, to_dict
from dinov2_jax.curation import calibrate as calibration
from dinov2_jax.curation import cluster as clustering
from dinov2_jax.curation import dedup, embed, kept, pictures, sample
from dinov2_jax.curation import exclude as exclusion
from dinov2_jax.curation import report as reporting
from dinov2_jax.curation import retrieve as retrieval
from dinov2_jax.curation.descriptor import open_descriptor
from dinov2_jax.curation.dry_run import print_plan
from dinov2_jax.curation.pool import Pool
from dinov2_jax.curation.references import Sets, open_sets
from dinov2_jax.curation.rules import STAGES
from dinov2_jax.curation.stage import Stage, check_unchanged, is_complete, run_stage
from dinov2_jax.curation.tables import Tables
from dinov2_jax.data.sources.open import open_source
from dinov2_jax.data.sources.source import notes_of
from dinov2_jax.run.files import write_json
from dinov2_jax.run.lock import locked

# What a stage cannot do without.
_NEEDS = {
    "pictures": (),
    "embed": ("pictures",),
    "calibrate": ("embed",),
    "dedup": ("calibrate",),
    "exclude": ("dedup",),
    "cluster": ("dedup",),
    "retrieve": ("dedup",),
    "sample": ("dedup",),
    "manifest": ("sample",),
    "report": ("dedup",),
}


def curate(config: ConfigDict, workdir: str) -> None:
    """Makes a training set of the pictures of `config.data`, or continues in `workdir`.

    Raises:
      ConfigError: a setting is missing or cannot be used.
      SourceError: no pictures.
      WeightsError: weights that cannot be read.
      CurationError: what a stage refuses.
      ImportError: a package of the extra `curation` is missing.
    """
    used = stages_of(config)
    if config.curate.dry_run:
        print_plan(config, used)
        return
    if jax.process_count() > 1:
        raise ConfigError(
            f"curation runs in one process with all its devices, not in {jax.process_count()}; "
            "start one, and use --config.curate.engine=ray for the tables of large pools"
        )
    if not workdir:
        raise ConfigError("curation needs a run directory; add --workdir=runs/<name>")
    folder = local_path(workdir, "--workdir")
    tables = Tables(config.curate.engine, config.curate.cluster)
    data = config.data
    source = open_source(data.source, data.path, split=data.split, cache_dir=data.cache_dir or None)
    for note in notes_of(source):
        print(f"note: {note}", flush=True)
    sets = {
        "exclude": open_sets(config.curate.references, "references", data.path),
        "retrieve": open_sets(config.curate.queries, "queries", data.path),
    }
    pool = Pool(config, folder, source, tables)
    with locked(folder, wait=False):
        write_json(folder / "config.json", to_dict(config))
        _run_all(make_stages(pool, used, sets), pool)


def stages_of(config: ConfigDict) -> tuple[str, ...]:
    """The wanted stages and those that they need, in their order.

    Raises:
      ConfigError: an unknown stage, or settings that a wanted stage lacks.
    """
    wanted = config.curate.stages
    for name in wanted:
        if name not in STAGES:
            raise ConfigError(
                f"config.curate.stages has {name!r}; did you mean {nearest(name, STAGES)!r}?"
            )
    used, pending = set[str](), list(wanted)
    while pending:
        name = pending.pop()
        used.add(name)
        pending += [need for need in _NEEDS[name] if need not in used]
    if "retrieve" in used and config.curate.retrieve.how != "sample":
        used.add("cluster")
    for name, field in (("exclude", "references"), ("retrieve", "queries")):
        if name in used and not config.curate[field]:
            raise ConfigError(
                f"the stage {name!r} needs config.curate.{field}; add --config.curate.{field}="
                "name:/path, or leave the stage out of config.curate.stages"
            )
    return tuple(name for name in STAGES if name in used)


def make_stages(pool: Pool, used: Sequence[str], sets: dict[str, Sets]) -> list[Stage]:
    """The stages of a run, each made for the others that it reads."""
    used = tuple(used)
    descriptor = open_descriptor(pool)
    made = {
        "pictures": pictures.STAGE,
        "embed": embed.stage(descriptor),
        "calibrate": calibration.stage(descriptor),
        "dedup": dedup.STAGE,
        "exclude": exclusion.stage(descriptor, sets["exclude"]),
        "cluster": clustering.stage(used),
        "retrieve": retrieval.stage(descriptor, sets["retrieve"], used),
        "sample": sample.stage(used),
        "manifest": kept.stage(used),
        "report": reporting.stage(used),
    }
    return [made[name] for name in used]


def _run_all(stages: Sequence[Stage], pool: Pool) -> None:
    """Runs what is not finished. What changed since is told before any stage begins."""
    names = [stage.name for stage in stages]
    for number, stage in enumerate(stages, 1):
        if all(is_complete(pool.folder / name) for name in stage.reads):
            check_unchanged(stage, pool, names[number:])
    for number, stage in enumerate(stages, 1):
        before = is_complete(pool.folder / stage.name)
        if not before:
            print(f"stage {number} of {len(stages)}: {stage.name}", flush=True)
        record = run_stage(stage, pool, names[number:])
        print(_line(stage.name, record, before), flush=True)
    _say_where(pool.folder, names)


def _line(name: str, record: dict, before: bool) -> str:
    counts = "".join(f", {count:,} {key}" for key, count in record["counts"].items())
    when = "finished before" if before else f"{record['seconds']:.1f} s"
    return f"{name}: {record['rows']:,} rows{counts.replace('_', ' ')} ({when})"


def _say_where(folder: Path, names: Sequence[str]) -> None:
    if "manifest" in names:
        print(
            f"train on it: --config.data.source=manifest --config.data.path={folder / 'manifest'}; "
            f"the pictures are listed in {folder / 'manifest' / 'kept.txt'}",
            flush=True,
        )
    if "report" in names:
        print(f"what was removed, with pictures: {folder / 'report' / 'report.html'}", flush=True)
