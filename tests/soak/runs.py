"""Tiny runs of the command line, in processes of their own, and what they leave on disk."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from PIL import Image

from dinov2_jax.run.checkpoint import restore_params
from tests.train.test_resume import OVERRIDES, ROOT, metrics

LIMIT_S = 600
# Files of a finished job that must be equal byte by byte; the rest holds times.
_EQUAL = (".npy", ".safetensors", ".parquet", "names.txt", "unreadable.txt")

Values = dict[str, Any]


def write_pictures(folder: Path, count: int = 20, first: int = 0) -> Path:
    """Noise of 32 x 24 px."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        pixels = np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05}.png")
    return folder


def training(pictures: Path, **changes: Any) -> list[str]:
    """Arguments of a training run that saves every step."""
    values = OVERRIDES | {"data.path": pictures, "checkpoint.every_steps": 1} | changes
    return ["--config=default", *_flags(values)]


def embedding(weights: Path, pictures: Path) -> list[str]:
    """Arguments of `embed`, with small shards."""
    values = {"weights": weights, "data.path": pictures, "batch_size": 8}
    values |= {"store.format": "npy", "store.shard_rows": 10}
    return ["--config=embed", *_flags(values)]


def evaluating(protocol: str, weights: Path, pictures: Path) -> list[str]:
    """Arguments of `eval` with a protocol that trains and saves every few iterations."""
    values: Values = {"checkpoint": weights, "data.source": "folder", "data.path": pictures}
    values |= {"data.labels": "folders", f"{protocol}.iterations": 60, f"{protocol}.save_every": 3}
    values |= {f"{protocol}.batch_size": 8, "batch_size": 8}
    if protocol == "finetune":
        values |= {"finetune.group_size": 4, "finetune.warmup_iterations": 5}
    return [f"--config=eval/{protocol}", *_flags(values)]


def _flags(values: Values) -> list[str]:
    return [f"--config.{name}={value}" for name, value in values.items()]


def start(arguments: list[str], workdir: Path, **variables: str) -> subprocess.Popen[str]:
    """A job in the background; what it says goes to <workdir>.txt."""
    flags = "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    # Programs that the first job of a trial compiled are read by the next ones.
    cache = environment.setdefault("JAX_COMPILATION_CACHE_DIR", f"{workdir.parent}/.programs")
    environment |= {"JAX_COMPILATION_CACHE_DIR": cache} | variables
    command = [sys.executable, "-m", "dinov2_jax.main", *arguments, f"--workdir={workdir}"]
    with open(workdir.with_name(f"{workdir.name}.txt"), "w") as output:
        return subprocess.Popen(
            command, env=environment, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, text=True
        )


def finish(arguments: list[str], workdir: Path, **variables: str) -> tuple[int, str]:
    """Runs a job to its end: the exit status, and what it said."""
    status = start(arguments, workdir, **variables).wait(timeout=LIMIT_S)
    return status, said(workdir)


def said(workdir: Path) -> str:
    """What the last job in a folder said."""
    return workdir.with_name(f"{workdir.name}.txt").read_text(errors="replace")


def refusal(text: str) -> str:
    """The sentence of a refused job; "" if there is a traceback or none."""
    sentences = [line for line in text.splitlines() if line.startswith("error: ")]
    return sentences[0] if len(sentences) == 1 and "Traceback" not in text else ""


def wait_for(condition: Any, process: subprocess.Popen[str]) -> bool:
    """Whether a condition came true before the job ended."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline and process.poll() is None:
        if condition():
            return True
        time.sleep(0.005)
    return False


def state_of(workdir: Path) -> dict[str, bytes]:
    """All arrays of a run's newest checkpoint, bit by bit, and its lines of metrics."""
    steps = [path for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
    newest = max(steps, key=lambda path: int(path.name))
    place = ocp.utils.epath.Path(newest / "state")
    found = {"step": newest.name.encode(), "metrics": json.dumps(metrics(workdir)).encode()}
    for name in ocp.PyTreeCheckpointHandler().metadata(place).tree:
        _add(found, name, restore_params(newest, name))
    return found


def _add(found: dict[str, bytes], name: str, tree: Any) -> None:
    if isinstance(tree, dict):
        for key, value in tree.items():
            _add(found, f"{name}.{key}", value)
    elif isinstance(tree, list | tuple):
        for number, value in enumerate(tree):
            _add(found, f"{name}.{number}", value)
    elif tree is not None:
        found[name] = np.asarray(tree).tobytes()


def files_of(workdir: Path) -> dict[str, bytes]:
    """What a finished embedding or evaluation left, without times."""
    found = {
        str(path.relative_to(workdir)): path.read_bytes()
        for path in sorted(workdir.rglob("*"))
        if path.is_file() and path.name.endswith(_EQUAL)
    }
    results = workdir / "results.json"
    if results.exists():
        stored = json.loads(results.read_text())["results"]
        metrics_of = {
            name: {data: x["metrics"] for data, x in sets.items()} for name, sets in stored.items()
        }
        found["metrics"] = json.dumps(metrics_of).encode()
    return found


def differences(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    """Names of what is not the same in both."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
