"""`extract`: features of pictures as arrays; and `Extractor`, on which the task "embed" builds."""

import contextlib
import dataclasses
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dinov2_jax.data.decode import MAX_PIXELS, DecodeSpec, why_unreadable
from dinov2_jax.data.sources.given import Arrays, Paths
from dinov2_jax.data.sources.open import open_source
from dinov2_jax.data.sources.source import Source, SourceError
from dinov2_jax.data.stream import Picture, stream_pictures
from dinov2_jax.features.batches import Batch, batches_of
from dinov2_jax.features.forward import make_forward
from dinov2_jax.features.request import Request, make_request
from dinov2_jax.parallel.mesh import make_mesh
from dinov2_jax.parallel.placement import put_batch
from dinov2_jax.run.progress import Throughput
from dinov2_jax.weights.load import Backbone, load

Columns = dict[str, np.ndarray]

# Batches that may be under way on the devices while the next one is read.
_IN_FLIGHT = 2


@dataclasses.dataclass(frozen=True)
class Features:
    """Row i of every array belongs to picture i; `features["cls"]` is one of the arrays.

    Attributes:
      arrays: by column; fp32, NaN where a picture could not be read. "mask", bool [n, P], says
        which places of "patches" belong to a picture where sizes differ.
      names: of the pictures.
      unreadable: {row: reason}.
      grid: rows and columns of patches, P = rows * columns.
    """

    arrays: Mapping[str, np.ndarray]
    names: list[str]
    unreadable: Mapping[int, str]
    grid: tuple[int, int]

    def __getitem__(self, column: str) -> np.ndarray:
        return self.arrays[column]


def extract(
    backbone: Backbone | str | Path,
    pictures: Any,
    *,
    features: Sequence[str] = ("cls",),
    layers: Sequence[int] = (-1,),
    norm: bool = True,
    policy: str = "center_crop",
    size: Sequence[int] = (),
    batch_size: int = 64,
    dtype: Any = None,
    workers: int = 0,
    max_pixels: int = MAX_PIXELS,
    devices: Sequence[Any] | None = None,
) -> Features:
    """Features of pictures that fit into memory; the task "embed" is for any number.

    Args:
      backbone: from `load`, or what `load` takes.
      pictures: a folder; a text file with one path a line; a tar or ArrayRecord file; a picture's
        path; a list of paths, or of arrays uint8 [H, W, 3]; or a source (see `open_source`).
      features: of "cls" [n, D], "registers" [n, R, D], "mean_patch" [n, D], "patches" [n, P, D].
      layers: blocks, from the end if negative; of several the columns are "cls_block_5", ...
      norm: after the final norm of the backbone, or before it.
      policy: "center_crop", "resize" or "pad"; see `dinov2_jax.data.fit.Fit`. A picture never
        shares its attention with padding but the few px that complete its last patches.
      size: px; () for what the weights say.
      batch_size: pictures at a time over all devices, rounded up to a multiple of these.
      dtype: of the matrix products; None: the backbone's.
      workers: loader processes; 0 decodes on a thread.
      max_pixels: larger pictures are unreadable.
      devices: all of this process by default.

    Raises:
      ConfigError: features, layers, policy or size that this backbone cannot give.
      SourceError: nothing found, or arrays of another kind.
      WeightsError: see `load`.
    """
    backbone = backbone if isinstance(backbone, Backbone) else load(backbone)
    source = as_source(pictures)
    request = make_request(backbone, features, layers, norm, policy, size)
    batch_size = min(batch_size, len(source))
    extractor = Extractor(backbone, request, batch_size=batch_size, dtype=dtype, devices=devices)
    arrays = extractor.empty(len(source))
    decoding = DecodeSpec(max_pixels, request.channels)
    rows = np.arange(len(source))
    stream = stream_pictures(source, rows, request.fit, decoding=decoding, workers=workers)
    with contextlib.closing(stream):
        lost = extractor.fill(arrays, stream)
    return Features(
        arrays,
        [source.name(row) for row in range(len(source))],
        {row: why_unreadable(source, row, decoding) or "unreadable before" for row in lost},
        request.fit.grid,
    )


def as_source(pictures: Any) -> Source:
    """Whatever `extract` takes as pictures, as a source.

    Raises:
      SourceError: nothing in it, or not known.
      FileNotFoundError: a path that does not exist.
    """
    if isinstance(pictures, str | Path):
        return _source_at(os.path.expanduser(pictures))
    if isinstance(pictures, np.ndarray) and pictures.dtype != object:
        pictures = list(pictures)
    if isinstance(pictures, list | tuple):
        if not pictures:
            raise SourceError("the list of pictures is empty; give at least one path or array")
        paths = all(isinstance(item, str | Path) for item in pictures)
        return Paths(pictures) if paths else Arrays(pictures)
    if all(hasattr(pictures, name) for name in ("__len__", "__getitem__", "name")):
        return pictures
    raise SourceError(
        f"pictures of type {type(pictures).__name__} are not known; give a folder, a list of paths "
        "or of arrays uint8 [H, W, 3], or what open_source returns"
    )


