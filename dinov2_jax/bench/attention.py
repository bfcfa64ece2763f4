"""Attention alone, forward and backward, at the lengths that DINOv2 has.

Ours against the backends of jax.nn and PyTorch's SDPA (on a GPU with cuDNN first). Output and
gradients must agree before any timing: fp32 to 1e-4, bf16 to a cosine of 0.999.
"""

import sys
from typing import Any

from dinov2_jax.bench.duel import Contender, run_case
from dinov2_jax.bench.features import parity_of
from dinov2_jax.bench.report import finish, parser, prepare

PEERS = {
    "jax-xla": ("ours.attention:side", "xla"),
    "jax-cudnn": ("ours.attention:side", "cudnn"),  # bf16 on a GPU; its backward wants even lengths
    "ours-triton": ("ours.attention:side", "ours-triton"),  # of ours, what auto would not choose
    "torch": ("peers.attention:sdpa", ""),
}
# cls + patches: 96 px/16, 98 px/14, 224 px/16, 224 px/14, the same with registers, 518 px/14.
TOKENS = (37, 50, 197, 257, 261, 1370)


def main() -> int:
    """Returns the exit status."""
    flags = parser(__doc__ or "", list(PEERS), peers=["jax-xla", "torch"])
    flags.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS), help="a case each")
    flags.add_argument("--batch", type=int, default=8, help="crops")
    flags.add_argument("--heads", type=int, default=6)
    flags.add_argument("--head_dim", type=int, default=64)
    flags.add_argument("--forward_only", action="store_true", help="no gradients")
    args = flags.parse_args()
    rules, cases = prepare(args), []
    for tokens in args.tokens:
        settings: dict[str, Any] = vars(args) | {
            "tokens": tokens,
            "backward": not args.forward_only,
            "backend": "ours",
        }
        peers = [
            Contender(
                name,
                f"dinov2_jax.bench.{PEERS[name][0]}",
                settings | {"backend": PEERS[name][1]},
            )
            for name in args.peers
        ]
        case = run_case(
            f"attention N={tokens} B={args.batch} H={args.heads} {args.dtype}",
            Contender("ours", "dinov2_jax.bench.ours.attention:side", settings),
            peers,
            parity_of(args.dtype),
            rules,
            items=args.batch,
            unit="crops",
        )
        cases.append(case)
    return finish("attention", args, cases)


if __name__ == "__main__":
    sys.exit(main())
