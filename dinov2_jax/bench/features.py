"""Features of images: forward passes of the backbone against timm and transformers.

Same random weights and pixels on all sides; before any timing, fp32 features must agree to 1e-4 of
the largest value and bf16 features to a cosine of 0.999.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

from dinov2_jax.bench.draws import VARIANTS, ViTShape
from dinov2_jax.bench.duel import Contender, run_case
from dinov2_jax.bench.harness import compare
from dinov2_jax.bench.report import finish, parser, prepare

PEERS = {
    "timm": ("timm", False),
    "timm-compiled": ("timm", True),
    "transformers": ("huggingface", False),
    "transformers-compiled": ("huggingface", True),
}


def parity_of(dtype: str) -> Callable[..., dict[str, float]]:
    """What features of this dtype must satisfy."""
    if dtype == "float32":
        return functools.partial(compare, max_rel=1e-4)
    return functools.partial(compare, min_cosine=0.999)


def main() -> int:
    """Returns the exit status."""
    flags = parser(__doc__ or "", list(PEERS))
    flags.add_argument("--variant", default="vit_small", choices=VARIANTS)
    flags.add_argument("--patch_size", type=int, default=14, help="px")
    flags.add_argument("--size", type=int, nargs="+", default=[224], help="px, one case each")
    flags.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="images, a case each")
    flags.add_argument("--depth", type=int, default=0, help="blocks; 0: the variant's")
    flags.add_argument("--scan", action="store_true", help="ours: scan the blocks, do not unroll")
    args = flags.parse_args()
    rules, cases = prepare(args), []
    for size in args.size:
        for batch in args.batch:
            dim, depth, heads, ffn = VARIANTS[args.variant]
            depth = args.depth or depth
            settings: dict[str, Any] = vars(args) | {
                "shape": tuple(ViTShape(dim, depth, heads, args.patch_size, size, ffn)),
                "batch": batch,
                "unroll": not args.scan,
            }
            peers = [
                Contender(
                    name,
                    f"dinov2_jax.bench.peers.features:{PEERS[name][0]}",
                    settings | {"compile": PEERS[name][1]},
                )
                for name in args.peers
            ]
            case = run_case(
                f"{args.variant}/{args.patch_size} {size} px B={batch} {args.dtype}",
                Contender("ours", "dinov2_jax.bench.ours.features:side", settings),
                peers,
                parity_of(args.dtype),
                rules,
                items=batch,
                unit="images",
            )
            cases.append(case)
    return finish("features", args, cases)


if __name__ == "__main__":
    sys.exit(main())
