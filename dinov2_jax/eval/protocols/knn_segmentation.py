"""Segmentation by frozen patches: k-NN and logistic regression (CAPI's protocol)."""

import dataclasses
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from dinov2_jax.config.files import ConfigError
from dinov2_jax.data.decode import DecodeSpec, load_record
from dinov2_jax.data.fit import Fit
from dinov2_jax.data.sources.files import NamedFiles
from dinov2_jax.data.sources.source import SourceError, notes_of
from dinov2_jax.datasets.dense import DenseData, DenseSplit
from dinov2_jax.datasets.mask_checks import check_masks
from dinov2_jax.datasets.segmentation import SEGMENTATION_SETS, open_segmentation
from dinov2_jax.eval.data import check_fields_of_set
from dinov2_jax.eval.pictures import unreadable
from dinov2_jax.eval.task import Context, Curve, Finding, Metric, Need, Task
from dinov2_jax.features.extractor import Extractor
from dinov2_jax.features.request import Request
from dinov2_jax.heads import patch_segmentation as patches
from dinov2_jax.heads.patch_choice import (
    Learned,
    Predictor,
    Trial,
    best,
    fit_knn,
    fit_logistic,
    try_knn,
    try_logistic,
)
from dinov2_jax.metrics.segmentation import Areas, add_areas, class_iou, count_areas, summary
from dinov2_jax.models.layers import compute_dtype
from dinov2_jax.parallel import memory
from dinov2_jax.parallel.mesh import make_mesh, own_mesh
from dinov2_jax.parallel.processes import from_main, is_main
from dinov2_jax.viz.gallery import Figure
from dinov2_jax.viz.masks import mask_sheet
from dinov2_jax.weights.architecture import in_channels

log = logging.getLogger("dinov2_jax")

_NAMES = {"cosine": "cosine", "l2": "L2", "logistic": "logistic regression"}
_LEAD = (
    "Every pixel takes the class that is most frequent at its place within the nearest patches of "
    "the training pictures. Nothing is trained."
)
# (row, picture's patches [P, D], classes [S, S])
_Read = tuple[int, np.ndarray, np.ndarray]


def open(context: Context) -> list[Task]:
    """Chooses k, distance and C on val, or on a share of train, and judges test by pixels.

    Raises:
      ConfigError, SourceError: a set, settings or files that do not fit, or too little memory.
    """
    name, path = context.config.data.set, context.config.data.path
    if name not in SEGMENTATION_SETS or not path:
        raise ConfigError(
            f"knn_segmentation needs --config.data.set (of {', '.join(SEGMENTATION_SETS)}) and "
            "--config.data.path"
        )
    check_fields_of_set(context.config.data)
    _check_settings(context)
    data = open_segmentation(name, path)
    _check_memory(context, data)
    needs = tuple(Need(title, split.pictures, None) for title, split in data.splits.items())
    files = {title: split.pictures for title, split in data.splits.items()}
    files |= {f"{title}_masks": _targets(split) for title, split in data.splits.items()}
    settings = context.settings("knn_segmentation", **files)
    return [Task(data.name, needs, settings, lambda _: _run(context, data))]


def _check_settings(context: Context) -> None:
    config, patch = context.config.knn_segmentation, context.backbone.model.patch_size
    for metric in config.metrics:
        if metric not in patches.METRICS:
            raise ConfigError(
                f"config.knn_segmentation.metrics has {metric!r}, but knows only "
                f"{' and '.join(patches.METRICS)}"
            )
    if config.image_px % patch:
        near = max(1, round(config.image_px / patch)) * patch
        raise ConfigError(
            f"config.knn_segmentation.image_px {config.image_px} px is no multiple of the "
            f"checkpoint's patch size {patch}; nearest valid: "
            f"--config.knn_segmentation.image_px={near}"
        )


def _check_memory(context: Context, data: DenseData) -> None:
    """Raises ConfigError if the host cannot hold the patches that are learned from."""
    config, model = context.config.knn_segmentation, context.backbone.model
    each = _per_picture(context)
    held = [len(data.splits[title]) for title in ("train", "val") if title in data.splits]
    rows = sum(min(count * each, config.max_patches) for count in held)
    # As computed, standardised and as they are searched; logistic regression holds fp64 beside.
    wanted = rows * (12 * model.dim + 2 * model.patch_size**2)
    wanted += 20 * model.dim * min(rows, config.logistic_patches) * config.logistic
    there = memory.host_bytes()
    if wanted > there:
        fitting = int(rows * there / wanted / 2)
        raise ConfigError(
            f"{rows:,} patches of {model.dim} features need about {wanted / 2**30:.1f} GiB, and "
            f"this machine has {there / 2**30:.1f}; use "
            f"--config.knn_segmentation.max_patches={fitting} and logistic_patches={fitting}"
        )


def _per_picture(context: Context) -> int:
    side = context.config.knn_segmentation.image_px // context.backbone.model.patch_size
    return side**2


