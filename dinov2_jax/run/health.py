"""Warnings when a representation shows signs of collapse."""

import math
from collections.abc import Mapping

# The student's loss on cls tokens of a teacher's features, and that of the best fixed vector.
_FEATURES = ("loss/cls_features", "health/constant_cls")


class HealthMonitor:
    """Warnings in plain language, each given once, when the representation seems to collapse.

    `prototypes` is K of the DINO head; the entropy of a uniform target is log K. `patience`
    readings in a row must agree, so that the first steps do not warn.
    """

    def __init__(self, prototypes: int, patience: int = 20) -> None:
        self._log_k = math.log(max(prototypes, 2))
        self._patience = patience
        self._in_a_row: dict[str, int] = {}
        self._given: set[str] = set()
        self._first_rank: float | None = None

    def check(self, metrics: Mapping[str, float]) -> list[str]:
        """The warnings that are due after this reading; usually none."""
        warnings = []
        for name, (present, text) in self._signs(metrics).items():
            self._in_a_row[name] = self._in_a_row.get(name, 0) + 1 if present else 0
            if self._in_a_row[name] >= self._patience and name not in self._given:
                self._given.add(name)
                warnings.append(text)
        return warnings

    def _signs(self, metrics: Mapping[str, float]) -> dict[str, tuple[bool, str]]:
        names = ("teacher_entropy", "target_kl", "prototypes_used", "effective_rank")
        entropy, divergence, used, rank = (metrics.get(f"health/{n}", math.nan) for n in names)
        loss, constant = (metrics.get(n, math.nan) for n in _FEATURES)
        if self._first_rank is None and math.isfinite(rank):
            self._first_rank = rank
        first_rank = self._first_rank or math.nan
        return {
            # Within 2 % of log K: the teacher prefers no prototype, and the student matches it.
            "uniform": (
                entropy > 0.98 * self._log_k and divergence < 0.02 * self._log_k,
                f"warning: the teacher's targets stay uniform (entropy {entropy:.2f} of at most "
                f"{self._log_k:.2f}, KL {divergence:.3f}): nothing is learned. Try fewer "
                "config.dino.head_prototypes, a lower config.teacher.temp, or "
                "config.centering=sinkhorn_knopp.",
            ),
            "one_hot": (
                entropy < 0.02 * self._log_k or used < 0.01,
                f"warning: the teacher uses few prototypes (entropy {entropy:.3f}, "
                f"{100 * used:.1f} % in use): one-hot collapse. Try a higher "
                "config.teacher.warmup_temp, a longer config.optimizer.freeze_last_layer_steps, or "
                "config.centering=sinkhorn_knopp.",
            ),
            "rank": (
                rank < 2.0 or rank < 0.1 * first_rank,
                f"warning: the features have lost their dimensions (effective rank {rank:.1f}, "
                f"{first_rank:.1f} at the start). Try a lower config.optimizer.base_lr or a higher "
                "config.dino.koleo_loss_weight.",
            ),
            "constant": (
                loss > 0.98 * constant,
                f"warning: the student matches its teacher's cls tokens (loss {loss:.3f}) no "
                f"better than one fixed vector for all pictures would ({constant:.3f}). If it is "
                "past its warm-up, try another config.optimizer.base_lr, or a teacher that tells "
                "these pictures apart.",
            ),
        }
