"""How JAX runs a task of the command line: kept programs, memory of GPUs, flags of the compiler.

Everything here is a default: a variable that the user has set stays as it is.
"""

import hashlib
import os
import platform
from collections.abc import MutableMapping
from pathlib import Path

import jax

# What a run may take of a GPU; its driver, CUDA's context and NCCL need the rest. JAX's own default
# is 75 %.
GPU_MEMORY_FRACTION = 0.92
# On several GPUs: sums of gradients and gathers of weights run beside products, in messages of up
# to 256 MB, as the bandwidth of NVLink and InfiniBand needs.
GPU_FLAGS = (
    "--xla_gpu_enable_latency_hiding_scheduler=true",
    "--xla_gpu_all_reduce_combine_threshold_bytes=268435456",
    "--xla_gpu_all_gather_combine_threshold_bytes=268435456",
    "--xla_gpu_reduce_scatter_combine_threshold_bytes=268435456",
)


def configure(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets what JAX reads before it looks for devices; must come before that.

    Compiled programs are kept in the user's cache, apart for each version of JAX and kind of
    processor; JAX_ENABLE_COMPILATION_CACHE=false keeps none, JAX_COMPILATION_CACHE_DIR another
    place. XLA looks at its flags too before it takes a program from there.
    """
    environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(GPU_MEMORY_FRACTION))
    given = environment.get("XLA_FLAGS", "")
    if _has_gpus():
        added = [flag for flag in GPU_FLAGS if flag.partition("=")[0] not in given]
        environment["XLA_FLAGS"] = " ".join([given, *added]).strip()
    if "JAX_COMPILATION_CACHE_DIR" not in environment:
        jax.config.update("jax_compilation_cache_dir", str(_programs(environment)))


def describe() -> list[str]:
    """What applies to this process, for the first lines of a run."""
    lines = []
    if jax.config.jax_enable_compilation_cache and jax.config.jax_compilation_cache_dir:
        lines.append(f"compiled programs are kept in {jax.config.jax_compilation_cache_dir}")
    if jax.default_backend() == "gpu":
        share = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.75")
        flags = os.environ.get("XLA_FLAGS") or "none"
        lines.append(f"share of the GPU's memory: {share}; XLA_FLAGS: {flags}")
    return lines


def _has_gpus() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*"))


def _programs(environment: MutableMapping[str, str]) -> Path:
    """A folder of the user's cache. A CPU's program may hold instructions that another lacks."""
    caches = environment.get("XDG_CACHE_HOME")
    root = Path(caches) if caches else Path.home() / ".cache"
    return root / "dinov2_jax" / "programs" / f"jax-{jax.__version__}-{_processor()}"


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()}-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"
