"""k-NN of the EMA teacher while training, when the source has labels."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from dinov2_jax.data.pipeline import eval_batches
from dinov2_jax.data.sources import Source, open_source
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
    """A probe on the splits that `config.eval` names, or None when there are no labels."""
    settings = config.eval
    if not settings.every_steps or settings.labels == "none":
        return None
    splits = []
    for split in (settings.train_split, settings.test_split):
        source = open_source(
            config.data.source,
            config.data.path,
            split=split,
            labels=settings.labels,
            cache_dir=config.data.cache_dir or None,
        )
        if source.labels is None or not (source.labels >= 0).any():
            return None
        splits.append(source)
    return KnnProbe(config, model, *splits)
