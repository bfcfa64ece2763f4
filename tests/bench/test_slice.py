"""The short GPU run: its command line, its JSON, and a dry run on a bare machine."""

import ast
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dinov2_jax.bench import parts, slice
from dinov2_jax.bench.jobs import Schedule

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch/gpu_slice.sh"
# What a machine with jax, flax, optax, orbax and safetensors lacks, and the peers.
# fmt: off
ABSENT = (
    "ml_collections", "einops", "grain", "tensorflow_datasets", "array_record", "simplejpeg",
    "cykooz_resizer", "cv2", "PIL", "tensorboardX", "torch", "timm",
)
# fmt: on
BLOCKER = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
"""
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def script(*arguments, **environment):
    environment = os.environ | {"PYTHON": sys.executable} | environment
    return subprocess.run(
        ["bash", SCRIPT, *arguments], env=environment, capture_output=True, text=True, check=False
    )


@needs_bash
def test_a_dry_run_on_a_bare_machine(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(BLOCKER)
    names = ["attention", "golden", "step_scan_none", "step_torch", "features"]
    ran = script(
        "--dry-run",
        f"--parts={','.join(names)}",
        f"--out={tmp_path / 'out.json'}",
        PYTHONPATH=str(tmp_path / "site"),
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    record = json.loads((tmp_path / "out.json").read_text())
    found = record["parts"]
    assert record["dry_run"] and record["device"].startswith("cpu") and "jax" in record["versions"]
    assert record["stand_ins"] == ["ml_collections", "einops"]
    status = {name: part["status"] for name, part in found.items()}
    assert status == dict.fromkeys(names, "done") | {"step_torch": "missing"}
    assert found["step_torch"]["why"].startswith("No module named")
    for tokens in ("N=37", "N=50"):
        kernels = found["attention"][tokens]
        assert kernels["auto"] == "looped"
        assert {"xla float32", "xla bfloat16", "looped bfloat16"} < set(kernels)
        assert all(kernels[name]["ok"] for name in kernels if name != "auto")
    assert found["golden"]["float32"]["loss/ibot_loss"] < 1e-5
    assert len(found["golden"]["bfloat16"]) == 9 and found["golden"]["bfloat16"]["ok"]
    step = found["step_scan_none"]
    assert step["images_per_s"] > 0 and step["flops_per_image"] > 0 and step["ok"]
    assert np.isfinite(step["loss"]) and found["features"]["ok"]
    table = ran.stdout.splitlines()[-7:-1]
    assert [line.split()[0] for line in table] == ["part", *names]


@needs_bash
def test_wrong_input_is_one_sentence(tmp_path):
    for arguments, said in (
        (["--fast"], "--fast"),
        (["--dry-run", "--parts=nothing"], "--parts=nothing is none of attention"),
        (["--dry-run", "--limit_s=soon"], "--limit_s"),
    ):
        ran = script(*arguments)
        assert ran.returncode == 2 and said in ran.stderr
        assert ran.stderr.startswith("error: ") and ran.stderr.count("\n") == 1
    ran = script(PYTHON=str(tmp_path / "python"))
    assert ran.returncode == 2 and "set PYTHON=" in ran.stderr


def test_without_a_gpu_the_dry_run_is_named(monkeypatch, capsys):
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(()))
    with pytest.raises(SystemExit) as ended:
        slice.arguments_of([])
    assert ended.value.code == 2 and "--dry-run" in capsys.readouterr().err


def test_an_unwritable_file_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(slice, "prepare", lambda dry_run: 1)
    monkeypatch.setattr(slice.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit, match="cannot be written"):
        slice.main(["--dry-run", f"--out={tmp_path / 'file/out.json'}"])


def test_the_file_in_a_folder_is_named_by_the_time(tmp_path):
    assert slice.out_file(str(tmp_path / "a.json")) == tmp_path / "a.json"
    named = slice.out_file(str(tmp_path))
    assert named.parent == tmp_path and named.name.startswith("20") and named.suffix == ".json"


def record_of(tmp_path, *names):
    clock = iter(range(1000))
    return slice.Record(tmp_path / "out.json", names, lambda: float(next(clock)), dry_run=False)


def read(record):
    return json.loads(record.file.read_text())


def test_the_file_is_whole_after_every_result(tmp_path):
    record = record_of(tmp_path, "step_unroll_none", "step_torch")
    assert read(record)["parts"]["step_torch"] == {"status": "waiting"}
    start = {"device": "gpu: NVIDIA H200", "peak_flops": 1e15, "versions": {"jax": "0.11"}}
    record.tell("step_unroll_none", start | {"status": "ready", "flops_per_image": 1e12})
    record.tell("step_unroll_none", {"status": "measuring", "beside": []})
    record.tell("step_unroll_none", {"images_per_s": 400.0, "ms": 160.0, "peak_bytes": 2**33})
    record.tell("step_unroll_none", {"status": "done"})
    record.tell("step_torch", {"images_per_s": 300.0, "ms": 213.0})
    found = read(record)
    assert found["device"] == "gpu: NVIDIA H200" and found["versions"]["jax"] == "0.11"
    # The peer's step does the same work, so its MFU counts the same FLOPs.
    mfu = [found["parts"][name]["mfu"] for name in ("step_unroll_none", "step_torch")]
    assert mfu == [pytest.approx(0.4), pytest.approx(0.3)]
    assert (
        found["parts"]["step_unroll_none"]["began_s"]
        < found["parts"]["step_unroll_none"]["ended_s"]
    )
    assert "400 images/s, 160 ms; MFU 40.0%; peak 8.0 GiB" in record.table()
    assert not [path for path in tmp_path.iterdir() if path != record.file]


def test_a_write_that_fails_leaves_the_last_file(tmp_path, monkeypatch):
    record = record_of(tmp_path, "golden")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        record.tell("golden", {"status": "done"})
    assert read(record)["parts"]["golden"] == {"status": "waiting"}


def test_failures_and_errors_beyond_a_limit_are_no_success(tmp_path):
    from dinov2_jax.bench.ours.slice import within

    good, nan = within({"out": 1e-3}, 1e-2), within({"out": 1e-3, "dq": float("nan")}, 1e-2)
    assert good["ok"] and not nan["ok"]
    for name, entries, success in (
        ("attention", {"N=37": {"cudnn": good}, "status": "done"}, True),
        ("attention", {"N=37": {"cudnn": nan}, "status": "done"}, False),
        ("attention", {"status": "failed", "why": "out of memory"}, False),
        ("attention", {"status": "missing"}, False),
        ("step_torch", {"status": "missing"}, True),
        ("step_torch", {"status": "cut"}, True),
    ):
        record = record_of(tmp_path, name)
        record.tell(name, entries)
        assert record.good() is success, entries
    record = record_of(tmp_path, "attention")
    record.tell("attention", {"N=37": {"cudnn": nan}, "N=50": {"cudnn": good}})
    json.loads(record.file.read_text(), parse_constant=pytest.fail)  # JSON has no NaN
    assert "BEYOND THE LIMIT: N=37 cudnn; largest error nan of 3" in record.table()


def test_every_part_has_a_function_and_its_sizes(tmp_path):
    for dry_run in (True, False):
        jobs = parts.jobs(parts.NAMES, dry_run, threads=2, folder=tmp_path)
        assert [job.name for job in jobs] == list(parts.NAMES)
        for job in jobs:
            module, _, function = job.target.partition(":")
            tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
            assert function in {node.name for node in tree.body if hasattr(node, "name")}
    steps = {job.name: job.settings.get("config") for job in jobs}
    assert steps["step_unroll_none"]["batch_size"] == 64 and steps["step_s16"]["batch_size"] == 256
    assert steps["step_torch"]["model"]["variant"] == "vit_large"
    assert steps["step_scan_none"]["model"]["blocks"] == "scan"


def test_a_part_that_outlasts_the_limit_is_cut(tmp_path):
    record = record_of(tmp_path, "endless")
    job = parts.Job("endless", "tests.bench.fakes:endless_job", {})
    end = time.monotonic() + 60
    left = lambda: -1.0 if "pids" in record.parts["endless"] else end - time.monotonic()  # noqa: E731
    Schedule([job], left, record.tell).run()
    found = read(record)["parts"]["endless"]
    assert found["status"] == "cut" and len(found["pids"]) == 2
