"""The command line that all benchmarks share, their environment, table and JSON."""

import argparse
import datetime
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from dinov2_jax.bench.duel import Record, Rules, say
from dinov2_jax.bench.harness import BUSY_LOAD
from dinov2_jax.run.files import write_json

# fmt: off
_PACKAGES = (
    "dinov2_jax", "jax", "jaxlib", "flax", "optax", "numpy", "cykooz-resizer",
    "opencv-python-headless", "pillow", "simplejpeg", "torch", "torchvision", "timm",
    "transformers", "lightly",
)
# fmt: on
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def parser(
    description: str, known_peers: Sequence[str], **defaults: Any
) -> argparse.ArgumentParser:
    """Flags of every benchmark: --peers --rounds --turn_s --device --dtype --threads --seed --json.

    Args:
      known_peers: all peers, the default of --peers.
      defaults: other defaults of these flags.
    """
    flags = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = flags.add_argument
    add(
        "--peers",
        nargs="*",
        default=list(known_peers),
        choices=known_peers,
        help="peers to compare with",
    )
    add("--rounds", type=_positive, default=7, help="turns of each side")
    add("--turn_s", type=float, default=1.0, help="seconds per turn, filled by repetitions")
    add("--device", default="cpu", choices=("cpu", "gpu"), help="device of both sides")
    add(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16"),
        help="dtype of matrix products",
    )
    add("--threads", type=_positive, default=len(available_cores()), help="CPU cores of both sides")
    add("--seed", type=int, default=0, help="seed of weights and inputs")
    add("--json", default="", metavar="FILE", help="write the record there")
    flags.set_defaults(**defaults)
    return flags


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def available_cores() -> list[int]:
    """Numbers of the CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def prepare(flags: argparse.Namespace) -> Rules:
    """Sets what the workers inherit and returns the rules of measurement.

    Caches of compiled programs are switched off on both sides, so that compile times are real.
    """
    cores = available_cores()
    if flags.threads > len(cores):
        raise SystemExit(
            f"error: --threads={flags.threads}, but there are {len(cores)} CPU cores; use at most "
            "that many"
        )
    environment = dict.fromkeys(_THREAD_VARIABLES, str(flags.threads)) | {
        "JAX_PLATFORMS": "cpu" if flags.device == "cpu" else "cuda,cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
        # Both libraries live on one GPU: neither may take it all.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "HF_HUB_OFFLINE": "1",
    }
    os.environ |= environment
    os.environ.pop("XLA_FLAGS", None)  # a test's virtual devices would share the cores
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > BUSY_LOAD * len(cores):
        say(f"note: the load average is {load:.1f} on {len(cores)} cores; times will be worthless")
    return Rules(flags.rounds, flags.turn_s, tuple(cores[: flags.threads]))


# -------------------------------------------------------------------------------------- output
def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if "model name" in line]
        return names[0] if names else platform.processor()
    except OSError:
        return platform.processor()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that matter."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def table(cases: Sequence[Record]) -> str:
    """One line per case and peer; times are medians, ratios above 1 mean that ours is faster."""
    head = ("case", "peer", "ours/s", "peer/s", "ratio (min..max)", "memory", "compile s")
    rows = [head]
    for case in cases:
        for pair in case["pairs"]:
            if "ratio" not in pair:
                reason = pair.get("error") or pair.get("skipped", "")
                rows.append(
                    (case["case"], pair["peer"], "-", "-", reason.split("\n")[0][:120], "-", "-")
                )
                continue
            ours, theirs, ratio = pair["ours"], pair["theirs"], pair["ratio"]
            rows.append(
                (
                    case["case"],
                    pair["peer"],
                    f"{case['items'] / ours['median_s']:.4g}",
                    f"{case['items'] / theirs['median_s']:.4g}",
                    spread(ratio),
                    f"{_peak(ours)} / {_peak(theirs)}",
                    f"{_compile_s(ours):.1f} / {_compile_s(theirs):.1f}",
                )
            )
    return columns(rows)


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Lines of text with aligned cells; the first row is the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def spread(ratio: Record) -> str:
    """A median with the smallest and largest value."""
    return f"{ratio['median']:.2f} ({ratio['least']:.2f}..{ratio['greatest']:.2f})"


def peak_bytes(side: Record) -> int | None:
    """Peak memory of the turns: the device's, or the process's resident size on the host."""
    return side["device_peak_bytes"] or side["peak_rss_bytes"]


def _peak(side: Record) -> str:
    used = peak_bytes(side)
    return "-" if used is None else f"{used / 2**20:.0f} MiB"


def _compile_s(side: Record) -> float:
    """Seconds of the first run beyond those of a later one."""
    return max(0.0, side["first_run_s"] - side["median_s"])


def finish(name: str, flags: argparse.Namespace, cases: Sequence[Record]) -> int:
    """Prints the table, writes --json, and returns the exit status: 1 if a peer failed."""
    print(table(cases))
    units = sorted({case["unit"] for case in cases})
    print(
        f"ours/s and peer/s: {', '.join(units)} a second (median); ratio: peer's time / ours; "
        "memory: ours / peer"
    )
    record = {
        "benchmark": name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": [f"python -m dinov2_jax.bench.{name}", *sys.argv[1:]],
        "hardware": {
            "cpu": _cpu_name(),
            "cores": len(available_cores()),
            "memory_bytes": _memory_bytes(),
            "system": platform.platform(),
        },
        "versions": versions(),
        "settings": vars(flags),
        "cases": list(cases),
    }
    if flags.json:
        write_json(Path(flags.json), record)
        print(f"written to {flags.json}")
    return int(any("error" in pair for case in cases for pair in case["pairs"]))
