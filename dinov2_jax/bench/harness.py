"""Two implementations measured in turns: A B A B, each in a worker process of its own.

A side is "module:function"; the function takes a dict of settings and returns a `Side`. Workers are
spawned and live through all rounds, so that neither library sees the other's threads or memory. The
two never run at the same time: while one works, the other waits for a message.
"""

import contextlib
import dataclasses
import functools
import importlib
import math
import multiprocessing
import os
import statistics
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

# OpenMP threads keep a core busy for 0.2 s after their work (KMP_BLOCKTIME); the pause keeps that
# out of the other side's turn.
PAUSE_S = 0.3
# Times from a busy machine are worthless: warn above this many waiting processes per core.
BUSY_LOAD = 0.5

# On CPUs both sides allocate much new memory; with pages of 4 KiB that takes a tenth of their time
# and causes most of the spread on a virtual machine.
HUGE_PAGES = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")

Arrays = dict[str, np.ndarray]
Settings = Mapping[str, Any]


class BenchError(Exception):
    """A benchmark cannot continue; the text says why."""


@dataclasses.dataclass(frozen=True)
class Part:
    """Work that is timed by itself.

    Attributes:
      run: (n) -> does the work n times and waits until it is done.
      around: a context that is entered before the clock starts and left after it has stopped.
    """

    run: Callable[[int], None]
    around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext


@dataclasses.dataclass(frozen=True)
class Side:
    """One implementation, set up.

    Attributes:
      check: () -> named fp32 results, to be compared with the other side's before any timing.
      run, around: what is compared, see `Part`.
      multiple: the number of repetitions per turn is a multiple of it.
      parts: other work by name; every turn times it too, after `run` and as often.
      device_peak_bytes: () -> greatest device memory since the reset; None on the host.
      reset_device_peak: starts that measurement again, if the library can (JAX cannot).
      versions: versions of the libraries that matter.
      device: the device's name, as the library gives it.
    """

    check: Callable[[], Arrays]
    run: Callable[[int], None]
    device_peak_bytes: Callable[[], int | None] = lambda: None
    reset_device_peak: Callable[[], None] = lambda: None
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    device: str = "cpu"
    around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    multiple: int = 1
    parts: Mapping[str, Part] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Measured:
    """Seconds and bytes that one worker reported."""

    name: str
    setup_s: float
    first_run_s: float
    repetitions: int
    device: str
    versions: dict[str, str]
    multiple: int = 1
    turns_s: list[float] = dataclasses.field(default_factory=list)
    cpu_s: list[float] = dataclasses.field(default_factory=list)
    parts_s: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    peak_rss_bytes: int | None = None
    start_rss_bytes: int | None = None
    device_peak_bytes: int | None = None


# --------------------------------------------------------------------------------- in the worker
def _status_bytes(field: str) -> int | None:
    """A line of /proc/self/status in bytes; None where there is no such file."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            for line in status:
                if line.startswith(f"{field}:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _reset_peak_rss() -> None:
    """Resets the kernel's peak memory, so that set-up is not counted."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        pass  # not Linux: the peak then covers the set-up too


def _build(target: str, settings: Settings) -> Side:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)(settings)


def _timed(work: Part | Side, repetitions: int) -> tuple[float, float]:
    with work.around():
        wall, cpu = time.perf_counter(), time.process_time()
        work.run(repetitions)
        return time.perf_counter() - wall, time.process_time() - cpu


