"""cls features of many pictures, in fixed batches."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax import Array
from tqdm import tqdm

from dinov2_jax.data.photometric import normalize
from dinov2_jax.parallel.constraints import replicate

Forward = Callable[[Any, Array], Mapping[str, Array]]


def cls_forward(model: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> Forward:
    """Jitted (backbone parameters, uint8 images [n, H, W, 3]) -> features, whole on every device.

    Of several processes, all must call it with the same images.
    """

    def forward(params: Any, images: Array) -> Mapping[str, Array]:
        out = model.apply({"params": params}, normalize(images, mean, std))
        return jax.tree.map(replicate, out)

    return jax.jit(forward)


def extract_features(
    forward: Forward,
    params: Any,
    batches: Iterable[dict[str, np.ndarray]],
    *,
    total: int | None = None,
    description: str = "",
) -> tuple[np.ndarray, np.ndarray]:
    """Normed cls tokens of all readable pictures.

    Args:
      forward: from `cls_forward`.
      batches: from `data.loader.eval_batches`.
      total, description: of the progress bar; no bar without a description.

    Returns:
      fp32 features [n, D] and the record of each [n]; padding and unreadable pictures are left out.
    """
    features, indices = [], []
    bar = tqdm(total=total, desc=description, unit="image", disable=not description)
    for batch in batches:
        real = batch["index"] >= 0
        out = np.asarray(forward(params, batch["images"])["cls"], np.float32)
        features.append(out[real])
        indices.append(batch["index"][real])
        bar.update(int(real.sum()))
    bar.close()
    return np.concatenate(features), np.concatenate(indices)
