"""A backbone of random weights, its bundle, and pictures of all kinds."""

from io import BytesIO
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from dinov2_jax.data.preprocess import Preprocessing
from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.weights.bundle import write_bundle
from dinov2_jax.weights.load import Backbone

PATCH = 4
PREPROCESSING = Preprocessing(resize_px=20, image_px=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def backbone(registers: int = 2, seed: int = 0) -> Backbone:
    """Depth 3, width 24; random everywhere, so that no block is nearly the identity."""
    model = VisionTransformer(
        dim=24, depth=3, heads=3, patch_size=PATCH, image_size=16, registers=registers,
        layerscale=1.0, interpolate_offset=0.0, interpolate_antialias=True,
    )  # fmt: skip
    params = model.init(jax.random.key(seed), jnp.zeros((1, 16, 16, 3)))["params"]
    rng = np.random.default_rng(seed)
    noisy = jax.tree.map(
        lambda p: np.asarray(p + 0.1 * rng.standard_normal(p.shape), np.float32), params
    )
    return Backbone(model, noisy, PREPROCESSING, {}, "tiny", "bundle", ())


def write_weights(path: Path, seed: int = 0) -> Path:
    """The same as a bundle."""
    found = backbone(seed=seed)
    write_bundle(path, found.model, found.params, found.preprocessing, "a test")
    return path


def write_pictures(folder: Path, count: int, broken: tuple[int, ...] = (), seed: int = 0) -> Path:
    """PNG, JPEG, WebP, gray, of odd sizes from 5 to 60 px; `broken` are cut short."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        raw, ending = encode(rng, i)
        raw = raw[: len(raw) // 2] if i in broken else raw
        (folder / f"{i:05}.{ending}").write_bytes(raw)
    return folder


def encode(rng: np.random.Generator, i: int) -> tuple[bytes, str]:
    """One picture's bytes and the ending of its name."""
    height, width = rng.integers(5, 60, 2)
    small = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    picture = Image.fromarray(small).resize((int(width), int(height)), Image.Resampling.BICUBIC)
    kind = ("PNG", "JPEG", "WEBP")[i % 3]
    if i % 5 == 0:
        picture, kind = picture.convert("L"), "PNG"
    file = BytesIO()
    picture.save(file, kind)
    return file.getvalue(), kind.lower()
