"""A fine-tuned classifier and its logits."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from dinov2_jax.data.decode import MAX_PIXELS
from dinov2_jax.data.preprocess import Preprocessing
from dinov2_jax.data.sources.source import Source
from dinov2_jax.features.extractor import Extractor
from dinov2_jax.features.request import central_square
from dinov2_jax.heads.linear import LinearHead
from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.parallel.mesh import make_mesh
from dinov2_jax.parallel.processes import is_main, main_first
from dinov2_jax.weights.bundle import write_bundle
from dinov2_jax.weights.load import Backbone


@dataclasses.dataclass(frozen=True)
class Finetuned:
    """The averaged weights of a run."""

    model: VisionTransformer  # at its new resolution
    params: Any  # of the backbone, with LoRA merged
    head: LinearHead  # reads cls of the last block, and the mean patch if `avgpool`

    def save(self, path: Path, preprocessing: Preprocessing, source: str) -> None:
        """Writes a bundle of backbone and classifier, in place of what is there.

        All processes call it; process 0 writes, and the others wait until the bundle is whole.
        `preprocessing` is that of training; `source` tells the reader where the weights come from.
        """
        with main_first():
            if is_main():
                shutil.rmtree(path, ignore_errors=True)
                heads = {"classifier": self.head.as_stored()}
                write_bundle(path, self.model, self.params, preprocessing, source, heads)


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
    """Computes logits of pictures, resized and cropped in the middle as the weights say.

    With several processes, all must pass the same pictures; each reads its share.

    Args:
      indices: records of `source`.
      mesh: all devices of all processes by default.
      description: what the progress counts; "" shows none.

    Returns:
      fp32 [n, K] and the record of each row [n]; unreadable pictures are left out.
    """
    backbone = Backbone(found.model, found.params, preprocessing, {}, "fine-tuned", "run", ())
    kinds = ("cls", "mean_patch") if found.head.avgpool else ("cls",)
    request = central_square(found.model, preprocessing, kinds, len(preprocessing.mean))
    mesh = mesh or make_mesh()
    extractor = Extractor(backbone, request, batch_size=batch_size, mesh=mesh)
    how = {"max_pixels": max_pixels, "workers": workers, "unit": description}
    columns, readable = extractor.read(source, np.asarray(indices), **how)
    logits = found.head.logits([columns[kind][readable] for kind in kinds])
    return logits, np.asarray(indices)[readable]
