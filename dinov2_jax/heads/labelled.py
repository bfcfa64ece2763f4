"""Augmented pictures and their labels on the devices, for protocols that train on pictures."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from jax import Array
from jax.sharding import Mesh

from dinov2_jax.data.labelled import LabelledLoader
from dinov2_jax.data.preprocess import Preprocessing
from dinov2_jax.data.sources.source import Source
from dinov2_jax.errors import EvaluationError
from dinov2_jax.heads.training_set import check_classes
from dinov2_jax.parallel.placement import local_groups, put_batch


def check_labels(source: Source, labels: np.ndarray, classes: int) -> None:
    """One label a picture, and every class has one.

    Raises:
      EvaluationError: in one sentence.
    """
    if len(labels) != len(source):
        raise EvaluationError(
            f"{len(labels)} labels for {len(source)} pictures; give one label a picture, -1 for "
            "those to leave out"
        )
    check_classes(labels[labels >= 0], classes)


@contextlib.contextmanager
def labelled_batches(
    source: Source,
    labels: np.ndarray,
    preprocessing: Preprocessing,
    mesh: Mesh,
    start: int,
    *,
    batch_size: int,
    **how: Any,
) -> Iterator[Iterator[dict[str, Array]]]:
    """{"images": uint8 [B, S, S, C], "labels": int32 [B]}, split over the mesh, from `start` on.

    Of several processes each loads the pictures of its own devices.

    Args:
      preprocessing: gives the side of the crops and the number of channels.
      how: other arguments of `LabelledLoader`.
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    parts = shards if batch_size % shards == 0 else 1
    loader = LabelledLoader(
        source,
        labels,
        batch_size=batch_size,
        size=preprocessing.image_px,
        channels=len(preprocessing.mean),
        start_batch=start,
        parts=parts,
        share=local_groups(mesh, parts),
        **how,
    )
    names = "images", "labels"
    with contextlib.closing(loader):
        yield (put_batch({name: batch[name] for name in names}, mesh) for batch in loader)
