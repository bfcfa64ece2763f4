"""kill -9 in the middle of a distillation: the same command continues bit for bit."""

import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from dinov2_jax.run.checkpoint import restore_params
from tests.train.test_resume import (
    end,
    metrics,
    pictures,  # noqa: F401
    run,
    saved_steps,
    start,
    unsave,
    wait_until,
)

SHORT = {"total_steps": 4, "checkpoint.every_steps": 2, "eval.every_steps": 0}
WIDE = {"total_steps": 1, "model.dim": 48, "checkpoint.every_steps": 1, "eval.every_steps": 0}


@pytest.fixture(scope="module")
def teacher(pictures, tmp_path_factory) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("teacher")
    run(pictures, folder, **WIDE)
    return folder


@pytest.mark.parametrize("kind", ["prototypes", "features"])
def test_a_killed_distillation_continues_bit_for_bit(pictures, teacher, tmp_path, kind):  # noqa: F811
    """The whole run is a start of the command, too: bits differ between processes' settings."""
    changes = SHORT | {"distill.teacher": teacher, "distill.kind": kind}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(pictures, whole, **changes)
    process = start(pictures, cut, **changes)
    wait_until(process, lambda: 2 in saved_steps(cut))
    end(process, signal.SIGKILL)
    for step in saved_steps(cut)[1:]:  # the run outran the kill
        unsave(cut, step)
    assert "continuing from step 2" in run(pictures, cut, **changes)
    assert [row["step"] for row in metrics(cut)] == [1, 2, 3, 4]
    assert metrics(cut) == metrics(whole)
    for side in ("student", "teacher"):
        got, want = (restore_params(x / "checkpoints" / "4", side) for x in (cut, whole))
        jax.tree.map(np.testing.assert_array_equal, got, want)
