"""The order of events: what is given to the device before the host waits for anything.

The steps here are fakes that record when somebody reads what they returned; reading it would wait.
"""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import default
from dinov2_jax.data.loader import TrainLoader
from dinov2_jax.run.checkpoint import Checkpoints
from dinov2_jax.run.late import Late
from dinov2_jax.run.progress import Throughput
from dinov2_jax.train import loop, students
from dinov2_jax.train.nonfinite import NonFiniteLoss
from dinov2_jax.train.step_log import StepLog, Taken
from tests.train.test_resume import OVERRIDES, metrics, pictures  # noqa: F401

Events = list[tuple[str, int]]


class Measured:
    """A number that a step returned; `event` hears when its copy is ordered and waited for."""

    def __init__(self, value: float, event: Callable[[str], None]) -> None:
        self._value, self._event = value, event

    def copy_to_host_async(self) -> None:
        self._event("ask")

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        self._event("read")
        return np.asarray(self._value, dtype)


def config_of(pictures: Path, **changes: Any) -> ConfigDict:  # noqa: F811
    config = default.get_config()
    paths = {"data.path": str(pictures), "checkpoint.every_steps": 100, "eval.every_steps": 0}
    config.update_from_flattened_dict(OVERRIDES | paths | changes)
    return config


@pytest.fixture
def events(monkeypatch) -> Events:
    """What happens in a run with fake steps, whose loss is the number of the step."""
    happened: Events = []

    def happens(name: str, step: int) -> None:
        if (name, step) not in happened:  # a step has several metrics
            happened.append((name, step))

    def number(name: str) -> int:
        return 1 + sum(seen == name for seen, _ in happened)

    def join(self: TrainLoader, real=TrainLoader.__next__):
        happens("join", number("join"))
        return real(self)

    def put(batch: Any, mesh: Any) -> Any:
        happens("copy", number("copy"))
        return batch

    def step(states: Any, batch: Any, hyper: Any) -> tuple[Any, dict[str, dict[str, Measured]]]:
        n = number("step")
        happens("step", n)
        values = {"loss": n, "nonfinite_streak": 0}
        return states, {
            "": {name: Measured(x, lambda what: happens(what, n)) for name, x in values.items()}
        }

    def save(self: Checkpoints, step: int, *_: Any, **__: Any) -> None:
        happens("save", step)

    monkeypatch.setattr(TrainLoader, "__next__", join)
    monkeypatch.setattr(loop, "put_batch", put)
    monkeypatch.setattr(loop, "compiled_step", lambda *_: step)
    monkeypatch.setattr(Checkpoints, "save", save)
    monkeypatch.setattr(students, "report", lambda *_: None)
    return happened


def given(step: int) -> Events:
    """A batch is joined, its copy begins, the step is given to the device, results are ordered."""
    return [(name, step) for name in ("join", "copy", "step", "ask")]


