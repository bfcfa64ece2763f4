"""Task "eval": any protocols on any weights, one pass of features, one results file."""

import dataclasses
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dinov2_jax.configuration import ConfigError, to_dict
from dinov2_jax.distributed import is_main, main_first
from dinov2_jax.eval.feature_cache import FeatureCache, Wanted
from dinov2_jax.eval.inputs import Data, open_data, stored_settings
from dinov2_jax.eval.page import write_page
from dinov2_jax.eval.protocols import (
    Inputs,
    Protocol,
    chosen,
    cls_as_evaluated,
    cls_of_whole_square,
    probe_features,
)
from dinov2_jax.eval.published import published
from dinov2_jax.eval.results import Results
from dinov2_jax.eval.run_finetune import run_finetune
from dinov2_jax.eval.run_frozen import run_few_shot, run_knn, run_linear, run_linear_cached
from dinov2_jax.eval.run_logreg import run_logreg, run_transfer
from dinov2_jax.eval.run_retrieval import run_retrieval
from dinov2_jax.eval.run_robustness import run_robustness
from dinov2_jax.eval.run_video import run_video
from dinov2_jax.features.manifest import weights_fingerprint
from dinov2_jax.models.layers import compute_dtype
from dinov2_jax.weights.bundle import architecture_fields
from dinov2_jax.weights.load import Backbone, load

PROTOCOLS = {
    "knn": Protocol(cls_as_evaluated, run_knn, ("knn",)),
    "few_shot": Protocol(probe_features, run_few_shot, ("few_shot", "knn", "linear")),
    "logreg": Protocol(cls_of_whole_square, run_logreg, ("logreg",)),
    "transfer": Protocol(cls_of_whole_square, run_transfer, ("transfer", "logreg"), False),
    "linear": Protocol(probe_features, run_linear, ("linear",)),
    "linear_cached": Protocol(probe_features, run_linear_cached, ("linear",)),
    "finetune": Protocol(cls_as_evaluated, run_finetune, ("finetune",)),
    "robustness": Protocol(probe_features, run_robustness, ("robustness", "linear")),
    "retrieval": Protocol(cls_as_evaluated, run_retrieval, ("retrieval",), needs_data=False),
    "video": Protocol(probe_features, run_video, ("video", "linear"), needs_data=False),
}


def evaluate(config: ConfigDict, workdir: str = "") -> dict[str, Any]:
    """Runs `config.protocols`, prints a table and writes results.json.

    Args:
      config: configs/eval/default.py.
      workdir: where results and features go; by default <run>/eval/<step> of one of our runs.

    Returns:
      What results.json holds.

    Raises:
      ConfigError, SourceError, WeightsError, CheckpointError: in one sentence, before any
        extraction starts where that can be known.
    """
    protocols = chosen(config.protocols, PROTOCOLS)
    backbone = _backbone(config)
    folder = _folder(workdir, backbone)
    data = None
    if any(protocol.needs_data for protocol in protocols.values()):
        with main_first():
            data = open_data(config.data, stored_settings(backbone))
    results = Results(folder / "results.json", _about(config, backbone, data))
    cache_folder = Path(config.feature_cache or folder / "features").expanduser()
    cache = FeatureCache(cache_folder, backbone, config)
    todo = {
        name: protocol
        for name, protocol in protocols.items()
        if not results.finished(name, _settings(config, protocol))
    }
    wanted = _shared(todo, backbone)
    for name, protocol in todo.items():
        inputs = Inputs(backbone, data, config, cache, wanted[name], folder / name, folder)
        _run(name, protocol, inputs, results)
    if is_main():
        print(results.table())
        print(f"written to {results.path}")
    return results.as_dict()


def _run(name: str, protocol: Protocol, inputs: Inputs, results: Results) -> None:
    outcome = protocol.run(inputs)
    source = inputs.data.title.split()[0] if inputs.data else ""
    own = (name.removesuffix("_cached"), source)
    paper = {
        figure: published(inputs.backbone.model, *outcome.published.get(figure, own))
        for figure in outcome.headline
    }
    results.add(name, _settings(inputs.config, protocol), outcome, paper)
    if is_main():
        results.write()
        write_page(results.path.with_suffix(".html"), results.as_dict())


def _backbone(config: ConfigDict) -> Backbone:
    if not config.checkpoint:
        raise ConfigError(
            "no checkpoint given; add --config.checkpoint=<run, bundle, released name or file>"
        )
    dtype = compute_dtype(config.compute_dtype)
    allow = tuple(filter(None, config.allow.split(",")))
    backbone = load(config.checkpoint, which=config.which, allow=allow, dtype=dtype)
    given = backbone.preprocessing
    sizes = {
        "resize_px": config.resize_size or given.resize_px,
        "image_px": config.image_size or given.image_px,
    }
    patch = backbone.model.patch_size
    if sizes["image_px"] % patch:
        near = max(1, round(sizes["image_px"] / patch)) * patch
        raise ConfigError(
            f"config.image_size {sizes['image_px']} px is no multiple of the checkpoint's patch "
            f"size {patch}; nearest valid: --config.image_size={near}"
        )
    return dataclasses.replace(backbone, preprocessing=dataclasses.replace(given, **sizes))


def _folder(workdir: str, backbone: Backbone) -> Path:
    if workdir:
        return Path(workdir).expanduser()
    if backbone.layout != "run":
        raise ConfigError("results of these weights need a place; add --workdir=evals/<name>")
    step = Path(backbone.source)
    return step.parent.parent / "eval" / step.name


def _about(config: ConfigDict, backbone: Backbone, data: Data | None) -> dict[str, Any]:
    """All that every figure depends on."""
    return {
        "weights": {
            "source": backbone.source,
            "layout": backbone.layout,
            "which": config.which,
            "fingerprint": weights_fingerprint(backbone),
            "architecture": architecture_fields(backbone.model),
        },
        "preprocessing": dataclasses.asdict(backbone.preprocessing),
        "compute_dtype": config.compute_dtype,
        **(data.describe() if data else {"data": "of each protocol"}),
    }


def _settings(config: ConfigDict, protocol: Protocol) -> dict[str, Any]:
    """The fields that a protocol depends on."""
    whole = to_dict(config)
    return {section: whole[section] for section in protocol.sections}


def _shared(protocols: dict[str, Protocol], backbone: Backbone) -> dict[str, Wanted]:
    """What each protocol reads, widened to all of the same preprocessing: one pass for them."""
    own = {name: protocol.wanted(backbone) for name, protocol in protocols.items()}
    widest: dict[tuple[int, int], Wanted] = {}
    for wanted in own.values():
        size = wanted.resize_px, wanted.image_px
        widest[size] = widest[size] | wanted if size in widest else wanted
    return {name: widest[wanted.resize_px, wanted.image_px] for name, wanted in own.items()}
