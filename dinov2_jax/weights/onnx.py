"""Writes a backbone as ONNX with jax2onnx (an optional extra).

jax2onnx is the maintained way from JAX to ONNX (tf2onnx goes through TensorFlow and is no longer
developed). It patches JAX and Flax while tracing and would initialise our modules again, so it gets
a program that is traced already.
"""

import importlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dinov2_jax.weights.architecture import in_channels
from dinov2_jax.weights.convert import flatten
from dinov2_jax.weights.files import WeightsError
from dinov2_jax.weights.load import Backbone
from dinov2_jax.weights.stablehlo import Programs, features_at

OUTPUTS = ("cls", "patches")


def write(backbone: Backbone, folder: Path, programs: Programs) -> dict[str, float]:
    """Writes one file for each image and batch size; returns onnxruntime's differences.

    Raises:
      WeightsError: jax2onnx or onnxruntime is missing, or a batch size is 0 (any).
    """
    jax2onnx, onnx, runtime = (_require(name) for name in ("jax2onnx", "onnx", "onnxruntime"))
    if not all(programs.batch_sizes):
        raise WeightsError(
            "an ONNX file is made for a fixed number of images: --config.batch_sizes=(1,)"
        )
    model = backbone.model.clone(attention="xla", scan_blocks=False)
    channels, rng = in_channels(backbone.params, model.patch_size), np.random.default_rng(0)
    weights = {name: np.asarray(x) for name, x in flatten(backbone.params).items()}
    compared = {}
    for height, width in programs.image_sizes:
        features = features_at(model, weights, (height, width), programs.bake_positions)
        for batch in programs.batch_sizes:
            images = rng.standard_normal((batch, height, width, channels)).astype(np.float32)
            program, want = _traced(features, weights, images)
            path = folder / f"{height}x{width}_b{batch}.onnx"
            exported = jax2onnx.to_onnx(program, [images.shape], model_name="dinov2")
            onnx.save(exported, path, save_as_external_data=exported.ByteSize() > 2**30)
            session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
            got = session.run(None, {session.get_inputs()[0].name: images})
            compared[path.name] = max(
                float(np.abs(a - b).max()) for a, b in zip(got, want, strict=True)
            )
    return compared


def _traced(features: Any, weights: Any, images: np.ndarray) -> tuple[Any, list[np.ndarray]]:
    """Traces the program, free of the modules that made it; also returns its outputs."""

    def call(images: Any) -> list[Any]:
        found = features(weights, images)
        return [found[name] for name in OUTPUTS]

    closed = jax.make_jaxpr(call)(images)
    program = jax.extend.core.jaxpr_as_fun(closed)
    return lambda x: tuple(program(x)), [np.asarray(x) for x in jax.jit(call)(images)]


def _require(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise WeightsError(
            f'format onnx needs {name}: pip install "dinov2_jax[onnx]"; stablehlo needs nothing'
        ) from error
