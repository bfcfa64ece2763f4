"""Distillation through the training loop: teachers, several students, stops, wrong input."""

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import default
from dinov2_jax.config.files import ConfigError, leaves
from dinov2_jax.parallel.mesh import make_mesh
from dinov2_jax.parallel.placement import put_batch
from dinov2_jax.run.checkpoint import CheckpointError, restore_params
from dinov2_jax.train import init_from, loop
from dinov2_jax.train import teacher as teacher_module
from dinov2_jax.train.distill_checks import _UNUSED
from dinov2_jax.train.setup import make_family, make_run
from dinov2_jax.train.student_configs import student_configs
from dinov2_jax.train.teacher import open_teacher, place_teacher
from dinov2_jax.weights.bundle import write_bundle
from dinov2_jax.weights.load import load
from tests.train.test_resume import OVERRIDES, metrics, pictures  # noqa: F401
from tests.train.tiny import random_batch

STUDENT = """
from configs import default

def get_config():
    config = default.get_config()
    config.update_from_flattened_dict({values})
    return config
"""


def config_of(pictures: Path, **changes: Any) -> ConfigDict:  # noqa: F811
    config = default.get_config()
    fixed = {"data.path": str(pictures), "eval.every_steps": 0, "total_steps": 4}
    config.update_from_flattened_dict(OVERRIDES | fixed | changes)
    return config


@pytest.fixture(scope="module")
def teacher(pictures, tmp_path_factory) -> Path:  # noqa: F811
    """A run of a wider network with registers and SwiGLU."""
    folder = tmp_path_factory.mktemp("teacher")
    changes = {"model.dim": 48, "model.depth": 3, "model.ffn": "swiglu", "model.registers": 2}
    changes |= {"dino.head_hidden_dim": 24, "dino.head_bottleneck_dim": 12, "total_steps": 2}
    loop.train(config_of(pictures, **changes), str(folder))
    return folder


@pytest.fixture(scope="module")
def student_files(tmp_path_factory) -> list[Path]:
    """Recipes of two students."""
    folder, files = tmp_path_factory.mktemp("recipes"), []
    for name, changes in {
        "small": {"model.dim": 24},
        "tall": {"model.dim": 36, "model.depth": 3, "optimizer.base_lr": 1e-3},
    }.items():
        values = {
            k: v
            for k, v in (OVERRIDES | changes).items()
            if k.split(".")[0] in ("model", "dino", "optimizer")
        }
        files.append(folder / f"{name}.py")
        files[-1].write_text(STUDENT.format(values=values))
    return files


