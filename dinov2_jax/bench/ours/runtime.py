"""What all our sides need from JAX."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dinov2_jax.bench.harness import Settings, Side

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def configure(settings: Settings) -> None:
    """fp32 means fp32: on a GPU JAX would multiply such matrices with 10 bits (TF32)."""
    if settings["dtype"] == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")


def side_of(check: Callable[[], dict[str, Any]], run: Callable[[int], None]) -> Side:
    """A `Side` with this process's versions, device and device memory."""
    device = jax.devices()[0]

    def peak() -> int | None:
        statistics = device.memory_stats() or {}
        return statistics.get("peak_bytes_in_use")

    return Side(
        check=check,
        run=run,
        device_peak_bytes=peak,
        versions={"jax": jax.__version__},
        device=str(device.device_kind),
    )


def repeat(call: Callable[[], Any]) -> Callable[[int], None]:
    """(n) -> n calls, queued one behind the other, then a wait for the last."""

    def run(repetitions: int) -> None:
        out = None
        for _ in range(repetitions):
            out = call()
        jax.block_until_ready(out)

    return run
