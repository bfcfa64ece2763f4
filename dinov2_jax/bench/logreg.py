"""Logistic regression for many values of C, against scikit-learn with warm starts.

Both sides fit every C of 10^linspace(-6, 5, --values) to the same features. Before any timing, each
of our objectives must be at most the peer's times 1 + 1e-6; both are computed in fp64 from the
weights by the same formula. The peer runs L-BFGS along ascending C with --peer_tol on its largest
gradient entry and at most --peer_iter steps per C. scikit-learn has no setting that stops at an
objective, so the table also says how far above ours it stopped.
"""

import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dinov2_jax.bench.benchmark import Benchmark, Case, Peers
from dinov2_jax.bench.duel import say
from dinov2_jax.bench.harness import Arrays, BenchError

PEERS: Peers = {
    "sklearn": ("peers.logreg:sklearn", {"features": "float64"}),
    "sklearn-fp32": ("peers.logreg:sklearn", {"features": "float32"}),
}
FLAGS = {
    "rows": (10000, "pictures"),
    "dim": (384, "width of a feature"),
    "classes": (100, "classes"),
    "values": (45, "number of C, from 1e-6 to 1e5"),
    "apart": (0.4, "distance of the class centres, in standard deviations"),
    "peer_tol": (1e-4, "scikit-learn's tol"),
    "peer_iter": (1000, "scikit-learn's max_iter"),
}


def no_worse(ours: Arrays, theirs: Arrays) -> dict[str, float]:
    """Raises BenchError if an objective of ours is above the peer's by more than 1e-6 of it."""
    excess = ours["objectives"] / theirs["objectives"] - 1
    said = {"ours above": float(excess.max()), "peer above": float(-excess.min())}
    said["peer within 1e-6"] = float(np.mean(excess > -1e-6))
    said["peer steps"] = float(theirs["steps"].sum())
    say(", ".join(f"{name} {value:.3g}" for name, value in said.items()))
    if not excess.max() <= 1e-6:
        raise BenchError(f"parity fails, so nothing was timed: ours is {excess.max():.2e} above")
    return said


def cases(args: Namespace, folder: Path) -> Iterator[Case]:
    """One case."""
    sizes = f"{args.rows} x {args.dim}, {args.classes} classes, {args.values} C"
    yield Case(
        f"{sizes}, tol {args.peer_tol:g}", vars(args), no_worse, items=args.values, unit="fits"
    )


BENCHMARK = Benchmark("logreg", __doc__, PEERS, FLAGS, cases, defaults={"rounds": 3})
main = BENCHMARK.main

if __name__ == "__main__":
    sys.exit(main())
