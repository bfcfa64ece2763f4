"""Several processes: starting jax.distributed, and the messages between the processes of a run.

Every process runs the same program on its own share of the pictures. For a single process, the
usual case, these functions do nothing and ask no device.
"""

import contextlib
import glob
import importlib.util
import json
import math
import os
import re
import secrets
import sys
import time
import traceback
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from dinov2_jax.config.checks import check_distributed
from dinov2_jax.config.files import ConfigError
from dinov2_jax.parallel.placement import gather

LOST = 3  # exit status

# A collective or a call of the coordination service that failed because its other end is gone.
_SIGNS_OF_LOSS = (
    "gloo", "connection closed", "connection reset", "connection refused", "socket closed",
    "heartbeat", "coordination", "barrier", "unavailable:", "deadline_exceeded",
    "another task died",
)  # fmt: skip
# NCCL fails for many reasons, most of them of this machine; only these mean that a peer is gone.
_SIGNS_OF_NCCL_LOSS = (
    "remote process exited", "ncclremoteerror", "connection closed", "connection reset",
    "heartbeat", "deadline_exceeded", "another task died",
)  # fmt: skip
# The same libraries report faults of this process under these words.
_SIGNS_OF_OWN_FAULT = (
    "resource_exhausted", "out of memory", "invalid_argument", "invalid argument", "invalid usage",
    "unimplemented:",
)  # fmt: skip


def start(settings: Mapping[str, Any]) -> None:
    """Connects this process to the others of the run; must come before JAX looks for devices.

    In `config.distributed`, coordinator "auto" recognises a SLURM step of several tasks and a TPU
    machine by the environment; anything else is one process.

    Raises:
      ConfigError: for settings that contradict each other, or when the others do not answer.
    """
    check_distributed(settings)
    arguments = _initialize_arguments(settings, os.environ)
    if arguments is None:
        return
    # Its handler of SIGTERM would replace ours, and it ignores SIGINT.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=settings["heartbeat_s"])
    except (RuntimeError, ValueError) as error:
        if settings["coordinator"] == "auto" and "should be defined" in str(error):
            return  # a TPU machine outside a pod
        place = arguments.get("coordinator_address") or "the coordinator that the environment names"
        raise ConfigError(
            f"the processes of this run did not find each other at {place}: start all of them "
            "with the same config.distributed, on a port that is free and reachable "
            f"({str(error).strip().partition(chr(10))[0]})"
        ) from error


def _initialize_arguments(
    settings: Mapping[str, Any], environment: Mapping[str, str]
) -> dict[str, Any] | None:
    """Arguments of `jax.distributed.initialize`; None for one process."""
    if settings["coordinator"] == "auto":
        # The number of tasks of the step, not SLURM_NTASKS of the job: a program that a batch
        # script starts without srun is alone, whatever the size of the job.
        if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
            return {"cluster_detection_method": "slurm"}
        return {} if _on_tpu(environment) else None
    if settings["coordinator"] == "none" or settings["processes"] == 1:
        return None
    return {
        "coordinator_address": settings["coordinator"],
        "num_processes": settings["processes"],
        "process_id": settings["process_id"],
        # A surrounding SLURM step would restrict each process to one device.
        "cluster_detection_method": "deactivate",
    }