def test_nothing_waits_for_the_newest_steps(pictures, events, tmp_path):  # noqa: F811
    """Batches n + 1 and n + 2 are on their way before the host waits for step n."""
    loop.train(config_of(pictures, total_steps=6, **{"checkpoint.every_steps": 4}), str(tmp_path))
    assert events == [
        *given(1),
        *given(2),
        *given(3),
        ("read", 1),
        *given(4),
        ("read", 2),
        *[("read", 3), ("read", 4), ("save", 4)],
        *given(5),
        *given(6),
        *[("read", 5), ("read", 6), ("save", 6)],
    ]
    assert [row["loss"] for row in metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_lines_are_written_before_a_save_and_a_probe(
    pictures,  # noqa: F811
    events,
    tmp_path,
    monkeypatch,
):
    written = []

    def read() -> None:
        written.append([row["step"] for row in metrics(tmp_path)])

    def save(self: Checkpoints, step: int, *_: Any, **__: Any) -> None:
        read()

    def probe(*_: Any) -> dict[str, float]:
        read()
        return {"knn_top1": 1.0}

    monkeypatch.setattr(Checkpoints, "save", save)
    monkeypatch.setattr(students, "make_probe", lambda *_: (probe, "a probe"))
    changes = {"total_steps": 5, "checkpoint.every_steps": 3, "eval.every_steps": 2}
    loop.train(config_of(pictures, **changes), str(tmp_path))
    # probe 0, probe 2, save 3, probe 4, save and probe 5
    upto_4 = [0, 1, 2, 2, 3, 4]
    assert written == [[], [0, 1, 2], [0, 1, 2, 2, 3], upto_4, [*upto_4, 4, 5], [*upto_4, 4, 5]]


def test_the_log_has_the_steps_that_a_failure_saves(
    pictures,  # noqa: F811
    events,
    tmp_path,
    monkeypatch,
):
    def fail(self: TrainLoader, real=TrainLoader.__next__):
        if ("step", 4) in events:
            raise OSError(5, "Input/output error")
        return real(self)

    monkeypatch.setattr(TrainLoader, "__next__", fail)
    with pytest.raises(OSError, match="Input"):
        loop.train(config_of(pictures), str(tmp_path))
    assert events[-3:] == [("read", 3), ("read", 4), ("save", 4)]
    assert [row["step"] for row in metrics(tmp_path)] == [1, 2, 3, 4]


def test_the_log_has_what_led_to_a_loss_that_is_not_finite(
    pictures,  # noqa: F811
    events,
    tmp_path,
    monkeypatch,
):
    def check(self: Any, step: int, *_: Any) -> list[str]:
        if step >= 3:
            raise NonFiniteLoss("three steps")
        return []

    monkeypatch.setattr("dinov2_jax.train.step_log.NonFiniteWatch.check", check)
    with pytest.raises(NonFiniteLoss):
        loop.train(config_of(pictures), str(tmp_path))
    assert [row["step"] for row in metrics(tmp_path)] == [1, 2, 3, 4]
    assert not [name for name, _ in events if name == "save"]


def test_steps_are_read_late_and_in_order():
    seen = []
    late = Late(seen.append, lag_steps=2)
    late.add(1)
    late.add(2)
    assert seen == []
    late.add(3)
    assert seen == [1]
    late.flush()
    assert seen == [1, 2, 3]


def test_an_error_leaves_the_later_steps():
    seen = []

    def read(step: int) -> None:
        seen.append(step)
        if step == 2:
            raise ValueError

    late = Late(read, lag_steps=5)
    for step in (1, 2, 3):
        late.add(step)
    with contextlib.suppress(ValueError):
        late.flush()
    late.flush()
    assert seen == [1, 2, 3]


class Output:
    """Keeps lines."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.lines = folder, dict[int, dict]()

    def write(self, step: int, values: dict) -> None:
        self.lines[step] = json.loads(json.dumps(values))

    def warn(self, messages: list[str]) -> None:
        assert not messages


def rates(folder: Path, loader_s: float, device_s: float, save_at: int) -> list[float]:
    """images_per_s of lines 10, 20, ... of 40 steps of 10 images, with a slow save."""
    config = default.get_config()
    config.update({"batch_size": 10, "log_every_steps": 10, "total_steps": 40})
    now, free = 0.0, 0.0  # the host's clock; when the device has done all that it was given

    def wait_until(ended: float) -> None:
        nonlocal now
        now = max(now, ended)

    out: Any = Output(folder)
    log = StepLog(config, out, 0)
    log.meter = Throughput(10, clock=lambda: now)
    for step in range(1, 41):
        with log.meter:
            now += loader_s
        free = max(free, now) + device_s

        def event(what: str, ended: float = free) -> None:
            if what == "read":
                wait_until(ended)

        metrics: Any = {"loss": Measured(1, event), "nonfinite_streak": Measured(0, event)}
        log.add(Taken(step, {}, metrics, 0))
        if step in (save_at, 40):
            log.flush()
            now += 100.0
            log.meter.restart()
    return [out.lines[step]["images_per_s"] for step in (10, 20, 30, 40)]


@pytest.mark.parametrize("save_at", [20, 25, 40])
def test_rates_are_those_of_the_device(tmp_path, save_at):
    """10 images in a second, also before and after the host waited for all steps.

    Only after a save the device waits 0.25 s for its first batch, which counts.
    """
    assert rates(tmp_path, 0.25, 1.0, save_at) == pytest.approx([10.0] * 4, rel=0.06)


def test_rates_of_a_slow_loader_are_right_over_all_lines(tmp_path):
    found = rates(tmp_path, 1.0, 0.25, 40)
    assert found[1:3] == pytest.approx([10.0] * 2)
    assert sum(100 / rate for rate in found) == pytest.approx(39, abs=2)  # seconds
