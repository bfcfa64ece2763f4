"""Files of segmentation and depth heads: ours, and those released with DINOv2.

A released file is a checkpoint of mmcv, {"meta", "state_dict", "optimizer"}; everything but the
state dict is dropped. It holds neither the kind of head nor the range of depth nor the classes: the
kind follows from the keys, the rest from the file's name. Ours are the same tensors as safetensors,
with the rest as metadata; or the released layout as a .pth, with the rest in a JSON file beside it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dinov2_jax.datasets.pixel_classes import NAMES, voc_colours
from dinov2_jax.models.segmentation import Statistics
from dinov2_jax.run.files import replacing, write_json
from dinov2_jax.run.resume import write_tensors
from dinov2_jax.weights.dense import PREFIX, from_released, kind_of, names_of, to_released
from dinov2_jax.weights.files import PICKLES, Tensors, WeightsError, blamed_on, read_tensors
from dinov2_jax.weights.hub import DEPTHS, head_set

_KEY = "dense_head"  # of the safetensors metadata, and of the JSON file beside a .pth
_WRAPPER = "module."  # of torch's DistributedDataParallel
# Types of our metadata.
_ABOUT = {
    "blocks": list, "low": float, "high": float, "class_names": list, "colours": list,
    "name": str, "identity": str,
}  # fmt: skip


class StoredHead(NamedTuple):
    """What a file holds of a segmentation or depth head.

    Attributes:
      kind: "segmentation", "depth_linear" or "depth_dpt".
      params: of its module.
      statistics: of the batch norm of "segmentation"; None for the others.
      about: some of "blocks", "low", "high", "class_names", "colours", "name", "identity", and
        whatever else the writer knew.
    """

    kind: str
    params: Mapping[str, Any]
    statistics: Statistics | None
    about: Mapping[str, Any]


def is_dense(stored: Tensors) -> bool:
    """Whether these are tensors of a segmentation or depth head, perhaps with faults."""
    return any(name.removeprefix(_WRAPPER).startswith(PREFIX) for name in stored.tensors)


def read_dense(path: str | Path) -> StoredHead:
    """Reads a segmentation or depth head.

    Args:
      path: a .pth as released, alone or in its wrapper, or the same as safetensors; or ours.

    Raises:
      WeightsError: the file is missing or damaged, or holds something else or something more.
    """
    return dense_of(read_tensors(path))


def dense_of(stored: Tensors) -> StoredHead:
    """Makes a head of a file that is read already; errors as `read_dense`."""
    path = stored.path
    tensors = {name.removeprefix(_WRAPPER): x for name, x in stored.tensors.items()}
    kind = _kind(tensors, path)
    broken = [name for name, x in tensors.items() if not np.isfinite(x).all()]
    if broken:
        raise WeightsError(
            f"{path} holds NaN or infinity, such as in {broken[0]}; train or download it again"
        )
    with blamed_on(path):
        params, statistics = from_released(tensors, kind)
        ours, outputs = stored.settings.get(_KEY), len(params.get("bias", ()))
        about = _by_name(path, kind, outputs) if ours is None else _about(ours)
    return StoredHead(kind, params, statistics, about)


def _kind(tensors: Mapping[str, np.ndarray], path: Path) -> str:
    """The kind of head; raises WeightsError where names are unknown or missing."""
    kind = kind_of(set(tensors))
    if kind:
        return kind
    outside = [name for name in tensors if not name.startswith(PREFIX)]
    if len(outside) == len(tensors):
        raise WeightsError(
            f"{path} is no segmentation or depth head: it holds {_some(outside)}, but a head's "
            f"tensors are named {PREFIX}*; give a dinov2_*_head.pth, or a head that was saved here"
        )
    wanted = min(names_of().values(), key=lambda names: len(names ^ set(tensors)))
    missing, unknown = sorted(wanted - set(tensors)), sorted(set(tensors) - wanted)
    parts = [f"lacks {_some(missing)}"] * bool(missing) + [f"has {_some(unknown)}"] * bool(unknown)
    raise WeightsError(
        f"{path} is none of the known heads (linear or +ms segmentation, linear or DPT depth): "
        f"compared with the nearest it {' and '.join(parts)}; save the state dict of a whole head "
        "and nothing else"
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _by_name(path: Path, kind: str, outputs: int) -> dict[str, Any]:
    """What the name of a released file tells: data set, and with it classes or range of depth."""
    data = head_set(path.name)
    about: dict[str, Any] = {"name": path.stem, "data": data} if data else {"name": path.stem}
    # DINOv2: the hub builds every linear head for up to 80 m, also those that NYU trained for 10 m.
    if kind != "segmentation" and data in DEPTHS:
        about["low"], about["high"] = DEPTHS[data]
    if kind == "segmentation" and len(NAMES.get(data, ())) == outputs:
        about["class_names"] = list(NAMES[data])
    if "class_names" in about and data == "voc2012":
        about["colours"] = voc_colours(outputs).tolist()
    return about


def _about(text: str) -> dict[str, Any]:
    about = json.loads(text)
    if not isinstance(about, dict):
        raise ValueError(f"the metadata {text[:60]} are not those of a dense head")
    wrong = [k for k, kind in _ABOUT.items() if not isinstance(about.get(k, kind()), kind)]
    if wrong:
        raise ValueError(f"the metadata have {wrong[0]} = {about[wrong[0]]!r}")
    return about


def write_dense(path: Path, head: StoredHead) -> None:
    """Writes a head, whole or not at all; `read_dense` reads it again.

    Args:
      path: .safetensors, which keeps everything in one file; or .pth, which opens in the original
        code, with a .json beside it for what that layout cannot hold.

    Raises:
      WeightsError: another ending; torch is missing for a .pth.
    """
    tensors = to_released(head.params, head.kind, head.statistics)
    about = {_KEY: json.dumps(dict(head.about))}
    if path.suffix == ".safetensors":
        write_tensors(path, tensors, about)
    elif path.suffix in PICKLES:
        _write_pth(path, tensors, head.about)
        write_json(path.with_suffix(".json"), about)
    else:
        raise WeightsError(f"{path} has no known ending; name the head .safetensors or .pth")


def _write_pth(path: Path, tensors: dict[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """In the wrapper of mmcv, whose programs read classes and colours from `meta`."""
    try:
        import torch
    except ImportError as error:
        raise WeightsError(
            f'{path} is written by torch: pip install "dinov2_jax[torch]"; or name it .safetensors'
        ) from error
    meta = {"CLASSES": list(about.get("class_names", [])), "PALETTE": about.get("colours", [])}
    state = {name: torch.from_numpy(np.array(x)) for name, x in tensors.items()}
    with replacing(path) as temporary:
        torch.save({"meta": meta if meta["CLASSES"] else {}, "state_dict": state}, temporary)
