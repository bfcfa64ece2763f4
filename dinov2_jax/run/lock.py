"""One job at a time in a folder: a lock file that names its holder.

The holder touches the file every few seconds. A lock counts as left behind if its process on this
machine has ended, or if nobody has touched it for `STALE_S`.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dinov2_jax.parallel.processes import from_main, is_main

LOCK_FILE = ".lock"
STALE_S = 120.0
_TOUCH_S = 10.0
_POLL_S = 0.5


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder, which is made; waits while another job holds it.

    All processes of a job must enter together; process 0 holds the lock for them.
    """
    attempt = _Attempt(folder / LOCK_FILE)
    while not from_main(is_main() and attempt.succeeds()):
        time.sleep(_POLL_S)
    if not is_main():
        yield
        return
    ended = threading.Event()
    threading.Thread(target=_keep_fresh, args=(attempt.path, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        if attempt.is_ours():
            attempt.path.unlink()


class _Attempt:
    """Attempts to create a lock file, and what was seen of another's on the way."""

    def __init__(self, path: Path) -> None:
        self.path, self._own = path, json.dumps(_describe_self())
        self._seen: tuple[str, int] | None = None
        self._since, self._told = 0.0, False

    def succeeds(self) -> bool:
        """Creates the file, or removes one that was left behind, or reports who holds it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(self.path, "x", encoding="utf-8") as file:
                file.write(self._own)
            return True
        except FileExistsError:
            pass
        with contextlib.suppress(FileNotFoundError):  # the holder has just finished
            seen = self.path.read_text(encoding="utf-8"), self.path.stat().st_mtime_ns
            if self._is_left_behind(seen):
                self._remove(seen[0])
            elif not self._told:
                self._told = True
                print(f"waits for {_name_holder(seen[0])}, which works in {self.path.parent}")
        return False

    def is_ours(self) -> bool:
        """Whether the file still names this process."""
        with contextlib.suppress(FileNotFoundError):
            return self.path.read_text(encoding="utf-8") == self._own
        return False

    def _is_left_behind(self, seen: tuple[str, int]) -> bool:
        now = time.monotonic()  # not the file's clock, which may be a server's
        if seen != self._seen:
            self._seen, self._since = seen, now
        return _has_ended(seen[0]) or now - self._since > STALE_S

    def _remove(self, content: str) -> None:
        """Moves the file away first: another job may have replaced it in the meantime."""
        aside = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        os.rename(self.path, aside)
        if aside.read_text(encoding="utf-8") != content:
            with contextlib.suppress(FileExistsError):
                os.link(aside, self.path)
        aside.unlink()


def _describe_self() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": socket.gethostname(), "machine": _machine(), "pid": pid, "start": _start(pid)}


def _machine() -> str:
    """What tells machines, and containers with process numbers of their own, apart."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def _start(pid: int) -> str:
    """When a process started, in the system's own unit; "" where the system does not tell."""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        return text.rpartition(")")[2].split()[19]
    return ""


def _has_ended(content: str) -> bool:
    """Whether the holder was a process of this machine that has ended; unknown is False."""
    try:
        holder = json.loads(content)
        if holder["machine"] != _machine():
            return False
        os.kill(holder["pid"], 0)
        return _start(holder["pid"]) != holder["start"]
    except ProcessLookupError:
        return True
    except (ValueError, KeyError, TypeError, OSError):
        return False


def _name_holder(content: str) -> str:
    try:
        holder = json.loads(content)
        return f"process {holder['pid']} of {holder['host']}"
    except (ValueError, KeyError, TypeError):
        return "another job"


def _keep_fresh(path: Path, ended: threading.Event) -> None:
    while not ended.wait(_TOUCH_S):
        with contextlib.suppress(OSError):
            os.utime(path)
