"""A fine-tuned classifier and its logits."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from dinov2_jax.data.decode import MAX_PIXELS, DecodeSpec
from dinov2_jax.data.photometric import normalize
from dinov2_jax.data.preprocess import Preprocessing
from dinov2_jax.data.sources.source import Source
from dinov2_jax.data.stream import eval_batches
from dinov2_jax.features.frozen import extract_features
from dinov2_jax.heads.linear import LinearHead
from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.parallel.constraints import replicate
from dinov2_jax.parallel.mesh import make_mesh, state_shardings


@dataclasses.dataclass(frozen=True)
class Finetuned:
    """The averaged weights of a run.

    Attributes:
      model, params: of the backbone, at its new resolution and with LoRA merged.
      head: the classifier; it reads cls of the last block, and the mean patch if `avgpool`.
    """

    model: VisionTransformer
    params: Any
    head: LinearHead


def logits_of(head: Any, out: dict[str, Array], avgpool: bool) -> Array:
    """{"kernel" [d, K], "bias" [K]} and features of the backbone -> fp32 logits [..., K]."""
    x = out["cls"]
    if avgpool:
        x = jnp.concatenate([x, out["patches"].mean(axis=-2)], axis=-1)
    return jnp.einsum("...d,dk->...k", x, head["kernel"], precision="highest") + head["bias"]


def predict(
    found: Finetuned,
    preprocessing: Preprocessing,
    source: Source,
    indices: np.ndarray,
    *,
    batch_size: int = 256,
    workers: int = 0,
    max_pixels: int = MAX_PIXELS,
    mesh: Mesh | None = None,
    description: str = "",
) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the pictures `indices`, resized and cropped in the middle as the weights say.

    Of several processes, all must call it with the same pictures.

    Args:
      description: of the progress bar; no bar without one.

    Returns:
      fp32 [n, K] and the record of each [n]; pictures that cannot be read are left out.
    """
    mesh = mesh or make_mesh()
    head = {"kernel": found.head.weight.T, "bias": found.head.bias}
    values = {"backbone": found.params, "head": head}
    values = jax.device_put(values, state_shardings(values, mesh))

    def forward(values: Any, images: Array) -> dict[str, Array]:
        images = normalize(images, preprocessing.mean, preprocessing.std)
        out = found.model.apply({"params": values["backbone"]}, images)
        return {"cls": replicate(logits_of(values["head"], out, found.head.avgpool))}

    batches = eval_batches(
        source,
        indices,
        batch_size=batch_size,
        resize_size=preprocessing.resize_px,
        image_size=preprocessing.image_px,
        decoding=DecodeSpec(max_pixels, len(preprocessing.mean)),
        workers=workers,
    )
    how = {"total": len(indices), "description": description}
    with jax.set_mesh(mesh):
        return extract_features(jax.jit(forward), values, batches, **how)
