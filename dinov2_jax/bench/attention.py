"""Attention alone, forward and backward, at the lengths that DINOv2 uses.

Our kernel against the backends of jax.nn and PyTorch's SDPA (on a GPU with cuDNN first). Output and
gradients must agree before any timing: fp32 to 1e-4, bf16 to a cosine of 0.999.
"""

import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from dinov2_jax.bench.benchmark import Benchmark, Case, Peers
from dinov2_jax.bench.harness import parity_of

PEERS: Peers = {
    "jax-xla": ("ours.attention:side", {"backend": "xla"}),
    # bf16 on a GPU; its backward pass needs even lengths
    "jax-cudnn": ("ours.attention:side", {"backend": "cudnn"}),
    "ours-triton": ("ours.attention:side", {"backend": "ours-triton"}),  # auto never chooses it
    "torch": ("peers.attention:sdpa", {}),
}
# cls + patches: 96 px/16, 98 px/14, 224 px/16, 224 px/14, the same with registers, 518 px/14.
TOKENS = [37, 50, 197, 257, 261, 1370]
FLAGS = {
    "tokens": (TOKENS, "one case each"),
    "batch": (8, "crops"),
    "heads": (6, "attention heads"),
    "head_dim": (64, "width of a head"),
    "forward_only": (False, "no gradients"),
}


def cases(args: Namespace, folder: Path) -> Iterator[Case]:
    """One case for each length."""
    for tokens in args.tokens:
        more = {"tokens": tokens, "backward": not args.forward_only, "backend": "ours"}
        yield Case(
            f"attention N={tokens} B={args.batch} H={args.heads} {args.dtype}",
            vars(args) | more,
            parity_of(args.dtype),
            items=args.batch,
            unit="crops",
        )


BENCHMARK = Benchmark(
    "attention", __doc__, PEERS, FLAGS, cases, defaults={"peers": ["jax-xla", "torch"]}
)
main = BENCHMARK.main

if __name__ == "__main__":
    sys.exit(main())
