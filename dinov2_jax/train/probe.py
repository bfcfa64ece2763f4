"""k-NN of the EMA teacher while training, when the source has labels."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from dinov2_jax.data.pipeline import eval_batches
from dinov2_jax.data.sources import Source, SourceError, open_source
from dinov2_jax.eval.features import cls_forward, extract_features
from dinov2_jax.eval.knn import knn_accuracy
from dinov2_jax.models.vit import VisionTransformer


class KnnProbe:
    """Top-1 of the weighted k-NN on the teacher's cls features; bank and queries stay the same."""

    def __init__(self, config: ConfigDict, model: VisionTransformer, bank: Source, query: Source):
        self._config, self._bank, self._query = config, bank, query
        self._forward = cls_forward(model, config.colour.mean, config.colour.std)

    def _features(self, params: Any, source: Source) -> tuple[np.ndarray, np.ndarray]:
        settings, labels = self._config.eval, source.labels
        assert labels is not None
        batches = eval_batches(
            source,
            np.flatnonzero(labels >= 0),
            batch_size=settings.batch_size,
            resize_size=settings.resize_size,
            image_size=settings.image_size,
            max_pixels=self._config.data.max_pixels,
        )
        features, used = extract_features(self._forward, params, batches)
        return features, labels[used]

    def __call__(self, teacher: Any) -> dict[str, float]:
        """{"knn_top1": percent} of the teacher's parameters."""
        sets = (self._features(teacher["backbone"], s) for s in (self._bank, self._query))
        bank, query = sets
        settings = self._config.eval
        found = knn_accuracy(*bank, *query, ks=(settings.k,), temperature=settings.temperature)
        return {"knn_top1": found[settings.k]["top1"]}


def make_probe(config: ConfigDict, model: VisionTransformer) -> KnnProbe | None:
    """A probe on the splits that `config.eval` names, or None when there are no labels.

    Raises:
      SourceError: when labels were asked for (eval.labels="folders") and cannot be had.
    """
    settings = config.eval
    if not settings.every_steps or settings.labels == "none":
        return None
    try:
        bank, query = (
            _labelled(config, split) for split in (settings.train_split, settings.test_split)
        )
    except SourceError:
        if settings.labels == "auto":
            return None
        raise
    return KnnProbe(config, model, bank, query) if bank and query else None


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
