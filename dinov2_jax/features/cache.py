"""Features of whole splits on disk: made once for all protocols, kept for the next evaluation.

<folder>/<split>-<key>/<columns>/   a folder as configs/embed.py makes it, with .npy memory maps

The key is of weights, preprocessing, the names of all pictures and the content of 64 of them, so
other weights or pictures do not meet a wrong feature; a single picture that was changed under the
same name may go unnoticed.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dinov2_jax.data.decode import DecodeSpec, why_unreadable
from dinov2_jax.data.fingerprint import content_fingerprint, names_fingerprint, truth_of
from dinov2_jax.data.fit import Fit
from dinov2_jax.data.sources.source import Source, SourceError
from dinov2_jax.features.embed import embed_pictures
from dinov2_jax.features.extractor import Extractor
from dinov2_jax.features.manifest import weights_fingerprint
from dinov2_jax.features.request import Request
from dinov2_jax.features.rows import Column, RowView
from dinov2_jax.models.layers import compute_dtype
from dinov2_jax.parallel.mesh import make_mesh
from dinov2_jax.parallel.processes import is_main, main_first
from dinov2_jax.weights.architecture import in_channels
from dinov2_jax.weights.load import Backbone


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Normed features that a protocol reads.

    Attributes:
      cls_blocks: cls tokens of so many last blocks.
      mean_patch: also the mean patch token of the last block.
      resize_px, image_px: shorter side, then the central square.
    """

    resize_px: int
    image_px: int
    cls_blocks: int = 1
    mean_patch: bool = False

    def __or__(self, other: "Wanted") -> "Wanted":
        """Both, of one preprocessing."""
        blocks = max(self.cls_blocks, other.cls_blocks)
        both = self.mean_patch or other.mean_patch
        return dataclasses.replace(self, cls_blocks=blocks, mean_patch=both)


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Features and labels of the readable pictures of a split.

    Attributes:
      cls: [n, D] each of the wanted last blocks, the last block last.
      mean_patch: [n, D] of the last block, or None.
      labels: int64 [n], or of sets with several classes a picture [n, classes]; [n] of -1 where
        there are none.
      unreadable: pictures that are left out.
    """

    cls: tuple[Column, ...]
    mean_patch: Column | None
    labels: np.ndarray
    unreadable: int


class FeatureCache:
    """The features of a backbone.

    Args:
      folder: where they are kept.
      backbone: from `load`.
      config: batch_size, compute_dtype and data of configs/eval/default.py.

    Attributes:
      weights: fingerprint of the backbone.
    """

    def __init__(self, folder: Path, backbone: Backbone, config: ConfigDict) -> None:
        self._folder, self._backbone, self._config = folder, backbone, config
        self.weights = weights_fingerprint(backbone)
        self._dtype = jnp.dtype(compute_dtype(config.compute_dtype)).name

    def features(
        self, source: Source, split: str, wanted: Wanted, *, keep_unreadable: bool = False
    ) -> Labelled:
        """Computes what is missing, or reads what is there.

        Args:
          source, split: pictures, and the name of their folder.
          wanted: which features.
          keep_unreadable: rows of NaN for unreadable pictures, where rows belong together.

        Raises:
          SourceError: more pictures are unreadable than `config.data.max_bad`.
        """
        request = self._request(wanted)
        home = self._folder / f"{split}-{self._key(source, request)}"
        names = {name for name, *_ in request.columns}
        with main_first():  # one process decides, before the others look
            folder = _complete_with(home, names)
            if folder is not None and is_main() and self._repaired(folder, source, request):
                shutil.rmtree(folder)
                folder = None
        if folder is None:
            folder = home / "-".join(sorted(names))
            if is_main():
                print(f"features of {split}: {len(source):,} pictures", flush=True)
            origin = {"weights": self._backbone.source, "split": split}
            how, extractor = self._embed_config(), self._extractor(request, len(source))
            embed_pictures(how, folder, self._backbone, request, source, origin, extractor)
        columns = self._read(folder, request)
        labels, readable = truth_of(source), np.load(folder / "readable.npy")
        self._require_readable(source, readable, f" of {split}", folder)
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

        Args:
          source: pictures.
          wanted: which features.

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

    def holds(self, source: Source, split: str, wanted: Wanted) -> bool:
        """Whether all these features are stored already."""
        request = self._request(wanted)
        home = self._folder / f"{split}-{self._key(source, request)}"
        return _complete_with(home, {name for name, *_ in request.columns}) is not None

    def _request(self, wanted: Wanted) -> Request:
        model, preprocessing = self._backbone.model, self._backbone.preprocessing
        last = model.depth - 1
        first = max(0, model.depth - wanted.cls_blocks)
        columns = [(f"cls_block_{block}", "cls", block) for block in range(first, model.depth)]
        if wanted.mean_patch:
            columns.append((f"mean_patch_block_{last}", "mean_patch", last))
        fill = tuple(round(255 * value) for value in preprocessing.mean)
        size = (wanted.image_px,)
        fit = Fit("center_crop", size, wanted.resize_px, model.patch_size, fill)
        channels = in_channels(self._backbone.params, model.patch_size)
        return Request(tuple(columns), True, fit, channels)

    def _extractor(self, request: Request, pictures: int, mesh: Mesh | None = None) -> Extractor:
        return Extractor(
            self._backbone,
            request,
            batch_size=min(self._config.batch_size, pictures),
            dtype=compute_dtype(self._config.compute_dtype),
            mesh=mesh,
        )

    def _key(self, source: Source, request: Request) -> str:
        parts: Mapping[str, Any] = {
            "weights": self.weights,
            "names": names_fingerprint(source),
            "content": content_fingerprint(source),
            "fit": dataclasses.asdict(request.fit),
            "preprocessing": dataclasses.asdict(self._backbone.preprocessing),
            "dtype": self._dtype,
            "max_pixels": self._config.data.max_pixels,
        }
        text = json.dumps(parts, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def _embed_config(self) -> ConfigDict:
        """The fields that `embed_pictures` reads."""
        data = self._config.data
        return ConfigDict(
            {
                "batch_size": self._config.batch_size,
                "compute_dtype": self._config.compute_dtype,
                "store": {"format": "npy", "dtype": "float32", "shard_rows": 0},
                "data": {"workers": data.workers, "max_pixels": data.max_pixels},
                "distributed": {},
            }
        )

    def _repaired(self, folder: Path, source: Source, request: Request) -> bool:
        """Whether a picture that could not be read now can."""
        lost = np.flatnonzero(~np.load(folder / "readable.npy"))
        decoding = DecodeSpec(self._config.data.max_pixels, request.channels)
        return any(why_unreadable(source, int(row), decoding) is None for row in lost[:1000])

    def _read(self, folder: Path, request: Request) -> list[Any]:
        """Memory maps, in the order of the request."""
        return [np.load(folder / f"{name}.npy", mmap_mode="r") for name, *_ in request.columns]

    def _require_readable(
        self, source: Source, readable: np.ndarray, where: str = "", folder: Path | None = None
    ) -> None:
        lost = np.flatnonzero(~readable)
        if len(lost) <= self._config.data.max_bad:
            return
        listed = "" if folder is None else f" (all are in {folder / 'unreadable.txt'})"
        raise SourceError(
            f"{len(lost)} of {len(readable):,} pictures{where} cannot be decoded, such as "
            f"{source.name(int(lost[0]))}{listed}; replace them, "
            f"or add --config.data.max_bad={len(lost)} to leave them out"
        )


def _complete_with(home: Path, names: set[str]) -> Path | None:
    """A finished folder that holds at least these columns."""
    for manifest in sorted(home.glob("*/manifest.json")):
        stored = json.loads(manifest.read_text(encoding="utf-8"))
        if stored["complete"] and names <= stored["columns"].keys():
            return manifest.parent
    return None
