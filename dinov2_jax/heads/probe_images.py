"""The linear probe trained on augmented pictures, as in FB dinov2/eval/linear.py."""

# DINOv2: the backbone computes in its own dtype (bf16 on accelerators, fp32 on CPU), in the
# reference in fp16 autocast. Classifiers are fp32 in both.

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, NamedSharding, P
from jax.sharding import Mesh

from dinov2_jax.data.decode import MAX_PIXELS
from dinov2_jax.data.photometric import normalize
from dinov2_jax.data.preprocess import Preprocessing
from dinov2_jax.data.sources.source import Source
from dinov2_jax.heads.grid import Heads
from dinov2_jax.heads.probe import STATE_FILE, ProbeBatch, ProbeSettings, train
from dinov2_jax.heads.probe_data import check_labels, labelled_batches, state_file
from dinov2_jax.models.vit import VisionTransformer, unstack_blocks
from dinov2_jax.parallel.mesh import make_mesh


def train_images(
    model: VisionTransformer,
    params: Any,
    preprocessing: Preprocessing,
    source: Source,
    labels: np.ndarray,
    classes: int,
    settings: ProbeSettings,
    *,
    workers: int = 0,
    max_pixels: int = MAX_PIXELS,
    folder: Path | None = None,
    identity: str = "",
    mesh: Mesh | None = None,
) -> Heads:
    """Trains on random resized crops (scale 0.08 to 1, bicubic) and flips, as the reference does.

    The frozen backbone runs inside the step.

    Args:
      model, params: the backbone.
      preprocessing: size of the crop, mean and standard deviation of the colours.
      source, labels: pictures and their classes [len(source)]; -1 leaves a picture out.
      workers: loader processes.
      folder: as in `train_cached`.
      identity: of weights and data; a stored state of another identity is refused.
      mesh: all devices by default; images and classes are split over it.

    Raises:
      EvaluationError: as in `train_cached`.
    """
    check_labels(source, labels, classes)
    mesh = mesh or make_mesh()
    params = jax.device_put(unstack_blocks(params), NamedSharding(mesh, P()))

    feed = functools.partial(
        labelled_batches, source, labels, preprocessing, settings, mesh, workers, max_pixels
    )

    def read(params: Any, batch: ProbeBatch) -> tuple[list[Array], Array]:
        images = normalize(batch["images"], preprocessing.mean, preprocessing.std)
        return probe_columns(model, params, images, max(settings.grid.blocks)), batch["labels"]

    about = {"feed": "images", "identity": identity, "size": preprocessing.image_px}
    file = state_file(folder, STATE_FILE, settings, labels, {"classes": classes, **about})
    return train(read, params, feed, model.dim, classes, settings, file, mesh)


def probe_columns(model: VisionTransformer, params: Any, images: Array, blocks: int) -> list[Array]:
    """Computes what the classifiers read: normed cls of the last `blocks` blocks, and mean patch.

    Args:
      params: of the backbone, with `unstack_blocks` (a scan would keep the tokens of all blocks).
      images: [B, H, W, C], normalised.

    Returns:
      blocks + 1 arrays, fp32 [B, D].
    """
    earlier = tuple(range(model.depth - blocks, model.depth - 1))
    out = model.apply({"params": params}, images, intermediate=earlier)
    columns = [normed[:, 0] for _, normed in out["blocks"]]
    columns += [out["cls"], out["patches"].mean(axis=1)]
    return [column.astype(jnp.float32) for column in columns]
