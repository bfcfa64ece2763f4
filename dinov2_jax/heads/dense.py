"""Training of heads on the patch features of a frozen backbone.

The backbone runs inside the step, so features are never stored. Optimizer and schedules are those
of mmcv 1.5 and PyTorch, with which the reference trains its heads.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, NamedSharding, P
from jax.sharding import Mesh

from dinov2_jax.data.decode import DecodeSpec
from dinov2_jax.data.dense_loader import DenseLoader, Split, Transform
from dinov2_jax.data.photometric import normalize
from dinov2_jax.data.preprocess import Preprocessing
from dinov2_jax.models.maps import Level, feature_levels
from dinov2_jax.models.vit import VisionTransformer, unstack_blocks
from dinov2_jax.parallel.mesh import make_mesh
from dinov2_jax.parallel.placement import local_groups, put_batch
from dinov2_jax.run.resume import StateFile, run_steps, to_host

# (trained, levels, targets, iteration) -> the loss, and `trained` with new running statistics.
Loss = Callable[[Any, Sequence[Level], Array, Array], tuple[Array, Any]]
CURVE_POINTS = 200  # of the mean loss over the training
_SECOND, _EPSILON = 0.999, 1e-8  # AdamW's decay of squares, and what is added to their root
# mmcv's OneCycle of the first moment's decay: down in the first part, then up again.
_CYCLE_HIGH, _CYCLE_LOW, _CYCLE_SHARE = 0.95, 0.85, 0.3


@dataclasses.dataclass(frozen=True)
class DenseSettings:
    """How heads are trained.

    Attributes:
      rates: peak learning rates; several train as many heads side by side, from equal weights.
      schedule: "poly" goes straight to 0, "cosine" to 1e-8 of the rate.
      warmup_iterations: the rate of the schedule times a share that grows from `warmup_ratio`.
      cycle: moves the first moment's decay from 0.95 to 0.85 and back; else it is 0.9.
      clip: largest norm of all gradients of a head; 0: any.
      weight_decay: of all parameters, biases as well.
    """

    iterations: int
    batch_size: int
    rates: tuple[float, ...]
    weight_decay: float
    warmup_iterations: int
    schedule: str = "poly"
    warmup_ratio: float = 1e-6
    cycle: bool = False
    clip: float = 0.0
    seed: int = 0
    save_every: int = 1000


# ------------------------------------------------------------------------------------- schedules
def rate_at(settings: DenseSettings, iteration: int) -> float:
    """The factor of the learning rates in an iteration, from 0."""
    share = iteration / settings.iterations
    if settings.schedule == "poly":
        factor = 1 - share
    else:
        factor = 1e-8 + (1 - 1e-8) * 0.5 * (1 + math.cos(math.pi * share))
    if iteration < settings.warmup_iterations:
        left = 1 - iteration / settings.warmup_iterations
        factor *= 1 - left * (1 - settings.warmup_ratio)
    return factor


def first_decay_at(settings: DenseSettings, iteration: int) -> float:
    """The decay of Adam's first moment in an iteration."""
    if not settings.cycle:
        return 0.9
    turn, last = _CYCLE_SHARE * settings.iterations - 1, settings.iterations - 1
    if iteration <= turn:
        start, end, share = _CYCLE_HIGH, _CYCLE_LOW, iteration / turn
    else:
        start, end, share = _CYCLE_LOW, _CYCLE_HIGH, (iteration - turn) / (last - turn)
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * share))


# -------------------------------------------------------------------------------------- the step
def begin(trained: Any, heads: int) -> dict[str, Any]:
    """The state before the first iteration.

    Args:
      trained: "params" and "statistics" (None if there are none) of one head.
      heads: copies that are trained side by side.
    """
    copies = jax.tree.map(lambda x: np.stack([np.asarray(x)] * heads), trained)
    zeros = jax.tree.map(np.zeros_like, copies["params"])
    curve = np.zeros((CURVE_POINTS, heads), np.float32)
    return {"trained": copies, "first": zeros, "second": zeros, "curve": curve}


def adamw(
    gradient: Any, params: Any, first: Any, second: Any, step: Array, rate: Array, decays: Array
) -> tuple[Any, Any, Any]:
    """One step of torch's AdamW: new parameters and moments.

    Args:
      step: number of the step, from 1.
      decays: of the weights, and of the first moment.
    """
    weight_decay, b1 = decays
    b2, count = _SECOND, step.astype(jnp.float32)
    first = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, first, gradient)
    second = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, second, gradient)
    size, root = rate / (1 - b1**count), jnp.sqrt(1 - b2**count)

    def move(p: Array, m: Array, v: Array) -> Array:
        return p * (1 - rate * weight_decay) - size * m / (jnp.sqrt(v) / root + _EPSILON)

    return jax.tree.map(move, params, first, second), first, second


def _clipped(gradient: Any, most: float) -> Any:
    if not most:
        return gradient
    norm = jnp.sqrt(sum(jnp.square(g).sum() for g in jax.tree.leaves(gradient)))
    return jax.tree.map(lambda g: g * jnp.minimum(1, most / (norm + 1e-6)), gradient)


def _head_step(
    loss: Loss,
    settings: DenseSettings,
    levels: Sequence[Level],
    targets: Array,
    now: dict[str, Array],
    head: dict[str, Any],
    rate: Array,
) -> tuple[dict[str, Any], Array]:
    """One step of one head."""

    def value(params: Any) -> tuple[Array, Any]:
        trained = {**head["trained"], "params": params}
        return loss(trained, levels, targets, now["iteration"])

    params = head["trained"]["params"]
    (found, trained), gradient = jax.value_and_grad(value, has_aux=True)(params)
    gradient, decays = _clipped(gradient, settings.clip), now["decays"]
    moments = head["first"], head["second"]
    params, *moments = adamw(gradient, params, *moments, now["iteration"] + 1, rate, decays)
    moved = {**trained, "params": params}
    return {"trained": moved, "first": moments[0], "second": moments[1]}, found


