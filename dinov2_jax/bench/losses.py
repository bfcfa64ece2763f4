"""The loss block alone: teacher targets of masked patches and their cross-entropy, with gradient.

Against the plain sequence of operations in PyTorch, eager and through torch.compile. Loss, gradient
and next centre must agree before any timing: fp32 to 1e-4, bf16 logits to a cosine of 0.999.
"""

import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from dinov2_jax.bench.benchmark import Benchmark, Case, Peers
from dinov2_jax.bench.harness import BenchError, parity_of

PEERS: Peers = {
    "torch": ("peers.losses:block", {"compile": False}),
    "torch-compiled": ("peers.losses:block", {"compile": True}),
}
# What one accelerator computes in the reference's long recipe: 32 images, 64 global crops.
CROPS, TEMP = 64, 0.07
FLAGS = {
    "rows": (2460, "masked patches"),
    "cases": (
        ["centering:65536", "sinkhorn_knopp:131072"],
        "CENTERING:K, how targets are made and the number of prototypes",
    ),
}


def cases(args: Namespace, folder: Path) -> Iterator[Case]:
    """One case for each CENTERING:K."""
    for text in args.cases:
        centering, _, k = text.partition(":")
        if centering not in ("centering", "sinkhorn_knopp") or not k.isdigit():
            raise BenchError(f"--cases {text!r}; write centering:65536, for example")
        more = {"centering": centering, "prototypes": int(k), "crops": CROPS, "temp": TEMP}
        yield Case(
            f"{centering} rows={args.rows} K={k} {args.dtype}",
            vars(args) | more,
            parity_of(args.dtype),
            items=1,
            unit="passes",
        )


BENCHMARK = Benchmark("losses", __doc__, PEERS, FLAGS, cases)
main = BENCHMARK.main

if __name__ == "__main__":
    sys.exit(main())
