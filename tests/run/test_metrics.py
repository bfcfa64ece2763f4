"""Metric files stay valid and exact through kills and resumes; signs of collapse are named once."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from dinov2_jax.run.health import HealthMonitor
from dinov2_jax.run.metrics import Output, console_line, read_metrics
from dinov2_jax.run.progress import Progress, Throughput


def test_each_line_is_json_with_step_and_the_exact_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    third = 1 / 3
    with Output(tmp_path, 100) as out:
        out.write(10, {"loss": third, "knn_top1": 61.25})
        # Readable by others before the run ends, the number to the last bit.
        assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
            "step": 10, "loss": third, "knn_top1": 61.25,
        }  # fmt: skip
    assert capsys.readouterr().err == "step 10/100  loss 0.3333  knn_top1 61.2\n"


def test_nan_and_infinity_keep_the_line_valid(tmp_path: Path) -> None:
    with Output(tmp_path, 100) as out:
        out.write(1, {"loss": math.nan, "loss/koleo": math.inf, "lr": 0.5})

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert row == {"step": 1, "loss": None, "loss/koleo": None, "lr": 0.5}


def test_resume_cuts_the_steps_that_come_again(tmp_path: Path) -> None:
    with Output(tmp_path, 100) as out:
        for step in (10, 20, 30, 40):
            out.write(step, {"loss": 0.1 * step})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 50, "lo')  # what a power cut leaves
    before = read_metrics(tmp_path)
    with Output(tmp_path, 100, 20) as out:
        out.write(30, {"loss": 9.0})
    assert read_metrics(tmp_path) == [*before[:2], {"step": 30, "loss": 9.0}]
    text = (tmp_path / "metrics.jsonl").read_text()
    assert [json.loads(line)["step"] for line in text.splitlines()] == [10, 20, 30]
    assert not list(tmp_path.glob("*.tmp"))


def test_damaged_lines_are_left_out(tmp_path: Path) -> None:
    """A kill cuts the last line; a disk that was full or lost power leaves zeros and rubbish."""
    whole = '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n'
    rubbish = b"\0\0\0\n5\n[]\n{}\n\xff\xfe\n" + b'{"step": "three"}\n{"step": 3, "lo'
    (tmp_path / "metrics.jsonl").write_bytes(whole.encode() + rubbish)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]


class Gone(io.StringIO):
    """A reader that has closed its end, such as `| head`."""

    lines = 0

    def write(self, text: str) -> int:
        self.lines += 1
        raise BrokenPipeError


def test_a_reader_that_has_gone_does_not_end_the_run() -> None:
    stream = Gone()
    progress = Progress(10, stream=stream)
    for _ in range(2):
        progress.write("a line")
    assert stream.lines == 2  # each was tried, and none ended the run


def test_a_new_run_in_an_old_folder_starts_afresh(tmp_path: Path) -> None:
    with Output(tmp_path, 100) as out:
        out.write(0, {"knn_top1": 50.0})
        out.write(5, {"loss": 1.0})
    with Output(tmp_path, 100) as out:
        out.write(0, {"knn_top1": 51.0})
    assert [row["step"] for row in read_metrics(tmp_path)].count(0) == 1


def test_tensorboard_holds_the_same_numbers(tmp_path: Path) -> None:
    with Output(tmp_path, 100) as out:
        out.write(10, {"loss": 0.25, "health/effective_rank": 7.5})
    (events,) = tmp_path.glob("events.out.tfevents.*")
    content = events.read_bytes()
    assert b"loss" in content and b"health/effective_rank" in content


def test_console_line_shows_what_matters() -> None:
    line = console_line(3, 9, {"loss": 2.5, "lr": 0.001, "momentum": 0.9, "images_per_s": 123.4})
    assert line == "step 3/9  loss 2.5  lr 0.001  images_per_s 123.4"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_bar_on_a_terminal_only() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        progress = Progress(10, stream=stream, interval_s=3600)
        for step in range(1, 11):
            progress.update(step, loss=1.5)
        progress.write("a line")
        progress.close()
    assert "10/10" in terminal.getvalue() and "loss=1.5" in terminal.getvalue()
    assert pipe.getvalue() == "a line\n"  # no bar, and no spam within the interval


def test_progress_without_a_terminal_gives_a_line_with_eta() -> None:
    pipe = io.StringIO()
    progress = Progress(10, start_step=4, stream=pipe, interval_s=0.0)
    progress.update(5, loss=1.5)
    progress.close()
    assert pipe.getvalue().startswith("step 5/10  ETA 00:00  loss 1.5")


def test_throughput_counts_images_and_waiting() -> None:
    now = 0.0
    meter = Throughput(batch_size=64, clock=lambda: now)
    for _ in range(4):
        with meter:
            now += 0.25
        now += 0.75
        meter.step()
    assert meter.read() == {"images_per_s": 64.0, "data_wait_share": 0.25}
    now += 5.0  # a pause, such as a k-NN, that restart() leaves out
    meter.restart()
    now += 1.0
    meter.step()
    assert meter.read() == {"images_per_s": 64.0, "data_wait_share": 0.0}


HEALTHY = {
    "health/teacher_entropy": 2.0,
    "health/target_kl": 1.0,
    "health/effective_rank": 20.0,
    "health/prototypes_used": 0.8,
}


@pytest.mark.parametrize(
    ("sign", "words"),
    [
        ({"health/teacher_entropy": math.log(256) - 0.01, "health/target_kl": 0.001}, "uniform"),
        ({"health/teacher_entropy": 0.01}, "one-hot"),
        ({"health/prototypes_used": 0.004}, "one-hot"),
        ({"health/effective_rank": 1.2}, "effective rank"),
        ({"health/effective_rank": 1.99}, "effective rank"),
    ],
)
def test_a_sign_of_collapse_is_named_once_and_only_if_it_stays(
    sign: dict[str, float], words: str
) -> None:
    health = HealthMonitor(prototypes=256, patience=3)
    assert health.check(HEALTHY) == []
    bad = HEALTHY | sign
    assert health.check(bad) == health.check(bad) == []
    (warning,) = health.check(bad)
    assert words in warning and "config." in warning
    assert all(health.check(bad) == [] for _ in range(5))


def test_rank_is_measured_against_the_start() -> None:
    health = HealthMonitor(prototypes=256, patience=1)
    assert health.check(HEALTHY | {"health/effective_rank": 60.0}) == []
    assert health.check(HEALTHY | {"health/effective_rank": 6.5}) == []
    (warning,) = health.check(HEALTHY | {"health/effective_rank": 5.5})
    assert "effective rank 5.5, 60.0 at the start" in warning


def test_a_healthy_run_and_one_without_health_metrics_are_silent() -> None:
    health = HealthMonitor(prototypes=256, patience=1)
    assert [health.check(m) for m in (HEALTHY, {"loss": 1.0}, {})] == [[], [], []]
    # A uniform teacher that the student has not matched yet is how every run begins.
    start = {"health/teacher_entropy": math.log(256), "health/target_kl": 0.5}
    assert health.check(HEALTHY | start) == []


def test_output_keeps_warnings_for_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Output(tmp_path, 10, 0) as out:
        out.write(1, {"loss": 1.0})
        out.warn(["warning: something"])
        out.warn([])
    assert out.warnings == ["warning: something"]
    assert "warning: something" in capsys.readouterr().err


def test_a_full_disk_is_told_with_the_file_and_never_waited_for(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as raised, Output(tmp_path, 100) as out:
        out._file = Full(out._file)
        for step in range(100):  # tensorboardX's own queue holds ten values
            out.write(step, {"loss": 1.0})
    assert raised.value.filename == str(tmp_path / "metrics.jsonl")


class Full:
    """A file on a full disk."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, text: str) -> None:
        raise OSError(28, "No space left on device")

    def close(self) -> None:
        self._file.close()


def test_health_warns_of_a_student_that_knows_only_the_mean_of_its_teacher():
    health = HealthMonitor(prototypes=256, patience=2)
    learning = {"loss/cls_features": 0.2, "health/constant_cls": 0.5}
    same = {"loss/cls_features": 0.5, "health/constant_cls": 0.5}
    assert [health.check(row) for row in (learning, same, learning, same)] == [[]] * 4
    (warning,) = health.check(same)
    assert "no better than one fixed vector" in warning and "config.optimizer.base_lr" in warning
    assert health.check(same) == []
