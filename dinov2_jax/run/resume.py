"""Iterations whose state is stored in one file, so that a killed evaluation continues."""

import json
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array, NamedSharding, P
from safetensors import safe_open
from safetensors.numpy import save_file

from dinov2_jax.errors import EvaluationError
from dinov2_jax.parallel.mesh import path_name
from dinov2_jax.run.files import replacing
from dinov2_jax.run.progress import Progress

# Steps in flight on an accelerator while the next batch is made; each holds a batch. On CPU there
# are none: they would compete for the cores, and virtual devices wait for each other in every
# collective, which XLA ends after 40 s if another program has their threads.
_IN_FLIGHT = 2


class StateFile:
    """A tree of arrays and the number of the next iteration, in a file that is whole or not there.

    The folder of `path` is made; None stores nothing. `fingerprint` holds plain values that
    identify the work; a file with other values is refused.
    """

    def __init__(self, path: Path | None, fingerprint: Mapping[str, Any]) -> None:
        self._path, self._fingerprint = path, json.loads(json.dumps(dict(fingerprint)))

    def load(self, like: Any) -> tuple[Any, int]:
        """The stored tree (numpy arrays) and iteration, or `like` and 0 if there is no file.

        Raises EvaluationError where the file was written with other settings or data.
        """
        if self._path is None or not self._path.exists():
            return like, 0
        with safe_open(self._path, "numpy") as file:
            stored = file.metadata()
            self._require_same(json.loads(stored["fingerprint"]))
            names = list(_named(like))
            leaves = [file.get_tensor(name) for name in names]
        return jax.tree.unflatten(jax.tree.structure(like), leaves), int(stored["iteration"])

    def _require_same(self, stored: dict[str, Any]) -> None:
        wanted = self._fingerprint
        for name in sorted({*stored, *wanted}):
            if stored.get(name) != wanted.get(name):
                raise EvaluationError(
                    f"{self._path} was written with {name} {stored.get(name)}, but now it is "
                    f"{wanted.get(name)}; delete it or use another folder"
                )

    def save(self, tree: Any, iteration: int) -> None:
        """Replaces the file. Every process must call it; process 0 writes."""
        if self._path is None:
            return
        tensors = {name: to_host(x) for name, x in _named(tree).items()}
        if jax.process_index() == 0:
            about = {"fingerprint": json.dumps(self._fingerprint), "iteration": str(iteration)}
            write_tensors(self._path, tensors, about)


def _named(tree: Any) -> dict[str, Any]:
    return {path_name(path): x for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]}


def to_host(x: Any) -> np.ndarray:
    """The whole array on this process, wherever its shards are."""
    if isinstance(x, Array) and not x.is_fully_addressable:
        sharding = x.sharding
        assert isinstance(sharding, NamedSharding)
        x = jax.jit(lambda y: y, out_shardings=NamedSharding(sharding.mesh, P()))(x)
    return np.asarray(x)


def write_tensors(path: Path, tensors: dict[str, np.ndarray], about: dict[str, str]) -> None:
    """Writes a whole safetensors file, or none; makes its folder."""
    contiguous = {name: np.asarray(x, order="C") for name, x in tensors.items()}
    with replacing(path) as temporary:
        save_file(contiguous, temporary, about)


def run_steps(
    step: Callable[[Any, range], tuple[Any, Array]],
    state: Any,
    iterations: range,
    file: StateFile,
    save_every: int,
    *,
    stride: int = 1,
    quiet: bool = False,
) -> Any:
    """Runs all iterations with a progress bar, unless `quiet`, and returns the last state.

    `step` is (state, iterations) -> state and losses; it takes its batches itself. The state is
    saved after each multiple of `save_every`, and after the last iteration. `stride` are the most
    iterations of one call. Calls begin where states are saved, so a run that continues makes the
    same calls.
    """
    in_flight: deque[Array] = deque()
    allowed = 0 if jax.default_backend() == "cpu" else _IN_FLIGHT
    progress = None
    if jax.process_index() == 0 and len(iterations) and not quiet:
        progress = Progress(iterations.stop, start_step=iterations.start, unit="iteration")
    done = iterations.start
    while done < iterations.stop:
        first, next_save = done, (done // save_every + 1) * save_every
        done = min(first + stride, next_save, iterations.stop)
        state, losses = step(state, range(first, done))
        in_flight.append(losses)
        if len(in_flight) > allowed:
            losses = jax.block_until_ready(in_flight.popleft())
        if done in (next_save, iterations.stop):
            file.save(state, done)
        if progress is not None:
            ready = losses.is_ready() and losses.is_fully_replicated
            progress.update(done, **({"loss": _least(losses)} if ready else {}))
    if progress is not None:
        progress.close()
    return state


def _least(losses: Array) -> float:
    """The least finite loss: several heads are trained together, and some may diverge."""
    found = np.asarray(losses)
    return float(np.min(found, where=np.isfinite(found), initial=np.inf))
