"""Training from JPEG files: images a second, and which share of the step's own rate that is.

Ours is the loop's loader (crops and flips in worker processes), its copy to the device and its
step, which adds the colours there; the peers are torch's DataLoader with torchvision's multi-crop
v2 on the host, and the steps of bench.step. Each side is measured three ways in every turn: from
files, then the same step on a batch of noise that lies on the device, then the loader without the
step. Both loaders start anew in each turn, and two batches a worker go before the clock starts, so
that nothing made ahead counts and no worker runs in the other side's turn. Before any timing, two
fp32 steps must agree as in bench.step, and means and spreads of the loaders' crops as in
bench.pipeline.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from dinov2_jax.bench.duel import Contender, Record, run_case
from dinov2_jax.bench.harness import Arrays, BenchError, compare
from dinov2_jax.bench.photos import find_photos, write_photos
from dinov2_jax.bench.pipeline import statistics_agree
from dinov2_jax.bench.report import columns, finish, parser, prepare, spread
from dinov2_jax.bench.step import (
    CHECK_HYPER,
    HYPER,
    PEERS,
    add_recipe,
    for_check,
    recipe,
    title_of,
)
from dinov2_jax.config.files import ConfigError

LEAST_FILES = 256  # the packages' photographs are repeated to as many, or to a batch


def agree(ours: Arrays, theirs: Arrays) -> dict[str, float]:
    """Figures of the steps to 1e-4, statistics of the crops as bench.pipeline has it."""

    def of(side: Arrays, steps: bool) -> Arrays:
        return {name: x for name, x in side.items() if name.startswith("step ") == steps}

    return compare(of(ours, True), of(theirs, True), max_rel=1e-4) | statistics_agree(
        of(ours, False), of(theirs, False)
    )


def fractions(case: Record) -> str:
    """A table: what of the step's rate is left when it is fed from files, for each side."""
    rows = [
        ("side", "from files/s", "synthetic/s", "files / synthetic (least..greatest)", "loader/s")
    ]
    sides = [("ours, alone", case["alone"])] if "alone" in case else []
    for pair in case["pairs"]:
        if "ratio" in pair:
            sides += [
                (f"ours, beside {pair['peer']}", pair["ours"]),
                (pair["peer"], pair["theirs"]),
            ]
    for name, side in sides:
        parts = side["parts"]
        rates = [case["items"] / x["median_s"] for x in (side, parts["synthetic"], parts["loader"])]
        files, synthetic, loader = (f"{rate:.4g}" for rate in rates)
        rows.append((name, files, synthetic, spread(parts["synthetic"]["ratio"]), loader))
    return columns(rows)


def contenders(args: Any, config: dict[str, Any], photos: str) -> tuple[Contender, list[Contender]]:
    """Our side and the peers of --peers. photos: a text file, the path of a JPEG file a line."""
    checked_config = for_check(config)
    common = {
        "threads": args.threads,
        "device": args.device,
        "seed": args.seed,
        "photos": photos,
        "check_batches": -(-args.check_images // checked_config["batch_size"]),
    }
    timed = common | {"config": config, "hyper": HYPER, "check": False}
    checked = common | {"config": checked_config, "hyper": CHECK_HYPER, "check": True}
    ours = Contender("ours", "dinov2_jax.bench.ours.end_to_end:side", timed, checked)
    peers = []
    for name in args.peers:
        function, compiled = PEERS[name]
        target = f"dinov2_jax.bench.peers.end_to_end:{function}"
        more = {"compile": compiled}
        peers.append(Contender(name, target, timed | more, checked | more))
    return ours, peers


def photo_files(args: Any, folder: Path) -> list[str]:
    """The JPEG files of --photos, or the packages' photographs, written to `folder`."""
    found = find_photos(args.photos)
    return found if args.photos else write_photos(found, folder, max(LEAST_FILES, args.batch))


def main() -> int:
    """Returns the exit status."""
    flags = parser(__doc__ or "", list(PEERS), peers=["torch"], rounds=5, turn_s=5.0)
    add_recipe(flags)
    flags.add_argument("--workers", type=int, default=-1, help="loader processes; -1: --threads")
    flags.add_argument("--photos", default="", help="a folder of JPEG files; '': the packages'")
    flags.add_argument("--check_images", type=int, default=256, help="of the crops' statistics")
    args = flags.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            config = recipe(args)
            files = photo_files(args, Path(folder))
        except (BenchError, ConfigError) as error:
            raise SystemExit(f"error: {error}") from error
        config["data"]["workers"] = args.threads if args.workers < 0 else args.workers
        rules = prepare(args)
        photos = Path(folder, "photos.txt")
        photos.write_text("".join(f"{Path(file).resolve()}\n" for file in files), encoding="utf-8")
        case = run_case(
            f"end to end {title_of(config)}, {config['data']['workers']} workers",
            *contenders(args, config, str(photos)),
            agree,
            rules,
            items=args.batch,
            unit="images",
        )
        sizes = [Path(file).stat().st_size for file in files]
    print(fractions(case))
    case["photos"] = {"files": len(files), "mean_bytes": sum(sizes) / len(sizes)}
    return finish("end_to_end", args, [case])


if __name__ == "__main__":
    sys.exit(main())
