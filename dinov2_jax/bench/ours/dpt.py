"""Forward pass of the DPT head."""

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax.bench.draws import dpt_shapes, draw_levels, draw_weights
from dinov2_jax.bench.harness import Arrays, Settings, Side
from dinov2_jax.bench.ours.runtime import DTYPES, configure, repeat, side_of
from dinov2_jax.models.depth import DPT
from dinov2_jax.models.maps import Level
from dinov2_jax.weights.dense import PREFIX, from_released


def side(settings: Settings) -> Side:
    """settings: "dim", "channels", "grid" (h, w), "batch", "dtype", "seed"."""
    configure(settings)
    dtype, dim = DTYPES[settings["dtype"]], settings["dim"]
    flat = draw_weights(dpt_shapes(dim, settings["channels"]), settings["seed"])
    params, _ = from_released({PREFIX + key: value for key, value in flat.items()}, "depth_dpt")
    drawn = draw_levels(settings["seed"], settings["batch"], *settings["grid"], dim)
    params, levels = jax.tree.map(
        lambda x: jnp.asarray(x, dtype), (params, [Level(*level) for level in drawn])
    )
    module = DPT(0.001, settings["channels"])

    @jax.jit
    def forward(params, levels):
        return module.apply({"params": params}, levels)

    def check() -> Arrays:
        return {"depth": np.asarray(forward(params, levels), np.float32)}

    return side_of(check, repeat(lambda: forward(params, levels)))
