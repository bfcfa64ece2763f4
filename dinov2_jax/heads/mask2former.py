"""Losses and matching of Mask2Former, and its predictions for pictures.

Every term compares masks at random points, not at all pixels. Draws are arguments, so that all here
is a pure function. Source: Cheng et al. 2022 (arXiv 2112.01527), section 3.3; weights and points of
ViT-Adapter's recipe for ADE20K.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from dinov2_jax.models.deformable import corners
from dinov2_jax.models.mask2former import Prediction

POINTS = 12_544  # at which masks are compared
CANDIDATES = 3  # times as many, of which the most uncertain ones are taken
UNCERTAIN = 0.75  # share of the points that are taken so; the others are uniform
CLASS_WEIGHT, MASK_WEIGHT, DICE_WEIGHT = 2.0, 5.0, 5.0
NONE_WEIGHT = 0.1  # of the class "none"


class Truth(NamedTuple):
    """The classes of a picture, each with a mask; static shapes by padding.

    Attributes:
      labels: [B, M] classes; anything where `known` is False.
      masks: [B, M, H, W], 0 or 1.
      known: bool [B, M].
    """

    labels: Array
    masks: Array
    known: Array


class Draws(NamedTuple):
    """Uniform points (x, y) as shares of the sides, for one layer.

    Attributes:
      match: [B, P, 2], at which all pairs of masks are compared.
      candidates: [B, M, 3 P, 2] for each true mask.
      uniform: [B, M, P - 0.75 P, 2].
    """

    match: Array
    candidates: Array
    uniform: Array


class Losses(NamedTuple):
    """Weighted losses of one layer, for the mean over pictures."""

    classes: Array
    masks: Array
    dice: Array


def truth_of(labels: np.ndarray, classes: int, most: int) -> Truth:
    """Label maps [B, H, W] -> one mask a class, at most `most` of the largest ones of a picture."""
    shape = len(labels), most
    found = np.zeros(shape, np.int32), np.zeros((*shape, *labels.shape[1:]), np.float32)
    known = np.zeros(shape, bool)
    for row, picture in enumerate(labels):
        counts = np.bincount(picture.reshape(-1), minlength=classes)[:classes]
        chosen = np.argsort(-counts, kind="stable")[:most]
        for place, label in enumerate(np.sort(chosen[counts[chosen] > 0])):
            found[0][row, place] = label
            found[1][row, place] = picture == label
            known[row, place] = True
    return Truth(*map(jnp.asarray, (*found, known)))


def draw_points(key: Array, pictures: int, masks: int, points: int = POINTS) -> Draws:
    """Draws the points of one layer."""
    keys, fresh = jax.random.split(key, 3), points - int(UNCERTAIN * points)
    shapes = (pictures, points), (pictures, masks, CANDIDATES * points), (pictures, masks, fresh)
    return Draws(*(jax.random.uniform(k, (*s, 2)) for k, s in zip(keys, shapes, strict=True)))


def at_points(masks: Array, points: Array) -> Array:
    """Values of maps [..., h, w] at points [..., P, 2], bilinear, 0 outside: [..., P].

    The leading axes must be equal.
    """
    size = masks.shape[-2], masks.shape[-1]
    cells, shares = corners(points, size)
    flat = masks.reshape(*masks.shape[:-2], -1)
    values = jnp.take_along_axis(flat, cells.reshape(*cells.shape[:-2], -1), axis=-1)
    return (values.reshape(cells.shape) * shares).sum(axis=-1)


# --------------------------------------------------------------------------------------- matching
def costs(classes: Array, masks: Array, labels: Array, truths: Array) -> Losses:
    """What it costs to give each true mask to each query, weighted: each [Q, M].

    Args:
      classes: logits [Q, K + 1].
      masks, truths: at the same points, logits [Q, P] and values [M, P].
      labels: [M].
    """
    by_class = -jax.nn.softmax(classes)[:, labels]
    true, false = jax.nn.softplus(-masks), jax.nn.softplus(masks)
    product = lambda a, b: jnp.einsum("qp,mp->qm", a, b, precision="highest")  # noqa: E731
    entropy = (product(true, truths) + product(false, 1 - truths)) / masks.shape[-1]
    shares = jax.nn.sigmoid(masks)
    total = shares.sum(axis=-1)[:, None] + truths.sum(axis=-1)
    dice = 1 - (2 * product(shares, truths) + 1) / (total + 1)
    return Losses(CLASS_WEIGHT * by_class, MASK_WEIGHT * entropy, DICE_WEIGHT * dice)


def match(prediction: Prediction, truth: Truth, points: Array) -> Array:
    """The query of each true mask with the least total cost, int32 [B, M]; no query has two.

    Padded masks get the queries that are left, and must not be used.

    Raises ValueError where there are fewer queries than masks.
    """
    queries, wanted = prediction.masks.shape[1], truth.labels.shape[1]
    if queries < wanted:
        raise ValueError(f"{queries} queries cannot find {wanted} masks; use more queries")

    def of_picture(classes: Array, masks: Array, truth: Truth, points: Array) -> Array:
        sampled = [
            at_points(x, jnp.broadcast_to(points, (len(x), *points.shape)))
            for x in (masks, truth.masks)
        ]
        parts = costs(classes, sampled[0], truth.labels, sampled[1])
        # The same cost everywhere: a padded mask never takes a query that another one wants.
        total = jnp.where(truth.known, sum(parts), 0.0)
        rows, cols = optax.assignment.hungarian_algorithm(total)
        return jnp.zeros(len(truth.labels), jnp.int32).at[cols].set(rows.astype(jnp.int32))

    given = jax.lax.stop_gradient((prediction.classes, prediction.masks))
    return jax.vmap(of_picture)(*given, truth, points)


# ----------------------------------------------------------------------------------------- losses
def layer_losses(prediction: Prediction, truth: Truth, draws: Draws) -> Losses:
    """The losses of one layer; gradients flow to the prediction."""
    queries = match(prediction, truth, draws.match)
    found = jnp.take_along_axis(prediction.masks, queries[:, :, None, None], axis=1)
    points = _uncertain_points(found, draws)
    logits, values = at_points(found, points), at_points(truth.masks, points)
    count = jnp.maximum(truth.known.sum(), 1)
    entropy = jax.nn.softplus(logits) - logits * values
    shares = jax.nn.sigmoid(logits)
    total = shares.sum(axis=-1) + values.sum(axis=-1)
    dice = 1 - (2 * (shares * values).sum(axis=-1) + 1) / (total + 1)
    means = (jnp.where(truth.known, x, 0.0).sum() / count for x in (entropy.mean(axis=-1), dice))
    by_class = CLASS_WEIGHT * _class_loss(prediction.classes, truth, queries)
    return Losses(
        by_class, *(w * x for w, x in zip((MASK_WEIGHT, DICE_WEIGHT), means, strict=True))
    )


def _class_loss(classes: Array, truth: Truth, queries: Array) -> Array:
    """Weighted cross-entropy over all queries; those without a mask learn "none"."""
    none = classes.shape[-1] - 1
    batch = jnp.arange(len(classes))[:, None]
    place = jnp.where(truth.known, queries, classes.shape[1])  # padded ones fall outside
    targets = jnp.full(classes.shape[:2], none).at[batch, place].set(truth.labels, mode="drop")
    weights = jnp.where(targets == none, NONE_WEIGHT, 1.0)
    losses = optax.softmax_cross_entropy_with_integer_labels(classes, targets)
    return (weights * losses).sum() / weights.sum()


def _uncertain_points(found: Array, draws: Draws) -> Array:
    """The candidates with the least certain logits, and the uniform points."""
    candidates, uniform = draws.candidates, draws.uniform
    number = candidates.shape[2] // CANDIDATES - uniform.shape[2]
    certain = jnp.abs(jax.lax.stop_gradient(at_points(found, candidates)))
    _, places = jax.lax.top_k(-certain, number)
    chosen = jnp.take_along_axis(candidates, places[..., None], axis=2)
    return jnp.concatenate([chosen, uniform], axis=2)


def total_loss(
    predictions: Sequence[Prediction], truth: Truth, draws: Sequence[Draws]
) -> tuple[Array, list[Losses]]:
    """The sum over all layers, and each layer's parts."""
    parts = [layer_losses(p, truth, d) for p, d in zip(predictions, draws, strict=True)]
    return sum(sum(layer) for layer in parts), parts
