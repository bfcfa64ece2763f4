"""The six schedules as functions of the step, in float64 on the host (FB dinov2/train/train.py)."""

import math
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict


def cosine_schedule(
    step: int, base: float, final: float, total_steps: int, warmup_steps: int = 0
) -> float:
    """Linear warm-up from 0 with both ends included, then a cosine towards `final`.

    Quirks kept from the reference (FB dinov2/utils/utils.py): step 0 gives 0 exactly, `base`
    occurs twice (last warm-up step and first cosine step), the last step lies just above `final`,
    and every later step gives `final`.
    """
    if step >= total_steps:
        return final
    if step < warmup_steps:
        return base * step / max(warmup_steps - 1, 1)
    phase = (step - warmup_steps) / (total_steps - warmup_steps)
    return final + 0.5 * (base - final) * (1 + math.cos(math.pi * phase))


def linear_then_constant(step: int, start: float, final: float, warmup_steps: int) -> float:
    """Linear from `start` to `final` with both ends included, then `final`."""
    if step >= warmup_steps:
        return final
    return start + (final - start) * step / max(warmup_steps - 1, 1)


class Schedules(NamedTuple):
    """All values that depend on the step, as a training configuration describes them."""

    config: ConfigDict

    def at(self, step: int) -> dict[str, np.float32]:
        """The scalars for update number `step` (0-based)."""
        optimizer, teacher = self.config.optimizer, self.config.teacher
        total = self.config.total_steps
        peak = optimizer.base_lr
        if optimizer.lr_scaling == "sqrt_wrt_1024":  # the reference's only rule
            peak *= math.sqrt(self.config.batch_size / 1024)
        lr = cosine_schedule(step, peak, optimizer.min_lr, total, optimizer.warmup_steps)
        values = {
            "lr": lr,
            "last_layer_lr": 0.0 if step < optimizer.freeze_last_layer_steps else lr,
            "backbone_lr": 0.0 if step < optimizer.freeze_backbone_steps else lr,
            "weight_decay": cosine_schedule(
                step, optimizer.weight_decay, optimizer.weight_decay_end, total
            ),
            "momentum": cosine_schedule(step, teacher.momentum, teacher.final_momentum, total),
            "teacher_temp": linear_then_constant(
                step, teacher.warmup_temp, teacher.temp, teacher.temp_warmup_steps
            ),
        }
        return {name: np.float32(value) for name, value in values.items()}
