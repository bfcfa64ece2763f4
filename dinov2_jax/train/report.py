"""What a run leaves to be looked at: crops.png and report.html."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from dinov2_jax.data.decode import DecodeSpec
from dinov2_jax.data.preprocess import Preprocessing
from dinov2_jax.data.reader import Batch
from dinov2_jax.data.sources import openmoji
from dinov2_jax.data.sources.source import Source
from dinov2_jax.data.stream import stream_pictures
from dinov2_jax.features.extractor import Extractor
from dinov2_jax.features.request import central_square
from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.ops.seeds import seed_key
from dinov2_jax.parallel.mesh import own_mesh
from dinov2_jax.parallel.processes import is_main
from dinov2_jax.run.files import write_bytes
from dinov2_jax.train.setup import make_photometric
from dinov2_jax.viz.pca import pca_rgb
from dinov2_jax.viz.report import write_report
from dinov2_jax.viz.sheet import as_rgb, crop_sheet
from dinov2_jax.weights.load import Backbone

PICTURES = 8


def write_crop_sheet(folder: Path, config: ConfigDict, batch: Batch) -> None:
    """crops.png: what the model is shown of the first pictures, to be looked at before the wait."""
    first = {name: batch[name][:PICTURES] for name in ("global_crops", "local_crops")}
    with jax.set_mesh(own_mesh(jax.sharding.get_mesh())):
        seen = jax.jit(make_photometric(config))(seed_key(config.seed), first)
    crops = (as_rgb(_to_uint8(seen[name], config.colour)) for name in first)
    write_bytes(folder / "crops.png", crop_sheet(*crops))


def _to_uint8(images: Any, colour: ConfigDict) -> np.ndarray:
    """Undoes the normalisation: float [..., C] -> uint8."""
    pixels = np.asarray(images) * np.array(colour.std) + np.array(colour.mean)
    return np.clip(np.rint(pixels * 255), 0, 255).astype(np.uint8)


def pca_pairs(
    config: ConfigDict, model: VisionTransformer, teacher: Any, source: Source
) -> list[tuple]:
    """(picture, joint PCA of its patch features as colours) of a few evenly spread pictures."""
    colour, patch = config.colour, config.model.patch_size
    side = max(config.eval.image_size, 8 * patch) // patch * patch  # at least 8 x 8 patches
    preprocessing = Preprocessing(side, side, tuple(colour.mean), tuple(colour.std))
    backbone = Backbone(model, teacher["backbone"], preprocessing, {}, "teacher", "run", ())
    request = central_square(model, preprocessing, ("patches",), config.model.in_channels)
    chosen = np.linspace(0, len(source) - 1, min(PICTURES, len(source))).astype(int)
    mesh, most = jax.sharding.get_mesh(), config.data.max_pixels
    extractor = Extractor(backbone, request, batch_size=len(chosen), mesh=mesh)
    columns, readable = extractor.read(source, chosen, max_pixels=most)
    if not readable.any():
        return []
    colours = pca_rgb(columns["patches"][readable], request.fit.grid)
    decoding = DecodeSpec(most, request.channels)
    read = stream_pictures(source, chosen[readable], request.fit, decoding=decoding, workers=0)
    return [
        (as_rgb(image), coloured)
        for (_, image), coloured in zip(read, colours, strict=True)
        if image is not None
    ]


def report(
    folder: Path,
    config: ConfigDict,
    model: VisionTransformer,
    teacher: Any,
    source: Source,
    notes: list[str],
) -> None:
    """Writes report.html from what the run directory holds and the teacher as it is now.

    All processes take part in the pictures' features, and process 0 writes.
    """
    pairs = pca_pairs(config, model, teacher, source)
    if not is_main():
        return
    sheet = folder / "crops.png"
    write_report(
        folder,
        config=config.to_dict(),
        crops_png=sheet.read_bytes() if sheet.exists() else None,
        pca_pairs=pairs,
        attribution=openmoji.attribution() if config.data.source == "openmoji" else None,
        notes=[*notes, *skipped_pictures(folder)],
    )
    print(f"report: {folder / 'report.html'}")


def skipped_pictures(folder: Path, most: int = 100) -> list[str]:
    """One line a picture of skipped.txt, for the report; the file itself has all of them."""
    file = folder / "skipped.txt"
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").splitlines()
    found = [f"skipped {line.replace(chr(9), ': ', 1)}" for line in lines[:most]]
    more = len(lines) - most
    return found + ([f"and {more:,} more, all in skipped.txt"] if more > 0 else [])
