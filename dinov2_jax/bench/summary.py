"""The JSON files of many benchmarks as tables for BENCHMARKS.md, with what was hoped for.

    python -m dinov2_jax.bench.summary FOLDER

Goals belong to names of files, those that launch/gpu_benchmarks.sh gives.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from dinov2_jax.bench.duel import Record
from dinov2_jax.bench.report import peak_bytes, spread

# Start of a file's name -> what its rows are to reach; "ratio PEER" is for one peer's rows only.
GOALS: Mapping[str, Mapping[str, float]] = {
    "features_": {"ratio": 1.1},
    "step_s": {"ratio": 1.5, "memory": 0.8},
    "step_b": {"memory": 0.8},
    "step_l": {"ratio": 1.2, "memory": 0.8},
    "step_l16_b64": {"ours/s": 361},
    "step_g": {"memory": 0.8},
    "losses_": {"ratio torch": 5, "ratio torch-compiled": 1.3},
    "end_to_end_s": {"files": 0.8},
    "end_to_end_b": {"files": 0.97},
    "end_to_end_l": {"files": 0.97},
}
AT_MOST = ("memory",)
HEAD = (
    *("case", "peer", "ours/s", "peer/s", "ratio", "memory, MiB"),
    *("files / synthetic, ours; peer", "goals"),
)


def figures(case: Record, pair: Record) -> dict[str, float]:
    """What goals are about: "ratio", "memory" (ours / peer), "ours/s", "files" (of synthetic)."""
    ours, theirs = pair["ours"], pair["theirs"]
    found = {"ratio": pair["ratio"]["median"], "ours/s": case["items"] / ours["median_s"]}
    found[f"ratio {pair['peer']}"] = found["ratio"]
    used, other = peak_bytes(ours), peak_bytes(theirs)
    if used and other:
        found["memory"] = used / other
    if "parts" in ours:
        found["files"] = ours["parts"]["synthetic"]["ratio"]["median"]
    return found


def verdicts(name: str, found: Mapping[str, float]) -> list[str]:
    """Each goal of a file's rows, and whether it is met."""
    said = []
    goals = [
        goal for start, all_ in GOALS.items() if name.startswith(start) for goal in all_.items()
    ]
    for what, limit in goals:
        if what in found:
            at_most = what in AT_MOST
            met = found[what] <= limit if at_most else found[what] >= limit
            sign = "<=" if at_most else ">="
            said.append(f"{what} {sign} {limit:g} {'met' if met else 'missed'}")
    return said


def rows(name: str, record: Record) -> Iterator[tuple[str, ...]]:
    """Table rows of one file."""
    for case in record["cases"]:
        for pair in case["pairs"]:
            if "ratio" not in pair:
                reason = pair.get("error") or pair.get("skipped", "")
                yield (
                    case["case"],
                    pair["peer"],
                    "-",
                    "-",
                    reason.split("\n")[0][:120],
                    "",
                    "",
                    "",
                )
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
                ", ".join(verdicts(name, figures(case, pair))),
            )


def main() -> int:
    """Returns the exit status: 1 if there is nothing to show."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("folder", type=Path, help="where the JSON files lie")
    folder = flags.parse_args().folder
    found = []
    for file in sorted(folder.glob("*.json")):
        found += rows(file.stem, json.loads(file.read_text(encoding="utf-8")))
    if not found:
        print(
            f"error: no *.json of a benchmark in {folder}; name the folder of --json",
            file=sys.stderr,
        )
        return 1
    for row in (HEAD, ("---",) * len(HEAD), *found):
        print(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
