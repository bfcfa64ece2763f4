"""Checkpoints: atomic under kill -9, kept by policy, restored on another number of devices."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dinov2_jax.run import checkpoint
from dinov2_jax.run.checkpoint import CheckpointError, Checkpoints, read_config, restore_params

CONFIG = {"model": {"dim": 4, "mask_ratio": (0.1, 0.5)}, "seed": 0}
LOADER = {"next_batch": 7, "skipped": [3, 5]}


@struct.dataclass
class State:
    """The fields of the train state, a few numbers each."""

    step: Any
    student: Any
    teacher: Any
    opt_state: Any
    centers: Any
    rng: Any


def make_state(step: int, mesh: Mesh, dim: int = 4) -> State:
    split = NamedSharding(mesh, P("fsdp"))
    kernel = jax.device_put(jnp.arange(16.0 * dim).reshape(16, dim) + step, split)
    params = {"backbone": {"kernel": kernel}, "dino_head": {"bias": jnp.full((3,), 0.5)}}
    return State(
        step=jnp.int32(step),
        student=params,
        teacher=jax.tree.map(lambda x: 2 * x, params),
        opt_state=optax.adamw(1e-3).init(params),
        centers={"dino": jnp.ones((1, 5))},
        rng=jax.random.key(step),
    )


def make_mesh(devices: int) -> Mesh:
    return Mesh(np.array(jax.devices()[:devices]), ("fsdp",), axis_types=(AxisType.Auto,))


def abstract(state: State, mesh: Mesh) -> State:
    def describe(x: jax.Array) -> jax.ShapeDtypeStruct:
        spec = P("fsdp") if x.ndim == 2 and x.shape[0] == 16 else P()
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(describe, state)


def save(workdir: Path, steps: list[int], keep_last: int = 10, keep_every: int = 0) -> State:
    mesh = make_mesh(8)
    checkpoints = Checkpoints(workdir, keep_last, keep_every)
    for step in steps:
        state = make_state(step, mesh)
        checkpoints.save(step, state, loader=LOADER, config=CONFIG)
    checkpoints.close()
    return state


def assert_same(left: Any, right: Any) -> None:
    def raw(x: Any) -> np.ndarray:
        is_key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if is_key else x)

    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(raw(a), raw(b)), left, right)


@pytest.mark.parametrize("devices", [8, 2, 1])
def test_restores_bit_for_bit_on_other_devices(tmp_path: Path, devices: int) -> None:
    saved = save(tmp_path, [3, 4])
    mesh = make_mesh(devices)
    checkpoints = Checkpoints(tmp_path, 2, 0)
    state, loader, config = checkpoints.restore(abstract(saved, mesh))
    checkpoints.close()
    assert_same(state, saved)
    assert state.student["backbone"]["kernel"].sharding == NamedSharding(mesh, P("fsdp"))
    assert jax.dtypes.issubdtype(state.rng.dtype, jax.dtypes.prng_key)
    assert loader == LOADER
    assert config == CONFIG  # tuples too


def test_restores_the_step_asked_for(tmp_path: Path) -> None:
    saved = save(tmp_path, [3, 4])
    checkpoints = Checkpoints(tmp_path, 2, 0)
    state, _, _ = checkpoints.restore(abstract(saved, make_mesh(8)), step=3)
    assert int(state.step) == 3
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 9 .*stored: 3, 4"):
        checkpoints.restore(abstract(saved, make_mesh(8)), step=9)
    checkpoints.close()


def test_keeps_the_last_and_every_nth(tmp_path: Path) -> None:
    save(tmp_path, [1, 2, 3, 4, 5, 6, 7], keep_last=2, keep_every=3)
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [3, 6, 7]


def test_saving_a_stored_step_again_does_nothing(tmp_path: Path) -> None:
    state = save(tmp_path, [5])
    checkpoints = Checkpoints(tmp_path, 2, 0)
    assert not checkpoints.save(5, state, loader={}, config=CONFIG)
    assert checkpoints.latest_step() == 5
    checkpoints.close()


def test_each_step_says_what_made_it(tmp_path: Path) -> None:
    save(tmp_path, [1])
    text = (tmp_path / "checkpoints/1/provenance/metadata").read_text()
    for name in ("dinov2_jax", "jax", "git_commit", "devices", "time", "host", "command"):
        assert f'"{name}"' in text


@pytest.mark.parametrize("inside", ["", "checkpoints", "checkpoints/4"])
def test_reads_config_and_teacher_without_the_devices(tmp_path: Path, inside: str) -> None:
    saved = save(tmp_path, [3, 4])
    config, step_dir = read_config(tmp_path / inside)
    assert config == CONFIG
    assert step_dir == (tmp_path / "checkpoints/4").resolve()
    teacher = restore_params(step_dir)
    assert isinstance(teacher["backbone"]["kernel"], np.ndarray)
    assert_same(teacher, saved.teacher)
    with pytest.raises(CheckpointError, match=r"holds no 'ema'; it holds .*student, teacher"):
        restore_params(step_dir, "ema")


def test_reads_the_teacher_in_a_process_with_one_device(tmp_path: Path) -> None:
    save(tmp_path, [4])
    code = (
        "import jax; from dinov2_jax.run.checkpoint import read_config, restore_params;"
        f"_, step = read_config({str(tmp_path)!r});"
        "print(jax.device_count(), restore_params(step)['backbone']['kernel'].sum())"
    )
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONWARNINGS": "error"}
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=ROOT
    )
    assert out.stdout.split() == ["1", str(2 * float(np.arange(64.0).sum() + 4 * 64))], out.stderr


def test_a_missing_or_empty_path_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no directory .*nowhere; give a run directory"):
        read_config(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no whole checkpoint in"):
        read_config(tmp_path)


def damage(how: str, step_dir: Path) -> None:
    if how == "metadata":
        os.truncate(step_dir / "state" / "_METADATA", 10)
    elif how in ("config", "loader"):
        (step_dir / how / "metadata").write_bytes(b"")
    elif how == "array":
        for file in (step_dir / "state").rglob("d/*"):
            os.truncate(file, file.stat().st_size // 2)
    elif how == "state":
        shutil.rmtree(step_dir / "state")
    else:
        shutil.rmtree(step_dir)
        step_dir.mkdir()


# tensorstore reports some failed reads only after Orbax's event loop has ended.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("how", ["metadata", "config", "loader", "array", "state", "all"])
def test_a_damaged_step_is_set_aside_and_the_one_before_counts(tmp_path: Path, how: str) -> None:
    """By training and by evaluation, which must agree on the newest step."""
    save(tmp_path, [3, 6])
    damage(how, tmp_path / "checkpoints" / "6")
    if how != "array":  # which only reading shows
        assert read_config(tmp_path)[1].name == "3"
    checkpoints = Checkpoints(tmp_path, 10, 0)
    mesh = make_mesh(8)
    state, loader, _ = checkpoints.restore(abstract(make_state(0, mesh), mesh))
    assert int(state.step) == 3 and loader == LOADER
    (note,) = checkpoints.notes
    assert "checkpoint 6 is damaged (" in note and "6.damaged, and the step before" in note
    assert (tmp_path / "checkpoints" / "6.damaged").is_dir()
    assert checkpoints.save(6, make_state(6, mesh), loader=LOADER, config=CONFIG)
    checkpoints.close()
    assert read_config(tmp_path)[1].name == "6"


@pytest.fixture
def unreadable(tmp_path: Path, monkeypatch) -> Checkpoints:
    """Two steps; the arrays of the newest turn out to be damaged while they are read."""
    save(tmp_path, [3, 6])
    checkpoints = Checkpoints(tmp_path, 10, 0)
    restore = checkpoints._manager.restore

    def fail(step: int, args: Any) -> Any:
        if step == 6:
            raise ValueError("DATA_LOSS: Error reading chunk\nand a page more")
        return restore(step, args=args)

    monkeypatch.setattr(checkpoints._manager, "restore", fail)
    return checkpoints


def test_damage_that_only_reading_shows(unreadable: Checkpoints) -> None:
    mesh = make_mesh(8)
    state, *_ = unreadable.restore(abstract(make_state(0, mesh), mesh))
    assert int(state.step) == 3
    assert unreadable.latest_step() == 3
    assert "6 is damaged (DATA_LOSS: Error reading chunk); it is now" in unreadable.notes[0]
    unreadable.close()


class JaxRuntimeError(RuntimeError):
    """Has the name by which a device's lack of memory is known."""


