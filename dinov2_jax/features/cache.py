"""Features for evaluation: stored on disk for all protocols and later evaluations, or streamed.

<folder>/<title>-<key>/<columns>/   a folder as the task "embed" makes it, with .npy files

The key depends on weights, preprocessing, the names of all pictures and the content of 64 of them,
so features of other weights or pictures are never reused. A single picture that changes under the
same name may go unnoticed. Several jobs may share the folder.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dinov2_jax.data.decode import DecodeSpec
from dinov2_jax.data.fingerprint import content_fingerprint, names_fingerprint, truth_of
from dinov2_jax.data.sources.source import Source, SourceError
from dinov2_jax.features.embed import embed_pictures
from dinov2_jax.features.extractor import Extractor
from dinov2_jax.features.repair import find_repaired, repair
from dinov2_jax.features.request import Request, central_square
from dinov2_jax.features.rows import Column, RowView
from dinov2_jax.features.store import FEATURES_VERSION, weights_fingerprint
from dinov2_jax.models.layers import compute_dtype
from dinov2_jax.parallel.mesh import make_mesh
from dinov2_jax.parallel.processes import from_main, is_main, main_first
from dinov2_jax.run.lock import locked
from dinov2_jax.weights.architecture import in_channels
from dinov2_jax.weights.load import Backbone


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Normed features that a protocol reads.

    Attributes:
      resize_px: length of the shorter side after resizing.
      image_px: side of the central square.
      cls_blocks: how many last blocks give their cls token.
      mean_patch: whether the last block also gives its mean patch token.
    """

    resize_px: int
    image_px: int
    cls_blocks: int = 1
    mean_patch: bool = False

    def __or__(self, other: "Wanted") -> "Wanted":
        """What serves both; their preprocessing must be the same."""
        blocks = max(self.cls_blocks, other.cls_blocks)
        both = self.mean_patch or other.mean_patch
        return dataclasses.replace(self, cls_blocks=blocks, mean_patch=both)


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Features and labels of the readable pictures of a split.

    Attributes:
      cls: [n, D] for each wanted block, the last block last; on disk, see `RowView`.
      mean_patch: [n, D] of the last block, or None.
      labels: int64 [n]; [n, classes] for data sets with several classes a picture; -1 where labels
        are unknown.
      unreadable: how many pictures cannot be read.
    """

    cls: tuple[Column, ...]
    mean_patch: Column | None
    labels: np.ndarray
    unreadable: int


class FeatureCache:
    """Features of one backbone.

    Args:
      folder: where stored features lie.
      backbone: from `load`.
      config: batch_size, compute_dtype and data of configs/eval/default.py.

    Attributes:
      folder: where stored features lie.
      weights: fingerprint of the backbone.
    """

    def __init__(self, folder: Path, backbone: Backbone, config: ConfigDict) -> None:
        self.folder, self._backbone, self._config = folder, backbone, config
        self.weights = weights_fingerprint(backbone)
        self._dtype = jnp.dtype(compute_dtype(config.compute_dtype)).name

    def features(
        self, source: Source, title: str, wanted: Wanted, *, keep_unreadable: bool = False
    ) -> Labelled:
        """Opens stored features, or computes and stores them.

        Rows of pictures that were unreadable and now can be read are computed in place.

        Args:
          source: pictures.
          title: a name for them, such as "train"; part of the folder's name.
          wanted: which features.
          keep_unreadable: keep unreadable pictures as rows of NaN instead of leaving them out.

        Raises:
          SourceError: more pictures are unreadable than `config.data.max_bad`.
        """
        request = self._request(wanted)
        home, complete = self._stored(source, title, request)
        complete = from_main(complete)  # one process decides for all
        folder = home / (complete or "-".join(sorted(name for name, *_ in request.columns)))
        if complete:
            self._repair(folder, source, request)
        else:
            if is_main():
                print(f"features of {title}: {len(source):,} pictures", flush=True)
            origin = {"weights": self._backbone.source, "split": title}
            how = {
                "batch_size": min(self._config.batch_size, len(source)),
                "compute_dtype": self._config.compute_dtype,
                "store": {"format": "npy", "dtype": "float32", "shard_rows": 0},
                "data": {name: self._config.data[name] for name in ("workers", "max_pixels")},
            }
            embed_pictures(ConfigDict(how), folder, self._backbone, request, source, origin)
        columns: list[Column] = [
            np.load(folder / f"{name}.npy", mmap_mode="r") for name, *_ in request.columns
        ]
        labels, readable = truth_of(source), np.load(folder / "readable.npy")
        self._require_readable(source, readable, f" of {title}", folder)
        lost = int((~readable).sum())
        if lost and not keep_unreadable:
            rows = np.flatnonzero(readable)
            columns, labels = [RowView(column, rows) for column in columns], labels[readable]
        *cls, mean = columns if wanted.mean_patch else (*columns, None)
        return Labelled(tuple(cls), mean, labels, lost)

    def stream(
        self, source: Source, wanted: Wanted
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Computes features without storing them.

        All processes receive all features, in the same order, and each reads its share of the
        pictures.

        Yields:
          Rows int [b] of readable pictures, and {column: fp32 [b, ...]}.

        Raises:
          SourceError: at the end, if more pictures are unreadable than `config.data.max_bad`.
        """
        data, rows = self._config.data, np.arange(len(source))
        extractor = self._extractor(self._request(wanted), len(source), make_mesh())
        how = {"max_pixels": data.max_pixels, "workers": data.workers}
        readable = np.zeros(len(source), bool)
        for computed in extractor.stream(source, rows, **how, unit="picture"):
            readable[computed.rows] = True
            yield computed.rows, computed.columns
        self._require_readable(source, readable)

    def holds(self, source: Source, title: str, wanted: Wanted) -> bool:
        """Whether all these features are stored already."""
        return self._stored(source, title, self._request(wanted))[1] is not None

    def _stored(self, source: Source, title: str, request: Request) -> tuple[Path, str | None]:
        """Where features lie, and the name of a finished folder there with all these columns."""
        home = self.folder / f"{title}-{self._key(source, request)}"
        names = {name for name, *_ in request.columns}
        for manifest in sorted(home.glob("*/manifest.json")):
            stored = json.loads(manifest.read_text(encoding="utf-8"))
            if stored["complete"] and names <= stored["columns"].keys():
                return home, manifest.parent.name
        return home, None

    def _request(self, wanted: Wanted) -> Request:
        model = self._backbone.model
        first, last = max(0, model.depth - wanted.cls_blocks), model.depth - 1
        columns = [(f"cls_block_{block}", "cls", block) for block in range(first, model.depth)]
        if wanted.mean_patch:
            columns.append((f"mean_patch_block_{last}", "mean_patch", last))
        sizes = {"resize_px": wanted.resize_px, "image_px": wanted.image_px}
        preprocessing = dataclasses.replace(self._backbone.preprocessing, **sizes)
        channels = in_channels(self._backbone.params, model.patch_size)
        square = central_square(model, preprocessing, channels=channels)
        return dataclasses.replace(square, columns=tuple(columns))

    def _extractor(self, request: Request, pictures: int, mesh: Mesh | None = None) -> Extractor:
        size, dtype = min(self._config.batch_size, pictures), compute_dtype(self._dtype)
        return Extractor(self._backbone, request, batch_size=size, dtype=dtype, mesh=mesh)

    def _key(self, source: Source, request: Request) -> str:
        parts: dict[str, Any] = {
            "weights": self.weights,
            "names": names_fingerprint(source),
            "content": content_fingerprint(source),
            "fit": dataclasses.asdict(request.fit),
            "preprocessing": dataclasses.asdict(self._backbone.preprocessing),
            "dtype": self._dtype,
            "max_pixels": self._config.data.max_pixels,
        }
        if FEATURES_VERSION > 1:  # version 1 is written without a number
            parts["version"] = FEATURES_VERSION
        text = json.dumps(parts, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def _repair(self, folder: Path, source: Source, request: Request) -> None:
        """Computes the rows of pictures that were unreadable and now can be read."""
        lost = from_main(int((~np.load(folder / "readable.npy")).sum()))
        if not lost or not from_main(os.access(folder, os.W_OK)):
            return
        decoding = DecodeSpec(self._config.data.max_pixels, request.channels)
        with locked(folder), main_first():
            rows = find_repaired(folder, source, decoding) if is_main() else ()
            if len(rows):
                print(f"{len(rows):,} pictures were unreadable and now can be read", flush=True)
                extractor = self._extractor(_all_columns(request, folder), len(rows))
                repair(folder, source, rows, extractor, decoding)

    def _require_readable(
        self, source: Source, readable: np.ndarray, where: str = "", folder: Path | None = None
    ) -> None:
        lost = np.flatnonzero(~readable)
        if len(lost) > self._config.data.max_bad:
            listed = "" if folder is None else f" (all are in {folder / 'unreadable.txt'})"
            raise SourceError(
                f"{len(lost)} of {len(readable):,} pictures{where} cannot be decoded, such as "
                f"{source.name(int(lost[0]))}{listed}; replace them, "
                f"or add --config.data.max_bad={len(lost)} to leave them out"
            )


def _all_columns(request: Request, folder: Path) -> Request:
    """The request for every column that a folder holds."""
    stored = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["columns"]
    parts = [(name, *name.split("_block_")) for name in stored if name != "readable"]
    columns = sorted(((name, kind, int(block)) for name, kind, block in parts), key=lambda c: c[2])
    return dataclasses.replace(request, columns=tuple(columns))
