"""What the task "visualize" accepts: the names and ranges of the fields of configs/visualize.py."""

from dinov2_jax.config.checks import BATCH, COUNT, COUNT_OR_NONE, SIDE, Range, Rules
from dinov2_jax.data.sources.open import KINDS
from dinov2_jax.viz.pca import SIDES
from dinov2_jax.weights.load import RULES as READING

RULES: Rules = READING | {
    "compute_dtype": ("auto", "float32", "bfloat16"),
    "pictures": COUNT,
    "image_px": SIDE,
    "block": Range(-1000, 1000),
    "folder_pictures": COUNT_OR_NONE,
    "batch_size": BATCH,
    "data.source": KINDS,
    "data.max_pixels": COUNT,
    "pca.threshold": Range(-100, 100),
    "pca.side": SIDES,
    "matching.pairs": COUNT_OR_NONE,
    "matching.lines": COUNT,
    "matching.spacing": COUNT,
    "attention.pictures": COUNT_OR_NONE,
    "neighbours.k": COUNT,
    "depth.low": Range(0, 1000),
    "depth.high": Range(0, 10_000),
}
