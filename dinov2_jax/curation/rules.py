"""What the task "curate" accepts: the names and ranges of the fields of configs/curate."""

import dataclasses

from dinov2_jax.config.checks import (
    BATCH,
    COUNT,
    COUNT_OR_NONE,
    DISTRIBUTED,
    PROCESSES,
    SEED,
    SHARE,
    SIDE,
    Names,
    Range,
    Rules,
)
from dinov2_jax.data.sources.open import KINDS
from dinov2_jax.weights.load import RULES as READING

STAGES = (
    "pictures", "embed", "calibrate", "dedup", "exclude", "cluster", "retrieve", "sample",
    "manifest", "report",
)  # fmt: skip
ENGINES = ("local", "ray")
HOW = ("sample", "cluster", "both")
LARGEST_POOL = 2**40  # pictures that a dry run can plan for

RULES: Rules = DISTRIBUTED | {
    **READING,
    "seed": SEED,
    "size": dataclasses.replace(SIDE, empty=True),
    "compute_dtype": ("auto", "float32", "bfloat16"),
    "batch_size": BATCH,
    "data.source": KINDS,
    "data.workers": PROCESSES,
    "data.max_pixels": COUNT,
    "store.format": ("npy",),
    "store.dtype": ("float16", "float32"),
    "store.shard_rows": COUNT_OR_NONE,
    "curate.engine": ENGINES,
    "curate.references": Names(),
    "curate.queries": Names(),
    "curate.target": Range(0, LARGEST_POOL),
    "curate.plan_rows": Range(0, LARGEST_POOL),
    "curate.calibrate.pictures": Range(2, 10**6),
    "curate.calibrate.width": Range(1, 4096),
    "curate.calibrate.false_share": SHARE,
    "curate.calibrate.reference_false_share": SHARE,
    "curate.dedup.hash_bits": Range(-1, 31),
    "curate.dedup.threshold": SHARE,
    "curate.dedup.max_component": SHARE,
    "curate.exclude.hash_bits": Range(-1, 31),
    "curate.exclude.threshold": SHARE,
    "curate.kmeans.sizes": COUNT,
    "curate.kmeans.iterations": Range(1, 1000),
    "curate.retrieve.how": HOW,
    "curate.retrieve.neighbours": Range(1, 1000),
    "curate.retrieve.more_than": COUNT_OR_NONE,
    "curate.retrieve.per_cluster": COUNT,
    "curate.retrieve.per_set": COUNT,
}
