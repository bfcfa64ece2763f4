"""Writes a backbone as ONNX with jax2onnx (an optional extra).

<folder>/HEIGHTxWIDTH_bN.onnx    a program: "images" -> "cls", ["registers",] "patches"
<folder>/example.py              how to call it

jax2onnx is the maintained way from JAX to ONNX (tf2onnx goes through TensorFlow and is no longer
developed). It patches JAX and Flax while tracing and would initialise our modules again, so it gets
a program that is traced already.
"""

import contextlib
import importlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dinov2_jax.weights.files import WeightsError
from dinov2_jax.weights.load import Backbone
from dinov2_jax.weights.stablehlo import (
    Programs,
    difference,
    features_at,
    features_of,
    flat_weights,
    noise,
)

INPUT = "images"
_EXAMPLE = '''"""Features from an exported program, with nothing but numpy and onnxruntime."""

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{program}", providers=["CPUExecutionProvider"])
# [images, height, width, channels], RGB in 0..1, minus {mean}, divided by {std}
images = np.zeros({shape}, np.float32)
names = [output.name for output in session.get_outputs()]
features = dict(zip(names, session.run(names, {{"{input}": images}})))
print({{name: x.shape for name, x in features.items()}})
'''


def write(backbone: Backbone, folder: Path, programs: Programs) -> dict[str, float]:
    """Writes one file for each image and batch size, and an example.

    Returns:
      By file, the difference of onnxruntime's features from the model's.

    Raises:
      WeightsError: jax2onnx or onnxruntime is missing, or a batch size is 0 (any).
    """
    with _silent("jax2onnx"):
        jax2onnx, onnx, runtime = (_require(name) for name in ("jax2onnx", "onnx", "onnxruntime"))
    if not all(programs.batch_sizes):
        raise WeightsError(
            "an ONNX file is made for a fixed number of images: --config.batch_sizes=(1,)"
        )
    model = backbone.model.clone(attention="xla", scan_blocks=False)
    weights, outputs = flat_weights(backbone), _outputs(backbone)
    compared = {}
    for size in programs.image_sizes:
        features = features_at(model, weights, size, programs.bake_positions)
        for batch in programs.batch_sizes:
            images = noise(backbone, batch, size)
            path = folder / f"{size[0]}x{size[1]}_b{batch}.onnx"
            with _silent("jax2onnx"):
                exported = jax2onnx.to_onnx(
                    _traced(features, weights, images, outputs),
                    [images.shape],
                    model_name="dinov2",
                    input_names=[INPUT],
                    output_names=outputs,
                )
            onnx.save(exported, path, save_as_external_data=exported.ByteSize() > 2**30)
            session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
            got = dict(zip(outputs, session.run(outputs, {INPUT: images}), strict=True))
            compared[path.name] = difference(got, features_of(backbone, images), outputs)
    about = backbone.preprocessing
    stored = {"program": path.name, "shape": images.shape, "mean": about.mean, "std": about.std}
    (folder / "example.py").write_text(_EXAMPLE.format(input=INPUT, **stored), encoding="utf-8")
    return compared


def _outputs(backbone: Backbone) -> list[str]:
    return ["cls", "registers", "patches"] if backbone.model.registers else ["cls", "patches"]


def _traced(features: Any, weights: Any, images: np.ndarray, outputs: list[str]) -> Any:
    """Traces the program, free of the modules that made it."""

    def call(images: Any) -> list[Any]:
        found = features(weights, images)
        return [found[name] for name in outputs]

    program = jax.extend.core.jaxpr_as_fun(jax.make_jaxpr(call)(images))
    return lambda x: tuple(program(x))


@contextlib.contextmanager
def _silent(name: str) -> Iterator[None]:
    """Hides what a library logs below an error, such as the plugins that it does without."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _require(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise WeightsError(
            f'format onnx needs {name}: pip install "dinov2_jax[onnx]"; stablehlo needs nothing'
        ) from error
