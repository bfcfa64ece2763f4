"""Images per second and core, from JPEG bytes to 2 x 224 + 8 x 96 px crops.

Against torchvision's multi-crop (DINOv2's recipe), which runs on the host. "host" is what our
loader does there (decode, crop, flip; uint8). "all" adds the colours, which our training step
computes on its device; here they are compiled for the same CPU cores. Before any timing, a crop of
a given box must agree to 1 level of 255 on average, and means and spreads of augmented crops to
0.15 of a standard deviation.
"""

import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dinov2_jax.bench.benchmark import Benchmark, Case, Peers
from dinov2_jax.bench.harness import Arrays, BenchError
from dinov2_jax.bench.photos import find_photos, shrink_photos

PEERS: Peers = {
    "torchvision-v1": ("peers.pipeline:multi_crop", {"kind": "v1"}),
    "torchvision-v2": ("peers.pipeline:multi_crop", {"kind": "v2"}),
    "torchvision-v2-tensor": ("peers.pipeline:multi_crop", {"kind": "v2-tensor"}),
}
ROWS = {"host": ("host", "crops"), "all": ("everything", "statistics")}
BOX = {"top": 20, "left": 40, "height": 230, "width": 250}  # inside the smallest photo
FLAGS = {
    "rows": (list(ROWS), "parts of our side", ROWS),
    "photos": ("", "a folder of JPEG files; '': photos of installed packages"),
    "longer_px": (0, "shrink the photos to this longer side; ImageNet's have 500"),
    "batch": (16, "images per repetition"),
    "check_batches": (16, "batches for means and spreads"),
}


def crops_agree(ours: Arrays, theirs: Arrays) -> dict[str, float]:
    """Mean difference of uint8 crops, in levels; raises BenchError above 1."""
    differences = {k: float(np.abs(ours[k].astype(float) - theirs[k]).mean()) for k in ours}
    worst = max(differences, key=lambda k: differences[k])
    if differences[worst] > 1:
        raise BenchError(
            f"parity: the crop of {worst} differs by {differences[worst]:.2f} levels of 255"
        )
    return differences


def statistics_agree(ours: Arrays, theirs: Arrays) -> dict[str, float]:
    """Largest difference of mean and spread of normalised crops; raises BenchError from 0.15."""
    differences = {k: float(np.abs(ours[k] - theirs[k]).max()) for k in ours}
    worst = max(differences, key=lambda k: differences[k])
    if not differences[worst] < 0.15:
        raise BenchError(
            f"parity: mean or spread of {worst} crops differs by {differences[worst]:.3f}"
        )
    return differences


def cases(args: Namespace, folder: Path) -> Iterator[Case]:
    """One case for each row."""
    photos = find_photos(args.photos)
    if args.longer_px:
        photos = shrink_photos(photos, folder, args.longer_px)
    for row in args.rows:
        side, check = ROWS[row]
        yield Case(
            f"pipeline {row} on {len(photos)} photos, {args.threads} cores",
            vars(args) | {"photos": photos, "box": BOX, "check": check},
            crops_agree if check == "crops" else statistics_agree,
            items=args.batch,
            unit="images",
            ours=side,
            record={"photos": [Path(photo).name for photo in photos]},
        )


BENCHMARK = Benchmark(
    "pipeline", __doc__, PEERS, FLAGS, cases, defaults={"threads": 1, "turn_s": 2.0}
)
main = BENCHMARK.main

if __name__ == "__main__":
    sys.exit(main())
