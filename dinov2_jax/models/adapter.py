"""ViT-Adapter: maps of four scales from a plain ViT (Chen et al. 2023, arXiv 2205.08534).

A small convolutional network sees the picture beside the ViT. Between groups of blocks, its maps
and the tokens exchange features by deformable attention. The ViT's weights stay as they are.
Source: FB dinov2/eval/segmentation_m2f/models/backbones; paper section 7.4.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dinov2_jax.models.block import Block, run_blocks
from dinov2_jax.models.deformable import DeformableAttention, Size, grid_centres, linear
from dinov2_jax.models.depth import Upsample, conv
from dinov2_jax.models.layers import LayerNorm
from dinov2_jax.models.maps import resize
from dinov2_jax.models.patches import patchify
from dinov2_jax.models.positions import resize_positions
from dinov2_jax.models.segmentation import BatchNorm, Statistics
from dinov2_jax.ops.gelu import gelu

STRIDES = 8, 16, 32  # of the three maps that exchange features
INTERACTIONS = 4
_EXTRA = 2  # extractors after the last group of blocks
# Batch norms by name: {channels of each} follows from the parameters.
NORMS = (
    *("spm/stem_1", "spm/stem_4", "spm/stem_7", "spm/conv2_1", "spm/conv3_1", "spm/conv4_1"),
    *("norm1", "norm2", "norm3", "norm4"),
)
AllStatistics = Mapping[str, Statistics]


def check_size(height: int, width: int, patch_size: int) -> None:
    """Raises ValueError unless both sides are whole patches and multiples of 32 px."""
    step = int(np.lcm(STRIDES[-1], patch_size))
    if height % step or width % step:
        raise ValueError(
            f"a picture of {height} x {width} px does not fit patches of {patch_size} px and maps "
            f"of every {STRIDES[-1]} px; give sides that are multiples of {step}"
        )


class SpatialPrior(nn.Module):
    """Convolutions that give maps at 1/4, 1/8, 1/16 and 1/32 of the picture.

    Attributes:
      dim: D of the maps.
      width: channels at 1/4; twice and four times as many behind.
    """

    dim: int
    width: int = 64

    @nn.compact
    def __call__(
        self, images: Array, statistics: AllStatistics, train: bool
    ) -> tuple[list[Array], dict[str, Statistics]]:
        """[B, H, W, 3] -> four maps [B, h, w, D], and the statistics after this batch."""
        seen: dict[str, Statistics] = {}

        def step(x: Array, features: int, stride: int, names: tuple[str, str]) -> Array:
            x = conv(features, 3, names[0], bias=False, strides=(stride, stride))(x)
            norm = BatchNorm(name=names[1])
            x, seen[f"spm/{names[1]}"] = norm(x, statistics[f"spm/{names[1]}"], train)
            return nn.relu(x)

        x = step(images, self.width, 2, ("stem_0", "stem_1"))
        x = step(x, self.width, 1, ("stem_3", "stem_4"))
        x = step(x, self.width, 1, ("stem_6", "stem_7"))
        maps = [nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)])]
        for i, factor in zip((2, 3, 4), (2, 4, 4), strict=True):
            names = f"conv{i}_0", f"conv{i}_1"
            maps.append(step(maps[-1], factor * self.width, 2, names))
        return [conv(self.dim, 1, f"fc{i + 1}")(x) for i, x in enumerate(maps)], seen


class Injector(nn.Module):
    """Tokens read the convolutional maps."""

    heads: int
    points: int
    ratio: float

    @nn.compact
    def __call__(self, tokens: Array, cells: Array, grid: Size, sizes: Sequence[Size]) -> Array:
        """Tokens [B, N, D] and cells of all maps [B, M, D] -> tokens."""
        queries = LayerNorm(name="query_norm")(tokens)
        values = LayerNorm(name="feat_norm")(cells)
        attention = DeformableAttention(self.heads, self.points, self.ratio, name="attn")
        gamma = self.param("gamma", nn.initializers.zeros, (tokens.shape[-1],))
        return tokens + gamma * attention(queries, grid_centres([grid]), values, sizes)


class ConvFeedForward(nn.Module):
    """A feed-forward network with a 3x3 convolution of each channel of each map."""

    ratio: float

    @nn.compact
    def __call__(self, cells: Array, sizes: Sequence[Size]) -> Array:
        """[B, M, D] -> [B, M, D]."""
        dim = cells.shape[-1]
        hidden = linear(int(dim * self.ratio), "fc1")(cells)
        width = hidden.shape[-1]
        depthwise = conv(width, 3, "dwconv", feature_group_count=width)
        maps = [depthwise(x) for x in as_maps(hidden, sizes)]
        return linear(dim, "fc2")(gelu(as_cells(maps)))


class Extractor(nn.Module):
    """The convolutional maps read the tokens."""

    heads: int
    points: int
    ratio: float
    ffn_ratio: float

    @nn.compact
    def __call__(self, cells: Array, tokens: Array, grid: Size, sizes: Sequence[Size]) -> Array:
        """Cells of all maps [B, M, D] and tokens [B, N, D] -> cells."""
        queries = LayerNorm(name="query_norm")(cells)
        values = LayerNorm(name="feat_norm")(tokens)
        attention = DeformableAttention(self.heads, self.points, self.ratio, name="attn")
        cells = cells + attention(queries, grid_centres(sizes), values, [grid])
        normed = LayerNorm(name="ffn_norm")(cells)
        return cells + ConvFeedForward(self.ffn_ratio, name="ffn")(normed, sizes)


class Interaction(nn.Module):
    """Injector, a group of blocks, extractor."""

    heads: int
    points: int
    ratio: float
    ffn_ratio: float
    extra: int = 0

    @nn.compact
    def __call__(
        self, tokens: Array, cls: Array, cells: Array, grid: Size, sizes: Sequence[Size], run: Any
    ) -> tuple[Array, Array, Array]:
        """Tokens [B, N, D], cls [B, 1, D], cells [B, M, D] -> the same; `run` are the blocks."""
        shared = self.heads, self.points, self.ratio
        tokens = Injector(*shared, name="injector")(tokens, cells, grid, sizes)
        both = run(jnp.concatenate([cls, tokens], axis=1))
        cls, tokens = both[:, :1], both[:, 1:]
        names = "extractor", *(f"extra_extractors_{i}" for i in range(self.extra))
        for name in names:
            extractor = Extractor(*shared, self.ffn_ratio, name=name)
            cells = extractor(cells, tokens, grid, sizes)
        return tokens, cls, cells


class ViTAdapter(nn.Module):
    """Maps at 1/4, 1/8, 1/16 and 1/32 of a picture.

    Attributes:
      block: of the ViT.
      patch_size: px.
      width: channels of the first convolutions.
      heads, points, ratio, ffn_ratio: of deformable attention, and of the feed-forward networks.
    """

    block: Block
    patch_size: int
    width: int = 64
    heads: int = 24
    points: int = 4
    ratio: float = 0.5
    ffn_ratio: float = 0.25

    @nn.compact
    def __call__(
        self,
        images: Array,
        vit: Mapping[str, Any],
        statistics: AllStatistics,
        train: bool = False,
    ) -> tuple[list[Array], dict[str, Statistics]]:
        """Normalised images [B, H, W, 3] -> four maps [B, h, w, D], and the statistics after them.

        Args:
          vit: parameters of the backbone: patch_embed, cls_token, pos_embed, blocks.
          statistics: of the batch norms, by NORMS.
          train: normalise with the statistics of this batch.
        """
        grid = images.shape[1] // self.patch_size, images.shape[2] // self.patch_size
        sizes = [(images.shape[1] // s, images.shape[2] // s) for s in STRIDES]
        prior = SpatialPrior(vit["cls_token"].shape[-1], self.width, name="spm")
        maps, seen = prior(images, statistics, train)
        init = nn.initializers.normal(1.0)
        level_embed = self.param("level_embed", init, (len(STRIDES), maps[0].shape[-1]))
        cells = as_cells([x + level_embed[i] for i, x in enumerate(maps[1:])])
        cls, tokens = self._embed(images, vit, grid)
        shown = []
        for i, run in enumerate(self._groups(vit)):
            extra = _EXTRA if i == INTERACTIONS - 1 else 0
            shared = self.heads, self.points, self.ratio, self.ffn_ratio
            interaction = Interaction(*shared, extra, name=f"interactions_{i}")
            tokens, cls, cells = interaction(tokens, cls, cells, grid, sizes, run)
            shown.append(tokens.reshape(len(images), *grid, -1))
        maps = self._joined(maps[0], as_maps(cells, sizes), shown)
        for i, x in enumerate(maps):
            name = f"norm{i + 1}"
            maps[i], seen[name] = BatchNorm(name=name)(x, statistics[name], train)
        return maps, seen

    def _embed(self, images: Array, vit: Mapping[str, Any], grid: Size) -> tuple[Array, Array]:
        """cls [B, 1, D] and patches [B, N, D] with positions."""
        patches = jnp.einsum(
            "bnp,pd->bnd",
            patchify(images[None], self.patch_size)[0],
            vit["patch_embed"]["kernel"],
            precision="highest",
        )
        # DINOv2: without the offset of 0.1 that the same backbone has elsewhere.
        positions = resize_positions(vit["pos_embed"], grid, offset=0.0, antialias=False)
        tokens = patches + vit["patch_embed"]["bias"] + positions[:, 1:]
        cls = vit["cls_token"] + positions[:, :1]
        return jnp.broadcast_to(cls, (len(images), *cls.shape[1:])), tokens

    def _groups(self, vit: Mapping[str, Any]) -> list[Any]:
        """Functions [B, 1 + N, D] -> the same, one a group of blocks."""
        blocks = vit["blocks"]
        depth = len(blocks) if isinstance(blocks, tuple) else len(jax.tree.leaves(blocks)[0])
        count = depth // INTERACTIONS

        def group(i: int) -> Any:
            part = slice(i * count, (i + 1) * count)
            params = (
                blocks[part]
                if isinstance(blocks, tuple)
                else jax.tree.map(lambda x: x[part], blocks)
            )

            def run(tokens: Array) -> Array:
                rates, block = np.zeros(count), self.block.clone(parent=None)
                options = {"scan": False, "remat": "none"}
                out, _ = run_blocks(block, params, [tokens[None]], None, rates, **options)
                return out[0][0]

            return run

        return [group(i) for i in range(INTERACTIONS)]

    @nn.compact
    def _joined(self, first: Array, maps: list[Array], shown: list[Array]) -> list[Array]:
        """Maps of all scales, each with the tokens after one group of blocks."""
        maps = [Upsample(2, name="up")(maps[0]) + first, *maps]
        return [x + resize(y, x.shape[1:3]) for x, y in zip(maps, shown, strict=True)]


def as_cells(maps: Sequence[Array]) -> Array:
    """Maps [B, h, w, D] -> cells of all of them [B, M, D]."""
    return jnp.concatenate([x.reshape(len(x), -1, x.shape[-1]) for x in maps], axis=1)


def as_maps(cells: Array, sizes: Sequence[Size]) -> list[Array]:
    """The reverse of `as_cells`."""
    ends = np.cumsum([height * width for height, width in sizes])[:-1].tolist()
    parts = jnp.split(cells, ends, axis=1)
    return [x.reshape(len(x), *size, -1) for x, size in zip(parts, sizes, strict=True)]
