"""Sides that only sleep, or misbehave, for the tests of the harness."""

import contextlib
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dinov2_jax.bench.harness import Part, Settings, Side


def sleeper(settings: Settings) -> Side:
    """Sleeps `sleep_s` a repetition and writes its name to `log` at the start and end of a run."""

    def run(repetitions: int) -> None:
        for word in ("start", "end"):
            with Path(settings["log"]).open("a", encoding="utf-8") as log:
                log.write(f"{settings['name']} {word} {repetitions} {os.getpid()}\n")
            if word == "start":
                time.sleep(settings["sleep_s"] * repetitions)

    return Side(check=lambda: {"answer": np.full(3, settings["answer"])}, run=run)


def fed(settings: Settings) -> Side:
    """Sleeps 40 ms, and 20 ms without its food; what surrounds it takes 100 ms more."""

    @contextlib.contextmanager
    def around() -> Iterator[None]:
        time.sleep(0.05)
        yield
        time.sleep(0.05)

    def sleep(sleep_s: float) -> Part:
        return Part(lambda repetitions: time.sleep(sleep_s * repetitions), around)

    whole = sleep(0.04)
    parts = {"unfed": sleep(0.02)}
    return Side(check=dict, run=whole.run, around=around, multiple=3, parts=parts)


def parent(settings: Settings) -> Side:
    """Has a child process do the work, as loaders do."""

    def run(repetitions: int) -> None:
        child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(0.01,))
        child.start()
        child.join()

    return Side(check=dict, run=run)


def hungry(settings: Settings) -> Side:
    """Fills 64 MiB at set-up, gives them back, and fills `mebibytes` in a run."""
    np.ones(64 * 2**17).sum()

    def run(repetitions: int) -> None:
        np.ones(settings["mebibytes"] * 2**17).sum()

    return Side(check=dict, run=run)


def absent(settings: Settings) -> Side:
    """Needs a package that nobody has."""
    import no_such_package_anywhere  # noqa: F401  # pyrefly: ignore

    raise AssertionError


def broken(settings: Settings) -> Side:
    """Fails at set-up."""
    raise ValueError("out of order")


def dying(settings: Settings) -> Side:
    """Ends its process at the first run, as the kernel does when memory runs out."""
    return Side(check=dict, run=lambda repetitions: os._exit(9))


def job(settings: Settings) -> Iterator[dict[str, object]]:
    """A job that writes what it does to `log`; "sleep_s" is the time that it measures."""
    _note(settings, "prepares")
    yield {"prepared": True}
    _note(settings, "measures")
    time.sleep(settings["sleep_s"])
    yield {"answer": 42}
    _note(settings, "ends")


def endless_job(settings: Settings) -> Iterator[dict[str, object]]:
    """A job that starts a process, hands over one result, and never ends."""
    yield {}
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    yield {"pids": [os.getpid(), helper.pid]}
    time.sleep(300)


def bad_job(settings: Settings) -> Iterator[dict[str, object]]:
    """A job that ends badly: "how" is missing, raises or dies."""
    if settings["how"] == "missing":
        import surely_not_installed  # noqa: F401
    yield {}
    if settings["how"] == "dies":
        os._exit(1)
    raise ValueError("out of order")


def _note(settings: Settings, word: str) -> None:
    with Path(settings["log"]).open("a", encoding="utf-8") as log:
        log.write(f"{settings['name']} {word}\n")