def _targets(split: DenseSplit) -> NamedFiles:
    """The files of the masks as a source, for fingerprints; where they lie does not count."""
    root = os.path.commonpath([os.path.dirname(path) for path in split.targets])
    return NamedFiles(root, [os.fsencode(os.path.relpath(p, root)) for p in split.targets])


def _check_data(context: Context, data: DenseData) -> list[str]:
    """Looks at pictures and masks before long work; process 0 reads for all.

    Returns what is odd but no reason to stop, and prints it.

    Raises:
      SourceError: too many unreadable pictures, or see `check_masks`.
    """
    error, notes = from_main(_look(context, data) if is_main() else None)
    if error:
        raise SourceError(error)
    return notes


def _look(context: Context, data: DenseData) -> tuple[str, list[str]]:
    """Why the data cannot be used, or ""; and notes."""
    limits, notes = context.config.data, list[str]()
    for title, split in data.splits.items():
        notes += notes_of(split.pictures)
        if error := unreadable(split.pictures, limits.max_pixels, limits.max_bad, title):
            return error, []
        own = len(data.class_names) if limits.set in ("camvid", "folder") else None
        try:
            notes += check_masks(split, f"{data.name}, {title}", limits.max_bad, own)
        except SourceError as error:
            return str(error), []
    for note in notes:
        print(f"warning: {note}", flush=True)
    return "", notes


