"""Recipes: order, overrides of the command line, and what is refused before anything runs."""

import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs.recipes import default
from dinov2_jax.config.files import ConfigError, leaves, load_config, to_dict
from dinov2_jax.config.overrides import parse_arguments
from dinov2_jax.main import main, resolve_config
from dinov2_jax.stages import recipe as reading
from dinov2_jax.stages.evaluation import evaluation_of
from dinov2_jax.stages.recipe import Stage, read_recipe
from dinov2_jax.stages.settings import override_recipe
from tests.stages.tiny import stage, tiny_recipe

RUNS = Path("runs/family")


def test_a_stage_comes_after_those_that_it_reads(tmp_path):
    ordered = read_recipe(tiny_recipe(tmp_path), RUNS)
    assert [one.name for one in ordered] == ["first", "second"]
    first, second = ordered
    assert second.config.init_from == "runs/family/first" and first.config.init_from == ""
    assert second.config.optimizer.base_lr == 0.001
    assert first.config.optimizer.base_lr == load_config("default").optimizer.base_lr
    assert (first.sources, second.sources) == ((), ("first",))


def test_fields_of_all_stages_of_one_and_of_evaluations(tmp_path):
    recipe = tiny_recipe(tmp_path)
    given = {
        "stages.first.total_steps": "9",
        "stages.second.set.model.depth": "1",
        "total_steps": "5",
        "optimizer.base_lr": "0.5",  # the second stage has its own
        "evaluation.knn.ks": "(1,2)",
        "stages.first.evaluate": "knn,linear_cached",
        "plan.mfu": "0.3",
    }
    override_recipe(recipe, given)
    first, second = (recipe.stages[name].set for name in ("first", "second"))
    assert (first.total_steps, second.model.depth) == (9, 1)
    assert "total_steps" not in second and recipe.set.total_steps == 5
    assert recipe.set.optimizer.base_lr == second.optimizer.base_lr == 0.5
    assert recipe.evaluation.knn.ks == (1, 2)
    assert recipe.stages.first.evaluate == ("knn", "linear_cached")
    assert recipe.plan.mfu == 0.3
    configs = {one.name: one.config for one in _all(recipe)}
    assert (configs["first"].total_steps, configs["second"].total_steps) == (9, 5)
    assert [configs[name].optimizer.base_lr for name in configs] == [0.5, 0.5]


def _all(recipe: ConfigDict) -> list[Stage]:
    """Without the check that both are the same model."""
    return [reading._read(recipe, name, RUNS) for name in recipe.stages]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("stages.frist.total_steps", "did you mean config.stages.first.total_steps"),
        ("stages.first.total_step", "did you mean config.stages.first.total_steps"),
        ("stages.first.strat", "did you mean config.stages.first.start"),
        ("model.dimm", "did you mean config.model.dim"),
        ("evaluation.knn.k", "did you mean config.evaluation.knn.ks"),
        ("stages.first.model", "config.stages.first.model is a group of fields"),
        ("model", "config.model is a group of fields"),
    ],
)
def test_an_unknown_field_names_the_nearest(tmp_path, name, message):
    with pytest.raises(ConfigError, match=message):
        override_recipe(tiny_recipe(tmp_path), {name: "1"})


