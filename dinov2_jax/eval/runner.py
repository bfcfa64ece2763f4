"""Task "eval": any protocols on any weights, one pass of features, one results file."""

import dataclasses
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dinov2_jax.config.files import ConfigError, to_dict
from dinov2_jax.eval.data import Data, open_data, stored_settings
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
from dinov2_jax.eval.run_finetune import open_finetune, run_finetune
from dinov2_jax.eval.run_frozen import (
    check_classifiers,
    check_few_shot,
    check_knn,
    run_few_shot,
    run_knn,
    run_linear,
    run_linear_cached,
)
from dinov2_jax.eval.run_logreg import check_logreg, open_transfer, run_logreg, run_transfer
from dinov2_jax.eval.run_retrieval import open_retrieval, run_retrieval
from dinov2_jax.eval.run_robustness import open_robustness, run_robustness
from dinov2_jax.eval.run_video import open_video, run_video
from dinov2_jax.features.cache import FeatureCache, Wanted
from dinov2_jax.models.layers import compute_dtype
from dinov2_jax.parallel.processes import is_main, main_first
from dinov2_jax.weights.bundle import architecture_fields
from dinov2_jax.weights.load import Backbone, load

PROTOCOLS = {
    "knn": Protocol(cls_as_evaluated, run_knn, ("knn",), check_knn),
    "few_shot": Protocol(
        probe_features, run_few_shot, ("few_shot", "knn", "linear"), check_few_shot
    ),
    "logreg": Protocol(cls_of_whole_square, run_logreg, ("logreg",), check_logreg),
    "transfer": Protocol(
        *(cls_of_whole_square, run_transfer, ("transfer", "logreg"), open_transfer),
        needs_data=False,
        always=True,
    ),
    "linear": Protocol(probe_features, run_linear, ("linear",), check_classifiers),
    "linear_cached": Protocol(probe_features, run_linear_cached, ("linear",), check_classifiers),
    "finetune": Protocol(cls_as_evaluated, run_finetune, ("finetune",), open_finetune),
    "robustness": Protocol(
        *(probe_features, run_robustness, ("robustness",), open_robustness), always=True
    ),
    "retrieval": Protocol(
        *(cls_as_evaluated, run_retrieval, ("retrieval",), open_retrieval),
        needs_data=False,
        always=True,
    ),
    "video": Protocol(
        *(probe_features, run_video, ("video", "linear"), open_video),
        needs_data=False,
        always=True,
    ),
}


def evaluate(config: ConfigDict, workdir: str = "") -> dict[str, Any]:
    """Runs `config.protocols`, prints a table and writes results.json.

    Args:
      config: configs/eval/default.py.
      workdir: where results and features go; by default <run>/eval/<step> of one of our runs.

    Returns:
      What results.json holds.

    Raises:
      ConfigError, SourceError, WeightsError, CheckpointError, EvaluationError: in one sentence.
    """
    protocols = chosen(config.protocols, PROTOCOLS)
    backbone = _backbone(config)
    folder = _folder(workdir, backbone)
    data = None
    if any(protocol.needs_data for protocol in protocols.values()):
        with main_first():
            data = open_data(config.data, stored_settings(backbone))
    cache_folder = Path(config.feature_cache or folder / "features").expanduser()
    cache = FeatureCache(cache_folder, backbone, config)
    results = Results(folder / "results.json", _about(config, backbone, cache.weights))
    todo = {
        name: protocol
        for name, protocol in protocols.items()
        if protocol.always or not results.finished(name, _settings(config, protocol, data))
    }
    wanted = _shared(todo, backbone)
    given = {
        name: Inputs(backbone, data, config, cache, wanted[name], folder / name, folder)
        for name in todo
    }
    opened = {name: todo[name].open(inputs, tuple(protocols)) for name, inputs in given.items()}
    for name, protocol in todo.items():
        inputs = dataclasses.replace(given[name], opened=opened[name])
        _run(name, protocol, inputs, results)
    if is_main():
        print(results.table())
        print(f"written to {results.path}")
    return results.as_dict()


def _run(name: str, protocol: Protocol, inputs: Inputs, results: Results) -> None:
    outcome = protocol.run(inputs)
    source = inputs.data.title.split()[0] if inputs.data else ""
    own = (name.removesuffix("_cached"), source)
    size = inputs.wanted.resize_px, inputs.wanted.image_px
    as_published = outcome.comparable and size in ((256, 224), (224, 224))
    paper = {
        figure: published(inputs.backbone.model, *outcome.published.get(figure, own))
        for figure in outcome.headline
        if as_published
    }
    settings = _settings(inputs.config, protocol, inputs.data)
    results.add(name, settings, outcome, paper, inputs.seen)
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
    image_px = config.image_size or given.image_px
    # A larger square of a picture that is not larger would be a picture in a black frame.
    in_proportion = round(given.resize_px * image_px / given.image_px)
    sizes = {"resize_px": config.resize_size or in_proportion, "image_px": image_px}
    if sizes["resize_px"] < image_px:
        raise ConfigError(
            f"config.resize_size {sizes['resize_px']} px of the shorter side is less than the "
            f"{image_px} px of the square; use --config.resize_size={in_proportion}"
        )
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


def _about(config: ConfigDict, backbone: Backbone, fingerprint: str) -> dict[str, Any]:
    """What all figures depend on."""
    return {
        "weights": {
            "source": backbone.source,
            "layout": backbone.layout,
            "which": config.which,
            "fingerprint": fingerprint,
            "architecture": architecture_fields(backbone.model),
        },
        "preprocessing": dataclasses.asdict(backbone.preprocessing),
        "compute_dtype": config.compute_dtype,
    }


def _settings(config: ConfigDict, protocol: Protocol, data: Data | None) -> dict[str, Any]:
    """The fields that a protocol depends on, and its data."""
    whole = to_dict(config)
    fields = {section: whole[section] for section in protocol.sections}
    if data is None or not protocol.needs_data:
        return fields
    return fields | data.description | {"max_bad": config.data.max_bad}


def _shared(protocols: dict[str, Protocol], backbone: Backbone) -> dict[str, Wanted]:
    """What each protocol reads, widened to all of the same preprocessing: one pass for them."""
    own = {name: protocol.wanted(backbone) for name, protocol in protocols.items()}
    widest: dict[tuple[int, int], Wanted] = {}
    for wanted in own.values():
        size = wanted.resize_px, wanted.image_px
        widest[size] = widest[size] | wanted if size in widest else wanted
    return {name: widest[wanted.resize_px, wanted.image_px] for name, wanted in own.items()}
