"""Task "visualize": features, attention and predictions of pixels as PNG files and one page."""

import time
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from dinov2_jax.config.files import ConfigError, local_path
from dinov2_jax.config.files import nearest as nearest_name
from dinov2_jax.data.sources.open import open_source
from dinov2_jax.data.sources.source import Source, SourceError, notes_of
from dinov2_jax.features.extractor import with_progress
from dinov2_jax.heads.dense_head import DenseHead, load_dense
from dinov2_jax.models.layers import compute_dtype
from dinov2_jax.run.lock import locked
from dinov2_jax.viz import figures as draw
from dinov2_jax.viz.gallery import Figure, write_gallery
from dinov2_jax.viz.look import Picture, Seen, leaf_through, look, read_pictures
from dinov2_jax.viz.pca import pca_pictures
from dinov2_jax.viz.predictions import depth_figures, mask_figures
from dinov2_jax.weights.architecture import in_channels
from dinov2_jax.weights.load import Backbone, load_configured


def visualize(config: ConfigDict, workdir: str) -> Path:
    """Draws features and attention of `config.weights` for the pictures of `config.data`.

    Args:
      config: configs/visualize.py, checked against viz/rules.py.
      workdir: where the PNG files and pictures.html go.

    Returns:
      the page's path.

    Raises:
      ConfigError: a setting that cannot be used.
      WeightsError, CheckpointError: weights that cannot be read.
      SourceError: no pictures, or none that can be decoded.
    """
    started = time.monotonic()
    _check(config, workdir)
    backbone = load_configured(config, config.weights, compute_dtype(config.compute_dtype))
    _check_model(config, backbone)
    heads = _heads(config, backbone)
    data = config.data
    source = open_source(data.source, data.path, split=data.split, cache_dir=data.cache_dir or None)
    chosen = choose(source, config.pictures, config.names)
    patch_px = backbone.model.patch_size
    pictures, notes = read_pictures(source, chosen, config.image_px, patch_px, data.max_pixels)
    if not pictures:
        raise SourceError(f"none of the {len(chosen)} pictures can be used: {notes[0]}")
    block = config.block % backbone.model.depth
    seen = list(with_progress(look(backbone, pictures, block), len(pictures)))
    figures, more = _of_pictures(config, pictures, seen, block)
    figures += _of_heads(heads, backbone, pictures)
    whole, others = _of_folder(config, backbone, source, pictures)
    facts = _facts(config, backbone, pictures)
    notes = [*notes_of(source), *notes, *more, *others]
    folder, settings = local_path(workdir, "--workdir"), config.to_dict()
    figures += whole
    with locked(folder):  # two galleries in one folder would be mixed
        page = write_gallery(folder, "What the model sees", facts, figures, notes, settings)
    print(f"{len(figures)} pictures in {time.monotonic() - started:.0f} s: {page}")
    return page


def choose(source: Source, count: int, names: str = "") -> list[int]:
    """Records of the named pictures, or of `count` evenly spread ones.

    Raises:
      ConfigError: an unknown name; the message has the nearest one.
    """
    if not names.strip():
        return np.linspace(0, len(source) - 1, min(count, len(source))).astype(int).tolist()
    known = {source.name(record): record for record in range(len(source))}
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    wanted = [names] if names in known else wanted  # a name may hold commas
    for name in wanted:
        if name not in known:
            raise ConfigError(
                f"config.names has {name!r}, which is not among the {len(known):,} pictures; did "
                f"you mean {nearest_name(name, list(known))!r}?"
            )
    return [known[name] for name in wanted]


