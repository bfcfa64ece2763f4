"""The script that measures everything on a GPU: its commands, and the table of its results."""

import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dinov2_jax.bench import report, summary

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "launch/gpu_benchmarks.sh"
BENCHES = {"features", "step", "losses", "attention", "end_to_end"}

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


class Accepted(Exception):
    """Raised where a benchmark would begin: its arguments and its recipe are good."""


def script(*arguments, **environment):
    environment = {k: v for k, v in os.environ.items() if k != "DRY_RUN"} | environment
    return subprocess.run(
        ["bash", SCRIPT, *arguments], env=environment, capture_output=True, text=True, check=False
    )


def commands(*arguments, **environment):
    """What the script would run: (benchmark, its arguments)."""
    ran = script(*arguments, **environment)
    assert ran.returncode == 0 and not ran.stderr
    lines = [shlex.split(line) for line in ran.stdout.splitlines()]
    assert all(line[1] == "-m" for line in lines)
    return [(line[2].removeprefix("dinov2_jax.bench."), line[3:]) for line in lines]


def test_every_command_is_accepted(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = commands("--dry-run")
    assert {name for name, _ in found} == BENCHES
    for name, arguments in found:
        module = importlib.import_module(f"dinov2_jax.bench.{name}")

        def stop(args):
            raise Accepted(args)

        monkeypatch.setattr(report, "prepare", stop)
        if name == "end_to_end":
            monkeypatch.setattr(module, "photo_files", lambda args, folder: [])
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        with pytest.raises(Accepted) as accepted:
            module.main()
        args = accepted.value.args[0]
        assert args.device == "gpu" and args.rounds >= 3


def test_quick_shortens_all_of_them():
    for (_, long), (_, quick) in zip(
        commands("--dry-run"), commands("--quick", DRY_RUN="1"), strict=True
    ):
        assert "--rounds" not in long
        assert quick[-6:-2] == ["--rounds", "2", "--turn_s", "0.5"]  # the last one counts


def test_every_result_has_a_file_of_its_own():
    names = {Path(arguments[-1]).stem for _, arguments in commands("--dry-run")}
    assert len(names) == len(commands("--dry-run"))


def test_what_is_wrong_is_said():
    assert "usage" in script("--fast").stderr
    if shutil.which("nvidia-smi") is None:
        assert "needs an NVIDIA GPU" in script().stderr


def side(median_s, mebibytes, files=None):
    record = {"median_s": median_s, "device_peak_bytes": mebibytes * 2**20, "peak_rss_bytes": 1}
    if files:
        record["parts"] = {"synthetic": {"ratio": spread_of(files)}}
    return record


def spread_of(median):
    return {"median": median, "least": median - 0.1, "greatest": median + 0.1}


def write(folder, name, *pairs):
    record = {"cases": [{"case": name.upper(), "items": 64, "pairs": list(pairs)}]}
    (folder / f"{name}.json").write_text(json.dumps(record))


def test_summary_tells_ratios(tmp_path, capsys, monkeypatch):
    torch = {"peer": "torch", "ratio": spread_of(1.25), "ours": side(0.16, 70)}
    write(
        tmp_path,
        "step_l16_b64",
        torch | {"theirs": side(0.2, 100)},
        {"peer": "lightly", "error": "lightly failed: out of memory\ntrace"},
    )
    fed = {"ours": side(0.2, 70, files=0.98), "theirs": side(0.8, 70, files=0.3)}
    write(tmp_path, "end_to_end_l16_b64", torch | fed)
    write(tmp_path, "losses_float32", torch | {"theirs": side(0.2, 100)})
    monkeypatch.setattr(sys, "argv", ["summary", str(tmp_path)])
    assert summary.main() == 0
    head, rule, files, losses, step, failed = capsys.readouterr().out.splitlines()
    assert head.count("|") == rule.count("|") == files.count("|") == failed.count("|")
    assert files.endswith("| 0.98 (0.88..1.08); 0.30 (0.20..0.40) |")
    assert losses.endswith("| 400 | 320 | 1.25 (1.15..1.35) | 70 / 100 |  |")
    assert "| 400 | 320 | 1.25 (1.15..1.35) | 70 / 100 |" in step
    assert "lightly failed: out of memory" in failed and "trace" not in failed


def test_summary_of_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["summary", str(tmp_path)])
    assert summary.main() == 1
    assert "no *.json" in capsys.readouterr().err


STAND_IN = """#!/usr/bin/env bash
case "$*" in
  *bench.summary*) echo "the summary of $3" ;;
  *bench.losses*) echo "out of order" >&2; exit 1 ;;
  *"--batch 64"*vitl16_short*vit_large*) echo "error: RESOURCE_EXHAUSTED: no memory" >&2; exit 1 ;;
  *) echo "table of $*" ;;
esac
"""


def test_failures_and_batches_that_do_not_fit(tmp_path):
    for name, text in (("python", STAND_IN), ("nvidia-smi", "#!/bin/sh\necho a GPU\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    out = tmp_path / "out"
    path = f"{tmp_path}:{os.environ['PATH']}"
    ran = script(PYTHON=str(tmp_path / "python"), OUT=str(out), PATH=path)
    assert ran.returncode == 0, ran.stderr
    names = {file.stem for file in out.glob("*.log")}
    # The loss block fails for good, the other benchmarks go on; L at 64 images is tried at 48.
    assert {"losses_float32", "losses_bfloat16", "step_l16_b64", "step_l16_b48"} <= names
    assert "step_l16_b32" not in names and "step_s16_b192" not in names
    assert "table of" in (out / "step_l16_b48.txt").read_text()
    assert "out of order" in (out / "losses_float32.log").read_text()
    assert "a GPU" in (out / "machine.txt").read_text()
    assert "the summary of" in (out / "summary.txt").read_text()
    lines = ran.stdout.splitlines()
    failed = "losses_float32 losses_bfloat16 step_l16_b64 end_to_end_l16_b64"
    assert lines[-2] == f"14 benchmarks measured, 4 failed or incomplete: {failed}"
    assert lines[-1].endswith(f"results in {out}")
