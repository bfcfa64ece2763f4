"""The paper's figures, shown only where model, data, sizes and settings are the paper's."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dinov2_jax.eval.task import Context


def paper_value(
    context: Context, protocol: str, data: str, metric: str, settings: Mapping[str, Any]
) -> float | None:
    """The paper's value of a metric, or None.

    Args:
      protocol: "knn", "linear", "logreg", "video", "retrieval" or "finetune".
      data: name of the published set, such as "imagenet"; "" for other data.
      settings: at least those that published.json requires of this protocol.
    """
    paper, model = _published(), context.backbone.model
    models = list(paper["models"].values())
    size = [model.dim, model.depth]
    row = paper["rows"].get((protocol, data, metric))
    if row is None or size not in models or model.patch_size != paper["patch_size"]:
        return None
    how, given = paper["protocols"][protocol], context.backbone.preprocessing
    wanted = [given.resize_px, given.image_px]
    if protocol == "logreg":  # it takes the whole square of any picture
        wanted[0] = wanted[1]
    same = all(settings[name] == value for name, value in how["settings"].items())
    figures = row[1] if model.registers else row[0]
    if wanted != how["sizes"] or not same or figures is None:
        return None
    return figures[models.index(size)]


@functools.cache
def _published() -> dict[str, Any]:
    stored = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    for how in stored["protocols"].values():
        settings = how["settings"]
        how["settings"] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    stored["rows"] = {tuple(row[:3]): row[3:] for row in stored["figures"]}
    return stored
