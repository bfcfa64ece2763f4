"""Instance retrieval by cosine similarity of cls features (paper section 7.3)."""

from collections.abc import Callable

import numpy as np

from dinov2_jax.configuration import ConfigError
from dinov2_jax.data.sources import Source
from dinov2_jax.eval.datasets.retrieval_sets import amstertime, met_set, revisited_set
from dinov2_jax.eval.feature_cache import Labelled
from dinov2_jax.eval.met import KS, choose_vote, met_scores, vote
from dinov2_jax.eval.protocols import Inputs, Outcome
from dinov2_jax.eval.retrieval import map_at_k, rank_all, revisited_map, search


def run_retrieval(inputs: Inputs) -> Outcome:
    """The set that `config.retrieval` names.

    Raises:
      ConfigError: no set, or no path.
    """
    settings = inputs.config.retrieval
    if not settings.set or not settings.path:
        raise ConfigError(
            f"retrieval needs --config.retrieval.set (of {', '.join(_SETS)}) and "
            "--config.retrieval.path"
        )
    return _SETS[settings.set](inputs, settings.path)


def _whole(inputs: Inputs, source: Source, title: str) -> Labelled:
    """Features of all pictures: the ground truth counts them."""
    found = inputs.features_of(source, title)
    if found.unreadable:
        raise ConfigError(
            f"{found.unreadable} pictures of {title} cannot be read, and retrieval needs all; "
            "unpack the set again"
        )
    return found


def _revisited(name: str) -> Callable[[Inputs, str], Outcome]:
    def run(inputs: Inputs, path: str) -> Outcome:
        found = revisited_set(name, path)
        database = _whole(inputs, found.database, f"{name}-database").cls[-1]
        queries = _whole(inputs, found.queries, f"{name}-queries").cls[-1]
        numbers = revisited_map(rank_all(database, queries), found.ground_truth)
        headline = {f"{name} {kind}, mAP": numbers[kind]["mAP"] for kind in ("medium", "hard")}
        kinds = zip(headline, ("medium", "hard"), strict=True)
        published = {figure: (f"retrieval_{kind}", name) for figure, kind in kinds}
        return Outcome(headline, numbers, {"queries": "cropped"}, published=published)

    return run


def _met(inputs: Inputs, path: str) -> Outcome:
    found = met_set(path)
    parts = {"database": found.database, "val": found.validation, "test": found.test}
    features = {name: _whole(inputs, source, f"met-{name}") for name, source in parts.items()}
    bank = features["database"]
    near = {
        name: search(bank.cls[-1], features[name].cls[-1], min(max(KS), len(bank.labels)))
        for name in ("val", "test")
    }
    voters = {name: (values, bank.labels[rows]) for name, (values, rows) in near.items()}
    k, temperature = choose_vote(*voters["val"], features["val"].labels, classes=found.classes)
    similarities, exhibits = voters["test"]
    answers = vote(
        similarities[:, :k], exhibits[:, :k], classes=found.classes, temperature=temperature
    )
    numbers = met_scores(*answers, features["test"].labels)
    headline = {f"met, {name}": value for name, value in numbers.items()}
    names = ("retrieval_gap", "retrieval_gap_minus", "retrieval_accuracy")
    published = {figure: (name, "met") for figure, name in zip(headline, names, strict=True)}
    chosen = {"k": k, "temperature": temperature, "chosen_on": "val"}
    return Outcome(headline, numbers, chosen, published=published)


def _amstertime(inputs: Inputs, path: str) -> Outcome:
    pairs = amstertime(path)
    new = _whole(inputs, pairs.new, "amstertime-new").cls[-1]
    old = _whole(inputs, pairs.old, "amstertime-old").cls[-1]
    partner = list(np.arange(len(new))[:, None])
    both = {
        "old_to_new": map_at_k(rank_all(new, old), partner, len(new)),
        "new_to_old": map_at_k(rank_all(old, new), partner, len(old)),
    }
    headline = {"amstertime, mAP": float(np.mean(list(both.values())))}
    published = {"amstertime, mAP": ("retrieval", "amstertime")}
    return Outcome(headline, both, {"mean_of": list(both)}, published=published)


_SETS = {
    "roxford5k": _revisited("roxford5k"),
    "rparis6k": _revisited("rparis6k"),
    "met": _met,
    "amstertime": _amstertime,
}
