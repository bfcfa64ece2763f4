"""Video classification: a linear probe on the features of eight frames (paper section 7.2)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from dinov2_jax.config.files import ConfigError
from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.data.video import FRAMES, VideoFrames, pool_frames
from dinov2_jax.datasets.files import Files
from dinov2_jax.datasets.video import kinetics, ssv2, ucf101
from dinov2_jax.eval.protocols import Inputs, Outcome
from dinov2_jax.eval.run_frozen import (
    accuracy_by_rate,
    columns_of,
    keep_head,
    linear_settings,
)
from dinov2_jax.heads.grid import best
from dinov2_jax.heads.probe import train_cached
from dinov2_jax.metrics.classification import top_accuracy


class _Set(NamedTuple):
    opened: Callable[..., Files]
    test: str  # what its test split is called
    pooling: str


_SETS = {
    "ucf101": _Set(ucf101, "test", "mean"),
    "kinetics400": _Set(kinetics, "val", "mean"),
    "ssv2": _Set(ssv2, "validation", "concat"),
}


def open_video(inputs: Inputs, others: Sequence[str]) -> dict[str, VideoFrames]:
    """The frames of "train" and "test" of the set that `config.video` names.

    Raises:
      ConfigError, SourceError, ImportError: no set or path, lists or videos missing, no PyAV.
    """
    settings = inputs.config.video
    if not settings.set or not settings.path:
        raise ConfigError(
            f"video needs --config.video.set (of {', '.join(_SETS)}) and --config.video.path"
        )
    which = _SETS[settings.set]
    names = {"train": "train", "test": which.test}
    more = {"allow_missing": settings.allow_missing} if settings.set == "kinetics400" else {}
    videos = {name: which.opened(settings.path, split, **more) for name, split in names.items()}
    if videos["train"].class_names != videos["test"].class_names:
        raise SourceError(
            f"{settings.set}: the lists of train and {which.test} have different classes; take "
            "both from one release, and whole"
        )
    return {name: VideoFrames(files) for name, files in videos.items()}


def run_video(inputs: Inputs) -> Outcome:
    """52 linear classifiers on the pooled frames of each video."""
    settings, frames = inputs.config.video, inputs.opened
    which, classes = _SETS[settings.set], len(frames["train"].class_names or ())
    pooled = {name: _pooled(inputs, frames[name], name, which) for name in frames}
    probe = linear_settings(inputs)
    columns, labels = pooled["train"]
    heads = train_cached(columns, labels, classes, probe, folder=inputs.folder)
    columns, labels = pooled["test"]
    names = frames["train"].class_names or ()
    winner = best(heads, columns, labels, names, inputs.identity)
    keep_head(inputs, winner)
    logits = winner.logits(columns)
    numbers = {
        **{f"top{n}": top_accuracy(logits, labels, n) for n in (1, 5)},
        "accuracy_by_classifier": winner.metadata["accuracy"],
        "videos": {name: len(rows) for name, (_, rows) in pooled.items()},
    }
    # The paper gives no hyper-parameters; these are those of its linear probe on pictures.
    protocol = {"frames": FRAMES, "pooling": which.pooling, "classifier": winner.name}
    figure = f"{settings.set}, top-1"
    published = {figure: ("video", settings.set)}
    curves = accuracy_by_rate(probe.grid, winner)
    return Outcome({figure: numbers["top1"]}, numbers, protocol, curves, published)


def _pooled(
    inputs: Inputs, frames: VideoFrames, name: str, which: _Set
) -> tuple[list[np.ndarray], np.ndarray]:
    """One row a video of each column, and its label; without videos that cannot be read."""
    title = f"{inputs.config.video.set}-{name}"
    features = inputs.features_of(frames, title, keep_unreadable=True)
    columns = [pool_frames(np.asarray(c), FRAMES, which.pooling) for c in columns_of(features)]
    whole = np.isfinite(columns[0]).all(axis=1)
    return [column[whole] for column in columns], features.labels[::FRAMES][whole]
