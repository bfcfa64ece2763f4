"""`Extractor`: the one path from pictures to features, for whoever needs them."""

import contextlib
import functools
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dinov2_jax.data.decode import DecodeSpec
from dinov2_jax.data.sources.source import Source
from dinov2_jax.data.stream import Picture, stream_pictures
from dinov2_jax.features.batches import Batch, batches_by_size, batches_in_step, own_rows
from dinov2_jax.features.forward import forward, place_weights, shorten
from dinov2_jax.features.request import Request
from dinov2_jax.parallel.mesh import make_mesh
from dinov2_jax.parallel.placement import local_groups, put_batch
from dinov2_jax.parallel.processes import is_main
from dinov2_jax.run.progress import Progress, Throughput
from dinov2_jax.weights.load import Backbone

Columns = dict[str, np.ndarray]

# Batches that may be under way on the devices while the next one is read.
_IN_FLIGHT = 2


class Computed(NamedTuple):
    """Features of the readable pictures of a batch.

    Attributes:
      rows: int [b].
      columns: {name: fp32 [b, ...]}; patches have the pictures' own grid.
      grid: its rows and columns of patches.
    """

    rows: np.ndarray
    columns: Columns
    grid: tuple[int, int]


class Extractor:
    """A backbone on devices, compiled once for each size of picture.

    Args:
      backbone: from `load`.
      request: what is wanted.
      batch_size: pictures at a time over all devices, rounded up to a multiple of these.
      dtype: of the matrix products; None: the backbone's.
      mesh: devices that share every batch; by default those of this process. If it spans several
        processes, all must make the same calls; each reads its share of the pictures, and all
        receive all features. This needs a request of one size of picture.
    """

    def __init__(
        self,
        backbone: Backbone,
        request: Request,
        *,
        batch_size: int,
        dtype: Any = None,
        mesh: Mesh | None = None,
    ) -> None:
        self._mesh = make_mesh(devices=jax.local_devices()) if mesh is None else mesh
        here = jax.process_index()
        self._spread = any(d.process_index != here for d in self._mesh.devices.flat)
        if self._spread and not request.fit.one_size:
            raise ValueError("several processes share pictures of one size only")
        shards = self._mesh.shape["data"] * self._mesh.shape["fsdp"]
        full = -(-batch_size // shards) * shards
        short = full if request.fit.one_size else -(-full // (8 * shards)) * shards
        self._lengths, self.request = (full, short), request
        self._model = shorten(backbone.model, request, dtype or backbone.model.dtype)
        self._forward = functools.partial(
            forward,
            place_weights(backbone, request, self._mesh),
            model=self._model,
            preprocessing=backbone.preprocessing,
            request=request,
            copy_to_all=self._spread,
        )
        self._reading, self._computing = Throughput(1), Throughput(1)
        self._warm = False

    @property
    def columns(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape (of one picture) and dtype of each column."""
        request = self.request
        layout = {
            name: (request.shape(kind, self._model), np.dtype(np.float32))
            for name, kind, _ in request.columns
        }
        if request.has_mask:
            layout["mask"] = (request.shape("patches", self._model)[:1], np.dtype(bool))
        return layout

    def empty(self, rows: int) -> Columns:
        """Arrays for this many pictures: NaN, and False in the mask."""
        return {
            name: np.full((rows, *shape), np.nan if dtype == np.float32 else False, dtype)
            for name, (shape, dtype) in self.columns.items()
        }

    def read(
        self,
        source: Source,
        rows: np.ndarray,
        *,
        max_pixels: int,
        workers: int = 0,
        unit: str = "",
        stopped: Callable[[], bool] = lambda: False,
    ) -> tuple[Columns, np.ndarray]:
        """Computes the features of some records.

        Args:
          source: pictures.
          rows: record numbers.
          max_pixels: larger pictures are unreadable.
          workers: loader processes; 0 decodes on a thread.
          unit: what the progress counts; "" shows none.
          stopped: asked after each batch; once true, the rest stays unread.

        Returns:
          {column: [len(rows), ...]}, NaN where a picture is unreadable, and readable, bool
          [len(rows)].
        """
        arrays, readable = self.empty(len(rows)), np.zeros(len(rows), bool)
        how = {"max_pixels": max_pixels, "workers": workers, "unit": unit}
        with contextlib.closing(self.stream(source, rows, **how)) as stream:
            for computed in stream:
                self.place(arrays, computed)
                readable[computed.rows] = True
                if stopped():
                    break
        return arrays, readable

    def stream(
        self, source: Source, rows: np.ndarray, *, max_pixels: int, workers: int = 0, unit: str = ""
    ) -> Iterator[Computed]:
        """Computes features batch by batch, in any order and without the unreadable pictures.

        The arguments are those of `read`; `Computed.rows` are places in `rows`.
        """
        places, full = np.arange(len(rows)), self._lengths[0]
        if self._spread:
            slots = local_groups(self._mesh, full)
            places = own_rows(len(rows), full, slots)
        decoding = DecodeSpec(max_pixels, self.request.channels)
        chosen = np.asarray(rows)[places]
        read = stream_pictures(source, chosen, self.request.fit, decoding=decoding, workers=workers)
        with contextlib.closing(read):
            pictures = ((int(p), image) for p, (_, image) in zip(places, read, strict=True))
            if unit and is_main():
                pictures = with_progress(pictures, len(places), unit=unit)
            if not self._spread:
                yield from self.run(pictures)
                return
            counted, fit = self._counted(pictures), self.request.fit
            shape = *(fit.patch_size * side for side in fit.grid), self.request.channels
            yield from self._run(batches_in_step(counted, len(rows), full, slots, shape))

    def run(self, pictures: Iterator[Picture]) -> Iterator[Computed]:
        """Computes features of (row, pixels or None) with this process's devices alone."""
        return self._run(batches_by_size(self._counted(pictures), self._lengths))

    def place(self, arrays: Columns, computed: Computed, first_row: int = 0) -> None:
        """Writes features into arrays (see `empty`) that begin with row `first_row`."""
        places, (height, width) = computed.rows - first_row, computed.grid
        # The places, in the greatest grid, of the patches of a smaller one.
        cells = np.add.outer(np.arange(height) * self.request.fit.grid[1], np.arange(width)).ravel()
        inside = places[:, None], cells
        for name, kind, _ in self.request.columns:
            masked = kind == "patches" and self.request.has_mask
            arrays[name][inside if masked else places] = computed.columns[name]
        if self.request.has_mask:
            arrays["mask"][inside] = True

    def rates(self) -> tuple[float, float, float]:
        """Pictures a second, and the shares of time spent waiting for pictures and for devices.

        Measured since the first batch arrived, or since the last call; 0 pictures a second if
        there were only the batches under way by then.
        """
        reading, share = self._reading.read(), "data_wait_share"
        return reading["images_per_s"], reading[share], self._computing.read()[share]

    def _run(self, batches: Iterator[Batch]) -> Iterator[Computed]:
        under_way: deque[tuple[Batch, Any]] = deque()
        for batch in batches:
            with jax.set_mesh(self._mesh):  # left before each yield: the caller has its own mesh
                arrays = {"images": batch.images, "readable": batch.readable}
                under_way.append((batch, self._forward(**put_batch(arrays, self._mesh))))
            if len(under_way) > _IN_FLIGHT:
                yield self._fetch(*under_way.popleft())
        for batch, out in under_way:
            yield self._fetch(batch, out)

    def _counted(self, pictures: Iterator[Picture]) -> Iterator[Picture]:
        """Measures the time spent waiting for pictures."""
        while True:
            with self._reading:
                picture = next(pictures, None)
            if picture is None:
                return
            self._reading.step()
            yield picture

    def _fetch(self, batch: Batch, out: Any) -> Computed:
        with self._computing:
            jax.block_until_ready(out)
        if not self._warm:  # the time before was compilation
            self._warm = True
            self._reading.restart()
            self._computing.restart()
        count, patch = len(batch.rows), self.request.fit.patch_size
        keep = np.flatnonzero(np.asarray(out[1])[:count])
        chosen = slice(count) if len(keep) == count else keep  # a slice copies nothing
        columns = {name: np.asarray(values)[chosen] for name, values in out[0].items()}
        height, width = batch.images.shape[1:3]
        return Computed(np.array(batch.rows)[keep], columns, (height // patch, width // patch))


def with_progress(
    items: Iterator[Any], total: int, *, before: int = 0, unit: str = "picture"
) -> Iterator[Any]:
    """The items, with a line or a bar that says how many of `total` have come."""
    progress, began = Progress(total, start_step=before, unit=unit), time.monotonic()
    for count, item in enumerate(items, start=1):
        yield item
        if count % 16 == 0 or before + count == total:
            rate = count / (time.monotonic() - began)
            progress.update(before + count, images_per_s=rate)
    progress.close()
