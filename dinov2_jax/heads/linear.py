"""A linear classifier on frozen features: weights, what it reads, and the names of its classes."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dinov2_jax.errors import EvaluationError
from dinov2_jax.features.extract import extract
from dinov2_jax.weights.heads import Head, read_head, write_head
from dinov2_jax.weights.load import Backbone

# cls tokens [n, D] of the last blocks, the last one last, then its mean patch [n, D] if used.
HeadColumns = Sequence[Any]


class Prediction(NamedTuple):
    """What a classifier says of n pictures; with on_error="nan" some may be unreadable.

    Attributes:
      labels: int64 [n], numbers of the classes; -1 for an unreadable picture.
      names: n names of these classes, "" where they are unknown.
      probabilities: fp32 [n, K], the softmax of the logits; NaN for an unreadable picture.
    """

    labels: np.ndarray
    names: tuple[str, ...]
    probabilities: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class LinearHead:
    """A linear classifier: released, probed, fitted by logistic regression or fine-tuned.

    Attributes:
      weight [K, d], bias [K]: fp32; d is the width of the backbone times `blocks + avgpool`.
      blocks: it reads the cls tokens of so many last blocks.
      avgpool: it also reads the mean patch of the last block.
      class_names: K names, or () if they are unknown.
      identity: of the weights and data that it was trained on; "" if unknown.
      metadata: what else is known, such as "name", or the "accuracy" of its rivals.
    """

    weight: np.ndarray
    bias: np.ndarray
    blocks: int
    avgpool: bool
    class_names: tuple[str, ...] = ()
    identity: str = ""
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        classes = len(self.weight)
        if self.weight.ndim != 2 or self.bias.shape != (classes,):
            raise EvaluationError(
                f"weight {self.weight.shape} and bias {self.bias.shape} are no linear head; give "
                "weight [K, d] and bias [K]"
            )
        if self.class_names and len(self.class_names) != classes:
            raise EvaluationError(
                f"{len(self.class_names)} class names for {classes} classes; give one name a "
                "class, or none"
            )

    @property
    def name(self) -> str:
        """How it is called in tables; "" if it has no name."""
        return self.metadata.get("name", "")

    def __repr__(self) -> str:
        reads = f"cls of {self.blocks} block{'s' * (self.blocks > 1)}"
        reads += " and mean patch" * self.avgpool
        return f"LinearHead({len(self.bias)} classes, reads {reads}, name={self.name!r})"

    def logits(
        self, columns: HeadColumns, classes: Sequence[int] | None = None, rows: int = 4096
    ) -> np.ndarray:
        """Computes fp32 [n, K], or [n, len(classes)] in the order of `classes`.

        Args:
          columns: [n, D] each: the cls tokens of the last blocks, the last one last, and then the
            mean patch of the last. Earlier blocks may come along. The mean patch may be missing
            if the head does not read it and just its own blocks are given.
          classes: those that a test set has, as ImageNet-A and -R have 200 of 1000.
          rows: how many are on the device at once.

        Raises:
          EvaluationError: columns of another number or width.
        """
        cls_columns = self._count_cls(columns)
        weight, bias = self.weight, self.bias
        if classes is not None:
            weight, bias = weight[np.asarray(classes)], bias[np.asarray(classes)]
        found = []
        for _, block, count in row_blocks(columns, rows):
            x = head_input(block, self.blocks, self.avgpool, cls_columns)
            found.append(np.asarray(_one_head(x, weight, bias))[:count])
        return np.concatenate(found)

    def columns(self, backbone: Backbone, pictures: Any, **options: Any) -> HeadColumns:
        """Extracts what `logits` takes; arguments and errors as `predict`."""
        kinds = ("cls", "mean_patch") if self.avgpool else ("cls",)
        depth, layers = backbone.model.depth, tuple(range(-self.blocks, 0))
        found = extract(backbone, pictures, features=kinds, layers=layers, **options)
        several = self.blocks > 1
        names = [f"cls_block_{depth + layer}" if several else "cls" for layer in layers]
        if self.avgpool:
            names.append(f"mean_patch_block_{depth - 1}" if several else "mean_patch")
        return [found[name] for name in names]

    def predict(self, backbone: Backbone, pictures: Any, **options: Any) -> Prediction:
        """Predicts the classes of pictures.

        Args:
          backbone: the one that the head was trained on.
          pictures, options: as `features.extract.extract` takes them.

        Raises:
          ConfigError, SourceError, FileNotFoundError: see `extract`.
          EvaluationError: the head does not fit the backbone.
        """
        logits = self.logits(self.columns(backbone, pictures, **options))
        readable = ~np.isnan(logits).any(axis=1)  # a class that was never seen has -inf
        labels = np.where(readable, logits.argmax(axis=1), -1)
        names = tuple(self.class_names[n] if self.class_names and n >= 0 else "" for n in labels)
        return Prediction(labels, names, np.asarray(jax.nn.softmax(logits)))

    def _count_cls(self, columns: HeadColumns) -> int:
        alone = not self.avgpool and len(columns) == self.blocks
        count = len(columns) - (not alone)
        width = sum(c.shape[1] for c in columns[count - self.blocks : count + self.avgpool])
        if count < self.blocks or width != self.weight.shape[1]:
            raise EvaluationError(
                f"{len(columns)} columns of features do not fit a head that reads "
                f"{self.weight.shape[1]} values: cls of the last {self.blocks} blocks and then "
                f"the mean patch (avgpool={self.avgpool}); extract these, from its own backbone"
            )
        return count

    def as_stored(self) -> Head:
        """Named arrays and metadata, as bundles keep them."""
        about = dict(self.metadata, blocks=self.blocks, avgpool=self.avgpool)
        about |= {"class_names": list(self.class_names), "identity": self.identity}
        return {"weight": self.weight, "bias": self.bias, "metadata": about}

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, whole or not at all; `load_head` reads it."""
        write_head(Path(path), self.as_stored())


