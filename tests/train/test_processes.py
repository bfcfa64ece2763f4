"""Two processes on this machine: the losses of one, a signal, a sudden death, resumed by one."""

import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.train.test_resume import ROOT, command, metrics, saved_steps, wait_until
from tests.train.test_sharding import LOSSES

STEPS = 12
HEARTBEAT_S = 10
CHANGES = {
    "total_steps": STEPS,
    "batch_size": 8,
    "group_size": 4,  # so that a group spans the two devices of a process
    "mesh.fsdp": 2,
    "data.max_bad_fraction": 0.5,
    "distributed.heartbeat_s": HEARTBEAT_S,
    "checkpoint.keep_last": STEPS,
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """20 pictures, 2.5 batches, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(20):
        pixels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    (folder / "05.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(
    pictures: Path, workdir: Path, cache: Path, processes: int, devices: int = 2, **changes
) -> list[subprocess.Popen]:
    """The processes of a run, with `devices` each; what they say goes to output.<i>.txt.

    XLA's cheap code generation halves the compile time; a rounding or two is all that it changes.
    """
    workdir.mkdir(exist_ok=True)
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    variables = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(cache)),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }
    place = f"127.0.0.1:{free_port()}"
    started = []
    for i in range(processes):
        where = {"coordinator": place, "processes": processes, "process_id": i}
        where = {f"distributed.{name}": value for name, value in where.items()}
        line = command(pictures, workdir, **(CHANGES | where | changes))
        with open(workdir / f"output.{i}.txt", "w") as output:
            started.append(
                subprocess.Popen(
                    line,
                    env=os.environ | variables,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=ROOT,
                )
            )
    return started


def said(workdir: Path, i: int) -> str:
    return (workdir / f"output.{i}.txt").read_text()


def wait_for_lines(process: subprocess.Popen, workdir: Path, count: int) -> None:
    path = workdir / "metrics.jsonl"
    wait_until(process, lambda: path.exists() and len(path.read_text().splitlines()) >= count)


def end(process: subprocess.Popen, timeout_s: float = 280) -> int:
    try:
        return process.wait(timeout_s)
    finally:
        process.kill()


def test_slurm_tasks_that_differ_end_with_a_sentence(pictures, tmp_path):
    """Found by SLURM's variables alone; the tasks' seeds differ, and nothing is compiled."""
    tasks = []
    for i in range(2):
        variables = {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "",  # not the eight devices of this process
            "SLURM_JOB_ID": str(os.getpid()),  # the port is made of it
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_NTASKS": "2",
            "SLURM_PROCID": str(i),
            "SLURM_LOCALID": str(i),
        }
        line = command(pictures, tmp_path, seed=i, **{"data.max_bad_fraction": 0.5})
        tasks.append(
            subprocess.Popen(
                line, env=os.environ | variables, stderr=subprocess.PIPE, text=True, cwd=ROOT
            )
        )
    for task in tasks:
        error = task.communicate(timeout=120)[1]
        assert task.returncode == 2
        assert "error: process 1 has another configuration than process 0" in error
        assert "Traceback" not in error


EVERYTHING = {
    "total_steps": 5,
    "batch_size": 8,
    "group_size": 2,
    "centering": "sinkhorn_knopp",
    "micro_batches": 2,
    "prototype_block": 8,
    "model.heads": 4,
    "model.remat": "pointwise",
    "checkpoint.every_steps": 1000,
}
SPLIT = {"mesh.fsdp": 2, "mesh.tensor": 2}


@pytest.mark.timeout(900)
def test_one_device_is_eight_is_two_processes(pictures, cache, tmp_path):
    """Stochastic depth, Sinkhorn-Knopp in blocks, micro-batches, remat, FSDP, tensor parallel."""
    whole = {"mesh.fsdp": 1, "mesh.tensor": 1}
    sides = {
        "one": (1, 1, whole),
        "eight": (1, 8, SPLIT | {"micro_batches": 1}),
        "two": (2, 2, SPLIT),
    }
    rows = {}
    for name, (processes, devices, mesh) in sides.items():
        changes = EVERYTHING | mesh
        for process in start(pictures, tmp_path / name, cache, processes, devices, **changes):
            assert end(process) == 0, said(tmp_path / name, 0)
        rows[name] = metrics(tmp_path / name)
    assert [row["step"] for row in rows["one"]] == [1, 2, 3, 4, 5]
    for name in ("eight", "two"):
        for row, want in zip(rows[name], rows["one"], strict=True):
            for loss in LOSSES:
                assert row[loss] == pytest.approx(want[loss], rel=1e-5), (name, row["step"], loss)


@pytest.mark.timeout(900)  # six processes that compile; a minute on two idle cores
def test_two_processes_are_one_run(pictures, cache, tmp_path):
    """Signal one of two, both save the same step; kill one of two; finish with one."""
    one, two = tmp_path / "one", tmp_path / "two"
    (alone,) = start(pictures, one, cache, 1, **{"mesh.fsdp": 1})
    assert end(alone) == 0, said(one, 0)

    # SIGTERM of process 1 only: both leave after the same step, and process 0 speaks for both.
    both = start(pictures, two, cache, 2, **{"checkpoint.every_steps": 1000})
    wait_for_lines(both[0], two, 1)
    both[1].send_signal(signal.SIGTERM)
    assert [end(process) for process in both] == [0, 0], said(two, 0) + said(two, 1)
    (saved,) = saved_steps(two)
    assert f"SIGTERM: saved step {saved}; the same command" in said(two, 0)
    assert 1 < saved < STEPS - 2
    assert "step" not in said(two, 1) and "pictures" not in said(two, 1)

    # Process 1 dies: process 0 ends, and says why.
    both = start(pictures, two, cache, 2, **{"checkpoint.every_steps": 1})
    wait_for_lines(both[0], two, saved + 1)
    both[1].send_signal(signal.SIGSTOP)  # so that no later step can end before the kill
    both[1].kill()
    began = time.monotonic()
    assert end(both[0]) not in (0, 1), said(two, 0)
    assert time.monotonic() - began < 4 * HEARTBEAT_S
    assert end(both[1]) == -signal.SIGKILL
    assert re.search("lost another process of the run|another task died", said(two, 0))
    assert saved <= saved_steps(two)[-1] < STEPS

    # One process goes on from there, with the very same pictures, crops and masks.
    (alone,) = start(pictures, two, cache, 1, **{"mesh.fsdp": 1})
    assert end(alone) == 0, said(two, 0)
    assert "continuing from step" in said(two, 0)
    rows, wanted = metrics(two), metrics(one)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row, want in zip(rows, wanted, strict=True):
        assert row["loss"] == pytest.approx(want["loss"], rel=1e-5), row["step"]
        assert row["skipped_pictures"] == want["skipped_pictures"] == 1
    assert (two / "skipped.txt").read_text() == (one / "skipped.txt").read_text()
