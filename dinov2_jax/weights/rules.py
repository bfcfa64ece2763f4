"""What the task "export" accepts: the names and ranges of the fields of configs/export.py."""

from dinov2_jax.config.checks import COUNT_OR_NONE, Rules
from dinov2_jax.weights.export import FORMATS

RULES: Rules = {
    "which": ("teacher", "student"),
    "format": ("", *FORMATS),
    "heads": COUNT_OR_NONE,
    "batch_sizes": COUNT_OR_NONE,
}