@pytest.mark.parametrize(
    "error",
    [
        OSError(5, "Input/output error"), MemoryError(), PermissionError(13, "Permission denied"),
        JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_a_disk_or_memory_that_fails_gives_no_step_up(unreadable, monkeypatch, error) -> None:
    """They may work at the next try."""

    def fail(step: int, args: Any) -> Any:
        raise error

    monkeypatch.setattr(unreadable._manager, "restore", fail)
    mesh = make_mesh(8)
    with pytest.raises(CheckpointError, match=r"checkpoints/6 cannot be read: .*; "):
        unreadable.restore(abstract(make_state(0, mesh), mesh))
    assert sorted(path.name for path in unreadable.directory.iterdir()) == ["3", "6"]
    unreadable.close()


def test_a_disk_that_fails_at_the_start_gives_no_step_up(tmp_path: Path, monkeypatch) -> None:
    save(tmp_path, [3, 6])

    def fail(step_dir: Path, item: str) -> Any:
        raise OSError(5, "Input/output error", str(step_dir))

    monkeypatch.setattr(checkpoint, "_read_json", fail)
    for use in (lambda: Checkpoints(tmp_path, 10, 0), lambda: read_config(tmp_path)):
        with pytest.raises(CheckpointError, match=r"cannot be read: .*Input/output error; "):
            use()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["3", "6"]


def test_if_all_steps_are_damaged_none_is_renamed(tmp_path: Path, unreadable, monkeypatch) -> None:
    """Then it is more likely a version or a disk than the steps."""

    def fail(step: int, args: Any) -> Any:
        raise ValueError("DATA_LOSS: Error reading chunk")

    monkeypatch.setattr(unreadable._manager, "restore", fail)
    mesh = make_mesh(8)
    with pytest.raises(CheckpointError, match=r"no whole checkpoint is left .*6: .*; 3: DATA_LOSS"):
        unreadable.restore(abstract(make_state(0, mesh), mesh))
    unreadable.close()
    for step in ("3", "6"):
        damage("config", tmp_path / "checkpoints" / step)
    with pytest.raises(CheckpointError, match=r"no whole checkpoint is left .*another --workdir"):
        Checkpoints(tmp_path, 10, 0)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["3", "6"]


def test_a_step_that_is_named_is_not_replaced_by_another(unreadable: Checkpoints) -> None:
    mesh = make_mesh(8)
    with pytest.raises(CheckpointError, match=r"6 is damaged \(DATA_LOSS: .*remove this folder"):
        unreadable.restore(abstract(make_state(0, mesh), mesh), step=6)
    unreadable.close()


def test_an_incomplete_step_is_refused_by_name_and_passed_over(tmp_path: Path) -> None:
    save(tmp_path, [3])
    broken = tmp_path / "checkpoints/9"
    (broken / "state").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"9 is damaged \(it has no _CHECKPOINT"):
        read_config(broken)
    assert read_config(tmp_path)[1].name == "3"


def test_another_model_is_one_sentence_that_names_the_field(tmp_path: Path) -> None:
    save(tmp_path, [3])
    mesh = make_mesh(8)
    wider = abstract(make_state(0, mesh, dim=8), mesh)
    now = {**CONFIG, "model": {**CONFIG["model"], "dim": 8}}
    checkpoints = Checkpoints(tmp_path, 2, 0)
    with pytest.raises(CheckpointError) as caught:
        checkpoints.restore(wider, config=now)
    checkpoints.close()
    assert "of another model: 4 arrays differ" in str(caught.value)
    assert "(stored (16, 4), now (16, 8))" in str(caught.value)
    assert "changed fields: model.dim: 4 -> 8" in str(caught.value)


ROOT = Path(__file__).resolve().parents[2]
VICTIM = """
import sys, jax, jax.numpy as jnp, numpy as np
from dinov2_jax.run.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1], 2, 0)
noise = np.random.default_rng(0).standard_normal(40_000_000).astype(np.float32)
for step in (1, 2):
    state = {"w": jnp.asarray(noise[:1000] if step == 1 else noise) + step}
    checkpoints.save(step, state, loader={"step": step}, config={"seed": step})
    if step == 1:
        checkpoints.wait()
print("saving", flush=True)
checkpoints.wait()
print("saved", flush=True)
"""


def test_kill_9_during_a_save_leaves_the_step_before(tmp_path: Path) -> None:
    victim = subprocess.Popen(
        [sys.executable, "-c", VICTIM, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert victim.stdout is not None
    assert victim.stdout.readline() == "saving\n"
    time.sleep(0.02)
    victim.send_signal(signal.SIGKILL)
    assert victim.communicate()[0] == ""  # it died before it could say "saved"
    leftovers = {p.name for p in (tmp_path / "checkpoints").iterdir()} - {"1"}
    assert leftovers, "the kill came before the save had begun"
    assert read_config(tmp_path) == ({"seed": 1}, (tmp_path / "checkpoints/1").resolve())

    checkpoints = Checkpoints(tmp_path, 2, 0)
    assert checkpoints.latest_step() == 1
    state = {"w": jnp.zeros((1000,))}
    assert checkpoints.save(2, state, loader={"step": 2}, config={"seed": 2})
    checkpoints.close()
    assert read_config(tmp_path)[0] == {"seed": 2}
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"1", "2"}


def test_what_a_kill_left_is_removed_before_the_next_save(tmp_path: Path) -> None:
    save(tmp_path, [1])
    (tmp_path / "checkpoints/2.orbax-checkpoint-tmp/state").mkdir(parents=True)
    assert read_config(tmp_path)[1].name == "1"
    save(tmp_path, [3])
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"1", "3"}


def test_closing_waits_for_the_removal_of_half_written_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = []

    async def slowly(*_: object, **__: object) -> None:
        await asyncio.sleep(0.3)
        ended.append(True)

    cleanup = "orbax.checkpoint._src.path.temporary_paths.cleanup_temporary_paths"
    monkeypatch.setattr(cleanup, slowly)
    Checkpoints(tmp_path, 2, 0).close()
    assert ended


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


# tensorstore reports some failed writes only after Orbax's event loop has ended.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_is_one_sentence(small_disk: Path) -> None:
    state = make_state(1, make_mesh(1), dim=256)
    checkpoints = Checkpoints(small_disk, 2, 0)
    with pytest.raises(CheckpointError, match=r"not be written.*No space left.*; make room"):
        checkpoints.save(1, state, loader={}, config={})
        checkpoints.wait()
    with contextlib.suppress(CheckpointError):
        checkpoints.close()


def test_what_orbax_says_of_a_disk_is_one_sentence(tmp_path: Path, monkeypatch: Any) -> None:
    checkpoints = Checkpoints(tmp_path, 2, 0)

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError(
            'INTERNAL: Error writing local file "/x/y": Read-only file system [os_error_code=30]'
        )

    fail.__globals__["__name__"], name = "orbax.checkpoint", __name__
    monkeypatch.setattr(checkpoints._manager, "wait_until_finished", fail)
    try:
        with pytest.raises(CheckpointError, match=r"/x/y: Read-only file system; name a folder"):
            checkpoints.wait()
    finally:
        fail.__globals__["__name__"] = name
    monkeypatch.undo()
    checkpoints.close()
