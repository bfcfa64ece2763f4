"""What the task "embed" accepts: the names and ranges of the fields of configs/embed.py."""

import dataclasses

from dinov2_jax.config.checks import (
    BATCH,
    COUNT,
    COUNT_OR_NONE,
    DISTRIBUTED,
    PROCESSES,
    SIDE,
    Range,
    Rules,
)
from dinov2_jax.data.fit import POLICIES
from dinov2_jax.data.sources.open import KINDS
from dinov2_jax.weights.load import RULES as READING

RULES: Rules = DISTRIBUTED | {
    **READING,
    "layers": Range(-1000, 1000),
    "policy": POLICIES,
    "size": dataclasses.replace(SIDE, empty=True),
    "compute_dtype": ("auto", "float32", "bfloat16"),
    "batch_size": BATCH,
    "data.source": KINDS,
    "data.workers": PROCESSES,
    "data.max_pixels": COUNT,
    "store.format": ("parquet", "npy"),
    "store.dtype": ("float32", "float16"),
    "store.shard_rows": COUNT_OR_NONE,
}
