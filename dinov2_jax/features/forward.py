"""From uint8 pictures to the wanted features, in one jitted function."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from dinov2_jax.data.photometric import normalize
from dinov2_jax.features.request import Request
from dinov2_jax.models.vit import VisionTransformer, unstack_blocks
from dinov2_jax.weights.load import Backbone

Forward = Callable[[Any, Array], Mapping[str, Array]]


def make_forward(backbone: Backbone, request: Request, dtype: Any) -> tuple[Forward, Any]:
    """The jitted function and the parameters that it takes.

    Blocks behind the last wanted one are left out.

    Args:
      dtype: of the matrix products; features are fp32.

    Returns:
      (params, images uint8 [B, H, W, 3]) -> {column: fp32 [B, ...]}, see `Request.columns`;
      patches [B, P, D] are those of the pictures' own size.
    """
    last = request.layers[-1]
    model, params = _without_later_blocks(backbone.model.clone(dtype=dtype), backbone.params, last)
    earlier = request.layers[:-1]
    if earlier:  # unrolled: a scan would keep the tokens of all blocks
        params = unstack_blocks(params)
    mean, std = backbone.preprocessing.mean, backbone.preprocessing.std

    def forward(params: Any, images: Array) -> Mapping[str, Array]:
        normalized = normalize(images, mean, std)
        out = model.apply({"params": params}, normalized, intermediate=earlier)
        normed = [out["cls"][:, None], out["registers"], out["patches"]]
        pairs = [*out["blocks"], (out["prenorm"], jnp.concatenate(normed, axis=1))]
        tokens = {
            layer: pair[request.norm] for layer, pair in zip(request.layers, pairs, strict=True)
        }
        return {
            name: _take(tokens[layer], kind, model.registers)
            for name, kind, layer in request.columns
        }

    return jax.jit(forward), params


def _without_later_blocks(
    model: VisionTransformer, params: Any, last: int
) -> tuple[VisionTransformer, Any]:
    if last == model.depth - 1:
        return model, params
    blocks = jax.tree.map(lambda p: p[: last + 1], params["blocks"])
    return model.clone(depth=last + 1), {**params, "blocks": blocks}


def _take(tokens: Array, kind: str, registers: int) -> Array:
    """Features of one kind, of all tokens [B, 1 + R + P, D]."""
    first = 1 + registers
    if kind == "cls":
        return tokens[:, 0]
    if kind == "registers":
        return tokens[:, 1:first]
    patches = tokens[:, first:]
    return patches.mean(axis=1) if kind == "mean_patch" else patches
