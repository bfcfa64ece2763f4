"""Targets and iBOT cross-entropy of given logits, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax.bench.draws import draw_rows
from dinov2_jax.bench.harness import Arrays, Settings, Side
from dinov2_jax.bench.ours.runtime import DTYPES, configure, repeat, side_of
from dinov2_jax.ssl import losses, targets


def side(settings: Settings) -> Side:
    """settings: "rows", "prototypes", "centering", "dtype" of the logits, "temp", "seed"."""
    configure(settings)
    crops = settings["crops"]
    drawn = draw_rows(settings["seed"], settings["rows"], settings["prototypes"])
    dtype = DTYPES[settings["dtype"]]
    teacher, student = (jnp.asarray(drawn[name], dtype)[None] for name in ("teacher", "student"))
    weights, center = jnp.asarray(drawn["weights"])[None], jnp.asarray(drawn["center"])
    valid = weights > 0

    def loss(student, teacher, center):
        if settings["centering"] == "sinkhorn_knopp":
            teacher_targets, next_center = (
                targets.sinkhorn_knopp(teacher, settings["temp"], valid),
                center,
            )
        else:
            teacher_targets = targets.softmax_center(teacher, center, settings["temp"])
            statistic = targets.masked_group_mean(teacher, valid)
            next_center = targets.update_center(center, statistic)
        teacher_targets = jax.lax.stop_gradient(teacher_targets)
        return losses.ibot_loss(student, teacher_targets, weights, crops), next_center

    block = jax.jit(jax.value_and_grad(loss, has_aux=True))

    def call():
        return block(student, teacher, center)

    def check() -> Arrays:
        (value, next_center), gradient = call()
        results = {"loss": value, "gradient": gradient[0], "center": next_center}
        return {name: np.asarray(x, np.float32) for name, x in results.items()}

    return side_of(check, repeat(call))
