"""Writes a backbone as StableHLO (`jax.export`), which runs with nothing but JAX.

<folder>/weights.npz             the weights, once for all programs
<folder>/HEIGHTxWIDTH[_bN].bin   a program: (weights, normalised images) -> {"cls", "patches", ...}
<folder>/example.py              how to call it
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export

from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.weights.adapt import with_image_size
from dinov2_jax.weights.architecture import in_channels
from dinov2_jax.weights.load import Backbone

PLATFORMS = ("cpu", "cuda", "tpu")
OUTPUTS = ("cls", "patches")  # that are compared
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
    """Stablehlo and onnx programs: one for each image size and batch size."""

    image_sizes: Sequence[tuple[int, int]] = ((224, 224),)  # (height, width) in px
    batch_sizes: Sequence[int] = (0,)  # 0: one program for any number of images
    bake_positions: bool = True  # resample the position table once and store it, not in every call


def write(backbone: Backbone, folder: Path, programs: Programs) -> dict[str, float]:
    """Writes weights, programs and an example; returns the differences from the model."""
    model = backbone.model.clone(attention="xla", scan_blocks=True)
    weights = flat_weights(backbone)
    np.savez(folder / "weights.npz", **weights)
    compared = {}
    for size in programs.image_sizes:
        features = features_at(model, weights, size, programs.bake_positions)
        for batch in programs.batch_sizes:
            images = noise(backbone, batch or 2, size)
            name = f"{size[0]}x{size[1]}{f'_b{batch}' if batch else ''}.bin"
            shape = ",".join(map(str, (batch or "b", *images.shape[1:])))
            (folder / name).write_bytes(_program(features, weights, shape))
            compared[name] = _compare(folder / name, folder / "weights.npz", backbone, images)
    about = backbone.preprocessing
    text = _EXAMPLE.format(program=name, shape=images.shape, mean=about.mean, std=about.std)
    (folder / "example.py").write_text(text, encoding="utf-8")
    return compared


def flat_weights(backbone: Backbone) -> dict[str, np.ndarray]:
    """The parameters by path: {"blocks/attn/qkv/kernel": ...}."""
    flat = flatten_dict(backbone.params, sep="/")
    return {name: np.asarray(value) for name, value in flat.items()}


def noise(backbone: Backbone, count: int, size: tuple[int, int]) -> np.ndarray:
    """Images [count, *size, C] on which an export is compared with its source."""
    channels = in_channels(backbone.params, backbone.model.patch_size)
    return np.random.default_rng(0).standard_normal((count, *size, channels), np.float32)


def difference(ours: Any, theirs: Any, names: Iterable[Any]) -> float:
    """The greatest difference of the arrays with these names, relative to their greatest value.

    Rounding grows with the values: features of released models reach 8 and more.
    """
    pairs = [(np.asarray(ours[name]), np.asarray(theirs[name])) for name in names]
    greatest = max(float(np.abs(theirs).max()) for _, theirs in pairs)
    return max(float(np.abs(ours - theirs).max()) for ours, theirs in pairs) / (greatest or 1.0)


def features_of(backbone: Backbone, images: np.ndarray) -> dict[str, Any]:
    """The features of images [B, H, W, C], with which an export is compared."""
    params = jax.tree.map(np.asarray, backbone.params)
    with on_cpu():
        return jax.jit(backbone.model.clone(attention="xla").apply)({"params": params}, images)


def on_cpu() -> contextlib.AbstractContextManager[Any]:
    """Computes on the CPU if JAX has it: GPUs and TPUs round float32 products to fewer bits."""
    with contextlib.suppress(RuntimeError):
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    return contextlib.nullcontext()


def features_at(
    model: VisionTransformer, weights: dict[str, Any], size: tuple[int, int], bake: bool
) -> Any:
    """Makes a function (weights by path, images [B, *size, C]) -> features.

    With `bake`, it holds the position table for `size`.
    """
    table = {}
    if bake:
        table = {"pos_embed": with_image_size(weights, model, size)["pos_embed"]}
        model = model.clone(image_size=size)

    def features(weights: dict[str, Any], images: Any) -> dict[str, Any]:
        out = model.apply({"params": unflatten_dict(weights | table, sep="/")}, images)
        return {name: out[name] for name in ("cls", "registers", "patches")}

    return features


def _program(features: Any, weights: dict[str, Any], shape: str) -> bytes:
    """Exports `features` for images of a shape such as "b,224,224,3", with b for any number."""
    images = jax.ShapeDtypeStruct(export.symbolic_shape(shape), jnp.float32)
    return bytes(export.export(jax.jit(features), platforms=PLATFORMS)(weights, images).serialize())


def _compare(program: Path, weights: Path, backbone: Backbone, images: np.ndarray) -> float:
    """Opens the files again; returns the difference of their features from the model's."""
    call = export.deserialize(bytearray(program.read_bytes())).call
    with on_cpu():
        got = call(dict(np.load(weights)), images)
    return difference(got, features_of(backbone, images), OUTPUTS)
