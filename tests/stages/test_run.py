"""A recipe from its plan to its page: skipped, interrupted, continued, refused."""

import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest

from dinov2_jax.config.files import ConfigError
from dinov2_jax.data.loader import TrainLoader
from dinov2_jax.plan.flops import step_flops
from dinov2_jax.plan.topology import CHIPS
from dinov2_jax.run.checkpoint import read_config, restore_params
from dinov2_jax.run.lock import LOCK_FILE, LockedError, locked
from dinov2_jax.run.metrics import read_metrics
from dinov2_jax.stages import run as task
from dinov2_jax.stages.plan import cost
from dinov2_jax.stages.recipe import read_recipe
from dinov2_jax.stages.settings import override_recipe
from tests.stages.tiny import stage, tiny_recipe, write_labelled
from tests.train.test_resume import metrics, saved_steps


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("desk")
    write_labelled(folder / "labelled")
    return folder


@pytest.fixture(scope="module")
def finished(desk) -> Path:
    """The recipe, run without a break."""
    task.run(tiny_recipe(desk), str(desk / "straight"))
    return desk / "straight"


def recipe_with(desk: Path, **given: str):
    recipe = tiny_recipe(desk)
    override_recipe(recipe, {name.replace("__", "."): value for name, value in given.items()})
    return recipe


def weights(run: Path) -> dict[str, np.ndarray]:
    return restore_params(read_config(run)[1], "student")["backbone"]


def must_not_train(*_):
    raise AssertionError("a finished stage was trained again")


def test_each_stage_is_a_run_that_starts_from_the_one_before(finished):
    for name in ("first", "second"):
        run = finished / name
        assert saved_steps(run) == [2]
        for file in ("config.json", "metrics.jsonl", "report.html", "stage.json"):
            assert (run / file).exists()
    stored = json.loads((finished / "second/config.json").read_text())
    assert stored["init_from"] == str(finished / "first")
    before, start = metrics(finished / "first"), metrics(finished / "second")
    assert start[0]["knn_top1"] == before[-1]["knn_top1"]  # step 0 is the teacher of `first`


def test_the_plan_alone_runs_nothing(desk, capsys):
    task.run(tiny_recipe(desk))
    lines = capsys.readouterr().out.splitlines()
    first, second = lines[1].split(), lines[2].split()
    assert first[:4] == ["first", "random", "weights", "first"]
    assert second[:3] == ["second", "first", "second"]
    assert {"2", "16"} < set(first)  # steps, and images of batches of 8
    assert "hours are not estimated" in lines[4]
    assert "nothing was run" in lines[-1]


def test_chip_hours_are_flops_by_the_share_of_the_peak(desk):
    one, _ = read_recipe(tiny_recipe(desk), desk)
    found, flops = cost(one, [one], CHIPS["h100"], 0.4), step_flops(one.config)["model"]
    assert found.images == 16 and found.flops == 16 * flops
    assert found.chip_hours == pytest.approx(16 * flops / (0.4 * 989e12 * 3600))


def test_a_second_start_trains_nothing(desk, finished, monkeypatch, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.jsonl")}
    monkeypatch.setattr(task, "train", must_not_train)
    monkeypatch.setattr(task, "evaluate_run", must_not_train)
    task.run(tiny_recipe(desk), str(finished))
    assert "stage 2 of 2: second is finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before


def at_batch(monkeypatch, number: int) -> None:
    """Sends SIGTERM before the loaders deliver batch `number`, counted over all stages."""
    calls, deliver = [], TrainLoader.__next__

    def deliver_or_signal(self):
        calls.append(0)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return deliver(self)

    monkeypatch.setattr(TrainLoader, "__next__", deliver_or_signal)


def test_an_interrupted_recipe_continues_bit_for_bit(desk, finished, tmp_path, capsys):
    """SIGTERM in the first step of the second stage."""
    with pytest.MonkeyPatch.context() as patch:
        at_batch(patch, 3)
        task.run(tiny_recipe(desk), str(tmp_path))
    assert "the recipe stopped; the same command continues" in capsys.readouterr().out
    assert saved_steps(tmp_path / "first") == [2] and saved_steps(tmp_path / "second") == [1]
    assert not list(tmp_path.rglob(LOCK_FILE))
    task.run(tiny_recipe(desk), str(tmp_path))
    assert "stage 1 of 2: first is finished" in capsys.readouterr().out
    for name in ("first", "second"):
        # A signal leaves out the k-NN of the step that it ends at.
        got, want = (
            [row for row in metrics(folder / name) if "loss" in row]
            for folder in (tmp_path, finished)
        )
        assert got == want
        ours, theirs = weights(tmp_path / name), weights(finished / name)
        for got, expected in zip(*map(_leaves, (ours, theirs)), strict=True):
            np.testing.assert_array_equal(got, expected)


def _leaves(tree):
    import jax

    return jax.tree.leaves(tree)


def test_a_signal_at_the_last_step_ends_before_the_evaluation(desk, tmp_path, capsys):
    with pytest.MonkeyPatch.context() as patch:
        at_batch(patch, 2)
        task.run(tiny_recipe(desk), str(tmp_path))
    assert saved_steps(tmp_path / "first") == [2]
    assert not (tmp_path / "first/eval").exists() and not (tmp_path / "second").exists()
    assert "the same command continues" in capsys.readouterr().out


def test_a_signal_while_a_stage_is_evaluated(desk, finished, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(task, "evaluate_run", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(KeyboardInterrupt):
            task.run(tiny_recipe(desk), str(tmp_path))
    assert saved_steps(tmp_path / "first") == [2]
    assert not list(tmp_path.rglob(LOCK_FILE))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"total_steps": "3"}, r"first is finished .*total_steps: 2 -> 3.*remove .*second"),
        ({"stages__second__optimizer__base_lr": "0.1"}, "second .*base_lr: 0.001 -> 0.1"),
        ({"stages__second__start": ""}, "stage second .*start: first -> none"),
    ],
)
def test_a_finished_stage_with_other_settings_is_refused(
    desk, finished, given, message, monkeypatch
):
    monkeypatch.setattr(task, "train", must_not_train)
    with pytest.raises(ConfigError, match=message):
        task.run(recipe_with(desk, **given), str(finished))


