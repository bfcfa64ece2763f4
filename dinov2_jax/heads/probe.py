"""Linear probe on frozen features: 52 classifiers trained together (FB dinov2/eval/linear.py).

Source: FB dinov2/eval/linear.py; paper App. B.3. The loss is the sum of all cross-entropies; the
optimizer is SGD with momentum 0.9, no weight decay, and a cosine to 0. All classifiers of one input
share one matrix product. The gradient is written out, so that no logits need to be stored.
"""

import contextlib
import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, NamedSharding, P
from jax.sharding import Mesh

from dinov2_jax.heads.grid import Grid, Heads, Kind, head_logits, scaled
from dinov2_jax.heads.linear import HeadColumns, head_input
from dinov2_jax.heads.probe_data import check_finite, check_training, checksum, state_file
from dinov2_jax.parallel.mesh import BATCH, make_mesh
from dinov2_jax.run.resume import StateFile, run_steps

STATE_FILE = "linear_state.safetensors"
# Iterations in one call where the features are on the device.
STRIDE = 32

ProbeBatch = dict[str, Any]
State = dict[str, list[Array]]  # for each name, one array a kind
_STATE = ("weights", "biases", "weight_momenta", "bias_momenta")
# (constants, batch) -> (columns [B, D] each, labels [B]), inside the jitted step.
ReadBatch = Callable[[Any, ProbeBatch], tuple[list[Array], Array]]


@dataclasses.dataclass(frozen=True)
class ProbeSettings:
    """How the classifiers are trained; the defaults are the reference's on 8 GPUs."""

    grid: Grid = dataclasses.field(default_factory=Grid)
    batch_size: int = 1024  # images over all devices; learning rates are multiplied by it / 256
    iterations: int = 12_500  # 10 x 1250 in the reference, whatever the data set
    momentum: float = 0.9
    seed: int = 0  # of weights and of the order of the pictures
    save_every: int = 1250  # iterations between two states on disk


# --------------------------------------------------------------------------------------- the step
def initial_state(settings: ProbeSettings, dim: int, classes: int) -> dict[str, list[np.ndarray]]:
    """Draws weights from N(0, 0.01^2); biases and momenta are 0.

    The draw of a classifier does not depend on which others are trained beside it.
    """
    weights, rates = [], settings.grid.rates
    for kind in settings.grid.kinds:
        width = dim * (kind.blocks + kind.avgpool)
        weight = np.empty((width, len(rates), classes), np.float32)
        for place, rate in enumerate(rates):
            name = f"{kind.blocks} {kind.avgpool} {rate!r}".encode()
            rng = np.random.default_rng((settings.seed, zlib.crc32(name)))
            weight[:, place] = 0.01 * rng.standard_normal((width, classes), np.float32)
        weights.append(weight)
    biases = [np.zeros(weight.shape[1:], np.float32) for weight in weights]
    momenta = ([np.zeros_like(x) for x in part] for part in (weights, biases))
    return dict(zip(_STATE, (weights, biases, *momenta), strict=True))


def rates_at(settings: ProbeSettings, iteration: int) -> np.ndarray:
    """Learning rates [R] at an iteration: a half cosine from lr x batch / 256 to 0."""
    factor = (1 + math.cos(math.pi * iteration / settings.iterations)) / 2
    rates = [factor * scaled(rate, settings.batch_size) for rate in settings.grid.rates]
    return np.asarray(rates, np.float32)


def _shard_logits(logits: Array) -> Array:
    """Splits classes over the devices, or images where classes do not divide.

    With split classes, weights, momenta and gradients stay on their devices; only the features of
    a batch and one sum for each row and head are sent.
    """
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty else mesh.shape["data"] * mesh.shape["fsdp"]
    if shards == 1:
        return logits
    if logits.shape[-1] % shards == 0:
        return jax.lax.with_sharding_constraint(logits, P(None, None, ("data", "fsdp")))
    if logits.shape[0] % shards == 0:
        return jax.lax.with_sharding_constraint(logits, BATCH)
    return logits