def test_a_student_learns_from_a_larger_teacher_that_never_changes(pictures, teacher, tmp_path):  # noqa: F811
    before = load(teacher)
    loop.train(config_of(pictures, **{"distill.teacher": str(teacher)}), str(tmp_path))
    after = load(teacher)
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)
    rows = metrics(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(np.isfinite(row["loss"]) and row["loss/ibot"] > 0 for row in rows)
    average = load(tmp_path)
    assert (average.model.dim, average.model.depth, average.model.registers) == (24, 2, 0)
    assert (tmp_path / "report.html").exists()


def steps_of(config: ConfigDict, mesh_sizes: tuple[int, ...], steps: int) -> dict[str, list[dict]]:
    """Metrics of the first steps on noise, by student."""
    mesh = make_mesh(*mesh_sizes)
    configs = student_configs(config)
    teacher = open_teacher(config, configs)
    family = make_family(configs, mesh, teacher.networks)
    found: dict[str, list[dict]] = {name: [] for name in configs}
    with jax.set_mesh(mesh):
        states = {name: run.init() for name, run in family.runs.items()}
        frozen = place_teacher(teacher, family.frozen)
        for i in range(steps):
            batch = put_batch(random_batch(config, i), mesh)
            states, rows = family.step(states, batch, family.schedules.at(i + 1), *frozen)
            for name, row in rows.items():
                found[name].append({key: float(value) for key, value in row.items()})
    return found


def distilling(pictures: Path, teacher: Path, **changes: Any) -> ConfigDict:  # noqa: F811
    return config_of(pictures, **{"distill.teacher": str(teacher)} | changes)


def require_close(got: list[dict], want: list[dict]) -> None:
    for step, (row, wanted) in enumerate(zip(got, want, strict=True)):
        for name, value in wanted.items():
            if name.startswith("loss"):
                assert row[name] == pytest.approx(value, rel=1e-5), (step, name)


@pytest.mark.parametrize(
    ("mesh", "changes"),
    [((2, 2), {}), ((1, 1), {"micro_batches": 2}), ((2, 1), {"distill.patches": "masked"})],
    ids=["mesh", "micro_batches", "masked"],
)
def test_devices_and_micro_batches_change_nothing(pictures, teacher, mesh, changes):  # noqa: F811
    same = {k: v for k, v in changes.items() if k != "micro_batches"}
    want = steps_of(distilling(pictures, teacher, **same), (1, 1), 2)
    got = steps_of(distilling(pictures, teacher, **changes), mesh, 2)
    require_close(got[""], want[""])


def test_two_students_at_once_equal_each_alone(pictures, teacher, student_files):  # noqa: F811
    names = tuple(map(str, student_files))
    config = distilling(pictures, teacher, **{"distill.students": names})
    together = steps_of(config, (1, 1), 3)
    assert list(together) == ["small", "tall"]
    for name, own in student_configs(config).items():
        require_close(together[name], steps_of(own, (1, 1), 3)[""])
    assert together["small"][0]["loss"] != pytest.approx(together["tall"][0]["loss"], rel=1e-4)


def test_students_have_run_directories_and_continue(pictures, teacher, student_files, tmp_path):  # noqa: F811
    """Also where a run was killed after one student was saved and before the other one was."""
    changes = {"distill.students": tuple(map(str, student_files)), "checkpoint.every_steps": 2}
    make = functools.partial(distilling, pictures, teacher, **changes)
    loop.train(make(), str(tmp_path / "whole"))
    config = make()
    config.total_steps = 4
    _stopped_after(2, config, tmp_path / "cut")
    half = tmp_path / "cut" / "tall" / "checkpoints" / "2"
    assert half.exists()
    _remove(half)
    loop.train(make(), str(tmp_path / "cut"))
    for name in ("small", "tall"):
        want, got = (tmp_path / x / name for x in ("whole", "cut"))
        assert metrics(got) == metrics(want)
        for side in ("student", "teacher"):
            a, b = (restore_params(x / "checkpoints" / "4", side) for x in (got, want))
            jax.tree.map(np.testing.assert_array_equal, a, b)
        assert load(got).model.dim == {"small": 24, "tall": 36}[name]
        assert json.loads((got / "config.json").read_text())["distill"]["students"] == []


def _stopped_after(step: int, config: ConfigDict, folder: Path) -> None:
    """A run that SIGTERM ends after a step."""
    import os
    import signal

    from dinov2_jax.train.students import Students

    real = Students.add

    def add(self: Students, at: int, *rest: Any) -> None:
        real(self, at, *rest)
        if at == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Students, "add", add)
        loop.train(config, str(folder))


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder)


