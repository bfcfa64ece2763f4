"""Jobs prepare side by side, take turns, and end at the deadline, whatever they do."""

import dataclasses
import itertools
import os
import subprocess
import sys
import time
from multiprocessing import Pipe
from pathlib import Path

import pytest

from dinov2_jax.bench.harness import Side
from dinov2_jax.bench.jobs import Job, Running, Schedule, measured

ROOT = Path(__file__).resolve().parents[2]


class Told(dict):
    """The records that a schedule tells."""

    def __call__(self, name, entries):
        self.setdefault(name, {}).update(entries)


def run(jobs, limit_s=60.0, **options):
    """Runs real processes until `limit_s`; returns their records."""
    told, end = Told(), time.monotonic() + limit_s
    Schedule(jobs, lambda: end - time.monotonic(), told, **options).run()
    return told


def fake(name, function="job", **settings):
    return Job(name, f"tests.bench.fakes:{function}", {"name": name} | settings)


def alive(pid):
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ends_soon(pid):
    end = time.monotonic() + 20
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(pid)


def test_jobs_prepare_side_by_side_and_measure_in_turns(tmp_path):
    log = str(tmp_path / "log")
    told = run([fake(n, log=log, sleep_s=1.5) for n in ("first", "second")], at_once=2)
    lines = Path(log).read_text().splitlines()
    assert {record["status"] for record in told.values()} == {"done"}
    assert all(record["prepared"] and record["answer"] == 42 for record in told.values())
    # The second one prepares before the first has ended, and measures after it.
    one, other = (line.split()[0] for line in lines if line.endswith("measures"))
    assert lines.index(f"{other} prepares") < lines.index(f"{one} ends")
    assert lines.index(f"{one} ends") < lines.index(f"{other} measures")


def test_a_job_waits_for_the_one_that_it_follows(tmp_path):
    log = str(tmp_path / "log")
    first, second = fake("first", log=log, sleep_s=0), fake("second", log=log, sleep_s=0)
    run([dataclasses.replace(second, after="first"), first], at_once=2)
    lines = Path(log).read_text().splitlines()
    assert lines.index("first ends") < lines.index("second measures")
    # What does not run at all is not waited for.
    told = run([dataclasses.replace(second, after="first")])
    assert told["second"]["status"] == "done"


def test_the_deadline_ends_processes_and_keeps_results(tmp_path):
    jobs = [fake("endless", "endless_job"), fake("waits", log=str(tmp_path / "log"), sleep_s=0)]
    begun, told = time.monotonic(), Told()
    # The clock is fast as soon as the result is there.
    Schedule(jobs, lambda: -1.0 if "pids" in told.get("endless", {}) else 30.0, told).run()
    assert time.monotonic() - begun < 30
    assert told["endless"]["status"] == "cut" and told["waits"]["status"] == "skipped"
    assert all(ends_soon(pid) for pid in told["endless"]["pids"])


def test_jobs_that_end_badly_do_not_disturb_others(tmp_path):
    bad = [fake(how, "bad_job", how=how) for how in ("missing", "raises", "dies")]
    told = run([*bad, fake("good", log=str(tmp_path / "log"), sleep_s=0)], at_once=2)
    assert [record["status"] for record in told.values()] == ["missing", "failed", "failed", "done"]
    assert "surely_not_installed" in told["missing"]["why"]
    assert told["raises"]["why"] == "ValueError: out of order"
    assert told["dies"]["why"] == "its process ended while measuring"


def test_a_turn_needs_time_that_is_left():
    """A clock of the test's own, and processes that are ready at once and end when asked."""
    killed, left = [], itertools.chain([100.0] * 6, itertools.repeat(15.0))

    def start(job):
        ours, theirs = Pipe()
        theirs.send(("ready", {}))
        theirs.send(("entries", {"answer": 1}))
        theirs.send(("done", None))

        running = Running(job, ours, lambda: killed.append(job.name), lambda: None)
        running.theirs = theirs  # stays open
        return running

    told = Told()
    jobs = [Job("quick", "", {}, 5), Job("long", "", {}, 200), Job("late", "", {}, 10)]
    Schedule(jobs, lambda: next(left), told, at_once=3, start=start).run()
    assert told["quick"] == {"status": "done", "beside": told["quick"]["beside"], "answer": 1}
    assert told["long"]["status"] == "skipped" and "it needs 200 s" in told["long"]["why"]
    assert told["late"]["status"] == "done"
    assert sorted(killed) == ["late", "long", "quick"]


PROGRAM = """
from dinov2_jax.bench.jobs import Job, Schedule
def tell(name, entries):
    if "pids" in entries:
        print(*entries["pids"], flush=True)
if __name__ == "__main__":
    Schedule([Job("endless", "tests.bench.fakes:endless_job", {})], lambda: 60.0, tell).run()
"""


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
def test_jobs_end_with_the_program(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(tmp_path / "program.py")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as program:
        pids = [int(word) for word in program.stdout.readline().split()]
        program.kill()
    assert len(pids) == 2 and all(ends_soon(pid) for pid in pids)


def test_measured_gives_a_first_and_a_full_result():
    ran = []
    side = Side(check=dict, run=lambda n: (ran.append(n), time.sleep(0.002 * n))[0])
    first, full = measured(side, items=8, budget_s=0.12)
    assert len(first["turns_ms"]) == 1 and len(full["turns_ms"]) == 5
    assert ran[:2] == [1, 2] and len(ran) == 8 and ran[-1] == full["repetitions"] > 1
    assert full["images_per_s"] == pytest.approx(8e3 / full["ms"]) and full["ms"] >= 2
