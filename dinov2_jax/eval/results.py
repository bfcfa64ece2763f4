"""results.json: metrics by protocol and data set, with settings and versions; and its table."""

import dataclasses
import datetime
import importlib.metadata
import json
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from dinov2_jax import __version__
from dinov2_jax.config.files import ConfigError, diff_configs
from dinov2_jax.eval.task import Curve, Finding, Metric
from dinov2_jax.run.files import write_json
from dinov2_jax.viz.gallery import Figure

_FORMAT = 2


class Results:
    """The results of one set of weights.

    Args:
      path: results.json. It is written after every metric, and read again after a kill.
      about: weights and preprocessing: JSON values that all figures depend on.

    Raises:
      ConfigError: the file holds results of other weights, or is something else.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path = path
        self._about = _plain(about)
        self._changed: set[tuple[str, str]] = set()
        stored = _read(path) if path.exists() else {"results": {}}
        if "about" in stored:
            changed = diff_configs(_without_place(stored["about"]), _without_place(self._about))
            if changed:
                raise ConfigError(
                    f"{path} holds results of other weights ({changed[0]}); name another "
                    "--workdir, or remove it"
                )
        self._results: dict[str, dict[str, Any]] = stored["results"]

    def finished(self, protocol: str, data: str, settings: Mapping[str, Any]) -> bool:
        """Whether a whole result is there with exactly these settings."""
        found = self._results.get(protocol, {}).get(data)
        return bool(found and found["complete"] and found["settings"] == _plain(settings))

    def begin(self, protocol: str, data: str, settings: Mapping[str, Any]) -> str:
        """Starts a result, and returns why an older one is replaced, or ""."""
        settings = _plain(settings)
        old = self._results.setdefault(protocol, {}).get(data)
        new = {"complete": False, "settings": settings, "metrics": {}, "notes": {}}
        self._results[protocol][data] = new | {"curves": [], "pictures": []}
        self._changed.add((protocol, data))
        changed = diff_configs(old["settings"], settings) if old and old["complete"] else []
        return changed[0] if changed else ""

    def add(self, protocol: str, data: str, finding: Finding) -> None:
        """Stores one finding; `write` brings it to disk."""
        entry = self._results[protocol][data]
        if isinstance(finding, Metric):
            values = dataclasses.asdict(finding) | {"data": finding.data or data}
            entry["metrics"][values.pop("name")] = _plain(values)
        elif isinstance(finding, Curve):
            entry["curves"].append(_plain(dataclasses.asdict(finding)))
        elif isinstance(finding, Figure):
            about = {k: v for k, v in finding._asdict().items() if k not in ("image", "file")}
            about["width_px"] = finding.image.shape[1]
            entry["pictures"].append(about | {"file": picture_file(protocol, data, finding.file)})
        else:
            entry["notes"] |= _plain(finding)

    def finish(self, protocol: str, data: str, seconds: float) -> None:
        """Marks a result as whole."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        done = {"complete": True, "seconds": round(seconds, 1), "date": now}
        self._results[protocol][data] |= done

    def write(self) -> None:
        """Writes the file, whole or not at all; results that another job added meanwhile stay."""
        if self.path.exists():
            for protocol, sets in _read(self.path)["results"].items():
                for data, entry in sets.items():
                    if (protocol, data) not in self._changed:
                        self._results.setdefault(protocol, {})[data] = entry
        write_json(self.path, self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """What results.json holds: results[protocol][data set]["metrics"][name]["value"]."""
        head = {"format": _FORMAT, "about": self._about, "versions": _versions()}
        return head | {"results": self._results}

    def values(self, protocol: str) -> dict[str, float]:
        """The first metric of each data set of a protocol."""
        return {
            data: next(iter(entry["metrics"].values()))["value"]
            for data, entry in self._results.get(protocol, {}).items()
            if entry["metrics"]
        }


def folder_of(name: str) -> str:
    """The name of a data set as that of a folder."""
    return re.sub(r"[^\w.-]+", "_", name)


def picture_file(protocol: str, data: str, file: str) -> str:
    """The place of a picture's PNG, from the folder of results.json."""
    return f"{protocol}/{folder_of(data)}/{file}"


def rows_of(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row a metric: protocol, data, metric, value, unit, direction, n, paper, remark."""
    return [
        (protocol, *_row(name, metric))
        for protocol, sets in results.items()
        for entry in sets.values()
        for name, metric in entry["metrics"].items()
    ]


HEAD = ("protocol", "data", "metric", "value", "unit", "better", "n", "paper", "")


def _row(name: str, metric: Mapping[str, Any]) -> tuple[str, ...]:
    value, paper = metric["value"], metric["published"]
    return (
        metric["data"],
        name,
        "-" if value is None else f"{value:.2f}" if metric["unit"] == "%" else f"{value:.4g}",
        metric["unit"],
        "higher" if metric["higher_is_better"] else "lower",
        f"{metric['n']:,}" if metric["n"] else "",
        "" if paper is None else f"{paper:g}",
        "(chosen on test)" if metric["chosen_on"] == "test" else "",
    )


def table(results: Mapping[str, Any]) -> str:
    """The table for the console; columns that are empty everywhere are left out."""
    rows = rows_of(results)
    kept = [place for place in range(len(HEAD)) if any(row[place] for row in rows)]
    numbers = {HEAD.index(name) for name in ("value", "n", "paper")}
    widths = {place: max(len(row[place]) for row in (HEAD, *rows)) for place in kept}
    lines = (
        "  ".join(
            row[place].rjust(widths[place]) if place in numbers else row[place].ljust(widths[place])
            for place in kept
        ).rstrip()
        for row in (HEAD, *rows)
    )
    return "\n".join(lines)


def _read(path: Path) -> dict[str, Any]:
    """The stored file; raises ConfigError if it is cut, foreign, or of an earlier version."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if "protocols" in stored and "format" not in stored:
            raise ConfigError(
                f"{path} was written by an earlier version, which did not keep results by data "
                "set; move it away or name another --workdir (features beside it are used again)"
            )
        if stored["format"] != _FORMAT:
            raise ConfigError(
                f"{path} has format {stored['format']}, and this version reads {_FORMAT}; name "
                "another --workdir"
            )
        for sets in stored["results"].values():
            for entry in sets.values():
                _ = entry["complete"], entry["settings"], entry["metrics"].items()
        _ = stored["about"]["weights"].items()
    except ConfigError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} is cut or no results file of this program ({type(error).__name__}: {error}); "
            "move it away, or name another --workdir"
        ) from error
    return stored


def _plain(value: Any) -> Any:
    """As JSON gives it back; null for what is not finite, which JSON cannot hold."""
    text = json.dumps(value, default=lambda array: array.tolist())  # numpy's
    return json.loads(text, parse_constant=lambda _: None)


def _without_place(about: Mapping[str, Any]) -> dict[str, Any]:
    """Without the place of the weights: they may have been moved."""
    weights = {k: v for k, v in about["weights"].items() if k not in ("source", "layout")}
    return {**about, "weights": weights}


def _versions() -> dict[str, str]:
    found = {"dinov2_jax": __version__, "python": platform.python_version()}
    found |= {name: importlib.metadata.version(name) for name in ("jax", "flax", "numpy")}
    return found | {"device": f"{jax.device_count()} x {jax.devices()[0].device_kind}"}
