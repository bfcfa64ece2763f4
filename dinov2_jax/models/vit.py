"""The vision transformer backbone (paper Table 17; FB dinov2/models/vision_transformer.py)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from dinov2_jax.models.block import Block, run_blocks
from dinov2_jax.models.layers import LayerNorm
from dinov2_jax.models.patches import patchify, uniform_fan_in
from dinov2_jax.models.positions import resize_positions
from dinov2_jax.parallel.constraints import constrain_batch


@dataclasses.dataclass(frozen=True)
class Variant:
    """Width, depth and heads of a named model."""

    dim: int
    depth: int
    heads: int


VARIANTS = {
    "vit_tiny": Variant(192, 12, 3),
    "vit_small": Variant(384, 12, 6),
    "vit_base": Variant(768, 12, 12),
    "vit_large": Variant(1024, 24, 16),
    "vit_giant2": Variant(1536, 40, 24),
}


# config.model.blocks: how the blocks become a program.
BLOCKS = ("auto", "scan", "unroll")


class VisionTransformer(nn.Module):
    """ViT whose blocks are stacked on a leading depth axis.

    Attributes:
      dim, depth, heads: D, L, H.
      patch_size: side of a patch, in pixels.
      image_size: pixels, the square image that the position table is made for; (height, width) for
        a table that was resampled before (see weights/stablehlo.py).
      ffn: "mlp" or "swiglu".
      registers: number of register tokens R, between cls and patches, without positions.
      layerscale: initial value of LayerScale; None builds none.
      drop_path_rate, drop_path_uniform: stochastic depth, the same in all blocks or rising linearly
        from 0 (which cannot be scanned, as each block keeps a different number of crops).
      interpolate_offset, interpolate_antialias: see models/positions.py.
      scan_blocks: lax.scan over blocks (compiles faster) or unrolled; the parameters are the same.
      remat: what the backward pass computes again, one of REMAT.
      qkv_bias, proj_bias, ffn_bias: whether the projections have biases.
      dtype: of the matrix products; parameters, the residual stream and the outputs are fp32.
      attention: one of BACKENDS in ops/attention.py.
    """

    dim: int
    depth: int
    heads: int
    patch_size: int = 14
    image_size: int | tuple[int, int] = 224
    ffn: str = "mlp"
    mlp_ratio: float = 4.0
    registers: int = 0
    layerscale: float | None = 1e-5
    drop_path_rate: float = 0.0
    drop_path_uniform: bool = True
    interpolate_offset: float = 0.1
    interpolate_antialias: bool = False
    scan_blocks: bool = True
    remat: str = "none"
    qkv_bias: bool = True
    proj_bias: bool = True
    ffn_bias: bool = True
    dtype: DTypeLike = jnp.float32
    attention: str = "auto"

    def _block(self) -> Block:
        shared = {field.name for field in dataclasses.fields(Block)} - {"parent", "name"}
        return Block(**{name: getattr(self, name) for name in shared}, parent=None)

    def table_grid(self) -> tuple[int, int]:
        """Rows and columns of patches in the position table."""
        size = self.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return height // self.patch_size, width // self.patch_size

    def drop_rates(self) -> np.ndarray:
        """Stochastic-depth rate of each block, [L]."""
        start = self.drop_path_rate if self.drop_path_uniform else 0.0
        return np.linspace(start, self.drop_path_rate, self.depth)

    def _embedding(self, channels: int) -> tuple[nn.Dense, dict[str, Array]]:
        """The patch projection (reshape and matmul instead of a convolution) and the tokens."""
        init = uniform_fan_in(channels * self.patch_size**2)
        project = nn.Dense(
            self.dim, kernel_init=init, bias_init=init, dtype=self.dtype, name="patch_embed"
        )
        rows, cols = self.table_grid()
        normal, tiny = nn.initializers.normal(0.02), nn.initializers.normal(1e-6)
        tokens = {
            "cls": self.param("cls_token", tiny, (1, 1, self.dim)),
            "pos": self.param("pos_embed", normal, (1, 1 + rows * cols, self.dim)),
            "mask": self.param("mask_token", nn.initializers.zeros, (1, self.dim)),
        }
        if self.registers:
            shape = (1, self.registers, self.dim)
            tokens["registers"] = self.param("register_tokens", tiny, shape)
        return project, tokens

    def _embed(
        self, images: Array, masks: Array | None, project: nn.Dense, tokens: dict[str, Array]
    ) -> Array:
        """[G, b, H, W, C] -> fp32 tokens [G, b, 1 + R + P, D]; masked patches become mask tokens.

        DINOv2: the residual stream is fp32 whatever the compute dtype; the reference's is fp16 (11
        bits). In bf16 (8 bits) branches scaled by a LayerScale of 1e-5 would be rounded away, all
        cls tokens would be equal, and KoLeo's gradient would be rounding error.
        """
        grid = images.shape[-3] // self.patch_size, images.shape[-2] // self.patch_size
        patches = constrain_batch(project(constrain_batch(patchify(images, self.patch_size))))
        patches = patches.astype(jnp.float32)
        if masks is not None:
            patches = jnp.where(masks[..., None], tokens["mask"], patches)
        positions = tokens["pos"]
        if grid != self.table_grid():
            positions = resize_positions(
                positions, grid, self.interpolate_offset, self.interpolate_antialias
            )
        first = [tokens["cls"] + positions[:, :1]]
        if self.registers:
            first.append(tokens["registers"])
        leading = [jnp.broadcast_to(t, (*patches.shape[:2], *t.shape[1:])) for t in first]
        return jnp.concatenate([*leading, patches + positions[:, 1:]], axis=2)

    def _block_params(self) -> Any:
        """Parameters of all blocks, stacked on a leading axis L, or a tuple if given as one."""
        given = None if self.is_initializing() else self.get_variable("params", "blocks")
        if isinstance(given, tuple):  # see `unstack_blocks`
            return given
        # The parameters do not depend on the attention backend; fused kernels refuse one token.
        block = self._block().clone(attention="xla", parent=None)
        token = jnp.zeros((1, 1, self.dim))

        def init(key: Array) -> Any:
            keys = jax.random.split(key, self.depth)
            return jax.vmap(lambda k: block.init(k, token, [(1, 1)])["params"])(keys)

        return self.param("blocks", init)

    @nn.compact
    def __call__(
        self,
        crops: Array | Sequence[Array],
        masks: Sequence[Array | None] | None = None,
        drop_path_keys: Array | None = None,
        intermediate: Sequence[int] = (),
        patches_at: Array | None = None,
    ) -> Any:
        """Features of one batch of images, or of several crop sets in one packed pass.

        Args:
          crops: images [B, H, W, C], normalised; or a list of crop sets [G, b, H, W, C] (G
            statistical groups of b crops each, see design 3.3).
          masks: for a list, bool [G, b, P] or None for each set; True becomes the mask token.
          drop_path_keys: [G], one a group; given, stochastic depth is on (student in training).
          intermediate: ascending 0-based indices of blocks to return too.
          patches_at: for a list, [G, M] into the b P patches of the first crop set: the final norm
            sees just these patches and the cls tokens, and the results hold nothing else.

        Returns:
          A dict (a list of dicts for a list of crop sets) of "cls" [..., D], "registers"
          [..., R, D], "patches" [..., P, D], all after the final norm; "prenorm" [..., 1+R+P, D],
          all tokens before it; "blocks", one pair per `intermediate` index: (tokens before the
          final norm, tokens after it).
        """
        single = not isinstance(crops, (list, tuple))
        if single:
            crops = [crops[None]]
            masks = None if masks is None else [masks[None]]
        masks = [None] * len(crops) if masks is None else masks
        embedding = self._embedding(crops[0].shape[-1])
        tokens = [self._embed(x, m, *embedding) for x, m in zip(crops, masks, strict=True)]
        tokens, kept = run_blocks(
            self._block(),
            self._block_params(),
            tokens,
            drop_path_keys,
            self.drop_rates(),
            scan=self.scan_blocks,
            remat=self.remat,
            keep=list(intermediate),
        )
        norm = LayerNorm(name="norm")
        if patches_at is not None:
            out = [{"cls": norm(x[:, :, 0])} for x in tokens]
            chosen = take_patches(tokens[0][:, :, 1 + self.registers :], patches_at)
            return [out[0] | {"patches": norm(chosen)}, *out[1:]]
        out = [
            self._split(x, norm(x)) | {"blocks": [(y[i], norm(y[i])) for y in kept]}
            for i, x in enumerate(tokens)
        ]
        return jax.tree.map(lambda x: x[0], out[0]) if single else out

    def _split(self, tokens: Array, normed: Array) -> dict[str, Any]:
        first = 1 + self.registers
        return {
            "cls": normed[..., 0, :],
            "registers": normed[..., 1:first, :],
            "patches": normed[..., first:, :],
            "prenorm": tokens,
        }


def take_patches(patches: Array, indices: Array) -> Array:
    """Patches [G, b, P, D] at indices [G, M] into the b P patches of a group: [G, M, D]."""
    flat = patches.reshape(patches.shape[0], -1, patches.shape[-1])
    return jax.vmap(lambda rows, i: rows[i])(flat, indices)


def unstack_blocks(params: Mapping[str, Any]) -> dict[str, Any]:
    """The same backbone parameters with a tuple of blocks instead of one stacked tree.

    Faster for inference on few images: the model then unrolls the blocks and need not slice their
    weights out of a stack, which copies all of them.
    """
    depth = len(jax.tree.leaves(params["blocks"])[0])
    blocks = tuple(jax.tree.map(lambda p, i=i: p[i], params["blocks"]) for i in range(depth))
    return {**params, "blocks": blocks}


def from_config(
    model: Mapping[str, Any], image_size: int, *, dtype: Any = jnp.float32, drop_path: bool = False
) -> VisionTransformer:
    """Builds the ViT that the fields of `config.model` describe.

    Args:
      image_size: pixels; sizes the position table (the global crop size in training).
      drop_path: with the configured stochastic depth (student), or none (teacher, evaluation).

    Raises:
      ValueError: for an unknown variant or feed-forward network.
    """
    if model["variant"] not in VARIANTS:
        raise ValueError(
            f"model.variant {model['variant']!r} is unknown; choose one of {', '.join(VARIANTS)}"
        )
    if model["ffn"] not in ("mlp", "swiglu"):
        raise ValueError(f"model.ffn {model['ffn']!r} is unknown; choose mlp or swiglu")
    variant = VARIANTS[model["variant"]]
    known = {field.name for field in dataclasses.fields(VisionTransformer)}
    options = {name: value for name, value in model.items() if name in known}
    options |= {name: model[name] or getattr(variant, name) for name in ("dim", "depth", "heads")}
    options |= {"image_size": image_size, "layerscale": model["layerscale"] or None, "dtype": dtype}
    options["drop_path_rate"] = model["drop_path_rate"] if drop_path else 0.0
    blocks, options["remat"] = blocks_and_remat(model, jax.default_backend())
    options["scan_blocks"] = blocks == "scan"
    return VisionTransformer(**options)


def blocks_and_remat(model: Mapping[str, Any], platform: str) -> tuple[str, str]:
    """`config.model.blocks` and `config.model.remat` with "auto" resolved for a platform.

    Args:
      platform: "cpu", "gpu" or "tpu".
    """
    blocks, remat = model.get("blocks", "auto"), model["remat"]
    # Older runs stored whether the blocks are scanned, and before the policies a bool.
    if "scan_blocks" in model:
        blocks = "scan" if model["scan_blocks"] else "unroll"
    remat = {False: "none", True: "blocks"}.get(remat, remat)
    if blocks == "auto":
        # A GPU copies all that a scan stacks for the backward pass, twice the traffic of a step.
        blocks = "unroll" if platform == "gpu" else "scan"
    if remat == "auto":
        remat = "pointwise" if blocks == "scan" else "none"
    return blocks, remat
