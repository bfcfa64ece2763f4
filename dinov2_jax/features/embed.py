"""Task "embed": features of any number of pictures, in a folder that survives kills.

Each process computes a run of shards, which are runs of rows. A shard that is on disk and marked is
never computed again, and all others are, so no kill and no change of batch size, devices or
processes loses or doubles a row. A second job in a folder waits, and then finds the features.
"""

import contextlib
import dataclasses
import itertools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dinov2_jax.config.files import ConfigError, local_path, to_json
from dinov2_jax.data.decode import DecodeSpec, why_unreadable
from dinov2_jax.data.fingerprint import names_fingerprint
from dinov2_jax.data.sources.open import open_source
from dinov2_jax.data.sources.source import Source, notes_of
from dinov2_jax.data.stream import Picture, stream_pictures
from dinov2_jax.features.extractor import Columns, Extractor, with_progress
from dinov2_jax.features.request import Request, make_request
from dinov2_jax.features.store import (
    Layout,
    Ledger,
    NpyWriter,
    ParquetWriter,
    ShardsError,
    Writer,
    rows_of_shards,
    weights_fingerprint,
)
from dinov2_jax.models.layers import compute_dtype
from dinov2_jax.parallel.processes import from_main, is_main, main_first, require_same
from dinov2_jax.run.lock import locked
from dinov2_jax.weights.load import Backbone, load_configured


def embed(config: ConfigDict, workdir: str) -> None:
    """Writes features of all pictures of `config.data` to `workdir`, or continues there.

    Raises:
      ConfigError: a setting is missing or cannot be used.
      SourceError: no pictures.
      WeightsError: weights that cannot be read.
      ShardsError: the folder's features were made otherwise.
      ImportError: a package for the format is missing.
    """
    if not workdir:
        raise ConfigError("embedding needs a place for the features; add --workdir=features/<name>")
    if not config.weights:
        raise ConfigError(
            "no weights given; add --config.weights=<name, file, directory, run or bundle>"
        )
    dtype = compute_dtype(config.compute_dtype)
    backbone = load_configured(config, config.weights, dtype)
    request = make_request(
        backbone, config.features, config.layers, config.norm, config.policy, config.size
    )
    data = config.data
    source = open_source(data.source, data.path, split=data.split, cache_dir=data.cache_dir or None)
    for note in notes_of(source) if is_main() else ():
        print(f"note: {note}", flush=True)
    origin = {"weights": backbone.source, "source": data.source, "path": data.path}
    folder = local_path(workdir, "--workdir")
    if not embed_pictures(config, folder, backbone, request, source, origin):
        print(f"{folder} is complete: {len(source):,} pictures; nothing is left to do")


def embed_pictures(
    config: ConfigDict,
    folder: Path,
    backbone: Backbone,
    request: Request,
    source: Source,
    origin: Mapping[str, str],
) -> bool:
    """Writes the wanted features of a source to a folder, or continues there.

    Args:
      config: fields of configs/embed.py: batch_size, compute_dtype, store, data.workers,
        data.max_pixels.
      folder: where manifest.json, names.txt and the features go.
      backbone, request, source: the weights, the wanted features and the pictures.
      origin: where weights and pictures came from; for the reader of the manifest.

    Returns:
      Whether anything was left to do.

    Raises:
      ShardsError: the folder's features were made otherwise.
    """
    dtype = compute_dtype(config.compute_dtype)
    extractor = Extractor(backbone, request, batch_size=config.batch_size, dtype=dtype)
    layout = _layout(extractor, config.store.dtype)
    settings = _settings(config, backbone, request, source, layout)
    common = ConfigDict({name: part for name, part in config.items() if name != "distributed"})
    names, weights = settings["pictures"]["names"], settings["weights"]
    require_same(configuration=to_json(common), weights=weights, names=names)
    ledger = Ledger(folder, settings, origin, source, settings["store"]["rows"], layout)
    if from_main(ledger.is_complete()):
        return False
    if config.store.format == "npy":
        writer = NpyWriter(folder, len(source), layout)
    else:
        writer = ParquetWriter(folder, ledger.shards, layout)
    with locked(folder):
        if from_main(ledger.is_complete()):  # another job has completed it in the meantime
            return False
        with main_first():
            if is_main():
                ledger.open(writer)
        decoding = DecodeSpec(config.data.max_pixels, request.channels)
        _Work(decoding, config.data.workers, extractor, ledger, writer).run()
    return True


