"""Reads a grain dataset ahead in worker processes, and ends them without leaving shared memory."""

import contextlib
import gc
import multiprocessing
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from dinov2_jax.errors import UserError

Batch = dict[str, np.ndarray]

_SHARED_MEMORY = "/dev/shm"
# What asks a run to end. The main process answers them (run/interrupt.py), its workers do not.
STOP_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP")
    if hasattr(signal, name)
)


class LoaderError(UserError):
    """Loader processes that cannot be started; the message is one sentence."""


class LostWorkerError(LoaderError):
    """A loader process that ended, mostly because the system killed it."""


def join(parts: Sequence[Batch]) -> Batch:
    """Concatenates batches, also a single one, into memory of their own.

    grain's arrays lie in shared memory. A block of it that is still referenced when the
    interpreter ends is lost to the machine.
    """
    return {
        name: np.concatenate([part[name].view(np.ndarray) for part in parts]) for name in parts[0]
    }


class Reader:
    """A dataset's elements in order, read ahead in `workers` processes, or on a thread if 0.

    Args:
      element_bytes: of the largest element.
      held: elements that the reader's user holds at a time.

    Raises:
      LoaderError: the workers' elements do not fit in shared memory.
    """

    def __init__(
        self, dataset: grain.MapDataset, workers: int, element_bytes: int, held: int = 1
    ) -> None:
        _check_shared_memory(workers, element_bytes, held)
        if not flags.FLAGS.is_parsed():  # grain starts no process before absl's flags are parsed
            flags.FLAGS.mark_as_parsed()
        reading = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
        if workers:
            # BLAS reads this when a worker loads numpy; its threads would only compete for cores.
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
            options = grain.MultiprocessingOptions(num_workers=workers)
            reading = reading.mp_prefetch(options, worker_init_fn=_start_worker)
        self._workers, self._delivered = workers, 0
        self._iterator: Any = iter(reading)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        self._delivered += 1
        try:
            return next(self._iterator)
        except RuntimeError as error:
            if lost := re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error)):
                raise _lost_worker(int(lost[1]), self._workers) from error
            raise

    def close(self) -> None:
        """Ends the processes and waits until the shared memory of their arrays is freed."""
        # grain starts all workers at the first element, but ends only those that have delivered
        # one: the others would go on, and their arrays stay in /dev/shm.
        with contextlib.suppress(Exception):  # a worker that failed has ended, too
            while 0 < self._delivered < self._workers:
                next(self)
        self._iterator.close()
        self._iterator = iter(())  # grain's objects complain if the interpreter's end meets them
        _wait_for_freed_memory()


def _check_shared_memory(workers: int, element_bytes: int, held: int) -> None:
    """Raises LoaderError if /dev/shm has less room than workers may take: they die by SIGBUS."""
    if not workers or not os.path.isdir(_SHARED_MEMORY):
        return
    # Each worker reads two elements ahead, has one in its queue and one that waits for the queue.
    needed, free = (4 * workers + held) * element_bytes, shutil.disk_usage(_SHARED_MEMORY).free
    if needed <= free:
        return
    fit = max(0, (free // max(1, element_bytes) - held) // 4)
    raise LoaderError(
        f"{workers} loader processes need {_megabytes(needed)} MB of shared memory, but "
        f"{_SHARED_MEMORY} has {_megabytes(free)} MB free; give the container more (docker run "
        f"--shm-size={-(-needed // (1 << 30))}g; in Kubernetes an emptyDir of medium Memory), or "
        f"use --config.data.workers={fit}"
    )


def _megabytes(count: int) -> int:
    return -(-count // (1 << 20))


def _lost_worker(exit_code: int, workers: int) -> LostWorkerError:
    reasons = {
        -9: f"it was killed, most likely because the machine's memory is full; use fewer than "
        f"{workers} --config.data.workers",
        -7: f"{_SHARED_MEMORY} is full; give the container more, or use fewer than {workers} "
        "--config.data.workers",
    }
    reason = reasons.get(exit_code, "what it printed above says why")
    return LostWorkerError(f"a loader process ended with exit code {exit_code}: {reason}")


def _wait_for_freed_memory() -> None:
    """Waits for the daemon thread with which grain frees arrays: else they stay in /dev/shm."""
    try:
        from grain._src.python.ipc.shared_memory_array import SharedMemoryArray
    except ImportError:  # a private name, which another release may have moved
        return
    pool = getattr(SharedMemoryArray, "_del_thread_pool", None)
    if pool is not None:
        gc.collect()
        with contextlib.suppress(ValueError):  # the interpreter has ended the thread
            pool.apply(int)  # one thread works in order, so all earlier calls are done


def _start_worker(worker: int, workers: int) -> None:
    """Lets the main process alone decide when to stop: it saves first, and needs batches to do so.

    Ctrl-C, a lost terminal and a scheduler's signals reach every process of a job. If the main
    process is killed, its workers end too.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
