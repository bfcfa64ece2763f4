"""Endless labelled pictures for supervised training: one random resized crop and flip each."""

import dataclasses
import functools
from collections.abc import Sequence

import grain
import numpy as np

from dinov2_jax.data.crops import sample_crops
from dinov2_jax.data.decode import WHOLE_RGB, BadImage, DecodeSpec, load_record
from dinov2_jax.data.loader import MAX_REPLACEMENTS
from dinov2_jax.data.reader import Batch, BatchLoader
from dinov2_jax.data.sources.source import Source


class LabelledLoader(BatchLoader):
    """Endless batches {"images": uint8 [B, S, S, C], "labels": int32 [B], "records": int64 [B]}.

    Batch n is a function of (source, settings, seed, n) alone. Every pass over the pictures is
    shuffled anew; fewer than a batch are repeated. A picture that cannot be read is replaced by
    another one, with that one's label.

    Args:
      labels: class of every record [len(source)], -1 for those to leave out.
      batch_size: images; size: side of the crop in px; scale: share of the picture's area.
      decoding: the loader itself sets its `min_side_px`.
      workers: loader processes; 0 reads on a thread.
      start_batch: number of the first batch to deliver.
      parts, share: with several processes, each delivers only the parts `share` of the equal
        `parts` of every batch.
    """

    def __init__(
        self,
        source: Source,
        labels: np.ndarray,
        *,
        batch_size: int,
        size: int,
        scale: tuple[float, float] = (0.08, 1.0),
        decoding: DecodeSpec = WHOLE_RGB,
        seed: int = 0,
        workers: int = 0,
        start_batch: int = 0,
        parts: int = 1,
        share: Sequence[int] = (0,),
    ) -> None:
        records = np.flatnonzero(labels >= 0)
        # As in CropSpec.decode_px: the smallest crop keeps more than twice the size of its output.
        decoding = dataclasses.replace(decoding, min_side_px=int(2 * size / scale[0] ** 0.5))
        crop = functools.partial(_crop, source, records, labels, size, scale, decoding)
        order = grain.MapDataset.source(range(len(records))).seed(seed).shuffle().repeat()
        dataset = order.random_map(crop).batch(batch_size // parts)
        super().__init__(dataset, parts, share, start_batch, workers)


def _crop(
    source: Source,
    records: np.ndarray,
    labels: np.ndarray,
    size: int,
    scale: tuple[float, float],
    decoding: DecodeSpec,
    place: int,
    rng: np.random.Generator,
) -> Batch:
    """One crop of record records[place], or of another one where that cannot be read."""
    for _ in range(MAX_REPLACEMENTS + 1):
        record = int(records[place])
        try:
            crop = sample_crops(rng, load_record(source, record, decoding), 1, size, scale)[0]
            return {"images": crop, "labels": np.int32(labels[record]), "records": np.int64(record)}
        except BadImage:
            place = int(rng.integers(len(records)))
    raise BadImage(
        f"{MAX_REPLACEMENTS + 1} pictures in a row cannot be read, the last of them "
        f"{source.name(record)}; check the data set"
    )
