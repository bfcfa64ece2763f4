"""Stage "pictures": every picture is opened once; its size, digests, thumbnails and hash are kept.

part-*.parquet   row, name, readable, reason, width, height, bytes, byte_digest, pixel_digest, blank
thumbnail.npy    uint8 [n, 16, 16, 3]
first.npy        int64 [n], the first row with equal pixels: its own if there is none before
basis.npz        what the hash was fitted to; hash.npy uint64 [n], 0 for unreadable pictures
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinov2_jax.curation.balance import pick
from dinov2_jax.curation.blocks import CurationError
from dinov2_jax.curation.facts import CHUNK, FACTS, stream_facts
from dinov2_jax.curation.hashes import HashBasis, fit_basis, hash_rows
from dinov2_jax.curation.pool import Pool
from dinov2_jax.curation.stage import Stage, load_array, part_name, save_array
from dinov2_jax.curation.tables import read_arrays
from dinov2_jax.data.decode import DecodeSpec
from dinov2_jax.data.fingerprint import names_fingerprint
from dinov2_jax.data.reader import Batch, join
from dinov2_jax.errors import printable
from dinov2_jax.features.store import NpyWriter
from dinov2_jax.run.files import replacing
from dinov2_jax.run.progress import Progress

_ARRAYS = ("thumbnail",)
_BASIS_ROWS = 100_000  # thumbnails that the hash is fitted to, at most


def shard_rows(rows: int) -> int:
    """Pictures of a part, which a kill loses at most: a power of two, 64 to 65,536.

    So each part but the last has whole chunks of the loader.
    """
    count = 64
    while count < 65536 and count * 64 < rows:
        count *= 2
    return count


def settings(pool: Pool) -> dict[str, Any]:
    data = pool.config.data
    names = names_fingerprint(pool.source)
    return {"pictures": pool.rows, "names": names, "max_pixels": data.max_pixels}


def run(pool: Pool, folder: Path) -> Mapping[str, int]:
    """Reads what has no part yet."""
    size = shard_rows(pool.rows)
    parts = -(-pool.rows // size)
    shards = [range(pool.rows)[n * size : (n + 1) * size] for n in range(parts)]
    writer = NpyWriter(folder, pool.rows, {name: FACTS[name] for name in _ARRAYS})
    paths = [folder / part_name(n, parts) for n in range(parts)]
    done = {n for n, path in enumerate(paths) if path.exists()}
    writer.prepare(done)
    todo = [n for n in range(parts) if n not in done]
    _read(pool, [shards[n] for n in todo], [paths[n] for n in todo], writer)
    writer.finish()
    _hash(folder)
    save_array(folder / "first.npy", _first_with_equal_pixels(pool, folder))
    return _counts(pool, folder)


def _read(pool: Pool, shards: Sequence[range], paths: Sequence[Path], writer: NpyWriter) -> None:
    if not shards:
        return
    rows = np.concatenate([np.arange(shard.start, shard.stop) for shard in shards])
    data = pool.config.data
    progress = Progress(len(rows), unit="picture")
    facts = stream_facts(pool.source, rows, DecodeSpec(data.max_pixels), data.workers)
    done = 0
    for shard, path in zip(shards, paths, strict=True):
        found = join(list(itertools.islice(facts, -(-len(shard) // CHUNK))))
        thumbs = {name: found[name] for name in _ARRAYS}
        writer.write(0, shard.start, [], thumbs)
        names = [printable(pool.source.name(row)) for row in shard]
        _write_part(path, found, names)
        done += len(shard)
        progress.update(done)
    progress.close()


def _write_part(path: Path, found: Batch, names: Sequence[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    plain = ("width", "height", "bytes", "blank", "readable")
    columns = {"row": pa.array(found["row"]), "name": pa.array(list(names))}
    columns |= {name: pa.array(found[name]) for name in plain}
    columns |= {
        name: pa.array([x.tobytes() for x in found[name]], pa.binary(16))
        for name in ("byte_digest", "pixel_digest")
    }
    reasons = [x.tobytes().rstrip(b"\0 ").decode("utf-8", "replace") for x in found["reason"]]
    columns["reason"] = pa.array(reasons)
    with replacing(path) as new:
        pq.write_table(pa.table(columns), new, compression="zstd")


def _hash(folder: Path) -> None:
    """Fits the hash to the readable pictures that are not blank, and applies it to all."""
    thumbs, facts = load_array(folder / "thumbnail.npy"), read_arrays(folder, ("readable", "blank"))
    fit = pick(np.flatnonzero(facts["readable"] & ~facts["blank"]), _BASIS_ROWS, 0)
    basis = fit_basis(np.asarray(thumbs[fit]))
    with replacing(folder / "basis.npz") as new, open(new, "wb") as file:
        np.savez(file, **vars(basis))
    hashes = hash_rows(basis, thumbs)
    hashes[~facts["readable"]] = 0
    save_array(folder / "hash.npy", hashes)


def _first_with_equal_pixels(pool: Pool, folder: Path) -> np.ndarray:
    tables = pool.tables
    facts = tables.read(folder).select("row", "pixel_digest", "readable")
    readable = facts.where(facts["readable"]).select("row", "pixel_digest")
    groups = tables.group(readable, "pixel_digest", first=("row", "min"))
    found = tables.arrays(
        tables.join(readable, groups, "pixel_digest", "inner").select("row", "first"), ["row"]
    )
    first = np.arange(pool.rows)
    first[found["row"]] = found["first"]
    return first


def read_basis(folder: Path) -> HashBasis:
    """What the hashes of stage "pictures" were fitted to."""
    with np.load(folder / "basis.npz") as stored:
        return HashBasis(**stored)


def _counts(pool: Pool, folder: Path) -> dict[str, int]:
    facts = read_arrays(folder, ("readable", "blank", "reason", "row"))
    readable = int(facts["readable"].sum())
    if not readable:
        first = pool.source.name(0)
        raise CurationError(
            f"none of {pool.rows:,} pictures can be read, such as {printable(first)} "
            f"({facts['reason'][0]}); check config.data.path and "
            f"config.data.max_pixels, then remove {folder}"
        )
    unreadable = pool.rows - readable
    return {"rows": pool.rows, "unreadable": unreadable, "blank": int(facts["blank"].sum())}


STAGE = Stage("pictures", (), settings, run, goes_on=True)
