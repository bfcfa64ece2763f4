"""Features of images: forward passes of the backbone against timm and transformers.

All sides use the same random weights and pixels. Before any timing, fp32 features must agree to
1e-4 of the largest value, and bf16 features to a cosine of 0.999.
"""

import itertools
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from dinov2_jax.bench.benchmark import Benchmark, Case, Peers
from dinov2_jax.bench.draws import VARIANTS, ViTShape
from dinov2_jax.bench.harness import parity_of

PEERS: Peers = {
    "timm": ("peers.features:timm", {"compile": False}),
    "timm-compiled": ("peers.features:timm", {"compile": True}),
    "transformers": ("peers.features:huggingface", {"compile": False}),
    "transformers-compiled": ("peers.features:huggingface", {"compile": True}),
}
FLAGS = {
    "variant": ("vit_small", "size of the backbone", VARIANTS),
    "patch_size": (14, "px"),
    "size": ([224], "px, one case each"),
    "batch": ([1, 8], "images, one case each"),
    "depth": (0, "blocks; 0: the variant's"),
    "scan": (False, "ours: scan the blocks instead of unrolling them"),
}


def cases(args: Namespace, folder: Path) -> Iterator[Case]:
    """One case for each size and batch."""
    dim, depth, heads, ffn = VARIANTS[args.variant]
    for size, batch in itertools.product(args.size, args.batch):
        shape = tuple(ViTShape(dim, args.depth or depth, heads, args.patch_size, size, ffn))
        yield Case(
            f"{args.variant}/{args.patch_size} {size} px B={batch} {args.dtype}",
            vars(args) | {"shape": shape, "batch": batch, "unroll": not args.scan},
            parity_of(args.dtype),
            items=batch,
            unit="images",
        )


BENCHMARK = Benchmark("features", __doc__, PEERS, FLAGS, cases)
main = BENCHMARK.main

if __name__ == "__main__":
    sys.exit(main())
