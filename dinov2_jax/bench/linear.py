"""Linear probe on stored features: one step of SGD for the reference's 52 classifiers.

Against PyTorch: "torch" trains all classifiers together, as the reference does (52 modules, the sum
of their losses, one SGD); "torch-alone" trains one after another. All sides use the same features,
weights, order and learning rates. After some steps, all weights must agree to 1e-4 of the largest.

With many images and classes, a step is mostly matrix products that no side can avoid (1024 images
and 100 classes: 24.5 GFLOP). With few of both, the overhead of 52 separate layers dominates.
"""

import functools
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from dinov2_jax.bench.benchmark import Benchmark, Case, Peers
from dinov2_jax.bench.harness import BenchError, compare

PEERS: Peers = {
    "torch": ("peers.linear:together", {}),
    "torch-alone": ("peers.linear:alone", {}),
}
FLAGS = {
    "rows": (10_000, "pictures"),
    "dim": (384, "width of a column"),
    "cases": (["1024:100", "128:10"], "BATCH:CLASSES, images per step and classes"),
    "iterations": (200, "length of the cosine"),
    "check_steps": (5, "steps before weights are compared"),
}


def cases(args: Namespace, folder: Path) -> Iterator[Case]:
    """One case for each BATCH:CLASSES."""
    for text in args.cases:
        batch, _, classes = text.partition(":")
        if not batch.isdigit() or not classes.isdigit():
            raise BenchError(f"--cases {text!r}; write 1024:100, for example")
        yield Case(
            f"52 heads, {args.rows} x 5 x {args.dim}, {classes} classes, B={batch}",
            vars(args) | {"batch": int(batch), "classes": int(classes)},
            functools.partial(compare, max_rel=1e-4),
            items=1,
            unit="steps",
        )


BENCHMARK = Benchmark("linear", __doc__, PEERS, FLAGS, cases)
main = BENCHMARK.main

if __name__ == "__main__":
    sys.exit(main())
