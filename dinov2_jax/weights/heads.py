"""Linear classifiers in files: named arrays and metadata, of which `heads/linear.py` makes objects.

A head is {"weight": fp32 [K, d], "bias": fp32 [K], "metadata": {...}}. The metadata hold "blocks"
(how many last blocks give their cls tokens), "avgpool" (whether the mean patch of the last block
follows them), "class_names" and whatever else the writer knows. Our own file is a safetensors.

Also read: the classifiers released with DINOv2 (FB dinov2/hub/classifiers.py), those of
transformers' Dinov2ForImageClassification, and both forms that earlier versions wrote.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dinov2_jax.config.files import nearest
from dinov2_jax.models.vit import VARIANTS
from dinov2_jax.run.resume import write_tensors
from dinov2_jax.weights.files import Tensors, WeightsError, blamed_on, read_tensors
from dinov2_jax.weights.hub import RELEASED_HEADS, find_head, head_name

Head = Mapping[str, Any]

FOLDER = "heads"  # of a bundle or an export
_KEY = "linear_head"  # of the safetensors metadata


def linear_heads(heads: Mapping[str, Any]) -> dict[str, Head]:
    """Picks the linear classifiers among the heads of a backbone, without projection heads."""
    parts = {"weight", "bias", "metadata"}
    return {name: head for name, head in heads.items() if head.keys() == parts}


def write_head(path: Path, head: Head) -> None:
    """Writes a safetensors file that is whole or not there; makes its folder."""
    tensors = {name: np.asarray(head[name], np.float32) for name in ("weight", "bias")}
    write_tensors(path, tensors, {_KEY: json.dumps(head["metadata"])})


def write_heads(folder: Path, heads: Mapping[str, Head]) -> None:
    """Writes each head to <folder>/heads/<name>.safetensors."""
    for name, head in heads.items():
        write_head(folder / FOLDER / f"{name}.safetensors", head)


def read_heads(folder: Path) -> dict[str, Head]:
    """Reads what `write_heads` wrote, {} if there is nothing."""
    return {file.stem: read_head(file) for file in sorted((folder / FOLDER).glob("*.safetensors"))}


def head_path(path_or_name: str | Path) -> Path:
    """Where a head lies: a path, the classifier of a bundle, or a released head by name.

    Raises:
      WeightsError: there is no such file and no such name, or the download fails.
    """
    path = Path(path_or_name).expanduser()
    of_bundle = path / FOLDER / "classifier.safetensors"
    if of_bundle.is_file():
        return of_bundle
    if path.exists():
        return path
    if name := head_name(str(path_or_name)):
        return find_head(name)
    close = nearest(path.name.removesuffix("_head.pth"), list(RELEASED_HEADS))
    raise WeightsError(
        f"there is no head {path}; give a .safetensors that was saved here, a released .pth, a "
        f"bundle with a classifier, or a name such as {close!r}"
    )


def read_head(path: str | Path, dim: int | None = None) -> Head:
    """Reads a linear classifier from any of the known forms.

    Args:
      path: our head.safetensors; a bundle with a "classifier"; a released dinov2_*_linear_head.pth
        or dinov2_*_linear4_head.pth (or the same as safetensors), or its name; a directory of
        transformers.
      dim: width of the backbone; needed for released files of an unusual width only.

    Raises:
      WeightsError: the file is missing, holds something else, or fits another width.
    """
    return head_of(read_tensors(head_path(path)), dim)


def head_of(stored: Tensors, dim: int | None = None) -> Head:
    """Makes a linear classifier of a file that is read already; errors as `read_head`."""
    path = stored.path
    with blamed_on(path):
        head = _from_tensors(stored, dim)
    if not all(np.isfinite(head[name]).all() for name in ("weight", "bias")):
        raise WeightsError(f"{path} holds NaN or infinity; train or download it again")
    return head


def _from_tensors(stored: Tensors, dim: int | None) -> Head:
    tensors, settings, source = stored.tensors, stored.settings, str(stored.path)
    if tensors.keys() == {"weight", "bias"} and _KEY in settings:
        return {**tensors, "metadata": _metadata(settings[_KEY])}
    if tensors.keys() == {"kernel", "bias"} and "avgpool" in settings:
        about = {"blocks": 1, "avgpool": settings["avgpool"] == "True"}
        return {"weight": tensors["kernel"].T, "bias": tensors["bias"], "metadata": about}
    if {"classifier.weight", "classifier.bias"} <= tensors.keys():
        tensors = {name: tensors[f"classifier.{name}"] for name in ("weight", "bias")}
        dim = dim or settings.get("hidden_size")
    return released_head(tensors, dim, source, settings)


def _metadata(text: str) -> dict[str, Any]:
    about = json.loads(text)
    kinds = {"blocks": int, "avgpool": bool, "class_names": list, "identity": str}
    if not isinstance(about, dict) or not about.keys() >= {"blocks", "avgpool"}:
        raise ValueError(f"the metadata {text[:60]} are not those of a linear head")
    wrong = [name for name, kind in kinds.items() if not isinstance(about.get(name, kind()), kind)]
    if wrong or not all(isinstance(name, str) for name in about.get("class_names", [])):
        raise ValueError(f"the metadata {text[:60]} are not those of a linear head")
    return about


def released_head(
    tensors: Mapping[str, np.ndarray], dim: int | None, source: str, config: Mapping[str, Any]
) -> Head:
    """Makes a head of the tensors of a released classifier, whose width tells its input.

    Args:
      tensors: {"weight" [K, (blocks + 1) dim], "bias" [K]}; the mean patch is always read.
      dim: width of the backbone; None for one of the released widths.
      source: named in errors.
      config: config.json of transformers, for the names of the classes.

    Raises:
      WeightsError: as `read_head`.
    """
    if tensors.keys() != {"weight", "bias"}:
        held = ", ".join(sorted(tensors)[:4])
        raise WeightsError(f"{source} is no linear head: it holds {held} instead of weight, bias")
    width = tensors["weight"].shape[1]
    dims = {variant.dim for variant in VARIANTS.values()} if dim is None else {dim}
    fits = [blocks for blocks in (1, 4) for known in dims if width == (blocks + 1) * known]
    if not fits:
        known = "a released width; name the backbone's: load_head(..., dim=...)"
        if dim is not None:
            known = f"the backbone's width of {dim}; it belongs to another backbone"
        raise WeightsError(
            f"{source} takes {width} features, which is neither 2 nor 5 times {known}"
        )
    arrays = {name: np.asarray(x, np.float32) for name, x in tensors.items()}
    names = _class_names(config, len(arrays["bias"]))
    return {**arrays, "metadata": {"blocks": fits[0], "avgpool": True, "class_names": names}}


def _class_names(config: Mapping[str, Any], classes: int) -> list[str]:
    """Reads id2label; transformers' placeholders LABEL_0, LABEL_1, ... count as no names."""
    labels = {int(number): str(name) for number, name in config.get("id2label", {}).items()}
    names = [labels.get(number, "") for number in range(classes)]
    known = len(labels) == classes and all(names)
    return [] if not known or names == [f"LABEL_{n}" for n in range(classes)] else names