# ---------------------------------------------------------------------------------------- reading
def _learn(context: Context, data: DenseData) -> tuple[Learned, int, int]:
    """Patches of train and val; of how many pictures; and how many cannot be read.

    Without val, a share of the training pictures takes its place. Pictures are drawn where all have
    more patches than `max_patches`.
    """
    config, each = context.config.knn_segmentation, _per_picture(context)
    rng, most = np.random.default_rng(config.seed), max(2, config.max_patches // each)
    train = data.splits["train"]
    rows = rng.permutation(len(train))[:most]
    held = max(1, round(config.val_share * len(rows)))
    if "val" in data.splits:
        val = data.splits["val"]
        parts = (train, np.sort(rows)), (val, np.sort(rng.permutation(len(val))[:most]))
    else:
        parts = (train, np.sort(rows[held:])), (train, np.sort(rows[:held]))
    if not all(len(rows) for _, rows in parts):
        raise SourceError("one training picture is too few, because some must choose k; add some")
    count = sum(len(rows) for _, rows in parts)
    model = context.backbone.model
    features = np.empty((count * each, model.dim), np.float32)
    layouts = np.empty((count * each, model.patch_size**2), np.uint8)
    filled, edges = 0, []
    for title, (split, rows) in zip(("train", "val"), parts, strict=True):
        for _, found, target in _read(context, split, rows, f"picture of {title}"):
            place = slice(filled, filled + each)
            features[place] = found
            layouts[place] = patches.layouts_of(target[None], model.patch_size)
            filled += each
        edges.append(filled)
    learned = Learned(features[:filled], layouts[:filled], edges[0])
    return learned, filled // each, count - filled // each


def _read(context: Context, split: DenseSplit, rows: np.ndarray, unit: str) -> Iterator[_Read]:
    """Patches after the final norm and classes of pictures that are squashed to a square.

    Raises:
      SourceError: at the end, if more pictures or masks are unreadable than `data.max_bad`.
    """
    backbone, data = context.backbone, context.config.data
    model, side = backbone.model, context.config.knn_segmentation.image_px
    columns = (("patches", "patches", model.depth - 1),)
    channels = in_channels(backbone.params, model.patch_size)
    request = Request(columns, True, Fit("resize", (side, side), 0, model.patch_size), channels)
    size, dtype = (
        min(context.config.batch_size, len(rows)),
        compute_dtype(context.config.compute_dtype),
    )
    extractor = Extractor(backbone, request, batch_size=size, dtype=dtype, mesh=make_mesh())
    how = {"max_pixels": data.max_pixels, "workers": data.workers, "unit": unit}
    came = 0
    for computed in extractor.stream(split.pictures, rows, **how):
        for place, features in zip(computed.rows, computed.columns["patches"], strict=True):
            row = int(rows[place])
            try:
                target = _squashed(split.target(row), side)
            except SourceError as error:
                log.warning("%s", error)
                continue
            came += 1
            yield row, features, target
    if len(rows) - came > data.max_bad:
        raise SourceError(
            f"{len(rows) - came} of {len(rows):,} pictures or masks cannot be decoded; replace "
            f"them, or add --config.data.max_bad={len(rows) - came} to leave them out"
        )


def _squashed(target: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(target).resize((side, side), Image.Resampling.NEAREST))


# ---------------------------------------------------------------------------------------- running
def _run(context: Context, data: DenseData) -> Iterator[Finding]:
    chosen_on = "val"
    if "val" not in data.splits:
        chosen_on = f"{100 * context.config.knn_segmentation.val_share:g} % of train"
    if notes := _check_data(context, data):
        yield {"warning": " ".join(notes)}
    learned, pictures, lost = _learn(context, data)
    mesh = own_mesh(make_mesh())  # several processes do the same
    with jax.set_mesh(mesh):
        trials, predictors = _fit(context, learned, len(data.class_names))
    yield from _curves(trials, data.name, chosen_on)
    judged = _Judged(len(data.class_names))
    yield from _judge(context, data, predictors, judged, mesh)
    for name, parts in judged.areas.items():
        how = {"n": len(parts), "chosen_on": chosen_on}
        yield from _metrics(name, add_areas(parts), data.class_names, how)
    chosen = {t.method: t._asdict() for t in map(best, trials.values())}
    counts = {"learned from": pictures, "judged": len(judged.areas["knn"])}
    unreadable = {"learned from": lost, "judged": len(data.splits["test"]) - counts["judged"]}
    yield {"chosen": chosen, "chosen_on": chosen_on, "pictures": counts, "unreadable": unreadable}


def _fit(
    context: Context, learned: Learned, classes: int
) -> tuple[dict[str, list[Trial]], dict[str, Predictor]]:
    """All trials and the predictor of "knn", and of "logistic" where it is wanted."""
    config, show = context.config.knn_segmentation, is_main()
    trials = {"knn": try_knn(learned, config.metrics, config.ks, classes, show)}
    predictors = {}
    if config.logistic:
        values = (10 ** np.linspace(*config.log10_c, config.count)).tolist()
        how = {"most": config.logistic_patches, "seed": config.seed}
        trials["logistic"], chosen = try_logistic(learned, values, classes, show=show, **how)
        predictors["logistic"] = fit_logistic(learned, chosen, classes, **how)
    # Last: the bank stays on the devices.
    return trials, {"knn": fit_knn(learned, best(trials["knn"])), **predictors}


@dataclasses.dataclass
class _Judged:
    """Areas of each test picture, by predictor."""

    classes: int
    areas: dict[str, list[Areas]] = dataclasses.field(default_factory=dict)

    def add(self, name: str, found: np.ndarray, truth: np.ndarray) -> None:
        self.areas.setdefault(name, []).append(count_areas(found, truth, self.classes))


def _judge(
    context: Context,
    data: DenseData,
    predictors: Mapping[str, Predictor],
    judged: _Judged,
    mesh: Mesh,
) -> Iterator[Figure]:
    """Fills `judged` with all pictures of test; yields figures of some, evenly spread."""
    test, patch = data.splits["test"], context.backbone.model.patch_size
    count = min(context.config.knn_segmentation.pictures, len(test))
    drawn = set(np.linspace(0, len(test) - 1, count).astype(int).tolist())
    for row, features, truth in _read(context, test, np.arange(len(test)), "picture of test"):
        for name, predictor in predictors.items():
            with jax.set_mesh(mesh):
                layouts = predictor.predict(features)
            found = patches.pictures_of(layouts, truth.shape, patch)[0]
            judged.add(name, found, truth)
            if name == "knn" and row in drawn:
                yield _figure(context, data, row, found, truth)


# --------------------------------------------------------------------------------------- results
def _metrics(
    name: str, areas: Areas, class_names: Sequence[str], how: Mapping[str, Any]
) -> Iterator[Metric]:
    """ "miou" and its like of k-NN; those of another predictor bear its name."""
    suffix = "" if name == "knn" else f", {_NAMES[name]}"
    for key, value in summary(areas).items():
        yield Metric(f"{key}{suffix}", value, **how)
    for class_name, value in zip(class_names, class_iou(areas).tolist(), strict=True):
        if not np.isnan(value):
            yield Metric(f"iou {class_name}{suffix}", value, **how)


def _curves(trials: Mapping[str, Sequence[Trial]], name: str, chosen_on: str) -> Iterator[Curve]:
    """mIoU over k with a line for each distance, and over C."""
    kinds = {"knn": ("k-NN", "k"), "logistic": ("Logistic regression", "C")}
    for kind, found in trials.items():
        title, x_name = kinds[kind]
        lines: dict[str, list[tuple[float, float]]] = {}
        for trial in sorted(found, key=lambda trial: trial.at):
            lines.setdefault(_NAMES[trial.method], []).append((float(trial.at), trial.miou))
        chosen = best(found)
        mark = _NAMES[chosen.method], float(chosen.at)
        yield Curve(f"{title} on {name}, mIoU on {chosen_on}", x_name, lines, mark, log_x=True)


def _figure(
    context: Context, data: DenseData, row: int, found: np.ndarray, truth: np.ndarray
) -> Figure:
    source = data.splits["test"].pictures
    channels = in_channels(context.backbone.params, context.backbone.model.patch_size)
    image = load_record(source, row, DecodeSpec(context.config.data.max_pixels, channels))
    image = np.repeat(image, 3, axis=2) if channels == 1 else image[..., :3]
    sheet = mask_sheet(image, found, data.class_names, data.colours, truth)
    title = "Segmentation by the nearest patches"
    return Figure(title, _LEAD, f"picture_{row:05}.png", sheet, source.name(row))
