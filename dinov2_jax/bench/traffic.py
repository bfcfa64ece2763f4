"""python -m dinov2_jax.bench.traffic: bytes that a training step moves, by cause, without the GPU.

The configured step is compiled for a described GPU (jax-cuda13-plugin; no GPU, driver or network),
and the bytes of every kernel of the program are added up (plan/hlo.py). One device's share:
`--batch` are its images, `config.mesh` says how many devices there are.

Read from the program: kernels, shapes, fusions, copies, trips of loops, temporaries. Modelled:
time, as matrix products at 650 TFLOP/s plus the bytes of all other kernels at 85 % of the memory's
bandwidth; each kernel reads from memory, whatever the L2 cache still holds. Not known without a
GPU: which algorithm cuBLAS takes, what cuDNN keeps beside its operands. Patched, because no GPU is
there: JAX's questions for cuDNN's version and the compute capability; the search for Triton's tiles
is off. It ranks variants of a program; its times are not measurements.
"""

import argparse
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from dinov2_jax.config.files import load_config
from dinov2_jax.config.overrides import override, parse_arguments
from dinov2_jax.errors import UserError, sentence
from dinov2_jax.parallel.mesh import make_mesh
from dinov2_jax.plan.flops import step_flops
from dinov2_jax.plan.hlo import Kernel, Program, kernels, read_program
from dinov2_jax.plan.memory import argument_memory
from dinov2_jax.plan.plan import for_target
from dinov2_jax.plan.topology import Target, open_target
from dinov2_jax.plan.trial import compile_step, planned_run
from dinov2_jax.run.files import write_json
from dinov2_jax.train.checks import check_training
from dinov2_jax.train.setup import abstract_batch

PRODUCT_FLOPS = 650e12  # FLOP/s that cuBLAS reaches on H100 in large products
BANDWIDTH_SHARE = 0.85  # of the datasheet's, in kernels that only move data
GIB = 2**30

# The first rule that fits gives the cause: (cause, part of the library function, of the kernel's
# name, of the file or of the scope in which JAX traced it).
RULES = (
    ("products", ("cublas", "triton_gemm", "gemm_fusion")),
    ("attention", ("cudnn", "fmha")),
    ("colours", ("data/photometric.py",)),
    ("optimizer", ("train/optimizer.py",)),
    ("losses", ("ssl/", "models/head.py", "ops/log_sum_exp.py", "ops/weight_product.py")),
    ("norms", ("/norm1/", "/norm2/", "/norm/", "ops/layer_norm.py")),
    ("padding", ("pad_fusion", "slice", "concatenate")),
    ("copies", ("copy", "transpose_fusion")),
    ("stochastic depth", ("ops/stochastic_depth.py", "scatter", "models/block.py")),
    ("activations", ("ops/gelu.py", "/mlp/")),
)


class Report(NamedTuple):
    """The account of one device's share of a step."""

    gb: float  # 1e9 bytes
    temporaries_gib: float
    state_gib: float
    fits: bool
    kernels: int
    predicted_ms: float
    predicted_mfu: float  # a fraction
    by_cause: dict[str, float]  # GB


def cause_of(program: Program, kernel: Kernel) -> str:
    """Why a kernel is there, one of RULES or "other"."""
    instruction = kernel.instruction
    file = program.source(instruction)[0]
    words = instruction.target, instruction.opcode, instruction.name, file, instruction.op_name
    text = " ".join(words)
    return next((cause for cause, parts in RULES if any(part in text for part in parts)), "other")


def by_cause(program: Program) -> tuple[dict[str, float], int]:
    """Bytes by cause, the most first, and the number of kernels."""
    found: dict[str, float] = defaultdict(float)
    count = 0
    for kernel in kernels(program):
        found[cause_of(program, kernel)] += kernel.bytes
        count += kernel.times
    return dict(sorted(found.items(), key=lambda item: -item[1])), count


