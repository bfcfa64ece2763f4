"""k-NN and a linear probe of the EMA teacher while training, when the source has labels."""

import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dinov2_jax.data.decode import DecodeSpec
from dinov2_jax.data.sources.open import open_source
from dinov2_jax.data.sources.source import Source, SourceError, check_same_classes
from dinov2_jax.data.stream import eval_batches
from dinov2_jax.features.frozen import cls_forward, extract_features
from dinov2_jax.heads.grid import Grid, accuracies
from dinov2_jax.heads.knn import knn_accuracy
from dinov2_jax.heads.probe import ProbeSettings, train_cached
from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.parallel.mesh import own_mesh
from dinov2_jax.parallel.processes import is_main

# One input, the cls token of the last block, with all learning rates: 13 classifiers.
_GRID = Grid(blocks=(1,), avgpool=(False,))
_LINEAR_BATCH = 256


class Probe:
    """Top-1 of k-NN and of a linear classifier on the teacher's cls; the pictures stay the same.

    Attributes:
      description: how many pictures it reads each time, in a sentence.
    """

    def __init__(self, config: ConfigDict, model: VisionTransformer, bank: Source, query: Source):
        self._config, self._sources = config, (bank, query)
        self._chosen = [_evenly(source, config.eval.max_pictures) for source in self._sources]
        self._forward = cls_forward(model, config.colour.mean, config.colour.std)
        bank_size, query_size = map(len, self._chosen)
        self.description = (
            f"k-NN every {config.eval.every_steps:,} steps: {query_size:,} pictures of "
            f"{config.eval.test_split} among {bank_size:,} of {config.eval.train_split}"
            f"{', and 13 linear classifiers' if config.eval.linear_iterations else ''}"
        )

    def _features(
        self, params: Any, source: Source, chosen: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        settings, labels = self._config.eval, source.labels
        assert labels is not None
        many = len(chosen) > 5000  # starting processes costs seconds: for a few this one is faster
        batches = eval_batches(
            source,
            chosen,
            batch_size=settings.batch_size,
            resize_size=settings.resize_size,
            image_size=settings.image_size,
            decoding=DecodeSpec(self._config.data.max_pixels, self._config.model.in_channels),
            workers=self._config.data.workers if many else 0,
        )
        title = "k-NN features" if many and is_main() else ""
        features, used = extract_features(
            self._forward, params, batches, total=len(chosen), description=title
        )
        return features, labels[used]

    def __call__(self, teacher: Any) -> dict[str, float]:
        """Of the teacher's parameters {"knn_top1": percent, "linear_top1": percent}.

        And "probe_s": the seconds that training stood still for it.
        """
        began = time.monotonic()
        bank, query = (
            self._features(teacher["backbone"], source, chosen)
            for source, chosen in zip(self._sources, self._chosen, strict=True)
        )
        settings = self._config.eval
        mesh = own_mesh(jax.sharding.get_mesh())
        with jax.set_mesh(mesh):
            found = knn_accuracy(*bank, *query, ks=(settings.k,), temperature=settings.temperature)
            metrics = {"knn_top1": found[settings.k]["top1"]}
            if settings.linear_iterations and np.isfinite(bank[0]).all():
                metrics["linear_top1"] = linear_top1(bank, query, settings.linear_iterations, mesh)
        return metrics | {"probe_s": time.monotonic() - began}


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
    settings = ProbeSettings(_GRID, _LINEAR_BATCH, iterations, save_every=iterations)
    heads = train_cached([bank[0]], labels, len(classes), settings, mesh=mesh, quiet=True)
    place = np.searchsorted(classes, query[1]).clip(max=len(classes) - 1)
    asked = np.where(classes[place] == query[1], place, -1)
    return max(accuracies(heads, [query[0]], asked).values())


def make_probe(config: ConfigDict, model: VisionTransformer) -> tuple[Probe | None, str]:
    """A probe on the splits that `config.eval` names, or None; and a sentence on which and why.

    Raises:
      SourceError: when labels were asked for (eval.labels="folders") and cannot be had.
    """
    settings = config.eval
    if not settings.every_steps or settings.labels == "none":
        return None, "no k-NN: it is switched off"
    try:
        bank, query = (
            _labelled(config, split) for split in (settings.train_split, settings.test_split)
        )
        if bank is None or query is None:
            return None, "no k-NN: the pictures have no labels"
        check_same_classes(bank, query)
    except SourceError as error:
        if settings.labels == "auto":
            return None, f"no k-NN: {error}"
        raise
    probe = Probe(config, model, bank, query)
    return probe, probe.description


def _labelled(config: ConfigDict, split: str) -> Source | None:
    source = open_source(
        config.data.source,
        config.data.path,
        split=split,
        labels=config.eval.labels,
        cache_dir=config.data.cache_dir or None,
    )
    known = source.labels is not None and bool((source.labels >= 0).any())
    return source if known else None


def _evenly(source: Source, most: int) -> np.ndarray:
    """The labelled records, or `most` of them spread over all."""
    assert source.labels is not None
    labelled = np.flatnonzero(source.labels >= 0)
    if not most or len(labelled) <= most:
        return labelled
    return labelled[np.linspace(0, len(labelled) - 1, most).astype(int)]
