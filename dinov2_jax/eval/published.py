"""The paper's figures, shown only where model, data, sizes and settings are the paper's."""

import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dinov2_jax.config.files import tuples
from dinov2_jax.eval.task import Context, Finding, Metric


def paper_value(
    context: Context, protocol: str, data: str, metric: str, settings: Mapping[str, Any] = {}
) -> float | None:
    """The paper's value of a metric, or None.

    Args:
      protocol: "knn", "linear", "logreg", "video", "retrieval" or "finetune".
      data: name of the published set, such as "imagenet"; "" for other data.
      settings: what published.json requires beside the protocol's section of the configuration.
    """
    paper, model, config = _published(), context.backbone.model, context.config
    models, size = list(paper["models"].values()), (model.dim, model.depth)
    row = paper["rows"].get((protocol, data, metric))
    if row is None or size not in models or model.patch_size != paper["patch_size"]:
        return None
    how, preprocessing = paper["protocols"][protocol], context.backbone.preprocessing
    sizes = preprocessing.resize_px, preprocessing.image_px
    if protocol == "logreg":  # it takes the whole square of any picture
        sizes = sizes[1], sizes[1]
    given = {**config[protocol], "max_bad": config.data.max_bad, **settings}
    same = all(given[name] == value for name, value in how["settings"].items())
    figures = row[1] if model.registers else row[0]
    return figures[models.index(size)] if sizes == how["sizes"] and same and figures else None


def with_paper(
    context: Context,
    findings: Iterable[Finding],
    protocol: str,
    data: str,
    settings: Mapping[str, Any] = {},
) -> Iterator[Finding]:
    """The same findings, each metric with its `paper_value`."""
    for finding in findings:
        if isinstance(finding, Metric):
            value = paper_value(context, protocol, data, finding.name, settings)
            finding = dataclasses.replace(finding, published=value)
        yield finding


@functools.cache
def _published() -> dict[str, Any]:
    stored = tuples(json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8")))
    return stored | {"rows": {row[:3]: row[3:] for row in stored["figures"]}}