def share(shards: int, process: int, processes: int) -> range:
    """The shards of one process: a run; runs of two processes differ by one shard at most."""
    return range(shards * process // processes, shards * (process + 1) // processes)


def _layout(extractor: Extractor, dtype: str) -> Layout:
    stored = {
        name: (shape, kind if kind.kind == "b" else np.dtype(dtype))
        for name, (shape, kind) in extractor.columns.items()
    }
    return {"readable": ((), np.dtype(bool)), **stored}


def _settings(
    config: ConfigDict, backbone: Backbone, request: Request, source: Source, layout: Layout
) -> dict[str, Any]:
    """Everything that the stored rows depend on."""
    store = config.store
    shard_rows = store.shard_rows or rows_of_shards(len(source), layout)
    return {
        "weights": weights_fingerprint(backbone),
        "pictures": {"count": len(source), "names": names_fingerprint(source)},
        "max_pixels": config.data.max_pixels,
        "preprocessing": dataclasses.asdict(backbone.preprocessing),
        "fit": dataclasses.asdict(request.fit),
        "grid": request.fit.grid,
        "features": request.kinds,
        "layers": request.layers,
        "norm": request.norm,
        "compute_dtype": jnp.dtype(compute_dtype(config.compute_dtype)).name,
        "store": {"format": store.format, "dtype": store.dtype, "rows": shard_rows},
    }


@dataclasses.dataclass(frozen=True)
class _Work:
    """Takes this process's shards from pictures to files."""

    decoding: DecodeSpec
    workers: int
    extractor: Extractor
    ledger: Ledger
    writer: Writer

    def run(self) -> None:
        """Computes what is missing, waits for the other processes, completes the manifest."""
        ledger, done = self.ledger, self.ledger.done()
        mine = share(ledger.shards, jax.process_index(), jax.process_count())
        todo = [shard for shard in mine if shard not in done]
        before = sum(len(ledger.rows(shard)) for shard in mine if shard in done)
        parts = [np.arange(rows.start, rows.stop) for rows in map(ledger.rows, todo)]
        rows = np.concatenate([np.zeros(0, np.int64), *parts])
        if is_main() and before:
            print(f"continues after {before:,} of {before + len(rows):,} pictures", flush=True)
        began = time.monotonic()
        if len(rows):
            self._compute(todo, rows, before)
        seconds = time.monotonic() - began
        # A process that left early would end the others, or read files that are not there yet.
        while not is_main() and not ledger.is_complete():
            time.sleep(0.5)
        while is_main() and len(ledger.done()) < ledger.shards:
            time.sleep(0.5)
        if is_main():
            lost = ledger.finish(self.writer.finish())
            print(self._summary(len(rows), seconds, lost), flush=True)

    def _compute(self, todo: Sequence[int], rows: np.ndarray, before: int) -> None:
        source, fit = self.ledger.source, self.extractor.request.fit
        how = {"decoding": self.decoding, "workers": self.workers}
        pictures = stream = stream_pictures(source, rows, fit, **how)
        with contextlib.closing(stream), ThreadPoolExecutor(1) as background:
            if is_main():
                pictures = with_progress(stream, before + len(rows), before=before)
            written: Future[None] | None = None
            for shard in todo:
                columns, unreadable = self._features(shard, pictures)
                if written is not None:
                    written.result()  # at most one shard waits in memory
                written = background.submit(self._write, shard, columns, unreadable)
            if written is not None:
                written.result()

    def _features(self, shard: int, pictures: Iterator[Picture]) -> tuple[Columns, dict[int, str]]:
        rows, source = self.ledger.rows(shard), self.ledger.source
        columns = self.extractor.empty(len(rows))
        columns["readable"] = np.zeros(len(rows), bool)
        for computed in self.extractor.run(itertools.islice(pictures, len(rows))):
            self.extractor.place(columns, computed, rows.start)
            columns["readable"][computed.rows - rows.start] = True
        lost = (rows.start + np.flatnonzero(~columns["readable"])).tolist()
        reasons = {row: why_unreadable(source, row, self.decoding) for row in lost}
        return columns, {row: why or "unreadable before" for row, why in reasons.items()}

    def _write(self, shard: int, columns: Columns, unreadable: dict[int, str]) -> None:
        rows, stored = self.ledger.rows(shard), {}
        for name, (_, dtype) in self.ledger.layout.items():
            with np.errstate(over="ignore"):
                stored[name] = columns[name].astype(dtype, copy=False)
            if dtype == np.float16 and np.isinf(stored[name]).any():
                raise ShardsError(
                    f"{name} has values up to {np.nanmax(np.abs(columns[name])):.3g}, more than "
                    "float16 can hold (65504); use --config.store.dtype=float32 and another "
                    "--workdir"
                )
        self.writer.write(shard, rows.start, list(self.ledger.names(rows)), stored)
        self.ledger.mark_done(shard, unreadable)

    def _summary(self, computed: int, seconds: float, lost: int) -> str:
        rate, waiting, computing = self.extractor.rates()
        speed, advice = f"{rate:.1f} images/s" if rate else "too few to time", ""
        if rate and waiting > 0.5 and computing < 0.1:
            advice = (
                "\ninput-bound: the devices wait for pictures; more loader processes help while "
                f"there are cores ({os.cpu_count()}): "
                f"--config.data.workers={max(2, 2 * self.workers)} (now {self.workers})"
            )
        return (
            f"{len(self.ledger.source):,} pictures, {lost:,} of them unreadable (NaN, listed in "
            f"unreadable.txt); {computed:,} computed here in {seconds:.0f} s: {speed}, "
            f"{100 * waiting:.0f} % of the time waiting for pictures"
            f"{advice}\nwritten to {self.ledger.folder}"
        )
