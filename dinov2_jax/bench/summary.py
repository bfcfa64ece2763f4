"""One table for BENCHMARKS.md from the JSON files of many benchmarks.

python -m dinov2_jax.bench.summary FOLDER
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from dinov2_jax.bench.duel import Record
from dinov2_jax.bench.report import peak_bytes, spread

HEAD = (
    "case",
    "peer",
    "ours/s",
    "peer/s",
    "ratio",
    "memory, MiB",
    "files / synthetic, ours; peer",
)


def rows(record: Record) -> Iterator[tuple[str, ...]]:
    """Table rows of one file."""
    for case in record["cases"]:
        for pair in case["pairs"]:
            if "ratio" not in pair:
                reason = pair.get("error") or pair.get("skipped", "")
                first = reason.split("\n")[0][:120]
                yield case["case"], pair["peer"], "-", "-", first, "", ""
                continue
            sides = pair["ours"], pair["theirs"]
            files = [spread(s["parts"]["synthetic"]["ratio"]) for s in sides if "parts" in s]
            yield (
                case["case"],
                pair["peer"],
                *(f"{case['items'] / side['median_s']:.4g}" for side in sides),
                spread(pair["ratio"]),
                " / ".join(f"{(peak_bytes(side) or 0) / 2**20:.0f}" for side in sides),
                "; ".join(files),
            )


def main() -> int:
    """Returns the exit status: 1 if there is nothing to show."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("folder", type=Path, help="folder of the JSON files")
    folder = flags.parse_args().folder
    table = []
    for file in sorted(folder.glob("*.json")):
        table += rows(json.loads(file.read_text(encoding="utf-8")))
    if not table:
        print(
            f"error: no *.json of a benchmark in {folder}; name the folder of --json",
            file=sys.stderr,
        )
        return 1
    for row in (HEAD, ("---",) * len(HEAD), *table):
        print(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
