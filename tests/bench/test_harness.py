"""The runner of the benchmarks, with workers that sleep: no PyTorch, no JAX."""

import json
import sys

import numpy as np
import pytest

from dinov2_jax.bench import report
from dinov2_jax.bench.duel import Contender, Rules, run_case
from dinov2_jax.bench.harness import BenchError, Worker, compare, ratios

FAKES = "tests.bench.fakes"
CORES = tuple(report.available_cores()[:1])
RULES = Rules(rounds=3, turn_s=0.04, cores=CORES)


@pytest.fixture(autouse=True)
def short_pause(monkeypatch):
    monkeypatch.setattr("dinov2_jax.bench.harness.PAUSE_S", 0.0)


def sleeper(log, name, sleep_s, answer=1.0, **more):
    settings = {"log": str(log), "name": name, "sleep_s": sleep_s, "answer": answer}
    return Contender(name, f"{FAKES}:sleeper", settings, **more)


def parity(ours, theirs):
    return compare(ours, theirs, max_rel=1e-4)


def run(ours, *peers):
    return run_case("case", ours, peers, parity, RULES, items=8, unit="images")


def test_sides_take_turns_in_two_lasting_processes(tmp_path):
    log = tmp_path / "log"
    record = run(sleeper(log, "ours", 0.02), sleeper(log, "peer", 0.04))
    lines = [line.split() for line in log.read_text().splitlines()]
    # Every run ends before the next begins, whoever makes it.
    assert [line[1] for line in lines] == ["start", "end"] * (len(lines) // 2)
    turns = [line[0] for line in lines if line[1] == "start"][-6:]
    assert turns == ["ours", "peer"] * 3
    assert {name: len({line[3] for line in lines if line[0] == name}) for name in turns} == {
        "ours": 1,
        "peer": 1,
    }
    pair = record["pairs"][0]
    # The sleeps are 1 : 2; a busy machine only adds to both.
    assert 1.2 < pair["ratio"]["median"] < 2.8
    assert pair["ratio"]["least"] <= pair["ratio"]["median"] <= pair["ratio"]["greatest"]
    for side, least_s in (("ours", 0.02), ("theirs", 0.04)):
        assert len(pair[side]["turns_s"]) == 3
        assert pair[side]["least_s"] >= least_s
        assert pair[side]["repetitions"] >= 1
        assert pair[side]["cpu_s"] < 0.02  # it slept
    assert pair["parity"] == {"answer": 0.0}


def test_one_process_of_ours_serves_all_peers(tmp_path):
    log = tmp_path / "log"
    peers = [sleeper(log, name, 0.01) for name in ("a", "b")]
    record = run(sleeper(log, "ours", 0.01), *peers)
    lines = [line.split() for line in log.read_text().splitlines()]
    assert len({line[3] for line in lines if line[0] == "ours"}) == 1
    assert [pair["peer"] for pair in record["pairs"]] == ["a", "b"]
    assert all(len(pair["ours"]["turns_s"]) == 3 for pair in record["pairs"])


def test_nothing_is_timed_without_parity(tmp_path):
    log = tmp_path / "log"
    record = run(sleeper(log, "ours", 0.01), sleeper(log, "peer", 0.01, answer=1.001))
    assert "parity of answer fails" in record["pairs"][0]["error"]
    assert "ratio" not in record["pairs"][0]


def test_parity_may_have_processes_of_its_own(tmp_path):
    log = tmp_path / "log"
    sides = []
    for name in ("ours", "peer"):
        checked = sleeper(log, name, 0.01, answer=1.0).settings
        # What is timed disagrees: only the settings of the check may be compared.
        sides.append(sleeper(log, name, 0.01, answer=hash(name), check_settings=checked))
    assert "ratio" in run(*sides)["pairs"][0]


def test_a_peer_that_is_absent_or_fails_does_not_stop_the_others(tmp_path, capsys):
    log = tmp_path / "log"
    peers = [Contender(name, f"{FAKES}:{name}", {}) for name in ("absent", "broken", "dying")]
    record = run(sleeper(log, "ours", 0.01), *peers, sleeper(log, "peer", 0.01))
    absent, broken, dying, good = record["pairs"]
    assert "pip install '.[bench]'" in absent["skipped"]
    assert "out of order" in broken["error"]
    assert "status 9" in dying["error"]
    assert "ratio" in good
    text = report.table([record])
    assert "out of order" in text and text.count("\n") == 4


def test_parts_are_timed_in_every_turn_without_what_surrounds_them(tmp_path):
    pair = run(Contender("ours", f"{FAKES}:fed", {}), Contender("peer", f"{FAKES}:fed", {}))
    for side in (pair["pairs"][0]["ours"], pair["pairs"][0]["theirs"]):
        unfed = side["parts"]["unfed"]
        assert len(unfed["turns_s"]) == len(side["turns_s"]) == 3
        assert side["repetitions"] == 3  # one would fill the turn
        # The sleeps are 2 : 1; a busy machine only adds to both.
        assert side["least_s"] >= 0.04 and min(unfed["turns_s"]) >= 0.02
        assert 0.25 < unfed["ratio"]["median"] < 1
    assert "alone" not in pair


def test_parts_are_worth_measuring_without_a_peer(tmp_path):
    record = run(Contender("ours", f"{FAKES}:fed", {}), Contender("peer", f"{FAKES}:absent", {}))
    assert "skipped" in record["pairs"][0]
    assert len(record["alone"]["parts"]["unfed"]["turns_s"]) == 3
    assert "alone" not in run(sleeper(tmp_path / "log", "ours", 0.01))


def test_a_side_may_have_processes_of_its_own():
    with Worker("parent", f"{FAKES}:parent", {}, CORES) as worker:
        assert worker.setup().first_run_s > 0.01


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_is_that_of_the_turns():
    peaks = {}
    for mebibytes in (1, 32):
        with Worker("hungry", f"{FAKES}:hungry", {"mebibytes": mebibytes}, CORES) as worker:
            worker.setup()
            worker.ask("reset")
            worker.ask("run", 1)
            peaks[mebibytes] = worker.ask("memory")[0] / 2**20
    assert 25 < peaks[32] - peaks[1] < 40  # the 64 of the set-up are forgotten


def test_ratios_are_of_neighbours():
    # Our time doubles with the load of the machine, and so does the peer's.
    assert ratios([1, 2, 4], [3, 6, 8]) == {"median": 3, "least": 2, "greatest": 3}


@pytest.mark.parametrize(
    ("theirs", "limits", "message"),
    [
        ({"x": np.array([1.0, 2.001])}, {"max_rel": 1e-4}, "relative difference 5.00e-04"),
        ({"x": np.array([1.0, np.nan])}, {"max_rel": 1e-4}, "relative difference"),
        ({"x": np.array([2.0, -1.0])}, {"min_cosine": 0.999}, "cosine 0.0000"),
        ({"x": np.array([1.0, np.nan])}, {"min_cosine": 0.999}, "cosine"),
        ({"x": np.ones((1, 2))}, {"max_rel": 1.0}, "shape"),
        ({"y": np.ones(2)}, {"max_rel": 1.0}, "there"),
    ],
)
def test_parity_refuses(theirs, limits, message):
    with pytest.raises(BenchError, match=message):
        compare({"x": np.array([1.0, 2.0])}, theirs, **limits)


def test_parity_accepts_what_is_close():
    found = compare({"x": np.array([1.0, 2.0])}, {"x": np.array([1.0, 2.0001])}, max_rel=1e-4)
    assert found["x"] == pytest.approx(5e-5, rel=1e-3)


def test_json_holds_machine_command_and_turns(tmp_path, monkeypatch, capsys):
    record = run(sleeper(tmp_path / "log", "ours", 0.01), sleeper(tmp_path / "log", "peer", 0.01))
    file = tmp_path / "new" / "record.json"
    monkeypatch.setattr(sys, "argv", ["program", "--rounds=3"])
    flags = report.parser("", ["peer"]).parse_args([f"--json={file}"])
    assert report.finish("features", flags, [record]) == 0
    saved = json.loads(file.read_text())
    assert saved["command"] == ["python -m dinov2_jax.bench.features", "--rounds=3"]
    assert saved["cases"][0]["pairs"][0]["ratio"] == record["pairs"][0]["ratio"]
    assert len(saved["cases"][0]["pairs"][0]["theirs"]["turns_s"]) == 3
    assert saved["cases"][0]["pairs"][0]["load_average"][0] >= 0
    assert saved["hardware"]["cores"] >= 1 and saved["versions"]["numpy"] == np.__version__
    assert [path.name for path in file.parent.iterdir()] == ["record.json"]
    assert "images a second" in capsys.readouterr().out


def test_a_failed_peer_is_the_exit_status(tmp_path, capsys):
    flags = report.parser("", ["peer"]).parse_args([])
    case = {"case": "c", "items": 1, "unit": "images", "pairs": [{"peer": "p", "error": "bad"}]}
    assert report.finish("features", flags, [case]) == 1


def test_too_many_threads_are_refused():
    flags = report.parser("", ["peer"]).parse_args(["--threads=100000"])
    with pytest.raises(SystemExit, match="use at most"):
        report.prepare(flags)
