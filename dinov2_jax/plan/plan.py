"""Task "plan": compiles the step for a topology and prints memory, FLOPs, time and advice."""

from typing import Any

import jax
from ml_collections import ConfigDict

from dinov2_jax.config.files import local_path, to_dict
from dinov2_jax.models.vit import blocks_and_remat
from dinov2_jax.plan.flops import step_flops
from dinov2_jax.plan.search import search
from dinov2_jax.plan.text import describe, outcome, summary, tried_line
from dinov2_jax.plan.topology import Target, open_target
from dinov2_jax.plan.trial import changed, try_setting
from dinov2_jax.run.files import write_json
from dinov2_jax.train.checks import check_training


def plan(config: ConfigDict, workdir: str = "") -> dict[str, Any]:
    """Prints the plan of `config`; writes it to <workdir>/plan.json when one is given.

    Raises:
      ConfigError: for an unknown topology, or a batch or mesh that does not divide over it.
      ImportError: when the topology's compiler is not installed.
    """
    target = open_target(config.plan.topology)
    notes = check_training(config, len(target.devices))
    return make_plan(for_target(config, target), target, notes, workdir)


def for_target(config: ConfigDict, target: Target) -> ConfigDict:
    """A copy in which "auto" means the target, not the machine that compiles."""
    config, platform = config.copy_and_resolve_references(), target.devices[0].platform
    if config.compute_dtype == "auto":
        config.compute_dtype = "float32" if platform == "cpu" else "bfloat16"
    model = config.model
    model.blocks, model.remat = blocks_and_remat(model, platform)
    return config


def make_plan(config: ConfigDict, target: Target, notes: list[str], workdir: str) -> dict[str, Any]:
    """As `plan`, for an open target and a configuration that was checked against it."""
    for note in notes:
        print(note)
    print(
        f"compiling one step for {target.name} ({target.devices[0].device_kind}); nothing is run, "
        "a large model takes minutes",
        flush=True,
    )
    first = try_setting(config, target)
    works = [step_flops(config)]
    print("\n".join(describe(config, target, first, works[0])), flush=True)
    trials = [first]
    if first.fits is False:
        for trial in search(config, target, first, config.plan.trials):
            trials.append(trial)
            works.append(step_flops(changed(config, trial.changes)))
            print(tried_line(target, trial), flush=True)
        print("\n".join(outcome(config, target, trials, works[-1])), flush=True)
    results = {
        "jax": jax.__version__,
        "config": to_dict(config),
        "flops_per_image": works[0],
        "notes": notes,
        "settings": [summary(config, target, *pair) for pair in zip(trials, works, strict=True)],
    }
    if workdir:
        path = local_path(workdir, "--workdir") / "plan.json"
        write_json(path, results)
        print(f"written to {path}")
    return results
