"""Memory that this process may use: of its machine or container, and of its devices."""

import contextlib
import os
from pathlib import Path

import jax

# The limit of a container, by version of the kernel's control groups; "max", or a number near
# 2**63, is none.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def host_bytes() -> int:
    """Memory of the machine, or of the container if that has less."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for limit in _LIMITS:
        with contextlib.suppress(OSError, ValueError):
            found.append(int(Path(limit).read_text(encoding="ascii")))
    return min(found)


def device_bytes() -> int | None:
    """Free memory of the fullest of this process's devices; None where they use the host's."""
    known = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    free = [stats["bytes_limit"] - stats["bytes_in_use"] for stats in known]
    return min(free) if free else None
