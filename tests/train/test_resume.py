"""Kill, resume, other device counts: the command line continues as if nothing had happened."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
OVERRIDES = {
    "total_steps": 6,
    "batch_size": 8,
    "group_size": 4,
    "log_every_steps": 1,
    "min_shard_bytes": 2**11,  # the matrices of a block are split
    "centering": "sinkhorn_knopp",
    "model.dim": 24,
    "model.depth": 2,
    "model.heads": 3,
    "model.patch_size": 8,
    "model.drop_path_rate": 0.2,  # and LayerScale: KoLeo is ill-conditioned for equal features
    "model.layerscale": 0.5,
    "dino.head_prototypes": 32,
    "dino.head_hidden_dim": 16,
    "dino.head_bottleneck_dim": 8,
    "optimizer.warmup_steps": 2,
    "crops.global_size": 16,
    "crops.local_size": 8,
    "crops.local_number": 2,
    "colour.blur_kernel": 3,
    "data.source": "folder",
    "data.workers": 0,
    "eval.image_size": 16,
    "eval.resize_size": 16,
    "checkpoint.every_steps": 3,
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(20):  # 2.5 batches: the runs cross the end of a pass
        pixels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return folder


def command(pictures: Path, workdir: Path, **changes) -> list[str]:
    values = OVERRIDES | {"data.path": pictures} | changes
    flags = [f"--config.{name}={value}" for name, value in values.items()]
    config = f"--config={ROOT / 'configs/default.py'}"
    return [sys.executable, "-m", "dinov2_jax.main", config, f"--workdir={workdir}", *flags]


def environment(devices: int) -> dict[str, str]:
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def run(pictures: Path, workdir: Path, devices: int = 1, **changes) -> str:
    done = subprocess.run(
        command(pictures, workdir, **changes),
        env=environment(devices),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def metrics(workdir: Path) -> list[dict]:
    """All lines without the figures of the clock."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    clock = ("images_per_s", "data_wait_share")
    return [{k: v for k, v in row.items() if k not in clock} for row in rows]


@pytest.fixture(scope="module")
def straight(pictures, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("straight")
    run(pictures, workdir)
    return workdir


def test_the_first_step_which_compiles_has_no_rate(straight):
    lines = (straight / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert ["images_per_s" in row for row in rows if "loss" in row] == [False] + [True] * 5


def test_the_configuration_file_ends_with_one_newline(straight):
    text = (straight / "config.json").read_text()
    assert text == text.rstrip() + "\n"


def saved_steps(workdir: Path) -> list[int]:
    folder = workdir / "checkpoints"
    return (
        sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.exists() else []
    )


def start(pictures: Path, workdir: Path, devices: int = 1, **changes) -> subprocess.Popen:
    """A run in the background; what it says goes to output.txt."""
    workdir.mkdir(exist_ok=True)
    with open(workdir / "output.txt", "w") as output:
        return subprocess.Popen(
            command(pictures, workdir, **changes),
            env=environment(devices),
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def wait_until(process: subprocess.Popen, condition: Callable[[], object]) -> None:
    """Returns when the condition holds or the process has ended."""
    deadline = time.monotonic() + 280
    while time.monotonic() < deadline and process.poll() is None and not condition():
        time.sleep(0.002)


def end(process: subprocess.Popen, number: signal.Signals) -> int:
    process.send_signal(number)
    return process.wait(timeout=120)


def unsave(workdir: Path, step: int) -> None:
    """Makes a step that was saved before the kill as it is while being written."""
    folder = workdir / "checkpoints"
    (folder / f"{step}").rename(folder / f"{step}.orbax-checkpoint-tmp-1")


def test_kill_during_save_and_resume(pictures, straight, tmp_path):
    """kill -9 while step 6 is being written: its directory has a temporary name only."""
    process = start(pictures, tmp_path)
    pattern = "checkpoints/6.orbax-checkpoint-tmp*"
    wait_until(process, lambda: list(tmp_path.glob(pattern)) or 6 in saved_steps(tmp_path))
    end(process, signal.SIGKILL)
    if 6 in saved_steps(tmp_path):  # the save outran the kill
        unsave(tmp_path, 6)
    assert saved_steps(tmp_path) == [3]
    output = run(pictures, tmp_path)
    assert "continuing from step 3" in output
    assert metrics(tmp_path) == metrics(straight)
    assert saved_steps(tmp_path) == [3, 6]


def test_signals_save_and_leave(pictures, tmp_path):
    changes = {"total_steps": 5000, "checkpoint.every_steps": 5000}
    saved = 0
    for number in (signal.SIGTERM, signal.SIGINT):
        process = start(pictures, tmp_path, **changes)
        wait_until(process, lambda: (tmp_path / "metrics.jsonl").exists())
        wait_until(process, lambda: len(metrics(tmp_path)) > saved + 2)  # noqa: B023
        assert end(process, number) == 0
        output = (tmp_path / "output.txt").read_text()
        assert ("continuing from step" in output) == (saved > 0)
        saved = saved_steps(tmp_path)[-1]
        assert f"{number.name}: saved step {saved}" in output
    assert [row["step"] for row in metrics(tmp_path)] == list(range(1, saved + 1))
    straight = tmp_path / "straight"
    process = start(pictures, straight, **changes)
    wait_until(process, lambda: (straight / "metrics.jsonl").exists())
    wait_until(process, lambda: len(metrics(straight)) >= saved)
    end(process, signal.SIGKILL)
    assert metrics(tmp_path) == metrics(straight)[:saved]


def test_resume_on_another_device_count(pictures, straight, tmp_path):
    """8 devices (2 x 4, sharded) to step 3 of 6, then 2, which split less: the losses of one."""
    process = start(pictures, tmp_path, 8, **{"mesh.data": 2, "mesh.fsdp": 4})
    wait_until(process, lambda: 3 in saved_steps(tmp_path))
    end(process, signal.SIGKILL)
    for step in saved_steps(tmp_path)[1:]:
        unsave(tmp_path, step)
    changes = {"mesh.data": 1, "mesh.fsdp": 2, "min_shard_bytes": 2**13}
    run(pictures, tmp_path, devices=2, **changes)
    for got, want in zip(metrics(tmp_path), metrics(straight), strict=True):
        assert got["step"] == want["step"]
        assert got["loss"] == pytest.approx(want["loss"], rel=1e-5)


def test_a_complete_run_and_other_pictures(pictures, straight, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)
    assert "this run is complete: it has 6 steps" in run(pictures, workdir)
    assert metrics(workdir) == metrics(straight)
    others = tmp_path / "others"
    others.mkdir()
    shutil.copy(pictures / "00.png", others)
    done = subprocess.run(
        command(others, workdir), env=environment(1), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "a run on 20 pictures" in done.stderr and "use another --workdir" in done.stderr
    assert "Traceback" not in done.stderr
