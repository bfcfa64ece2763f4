"""The folder of a task "embed": what it was made from, and how far it is.

manifest.json    settings, fingerprints, columns, files; "complete" when all rows are there
names.txt        line i + 1 names the picture of row i
unreadable.txt   row, name, reason of each picture that could not be read
.progress/       one file a finished shard, until all are
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dinov2_jax import __version__
from dinov2_jax.config.files import diff_configs
from dinov2_jax.data.fingerprint import printable
from dinov2_jax.data.sources.source import Source
from dinov2_jax.features.shards import Layout, ShardsError, Writer
from dinov2_jax.run.files import replacing
from dinov2_jax.weights.bundle import architecture_fields
from dinov2_jax.weights.load import Backbone


def weights_fingerprint(backbone: Backbone) -> str:
    """Changes with any weight and with the architecture, not with where they lie."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(architecture_fields(backbone.model), sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(backbone.params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).view(np.uint8).reshape(-1))
    return digest.hexdigest()


class Ledger:
    """The folder's manifest and progress.

    Args:
      folder: the run directory.
      settings: all that the rows depend on; a nested dict of JSON values.
      origin: where weights and pictures came from, for the reader only.
      source: names the rows.
      shard_rows: rows a shard; the last has what is left.
      layout: of a row.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        origin: Mapping[str, str],
        source: Source,
        shard_rows: int,
        layout: Layout,
    ) -> None:
        self.folder, self._source = folder, source
        self._rows, self._shard_rows = len(source), shard_rows
        self.shards = -(-self._rows // shard_rows)
        self._progress = folder / ".progress"
        self._manifest = {
            "dinov2_jax": __version__,
            "complete": False,
            "rows": self._rows,
            "shard_rows": shard_rows,
            "columns": {
                name: {"shape": list(shape), "dtype": dtype.name}
                for name, (shape, dtype) in layout.items()
            },
            "names": "names.txt",
            "settings": dict(settings),
            "origin": dict(origin),
        }

    def is_complete(self) -> bool:
        """Whether nothing is left to do.

        Raises:
          ShardsError: the folder's features were made otherwise.
        """
        path = self.folder / "manifest.json"
        if not path.exists():
            return False
        stored = json.loads(path.read_text(encoding="utf-8"))
        if "settings" not in stored:
            raise ShardsError(f"{path} is not of features; name another --workdir")
        changed = diff_configs(stored["settings"], self._manifest["settings"])
        if changed:
            raise ShardsError(
                f"{self.folder} holds features made otherwise ({', '.join(changed)}); go back to "
                "these settings, or name another --workdir"
            )
        return stored["complete"]

    def open(self, writer: Writer) -> None:
        """Starts or continues the folder; once, by one process."""
        self._progress.mkdir(parents=True, exist_ok=True)
        for leftover in [*self.folder.glob(".*.tmp"), *self._progress.glob(".*.tmp")]:
            leftover.unlink()
        for number in self.done():
            if not writer.has(number):
                self._mark(number).unlink()
        writer.prepare(started=bool(self.done()))
        if not (self.folder / "manifest.json").exists():
            names = (self._source.name(row) for row in range(self._rows))
            self._write("names.txt", (f"{printable(name)}\n" for name in names))
            self._write_manifest()

    def names(self, first_row: int, stop_row: int) -> list[str]:
        """Of the pictures of these rows."""
        return [printable(self._source.name(row)) for row in range(first_row, stop_row)]

    def rows(self, shard: int) -> range:
        """The rows of a shard."""
        start = shard * self._shard_rows
        return range(start, min(start + self._shard_rows, self._rows))

    def done(self) -> set[int]:
        """Numbers of the finished shards, of all processes."""
        try:
            return {int(path.stem) for path in self._progress.glob("[0-9]*.json")}
        except FileNotFoundError:  # process 0 removes them when all are there
            return set()

    def mark_done(self, shard: int, unreadable: Mapping[int, str]) -> None:
        """Says that a shard is on disk; called after it is."""
        self._write(f".progress/{shard:06}.json", [json.dumps({"unreadable": dict(unreadable)})])

    def finish(self, files: list[str]) -> int:
        """Completes the manifest; returns how many pictures were unreadable."""
        unreadable = self._unreadable()
        if unreadable:
            lines = [
                f"{row}\t{printable(self._source.name(row))}\t{reason}\n"
                for row, reason in sorted(unreadable.items())
            ]
            self._write("unreadable.txt", lines)
        self._manifest |= {"complete": True, "unreadable": len(unreadable), "files": files}
        self._write_manifest()
        shutil.rmtree(self._progress)
        return len(unreadable)

    def _unreadable(self) -> dict[int, str]:
        found: dict[int, str] = {}
        for shard in range(self.shards):
            stored = json.loads(self._mark(shard).read_text(encoding="utf-8"))
            found |= {int(row): reason for row, reason in stored["unreadable"].items()}
        return found

    def _mark(self, shard: int) -> Path:
        return self._progress / f"{shard:06}.json"

    def _write_manifest(self) -> None:
        self._write("manifest.json", [json.dumps(self._manifest, indent=2), "\n"])

    def _write(self, name: str, parts: Iterable[str]) -> None:
        with (
            replacing(self.folder / name) as new,
            open(new, "w", encoding="utf-8", errors="backslashreplace") as file,
        ):
            file.writelines(parts)
