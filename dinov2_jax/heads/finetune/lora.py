"""Low-rank adaptation of a frozen backbone (Hu et al. 2021, arXiv 2106.09685).

The weight W of every chosen projection becomes W + (alpha / rank) A B, where only A [in, rank] and
B [rank, out] are trained. The sum is computed before the forward pass, so the model needs no
change; it costs one small product for each projection and step.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from dinov2_jax.errors import EvaluationError

# The projections of a block, by their place in its parameters.
TARGETS = ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2", "mlp/w12", "mlp/w3")


@dataclasses.dataclass(frozen=True)
class Lora:
    """Which projections are adapted, and how."""

    rank: int = 8  # columns of A
    alpha: float = 16.0  # the update is scaled by alpha / rank
    # Some of TARGETS; those that the backbone's kind of feed-forward network lacks are ignored.
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self) -> None:
        unknown = sorted(set(self.targets) - set(TARGETS))
        if unknown or not self.targets:
            raise EvaluationError(
                f"LoRA targets {unknown or '()'} are not known; choose some of {', '.join(TARGETS)}"
            )
        if self.rank < 1:
            raise EvaluationError(f"LoRA rank {self.rank} trains nothing; give at least 1")


def _kernels(params: Any, lora: Lora) -> dict[str, Any]:
    """The stacked kernels [L, in, out] of those targets that this backbone has."""
    found = {}
    for target in lora.targets:
        part, name = target.split("/")
        if name in params["blocks"][part]:
            found[target] = params["blocks"][part][name]["kernel"]
    if not found:
        raise EvaluationError(
            f"this backbone has none of the LoRA targets {', '.join(lora.targets)}; its "
            f"feed-forward network has {', '.join(sorted(params['blocks']['mlp']))}"
        )
    return found


def init_factors(params: Any, lora: Lora, seed: int) -> dict[str, dict[str, np.ndarray]]:
    """Draws {target: {"a" [L, in, rank], "b" [L, rank, out]}}; B is 0, so nothing changes at first.

    `params` are the backbone's, blocks stacked, or their shapes. Raises EvaluationError when it has
    none of the targets.
    """
    rng, factors = np.random.default_rng(seed), {}
    for target, kernel in _kernels(params, lora).items():
        depth, wide, out = kernel.shape
        bound = wide**-0.5  # as a torch linear layer, which the paper's code uses for A
        a = rng.uniform(-bound, bound, (depth, wide, lora.rank)).astype(np.float32)
        factors[target] = {"a": a, "b": np.zeros((depth, lora.rank, out), np.float32)}
    return factors


def merge(params: Any, factors: dict[str, dict[str, Array]], lora: Lora) -> Any:
    """Adds the updates to the parameters of the backbone, for the forward pass and for export."""
    blocks = {part: dict(values) for part, values in params["blocks"].items()}
    for target, pair in factors.items():
        part, name = target.split("/")
        update = jnp.einsum("lir,lro->lio", pair["a"], pair["b"], precision="highest")
        layer = blocks[part][name]
        kernel = layer["kernel"] + (lora.alpha / lora.rank) * update
        blocks[part][name] = {**layer, "kernel": kernel}
    return {**params, "blocks": blocks}
