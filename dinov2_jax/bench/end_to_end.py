"""Training from JPEG files: images per second, and the fraction of the step's own speed.

Our side is the loop's loader (crops and flips in worker processes), its copy to the device and its
step, which adds the colours there. The peers are torch's DataLoader with torchvision's multi-crop
v2 on the host, and the steps of bench.step. Every turn measures three things: training from files,
the same step on a batch of noise that lies on the device, and the loader without the step. Both
loaders start anew in each turn and make two batches per worker before the clock starts. So no batch
that was made earlier counts, and no worker runs in the other side's turn. Before any timing, two
fp32 steps must agree as in bench.step, and means and spreads of the crops as in bench.pipeline.
"""

import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dinov2_jax.bench import step
from dinov2_jax.bench.benchmark import Benchmark, Case, Peers
from dinov2_jax.bench.duel import Record
from dinov2_jax.bench.harness import Arrays, compare
from dinov2_jax.bench.photos import find_photos, write_photos
from dinov2_jax.bench.pipeline import statistics_agree
from dinov2_jax.bench.report import columns, spread

LEAST_FILES = 256  # photos of packages are repeated to this number, or to a batch
PEERS: Peers = {
    name: (target.replace("peers.step", "peers.end_to_end"), more)
    for name, (target, more) in step.PEERS.items()
}
FLAGS = {
    **step.FLAGS,
    "workers": (-1, "loader processes; -1: --threads"),
    "photos": ("", "a folder of JPEG files; '': photos of installed packages"),
    "check_images": (256, "images for means and spreads"),
}


def agree(ours: Arrays, theirs: Arrays) -> dict[str, float]:
    """Steps must agree to 1e-4, and statistics of the crops as in bench.pipeline."""

    def of(side: Arrays, steps: bool) -> Arrays:
        return {name: x for name, x in side.items() if name.startswith("step ") == steps}

    return compare(of(ours, True), of(theirs, True), max_rel=1e-4) | statistics_agree(
        of(ours, False), of(theirs, False)
    )


def fractions(case: Record) -> str:
    """A table: the fraction of the step's speed that is left with files, for each side."""
    rows = [("side", "from files/s", "synthetic/s", "files / synthetic (min..max)", "loader/s")]
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


def photo_files(args: Any, folder: Path) -> list[str]:
    """The JPEG files of --photos, or the packages' photographs, written to `folder`."""
    photos = find_photos(args.photos)
    return photos if args.photos else write_photos(photos, folder, max(LEAST_FILES, args.batch))


def cases(args: Namespace, folder: Path) -> Iterator[Case]:
    """One case."""
    config = step.recipe(args)
    config["data"]["workers"] = args.threads if args.workers < 0 else args.workers
    files = [Path(file).resolve() for file in photo_files(args, folder)]
    photos = folder / "photos.txt"
    photos.write_text("".join(f"{file}\n" for file in files), encoding="utf-8")
    mean_bytes = sum(file.stat().st_size for file in files) / max(1, len(files))
    yield case_of(args, config, str(photos), {"files": len(files), "mean_bytes": mean_bytes})


def case_of(args: Any, config: dict[str, Any], photos: str, about: dict[str, Any]) -> Case:
    """The case of a recipe. photos: a text file with the path of a JPEG file per line."""
    checked = step.for_check(config)
    common = {
        "threads": args.threads,
        "device": args.device,
        "seed": args.seed,
        "photos": photos,
        "check_batches": -(-args.check_images // checked["batch_size"]),
    }
    return Case(
        f"end to end {step.title_of(config)}, {config['data']['workers']} workers",
        common | {"config": config, "hyper": step.HYPER, "check": False},
        agree,
        items=args.batch,
        unit="images",
        check_settings=common | {"config": checked, "hyper": step.CHECK_HYPER, "check": True},
        record={"photos": about},
        summary=fractions,
    )


BENCHMARK = Benchmark(
    "end_to_end",
    __doc__,
    PEERS,
    FLAGS,
    cases,
    defaults={"peers": ["torch"], "rounds": 5, "turn_s": 5.0},
)
main = BENCHMARK.main

if __name__ == "__main__":
    sys.exit(main())
