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
    context: Context,
    protocol: str,
    data: str,
    metric: str,
    settings: Mapping[str, Any] = {},
    *,
    train: int | None = None,
    test: int | None = None,
) -> float | None:
    """The paper's value of a metric, or None.

    Args:
      protocol: "knn", "linear", "logreg", "video", "retrieval" or "finetune".
      data: name of the published set, such as "imagenet"; "" for other data.
      settings: what published.json requires beside the protocol's section of the configuration.
      train, test: numbers of pictures (or videos, queries) that were learned from and judged.
    """
    paper, model, config = _published(), context.backbone.model, context.config
    models, size = list(paper["models"].values()), (model.dim, model.depth)
    preprocessing = context.backbone.preprocessing
    sizes = preprocessing.resize_px, preprocessing.image_px
    if protocol == "logreg":  # it takes the whole square of any picture
        sizes = sizes[1], sizes[1]
    larger = f"{protocol}_{sizes[1]}"  # the paper's row for this side, where it has one
    name = larger if larger in paper["protocols"] else protocol
    row = paper["rows"].get((name, data, metric))
    if row is None or size not in models or model.patch_size != paper["patch_size"]:
        return None
    how = paper["protocols"][name]
    given = {**config[protocol], "max_bad": config.data.max_bad, **settings}
    same = all(given[name] == value for name, value in how["settings"].items())
    whole = all(map(_is_whole, paper["pictures"][data], (train, test)))
    figures = row[1] if model.registers else row[0]
    if sizes != how["sizes"] or not same or not whole or not figures:
        return None
    return figures[models.index(size)]


def dense_value(
    context: Context, protocol: str, data: str, metric: str, *, train: int | None, test: int
) -> float | None:
    """The paper's value of depth or segmentation, or None; the caller has compared the recipe.

    Args:
      protocol: "depth_1", "depth_4" (blocks of the linear head), "depth_dpt", "segmentation" or
        "segmentation_ms".
      train, test: numbers of pictures, as in `paper_value`; None where a given head was judged.
    """
    paper, model = _published(), context.backbone.model
    models, size = list(paper["models"].values()), (model.dim, model.depth)
    row = paper["rows"].get((protocol, data, metric))
    if row is None or size not in models or model.patch_size != paper["patch_size"]:
        return None
    learned, judged = paper["pictures"][data]
    given = {**context.config[protocol.split("_")[0]], "max_bad": context.config.data.max_bad}
    how = paper["protocols"][protocol]["settings"]
    if model.registers or any(given[name] != value for name, value in how.items()):
        return None
    if judged != test or train not in (None, learned):
        return None
    return row[0][models.index(size)]


def _is_whole(official: int | tuple[int, int] | None, count: int | None) -> bool:
    """Whether a split has its official size, or one in its range; None: the size is not known."""
    if isinstance(official, tuple):
        return count is not None and official[0] <= count <= official[1]
    return official is None or count == official


def with_paper(
    context: Context,
    findings: Iterable[Finding],
    protocol: str,
    data: str,
    settings: Mapping[str, Any] = {},
    train: int | None = None,
) -> Iterator[Finding]:
    """The same findings, each metric with its `paper_value`."""
    for finding in findings:
        if isinstance(finding, Metric):
            counts = {"train": train, "test": finding.n}
            value = paper_value(context, protocol, data, finding.name, settings, **counts)
            finding = dataclasses.replace(finding, published=value)
        yield finding


@functools.cache
def _published() -> dict[str, Any]:
    stored = tuples(json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8")))
    return stored | {"rows": {row[:3]: row[3:] for row in stored["figures"]}}