def _of_pictures(
    config: ConfigDict, pictures: list[Picture], seen: list[Seen], block: int
) -> tuple[list[Figure], list[str]]:
    """Figures of the chosen pictures, and notes on missing ones."""
    threshold, side = config.pca.threshold, config.pca.side
    matching, few = config.matching, config.attention.pictures
    pca = pca_pictures([view.patches for view in seen], threshold, side)
    figures, notes = [draw.pca_figure(pictures, pca, threshold, side)], []
    if matching.pairs and len(pictures) < 2:
        notes.append("no matches: they need two pictures")
    elif matching.pairs:
        masks = pca.foreground if matching.foreground else None
        how = {name: matching[name] for name in ("pairs", "lines", "spacing")}
        figures += draw.match_figures(pictures, seen, masks, **how)
    return figures + draw.attention_figures(pictures[:few], seen[:few], block), notes


def _heads(config: ConfigDict, backbone: Backbone) -> list[DenseHead]:
    """The heads of the configuration; refuses those that do not fit, before pictures are read."""
    heads, depth = [], config.depth
    if config.segmentation.head:
        heads.append(load_dense(config.segmentation.head, "segmentation"))
    if depth.head:
        told = {"low": depth.low, "high": depth.high} if depth.high else {}
        heads.append(load_dense(depth.head, "depth", **told))
    for head in heads:
        head.blocks_of(backbone.model)
    return heads


def _of_heads(heads: list[DenseHead], backbone: Backbone, pictures: list[Picture]) -> list[Figure]:
    """Figures of what heads predict for the chosen pictures."""
    figures = []
    for head in heads:
        found = head.predict(backbone, [picture.pixels for picture in pictures])
        figures += (depth_figures if head.is_depth else mask_figures)(pictures, found, head)
    return figures


def _of_folder(
    config: ConfigDict, backbone: Backbone, source: Source, pictures: list[Picture]
) -> tuple[list[Figure], list[str]]:
    """Figures of the whole folder, and notes on missing ones."""
    if not config.folder_pictures:
        return [], []
    chosen = choose(source, config.folder_pictures)
    records = sorted({*chosen, *(picture.record for picture in pictures)})
    if len(records) < 3:
        return [], ["no neighbours and no plane: they need three pictures"]
    album = leaf_through(backbone, source, records, config.batch_size, config.data.max_pixels)
    lost = len(records) - len(album.records)
    notes = [f"warning: {lost} pictures of the folder cannot be decoded"] if lost else []
    neighbours = draw.neighbour_figure(pictures, album, config.neighbours.k)
    return [neighbours, draw.plane_figure(album)], notes


def _facts(config: ConfigDict, backbone: Backbone, pictures: list[Picture]) -> list[str]:
    model = backbone.model
    facts = [
        f"Weights: {backbone.source}, width {model.dim}, {model.depth} blocks, {model.heads} "
        f"heads, patches of {model.patch_size} px, {model.registers} registers",
        f"Pictures: {config.data.source} {config.data.path}, {len(pictures)} of them in detail, "
        f"shorter side {config.image_px} px",
    ]
    if config.data.source == "openmoji":
        from dinov2_jax.data.sources.openmoji import attribution

        facts.append(attribution())
    return facts


def _check(config: ConfigDict, workdir: str) -> None:
    if not workdir:
        raise ConfigError("pictures need a folder to go to; add --workdir=runs/pictures")
    if not config.weights:
        raise ConfigError(
            "config.weights is empty; add --config.weights=dinov2_vits14, or a path of weights, "
            "such as runs/quickstart"
        )


def _check_model(config: ConfigDict, backbone: Backbone) -> None:
    patch, depth = backbone.model.patch_size, backbone.model.depth
    channels = in_channels(backbone.params, patch)
    if channels != 3:
        raise ConfigError(f"{backbone.source} takes {channels} channels; pictures have 3, RGB")
    if config.image_px % patch:
        near = max(1, round(config.image_px / patch)) * patch
        raise ConfigError(
            f"config.image_px {config.image_px} is no multiple of the weights' patch of {patch} "
            f"px; nearest valid: --config.image_px={near}"
        )
    if not -depth <= config.block < depth:
        raise ConfigError(
            f"config.block is {config.block}, but the weights have {depth} blocks; choose 0 to "
            f"{depth - 1}, or -1 for the last"
        )
