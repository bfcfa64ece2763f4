"""What a step takes at best, by the FLOPs of its recipe and the bytes of its compiled program.

    time = max(FLOPs / peak, bytes beside products / bandwidth) + other bytes / bandwidth

A kernel with a matrix product moves its bytes while it computes, and so does a copy between main
memory and VMEM; all other kernels only move bytes, one after the other. Peak and bandwidth are the
datasheet's. Messages between devices, padding to tiles and products below the peak are left out:
this is a model, not a measurement.
"""

from typing import NamedTuple

from dinov2_jax.plan.hlo import Instruction, Program, kernels, read_program
from dinov2_jax.plan.topology import Chip

_PRODUCTS = ("convolution", "dot")  # the TPU's compiler writes all of them as convolutions
_PREFETCHES = ("copy-start", "slice-start")


class Traffic(NamedTuple):
    """Bytes that one device moves to and from its main memory in a step."""

    beside_products: int
    alone: int


class Estimate(NamedTuple):
    """A step by `Traffic` and FLOPs."""

    step_s: float
    products_s: float  # the part in which products are computed
    mfu: float  # model FLOPs / (step_s x peak)


def read_traffic(text: str) -> Traffic:
    """The bytes of a compiled program. text: `compiled.as_text()`."""
    program = read_program(text)
    beside = alone = 0
    for kernel in kernels(program):
        if _computes(program, kernel.instruction):
            beside += kernel.bytes
        else:
            alone += kernel.bytes
    return Traffic(beside, alone)


def _computes(program: Program, instruction: Instruction) -> bool:
    """Whether a kernel moves its bytes beside products: its own or those of others."""
    opcode = instruction.opcode
    if opcode == "fusion":
        inside = program.computations[instruction.called[0]].values()
        return any(_computes(program, i) for i in inside)
    # A library's function is a product (cuBLAS) or an attention (cuDNN, splash).
    return opcode in (*_PRODUCTS, *_PREFETCHES, "custom-call")


def estimate(chip: Chip, traffic: Traffic, model: float, executed: float) -> Estimate:
    """The step of one device.

    Args:
      model, executed: its FLOPs in a step, without and with recomputation.
    """
    beside, alone = (n / chip.memory_bandwidth for n in traffic)
    products = max(executed / chip.peak_flops, beside)
    step = products + alone
    return Estimate(step, products, model / (step * chip.peak_flops))
