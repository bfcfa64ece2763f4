"""Fine-tuning by two processes ends, and leaves one bundle with backbone and classifier."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

from dinov2_jax.heads.linear import load_head
from dinov2_jax.weights.load import load
from tests.features.tiny import PREPROCESSING, backbone

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
from pathlib import Path
from dinov2_jax.parallel.processes import start
place, number, out = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
start({"coordinator": place, "processes": 2, "process_id": number, "heartbeat_s": 60})
import numpy as np
from dinov2_jax.data.sources.given import Arrays
from dinov2_jax.heads.finetune.classifier import predict
from dinov2_jax.heads.finetune.optimizer import FinetuneSettings
from dinov2_jax.heads.finetune.train import finetune
from tests.features.tiny import PREPROCESSING, backbone
pictures = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
source, labels, weights = Arrays(list(pictures)), np.arange(8) % 2, backbone()
settings = FinetuneSettings(2, 4, 2, lr=1e-3, warmup_iterations=0, drop_path=0.0)
given = weights.model, weights.params, PREPROCESSING, source, labels, 2, settings
found = finetune(*given, class_names=("left", "right"))
logits, rows = predict(found, PREPROCESSING, source, np.arange(8), batch_size=4)
assert logits.shape == (8, 2) and list(rows) == list(range(8))
found.save(out, PREPROCESSING, "a test")
assert (out / "bundle.json").is_file()
"""


def test_two_processes_end_and_leave_one_bundle(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{probe.getsockname()[1]}"
    flags = "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"
    variables = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    out = tmp_path / "weights"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, place, str(number), str(out)],
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    try:
        said = [process.communicate(timeout=400)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], said
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
    before, after = backbone(), load(out)
    assert after.preprocessing == PREPROCESSING
    moved = np.abs(before.params["norm"]["bias"] - after.params["norm"]["bias"]).max()
    assert 0 < moved < 0.1
    head = load_head(out)
    assert (head.class_names, head.blocks, head.avgpool) == (("left", "right"), 1, False)
