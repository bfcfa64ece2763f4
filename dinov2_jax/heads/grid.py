"""The grid of linear classifiers, their accuracies, and the one that validation chooses."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dinov2_jax.errors import EvaluationError
from dinov2_jax.heads.linear import HeadColumns, LinearHead, head_input, row_blocks
from dinov2_jax.run.resume import to_host

# Learning rates for a batch of 256 images; each is multiplied by batch / 256.
# DINOv2: code and paper disagree (FB dinov2/eval/linear.py; paper App. B.3).
_CODE = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
_PAPER = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.3, 0.5)
RATES = {"code": _CODE, "paper": _PAPER}


class Kind(NamedTuple):
    """An input: cls of the last `blocks` blocks, with the mean patch of the last if `avgpool`."""

    blocks: int
    avgpool: bool


@dataclasses.dataclass(frozen=True)
class Grid:
    """All inputs with all learning rates; the default is the reference's 52 classifiers."""

    rates: tuple[float, ...] = RATES["code"]  # for 256 images a batch
    blocks: tuple[int, ...] = (1, 4)  # how many last blocks give their cls tokens
    avgpool: tuple[bool, ...] = (False, True)  # without and with mean patch (registers excluded)

    @property
    def kinds(self) -> list[Kind]:
        return [Kind(blocks, avgpool) for blocks in self.blocks for avgpool in self.avgpool]

    @property
    def columns(self) -> int:
        """How many columns are needed: the mean patch is last, unless one cls input is all."""
        return max(self.blocks) + (any(self.avgpool) or len(set(self.blocks)) > 1)

    def names(self, batch_size: int) -> list[str]:
        """Names all classifiers, with their rates at this batch size."""
        # DINOv2: five significant digits; the reference's five decimals give the same name to all
        # small rates of a small batch, and the later classifier replaces the earlier.
        digits = functools.partial(
            np.format_float_positional, precision=5, fractional=False, trim="-"
        )
        return [
            f"classifier_{kind.blocks}_blocks_avgpool_{kind.avgpool}_lr_"
            f"{digits(scaled(rate, batch_size))}".replace(".", "_")
            for kind in self.kinds
            for rate in self.rates
        ]


def scaled(rate: float, batch_size: int) -> float:
    """The learning rate at this batch size."""
    return rate * batch_size / 256


@dataclasses.dataclass(frozen=True)
class Heads:
    """Trained classifiers, and how they were trained."""

    grid: Grid
    batch_size: int
    weights: list[Array]  # [d, R, K] a kind, in the order of `grid.kinds`: R rates, K classes
    biases: list[Array]  # [R, K] a kind

    @property
    def names(self) -> list[str]:
        return self.grid.names(self.batch_size)


def head_logits(x: Array, weight: Array, bias: Array) -> Array:
    """x [n, d], weight [d, R, K], bias [R, K] -> [n, R, K], fp32."""
    return jnp.einsum("nd,drk->nrk", x, weight, precision="highest") + bias


@functools.partial(jax.jit, static_argnums=0)
def _correct(
    grid: Grid, weights: list[Array], biases: list[Array], columns: HeadColumns, labels: Array
) -> Array:
    """Counts the rows that each head gets right, [heads]; one that diverged gets none right."""
    found = []
    for kind, weight, bias in zip(grid.kinds, weights, biases, strict=True):
        logits = head_logits(head_input(columns, *kind, max(grid.blocks)), weight, bias)
        right = logits.argmax(axis=-1) == labels[:, None]
        found.append((right & jnp.isfinite(logits).all(axis=-1)).sum(axis=0))
    return jnp.concatenate(found)


def accuracies(
    heads: Heads, columns: HeadColumns, labels: np.ndarray, rows: int = 1024
) -> dict[str, float]:
    """Top-1 of every head in percent, by name."""
    check_rows(columns, labels, heads.grid)
    columns = list(columns)[: heads.grid.columns]
    total = np.zeros(len(heads.names), np.int64)
    for part, block, count in row_blocks(columns, rows):
        wanted = np.full(len(block[0]), -1, np.int32)
        wanted[:count] = labels[part]
        total += np.asarray(_correct(heads.grid, heads.weights, heads.biases, block, wanted))
    return dict(zip(heads.names, (100 * total / len(labels)).tolist(), strict=True))


def best(
    heads: Heads,
    columns: HeadColumns,
    labels: np.ndarray,
    class_names: Sequence[str] = (),
    identity: str = "",
) -> LinearHead:
    """Chooses the head of the highest top-1 on these pictures, the first of equal ones.

    Args:
      columns: of the validation pictures, as in training; labels [n].
      class_names, identity: kept with the head.

    Returns:
      The head; its metadata hold "name", "rate" (for 256 images a batch) and "accuracy", the top-1
      of every classifier by name.

    Raises:
      EvaluationError: when labels and columns do not belong together.
    """
    accuracy = accuracies(heads, columns, labels)
    place = int(np.argmax(list(accuracy.values())))
    number, rate = divmod(place, len(heads.grid.rates))
    kind = heads.grid.kinds[number]
    return LinearHead(
        np.ascontiguousarray(to_host(heads.weights[number])[:, rate].T),
        np.ascontiguousarray(to_host(heads.biases[number])[rate]),
        blocks=kind.blocks,
        avgpool=kind.avgpool,
        class_names=tuple(class_names),
        identity=identity,
        metadata={"name": heads.names[place], "rate": heads.grid.rates[rate], "accuracy": accuracy},
    )


def check_rows(columns: HeadColumns, labels: np.ndarray, grid: Grid) -> None:
    """Raises EvaluationError for too few columns, or any without one row for every label."""
    if len(columns) < grid.columns:
        raise EvaluationError(
            f"{len(columns)} columns of features, but the classifiers read {grid.columns}: cls of "
            f"the last {max(grid.blocks)} blocks and then the mean patch; extract the others too"
        )
    for place, column in enumerate(columns):
        if len(column.shape) != 2 or len(column) != len(labels) or not len(labels):
            raise EvaluationError(
                f"column {place} of the features has shape {tuple(column.shape)}, but there are "
                f"{len(labels)} labels; give one row of features and one label a picture"
            )
