"""Datasheet numbers of the accelerators that a plan can target."""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator as JAX sees it, a device.

    Attributes:
      name: as in `config.plan.topology`.
      device_kind: what `jax.Device.device_kind` begins with.
      usable_bytes: memory a program can have: on a TPU what its compiler says is available, on a
        GPU the share of it that JAX can be given.
      peak_flops: dense bf16 FLOP/s.
      memory_bandwidth: bytes/s.
    """

    name: str
    device_kind: str
    usable_bytes: float
    peak_flops: float
    memory_bandwidth: float


# A GPU's driver, CUDA context and NCCL take the rest. JAX itself takes 75 % unless
# XLA_PYTHON_CLIENT_MEM_FRACTION says more.
GPU_USABLE = 0.92
GPU_DEFAULT_USABLE = 0.75

# TPU: cloud.google.com/tpu/docs/v5e, v5p, v6e. Memory is what libtpu's compiler lets a program
# have of 16, 95 and 32 GB. H100 SXM, H200 SXM: NVIDIA's datasheets, without sparsity; their memory
# is the size that the driver reports.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", "TPU v5 lite", 15.75 * GIB, 197e12, 819e9),
        Chip("v5p", "TPU v5", 95.74 * GIB, 459e12, 2765e9),
        Chip("v6e", "TPU v6 lite", 31.25 * GIB, 918e12, 1640e9),
        Chip("h100", "NVIDIA H100", GPU_USABLE * 84_942_979_072, 989e12, 3352e9),
        Chip("h200", "NVIDIA H200", GPU_USABLE * 151_397_597_184, 989e12, 4800e9),
    )
}


def chip_of(device_kind: str) -> Chip | None:
    """The chip with the longest kind that `device_kind` begins with; None if it is unknown."""
    fitting = [chip for chip in CHIPS.values() if device_kind.startswith(chip.device_kind)]
    return max(fitting, key=lambda chip: len(chip.device_kind), default=None)