def _train_step(
    read: Callable[[Any, Array], list[Level]],
    loss: Loss,
    settings: DenseSettings,
    state: dict[str, Any],
    frozen: Any,
    batch: dict[str, Array],
    now: dict[str, Array],
) -> tuple[dict[str, Any], Array]:
    """One step of all heads on the same features: the new state and the losses [heads]."""
    levels = jax.lax.stop_gradient(read(frozen, batch["images"]))
    step = functools.partial(_head_step, loss, settings, levels, batch["targets"], now)
    heads = {name: state[name] for name in ("trained", "first", "second")}
    if len(settings.rates) == 1:  # a convolution with an axis of heads is a slow, grouped one
        one, found = step(jax.tree.map(lambda x: x[0], heads), now["rates"][0])
        heads, losses = jax.tree.map(lambda x: x[None], one), found[None]
    else:
        heads, losses = jax.vmap(step)(heads, now["rates"])
    point = now["iteration"] * CURVE_POINTS // settings.iterations
    return {**heads, "curve": state["curve"].at[point].add(losses)}, losses


# --------------------------------------------------------------------------------------- training
def train_dense(
    model: VisionTransformer,
    params: Any,
    preprocessing: Preprocessing,
    blocks: Sequence[int],
    norm: bool,
    loss: Loss,
    trained: Any,
    split: Split,
    transform: Transform,
    size: tuple[int, int],
    settings: DenseSettings,
    *,
    file: StateFile,
    workers: int = 0,
    max_pixels: int,
    mesh: Mesh | None = None,
) -> tuple[list[Any], np.ndarray, int]:
    """Trains one head, or one for each learning rate.

    Args:
      model, params: the backbone, which stays as it is.
      blocks, norm: what the heads read, see `feature_levels`.
      loss: of a batch; a mean over all its pictures.
      trained: {"params": ..., "statistics": ...} to begin with.
      split, transform, size: see `DenseLoader`.
      file: of the state; it must know all that the result depends on.
      mesh: all devices by default; the pictures are split over it.

    Returns:
      `trained` of each head; mean losses [CURVE_POINTS, heads], nan where there was no iteration;
      the number of unreadable records that were replaced since the start or the last resumption.
    """
    mesh = mesh or make_mesh()
    state, start = file.load(begin(trained, len(settings.rates)))
    whole = NamedSharding(mesh, P())
    state = jax.tree.map(lambda x: jax.device_put(x, whole, may_alias=False), state)
    frozen = jax.device_put(unstack_blocks(params), whole)
    decoding = DecodeSpec(max_pixels, len(preprocessing.mean))

    def read(frozen: Any, images: Array) -> list[Level]:
        images = normalize(images, preprocessing.mean, preprocessing.std)
        levels = feature_levels(model, frozen, images, blocks, norm)
        return jax.tree.map(lambda x: x.astype(jnp.float32), levels)

    step = jax.jit(
        functools.partial(_train_step, read, loss, settings),
        donate_argnums=0,
        out_shardings=(whole, whole),
    )
    feed = dense_batches(split, transform, size, decoding, settings, mesh, workers, start)
    with jax.set_mesh(mesh), feed as (loader, batches):

        def advance(state: Any, now: range) -> tuple[Any, Array]:
            return step(state, frozen, next(batches), _now(settings, now.start))

        iterations = range(start, settings.iterations)
        state = run_steps(advance, state, iterations, file, settings.save_every)
        replaced = loader.replaced
    state = jax.tree.map(to_host, state)
    heads = [
        jax.tree.map(lambda x, i=i: x[i], state["trained"]) for i in range(len(settings.rates))
    ]
    return heads, mean_losses(state["curve"], settings.iterations), replaced


def _now(settings: DenseSettings, iteration: int) -> dict[str, np.ndarray]:
    """What of a step depends on its number; computed in 64 bits."""
    rates = np.array(settings.rates) * rate_at(settings, iteration)
    decays = settings.weight_decay, first_decay_at(settings, iteration)
    numbers = {"rates": np.float32(rates), "decays": np.float32(decays)}
    return {**numbers, "iteration": np.int32(iteration)}


def mean_losses(sums: np.ndarray, iterations: int) -> np.ndarray:
    """Sums of losses [CURVE_POINTS, heads] -> means; nan where there was no iteration."""
    places = np.arange(iterations) * CURVE_POINTS // iterations
    counts = np.bincount(places, minlength=CURVE_POINTS)[:, None]
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


@contextlib.contextmanager
def dense_batches(
    split: Split,
    transform: Transform,
    size: tuple[int, int],
    decoding: DecodeSpec,
    settings: DenseSettings,
    mesh: Mesh,
    workers: int,
    start: int,
) -> Iterator[tuple[DenseLoader, Iterator[dict[str, Array]]]]:
    """Yields the loader, and its batches on the mesh from number `start` on, for ever.

    Each process loads the pictures of its own devices only.
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    parts = shards if settings.batch_size % shards == 0 else 1
    loader = DenseLoader(
        split,
        transform,
        size,
        batch_size=settings.batch_size,
        decoding=decoding,
        seed=settings.seed,
        workers=workers,
        start_batch=start,
        parts=parts,
        share=local_groups(mesh, parts),
    )
    with contextlib.closing(loader):
        yield loader, (put_batch(batch, mesh) for batch in loader)
