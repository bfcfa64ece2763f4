"""Depth from features: forward passes of the DPT head against PyTorch.

All sides use the same random weights and features of four blocks. Before any timing, depths must
agree to 1e-4 of the largest.
"""

import itertools
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from dinov2_jax.bench.benchmark import Benchmark, Case, Peers
from dinov2_jax.bench.harness import BenchError, parity_of

PEERS: Peers = {
    "torch": ("peers.dpt:dpt", {"channels_last": False, "compile": False}),
    "torch-channels-last": ("peers.dpt:dpt", {"channels_last": True, "compile": False}),
    "torch-compiled": ("peers.dpt:dpt", {"channels_last": False, "compile": True}),
}
FLAGS = {
    "dim": (384, "width of the backbone"),
    "channels": (256, "of the running map"),
    "size": (["224x224"], "HEIGHTxWIDTH of the picture in px, one case each"),
    "patch_size": (14, "px"),
    "batch": ([1], "pictures, one case each"),
}


def cases(args: Namespace, folder: Path) -> Iterator[Case]:
    """One case for each size and batch."""
    for text, batch in itertools.product(args.size, args.batch):
        height, _, width = text.partition("x")
        if not height.isdigit() or not width.isdigit():
            raise BenchError(f"--size {text!r}; write 490x644, for example")
        grid = [-(-int(side) // args.patch_size) for side in (height, width)]
        yield Case(
            f"DPT, width {args.dim}, {args.channels} channels, {text} px B={batch} {args.dtype}",
            vars(args) | {"grid": grid, "batch": batch},
            parity_of(args.dtype),
            items=batch,
            unit="images",
        )


BENCHMARK = Benchmark("dpt", __doc__, PEERS, FLAGS, cases)
main = BENCHMARK.main

if __name__ == "__main__":
    sys.exit(main())