def _gradient(logits: Array, labels: Array) -> tuple[Array, Array]:
    """Mean cross-entropy of each head [R], and its gradient with respect to the logits [B, R, K].

    Returns the gradient first. The largest logit of each head is subtracted against overflow.
    """
    right = labels[:, None, None] == jnp.arange(logits.shape[-1])
    shifted = logits - logits.max(axis=-1, keepdims=True)
    exp = jnp.exp(shifted)
    total = exp.sum(axis=-1, keepdims=True)
    losses = jnp.log(total[..., 0]) - jnp.where(right, shifted, 0.0).sum(axis=-1)
    return (exp / total - right) / logits.shape[0], losses.mean(axis=0)


def _train_step(
    read: ReadBatch,
    kinds: tuple[Kind, ...],
    momentum: float,
    state: State,
    constants: Any,
    batch: ProbeBatch,
    rates: Array,
) -> tuple[State, Array]:
    """One step of SGD on the sum of all losses: the new state, and the loss of each head."""
    columns, labels = read(constants, batch)
    found, losses = [], []
    parts = zip(kinds, *(state[name] for name in _STATE), strict=True)
    for kind, weight, bias, weight_momentum, bias_momentum in parts:
        x = head_input(columns, *kind, max(kinds).blocks)
        logits = _shard_logits(head_logits(x, weight, bias))
        gradient, loss = _gradient(logits, labels)
        by_weight = jnp.einsum("nd,nrk->drk", x, gradient, precision="highest")
        weight_momentum = momentum * weight_momentum + by_weight
        bias_momentum = momentum * bias_momentum + gradient.sum(axis=0)
        weight = weight - rates[:, None] * weight_momentum
        bias = bias - rates[:, None] * bias_momentum
        found.append((weight, bias, weight_momentum, bias_momentum))
        losses.append(loss)
    arrays = map(list, zip(*found, strict=True))
    return dict(zip(_STATE, arrays, strict=True)), jnp.concatenate(losses)


