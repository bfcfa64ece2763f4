"""Locks of folders: one holder at a time, and locks of processes that have ended are removed."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dinov2_jax.run import lock
from dinov2_jax.run.lock import LOCK_FILE, LockedError, locked

ROOT = Path(__file__).parents[2]


def test_the_lock_is_there_while_it_is_held(tmp_path):
    with locked(tmp_path / "new"):
        holder = json.loads((tmp_path / "new" / LOCK_FILE).read_text())
        assert holder["pid"] == os.getpid()
    assert not (tmp_path / "new").exists()  # empty as before
    with pytest.raises(RuntimeError), locked(tmp_path):
        raise RuntimeError
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_second_job_waits_and_says_for_whom(tmp_path, capsys):
    order = []

    def second():
        with locked(tmp_path):
            order.append("second")

    with locked(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(1.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert f"waits for process {os.getpid()}" in capsys.readouterr().out


def test_the_lock_of_a_killed_process_is_removed_at_once(tmp_path):
    program = (
        "import os, signal\nfrom pathlib import Path\nfrom dinov2_jax.run.lock import locked\n"
        f"with locked(Path({str(tmp_path)!r})): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert (tmp_path / LOCK_FILE).exists()
    began = time.monotonic()
    with locked(tmp_path):
        assert time.monotonic() - began < 5
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_number_that_another_process_has_now_is_no_holder(tmp_path):
    held = lock._describe_self() | {"start": "1"}
    (tmp_path / LOCK_FILE).write_text(json.dumps(held))
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["start"] != "1"
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_lock_of_another_machine_holds_while_it_is_touched(tmp_path, monkeypatch):
    held = json.dumps(lock._describe_self() | {"machine": "another", "pid": 1})
    (tmp_path / LOCK_FILE).write_text(held)
    monkeypatch.setattr(lock, "STALE_S", 1.0)
    attempt = lock._Attempt(tmp_path / LOCK_FILE)
    for touched in range(4):
        os.utime(tmp_path / LOCK_FILE, (touched, touched))
        assert not attempt.succeeds()
        time.sleep(0.4)
    assert (tmp_path / LOCK_FILE).read_text() == held
    with locked(tmp_path):
        assert (tmp_path / LOCK_FILE).read_text() != held


def test_a_second_run_is_refused_and_told_who_holds_the_folder(tmp_path):
    with locked(tmp_path, wait=False):
        expected = rf"process {os.getpid()} of \S+, since 20\S+ \S+, works in .*another --workdir"
        with pytest.raises(LockedError, match=expected), locked(tmp_path, wait=False):
            pass
        assert (tmp_path / LOCK_FILE).exists()


def test_a_holder_on_another_machine_is_refused_once_it_shows_life(tmp_path, capsys):
    held = lock._describe_self() | {"machine": "another", "host": "far", "pid": 1}
    path = tmp_path / LOCK_FILE
    path.write_text(json.dumps(held))
    threading.Timer(1.0, lambda: os.utime(path, (1, 1))).start()
    with (
        pytest.raises(LockedError, match=r"^process 1 of far, since"),
        locked(tmp_path, wait=False),
    ):
        pass
    assert "to see for 120 s if it still uses" in capsys.readouterr().out


def test_a_dead_holder_on_another_machine_is_replaced(tmp_path, monkeypatch):
    held = lock._describe_self() | {"machine": "another", "pid": 1}
    (tmp_path / LOCK_FILE).write_text(json.dumps(held))
    monkeypatch.setattr(lock, "STALE_S", 1.0)
    with locked(tmp_path, wait=False):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
