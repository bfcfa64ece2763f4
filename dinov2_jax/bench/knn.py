"""Exact search of the k nearest features, against faiss-cpu's flat index and torch's topk.

Bank and queries are the same unit vectors on all sides, and the bank is put in place before the
clock starts. Before any timing, similarities must agree to 1e-5 and rows wherever no two
similarities are closer than that.
"""

import sys
from typing import Any

from dinov2_jax.bench.duel import Contender, run_case
from dinov2_jax.bench.harness import Arrays, BenchError, compare
from dinov2_jax.bench.report import finish, parser, prepare

PEERS = {
    "faiss": "dinov2_jax.bench.peers.knn:faiss",
    "torch": "dinov2_jax.bench.peers.knn:torch_topk",
}


def same_neighbours(ours: Arrays, theirs: Arrays) -> dict[str, float]:
    """Raises BenchError unless similarities agree, and rows where they are no near-ties."""
    name = "similarities"
    found = compare({name: ours[name]}, {name: theirs[name]}, max_rel=1e-5)
    values = ours[name]
    gaps = abs(values[:, 1:] - values[:, :-1]) > 2e-6
    clear = gaps[:, 1:] & gaps[:, :-1]  # of the inner ranks, both neighbours are clearly apart
    wrong = int(((ours["rows"] != theirs["rows"])[:, 1:-1] & clear).sum())
    if wrong or not clear.any():
        raise BenchError(f"parity of rows fails, so nothing was timed: {wrong} of {clear.sum()}")
    return found


def main() -> int:
    """Returns the exit status."""
    flags = parser(__doc__ or "", list(PEERS))
    flags.add_argument("--bank", type=int, default=50000, help="rows")
    flags.add_argument("--queries", type=int, default=1024)
    flags.add_argument("--dim", type=int, default=384)
    flags.add_argument("--k", type=int, nargs="+", default=[20], help="neighbours, one case each")
    args = flags.parse_args()
    rules, cases = prepare(args), []
    for k in args.k:
        settings: dict[str, Any] = vars(args) | {"k": k}
        peers = [Contender(name, PEERS[name], settings) for name in args.peers]
        case = run_case(
            f"{args.queries} x {args.bank} x {args.dim} k={k}",
            Contender("ours", "dinov2_jax.bench.ours.knn:side", settings),
            peers,
            same_neighbours,
            rules,
            items=args.queries,
            unit="queries",
        )
        cases.append(case)
    return finish("knn", args, cases)


if __name__ == "__main__":
    sys.exit(main())
