"""What a GPU tells in eight minutes: python -m dinov2_jax.bench.slice (launch/gpu_slice.sh).

For one H100 or H200 of a machine that has jax, flax, optax, orbax and safetensors; for the peers
torch, torchvision and timm; nothing is installed. Parts compile side by side (bench/jobs.py) and
take the GPU one after the other, the most worth first. The first that is ready goes first, so a
short part may come before a long one. After --limit_s seconds all processes are ended. --dry-run
runs every part at toy size on the CPU; its numbers mean nothing.

part                      what it measures
attention                 ||x - exact|| / ||exact|| of out, dq, dk, dv, against float64
golden                    the first step of tests/golden/step_sinkhorn.npz, in fp32 and bf16
step_unroll_none          ViT-L/16, 64 images, 2x224 + 8x96 px, bf16: our default on a GPU
step_torch                the same step in PyTorch: SDPA, bf16, fused AdamW; without colours
step_unroll_pointwise     the step with other config.model.blocks and remat; so also
                          step_scan_pointwise, step_scan_none
features, features_torch  ViT-L/14, 224 px, 256 images, bf16: ours, and timm's
step_s16                  ViT-S/16, 256 images
step_torch_compiled       step_torch through torch.compile
features_torch_compiled   features_torch through torch.compile

The JSON file is rewritten whole after every result; a number that JSON lacks is a word, as "nan":

  "device", "versions", "stand_ins" (of bench/stand_ins.py), "dry_run", "limit_s",
  "seconds" (since the start), "parts": {part: {
    "status"      done, missing (a package), failed, cut (by the limit), skipped (too late), or
                  what it was doing: waiting, preparing, ready, measuring
    "why"         the reason of every other end than done
    "began_s", "ended_s", "beside"    when, and which parts still compiled as its turn began
    "ok"          of a check: all its errors are within their limits; nan never is
    attention: "N=37": {"cudnn bfloat16": {"out", "dq", "dk", "dv", "limit", "ok"}, ..., "auto"}
    golden:    "float32", "bfloat16": {"loss/...", "grad_norm/...", "limit", "ok"}
    others:    "ms" (of a step or pass; the median of "turns_ms"), "images_per_s",
               "peak_bytes" (of the process's device memory; ours counts the set-up too),
               "mfu" (model FLOPs / the datasheet's dense bf16 peak, of a GPU that has one here),
               "compile_s", "temporaries_bytes", "arguments_bytes", "flops_per_image",
               "loss" (of the first step), "one_minus_cosine" (of cls features, timm's to ours)
  }}

The exit status is 0 if no part failed and every check is ok; a missing peer, a cut and a skipped
part are no failure.
"""

import argparse
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from dinov2_jax.bench import parts, report, stand_ins
from dinov2_jax.bench.jobs import Entries, Schedule
from dinov2_jax.run.files import write_json

LIMIT_S, DRY_LIMIT_S = 470.0, 290.0  # ending everything and writing take seconds
ENDS = ("done", "missing", "failed", "cut", "skipped")


class Parser(argparse.ArgumentParser):
    """Tells what is wrong in one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; --help lists the flags\n")


def _strict(value: Any) -> Any:
    """NaN and infinity as words: JSON has no numbers for them."""
    if isinstance(value, dict):
        return {name: _strict(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(x) for x in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class Record:
    """The JSON file: rewritten whole with every entry, so that it holds all that was finished.

    Args:
      names: the parts, in order of worth.
      since_s: () -> seconds since the start.
    """

    def __init__(
        self, file: Path, names: Sequence[str], since_s: Callable[[], float], **head: Any
    ) -> None:
        self.file, self.since_s = file, since_s
        self.parts: dict[str, Entries] = {name: {"status": "waiting"} for name in names}
        self.head: Entries = {"device": None, "versions": report.versions()} | head
        self._peak_flops: float | None = None
        self.write()

    def tell(self, name: str, entries: Entries) -> None:
        """Merges entries into a part's record, says so, and writes the file."""
        entries, now = dict(entries), round(self.since_s(), 1)
        self.head["device"] = entries.pop("device", None) or self.head["device"]
        self.head["versions"] |= entries.pop("versions", {})
        self._peak_flops = entries.pop("peak_flops", None) or self._peak_flops
        part = self.parts[name]
        if entries.get("status") == "measuring":
            part["began_s"] = now
        if entries.get("status") in ENDS:
            part["ended_s"] = now
        part |= entries
        self._add_mfu()
        print(f"[t={now:5.0f} s] {name}: {told(entries)}", flush=True)
        self.write()

    def _add_mfu(self) -> None:
        for name, part in self.parts.items():
            source = self.parts.get(parts.FLOPS_OF.get(name, name), {})
            flops = source.get("flops_per_image")
            if flops and "images_per_s" in part and self._peak_flops:
                part["mfu"] = part["images_per_s"] * flops / self._peak_flops

    def write(self) -> None:
        """Replaces the file."""
        seconds = {"seconds": round(self.since_s(), 1)}
        write_json(self.file, _strict(self.head | seconds | {"parts": self.parts}))

    def table(self) -> str:
        """One line a part."""
        rows = [("part", "status", "result")]
        rows += [(name, part["status"], told(part)) for name, part in self.parts.items()]
        return report.columns(rows)

    def good(self) -> bool:
        """No part failed, every check is ok, and only peers are missing."""
        return not any(
            part["status"] == "failed"
            or (part["status"] == "missing" and "torch" not in name)
            or wrong(part)
            for name, part in self.parts.items()
        )


