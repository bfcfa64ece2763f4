"""Instance retrieval by cosine similarity of cls features (paper section 7.3)."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from dinov2_jax.config.files import ConfigError
from dinov2_jax.datasets import retrieval as sets
from dinov2_jax.eval.published import with_paper
from dinov2_jax.eval.task import Context, Finding, Metric, Need, Task, Work
from dinov2_jax.features.cache import Wanted
from dinov2_jax.features.index import faiss_search
from dinov2_jax.features.search import multi_scale_features, rank_all, search
from dinov2_jax.metrics import ranking
from dinov2_jax.parallel.mesh import make_mesh, own_mesh
from dinov2_jax.parallel.processes import is_main


def open(context: Context) -> list[Task]:
    """The set that `config.retrieval` names.

    Raises:
      ConfigError, SourceError: no set, path or scale, or lists and pictures missing.
    """
    settings = context.config.retrieval
    if not settings.set or not settings.path:
        raise ConfigError(
            f"retrieval needs --config.retrieval.set (of {', '.join(_SETS)}) and "
            "--config.retrieval.path"
        )
    if not settings.scales or min(settings.scales) <= 0:
        raise ConfigError(f"config.retrieval.scales is {settings.scales}; such as (1.0,)")
    which, name = _SETS[settings.set], settings.set
    found = which.open(settings.path)
    sources = dict(zip(which.parts, found, strict=False))
    sizes = [_scaled(context, scale) for scale in settings.scales]
    needs = {
        part: [Need(f"{name}-{part}", source, wanted) for wanted in sizes]
        for part, source in sources.items()
    }

    def run(work: Work) -> Iterator[Finding]:
        cls = {part: _cls(work, passes) for part, passes in needs.items()}
        with jax.set_mesh(own_mesh(make_mesh())):  # every process on its own devices
            findings = list(which.judge(context, found, cls))
        yield from with_paper(context, findings, "retrieval", name)

    how = {"scales": settings.scales, "faiss_index": settings.faiss_index}
    if settings.faiss_index:
        how["faiss_recall"] = settings.faiss_recall
    everything = tuple(need for passes in needs.values() for need in passes)
    return [Task(name, everything, context.settings(**sources) | how, run)]


def _cls(work: Work, passes: list[Need]) -> np.ndarray:
    """cls [n, D] of all pictures; the mean of several scales. The ground truth counts rows."""
    found = []
    for need in passes:
        features = work.features(need)
        if features.unreadable:
            raise ConfigError(
                f"{features.unreadable} pictures of {need.title} cannot be read, and retrieval "
                "needs all; unpack the set again"
            )
        found.append(features.cls[-1])
    return found[0] if len(found) == 1 else multi_scale_features(found)


def _scaled(context: Context, scale: float) -> Wanted:
    """cls of pictures at `scale` times the evaluation's size, in whole patches."""
    patch, wanted = context.backbone.model.patch_size, context.cls_as_evaluated
    image_px = max(1, round(wanted.image_px * scale / patch)) * patch
    resize_px = round(wanted.resize_px * image_px / wanted.image_px)
    return dataclasses.replace(wanted, image_px=image_px, resize_px=resize_px)


# ---------------------------------------------------------------------------------------- sets
Features = Mapping[str, np.ndarray]


def _revisited(context: Context, found: sets.RevisitedSet, cls: Features) -> Iterator[Finding]:
    numbers = ranking.revisited_map(rank_all(cls["database"], cls["queries"]), found.ground_truth)
    for kind in ("medium", "hard"):
        yield Metric(f"mAP, {kind}", numbers[kind]["mAP"], n=len(cls["queries"]))
    yield {"by_difficulty": numbers, "queries": "cropped"}


def _nearest(
    context: Context, database: np.ndarray, queries: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Similarities and database rows [m, k], exact or by faiss, and notes on the index."""
    settings = context.config.retrieval
    if not settings.faiss_index:
        return *search(database, queries, k), {}
    how = {"factory": settings.faiss_index, "least_recall": settings.faiss_recall}
    found = faiss_search(database, queries, k, **how)
    if is_main():
        print(
            f"the index {settings.faiss_index} finds {100 * found.recall:.2f} % of the {k} nearest "
            f"in a sample of the queries {found.searched or ''}".rstrip(),
            flush=True,
        )
    notes = {"recall": found.recall, "neighbours": k, "searched": found.searched}
    return found.similarities, found.rows, {"index": {"factory": settings.faiss_index} | notes}


def _met(context: Context, found: sets.MetSet, cls: Features) -> Iterator[Finding]:
    """k and temperature of the vote are chosen on val."""
    bank, exhibits_of = cls["database"], found.database.labels
    assert exhibits_of is not None
    both, most = np.concatenate([cls["val"], cls["test"]]), min(max(ranking.MET_KS), len(bank))
    similarities, rows, notes = _nearest(context, bank, both, most)
    ends = [len(cls["val"])]
    parts = np.split(similarities, ends), np.split(exhibits_of[rows], ends)
    voters = dict(zip(("val", "test"), zip(*parts, strict=True), strict=True))
    classes = found.classes
    k, temperature = ranking.choose_vote(*voters["val"], found.validation.labels, classes=classes)
    nearest = (part[:, :k] for part in voters["test"])
    answers = ranking.vote_exhibits(*nearest, classes=classes, temperature=temperature)
    for name, value in ranking.met_scores(*answers, found.test.labels).items():
        yield Metric(name, value, n=len(found.test), chosen_on="val")
    yield {"k": k, "temperature": temperature, "chosen_on": "val"} | notes


def _amstertime(context: Context, pairs: sets.Pairs, cls: Features) -> Iterator[Finding]:
    new, old = cls["new"], cls["old"]
    partner = list(np.arange(len(new))[:, None])
    both = {
        "old_to_new": ranking.map_at_k(rank_all(new, old), partner, len(new)),
        "new_to_old": ranking.map_at_k(rank_all(old, new), partner, len(old)),
    }
    yield Metric("mAP", float(np.mean(list(both.values()))), n=len(new) + len(old))
    yield {"mean_of": both}


class _Set(NamedTuple):
    """How a set is opened, what its pictures (its first fields) are called, how it is judged."""

    open: Callable[[str], Any]
    parts: tuple[str, ...]
    judge: Callable[[Context, Any, Features], Iterator[Finding]]


_SETS = {
    name: _Set(functools.partial(sets.revisited_set, name), ("database", "queries"), _revisited)
    for name in sets.REVISITED
}
_SETS["met"] = _Set(sets.met_set, ("database", "val", "test"), _met)
_SETS["mini_met"] = _SETS["met"]._replace(open=functools.partial(sets.met_set, mini=True))
_SETS["amstertime"] = _Set(sets.amstertime, ("new", "old"), _amstertime)
