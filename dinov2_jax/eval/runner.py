"""Task "eval": opens protocols, computes features once for all of them, runs, writes results."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dinov2_jax.config.files import ConfigError, local_path, nearest
from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.eval.page import write_page
from dinov2_jax.eval.pictures import overlap_warning, unreadable
from dinov2_jax.eval.protocols import (
    depth,
    few_shot,
    finetune,
    knn,
    knn_segmentation,
    linear,
    logreg,
    retrieval,
    robustness,
    segmentation,
    transfer,
    video,
    vos,
)
from dinov2_jax.eval.results import Results, folder_of, picture_file, table
from dinov2_jax.eval.task import Context, Need, Pass, Task, Work
from dinov2_jax.features.cache import FeatureCache, Wanted
from dinov2_jax.models.layers import compute_dtype
from dinov2_jax.parallel.processes import from_main, is_main
from dinov2_jax.run.files import write_bytes
from dinov2_jax.run.lock import locked
from dinov2_jax.viz.gallery import Figure
from dinov2_jax.viz.sheet import png_bytes
from dinov2_jax.weights.bundle import architecture_fields
from dinov2_jax.weights.load import Backbone, load_configured

PROTOCOLS: dict[str, Callable[[Context], list[Task]]] = {
    "knn": knn.open,
    "few_shot": few_shot.open,
    "logreg": logreg.open,
    "transfer": transfer.open,
    "linear": linear.open,
    "linear_cached": functools.partial(linear.open, on_pictures=False),
    "finetune": finetune.open,
    "robustness": robustness.open,
    "retrieval": retrieval.open,
    "video": video.open,
    "segmentation": segmentation.open,
    "segmentation_ms": segmentation.open_ms,
    "depth": depth.open_linear,
    "depth_dpt": depth.open_dpt,
    "knn_segmentation": knn_segmentation.open,
    "vos": vos.open,
}


@dataclasses.dataclass(frozen=True)
class _Planned:
    """A task below the folder of all results; `before` are the folders of those that it takes."""

    protocol: str
    task: Task
    root: Path
    before: Mapping[str, Path] = dataclasses.field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.root / self.protocol / folder_of(self.task.data)

    @property
    def key(self) -> tuple[str, str, Mapping[str, Any]]:
        return self.protocol, self.task.data, self.task.settings


def evaluate(
    config: ConfigDict, workdir: str = "", backbone: Backbone | None = None
) -> dict[str, Any]:
    """Runs `config.protocols`, prints a table, and writes results.json and results.html.

    Args:
      config: configs/eval/default.py.
      workdir: folder of the results; for one of our runs it defaults to <run>/eval/<step>/<data>.
      backbone: weights that are loaded already; None loads `config.checkpoint`.

    Returns:
      What results.json holds: found["results"]["knn"]["imagenet"]["metrics"]["top-1, k=20"].

    Raises:
      UserError: whatever cannot run, in one sentence, before anything is computed.
    """
    names = _chosen(config.protocols)
    backbone = _resized(config, backbone or load_backbone(config))
    root = _root(workdir, backbone)
    place = Path(config.feature_cache or root / "features").expanduser()
    context = Context(backbone, config, FeatureCache(place, backbone, config))
    opened = [(name, task) for name in names for task in PROTOCOLS[name](context)]
    folder = root if workdir else root / folder_of(opened[0][1].data)
    results = Results(folder / "results.json", _about(context))
    planned = [_Planned(name, task, folder) for name, task in opened]
    first = [one for one in planned if not one.task.after]
    # Tasks that take the result of another one come last.
    planned = first + [_behind(one, first, context, results) for one in planned if one.task.after]
    # Process 0 decides: over a network the others may see older files, and would wait for ever.
    todo = from_main([i for i, one in enumerate(planned) if not results.finished(*one.key)])
    _run_all([planned[i] for i in todo], context, results)
    if is_main():
        print(table(results.as_dict()["results"]))
        print(f"written to {results.path}, with curves in {results.path.with_suffix('.html')}")
    return results.as_dict()


def _chosen(names: Any) -> tuple[str, ...]:
    """The protocols of `config.protocols`; raises ConfigError for none, or an unknown one."""
    names = (names,) if isinstance(names, str) else tuple(names)
    for name in names or ("",):
        if name not in PROTOCOLS:
            raise ConfigError(
                f"config.protocols has {name!r}; did you mean {nearest(name, tuple(PROTOCOLS))!r}? "
                f"(of {', '.join(PROTOCOLS)})"
            )
    return tuple(dict.fromkeys(names))


# -------------------------------------------------------------------------------------- opening
def load_backbone(config: ConfigDict) -> Backbone:
    """Loads `config.checkpoint`; raises ConfigError if there is none, or see `weights.load`."""
    if not config.checkpoint:
        raise ConfigError(
            "no checkpoint given; add --config.checkpoint=<run, bundle, released name or file>"
        )
    return load_configured(config, config.checkpoint, compute_dtype(config.compute_dtype))


def _resized(config: ConfigDict, backbone: Backbone) -> Backbone:
    """The backbone with the sizes of pictures that the configuration gives."""
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
    if image_px % patch:
        near = max(1, round(image_px / patch)) * patch
        raise ConfigError(
            f"config.image_size {image_px} px is no multiple of the checkpoint's patch "
            f"size {patch}; nearest valid: --config.image_size={near}"
        )
    resized = dataclasses.replace(given, **sizes)
    # The same object knows the fingerprint of its weights, which takes seconds.
    return backbone if resized == given else dataclasses.replace(backbone, preprocessing=resized)


def _root(workdir: str, backbone: Backbone) -> Path:
    """The workdir, or <run>/eval/<step>, which holds the features of all data sets."""
    if workdir:
        return local_path(workdir, "--workdir")
    if backbone.layout != "run":
        raise ConfigError("results of these weights need a place; add --workdir=evals/<name>")
    step = Path(backbone.source)
    return step.parent.parent / "eval" / step.name


def _about(context: Context) -> dict[str, Any]:
    """What all figures depend on."""
    backbone, config = context.backbone, context.config
    return {
        "weights": {
            "source": backbone.source,
            "layout": backbone.layout,
            "which": config.which,
            "fingerprint": context.cache.weights,
            "architecture": architecture_fields(backbone.model),
        },
        "preprocessing": dataclasses.asdict(backbone.preprocessing),
        "compute_dtype": config.compute_dtype,
    }


# ------------------------------------------------------------------------------------- planning
def _behind(
    one: _Planned, first: Sequence[_Planned], context: Context, results: Results
) -> _Planned:
    """Gives a task the results that it takes: of this evaluation, else finished ones.

    Raises:
      ConfigError: there is none with the present weights, data and settings.
    """
    after = one.task.after
    found = [other for name in after for other in first if other.protocol == name]
    if not found:
        earlier = [_Planned(name, PROTOCOLS[name](context)[0], one.root) for name in after]
        found = [other for other in earlier if results.finished(*other.key)]
    if not found:
        raise ConfigError(
            f"{one.protocol} takes the result of {' or '.join(after)}, and {one.root} has none of "
            "these weights, data and settings; evaluate it before, as in "
            f"--config.protocols={after[0]},{one.protocol}, or name a classifier with --config.head"
        )
    settings = {**one.task.settings, "after": {p.protocol: p.task.settings for p in found}}
    task = dataclasses.replace(one.task, settings=settings)
    before = {other.protocol: other.folder for other in found}
    return dataclasses.replace(one, task=task, before=before)


def _check_pictures(todo: Sequence[_Planned], context: Context) -> str:
    """Reads headers of the data's splits where features are missing; returns a warning, or "".

    Process 0 reads for all.

    Raises:
      SourceError: more pictures than `config.data.max_bad` cannot be read.
    """
    if not todo or "data" not in context.__dict__:  # no protocol reads config.data
        return ""
    error = from_main(_unreadable(todo, context) if is_main() else "")
    if error:
        raise SourceError(error)
    splits = context.data.splits
    warning = from_main(overlap_warning(splits["train"], splits["test"]) if is_main() else "")
    return f"{context.data.name}: {warning}" if warning else ""


def _unreadable(todo: Sequence[_Planned], context: Context) -> str:
    """Why a split that lacks features cannot be read, or ""."""
    limits, needs = context.config.data, [need for one in todo for need in one.task.needs]
    whys = (
        unreadable(source, limits.max_pixels, limits.max_bad, split)
        for split, source in context.data.splits.items()
        if any(n.source is source and not _is_stored(n, context.cache) for n in needs)
    )
    return next(filter(None, whys), "")


def _is_stored(need: Need, cache: FeatureCache) -> bool:
    wanted = need.wanted if need.stored else None
    return wanted is not None and cache.holds(need.source, need.title, wanted)


# -------------------------------------------------------------------------------------- running
def _widest(todo: Sequence[_Planned]) -> dict[Pass, Wanted]:
    """What each stored pass computes: the features that any of its tasks reads."""
    found: dict[Pass, Wanted] = {}
    for need in (need for one in todo for need in one.task.needs):
        if need.wanted is not None and need.stored:
            found[need.key] = found.get(need.key, need.wanted) | need.wanted
    return found


def _run_all(todo: Sequence[_Planned], context: Context, results: Results) -> None:
    warning, widest = _check_pictures(todo, context), _widest(todo)
    if warning and is_main():
        print(f"warning: {warning}", flush=True)
    for one in todo:
        earlier = results.values(one.protocol)
        work = Work(one.folder, one.before, earlier, context.cache, widest)
        with locked(one.folder, wait=False):
            _run(one, work, results, warning)


def _run(one: _Planned, work: Work, results: Results, warning: str) -> None:
    """Runs a task; process 0 writes each finding at once."""
    protocol, data = one.protocol, one.task.data
    replaced, began = results.begin(*one.key), time.monotonic()
    if replaced and is_main():
        print(f"{protocol} on {data}: replaces a result of other settings ({replaced})", flush=True)
    if warning and any(need.title in ("train", "test") for need in one.task.needs):
        results.add(protocol, data, {"warning": warning})
    for finding in one.task.run(work):
        results.add(protocol, data, finding)
        if is_main():
            if isinstance(finding, Figure):
                place = results.path.parent / picture_file(protocol, data, finding.file)
                write_bytes(place, png_bytes(finding.image))
            results.write()
    results.finish(protocol, data, time.monotonic() - began)
    if is_main():
        results.write()
        write_page(results.path.with_suffix(".html"), results.as_dict())