def state_shardings(mesh: Mesh, kinds: int, classes: int) -> dict[str, list[NamedSharding]]:
    """Splits classes, the last axis of all arrays, over the devices if they divide."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    split = ("data", "fsdp") if classes % shards == 0 else None
    weight, bias = (NamedSharding(mesh, P(*(None,) * n, split)) for n in (2, 1))
    return {name: [weight if "weight" in name else bias] * kinds for name in _STATE}


@functools.lru_cache(maxsize=8)
def compiled_step(
    read: ReadBatch,
    kinds: tuple[Kind, ...],
    momentum: float,
    mesh: Mesh,
    classes: int,
    several: bool = False,
) -> Callable[..., tuple[State, Array]]:
    """Compiles (state, constants, batch, rates) -> state and losses.

    One program serves all learning rates, and all tries of a few-shot evaluation. With `several`,
    a fifth argument says how many steps are done, on the first of the batches and rates given; the
    loop stays on the device and updates the state in place, which is faster.
    """
    step = functools.partial(_train_step, read, kinds, momentum)

    def steps(
        state: State, constants: Any, batches: ProbeBatch, rates: Array, count: Array
    ) -> tuple[State, Array]:
        def body(i: Array, carry: tuple[State, Array]) -> tuple[State, Array]:
            batch = jax.tree.map(lambda x: x[i], batches)
            return step(carry[0], constants, batch, rates[i])

        losses = jnp.zeros(len(kinds) * rates.shape[1])
        return jax.lax.fori_loop(0, count, body, (state, losses))

    placed = state_shardings(mesh, len(kinds), classes), NamedSharding(mesh, P())
    return jax.jit(steps if several else step, donate_argnums=0, out_shardings=placed)


def _next(
    batches: Iterator[ProbeBatch], settings: ProbeSettings, now: range, stride: int
) -> tuple[Any, ...]:
    """Collects the arguments of the step for these iterations; shapes never change."""
    rates = [rates_at(settings, iteration) for iteration in now]
    if stride == 1:
        return next(batches), rates[0]
    rows = [next(batches) for _ in now]
    missing = stride - len(now)
    stacked = jax.tree.map(lambda *x: np.stack([*x, *x[:1] * missing]), *rows)
    return stacked, np.stack([*rates, *rates[:1] * missing]), np.int32(len(now))


def train(
    read: ReadBatch,
    constants: Any,
    feed: Callable[[int], contextlib.AbstractContextManager[Iterator[ProbeBatch]]],
    dim: int,
    classes: int,
    settings: ProbeSettings,
    file: StateFile,
    mesh: Mesh,
    *,
    stride: int = 1,
    quiet: bool = False,
) -> Heads:
    """Runs all iterations, or those that are left after the stored state.

    Args:
      feed: `feed(i)` gives batches from number i on.
      stride: iterations in one call of the device, for batches that are numpy arrays.
    """
    state, start = file.load(initial_state(settings, dim, classes))
    kinds = tuple(settings.grid.kinds)
    step = compiled_step(read, kinds, settings.momentum, mesh, classes, stride > 1)
    # A copy, because the step donates its inputs, which on CPU could be numpy's own memory.
    state = jax.device_put(state, state_shardings(mesh, len(kinds), classes), may_alias=False)
    with jax.set_mesh(mesh), feed(start) as batches:
        state = run_steps(
            lambda state, now: step(state, constants, *_next(batches, settings, now, stride)),
            state,
            range(start, settings.iterations),
            file,
            settings.save_every,
            stride=stride,
            quiet=quiet,
        )
    return Heads(settings.grid, settings.batch_size, state["weights"], state["biases"])


# -------------------------------------------------------------------------------- cached features
def train_cached(
    columns: HeadColumns,
    labels: np.ndarray,
    classes: int,
    settings: ProbeSettings,
    *,
    folder: Path | None = None,
    mesh: Mesh | None = None,
    device_bytes: int = 2**31,
    quiet: bool = False,
) -> Heads:
    """Trains on stored features, without augmentation.

    Args:
      columns: arrays or memory maps [n, D]: normed cls of the last blocks, the last one last, then
        the mean patch of the last (`Grid.columns` of them). All processes pass the same.
      labels: [n] class numbers below `classes`.
      folder: where the state is stored; a killed run continues from there, bit for bit.
      mesh: all devices by default.
      device_bytes: features up to this size are kept on the devices; larger ones stay on the host.
      quiet: shows no progress.

    Raises:
      EvaluationError: wrong number of columns or labels, a class without pictures, features that
        are not finite, or a stored state of other work.
    """
    check_training(columns, labels, classes, settings.grid)
    check_finite(columns)
    mesh = mesh or make_mesh()
    columns = list(columns)[: settings.grid.columns]
    labels = np.asarray(labels, np.int32)
    everywhere = NamedSharding(mesh, P())
    held = sum(4 * math.prod(column.shape) for column in columns) <= device_bytes
    constants = None
    if held:
        arrays = [np.asarray(c, np.float32) for c in columns], labels
        constants = jax.device_put(arrays, everywhere)

    def batch(rows: np.ndarray) -> ProbeBatch:
        if held:
            return {"rows": rows}
        found = [np.asarray(c[rows], np.float32) for c in columns]
        return jax.device_put({"columns": found, "labels": labels[rows]}, everywhere)

    def feed(start: int) -> Any:
        order = epochs(len(labels), settings.batch_size, settings.seed, start)
        return contextlib.nullcontext(map(batch, order))

    about = {"feed": "cached", "features": checksum(columns), "classes": classes}
    file = state_file(folder, STATE_FILE, settings, labels, about)
    dim = columns[0].shape[1]
    read, stride = (read_held, STRIDE) if held else (read_given, 1)
    return train(
        read, constants, feed, dim, classes, settings, file, mesh, stride=stride, quiet=quiet
    )


def read_held(constants: Any, batch: ProbeBatch) -> tuple[list[Array], Array]:
    columns, labels = constants
    return [column[batch["rows"]] for column in columns], labels[batch["rows"]]


def read_given(constants: Any, batch: ProbeBatch) -> tuple[list[Array], Array]:
    return batch["columns"], batch["labels"]


def epochs(count: int, batch_size: int, seed: int, start: int = 0) -> Iterator[np.ndarray]:
    """Yields endless batches of row numbers, int32 [batch_size], from batch `start` on.

    Each epoch is a permutation of all rows; a batch may span two epochs.
    """
    epoch, skip = divmod(start * batch_size, count)
    waiting = np.empty(0, np.int32)
    while True:
        while len(waiting) < batch_size:
            rng = np.random.default_rng((seed, epoch))
            order = rng.permutation(count).astype(np.int32)[skip:]
            waiting, epoch, skip = np.concatenate([waiting, order]), epoch + 1, 0
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]
