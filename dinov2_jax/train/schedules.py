"""The six schedules as functions of the step, in float64 on the host (reference-facts 7.1)."""

import dataclasses
import math

import numpy as np


def cosine_schedule(
    step: int,
    base: float,
    final: float,
    total_steps: int,
    warmup_steps: int = 0,
    start: float = 0.0,
) -> float:
    """Linear warm-up from `start` with both ends included, then a cosine towards `final`.

    Quirks kept from the reference (FB dinov2/utils/utils.py): step 0 gives `start` exactly, `base`
    occurs twice (last warm-up step and first cosine step), the last step lies just above `final`,
    and every later step gives `final`.
    """
    if step >= total_steps:
        return final
    if step < warmup_steps:
        return float(start + (base - start) * step / max(warmup_steps - 1, 1))
    phase = (step - warmup_steps) / (total_steps - warmup_steps)
    return final + 0.5 * (base - final) * (1 + math.cos(math.pi * phase))


def linear_then_constant(step: int, start: float, final: float, warmup_steps: int) -> float:
    """Linear from `start` to `final` with both ends included, then `final`."""
    if step >= warmup_steps:
        return final
    return start + (final - start) * step / max(warmup_steps - 1, 1)


@dataclasses.dataclass(frozen=True)
class Schedules:
    """All values that depend on the step. `lr` is the peak, already scaled to the batch."""

    total_steps: int
    lr: float
    min_lr: float
    warmup_steps: int
    freeze_last_layer_steps: int
    freeze_backbone_steps: int
    weight_decay: float
    weight_decay_end: float
    momentum: float
    final_momentum: float
    warmup_temp: float
    temp: float
    temp_warmup_steps: int

    def at(self, step: int) -> dict[str, np.float32]:
        """The scalars for update number `step` (0-based)."""
        total = self.total_steps
        lr = cosine_schedule(step, self.lr, self.min_lr, total, self.warmup_steps)
        values = {
            "lr": lr,
            "last_layer_lr": 0.0 if step < self.freeze_last_layer_steps else lr,
            "backbone_lr": 0.0 if step < self.freeze_backbone_steps else lr,
            "weight_decay": cosine_schedule(step, self.weight_decay, self.weight_decay_end, total),
            "momentum": cosine_schedule(step, self.momentum, self.final_momentum, total),
            "teacher_temp": linear_then_constant(
                step, self.warmup_temp, self.temp, self.temp_warmup_steps
            ),
        }
        return {name: np.float32(value) for name, value in values.items()}


def scale_lr(base_lr: float, rule: str, batch_size: int) -> float:
    """The peak learning rate: "sqrt_wrt_1024" (the reference's only rule) or "none".

    Raises:
      ValueError: another rule.
    """
    if rule == "sqrt_wrt_1024":
        return base_lr * math.sqrt(batch_size / 1024)
    if rule == "none":
        return base_lr
    raise ValueError(
        f"optimizer.lr_scaling {rule!r} is unknown; choose sqrt_wrt_1024 (base_lr is meant for a "
        "batch of 1024) or none (base_lr is the peak)"
    )
