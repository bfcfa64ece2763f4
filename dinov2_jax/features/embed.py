"""Task "embed": features of any number of pictures, in a folder that survives kills.

Rows are divided into shards, and each process takes a run of them. A shard that is on disk and
marked is never computed again; all others are. So no row is lost or doubled, whatever was killed
and with whatever batch size, devices and processes the work continues. One job works in a folder at
a time; a second one waits, and then finds the features.
"""

import contextlib
import dataclasses
import itertools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dinov2_jax.config.files import ConfigError, to_json
from dinov2_jax.data.decode import DecodeSpec, why_unreadable
from dinov2_jax.data.fingerprint import names_fingerprint
from dinov2_jax.data.sources.open import open_source
from dinov2_jax.data.sources.source import Source
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
from dinov2_jax.weights.load import Backbone, load


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
    allow = tuple(filter(None, config.allow.split(",")))
    backbone = load(config.weights, which=config.which, allow=allow, dtype=dtype)
    request = make_request(
        backbone, config.features, config.layers, config.norm, config.policy, config.size
    )
    source = _source(config)
    origin = {"weights": backbone.source, "source": config.data.source, "path": config.data.path}
    folder = Path(workdir).expanduser()
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
      backbone: from `load`.
      request: the wanted features.
      source: pictures.
      origin: where weights and pictures came from; for the reader of the manifest.

    Returns:
      Whether anything was left to do.

    Raises:
      ShardsError: the folder's features were made otherwise.
    """
    dtype = compute_dtype(config.compute_dtype)
    extractor = Extractor(backbone, request, batch_size=config.batch_size, dtype=dtype)
    layout = _layout(extractor, config.store.dtype)
    ledger = _ledger(config, folder, backbone, request, source, layout, origin)
    if from_main(ledger.is_complete()):
        return False
    writer = _writer(config.store.format, ledger, len(source), layout)
    with locked(folder):
        if from_main(ledger.is_complete()):  # another job has completed it in the meantime
            return False
        with main_first():
            if is_main():
                ledger.open(writer)
        _Work(config, extractor, request, source, layout, ledger, writer).run()
    return True


def share(shards: int, process: int, processes: int) -> range:
    """The shards of one process: a run; runs of two processes differ by one shard at most."""
    return range(shards * process // processes, shards * (process + 1) // processes)


def _source(config: ConfigDict) -> Source:
    data = config.data
    return open_source(data.source, data.path, split=data.split, cache_dir=data.cache_dir or None)


def _layout(extractor: Extractor, dtype: str) -> Layout:
    stored = {
        name: (shape, kind if kind.kind == "b" else np.dtype(dtype))
        for name, (shape, kind) in extractor.columns.items()
    }
    return {"readable": ((), np.dtype(bool)), **stored}


def _ledger(
    config: ConfigDict,
    folder: Path,
    backbone: Backbone,
    request: Request,
    source: Source,
    layout: Layout,
    origin: Mapping[str, str],
) -> Ledger:
    fingerprints = {"weights": weights_fingerprint(backbone), "names": names_fingerprint(source)}
    require_same(configuration=_common(config), **fingerprints)
    shard_rows = config.store.shard_rows or rows_of_shards(len(source), layout)
    settings = {
        "weights": fingerprints["weights"],
        "pictures": {"count": len(source), "names": fingerprints["names"]},
        "max_pixels": config.data.max_pixels,
        "preprocessing": dataclasses.asdict(backbone.preprocessing),
        "fit": dataclasses.asdict(request.fit),
        "grid": request.fit.grid,
        "features": request.kinds,
        "layers": request.layers,
        "norm": request.norm,
        "compute_dtype": jnp.dtype(compute_dtype(config.compute_dtype)).name,
        "store": {"format": config.store.format, "dtype": config.store.dtype, "rows": shard_rows},
    }
    return Ledger(folder, settings, origin, source, shard_rows, layout)


def _common(config: ConfigDict) -> str:
    """The configuration without the fields that differ between processes."""
    copied = ConfigDict(config.to_dict())
    del copied.distributed
    return to_json(copied)


def _writer(kind: str, ledger: Ledger, rows: int, layout: Layout) -> Writer:
    if kind == "npy":
        return NpyWriter(ledger.folder, rows, layout)
    return ParquetWriter(ledger.folder, ledger.shards, layout)


class _Work:
    """Takes this process's shards from pictures to files."""

    def __init__(
        self,
        config: ConfigDict,
        extractor: Extractor,
        request: Request,
        source: Source,
        layout: Layout,
        ledger: Ledger,
        writer: Writer,
    ) -> None:
        self._config, self._extractor, self._request = config, extractor, request
        self._source, self._layout, self._ledger, self._writer = source, layout, ledger, writer

    def run(self) -> None:
        """Computes what is missing, waits for the other processes, completes the manifest."""
        mine = share(self._ledger.shards, jax.process_index(), jax.process_count())
        done = self._ledger.done()
        todo = [shard for shard in mine if shard not in done]
        before = sum(len(self._ledger.rows(shard)) for shard in mine if shard in done)
        parts = [np.arange(rows.start, rows.stop) for rows in map(self._ledger.rows, todo)]
        rows = np.concatenate([np.zeros(0, np.int64), *parts])
        if is_main() and before:
            print(f"continues after {before:,} of {before + len(rows):,} pictures", flush=True)
        began = time.monotonic()
        if len(rows):
            self._compute(todo, rows, before)
        seconds = time.monotonic() - began
        self._wait_for_others()
        if is_main():
            lost = self._ledger.finish(self._writer.finish())
            print(self._summary(len(rows), seconds, lost), flush=True)

    def _compute(self, todo: Sequence[int], rows: np.ndarray, before: int) -> None:
        data = self._config.data
        stream = stream_pictures(
            self._source,
            rows,
            self._request.fit,
            decoding=DecodeSpec(data.max_pixels, self._request.channels),
            workers=data.workers,
        )
        with contextlib.closing(stream), ThreadPoolExecutor(1) as background:
            pictures = stream
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
        rows = self._ledger.rows(shard)
        columns = self._extractor.empty(len(rows))
        columns["readable"] = np.zeros(len(rows), bool)
        for computed in self._extractor.run(itertools.islice(pictures, len(rows))):
            self._extractor.place(columns, computed, rows.start)
            columns["readable"][computed.rows - rows.start] = True
        lost = (rows.start + np.flatnonzero(~columns["readable"])).tolist()
        decoding = DecodeSpec(self._config.data.max_pixels, self._request.channels)
        reasons = {row: why_unreadable(self._source, row, decoding) for row in lost}
        return columns, {row: why or "unreadable before" for row, why in reasons.items()}

    def _write(self, shard: int, columns: Columns, unreadable: dict[int, str]) -> None:
        rows = self._ledger.rows(shard)
        stored = {
            name: _narrow(columns[name], dtype, name) for name, (_, dtype) in self._layout.items()
        }
        names = self._ledger.names(rows.start, rows.stop)
        self._writer.write(shard, rows.start, names, stored)
        self._ledger.mark_done(shard, unreadable)

    def _wait_for_others(self) -> None:
        """Process 0 waits for all shards, the others until it has completed the folder.

        A process that left early would end the others, or read files that are not there yet.
        """
        if is_main():
            while len(self._ledger.done()) < self._ledger.shards:
                time.sleep(0.5)
        else:
            while not self._ledger.is_complete():
                time.sleep(0.5)

    def _summary(self, computed: int, seconds: float, lost: int) -> str:
        rate, waiting, computing = self._extractor.rates()
        how_fast = f"{rate:.1f} images/s" if rate else "too few to time"
        lines = [
            f"{len(self._source):,} pictures, {lost:,} of them unreadable (NaN, listed in "
            f"unreadable.txt); {computed:,} computed here in {seconds:.0f} s: {how_fast}, "
            f"{100 * waiting:.0f} % of the time waiting for pictures",
            f"written to {self._ledger.folder}",
        ]
        if rate and waiting > 0.5 and computing < 0.1:
            now = self._config.data.workers
            lines.insert(
                1,
                f"input-bound: the devices wait for pictures; more loader processes help while "
                f"there are cores ({os.cpu_count()}): --config.data.workers={max(2, 2 * now)} "
                f"(now {now})",
            )
        return "\n".join(lines)


def _narrow(values: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        narrow = values.astype(dtype, copy=False)
    if dtype == np.float16 and np.isinf(narrow).any():
        raise ShardsError(
            f"{name} has values up to {np.nanmax(np.abs(values)):.3g}, more than float16 can hold "
            "(65504); use --config.store.dtype=float32 and another --workdir"
        )
    return narrow
