"""What ends a run early saves first: lost pictures, signals, and signals while the probe reads."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from configs import default
from dinov2_jax.data.loader import TrainLoader
from dinov2_jax.data.reader import LostWorkerError
from dinov2_jax.run.lock import LOCK_FILE, LockedError, locked
from dinov2_jax.train.loop import train
from dinov2_jax.train.nonfinite import NonFiniteLoss, NonFiniteWatch
from dinov2_jax.train.probe import Probe
from tests.train.test_resume import OVERRIDES, metrics, pictures, saved_steps  # noqa: F401


def config_of(pictures: Path, **changes: Any) -> ConfigDict:  # noqa: F811
    config = default.get_config()
    paths = {"data.path": str(pictures), "checkpoint.every_steps": 100, "eval.every_steps": 0}
    config.update_from_flattened_dict(OVERRIDES | paths | changes)
    return config


def at_batch(monkeypatch, number: int, act) -> None:
    """Calls `act` before the loader delivers batch `number`, counted from 1."""
    calls, deliver = [], TrainLoader.__next__

    def deliver_or_act(self: TrainLoader):
        calls.append(0)
        if len(calls) == number:
            act()
        return deliver(self)

    monkeypatch.setattr(TrainLoader, "__next__", deliver_or_act)


def lose_the_pictures() -> None:
    raise LostWorkerError("a loader process ended")


@pytest.fixture(scope="module")
def straight(pictures, tmp_path_factory) -> list[dict]:  # noqa: F811
    workdir = tmp_path_factory.mktemp("straight")
    train(config_of(pictures), str(workdir))
    return metrics(workdir)


def test_lost_pictures_cost_no_step(pictures, straight, tmp_path, monkeypatch, capsys):  # noqa: F811
    """The run saves what it has, and continues from there as if nothing had happened."""
    with monkeypatch.context() as patch:
        at_batch(patch, 5, lose_the_pictures)
        with pytest.raises(LostWorkerError):
            train(config_of(pictures), str(tmp_path))
    assert saved_steps(tmp_path) == [4]
    assert "saved step 4; once mended, the same command continues" in "".join(capsys.readouterr())
    assert not (tmp_path / LOCK_FILE).exists()
    train(config_of(pictures), str(tmp_path))
    assert metrics(tmp_path) == straight


def test_pictures_lost_at_the_first_step_leave_nothing_to_save(
    pictures,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    at_batch(monkeypatch, 1, lose_the_pictures)
    with pytest.raises(LostWorkerError):
        train(config_of(pictures), str(tmp_path))
    assert saved_steps(tmp_path) == []


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), RuntimeError("a library's")])
def test_a_probe_that_fails_costs_no_step(
    pictures,  # noqa: F811
    tmp_path,
    monkeypatch,
    capsys,
    error,
):
    """It reads pictures, too, and may do so between two checkpoints."""
    calls = []

    def probe(self: Probe, teacher: Any, stopped) -> dict[str, float]:
        calls.append(0)
        if len(calls) > 1:  # not at step 0
            raise error
        return {}

    monkeypatch.setattr(Probe, "__call__", probe)
    monkeypatch.setattr(
        "dinov2_jax.train.students.make_probe", lambda *_: (Probe.__new__(Probe), "a probe")
    )
    with pytest.raises(type(error)):
        train(config_of(pictures, **{"eval.every_steps": 2}), str(tmp_path))
    assert saved_steps(tmp_path) == [2]
    assert "saved step 2; once mended" in "".join(capsys.readouterr())


def test_three_steps_without_a_finite_loss_are_not_kept(
    pictures,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    """The advice is to continue from the last checkpoint."""

    def stop(*_: Any) -> list[str]:
        raise NonFiniteLoss("three steps")

    monkeypatch.setattr(NonFiniteWatch, "check", stop)
    with pytest.raises(NonFiniteLoss):
        train(config_of(pictures), str(tmp_path))
    assert saved_steps(tmp_path) == []


def test_a_signal_while_the_probe_reads_is_obeyed_at_once(
    pictures,  # noqa: F811
    tmp_path,
    monkeypatch,
    capfd,
):
    """Kubernetes waits 30 s; reading all pictures may take longer."""
    read = []

    def probe(self: Probe, teacher: Any, stopped) -> dict[str, float]:
        read.append(stopped())
        os.kill(os.getpid(), signal.SIGTERM)
        return {} if stopped() else {"knn_top1": 0.0}

    monkeypatch.setattr(Probe, "__call__", probe)
    monkeypatch.setattr(
        "dinov2_jax.train.students.make_probe", lambda *_: (Probe.__new__(Probe), "a probe")
    )
    changes = {"eval.every_steps": 2}
    train(config_of(pictures, **changes), str(tmp_path))
    assert read == [False] and saved_steps(tmp_path) == [] and metrics(tmp_path) == []
    printed = "".join(capfd.readouterr())
    assert "SIGTERM: the run saves, then ends" in printed
    assert "ended before the first step" in printed


def test_a_second_run_in_one_directory_is_refused(pictures, tmp_path):  # noqa: F811
    with locked(tmp_path), pytest.raises(LockedError, match=r"works in .*another --workdir"):
        train(config_of(pictures), str(tmp_path))
    assert not list(tmp_path.glob("*"))
