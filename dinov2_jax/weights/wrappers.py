"""Finds the backbone among the tensors of a training program, an adapter or a larger model.

A backbone is known by its cls token: the tensors whose names begin as the cls token's does are its
own. What comes before is found, whatever it is called: "module.", "model.backbone.", "pretrained.".
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from dinov2_jax.weights.files import WeightsError, is_allowed, permission
from dinov2_jax.weights.nesting import CLS_TOKEN, of_side

Flat = Mapping[str, np.ndarray]

# Modules that wrap another one anywhere in a name.
_INNER = re.compile(
    r"(?:(?<=\.)|^)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
# Names of the backbone's own module; its heads lie beside it.
_OWN = re.compile(r"(?:^|(?<=\.))(?:backbone|dinov2|dinov2_with_registers)\.$")
_HEADS = ("dino_head", "ibot_head", "classifier")


@dataclasses.dataclass(frozen=True)
class Parts:
    """A state dict, taken apart."""

    backbone: dict[str, np.ndarray]
    heads: dict[str, dict[str, np.ndarray]]  # by name, of those in _HEADS
    left_over: dict[str, np.ndarray]  # by full name
    notes: list[str]


def split(tensors: Flat, which: str, allow: Sequence[str]) -> Parts:
    """Takes a state dict apart: the backbone, the heads beside it, and what is left over.

    Args:
      which: "teacher" or "student", if there are both.
      allow: names or modules that may be left over, also other backbones.

    Raises:
      WeightsError: several backbones, or LoRA factors beside their weights.
    """
    tensors = {_INNER.sub("", name): x for name, x in tensors.items()}
    if any(".base_layer." in name for name in tensors):
        raise WeightsError(
            "LoRA factors are stored beside the weights that they change; merge them where they "
            "come from (peft: model.merge_and_unload()), and save again"
        )
    prefixes = [found["prefix"] for name in tensors if (found := CLS_TOKEN.fullmatch(name))]
    prefix = _choose(prefixes, which, allow)
    root = _OWN.sub("", prefix)
    others = [other for other in prefixes if other != prefix]
    # The heads of another model are passed over, too.
    others += [_OWN.sub("", other) for other in others if _OWN.sub("", other) not in ("", root)]
    parts = Parts({}, {}, {}, [f"the backbone of {prefix.rstrip('.')!r}"] if others else [])
    for name, x in tensors.items():
        head = re.match(rf"{re.escape(root)}({'|'.join(_HEADS)})\.(.+)", name)
        if name.startswith(tuple(others)) and not (prefix and name.startswith(prefix)):
            continue
        if head:
            parts.heads.setdefault(head[1], {})[head[2]] = x
        elif name.startswith(prefix):
            parts.backbone[name.removeprefix(prefix)] = x
        else:
            parts.left_over[name] = x
    return parts


def _choose(prefixes: Sequence[str], which: str, allow: Sequence[str]) -> str:
    """The prefix of the wanted backbone; "" if there is none at all."""
    wanted = [prefix for prefix in prefixes if not is_allowed(prefix.rstrip("."), allow)]
    wanted = of_side(wanted or list(prefixes), which)
    if len(wanted) > 1:
        names = [prefix.rstrip(".") or "(without prefix)" for prefix in wanted]
        raise WeightsError(
            f"the file holds {len(wanted)} backbones: {', '.join(names)}; name those that are not "
            f"wanted, such as {permission(allow, names[1:])}"
        )
    return wanted[0] if wanted else ""
