"""Exact search of the k nearest features, against faiss-cpu's flat index and torch's topk.

Bank and queries are the same unit vectors on all sides. The bank is in place before the clock
starts. Before any timing, similarities must agree to 1e-5, and rows wherever no two similarities
are closer than that.
"""

import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from dinov2_jax.bench.benchmark import Benchmark, Case, Peers
from dinov2_jax.bench.harness import Arrays, BenchError, compare

PEERS: Peers = {
    "faiss": ("peers.knn:faiss", {}),
    "torch": ("peers.knn:torch_topk", {}),
}
FLAGS = {
    "bank": (50000, "rows of the bank"),
    "queries": (1024, "queries per repetition"),
    "dim": (384, "width of a feature"),
    "k": ([20], "neighbours, one case each"),
}


def same_neighbours(ours: Arrays, theirs: Arrays) -> dict[str, float]:
    """Raises BenchError unless similarities agree, and rows too where there is no near-tie."""
    name = "similarities"
    differences = compare({name: ours[name]}, {name: theirs[name]}, max_rel=1e-5)
    values = ours[name]
    gaps = abs(values[:, 1:] - values[:, :-1]) > 2e-6
    clear = gaps[:, 1:] & gaps[:, :-1]  # inner ranks whose two neighbours are clearly apart
    wrong = int(((ours["rows"] != theirs["rows"])[:, 1:-1] & clear).sum())
    if wrong or not clear.any():
        raise BenchError(f"parity of rows fails, so nothing was timed: {wrong} of {clear.sum()}")
    return differences


def cases(args: Namespace, folder: Path) -> Iterator[Case]:
    """One case for each k."""
    for k in args.k:
        yield Case(
            f"{args.queries} x {args.bank} x {args.dim} k={k}",
            vars(args) | {"k": k},
            same_neighbours,
            items=args.queries,
            unit="queries",
        )


BENCHMARK = Benchmark("knn", __doc__, PEERS, FLAGS, cases)
main = BENCHMARK.main

if __name__ == "__main__":
    sys.exit(main())
