"""One job at a time in a folder: a lock file that names its holder.

The holder touches the file every few seconds. A lock counts as left behind if its process on this
machine has ended, or if nobody has touched it for `STALE_S`.
"""

import contextlib
import datetime
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dinov2_jax.errors import UserError
from dinov2_jax.parallel.processes import from_main, is_main, require_shared

LOCK_FILE = ".lock"
STALE_S = 120.0
_TOUCH_S = 10.0
_POLL_S = 0.5


class LockedError(UserError):
    """Another job works in a folder; the message names its host, process and start."""


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Holds the lock of a folder, which is made; an empty one is removed afterwards.

    All processes of a job must enter together; process 0 holds the lock for them.

    Args:
      wait: until another job has ended.

    Raises:
      LockedError: another job holds the lock, and is alive. Whether one on another machine is, may
        take `STALE_S` to see.
      ConfigError: the processes of this job do not share the folder.
    """
    attempt = _Attempt(folder / LOCK_FILE, wait)
    while not from_main(is_main() and attempt.succeeds()):
        if holder := from_main("" if wait else attempt.living_holder):
            raise LockedError(
                f"{holder} works in {folder}; wait for its end, or use another --workdir"
            )
        time.sleep(_POLL_S)
    if not is_main():
        require_shared(folder)
        yield
        return
    ended = threading.Event()
    threading.Thread(target=_keep_fresh, args=(attempt.path, ended), daemon=True).start()
    try:
        require_shared(folder)
        yield
    finally:
        ended.set()
        if attempt.is_ours():
            attempt.path.unlink()
            with contextlib.suppress(OSError):  # it holds something
                folder.rmdir()


class _Attempt:
    """Attempts to create a lock file, and what was seen of another's on the way."""

    def __init__(self, path: Path, wait: bool = True) -> None:
        self.path, self._own, self._wait = path, json.dumps(_describe_self()), wait
        self.living_holder = ""
        self._seen: tuple[str, int] | None = None
        self._since, self._told, self._touched = 0.0, False, False

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
            else:
                self._tell(seen[0])
        return False

    def _tell(self, content: str) -> None:
        """Names the holder once; without waiting, only whether it lives counts."""
        holder = _name_holder(content)
        if not self._wait and (_is_here(content) or self._touched):
            self.living_holder = holder
        elif not self._told:
            self._told = True
            why = "which works in" if self._wait else f"to see for {STALE_S:.0f} s if it still uses"
            print(f"waits for {holder}, {why} {self.path.parent}", flush=True)

    def is_ours(self) -> bool:
        """Whether the file still names this process."""
        with contextlib.suppress(FileNotFoundError):
            return self.path.read_text(encoding="utf-8") == self._own
        return False

    def _is_left_behind(self, seen: tuple[str, int]) -> bool:
        now = time.monotonic()  # not the file's clock, which may be a server's
        if seen != self._seen:
            self._touched = self._seen is not None
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
    since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    own = {"host": socket.gethostname(), "machine": _machine(), "pid": pid, "start": _start(pid)}
    return own | {"since": since}


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


def _is_here(content: str) -> bool:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return json.loads(content)["machine"] == _machine()
    return False


def _name_holder(content: str) -> str:
    try:
        holder = json.loads(content)
        return f"process {holder['pid']} of {holder['host']}, since {holder['since']},"
    except (ValueError, KeyError, TypeError):
        return "another job"


def _keep_fresh(path: Path, ended: threading.Event) -> None:
    while not ended.wait(_TOUCH_S):
        with contextlib.suppress(OSError):
            os.utime(path)
