"""Refuses fields of a distillation that nothing would read."""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from dinov2_jax.config.files import ConfigError, leaves

# Values that ask for nothing, as configs/default.py has them.
_UNUSED: dict[str, Any] = {
    "distill.attention_heads": 0,
    "distill.patches": "all",
    "distill.teacher_heads": "",
    "distill.head_steps": 10_000,
    "prototype_block": 0,
}
_WITHOUT_TEACHER = (
    "distill.attention_heads",
    "distill.patches",
    "distill.teacher_heads",
    "distill.head_steps",
)
_WITH_FEATURES = {
    "distill.patches": "learns all patches",
    "distill.teacher_heads": "needs no heads",
    "distill.head_steps": "trains no heads",
    "prototype_block": "has no prototypes",
}


def check_distillation(config: ConfigDict) -> None:
    """Refuses fields that the configured kind of training ignores.

    Raises:
      ConfigError: naming the first of them, why it has no effect, and what to do.
    """
    if config.distill.kind == "features" and not config.distill.teacher:
        raise ConfigError(
            "config.distill.kind features learns the features of a teacher, but "
            "config.distill.teacher is empty; add --config.distill.teacher=WEIGHTS"
        )
    fields = leaves(config)
    for field, why, remedy in _without_effect(config):
        if fields[field] != _UNUSED[field]:
            raise ConfigError(
                f"config.{field} is {fields[field]!r}, but {why}; leave {field.split('.')[-1]} "
                f"out, or add {remedy}"
            )


def _without_effect(config: ConfigDict) -> Iterator[tuple[str, str, str]]:
    """Fields that nothing reads, the reason, and the flag that would make them count."""
    distill = config.distill
    if not distill.teacher:
        for field in _WITHOUT_TEACHER:
            why = "config.distill.teacher is empty, so nothing is distilled"
            yield field, why, "--config.distill.teacher=WEIGHTS"
    elif distill.kind == "features":
        for field, why in _WITH_FEATURES.items():
            why = f"config.distill.kind features {why}"
            yield field, why, "--config.distill.kind=prototypes"
    elif not distill.teacher_heads:
        why = "config.distill.teacher_heads is empty, so no heads are trained"
        yield "distill.head_steps", why, "--config.distill.teacher_heads=train"
