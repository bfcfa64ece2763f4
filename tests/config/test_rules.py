"""Rules: every number of every configuration has one, and every rule has a field."""

import importlib
import math
from typing import Any

import pytest
from ml_collections import ConfigDict

from dinov2_jax.config.checks import MOST, Names, Range, Rules, check_values
from dinov2_jax.config.files import ConfigError, leaves, load_config, recipes_folder
from dinov2_jax.stages.rules import rules_for as recipe_rules

ROOMS = {
    "train": "dinov2_jax.train.checks",
    "eval": "dinov2_jax.eval.rules",
    "embed": "dinov2_jax.features.rules",
    "export": "dinov2_jax.weights.export",
    "visualize": "dinov2_jax.viz.rules",
    "curate": "dinov2_jax.curation.rules",
}
BASES = {"train": "default", "eval": "eval/default", "curate": "curate/default"}
RECIPES = sorted(
    file.relative_to(recipes_folder()).with_suffix("").as_posix()
    for file in recipes_folder().rglob("*.py")
    if file.name != "__init__.py"
)


def rules_of(task: str) -> Rules:
    return importlib.import_module(ROOMS[task]).RULES


def rules_for(config: ConfigDict) -> Rules:
    return recipe_rules(config) if config.task == "stages" else rules_of(config.task)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_number_has_a_range_that_its_recipe_obeys(recipe: str) -> None:
    config = load_config(recipe)
    rules = rules_for(config)
    bare = [
        name
        for name, value in leaves(config).items()
        if (is_number(value) or (isinstance(value, tuple) and all(map(is_number, value))))
        and not isinstance(rules.get(name), Range | Names)
    ]
    assert bare == []
    check_values(config, rules)


@pytest.mark.parametrize("task", ROOMS)
def test_every_rule_has_a_field_of_its_kind(task: str) -> None:
    fields = leaves(load_config(BASES.get(task, task)))
    for name, rule in rules_of(task).items():
        assert name in fields
        assert isinstance(fields[name], str) == isinstance(rule, tuple), name


@pytest.mark.parametrize("task", ROOMS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_are_finite(task: str, value: float) -> None:
    base = load_config(BASES.get(task, task))
    for name, default in leaves(base).items():
        if isinstance(rules_of(task).get(name), Range) and isinstance(default, float):
            config = load_config(BASES.get(task, task))
            config.update_from_flattened_dict({name: value})
            with pytest.raises(ConfigError, match=f"config.{name} is"):
                check_values(config, rules_of(task))


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_tuple_may_be_empty_unless_that_is_its_default(recipe: str) -> None:
    config = load_config(recipe)
    rules = rules_for(config)
    for name, default in leaves(config).items():
        if isinstance(default, tuple) and default:
            changed = config.copy_and_resolve_references()
            changed.update_from_flattened_dict({name: ()})
            with pytest.raises(ConfigError, match=rf"config\.{name} is \(\), but needs one"):
                check_values(changed, rules)


@pytest.mark.parametrize(
    ("rule", "value", "problem"),
    [
        (Range(1, MOST), 0, "must be at least 1"),
        (Range(1, MOST), (3, 0), "every number must be at least 1"),
        (Range(1, MOST), 2**31, "must be at most 2147483647"),
        (Range(0, 1), 1.5, "must be from 0 to 1"),
        (Range(0, 1), math.nan, "must be from 0 to 1"),
        (Range(0, 1), 10**400, "must be from 0 to 1"),
        (Range(0, 1), (), "needs one number or more, such as (1,)"),
        (Range(-9, 9, ordered=True), (1,), "needs two numbers, such as (-9, 9)"),
        (Range(-9, 9, ordered=True), (1, 2, 3), "needs two numbers, such as (-9, 9)"),
        (Range(0, 1, ordered=True), (0.6, 0.5), "needs 0 <= low <= high <= 1, such as (0.5, 0.6)"),
        (Range(0, 1, ordered=True), (0.6, 1.5), "needs 0 <= low <= high <= 1, such as (0.6, 1)"),
        (Range(0.1, 1, ordered=True), (0, 0), "needs 0.1 <= low <= high <= 1, such as (0.1, 1)"),
        (Range(2, MOST), 2, ""),
        (Range(0, 1), (0.0, 1.0), ""),
    ],
)
def test_ranges_say_what_is_accepted(rule: Range, value: Any, problem: str) -> None:
    assert rule.problem(value) == problem


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_that_reads_weights_has_the_fields_that_errors_name(recipe: str) -> None:
    config = load_config(recipe)
    if config.task == "stages":  # its stages are training configurations
        return
    wanted = {"allow"}
    if config.task not in ("train", "plan"):
        wanted |= {"which", "heads", "interpolate_offset", "interpolate_antialias"}
    assert wanted <= leaves(config).keys()