def wrong(entries: Entries) -> list[str]:
    """The checks that are not ok, such as "N=37 cudnn bfloat16"."""
    found = ["result"] if entries.get("ok") is False else []
    for name, value in entries.items():
        if isinstance(value, dict):
            found += [name if x == "result" else f"{name} {x}" for x in wrong(value)]
    return found


def told(entries: Entries) -> str:
    """Entries in one short line."""
    checks = [value for value in entries.values() if isinstance(value, dict)]
    words = []
    if wrong(entries):
        words.append(f"BEYOND THE LIMIT: {', '.join(wrong(entries))}")
    if errors := [error for check in checks for error in errors_of(check)]:
        largest = max(errors, key=lambda error: (math.isnan(error), error))
        words.append(f"largest error {largest:.1e} of {len(errors)}")
    if "images_per_s" in entries:
        words.append(f"{entries['images_per_s']:.4g} images/s, {entries['ms']:.4g} ms")
    if entries.get("mfu"):
        words.append(f"MFU {entries['mfu']:.1%}")
    if entries.get("peak_bytes"):
        words.append(f"peak {entries['peak_bytes'] / 2**30:.1f} GiB")
    if "loss" in entries:
        words.append(f"loss {entries['loss']:.4g}")
    if "compile_s" in entries:
        words.append(f"compiled in {entries['compile_s']:.0f} s")
    if "why" in entries:
        words.append(" ".join(str(entries["why"]).split())[:160])
    return "; ".join(words) or entries.get("status") or ", ".join(entries)


def errors_of(check: Entries) -> list[float]:
    """The errors of a check, or of the checks that it holds."""
    errors = [value for name, value in check.items() if name not in ("limit", "ok")]
    errors = errors if "limit" in check else []
    for value in check.values():
        errors += errors_of(value) if isinstance(value, dict) else []
    return errors


def arguments_of(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line; ends the program with status 2 if it is wrong."""
    flags = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = flags.add_argument
    add("--dry-run", action="store_true", help="every part at toy size, on the CPU")
    add("--out", default="", help="the JSON file, or a folder for it; default runs/gpu_slice")
    add("--parts", default="", help="only these, with commas between them; default: all")
    add("--limit_s", type=float, default=0.0, help="seconds; default 470, --dry-run 290")
    args = flags.parse_args(words)
    args.limit_s = args.limit_s or (DRY_LIMIT_S if args.dry_run else LIMIT_S)
    args.parts = [name for name in args.parts.split(",") if name] or list(parts.NAMES)
    if unknown := [name for name in args.parts if name not in parts.NAMES]:
        flags.error(f"--parts={unknown[0]} is none of {', '.join(parts.NAMES)}")
    if not args.dry_run and not any(Path("/dev").glob("nvidia[0-9]*")):
        flags.error("no NVIDIA GPU is here; add --dry-run, which needs none")
    args.out = out_file(args.out)
    return args


def out_file(out: str) -> Path:
    """--out as a JSON file; in a folder it is named by the time."""
    path = Path(out or "runs/gpu_slice").absolute()
    return path if path.suffix == ".json" else path / f"{datetime.now(UTC):%Y-%m-%dT%H%M%SZ}.json"


def prepare(dry_run: bool) -> int:
    """Sets what the processes inherit; returns the number of CPU cores."""
    cores = len(report.available_cores())
    device = "cpu" if dry_run else "gpu"
    report.prepare(argparse.Namespace(device=device, threads=cores, rounds=1, turn_s=0.0))
    if dry_run:  # its programs need no optimiser
        os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    return cores


def main(words: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    start = time.monotonic()
    args = arguments_of(words)
    replaced = stand_ins.install()
    cores = prepare(args.dry_run)
    for number in (signal.SIGTERM, signal.SIGINT):  # an exit runs `finally`, see bench/jobs.py
        signal.signal(number, lambda number, _: sys.exit(128 + number))

    def since_s() -> float:
        return time.monotonic() - start

    with tempfile.TemporaryDirectory() as folder:
        jobs = parts.jobs(args.parts, args.dry_run, cores, Path(folder))
        head = {"stand_ins": replaced, "dry_run": args.dry_run, "limit_s": args.limit_s}
        try:
            record = Record(args.out, args.parts, since_s, **head)
            print(f"results go to {args.out}; all ends after {args.limit_s:.0f} s", flush=True)
            Schedule(jobs, lambda: args.limit_s - since_s(), record.tell, max(1, cores // 2)).run()
        except OSError as error:
            raise SystemExit(f"error: {args.out} cannot be written: {error.strerror}") from error
    print(record.table())
    print(f"{record.head['device']}; {since_s():.0f} s; written to {args.out}")
    return 0 if record.good() else 1


if __name__ == "__main__":
    sys.exit(main())
