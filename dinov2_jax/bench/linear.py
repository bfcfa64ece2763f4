"""Linear probe on cached features: one step of SGD for the reference's 52 classifiers.

Against PyTorch: "torch" trains them together as the reference does (52 modules, the sum of their
losses, one SGD), "torch-alone" one after another. Same features, weights, order and rates on all
sides; after some steps all weights must agree to 1e-4 of the largest before any timing.

With many images and classes a step is matrix products of which neither side can leave any out
(1024 images and 100 classes: 24.5 GFLOP), so ours can gain what the other is below the peak; with
few of both it is the 52 separate layers that cost.
"""

import functools
import sys
from typing import Any

from dinov2_jax.bench.duel import Contender, run_case
from dinov2_jax.bench.harness import compare
from dinov2_jax.bench.report import finish, parser, prepare

PEERS = {"torch": "together", "torch-alone": "alone"}


def main() -> int:
    """Returns the exit status."""
    flags = parser(__doc__ or "", list(PEERS))
    flags.add_argument("--rows", type=int, default=10_000, help="pictures")
    flags.add_argument("--dim", type=int, default=384, help="width of a column")
    flags.add_argument(
        "--cases",
        nargs="+",
        default=["1024:100", "128:10"],
        metavar="BATCH:CLASSES",
        help="images a step, and classes",
    )
    flags.add_argument("--iterations", type=int, default=200, help="length of the cosine")
    flags.add_argument("--check_steps", type=int, default=5, help="steps that are compared")
    args = flags.parse_args()
    rules, cases = prepare(args), []
    for text in args.cases:
        batch, _, classes = text.partition(":")
        if not batch.isdigit() or not classes.isdigit():
            raise SystemExit(f"error: --cases {text!r}; write 1024:100, for example")
        settings: dict[str, Any] = vars(args) | {"batch": int(batch), "classes": int(classes)}
        peers = [
            Contender(name, f"dinov2_jax.bench.peers.linear:{PEERS[name]}", settings)
            for name in args.peers
        ]
        case = run_case(
            f"52 heads, {args.rows} x 5 x {args.dim}, {classes} classes, B={batch}",
            Contender("ours", "dinov2_jax.bench.ours.linear:side", settings),
            peers,
            functools.partial(compare, max_rel=1e-4),
            rules,
            items=1,
            unit="steps",
        )
        cases.append(case)
    return finish("linear", args, cases)


if __name__ == "__main__":
    sys.exit(main())