def _source_at(path: str) -> Source:
    if not os.path.isfile(path):
        return open_source("folder", path, split="all")
    if path.endswith(".tar"):
        return open_source("tar", path)
    if ".array_record" in os.path.basename(path):
        return open_source("array_record", path)
    with open(path, "rb") as file:
        is_text = b"\0" not in file.read(4096)
    return open_source("folder", path) if is_text else Paths([path])


class Extractor:
    """A backbone on the devices of this process, compiled once for each size of picture.

    Args:
      backbone: from `load`.
      request: what is wanted.
      batch_size: pictures at a time over all devices, rounded up to a multiple of these.
      dtype: of the matrix products; None: the backbone's.
      devices: all of this process by default. Several processes work each on its own pictures,
        without waiting for each other.
    """

    def __init__(
        self,
        backbone: Backbone,
        request: Request,
        *,
        batch_size: int,
        dtype: Any = None,
        devices: Sequence[Any] | None = None,
    ) -> None:
        self._mesh = make_mesh(devices=jax.local_devices() if devices is None else devices)
        count = self._mesh.size
        full = -(-batch_size // count) * count
        short = full if request.fit.one_size else -(-full // (8 * count)) * count
        self._lengths, self._request, self._model = (full, short), request, backbone.model
        self._forward, params = make_forward(backbone, request, dtype or backbone.model.dtype)
        self._params = jax.device_put(params, NamedSharding(self._mesh, P()))
        self._reading, self._computing = Throughput(1), Throughput(1)
        self._warm = False

    @property
    def columns(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape (of one picture) and dtype of each column."""
        request = self._request
        found = {
            name: (request.shape(kind, self._model), np.dtype(np.float32))
            for name, kind, _ in request.columns
        }
        if request.has_mask:
            found["mask"] = (request.shape("patches", self._model)[:1], np.dtype(bool))
        return found

    def empty(self, rows: int) -> Columns:
        """Arrays for so many pictures: NaN, and False in the mask."""
        return {
            name: np.full((rows, *shape), np.nan if dtype == np.float32 else False, dtype)
            for name, (shape, dtype) in self.columns.items()
        }

    def fill(self, arrays: Columns, pictures: Iterator[Picture], first_row: int = 0) -> list[int]:
        """Computes the features of all pictures into arrays that begin with row `first_row`.

        Returns:
          The rows that could not be read.
        """
        lost: list[int] = []
        under_way: deque[tuple[Batch, Any]] = deque()
        with jax.set_mesh(self._mesh):
            for batch in batches_of(self._counted(pictures, lost), self._lengths):
                images = put_batch({"images": batch.images}, self._mesh)["images"]
                under_way.append((batch, self._forward(self._params, images)))
                if len(under_way) > _IN_FLIGHT:
                    self._store(arrays, *under_way.popleft(), first_row)
            for batch, out in under_way:
                self._store(arrays, batch, out, first_row)
        return lost

    def rates(self) -> tuple[float, float, float]:
        """Pictures a second and shares of the time: waiting for pictures, and for the devices.

        Of the time since the first batch was there or since the last call; 0 pictures a second
        where there were no more than that batch and those behind it.
        """
        reading, computing = self._reading.read(), self._computing.read()
        share = "data_wait_share"
        return reading["images_per_s"], reading[share], computing[share]

    def _counted(self, pictures: Iterator[Picture], lost: list[int]) -> Iterator[Picture]:
        """The pictures, with the time that is spent waiting for them."""
        while True:
            with self._reading:
                picture = next(pictures, None)
            if picture is None:
                return
            self._reading.step()
            if picture[1] is None:
                lost.append(picture[0])
            yield picture

    def _store(self, arrays: Columns, batch: Batch, out: Mapping[str, Any], first_row: int) -> None:
        with self._computing:
            jax.block_until_ready(out)
        if not self._warm:  # what was before is compilation
            self._warm = True
            self._reading.restart()
            self._computing.restart()
        places = np.array(batch.rows) - first_row
        cells = self._cells(batch.images.shape[1:3])
        for name, kind, _ in self._request.columns:
            values = np.asarray(out[name])[: len(places)]
            if kind == "patches":
                arrays[name][places[:, None], cells] = values
            else:
                arrays[name][places] = values
        if self._request.has_mask:
            arrays["mask"][places[:, None], cells] = True

    def _cells(self, shape: tuple[int, ...]) -> np.ndarray:
        """Places, in the greatest grid, of the patches of a picture of so many px."""
        rows, cols = (side // self._request.fit.patch_size for side in shape)
        width = self._request.fit.grid[1]
        return (np.arange(rows)[:, None] * width + np.arange(cols)).reshape(-1)
