"""k-NN and a linear probe of the EMA teacher while training, when the source has labels."""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dinov2_jax.data.preprocess import Preprocessing
from dinov2_jax.data.sources.open import open_source
from dinov2_jax.data.sources.source import Source, SourceError, check_same_classes
from dinov2_jax.features.extractor import Extractor
from dinov2_jax.features.request import central_square
from dinov2_jax.heads.grid import Grid, accuracies
from dinov2_jax.heads.knn import knn_accuracy
from dinov2_jax.heads.probe import ProbeSettings, train_cached
from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.parallel.mesh import own_mesh
from dinov2_jax.parallel.processes import is_main
from dinov2_jax.run.labels import keep_labels, recall_labels
from dinov2_jax.weights.load import Backbone


class Probe:
    """Top-1 of k-NN and of a linear classifier on the teacher's cls, always of the same pictures.

    All devices and processes share the pictures.

    Attributes:
      description: how many pictures it reads each time, in a sentence.
    """

    def __init__(
        self,
        config: ConfigDict,
        model: VisionTransformer,
        bank: Source,
        query: Source,
        folder: Path | None = None,
    ) -> None:
        self._config, self._model = config, model
        most = config.eval.max_pictures
        self._splits = [_Split(source, most, folder) for source in (bank, query)]
        bank_size, query_size = (len(split.rows) for split in self._splits)
        self.description = (
            f"k-NN every {config.eval.every_steps:,} steps: {query_size:,} pictures of "
            f"{config.eval.test_split} among {bank_size:,} of {config.eval.train_split}"
            f"{', and 13 linear classifiers' if config.eval.linear_iterations else ''}"
        )

    def __call__(
        self, teacher: Any, stopped: Callable[[], bool] = lambda: False
    ) -> dict[str, float]:
        """Evaluates the teacher's parameters.

        Args:
          stopped: once true, the pictures are read no further and there are no metrics.

        Returns:
          {"knn_top1": percent, "linear_top1": percent, "probe_s": seconds that training stood
          still}.
        """
        began = time.monotonic()
        bank, query = (self._features(teacher, split, stopped) for split in self._splits)
        if stopped():
            return {}
        settings = self._config.eval
        mesh = own_mesh(jax.sharding.get_mesh())
        with jax.set_mesh(mesh):
            by_k = knn_accuracy(*bank, *query, ks=(settings.k,), temperature=settings.temperature)
            metrics = {"knn_top1": by_k[settings.k]["top1"]}
            if settings.linear_iterations and np.isfinite(bank[0]).all():
                metrics["linear_top1"] = linear_top1(bank, query, settings.linear_iterations, mesh)
        return metrics | {"probe_s": time.monotonic() - began}

    def _features(
        self, teacher: Any, split: "_Split", stopped: Callable[[], bool]
    ) -> tuple[np.ndarray, np.ndarray]:
        """cls [n, D] and labels [n] of the readable pictures whose label is known."""
        settings, colour = self._config.eval, self._config.colour
        sizes = settings.resize_size, settings.image_size
        preprocessing = Preprocessing(*sizes, tuple(colour.mean), tuple(colour.std))
        model, channels = self._model, self._config.model.in_channels
        backbone = Backbone(model, teacher["backbone"], preprocessing, {}, "teacher", "run", ())
        request = central_square(model, preprocessing, channels=channels)
        mesh = jax.sharding.get_mesh()
        extractor = Extractor(backbone, request, batch_size=settings.batch_size, mesh=mesh)
        rows, labels = split.labelled
        many = len(rows) > 5000  # starting processes costs seconds: for a few a thread is faster
        columns, readable = extractor.read(
            split.source,
            rows,
            max_pixels=self._config.data.max_pixels,
            workers=self._config.data.workers if many else 0,
            unit="k-NN picture" if many else "",
            stopped=stopped,
        )
        return columns["cls"][readable], labels[readable]


