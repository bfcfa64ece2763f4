"""Video classification: a linear probe on the features of eight frames (paper section 7.2)."""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from dinov2_jax.config.files import ConfigError
from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.data.video import FRAMES, VideoFrames, pool_frames
from dinov2_jax.datasets.files import Files
from dinov2_jax.datasets.video import kinetics, ssv2, ucf101
from dinov2_jax.eval.protocols.linear import (
    check_grid,
    choose,
    columns_of,
    judge,
    probe_settings,
    rivals,
)
from dinov2_jax.eval.published import with_paper
from dinov2_jax.eval.task import Context, Finding, Need, Task, Work
from dinov2_jax.features.cache import Labelled
from dinov2_jax.features.rows import RowView
from dinov2_jax.heads.probe import train_cached

_VIDEOS_AT_ONCE = 4096


class _Set(NamedTuple):
    opened: Callable[..., Files]
    test: str  # what its test split is called
    pooling: str


_SETS = {
    "ucf101": _Set(ucf101, "test", "mean"),
    "ucf101_2": _Set(functools.partial(ucf101, fold=2), "test", "mean"),
    "ucf101_3": _Set(functools.partial(ucf101, fold=3), "test", "mean"),
    "kinetics400": _Set(kinetics, "val", "mean"),
    "ssv2": _Set(ssv2, "validation", "concat"),
}


def open(context: Context) -> list[Task]:
    """52 linear classifiers on the pooled frames of each video of the set in `config.video`.

    The sets have no other labelled split, so the classifier is chosen on test, and results say so.

    Raises:
      ConfigError, SourceError, ImportError: no set or path, lists or videos missing, no PyAV.
    """
    check_grid(context)
    name, which, videos = context.config.video.set, *_open_set(context)
    wanted = context.probe_features
    needs = {
        split: Need(f"{name}-{split}", VideoFrames(files), wanted, keep_unreadable=True)
        for split, files in videos.items()
    }
    sources = {split: need.source for split, need in needs.items()}

    def run(work: Work) -> Iterator[Finding]:
        train, test = (_pool(work.features(needs[split]), which) for split in ("train", "test"))
        # The paper gives no hyper-parameters; these are those of its linear probe on pictures.
        probe, names = probe_settings(context), videos["train"].class_names or ()
        heads = train_cached(columns_of(train), train.labels, len(names), probe, folder=work.folder)
        identity = context.identity(sources["train"])
        head = choose(heads, test, names, identity, work.folder)
        metrics, how = judge(head, test, "test"), dict(context.config.linear)
        yield from with_paper(context, metrics, "video", name, how, train=len(train.labels))
        counts = {"train": len(train.labels), "test": len(test.labels)}
        yield {"frames": FRAMES, "pooling": which.pooling, "videos": counts, "chosen_on": "test"}
        yield from rivals(head, probe.grid, f"Linear classifiers on {name}")

    settings = context.settings("linear", **sources) | {"frames": FRAMES, "pooling": which.pooling}
    return [Task(name, tuple(needs.values()), settings, run)]


def _open_set(context: Context) -> tuple[_Set, dict[str, Files]]:
    settings = context.config.video
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
    return which, videos


def _pool(frames: Labelled, which: _Set) -> Labelled:
    """One row a video of each column, and its label; without videos that cannot be read.

    Concatenated frames stay on disk.
    """
    columns = [pool_frames(np.asarray(c), FRAMES, which.pooling) for c in columns_of(frames)]
    parts = range(0, len(columns[0]), _VIDEOS_AT_ONCE)
    finite = (np.isfinite(columns[0][i : i + _VIDEOS_AT_ONCE]).all(axis=1) for i in parts)
    whole = np.concatenate(list(finite))
    rows = np.flatnonzero(whole)
    *cls, mean_patch = (c if whole.all() else RowView(c, rows) for c in columns)
    labels = frames.labels[::FRAMES][whole]
    return Labelled(tuple(cls), mean_patch, labels, int((~whole).sum()))
