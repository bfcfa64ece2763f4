"""Checkpoints of a run: <workdir>/checkpoints/<step>/{state, loader, config, provenance}.

A step directory is written under a temporary name and renamed when complete, so a half-written one
is never read. The arrays are stored by name and global shape: a run resumes on any number of
devices, and an evaluation uses one.
"""

import contextlib
import shutil
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from dinov2_jax.config.files import diff_configs, tuples
from dinov2_jax.data.sources.source import short_message
from dinov2_jax.errors import UserError, of_machine, one_line, sentence
from dinov2_jax.parallel.processes import from_main, is_main
from dinov2_jax.run.provenance import provenance

_ITEMS = ("state", "loader", "config", "provenance")
_STEP_MARKER = "_CHECKPOINT_METADATA"
_epath = ocp.utils.epath.Path


class CheckpointError(UserError):
    """A checkpoint is missing, incomplete or of another model; the message is one sentence."""


class Checkpoints:
    """Asynchronous, atomic checkpoints of one run.

    The `keep_last` newest steps stay; multiples of `keep_every_steps` stay for good (0: none).
    Steps behind the newest whole one are damaged: they are renamed to <step>.damaged, so that the
    whole one counts.

    Args:
      origin: what made the pictures, for the provenance.

    Attributes:
      notes: a sentence on each damaged step.

    Raises:
      CheckpointError: all steps are damaged, or the disk does not let them be read; nothing is
        renamed then.
    """

    def __init__(
        self,
        workdir: str | Path,
        keep_last: int,
        keep_every_steps: int,
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        self._origin = dict(origin or {})
        self.directory = Path(workdir).resolve() / "checkpoints"
        # Process 0 decides, and all raise the same error.
        self.notes, problem = from_main(_put_in_order(self.directory) if is_main() else ())
        if problem:
            raise CheckpointError(problem)
        policies: list[Any] = [ocp.checkpoint_managers.LatestN(max(1, keep_last))]
        if keep_every_steps > 0:
            policies.append(ocp.checkpoint_managers.EveryNSteps(keep_every_steps))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def steps(self) -> set[int]:
        """All complete steps."""
        return {*self._manager.all_steps()}

    def latest_step(self) -> int | None:
        """Newest complete step, None in a new run."""
        return self._manager.latest_step()

    def forget_after(self, step: int) -> None:
        """Deletes all later steps, which a run that continues from `step` takes again."""
        for later in (known for known in self.steps() if known > step):
            self._manager.delete(later)

    def save(
        self, step: int, state: Any, *, loader: dict[str, Any], config: dict[str, Any]
    ) -> bool:
        """Copies `state` to the host, writes it in the background; False if already stored."""
        if step in self.steps():
            return False
        plain = {"loader": loader, "config": config, "provenance": provenance(self._origin)}
        items = {name: ocp.args.JsonSave(values) for name, values in plain.items()}
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), **items)
        with self._saving():
            return self._manager.save(step, args=args, force=True)

    def restore(
        self, abstract_state: Any, step: int | None = None, *, config: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """The state, the loader's position and the configuration of a step, by default the newest.

        `abstract_state` is a tree of `jax.ShapeDtypeStruct` with shardings on the current devices.
        Raises CheckpointError where there is no such step, or its arrays differ from that tree; if
        the current `config` is given, the message names the fields that differ.
        """
        steps = sorted(self.steps(), reverse=True)
        if not steps or step not in (None, *steps):
            stored = "; ".join(
                [f"stored: {', '.join(map(str, steps[::-1])) or 'none'}", *self.notes]
            )
            raise CheckpointError(f"no checkpoint of step {step} in {self.directory} ({stored})")
        damaged: dict[Path, str] = {}
        for chosen in steps if step is None else [step]:
            step_dir = self.directory / str(chosen)
            try:
                state = self._read(step_dir, abstract_state, config)
            except _DamageError as error:
                if step is not None or jax.process_count() > 1:  # which cannot agree here
                    raise CheckpointError(
                        f"the checkpoint {step_dir} is damaged ({error}); remove this folder, and "
                        "the same command continues from the step before"
                    ) from error
                damaged[step_dir] = str(error)
                continue
            if damaged:
                self.notes += _set_aside(damaged)
                self._manager.reload()
            return state, _read_json(step_dir, "loader"), tuples(_read_json(step_dir, "config"))
        raise CheckpointError(_all_damaged(self.directory, damaged))

    def _read(self, step_dir: Path, abstract_state: Any, config: dict[str, Any] | None) -> Any:
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state))
        with _reading(step_dir):
            _require_same_arrays(step_dir, abstract_state, config)
            return self._manager.restore(int(step_dir.name), args=args)["state"]

    def wait(self) -> None:
        """Returns when the save in progress is on disk; CheckpointError if it failed."""
        with self._saving():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the save in progress, ends the background threads; see `wait`."""
        # Orbax removes the half-written steps of a killed run in a thread that only a save waits
        # for; a command that is refused at once would end with that thread's traceback. 0.12 has no
        # public name for it.
        cleanup = getattr(self._manager, "_cleanup_tmp_directory_future", None)
        if cleanup is not None:
            cleanup.result()
        with self._saving():
            self._manager.close()

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        """Tells in a sentence what Orbax says about a save, this one or that before."""
        try:
            yield
        except Exception as error:  # Orbax and tensorstore have many types for a disk
            reason = sentence(error)
            # The parts of a save are written by threads of their own, which may outlive the error.
            for thread in threading.enumerate():
                if type(thread).__module__.startswith("orbax."):
                    thread.join(timeout=60)
            if not reason:
                raise
            raise CheckpointError(
                f"a checkpoint could not be written to {self.directory}: {reason}"
            ) from error


def read_config(path: str | Path) -> tuple[dict[str, Any], Path]:
    """The configuration stored in a checkpoint, and the step directory it came from.

    `path` is a run directory, its `checkpoints` (newest step of either) or one step directory.
    Raises CheckpointError where there is no complete step.
    """
    step_dir = _find_step(Path(path))
    return tuples(_read_json(step_dir, "config")), step_dir


def read_provenance(path: str | Path) -> dict[str, Any]:
    return _read_json(_find_step(Path(path)), "provenance")


def restore_params(step_dir: str | Path, which: str = "teacher") -> Any:
    """A sub-tree of the stored state as numpy arrays, from any devices; CheckpointError if none."""
    state_dir = Path(step_dir).resolve() / "state"
    stored = _stored_tree(state_dir)
    if which not in stored:
        held = ", ".join(sorted(stored))
        raise CheckpointError(f"{step_dir} holds no {which!r}; it holds {held}")
    item = {which: jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), stored[which])}
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    handler = ocp.PyTreeCheckpointHandler()
    args = ocp.args.PyTreeRestore(item, restore_args=as_numpy, partial_restore=True)
    return handler.restore(_epath(state_dir), args=args)[which]


def _find_step(path: Path) -> Path:
    if not path.is_dir():
        raise CheckpointError(
            f"no directory {path}; give a run directory, its checkpoints directory or one step"
        )
    path = path.resolve()
    if path.name.isdigit() and (path / "state").exists():
        if reason := _damage(path):
            raise CheckpointError(f"{path} is damaged ({reason}); use another step of the run")
        return path
    root = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    for step_dir in _step_dirs(root):
        if not _damage(step_dir):
            return step_dir
    raise CheckpointError(f"no whole checkpoint in {root}; has the run saved one yet?")


def _step_dirs(root: Path) -> list[Path]:
    """The folders of all steps, the newest first."""
    found = [path for path in root.iterdir() if path.name.isdigit()] if root.is_dir() else []
    return sorted(found, key=lambda path: int(path.name), reverse=True)


class _DamageError(Exception):
    """A step whose files are not what was written; the text says why."""


@contextlib.contextmanager
def _reading(step_dir: Path) -> Iterator[None]:
    """Tells damage from a disk, network or memory that fails now, for which no step is given up."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # Orbax passes on what its JSON parser and tensorstore raise
        if said := of_machine(error):
            raise CheckpointError(f"the checkpoint {step_dir} cannot be read: {said}") from error
        raise _DamageError(one_line(short_message(error))) from error


