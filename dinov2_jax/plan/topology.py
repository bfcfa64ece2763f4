"""The devices of a plan: the local ones, or descriptions of TPUs and GPUs that are elsewhere.

A description comes from the compiler's own library (libtpu, the CUDA plugin), without hardware,
driver or network.
"""

import contextlib
import dataclasses
import difflib
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.experimental import topologies

from dinov2_jax.config.files import ConfigError
from dinov2_jax.ops.attention import refusal
from dinov2_jax.parallel.runtime import GPU_MEMORY_FRACTION

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator as JAX sees it, a device."""

    name: str  # as in `config.plan.topology`
    device_kind: str  # what `jax.Device.device_kind` begins with
    usable_bytes: float  # what a program can have
    peak_flops: float  # dense bf16 FLOP/s
    memory_bandwidth: float  # bytes/s
    largest: tuple[int, ...] = ()  # slice, sides in ascending order


GPU_USABLE = GPU_MEMORY_FRACTION  # the share of a GPU's memory that runs take

# TPU: cloud.google.com/tpu/docs/v5e, v5p, v6e. Memory is what libtpu's compiler lets a program
# have of 16, 95 and 32 GB. libtpu also describes slices larger than the largest, and ends the whole
# process when it compiles for them. H100 SXM, H200 SXM: NVIDIA's datasheets, without sparsity;
# their memory is the size that the driver reports.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", "TPU v5 lite", 15.75 * GIB, 197e12, 819e9, (16, 16)),
        Chip("v5p", "TPU v5", 95.74 * GIB, 459e12, 2765e9, (16, 16, 24)),
        Chip("v6e", "TPU v6 lite", 31.25 * GIB, 918e12, 1640e9, (16, 16)),
        Chip("h100", "NVIDIA H100", GPU_USABLE * 84_942_979_072, 989e12, 3352e9),
        Chip("h200", "NVIDIA H200", GPU_USABLE * 151_397_597_184, 989e12, 4800e9),
    )
}


def chip_of(device_kind: str) -> Chip | None:
    """The chip with the longest kind that `device_kind` begins with; None if it is unknown."""
    fitting = [chip for chip in CHIPS.values() if device_kind.startswith(chip.device_kind)]
    return max(fitting, key=lambda chip: len(chip.device_kind), default=None)


EXAMPLES = "v5e:4x4, v5p:4x4x8, v6e:4x4 (chips along each axis), h100:8 or h200:4x8 (machines x 8)"

CUDNN = 91_000  # the version of _HOPPER
# A compiler's target in XLA's text format: limits of the architecture (CUDA's programming guide,
# compute capability 9.0) and the few sizes in which H100 and H200 differ.
_HOPPER = """
gpu_device_info {{
  cuda_compute_capability {{ major: 9 minor: 0 }}
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  core_count: 132 fpus_per_core: 128 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  memory_bandwidth: {memory_bandwidth} device_memory_size: {memory}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{kind}"
"""


@dataclasses.dataclass(frozen=True)
class Target:
    """The hardware of a plan."""

    name: str  # for the reader
    devices: Sequence[Any]  # all of one topology; described devices can be compiled for, not run
    chip: Chip | None  # None for an unknown kind, such as CPUs


def open_target(topology: str) -> Target:
    """The devices that `config.plan.topology` names; "" means the local devices.

    Raises:
      ConfigError: for a name that is no topology; the message names some that are.
      ImportError: when its compiler is not installed; the message says what to install.
    """
    if not topology:
        devices = jax.devices()
        return Target(f"the {len(devices)} local devices", devices, chip_of(devices[0].device_kind))
    chip, shape = _parse(topology)
    on_tpu = chip.name.startswith("v")
    compiler = "libtpu" if on_tpu else "jax_cuda13_plugin"
    if importlib.util.find_spec(compiler) is None:
        cuda = f"jax-cuda13-plugin=={jax.__version__} jax-cuda13-pjrt=={jax.__version__}"
        packages = '"jax[tpu]"' if on_tpu else cuda
        raise ImportError(
            f"config.plan.topology {topology!r} needs the compiler {compiler}; install it with: "
            f"pip install {packages} (no accelerator and no driver are needed)"
        )
    # Keeps JAX from looking for accelerators: what it computes itself is a few scalars.
    jax.config.update("jax_platforms", "cpu")
    devices = _tpu_devices(topology) if on_tpu else _gpu_devices(chip, shape)
    return Target(topology, devices, chip)


def chip_named(topology: str) -> Chip | None:
    """The chip of `config.plan.topology`, or of this machine; None for an unknown kind.

    Raises:
      ConfigError: for a name that is no topology. Its compiler need not be installed.
    """
    return _parse(topology)[0] if topology else chip_of(jax.devices()[0].device_kind)


def _parse(topology: str) -> tuple[Chip, tuple[int, ...]]:
    name, _, sizes = topology.lower().partition(":")
    if name not in CHIPS:
        near = difflib.get_close_matches(name, CHIPS, n=1, cutoff=0.5) or ["v5e"]
        raise ConfigError(
            f"config.plan.topology {topology!r} names no known chip; did you mean {near[0]}? "
            f"(such as {EXAMPLES}; empty: the local devices)"
        )
    largest = CHIPS[name].largest
    axes = len(largest) or 2
    if not re.fullmatch(rf"[1-9]\d*(x[1-9]\d*){{0,{axes - 1}}}", sizes):
        raise ConfigError(
            f"config.plan.topology {topology!r} does not say how many chips; try {EXAMPLES}"
        )
    shape = tuple(int(size) for size in sizes.split("x"))
    if any(a > b for a, b in zip(sorted(shape)[::-1], largest[::-1], strict=False)):
        raise ConfigError(
            f"config.plan.topology {topology!r} is larger than a slice of {name} can be; the "
            f"largest is {name}:{'x'.join(map(str, largest))}"
        )
    return CHIPS[name], shape


def _tpu_devices(topology: str) -> Sequence[Any]:
    # Without these libtpu asks a metadata server that only a cloud machine has, takes a lock file
    # that a second process waits for, and prints what it did not find.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    try:
        return topologies.get_topology_desc(topology.lower(), platform="tpu").devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
        raise ConfigError(
            f"config.plan.topology {topology!r} is no shape that libtpu knows ({reason}); v5e and "
            "v6e have two axes, such as 2x4 or 16x16, v5p three, such as 2x2x1 or 4x4x8"
        ) from error


def _gpu_devices(chip: Chip, shape: tuple[int, ...]) -> Sequence[Any]:
    hosts, gpus = shape if len(shape) == 2 else (1, shape[0])
    compiler = _HOPPER.format(
        kind=chip.device_kind,
        memory=round(chip.usable_bytes / GPU_USABLE),
        memory_bandwidth=round(chip.memory_bandwidth),
    )
    options = {"target_config": compiler, "topology": f"1x{hosts}x{gpus}"}
    return topologies.get_topology_desc("", platform="cuda", **options).devices


@contextlib.contextmanager
def for_described(platform: str) -> Iterator[None]:
    """Traces and compiles for devices that are not here; for those that are, nothing changes.

    Programs are not kept: without the devices JAX cannot read them again.
    """
    if platform == jax.default_backend():
        yield
        return
    kept = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)
    try:
        with _cudnn() if platform == "gpu" else contextlib.nullcontext():
            yield
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", kept)


@contextlib.contextmanager
def _cudnn() -> Iterator[None]:
    """JAX believes that cuDNN is here, for the GPUs of _HOPPER.

    Otherwise a program would be traced with another attention than it will run with.
    """
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    answers = {"check_cudnn_version": CUDNN, "check_compute_capability": True}
    asked = {name: getattr(cudnn, name) for name in answers}
    refusal.cache_clear()  # what was refused on this machine
    try:
        for name, answer in answers.items():
            setattr(cudnn, name, lambda *_, answer=answer: answer)
        yield
    finally:
        for name, function in asked.items():
            setattr(cudnn, name, function)
        refusal.cache_clear()
