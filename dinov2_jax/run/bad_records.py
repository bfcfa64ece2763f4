"""Counts and lists the pictures that cannot be decoded, and stops a run when they are too many."""

from pathlib import Path
from typing import Any

import numpy as np

from dinov2_jax.data.decode import DecodeSpec, why_unreadable
from dinov2_jax.data.fingerprint import names_fingerprint
from dinov2_jax.data.reader import Batch
from dinov2_jax.data.sources.source import Source
from dinov2_jax.errors import UserError, printable
from dinov2_jax.run.files import write_text

# From so many bad pictures on, their share among those seen says something about the rest.
_ENOUGH_BAD = 10


class TooManyBadRecords(UserError):
    """More pictures are unreadable than the configuration allows."""


class BadRecords:
    """Keeps `skipped.txt` (name, tab, reason; one line a picture) and judges the share.

    The file `path` is written when the first bad record is met; `writes` is False in all but one of
    several processes, which all keep the same list. `decoding`, as in the loader, finds the reason
    again. `max_fraction` is the greatest share (0..1) among the distinct records seen.
    """

    def __init__(
        self,
        source: Source,
        decoding: DecodeSpec,
        path: Path,
        max_fraction: float,
        *,
        writes: bool = True,
    ) -> None:
        self._source, self._decoding = source, decoding
        self._path, self._max_fraction, self._writes = path, max_fraction, writes
        self._looked_at, self._names = 0, names_fingerprint(source)
        self._reasons: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._reasons)

    def preflight(self, sample: int = 256) -> int:
        """Decodes up to `sample` records, evenly spread, before anything is compiled.

        Returns how many it looked at, or raises TooManyBadRecords.
        """
        indices = np.unique(np.linspace(0, len(self._source) - 1, sample).astype(int)).tolist()
        self._note(len(indices), [index for index in indices if self._reason(index) is not None])
        return len(indices)

    def update(self, batch: Batch) -> None:
        """Notes "record" and "bad_records" of a batch, taken out; may raise TooManyBadRecords."""
        used, bad = batch.pop("record"), batch.pop("bad_records").ravel()
        self._note(len(used), np.unique(bad[bad >= 0]).tolist())

    def state(self) -> dict[str, Any]:
        """For the checkpoint, as JSON: the bad records, how many were seen, and of which."""
        return {
            "skipped": sorted(self._reasons),
            "looked_at": self._looked_at,
            "pictures": len(self._source),
            "names": self._names,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restores `state()`, {} in a new run; forgets what became readable or was deleted since.

        skipped.txt then lists the records of this run, whatever an earlier start left there.
        """
        self._looked_at = max(self._looked_at, state.get("looked_at", 0))
        for index in state.get("skipped", []):
            reason = self._reason(index) if index < len(self._source) else None
            if reason is not None:
                self._reasons[index] = reason
        self._write()

    def _reason(self, index: int) -> str | None:
        return why_unreadable(self._source, index, self._decoding)

    def _note(self, looked_at: int, bad: list[int]) -> None:
        # A pass shows every record once, so the first len(source) pictures are distinct.
        before, self._looked_at = self._looked_at, self._looked_at + looked_at
        new = [index for index in bad if index not in self._reasons]
        for index in new:
            self._reasons[index] = self._reason(index) or "unreadable at an earlier time"
        if new:
            self._write()
        if new or before < len(self._source) <= self._looked_at:
            self._judge()

    def _write(self) -> None:
        if not self._writes:
            return
        lines = [
            f"{printable(self._source.name(index))}\t{reason}\n"
            for index, reason in sorted(self._reasons.items())
        ]
        if lines:
            write_text(self._path, "".join(lines))
        else:
            self._path.unlink(missing_ok=True)

    def _judge(self) -> None:
        bad, seen = len(self._reasons), min(self._looked_at, len(self._source))
        too_few = bad < _ENOUGH_BAD and seen < len(self._source) and self._max_fraction > 0
        if bad <= self._max_fraction * seen or too_few:
            return
        names = [printable(self._source.name(index)) for index in sorted(self._reasons)[:10]]
        shown = ", ".join(names) + (", ..." if bad > 10 else "")
        raise TooManyBadRecords(
            f"{bad} of {seen} pictures looked at cannot be read, more than "
            f"config.data.max_bad_fraction {self._max_fraction:g} ({shown}; all with reasons in "
            f"{self._path}); remove them, or allow more with --config.data.max_bad_fraction="
            f"{min(1.0, np.ceil(100 * bad / seen + 1) / 100):g}"
        )
