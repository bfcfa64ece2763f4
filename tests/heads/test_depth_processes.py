"""A depth head that two processes train and judge has the figures of one process."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
place, number, count, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
from dinov2_jax.parallel.processes import start
if count > 1:
    start({"coordinator": place, "processes": count, "process_id": number, "heartbeat_s": 60})
import numpy as np
from dinov2_jax.data.decode import WHOLE_RGB
from dinov2_jax.data.depth_crops import DepthCrops
from dinov2_jax.data.sources.given import Arrays
from dinov2_jax.datasets.dense import DenseSplit
from dinov2_jax.heads.dense import DenseSettings, train_dense
from dinov2_jax.heads.dense_forward import Form, Trained
from dinov2_jax.heads.depth_judge import DepthReader, judge
from dinov2_jax.heads.depth_recipes import RECIPES, depth_loss, first_params
from dinov2_jax.run.resume import StateFile
from tests.features.tiny import backbone

rng = np.random.default_rng(0)
images = list(rng.integers(0, 256, (5, 20, 24, 3), dtype=np.uint8))
depths = rng.uniform(1, 9, (5, 20, 24)).astype(np.float32)
depths[3] = 0  # without a depth, so not judged
split = DenseSplit(Arrays(images), tuple("01234"), lambda path: depths[int(path)])
found, form = backbone(), Form("depth_linear", 0.001, 10.0)
settings = DenseSettings(3, 4, (1e-3,), 0.01, 0, save_every=10)
params = first_params(form, found.model.dim, 1, seed=0)
heads, _, _ = train_dense(
    found.model, found.params, found.preprocessing, (2,), False, depth_loss(form),
    {"params": params, "statistics": None}, split, DepthCrops(16, 16), (16, 16), settings,
    file=StateFile(None, {}), max_pixels=10_000,
)
reader = DepthReader(
    found.model, found.params, found.preprocessing, form, Trained(heads[0]["params"]), (2,),
    flip=True,
)
judged = judge(reader, split, RECIPES["folder"], batch_size=2, decoding=WHOLE_RGB)
np.savez(out + str(number), kernel=heads[0]["params"]["kernel"], moved=params["kernel"],
         metrics=judged.metrics, readable=judged.readable)
"""


def run(count, out):
    """What each of `count` processes found, in their order."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{probe.getsockname()[1]}"
    flags = "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"
    variables = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, place, str(number), str(count), f"{out}{count}"],
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(count)
    ]
    try:
        said = [process.communicate(timeout=400)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * count, said
    return [np.load(f"{out}{count}{number}.npz") for number in range(count)]


def test_two_processes_give_the_figures_of_one(tmp_path):
    (alone,) = run(1, tmp_path / "found")
    assert np.abs(alone["kernel"] - alone["moved"]).max() > 1e-4
    assert alone["readable"].all() and np.isnan(alone["metrics"][3]).all()
    assert np.isfinite(np.delete(alone["metrics"], 3, axis=0)).all()
    for other in run(2, tmp_path / "found"):
        # Over all values together: Adam's first steps turn tiny gradients into full-size updates.
        error = np.linalg.norm(other["kernel"] - alone["kernel"])
        assert error <= 1e-6 * np.linalg.norm(alone["kernel"])
        np.testing.assert_allclose(other["metrics"], alone["metrics"], rtol=1e-6)
        np.testing.assert_array_equal(other["readable"], alone["readable"])
