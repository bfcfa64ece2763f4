"""A tiny backbone, and its tensors under the reference's names."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax.data.preprocess import Preprocessing
from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.weights.convert import to_reference
from dinov2_jax.weights.load import Backbone

PATCH = 7
SIZE_PX = 28


def tiny_backbone(registers: int = 0, ffn: str = "mlp", channels: int = 3) -> Backbone:
    """Width 24, two blocks, three heads; random weights everywhere."""
    model = VisionTransformer(
        dim=24,
        depth=2,
        heads=3,
        patch_size=PATCH,
        image_size=SIZE_PX,
        ffn=ffn,
        registers=registers,
        layerscale=1.0,
        interpolate_offset=0.0 if registers else 0.1,
        interpolate_antialias=bool(registers),
    )
    images = jnp.zeros((1, PATCH, PATCH, channels))
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    rng = np.random.default_rng(registers)
    params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)
    return Backbone(model, params, Preprocessing(32, SIZE_PX), {}, "tiny", "reference", ("tiny",))


def reference_tensors(backbone: Backbone) -> dict[str, np.ndarray]:
    """As a released file holds them."""
    flat = to_reference(backbone.params, PATCH)
    return {name: np.ascontiguousarray(x) for name, x in flat.items()}


def features(backbone: Backbone, images: np.ndarray) -> dict[str, Any]:
    model, params = backbone
    out = jax.jit(model.apply)({"params": params}, images)
    return {name: np.asarray(out[name]) for name in ("cls", "registers", "patches")}


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)
