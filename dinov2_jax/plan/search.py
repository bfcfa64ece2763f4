"""The search for a setting that fits: the bytes of the last trial decide what to try next."""

import math
from collections.abc import Iterator

from ml_collections import ConfigDict

from dinov2_jax.plan.topology import Target
from dinov2_jax.plan.trial import Changes, Trial, prototypes, try_setting, uses_prototypes

# The share of the temporaries that `pointwise` is expected to leave: of what the forward pass of
# the recipes stores, it leaves 33 (L/16), 37 (S/14) and 40 % (g/14).
POINTWISE_KEEPS = 0.4
# Prototypes in a block: larger blocks save no time, and smaller ones are slow.
_BLOCKS = range(8192, 1023, -1)


def search(config: ConfigDict, target: Target, first: Trial, most: int) -> Iterator[Trial]:
    """Compiles other settings until one fits, the cheapest first; at most `most`.

    The order: full sharding, where arithmetic says that it can be enough; recomputation (pointwise
    where that can be enough, else of whole blocks); both; then micro-batches and losses in blocks
    of prototypes, as much of each as is expected to be enough. Only then another recipe: a smaller
    batch.
    """
    assert target.chip is not None
    last = first
    for _ in range(most):
        changes = next_changes(config, last, target.chip.usable_bytes, len(target.devices))
        if changes is None:
            return
        last = try_setting(config, target, changes)
        yield last
        if last.fits:
            return


def next_changes(config: ConfigDict, last: Trial, limit: float, devices: int) -> Changes | None:
    """The setting to try after `last` did not fit in `limit` bytes; None if none is left."""
    ways = devices // last.mesh[2]
    sharded, can_shard = {"mesh.data": 1, "mesh.fsdp": ways}, last.mesh[1] < ways
    remat = last.changes.get("model.remat", config.model.remat)
    if remat != "blocks":
        if can_shard and _sharded_total(last, ways) <= limit:
            return last.changes | sharded
        return last.changes | {"model.remat": _next_remat(remat, last, limit, ways)}
    if can_shard and last.memory is not None:
        return last.changes | sharded
    changes = fewer_at_a_time(config, last, limit) or smaller_batch(config, last, limit)
    return None if changes is None else last.changes | changes


def _next_remat(remat: str, last: Trial, limit: float, ways: int) -> str:
    """Pointwise costs little time: it comes first where it can be enough with full sharding."""
    if remat != "none" or last.memory is None:
        return "blocks"
    saved = (1 - POINTWISE_KEEPS) * last.memory.temporaries
    return "pointwise" if _sharded_total(last, ways) - saved <= limit else "blocks"


def _sharded_total(last: Trial, ways: int) -> float:
    """Bytes a device if the state were split `ways` ways and nothing else changed."""
    if last.memory is None:
        return math.inf
    return last.memory.total - last.memory.state * (1 - last.mesh[1] / ways)


def fewer_at_a_time(config: ConfigDict, last: Trial, limit: float) -> Changes | None:
    """The first of `leaner_settings` that is expected to fit, else the last; None without any."""
    settings = leaner_settings(config, last)
    if not settings:
        return None
    fitting = (setting for setting in settings if leaner_total(last, *setting) <= limit)
    parts, block = next(fitting, settings[-1])
    changes = {"micro_batches": parts, "prototype_block": block}
    return {name: value for name, value in changes.items() if value != getattr(last, name)}


def leaner_settings(config: ConfigDict, last: Trial) -> list[tuple[int, int]]:
    """(micro_batches, prototype_block) that compute the same in less memory, cheapest first.

    More micro-batches are only more turns; blocks compute the scores again, so they come after.
    """
    whole_groups = last.batch_size % (config.group_size * last.shards) == 0
    groups = last.batch_size // config.group_size // last.shards if whole_groups else 1
    parts = [n for n in range(last.micro_batches, groups + 1) if groups % n == 0]
    blocks = sorted({last.prototype_block, last.prototype_block or _block_of(config)})
    settings = [(n, block) for block in blocks for n in parts or [last.micro_batches]]
    return settings[1:]


def _block_of(config: ConfigDict) -> int:
    """A block that divides the prototypes of all heads; 0 where blocks would save nothing."""
    if not uses_prototypes(config):
        return 0
    numbers = prototypes(config)
    block = next((n for n in _BLOCKS if math.gcd(*numbers) % n == 0), 0)
    return block if block < max(numbers) else 0


def leaner_total(last: Trial, parts: int, block: int) -> float:
    """Bytes a device with `parts` micro-batches and `block` prototypes at a time.

    State, gradients, crops and targets belong to the whole batch and stay; the rest is divided.
    """
    if last.memory is None:
        return math.inf
    gradients, scores = last.memory.student, last.scores
    crops = 5 * last.memory.batch  # as uint8, and in fp32 with their colours
    whole = last.memory.state + gradients + crops + scores.targets
    part = max(last.memory.total - whole, 0)
    if block:
        whole, part = whole - scores.targets, max(part - scores.logits, 0)
    if parts > 1 and last.micro_batches == 1:
        whole += gradients  # their sum beside those of a part
    return whole + part * last.micro_batches / parts


def images_that_fit(last: Trial, limit: float) -> float:
    """Images a device that fit beside the state, by the last trial's bytes an image."""
    memory, images = last.memory, last.batch_size / (last.shards * last.micro_batches)
    if memory is None:
        return images / 2
    return images * max(limit - memory.state, 0) / (memory.total - memory.state)


def smaller_batch(config: ConfigDict, last: Trial, limit: float) -> Changes | None:
    """The largest smaller batch, of whole groups on every device, that is expected to fit.

    One group a device is the smallest; it is tried even if it is not expected to fit. Where
    micro-batches of one group were already too large, it is tried at once and without them.
    """
    unit = config.group_size * last.shards
    if last.batch_size <= unit:
        return None
    if last.micro_batches > 1:
        return {"batch_size": unit, "micro_batches": 1}
    expected = images_that_fit(last, limit) * last.shards
    steps = max(min(int(expected // unit), (last.batch_size - 1) // unit), 1)
    return {"batch_size": steps * unit}
