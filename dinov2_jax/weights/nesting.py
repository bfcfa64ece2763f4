"""Finds state dicts in what a training program saved: a dict of dicts of tensors."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

# By its cls token a backbone is known, whatever comes before it.
CLS_TOKEN = re.compile(r"(?P<prefix>(?:.*?\.)??)(?:embeddings\.)?cls_token")
# Words for the averaged one of two models, and for the other one.
_AVERAGED = {"teacher", "ema", "momentum", "averaged"}
_TRAINED = {"student", "online"}


def find_state_dicts(stored: Mapping[Any, Any], which: str) -> dict[str, dict[str, Any]]:
    """Tensors by name, by their place, such as "checkpoint.teacher".

    Args:
      which: "teacher" (also a moving average) or "student", if there are both.

    Returns:
      One state dict, {} if there is none, or several backbones if nothing tells them apart.
    """
    places = dict(_dicts_of_tensors(stored))
    whole = [place for place, x in places.items() if any(map(CLS_TOKEN.fullmatch, x))]
    wanted = of_side(whole, which) if whole else _usual(list(places), which)
    return {place: places[place] for place in wanted}


def of_side(places: list[str], which: str) -> list[str]:
    """Those of the teacher or student, by the words in their names; all if none can be told."""
    own, other = (_AVERAGED, _TRAINED) if which == "teacher" else (_TRAINED, _AVERAGED)
    words = {place: set(re.split(r"[._]", place.lower())) for place in places}
    named = [place for place in places if words[place] & own]
    return named or [place for place in places if not words[place] & other] or places


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
