"""A directory for transformers: AutoModel, or with a classifier AutoModelForImageClassification."""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from dinov2_jax.run.files import write_json
from dinov2_jax.weights.architecture import in_channels
from dinov2_jax.weights.files import WeightsError
from dinov2_jax.weights.heads import Head, linear_heads
from dinov2_jax.weights.layouts import from_reference_names
from dinov2_jax.weights.load import Backbone


def classifier_of(backbone: Backbone) -> str | None:
    """Names the head that transformers can hold: cls and mean patch of the last block.

    With several such heads, "classifier" comes first, then the first in order.
    """
    fits = [
        name
        for name, head in linear_heads(backbone.heads).items()
        if head["metadata"]["blocks"] == 1 and head["metadata"]["avgpool"]
    ]
    return "classifier" if "classifier" in fits else next(iter(fits), None)


def write(backbone: Backbone, tensors: dict[str, np.ndarray], folder: Path) -> None:
    """Writes model.safetensors, config.json and preprocessor_config.json.

    Args:
      tensors: of the backbone, under the reference's names.

    Raises:
      WeightsError: for a ViT that transformers cannot describe.
    """
    name, model = classifier_of(backbone), backbone.model
    head = None if name is None else backbone.heads[name]
    config = model_config(backbone, head)
    if model.layerscale is None:  # transformers always has it; scales of 1 change nothing
        names = [f"blocks.{i}.ls{j}.gamma" for i in range(model.depth) for j in (1, 2)]
        tensors = tensors | {name: np.ones(model.dim, np.float32) for name in names}
    stored = from_reference_names(tensors, "huggingface")
    if head is not None:
        stored = {f"{config['model_type']}.{key}": value for key, value in stored.items()}
        for key in ("weight", "bias"):
            stored[f"classifier.{key}"] = np.ascontiguousarray(head[key], np.float32)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", backbone.preprocessing.to_huggingface())


def model_config(backbone: Backbone, head: Head | None = None) -> dict[str, Any]:
    """config.json of Dinov2Model or Dinov2WithRegistersModel, or of their ForImageClassification.

    Raises:
      WeightsError: for a ViT that those cannot describe.
    """
    model = backbone.model
    if not (model.proj_bias and model.ffn_bias):
        raise WeightsError("transformers' Dinov2 has biases everywhere, and this model has not")
    kind = "Dinov2WithRegisters" if model.registers else "Dinov2"
    fields = {
        "architectures": [f"{kind}{'Model' if head is None else 'ForImageClassification'}"],
        "model_type": "dinov2_with_registers" if model.registers else "dinov2",
        "hidden_size": model.dim,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "mlp_ratio": int(model.mlp_ratio) if model.mlp_ratio % 1 == 0 else model.mlp_ratio,
        "use_swiglu_ffn": model.ffn == "swiglu",
        "patch_size": model.patch_size,
        "image_size": model.image_size,
        "num_channels": in_channels(backbone.params, model.patch_size),
        "qkv_bias": model.qkv_bias,
        "layerscale_value": 1.0 if model.layerscale is None else model.layerscale,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
        # Not known to transformers, which resamples with neither; read again by `load`.
        "interpolate_offset": model.interpolate_offset,
        "interpolate_antialias": model.interpolate_antialias,
        "dtype": "float32",
        "torch_dtype": "float32",  # the name before transformers 5
    }
    fields |= {"num_register_tokens": model.registers} if model.registers else {}
    return fields | ({} if head is None else _labels(head))


def _labels(head: Head) -> dict[str, Any]:
    classes = len(head["bias"])
    names = head["metadata"].get("class_names") or [f"LABEL_{n}" for n in range(classes)]
    return {
        "num_labels": classes,
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }
