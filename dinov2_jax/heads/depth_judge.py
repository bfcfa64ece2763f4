"""Judging a depth head on pictures with depths, as the reference does (after Eigen et al.)."""

import collections
import functools
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from dinov2_jax.data.decode import BadImage, DecodeSpec
from dinov2_jax.data.dense_loader import Split, load_pair
from dinov2_jax.data.depth_crops import fixed_box
from dinov2_jax.data.photometric import normalize
from dinov2_jax.data.preprocess import Preprocessing
from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.heads.dense_forward import Form, Trained, at_size, head_output
from dinov2_jax.heads.depth_recipes import DepthRecipe
from dinov2_jax.metrics.depth import NAMES, depth_metrics, valid_pixels
from dinov2_jax.models.maps import feature_levels
from dinov2_jax.models.vit import VisionTransformer, unstack_blocks
from dinov2_jax.parallel.mesh import make_mesh
from dinov2_jax.parallel.placement import gather, put_batch
from dinov2_jax.run.progress import Progress

_READ_AHEAD = 2  # batches

Pair = tuple[int, np.ndarray, np.ndarray]  # row, picture uint8 [H, W, C], metres [H, W]


class Judged(NamedTuple):
    """What `judge` finds.

    Attributes:
      metrics: [pictures, 9] in the order of NAMES; nan for pictures without a valid pixel, and for
        those that cannot be read.
      readable: bool [pictures].
      shown: (row, picture, predicted and true metres) of some pictures that this process judged.
    """

    metrics: np.ndarray
    readable: np.ndarray
    shown: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]


