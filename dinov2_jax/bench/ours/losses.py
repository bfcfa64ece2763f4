"""Targets and iBOT cross-entropy of given logits, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax.bench.draws import draw_rows
from dinov2_jax.bench.harness import Arrays, Settings, Side
from dinov2_jax.bench.ours.runtime import DTYPES, configure, repeat, side_of
from dinov2_jax.ssl.centering import update_center
from dinov2_jax.ssl.ibot import ibot_loss
from dinov2_jax.ssl.scores import DenseScores


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
        scores = DenseScores(teacher)
        if settings["centering"] == "sinkhorn_knopp":
            targets, next_center = scores.sinkhorn_knopp(settings["temp"], valid), center
        else:
            targets = scores.softmax_center(center, settings["temp"])
            next_center = update_center(center, scores.group_mean(valid))
        targets = jax.lax.stop_gradient(targets)
        return ibot_loss(DenseScores(student), targets, weights, crops), next_center

    block = jax.jit(jax.value_and_grad(loss, has_aux=True))

    def call():
        return block(student, teacher, center)

    def check() -> Arrays:
        (value, next_center), gradient = call()
        results = {"loss": value, "gradient": gradient[0], "center": next_center}
        return {name: np.asarray(x, np.float32) for name, x in results.items()}

    return side_of(check, repeat(call))
