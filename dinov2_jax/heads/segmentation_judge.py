"""Judging a segmentation head on pictures with masks, by sliding windows."""

import collections
import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from dinov2_jax.data.decode import BadImage, DecodeSpec
from dinov2_jax.data.dense_loader import Split, load_pair
from dinov2_jax.data.preprocess import Preprocessing
from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.heads.dense_forward import Form, Trained, head_output
from dinov2_jax.heads.segmentation_recipes import SegmentationRecipe
from dinov2_jax.heads.windows import segment
from dinov2_jax.metrics.segmentation import Areas, add_areas, count_areas
from dinov2_jax.models.maps import feature_levels
from dinov2_jax.models.vit import VisionTransformer, unstack_blocks
from dinov2_jax.parallel.mesh import make_mesh
from dinov2_jax.parallel.placement import gather, put_batch
from dinov2_jax.run.progress import Progress

_READ_AHEAD = 8  # pictures
_FORM = Form("segmentation")


class Judged(NamedTuple):
    """What `judge` finds.

    Attributes:
      areas: pixels by class of all pictures together.
      readable: number of pictures.
      shown: (row, picture, predicted and true classes) of some pictures of this process.
    """

    areas: Areas
    readable: int
    shown: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]


class Segmenter:
    """A segmentation head with its backbone on the devices of this process."""

    def __init__(
        self,
        model: VisionTransformer,
        params: Any,
        preprocessing: Preprocessing,
        trained: Trained,
        blocks: Sequence[int],
        recipe: SegmentationRecipe,
        *,
        mesh: Mesh | None = None,
    ) -> None:
        """mesh: all local devices by default; the windows of a picture are split over it."""
        self._mesh = mesh or make_mesh(devices=jax.local_devices())
        whole = jax.NamedSharding(self._mesh, jax.P())
        self._arrays = jax.device_put((unstack_blocks(params), trained), whole)
        self._how = model, tuple(blocks)
        self._preprocessing, self._recipe = preprocessing, recipe

    def forward(self, windows: np.ndarray) -> Array:
        """Normalised [n, h, w, C] -> logits of patches [n, h', w', K] on one device."""
        with jax.set_mesh(self._mesh):
            batch = put_batch({"images": windows}, self._mesh)
            logits = _logits(*self._how, *self._arrays, batch["images"])
        return jax.device_put(logits, self._mesh.devices.flat[0])

    def classes(self, image: np.ndarray) -> np.ndarray:
        """uint8 [H, W, C] -> the class of every pixel [H, W]."""
        recipe = self._recipe
        views = recipe.views(image, self._preprocessing)
        how = recipe.crop, recipe.stride, self._mesh.devices.size
        return segment(self.forward, views, image.shape[:2], *how)


@functools.partial(jax.jit, static_argnames=("model", "blocks"))
def _logits(
    model: VisionTransformer, blocks: tuple[int, ...], params: Any, trained: Trained, images: Array
) -> Array:
    levels = feature_levels(model, params, images, blocks, norm=True)
    return head_output(_FORM, trained, levels)


def judge(
    segmenter: Segmenter,
    split: Split,
    classes: int,
    decoding: DecodeSpec,
    *,
    show: int = 0,
    description: str = "",
) -> Judged:
    """Counts pixels by class over all pictures; processes share the pictures.

    Args:
      classes: K.
      show: how many pictures to return, evenly spread.
      description: of the progress on the console; "" shows none.
    """
    mine = range(jax.process_index(), len(split), jax.process_count())
    wanted = {mine[i] for i in np.linspace(0, len(mine) - 1, min(show, len(mine))).astype(int)}
    zeros = np.zeros(classes, np.int64)
    areas, shown, readable = [Areas(zeros, zeros, zeros)], [], 0
    bar = Progress(len(mine), unit=description) if description else None
    for done, (row, pair) in enumerate(_read_ahead(split, mine, decoding), start=1):
        if pair is not None:
            image, true = pair
            found = segmenter.classes(image)
            areas = [add_areas([*areas, count_areas(found, true, classes)])]
            readable += 1
            if row in wanted:
                shown.append((row, image, found, true))
        if bar:
            bar.update(done)
    if bar:
        bar.close()
    return _of_all(Judged(areas[0], readable, shown))


def _read_ahead(
    split: Split, rows: Sequence[int], decoding: DecodeSpec
) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray] | None]]:
    """Pictures and masks in their order, None for one that cannot be read; threads read ahead."""
    with ThreadPoolExecutor(2) as pool:
        waiting = collections.deque[Any]()
        for row in rows:
            waiting.append((row, pool.submit(_pair, split, row, decoding)))
            if len(waiting) > _READ_AHEAD:
                row, one = waiting.popleft()
                yield row, one.result()
        for row, one in waiting:
            yield row, one.result()


def _pair(split: Split, row: int, decoding: DecodeSpec) -> tuple[np.ndarray, np.ndarray] | None:
    try:
        return load_pair(split, row, decoding)
    except (BadImage, SourceError):
        return None


def _of_all(found: Judged) -> Judged:
    """Sums what the processes have judged."""
    if jax.process_count() == 1:
        return found
    mesh = make_mesh()
    own = np.concatenate([*found.areas, [found.readable]]).astype(np.int64)
    # As halves, because devices have no 64-bit integers.
    parts = np.asarray(gather(own.view(np.int32), mesh).addressable_data(0))
    owners = [device.process_index for device in mesh.devices.flat]
    places = [owners.index(process) for process in range(jax.process_count())]
    whole = sum(np.ascontiguousarray(parts[place]).view(np.int64) for place in places)
    return Judged(Areas(*np.split(whole[:-1], 3)), int(whole[-1]), found.shown)
