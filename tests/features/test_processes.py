"""Two processes with two devices each: every picture is read once, all receive all features."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dinov2_jax.features.extract import extract
from tests.features.tiny import backbone, write_pictures

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys, numpy as np
from dinov2_jax.parallel.processes import start
pictures, out, place, process = sys.argv[1:]
start({"coordinator": place, "processes": 2, "process_id": int(process), "heartbeat_s": 100})
import jax
from dinov2_jax.data.sources.open import open_source
from dinov2_jax.features.extractor import Extractor
from dinov2_jax.features.request import central_square
from dinov2_jax.parallel.mesh import make_mesh
from tests.features.tiny import backbone

class Counted:
    labels = class_names = None
    def __init__(self, source): self.source, self.read = source, []
    def __len__(self): return len(self.source)
    def name(self, row): return self.source.name(row)
    def __getitem__(self, row):
        self.read.append(row)
        return self.source[row]

source = Counted(open_source("folder", pictures, split="all"))
tiny = backbone()
request = central_square(tiny.model, tiny.preprocessing, ("cls", "patches"))
for mesh in (make_mesh(), make_mesh(data=1, fsdp=2, tensor=2)):
    source.read.clear()
    extractor = Extractor(tiny, request, batch_size=6, mesh=mesh)
    rows = np.arange(len(source))[::-1]
    columns, readable = extractor.read(source, rows, max_pixels=10**8)
    columns |= {"readable": readable, "read": source.read}
    np.savez(f"{out}/{process}_{mesh.shape['tensor']}.npz", **columns)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("processes")
    pictures = write_pictures(root / "pictures", 21, broken=(4, 13))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{probe.getsockname()[1]}"
    flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    variables = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(pictures), str(root), place, str(process)],
            env=os.environ | variables,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    said = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    return root, pictures


@pytest.mark.parametrize("tensor", [1, 2])
def test_features_equal_those_of_one_process(made, tensor):
    root, pictures = made
    options = {"features": ("cls", "patches"), "on_error": "nan"}
    expected = extract(backbone(), pictures, **options)
    for process in range(2):
        found = np.load(root / f"{process}_{tensor}.npz")
        np.testing.assert_array_equal(np.flatnonzero(~found["readable"]), [20 - 13, 20 - 4])
        for name in ("cls", "patches"):
            np.testing.assert_allclose(found[name][::-1], expected[name], atol=1e-5)


def test_each_process_reads_its_share(made):
    root, _ = made
    shares = [np.load(root / f"{process}_1.npz")["read"].tolist() for process in range(2)]
    assert sorted(shares[0] + shares[1]) == list(range(21))
    assert max(map(len, shares)) <= 12