def predicted_s(found: dict[str, float], flops: float, bandwidth: float) -> float:
    """Seconds of a step: products by their FLOPs, all else by its bytes."""
    moved = sum(n for cause, n in found.items() if cause != "products")
    return flops / PRODUCT_FLOPS + moved / (BANDWIDTH_SHARE * bandwidth)


def account(config: ConfigDict, target: Target) -> Report:
    """Compiles the step of `config` for `target` and adds up the bytes of one device."""
    assert target.chip is not None
    mesh = make_mesh(**config.mesh, devices=target.devices)
    run, batch = planned_run(config, mesh), abstract_batch(config, mesh)
    compiled = compile_step(run, batch, mesh)
    found, count = by_cause(read_program(compiled.as_text()))
    arguments = argument_memory(run, batch)
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    images, flops = config.batch_size / len(target.devices), step_flops(config)
    seconds = predicted_s(found, images * flops["executed"], target.chip.memory_bandwidth)
    return Report(
        gb=sum(found.values()) / 1e9,
        temporaries_gib=temporaries / GIB,
        state_gib=arguments.state / GIB,
        fits=arguments.total + temporaries <= target.chip.usable_bytes,
        kernels=count,
        predicted_ms=1e3 * seconds,
        predicted_mfu=images * flops["model"] / seconds / target.chip.peak_flops,
        by_cause={cause: n / 1e9 for cause, n in found.items()},
    )


def table(report: Report) -> str:
    """The report as lines to read."""
    rows = [f"  {cause:<20}{n:10.1f}" for cause, n in report.by_cause.items()]
    fits = "fits" if report.fits else "does NOT fit"
    return "\n".join(
        (
            "cause                      GB",
            *rows,
            f"  {'together':<20}{report.gb:10.1f}  in {report.kernels:,} kernels",
            f"memory: state {report.state_gib:.1f} + temporaries {report.temporaries_gib:.1f} GiB: "
            f"{fits}",
            f"predicted: {report.predicted_ms:.0f} ms a step, MFU {report.predicted_mfu:.1%} "
            "(a model, not a measurement)",
        )
    )


def configured(path: str, overrides: list[str], images: int) -> tuple[ConfigDict, int]:
    """The recipe with `images` on each device (0: the recipe's batch in all); devices of its mesh.

    A group_size that does not divide the images becomes their number.
    """
    arguments = parse_arguments(["--config", path, *overrides])
    config = load_config(arguments.config_path)
    override(config, arguments.overrides)
    mesh = config.mesh
    devices = max(mesh.data, 1) * mesh.fsdp * mesh.tensor
    if images:
        config.batch_size = images * devices // mesh.tensor
        if images > 0 and images % config.group_size:
            print(f"group_size {config.group_size} does not divide {images}: {images} is taken")
            config.group_size = images
    return config, devices


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/vitl16_short.py", help="the recipe")
    parser.add_argument("--batch", type=int, default=0, help="images on a device; 0: the recipe's")
    parser.add_argument("--device", default="h100", help="h100 or h200")
    parser.add_argument("--json", default="", help="a file for the report")
    args, overrides = parser.parse_known_args(arguments)
    try:
        report = _report(args, overrides)
        print(table(report))
        if args.json:
            write_json(Path(args.json), report._asdict())
    except (UserError, ImportError, OSError) as error:
        raise SystemExit(f"error: {sentence(error) or error}") from error
    return 0


def _report(args: argparse.Namespace, overrides: list[str]) -> Report:
    config, devices = configured(args.config, overrides, args.batch)
    check_training(config, devices)
    target = open_target(f"{args.device}:{devices}")
    if target.devices[0].platform != "gpu":
        raise UserError(f"--device={args.device} is no GPU; take h100 or h200")
    config = for_target(config, target)
    print(f"compiling the step of {args.config} for {devices} x {args.device}", flush=True)
    began = time.monotonic()
    report = account(config, target)
    print(f"compiled and read in {time.monotonic() - began:.0f} s")
    return report


if __name__ == "__main__":
    sys.exit(main())
