"""Forward pass of the backbone."""

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax.bench.draws import ViTShape, backbone_shapes, draw_images, draw_weights
from dinov2_jax.bench.harness import Arrays, Settings, Side
from dinov2_jax.bench.ours.runtime import DTYPES, configure, repeat, side_of
from dinov2_jax.models.vit import VisionTransformer, unstack_blocks
from dinov2_jax.weights.convert import from_reference


def side(settings: Settings) -> Side:
    """settings: "shape" (fields of ViTShape), "batch", "dtype", "seed", "unroll"."""
    configure(settings)
    shape, dtype = ViTShape(*settings["shape"]), DTYPES[settings["dtype"]]
    model = VisionTransformer(
        dim=shape.dim,
        depth=shape.depth,
        heads=shape.heads,
        patch_size=shape.patch_size,
        image_size=shape.image_size,
        ffn=shape.ffn,
        scan_blocks=not settings["unroll"],
        dtype=dtype,
    )
    flat = draw_weights(backbone_shapes(shape), settings["seed"])
    # Stored in the compute dtype, as the peers' are: no cast of all weights in every pass.
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), from_reference(flat))
    if settings["unroll"]:
        params = unstack_blocks(params)
    pixels = draw_images(settings["seed"], settings["batch"], 3, *(shape.image_size,) * 2)
    images = jnp.asarray(pixels.transpose(0, 2, 3, 1), dtype)

    @jax.jit
    def forward(params, images):
        out = model.apply({"params": params}, images)
        return out["cls"], out["patches"]

    def check() -> Arrays:
        cls, patches = forward(params, images)
        return {"cls": np.asarray(cls, np.float32), "patches": np.asarray(patches, np.float32)}

    return side_of(check, repeat(lambda: forward(params, images)))