def _serve(connection: Connection, target: str, settings: Settings, cores: Sequence[int]) -> None:
    """The worker's loop: answers (command, argument) until the other end closes."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    start_rss = _status_bytes("VmRSS")
    side: Side | None = None
    while True:
        try:
            command, argument = connection.recv()
        except EOFError:
            return
        answer: Any = None
        try:
            if command == "setup":
                start = time.perf_counter()
                side = _build(target, settings)
                seconds = time.perf_counter() - start
                versions, parts = dict(side.versions), list(side.parts)
                answer = (seconds, side.device, versions, start_rss, side.multiple, parts)
            elif command == "check":
                answer = side.check()
            elif command == "run":
                answer = _timed(side, argument)
            elif command == "part":
                name, repetitions = argument
                answer = _timed(side.parts[name], repetitions)
            elif command == "reset":
                _reset_peak_rss()
                if side is not None:
                    side.reset_device_peak()
            elif command == "memory":
                answer = (_status_bytes("VmHWM"), side.device_peak_bytes())
            connection.send((True, answer))
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            connection.send((False, (text, traceback.format_exc(), isinstance(error, ImportError))))


# ----------------------------------------------------------------------------------- in the parent
class MissingPeer(BenchError):
    """A peer whose package is not installed."""


class Worker:
    """A process that holds one side. Use as a context; it ends with the block.

    Args:
      name: name of the side, for messages.
      target, settings: see the module.
      cores: numbers of the CPU cores it may use.
    """

    def __init__(self, name: str, target: str, settings: Settings, cores: Sequence[int]) -> None:
        context = multiprocessing.get_context("spawn")
        os.environ.setdefault(*HUGE_PAGES)  # read by the C library of the new process
        self.name = name
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, target, dict(settings), list(cores))
        )  # no daemon: those may start no loader processes
        self._process.start()
        theirs.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._process.join(timeout=30)
        if self._process.is_alive():
            self._process.kill()

    def ask(self, command: str, argument: Any = None) -> Any:
        """Sends a command and waits for the answer.

        Raises:
          MissingPeer: if a package that the side needs is not installed.
          BenchError: if the side fails; its traceback goes to standard error.
        """
        try:
            self._connection.send((command, argument))
            good, answer = self._connection.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            self._process.join(timeout=5)
            code = self._process.exitcode
            raise BenchError(
                f"the process of {self.name!r} ended with status {code} during {command!r}; "
                "-9 means that memory ran out: use a smaller --batch"
            ) from error
        if good:
            return answer
        text, trace, missing = answer
        if missing:
            raise MissingPeer(f"{self.name} cannot be imported ({text}); pip install '.[bench]'")
        raise BenchError(f"{self.name} failed: {text}\n{trace}")

    def setup(self) -> Measured:
        """Builds the side and runs it once, which compiles it."""
        setup_s, device, versions, start_rss, multiple, parts = self.ask("setup")
        first_run_s = self.ask("run", 1)[0]
        return Measured(
            self.name,
            setup_s,
            first_run_s,
            1,
            device,
            versions,
            multiple=multiple,
            parts_s={name: [] for name in parts},
            start_rss_bytes=start_rss,
        )


def calibrate(worker: Worker, measured: Measured, turn_s: float) -> None:
    """Warms up and sets the number of repetitions that fill `turn_s` seconds."""
    worker.ask("run", 1)  # allocators and autotuners settle
    some_s = worker.ask("run", measured.multiple)[0]
    measured.repetitions = measured.multiple * max(1, math.ceil(turn_s / max(some_s, 1e-6)))
    if measured.repetitions > measured.multiple:
        worker.ask("run", measured.repetitions)
    for name in measured.parts_s:
        worker.ask("part", (name, 1))


def take_turns(
    pair: Sequence[tuple[Worker, Measured]],
    rounds: int,
    *,
    progress: Callable[[str], None] = lambda text: None,
) -> list[list[float]]:
    """A B A B ...: `rounds` turns per side; seconds of one repetition, one list per side.

    The records get the turns, also those of the parts, and at the end both peaks of memory.
    """
    for worker, _ in pair:
        worker.ask("reset")
    turns: list[list[float]] = [[] for _ in pair]
    for number in range(rounds):
        for (worker, measured), mine in zip(pair, turns, strict=True):
            time.sleep(PAUSE_S)
            wall, cpu = worker.ask("run", measured.repetitions)
            mine.append(wall / measured.repetitions)
            measured.turns_s.append(mine[-1])
            measured.cpu_s.append(cpu / measured.repetitions)
            for name, part_s in measured.parts_s.items():
                time.sleep(PAUSE_S)
                wall = worker.ask("part", (name, measured.repetitions))[0]
                part_s.append(wall / measured.repetitions)
        progress(f"round {number + 1}/{rounds}")
    for worker, measured in pair:
        measured.peak_rss_bytes, measured.device_peak_bytes = worker.ask("memory")
    return turns


def ratios(ours_s: Sequence[float], peer_s: Sequence[float]) -> dict[str, float]:
    """Peer's time / ours in neighbouring turns: median, smallest and largest."""
    pairwise = [peer / ours for ours, peer in zip(ours_s, peer_s, strict=True)]
    return {
        "median": statistics.median(pairwise),
        "least": min(pairwise),
        "greatest": max(pairwise),
    }


def compare(
    ours: Arrays, theirs: Arrays, *, max_rel: float | None = None, min_cosine: float | None = None
) -> dict[str, float]:
    """Largest difference of two sets of results, by name.

    Args:
      max_rel: largest allowed |a - b| / max |b| of an array.
      min_cosine: smallest allowed cosine of two arrays, each taken as one vector.

    Returns:
      {name: relative difference, or 1 - cosine when `min_cosine` is given}.

    Raises:
      BenchError: an array differs by more, or one side lacks it.
    """
    if ours.keys() != theirs.keys():
        raise BenchError(f"parity: {sorted(ours)} here, but {sorted(theirs)} there")
    differences = {}
    for name, mine in ours.items():
        a, b = np.asarray(mine, np.float64), np.asarray(theirs[name], np.float64)
        if a.shape != b.shape:
            raise BenchError(f"parity of {name}: shape {a.shape} here, {b.shape} there")
        if min_cosine is not None:
            cosine = float(np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))
            differences[name] = 1 - cosine
            good = cosine >= min_cosine  # also False for nan
            limit = f"cosine {cosine:.6f} is below {min_cosine}"
        else:
            differences[name] = float(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-30))
            good = max_rel is not None and differences[name] <= max_rel
            limit = f"relative difference {differences[name]:.2e} is above {max_rel}"
        if not good:
            raise BenchError(f"parity of {name} fails, so nothing was timed: {limit}")
    return differences


def parity_of(dtype: str) -> Callable[..., dict[str, float]]:
    """How close results of this dtype must be: fp32 to 1e-4, bf16 to a cosine of 0.999."""
    limit: dict[str, Any] = {"max_rel": 1e-4} if dtype == "float32" else {"min_cosine": 0.999}
    return functools.partial(compare, **limit)
