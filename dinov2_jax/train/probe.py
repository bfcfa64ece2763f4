"""k-NN of the EMA teacher while training, when the source has labels."""

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from dinov2_jax.data.pipeline import eval_batches
from dinov2_jax.data.sources import Source, SourceError, check_same_classes, open_source
from dinov2_jax.distributed import is_main
from dinov2_jax.eval.features import cls_forward, extract_features
from dinov2_jax.eval.knn import knn_accuracy
from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.sharding import own_mesh


class KnnProbe:
    """Top-1 of the weighted k-NN on the teacher's cls features; bank and queries stay the same.

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
            max_pixels=self._config.data.max_pixels,
            channels=self._config.model.in_channels,
            workers=self._config.data.workers if many else 0,
        )
        title = "k-NN features" if many and is_main() else ""
        features, used = extract_features(
            self._forward, params, batches, total=len(chosen), description=title
        )
        return features, labels[used]

    def __call__(self, teacher: Any) -> dict[str, float]:
        """{"knn_top1": percent} of the teacher's parameters."""
        bank, query = (
            self._features(teacher["backbone"], source, chosen)
            for source, chosen in zip(self._sources, self._chosen, strict=True)
        )
        settings = self._config.eval
        with jax.set_mesh(own_mesh(jax.sharding.get_mesh())):
            found = knn_accuracy(*bank, *query, ks=(settings.k,), temperature=settings.temperature)
        return {"knn_top1": found[settings.k]["top1"]}


def make_probe(config: ConfigDict, model: VisionTransformer) -> tuple[KnnProbe | None, str]:
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
    probe = KnnProbe(config, model, bank, query)
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