def _damage(step_dir: Path) -> str:
    """Why a step is damaged; "" if it is whole, as far as one sees without reading its arrays.

    Raises CheckpointError where the disk does not let it be read.
    """
    missing = [name for name in (_STEP_MARKER, *_ITEMS) if not (step_dir / name).exists()]
    if missing:
        return f"it has no {missing[0]}"
    try:
        with _reading(step_dir):
            for item in _ITEMS[1:]:
                _read_json(step_dir, item)
            _stored_tree(step_dir / "state")
    except _DamageError as error:
        return str(error)
    return ""


def _put_in_order(directory: Path) -> tuple[list[str], str]:
    """Notes on the damaged steps behind the newest whole one; what is wrong if there is none."""
    damaged: dict[Path, str] = {}
    try:
        for step_dir in _step_dirs(directory):
            reason = _damage(step_dir)
            if not reason:
                return _set_aside(damaged), ""
            damaged[step_dir] = reason
    except CheckpointError as error:
        return [], str(error)
    return [], _all_damaged(directory, damaged) if damaged else ""


def _all_damaged(directory: Path, damaged: dict[Path, str]) -> str:
    reasons = "; ".join(f"{step_dir.name}: {reason}" for step_dir, reason in damaged.items())
    return (
        f"no whole checkpoint is left in {directory} ({reasons}); bring one back from a copy, or "
        "start a new run in another --workdir"
    )


