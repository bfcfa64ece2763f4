"""The grid of linear classifiers, what they score, and the one that validation chooses."""

import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from safetensors import SafetensorError, safe_open

from dinov2_jax.errors import EvaluationError
from dinov2_jax.run.resume import to_host, write_tensors

# Learning rates for a batch of 256 images; each is multiplied by batch / 256.
# DINOv2: code and paper disagree (FB dinov2/eval/linear.py; paper App. B.3).
_CODE = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
_PAPER = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.3, 0.5)
RATES = {"code": _CODE, "paper": _PAPER}

# cls tokens [n, D] of the last blocks, the last one last, then its mean patch [n, D] if used.
Columns = Sequence[Any]


class Kind(NamedTuple):
    """An input: cls of the last `blocks` blocks, with the mean patch of the last if `avgpool`."""

    blocks: int
    avgpool: bool


@dataclasses.dataclass(frozen=True)
class Grid:
    """All inputs with all learning rates; the default are the reference's 52 classifiers.

    Attributes:
      rates: learning rates for 256 images a batch, see RATES.
      blocks: numbers of last blocks whose cls tokens are taken.
      avgpool: without and with the mean patch token (registers excluded).
    """

    rates: tuple[float, ...] = RATES["code"]
    blocks: tuple[int, ...] = (1, 4)
    avgpool: tuple[bool, ...] = (False, True)

    @property
    def kinds(self) -> list[Kind]:
        return [Kind(blocks, avgpool) for blocks in self.blocks for avgpool in self.avgpool]

    @property
    def columns(self) -> int:
        """How many columns the classifiers read."""
        return max(self.blocks) + any(self.avgpool)

    def names(self, batch_size: int) -> list[str]:
        """Of all classifiers, with the rate at this batch size."""
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


def kind_inputs(columns: Columns, kind: Kind, grid_blocks: int) -> Any:
    """[n, d] of one kind, from the cls tokens of `grid_blocks` blocks and the mean patch."""
    parts = list(columns[grid_blocks - kind.blocks : grid_blocks])
    if kind.avgpool:
        parts.append(columns[grid_blocks])
    if len(parts) == 1:
        return parts[0]
    join = jnp.concatenate if isinstance(parts[0], Array) else np.concatenate
    return join(parts, axis=-1)


@dataclasses.dataclass(frozen=True)
class Heads:
    """Trained classifiers.

    Attributes:
      grid, batch_size: which they are.
      weights: one array [d, R, K] a kind, in the order of `grid.kinds`: R rates, K classes.
      biases: [R, K] a kind.
    """

    grid: Grid
    batch_size: int
    weights: list[Array]
    biases: list[Array]

    @property
    def names(self) -> list[str]:
        return self.grid.names(self.batch_size)


@functools.partial(jax.jit, static_argnums=0)
def _logits(grid: Grid, weights: list[Array], biases: list[Array], columns: Columns) -> Array:
    """[n, heads, K]."""
    found = []
    for kind, weight, bias in zip(grid.kinds, weights, biases, strict=True):
        x = kind_inputs(columns, kind, max(grid.blocks))
        found.append(head_logits(x, weight, bias))
    return jnp.concatenate(found, axis=1)


def head_logits(x: Array, weight: Array, bias: Array) -> Array:
    """x [n, d], weight [d, R, K], bias [R, K] -> [n, R, K], fp32."""
    return jnp.einsum("nd,drk->nrk", x, weight, precision="highest") + bias


@functools.partial(jax.jit, static_argnums=0)
def _correct(
    grid: Grid, weights: list[Array], biases: list[Array], columns: Columns, labels: Array
) -> Array:
    """How many of the rows each head gets right, [heads]; one that diverged gets none."""
    logits = _logits(grid, weights, biases, columns)
    right = logits.argmax(axis=-1) == labels[:, None]
    return (right & jnp.isfinite(logits).all(axis=-1)).sum(axis=0)


def _blocks_of(columns: Columns, rows: int) -> Iterator[tuple[slice, list[Array], int]]:
    """Rows of all columns at a time on the device; the last are filled up with zeros."""
    total = len(columns[0])
    rows = min(rows, total)
    for start in range(0, total, rows):
        part = slice(start, min(start + rows, total))
        count = part.stop - part.start
        padding = [(0, rows - count), (0, 0)]
        block = [np.pad(np.asarray(c[part], np.float32), padding) for c in columns]
        yield part, [jnp.asarray(x) for x in block], count


def scores(heads: Heads, columns: Columns, rows: int = 256) -> Iterator[tuple[slice, np.ndarray]]:
    """Logits of every head, `rows` pictures at a time.

    Yields:
      The rows, and fp32 [rows, heads, K], heads in the order of `heads.names`.
    """
    columns = list(columns)[: heads.grid.columns]
    for part, block, count in _blocks_of(columns, rows):
        logits = _logits(heads.grid, heads.weights, heads.biases, block)
        yield part, np.asarray(logits)[:count]