class DepthReader:
    """A depth head with its backbone on the devices of this process."""

    def __init__(
        self,
        model: VisionTransformer,
        params: Any,
        preprocessing: Preprocessing,
        form: Form,
        trained: Trained,
        blocks: Sequence[int],
        *,
        flip: bool,
        mesh: Mesh | None = None,
    ) -> None:
        """flip: averages with the mirrored picture's depth; mesh: all local devices by default."""
        self._mesh = mesh or make_mesh(devices=jax.local_devices())
        whole = jax.NamedSharding(self._mesh, jax.P())
        self._arrays = jax.device_put((unstack_blocks(params), trained), whole)
        self._how = model, preprocessing, form, tuple(blocks), flip

    def depth(self, images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """uint8 [B, h, w, C] -> metres, fp32 [B, H, W]; compiles once for each shape."""
        with jax.set_mesh(self._mesh):
            batch = put_batch({"images": images}, self._mesh)
            return np.asarray(_depth(*self._how, *self._arrays, batch["images"], size))


@functools.partial(
    jax.jit, static_argnames=("model", "preprocessing", "form", "blocks", "flip", "size")
)
def _depth(
    model: VisionTransformer,
    preprocessing: Preprocessing,
    form: Form,
    blocks: tuple[int, ...],
    flip: bool,
    params: Any,
    trained: Trained,
    images: Array,
    size: tuple[int, int],
) -> Array:
    images = normalize(images, preprocessing.mean, preprocessing.std)

    def read(images: Array) -> Array:
        levels = feature_levels(model, params, images, blocks, norm=False)
        return at_size(form, head_output(form, trained, levels), size)

    depth = read(images)
    return (depth + read(images[:, :, ::-1])[:, :, ::-1]) / 2 if flip else depth


# --------------------------------------------------------------------------------------- pictures
def judged_pair(split: Split, row: int, recipe: DepthRecipe, decoding: DecodeSpec) -> Pair | None:
    """A picture and its depth as they are judged; None where one cannot be read."""
    try:
        image, true = load_pair(split, row, decoding)
    except (BadImage, SourceError):
        return None
    box = fixed_box(recipe.test_frame, *true.shape)
    image, true = np.ascontiguousarray(image[box]), true[box]
    if recipe.test_size:
        height, width = recipe.test_size
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        image = resized.reshape(height, width, -1)
    return row, image, true


def read_pairs(
    split: Split, rows: Sequence[int], recipe: DepthRecipe, decoding: DecodeSpec, ahead: int
) -> Iterator[Pair | None]:
    """`judged_pair` of the rows in their order; threads read up to `ahead` pictures before."""
    with ThreadPoolExecutor(min(8, ahead)) as pool:
        waiting = collections.deque[Any]()
        for row in rows:
            waiting.append(pool.submit(judged_pair, split, row, recipe, decoding))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        for one in waiting:
            yield one.result()


def batches_of(pairs: Iterator[Pair | None], count: int) -> Iterator[list[Pair]]:
    """Groups readable pictures of equal sizes, up to `count` that follow each other."""
    readable = (pair for pair in pairs if pair is not None)
    for _, group in itertools.groupby(readable, key=lambda p: (p[1].shape, p[2].shape)):
        while batch := list(itertools.islice(group, count)):
            yield batch


def predict_batch(reader: DepthReader, batch: Sequence[Pair], count: int) -> np.ndarray:
    """Metres [len(batch), H, W]; a short batch is filled, so that no other program is compiled."""
    images = np.stack([image for _, image, _ in batch])
    missing = count - len(images)
    if missing:
        images = np.concatenate([images, np.repeat(images[-1:], missing, axis=0)])
    return reader.depth(images, batch[0][2].shape)[: len(batch)]


# ----------------------------------------------------------------------------------------- judging
def judge(
    reader: DepthReader,
    split: Split,
    recipe: DepthRecipe,
    *,
    batch_size: int,
    decoding: DecodeSpec,
    show: int = 0,
    description: str = "",
) -> Judged:
    """Nine metrics of every picture; processes share the pictures.

    Args:
      batch_size: pictures at once, over the devices of a process.
      show: how many pictures to return, evenly spread.
      description: of the progress on the console; "" shows none.
    """
    mine = range(jax.process_index(), len(split), jax.process_count())
    table = np.full((len(split), len(NAMES)), np.nan, np.float64)
    readable = np.zeros(len(split), np.float64)
    bar = Progress(len(mine), unit=description) if description else None
    done, shown = 0, []
    wanted = {mine[i] for i in np.linspace(0, len(mine) - 1, min(show, len(mine))).astype(int)}
    pairs = read_pairs(split, mine, recipe, decoding, _READ_AHEAD * batch_size)
    for batch in batches_of(pairs, batch_size):
        depths = predict_batch(reader, batch, batch_size)
        for (row, image, true), depth in zip(batch, depths, strict=True):
            if row in wanted:
                shown.append((row, image, depth, true))
            table[row] = list(metrics_of(depth, true, recipe).values())
            readable[row] = 1
        done += len(batch)
        if bar:
            bar.update(done)
    if bar:
        bar.close()
    return _of_all(Judged(table, readable > 0, shown))


def metrics_of(depth: np.ndarray, true: np.ndarray, recipe: DepthRecipe) -> dict[str, float]:
    """The nine metrics of one picture, where the recipe judges it."""
    if recipe.test_most_m:
        depth = np.minimum(depth, recipe.test_most_m)
    return depth_metrics(depth, true, valid_pixels(true, recipe.low, recipe.high, recipe.judged))


def _of_all(found: Judged) -> Judged:
    """Joins what the processes have judged."""
    count = jax.process_count()
    if count == 1:
        return found
    mesh = make_mesh()
    rows = np.concatenate([found.metrics, found.readable[:, None]], axis=1)
    # As bytes, because devices have no 64-bit floats.
    parts = np.asarray(gather(rows.reshape(-1).view(np.int32), mesh).addressable_data(0))
    owners = [device.process_index for device in mesh.devices.flat]
    whole = np.empty_like(rows)
    for process in range(count):
        part = np.ascontiguousarray(parts[owners.index(process)]).view(np.float64)
        whole[process::count] = part.reshape(rows.shape)[process::count]
    return Judged(whole[:, :-1], whole[:, -1] > 0, found.shown)
