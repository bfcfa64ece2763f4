"""Instance retrieval by cosine similarity of cls features (paper section 7.3)."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from dinov2_jax.config.files import ConfigError
from dinov2_jax.data.sources.source import Source
from dinov2_jax.datasets.retrieval import (
    MetSet,
    Pairs,
    RevisitedSet,
    amstertime,
    met_set,
    revisited_set,
)
from dinov2_jax.errors import EvaluationError
from dinov2_jax.eval.protocols import Inputs, Outcome, cls_as_evaluated
from dinov2_jax.features.cache import Wanted
from dinov2_jax.features.search import faiss_search, multi_scale_features, rank_all, search
from dinov2_jax.metrics.ranking import (
    MET_KS,
    choose_vote,
    map_at_k,
    met_scores,
    revisited_map,
    vote_exhibits,
)
from dinov2_jax.parallel.mesh import make_mesh, own_mesh


def open_retrieval(inputs: Inputs, others: Sequence[str]) -> Any:
    """The set that `config.retrieval` names.

    Raises:
      ConfigError, SourceError: no set, path or scale, or lists and pictures missing.
    """
    settings = inputs.config.retrieval
    if not settings.set or not settings.path:
        raise ConfigError(
            f"retrieval needs --config.retrieval.set (of {', '.join(_SETS)}) and "
            "--config.retrieval.path"
        )
    if not settings.scales or min(settings.scales) <= 0:
        raise ConfigError(f"config.retrieval.scales is {settings.scales}; such as (1.0,)")
    return _SETS[settings.set][0](settings.path)


def run_retrieval(inputs: Inputs) -> Outcome:
    """Searched by every process on its own devices."""
    settings = inputs.config.retrieval
    with jax.set_mesh(own_mesh(make_mesh())):
        found = _SETS[settings.set][1](inputs, inputs.opened)
    how = {"scales": settings.scales, "faiss_index": settings.faiss_index}
    same = settings.scales == (1.0,) and not settings.faiss_index
    return dataclasses.replace(found, protocol={**found.protocol, **how}, comparable=same)


def _cls(inputs: Inputs, source: Source, title: str) -> np.ndarray:
    """cls [n, D] of all pictures, of several scales their mean: the ground truth counts them."""
    found = []
    for scale in inputs.config.retrieval.scales:
        wanted = _scaled(inputs, scale)
        features = dataclasses.replace(inputs, wanted=wanted).features_of(source, title)
        if features.unreadable:
            raise ConfigError(
                f"{features.unreadable} pictures of {title} cannot be read, and retrieval needs "
                "all; unpack the set again"
            )
        found.append(features.cls[-1])
    return found[0] if len(found) == 1 else multi_scale_features(found)


def _scaled(inputs: Inputs, scale: float) -> Wanted:
    """cls of pictures at `scale` times the evaluation's size, of whole patches."""
    patch, wanted = inputs.backbone.model.patch_size, cls_as_evaluated(inputs.backbone)
    image_px = max(1, round(wanted.image_px * scale / patch)) * patch
    resize_px = round(wanted.resize_px * image_px / wanted.image_px)
    return dataclasses.replace(wanted, image_px=image_px, resize_px=resize_px)


def _nearest(
    inputs: Inputs, database: np.ndarray, queries: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    index = inputs.config.retrieval.faiss_index
    if not index:
        return search(database, queries, k)
    similarities, rows = faiss_search(database, queries, k, factory=index)
    if (rows < 0).any():
        raise EvaluationError(
            f"the index {index!r} finds fewer than {k} neighbours of some queries; take one of "
            'fewer cells, or "Flat"'
        )
    return similarities, rows


def _revisited(name: str) -> Callable[[Inputs, RevisitedSet], Outcome]:
    def run(inputs: Inputs, found: RevisitedSet) -> Outcome:
        database = _cls(inputs, found.database, f"{name}-database")
        queries = _cls(inputs, found.queries, f"{name}-queries")
        numbers = revisited_map(rank_all(database, queries), found.ground_truth)
        headline = {f"{name} {kind}, mAP": numbers[kind]["mAP"] for kind in ("medium", "hard")}
        kinds = zip(headline, ("medium", "hard"), strict=True)
        published = {figure: (f"retrieval_{kind}", name) for figure, kind in kinds}
        return Outcome(headline, numbers, {"queries": "cropped"}, published=published)

    return run


def _met(inputs: Inputs, found: MetSet) -> Outcome:
    bank = _cls(inputs, found.database, "met-database")
    exhibits_of, neighbours = found.database.labels, min(max(MET_KS), len(bank))
    assert exhibits_of is not None
    voters = {}
    for name, source in (("val", found.validation), ("test", found.test)):
        queries = _cls(inputs, source, f"met-{name}")
        similarities, rows = _nearest(inputs, bank, queries, neighbours)
        voters[name] = similarities, exhibits_of[rows]
    k, temperature = choose_vote(*voters["val"], found.validation.labels, classes=found.classes)
    similarities, exhibits = voters["test"]
    answers = vote_exhibits(
        similarities[:, :k], exhibits[:, :k], classes=found.classes, temperature=temperature
    )
    numbers = met_scores(*answers, found.test.labels)
    headline = {f"met, {name}": value for name, value in numbers.items()}
    names = ("retrieval_gap", "retrieval_gap_minus", "retrieval_accuracy")
    published = {figure: (name, "met") for figure, name in zip(headline, names, strict=True)}
    chosen = {"k": k, "temperature": temperature, "chosen_on": "val"}
    return Outcome(headline, numbers, chosen, published=published)


def _amstertime(inputs: Inputs, pairs: Pairs) -> Outcome:
    new = _cls(inputs, pairs.new, "amstertime-new")
    old = _cls(inputs, pairs.old, "amstertime-old")
    partner = list(np.arange(len(new))[:, None])
    both = {
        "old_to_new": map_at_k(rank_all(new, old), partner, len(new)),
        "new_to_old": map_at_k(rank_all(old, new), partner, len(old)),
    }
    headline = {"amstertime, mAP": float(np.mean(list(both.values())))}
    published = {"amstertime, mAP": ("retrieval", "amstertime")}
    return Outcome(headline, both, {"mean_of": list(both)}, published=published)


# Name: how it is opened, and judged.
_SETS: dict[str, tuple[Callable[[str], Any], Callable[[Inputs, Any], Outcome]]] = {
    "roxford5k": (functools.partial(revisited_set, "roxford5k"), _revisited("roxford5k")),
    "rparis6k": (functools.partial(revisited_set, "rparis6k"), _revisited("rparis6k")),
    "met": (met_set, _met),
    "amstertime": (amstertime, _amstertime),
}
