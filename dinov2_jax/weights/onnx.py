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

from dinov2_jax.weights.files import WeightsError
from dinov2_jax.weights.load import Backbone
from dinov2_jax.weights.stablehlo import (
    OUTPUTS,
    Programs,
    difference,
    features_at,
    flat_weights,
    noise,
)


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
    model, weights = (
        backbone.model.clone(attention="xla", scan_blocks=False),
        flat_weights(backbone),
    )
    compared = {}
    for size in programs.image_sizes:
        features = features_at(model, weights, size, programs.bake_positions)
        for batch in programs.batch_sizes:
            images = noise(backbone, batch, size)
            program, want = _traced(features, weights, images)
            path = folder / f"{size[0]}x{size[1]}_b{batch}.onnx"
            exported = jax2onnx.to_onnx(program, [images.shape], model_name="dinov2")
            onnx.save(exported, path, save_as_external_data=exported.ByteSize() > 2**30)
            session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
            got = session.run(None, {session.get_inputs()[0].name: images})
            compared[path.name] = difference(got, want, range(len(OUTPUTS)))
    return compared


def _traced(features: Any, weights: Any, images: np.ndarray) -> tuple[Any, list[Any]]:
    """Traces the program, free of the modules that made it; also returns its outputs."""

    def call(images: Any) -> list[Any]:
        found = features(weights, images)
        return [found[name] for name in OUTPUTS]

    program = jax.extend.core.jaxpr_as_fun(jax.make_jaxpr(call)(images))
    return lambda x: tuple(program(x)), jax.jit(call)(images)


def _require(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise WeightsError(
            f'format onnx needs {name}: pip install "dinov2_jax[onnx]"; stablehlo needs nothing'
        ) from error