def test_the_command_line_sets_fields_with_their_types(tmp_path):
    words = ["--config.stages.pretrain.crops.global_scale=(0.5,1)", "--config.data.path=/my, own"]
    config = resolve_config(parse_arguments(["--config=recipes/default", *words]))
    assert config.stages.pretrain.set.crops.global_scale == (0.5, 1.0)
    assert config.set.data.path == "/my, own"
    with pytest.raises(ConfigError, match=r"config.total_steps expects a whole number"):
        resolve_config(parse_arguments(["--config=recipes/default", "--config.total_steps=few"]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stages.first.start": "second"}, "stages (first -> second -> first|second -> first -> "
         "second) wait for each other in a circle"),
        ({"stages.first.start": "first"}, "first -> first wait for each other"),
        ({"stages.second.start": "frist"}, "second.start is 'frist'.*did you mean 'first'"),
        ({"stages.second.teacher": "thrid"}, "second.teacher is 'thrid'|distill"),
        ({"stages.first.config": "quikstart"}, "stages.first.config=quickstart"),
        ({"stages.first.config": "eval/knn"}, "task 'eval', but a stage trains"),
        ({"stages.first.batch_size": "6"}, "stage first: config.batch_size 6 is not a multiple of "
         "config.group_size 4; .*--config.stages.first.batch_size=8 or"),
        ({"stages.second.model.dim": "48"}, "dim is 24 there and 48 here; add "
         "--config.stages.second.model.dim=24"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused(tmp_path, given, message):
    recipe = tiny_recipe(tmp_path)
    override_recipe(recipe, given)
    with pytest.raises(ConfigError, match=message):
        read_recipe(recipe, RUNS)


def test_wrong_settings_in_a_recipe_are_refused(tmp_path):
    recipe = tiny_recipe(tmp_path, third=stage(tmp_path, {"model.dimm": 3}))
    with pytest.raises(ConfigError, match=r"stage third: unknown field .* config.model.dim\?"):
        read_recipe(recipe, RUNS)
    recipe.stages = ConfigDict()
    with pytest.raises(ConfigError, match="the recipe has no stages"):
        read_recipe(recipe, RUNS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stages.first.evaluate": "knnn"}, "evaluate has 'knnn'; did you mean 'knn'"),
        ({"eval.labels": "none"}, "have no labels.*--config.stages.first.evaluate=none"),
        ({"evaluation.knn.temperature": "0"}, "knn.temperature is 0.0"),
    ],
)
def test_an_evaluation_that_cannot_run_is_refused(tmp_path, given, message):
    recipe = tiny_recipe(tmp_path)
    override_recipe(recipe, given)
    first, _ = read_recipe(recipe, RUNS)
    with pytest.raises(ConfigError, match=message):
        evaluation_of(first, recipe)


def test_students_are_named_by_their_stage(tmp_path):
    students = ConfigDict({"distill": {"students": ("small", "base")}})
    family = Stage("distil", "", "", students, (), RUNS / "distil")
    assert family.runs == ("distil/small", "distil/base")
    stages = {"distil": family}
    for start in ("distil/small", "distil/base", ""):
        reading._check_source(Stage("adapt", start, "", students, (), RUNS), "start", stages)
    for start, message in (
        ("distil", "several runs .*--config.stages.adapt.start=distil/small"),
        ("distil/bass", "did you mean 'distil/base'"),
    ):
        with pytest.raises(ConfigError, match=message):
            reading._check_source(Stage("adapt", start, "", students, (), RUNS), "start", stages)


def test_another_task_has_no_recipe(capsys):
    assert main(["main", "--config=quickstart", "--config.task=stages"]) == 2
    assert "no field config.evaluation.data.workers" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["default", "quick", "ablation", "vitg14_family", "distil_photos", "highres_photos"]
)
def test_every_recipe_can_run(name, one_device):
    recipe = load_config(f"recipes/{name}")
    override_recipe(recipe, {"data.path": "/pictures"})
    assert json.loads(json.dumps(to_dict(recipe)))["task"] == "stages"
    needs = {field: value for field, value in leaves(recipe).items() if field.endswith("teacher")}
    if any(needs.values()) and "distill" not in load_config("default"):
        pytest.skip("no distillation yet")
    stages = read_recipe(recipe, RUNS)
    assert len(stages) == len(recipe.stages)
    for one in stages:
        evaluation_of(one, recipe)
        assert one.notes == ()


def test_a_recipe_of_ones_own(tmp_path):
    own = tmp_path / "mine.py"
    own.write_text(
        "from configs.recipes import default\n\ndef get_config():\n"
        "    config = default.get_config()\n"
        "    config.stages.more = default.stage('quickstart', {'seed': 3}, start='pretrain')\n"
        "    return config\n"
    )
    recipe = load_config(str(own))
    assert [one.config.seed for one in read_recipe(recipe, RUNS)] == [0, 3]
    assert list(default.get_config().stages) == ["pretrain"]