def test_another_machine_is_no_other_setting(desk, finished, monkeypatch):
    monkeypatch.setattr(task, "train", must_not_train)
    given = {"mesh__data": "-1", "data__workers": "2", "checkpoint__every_steps": "1"}
    task.run(recipe_with(desk, **given), str(finished))


def test_a_stage_of_other_weights_than_those_that_are_there(desk, finished, tmp_path):
    import shutil

    workdir = tmp_path / "copy"
    shutil.copytree(finished, workdir)
    shutil.rmtree(workdir / "first")
    with pytest.raises(ConfigError, match=r"second was made from another first .*none"):
        task.run(tiny_recipe(desk), str(workdir))
    shutil.rmtree(workdir / "second")
    task.run(tiny_recipe(desk), str(workdir))
    assert saved_steps(workdir / "second") == [2]


def test_other_evaluations_train_nothing(desk, finished, tmp_path, monkeypatch):
    import shutil

    workdir = tmp_path / "copy"
    shutil.copytree(finished, workdir)
    monkeypatch.setattr(task, "train", must_not_train)
    task.run(recipe_with(desk, evaluation__knn__ks="(5,)"), str(workdir))
    (results,) = (workdir / "first/eval").glob("*/*/results.json")
    assert "top-1, k=5" in json.loads(results.read_text())["results"]["knn"]["labelled"]["metrics"]


def test_mistakes_are_told_before_the_first_stage(desk, tmp_path):
    wrong = tiny_recipe(desk, third=stage(desk, {"data.path": str(tmp_path / "nothing")}))
    with pytest.raises(ConfigError, match=r"stage third: .*nothing"):
        task.run(wrong, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_two_starts_at_once_are_refused(desk, tmp_path):
    with locked(tmp_path), pytest.raises(LockedError, match="another --workdir"):
        task.run(tiny_recipe(desk), str(tmp_path))


def test_the_page_shows_what_the_files_hold(finished):
    page = (finished / "stages.html").read_text()
    runs = json.loads((finished / "stages.json").read_text())["runs"]
    assert [one["run"] for one in runs] == ["first", "second"]
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", page)]
    for one, cells in zip(runs, [row for row in rows if len(row) > 8], strict=True):
        run = finished / one["run"]
        (results,) = (run / "eval").glob("*/*/results.json")
        found = json.loads(results.read_text())["results"]["knn"]["labelled"]["metrics"]
        sizes = sum(x.size for x in _leaves(weights(run)))
        assert cells[0] == f'<a href="{one["run"]}/report.html">{one["run"]}</a>'
        assert cells[4] == f"{sizes:,}"
        assert cells[6:8] == ["2", "16"]
        assert cells[9] == f"{found['top-1, k=3']['value']:.2f}"
        for link in re.findall(r'href="(.*?)"', "".join(cells)):
            assert (finished / link).exists()
        for row in read_metrics(run):
            if "knn_top1" in row:
                assert f"{one['run']}, step {row['step']}: {row['knn_top1']:.4g} %" in page
    assert "http" not in re.sub(r"http://www.w3.org\S*", "", page)
