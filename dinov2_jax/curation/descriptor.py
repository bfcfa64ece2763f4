"""What tells pictures apart: features of a backbone, or pixels where there are no weights."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from dinov2_jax.curation import pixels
from dinov2_jax.curation.blocks import CurationError
from dinov2_jax.curation.edits import EDITS_19, copies
from dinov2_jax.curation.facts import collect_facts
from dinov2_jax.curation.pool import Pool
from dinov2_jax.curation.stage import load_array, save_array
from dinov2_jax.data.decode import DecodeSpec, load_record
from dinov2_jax.data.reader import Batch
from dinov2_jax.data.sources.source import Source, Unlabelled
from dinov2_jax.data.sources.views import View
from dinov2_jax.features.embed import embed_pictures
from dinov2_jax.features.extractor import Extractor
from dinov2_jax.features.request import Request, make_request
from dinov2_jax.features.store import weights_fingerprint
from dinov2_jax.models.layers import compute_dtype
from dinov2_jax.weights.load import Backbone, load_configured

# The two columns: one in which copies are close, and one in which like subjects are.
COPY, SUBJECT = "copy", "subject"
THUMBNAIL = "thumbnail"  # of other pictures, where pixels describe them
_BLOCK = 1 << 16  # rows
_SIDES_PX = (128, 256)  # of the pictures of which copies are made


class Descriptor(Protocol):
    """What the stages need of either kind."""

    def settings(self) -> Mapping[str, Any]:
        """What its numbers depend on."""

    def store(self, pool: Pool, folder: Path, rows: np.ndarray) -> None:
        """Writes copy.npy and subject.npy, float16 [rows, D], below a folder."""

    def describe(
        self, source: Source, unit: str, facts: Batch | None = None
    ) -> dict[str, np.ndarray]:
        """Both columns of other pictures, float32 [n, D]; NaN where one is unreadable.

        Pixels give their thumbnails as well, uint8 [n, 16, 16, 3], and read nothing again if they
        get the facts of the source.
        """


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Colours and edges of the thumbnails; both columns are the same."""

    pool: Pool

    def settings(self) -> Mapping[str, Any]:
        return {"descriptor": "pixels", "width": pixels.WIDTH}

    def store(self, pool: Pool, folder: Path, rows: np.ndarray) -> None:
        thumbs = load_array(pool.folder / "pictures" / "thumbnail.npy")
        found = np.empty((len(rows), pixels.WIDTH), np.float16)
        for start in range(0, len(rows), _BLOCK):
            found[start : start + _BLOCK] = pixels.describe(thumbs[rows[start : start + _BLOCK]])
        for name in (COPY, SUBJECT):
            save_array(folder / f"{name}.npy", found)

    def describe(
        self, source: Source, unit: str, facts: Batch | None = None
    ) -> dict[str, np.ndarray]:
        data = self.pool.config.data
        if facts is None:
            facts = collect_facts(source, DecodeSpec(data.max_pixels), data.workers, unit)
        found = pixels.describe(facts["thumbnail"])
        found[~facts["readable"]] = np.nan
        return {COPY: found, SUBJECT: found, THUMBNAIL: facts["thumbnail"]}


@dataclasses.dataclass(frozen=True)
class Features:
    """Mean patch token of the middle block for copies, cls token of the last for subjects."""

    pool: Pool
    backbone: Backbone
    request: Request

    def settings(self) -> Mapping[str, Any]:
        columns = [list(column) for column in self.request.columns]
        fit = dataclasses.asdict(self.request.fit)
        weights = weights_fingerprint(self.backbone)
        return {"descriptor": "features", "weights": weights, "columns": columns, "fit": fit}

    def store(self, pool: Pool, folder: Path, rows: np.ndarray) -> None:
        view = View(pool.source, None, None, rows=rows)
        data = pool.config.data
        origin = {"weights": self.backbone.source, "source": data.source, "path": data.path}
        embed_pictures(pool.config, folder, self.backbone, self.request, view, origin)

    def describe(
        self, source: Source, unit: str, facts: Batch | None = None
    ) -> dict[str, np.ndarray]:
        config = self.pool.config
        dtype = compute_dtype(config.compute_dtype)
        extractor = Extractor(
            self.backbone, self.request, batch_size=config.batch_size, dtype=dtype
        )
        how = {"max_pixels": config.data.max_pixels, "workers": config.data.workers}
        return extractor.read(source, np.arange(len(source)), unit=unit, **how)[0]


def open_descriptor(pool: Pool) -> Descriptor:
    """The descriptor that the configuration asks for; weights are read once."""
    config = pool.config
    if not config.weights:
        return Pixels(pool)
    backbone = load_configured(config, config.weights, compute_dtype(config.compute_dtype))
    known = make_request(backbone, ("cls",), (-1,), True, "center_crop", config.size)
    if known.channels != 3:
        raise CurationError(
            f"config.weights={config.weights} takes {known.channels} channels and curation needs "
            "RGB; use other weights, or none"
        )
    depth = backbone.model.depth
    middle = min(depth // 2, depth - 1)
    columns = ((COPY, "mean_patch", middle), (SUBJECT, "cls", depth - 1))
    return Features(pool, backbone, dataclasses.replace(known, columns=columns))


@dataclasses.dataclass(frozen=True)
class Edited(Unlabelled):
    """Made copies of some pictures: of each the picture itself, and then one for each edit."""

    source: Source
    rows: np.ndarray
    seed: int
    decoding: DecodeSpec

    def __len__(self) -> int:
        return len(self.rows) * (1 + len(EDITS_19))

    def __getitem__(self, index: int) -> np.ndarray:
        place, edit = divmod(index, 1 + len(EDITS_19))
        row = int(self.rows[place])
        image = self._picture(row)
        if not edit:
            return image
        name = list(EDITS_19)[edit - 1]
        return copies(image, row, self.seed, {name: EDITS_19[name]})[0]

    def _picture(self, row: int) -> np.ndarray:
        """All copies of a picture are asked for in turn: it is decoded once."""
        held = vars(self).get("_held")
        if held is None or held[0] != row:
            image = load_record(self.source, row, self.decoding)
            held = vars(self)["_held"] = row, _of_common_size(image)
        return held[1]

    def name(self, index: int) -> str:
        return f"copy {index} of {self.source.name(int(self.rows[index // (1 + len(EDITS_19))]))}"


def _of_common_size(image: np.ndarray) -> np.ndarray:
    """A picture whose shorter side is 128 to 256 px: what an edit does depends on the size."""
    side = min(image.shape[:2])
    wanted = min(max(side, _SIDES_PX[0]), _SIDES_PX[1])
    if wanted == side:
        return image
    height, width = (max(1, round(length * wanted / side)) for length in image.shape[:2])
    how = cv2.INTER_AREA if wanted < side else cv2.INTER_CUBIC
    return cv2.resize(image, (width, height), interpolation=how)
