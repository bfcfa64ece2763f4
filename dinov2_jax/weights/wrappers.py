"""Finds the backbone among the tensors of a training program, an adapter or a larger model.

A backbone is known by its cls token: the tensors whose names begin as the cls token's does are its
own. What comes before is found, whatever it is called: "module.", "model.backbone.", "pretrained.".
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dinov2_jax.weights.files import WeightsError, is_allowed, permission

Flat = Mapping[str, np.ndarray]

# Modules that wrap another one anywhere in a name.
_INNER = re.compile(
    r"(?:(?<=\.)|^)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_CLS_TOKEN = re.compile(r"(?P<prefix>(?:.*?\.)??)(?:embeddings\.)?cls_token")
# Names of the backbone's own module; its heads lie beside it.
_OWN = re.compile(r"(?:^|(?<=\.))(?:backbone|dinov2|dinov2_with_registers)\.$")
_HEADS = ("dino_head", "ibot_head", "classifier")
# Words for the averaged one of two models, and for the other one.
_AVERAGED = {"teacher", "ema", "momentum", "averaged"}
_TRAINED = {"student", "online"}


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
    prefixes = [found["prefix"] for name in tensors if (found := _CLS_TOKEN.fullmatch(name))]
    prefix = _choose(prefixes, which, allow)
    root = _OWN.sub("", prefix)
    others = [other for other in prefixes if other != prefix]
    # Of another model, its heads are passed over too.
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
    wanted = _of_side(wanted or list(prefixes), which)
    if len(wanted) > 1:
        names = [prefix.rstrip(".") or "(without prefix)" for prefix in wanted]
        raise WeightsError(
            f"the file holds {len(wanted)} backbones: {', '.join(names)}; name those that are not "
            f"wanted, such as {permission(allow, names[1:])}"
        )
    return wanted[0] if wanted else ""


def _of_side(places: list[str], which: str) -> list[str]:
    """Those of the teacher or student, by the words in their names; all if none can be told."""
    own, other = (_AVERAGED, _TRAINED) if which == "teacher" else (_TRAINED, _AVERAGED)
    words = {place: set(re.split(r"[._]", place.lower())) for place in places}
    named = [place for place in places if words[place] & own]
    return named or [place for place in places if not words[place] & other] or places


def find_state_dict(stored: Mapping[Any, Any], which: str) -> tuple[dict[str, Any], str]:
    """Finds the state dict in what a training program saved: a dict of dicts of tensors.

    Returns:
      Its tensors by name, and its place, such as "checkpoint.teacher"; {} if there is none.

    Raises:
      WeightsError: several backbones, of which none is of the wanted side.
    """
    places = dict(_dicts_of_tensors(stored))
    whole = [place for place, x in places.items() if any(map(_CLS_TOKEN.fullmatch, x))]
    wanted = _of_side(whole, which) if whole else _usual(list(places), which)
    if len(wanted) > 1:
        raise WeightsError(
            f"it holds {len(wanted)} backbones: {', '.join(wanted)}; save the wanted one alone"
        )
    return (places[wanted[0]], wanted[0]) if wanted else ({}, "")


def _usual(places: list[str], which: str) -> list[str]:
    """The place to look at where no cls token tells: a part of several files, or a head."""
    for known in ("", which, "model", "state_dict", "model_state_dict"):
        if known in places:
            return [known]
    return places[:1]


def _dicts_of_tensors(stored: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(stored, Mapping) or place.count(".") > 4:
        return
    tensors = {str(name): x for name, x in stored.items() if hasattr(x, "detach")}
    if tensors:
        yield place, tensors
    for name, inner in stored.items():
        yield from _dicts_of_tensors(inner, f"{place}.{name}" if place else str(name))
