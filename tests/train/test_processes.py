"""Two processes on this machine: the losses of one, a signal, a sudden death, resumed by one."""

import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.train.test_resume import command, environment, metrics, run, saved_steps, wait_until

STEPS = 8
HEARTBEAT_S = 10
CHANGES = {
    "total_steps": STEPS,
    "batch_size": 8,
    "group_size": 2,
    "mesh.data": 2,
    "mesh.fsdp": 2,
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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_two(pictures: Path, workdir: Path, **changes) -> list[subprocess.Popen]:
    """Both processes of a run, 2 virtual devices each; what they say goes to output.<i>.txt."""
    workdir.mkdir(exist_ok=True)
    where = {
        "distributed.coordinator": f"127.0.0.1:{free_port()}",
        "distributed.processes": 2,
        "data.max_bad_fraction": 0.5,
    }
    started = []
    for i in range(2):
        line = command(
            pictures, workdir, **CHANGES, **where, **{"distributed.process_id": i}, **changes
        )
        with open(workdir / f"output.{i}.txt", "w") as output:
            started.append(
                subprocess.Popen(line, env=environment(2), stdout=output, stderr=subprocess.STDOUT)
            )
    return started


def said(workdir: Path, i: int) -> str:
    return (workdir / f"output.{i}.txt").read_text()


def wait_for_lines(process: subprocess.Popen, workdir: Path, count: int) -> None:
    path = workdir / "metrics.jsonl"
    wait_until(process, lambda: path.exists() and len(path.read_text().splitlines()) >= count)


def end_all(processes: list[subprocess.Popen]) -> Iterator[int]:
    for process in processes:
        try:
            yield process.wait(timeout=120)
        finally:
            process.kill()


def test_two_processes_are_one_run(pictures, tmp_path):
    """Signal one of two, both save the same step; kill one of two; finish with one."""
    one, two = tmp_path / "one", tmp_path / "two"
    alone = {**CHANGES, "mesh.data": 1, "mesh.fsdp": 1, "data.max_bad_fraction": 0.5}
    run(pictures, one, **alone)

    # SIGTERM of process 1 only: both leave after the same step.
    both = start_two(pictures, two, **{"checkpoint.every_steps": 1000})
    wait_for_lines(both[0], two, 1)
    both[1].send_signal(signal.SIGTERM)
    assert list(end_all(both)) == [0, 0], said(two, 0) + said(two, 1)
    (saved,) = saved_steps(two)
    assert f"SIGTERM: saved step {saved}; the same command" in said(two, 0)
    assert 1 < saved < STEPS - 2
    quiet = [line for line in said(two, 1).splitlines() if "[Gloo]" not in line]
    assert quiet == []  # process 0 speaks for both

    # Process 1 stops answering, then dies: process 0 ends, and says why.
    both = start_two(pictures, two, **{"checkpoint.every_steps": 1})
    wait_for_lines(both[0], two, saved + 1)
    both[1].send_signal(signal.SIGSTOP)
    both[1].kill()
    began = time.monotonic()
    assert next(end_all(both[:1])) != 0
    assert time.monotonic() - began < 3 * HEARTBEAT_S
    assert both[1].wait(timeout=10) == -signal.SIGKILL
    assert re.search("lost another process of the run|another task died", said(two, 0))
    assert saved <= saved_steps(two)[-1] < STEPS

    # One process goes on from there, with the very same pictures, crops and masks.
    assert f"continuing from step {saved_steps(two)[-1]}" in run(pictures, two, **alone)
    rows, wanted = metrics(two), metrics(one)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row, want in zip(rows, wanted, strict=True):
        assert row["loss"] == pytest.approx(want["loss"], rel=1e-5), row["step"]
        assert row["skipped_pictures"] == want["skipped_pictures"] == 1
    assert (two / "skipped.txt").read_text() == (one / "skipped.txt").read_text()
