"""Search and k-means of curation, against faiss-cpu on equal rows and equal first centroids.

Ratios of CPU seconds are printed above the table: they hold on a busy machine too. Before any
timing, similarities must agree to 1e-5, and the objective after a step of k-means to 1e-6.
"""

import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from dinov2_jax.bench.benchmark import Benchmark, Case, Peers
from dinov2_jax.bench.duel import Record
from dinov2_jax.bench.harness import Arrays, compare
from dinov2_jax.bench.knn import same_neighbours

PEERS: Peers = {"faiss": ("peers.curation:faiss", {})}
# {case: rows, width, then queries and neighbours, or clusters}
WORK = {
    "search": {"bank": 1_000_000, "dim": 512, "queries": 512, "k": 64},
    "kmeans-1000": {"bank": 100_000, "dim": 384, "queries": 0, "k": 1000},
    "kmeans-10000": {"bank": 205_000, "dim": 128, "queries": 0, "k": 10_000},
}
FLAGS = {"work": (list(WORK), "what to compare", list(WORK))}


def same_step(ours: Arrays, theirs: Arrays) -> dict[str, float]:
    """Raises BenchError unless the objectives agree to 1e-6, and the centroids to 1e-3."""
    differences = compare({"step": ours["objective"]}, {"step": theirs["objective"]}, max_rel=1e-6)
    # A row between two centroids may go to either.
    names = {"centroids": ours["centroids"]}, {"centroids": theirs["centroids"]}
    return differences | compare(*names, min_cosine=0.99999)


def cpu_ratios(record: Record) -> str:
    """Lines with the CPU seconds of both sides."""
    return "\n".join(
        f"{record['case']}: CPU seconds {pair['ours']['cpu_s']:.3f} against "
        f"{pair['theirs']['cpu_s']:.3f} of {pair['peer']}, "
        f"{pair['ours']['cpu_s'] / pair['theirs']['cpu_s']:.2f} of it"
        for pair in record["pairs"]
        if "theirs" in pair
    )


def cases(args: Namespace, folder: Path) -> Iterator[Case]:
    """One case for each work."""
    for name in args.work:
        work = WORK[name]
        searches = bool(work["queries"])
        yield Case(
            " ".join([name, *(f"{key}={value}" for key, value in work.items() if value)]),
            vars(args) | work,
            same_neighbours if searches else same_step,
            items=work["queries"] or work["bank"],
            unit="queries" if searches else "rows",
            summary=cpu_ratios,
        )


BENCHMARK = Benchmark("curation", __doc__, PEERS, FLAGS, cases)
main = BENCHMARK.main

if __name__ == "__main__":
    sys.exit(main())