def accuracies(
    heads: Heads, columns: Columns, labels: np.ndarray, rows: int = 1024
) -> dict[str, float]:
    """Top-1 in percent of every head, by name."""
    check_rows(columns, labels, heads.grid)
    columns = list(columns)[: heads.grid.columns]
    total = np.zeros(len(heads.names), np.int64)
    for part, block, count in _blocks_of(columns, rows):
        wanted = np.full(len(block[0]), -1, np.int32)
        wanted[:count] = labels[part]
        total += np.asarray(_correct(heads.grid, heads.weights, heads.biases, block, wanted))
    return dict(zip(heads.names, (100 * total / len(labels)).tolist(), strict=True))


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The classifier that was best on validation; it is the one for all other test sets.

    Attributes:
      name: the reference's, see `Grid.names`.
      kind, rate: its input and its learning rate for 256 images a batch.
      grid_blocks: of how many blocks there are cls tokens among the columns.
      weight [K, d], bias [K]: fp32.
      accuracy: top-1 in percent of every head on validation, by name.
      identity: of the weights and data it belongs to; "" if unknown.
    """

    name: str
    kind: Kind
    rate: float
    grid_blocks: int
    weight: np.ndarray
    bias: np.ndarray
    accuracy: dict[str, float]
    identity: str = ""

    def logits(
        self, columns: Columns, classes: Sequence[int] | None = None, rows: int = 4096
    ) -> np.ndarray:
        """fp32 [n, K], or [n, len(classes)] in the order of `classes`.

        Args:
          columns: as in training.
          classes: those that a test set has, as ImageNet-A and -R have 200 of 1000.
        """
        weight, bias = self.weight, self.bias
        if classes is not None:
            weight, bias = weight[np.asarray(classes)], bias[np.asarray(classes)]
        found = []
        for _, block, count in _blocks_of(columns, rows):
            x = kind_inputs(block, self.kind, self.grid_blocks)
            found.append(np.asarray(_one_head(x, weight, bias))[:count])
        return np.concatenate(found)

    def save(self, path: Path, identity: str = "") -> None:
        """One safetensors file; see `load_chosen`."""
        about = {
            "name": self.name,
            "blocks": self.kind.blocks,
            "avgpool": self.kind.avgpool,
            "rate": self.rate,
            "grid_blocks": self.grid_blocks,
            "accuracy": self.accuracy,
            "identity": identity or self.identity,
        }
        tensors = {"weight": self.weight, "bias": self.bias}
        write_tensors(path, tensors, {"linear_head": json.dumps(about)})


@jax.jit
def _one_head(x: Array, weight: Array, bias: Array) -> Array:
    return jnp.einsum("nd,kd->nk", x, weight, precision="highest") + bias


def load_chosen(path: Path) -> Chosen:
    """The classifier that `Chosen.save` wrote.

    Raises:
      EvaluationError: when the file is something else.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no linear head {path}")
    try:
        opened = safe_open(path, "numpy")
    except SafetensorError as error:
        raise EvaluationError(f"{path} is no linear head ({error}); name another") from error
    with opened as file:
        about = json.loads((file.metadata() or {}).get("linear_head", "null"))
        if about is None:
            raise EvaluationError(
                f"{path} holds no chosen linear head; give the file that a probe wrote"
            )
        weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
    kind = Kind(about["blocks"], about["avgpool"])
    named = about["name"], kind, about["rate"], about["grid_blocks"]
    return Chosen(*named, weight, bias, about["accuracy"], about.get("identity", ""))


def best(heads: Heads, columns: Columns, labels: np.ndarray) -> Chosen:
    """The head of the highest top-1 on these pictures, the first of equal ones.

    Args:
      columns: of the validation pictures, as in training; labels [n].

    Raises:
      EvaluationError: when labels and columns do not belong together.
    """
    accuracy = accuracies(heads, columns, labels)
    place = int(np.argmax(list(accuracy.values())))
    kind, rate = divmod(place, len(heads.grid.rates))
    return Chosen(
        heads.names[place],
        heads.grid.kinds[kind],
        heads.grid.rates[rate],
        max(heads.grid.blocks),
        np.ascontiguousarray(to_host(heads.weights[kind])[:, rate].T),
        np.ascontiguousarray(to_host(heads.biases[kind])[rate]),
        accuracy,
    )


def check_rows(columns: Columns, labels: np.ndarray, grid: Grid) -> None:
    """Every column has a row for every label, and there are enough of both.

    Raises:
      EvaluationError: in one sentence.
    """
    if len(columns) < grid.columns:
        raise EvaluationError(
            f"{len(columns)} columns of features, but the classifiers read {grid.columns}: cls of "
            f"the last {max(grid.blocks)} blocks and then the mean patch; extract the others too"
        )
    for place, column in enumerate(columns):
        if column.ndim != 2 or len(column) != len(labels) or not len(labels):
            raise EvaluationError(
                f"column {place} of the features has shape {tuple(column.shape)}, but there are "
                f"{len(labels)} labels; give one row of features and one label a picture"
            )
