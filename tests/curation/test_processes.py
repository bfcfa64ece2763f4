"""k-means of two processes with two devices each is that of one process, bit for bit."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

from dinov2_jax.curation import kmeans

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys, numpy as np
from dinov2_jax.parallel.processes import start
folder, place, process = sys.argv[1:]
start({"coordinator": place, "processes": 2, "process_id": int(process), "heartbeat_s": 100})
import jax
from dinov2_jax.curation import kmeans
from dinov2_jax.parallel.mesh import make_mesh
rows = np.load(f"{folder}/rows.npy", mmap_mode="r")
mine = rows[:1700] if process == "0" else rows[1700:]
with jax.sharding.set_mesh(make_mesh()):
    found = kmeans.fit(mine, 40, 4, 0)
    mine = np.array(mine)
    if process == "1":
        mine[5] = np.nan
    try:
        kmeans.assign(mine, found.centroids)
    except kmeans.CurationError as error:
        said = str(error)
np.savez(f"{folder}/{process}.npz", **found._asdict(), said=said)
"""


def test_two_processes_change_no_bit(tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3000, 16)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{probe.getsockname()[1]}"
    flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    variables = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path), place, str(process)],
            env=os.environ | variables,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    told = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], told
    found = [np.load(tmp_path / f"{process}.npz") for process in range(2)]
    alone = kmeans.fit(rows, 40, 4, 0)
    for one in found:
        np.testing.assert_array_equal(one["centroids"], alone.centroids)
        np.testing.assert_array_equal(one["objective"], alone.objective)
    for name in ("label", "distance"):
        joined = np.concatenate([one[name] for one in found])
        np.testing.assert_array_equal(joined, getattr(alone, name))
    assert "a row of another process is not finite" in str(found[0]["said"])
    assert "row 1705 is not finite" in str(found[1]["said"])
