"""Writes a backbone as StableHLO (`jax.export`), which runs with nothing but JAX.

<folder>/weights.npz             the weights, once for all programs
<folder>/HEIGHTxWIDTH[_bN].bin   a program: (weights, normalised images) -> {"cls", "patches", ...}
<folder>/example.py              how to call it
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from dinov2_jax.models.positions import resize_positions
from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.weights.architecture import in_channels
from dinov2_jax.weights.convert import flatten, unflatten
from dinov2_jax.weights.load import Backbone

PLATFORMS = ("cpu", "cuda", "tpu")
_EXAMPLE = '''"""Features from an exported program, with nothing but JAX."""

import jax
import jax.numpy as jnp

weights = dict(jnp.load("weights.npz"))
program = jax.export.deserialize(open("{program}", "rb").read())
images = jnp.zeros({shape})  # RGB in 0..1, minus {mean}, divided by {std}
features = program.call(weights, images)
print({{name: x.shape for name, x in features.items()}})
'''


@dataclasses.dataclass(frozen=True)
class Programs:
    """The sizes for which stablehlo and onnx programs are made.

    Attributes:
      image_sizes: (height, width) in px, one program each.
      batch_sizes: one program each; 0 makes one program for any number of images.
      bake_positions: resample the position table once and store it, instead of in every call.
    """

    image_sizes: Sequence[tuple[int, int]] = ((224, 224),)
    batch_sizes: Sequence[int] = (0,)
    bake_positions: bool = True


def write(backbone: Backbone, folder: Path, programs: Programs) -> dict[str, float]:
    """Writes weights, programs and an example; returns the differences from the model."""
    model = backbone.model.clone(attention="xla", scan_blocks=True)
    channels = in_channels(backbone.params, model.patch_size)
    weights = {name: np.asarray(x) for name, x in flatten(backbone.params).items()}
    np.savez(folder / "weights.npz", **weights)
    compared, rng = {}, np.random.default_rng(0)
    for height, width in programs.image_sizes:
        features = features_at(model, weights, (height, width), programs.bake_positions)
        for batch in programs.batch_sizes:
            name = f"{height}x{width}{f'_b{batch}' if batch else ''}.bin"
            (folder / name).write_bytes(
                _program(features, weights, batch, (height, width), channels)
            )
            shape = (batch or 2, height, width, channels)
            images = rng.standard_normal(shape).astype(np.float32)
            compared[name] = _difference(folder / name, folder / "weights.npz", backbone, images)
    _write_example(backbone, folder, name, shape)
    return compared


def features_at(
    model: VisionTransformer, weights: dict[str, Any], size: tuple[int, int], bake: bool
) -> Any:
    """Makes a function (weights by path, images [B, *size, C]) -> features.

    With `bake`, it holds the position table for `size`.
    """
    grid = size[0] // model.patch_size, size[1] // model.patch_size
    table = None
    if bake:
        offset, antialias = model.interpolate_offset, model.interpolate_antialias
        table = np.asarray(resize_positions(weights["pos_embed"], grid, offset, antialias))
        model = model.clone(image_size=size)

    def features(weights: dict[str, Any], images: Any) -> dict[str, Any]:
        own = weights if table is None else weights | {"pos_embed": jnp.asarray(table)}
        out = model.apply({"params": unflatten(own)}, images)
        return {name: out[name] for name in ("cls", "registers", "patches")}

    return features


def _program(
    features: Any, weights: dict[str, Any], batch: int, size: tuple[int, int], channels: int
) -> bytes:
    images = str(batch or "b"), *map(str, size), str(channels)
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
    arguments = shapes, jax.ShapeDtypeStruct(export.symbolic_shape(",".join(images)), jnp.float32)
    return bytes(export.export(jax.jit(features), platforms=PLATFORMS)(*arguments).serialize())


def _difference(program: Path, weights: Path, backbone: Backbone, images: np.ndarray) -> float:
    """Opens the files again; returns their greatest difference from the model."""
    call = export.deserialize(bytearray(program.read_bytes())).call
    got = call(dict(jnp.load(weights)), images)
    want = jax.jit(backbone.model.apply)({"params": backbone.params}, images)
    return max(float(jnp.abs(got[name] - want[name]).max()) for name in ("cls", "patches"))


def _write_example(backbone: Backbone, folder: Path, program: str, shape: tuple[int, ...]) -> None:
    known = backbone.preprocessing
    text = _EXAMPLE.format(program=program, shape=shape, mean=known.mean, std=known.std)
    (folder / "example.py").write_text(text, encoding="utf-8")
