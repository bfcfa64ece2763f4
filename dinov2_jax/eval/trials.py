"""Finished parts of a long protocol in one JSON file, so that a killed evaluation continues."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dinov2_jax.parallel.processes import from_main, is_main
from dinov2_jax.run.files import write_json


class Trials:
    """Named parts with JSON values; a file of other settings, or one that is cut, begins anew."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        text = json.dumps(settings, sort_keys=True, default=str)
        self._path, self._mark = path, hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        self._done: dict[str, Any] = from_main(self._read())

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        """The value of a part; it is computed once and stored at once."""
        if name not in self._done:
            self._done[name] = compute()
            if is_main():
                write_json(self._path, {"settings": self._mark, "done": self._done})
        return self._done[name]

    def close(self) -> None:
        """Removes the file: the results hold what it held."""
        if is_main():
            self._path.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any]:
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            stored = json.loads(self._path.read_text(encoding="utf-8"))
            if stored["settings"] == self._mark:
                return stored["done"]
        return {}
