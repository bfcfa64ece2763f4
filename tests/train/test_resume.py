"""Kill, resume, other device counts: the command line continues as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
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
    flags = f"--xla_force_host_platform_device_count={devices}"
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


def saved_steps(workdir: Path) -> list[int]:
    folder = workdir / "checkpoints"
    return (
        sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.exists() else []
    )


def kill_during_save(pictures: Path, workdir: Path, **changes) -> None:
    """kill -9 while step 6 is being written: its directory exists under a temporary name only."""
    process = subprocess.Popen(
        command(pictures, workdir, **changes),
        env=environment(1),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 280
    pattern = "checkpoints/6.orbax-checkpoint-tmp*"
    while time.monotonic() < deadline and process.poll() is None:
        if list(workdir.glob(pattern)) or 6 in saved_steps(workdir):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_kill_during_save_and_resume(pictures, straight, tmp_path):
    kill_during_save(pictures, tmp_path)
    if 6 in saved_steps(tmp_path):  # the save outran the kill: make it as if it had not
        (tmp_path / "checkpoints/6").rename(tmp_path / "checkpoints/6.orbax-checkpoint-tmp-1")
    assert saved_steps(tmp_path) == [3]
    output = run(pictures, tmp_path)
    assert "continuing from step 3" in output
    assert metrics(tmp_path) == metrics(straight)
    assert saved_steps(tmp_path) == [3, 6]


def test_sigterm_saves_and_leaves(pictures, straight, tmp_path):
    changes = {"total_steps": 6, "checkpoint.every_steps": 1000}
    process = subprocess.Popen(
        command(pictures, tmp_path, **changes),
        env=environment(1),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 280
    lines = tmp_path / "metrics.jsonl"
    while time.monotonic() < deadline and not (
        lines.exists() and '"step": 1,' in lines.read_text()
    ):
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "SIGTERM: saved step" in output or saved_steps(tmp_path) == [6]
    run(pictures, tmp_path, **changes)
    assert metrics(tmp_path) == metrics(straight)


def test_resume_on_another_device_count(pictures, straight, tmp_path):
    """8 devices (2 x 4, sharded) to step 3 of 6, then 2 devices: the losses of one device."""
    first = {"mesh.data": 2, "mesh.fsdp": 4}
    process = subprocess.Popen(
        command(pictures, tmp_path, **first),
        env=environment(8),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 280
    while time.monotonic() < deadline and 3 not in saved_steps(tmp_path):
        time.sleep(0.005)
    process.kill()
    process.wait()
    for step in saved_steps(tmp_path)[1:]:
        (tmp_path / f"checkpoints/{step}").rename(
            tmp_path / f"checkpoints/{step}.orbax-checkpoint-tmp-1"
        )
    run(pictures, tmp_path, devices=2, **{"mesh.data": 1, "mesh.fsdp": 2})
    for got, want in zip(metrics(tmp_path), metrics(straight), strict=True):
        assert got["step"] == want["step"]
        assert got["loss"] == pytest.approx(want["loss"], rel=1e-5)