def _on_tpu(environment: Mapping[str, str]) -> bool:
    if environment.get("JAX_PLATFORMS", "tpu").split(",")[0] != "tpu":
        return False
    chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def is_main() -> bool:
    """Whether this is process 0, the only one that writes files and prints."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def own_name() -> str:
    """ ".process_3", a part of the names of this process's own files; "" if it is alone."""
    return f".process_{jax.process_index()}" if jax.process_count() > 1 else ""


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Runs the body on process 0 first, then on the others, which find what it has prepared."""
    if not is_main():
        multihost_utils.sync_global_devices("main_first")
    yield
    if is_main() and jax.process_count() > 1:
        multihost_utils.sync_global_devices("main_first")


def from_main(value: Any) -> Any:
    """Returns the JSON value that process 0 gives, on every process."""
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return value
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.resize(text, length)
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(padded).tolist()))


def require_same(**texts: str) -> None:
    """Compares texts that every process must share, such as the configuration.

    Raises:
      ConfigError: on every process; it names the text that differs and the process.
    """
    if jax.process_count() == 1:
        return
    marks = np.array([zlib.crc32(text.encode()) for text in texts.values()], np.uint32)
    of_all = np.asarray(multihost_utils.process_allgather(marks))
    different = np.argwhere(of_all != of_all[0])
    if len(different):
        process, which = different[0]
        raise ConfigError(
            f"process {process} has another {list(texts)[which].replace('_', ' ')} than process 0;"
            " give all processes the same command, files and versions"
        )


def require_shared(folder: Path, wait_s: float = 30.0) -> None:
    """Every process must see what process 0 writes to a folder; on local disks no save would end.

    Args:
      wait_s: how long a shared file may take to be seen everywhere.

    Raises:
      ConfigError: on every process.
    """
    if jax.process_count() == 1:
        return
    mark = folder / f".shared.{from_main(secrets.token_hex(8))}"
    with main_first():
        if is_main():
            mark.touch()
    until = time.monotonic() + wait_s
    # A listing, because a network file system may remember that a name was not there.
    while not (seen := folder.is_dir() and mark.name in os.listdir(folder)):
        if time.monotonic() > until:
            break
        time.sleep(0.2)
    of_all = np.asarray(multihost_utils.process_allgather(np.int32(seen))).ravel()
    if is_main():
        mark.unlink()
    if not of_all.all():
        raise ConfigError(
            f"process {int(of_all.argmin())} does not see what process 0 wrote to {folder}: all "
            "processes need one --workdir on storage that they share"
        )


class Exchange:
    """Sends small integers of every process to all processes, once a step.

    Messages are read `lag_steps` steps later, when the device has long sent them, so nothing waits.
    All processes read the same message at the same step and may act on it: `on_message` gets the
    arrays given to `send`, those of all processes concatenated along the first axis. A single
    process reads its message at once. `mesh` holds all devices of all processes.
    """

    def __init__(
        self, mesh: Mesh, on_message: Callable[[dict[str, np.ndarray]], object], lag_steps: int = 2
    ) -> None:
        self._mesh, self._on_message, self._lag = mesh, on_message, lag_steps
        owners = [device.process_index for device in mesh.devices.flat]
        self._first = [owners.index(process) for process in sorted(set(owners))]
        self._pending: deque[tuple[dict[str, tuple[int, ...]], Any]] = deque()

    def send(self, **arrays: np.ndarray) -> None:
        """Sends int32 arrays of at least one axis, of equal shapes in every process and step."""
        if len(self._first) == 1:
            self._on_message(arrays)
            return
        packed = np.concatenate([value.astype(np.int32).ravel() for value in arrays.values()])
        shapes = {name: value.shape for name, value in arrays.items()}
        self._pending.append((shapes, gather(packed, self._mesh)))
        self.flush(self._lag)

    def flush(self, lag_steps: int = 0) -> None:
        """Reads all but the newest `lag_steps` messages; every process must do so at one step."""
        while len(self._pending) > lag_steps:
            shapes, packed = self._pending.popleft()
            rows = np.asarray(packed)[self._first]
            ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
            parts = np.split(rows, ends[:-1], axis=1)
            named = zip(shapes.items(), parts, strict=True)
            self._on_message({name: x.reshape(-1, *shape[1:]) for (name, shape), x in named})


@contextlib.contextmanager
def end_when_lost() -> Iterator[None]:
    """Ends this process with status 3 if the body fails because another one is gone.

    It ends at once, because closing a checkpoint would wait for the lost process; with status 1
    after an error of NCCL, whose cause may be here. The traceback is printed too: the signs may
    have another cause.
    """
    try:
        yield
    except Exception as error:
        lost = lost_process(error)
        sentence = lost or nccl_failure(error)
        if sentence:
            traceback.print_exception(error)
            print(f"error: {sentence}", file=sys.stderr, flush=True)
            os._exit(LOST if lost else 1)
        raise


def lost_process(error: BaseException) -> str:
    """One sentence if `error` says that another process of the run is gone, else ""."""
    text = _words(error)
    signs = _SIGNS_OF_NCCL_LOSS if "nccl" in text else _SIGNS_OF_LOSS
    own_fault = any(sign in text for sign in _SIGNS_OF_OWN_FAULT)
    if own_fault or not any(sign in text for sign in signs):
        return ""
    return (
        f"process {jax.process_index()} of {jax.process_count()} lost another process of the run, "
        "which has died or cannot be reached; its own output says why, and the same command "
        f"continues from the last checkpoint ({str(error).strip().partition(chr(10))[0][:200]})"
    )


def nccl_failure(error: BaseException) -> str:
    """One sentence with NCCL's own words if `error` is of NCCL and no lost process, else ""."""
    if "nccl" not in _words(error) or lost_process(error):
        return ""
    told = [str(seen) for seen in _chain(error) if "nccl" in str(seen).lower()]
    return (
        f"NCCL failed on process {jax.process_index()} of {jax.process_count()} "
        f"({' '.join(told[-1].split())[:1000]}); NCCL_DEBUG=INFO in the environment makes it say "
        "more, and the same command continues from the last checkpoint"
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _words(error: BaseException) -> str:
    """What the runtime says in an error of several processes, in small letters; else ""."""
    # A process that never found the others has no device to ask; its own error says so.
    if isinstance(error, ConfigError) or not jax.distributed.is_initialized():
        return ""
    return "\n".join(str(seen) for seen in _chain(error) if _of_runtime(seen)).lower()


def _of_runtime(error: BaseException) -> bool:
    """Whether JAX's runtime raised it: the words of a loss mean nothing in other errors."""
    if isinstance(error, TimeoutError | jax.errors.JaxRuntimeError):
        return True
    if not re.match(r"[A-Z_]+: ", str(error)):  # a status
        return False
    # A collective may end as a ValueError, and so may a file that cannot be written.
    return isinstance(error, RuntimeError) or bool(re.search("gloo|nccl", str(error).lower()))