def _set_aside(damaged: dict[Path, str]) -> list[str]:
    """Renames damaged steps; returns a sentence on each."""
    notes = []
    for step_dir, reason in damaged.items():
        aside = step_dir.with_name(f"{step_dir.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        step_dir.rename(aside)
        notes.append(
            f"checkpoint {step_dir.name} is damaged ({reason}); it is now {aside}, and the step "
            "before it counts"
        )
    return notes


def _read_json(step_dir: Path, item: str) -> dict[str, Any]:
    return ocp.JsonCheckpointHandler().restore(_epath(step_dir / item))


def _stored_tree(state_dir: Path) -> Any:
    """Nested dict of the stored arrays' metadata (shape, dtype)."""
    return ocp.PyTreeCheckpointHandler().metadata(_epath(state_dir)).tree


def _flat(tree: Any) -> dict[str, Any]:
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths}


def _require_same_arrays(
    step_dir: Path, abstract_state: Any, config: dict[str, Any] | None
) -> None:
    """Names what changed in one sentence; Orbax's own message is a page of trees."""
    stored, wanted = _flat(_stored_tree(step_dir / "state")), _flat(abstract_state)
    old, new = ({n: tuple(x.shape) for n, x in tree.items()} for tree in (stored, wanted))
    # A typed PRNG key is stored as its raw uint32 words, one axis more.
    keys = {n for n, x in wanted.items() if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)}
    names = (old.keys() | new.keys()) - (old.keys() & keys)
    differing = sorted(name for name in names if old.get(name) != new.get(name))
    if not differing:
        return
    first = differing[0]
    message = (
        f"the checkpoint {step_dir} is of another model: {len(differing)} arrays differ, such as "
        f"{first} (stored {old.get(first)}, now {new.get(first)})"
    )
    changed = diff_configs(_read_json(step_dir, "config"), config) if config else []
    if changed:
        message += f"; changed fields: {', '.join(changed)}"
    raise CheckpointError(message + "; use the stored configuration or another --workdir")
