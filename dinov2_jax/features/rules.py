"""What the task "embed" accepts: the names and ranges of the fields of configs/embed.py."""

from dinov2_jax.config.checks import COUNT, COUNT_OR_NONE, DISTRIBUTED, Range, Rules
from dinov2_jax.data.fit import POLICIES
from dinov2_jax.data.sources.open import KINDS

RULES: Rules = DISTRIBUTED | {
    "which": ("teacher", "student"),
    "layers": Range(-1000, 1000),
    "policy": POLICIES,
    "size": COUNT,
    "compute_dtype": ("auto", "float32", "bfloat16"),
    "batch_size": COUNT,
    "data.source": KINDS,
    "data.workers": COUNT_OR_NONE,
    "data.max_pixels": COUNT,
    "store.format": ("parquet", "npy"),
    "store.dtype": ("float32", "float16"),
    "store.shard_rows": COUNT_OR_NONE,
}
