"""Jobs that prepare side by side, take the device one after the other, and end at a deadline.

A job is a generator function (settings) -> iterator of dicts, named "module:function". Up to its
first `yield` it prepares: it imports and compiles, and keeps nothing large on the device. Then it
waits for its turn. Each later `yield` hands over more results, so a job that is stopped keeps what
it had. Each job has a process of its own: its peak of device memory is its own, and one library
never waits for memory that another has kept.

Timing beside compilers is accepted, because they load other cores; `beside` names the jobs that
were still preparing when a turn began, as compilers also try kernels on the device now and then.
"""

import contextlib
import importlib
import multiprocessing
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from dinov2_jax.bench import stand_ins
from dinov2_jax.bench.harness import Settings, Side

Entries = dict[str, Any]
TICK_S = 1.0  # the longest wait before the clock is read again


@dataclass(frozen=True)
class Job:
    """Something to run.

    Attributes:
      target: see the module.
      needs_s: its turn begins only if so many seconds are left.
      after: a job whose end its turn waits for, if that is to run at all.
    """

    name: str
    target: str
    settings: Settings
    needs_s: float = 0.0
    after: str = ""


@dataclass
class Running:
    """A job whose process has started.

    Attributes:
      kill: ends the process and those that it has started, without waiting.
      join: waits until the process has ended, some seconds at most.
      state: "preparing", "ready" or "measuring".
    """

    job: Job
    connection: Connection
    kill: Callable[[], None]
    join: Callable[[], None]
    state: str = "preparing"


# --------------------------------------------------------------------------------- in the child
def _serve(connection: Connection, target: str, settings: Settings) -> None:
    """The process of a job: tells ("ready" | "entries" | "done" | "missing" | "failed", value)."""
    if hasattr(os, "setsid"):
        os.setsid()  # the processes that a compiler starts belong to the group, to end with it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    stand_ins.install()
    module, _, name = target.partition(":")
    try:
        steps = getattr(importlib.import_module(module), name)(settings)
        connection.send(("ready", next(steps)))
        connection.recv()
        for entries in steps:
            connection.send(("entries", entries))
        connection.send(("done", None))
    except ImportError as error:
        connection.send(("missing", str(error)))
    except Exception as error:
        connection.send(("failed", f"{type(error).__name__}: {error}"))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        _kill_group(os.getpid())


def _kill_group(pid: int) -> None:
    """Ends a job's process and those that it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg") and os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
        else:  # it has only just started
            os.kill(pid, signal.SIGTERM)


# -------------------------------------------------------------------------------- in the parent
def start_process(job: Job) -> Running:
    """Starts a job, which prepares at once."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    arguments = (theirs, job.target, dict(job.settings))
    process = context.Process(target=_serve, args=arguments, daemon=True)
    process.start()
    theirs.close()

    def kill() -> None:
        if process.is_alive() and process.pid is not None:
            _kill_group(process.pid)

    return Running(job, ours, kill, lambda: process.join(timeout=5))


@dataclass
class Schedule:
    """Runs jobs in order of worth, each as soon as it is ready and the device is free.

    Attributes:
      jobs: the most worth first.
      left_s: () -> seconds until everything stops.
      tell: (job's name, entries) -> None; entries are merged into the job's record. Each record
        ends with "status": done, missing (a package), failed, cut (by the deadline) or skipped;
        all but done have "why".
      at_once: jobs that may prepare at the same time.
      start: starts the process of a job.
    """

    jobs: Sequence[Job]
    left_s: Callable[[], float]
    tell: Callable[[str, Entries], None]
    at_once: int = 1
    start: Callable[[Job], Running] = start_process
    running: dict[str, Running] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Returns when all jobs have ended or the time is over; no process is left then."""
        try:
            while len(self.ended) < len(self.jobs) and self.left_s() > 0:
                self._start_more()
                self._give_turn()
                self._listen()
        finally:
            for running in self.running.values():
                running.kill()
            for job in self._open():
                self._give_up(job)

    def _with(self, state: str) -> list[Running]:
        return [running for running in self.running.values() if running.state == state]

    def _open(self) -> list[Job]:
        return [job for job in self.jobs if job.name not in self.ended]

    def _start_more(self) -> None:
        for job in self._open():
            if len(self._with("preparing")) >= self.at_once:
                return
            if job.name not in self.running:
                self.tell(job.name, {"status": "preparing"})
                self.running[job.name] = self.start(job)

    def _give_turn(self) -> None:
        """Lets the first job that is ready measure, if no other does; skips what is too late."""
        if self._with("measuring"):
            return
        for job in self._open():
            left = self.left_s()
            if left < job.needs_s:
                why = f"{max(left, 0):.0f} s were left, and it needs {job.needs_s:.0f} s"
                self._end(job.name, "skipped", why)
            elif self._ready(job):
                beside = [running.job.name for running in self._with("preparing")]
                self.tell(job.name, {"status": "measuring", "beside": beside})
                self.running[job.name].state = "measuring"
                with contextlib.suppress(OSError):  # an ended process is heard of below
                    self.running[job.name].connection.send("go")
                return

    def _ready(self, job: Job) -> bool:
        waits = job.after in {other.name for other in self._open()}
        return job.name in self.running and self.running[job.name].state == "ready" and not waits

    def _listen(self) -> None:
        """Waits for news of any job, at most TICK_S."""
        listeners: dict[Any, Running] = {r.connection: r for r in self.running.values()}
        for connection in wait(list(listeners), timeout=max(0.0, min(TICK_S, self.left_s()))):
            self._hear(listeners[connection])

    def _hear(self, running: Running) -> None:
        name = running.job.name
        try:
            kind, value = running.connection.recv()
        except (EOFError, OSError):
            kind, value = "failed", f"its process ended while {running.state}"
        if kind == "ready":
            running.state = "ready"
            self.tell(name, {"status": "ready"} | value)
        elif kind == "entries":
            self.tell(name, value)
        else:
            self._end(name, kind, value)

    def _give_up(self, job: Job) -> None:
        state = self.running[job.name].state if job.name in self.running else "waiting"
        status = "cut" if state == "measuring" else "skipped"
        self._end(job.name, status, f"the run ended while it was {state}")

    def _end(self, name: str, status: str, why: str | None) -> None:
        self.ended.add(name)
        running = self.running.pop(name, None)
        if running is not None:
            running.kill()
            running.join()  # the device's memory is free only then
            running.connection.close()
        self.tell(name, {"status": status} | ({"why": why} if why else {}))


# ------------------------------------------------------------------------- what jobs measure with
def measured(side: Side, items: int, budget_s: float) -> Iterator[Mapping[str, Any]]:
    """Times a side in turns: median, spread and peak memory; gives a first result after one turn.

    Args:
      items: images of one repetition.
      budget_s: about how long to measure, in five turns after one of warming up.
    """
    side.run(1)
    start = time.perf_counter()
    side.run(2)
    once_s = (time.perf_counter() - start) / 2
    side.reset_device_peak()
    repetitions = max(1, round(budget_s / 6 / max(once_s, 1e-6)))
    turns_s: list[float] = []
    for number in range(6):
        start = time.perf_counter()
        side.run(repetitions)
        turn_s = (time.perf_counter() - start) / repetitions
        turns_s += [turn_s] if number else []  # the first one warms up
        if number in (1, 5):
            yield {
                "ms": 1e3 * statistics.median(turns_s),
                "images_per_s": items / statistics.median(turns_s),
                "turns_ms": [1e3 * seconds for seconds in turns_s],
                "repetitions": repetitions,
                "peak_bytes": side.device_peak_bytes(),
            }
