"""`extract`: features of pictures as arrays."""

import dataclasses
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dinov2_jax.config.files import local_path
from dinov2_jax.data.decode import MAX_PIXELS, DecodeSpec, why_unreadable
from dinov2_jax.data.sources.given import Arrays, Paths, Pictures
from dinov2_jax.data.sources.open import open_source
from dinov2_jax.data.sources.source import Source, SourceError
from dinov2_jax.features.extractor import Extractor
from dinov2_jax.features.request import make_request, require_known
from dinov2_jax.parallel.mesh import make_mesh
from dinov2_jax.weights.load import Backbone, load

ON_ERROR = ("raise", "nan")


@dataclasses.dataclass(frozen=True)
class Features:
    """Row i of every array belongs to picture i; `features["cls"]` is one of the arrays.

    Attributes:
      arrays: by column; fp32, NaN where a picture is unreadable. "mask", bool [n, P], says which
        places of "patches" belong to a picture where sizes differ.
      names: one for each picture.
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
    on_error: str | None = None,
) -> Features:
    """Computes features of pictures that fit into memory; the task "embed" takes any number.

    Args:
      backbone: from `load`, or what `load` takes.
      pictures: one picture: a path, a PIL picture, or uint8 [H, W, 3], [H, W, 1] or [H, W]; several
        pictures: a list of one of these, or uint8 [n, H, W, 3]; many pictures: a folder, a text
        file with one path a line, a tar or ArrayRecord file, or a source (see `open_source`).
      features: some of "cls" [n, D], "registers" [n, R, D], "mean_patch" [n, D] and "patches"
        [n, P, D].
      layers: blocks, from the end if negative; with several the columns are "cls_block_5", ...
      norm: features after the backbone's final norm, or before it.
      policy: "center_crop", "resize" or "pad"; see `dinov2_jax.data.fit.Fit`. A picture never
        shares its attention with padding but the few px that complete its last patches.
      size: px; () for what the weights say.
      batch_size: pictures at a time over all devices, rounded up to a multiple of these.
      dtype: of the matrix products; None: the backbone's.
      workers: loader processes; 0 decodes on a thread. Arrays and PIL pictures need none.
      max_pixels: larger pictures are unreadable.
      devices: all of this process by default.
      on_error: "raise" for an unreadable picture, or "nan" for a row of NaN. None: "raise" for
        pictures passed one by one; "nan" and a warning for a folder, a file of many or a source.

    Returns:
      `Features`. The program for a backbone, request and shape of batch is compiled once.

    Raises:
      ConfigError: features, layers, policy, size or on_error that cannot be had.
      SourceError: no pictures, pictures of an unknown kind, or an unreadable picture.
      FileNotFoundError: a path that does not exist.
      WeightsError: see `load`.

    Example:
      >>> found = dinov2_jax.extract("runs/first", "photos", features=("cls", "patches"))
      >>> found["cls"].shape, found["patches"].shape, found.names[0]
      ((8, 64), (8, 4, 64), '0.jpg')
    """
    backbone = backbone if isinstance(backbone, Backbone) else load(backbone)
    if on_error is not None:
        require_known("on_error", (on_error,), ON_ERROR)
    request = make_request(backbone, features, layers, norm, policy, size)
    source = as_source(pictures, request.channels, missing_ok=on_error == "nan")
    mesh = None if devices is None else make_mesh(devices=devices)
    most = min(batch_size, len(source))
    extractor = Extractor(backbone, request, batch_size=most, dtype=dtype, mesh=mesh)
    held = isinstance(source, Arrays | Pictures)
    how = {"max_pixels": max_pixels, "workers": 0 if held else workers}
    arrays, readable = extractor.read(source, np.arange(len(source)), **how)
    decoding = DecodeSpec(max_pixels, request.channels)
    lost = np.flatnonzero(~readable).tolist()
    reasons = {row: why_unreadable(source, row, decoding) or "unreadable before" for row in lost}
    names = [source.name(row) for row in range(len(source))]
    if reasons and on_error != "nan":
        row, reason = next(iter(reasons.items()))
        what = f"{len(lost):,} of {len(names):,} pictures cannot be read, such as {names[row]}"
        if on_error == "raise" or held or isinstance(source, Paths):
            raise SourceError(
                f'{what} ({reason}); leave them out, or pass on_error="nan" for rows of NaN'
            )
        warnings.warn(
            f"{what} ({reason}); their rows are NaN, see Features.unreadable", stacklevel=2
        )
    return Features(arrays, names, reasons, request.fit.grid)


def as_source(pictures: Any, channels: int = 3, *, missing_ok: bool = False) -> Source:
    """Opens whatever `extract` takes as pictures.

    Args:
      pictures: see `extract`.
      channels: what the backbone takes; arrays have 1, 3 or this many.
      missing_ok: paths that do not exist are unreadable pictures.

    Raises:
      SourceError: no pictures, a URL, several kinds in one list, or an unknown kind.
      FileNotFoundError: paths that do not exist.
    """
    if isinstance(pictures, str | Path):
        _refuse_urls([pictures])
        return _source_at(os.fspath(local_path(pictures, "pictures")))
    if isinstance(pictures, Image.Image):
        return Pictures([pictures])
    if isinstance(pictures, np.ndarray) and pictures.dtype != object:
        return Arrays([pictures] if pictures.ndim in (2, 3) else list(pictures), channels)
    if isinstance(pictures, list | tuple):
        return _listed(pictures, channels, missing_ok)
    if all(hasattr(pictures, name) for name in ("__len__", "__getitem__", "name")):
        return pictures
    raise SourceError(
        f"pictures of type {type(pictures).__name__} are not known; give a folder, a path, a PIL "
        "picture, an array uint8 [H, W, 3], a list of these, or what open_source returns"
    )


def _listed(pictures: Sequence[Any], channels: int, missing_ok: bool) -> Source:
    if not pictures:
        raise SourceError("the list of pictures is empty; give at least one path or array")
    kinds = dict.fromkeys(map(_kind, pictures))
    if len(kinds) > 1:
        raise SourceError(
            f"the list of pictures mixes {' and '.join(kinds)}; give a list of one kind"
        )
    if "paths" not in kinds:
        return Pictures(pictures) if "PIL pictures" in kinds else Arrays(pictures, channels)
    _refuse_urls(pictures)
    source = Paths(pictures)
    if not missing_ok:
        source.require_all()
    return source


def _kind(picture: Any) -> str:
    if isinstance(picture, str | Path):
        return "paths"
    return "PIL pictures" if isinstance(picture, Image.Image) else "arrays"


def _refuse_urls(paths: Sequence[Any]) -> None:
    for path in map(str, paths):
        if "://" in path:
            raise SourceError(f"{path} is a URL; download the picture and give the file's path")


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
