"""What the collectives of a step carry: weights, gradients, sums of the method, or activations."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from dinov2_jax.plan.hlo import Part
from dinov2_jax.plan.trial import prototypes
from dinov2_jax.train.setup import Run
from tests.plan.collectives import Collective

# A reduce-scatter's shares are padded as the chip likes: a dimension may have grown by less than a
# tile, or by a small part of itself (131,072 prototypes in 32 shares by 1,280 rows).
_TILE, _PADDING = 128, 1 / 64
# The sums over the batch that the method itself asks for.
PROTOTYPE_SUMS = "centre and Sinkhorn sums"
SCALARS = "losses and norms"
OTHER_SUMS = "sums of vectors"
# Shares that are passed on from chip to chip beside the products they belong to: a gather, or the
# sum of a gradient; a TPU's compiler writes both alike.
RINGS = "weights and gradients"


class Shapes(NamedTuple):
    """The shapes by which purposes are told apart.

    Attributes:
      weights: shapes of the weights, whole, in shares and block by block, `squeeze`d.
      prototypes: numbers of prototypes of a head, and of a block of them.
    """

    weights: frozenset[tuple[int, ...]] = frozenset()
    prototypes: frozenset[int] = frozenset()


def by_purpose(collective: Collective, shapes: Shapes) -> dict[str, Collective]:
    """A collective split by what its arrays are: XLA puts several into one message."""
    parts: dict[str, list[Part]] = {}
    for part in collective.parts:
        parts.setdefault(_purpose(collective, squeeze(part.shape), shapes), []).append(part)
    return {name: dataclasses.replace(collective, parts=tuple(own)) for name, own in parts.items()}


def _purpose(collective: Collective, shape: tuple[int, ...], shapes: Shapes) -> str:
    """Weights, gradients, either, a sum of the method or activations, by the shape alone.

    What happens to have as many elements as a weight is not told from it: the covariance of the
    features, [D, D], counts as a gradient, and the gradient of the prototypes' gains, [K], as sums
    over prototypes.
    """
    reduces = collective.kind in ("all-reduce", "reduce-scatter") and not collective.gathers
    if not shape:
        return SCALARS
    if reduces and len(shape) == 1:
        if shape[0] in shapes.prototypes:
            return PROTOTYPE_SUMS
        longest = max((weight[0] for weight in shapes.weights if len(weight) == 1), default=0)
        # A GPU's compiler packs gradients into one vector.
        return "gradients" if shape in shapes.weights or shape[0] > longest else OTHER_SUMS
    padded = collective.kind == "reduce-scatter"
    if collective.kind == "collective-permute" and _is_weight(shape, shapes.weights, padded):
        return RINGS
    if not _is_weight(shape, shapes.weights, padded):
        return "activations"
    return "gradients" if reduces else "weights"


def _is_weight(shape: tuple[int, ...], weights: Collection[tuple[int, ...]], padded: bool) -> bool:
    if any(math.prod(shape) == math.prod(weight) for weight in weights):
        return True
    grown = [zip(shape, w, strict=True) for w in weights if padded and len(w) == len(shape)]
    return any(all(0 <= s - n < max(_TILE, n * _PADDING) for s, n in pairs) for pairs in grown)


def squeeze(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Dimensions above 1, in ascending order: XLA transposes and adds axes as it likes."""
    return tuple(sorted(n for n in shape if n > 1))


def step_shapes(run: Run, config: ConfigDict) -> Shapes:
    """The shapes in which weights and their gradients travel, and numbers of prototypes.

    Weights whole, one block of a stack, a device's share of either, and what a tensor axis leaves
    of each; the position table without
    cls, on both crops' grids, whose gradient is summed before it is resampled back; and the blocks
    of prototypes of `prototype_block`.
    """
    dim, patch, crops = run.objective.student.backbone.dim, config.model.patch_size, config.crops
    shapes = {(dim, (side // patch) ** 2) for side in (crops.global_size, crops.local_size)}
    for leaf in jax.tree.leaves(run.abstract_state.student):
        ways = leaf.sharding.mesh.shape["tensor"]
        for shape in (leaf.shape, leaf.sharding.shard_shape(leaf.shape)):
            part = (*shape[:-1], -(-shape[-1] // ways))
            shapes |= {shape, shape[1:], part, part[1:]}
    numbers = set(prototypes(config))
    if config.prototype_block:
        numbers.add(config.prototype_block)
        widths = (config.dino.head_bottleneck_dim, config.ibot.head_bottleneck_dim)
        shapes |= {(config.prototype_block, width) for width in widths}
    return Shapes(frozenset(squeeze(shape) for shape in shapes), frozenset(numbers))


def traffic(collectives: Iterable[Collective], shapes: Shapes) -> dict[str, dict[str, int]]:
    """{"kind of purpose": {"times", "bytes"}} with bytes that a device sends in a step."""
    rows: dict[str, dict[str, int]] = defaultdict(lambda: {"times": 0, "bytes": 0})
    for collective in collectives:
        for purpose, part in by_purpose(collective, shapes).items():
            row = rows[f"{collective.kind} of {purpose}"]
            row["times"] += collective.times
            row["bytes"] += part.wire_bytes
    return dict(rows)


def stray(collectives: Iterable[Collective], shapes: Shapes) -> list[Collective]:
    """Collectives of activations."""
    split = [by_purpose(collective, shapes) for collective in collectives]
    return [purposes["activations"] for purposes in split if "activations" in purposes]
