"""Where a checkpoint comes from."""

import datetime
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from dinov2_jax import __version__


def provenance(origin: Mapping[str, Any]) -> dict[str, Any]:
    """The origin of a checkpoint: versions, commit, devices, time, host and command.

    Args:
      origin: what made the pictures, see `data.sources.source.provenance_of`.
    """
    devices = jax.devices()
    return {
        "dinov2_jax": __version__,
        "jax": jax.__version__,
        "python": sys.version.split()[0],
        "git_commit": _git_commit(),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "command": sys.argv,
        **origin,
    }


def _git_commit() -> str:
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():  # else git answers for a repository around site-packages
        return ""
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
