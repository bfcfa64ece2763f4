"""results.json: figures with the protocol, data and versions that they belong to; and its table."""

import datetime
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from dinov2_jax import __version__
from dinov2_jax.config.files import ConfigError, diff_configs
from dinov2_jax.eval.protocols import Outcome
from dinov2_jax.run.files import write_json

_PACKAGES = ("jax", "flax", "numpy")


class Results:
    """The results of one set of weights on one set of data.

    Args:
      path: results.json; finished protocols are written at once, and found again after a kill.
      about: weights and preprocessing: JSON values that all figures depend on.

    Raises:
      ConfigError: the file has figures of other weights.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path = path
        self._about = json.loads(json.dumps(about))
        self._protocols: dict[str, Any] = {}
        if path.exists():
            stored = json.loads(path.read_text(encoding="utf-8"))
            changed = diff_configs(_wherever(stored["about"]), _wherever(self._about))
            if changed:
                raise ConfigError(
                    f"{path} has figures of others ({changed[0]}); name another --workdir, or "
                    "remove it"
                )
            self._protocols = stored["protocols"]

    def finished(self, name: str, settings: Mapping[str, Any]) -> bool:
        """Whether a protocol is there with these very settings."""
        found = self._protocols.get(name)
        return found is not None and found["settings"] == json.loads(json.dumps(settings))

    def add(
        self,
        name: str,
        settings: Mapping[str, Any],
        outcome: Outcome,
        paper: Mapping[str, Any],
        other_data: Mapping[str, Any],
    ) -> None:
        """Stores what a protocol found.

        Args:
          settings: see `finished`.
          paper: published figures by headline name.
          other_data: sizes and fingerprints of pictures that `settings` do not name.
        """
        self._protocols[name] = {
            "headline": dict(outcome.headline),
            "paper": dict(paper),
            "numbers": outcome.numbers,
            "protocol": outcome.protocol,
            "curves": {
                title: [list(p) for p in points] for title, points in outcome.curves.items()
            },
            "settings": settings,
            "other_data": dict(other_data),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }

    def as_dict(self) -> dict[str, Any]:
        """What results.json holds."""
        return {"about": self._about, "versions": _versions(), "protocols": self._protocols}

    def write(self) -> None:
        """Atomically."""
        write_json(self.path, self.as_dict())

    def table(self) -> str:
        """One line a headline figure; the paper's beside it where model and data are the same."""
        rows = [
            (name, figure, f"{value:.2f}", _paper(found["paper"].get(figure)))
            for name, found in self._protocols.items()
            for figure, value in found["headline"].items()
        ]
        head = ("protocol", "figure", "%", "paper %")
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = [
            f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}"
            for a, b, c, d in (head, *rows)
        ]
        return "\n".join(lines)


def _wherever(about: Mapping[str, Any]) -> dict[str, Any]:
    """Without the place of the weights: they may have been moved."""
    weights = {k: v for k, v in about["weights"].items() if k not in ("source", "layout")}
    return {**about, "weights": weights}


def _paper(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _versions() -> dict[str, str]:
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    device = jax.devices()[0]
    return {
        "dinov2_jax": __version__,
        "python": platform.python_version(),
        **packages,
        "device": f"{jax.device_count()} x {device.device_kind}",
    }
