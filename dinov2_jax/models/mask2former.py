"""Mask2Former (Cheng et al. 2022, arXiv 2112.01527): queries that find masks and their classes.

Source: FB dinov2/eval/segmentation_m2f/models/decode_heads; paper section 7.4.
"""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from dinov2_jax.models.deformable import linear
from dinov2_jax.models.maps import resize
from dinov2_jax.models.pixel_decoder import (
    SCALES,
    PixelDecoder,
    layer_norm,
    sine_positions,
)


class Prediction(NamedTuple):
    """What the queries say after a layer.

    Attributes:
      classes: logits [B, Q, K + 1]; the last one is "none".
      masks: logits [B, Q, h, w], at 1/4 of the picture.
    """

    classes: Array
    masks: Array


class Attention(nn.Module):
    """Attention with packed projections of queries, keys and values."""

    heads: int

    @nn.compact
    def __call__(self, q: Array, k: Array, v: Array, blocked: Array | None = None) -> Array:
        """[B, Q, D] from keys and values [B, N, D]; `blocked` [B, Q, N] are not looked at."""
        dim = q.shape[-1]
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform", in_axis=1, out_axis=0)
        kernel = self.param("in_proj_weight", init, (3 * dim, dim))
        bias = self.param("in_proj_bias", nn.initializers.zeros, (3 * dim,))
        parts = zip((q, k, v), jnp.split(kernel, 3), jnp.split(bias, 3), strict=True)
        q, k, v = (self._project(*part) for part in parts)
        scores = jnp.einsum("bqhd,bnhd->bhqn", q, k, precision="highest") * q.shape[-1] ** -0.5
        if blocked is not None:
            scores = jnp.where(blocked[:, None], -jnp.inf, scores)
        found = jnp.einsum("bhqn,bnhd->bqhd", jax.nn.softmax(scores), v, precision="highest")
        return linear(dim, "out_proj")(found.reshape(*found.shape[:2], dim))

    def _project(self, x: Array, kernel: Array, bias: Array) -> Array:
        x = jnp.einsum("bnd,fd->bnf", x, kernel, precision="highest") + bias
        return x.reshape(*x.shape[:2], self.heads, -1)


class DecoderLayer(nn.Module):
    """Attention to a memory within the own mask, among the queries, and a feed-forward network."""

    heads: int
    hidden: int

    @nn.compact
    def __call__(
        self, queries: Array, places: Array, keys: Array, values: Array, blocked: Array
    ) -> Array:
        """Queries [B, Q, D] -> the same.

        Args:
          places: learned positions of the queries [Q, D].
          keys, values: of a memory [B, N, D].
          blocked: bool [B, Q, N].
        """
        cross = Attention(self.heads, name="attentions_0_attn")
        queries += cross(queries + places, keys, values, blocked)
        queries = layer_norm("norms_0")(queries)
        placed = queries + places
        queries += Attention(self.heads, name="attentions_1_attn")(placed, placed, queries)
        queries = layer_norm("norms_1")(queries)
        hidden = nn.relu(linear(self.hidden, "fc1")(queries))
        return layer_norm("norms_2")(queries + linear(queries.shape[-1], "fc2")(hidden))


class Mask2Former(nn.Module):
    """Pixel decoder, and a decoder whose queries attend within the masks that they predict.

    Attributes:
      classes: K.
      width: D of the queries and of the pixel decoder.
      queries: Q.
      layers, heads, hidden: of the decoder.
      pixel_layers, pixel_heads, pixel_hidden, groups: of the pixel decoder.
    """

    classes: int
    width: int = 1536
    queries: int = 100
    layers: int = 9
    heads: int = 32
    hidden: int = 6144
    pixel_layers: int = 6
    pixel_heads: int = 32
    pixel_hidden: int = 6144
    groups: int = 32

    @nn.compact
    def __call__(self, maps: Sequence[Array]) -> list[Prediction]:
        """Four maps of the adapter -> predictions before the first layer and after each."""
        shape = self.pixel_layers, self.pixel_heads, self.pixel_hidden, self.groups
        memories, pixels = PixelDecoder(self.width, *shape, name="pixel_decoder")(maps)
        keys, values, sizes = self._memories(memories)
        init, shape = nn.initializers.normal(1.0), (self.queries, self.width)
        places = self.param("query_embed", init, shape)
        queries = self.param("query_feat", init, shape)
        queries = jnp.broadcast_to(queries, (len(pixels), *shape))
        found = [self._predict(queries, pixels)]
        for i in range(self.layers):
            memory = i % SCALES
            blocked = outside(found[-1].masks, sizes[memory])
            layer = DecoderLayer(self.heads, self.hidden, name=f"transformer_decoder_layers_{i}")
            queries = layer(queries, places, keys[memory], values[memory], blocked)
            found.append(self._predict(queries, pixels))
        return found

    @nn.compact
    def _memories(
        self, memories: Sequence[Array]
    ) -> tuple[list[Array], list[Array], list[tuple[int, int]]]:
        """Keys and values [B, N, D] of each memory, and its size."""
        init = nn.initializers.normal(1.0)
        levels = self.param("level_embed", init, (SCALES, self.width))
        sizes = [(x.shape[1], x.shape[2]) for x in memories]
        values = [x.reshape(len(x), -1, self.width) + levels[i] for i, x in enumerate(memories)]
        positions = [sine_positions(size, self.width).reshape(-1, self.width) for size in sizes]
        return [v + p for v, p in zip(values, positions, strict=True)], values, sizes

    @nn.compact
    def _predict(self, queries: Array, pixels: Array) -> Prediction:
        normed = layer_norm("transformer_decoder_post_norm")(queries)
        classes = linear(self.classes + 1, "cls_embed")(normed)
        x = nn.relu(linear(self.width, "mask_embed_0")(normed))
        x = nn.relu(linear(self.width, "mask_embed_2")(x))
        x = linear(self.width, "mask_embed_4")(x)
        return Prediction(classes, jnp.einsum("bqd,bhwd->bqhw", x, pixels, precision="highest"))


def outside(masks: Array, size: tuple[int, int]) -> Array:
    """Cells of a memory outside of each mask, bool [B, Q, h w]; none for an empty mask."""
    smaller = resize(masks[..., None], size)[..., 0]
    blocked = jax.lax.stop_gradient(smaller.reshape(*masks.shape[:2], -1) < 0)
    return blocked & ~blocked.all(axis=-1, keepdims=True)


def semantic_scores(prediction: Prediction) -> Array:
    """Scores of the classes [B, h, w, K], at 1/4 of the picture."""
    classes = jax.nn.softmax(prediction.classes)[..., :-1]
    masks = jax.nn.sigmoid(prediction.masks)
    return jnp.einsum("bqk,bqhw->bhwk", classes, masks, precision="highest")
