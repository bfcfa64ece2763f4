"""An evaluation by two processes, killed and continued, gives the figures of one process."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinov2_jax.weights.load import load
from tests.eval.found import values
from tests.features.tiny import write_weights

ROOT = Path(__file__).resolve().parents[2]
# SIGKILL when the second protocol is about to be written.
DIES = """
import os, signal
from dinov2_jax.eval.results import Results
add = Results.add
def dying(self, name, *rest):
    if name == "logreg":
        os.kill(os.getpid(), signal.SIGKILL)
    add(self, name, *rest)
Results.add = dying
"""
DATA = "pictures"


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    root = tmp_path_factory.mktemp("eval")
    rng = np.random.default_rng(0)
    for split, count in (("train", 90), ("val", 45)):
        for number in range(count):
            path = root / "pictures" / split / "abc"[number % 3] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 160, (16, 16, 3)) + 60 * (np.arange(3) == number % 3)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    fields = {
        "checkpoint": write_weights(root / "bundle"),
        "protocols": "knn,logreg,linear_cached",
        "data.source": "folder",
        "data.path": root / "pictures",
        "knn.ks": "(1,5)",
        "logreg.count": 3,
        "linear.iterations": 40,
        "linear.batch_size": 32,
    }
    return [
        "main",
        f"--config={ROOT / 'configs/eval/default.py'}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
    ]


def start(line, devices, before=""):
    program = f"{before}\nimport sys\nfrom dinov2_jax.main import main\nsys.exit(main({line!r}))"
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    variables = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", program],
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_two(line):
    """Two processes that find each other, with two devices each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{probe.getsockname()[1]}"
    started = []
    for number in range(2):
        where = {"coordinator": place, "processes": 2, "process_id": number}
        flags = [f"--config.distributed.{name}={value}" for name, value in where.items()]
        started.append(start([*line, *flags], 2))
    return started


def figures(folder):
    """Values of every metric, accuracy of all 52 classifiers, values of all trials."""
    stored = json.loads((folder / "results.json").read_text())["results"]
    metrics = {name: values({"results": stored}, name) for name in stored}
    accuracy = stored["linear_cached"][DATA]["notes"]["accuracy_by_classifier"]
    return metrics, accuracy, stored["logreg"][DATA]["notes"]["trials"]


def test_two_processes_and_a_kill_change_nothing(command, tmp_path):
    alone = start([*command, f"--workdir={tmp_path / 'alone'}"], 1, DIES)
    said = alone.communicate()[0]
    assert alone.returncode == -signal.SIGKILL, said
    assert set(json.loads((tmp_path / "alone/results.json").read_text())["results"]) == {"knn"}
    again = start([*command, f"--workdir={tmp_path / 'alone'}"], 1)
    said = again.communicate()[0]
    assert again.returncode == 0 and "features of" not in said, said
    started = start_two([*command, f"--workdir={tmp_path / 'two'}"])
    said = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert "top-1" in said[0] and "top-1" not in said[1]
    one, two = figures(tmp_path / "alone"), figures(tmp_path / "two")
    assert one[0]["knn"] == two[0]["knn"] and one[0]["logreg"] == two[0]["logreg"]
    assert one[1] == two[1]  # all 52 classifiers answer the same
    assert [t["value"] for t in one[2]] == [t["value"] for t in two[2]]


def test_fine_tuning_by_two_processes_ends(command, tmp_path):
    fields = {
        "protocols": "finetune",
        "finetune.iterations": 2,
        "finetune.warmup_iterations": 1,
        "finetune.batch_size": 16,
        "finetune.group_size": 4,
    }
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    started = start_two([*command, *flags, f"--workdir={tmp_path}"])
    said = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored["results"]["finetune"][DATA]["complete"]
    assert load(tmp_path / "finetune" / DATA / "weights").heads["classifier"]