class _Split:
    """The labelled pictures of a source, or `most` of them spread over all (0: no limit).

    Where each label costs the read of a record, the rows are chosen first, labels are read for them
    alone, and kept in the folder of the run for its next start.
    """

    def __init__(self, source: Source, most: int, folder: Path | None = None) -> None:
        self.source, self._folder = source, folder
        known = np.arange(len(source))
        if not hasattr(source, "labels_of"):
            known = np.flatnonzero(_labels_of(source, known) >= 0)
        self.rows = _evenly(known, most)

    @functools.cached_property
    def labelled(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows with a known label, and these labels; read once."""
        if self._folder is not None:
            recall_labels(self.source, self._folder)
        labels = _labels_of(self.source, self.rows)
        if self._folder is not None and is_main():
            keep_labels(self.source, self._folder)
        return self.rows[labels >= 0], labels[labels >= 0]


def _labels_of(source: Source, rows: np.ndarray) -> np.ndarray:
    """Labels of some rows; where they have to be read, each process reads its share."""
    if not hasattr(source, "labels_of"):
        assert source.labels is not None
        return source.labels[rows]
    share = -(-len(rows) // jax.process_count())
    own = source.labels_of(rows[jax.process_index() * share :][:share])
    padded = np.pad(own.astype(np.int32), (0, share - len(own)))
    found = np.asarray(multihost_utils.process_allgather(padded)).reshape(-1)[: len(rows)]
    if getattr(source, "known_labels", None) is not None:
        source.known_labels[rows] = found
    return found


def _evenly(rows: np.ndarray, most: int) -> np.ndarray:
    """All rows, or `most` of them spread over all."""
    if not most or len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).astype(int)]


def linear_top1(
    bank: tuple[np.ndarray, np.ndarray],
    query: tuple[np.ndarray, np.ndarray],
    iterations: int,
    mesh: Mesh,
) -> float:
    """The best of 13 linear classifiers, in percent.

    Args:
      bank, query: features [n, D] and class numbers [n]; a class that the bank lacks counts as
        missed.
      iterations: of SGD, 256 pictures each.
      mesh: of this process alone.
    """
    classes, labels = np.unique(bank[1], return_inverse=True)
    # One input, the cls token of the last block, with all learning rates: 13 classifiers.
    grid = Grid(blocks=(1,), avgpool=(False,))
    settings = ProbeSettings(grid, 256, iterations, save_every=iterations)
    heads = train_cached([bank[0]], labels, len(classes), settings, mesh=mesh, quiet=True)
    place = np.searchsorted(classes, query[1]).clip(max=len(classes) - 1)
    asked = np.where(classes[place] == query[1], place, -1)
    return max(accuracies(heads, [query[0]], asked).values())


def make_probe(
    config: ConfigDict, model: VisionTransformer, folder: Path | None = None
) -> tuple[Probe | None, str]:
    """A probe on the splits that `config.eval` names, or None; and a sentence on which and why.

    Args:
      folder: of the run, where labels that cost the read of a record are kept.

    Raises:
      SourceError: when labels were asked for (eval.labels="folders") and cannot be had.
    """
    settings = config.eval
    if not settings.every_steps or settings.labels == "none":
        return None, "no k-NN: it is switched off"
    try:
        bank = _labelled(config, settings.train_split)
        query = None if bank is None else _labelled(config, settings.test_split)
        if bank is None or query is None:
            return None, "no k-NN: the pictures have no labels"
        check_same_classes(bank, query)
    except SourceError as error:
        if settings.labels == "auto":
            return None, f"no k-NN: {error}"
        raise
    probe = Probe(config, model, bank, query, folder)
    return probe, probe.description


def _labelled(config: ConfigDict, split: str) -> Source | None:
    data = config.data
    cache_dir = data.cache_dir or None
    source = open_source(
        data.source, data.path, split=split, labels=config.eval.labels, cache_dir=cache_dir
    )
    if hasattr(source, "labels_of"):
        labels = source.labels_of(_evenly(np.arange(len(source)), 8))
    else:
        labels = source.labels
    return source if labels is not None and bool((labels >= 0).any()) else None
