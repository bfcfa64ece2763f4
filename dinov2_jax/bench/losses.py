"""The loss block alone: teacher targets of masked patches and their cross-entropy, with gradient.

Against the plain sequence of operations in PyTorch, eager and through torch.compile. Loss, gradient
and next centre must agree before any timing: fp32 to 1e-4, bf16 logits to a cosine of 0.999.
"""

import sys
from typing import Any

from dinov2_jax.bench.duel import Contender, run_case
from dinov2_jax.bench.features import parity_of
from dinov2_jax.bench.report import finish, parser, prepare

PEERS = {"torch": False, "torch-compiled": True}
# One accelerator's share of the reference's long recipe: 32 images, 64 global crops.
CROPS, TEMP = 64, 0.07


def main() -> int:
    """Returns the exit status."""
    flags = parser(__doc__ or "", list(PEERS))
    flags.add_argument("--rows", type=int, default=2460, help="masked patches")
    flags.add_argument(
        "--cases",
        nargs="+",
        default=["centering:65536", "sinkhorn_knopp:131072"],
        metavar="CENTERING:K",
        help="how targets are made, and the number of prototypes",
    )
    args = flags.parse_args()
    rules, cases = prepare(args), []
    for text in args.cases:
        centering, _, prototypes = text.partition(":")
        if centering not in ("centering", "sinkhorn_knopp") or not prototypes.isdigit():
            raise SystemExit(f"error: --cases {text!r}; write centering:65536, for example")
        settings: dict[str, Any] = vars(args) | {
            "centering": centering,
            "prototypes": int(prototypes),
            "crops": CROPS,
            "temp": TEMP,
        }
        peers = [
            Contender(
                name,
                "dinov2_jax.bench.peers.losses:block",
                settings | {"compile": PEERS[name]},
            )
            for name in args.peers
        ]
        case = run_case(
            f"{centering} rows={args.rows} K={prototypes} {args.dtype}",
            Contender("ours", "dinov2_jax.bench.ours.losses:side", settings),
            peers,
            parity_of(args.dtype),
            rules,
            items=1,
            unit="passes",
        )
        cases.append(case)
    return finish("losses", args, cases)


if __name__ == "__main__":
    sys.exit(main())
