"""From uint8 pictures to features: one jitted function, and the weights on the devices.

The function is compiled once for each backbone, request, mesh and shape of a batch, and stays
compiled for the life of the program.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from dinov2_jax.data.photometric import normalize
from dinov2_jax.data.preprocess import Preprocessing
from dinov2_jax.features.request import Request
from dinov2_jax.models.vit import VisionTransformer, unstack_blocks
from dinov2_jax.parallel.constraints import replicate
from dinov2_jax.parallel.mesh import state_shardings
from dinov2_jax.weights.load import Backbone


@functools.partial(jax.jit, static_argnames=("model", "preprocessing", "request", "copy_to_all"))
def forward(
    params: Any,
    images: Array,
    readable: Array,
    *,
    model: VisionTransformer,
    preprocessing: Preprocessing,
    request: Request,
    copy_to_all: bool,
) -> tuple[Mapping[str, Array], Array]:
    """Computes the features of a batch.

    Args:
      params: see `place_weights`.
      images: uint8 [B, H, W, C], split over the devices.
      readable: bool [B].
      model: see `shorten`.
      preprocessing: mean and std.
      request: the columns.
      copy_to_all: bring the features to every device, so that every process can read them.

    Returns:
      {column: fp32 [B, ...]} and `readable`. Patches [B, P, D] have the pictures' own grid.
    """
    normalized = normalize(images, preprocessing.mean, preprocessing.std)
    out = model.apply({"params": params}, normalized, intermediate=request.layers[:-1])
    normed = [out["cls"][:, None], out["registers"], out["patches"]]
    pairs = [*out["blocks"], (out["prenorm"], jnp.concatenate(normed, axis=1))]
    tokens = {layer: pair[request.norm] for layer, pair in zip(request.layers, pairs, strict=True)}
    columns = {
        name: _take(tokens[layer], kind, model.registers) for name, kind, layer in request.columns
    }
    found = columns, readable
    return jax.tree.map(replicate, found) if copy_to_all else found


def shorten(model: VisionTransformer, request: Request, dtype: Any) -> VisionTransformer:
    """The model without the blocks after the last wanted one, with products in `dtype`."""
    return model.clone(depth=request.layers[-1] + 1, dtype=dtype)


def place_weights(backbone: Backbone, request: Request, mesh: Mesh) -> Any:
    """The weights of the wanted blocks on the devices of `mesh`.

    The last placement stays with the backbone, so that the next call copies nothing. Weights that
    lie on `mesh` already, such as a teacher's while training, stay where they are.
    """
    leaves = jax.tree.leaves(backbone.params)
    meshes = [getattr(getattr(leaf, "sharding", None), "mesh", None) for leaf in leaves]
    if request.layers == (backbone.model.depth - 1,) and all(m == mesh for m in meshes):
        return backbone.params
    key = request.layers[-1], len(request.layers) > 1, mesh
    kept = vars(backbone).get("_placed")
    if kept is None or kept[0] != key:
        vars(backbone).pop("_placed", None)  # frees the devices first
        params = {"backbone": _wanted_blocks(backbone, request)}
        placed = jax.device_put(params, state_shardings(params, mesh))["backbone"]
        vars(backbone)["_placed"] = kept = key, placed
    return kept[1]


def _wanted_blocks(backbone: Backbone, request: Request) -> Any:
    params, depth = backbone.params, request.layers[-1] + 1
    if depth < backbone.model.depth:
        params = {**params, "blocks": jax.tree.map(lambda p: p[:depth], params["blocks"])}
    # Unrolled where several blocks are wanted: a scan would keep the tokens of all blocks.
    return unstack_blocks(params) if len(request.layers) > 1 else params


def _take(tokens: Array, kind: str, registers: int) -> Array:
    """Features of one kind from all tokens [B, 1 + R + P, D]."""
    first = 1 + registers
    if kind == "cls":
        return tokens[:, 0]
    if kind == "registers":
        return tokens[:, 1:first]
    patches = tokens[:, first:]
    return patches.mean(axis=1) if kind == "mean_patch" else patches