def test_a_run_keeps_its_teacher(pictures, teacher, tmp_path):  # noqa: F811
    loop.train(distilling(pictures, teacher, total_steps=1), str(tmp_path / "student"))
    other = tmp_path / "other"
    loop.train(config_of(pictures, total_steps=1, seed=1), str(other))
    with pytest.raises(CheckpointError, match="a student of other weights"):
        loop.train(distilling(pictures, other), str(tmp_path / "student"))
    with pytest.raises(CheckpointError, match=r"a run of distillation, and this .* pretraining"):
        loop.train(config_of(pictures), str(tmp_path / "student"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.patch_size": 4}, r"config.model.patch_size 4, .*--config.model.patch_size=8"),
        ({"dino.head_prototypes": 16}, r"head_prototypes 16.*--config.dino.head_prototypes=32"),
        ({"ibot.separate_head": True}, r"--config.ibot.separate_head=false"),
        ({"distill.teacher": "quickstart"}, "is a recipe, which has no weights"),
        ({"distill.teacher": "/nowhere/run"}, "/nowhere/run"),
        ({"distill.students": ("eval/knn",)}, "a recipe of task eval"),
        ({"distill.students": ("vits14", "vits14")}, "two students vits14"),
        ({"distill.students": ("vits14x",)}, "there is no configuration vits14x"),
        (
            {"distill.head_steps": 5},
            r"teacher_heads is empty.*--config.distill.teacher_heads=train",
        ),
    ],
)
def test_wrong_input_is_told_in_a_sentence(pictures, teacher, tmp_path, changes, message):  # noqa: F811
    config = distilling(pictures, teacher, **changes)
    with pytest.raises((ConfigError, OSError, ValueError), match=message) as caught:
        loop.train(config, str(tmp_path / "run"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("attention_heads", 4), ("patches", "masked"), ("teacher_heads", "train"), ("head_steps", 5)],
)
def test_pretraining_refuses_the_fields_of_a_distillation(pictures, tmp_path, field, value):  # noqa: F811
    message = f"config.distill.{field} is {value!r}, but config.distill.teacher is empty.*leave "
    with pytest.raises(ConfigError, match=message) as caught:
        loop.train(config_of(pictures, **{f"distill.{field}": value}), str(tmp_path / "run"))
    assert str(caught.value).endswith(f"{field} out, or add --config.distill.teacher=WEIGHTS")


def test_the_recipe_asks_for_nothing_that_is_refused():
    fields = leaves(default.get_config())
    assert {name: fields[name] for name in _UNUSED} == _UNUSED


@contextlib.contextmanager
def loads() -> Iterator[list[str]]:
    """The weights that training reads."""
    read: list[str] = []

    def noted(name: str, **options: Any) -> Any:
        read.append(str(name))
        return load(name, **options)

    with pytest.MonkeyPatch.context() as patch:
        for module in (teacher_module, init_from):
            patch.setattr(module, "load", noted)
        yield read


def test_heads_are_trained_for_a_teacher_without_heads(pictures, teacher, tmp_path):  # noqa: F811
    """The backbone stays as it was, and the student learns from the run that trained the heads."""
    folder = tmp_path / "bundle"
    write_bundle(folder, *load(teacher), load(teacher).preprocessing, "a test")
    with pytest.raises(ConfigError, match=r"without projection heads.*teacher_heads=train"):
        loop.train(distilling(pictures, folder), str(tmp_path / "run"))
    changes = {"distill.teacher_heads": "train", "distill.head_steps": 3, "total_steps": 2}
    with loads() as read:
        loop.train(distilling(pictures, folder, **changes), str(tmp_path / "run"))
    assert read == [str(folder), str(tmp_path / "run" / "teacher_heads")]  # each once
    heads = load(tmp_path / "run" / "teacher_heads")
    # The average of two equal backbones is rounded.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
    jax.tree.map(close, heads.params, dict(load(folder).params))
    assert [row["step"] for row in metrics(tmp_path / "run" / "teacher_heads")] == [1, 2, 3]
    assert [row["step"] for row in metrics(tmp_path / "run")] == [1, 2]
    fresh = restore_params(tmp_path / "run" / "teacher_heads" / "checkpoints" / "3", "student")
    rows = metrics(tmp_path / "run" / "teacher_heads")
    assert rows[-1]["grad_norm/dino_head"] > 0 == rows[-1]["grad_norm/backbone"]
    assert fresh["dino_head"]["mlp_0"]["kernel"].shape == (48, 16)


def test_a_larger_student_is_told(pictures, teacher):  # noqa: F811
    config = distilling(pictures, teacher, **{"model.dim": 96})
    (note,) = [x for x in open_teacher(config, {"": config}).notes if "more than" in x]
    assert "more than its teacher's" in note


def test_pretraining_has_no_frozen_teacher(pictures):  # noqa: F811
    run = make_run(config_of(pictures), make_mesh(1))
    assert run.frozen == ()
    assert open_teacher(config_of(pictures), {}) is None