def load_head(path: str | Path, dim: int | None = None) -> LinearHead:
    """Loads a linear classifier: ours, one released with DINOv2, or one of transformers.

    Args:
      path: a head.safetensors, a bundle, a dinov2_*_linear_head.pth or dinov2_*_linear4_head.pth,
        or the directory of a Dinov2ForImageClassification.
      dim: width of the backbone; needed for released files of an unusual width only.

    Raises:
      WeightsError: the file is missing, holds something else, or fits another width.
    """
    return from_stored(read_head(path, dim))


def from_stored(head: Head) -> LinearHead:
    """Makes the object of what `load(...).heads["classifier"]` holds."""
    about = dict(head["metadata"])
    return LinearHead(
        np.asarray(head["weight"], np.float32),
        np.asarray(head["bias"], np.float32),
        blocks=about.pop("blocks"),
        avgpool=about.pop("avgpool"),
        class_names=tuple(about.pop("class_names", ())),
        identity=about.pop("identity", ""),
        metadata=about,
    )


def head_input(columns: HeadColumns, blocks: int, avgpool: bool, cls_columns: int) -> Any:
    """Joins what one classifier reads, [n, d].

    Args:
      columns: `cls_columns` cls tokens, then the mean patch if anybody reads it.
    """
    parts = list(columns[cls_columns - blocks : cls_columns])
    if avgpool:
        parts.append(columns[cls_columns])
    if len(parts) == 1:
        return parts[0]
    join = jnp.concatenate if isinstance(parts[0], Array) else np.concatenate
    return join(parts, axis=-1)


def row_blocks(columns: HeadColumns, rows: int) -> Iterator[tuple[slice, list[Array], int]]:
    """Puts some rows of all columns at a time on the device; zeros fill the last ones up.

    Yields:
      The rows, fp32 [rows, D] of each column, and how many of these rows are real.
    """
    total = len(columns[0])
    rows = min(rows, total)
    for start in range(0, total, rows):
        part = slice(start, min(start + rows, total))
        count = part.stop - part.start
        padding = [(0, rows - count), (0, 0)]
        block = [np.pad(np.asarray(c[part], np.float32), padding) for c in columns]
        yield part, [jnp.asarray(x) for x in block], count


@jax.jit
def _one_head(x: Array, weight: Array, bias: Array) -> Array:
    return jnp.einsum("nd,kd->nk", x, weight, precision="highest") + bias
