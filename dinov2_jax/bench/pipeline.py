"""Source images a second and core, from JPEG bytes to 2 x 224 + 8 x 96 px crops.

Two rows of ours against torchvision's multi-crop (DINOv2's recipe), all of which runs on the host:
"host", what our loader does there (decode, crop, flip; uint8), and "all", that and the colours that
our training step adds on its device, here compiled for the same CPU cores. Before any timing, a
crop of a given box must agree to 1 level of 255 on average, and means and spreads of augmented
crops to 0.15 of a standard deviation.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from dinov2_jax.bench.duel import Contender, run_case
from dinov2_jax.bench.harness import Arrays, BenchError
from dinov2_jax.bench.photos import find_photos, shrink_photos
from dinov2_jax.bench.report import finish, parser, prepare

PEERS = {"torchvision-v1": "v1", "torchvision-v2": "v2", "torchvision-v2-tensor": "v2-tensor"}
ROWS = {"host": ("host", "crops"), "all": ("everything", "statistics")}
BOX = {"top": 20, "left": 40, "height": 230, "width": 250}  # inside the smallest photo


def crops_agree(ours: Arrays, theirs: Arrays) -> dict[str, float]:
    """Mean difference of uint8 crops, in levels."""
    found = {k: float(np.abs(ours[k].astype(float) - theirs[k]).mean()) for k in ours}
    worst = max(found, key=lambda k: found[k])
    if found[worst] > 1:
        raise BenchError(f"parity: the crop of {worst} differs by {found[worst]:.2f} levels of 255")
    return found


def statistics_agree(ours: Arrays, theirs: Arrays) -> dict[str, float]:
    """Greatest difference of mean and spread of normalised crops."""
    found = {k: float(np.abs(ours[k] - theirs[k]).max()) for k in ours}
    worst = max(found, key=lambda k: found[k])
    if not found[worst] < 0.15:
        raise BenchError(f"parity: mean or spread of {worst} crops differs by {found[worst]:.3f}")
    return found


def main() -> int:
    """Returns the exit status."""
    flags = parser(__doc__ or "", list(PEERS), threads=1, turn_s=2.0)
    flags.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="of ours")
    flags.add_argument("--photos", default="", help="a folder of JPEG files; '': the packages'")
    flags.add_argument(
        "--longer_px", type=int, default=0, help="shrink the photos to it; ImageNet's have 500"
    )
    flags.add_argument("--batch", type=int, default=16, help="images a repetition")
    flags.add_argument("--check_batches", type=int, default=16, help="batches of the statistics")
    args = flags.parse_args()
    rules = prepare(args)
    try:
        photos = find_photos(args.photos)
    except BenchError as error:
        raise SystemExit(f"error: {error}") from error
    with tempfile.TemporaryDirectory() as folder:
        if args.longer_px:
            photos = shrink_photos(photos, Path(folder), args.longer_px)
        cases = measure(args, photos, rules)
    return finish("pipeline", args, cases)


def measure(args: Any, photos: list[str], rules: Any) -> list[dict[str, Any]]:
    """A case for each row."""
    cases = []
    for row in args.rows:
        side, check = ROWS[row]
        settings: dict[str, Any] = vars(args) | {"photos": photos, "box": BOX, "check": check}
        peers = [
            Contender(
                name,
                "dinov2_jax.bench.peers.pipeline:multi_crop",
                settings | {"kind": PEERS[name]},
            )
            for name in args.peers
        ]
        case = run_case(
            f"pipeline {row} on {len(photos)} photos, {args.threads} cores",
            Contender("ours", f"dinov2_jax.bench.ours.pipeline:{side}", settings),
            peers,
            crops_agree if check == "crops" else statistics_agree,
            rules,
            items=args.batch,
            unit="images",
        )
        cases.append(case | {"photos": [Path(photo).name for photo in photos]})
    return cases


if __name__ == "__main__":
    sys.exit(main())
