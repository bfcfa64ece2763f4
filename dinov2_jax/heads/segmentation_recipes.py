"""How segmentation heads are trained and judged on each set (paper section 7.4)."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dinov2_jax.data.dense_crops import ANY, SegmentationCrops, rescaled, resize_image
from dinov2_jax.data.preprocess import Preprocessing
from dinov2_jax.heads.dense import Loss
from dinov2_jax.heads.windows import View
from dinov2_jax.metrics.segmentation import IGNORED
from dinov2_jax.models.maps import Level, resize_by_products
from dinov2_jax.models.segmentation import SegmentationHead, initial_statistics


@dataclasses.dataclass(frozen=True)
class SegmentationRecipe:
    """A recipe.

    Attributes:
      iterations, batch_size: of the training.
      crop: px of a side of a training crop, and of a window.
      short_side, long_side: px of a picture at scale 1, at most.
      ratios: of training pictures to that, uniform between.
      stride: px between windows.
      scales, flip: of the test; the mirrored picture is judged as well.
      blocks: how many last blocks the head reads.
    """

    iterations: int = 40_000
    batch_size: int = 16
    crop: int = 512
    short_side: int = 512
    long_side: int = ANY
    ratios: tuple[float, float] = (0.5, 2.0)
    stride: int = 341
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    blocks: int = 1

    def crops(self, preprocessing: Preprocessing) -> SegmentationCrops:
        """What draws training crops."""
        fill = tuple(round(255 * x) for x in preprocessing.mean)
        sides = self.crop, self.short_side, self.long_side
        return SegmentationCrops(*sides, ratios=self.ratios, fill=fill)

    def views(self, image: np.ndarray, preprocessing: Preprocessing) -> Iterator[View]:
        """uint8 [H, W, C] at every scale, as it is and mirrored, normalised."""
        mean, std = (np.float32(x) for x in (preprocessing.mean, preprocessing.std))
        for scale in self.scales:
            limits = int(self.long_side * scale), int(self.short_side * scale)
            shown = resize_image(image, rescaled(*image.shape[:2], *limits))
            shown = (shown / np.float32(255) - mean) / std
            yield View(shown)
            if self.flip:
                yield View(shown[:, ::-1], True)


_LINEAR = SegmentationRecipe()
_MS = SegmentationRecipe(
    crop=640, short_side=640, ratios=(1.0, 3.0), stride=320,
    scales=(1.0, 1.32, 1.73, 2.28, 3.0), flip=True, blocks=4,
)  # fmt: skip
# Few hundred pictures of streets, and a recipe that two cores end within half an hour.
_SMALL = SegmentationRecipe(
    iterations=2000, batch_size=8, crop=352, short_side=352, stride=235, ratios=(0.75, 1.5)
)
_SMALL_MS = dataclasses.replace(_SMALL, scales=(1.0, 1.32, 1.73), flip=True, blocks=4)
RECIPES = {
    "segmentation": {
        "ade20k": _LINEAR,
        "voc2012": dataclasses.replace(_LINEAR, long_side=2048),
        "cityscapes": dataclasses.replace(_LINEAR, short_side=1024, long_side=2048),
        "camvid": _SMALL,
        "folder": _SMALL,
    },
    "segmentation_ms": {
        "ade20k": _MS,
        "voc2012": _MS,
        "cityscapes": dataclasses.replace(_MS, short_side=1024, ratios=(0.5, 2.0)),
        "camvid": _SMALL_MS,
        "folder": _SMALL_MS,
    },
}


def first_trained(width: int, classes: int, seed: int) -> dict[str, Any]:
    """A head before training: {"params", "statistics"}; `width` values a patch over all blocks."""
    statistics, maps = initial_statistics(width), [jnp.zeros((1, 1, 1, width))]
    params = SegmentationHead(classes).init(jax.random.key(seed), maps, statistics)["params"]
    return {"params": jax.tree.map(np.asarray, params), "statistics": statistics}


def segmentation_loss(classes: int) -> Loss:
    """Cross-entropy of the logits at the labels' size, for `train_dense`.

    The sum over known pixels is divided by all pixels, ignored and padded ones too, as in the
    reference (mmsegmentation's avg_non_ignore=False).
    """
    module = SegmentationHead(classes)

    def loss(
        trained: Any, levels: Sequence[Level], targets: Array, iteration: Array
    ) -> tuple[Array, Any]:
        maps, given = [level.patches for level in levels], {"params": trained["params"]}
        logits, seen = module.apply(given, maps, trained["statistics"], train=True)
        found = cross_entropy(resize_by_products(logits, targets.shape[1:3]), targets)
        return found, {**trained, "statistics": seen}

    return loss


def cross_entropy(logits: Array, targets: Array) -> Array:
    """Logits [B, H, W, K] and classes [B, H, W], `IGNORED` where unknown -> the mean over all."""
    known = targets != IGNORED
    place = jnp.where(known, targets, 0).astype(jnp.int32)[..., None]
    right = jnp.take_along_axis(logits, place, axis=-1)[..., 0]
    return jnp.where(known, jax.nn.logsumexp(logits, axis=-1) - right, 0).mean()
