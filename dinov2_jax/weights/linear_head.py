"""The linear classifiers released with DINOv2 (FB dinov2/hub/classifiers.py), and transformers'.

One layer: logits of [cls, mean of the patches] of the last block; four layers: of the cls tokens of
the last four blocks and the mean of the last one's patches. All after the final norm. The keys of
the released segmentation and depth heads are not documented, so those are not read.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from dinov2_jax.models.vit import VisionTransformer, intermediate_layers
from dinov2_jax.weights.files import WeightsError, read_tensors


@dataclasses.dataclass(frozen=True)
class LinearHead:
    """A classifier on frozen features.

    Attributes:
      kernel: [(layers + 1) D, classes]; bias: [classes].
      layers: blocks whose cls tokens it sees.
    """

    kernel: np.ndarray
    bias: np.ndarray
    layers: int

    def logits(self, model: VisionTransformer, params: Any, images: Array) -> Array:
        """[B, H, W, C], normalised -> [B, classes]."""
        outputs = intermediate_layers(model, params, images, self.layers)
        cls = [cls for _, cls in outputs]
        seen = jnp.concatenate([*cls, outputs[-1][0].mean(axis=1)], axis=-1)
        return seen @ self.kernel + self.bias


def load_linear_head(path: str | Path, dim: int) -> LinearHead:
    """Reads dinov2_*_linear_head.pth or dinov2_*_linear4_head.pth (or the same as safetensors).

    Args:
      dim: width of the backbone.

    Raises:
      WeightsError: it is another file, or of a backbone of another width.
    """
    return linear_head(read_tensors(path).tensors, dim, str(path))


def linear_head(tensors: Mapping[str, np.ndarray], dim: int, source: str) -> LinearHead:
    """From {"weight" [classes, (layers + 1) D], "bias" [classes]}.

    Raises:
      WeightsError: as `load_linear_head`.
    """
    if tensors.keys() != {"weight", "bias"}:
        held = ", ".join(sorted(tensors)[:4])
        raise WeightsError(f"{source} is no linear head: it holds {held} instead of weight, bias")
    width = tensors["weight"].shape[1]
    layers = width // dim - 1
    if width % dim or layers not in (1, 4):
        raise WeightsError(
            f"{source} takes {width} features, which is neither 2 nor 5 times the backbone's width "
            f"of {dim}; it belongs to another backbone"
        )
    kernel = np.asarray(tensors["weight"], np.float32).T
    return LinearHead(kernel, np.asarray(tensors["bias"], np.float32), layers)
