"""How JAX runs a task of the command line: kept programs, memory of GPUs, flags of the compiler.

Everything here is a default: a variable that the user has set stays as it is.
"""

import contextlib
import hashlib
import logging
import os
import platform
from pathlib import Path
from typing import Any

import jax

from dinov2_jax.config.files import user_cache

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
# By platform. With fsdp a TPU's compiler would multiply by one shard of a weight after the other,
# and write the whole product once for each; a step of ViT-L/16 would move 1.9 times the bytes.
STEP_OPTIONS: dict[str, dict[str, Any]] = {
    "tpu": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000}
}
UNKNOWN_OPTION = "No such compile option"  # XLA's words

log = logging.getLogger("dinov2_jax")


def configure() -> None:
    """Sets what JAX reads before it looks for devices; must come before that.

    Compiled programs are kept in the user's cache, apart for each version of JAX and kind of
    processor, if a folder can be made there. JAX_ENABLE_COMPILATION_CACHE=false keeps none,
    JAX_COMPILATION_CACHE_DIR another place. JAX compares the flags of the compiler too before it
    takes a program from there.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(GPU_MEMORY_FRACTION))
    given = os.environ.get("XLA_FLAGS", "")
    if _has_gpus():
        added = [flag for flag in GPU_FLAGS if flag.partition("=")[0] not in given]
        os.environ["XLA_FLAGS"] = " ".join([given, *added]).strip()
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = user_cache() / "programs" / f"jax-{jax.__version__}-{_processor()}"
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            jax.config.update("jax_compilation_cache_dir", str(folder))


def describe() -> list[str]:
    """What applies to this process, for the first lines of a run."""
    lines = []
    if jax.config.jax_enable_compilation_cache and jax.config.jax_compilation_cache_dir:
        lines.append(f"compiled programs are kept in {jax.config.jax_compilation_cache_dir}")
    if jax.default_backend() == "gpu":
        share = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.75")
        flags = os.environ.get("XLA_FLAGS") or "none"
        lines.append(f"share of the GPU's memory: {share}; XLA_FLAGS: {flags}")
    options = STEP_OPTIONS.get(jax.default_backend(), {})
    lines += [f"option of the compiler: {name}={value}" for name, value in options.items()]
    return lines


def compile_step(
    lowered: jax.stages.Lowered, platform: str, options: dict[str, Any]
) -> jax.stages.Compiled:
    """Compiles with `options` and those of the platform, without the latter if XLA lacks them."""
    own = STEP_OPTIONS.get(platform, {})
    try:
        return lowered.compile(compiler_options=own | options or None)
    except jax.errors.JaxRuntimeError as error:
        if not own or UNKNOWN_OPTION not in str(error):
            raise
        log.warning("this compiler does not know %s; compiling without", ", ".join(own))
    return lowered.compile(compiler_options=options or None)


def _has_gpus() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*"))


def _processor() -> str:
    """The kind of processor: a program for a CPU may hold instructions that another lacks."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()}-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"
